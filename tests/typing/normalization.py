"""Normalising layers know their features, and so do their gradients."""

from typing import reveal_type

from torch import Tensor

from fundl import LayerNorm, initialize, key, layer_norm, rms_norm, vjp

reveal_type(layer_norm(64))  # R: fundl.layers.normalization.LayerNorm[Literal[64]]
reveal_type(LayerNorm(64))  # R: fundl.layers.normalization.LayerNorm[Literal[64]]
reveal_type(rms_norm((3, 8)))  # R: fundl.layers.normalization.RMSNorm[tuple[Literal[3], Literal[8]]]


def gradient(x: Tensor) -> None:
    grads, grad_x = vjp(initialize(key(0), layer_norm(2)), x, x)
    reveal_type(grads)  # R: fundl.layers.normalization.LayerNorm[Literal[2]]
    reveal_type(grad_x)  # R: torch._tensor.Tensor

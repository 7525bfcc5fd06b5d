"""Normalising layers know their features, and so do their gradients."""

from typing import reveal_type

from torch import Tensor

from fundl import (
    LayerNorm,
    batch_norm,
    calibrate,
    compose,
    group_norm,
    initialize,
    instance_norm,
    key,
    layer_norm,
    linear,
    rms_norm,
    track,
    vjp,
    weight_norm,
    weight_standardization,
    without_statistics,
)

reveal_type(layer_norm(64))  # R: fundl.layers.normalization.LayerNorm[Literal[64]]
reveal_type(LayerNorm(64))  # R: fundl.layers.normalization.LayerNorm[Literal[64]]
reveal_type(rms_norm((3, 8)))  # R: fundl.layers.normalization.RMSNorm[tuple[Literal[3], Literal[8]]]
reveal_type(group_norm(4, 32))  # R: fundl.layers.group_norm.GroupNorm[Literal[32]]
reveal_type(instance_norm(32))  # R: fundl.layers.group_norm.InstanceNorm[Literal[32]]
reveal_type(batch_norm(32))  # R: fundl.layers.batch_norm.BatchNorm[Literal[32]]
reveal_type(weight_norm(linear(2, 3)).layer)  # R: fundl.layers.linear.Linear[Literal[2], Literal[3]]
# R: fundl.layers.weight_norm.WeightStandardization[fundl.layers.linear.Linear[Literal[2], Literal[3]]]
reveal_type(weight_standardization(linear(2, 3)))


def statistics(x: Tensor, residuals: object) -> None:
    model = compose(batch_norm(32))
    reveal_type(calibrate(model, [x]))  # R: tuple[fundl.layers.batch_norm.BatchNorm[Literal[32]]]
    reveal_type(track(model, residuals))  # R: tuple[fundl.layers.batch_norm.BatchNorm[Literal[32]]]
    reveal_type(without_statistics(model))  # R: tuple[fundl.layers.batch_norm.BatchNorm[Literal[32]]]
    calibrate(model, [(x, x)])  # E: List item 0 has incompatible type "tuple[Tensor, Tensor]"; expected "Tensor"


def weights(x: Tensor) -> None:
    grads, _ = vjp(weight_norm(linear(2, 3)), x, x)
    reveal_type(grads.layer)  # R: fundl.layers.linear.Linear[Literal[2], Literal[3]]


def gradient(x: Tensor) -> None:
    grads, grad_x = vjp(initialize(key(0), layer_norm(2)), x, x)
    reveal_type(grads)  # R: fundl.layers.normalization.LayerNorm[Literal[2]]
    reveal_type(grad_x)  # R: torch._tensor.Tensor

"""Layers over sequences: what goes in, what comes out, and what their gradients are."""

from typing import reveal_type

import torch

from fundl import (
    Masked,
    MeanOfPositions,
    Tanh,
    apply,
    compose,
    cross_attention,
    from_masked,
    linear,
    on_masked,
    residual,
    self_attention,
    vjp,
    with_mask,
)

x = torch.ones(5, 4, 3)
masked = Masked(x, torch.ones(5, 4, dtype=torch.bool))

# --- Masked batches ----------------------------------------------------------------------------------------------------

tagger = on_masked(linear(3, 4), Tanh())
reveal_type(apply(tagger, masked))  # R: fundl.layers.masked.Masked
grads, grad_x = vjp(tagger, masked, masked)
reveal_type(grads.layers[0])  # R: fundl.layers.linear.Linear[Literal[3], Literal[4]]
reveal_type(grad_x)  # R: fundl.layers.masked.Masked

classifier = from_masked(linear(3, 4), MeanOfPositions(), linear(4, 2))
reveal_type(apply(classifier, masked))  # R: torch._tensor.Tensor
reveal_type(with_mask(classifier, masked.mask).layers[1])  # R: fundl.layers.masked.MeanOfPositions
from_masked(linear(3, 4), MeanOfPositions(), linear(5, 2))  # E: layer 3 (Linear) expects 5 features but layer 2 (MeanOfPositions) gives 4 features
compose(MeanOfPositions(), linear(3, 4), linear(5, 2))  # E: layer 3 (Linear) expects 5 features but layer 2 (Linear) gives 4 features

# --- Attention ---------------------------------------------------------------------------------------------------------

attention = self_attention(16, 4, key_value_heads=2, causal=True)
reveal_type(attention)  # R: fundl.layers.attention.SelfAttention[Literal[16]]
reveal_type(vjp(attention, x, x)[0])  # R: fundl.layers.attention.SelfAttention[Literal[16]]
reveal_type(on_masked(attention))  # R: fundl.layers.masked.OnMasked[fundl.layers.attention.SelfAttention[Literal[16]]]
compose(linear(3, 16), attention, residual(attention, linear(16, 16)), linear(16, 1))
compose(linear(3, 15), attention)  # E: layer 2 (SelfAttention) expects 16 features but layer 1 (Linear) gives 15 features
compose(MeanOfPositions(), attention)  # E: layer 2 (SelfAttention) expects 3 axes but layer 1 (MeanOfPositions) gives 2 axes

across = cross_attention(16, 4, memory_features=12)
reveal_type(across)  # R: fundl.layers.attention.CrossAttention[Literal[16]]
reveal_type(apply(across, (x, x)))  # R: torch._tensor.Tensor
reveal_type(vjp(across, (x, x), x))  # R: tuple[fundl.layers.attention.CrossAttention[Literal[16]], tuple[torch._tensor.Tensor, torch._tensor.Tensor]]

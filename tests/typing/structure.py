"""Layers made of layers know what they hold, and so do their gradients."""

from typing import reveal_type

import torch

from fundl import (
    Tanh,
    adam,
    apply,
    backward_input,
    compose,
    dynamic_loss_scale,
    forward,
    frozen,
    linear,
    mixed_precision,
    repeat,
    residual,
    thaw,
    vjp,
)

x = torch.ones(5, 3)

# --- Frozen ------------------------------------------------------------------------------------------------------------

ice = frozen(linear(3, 4), Tanh())
reveal_type(ice)  # R: fundl.layers.frozen.Frozen[fundl.layers.linear.Linear[Literal[3], Literal[4]], fundl.layers.activation.Tanh]
reveal_type(thaw(ice))  # R: tuple[fundl.layers.linear.Linear[Literal[3], Literal[4]], fundl.layers.activation.Tanh]
grads, grad_x = vjp(compose(ice, linear(4, 2)), x, x)
reveal_type(grads[0].layers[0])  # R: fundl.layers.linear.Linear[Literal[3], Literal[4]]
reveal_type(apply(ice, x))  # R: torch._tensor.Tensor
reveal_type(backward_input(ice, forward(ice, x)[1], x))  # R: torch._tensor.Tensor
compose(ice, linear(5, 2))  # E: layer 2 (Linear) expects 5 features but layer 1 (Frozen) gives 4 features
frozen(linear(3, 4), linear(5, 2))  # E: layer 2 (Linear) expects 5 features but layer 1 (Linear) gives 4 features

# --- Repeat ------------------------------------------------------------------------------------------------------------

deep = repeat(3, residual(linear(4, 4)), Tanh())
reveal_type(deep.blocks[0][1])  # R: fundl.layers.activation.Tanh
reveal_type(vjp(deep, x, x)[0].stacked[0].layers[0])  # R: fundl.layers.linear.Linear[Literal[4], Literal[4]]
repeat(3, linear(4, 5))  # E: Repeat expects 4 features but layer 1 (Linear) gives 5 features
compose(linear(3, 4), deep, linear(5, 2))  # E: layer 3 (Linear) expects 5 features but layer 2 (Repeat) gives 4 features
compose(linear(3, 5), deep)  # E: layer 2.1.1 (Linear) expects 4 features but layer 1 (Linear) gives 5 features

# --- Mixed precision ---------------------------------------------------------------------------------------------------

mixed = mixed_precision(linear(3, 4), Tanh(), compute=torch.float16)
reveal_type(vjp(mixed, x, x)[0].layers[0])  # R: fundl.layers.linear.Linear[Literal[3], Literal[4]]
compose(mixed, linear(5, 2))  # E: layer 2 (Linear) expects 5 features but layer 1 (MixedPrecision) gives 4 features
optimizer = dynamic_loss_scale(adam(1e-3))
reveal_type(optimizer.init(mixed).inner.scale)  # R: torch._tensor.Tensor

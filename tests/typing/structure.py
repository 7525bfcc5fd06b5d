"""Layers made of layers know what they hold, and so do their gradients."""

from typing import reveal_type

import torch

from fundl import Tanh, apply, backward_input, compose, forward, frozen, linear, thaw, vjp

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

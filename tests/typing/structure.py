"""Layers made of layers know what they hold, and so do their gradients."""

from typing import reveal_type

import torch

from fundl import (
    Add,
    Concatenate,
    Duplicate,
    Flatten,
    Multiply,
    Reshape,
    Tanh,
    adam,
    apply,
    backward_input,
    bilinear,
    both,
    compose,
    dynamic_loss_scale,
    embedding,
    forward,
    frozen,
    linear,
    mixed_precision,
    mse,
    over_time,
    pipe,
    repeat,
    residual,
    shared,
    thaw,
    tied,
    value_and_grad,
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

# --- Over time ---------------------------------------------------------------------------------------------------------

film = over_time(Flatten(), linear(12, 4))
reveal_type(vjp(film, x, x)[0].layers[1])  # R: fundl.layers.linear.Linear[Literal[12], Literal[4]]
compose(film, linear(5, 2))  # E: layer 2 (Linear) expects 5 features but layer 1 (OverTime) gives 4 features
compose(linear(2, 3), over_time(linear(4, 5)))  # E: layer 2.1 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
compose(Reshape((7, 3, 2, 2)), over_time(Flatten(), linear(13, 4)))  # E: layer 2.2 (Linear) expects 13 features but layer 2.1 (Flatten) gives 12 features

# --- Tied --------------------------------------------------------------------------------------------------------------

language = tied(embedding(100, 16), residual(linear(16, 16), Tanh()))
reveal_type(vjp(language, x, x)[0].embedding)  # R: fundl.layers.embedding.Embedding[Literal[16]]
tied(embedding(100, 16), linear(16, 8))  # E: Tied expects 16 features but layer 1 (Linear) gives 8 features
tied(embedding(100, 16), linear(8, 16))  # E: layer 1 (Linear) expects 8 features but the input has 16 features
compose(language, linear(100, 2))

# --- Pairs and pipes ---------------------------------------------------------------------------------------------------

two = x, x
model = pipe(both(linear(3, 8), linear(3, 8)), Concatenate(), linear(16, 1))
reveal_type(apply(model, two))  # R: torch._tensor.Tensor
reveal_type(vjp(model, two, x)[1])  # R: tuple[torch._tensor.Tensor, torch._tensor.Tensor]
reveal_type(vjp(model, two, x)[0].layers[0].first)  # R: fundl.layers.linear.Linear[Literal[3], Literal[8]]
reveal_type(value_and_grad(mse, model, two, x)[1].layers[2])  # R: fundl.layers.linear.Linear[Literal[16], Literal[1]]
reveal_type(apply(pipe(linear(3, 2), Duplicate()), x))  # R: tuple[torch._tensor.Tensor, torch._tensor.Tensor]
siamese = pipe(shared(linear(3, 8), Tanh()), Multiply(), linear(8, 1))
reveal_type(apply(siamese, two))  # R: torch._tensor.Tensor
reveal_type(vjp(siamese, two, x)[0].layers[0].layers[0])  # R: fundl.layers.linear.Linear[Literal[3], Literal[8]]
pipe(Add(), Multiply())  # E: Cannot infer value of type parameter "A" of "pipe"
compose(bilinear(3, 2, 4), linear(5, 1))  # E: layer 2 (Linear) expects 5 features but layer 1 (Bilinear) gives 4 features

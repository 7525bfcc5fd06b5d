"""A NamedTuple of layers is a model: its gradient has its names, and its sizes are checked by name."""

from typing import Literal, NamedTuple, reveal_type

import torch

from fundl import Linear, Tanh, compose, initialize, key, linear, mse, tree, value_and_grad


class Autoencoder(NamedTuple):
    encoder: tuple[Linear[Literal[4], Literal[2]], Tanh]
    decoder: Linear[Literal[2], Literal[4]]


class Torn(NamedTuple):
    encoder: Linear[Literal[4], Literal[2]]
    decoder: Linear[Literal[3], Literal[4]]


model = initialize(key(0), Autoencoder(compose(linear(4, 2), Tanh()), linear(2, 4)))
_, grads = value_and_grad(mse, model, torch.zeros(5, 4), torch.zeros(5, 4))
reveal_type(grads.encoder[0].weight)  # R: torch._tensor.Tensor
reveal_type(tree.at(model, lambda model: model.decoder.weight).get())  # R: torch._tensor.Tensor
grads.middle  # E: "Autoencoder" has no attribute "middle"

# E: layer 2.encoder.1 (Linear) expects 4 features but layer 1 (Linear) gives 5 features
compose(linear(3, 5), model)
# E: Argument 2 to "Autoencoder" has incompatible type
Autoencoder(compose(linear(4, 2), Tanh()), linear(3, 4))

torn = Torn(linear(4, 2), linear(3, 4))
initialize(key(0), torn)  # E: layer decoder (Linear) expects 3 features but layer encoder (Linear) gives 2 features
# E: layer 1.decoder (Linear) expects 3 features but layer 1.encoder (Linear) gives 2 features
compose(torn, Tanh())

"""Layers over sequences: what goes in, what comes out, and what their gradients are."""

from typing import reveal_type

import torch

from fundl import Masked, MeanOfPositions, Tanh, apply, compose, from_masked, linear, on_masked, vjp, with_mask

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

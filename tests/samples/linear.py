"""Sample layers: the affine map, and its parts."""

from typing import Final

import torch.nn.functional as F
from torch import Tensor

from fundl import Linear, bias, gain, linear
from tests.samples.table import normal, sample


def affine(p: Linear, x: Tensor) -> Tensor:
    return F.linear(x, p.weight, p.bias)


SAMPLES: Final = (
    sample("Linear", linear(3, 4), normal(5, 3), affine),
    sample("Linear, no bias", linear(3, 4, bias=False), normal(5, 3), affine),
    sample("Linear of a vector", linear(3, 4), normal(3), affine, batched=False),
    sample("Linear of sequences", linear(3, 4), normal(5, 2, 3), affine),
    sample("Gain", gain(3), normal(5, 3), lambda p, x: x * p.weight),
    sample("Gain of sequences", gain(3), normal(5, 2, 3), lambda p, x: x * p.weight),
    sample("Bias", bias(3), normal(5, 3), lambda p, x: x + p.bias),
    sample("Bias of sequences", bias(3), normal(5, 2, 3), lambda p, x: x + p.bias),
)

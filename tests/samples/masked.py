"""Sample layers: on batches of sequences of different lengths."""

from typing import Final

import torch
from torch import Tensor

from fundl import LastPosition, Masked, MeanOfPositions, Tanh, from_masked, linear, on_masked, residual
from tests.samples.linear import affine
from tests.samples.table import normal, sample

# One sequence is whole, some are filled up behind or before, one in between, and one is nothing but padding.
MASK: Final = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)


def mean_of_real(x: Tensor, mask: Tensor) -> Tensor:
    """The mean over the positions that are real."""
    real = mask.unsqueeze(-1)
    return torch.where(real, x, 0).sum(1) / real.sum(1).clamp(min=1)


SAMPLES: Final = (
    sample("MeanOfPositions", MeanOfPositions(), normal(5, 4, 3), lambda _, x: x.mean(1)),
    sample("MeanOfPositions, mask", MeanOfPositions(MASK), normal(5, 4, 3), lambda _, x: mean_of_real(x, MASK), batched=False),
    sample("LastPosition", LastPosition(), normal(5, 4, 3), lambda _, x: x[:, -1]),
    sample(
        "LastPosition, mask",
        LastPosition(MASK),
        normal(5, 4, 3),
        lambda _, x: torch.stack((x[0, 3], x[1, 1], x[2, 3], x[3, 2], 0 * x[4, 0])),
        batched=False,
    ),
    sample(
        "on_masked",
        on_masked(residual(linear(3, 3), Tanh())),
        Masked(normal(5, 4, 3), MASK),
        lambda p, x: Masked(x.values + torch.tanh(affine(p.layers[0].layers[0], x.values)), x.mask),
        kept=5 * 4 * 3 * 8,
    ),
    sample(
        "from_masked",
        from_masked(linear(3, 4), MeanOfPositions(), linear(4, 2)),
        Masked(normal(5, 4, 3), MASK),
        lambda p, x: affine(p.layers[2], mean_of_real(affine(p.layers[0], x.values), x.mask)),
        kept=5 * 4 * 8,
    ),
)

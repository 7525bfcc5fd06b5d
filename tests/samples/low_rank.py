"""Sample layers: adapters of low rank."""

from typing import Final

from torch import Tensor

from fundl import LowRank, linear, low_rank
from tests.samples.table import normal, sample


def adapted(p: LowRank, x: Tensor) -> Tensor:
    y = x @ p.weight.t() + p.scale / p.down.shape[0] * (x @ p.down.t() @ p.up.t())
    return y if p.bias is None else y + p.bias


SAMPLES: Final = (
    sample("low_rank", low_rank(linear(3, 4), 2), normal(5, 3), adapted, kept=5 * 2 * 8),
    sample("low_rank, no bias", low_rank(linear(3, 4, bias=False), 2, scale=-0.7), normal(5, 3), adapted, kept=5 * 2 * 8),
    sample("low_rank of a vector", low_rank(linear(3, 4), 1), normal(3), adapted, batched=False, kept=8),
    sample("low_rank of sequences", low_rank(linear(3, 4), 5), normal(5, 2, 3), adapted, kept=5 * 2 * 5 * 8),
)

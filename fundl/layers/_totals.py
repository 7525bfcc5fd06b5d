"""The statistics of several batches together."""

from typing import final

import attrs
import torch
from torch import Tensor


@final
@attrs.frozen
class Total:
    """Statistics of several batches, each channel's of all its numbers together, and the dtype of them in their layer."""

    count: int
    mean: Tensor
    var: Tensor
    dtype: torch.dtype

    def joined(self, more: "Total") -> "Total":
        """Those of the batches and more of them, by Chan, Golub and LeVeque: no large squares are subtracted."""
        if not (self.count and more.count):
            return self if self.count else more
        count = self.count + more.count
        share = more.count / count
        between = (more.mean - self.mean).square() * (share * (1 - share))
        return Total(
            count, torch.lerp(self.mean, more.mean, share), torch.lerp(self.var, more.var, share) + between, more.dtype
        )

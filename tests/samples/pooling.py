"""Sample layers: pooling."""

import math
from collections.abc import Callable
from typing import Final, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fundl import (
    AdaptiveAveragePool1d,
    AdaptiveAveragePool2d,
    AdaptiveAveragePool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
    AveragePool1d,
    AveragePool2d,
    AveragePool3d,
    GlobalAveragePool,
    GlobalMaxPool,
    LPPool1d,
    LPPool2d,
    LPPool3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    Model,
)
from fundl._common.kernels import PerAxis
from tests.samples.convolution import same
from tests.samples.table import Sample, normal, sample

P = TypeVar("P", bound=Model)


def pooled(
    name: str, layer: P, x: Tensor, function: Callable[[Tensor], Tensor], *, kept: int = 0, batched: bool = True
) -> Sample:
    """The row of a layer that pools."""
    return sample(name, layer, x, lambda _, x_: function(x_), kept=kept, batched=batched)


def by_norm(x: Tensor, power: float, kernel: PerAxis, stride: PerAxis | None = None, *, ceil_mode: bool = False) -> Tensor:
    """F.lp_pool1d, 2d or 3d, of absolute values."""
    if x.ndim == 3 and isinstance(kernel, int) and stride is None:
        return F.lp_pool1d(x.abs(), power, kernel)
    function: Callable[..., Tensor] = F.lp_pool2d if x.ndim == 4 else F.lp_pool3d  # type: ignore[explicit-any]  # sizes by axes
    return function(x.abs(), power, kernel, stride, ceil_mode)


def of_what_is_seen(x: Tensor, kernel: PerAxis, stride: PerAxis) -> Tensor:
    """Means by the padding "same" that count no zeros: sums, divided by those of ones."""
    function = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
    around = same(x.shape[2:], kernel, stride)
    ones = F.pad(torch.ones_like(x), around)
    return function(F.pad(x, around), kernel, stride) / function(ones, kernel, stride)


SAMPLES: Final = (
    pooled("MaxPool1d", MaxPool1d(2), normal(3, 2, 6), lambda x: F.max_pool1d(x, 2), kept=3 * 2 * 3 * 8),
    pooled(
        "MaxPool1d, options",
        MaxPool1d(3, stride=2, padding=1, dilation=2, ceil_mode=True),
        normal(3, 2, 8),
        lambda x: F.max_pool1d(x, 3, 2, 1, 2, ceil_mode=True),
        kept=3 * 2 * 4 * 8,
    ),
    pooled("MaxPool2d", MaxPool2d(2), normal(3, 2, 4, 6), lambda x: F.max_pool2d(x, 2), kept=3 * 2 * 2 * 3 * 8),
    pooled(
        "MaxPool2d, overlapping",
        MaxPool2d(3, stride=2, padding=1),
        normal(3, 2, 5, 6),
        lambda x: F.max_pool2d(x, 3, 2, 1),
        kept=3 * 2 * 3 * 3 * 8,
    ),
    pooled(
        "MaxPool2d, options",
        MaxPool2d((3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1), ceil_mode=True),
        normal(3, 2, 5, 5),
        lambda x: F.max_pool2d(x, (3, 2), (1, 2), (1, 0), (2, 1), ceil_mode=True),
        kept=3 * 2 * 3 * 3 * 8,
    ),
    pooled(
        "MaxPool2d, no batch",
        MaxPool2d(2),
        normal(2, 4, 5),
        lambda x: F.max_pool2d(x, 2),
        kept=2 * 2 * 2 * 8,
        batched=False,
    ),
    pooled("MaxPool3d", MaxPool3d(2), normal(3, 2, 4, 2, 5), lambda x: F.max_pool3d(x, 2), kept=3 * 2 * 2 * 1 * 2 * 8),
    pooled(
        "MaxPool3d, options",
        MaxPool3d((2, 3, 2), stride=(1, 2, 2), padding=(0, 1, 1), dilation=(2, 1, 1), ceil_mode=True),
        normal(3, 2, 4, 4, 3),
        lambda x: F.max_pool3d(x, (2, 3, 2), (1, 2, 2), (0, 1, 1), (2, 1, 1), ceil_mode=True),
        kept=3 * 2 * 2 * 3 * 2 * 8,
    ),
    pooled("AveragePool1d", AveragePool1d(2), normal(3, 2, 6), lambda x: F.avg_pool1d(x, 2)),
    pooled(
        "AveragePool1d, options",
        AveragePool1d(3, stride=2, padding=1, ceil_mode=True, count_include_padding=False),
        normal(3, 2, 6),
        lambda x: F.avg_pool1d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    ),
    pooled("AveragePool2d", AveragePool2d(2), normal(3, 2, 4, 6), lambda x: F.avg_pool2d(x, 2)),
    pooled(
        "AveragePool2d, options",
        AveragePool2d((3, 2), stride=(1, 2), padding=(1, 0), ceil_mode=True, count_include_padding=False),
        normal(3, 2, 5, 5),
        lambda x: F.avg_pool2d(x, (3, 2), (1, 2), (1, 0), ceil_mode=True, count_include_pad=False),
    ),
    pooled(
        "AveragePool2d, divisor",
        AveragePool2d(3, stride=2, padding=1, divisor=2),
        normal(3, 2, 5, 6),
        lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=2),
    ),
    pooled("AveragePool2d, no batch", AveragePool2d(2), normal(2, 4, 5), lambda x: F.avg_pool2d(x, 2), batched=False),
    pooled("AveragePool3d", AveragePool3d(2), normal(3, 2, 4, 2, 5), lambda x: F.avg_pool3d(x, 2)),
    pooled(
        "AveragePool3d, options",
        AveragePool3d((2, 3, 2), stride=(1, 2, 2), padding=(0, 1, 1), ceil_mode=True, count_include_padding=False),
        normal(3, 2, 4, 4, 3),
        lambda x: F.avg_pool3d(x, (2, 3, 2), (1, 2, 2), (0, 1, 1), ceil_mode=True, count_include_pad=False),
    ),
    pooled("AdaptiveAveragePool1d", AdaptiveAveragePool1d(3), normal(3, 2, 5), lambda x: F.adaptive_avg_pool1d(x, 3)),
    pooled(
        "AdaptiveAveragePool2d",
        AdaptiveAveragePool2d((2, 3)),
        normal(3, 2, 4, 5),
        lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
    ),
    pooled(
        "AdaptiveAveragePool2d, one part", AdaptiveAveragePool2d(1), normal(3, 2, 4, 5), lambda x: x.mean((2, 3), keepdim=True)
    ),
    pooled(
        "AdaptiveAveragePool3d",
        AdaptiveAveragePool3d((2, 1, 3)),
        normal(3, 2, 4, 2, 5),
        lambda x: F.adaptive_avg_pool3d(x, (2, 1, 3)),
    ),
    pooled(
        "AdaptiveMaxPool1d",
        AdaptiveMaxPool1d(3),
        normal(3, 2, 5),
        lambda x: F.adaptive_max_pool1d(x, 3),
        kept=3 * 2 * 3 * 8,
    ),
    pooled(
        "AdaptiveMaxPool2d",
        AdaptiveMaxPool2d((2, 3)),
        normal(3, 2, 4, 5),
        lambda x: F.adaptive_max_pool2d(x, (2, 3)),
        kept=3 * 2 * 2 * 3 * 8,
    ),
    pooled(
        "AdaptiveMaxPool2d, no batch",
        AdaptiveMaxPool2d(2),
        normal(2, 4, 5),
        lambda x: F.adaptive_max_pool2d(x, 2),
        kept=2 * 2 * 2 * 8,
        batched=False,
    ),
    pooled(
        "AdaptiveMaxPool3d",
        AdaptiveMaxPool3d(2),
        normal(3, 2, 4, 2, 5),
        lambda x: F.adaptive_max_pool3d(x, 2),
        kept=3 * 2 * 8 * 8,
    ),
    pooled("GlobalAveragePool", GlobalAveragePool(), normal(3, 2, 4, 5), lambda x: x.mean((2, 3))),
    pooled("GlobalAveragePool of sequences", GlobalAveragePool(), normal(3, 2, 4), lambda x: x.mean(2)),
    pooled("GlobalMaxPool", GlobalMaxPool(), normal(3, 2, 4, 5), lambda x: x.amax((2, 3)), kept=3 * 2 * 8),
    pooled("GlobalMaxPool of volumes", GlobalMaxPool(), normal(3, 2, 4, 2, 3), lambda x: x.amax((2, 3, 4)), kept=3 * 2 * 8),
    pooled("LPPool1d", LPPool1d(2), normal(3, 2, 6), lambda x: by_norm(x, 2, 2)),
    pooled("LPPool2d", LPPool2d(2), normal(3, 2, 4, 6), lambda x: by_norm(x, 2, 2)),
    pooled(
        "LPPool2d, options",
        LPPool2d((3, 2), power=3, stride=(2, 1), ceil_mode=True),
        normal(3, 2, 6, 5),
        lambda x: by_norm(x, 3, (3, 2), (2, 1), ceil_mode=True),
    ),
    pooled("LPPool2d, sums", LPPool2d(2, power=1.0), normal(3, 2, 4, 6), lambda x: by_norm(x, 1, 2)),
    pooled("LPPool2d, no batch", LPPool2d(2, power=4), normal(2, 4, 5), lambda x: F.lp_pool2d(x, 4, 2), batched=False),
    pooled("LPPool3d", LPPool3d(2), normal(3, 2, 4, 2, 5), lambda x: by_norm(x, 2, 2)),
    pooled(
        "MaxPool1d, same",
        MaxPool1d(3, stride=2, padding="same"),
        normal(3, 2, 6),
        lambda x: F.max_pool1d(F.pad(x, same(x.shape[2:], 3, 2), value=-math.inf), 3, 2),
        kept=3 * 2 * 3 * 8,
    ),
    pooled(
        "MaxPool2d, same",
        MaxPool2d((3, 2), stride=1, padding="same", dilation=(1, 2)),
        normal(3, 2, 5, 4),
        lambda x: F.max_pool2d(F.pad(x, same(x.shape[2:], (3, 2), 1, (1, 2)), value=-math.inf), (3, 2), 1, 0, (1, 2)),
        kept=3 * 2 * 5 * 4 * 8,
    ),
    pooled(
        "MaxPool3d, same",
        MaxPool3d(2, padding="same"),
        normal(3, 2, 3, 2, 5),
        lambda x: F.max_pool3d(F.pad(x, same(x.shape[2:], 2, 2), value=-math.inf), 2),
        kept=3 * 2 * 2 * 1 * 3 * 8,
    ),
    pooled(
        "AveragePool1d, same",
        AveragePool1d(4, stride=3, padding="same"),
        normal(3, 2, 7),
        lambda x: F.avg_pool1d(F.pad(x, same(x.shape[2:], 4, 3)), 4, 3),
    ),
    pooled(
        "AveragePool2d, same, not counted",
        AveragePool2d((3, 2), stride=(2, 1), padding="same", count_include_padding=False),
        normal(3, 2, 6, 5),
        lambda x: of_what_is_seen(x, (3, 2), (2, 1)),
    ),
    pooled(
        "AveragePool2d, same, divisor",
        AveragePool2d(3, stride=2, padding="same", divisor=5),
        normal(3, 2, 6, 5),
        lambda x: F.avg_pool2d(F.pad(x, same(x.shape[2:], 3, 2)), 3, 2, divisor_override=5),
    ),
    pooled(
        "AveragePool3d, same, not counted",
        AveragePool3d(2, stride=1, padding="same", count_include_padding=False),
        normal(3, 2, 3, 2, 4),
        lambda x: of_what_is_seen(x, 2, 1),
    ),
    pooled(
        "LPPool2d, same",
        LPPool2d(3, stride=2, padding="same"),
        normal(3, 2, 5, 6),
        lambda x: by_norm(F.pad(x, same(x.shape[2:], 3, 2)), 2, 3, 2),
    ),
)

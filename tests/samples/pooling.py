"""Sample layers: pooling."""

from collections.abc import Callable
from typing import Final, TypeVar

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
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    Model,
)
from tests.samples.table import Sample, normal, sample

P = TypeVar("P", bound=Model)


def pooled(
    name: str, layer: P, x: Tensor, function: Callable[[Tensor], Tensor], *, kept: int = 0, batched: bool = True
) -> Sample:
    """The row of a layer that pools."""
    return sample(name, layer, x, lambda _, x_: function(x_), kept=kept, batched=batched)


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
)

"""Sample layers: resampling."""

from collections.abc import Callable
from typing import Final, TypeVar

import torch.nn.functional as F
from torch import Tensor

from fundl import Fold, Model, Pad, PixelShuffle, PixelUnshuffle, Unfold, Upsample
from tests.samples.table import Sample, normal, sample

P = TypeVar("P", bound=Model)


def resampled(name: str, layer: P, x: Tensor, function: Callable[[Tensor], Tensor]) -> Sample:
    """The row of a layer that resamples."""
    return sample(name, layer, x, lambda _, x_: function(x_))


def shuffled(x: Tensor) -> Tensor:
    """F.pixel_shuffle(x, 2), which torch gets wrong for a batch of none."""
    return x.reshape(len(x), 2, 2, 2, 3, 4).permute(0, 1, 4, 2, 5, 3).reshape(len(x), 2, 6, 8)


def unshuffled(x: Tensor) -> Tensor:
    return x.reshape(len(x), 2, 2, 2, 3, 2).permute(0, 1, 3, 5, 2, 4).reshape(len(x), 8, 2, 3)


SAMPLES: Final = (
    resampled("Upsample", Upsample(2), normal(3, 2, 3, 4), lambda x: F.interpolate(x, scale_factor=2)),
    resampled("Upsample, sequences", Upsample(1.7), normal(3, 2, 5), lambda x: F.interpolate(x, scale_factor=1.7)),
    resampled(
        "Upsample, volumes",
        Upsample((2, 1, 3)),
        normal(3, 2, 2, 3, 2),
        lambda x: F.interpolate(x, scale_factor=(2, 1, 3)),
    ),
    resampled("Upsample, size", Upsample(size=(5, 3)), normal(3, 2, 3, 4), lambda x: F.interpolate(x, (5, 3))),
    resampled(
        "Upsample, linear",
        Upsample(1.5, mode="linear"),
        normal(3, 2, 5),
        lambda x: F.interpolate(x, scale_factor=1.5, mode="linear"),
    ),
    resampled(
        "Upsample, bilinear",
        Upsample(2, mode="linear"),
        normal(3, 2, 3, 4),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    ),
    resampled(
        "Upsample, corners aligned",
        Upsample(size=(5, 7), mode="linear", align_corners=True),
        normal(3, 2, 3, 4),
        lambda x: F.interpolate(x, (5, 7), mode="bilinear", align_corners=True),
    ),
    resampled(
        "Upsample, trilinear",
        Upsample(size=4, mode="linear"),
        normal(3, 2, 2, 3, 5),
        lambda x: F.interpolate(x, 4, mode="trilinear"),
    ),
    resampled("Pad", Pad((1, (0, 2))), normal(3, 2, 3, 4), lambda x: F.pad(x, (0, 2, 1, 1))),
    resampled("Pad, value", Pad(((1, 2),), value=-1.5), normal(3, 4), lambda x: F.pad(x, (1, 2), value=-1.5)),
    resampled("Pad, reflect", Pad(((1, 2),), mode="reflect"), normal(3, 2, 4), lambda x: F.pad(x, (1, 2), "reflect")),
    resampled(
        "Pad, reflect images", Pad((1, (0, 2)), mode="reflect"), normal(3, 2, 3, 4), lambda x: F.pad(x, (0, 2, 1, 1), "reflect")
    ),
    resampled(
        "Pad, replicate", Pad((1, (0, 5)), mode="replicate"), normal(3, 2, 3, 4), lambda x: F.pad(x, (0, 5, 1, 1), "replicate")
    ),
    resampled(
        "Pad, replicate volumes",
        Pad((1, 0, (2, 1)), mode="replicate"),
        normal(3, 2, 2, 3, 4),
        lambda x: F.pad(x, (2, 1, 0, 0, 1, 1), "replicate"),
    ),
    resampled(
        "Pad, circular", Pad((1, (0, 3)), mode="circular"), normal(3, 2, 3, 4), lambda x: F.pad(x, (0, 3, 1, 1), "circular")
    ),
    resampled(
        "Pad, circular, no channels",
        Pad(((2, 1),), mode="circular"),
        normal(3, 4),
        lambda x: F.pad(x[:, None], (2, 1), "circular")[:, 0],
    ),
    resampled("PixelShuffle", PixelShuffle(2), normal(3, 8, 3, 4), shuffled),
    resampled("PixelUnshuffle", PixelUnshuffle(2), normal(3, 2, 4, 6), unshuffled),
    resampled("Unfold", Unfold(2), normal(3, 2, 4, 5), lambda x: F.unfold(x, 2)),
    resampled(
        "Unfold, options",
        Unfold((2, 3), stride=(2, 1), padding=(1, 2), dilation=(2, 1)),
        normal(3, 2, 5, 4),
        lambda x: F.unfold(x, (2, 3), (2, 1), (1, 2), (2, 1)),
    ),
    resampled("Fold", Fold((4, 5), 2), normal(3, 8, 12), lambda x: F.fold(x, (4, 5), 2)),
    resampled(
        "Fold, options",
        Fold((5, 4), (2, 3), stride=(2, 1), padding=(1, 2), dilation=(2, 1)),
        normal(3, 12, 18),
        lambda x: F.fold(x, (5, 4), (2, 3), (2, 1), (1, 2), (2, 1)),
    ),
)

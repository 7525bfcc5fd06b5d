"""Sample layers: convolutions."""

import math
from collections.abc import Sequence
from typing import Final

import torch.nn.functional as F
from torch import Tensor

from fundl import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from fundl._common.kernels import PerAxis
from tests.samples.table import normal, sample


def convolved(p: Conv1d | Conv2d | Conv3d, x: Tensor) -> Tensor:
    """A convolution; torch's warns of windows of an even size with padding "same", which is done here by hand."""
    function = (F.conv1d, F.conv2d, F.conv3d)[p.axes - 1]
    if p.padding != "same":
        return function(x, p.weight, p.bias, p.stride, p.padding, p.dilation, p.groups)
    around = same(x.shape[-p.axes :], p.weight.shape[2:], p.stride, p.dilation)
    return function(F.pad(x, around), p.weight, p.bias, p.stride, 0, p.dilation, p.groups)


def same(sides: Sequence[int], kernel: PerAxis, stride: PerAxis = 1, dilation: PerAxis = 1) -> list[int]:
    """What the padding "same" puts before and behind each axis, the last axis first."""
    counts: list[int] = []
    each = [(setting,) * len(sides) if isinstance(setting, int) else setting for setting in (kernel, stride, dilation)]
    for side, size, step, gap in reversed(list(zip(sides, *each, strict=True))):
        last = (math.ceil(side / step) - 1) * step + gap * (size - 1)  # the last element that the last window sees
        counts += [max(last + 1 - side, 0) // 2, (max(last + 1 - side, 0) + 1) // 2]
    return counts


def transposed(p: ConvTranspose1d | ConvTranspose2d | ConvTranspose3d, x: Tensor) -> Tensor:
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[p.axes - 1]
    if p.padding == "same":
        stride = (p.stride,) * p.axes if isinstance(p.stride, int) else p.stride
        sides = [side * step for side, step in zip(x.shape[2:], stride, strict=True)]
        around = same(sides, p.weight.shape[2:], stride, p.dilation)
        y = function(x, p.weight, None, p.stride, 0, 0, p.groups, p.dilation)
        missing = [max(side - size, 0) for side, size in zip(sides, y.shape[2:], strict=True)]
        y = F.pad(y, [count for more in reversed(missing) for count in (0, more)])
        for axis, side in enumerate(sides):
            y = y.narrow(2 + axis, around[-2 - 2 * axis], side)
        return y if p.bias is None else y + p.bias.view(-1, *(1,) * p.axes)
    return function(x, p.weight, p.bias, p.stride, p.padding, p.output_padding, p.groups, p.dilation)


SAMPLES: Final = (
    sample("Conv1d", conv1d(3, 4, 3), normal(5, 3, 8), convolved),
    sample(
        "Conv1d, all options",
        conv1d(4, 6, 3, stride=2, padding=2, dilation=3, groups=2, bias=False),
        normal(5, 4, 9),
        convolved,
    ),
    sample("Conv1d, same", conv1d(3, 2, 4, padding="same"), normal(5, 3, 8), convolved),
    sample("Conv2d", conv2d(3, 4, 3), normal(5, 3, 6, 7), convolved),
    sample("Conv2d, no bias", conv2d(1, 2, (3, 2), bias=False), normal(5, 1, 4, 5), convolved),
    sample(
        "Conv2d, all options",
        conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=2),
        normal(5, 4, 6, 5),
        convolved,
    ),
    sample("Conv2d, each channel for itself", conv2d(3, 6, 3, padding=1, groups=3), normal(5, 3, 4, 4), convolved),
    sample("Conv2d, same", conv2d(2, 3, 3, padding="same", dilation=2), normal(5, 2, 5, 6), convolved),
    sample("Conv1d, same, stride", conv1d(3, 2, 4, padding="same", stride=3), normal(5, 3, 8), convolved),
    sample("Conv2d, same, stride", conv2d(2, 3, (3, 1), padding="same", stride=2), normal(5, 2, 5, 6), convolved),
    sample("Conv2d, same, even", conv2d(2, 3, (3, 4), padding="same"), normal(5, 2, 5, 6), convolved),
    sample("Conv2d of one image", conv2d(2, 3, 3), normal(2, 5, 6), convolved, batched=False),
    sample("Conv2d of one image, same, even", conv2d(2, 3, 2, padding="same"), normal(2, 5, 6), convolved, batched=False),
    sample("Conv3d", conv3d(2, 3, 2), normal(5, 2, 3, 4, 3), convolved),
    sample(
        "Conv3d, all options",
        conv3d(2, 4, (2, 1, 3), stride=(1, 2, 1), padding=1, dilation=(2, 1, 1), groups=2, bias=False),
        normal(5, 2, 4, 4, 3),
        convolved,
    ),
    sample("Conv3d, same, even", conv3d(1, 2, (2, 3, 2), padding="same"), normal(5, 1, 3, 3, 2), convolved),
    sample("ConvTranspose1d", conv_transpose1d(3, 4, 3), normal(5, 3, 4), transposed),
    sample(
        "ConvTranspose1d, all options",
        conv_transpose1d(4, 6, 3, stride=2, padding=2, dilation=3, groups=2, output_padding=1, bias=False),
        normal(5, 4, 4),
        transposed,
    ),
    sample("ConvTranspose2d", conv_transpose2d(3, 4, 3), normal(5, 3, 4, 3), transposed),
    sample("ConvTranspose2d, twice as large", conv_transpose2d(3, 2, 2, stride=2), normal(5, 3, 4, 3), transposed),
    sample(
        "ConvTranspose2d, all options",
        conv_transpose2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2), groups=2, output_padding=(1, 0)),
        normal(5, 4, 3, 4),
        transposed,
    ),
    sample("ConvTranspose2d of one image", conv_transpose2d(2, 3, 3), normal(2, 3, 4), transposed, batched=False),
    sample("ConvTranspose3d", conv_transpose3d(2, 3, 2), normal(5, 2, 2, 3, 2), transposed),
    sample(
        "ConvTranspose3d, all options",
        conv_transpose3d(
            2, 4, (2, 1, 3), stride=(1, 2, 1), padding=(1, 0, 1), dilation=(2, 1, 1), groups=2, output_padding=(1, 1, 0)
        ),
        normal(5, 2, 2, 3, 3),
        transposed,
    ),
    sample("ConvTranspose1d, same", conv_transpose1d(3, 2, 4, stride=3, padding="same"), normal(5, 3, 4), transposed),
    sample(
        "ConvTranspose2d, same",
        conv_transpose2d(2, 4, (3, 1), stride=2, padding="same", groups=2),
        normal(5, 2, 3, 4),
        transposed,
    ),
    sample(
        "ConvTranspose2d, same, dilation",
        conv_transpose2d(2, 3, (3, 2), stride=(2, 1), padding="same", dilation=2, bias=False),
        normal(5, 2, 3, 4),
        transposed,
    ),
)

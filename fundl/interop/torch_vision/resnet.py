"""ResNet as a model of fundl, and where its tensors are in torchvision's state."""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, Self, TypeAlias, final

import attrs
import torch

from fundl.initializers import kaiming_normal
from fundl.interop._layouts import Names, Piece
from fundl.interop.torch_vision._named import known
from fundl.layers._refusals import require_at_least_one
from fundl.layers.activation import ReLU
from fundl.layers.batch_norm import BatchNorm, batch_norm
from fundl.layers.convolution import Conv2d, conv2d
from fundl.layers.global_pooling import GlobalAveragePool
from fundl.layers.linear import Linear, linear
from fundl.layers.pooling import MaxPool2d
from fundl.layers.structure import Identity, Parallel, parallel

Basic: TypeAlias = tuple[Conv2d, BatchNorm, ReLU, Conv2d, BatchNorm]
Bottleneck: TypeAlias = tuple[Conv2d, BatchNorm, ReLU, Conv2d, BatchNorm, ReLU, Conv2d, BatchNorm]
Block: TypeAlias = tuple[Parallel[Basic | Bottleneck, Identity | tuple[Conv2d, BatchNorm]], ReLU]
"""Convolutions, and beside them the input itself, or a convolution that gives it the output's shape."""

_WIDTHS: Final = (64, 128, 256, 512)
_DRAWN: Final = kaiming_normal(mode="fan_out")


@final
class ResNetModel(NamedTuple):
    """A ResNet: images (B, 3, H, W) to logits (B, classes)."""

    stem: tuple[Conv2d, BatchNorm, ReLU, MaxPool2d]
    stages: tuple[tuple[Block, ...], ...]
    pool: GlobalAveragePool
    head: Linear[int, int]


class _Plan(NamedTuple):
    """The sizes of a block."""

    inputs: int
    width: int
    outputs: int
    stride: int
    dilation: int


@final
@attrs.frozen
class ResNet:
    """The sizes of a ResNet in the layout of torchvision.

    Args:
        blocks: how many there are in each of the four stages.
        is_bottleneck: whether a block is three convolutions, of which the outer ones are 1 by 1, in place of two.
        groups: of the convolutions in the middle; more than 1 for ResNeXt.
        width_per_group: of these convolutions in the first stage; 64 by default.
        classes: how many.
        dilated: of each stage but the first, whether its convolutions are dilated where others would stride.

    Raises:
        ValueError: a number is less than 1; there are not four stages; or groups and widths are given of blocks that are no
            bottlenecks.

    Source:
        He, Zhang, Ren and Sun, Deep residual learning for image recognition, 2015; Xie, Girshick, Dollár, Tu and He, Aggregated
        residual transformations for deep neural networks, 2016; Zagoruyko and Komodakis, Wide residual networks, 2016.

    >>> from fundl import tree
    >>> from fundl.interop import torch_vision
    >>> tree.count(torch_vision.ResNet.named("resnet50").model())
    25557032
    """

    blocks: tuple[int, int, int, int]
    is_bottleneck: bool = False
    groups: int = 1
    width_per_group: int = 64
    classes: int = 1000
    dilated: tuple[bool, bool, bool] = (False, False, False)

    def __attrs_post_init__(self) -> None:
        if len(self.blocks) != len(_WIDTHS) or len(self.dilated) != len(_WIDTHS) - 1:
            raise ValueError(f"a ResNet has 4 stages, of which 3 can be dilated, but blocks={self.blocks}, {self.dilated=}")
        require_at_least_one(
            blocks=min(self.blocks), groups=self.groups, width_per_group=self.width_per_group, classes=self.classes
        )
        if not self.is_bottleneck and (self.groups, self.width_per_group, any(self.dilated)) != (1, 64, False):
            raise ValueError("groups, width_per_group and dilated are of bottlenecks: give is_bottleneck=True as well")

    @classmethod
    def named(cls, name: str, *, classes: int = 1000) -> Self:
        """Those of one of torchvision's functions, such as "resnet50", "resnext50_32x4d" or "wide_resnet50_2".

        Raises:
            ValueError: there is none of that name.

        >>> from fundl.interop import torch_vision
        >>> torch_vision.ResNet.named("resnet18").blocks
        (2, 2, 2, 2)
        """
        blocks, is_bottleneck, groups, width = known("ResNet", _NAMED, name)
        return cls(blocks, is_bottleneck, groups, width, classes)

    def model(self, *, dtype: torch.dtype = torch.float32) -> ResNetModel:
        """The model, without values: give it some with `initialize`, or `load` them.

        It has no statistics, and normalises with those of its batch, as in training: see `track` and `calibrate`.

        Args:
            dtype: of the parameters.
        """
        stem = (
            conv2d(3, 64, 7, stride=2, padding=3, bias=False, weight_init=_DRAWN, dtype=dtype),
            batch_norm(64, dtype=dtype),
            ReLU(),
            MaxPool2d(3, stride=2, padding=1),
        )
        plans = [*self._plans()]
        stages = tuple(tuple(self._block(plan, dtype) for plan in stage) for stage in plans)
        return ResNetModel(stem, stages, GlobalAveragePool(), linear(plans[-1][-1].outputs, self.classes, dtype=dtype))

    def names(self) -> Names:
        """Where the tensors of a model with statistics are in torchvision's state."""
        names = {
            ".stem[0].weight": [Piece("conv1.weight", 64)],
            **_norm(".stem[1]", "bn1", 64),
            ".head.weight": [Piece("fc.weight", self.classes)],
            ".head.bias": [Piece("fc.bias", self.classes)],
        }
        for stage, plans in enumerate(self._plans()):
            for number, plan in enumerate(plans):
                path, name = f".stages[{stage}][{number}][0]", f"layer{stage + 1}.{number}"
                rows = (plan.width, plan.width, plan.outputs) if self.is_bottleneck else (plan.outputs, plan.outputs)
                for place, count in enumerate(rows):
                    names[f"{path}.branches[0][{3 * place}].weight"] = [Piece(f"{name}.conv{place + 1}.weight", count)]
                    names |= _norm(f"{path}.branches[0][{3 * place + 1}]", f"{name}.bn{place + 1}", count)
                if _changes(plan):
                    names[f"{path}.branches[1][0].weight"] = [Piece(f"{name}.downsample.0.weight", plan.outputs)]
                    names |= _norm(f"{path}.branches[1][1]", f"{name}.downsample.1", plan.outputs)
        return names

    def _plans(self) -> Iterator[list[_Plan]]:
        """The sizes of the blocks of each stage."""
        inputs, dilation = 64, 1
        for stage, (count, width) in enumerate(zip(self.blocks, _WIDTHS, strict=True)):
            outputs = 4 * width if self.is_bottleneck else width
            inner = int(width * (self.width_per_group / 64)) * self.groups
            stride, before = 1 if stage == 0 else 2, dilation
            if stage and self.dilated[stage - 1]:
                stride, dilation = 1, 2 * dilation
            first = _Plan(inputs, inner, outputs, stride, before)
            yield [first] + [_Plan(outputs, inner, outputs, 1, dilation)] * (count - 1)
            inputs = outputs

    def _block(self, plan: _Plan, dtype: torch.dtype) -> Block:
        def conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1, groups: int = 1) -> Conv2d:
            return conv2d(
                inputs,
                outputs,
                kernel,
                stride=stride,
                padding=kernel // 2 * dilation,
                dilation=dilation,
                groups=groups,
                bias=False,
                weight_init=_DRAWN,
                dtype=dtype,
            )

        inputs, width, outputs, stride, dilation = plan
        inner, outer = batch_norm(width, dtype=dtype), batch_norm(outputs, dtype=dtype)
        path: Basic | Bottleneck
        if self.is_bottleneck:
            middle = conv(width, width, 3, stride=stride, dilation=dilation, groups=self.groups)
            path = conv(inputs, width, 1), inner, ReLU(), middle, inner, ReLU(), conv(width, outputs, 1), outer
        else:
            path = conv(inputs, outputs, 3, stride=stride), outer, ReLU(), conv(outputs, outputs, 3), outer
        shortcut = (conv(inputs, outputs, 1, stride=stride), outer) if _changes(plan) else Identity()
        return parallel(path, shortcut), ReLU()


def _changes(plan: _Plan) -> bool:
    """Whether a block gives another shape than it takes, so that its input is no summand."""
    return plan.stride != 1 or plan.inputs != plan.outputs


def _norm(path: str, name: str, channels: int) -> dict[str, list[Piece]]:
    """The tensors of a BatchNorm, with its statistics."""
    fields = {"weight": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return {f"{path}.{field}": [Piece(f"{name}.{theirs}", channels)] for field, theirs in fields.items()}


_NAMED: Final[Mapping[str, tuple[tuple[int, int, int, int], bool, int, int]]] = {
    "resnet18": ((2, 2, 2, 2), False, 1, 64),
    "resnet34": ((3, 4, 6, 3), False, 1, 64),
    "resnet50": ((3, 4, 6, 3), True, 1, 64),
    "resnet101": ((3, 4, 23, 3), True, 1, 64),
    "resnet152": ((3, 8, 36, 3), True, 1, 64),
    "resnext50_32x4d": ((3, 4, 6, 3), True, 32, 4),
    "resnext101_32x8d": ((3, 4, 23, 3), True, 32, 8),
    "resnext101_64x4d": ((3, 4, 23, 3), True, 64, 4),
    "wide_resnet50_2": ((3, 4, 6, 3), True, 1, 128),
    "wide_resnet101_2": ((3, 4, 23, 3), True, 1, 128),
}
"""Blocks, whether they are bottlenecks, groups, and their width."""

"""Layers as a user writes them, each with a rule of its own. Of them, mypy is told nothing but their types."""

from typing import Generic, Literal, Self

import attrs
import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import TypeVar, TypeVarTuple, Unpack, override

from fundl import Layer, Shape
from fundl.shapes import AnySize, Difference, Product, Quotient, S, Sum, Through, Window, expect

# Sizes that a layer's type states. Some are named like the field that holds them.
InChannels = TypeVar("InChannels", bound=int, covariant=True, default=AnySize)
OutChannels = TypeVar("OutChannels", bound=int, covariant=True, default=AnySize)
KernelSize = TypeVar("KernelSize", bound=int, covariant=True, default=AnySize)
Stride = TypeVar("Stride", bound=int, covariant=True, default=AnySize)
Padding = TypeVar("Padding", bound=int, covariant=True, default=AnySize)
Channels = TypeVar("Channels", bound=int, covariant=True, default=AnySize)
Height = TypeVar("Height", bound=int, covariant=True, default=AnySize)
Width = TypeVar("Width", bound=int, covariant=True, default=AnySize)
Steps = TypeVar("Steps", bound=int, covariant=True, default=AnySize)
Features = TypeVar("Features", bound=int, covariant=True, default=AnySize)
Factor = TypeVar("Factor", bound=int, covariant=True, default=AnySize)
Count = TypeVar("Count", bound=int, covariant=True, default=AnySize)
Layers = TypeVarTuple("Layers", default=Unpack[tuple[AnySize, ...]])

# Sizes of whatever a layer is given
Batch = TypeVar("Batch")
Last = TypeVar("Last")
Lead = TypeVarTuple("Lead")
Rest = TypeVarTuple("Rest")

# Numbers that a function is given
In = TypeVar("In", bound=int)
Out = TypeVar("Out", bound=int)
Kernel = TypeVar("Kernel", bound=int)
Step = TypeVar("Step", bound=int, default=int)
Pad = TypeVar("Pad", bound=int, default=int)


class Sketch(Layer[None]):
    """A layer whose shapes alone are of interest."""

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
        raise NotImplementedError


@attrs.frozen(eq=False)
class Conv2d(Sketch, Generic[InChannels, OutChannels, KernelSize, Stride, Padding]):
    """A convolution; made by a function, which says which parameter is which size."""

    weight: Tensor
    stride: int = 1
    padding: int = 0

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return functional.conv2d(x, self.weight, None, self.stride, self.padding), None

    @override
    def output_shape(
        self, shape: Shape[Batch, InChannels, Height, Width]
    ) -> Shape[Batch, OutChannels, Window[Height, KernelSize, Stride, Padding], Window[Width, KernelSize, Stride, Padding]]:
        out_channels, in_channels, *kernel = self.weight.shape
        batch, channels, *sides = shape.exactly(4)
        expect("channels", channels, in_channels)
        windows = [Window.of(side, size, self.stride, self.padding) for side, size in zip(sides, kernel, strict=True)]
        return Shape(batch, out_channels, *windows)


def conv2d(
    in_channels: In, out_channels: Out, kernel_size: Kernel, *, stride: Step | int = 1, padding: Pad | int = 0
) -> Conv2d[In, Out, Kernel, Step, Pad]:
    return Conv2d(torch.empty(out_channels, in_channels, kernel_size, kernel_size, device="meta"), stride, padding)


@attrs.frozen(eq=False)
class Images(Sketch, Generic[Channels, Height, Width]):
    """States which images a model is for: y = x."""

    channels: int
    height: int
    width: int

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None

    @override
    def output_shape(self, shape: Shape[Batch, Channels, Height, Width]) -> Shape[Batch, Channels, Height, Width]:
        batch, channels, height, width = shape.exactly(4)
        expect("channels", channels, self.channels)
        expect("axis 2", height, self.height)
        expect("axis 3", width, self.width)
        return Shape(batch, self.channels, self.height, self.width)


@attrs.frozen(eq=False)
class GlobalAverage(Sketch):
    """The mean of each channel."""

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x.mean((2, 3)), None

    @override
    def output_shape(self, shape: Shape[Batch, Last, Height, Width]) -> Shape[Batch, Last]:
        batch, channels, _, _ = shape.exactly(4)
        return Shape(batch, channels)


@attrs.frozen(eq=False)
class Scale(Sketch, Generic[Channels]):
    """Multiplies each channel by a number."""

    channels: int

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x * torch.ones(self.channels, *(1 for _ in x.shape[2:]), device=x.device), None

    @override
    def output_shape(self, shape: Shape[Batch, Channels, *Rest]) -> Shape[Batch, Channels, *Rest]:
        batch, channels, *rest = shape.leading(2)
        expect("channels", channels, self.channels)
        return Shape(batch, self.channels, *rest)


@attrs.frozen(eq=False)
class Positions(Sketch, Generic[Steps, Features]):
    """Adds to each step of a sequence what tells where it is."""

    steps: int
    features: int

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x + torch.ones(self.steps, self.features, device=x.device), None

    @override
    def output_shape(self, shape: Shape[Batch, Steps, Features]) -> Shape[Batch, Steps, Features]:
        batch, steps, features = shape.exactly(3)
        expect("steps", steps, self.steps)
        expect("features", features, self.features)
        return Shape(batch, self.steps, self.features)


@attrs.frozen(eq=False)
class Repeat(Sketch, Generic[Factor]):
    """Repeats the features."""

    factor: int = 2

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return torch.cat([x] * self.factor, -1), None

    @override
    def output_shape(self, shape: Shape[*Lead, Last]) -> Shape[*Lead, Product[Last, Factor]]:
        *lead, last = shape.trailing(1)
        return Shape(*lead, Product.of(last, self.factor))


@attrs.frozen(eq=False)
class Widen(Sketch, Generic[Count]):
    """Puts zeros behind the features."""

    count: int

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return functional.pad(x, (0, self.count)), None

    @override
    def output_shape(self, shape: Shape[*Lead, Last]) -> Shape[*Lead, Sum[Last, Count]]:
        *lead, last = shape.trailing(1)
        return Shape(*lead, Sum.of(last, self.count))


@attrs.frozen(eq=False)
class Drop(Sketch, Generic[Count]):
    """Leaves out the first features."""

    count: int

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x[..., self.count :], None

    @override
    def output_shape(self, shape: Shape[*Lead, Last]) -> Shape[*Lead, Difference[Last, Count]]:
        *lead, last = shape.trailing(1)
        return Shape(*lead, Difference.of(last, self.count))


@attrs.frozen(eq=False)
class Gate(Sketch):
    """Half of the features, gated by the other half."""

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        value, gate = x.chunk(2, -1)
        return value * gate.sigmoid(), None

    @override
    def output_shape(self, shape: Shape[*Lead, Last]) -> Shape[*Lead, Quotient[Last, Literal[2]]]:
        *lead, last = shape.trailing(1)
        return Shape(*lead, Quotient.of(last, 2))


@attrs.frozen(eq=False)
class Named(Sketch, Generic[*Layers]):
    """Layers under a name: a container of the user's."""

    name: str
    layers: tuple[*Layers]

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        raise NotImplementedError

    @override
    def output_shape(self, shape: S) -> Through[S, *Layers]:
        return Through(shape, self.layers)


@attrs.frozen(eq=False)
class Ruleless(Sketch):
    """A layer that says nothing of shapes."""

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None

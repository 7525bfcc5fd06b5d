"""What all pooling shares: one computation, over one, two or three spatial axes, of parts of these.

Over one axis it runs as over two, of which the first is of size 1. Backward needs no number of the input, only its layout: the
input is not kept.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, Literal, NamedTuple, Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common.half import in_float32
from fundl._common.kernels import PerAxis
from fundl.layers._layout import Layout, channels_are_last, require_sizes, stand_in
from fundl.layers._spatial import Same, Spatial, same_padding
from fundl.shapes import AnyShape, AnySize, Misfit, Shape, Windows

Indices = TypeVar("Indices")
"""A tensor of where maxima are from, or None for a mean."""

OnePerAxis = TypeVar("OnePerAxis", bound=tuple[int, ...])
"""What a setting may be besides one number for all axes: a tuple of one for each; over one axis nothing else."""


Padding = TypeVar("Padding", bound=PerAxis | Literal["same"], covariant=True, default=AnySize)
CeilMode = TypeVar("CeilMode", bound=bool, covariant=True, default=AnySize)


@final
@attrs.frozen(eq=False)
class Pooled(Layout, Generic[Indices]):
    """What backward is to know: how the input lay in memory, the sizes of the output, and where maxima are from."""

    output_sizes: tuple[int, ...]
    indices: Indices


@attrs.frozen(eq=False, init=False)
class Pool(Spatial[Pooled[Indices]], Generic[Indices]):
    """What all layers share that pool parts of the spatial axes."""

    tuples: ClassVar[Mapping[int, str]] = {1: "", 2: ", or a tuple of 2 integers", 3: ", or a tuple of 3 integers"}

    @abstractmethod
    def _pool(self, x: Tensor) -> tuple[Tensor, Indices]:
        """The output over two or three axes, and of maxima where they are from."""

    @abstractmethod
    def _spread(self, grad: Tensor, x: Tensor, indices: Indices) -> Tensor:
        """The input's gradient over two or three axes. Of x, nothing counts but the layout."""

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Pooled[Indices]]:
        if self.axes == 3 and x.ndim == 4:  # without a batch, the kernels refuse channels that are last in memory
            x = x.contiguous()
        try:
            planes = x.unsqueeze(-2) if self.axes == 1 else x
            output, indices = self._pool(planes)
        except (RuntimeError, IndexError) as error:
            self._explain(x, error)
            raise
        if self.axes == 1:
            output = output.squeeze(-2)
        return output, Pooled(planes.shape, channels_are_last(planes), output.shape, indices)

    @override
    def backward(self, residuals: Pooled[Indices], grad: Tensor) -> tuple[Self, Tensor]:
        require_sizes(grad, residuals.output_sizes)
        planes = grad.unsqueeze(-2) if self.axes == 1 else grad
        grad_x = in_float32(lambda wide: self._spread(wide, stand_in(residuals, wide), residuals.indices), planes)
        return self, grad_x.squeeze(-2) if self.axes == 1 else grad_x

    def _for_kernel(self, setting: PerAxis, first: int) -> PerAxis:
        """A setting as the kernels take it: that of one axis as that of the second of two."""
        return setting if self.axes > 1 else (first, *self._each(setting))

    def _explain(self, x: Tensor, error: Exception | None) -> None:
        """Say in the layer's words what the kernel refused: asked only once it has, so that a good input costs nothing."""
        self._require_axes(x, error)
        if 0 in x.shape[-self.axes - 1 :]:
            raise ValueError(
                f"{type(self).__name__} needs at least one element along each axis but that of the batch, but the input's shape"
                f" is {tuple(x.shape)}"
            ) from error


# --- Sliding windows ---------------------------------------------------------------------------------------------------


class Side(NamedTuple):
    """An axis, and the window along it."""

    size: int
    kernel: int
    stride: int
    padding: tuple[int, int]


@attrs.frozen(eq=False)
class Windowed(Pool[Indices], Generic[Indices, OnePerAxis]):
    """What all layers share that slide a window over the spatial axes."""

    kernel_size: int | OnePerAxis
    stride: int | OnePerAxis = attrs.field(default=attrs.Factory(lambda self: self.kernel_size, takes_self=True), kw_only=True)
    padding: int | OnePerAxis | Same = attrs.field(default=0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        for field, least in (("kernel_size", 1), ("stride", 1), ("dilation", 1)):
            self._require_integers(field, getattr(self, field, 1), least)
        name = type(self).__name__
        if self.padding == "same":
            if getattr(self, "ceil_mode", False):
                raise ValueError(f"{name}'s padding 'same' leaves nothing over at the end: leave its ceil_mode at False")
            return
        self._require_integers("padding", self.padding, 0, or_same=True)
        kernel, padding = self._each(self.kernel_size), self._each(self.padding)
        if any(pad > size // 2 for size, pad in zip(kernel, padding, strict=True)):
            raise ValueError(
                f"{name}'s padding may be at most half of its kernel_size, so that a window always sees some of the input, but"
                f" the padding is {self.padding} and the kernel_size {self.kernel_size}"
            )

    def _window(self) -> tuple[PerAxis, PerAxis, PerAxis]:
        """Kernel size, stride and padding, as the kernels take them."""
        padding = 0 if self.padding == "same" else self.padding
        if self.axes > 1:
            return self.kernel_size, self.stride, padding
        return self._for_kernel(self.kernel_size, 1), self._for_kernel(self.stride, 1), self._for_kernel(padding, 0)

    # The padding "same" may be of one element more behind than before, and larger than half of the window if that is dilated.
    # No kernel pads so: the input gets it here.

    def _same(self, x: Tensor) -> list[Side]:
        """The spatial axes of an input that is padded by "same"."""
        settings = (self.kernel_size, self.stride, getattr(self, "dilation", 1))
        each = zip(x.shape[-self.axes :], *map(self._each, settings), strict=True)
        return [Side(side, size, step, same_padding(side, size, step, gap)) for side, size, step, gap in each]

    def _added(self, x: Tensor) -> list[int]:
        """How many elements to put before and behind each axis, the last first; nothing if the kernel sees to it."""
        if self.padding != "same" or x.ndim <= self.axes or 0 in x.shape[-self.axes :]:
            return []
        added = [count for side in reversed(self._same(x)) for count in side.padding]
        return added if any(added) else []

    def _padded(self, x: Tensor, value: float) -> Tensor:
        added = self._added(x)
        return torch.constant_pad_nd(x, added, value) if added else x

    def _like_padded(self, x: Tensor, grad: Tensor) -> Tensor:
        """What stands in for the padded input, given what does for the input."""
        added = self._added(x)
        if not added:
            return x
        more = [before + behind for before, behind in zip(added[-2::-2], added[-1::-2], strict=True)]
        sizes = (*x.shape[: -len(more)], *(side + count for side, count in zip(x.shape[-len(more) :], more, strict=True)))
        return stand_in(Layout(sizes, channels_are_last(x)), grad)

    def _without_padding(self, grad: Tensor, x: Tensor) -> Tensor:
        """The gradient with respect to the input, given that with respect to what it was padded to."""
        added = self._added(x)
        return torch.constant_pad_nd(grad, [-count for count in added]) if added else grad

    # Shapes

    def _windows(
        self, shape: AnyShape, dilation: int | OnePerAxis, ceil_mode: bool
    ) -> Windows[AnySize, AnySize, AnySize, *tuple[AnySize, ...]]:
        """The rule for any number of axes: what `output_shape` says in types."""
        batch, channels, *sides = shape.exactly(2 + self.axes)
        return Windows(batch, channels, (self.kernel_size, self.stride, self.padding, dilation, ceil_mode), *sides)

    @override
    def _explain(self, x: Tensor, error: Exception | None) -> None:
        super()._explain(x, error)
        try:
            self.output_shape(Shape(*(1,) * (2 + self.axes - x.ndim), *x.shape))
        except Misfit as misfit:
            raise ValueError(
                f"{self} finds no place for its window in an input of shape {tuple(x.shape)}: it expects {misfit.expected}, but"
                f" the input has {misfit.given}"
            ) from error

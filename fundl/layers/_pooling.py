"""What all pooling shares: one computation, over one, two or three spatial axes, of parts of these.

Over one axis it runs as over two, of which the first is of size 1. Backward needs no number of the input, only its layout: the
input is not kept.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, Self, final

import attrs
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common.half import in_float32
from fundl._common.kernels import PerAxis
from fundl.layers._layout import Layout, channels_are_last, require_sizes, stand_in
from fundl.layers._spatial import Spatial

Indices = TypeVar("Indices")
"""A tensor of where maxima are from, or None for a mean."""

OnePerAxis = TypeVar("OnePerAxis", bound=tuple[int, ...])
"""What a setting may be besides one number for all axes: a tuple of one for each; over one axis nothing else."""


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

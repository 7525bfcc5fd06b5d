"""Pixels moved between space and channels: images made larger or smaller without a number lost."""

from typing import Generic, Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl.layer import Layer
from fundl.shapes import AnySize, Channels, Divided, Height, Lead, Product, Shape, Width

Factor = TypeVar("Factor", bound=int, covariant=True, default=AnySize)  # as a layer's type states it, named like the field


@attrs.frozen(eq=False)
class _Pixels(Layer[None]):
    """What both layers share."""

    takes_integers = True

    factor: int

    def __attrs_post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"{type(self).__name__}'s factor must be at least 1, not {self.factor}")

    # ATen gives back a tensor without elements as it is, in the shape that it has.

    def _shuffled(self, x: Tensor) -> Tensor:
        factor = self.factor
        if x.numel() or x.ndim < 3:
            return torch.pixel_shuffle(x, factor)
        *lead, channels, height, width = x.shape
        return x.reshape(*lead, channels // factor**2, height * factor, width * factor)

    def _unshuffled(self, x: Tensor) -> Tensor:
        factor = self.factor
        if x.numel() or x.ndim < 3:
            return torch.pixel_unshuffle(x, factor)
        *lead, channels, height, width = x.shape
        return x.reshape(*lead, channels * factor**2, height // factor, width // factor)

    def _require_image(self, x: Tensor, error: RuntimeError) -> None:
        if x.ndim < 3:
            raise ValueError(f"{self} takes an input of shape (..., C, H, W), not {tuple(x.shape)}") from error


@final
@attrs.frozen(eq=False)
class PixelShuffle(_Pixels, Generic[Factor]):
    """Makes images r times larger from their channels: each r^2 channels become one, of r by r pixels for each one.

        y[..., c, i r + u, j r + v] = x[..., c r^2 + u r + v, i, j]

    Its vjp: grad_x is grad with its pixels moved back, as by `PixelUnshuffle`.

    Args:
        factor: r, at least 1.

    Shape:
        (..., C r^2, H, W) to (..., C, H r, W r)

    Residuals:
        None.

    Raises:
        ValueError: the factor is less than 1; the input has less than three axes, or a number of channels that r^2 does not
            divide.

    Source:
        Shi, Caballero, Huszar, Totz, Aitken, Bishop, Rueckert and Wang, Real-time single image and video super-resolution
        using an efficient sub-pixel convolutional neural network, 2016.

    >>> from fundl import PixelShuffle, apply
    >>> apply(PixelShuffle(2), torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(4, 1, 1))
    tensor([[[1., 2.],
             [3., 4.]]])
    """

    counterpart = "PixelShuffle(upscale_factor=factor)"

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        try:
            return self._shuffled(x), None
        except RuntimeError as error:
            self._require_image(x, error)
            raise ValueError(
                f"{self} needs a number of channels that is a multiple of {self.factor**2}, but the input's shape is"
                f" {tuple(x.shape)}, of {x.shape[-3]} channels"
            ) from error

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
        return self, self._unshuffled(grad)

    @override
    def output_shape(
        self, shape: Shape[*Lead, Channels, Height, Width]
    ) -> Shape[*Lead, Divided[Channels, Product[Factor, Factor]], Product[Height, Factor], Product[Width, Factor]]:
        *lead, channels, height, width = shape.trailing(3)
        return Shape(
            *lead,
            Divided.of(channels, self.factor**2),
            Product.of(height, self.factor),
            Product.of(width, self.factor),
        )


@final
@attrs.frozen(eq=False)
class PixelUnshuffle(_Pixels, Generic[Factor]):
    """Makes images r times smaller, with all pixels in channels: each r by r pixels of a channel become one in r^2 channels.

        y[..., c r^2 + u r + v, i, j] = x[..., c, i r + u, j r + v]

    Its vjp: grad_x is grad with its pixels moved back, as by `PixelShuffle`.

    Args:
        factor: r, at least 1.

    Shape:
        (..., C, H r, W r) to (..., C r^2, H, W)

    Residuals:
        None.

    Raises:
        ValueError: the factor is less than 1; the input has less than three axes, or a height or a width that r does not
            divide.

    Source:
        That of `PixelShuffle`, whose inverse it is.

    >>> from fundl import PixelUnshuffle, apply
    >>> apply(PixelUnshuffle(2), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])).flatten()
    tensor([1., 2., 3., 4.])
    """

    counterpart = "PixelUnshuffle(downscale_factor=factor)"

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        try:
            return self._unshuffled(x), None
        except RuntimeError as error:
            self._require_image(x, error)
            raise ValueError(
                f"{self} needs a height and a width that are multiples of {self.factor}, but the input's shape is"
                f" {tuple(x.shape)}"
            ) from error

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
        return self, self._shuffled(grad)

    @override
    def output_shape(
        self, shape: Shape[*Lead, Channels, Height, Width]
    ) -> Shape[*Lead, Product[Channels, Factor, Factor], Divided[Height, Factor], Divided[Width, Factor]]:
        *lead, channels, height, width = shape.trailing(3)
        return Shape(
            *lead,
            Product.of(channels, self.factor**2),
            Divided.of(height, self.factor),
            Divided.of(width, self.factor),
        )

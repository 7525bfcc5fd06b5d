"""Maxout: the greatest of several numbers."""

from typing import Generic, Literal, Self, final, overload

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl.layer import Layer
from fundl.layers._refusals import require_at_least_one
from fundl.shapes import AnyShape, AnySize, Batch, Channels, Divided, Last, Lead, Rest, Shape

Pieces = TypeVar("Pieces", bound=int, covariant=True, default=AnySize)
Axis = TypeVar("Axis", bound=int, covariant=True, default=AnySize)


@final
@attrs.frozen(eq=False)
class Maxout(Layer[Tensor], Generic[Pieces, Axis]):
    """The greatest of each k features that stand together: y_j = max of x_{j k}, ..., x_{j k + k - 1}.

    Behind a linear map of k times as many features, ``linear(2, 3 * 25), Maxout(3)``, it is a convex function of straight
    pieces, which is learned. NaN is larger than all else.

    Its vjp: grad_x is grad where the maximum is from, the first of them if there are several, else 0.

    Args:
        pieces: k, at least 1.
        axis: of the features; the last by default.

    Shape:
        (..., d) to (..., d / k), where k divides d

    Residuals:
        Which of the k is the maximum: 8 bytes per element of the output.

    Raises:
        ValueError: k is less than 1, or does not divide the number of features, or the input has no such axis.

    Source:
        Goodfellow, Warde-Farley, Mirza, Courville and Bengio, Maxout networks, 2013.

    >>> from fundl import Maxout, apply
    >>> apply(Maxout(2), torch.tensor([[1.0, 3.0, -2.0, -5.0]]))
    tensor([[ 3., -2.]])
    """

    pieces: int
    axis: int = attrs.field(default=-1, kw_only=True)

    def __attrs_post_init__(self) -> None:
        require_at_least_one(pieces=self.pieces)

    @property
    @override
    def by_position(self) -> bool:
        return self.axis in {-1, 2}

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not -x.ndim <= self.axis < x.ndim or x.shape[self.axis] % self.pieces:
            raise ValueError(
                f"Maxout takes the greatest of each {self.pieces} along axis {self.axis}, whose size must be a multiple of"
                f" {self.pieces}, but the input's shape is {tuple(x.shape)}"
            )
        y, where = torch.max(torch.unflatten(x, self.axis, (-1, self.pieces)), self._among)
        return y, where

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        among = self._among
        where = residuals.unsqueeze(among)
        sizes = [*where.shape]
        sizes[among] = self.pieces
        spread = torch.scatter(grad.new_zeros(sizes), among, where, grad.unsqueeze(among))
        return self, spread.flatten(among - 1, among)

    @property
    def _among(self) -> int:
        """The axis of the k, once it is one of its own."""
        return self.axis if self.axis < 0 else self.axis + 1

    @overload
    def output_shape(self: "Maxout[Pieces, Literal[-1]]", shape: Shape[*Lead, Last]) -> Shape[*Lead, Divided[Last, Pieces]]: ...
    @overload
    def output_shape(
        self: "Maxout[Pieces, Literal[1]]", shape: Shape[Batch, Channels, *Rest]
    ) -> Shape[Batch, Divided[Channels, Pieces], *Rest]: ...
    @overload
    def output_shape(self, shape: AnyShape) -> AnyShape: ...
    @override
    def output_shape(self, shape: AnyShape) -> AnyShape:
        sizes = shape.leading(self.axis + 1) if self.axis >= 0 else shape.trailing(-self.axis)
        place = self.axis if self.axis >= 0 else len(sizes) + self.axis
        return Shape(*sizes[:place], Divided.of(sizes[place], self.pieces), *sizes[place + 1 :])

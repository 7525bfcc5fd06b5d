"""Softmax and its logarithm: from scores to probabilities along one axis."""

from typing import Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common import kernels
from fundl._common.half import HALF, narrowed, widened
from fundl.layer import Layer
from fundl.layers._same_shape import SameShape


@final
@attrs.frozen(eq=False)
class Softmax(SameShape, Layer[Tensor]):
    """Positive numbers that sum to 1 along an axis: y = exp(x) / (sum of exp(x) along the axis).

    The greatest x is subtracted first, so that nothing overflows. A score of -inf has probability 0, unless all are.

    Its vjp: grad_x = y (grad - s), with s the sum of grad y along the axis.

    Args:
        axis: the axis along which the output sums to 1; the last by default.

    Shape:
        any that has the axis, kept

    Residuals:
        The output, shared with the next layer: no bytes of its own.

    Raises:
        ValueError: the input has no such axis.

    Source:
        Bridle, Probabilistic interpretation of feedforward classification network outputs, 1990.

    >>> from fundl import Softmax, apply
    >>> apply(Softmax(), torch.tensor([[0.0, 0.0], [0.0, 1000.0]]))
    tensor([[0.5000, 0.5000],
            [0.0000, 1.0000]])
    """

    counterpart = "Softmax(dim=axis)"

    axis: int = -1

    @property
    @override
    def by_position(self) -> bool:
        return self.axis in {-1, 2}

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _require_axis(self, self.axis, x)
        y = torch.softmax(x, self.axis)
        return y, y

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, softmax_backward(grad, residuals, self.axis)


@final
@attrs.frozen(eq=False)
class Softmin(SameShape, Layer[Tensor]):
    """The softmax of -x, which is large where x is small: y = exp(-x) / (sum of exp(-x) along the axis).

    Its vjp: grad_x = y (s - grad), with s the sum of grad y along the axis.

    Args:
        axis: the axis along which the output sums to 1; the last by default.

    Shape:
        any that has the axis, kept

    Residuals:
        The output, shared with the next layer: no bytes of its own.

    Raises:
        ValueError: the input has no such axis.

    >>> from fundl import Softmin, apply
    >>> apply(Softmin(), torch.tensor([[0.0, 0.0], [0.0, 1000.0]]))
    tensor([[0.5000, 0.5000],
            [1.0000, 0.0000]])
    """

    counterpart = "Softmin(dim=axis)"

    axis: int = -1

    @property
    @override
    def by_position(self) -> bool:
        return self.axis in {-1, 2}

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _require_axis(self, self.axis, x)
        y = torch.softmax(-x, self.axis)
        return y, y

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, softmax_backward(-grad, residuals, self.axis)


@final
@attrs.frozen(eq=False)
class LogSoftmax(SameShape, Layer[Tensor]):
    """The logarithm of softmax: y = x - log(sum of exp(x) along an axis), with no overflow and no log(0) on the way.

    Its vjp: grad_x = grad - exp(y) s, with s the sum of grad along the axis.

    Args:
        axis: the axis along which exp(y) sums to 1; the last by default.

    Shape:
        any that has the axis, kept

    Residuals:
        The output, shared with the next layer: no bytes of its own.

    Raises:
        ValueError: the input has no such axis.

    >>> from fundl import LogSoftmax, apply
    >>> apply(LogSoftmax(), torch.tensor([[0.0, 0.0], [0.0, 1000.0]]))
    tensor([[-6.9315e-01, -6.9315e-01],
            [-1.0000e+03,  0.0000e+00]])
    """

    counterpart = "LogSoftmax(dim=axis)"

    axis: int = -1

    @property
    @override
    def by_position(self) -> bool:
        return self.axis in {-1, 2}

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _require_axis(self, self.axis, x)
        y = narrowed(torch.log_softmax(widened(x), self.axis), x)  # in 16 bits the kernel takes 0.9997 for 1
        return y, y

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        if grad.dtype not in HALF:
            return self, kernels.log_softmax_backward(grad, residuals, self.axis, residuals.dtype)
        y = widened(residuals)
        return self, kernels.log_softmax_backward(widened(grad), y, self.axis, y.dtype).to(grad.dtype)


def softmax_backward(grad: Tensor, y: Tensor, axis: int) -> Tensor:
    """The vjp of softmax, from its output: y (grad - s), with s the sum of grad y along the axis.

    Probabilities of 16 bits do not sum to 1, and grad - s is off by as much, which may be all of it where one is nearly 1:
    they are made to sum to 1, in float32. Those that are all 0, where nothing was to be seen, stay so.
    """
    if y.dtype not in HALF:
        return kernels.softmax_backward(grad, y, axis, y.dtype)
    wide = widened(y)
    exact = wide / wide.sum(axis, keepdim=True).clamp(min=torch.finfo(wide.dtype).tiny)
    return kernels.softmax_backward(widened(grad), exact, axis, exact.dtype).to(grad.dtype)


def _require_axis(layer: Layer[Tensor], axis: int, x: Tensor) -> None:
    axes = x.ndim or 1  # a single number counts as a row of one
    if not -axes <= axis < axes:
        raise ValueError(
            f"{type(layer).__name__}(axis={axis}) needs an input that has this axis, but the input's shape is"
            f" {tuple(x.shape)}: choose an axis from {-axes} to {axes - 1}"
        )

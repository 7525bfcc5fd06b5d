"""Activations that make zeros of small numbers, or a number of one's own of those that are not large enough."""

import math
from typing import Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common import kernels
from fundl._common.half import narrowed, widened
from fundl.layers.activation import Activation


@final
@attrs.frozen(eq=False)
class Softshrink(Activation):
    """Takes an amount off the absolute value: y = x - bound where x > bound, x + bound where x < -bound, else 0.

    Of min over y of (y - x)^2 / 2 + bound |y| it is the solution.

    Its vjp: grad_x = grad where y is not 0, else 0.

    Args:
        bound: the amount, at least 0; 0.5 by default.

    Shape:
        any, kept

    Residuals:
        The output, shared with the next layer: no bytes of its own.

    Raises:
        ValueError: the bound is negative, infinite or not a number.

    Source:
        Donoho, De-noising by soft-thresholding, 1995.

    >>> from fundl import Softshrink, apply
    >>> apply(Softshrink(), torch.tensor([-2.0, 0.4, 2.0]))
    tensor([-1.5000,  0.0000,  1.5000])
    """

    counterpart = "Softshrink(lambd=bound)"

    bound: float = 0.5

    def __attrs_post_init__(self) -> None:
        _require_bound("Softshrink", self.bound)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = kernels.softshrink(x, self.bound)
        return y, y

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, grad.masked_fill(residuals == 0, 0)


@final
@attrs.frozen(eq=False)
class Hardshrink(Activation):
    """Makes zeros of small numbers: y = x where |x| > bound, else 0.

    Its vjp: grad_x = grad where y is not 0, else 0.

    Args:
        bound: the greatest absolute value that becomes 0, as a number of the dtype of x; at least 0, 0.5 by default.

    Shape:
        any, kept

    Residuals:
        The output, shared with the next layer: no bytes of its own.

    Raises:
        ValueError: the bound is negative, infinite or not a number.

    Source:
        Donoho and Johnstone, Ideal spatial adaptation by wavelet shrinkage, 1994.

    >>> from fundl import Hardshrink, apply
    >>> apply(Hardshrink(), torch.tensor([-2.0, 0.4, 2.0]))
    tensor([-2.,  0.,  2.])
    """

    counterpart = "Hardshrink(lambd=bound)"

    bound: float = 0.5

    def __attrs_post_init__(self) -> None:
        _require_bound("Hardshrink", self.bound)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.hardshrink(x, self.bound)
        return y, y

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, grad.masked_fill(residuals == 0, 0)


@final
@attrs.frozen(eq=False)
class Tanhshrink(Activation):
    """What tanh takes off: y = x - tanh(x).

    Its vjp: grad_x = grad tanh(x)^2.

    Shape:
        any, kept

    Residuals:
        The input, not copied, but alive until backward: 4 bytes per element in float32.

    >>> from fundl import Tanhshrink, apply
    >>> apply(Tanhshrink(), torch.tensor([0.0, 100.0]))
    tensor([ 0., 99.])
    """

    counterpart = "Tanhshrink"

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = widened(x)
        return narrowed(wide - torch.tanh(wide), x), x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        t = torch.tanh(widened(residuals))
        return self, narrowed(widened(grad) * t * t, grad)


@final
@attrs.frozen(eq=False)
class Threshold(Activation):
    """Another number in the place of those that are not large enough: y = x where x > threshold, else value.

    Its vjp: grad_x = grad where x > threshold, else 0.

    Args:
        threshold: the greatest number that is replaced; -inf replaces itself alone.
        value: what it is replaced by.

    Shape:
        any, kept

    Residuals:
        The input, not copied, but alive until backward: 4 bytes per element in float32.

    Raises:
        ValueError: one of the two is not a number.

    >>> from fundl import Threshold, apply
    >>> apply(Threshold(0.5, value=-1.0), torch.tensor([0.5, 0.6]))
    tensor([-1.0000,  0.6000])
    """

    counterpart = "Threshold"

    threshold: float
    value: float

    def __attrs_post_init__(self) -> None:
        if math.isnan(self.threshold) or math.isnan(self.value):
            raise ValueError(
                f"Threshold's threshold and value must be numbers, not threshold={self.threshold}, value={self.value}"
            )

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.threshold(x, self.threshold, self.value), x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, kernels.threshold_backward(grad, residuals, self.threshold)


def _require_bound(layer: str, bound: float) -> None:
    if not 0 <= bound < math.inf:
        raise ValueError(f"{layer}'s bound must be a finite number of 0 or more, not {bound}")

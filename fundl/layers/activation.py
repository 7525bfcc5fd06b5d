"""Activations: functions of each element, without parameters.

Each keeps its output for backward where the derivative can be written in it, since the next layer mostly keeps it too, and
its input otherwise. Neither is copied. In half precision an output near its limit is the limit, and has lost the derivative:
where that matters, the input is kept.
"""

import math
from typing import ClassVar, Final, Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common import kernels
from fundl._common.half import HALF, widened
from fundl.layer import Layer
from fundl.layers._same_shape import SameShape


@attrs.frozen(eq=False, init=False)
class Activation(SameShape, Layer[Tensor]):
    """A function of each number, which keeps its input or its output."""

    elementwise = True


# --- Rectifiers --------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class ReLU(Activation):
    """The rectified linear unit: y = max(x, 0).

    Its vjp: grad_x = grad where y > 0, else 0.

    Shape:
        any, kept

    Residuals:
        The output, shared with the next layer: no bytes of its own.

    Source:
        Nair and Hinton, Rectified linear units improve restricted Boltzmann machines, 2010.

    >>> from fundl import ReLU, apply
    >>> apply(ReLU(), torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """

    counterpart = "ReLU"
    usual_gain: ClassVar[float] = math.sqrt(2)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(x)
        return y, y

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, kernels.threshold_backward(grad, residuals, 0.0)


@final
@attrs.frozen(eq=False)
class LeakyReLU(Activation):
    """A rectified linear unit that leaks: y = x where x > 0, else negative_slope x.

    Its vjp: grad_x = grad where x > 0, else negative_slope grad. Where the slope is not negative, x > 0 just where y > 0.

    Args:
        negative_slope: the slope for negative inputs, any finite number; 0.01 by default.

    Shape:
        any, kept

    Residuals:
        The output, shared with the next layer: no bytes of its own. The input, not copied, if negative_slope < 0.

    Raises:
        ValueError: the slope is infinite or not a number.

    Source:
        Maas, Hannun and Ng, Rectifier nonlinearities improve neural network acoustic models, 2013.

    >>> from fundl import LeakyReLU, apply
    >>> apply(LeakyReLU(negative_slope=0.5), torch.tensor([-1.0, 2.0]))
    tensor([-0.5000,  2.0000])
    """

    counterpart = "LeakyReLU"

    negative_slope: float = 0.01

    def __attrs_post_init__(self) -> None:
        if not math.isfinite(self.negative_slope):
            raise ValueError(f"LeakyReLU's negative_slope must be a finite number, not {self.negative_slope}")

    @property
    @override
    def usual_gain(self) -> float:
        return math.sqrt(2 / (1 + self.negative_slope**2))

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = kernels.leaky_relu(x, self.negative_slope)
        return y, y if self.negative_slope >= 0 else x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, kernels.leaky_relu_backward(grad, residuals, self.negative_slope, self.negative_slope >= 0)


@final
@attrs.frozen(eq=False)
class Hardtanh(Activation):
    """The identity between two bounds: y = min(max(x, low), high). `Hardtanh(0.0, 6.0)` is known as ReLU6.

    Its vjp: grad_x = grad where low < x < high, else 0.

    Args:
        low: the least output, -1 by default; may be -inf.
        high: the greatest output, 1 by default; may be inf.

    Shape:
        any, kept

    Residuals:
        The input, not copied, but alive until backward: 4 bytes per element in float32. (The output would not do: in
        bfloat16 it is clamped to the rounded bounds, which may lie inside of the bounds.)

    Raises:
        ValueError: low is not less than high.

    Source:
        Collobert, Large scale machine learning, 2004.

    >>> from fundl import Hardtanh, apply
    >>> apply(Hardtanh(), torch.tensor([-2.0, 0.5, 2.0]))
    tensor([-1.0000,  0.5000,  1.0000])
    """

    counterpart = "Hardtanh(min_val=low, max_val=high)"

    low: float = -1.0
    high: float = 1.0

    def __attrs_post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"Hardtanh's bounds must be low < high, not low={self.low}, high={self.high}")

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.clamp(x, self.low, self.high), x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, kernels.hardtanh_backward(grad, residuals, self.low, self.high)


# --- Exponential linear units ------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class ELU(Activation):
    """The exponential linear unit: y = x where x > 0, else alpha (exp(x) - 1).

    Its vjp: grad_x = grad where y > 0, else (y + alpha) grad, since alpha exp(x) = y + alpha.

    Args:
        alpha: minus the limit for x to -inf, at least 0; 1 by default, with which the slope has no jump.

    Shape:
        any, kept

    Residuals:
        The output, shared with the next layer: no bytes of its own. In half precision the input, kept alive, not copied.

    Raises:
        ValueError: alpha is negative, infinite or not a number.

    Source:
        Clevert, Unterthiner and Hochreiter, Fast and accurate deep network learning by exponential linear units, 2015.

    >>> from fundl import ELU, apply
    >>> apply(ELU(), torch.tensor([-100.0, 2.0]))
    tensor([-1.,  2.])
    """

    counterpart = "ELU"

    alpha: float = 1.0

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"ELU's alpha must be a finite number of 0 or more, not {self.alpha}")

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = kernels.elu(x, self.alpha, 1.0, 1.0)
        return y, x if x.dtype in HALF else y

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, kernels.elu_backward(grad, self.alpha, 1.0, 1.0, grad.dtype not in HALF, residuals)


@final
@attrs.frozen(eq=False)
class CELU(Activation):
    """The continuously differentiable exponential linear unit: y = x where x > 0, else alpha (exp(x / alpha) - 1).

    Unlike that of `ELU`, its slope has no jump, whatever alpha is.

    Its vjp: grad_x = grad where y > 0, else (y / alpha + 1) grad, since exp(x / alpha) = y / alpha + 1.

    Args:
        alpha: minus the limit for x to -inf, above 0; 1 by default, with which it is `ELU`.

    Shape:
        any, kept

    Residuals:
        The output, shared with the next layer: no bytes of its own. In half precision the input, kept alive, not copied.

    Raises:
        ValueError: alpha is not above 0, or infinite.

    Source:
        Barron, Continuously differentiable exponential linear units, 2017.

    >>> from fundl import CELU, apply
    >>> apply(CELU(alpha=2.0), torch.tensor([-100.0, 2.0]))
    tensor([-2.,  2.])
    """

    counterpart = "CELU"

    alpha: float = 1.0

    def __attrs_post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"CELU's alpha must be a finite number above 0, not {self.alpha}")

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = kernels.elu(x, self.alpha, 1.0, 1 / self.alpha)
        return y, x if x.dtype in HALF else y

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, kernels.elu_backward(grad, self.alpha, 1.0, 1 / self.alpha, grad.dtype not in HALF, residuals)


SELU_ALPHA: Final = 1.6732632423543772
SELU_SCALE: Final = 1.0507009873554805


@final
@attrs.frozen(eq=False)
class SELU(Activation):
    """The scaled exponential linear unit: y = scale x where x > 0, else scale alpha (exp(x) - 1).

    With alpha = 1.67326... and scale = 1.05070..., mean 0 and variance 1 of a layer's normally distributed inputs are a
    stable fixed point, if its weights have mean 0 and variance 1 / in.

    Its vjp: grad_x = scale grad where y > 0, else (y + scale alpha) grad.

    Shape:
        any, kept

    Residuals:
        The output, shared with the next layer: no bytes of its own. In half precision the input, kept alive, not copied.

    Source:
        Klambauer, Unterthiner, Mayr and Hochreiter, Self-normalizing neural networks, 2017.

    >>> from fundl import SELU, apply
    >>> apply(SELU(), torch.tensor([-100.0, 2.0]))
    tensor([-1.7581,  2.1014])
    """

    counterpart = "SELU"
    usual_gain: ClassVar[float] = 3 / 4

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.selu(x)
        return y, x if x.dtype in HALF else y

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, kernels.elu_backward(grad, SELU_ALPHA, SELU_SCALE, 1.0, grad.dtype not in HALF, residuals)


# --- Sigmoids ----------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class Sigmoid(Activation):
    """The logistic function: y = 1 / (1 + exp(-x)).

    Its vjp: grad_x = grad y (1 - y).

    Shape:
        any, kept

    Residuals:
        The output, shared with the next layer: no bytes of its own. In half precision the input, kept alive, not copied.

    >>> from fundl import Sigmoid, apply
    >>> apply(Sigmoid(), torch.tensor([-1000.0, 0.0]))
    tensor([0.0000, 0.5000])
    """

    counterpart = "Sigmoid"
    usual_gain: ClassVar[float] = 1.0

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.sigmoid(x)
        return y, x if x.dtype in HALF else y

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        if grad.dtype in HALF:
            return self, kernels.sigmoid_backward(widened(grad), torch.sigmoid(widened(residuals))).to(grad.dtype)
        return self, kernels.sigmoid_backward(grad, residuals)


@final
@attrs.frozen(eq=False)
class Tanh(Activation):
    """The hyperbolic tangent: y = tanh(x).

    Its vjp: grad_x = grad (1 - y^2).

    Shape:
        any, kept

    Residuals:
        The output, shared with the next layer: no bytes of its own. In half precision the input, kept alive, not copied.

    >>> from fundl import Tanh, apply
    >>> apply(Tanh(), torch.tensor([0.0, 100.0]))
    tensor([0., 1.])
    """

    counterpart = "Tanh"
    usual_gain: ClassVar[float] = 5 / 3

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.tanh(x)
        return y, x if x.dtype in HALF else y

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        if grad.dtype in HALF:
            return self, kernels.tanh_backward(widened(grad), torch.tanh(widened(residuals))).to(grad.dtype)
        return self, kernels.tanh_backward(grad, residuals)


@final
@attrs.frozen(eq=False)
class Softplus(Activation):
    """A smooth rectifier: y = log(1 + exp(beta x)) / beta, and y = x where beta x > threshold.

    Its vjp: grad_x = grad / (1 + exp(-beta x)), and grad_x = grad where beta x > threshold.

    Args:
        beta: sharpness of the bend, above 0; 1 by default. The larger, the nearer to ReLU.
        threshold: of beta x, above 0 and at most 40; 20 by default. At it y jumps by exp(-threshold) / beta, which at 40 is
            less than float64 tells apart, and at 20 than float32 does.

    Shape:
        any, kept

    Residuals:
        The input, not copied, but alive until backward: 4 bytes per element in float32.

    Raises:
        ValueError: beta or the threshold is out of its range.

    Source:
        Dugas, Bengio, Belisle, Nadeau and Garcia, Incorporating second-order functional knowledge for better option
        pricing, 2000.

    >>> from fundl import Softplus, apply
    >>> apply(Softplus(), torch.tensor([-1000.0, 0.0, 1000.0]))
    tensor([0.0000e+00, 6.9315e-01, 1.0000e+03])
    """

    counterpart = "Softplus"

    beta: float = 1.0
    threshold: float = 20.0

    def __attrs_post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise ValueError(f"Softplus' beta must be a finite number above 0, not {self.beta}")
        if not 0 < self.threshold <= 40:
            raise ValueError(
                f"Softplus' threshold must be above 0 and at most 40, not {self.threshold}: beyond 40 it would not change a bit"
            )

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.softplus(x, self.beta, self.threshold), x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, kernels.softplus_backward(grad, residuals, self.beta, self.threshold)

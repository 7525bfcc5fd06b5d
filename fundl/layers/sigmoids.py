"""Kin of the sigmoid and of tanh: the logarithm of the one, and both without an exponential function."""

from typing import Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common import kernels
from fundl._common.half import narrowed, widened
from fundl._common.modes import is_in_forward_mode
from fundl.layers.activation import Activation


@final
@attrs.frozen(eq=False)
class Hardsigmoid(Activation):
    """A sigmoid of straight pieces: y = min(max(x + 3, 0), 6) / 6.

    Its vjp: grad_x = grad / 6 where -3 < x < 3, else 0.

    Shape:
        any, kept

    Residuals:
        The input, not copied, but alive until backward: 4 bytes per element in float32.

    Source:
        Courbariaux, Bengio and David, BinaryConnect: training deep neural networks with binary weights during propagations,
        2015; of this width, Howard et al., Searching for MobileNetV3, 2019.

    >>> from fundl import Hardsigmoid, apply
    >>> apply(Hardsigmoid(), torch.tensor([-4.0, 0.0, 1.5]))
    tensor([0.0000, 0.5000, 0.7500])
    """

    counterpart = "Hardsigmoid"

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if is_in_forward_mode():  # torch knows the derivative of the kernel to 7 digits
            return torch.clamp(x / 6 + 0.5, 0, 1), x
        return kernels.hardsigmoid(x), x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, kernels.hardtanh_backward(grad / 6, residuals, -3.0, 3.0)


@final
@attrs.frozen(eq=False)
class LogSigmoid(Activation):
    """The logarithm of the sigmoid: y = -log(1 + exp(-x)), with no overflow and no log(0) on the way.

    Its vjp: grad_x = grad (1 - exp(y)), since the sigmoid of -x is 1 - exp(y).

    Shape:
        any, kept

    Residuals:
        The output, shared with the next layer: no bytes of its own.

    >>> from fundl import LogSigmoid, apply
    >>> apply(LogSigmoid(), torch.tensor([-1000.0, 0.0]))
    tensor([-1.0000e+03, -6.9315e-01])
    """

    counterpart = "LogSigmoid"

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = kernels.log_sigmoid(x)
        return y, y

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, torch.expm1(residuals) * -grad


@final
@attrs.frozen(eq=False)
class Softsign(Activation):
    """A sigmoid that nears its limits slowly: y = x / (1 + |x|).

    Its vjp: grad_x = grad / (1 + |x|)^2.

    Shape:
        any, kept

    Residuals:
        The input, not copied, but alive until backward: 4 bytes per element in float32.

    Source:
        Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010.

    >>> import math
    >>> from fundl import Softsign, apply
    >>> apply(Softsign(), torch.tensor([-math.inf, 1.0]))
    tensor([-1.0000,  0.5000])
    """

    counterpart = "Softsign"

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = widened(x)
        most = torch.finfo(wide.dtype).max
        wide = wide.clamp(-most, most)  # inf / inf is not a number
        return narrowed(wide / (1 + wide.abs()), x), x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        slope = (1 + widened(residuals).abs()).reciprocal()
        return self, narrowed(widened(grad) * slope * slope, grad)

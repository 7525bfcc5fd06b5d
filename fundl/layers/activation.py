"""Activations: functions of each element, without parameters."""

from typing import Self, TypeVar, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import kernels
from fundl.layer import Layer
from fundl.shapes import AnyShape

S = TypeVar("S", bound=AnyShape)


@final
@attrs.frozen(eq=False)
class ReLU(Layer[Tensor]):
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

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(x)
        return y, y

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, kernels.threshold_backward(grad, residuals, 0.0)

    @override
    def output_shape(self, shape: S) -> S:
        return shape


@final
@attrs.frozen(eq=False)
class Tanh(Layer[Tensor]):
    """The hyperbolic tangent: y = tanh(x).

    Its vjp: grad_x = grad (1 - y^2).

    Shape:
        any, kept

    Residuals:
        The output, shared with the next layer: no bytes of its own.

    >>> from fundl import Tanh, apply
    >>> apply(Tanh(), torch.tensor([0.0, 100.0]))
    tensor([0., 1.])
    """

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.tanh(x)
        return y, y

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, kernels.tanh_backward(grad, residuals)

    @override
    def output_shape(self, shape: S) -> S:
        return shape

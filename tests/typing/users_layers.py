from typing import reveal_type

import attrs
import torch
from torch import Tensor

from fundl import Layer, apply, vjp


@attrs.frozen(eq=False)
class Multiply(Layer[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]):
    """The product of two tensors: a layer of two inputs."""

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # E: Method "forward" is not using @override
        return x[0] * x[1], x

    def backward(  # E: Method "backward" is not using @override
        self, residuals: tuple[Tensor, Tensor], grad: Tensor
    ) -> tuple["Multiply", tuple[Tensor, Tensor]]:
        return self, (residuals[1] * grad, residuals[0] * grad)


one = torch.ones(2)
reveal_type(apply(Multiply(), (one, one)))  # R: torch._tensor.Tensor
reveal_type(vjp(Multiply(), (one, one), one))  # R: tuple[tests.typing.users_layers.Multiply, tuple[torch._tensor.Tensor, torch._tensor.Tensor]]


@attrs.frozen(eq=False)
class Half(Layer[Tensor]):  # E: Half has a forward, but no backward
    def forward(self, x: Tensor) -> Tensor:  # E: Return type "Tensor" of "forward" incompatible with return type  # E: Method "forward" is not using @override
        return x / 2


@attrs.frozen(eq=False)
class InHalves(Layer[Tensor]):
    weight: Tensor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # E: Method "forward" is not using @override
        return x * self.weight, x

    def backward_params(self, residuals: Tensor, grad: Tensor) -> "InHalves":  # E: Method "backward_params" is not using @override
        return self.gradient((residuals * grad).sum(0))

    def backward_input(self, residuals: Tensor, grad: Tensor) -> Tensor:  # E: Method "backward_input" is not using @override
        return self.weight * grad


reveal_type(vjp(InHalves(one), one, one))  # R: tuple[tests.typing.users_layers.InHalves, torch._tensor.Tensor]

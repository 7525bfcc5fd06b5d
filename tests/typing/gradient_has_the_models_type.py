from typing import reveal_type

import torch
from torch import Tensor

from fundl import Linear, ReLU, Tanh, compose, linear, mse, value_and_grad, vjp

x = torch.ones(4, 2)
model = compose(linear(2, 3), ReLU())
reveal_type(model)  # R: tuple[fundl.layers.linear.Linear[Literal[2], Literal[3]], fundl.layers.activation.ReLU]

grads, grad_x = vjp(model, x, torch.ones(4, 3))
reveal_type(grads)  # R: tuple[fundl.layers.linear.Linear[Literal[2], Literal[3]], fundl.layers.activation.ReLU]
reveal_type(grad_x)  # R: torch._tensor.Tensor
reveal_type(grads[0].weight)  # R: torch._tensor.Tensor
grads[1].weight  # E: "ReLU" has no attribute "weight"
grads[2]  # E: Tuple index out of range

loss, same_grads = value_and_grad(mse, model, x, torch.ones(4, 3))
value_and_grad(mse, model, x, 3)  # E: Argument 1 to "value_and_grad" has incompatible type
other: tuple[Linear, Tanh] = same_grads  # E: Incompatible types in assignment

single, _ = vjp(linear(2, 3), x, torch.ones(4, 3))
reveal_type(single)  # R: fundl.layers.linear.Linear[Literal[2], Literal[3]]

nested = compose(compose(linear(2, 3), ReLU()), Tanh())
nested_grads, _ = vjp(nested, x, torch.ones(4, 3))
reveal_type(nested_grads[0][0])  # R: fundl.layers.linear.Linear[Literal[2], Literal[3]]
nested_grads[1][0]  # E: Value of type "Tanh" is not indexable


def weights(layer: Linear) -> Tensor:
    return layer.bias  # E: Incompatible return value type (got "Tensor | None", expected "Tensor")

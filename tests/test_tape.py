"""Torch's reverse mode over fundl's functions is refused, since it would find zeros; its forward mode and vmap work."""

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from fundl import Linear, Tanh, apply, backward, compose, forward, mse, sgd, value_and_grad, vjp
from tests.samples import normal

T = TypeVar("T")

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # with which torch has forward mode

X, TARGET = normal(5, 3), normal(5, 2)
WEIGHT, BIAS = normal(2, 3), normal(2)


def value(weight: Tensor) -> Tensor:
    return value_and_grad(mse, compose(Linear(weight, BIAS), Tanh()), X, TARGET)[0]


def output(x: Tensor) -> Tensor:
    return apply(Linear(WEIGHT, BIAS), x).sum()


def gradient(x: Tensor) -> Tensor:
    return vjp(Tanh(), x, torch.ones_like(x))[1].sum()


def gradient_of_the_gradient(grad: Tensor) -> Tensor:
    _, residuals = forward(Tanh(), X)
    return backward(Tanh(), residuals, grad)[1].sum()


def step(weight: Tensor) -> Tensor:
    moved, _ = sgd(0.1).step({"w": weight}, sgd(0.1).init({"w": WEIGHT}), {"w": WEIGHT})
    return moved["w"].sum()


CASES: list[tuple[Callable[[Tensor], Tensor], Tensor]] = [
    (value, WEIGHT),
    (output, X),
    (gradient, X),
    (gradient_of_the_gradient, X),
    (step, WEIGHT),
]


@pytest.mark.parametrize(("function", "point"), CASES)
@pytest.mark.parametrize("differentiate", [torch.func.grad, torch.func.jacrev, torch.func.hessian])
def test_reverse_mode_is_refused(
    differentiate: Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]],
    function: Callable[[Tensor], Tensor],
    point: Tensor,
) -> None:
    with pytest.raises(RuntimeError, match=r"take fundl.vjp\(model, x, grad\) or fundl.value_and_grad"):
        differentiate(function)(point)


def test_also_over_and_under_vmap() -> None:
    for function in (torch.vmap(torch.func.grad(output)), torch.func.grad(lambda x: torch.vmap(output)(x).sum())):
        with pytest.raises(RuntimeError, match="which record no tape"):
            function(X)


def test_what_is_not_differentiated_runs() -> None:
    assert torch.equal(torch.func.grad(lambda scale: scale * output(X))(torch.tensor(2.0, dtype=torch.float64)), output(X))


def test_forward_mode_and_vmap_work() -> None:
    direction = normal(5, 3).sin()
    derivative = torch.func.jvp(gradient, (X,), (direction,))[1]
    y = torch.tanh(X)
    torch.testing.assert_close(derivative, (-2 * y * (1 - y**2) * direction).sum())
    torch.testing.assert_close(torch.vmap(output)(X), apply(Linear(WEIGHT, BIAS), X).sum(-1))
    assert torch.func.jacfwd(gradient)(X).shape == X.shape

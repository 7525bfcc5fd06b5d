"""Torch's reverse mode over fundl's functions is refused, since it would find zeros; its forward mode and vmap work."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from fundl import (
    Add,
    BatchNorm,
    Linear,
    Model,
    Tanh,
    apply,
    backward,
    binary_cross_entropy_with_logits,
    calibrate,
    compose,
    cross_entropy,
    forward,
    mse,
    nll,
    sgd,
    tree,
    value_and_grad,
    vjp,
)
from tests.loss_samples import SAMPLES as LOSSES
from tests.samples import SAMPLES, Sample, normal
from tests.test_layers import forward_any

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


def test_an_input_on_a_tape_is_refused() -> None:
    layer, taped = Linear(WEIGHT, BIAS), X.clone().requires_grad_() * 2
    runs: list[Callable[[], Tensor]] = [
        lambda: apply(layer, taped),
        lambda: forward(layer, taped)[0],
        lambda: vjp(layer, taped, TARGET)[1],
        lambda: value_and_grad(mse, layer, taped, TARGET)[0],
        lambda: apply(Add(), (taped, X)),
    ]
    for run in runs:
        with pytest.raises(RuntimeError, match=r"a tape of torch.autograd \(MulBackward0\).*take grads, grad_x = fundl.vjp"):
            run()
        with torch.no_grad():  # where no gradient is asked for
            assert not run().requires_grad


def test_weights_of_losses_have_no_silent_zeros() -> None:
    classes, weights = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0.5, 2.0], dtype=torch.float64)
    losses: list[Callable[[Tensor], Tensor]] = [
        lambda weight: cross_entropy(TARGET, classes, weight=weight)[0],
        lambda weight: nll(TARGET, classes, weight=weight)[0],
        lambda weight: binary_cross_entropy_with_logits(TARGET, TARGET.sigmoid(), pos_weight=weight)[0],
    ]
    for loss in losses:
        with pytest.raises(RuntimeError, match="which record no tape"):
            torch.func.grad(loss)(weights)
        way = torch.tensor([1.0, -0.5], dtype=torch.float64)
        derivative = torch.func.jvp(loss, (weights,), (way,))[1]
        difference = (loss(weights + 1e-6 * way) - loss(weights - 1e-6 * way)) / 2e-6
        torch.testing.assert_close(derivative, difference, rtol=1e-6, atol=1e-8)


def test_statistics_have_no_silent_zeros() -> None:
    def statistics(x: Tensor) -> Tensor:
        model = calibrate(BatchNorm(), [x, x.square()])
        assert model.mean is not None
        assert model.var is not None
        return model.mean.sum() + model.var.sum()

    way = X.cos()
    derivative = torch.func.jvp(statistics, (X,), (way,))[1]
    torch.testing.assert_close(derivative, (statistics(X + 1e-6 * way) - statistics(X - 1e-6 * way)) / 2e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_refused(name: str) -> None:
    row = LOSSES[name]
    with pytest.raises(RuntimeError, match="which record no tape"):
        torch.func.grad(lambda prediction: row.loss(prediction, row.target)[0])(row.prediction)
    if row.target.is_floating_point() and not name.startswith("triplet"):  # which does not look at it
        with pytest.raises(RuntimeError, match="which record no tape"):
            torch.func.grad(lambda target: row.loss(row.prediction, target)[0])(row.target)


def sum_of_output(model: Model, x: object) -> Tensor:
    output, _ = forward_any(model, x)
    return torch.stack([leaf.sum() for leaf in tree.leaves(output) if leaf.is_floating_point()]).sum()


def sum_with(given: tuple[Model, object], place: int, leaf: Tensor) -> Tensor:
    """The same with another leaf in some place."""
    leaves = tree.trainable_leaves(given)
    return sum_of_output(*tree.with_trainable_leaves(given, [*leaves[:place], leaf, *leaves[place + 1 :]]))


@pytest.mark.parametrize("row", SAMPLES, ids=lambda row: row.name)
def test_layers_are_refused(row: Sample) -> None:
    """With respect to each parameter, and each part of the input."""
    given = row.model, row.x
    for place, leaf in enumerate(tree.trainable_leaves(given)):
        if leaf.is_floating_point():
            with pytest.raises(RuntimeError, match="which record no tape"):
                torch.func.grad(partial(sum_with, given, place))(leaf)


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

"""A user's layer of ten lines is a first-class layer; a layer that is not finished cannot be made."""

import copy
import pickle
from typing import Generic, Self, TypeVar

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fundl import (
    Layer,
    Linear,
    Model,
    Tanh,
    apply,
    backward,
    backward_params,
    check_vjp,
    compose,
    forward,
    tree,
    value_and_grad,
    vjp,
)
from fundl.tree import BUFFER
from tests.samples import normal


@attrs.frozen(eq=False)
class Scale(Layer[Tensor]):
    weight: Tensor

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.weight * x, x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple["Scale", Tensor]:
        return Scale((grad * residuals).sum(0)), self.weight * grad


WEIGHT, OTHER = normal(2, 3)
SCALE = Scale(WEIGHT)
X, GRAD = normal(2, 5, 3)


def squares(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    error = prediction - target
    return (error * error).sum() / 2, error


# --- Ten lines ---------------------------------------------------------------------------------------------------------


def test_it_runs_alone() -> None:
    assert tree.equal(apply(SCALE, X), WEIGHT * X)
    y, residuals = forward(SCALE, X)
    assert residuals is X
    grads, grad_x = vjp(SCALE, X, GRAD)
    assert tree.equal((grads, grad_x), (Scale((GRAD * X).sum(0)), WEIGHT * GRAD))
    assert tree.equal(backward(SCALE, residuals, GRAD), (grads, grad_x))
    assert tree.equal(backward_params(SCALE, residuals, GRAD), grads)
    assert tree.equal(value_and_grad(squares, SCALE, X, GRAD), (squares(y, GRAD)[0], Scale(((y - GRAD) * X).sum(0))))


def test_it_runs_in_a_model() -> None:
    model = compose(SCALE, (Tanh(), Scale(OTHER)))
    assert tree.equal(apply(model, X), OTHER * torch.tanh(WEIGHT * X))
    check_vjp(model, X)
    grads = value_and_grad(squares, model, X, GRAD)[1]
    stepped = tree.map(lambda param, grad: param - 0.01 * grad, model, grads)
    assert squares(apply(stepped, X), GRAD)[0] < squares(apply(model, X), GRAD)[0]


def test_it_is_a_tree() -> None:
    assert Scale.children == ("weight",)
    assert tree.paths(compose(SCALE, SCALE)) == ["[0].weight", "[1].weight"]
    assert tree.count(SCALE) == 3
    assert tree.equal(tree.at(SCALE, lambda layer: layer.weight).set(OTHER), Scale(OTHER))
    assert repr(tree.cast_to(SCALE, torch.float16)) == "Scale(weight=float16[3])"


def test_it_is_a_value() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError, match=r"a Scale is a value, .* tree\.at\(record, .*weight"):
        SCALE.weight = OTHER  # type: ignore[misc]  # what must not be done
    assert tree.equal(pickle.loads(pickle.dumps(SCALE)), SCALE)
    assert tree.equal(copy.deepcopy(SCALE), SCALE)
    assert Scale(WEIGHT) != SCALE  # records are compared with tree.equal
    assert len({SCALE, Scale(WEIGHT)}) == 2


def test_it_computes_shapes_without_values() -> None:
    layer, x, grad = tree.move_to((SCALE, X, GRAD), "meta")
    grads, grad_x = vjp(layer, x, grad)
    assert tree.describe((grads, grad_x)) == "(Scale(weight=float64[3]), float64[5, 3])"
    assert grads.weight.is_meta


# --- More than ten lines -----------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Twice(Layer[tuple[Tensor, Tensor]]):
    """A layer that holds a layer, a buffer and static fields: y = f(f(x) - mean) times."""

    inner: Linear
    mean: Tensor = attrs.field(metadata=BUFFER)
    times: float = 2.0

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hidden, first = self.inner.forward(x)
        y, second = self.inner.forward(hidden - self.mean)
        return self.times * y, (first, second)

    @override
    def backward(self, residuals: tuple[Tensor, Tensor], grad: Tensor) -> tuple[Self, Tensor]:
        late, grad_hidden = self.inner.backward(residuals[1], self.times * grad)
        early, grad_x = self.inner.backward(residuals[0], grad_hidden)
        return attrs.evolve(self, inner=tree.map(torch.add, early, late)), grad_x


def test_a_layer_of_a_layer_used_twice() -> None:
    layer = Twice(Linear(normal(3, 3), bias=OTHER), mean=WEIGHT)
    check_vjp(layer, X)
    assert Twice.children == ("inner", "mean")
    assert tree.count(layer) == 3 * 3 + 3
    assert vjp(layer, X, GRAD)[0].mean is WEIGHT
    assert vjp(layer, X, GRAD)[0].times == 2.0


def test_backward_params_is_the_first_half_of_backward_unless_overridden() -> None:
    calls: list[str] = []

    @attrs.frozen(eq=False)
    class Told(Layer[None]):
        weight: Tensor

        @override
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return x + self.weight, None

        @override
        def backward(self, residuals: None, grad: Tensor) -> tuple["Told", Tensor]:
            calls.append("backward")
            return Told(grad.sum(0)), grad

    @attrs.frozen(eq=False)
    class Short(Told):
        @override
        def backward_params(self, residuals: None, grad: Tensor) -> "Short":
            calls.append("backward_params")
            return Short(grad.sum(0))

    told = backward_params(Told(WEIGHT), None, GRAD)
    short = backward_params(Short(WEIGHT), None, GRAD)
    assert calls == ["backward", "backward_params"]
    assert tree.equal((told.weight, short.weight), (GRAD.sum(0), GRAD.sum(0)))


M = TypeVar("M", bound=Model)


@attrs.frozen(eq=False)
class Around(Layer[object], Generic[M]):
    inner: M

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, object]:
        return forward(self.inner, x)

    @override
    def backward(self, residuals: object, grad: Tensor) -> tuple[Self, Tensor]:
        grads, grad_x = backward(self.inner, residuals, grad)
        return self.gradient(grads), grad_x


def test_a_field_of_any_model_holds_parameters() -> None:
    around = Around(compose(SCALE, Tanh()))
    assert tree.paths(around) == [".inner[0].weight"]
    check_vjp(around, X)


def test_an_input_of_two_tensors() -> None:
    @attrs.frozen(eq=False)
    class Multiply(Layer[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]):
        @override
        def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            return x[0] * x[1], x

        @override
        def backward(self, residuals: tuple[Tensor, Tensor], grad: Tensor) -> tuple["Multiply", tuple[Tensor, Tensor]]:
            return self, (residuals[1] * grad, residuals[0] * grad)

    check_vjp(Multiply(), (X, GRAD))
    assert tree.equal(apply(Multiply(), (X, GRAD)), X * GRAD)
    assert tree.equal(vjp(Multiply(), (X, GRAD), torch.ones_like(X))[1], (GRAD, X))


# --- Not a layer -------------------------------------------------------------------------------------------------------


def test_a_layer_without_backward_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="Half has a forward, but no backward: write backward"):

        @attrs.frozen(eq=False)
        class Half(Layer[Tensor]):  # type: ignore[misc]  # what must not be done
            @override
            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                return x / 2, x


def test_one_half_is_no_backward() -> None:
    with pytest.raises(TypeError, match="Half has a forward, but no backward: write backward"):

        @attrs.frozen(eq=False)
        class Half(Layer[Tensor]):  # type: ignore[misc]  # what must not be done
            @override
            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                return x / 2, x

            @override
            def backward_input(self, residuals: Tensor, grad: Tensor) -> Tensor:
                return grad / 2


@attrs.frozen(eq=False)
class InHalves(Layer[Tensor]):
    """What Scale is, written in halves; and with a buffer and a static field, which gradients keep."""

    weight: Tensor
    shift: Tensor | None = attrs.field(default=None, metadata=BUFFER)
    bias: Tensor | None = None
    factor: float = 3.0

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.factor * self.weight * x, x

    @override
    def backward_params(self, residuals: Tensor, grad: Tensor) -> Self:
        return self.gradient((self.factor * grad * residuals).sum(0), self.bias)

    @override
    def backward_input(self, residuals: Tensor, grad: Tensor) -> Tensor:
        return self.factor * self.weight * grad


def test_a_layer_in_halves_is_a_layer() -> None:
    layer = InHalves(torch.tensor([2.0, 3.0]), shift=torch.ones(1), factor=0.5)
    check_vjp(layer, torch.randn(4, 2, dtype=torch.float64))
    x = torch.randn(4, 2)
    grads, grad_x = vjp(layer, x, torch.ones(4, 2))
    assert grads.shift is layer.shift
    assert grads.factor == 0.5
    assert torch.equal(grads.weight, 0.5 * x.sum(0))
    assert torch.equal(grad_x, 0.5 * layer.weight.expand(4, 2))


def test_a_gradient_must_be_given_for_each_parameter() -> None:
    layer = InHalves(torch.ones(2))
    with pytest.raises(TypeError, match=r"InHalves\.gradient\(\) missing 1 required positional argument: 'bias'"):
        layer.gradient(torch.ones(2))
    with pytest.raises(TypeError, match=r"InHalves\.gradient\(\) takes 3 positional arguments but 4 were given"):
        layer.gradient(torch.ones(2), None, torch.ones(2))


def test_the_contract_itself_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract class Layer"):
        Layer()  # type: ignore[abstract]  # what must not be done


def test_a_layer_must_be_decorated() -> None:
    class Plain(Layer[None]):
        @override
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return x, None

        @override
        def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
            return self, grad

    with pytest.raises(TypeError, match=r"Plain is not a record: decorate the class with @attrs\.frozen\(eq=False\)"):
        Plain()

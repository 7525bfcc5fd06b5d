"""Composing, running and differentiating models, and what is said when that fails."""

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, Self

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from fundl import (
    Flatten,
    Identity,
    Layer,
    Model,
    ReLU,
    Tanh,
    apply,
    assert_trees_close,
    backward,
    backward_params,
    compose,
    forward,
    key,
    linear,
    mse,
    residual,
    sgd,
    train_state,
    train_step,
    tree,
    value_and_grad,
    vjp,
)
from tests.samples import normal, with_values

FIRST, SECOND, THIRD = with_values((linear(3, 4), linear(4, 4), linear(4, 2)))
MODEL: Final = compose(FIRST, ReLU(), compose(SECOND, Tanh()), THIRD)
FLAT: Final = compose(FIRST, ReLU(), SECOND, Tanh(), THIRD)
X: Final = normal(5, 3)
GRAD: Final = normal(5, 2)
NOT_A_MODEL: Final = "the model is of type %s, not a layer or a tuple of layers"


def squares(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    error = prediction - target
    return (error * error).sum() / 2, error


# --- compose -----------------------------------------------------------------------------------------------------------


def test_compose_makes_a_tuple() -> None:
    assert compose(FIRST, ReLU())[0] is FIRST
    assert compose(MODEL, Tanh())[0] is MODEL
    assert type(compose(ReLU())) is tuple


@attrs.frozen(eq=False)
class Hidden(Layer[None]):
    weight: object

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
        return self, grad


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ((), ValueError, r"^a model needs at least one layer"),
        ((ReLU(), ()), ValueError, r"^layer 2 is an empty tuple: a model needs at least one layer$"),
        ((ReLU(), (ReLU(), ReLU)), TypeError, r"^layer 2\.2 is the class ReLU, not a layer: write ReLU\(\.\.\.\)$"),
        ((ReLU(), 3), TypeError, r"^layer 2 is of type int, not a layer or a tuple of layers: 3$"),
        (([ReLU()],), TypeError, r"^layer 1 is of type list, not a layer or a tuple of layers: write compose\(\*layers\)$"),
        ((linear,), TypeError, r"^layer 1 is the function linear, not a layer: write linear\(\.\.\.\)$"),
        ((torch.relu, ReLU()), TypeError, r"^layer 1 is the function relu, not a layer: write ReLU\(\.\.\.\)$"),
        (((Hidden(X),),), TypeError, r"^layer 1\.1: Hidden\.weight holds a tensor, but .* annotate the field with Tensor"),
    ],
)
def test_compose_takes_layers_alone(parts: tuple[object, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compose(*parts)


# --- Running -----------------------------------------------------------------------------------------------------------


def test_layers_run_from_left_to_right() -> None:
    y, residuals = forward(FLAT, X)
    x = X
    for layer, kept in zip(FLAT, residuals if isinstance(residuals, tuple) else (), strict=True):
        x, own = forward(layer, x)
        assert tree.equal(own, kept)
    assert tree.equal(y, x)
    assert tree.equal(apply(FLAT, X), y)


def test_a_lone_layer_is_a_model() -> None:
    assert tree.equal(apply(FIRST, X), F.linear(X, FIRST.weight, FIRST.bias))
    assert tree.equal(apply(FIRST, X), apply((FIRST,), X))
    assert tree.equal((vjp(FIRST, X, normal(5, 4))[0],), vjp((FIRST,), X, normal(5, 4))[0])


def test_nesting_changes_nothing_but_the_gradients_structure() -> None:
    assert tree.equal(apply(MODEL, X), apply(FLAT, X))
    grads, grad_x = vjp(MODEL, X, GRAD)
    flat_grads, flat_grad_x = vjp(FLAT, X, GRAD)
    assert tree.equal(grads, (*flat_grads[:2], flat_grads[2:4], flat_grads[4]))
    assert tree.equal(grad_x, flat_grad_x)


def test_vjp_is_forward_then_backward() -> None:
    _, residuals = forward(MODEL, X)
    both = backward(MODEL, residuals, GRAD)
    assert tree.equal(vjp(MODEL, X, GRAD), both)
    assert tree.equal(backward(MODEL, residuals, GRAD), both)


def test_value_and_grad_equals_autograd() -> None:
    target = normal(5, 2)
    value, grads = value_and_grad(squares, MODEL, X, target)
    leaves, structure = tree.flatten(MODEL)
    variables = [leaf.detach().requires_grad_() for leaf in leaves if leaf is not None]
    first, _, (second, _), third = tree.unflatten(structure, variables)
    hidden = F.linear(F.relu(F.linear(X, first.weight, first.bias)), second.weight, second.bias)
    loss = ((F.linear(hidden.tanh(), third.weight, third.bias) - target) ** 2).sum() / 2
    expected = torch.autograd.grad(loss, variables)
    assert_trees_close(value, loss.detach(), rtol=1e-12, atol=0.0)
    assert_trees_close(grads, tree.unflatten(structure, expected), rtol=1e-9, atol=1e-9)


# --- backward_params ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [MODEL, FLAT, FIRST, ReLU(), (ReLU(),), (Identity(), (Tanh(), (FIRST, ReLU())), THIRD), ((Tanh(),), Identity(), FIRST)],
    ids=str,
)
def test_backward_params_is_the_first_half_of_backward(model: Model) -> None:
    y, residuals = forward(model, X)
    grad = torch.cos(y)
    assert tree.equal(backward_params(model, residuals, grad), backward(model, residuals, grad)[0])


def test_backward_params_skips_what_is_not_needed() -> None:
    ran: list[str] = []

    @attrs.frozen(eq=False)
    class Spy(Layer[None]):
        name: str

        @override
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return x, None

        @override
        def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
            ran.append(self.name)
            return self, grad

    @attrs.frozen(eq=False)
    class SpyOfWeight(Spy):
        weight: Tensor

        @override
        def backward_params(self, residuals: None, grad: Tensor) -> Self:
            ran.append(f"{self.name}, params alone")
            return self

    model = (Spy("a"), (Spy("b"), SpyOfWeight("c", X), Spy("d")), SpyOfWeight("e", X))
    _, residuals = forward(model, X)
    assert tree.equal(backward_params(model, residuals, X), model)
    assert ran == ["e", "d", "c, params alone"]

    ran.clear()
    value_and_grad(squares, (Spy("a"), (Spy("b"),)), X, X)
    assert not ran


# --- Grad modes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_no_tape_is_recorded(mode: Callable[[], AbstractContextManager[None]]) -> None:
    expected = vjp(MODEL, X, GRAD), value_and_grad(squares, MODEL, X, GRAD)
    model, x = tree.map(lambda leaf: leaf.clone().requires_grad_(), (MODEL, X))
    with mode():
        y, residuals = forward(model, x)
        actual = vjp(model, x, GRAD), value_and_grad(squares, model, x, GRAD)
        grads = backward_params(model, residuals, GRAD)
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
    assert not any(leaf.requires_grad for leaf in tree.leaves((y, actual, grads)))
    assert not any(leaf.grad_fn for leaf in tree.leaves(residuals))
    assert tree.equal(actual, expected)


def test_a_custom_loss_runs_without_a_tape() -> None:
    def taped(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        assert not torch.is_grad_enabled()
        return squares(prediction, target)

    value_and_grad(taped, MODEL, X, GRAD)


# --- What is said when it fails ----------------------------------------------------------------------------------------


def notes(error: BaseException) -> list[str]:
    found: list[str] = getattr(error, "__notes__", [])
    return found


@pytest.mark.parametrize(
    ("model", "place"),
    [
        (SECOND, "in model: Linear(weight=float64[4, 4], bias=float64[4]); the input is float64[5, 3]"),
        ((SECOND,), "in model[0]: Linear(weight=float64[4, 4], bias=float64[4]); the input is float64[5, 3]"),
        (
            (((Identity(), ((Flatten(start=-1), SECOND),)),),),
            "in model[0][0][1][0][1]: Linear(weight=float64[4, 4], bias=float64[4]); the input is float64[5, 3]",
        ),
    ],
)
def test_an_input_that_does_not_fit(model: Model, place: str) -> None:
    functions: list[Callable[[], object]] = [
        lambda: apply(model, X),
        lambda: forward(model, X),
        lambda: vjp(model, X, GRAD),
        lambda: value_and_grad(squares, model, X, GRAD),
    ]
    for function in functions:
        with pytest.raises(ValueError, match="Linear expects 4 features, but the input's shape is") as caught:
            function()
        assert notes(caught.value) == [place]


@pytest.mark.parametrize("model", [(FIRST, (Tanh(), THIRD, SECOND))])
def test_a_tuple_whose_layers_do_not_fit(model: Model) -> None:
    functions: list[Callable[[], object]] = [
        lambda: apply(model, X),
        lambda: forward(model, X),
        lambda: vjp(model, X, GRAD),
        lambda: value_and_grad(squares, model, X, GRAD),
    ]
    message = r"^layer 2\.3 \(Linear\) expects 4 features but layer 2\.2 \(Linear\) gives 2 features$"
    for function in functions:
        with pytest.raises(ValueError, match=message):
            function()


def test_a_wrong_dtype() -> None:
    with pytest.raises(TypeError, match=r"weight is torch\.float64, but the input is torch\.float32: convert") as caught:
        apply(MODEL, X.float())
    assert notes(caught.value) == ["in model[0]: Linear(weight=float64[4, 3], bias=float64[4]); the input is float32[5, 3]"]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8], ids=str)
def test_an_input_of_integers(dtype: torch.dtype) -> None:
    whole = torch.ones(5, 3, dtype=dtype)
    for model in (FIRST, MODEL, ((ReLU(),),)):
        with pytest.raises(TypeError, match=rf"must be floating-point, not {dtype}: convert it with x\.to\(torch\.float32\)"):
            apply(model, whole)
    assert apply((Flatten(), Identity()), whole).dtype == dtype


UNINITIALIZED: Final = compose(linear(3, 4), (ReLU(), linear(4, 2)))


def test_a_model_without_values() -> None:
    functions: list[Callable[[], object]] = [
        lambda: apply(UNINITIALIZED, X.float()),
        lambda: forward(UNINITIALIZED[0], X.float()),
        lambda: vjp(UNINITIALIZED, X.float(), GRAD.float()),
        lambda: value_and_grad(squares, UNINITIALIZED, X.float(), GRAD.float()),
        lambda: apply((*MODEL, linear(2, 2, dtype=torch.float64)), X),
    ]
    for function in functions:
        with pytest.raises(ValueError, match=r"^the model has no values yet, only shapes: call initialize\(key\(0\), model\)"):
            function()


def test_a_model_without_values_computes_shapes() -> None:
    y = apply(UNINITIALIZED, torch.empty(7, 3, device="meta"))
    assert y.is_meta
    assert y.shape == (7, 2)
    with pytest.raises(ValueError, match="expects 3 features"):
        apply(UNINITIALIZED, torch.empty(7, 4, device="meta"))


def test_a_cotangent_of_the_wrong_shape() -> None:
    message = r"^grad is the gradient with respect to the output, and must have its shape \(5, 2\), not \(5, 1\)$"
    with pytest.raises(ValueError, match=message):
        vjp(MODEL, X, GRAD[:, :1])
    with pytest.raises(ValueError, match=r"must have its shape \(5, 4\), not \(\)$"):
        vjp(FIRST, X, torch.tensor(1.0, dtype=torch.float64))


def test_backward_names_the_place_too() -> None:
    _, residuals = forward(MODEL, X)
    place = "in model[3]: Linear(weight=float64[2, 4], bias=float64[2]); grad is float64[5, 3]"
    for function in (backward, backward_params):
        with pytest.raises(
            ValueError, match=r"Linear cannot be run backward .* grad must be of the shape .* float64\[5, 3\]"
        ) as caught:
            function(MODEL, residuals, X)
        assert notes(caught.value) == [place]


def test_residuals_of_another_model() -> None:
    _, residuals = forward(FIRST, X)
    with pytest.raises(
        TypeError, match=r"the residuals of a tuple of 4 layers are a tuple of as many, .* not float64\[5, 3\]$"
    ):
        backward(MODEL, residuals, GRAD)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (ReLU, r"the model is the class ReLU, not a layer: write ReLU\(\.\.\.\)$"),
        ([ReLU()], NOT_A_MODEL % "list" + r": write compose\(\*layers\)$"),
        (X, NOT_A_MODEL % "Tensor" + r": float64\[5, 3\]; the model is the first argument, apply\(model, x\)$"),
    ],
)
def test_what_is_not_a_model(value: Model, message: str) -> None:
    for run in (apply, forward):
        with pytest.raises(TypeError, match="^" + message):
            run(value, X)
    for differentiate in (backward, vjp):
        with pytest.raises(TypeError, match="^" + message):
            differentiate(value, X, GRAD)


def test_other_notes_are_left_alone() -> None:
    @attrs.frozen(eq=False)
    class Noted(Layer[None]):
        @override
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            error = ValueError("no")
            error.add_note("the layer's own")
            raise error

        @override
        def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
            return self, grad

    with pytest.raises(ValueError, match="no") as caught:
        apply((FIRST, (Noted(),)), X)
    assert notes(caught.value) == ["the layer's own", "in model[1][0]: Noted(); the input is float64[5, 4]"]


# --- Memory ------------------------------------------------------------------------------------------------------------


COPIES: Final[list["weakref.ref[Tensor]"]] = []
HELD: Final[list[int]] = []


@attrs.frozen(eq=False)
class Watched(Layer[Tensor]):
    """Keeps a copy of its input, and in backward counts the copies that are still held."""

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        copy = x.clone()
        COPIES.append(weakref.ref(copy))
        return x, copy

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        HELD.append(sum(copy() is not None for copy in COPIES))
        return self, grad


WATCHED: Final = (with_values(linear(2, 2)), Watched(), (Watched(), Watched()), Watched())


def only_differentiate(x: Tensor) -> None:
    vjp(WATCHED, x, x)


def differentiate_the_loss(x: Tensor) -> None:
    value_and_grad(mse, WATCHED, x, x)


def take_a_step(x: Tensor) -> None:
    train_step(mse, sgd(0.1))(train_state(key(0), WATCHED, sgd(0.1)), (x, x))


@pytest.mark.parametrize("run", [only_differentiate, differentiate_the_loss, take_a_step])
def test_what_a_layer_kept_is_freed_once_its_backward_has_run(run: Callable[[Tensor], None]) -> None:
    COPIES.clear()
    HELD.clear()
    run(normal(3, 2))
    assert HELD == [4, 3, 2, 1]
    assert all(copy() is None for copy in COPIES)


def test_what_layers_inside_of_a_layer_kept_is_freed_likewise() -> None:
    COPIES.clear()
    HELD.clear()
    x = normal(3, 2)
    vjp((Watched(), residual(Watched(), Watched()), Watched()), x, x)
    assert HELD == [4, 3, 2, 1]

"""Layers that are not trained, and the half of backward that they ask for."""

from collections.abc import Callable
from typing import Literal, assert_type

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fundl import adamw, tree
from fundl.initialization import initialize
from fundl.layer import AnyLayer, Layer, Model
from fundl.layers.activation import ReLU, Tanh
from fundl.layers.dropout import Dropout, rekey
from fundl.layers.embedding import Embedding, embedding
from fundl.layers.frozen import Frozen, frozen, thaw
from fundl.layers.linear import Linear, linear
from fundl.layers.normalization import layer_norm, rms_norm
from fundl.layers.structure import Residual, checkpoint, parallel, residual
from fundl.losses.regression import mse
from fundl.model import apply, backward_input, backward_params, compose, forward, value_and_grad, vjp
from fundl.random import key, normal
from fundl.testing import check_vjp
from fundl.training.step import train_state, train_step


@attrs.frozen(eq=False)
class SecondOnly(Layer[None]):
    """A scale that cannot find the gradient of its weight: it must not be asked for it."""

    weight: Tensor

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.weight * x, None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple["SecondOnly", Tensor]:
        raise AssertionError("the gradient of the weight was asked for")

    @override
    def backward_input(self, residuals: None, grad: Tensor) -> Tensor:
        return self.weight * grad


SCALE = SecondOnly(torch.tensor(2.0))


# --- Frozen ------------------------------------------------------------------------------------------------------------


def test_frozen_layers_are_seen_by_no_optimizer() -> None:
    model = initialize(key(0), compose(linear(3, 4), frozen(linear(4, 4), Tanh()), linear(4, 2)))
    x, target = normal(key(1), (8, 3)), normal(key(2), (8, 2))
    assert tree.trainable_paths(model) == ["[0].weight", "[0].bias", "[2].weight", "[2].bias"]
    _, grads = value_and_grad(mse, model, x, target)
    assert grads[1] is model[1]
    optimizer = adamw(0.1, weight_decay=0.1)
    state = train_state(key(3), model, optimizer)
    step = train_step(mse, optimizer)
    for _ in range(3):
        state, _ = step(state, (x, target))
    assert tree.equal(state.model[1], model[1])
    assert not tree.equal(state.model[0], model[0])


@pytest.mark.parametrize(
    "model",
    [
        frozen(SCALE),
        frozen(SCALE, (Tanh(), SCALE)),
        frozen(residual(SCALE, Tanh())),
        frozen(parallel(SCALE, (SCALE, Tanh()), join="concatenate")),
        frozen(checkpoint(SCALE, frozen(SCALE))),
    ],
    ids=repr,
)
def test_the_gradients_of_frozen_parameters_are_not_computed(model: AnyLayer) -> None:
    x = normal(key(0), (4, 3))
    y, residuals = forward(model, x)
    assert backward_input(model, residuals, torch.ones_like(y)).shape == x.shape
    grads, _ = vjp(model, x, torch.ones_like(y))
    assert grads is model


def test_what_is_frozen_in_front_of_all_trained_layers_needs_no_backward() -> None:
    @attrs.frozen(eq=False)
    class Never(Layer[None]):
        weight: Tensor

        @override
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return self.weight * x, None

        @override
        def backward(self, residuals: None, grad: Tensor) -> tuple["Never", Tensor]:
            raise AssertionError("backward ran")

    model = compose(frozen(Never(torch.tensor(2.0))), Tanh(), Linear(torch.ones(1, 3), None))
    y, residuals = forward(model, torch.ones(2, 3))
    grads = backward_params(model, residuals, torch.ones_like(y))
    assert grads[0] is model[0]
    assert grads[2].weight.shape == (1, 3)


def test_initialize_draws_what_has_no_values_and_keeps_what_has() -> None:
    body = initialize(key(0), compose(linear(3, 4), Tanh()))
    model = initialize(key(1), compose(frozen(*body, linear(4, 4)), linear(4, 2)))
    assert tree.equal(model[0].layers[:2], body)
    assert not any(leaf.is_meta for leaf in tree.leaves(model))
    again = initialize(key(2), model, dtype=torch.float64)
    assert tree.equal(again[0], tree.cast_to(model[0], torch.float64))
    assert not tree.equal(again[1], tree.cast_to(model[1], torch.float64))
    place = initialize(key(1), compose(linear(3, 4), Tanh(), linear(4, 4)))
    assert not tree.equal(place[2], model[0].layers[2])  # its key is by its place, which is another


def test_frozen_layers_still_draw_random_numbers() -> None:
    model = rekey(compose(frozen(Dropout(0.5))), key(0))
    assert model[0].layers[0].key is not None
    assert (apply(model, torch.ones(100)) == 0).any()


def test_frozen_layers_thaw() -> None:
    layers = initialize(key(0), compose(linear(2, 3), ReLU()))
    ice = frozen(*layers)
    assert_type(ice, Frozen[Linear[Literal[2], Literal[3]], ReLU])
    assert_type(thaw(ice), tuple[Linear[Literal[2], Literal[3]], ReLU])
    assert tree.equal(thaw(ice), layers)
    assert tree.count(ice) == 0
    assert tree.count(thaw(ice)) == 9
    assert tree.nbytes(ice) == 36


def test_frozen_layers_look_up_integers() -> None:
    model = initialize(key(0), compose(frozen(embedding(5, 3)), linear(3, 2)))
    assert_type(model[0].layers[0], Embedding[Literal[3]])
    tokens = torch.tensor([[1, 4]])
    grads, grad_x = vjp(model, tokens, torch.ones(1, 2, 2))
    assert grads[0] is model[0]
    assert torch.equal(grad_x, torch.zeros_like(tokens))


def test_the_gradient_has_the_type_of_the_model() -> None:
    model = residual(frozen(Linear(torch.eye(2), None)), Tanh())
    grads, grad_x = vjp(model, torch.ones(1, 2), torch.ones(1, 2))
    assert_type(grads, Residual[Frozen[Linear], Tanh])
    assert_type(grad_x, Tensor)
    assert_type(backward_input(model, forward(model, torch.ones(1, 2))[1], grad_x), Tensor)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        frozen()
    with pytest.raises(TypeError, match="layer 1 is the class Tanh"):
        frozen(Tanh)
    with pytest.raises(ValueError, match=r"layer 2 \(Linear\) expects 5 features but layer 1 \(Linear\) gives 4 features"):
        frozen(linear(3, 4), linear(5, 2))  # type: ignore[layer-misfit]  # the point


# --- Half of backward --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        linear(3, 3),
        layer_norm(3),
        rms_norm(3),
        compose(linear(3, 4), (ReLU(), linear(4, 3))),
        residual(linear(3, 3), Tanh()),
        parallel(linear(3, 2), (linear(3, 2), Tanh())),
        checkpoint(linear(3, 3)),
    ],
    ids=repr,
)
def test_backward_input_is_the_second_half_of_backward(model: Model) -> None:
    model = initialize(key(0), model)
    x = normal(key(1), (5, 3))
    y, residuals = forward(model, x)
    grad = normal(key(2), tuple(y.shape))
    assert tree.equal(backward_input(model, residuals, grad), vjp(model, x, grad)[1])


def test_an_error_in_backward_input_says_where() -> None:
    model = initialize(key(0), compose(Tanh(), (ReLU(), linear(3, 2))))
    _, residuals = forward(model, torch.ones(5, 3))
    with pytest.raises(ValueError, match=r"Linear cannot be run backward .* not float32\[5, 7\]") as info:
        backward_input(model, residuals, torch.ones(5, 7))
    assert "in model[1][1]: Linear(" in info.value.__notes__[-1]
    with pytest.raises(ValueError, match=r"Linear cannot be run backward") as info:
        backward_input(model[1][1], residuals, torch.ones(5, 7))
    assert "Linear(" in info.value.__notes__[-1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda grad: 2 * grad, r"backward_input does not give what backward gives: x\[\d, \d\] is "),
        (lambda grad: grad[:1], r"backward_input does not give what backward gives: x is float64\[1, 3\] instead of"),
    ],
)
def test_check_vjp_finds_a_wrong_backward_input(wrong: Callable[[Tensor], Tensor], message: str) -> None:
    @attrs.frozen(eq=False)
    class Wrong(Layer[Tensor]):
        weight: Tensor

        @override
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.weight * x, x

        @override
        def backward(self, residuals: Tensor, grad: Tensor) -> tuple["Wrong", Tensor]:
            return Wrong((residuals * grad).sum()), self.weight * grad

        @override
        def backward_input(self, residuals: Tensor, grad: Tensor) -> Tensor:
            return wrong(self.weight * grad)

    with pytest.raises(AssertionError, match=message):
        check_vjp(Wrong(torch.tensor(2.0)), normal(key(0), (4, 3)))

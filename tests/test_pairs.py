"""Layers with two inputs or two outputs."""

from typing import Literal, assert_type

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fundl import adam, tree
from fundl.initialization import initialize
from fundl.layer import AnyLayer
from fundl.layers.activation import Tanh
from fundl.layers.bilinear import Bilinear, bilinear
from fundl.layers.dropout import Dropout, rekey
from fundl.layers.embedding import embedding
from fundl.layers.linear import Linear, linear
from fundl.layers.pairs import Add, Both, Concatenate, Duplicate, Multiply, Pipe, both, pipe
from fundl.layers.structure import Identity
from fundl.losses.regression import mse
from fundl.model import apply, backward_input, backward_params, compose, forward, output_shape, value_and_grad, vjp
from fundl.random import key, normal
from fundl.shapes import Shape

X1, X2 = normal(key(1), (8, 3)), normal(key(2), (8, 2))


# --- Pairs -------------------------------------------------------------------------------------------------------------


def test_both_runs_each_on_its_own_input() -> None:
    layer = initialize(key(0), both((linear(3, 4), Tanh()), linear(2, 5)))
    (y1, y2), residuals = forward(layer, (X1, X2))
    assert torch.equal(y1, apply(layer.first, X1))
    assert torch.equal(y2, apply(layer.second, X2))
    grad = normal(key(3), (8, 4)), normal(key(4), (8, 5))
    grads, grad_x = vjp(layer, (X1, X2), grad)
    assert tree.equal((grads.first, grad_x[0]), vjp(layer.first, X1, grad[0]))
    assert tree.equal((grads.second, grad_x[1]), vjp(layer.second, X2, grad[1]))
    assert tree.equal(backward_params(layer, residuals, grad), grads)
    assert tree.equal(backward_input(layer, residuals, grad), grad_x)


def test_both_takes_tokens() -> None:
    layer = initialize(key(0), both(embedding(5, 3), Identity()))
    grads, (grad_tokens, _) = vjp(layer, (torch.tensor([1, 4]), X1), (torch.ones(2, 3), X1))
    assert grads.first.weight.shape == (5, 3)
    assert torch.equal(grad_tokens, torch.zeros(2, dtype=torch.int64))


def test_a_model_of_two_inputs_learns() -> None:
    model = initialize(key(0), pipe(both(linear(3, 8), linear(2, 8)), Concatenate(), Tanh(), linear(16, 1)))
    target = (X1.sum(1) * X2[:, 0]).unsqueeze(1)
    optimizer = adam(0.05)
    state = optimizer.init(model)
    first, _ = value_and_grad(mse, model, (X1, X2), target)
    for _ in range(100):
        _, grads = value_and_grad(mse, model, (X1, X2), target)
        assert_type(grads.layers[2], Tanh)
        model, state = optimizer.step(grads, state, model)
    last, _ = value_and_grad(mse, model, (X1, X2), target)
    assert float(last) < 0.05 * float(first)


def test_pairs_also_run_in_a_plain_model() -> None:
    model = compose(Duplicate(), both(Tanh(), Identity()), Multiply())
    torch.testing.assert_close(apply(model, X1), X1 * X1.tanh())
    _, grad_x = vjp(model, X1, torch.ones_like(X1))
    torch.testing.assert_close(grad_x, X1.tanh() + X1 * (1 - X1.tanh() ** 2))


def test_dropout_in_a_pair_has_keys_of_its_own() -> None:
    layer = rekey(pipe(Duplicate(), both(Dropout(0.5), Dropout(0.5))), key(0))
    y1, y2 = apply(layer, torch.ones(64))
    assert not torch.equal(y1, y2)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Add(), r"Add takes two tensors of one shape, not of \(8, 3\) and \(8, 2\)"),
        (Multiply(), r"Multiply takes two tensors of one shape, not of \(8, 3\) and \(8, 2\)"),
        (Concatenate(0), r"Concatenate\(axis=0\) takes two tensors that .*, not of the shapes \(8, 3\) and \(8, 2\)"),
        (Concatenate(2), r"Concatenate\(axis=2\) takes two tensors that have this axis"),
    ],
    ids=repr,
)
def test_inputs_that_do_not_go_together_are_refused(layer: AnyLayer, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply(layer, (X1, X2))


@pytest.mark.parametrize(
    "layer", [Add(), Multiply(), Concatenate(), both(Tanh(), Tanh()), Bilinear(torch.ones(1, 3, 3), None)], ids=repr
)
@pytest.mark.parametrize("x", [X1, (X1,), (X1, X1, X1), (X1, None)], ids=["tensor", "one", "three", "none"])
def test_what_is_no_pair_is_refused(layer: AnyLayer, x: object) -> None:
    with pytest.raises(TypeError, match=r"takes a pair of tensors, \(x1, x2\), not "):
        apply(layer, x)


def test_both_says_where_an_error_is() -> None:
    layer = initialize(key(0), pipe(both(Tanh(), (Tanh(), linear(3, 1))), Add()))
    with pytest.raises(ValueError, match="Linear expects 3 features") as info:
        apply(layer, (X1, X2))
    assert ".second[1]" in info.value.__notes__[-1]
    with pytest.raises(TypeError, match="the model is the class Tanh"):
        both(Tanh, Tanh())  # type: ignore[type-var]  # the point
    with pytest.raises(ValueError, match="Linear"):
        both(Tanh(), (linear(2, 3), linear(4, 5)))  # type: ignore[layer-misfit]  # the point


# --- Pipes -------------------------------------------------------------------------------------------------------------


def test_a_pipe_is_its_layers() -> None:
    layer = initialize(key(0), pipe(both(linear(3, 4), linear(2, 4)), Multiply(), pipe(Tanh(), linear(4, 2))))
    y, residuals = forward(layer, (X1, X2))
    expected = apply(
        layer.layers[2].layers[1], torch.tanh(apply(layer.layers[0].first, X1) * apply(layer.layers[0].second, X2))
    )
    assert torch.equal(y, expected)
    grads, grad_x = vjp(layer, (X1, X2), y)
    assert tree.equal(backward_params(layer, residuals, y), grads)
    assert tree.equal(backward_input(layer, residuals, y), grad_x)
    assert [part.shape for part in grad_x] == [X1.shape, X2.shape]


def test_a_pipe_of_each_length() -> None:
    layers = Tanh(), Duplicate(), both(Tanh(), Tanh()), Add(), Tanh()
    x = X1
    for pipe_, expected in (
        (pipe(layers[0]), x.tanh()),
        (pipe(*layers[:4]), 2 * x.tanh().tanh()),
        (pipe(*layers), (2 * x.tanh().tanh()).tanh()),
    ):
        torch.testing.assert_close(apply(pipe_, x), expected)
    assert isinstance(apply(pipe(layers[0], layers[1]), x), tuple)
    assert isinstance(apply(pipe(layers[0], layers[1], layers[2]), x), tuple)


def test_a_pipe_is_typed() -> None:
    layer = pipe(both(Linear(torch.ones(1, 3), None), Linear(torch.ones(1, 2), None)), Add())
    assert_type(layer, Pipe[tuple[Tensor, Tensor], Tensor, Both[Linear, Linear], Add])
    assert_type(apply(layer, (X1, X2)), Tensor)
    grads, grad_x = vjp(layer, (X1, X2), torch.ones(8, 1))
    assert_type(grads.layers[0].first, Linear)
    assert_type(grad_x, tuple[Tensor, Tensor])


def test_only_layers_are_piped() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        pipe()  # type: ignore[call-overload]  # the point
    with pytest.raises(TypeError, match="layer 2 is the class Tanh"):
        pipe(Tanh(), Tanh)  # type: ignore[call-overload]  # the point


# --- Bilinear ----------------------------------------------------------------------------------------------------------


def test_bilinear_is_that_of_torch() -> None:
    def check(lead: list[int], in1: int, in2: int, out: int, bias: bool) -> None:
        layer = initialize(key(0), bilinear(in1, in2, out, bias=bias), dtype=torch.float64)
        reference = torch.nn.Bilinear(in1, in2, out, bias=bias, dtype=torch.float64)
        x1, x2, grad = (normal(key(place), (*lead, size), dtype=torch.float64) for place, size in enumerate((in1, in2, out)))
        with torch.no_grad():
            reference.weight.copy_(layer.weight)
            if layer.bias is not None:
                reference.bias.copy_(layer.bias)
        inputs = x1.clone().requires_grad_(), x2.clone().requires_grad_()
        y = reference(*inputs)
        torch.testing.assert_close(apply(layer, (x1, x2)), y.detach())
        wanted = torch.autograd.grad(y, (*inputs, *reference.parameters()), grad)
        grads, grad_x = vjp(layer, (x1, x2), grad)
        for got, expected in zip((*grad_x, *tree.leaves(grads)), wanted, strict=True):
            torch.testing.assert_close(got, expected)

    sizes = st.integers(1, 4)
    sweep = given(st.lists(st.integers(0, 3), min_size=1, max_size=3), sizes, sizes, sizes, st.booleans())
    settings(max_examples=30, deadline=None, derandomize=True)(sweep(check))()


def test_bilinear_of_two_vectors() -> None:
    layer = initialize(key(0), bilinear(3, 2, 4))
    assert apply(layer, (X1[0], X2[0])).shape == (4,)
    torch.testing.assert_close(apply(layer, (X1[0], X2[0])), apply(layer, (X1, X2))[0])


def test_bilinear_refuses_what_does_not_fit() -> None:
    layer = initialize(key(0), bilinear(3, 2, 4))
    with pytest.raises(ValueError, match=r"expects 3 and 2 features, but the shapes of the inputs are \(8, 2\) and \(8, 3\)"):
        apply(layer, (X2, X1))
    with pytest.raises(ValueError, match=r"differ in the last axis alone, but .* are \(8, 3\) and \(7, 2\)"):
        apply(layer, (X1, X2[:7]))
    with pytest.raises(TypeError, match=r"weight is torch\.float32, but the inputs are torch\.float64 and torch\.float32"):
        apply(layer, (X1.double(), X2))
    with pytest.raises(ValueError, match="in2_features must be at least 1, not 0"):
        bilinear(3, 0, 4)


def test_bilinear_knows_what_it_gives() -> None:
    assert_type(bilinear(3, 2, 4), Bilinear[Literal[4]])
    assert repr(output_shape(bilinear(3, 2, 4), Shape(...))) == "Shape(..., 4)"

"""Layers on each step of a sequence."""

from typing import Literal, assert_type

import pytest
import torch

from fundl import tree
from fundl.initialization import initialize
from fundl.layers.activation import Tanh
from fundl.layers.dropout import Dropout
from fundl.layers.embedding import embedding
from fundl.layers.linear import Linear, linear
from fundl.layers.masked import Masked, MeanOfPositions, from_masked
from fundl.layers.over_time import OverTime, over_time
from fundl.layers.structure import Flatten
from fundl.model import apply, backward_input, backward_params, compose, forward, output_shape, vjp
from fundl.random import key, normal
from fundl.shapes import Shape


def test_it_is_the_layers_at_each_step() -> None:
    layer = initialize(key(0), over_time(Flatten(), linear(12, 5), Tanh()))
    x, grad = normal(key(1), (4, 3, 3, 2, 2)), normal(key(2), (4, 3, 5))
    y, residuals = forward(layer, x)
    for step in range(3):
        torch.testing.assert_close(y[:, step], apply(layer.layers, x[:, step]))
    grads, grad_x = vjp(layer, x, grad)
    each = [vjp(layer.layers, x[:, step], grad[:, step]) for step in range(3)]
    torch.testing.assert_close(grad_x, torch.stack([of_step for _, of_step in each], 1))
    torch.testing.assert_close(grads.layers[1].weight, sum(of_step[1].weight for of_step, _ in each))
    assert tree.equal(backward_params(layer, residuals, grad), grads)
    assert torch.equal(backward_input(layer, residuals, grad), grad_x)


@pytest.mark.parametrize(("batch", "steps"), [(0, 3), (2, 0), (1, 1)])
def test_batches_and_sequences_of_any_length(batch: int, steps: int) -> None:
    layer = initialize(key(0), over_time(linear(3, 2)))
    x = torch.ones(batch, steps, 3)
    assert apply(layer, x).shape == (batch, steps, 2)
    assert vjp(layer, x, torch.ones(batch, steps, 2))[1].shape == x.shape


def test_tokens_and_views_are_taken() -> None:
    layer = initialize(key(0), over_time(embedding(7, 3)))
    tokens = torch.tensor([[1, 2, 6]]).expand(4, 3)
    assert apply(layer, tokens).shape == (4, 3, 3)
    x = normal(key(1), (3, 4, 5)).transpose(0, 1)
    assert torch.equal(apply(over_time(Tanh()), x), x.tanh())


def test_masked_batches_need_nothing_more() -> None:
    model = initialize(key(0), from_masked(over_time(Flatten(), linear(4, 3)), MeanOfPositions()))
    mask = torch.tensor([[True, False], [True, True]])
    x = normal(key(1), (2, 2, 2, 2))
    y = apply(model, Masked(x, mask))
    torch.testing.assert_close(y[0], apply(model.layers[0].layers, x[0, :1])[0])


def test_shapes() -> None:
    assert output_shape(over_time(Flatten(), linear(12, 5)), Shape(4, 3, 3, 2, 2)).sizes == (4, 3, 5)
    assert repr(Shape(*output_shape(over_time(linear(12, 5)), Shape(..., 12)).sizes)) == "Shape(..., 5)"
    with pytest.raises(ValueError, match=r"2.2 \(Linear\) expects 13 features but layer 2.1 \(Flatten\) gives 12 features"):
        output_shape((Tanh(), OverTime((Flatten(), linear(13, 5)))), Shape(4, 3, 3, 2, 2))


def test_what_is_wrong_is_told() -> None:
    with pytest.raises(ValueError, match=r"over_time needs sequences, of shape \(B, T, ...\), but the input's shape is \(3,\)"):
        apply(over_time(Tanh()), torch.ones(3))
    with pytest.raises(ValueError, match=r"12 for 3 steps of 4 sequences, but their output's shape is \(24,\)"):
        apply(over_time(Flatten(0)), torch.ones(4, 3, 2))
    with pytest.raises(ValueError, match="at least one layer"):
        over_time()
    model = initialize(key(0), compose(Tanh(), over_time(Tanh(), linear(3, 3))))
    with pytest.raises(ValueError, match="Linear expects 3 features") as info:
        apply(model, torch.ones(4, 3, 2))
    assert info.value.__notes__[-1].startswith("in model[1]")


def test_it_is_typed_part_by_part() -> None:
    layer = over_time(Linear(torch.eye(2), None), Dropout(0.5))
    grads, _ = vjp(layer, torch.ones(1, 2, 2), torch.ones(1, 2, 2))
    assert_type(grads, OverTime[Linear, Dropout])
    assert_type(over_time(linear(2, 3)), OverTime[Linear[Literal[2], Literal[3]]])

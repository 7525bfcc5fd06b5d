"""Cells of recurrent layers; and where the states and biases of recurrent layers begin."""

import re

import pytest
import torch

from fundl import (
    LSTMCell,
    LSTMState,
    apply,
    apply_updates,
    assert_trees_close,
    backward,
    forward,
    gru_cell,
    initialize,
    key,
    lstm,
    lstm_cell,
    rnn_cell,
    stateful,
    tree,
    vjp,
)
from fundl._common.place import Place
from tests.samples import normal, with_values


def test_a_cell_is_a_step_of_its_layer() -> None:
    """Steps of cells, and of their vjp, one by one are the layer's over the sequence, to the rounding."""
    layer = with_values(lstm(3, 4))
    cell = LSTMCell(layer.layers[0][0])
    x = normal(2, 5, 3)
    state, kept = cell.zeros(2), []
    for t in range(5):
        state, residuals = forward(cell, (x[:, t], state))
        kept.append(residuals)
    y, last = apply(stateful(layer), (x, stateful(layer).zeros(2)))
    assert_trees_close(state, LSTMState(last.hidden[:, 0], last.cell[:, 0]), rtol=1e-12, atol=1e-12)
    cotangent = normal(2, 4)
    grad_y = torch.zeros_like(y)
    grad_y[:, -1] = cotangent
    expected, grad_x = vjp(layer, x, grad_y)
    grad, total = LSTMState(cotangent, torch.zeros_like(cotangent)), None
    for t in reversed(range(5)):
        grads, (grad_step, grad) = backward(cell, kept[t], grad)
        assert_trees_close(grad_step, grad_x[:, t], rtol=1e-10, atol=1e-12)
        total = grads if total is None else tree.map(torch.add, total, grads)
    assert total is not None
    assert_trees_close(total.weights, expected.layers[0][0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cells_of_other_inputs_are_told(dtype: torch.dtype) -> None:
    cell = initialize(key(0), gru_cell(3, 4), dtype=dtype)
    x = torch.ones(2, 3, dtype=dtype)
    for given, error, message in (
        (x, TypeError, "the input of GRUCell is (x, state), a tensor and a state, not"),
        ((x, LSTMState(x, x)), TypeError, "the state of GRUCell is a tensor, not LSTMState("),
        ((x[None], cell.zeros(1)), ValueError, "GRUCell takes the input of one step, of shape (B, in), not (1, 2, 3)"),
        ((x, cell.zeros(3)), ValueError, "GRUCell expects a state of shape (2, 4), but it is of shape (3, 4)"),
        ((x, cell.zeros(2).double()), TypeError, "the state of GRUCell is torch.float64, but the input is"),
        ((x[:, :2], cell.zeros(2)), ValueError, "GRUCell expects 3 features, but the input's shape is (2, 2)"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            apply(cell, given)  # type: ignore[misc]  # the mistakes under test
    with pytest.raises(TypeError, match=re.escape("the state of LSTMCell is LSTMState(hidden, cell), not float32[2, 4]")):
        apply(initialize(key(0), lstm_cell(3, 4)), (x, torch.ones(2, 4)))  # type: ignore[misc]  # likewise
    with pytest.raises(ValueError, match="RNNCell's activation must be 'tanh' or 'relu', not 'gelu'"):
        rnn_cell(3, 4, activation="gelu")  # type: ignore[arg-type]  # likewise


def test_cells_may_begin_by_remembering() -> None:
    usual, remembering = (initialize(key(0), lstm(3, 4, depth=2, forget_bias=value)) for value in (None, 1.5))
    for before, after in zip(usual.layers, remembering.layers, strict=True):
        for old, new in zip(before, after, strict=True):
            assert old.bias_ih is not None
            assert new.bias_ih is not None
            assert new.bias_hh is not None
            forget = slice(4, 8)
            torch.testing.assert_close(new.bias_ih[forget] + new.bias_hh[forget], torch.full((4,), 1.5))
            others = [*range(4), *range(8, 16)]
            assert torch.equal(old.bias_ih[others], new.bias_ih[others])
            assert torch.equal(old.weight_ih, new.weight_ih)
    cell = initialize(key(0), lstm_cell(3, 4, forget_bias=2.0)).weights
    assert cell.bias_ih is not None
    assert cell.bias_ih[4:8].tolist() == [2.0] * 4
    with pytest.raises(ValueError, match=r"forget_bias=1\.0 is where a bias begins, but bias=False"):
        lstm(3, 4, bias=False, forget_bias=1.0)


def test_first_states_are_trained() -> None:
    """They begin as zeros, are where a run a step at a time begins, and have no part where a state is given."""
    x = normal(3, 5, 2)
    layer = initialize(key(0), lstm(2, 4, learned_state=True), dtype=torch.float64)
    plain = initialize(key(0), lstm(2, 4), dtype=torch.float64)
    assert apply(layer, x).shape == (3, 5, 4)
    assert_trees_close(apply(layer, x), apply(plain, x), rtol=1e-12, atol=1e-12)
    grads, _ = vjp(layer, x, torch.ones(3, 5, 4, dtype=torch.float64))
    moved = apply_updates(layer, grads)
    recurrence = moved.layers[0][0]
    assert recurrence.first_hidden is not None
    assert recurrence.first_cell is not None
    assert recurrence.first_hidden.abs().min() > 0
    assert recurrence.first_cell.abs().min() > 0
    first = stateful(moved).first(3)
    assert_trees_close(apply(stateful(moved), (x, first))[0], apply(moved, x), rtol=1e-12, atol=1e-12)
    given, _ = vjp(stateful(moved), (x, first), (torch.ones(3, 5, 4, dtype=torch.float64), first))
    assert_trees_close(given.layer.layers[0][0].first_hidden, torch.zeros(4, dtype=torch.float64), rtol=0, atol=0)
    cache, outputs = moved.first_cache(3, 5), []
    for t in range(5):
        y, cache = moved.step(x[:, t : t + 1], cache, Place(torch.full((3, 1), t), 5))
        outputs.append(y)
    assert_trees_close(torch.cat(outputs, 1), apply(moved, x), rtol=1e-12, atol=1e-12)

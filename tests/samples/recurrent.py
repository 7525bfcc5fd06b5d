"""Sample layers: recurrent ones."""

from collections.abc import Callable
from typing import Final, TypeAlias

import torch
from torch import Tensor

from fundl import (
    GRU,
    LSTM,
    RNN,
    LSTMState,
    Masked,
    Recurrence,
    from_masked,
    gru,
    gru_cell,
    lstm,
    lstm_cell,
    rnn,
    rnn_cell,
    stateful,
    with_mask,
)
from tests.samples.masked import MASK
from tests.samples.table import normal, sample

States: TypeAlias = tuple[Tensor, ...]
Cell: TypeAlias = Callable[[Recurrence, Tensor, States], States]


def affine(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, weight, bias)


def tanh_cell(p: Recurrence, x: Tensor, state: States) -> States:
    return (torch.tanh(affine(p.weight_ih, p.bias_ih, x) + affine(p.weight_hh, p.bias_hh, state[0])),)


def relu_cell(p: Recurrence, x: Tensor, state: States) -> States:
    return (torch.relu(affine(p.weight_ih, p.bias_ih, x) + affine(p.weight_hh, p.bias_hh, state[0])),)


def gru_cell_formula(p: Recurrence, x: Tensor, state: States) -> States:
    (h,) = state
    (ir, iz, i_n), (hr, hz, hn) = affine(p.weight_ih, p.bias_ih, x).chunk(3, 1), affine(p.weight_hh, p.bias_hh, h).chunk(3, 1)
    z = torch.sigmoid(iz + hz)
    return ((1 - z) * torch.tanh(i_n + torch.sigmoid(ir + hr) * hn) + z * h,)


def lstm_cell_formula(p: Recurrence, x: Tensor, state: States) -> States:
    h, c = state
    i, f, g, o = (affine(p.weight_ih, p.bias_ih, x) + affine(p.weight_hh, p.bias_hh, h)).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def unrolled(
    cell: Cell, layers: tuple[tuple[Recurrence, ...], ...], x: Tensor, states: list[States], mask: Tensor | None = None
) -> tuple[Tensor, list[States]]:
    """The recurrences, step by step: the output, and the last state of each."""
    last: list[States] = []
    for layer in layers:
        outputs: list[Tensor] = []
        for direction, p in enumerate(layer):
            state = states[len(last)]
            steps = [torch.zeros_like(state[0])] * x.shape[1]
            for t in sorted(range(x.shape[1]), reverse=direction == 1):
                after = cell(p, x[:, t], state)
                real = torch.ones(len(x), 1, dtype=torch.bool) if mask is None else mask[:, t, None]
                steps[t] = torch.where(real, after[0], 0)
                state = tuple(torch.where(real, new, old) for new, old in zip(after, state, strict=True))
            outputs.append(torch.stack(steps, 1))
            last.append(state)
        x = torch.cat(outputs, 2)
    return x, last


def from_learned(cell: Cell, p: RNN | GRU | LSTM, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """From the states that the recurrences have learned."""
    both = [(r.first_hidden, r.first_cell) for layer in p.layers for r in layer]
    states = [tuple(part.expand(len(x), -1) for part in parts if part is not None) for parts in both]
    return unrolled(cell, p.layers, x, states, mask)[0]


def from_zeros(cell: Cell, p: RNN | GRU | LSTM, x: Tensor, mask: Tensor | None = None) -> Tensor:
    zeros = torch.zeros(len(x), p.layers[0][0].weight_hh.shape[1], dtype=x.dtype)
    count = 2 if cell is lstm_cell_formula else 1
    return unrolled(cell, p.layers, x, [(zeros,) * count] * 4, mask)[0]


def from_state(cell: Cell, p: RNN | GRU, x: Tensor, state: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    output, last = unrolled(cell, p.layers, x, [(part,) for part in state.unbind(1)], mask)
    return output, torch.stack([part for (part,) in last], 1)


def from_lstm_state(p: LSTM, x: Tensor, state: LSTMState, mask: Tensor | None = None) -> tuple[Tensor, LSTMState]:
    states: list[States] = list(zip(state.hidden.unbind(1), state.cell.unbind(1), strict=True))
    output, last = unrolled(lstm_cell_formula, p.layers, x, states, mask)
    return output, LSTMState(*(torch.stack(parts, 1) for parts in zip(*last, strict=True)))


X: Final = normal(5, 4, 3) / 2
OF_HIDDEN: Final = 5 * 4 * 2 * 8
"""Bytes of one number for each element of the output of one recurrence."""

H: Final = normal(5, 2)

SAMPLES: Final = (
    sample("RNNCell", rnn_cell(3, 2), (X[:, 0], H), lambda p, given: tanh_cell(p.weights, given[0], given[1:])[0]),
    sample(
        "RNNCell, relu, no bias",
        rnn_cell(3, 2, activation="relu", bias=False),
        (X[:, 0], H),
        lambda p, given: relu_cell(p.weights, given[0], given[1:])[0],
    ),
    sample(
        "GRUCell",
        gru_cell(3, 2),
        (X[:, 0], H),
        lambda p, given: gru_cell_formula(p.weights, given[0], given[1:])[0],
        kept=OF_HIDDEN,
    ),
    sample(
        "LSTMCell",
        lstm_cell(3, 2),
        (X[:, 0], LSTMState(H, H + 1)),
        lambda p, given: LSTMState(*lstm_cell_formula(p.weights, given[0], (given[1].hidden, given[1].cell))),
        kept=OF_HIDDEN,
    ),
    sample("RNN, learned state", rnn(3, 2, learned_state=True), X, lambda p, x: from_learned(tanh_cell, p, x)),
    sample(
        "GRU, learned state, both directions",
        gru(3, 2, bidirectional=True, learned_state=True),
        X,
        lambda p, x: from_learned(gru_cell_formula, p, x),
        kept=2 * 4 * OF_HIDDEN,
    ),
    sample(
        "LSTM, learned state, deep, mask",
        with_mask(lstm(3, 2, depth=2, learned_state=True), MASK),
        X,
        lambda p, x: from_learned(lstm_cell_formula, p, x, MASK),
        batched=False,
        kept=(2 * 6 + 1) * OF_HIDDEN,
    ),
    sample("RNN", rnn(3, 2), X, lambda p, x: from_zeros(tanh_cell, p, x)),
    sample("RNN, relu, no bias", rnn(3, 2, activation="relu", bias=False), X, lambda p, x: from_zeros(relu_cell, p, x)),
    sample(
        "RNN, deep, both directions",
        rnn(3, 2, depth=2, bidirectional=True),
        X,
        lambda p, x: from_zeros(tanh_cell, p, x),
        kept=2 * OF_HIDDEN,
    ),
    sample(
        "RNN, mask",
        with_mask(rnn(3, 2, bidirectional=True), MASK),
        X,
        lambda p, x: from_zeros(tanh_cell, p, x, MASK),
        batched=False,
        kept=2 * OF_HIDDEN,
    ),
    sample("GRU", gru(3, 2), X, lambda p, x: from_zeros(gru_cell_formula, p, x), kept=4 * OF_HIDDEN),
    sample("GRU, no bias", gru(3, 2, bias=False), X, lambda p, x: from_zeros(gru_cell_formula, p, x), kept=4 * OF_HIDDEN),
    sample(
        "GRU, deep, both directions",
        gru(3, 2, depth=2, bidirectional=True),
        X,
        lambda p, x: from_zeros(gru_cell_formula, p, x),
        kept=(4 * 4 + 2) * OF_HIDDEN,
    ),
    sample(
        "GRU, mask",
        with_mask(gru(3, 2, bidirectional=True), MASK),
        X,
        lambda p, x: from_zeros(gru_cell_formula, p, x, MASK),
        batched=False,
        kept=2 * 5 * OF_HIDDEN,
    ),
    sample("LSTM", lstm(3, 2), X, lambda p, x: from_zeros(lstm_cell_formula, p, x), kept=5 * OF_HIDDEN),
    sample("LSTM, no bias", lstm(3, 2, bias=False), X, lambda p, x: from_zeros(lstm_cell_formula, p, x), kept=5 * OF_HIDDEN),
    sample(
        "LSTM, deep, both directions",
        lstm(3, 2, depth=2, bidirectional=True),
        X,
        lambda p, x: from_zeros(lstm_cell_formula, p, x),
        kept=(4 * 5 + 2) * OF_HIDDEN,
    ),
    sample(
        "LSTM, mask",
        with_mask(lstm(3, 2, bidirectional=True), MASK),
        X,
        lambda p, x: from_zeros(lstm_cell_formula, p, x, MASK),
        batched=False,
        kept=2 * 6 * OF_HIDDEN,
    ),
    sample(
        "LSTM in from_masked",
        from_masked(lstm(3, 2)),
        Masked(X, MASK),
        lambda p, x: from_zeros(lstm_cell_formula, p.layers[0], x.values, x.mask),
        kept=6 * OF_HIDDEN,
    ),
    sample(
        "stateful RNN",
        stateful(rnn(3, 2)),
        (X, normal(5, 1, 2)),
        lambda p, given: from_state(tanh_cell, p.layer, *given),
    ),
    sample(
        "stateful GRU, deep, both directions",
        stateful(gru(3, 2, depth=2, bidirectional=True)),
        (X, normal(5, 4, 2)),
        lambda p, given: from_state(gru_cell_formula, p.layer, *given),
        kept=(4 * 4 + 2) * OF_HIDDEN,
    ),
    sample(
        "stateful GRU, mask",
        with_mask(stateful(gru(3, 2, bidirectional=True)), MASK),
        (X, normal(5, 2, 2)),
        lambda p, given: from_state(gru_cell_formula, p.layer, *given, mask=MASK),
        batched=False,
        kept=2 * 5 * OF_HIDDEN,
    ),
    sample(
        "stateful LSTM, deep, both directions, mask",
        with_mask(stateful(lstm(3, 2, depth=2, bidirectional=True)), MASK),
        (X, LSTMState(normal(5, 4, 2), normal(5, 4, 2) + 1)),
        lambda p, given: from_lstm_state(p.layer, *given, mask=MASK),
        batched=False,
        kept=(4 * 6 + 2) * OF_HIDDEN,
    ),
    sample(
        "stateful LSTM",
        stateful(lstm(3, 2)),
        (X, LSTMState(normal(5, 1, 2), normal(5, 1, 2) + 1)),
        lambda p, given: from_lstm_state(p.layer, *given),
        kept=5 * OF_HIDDEN,
    ),
)

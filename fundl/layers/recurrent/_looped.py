"""Sweeps as loops that a trace keeps: the same recurrences as in `_sweeps`, a step of which writes to nothing."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fundl._common import kernels, products
from fundl._common.looping import Loop, Tensors
from fundl.layers.recurrent import _sweeps
from fundl.layers.recurrent.recurrence import Activation, Kept, States, Sweep, SweptBack

# --- What all have in common -------------------------------------------------------------------------------------------


def _masks(sweep: Sweep) -> list[Tensor]:
    """What a step is given beside its own: where it is real."""
    return [] if sweep.mask is None else [sweep.mask]


def _unless_padding(real: Sequence[Tensor], after: Tensor, before: Tensor) -> Tensor:
    return torch.where(real[0], after, before) if real else after


def _own_grads(sweep: Sweep, grad: Tensor) -> Tensor:
    """The gradients with respect to the hidden state after each step that the output gives."""
    return grad if sweep.mask is None else torch.where(sweep.mask, grad, 0)


def _last_grad(sweep: Sweep, grad_last: States | None, index: int) -> Tensor:
    return torch.zeros_like(sweep.start(index)) if grad_last is None else grad_last[index]


def _passed(real: Sequence[Tensor], grad: Tensor) -> Tensor | int:
    """What the state before a step has of the gradient after it where the step is padding."""
    return torch.where(real[0], 0, grad) if real else 0


def _masked(sweep: Sweep, x: Tensor) -> Tensor:
    if sweep.mask is None:
        return x
    return x * (sweep.mask if x.ndim == sweep.mask.ndim else sweep.mask.unsqueeze(2))


# --- RNN ---------------------------------------------------------------------------------------------------------------


def rnn_forward(loop: Loop, sweep: Sweep, activation: Activation) -> tuple[Tensor, States, Kept]:
    """See `_sweeps.rnn_forward`."""

    def step(carried: Tensors, rows: Tensors, fixed: Tensors) -> tuple[Tensors, Tensors]:
        (before,), (gates, *real), (recurrent,) = carried, rows, fixed
        sums = torch.addmm(gates, before, recurrent)
        after = _unless_padding(real, torch.tanh(sums) if activation == "tanh" else torch.relu(sums), before)
        return (after,), (after,)

    gates = _sweeps.from_input(sweep, _sweeps.both_biases(sweep.weights))
    rows, fixed = [gates, *_masks(sweep)], [sweep.weights.weight_hh.t()]
    last, (hiddens,) = loop(step, [sweep.start(0)], rows, fixed, reverse=sweep.reverse)
    return _sweeps.output_of(sweep, hiddens), tuple(last), (hiddens,)


def rnn_backward(
    loop: Loop, sweep: Sweep, kept: Kept, grad: Tensor, grad_last: States | None, *, activation: Activation
) -> SweptBack:
    """See `_sweeps.rnn_backward`."""

    def step(carried: Tensors, rows: Tensors, fixed: Tensors) -> tuple[Tensors, Tensors]:
        (later,), (own, derivative, *real), (weight,) = carried, rows, fixed
        grad_hidden = own + later
        d = derivative * grad_hidden
        return (torch.mm(d, weight) + _passed(real, grad_hidden),), (d,)

    hidden = kept[0]
    derivative = _masked(sweep, 1 - hidden * hidden if activation == "tanh" else (hidden > 0).to(hidden.dtype))
    rows, fixed = [_own_grads(sweep, grad), derivative, *_masks(sweep)], [sweep.weights.weight_hh]
    state, (d,) = loop(step, [_last_grad(sweep, grad_last, 0)], rows, fixed, reverse=not sweep.reverse)
    return _sweeps.swept_back(sweep, kept, d, d, tuple(state))


# --- GRU ---------------------------------------------------------------------------------------------------------------


def gru_forward(loop: Loop, sweep: Sweep) -> tuple[Tensor, States, Kept]:
    """See `_sweeps.gru_forward`."""
    weights = sweep.weights
    size = weights.weight_hh.shape[1]

    def step(carried: Tensors, rows: Tensors, fixed: Tensors) -> tuple[Tensors, Tensors]:
        (before,), (gates, *real), (weight, *bias) = carried, rows, fixed
        recurrent = products.linear(before, weight, bias[0] if bias else None)
        from_hidden, q = recurrent.split_with_sizes((2 * size, size), 1)
        from_input, new = gates.split_with_sizes((2 * size, size), 1)
        r, z = torch.sigmoid(from_input + from_hidden).split_with_sizes((size, size), 1)
        n = torch.tanh(new + r * q)
        after = _unless_padding(real, torch.lerp(n, before, z), before)
        return (after,), (after, torch.cat((r, z, n), 1), q.clone())

    fixed = [weights.weight_hh, *([] if weights.bias_hh is None else [weights.bias_hh])]
    rows = [_sweeps.from_input(sweep, weights.bias_ih), *_masks(sweep)]
    last, (hiddens, gates, scaled) = loop(step, [sweep.start(0)], rows, fixed, reverse=sweep.reverse)
    return _sweeps.output_of(sweep, hiddens), tuple(last), (hiddens, gates, scaled)


def gru_backward(loop: Loop, sweep: Sweep, kept: Kept, grad: Tensor, grad_last: States | None) -> SweptBack:
    """See `_sweeps.gru_backward`."""

    def step(carried: Tensors, rows: Tensors, fixed: Tensors) -> tuple[Tensors, Tensors]:
        (later,), (own, derivative, z, *real), (weight,) = carried, rows, fixed
        grad_hidden = own + later
        d = (derivative * grad_hidden.unsqueeze(1)).flatten(1)
        before = torch.mm(d, weight) + (torch.where(real[0], z, 1) if real else z) * grad_hidden
        return (before,), (d, grad_hidden)

    hidden, gates, q = kept
    size = q.shape[2]
    r, z, n = gates.split_with_sizes((size, size, size), 2)
    to_new = kernels.tanh_backward(1 - z, n)
    to_update = kernels.sigmoid_backward(_sweeps.states_before(sweep, hidden, 0) - n, z)
    derivative = torch.stack((kernels.sigmoid_backward(to_new * q, r), to_update, to_new * r), 2)
    rows = [_own_grads(sweep, grad), _masked(sweep, derivative), z, *_masks(sweep)]
    start, fixed = [_last_grad(sweep, grad_last, 0)], [sweep.weights.weight_hh]
    state, (d, grad_hidden) = loop(step, start, rows, fixed, reverse=not sweep.reverse)
    d_input = torch.cat((d.narrow(2, 0, 2 * size), _masked(sweep, to_new) * grad_hidden), 2)
    return _sweeps.swept_back(sweep, kept, d_input, d, tuple(state))


# --- LSTM --------------------------------------------------------------------------------------------------------------


def lstm_forward(loop: Loop, sweep: Sweep) -> tuple[Tensor, States, Kept]:
    """See `_sweeps.lstm_forward`."""
    size = sweep.weights.weight_hh.shape[1]

    def step(carried: Tensors, rows: Tensors, fixed: Tensors) -> tuple[Tensors, Tensors]:
        (hidden, cell), (gates, *real), (recurrent,) = carried, rows, fixed
        i_f, g, o = torch.addmm(gates, hidden, recurrent).split_with_sizes((2 * size, size, size), 1)
        i_f, g, o = torch.sigmoid(i_f), torch.tanh(g), torch.sigmoid(o)
        i, f = i_f.split_with_sizes((size, size), 1)
        after = torch.addcmul(f * cell, i, g)
        given = o * torch.tanh(after)
        hidden, cell = _unless_padding(real, given, hidden), _unless_padding(real, after, cell)
        return (hidden, cell), (hidden, torch.cat((i_f, g, o), 1), cell)

    gates = _sweeps.from_input(sweep, _sweeps.both_biases(sweep.weights))
    start, fixed = [sweep.start(0), sweep.start(1)], [sweep.weights.weight_hh.t()]
    last, kept = loop(step, start, [gates, *_masks(sweep)], fixed, reverse=sweep.reverse)
    return _sweeps.output_of(sweep, kept[0]), tuple(last), tuple(kept)


def lstm_backward(loop: Loop, sweep: Sweep, kept: Kept, grad: Tensor, grad_last: States | None) -> SweptBack:
    """See `_sweeps.lstm_backward`."""

    def step(carried: Tensors, rows: Tensors, fixed: Tensors) -> tuple[Tensors, Tensors]:
        (later, later_cell), (own, derivative, to_cell, f, *real), (weight,) = carried, rows, fixed
        grad_hidden = own + later
        grad_cell = torch.addcmul(later_cell, grad_hidden, to_cell)
        d = (derivative * torch.stack((grad_cell, grad_cell, grad_cell, grad_hidden), 1)).flatten(1)
        before = torch.mm(d, weight) + _passed(real, grad_hidden)
        return (before, grad_cell * (torch.where(real[0], f, 1) if real else f)), (d,)

    _, gates, cells = kept
    size = cells.shape[2]
    i, f, g, o = gates.split_with_sizes((size, size, size, size), 2)
    tanh_c = torch.tanh(cells)
    to_input, to_forget = (
        kernels.sigmoid_backward(g, i),
        kernels.sigmoid_backward(_sweeps.states_before(sweep, cells, 1), f),
    )
    derivative = torch.stack((to_input, to_forget, kernels.tanh_backward(i, g), kernels.sigmoid_backward(tanh_c, o)), 2)
    to_cell = _masked(sweep, kernels.tanh_backward(o, tanh_c))
    rows = [_own_grads(sweep, grad), _masked(sweep, derivative), to_cell, f, *_masks(sweep)]
    start, fixed = [_last_grad(sweep, grad_last, index) for index in (0, 1)], [sweep.weights.weight_hh]
    state, (d,) = loop(step, start, rows, fixed, reverse=not sweep.reverse)
    return _sweeps.swept_back(sweep, kept, d, d, tuple(state))

"""Sweeps: one recurrence over the steps of a batch of sequences, forward, and backward through time.

Inside, sequences are of shape (T, B, ...): what belongs to one step lies together. A recurrence of G gates over H hidden
features has the parameters W (G H, in) and U (G H, H), and biases b and v of G H, gate below gate. What can be said of all
steps at once is computed at once: in forward x W^T + b, a matrix product before the loop; in backward the derivatives of all
gates, before a loop in which two to five operations a step are left, and after it a matrix product each for

    grad_W = sum_t d_t^T x_t,    grad_U = sum_t d_t^T h_{t-1},    grad_b = grad_v = sum_t d_t,    grad_x_t = d_t W

with d_t (B, G H) the gradient with respect to the gates before their activation.

A step that the mask calls padding leaves the state as it is, and gives 0. What is written to in place here was made here, and
nobody else has it yet.
"""

import attrs
import torch
from torch import Tensor

from fundl._common import kernels, products, recurrent_kernels
from fundl._common.fused_cells import cells_run
from fundl.layers.recurrent import _whole
from fundl.layers.recurrent.recurrence import Activation, Kept, Recurrence, States, Sweep, SweptBack

# --- What all have in common -------------------------------------------------------------------------------------------


def _rows(x: Tensor) -> Tensor:
    """All steps of all sequences, one below the other: (T B, ...)."""
    return x.flatten(0, 1)


def from_input(sweep: Sweep, bias: Tensor | None) -> Tensor:
    """What the inputs give to the gates of all steps: x W^T + bias, (T, B, G H), fresh."""
    gates = products.linear(_rows(sweep.x), sweep.weights.weight_ih, bias)
    return gates.view(*sweep.x.shape[:2], gates.shape[1])


def both_biases(weights: Recurrence) -> Tensor | None:
    return None if weights.bias_ih is None or weights.bias_hh is None else weights.bias_ih + weights.bias_hh


def _in_time(sweep: Sweep, found: list[Tensor], like: Tensor) -> Tensor:
    """What was found of each step, in the order of forward, as one tensor (T, B, H)."""
    if not found:
        return like.new_empty((0, *like.shape))
    return torch.stack(found[::-1] if sweep.reverse else found)


def _put(sweep: Sweep, found: list[Tensor], into: Tensor) -> None:
    """Put what cells found of each step, in the order of forward, in the place of what they were given."""
    if found:
        torch.stack(found[::-1] if sweep.reverse else found, out=into)


def output_of(sweep: Sweep, hidden: Tensor) -> Tensor:
    return hidden if sweep.mask is None else torch.where(sweep.mask, hidden, 0)


def states_before(sweep: Sweep, after: Tensor, index: int) -> Tensor:
    """What there was before each step, from what there was after it, (T, B, H)."""
    if not len(after):
        return after
    start = sweep.start(index).unsqueeze(0)
    return torch.cat((after[1:], start) if sweep.reverse else (start, after[:-1]))


def _grad_hidden(sweep: Sweep, grad: Tensor, grad_last: States | None) -> list[Tensor]:
    """The gradients with respect to the hidden state after each step, and at T before the first, all fresh.

    They are what the output and the state after the last step give: backward adds what comes from later steps.
    """
    own = grad.clone(memory_format=torch.contiguous_format) if sweep.mask is None else torch.where(sweep.mask, grad, 0)
    grads = [*own.unbind(0), own.new_zeros(own.shape[1:])]
    if grad_last is not None:
        grads[[len(own), *sweep.order()][-1]].add_(grad_last[0])
    return grads


def _passed(sweep: Sweep, like: Tensor) -> Tensor | None:
    """1 where a step is padding, and the state passes, (T, B, 1)."""
    return None if sweep.mask is None else (~sweep.mask).to(like.dtype)


def swept_back(sweep: Sweep, kept: Kept, d: Tensor, d_hidden: Tensor, state: States) -> SweptBack:
    """What follows from the gradients with respect to the gates: a matrix product for each parameter, over all steps.

    d (T, B, G H) is with respect to what the input gives to the gates, d_hidden with respect to what the hidden state gives to
    them: the same, but for a GRU.
    """
    weights, rows = sweep.weights, _rows(d)
    rows_hidden = rows if d_hidden is d else _rows(d_hidden)

    def grads() -> Recurrence:
        grad_bias = None if weights.bias_ih is None else rows.sum(0)
        return attrs.evolve(
            weights,
            weight_ih=torch.mm(rows.t(), _rows(sweep.x)),
            weight_hh=torch.mm(rows_hidden.t(), _rows(states_before(sweep, kept[0], 0))),
            bias_ih=grad_bias,
            bias_hh=grad_bias if d_hidden is d or grad_bias is None else rows_hidden.sum(0),
        )

    def grad_x() -> Tensor:
        return products.matmul(rows, weights.weight_ih).view(*d.shape[:2], weights.weight_ih.shape[1])

    return SweptBack(grads, grad_x, state)


# --- RNN ---------------------------------------------------------------------------------------------------------------


def rnn_forward(sweep: Sweep, activation: Activation) -> tuple[Tensor, States, Kept]:
    """Output, last state, and what backward needs: the hidden states, h = activation(W x + b + U h' + v)."""
    return _whole.cudnn_forward(sweep, activation) if _whole.in_cudnn(sweep, activation) else _rnn_steps(sweep, activation)


def _rnn_steps(sweep: Sweep, activation: Activation) -> tuple[Tensor, States, Kept]:
    hiddens = from_input(sweep, both_biases(sweep.weights))
    hidden, recurrent = sweep.start(0), sweep.weights.weight_hh.t()
    steps = hiddens.unbind(0)
    for t in sweep.order():
        before, hidden = hidden, _activated(steps[t].addmm_(hidden, recurrent), activation)
        if sweep.mask is not None:
            hidden.copy_(torch.where(sweep.mask[t], hidden, before))
    return output_of(sweep, hiddens), (hidden,), (hiddens,)


def _activated(x: Tensor, activation: Activation) -> Tensor:
    """The activation of x, in its place."""
    return x.tanh_() if activation == "tanh" else x.relu_()


def rnn_backward(sweep: Sweep, kept: Kept, grad: Tensor, grad_last: States | None, *, activation: Activation) -> SweptBack:
    """Backward through time: d = grad_h activation', and U^T d is added to grad_h of the step before."""
    if len(kept) == _whole.KEPT_FOR_CUDNN and _whole.in_cudnn(sweep, activation, grad, *(grad_last or ())):
        return _whole.cudnn_backward(sweep, kept, grad, grad_last, kind=activation)
    hidden = kept[0]
    d = 1 - hidden * hidden if activation == "tanh" else (hidden > 0).to(hidden.dtype)
    d, passed = d if sweep.mask is None else d * sweep.mask, _passed(sweep, d)
    grad_hidden = _grad_hidden(sweep, grad, grad_last)
    for t, before in sweep.order_back():
        grad_hidden[before].addmm_(d[t].mul_(grad_hidden[t]), sweep.weights.weight_hh)
        if passed is not None:
            grad_hidden[before].addcmul_(grad_hidden[t], passed[t])
    return swept_back(sweep, kept, d, d, (grad_hidden[-1],))


# --- GRU ---------------------------------------------------------------------------------------------------------------


def gru_forward(sweep: Sweep) -> tuple[Tensor, States, Kept]:
    """Output, last state, and what backward needs: the hidden states, the gates, and q.

    (r, z) = sigmoid(W x + b + U h' + v), n = tanh(W x + b + r q), q = U h' + v, h = (1 - z) n + z h', h' from the step before.
    """
    return _whole.cudnn_forward(sweep, "gru") if _whole.in_cudnn(sweep, "gru") else _gru_steps(sweep)


def _gru_steps(sweep: Sweep) -> tuple[Tensor, States, Kept]:
    weights, hidden = sweep.weights, sweep.start(0)
    gates, size = from_input(sweep, weights.bias_ih), weights.weight_hh.shape[1]
    reset_update, new = (part.unbind(0) for part in gates.split_with_sizes((2 * size, size), 2))
    hiddens: list[Tensor] = []
    scaled: list[Tensor] = []
    activated: list[Tensor] = []
    in_cells = cells_run(gates, weights.weight_hh, hidden)
    for t in sweep.order():
        recurrent = products.linear(hidden, weights.weight_hh, weights.bias_hh)
        from_hidden, q = recurrent.split_with_sizes((2 * size, size), 1)
        if in_cells:
            after, workspace = recurrent_kernels.gru_cell(gates[t], recurrent, hidden, None, None)
            activated.append(workspace.narrow(1, 0, 3 * size))
        else:
            r, z = reset_update[t].add_(from_hidden).sigmoid_().chunk(2, 1)
            after = torch.lerp(new[t].addcmul_(r, q).tanh_(), hidden, z)
        hidden = after if sweep.mask is None else torch.where(sweep.mask[t], after, hidden)
        hiddens.append(hidden)
        scaled.append(q)
    _put(sweep, activated, gates)
    kept = _in_time(sweep, hiddens, hidden), gates, _in_time(sweep, scaled, hidden)
    return output_of(sweep, kept[0]), (hidden,), kept


def gru_backward(sweep: Sweep, kept: Kept, grad: Tensor, grad_last: States | None) -> SweptBack:
    """Backward through time: z grad_h + U^T d is added to grad_h of the step before.

    With s = (1 - z) (1 - n^2) grad_h, the gradient with respect to what n is the tanh of, d is
    (q r (1 - r) s, (h' - n) z (1 - z) grad_h, r s), and with respect to what the input gives (..., ..., s).
    """
    if len(kept) == _whole.KEPT_FOR_CUDNN:
        if _whole.in_cudnn(sweep, "gru", grad, *(grad_last or ())):
            return _whole.cudnn_backward(sweep, kept, grad, grad_last, kind="gru")
        kept = _gru_steps(sweep)[2]  # as a trace or a map of backward alone finds it
    hidden, gates, q = kept
    r, z, n = gates.view(*q.shape[:2], 3, q.shape[2]).unbind(2)
    to_new = kernels.tanh_backward(1 - z, n)
    to_update = kernels.sigmoid_backward(states_before(sweep, hidden, 0) - n, z)
    d = torch.stack((kernels.sigmoid_backward(to_new * q, r), to_update, to_new * r), 2)  # (T, B, 3, H)
    if sweep.mask is not None:
        d, z, to_new = d * sweep.mask.unsqueeze(2), torch.where(sweep.mask, z, 1), to_new * sweep.mask
    grad_hidden = _grad_hidden(sweep, grad, grad_last)
    for t, before in sweep.order_back():
        of_gates = d[t].mul_(grad_hidden[t].unsqueeze(1)).flatten(1)
        grad_hidden[before].addmm_(of_gates, sweep.weights.weight_hh).addcmul_(grad_hidden[t], z[t])
    s = to_new * torch.stack(grad_hidden[:-1]) if len(d) else to_new
    d_input = torch.cat((d[:, :, :2].flatten(2), s), 2)
    return swept_back(sweep, kept, d_input, d.flatten(2), (grad_hidden[-1],))


# --- LSTM --------------------------------------------------------------------------------------------------------------


def lstm_forward(sweep: Sweep) -> tuple[Tensor, States, Kept]:
    """Output, last state, and what backward needs: the hidden states, the gates, and the cells.

    (i, f, o) = sigmoid(W x + b + U h' + v), g = tanh(likewise), c = f c' + i g, h = o tanh(c), h' and c' from the step before.
    """
    if _whole.in_cudnn(sweep, "lstm"):
        return _whole.cudnn_forward(sweep, "lstm")
    return _whole.onednn_forward(sweep) if _whole.in_onednn(sweep) else _lstm_steps(sweep)


def _lstm_steps(sweep: Sweep) -> tuple[Tensor, States, Kept]:
    weights, hidden, cell = sweep.weights, sweep.start(0), sweep.start(1)
    gates, recurrent, size = from_input(sweep, both_biases(weights)), weights.weight_hh.t(), weights.weight_hh.shape[1]
    input_forget, new, output = (part.unbind(0) for part in gates.split_with_sizes((2 * size, size, size), 2))
    hiddens: list[Tensor] = []
    cells: list[Tensor] = []
    activated: list[Tensor] = []
    in_cells = cells_run(gates, weights.weight_hh, hidden, cell)
    for t in sweep.order():
        if in_cells:
            given, after, workspace = recurrent_kernels.lstm_cell(gates[t], torch.mm(hidden, recurrent), cell)
            activated.append(workspace)
        else:
            gates[t].addmm_(hidden, recurrent)
            i, f = input_forget[t].sigmoid_().chunk(2, 1)
            after = torch.addcmul(f * cell, i, new[t].tanh_())
            given = output[t].sigmoid_() * torch.tanh(after)
        if sweep.mask is None:
            hidden, cell = given, after
        else:
            hidden, cell = torch.where(sweep.mask[t], given, hidden), torch.where(sweep.mask[t], after, cell)
        hiddens.append(hidden)
        cells.append(cell)
    _put(sweep, activated, gates)
    kept = _in_time(sweep, hiddens, hidden), gates, _in_time(sweep, cells, cell)
    return output_of(sweep, kept[0]), (hidden, cell), kept


def lstm_backward(sweep: Sweep, kept: Kept, grad: Tensor, grad_last: States | None) -> SweptBack:
    """Backward through time: o (1 - tanh(c)^2) grad_h is added to grad_c, and U^T d to grad_h of the step before.

    d = (g i (1 - i) grad_c, c' f (1 - f) grad_c, i (1 - g^2) grad_c, tanh(c) o (1 - o) grad_h), and grad_c of the step before
    is f grad_c.
    """
    if len(kept) == _whole.KEPT_FOR_ONEDNN:
        return _whole.onednn_backward(sweep, kept, grad, grad_last)
    if len(kept) == _whole.KEPT_FOR_CUDNN:
        if _whole.in_cudnn(sweep, "lstm", grad, *(grad_last or ())):
            return _whole.cudnn_backward(sweep, kept, grad, grad_last, kind="lstm")
        kept = _lstm_steps(sweep)[2]  # as a trace or a map of backward alone finds it
    _, gates, cells = kept
    if cells_run(gates, cells, sweep.weights.weight_hh, grad, *(grad_last or ()), *(sweep.state or ())):
        return _lstm_back_in_cells(sweep, kept, grad, grad_last)
    i, f, g, o = gates.view(*cells.shape[:2], 4, cells.shape[2]).unbind(2)
    tanh_c = torch.tanh(cells)
    to_input, to_forget = kernels.sigmoid_backward(g, i), kernels.sigmoid_backward(states_before(sweep, cells, 1), f)
    d = torch.stack((to_input, to_forget, kernels.tanh_backward(i, g), kernels.sigmoid_backward(tanh_c, o)), 2)  # (T, B, 4, H)
    to_cell, passed = kernels.tanh_backward(o, tanh_c), _passed(sweep, d)
    if sweep.mask is not None:
        d, to_cell, f = d * sweep.mask.unsqueeze(2), to_cell * sweep.mask, torch.where(sweep.mask, f, 1)
    grad_hidden = _grad_hidden(sweep, grad, grad_last)
    grad_cell = torch.zeros_like(grad_hidden[-1]) if grad_last is None else grad_last[1]
    for t, before in sweep.order_back():
        grad_cell = torch.addcmul(grad_cell, grad_hidden[t], to_cell[t])
        d[t, :, :3].mul_(grad_cell.unsqueeze(1))
        d[t, :, 3].mul_(grad_hidden[t])
        grad_cell = grad_cell * f[t]
        grad_hidden[before].addmm_(d[t].flatten(1), sweep.weights.weight_hh)
        if passed is not None:
            grad_hidden[before].addcmul_(grad_hidden[t], passed[t])
    of_gates = d.flatten(2)
    return swept_back(sweep, kept, of_gates, of_gates, (grad_hidden[-1], grad_cell))


def _lstm_back_in_cells(sweep: Sweep, kept: Kept, grad: Tensor, grad_last: States | None) -> SweptBack:
    """The same, by CUDA's kernel for a step: it finds d and f grad_c from grad_h and grad_c."""
    _, gates, cells = kept
    found, passed, start = [], _passed(sweep, cells), sweep.start(1)
    grad_hidden = _grad_hidden(sweep, grad, grad_last)
    grad_cell = torch.zeros_like(start) if grad_last is None else grad_last[1]
    for t, before in sweep.order_back():
        cell = cells[before] if before < len(cells) else start
        d, of_cell, _ = recurrent_kernels.lstm_cell_backward(grad_hidden[t], grad_cell, cell, cells[t], gates[t], False)
        if sweep.mask is not None:
            d, of_cell = torch.where(sweep.mask[t], d, 0), torch.where(sweep.mask[t], of_cell, grad_cell)
        grad_cell = of_cell
        grad_hidden[before].addmm_(d, sweep.weights.weight_hh)
        if passed is not None:
            grad_hidden[before].addcmul_(grad_hidden[t], passed[t])
        found.append(d)
    of_gates = _in_time(sweep, found[::-1], gates[0])
    return swept_back(sweep, kept, of_gates, of_gates, (grad_hidden[-1], grad_cell))

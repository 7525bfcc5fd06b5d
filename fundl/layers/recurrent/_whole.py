"""Sweeps that a library does whole, all steps in one call: by cuDNN on a GPU, an LSTM by oneDNN on the CPU.

Neither takes a mask. What does not fit is left to the formulas, which tell.
"""

from collections.abc import Sequence
from typing import Final

import attrs
from torch import Tensor

from fundl._common import cudnn_recurrent, fused_lstm, recurrent_kernels
from fundl._common.cudnn_recurrent import GATES, Kind
from fundl.layers._layout import require_sizes
from fundl.layers.recurrent.recurrence import Kept, Recurrence, States, Sweep, SweptBack


def _fits(sweep: Sweep, kind: Kind) -> bool:
    """Whether all is of the right shape: the libraries read memory as if it were."""
    weights, size = sweep.weights, sweep.weights.weight_hh.shape[-1]
    rows, batch = GATES[kind] * size, sweep.x.shape[1]
    return (
        sweep.mask is None
        and weights.weight_ih.shape == (rows, sweep.x.shape[2])
        and weights.weight_hh.shape == (rows, size)
        and all(bias is None or bias.shape == (rows,) for bias in (weights.bias_ih, weights.bias_hh))
        and all(state.shape == (batch, size) for state in sweep.state or ())
    )


def _with_grads(weights: Recurrence, grads: Sequence[Tensor]) -> Recurrence:
    """The gradients with respect to the two weights, and to the biases, if there are any."""
    weight_ih, weight_hh, *biases = grads
    bias_ih, bias_hh = biases if weights.bias_ih is not None else (None, None)
    return attrs.evolve(weights, weight_ih=weight_ih, weight_hh=weight_hh, bias_ih=bias_ih, bias_hh=bias_hh)


# --- cuDNN -------------------------------------------------------------------------------------------------------------

KEPT_FOR_CUDNN: Final = 2
"""How much such a sweep keeps: the hidden states, and bytes of cuDNN's own."""


def _weights(sweep: Sweep) -> list[Tensor]:
    weights = sweep.weights
    every = weights.weight_ih, weights.weight_hh, weights.bias_ih, weights.bias_hh
    return [own for own in every if own is not None]


def _states(sweep: Sweep, kind: Kind) -> list[Tensor]:
    return [sweep.start(index) for index in range(2 if kind == "lstm" else 1)]


def in_cudnn(sweep: Sweep, kind: Kind, *grads: Tensor) -> bool:
    """Whether cuDNN takes a sweep; for backward, with the gradients that it is given."""
    gates = GATES[kind] * sweep.weights.weight_hh.shape[-1]
    given = (*_weights(sweep), *(sweep.state or ()), *grads)
    return cudnn_recurrent.cudnn_runs(gates, sweep.x, *given) and _fits(sweep, kind)


def cudnn_forward(sweep: Sweep, kind: Kind) -> tuple[Tensor, States, Kept]:
    """Output, last state, and what backward needs. cuDNN goes forward: for the other direction, time is turned round."""
    x = sweep.x.flip(0) if sweep.reverse else sweep.x
    hidden, last, reserve = cudnn_recurrent.forward(kind, x, _weights(sweep), _states(sweep, kind))
    hidden = hidden.flip(0) if sweep.reverse else hidden
    return hidden, tuple(last), (hidden, reserve)


def cudnn_backward(sweep: Sweep, kept: Kept, grad: Tensor, grad_last: States | None, *, kind: Kind) -> SweptBack:
    """All gradients, which cuDNN finds together."""
    hidden, reserve = kept
    require_sizes(grad, hidden.shape)
    for part in grad_last or ():
        require_sizes(part, hidden.shape[1:])
    x, output, grad = (one.flip(0) if sweep.reverse else one for one in (sweep.x, hidden, grad))
    grad_x, grads, states = cudnn_recurrent.backward(
        kind, x, _weights(sweep), _states(sweep, kind), output, reserve, grad, grad_last
    )
    grad_x = grad_x.flip(0) if sweep.reverse else grad_x
    return SweptBack(lambda: _with_grads(sweep.weights, grads), lambda: grad_x, tuple(states))


# --- oneDNN ------------------------------------------------------------------------------------------------------------

# In float32 on the CPU it does an LSTM in half to two thirds of the time.

KEPT_FOR_ONEDNN: Final = 4
"""How much such a sweep keeps: the hidden states, h and c after the last step, and the kernel's workspace."""


def _onednn_tensors(sweep: Sweep) -> recurrent_kernels.LSTMTensors:
    weights = sweep.weights
    biases = [weights.weight_ih if bias is None else bias for bias in (weights.bias_ih, weights.bias_hh)]
    return sweep.x, weights.weight_ih, weights.weight_hh, biases[0], biases[1], sweep.start(0), sweep.start(1)


def in_onednn(sweep: Sweep) -> bool:
    """Whether oneDNN takes the sweep of an LSTM."""
    return sweep.mask is None and fused_lstm.lstm_runs(*_onednn_tensors(sweep)) and _fits(sweep, "lstm")


def onednn_forward(sweep: Sweep) -> tuple[Tensor, States, Kept]:
    """Output, last state, and what backward needs."""
    hidden, *last, workspace = fused_lstm.lstm(
        _onednn_tensors(sweep), biased=sweep.weights.bias_ih is not None, reverse=sweep.reverse
    )
    return hidden, tuple(last), (hidden, *last, workspace)


def onednn_backward(sweep: Sweep, kept: Kept, grad: Tensor, grad_last: States | None) -> SweptBack:
    """All gradients, which the kernel finds together."""
    hidden, last_hidden, last_cell, workspace = kept
    for part in grad_last or ():
        require_sizes(part, hidden.shape[1:])
    grad_x, weight_ih, weight_hh, bias_ih, bias_hh, *state = fused_lstm.lstm_backward(
        _onednn_tensors(sweep),
        (hidden, last_hidden, last_cell, workspace),
        (grad, *((None, None) if grad_last is None else grad_last)),
        biased=sweep.weights.bias_ih is not None,
        reverse=sweep.reverse,
    )
    grads = _with_grads(sweep.weights, (weight_ih, weight_hh, bias_ih, bias_hh))
    return SweptBack(lambda: grads, lambda: grad_x, tuple(state))

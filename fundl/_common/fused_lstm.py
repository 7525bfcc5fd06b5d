"""The LSTM of oneDNN: all steps of a layer in one kernel, forward and backward."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import attrs
import torch
from torch import Tensor

from fundl._common import recurrent_kernels
from fundl._common.modes import is_traced
from fundl._common.recurrent_kernels import LSTMGiven, LSTMGrads, LSTMTensors


@attrs.frozen
class LSTMOperators:  # type: ignore[explicit-any]  # of its fields
    """The two functions below as operators that a graph can hold; see `fundl._compiling.lstm_operators`."""

    lstm: Callable[..., LSTMGiven]  # type: ignore[explicit-any]  # of the same arguments
    lstm_backward: Callable[..., LSTMTensors]  # type: ignore[explicit-any]  # likewise


class _Tracing(threading.local):
    operators: LSTMOperators | None = None


_tracing: Final = _Tracing()


@contextmanager
def with_lstm_operators(operators: LSTMOperators | None) -> Iterator[None]:
    """Have this thread call operators in the place of the kernels, for graphs that processes like this one run; or not."""
    before, _tracing.operators = _tracing.operators, operators
    try:
        yield
    finally:
        _tracing.operators = before


def lstm_runs(*tensors: Tensor) -> bool:
    """Whether oneDNN's LSTM runs on the tensors: float32 on the CPU, neither traced nor mapped.

    A graph would not remember that its forward keeps a workspace only while the grad mode is on.
    """
    return (
        torch._C._has_mkldnn
        and torch._C._get_mkldnn_enabled()
        and (_tracing.operators is not None or not is_traced())
        and all(
            x.dtype == torch.float32
            and x.device.type == "cpu"
            and (type(x) is Tensor or _tracing.operators is not None)
            and x.numel() > 0
            and not torch._C._functorch.is_functorch_wrapped_tensor(x)
            for x in tensors
        )
    )


def lstm(tensors: LSTMTensors, *, biased: bool, reverse: bool) -> LSTMGiven:
    """What the kernel gives.

    It reads memory as if it were contiguous and of the right shapes: of the shapes, the caller is sure.
    """
    if _tracing.operators:
        return _tracing.operators.lstm(tensors, biased=biased, reverse=reverse)
    x, weight_ih, weight_hh, bias_ih, bias_hh, h, c = (tensor.detach().contiguous() for tensor in tensors)
    size = h.shape[1]
    before = torch.is_grad_enabled()
    torch._C._set_grad_enabled(True)  # for the workspace; no tape is recorded, since nothing requires a gradient
    try:
        return recurrent_kernels.mkldnn_lstm(
            x, weight_ih, weight_hh, bias_ih, bias_hh, h, c, reverse, (), 2, size, 1, biased, False, False, True
        )
    finally:
        torch._C._set_grad_enabled(before)


def lstm_backward(tensors: LSTMTensors, given: LSTMGiven, grads: LSTMGrads, *, biased: bool, reverse: bool) -> LSTMTensors:
    """The gradients with respect to the tensors, from what `lstm` gave, and those with respect to the first three of that."""
    if _tracing.operators:
        return _tracing.operators.lstm_backward(tensors, given, grads, biased=biased, reverse=reverse)
    x, weight_ih, weight_hh, bias_ih, bias_hh, h, c = (tensor.contiguous() for tensor in tensors)
    hidden, last_h, last_c, workspace = (tensor.contiguous() for tensor in given)
    before, after, size = (x, weight_ih, weight_hh, bias_ih, bias_hh, h, c), (hidden, last_h, last_c), h.shape[1]
    return recurrent_kernels.mkldnn_lstm_backward(
        *before, *after, *grads, reverse, 2, size, 1, biased, True, False, (), False, workspace
    )

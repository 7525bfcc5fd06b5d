"""oneDNN's LSTM as operators of fundl's own, which a graph holds and a compiler calls.

Step by step, the graph would have thousands of operations, take minutes to compile, and be slower.
"""

import functools

import torch
from torch import Tensor

from fundl._common import fused_lstm
from fundl._common.recurrent_kernels import LSTMGiven, LSTMTensors
from fundl._compiling import torch_private


@functools.cache
def registered() -> fused_lstm.LSTMOperators:
    """The operators, which this makes known to torch: before a graph with them is loaded."""
    forward = torch.library.custom_op("fundl::lstm", _lstm, mutates_args=(), device_types="cpu")
    forward.register_fake(_lstm_shapes)
    backward = torch.library.custom_op("fundl::lstm_backward", _lstm_backward, mutates_args=(), device_types="cpu")
    backward.register_fake(_lstm_backward_shapes)
    return fused_lstm.LSTMOperators(forward, backward)


# As in `fused_lstm`, but of lists, as operators are.


def _lstm(tensors: list[Tensor], *, biased: bool, reverse: bool) -> LSTMGiven:
    x, weight_ih, weight_hh, bias_ih, bias_hh, h, c = tensors
    return fused_lstm.lstm((x, weight_ih, weight_hh, bias_ih, bias_hh, h, c), biased=biased, reverse=reverse)


def _lstm_shapes(tensors: list[Tensor], *, biased: bool, reverse: bool) -> LSTMGiven:  # noqa: ARG001  # it is the same for both
    x, *_, h, c = tensors
    steps, batch, features = x.shape
    workspace = _workspace_size(steps, batch, features, h.shape[1], biased=biased)
    hidden, kept = x.new_empty(steps, batch, h.shape[1]), x.new_empty(workspace, dtype=torch.uint8)
    return hidden, h.new_empty(h.shape), c.new_empty(c.shape), kept


@functools.cache
def _workspace_size(steps: int, batch: int, features: int, size: int, *, biased: bool) -> int:
    """How many bytes the kernel keeps, found by running it."""
    with torch_private.without_modes(), fused_lstm.with_lstm_operators(None):
        x, state, bias = torch.zeros(steps, batch, features), torch.zeros(batch, size), torch.zeros(4 * size)
        tensors = (x, torch.zeros(4 * size, features), torch.zeros(4 * size, size), bias, bias, state, state)
        return fused_lstm.lstm(tensors, biased=biased, reverse=False)[3].numel()


def _lstm_backward(
    tensors: list[Tensor], given: list[Tensor], grads: list[Tensor | None], *, biased: bool, reverse: bool
) -> LSTMTensors:
    x, weight_ih, weight_hh, bias_ih, bias_hh, h, c = tensors
    hidden, last_h, last_c, workspace = given
    grad, grad_h, grad_c = grads
    assert grad is not None
    before = (x, weight_ih, weight_hh, bias_ih, bias_hh, h, c)
    return fused_lstm.lstm_backward(
        before, (hidden, last_h, last_c, workspace), (grad, grad_h, grad_c), biased=biased, reverse=reverse
    )


def _lstm_backward_shapes(tensors: list[Tensor], *_others: object, **_options: object) -> LSTMTensors:
    x, weight_ih, weight_hh, _, _, h, c = (tensor.new_empty(tensor.shape) for tensor in tensors)
    rows = weight_ih.shape[0]  # also of gradients of biases that are not there
    return x, weight_ih, weight_hh, x.new_empty(rows), x.new_empty(rows), h, c

"""oneDNN's LSTM as operators of fundl's own, which a graph holds and a compiler calls.

Step by step, the graph would have thousands of operations, take minutes to compile, and be slower.
"""

import functools
from collections.abc import Callable
from typing import TypeAlias

import attrs
import torch
from torch import Tensor

from fundl._common import fused_lstm, kernels
from fundl._compiling import torch_private

_Forward: TypeAlias = kernels.LSTMGiven
_Backward: TypeAlias = kernels.LSTMTensors


@attrs.frozen
class _Operators:  # type: ignore[explicit-any]  # of its fields
    """`fused_lstm.LSTMOperators`, known to torch."""

    _lstm: Callable[..., _Forward]  # type: ignore[explicit-any]  # of the arguments of the functions below
    _lstm_backward: Callable[..., _Backward]  # type: ignore[explicit-any]  # likewise

    def lstm(self, tensors: kernels.LSTMTensors, *, biased: bool, reverse: bool) -> _Forward:
        """As `fused_lstm.lstm`."""
        return self._lstm(*tensors, biased, reverse)

    def lstm_backward(
        self, tensors: kernels.LSTMTensors, given: _Forward, grads: kernels.LSTMGrads, *, biased: bool, reverse: bool
    ) -> _Backward:
        """As `fused_lstm.lstm_backward`."""
        return self._lstm_backward(*tensors, *given, *grads, biased, reverse)


@functools.cache
def registered() -> fused_lstm.LSTMOperators:
    """The operators, which this makes known to torch: before a graph with them is loaded."""
    forward = torch.library.custom_op("fundl::lstm", _lstm, mutates_args=(), device_types="cpu")
    forward.register_fake(_lstm_shapes)
    backward = torch.library.custom_op("fundl::lstm_backward", _lstm_backward, mutates_args=(), device_types="cpu")
    backward.register_fake(_lstm_backward_shapes)
    return _Operators(forward, backward)


def _lstm(  # noqa: PLR0917  # as `fused_lstm.lstm`, but flat, as operations are
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    h: Tensor,
    c: Tensor,
    biased: bool,
    reverse: bool,
) -> _Forward:
    return fused_lstm.lstm((x, weight_ih, weight_hh, bias_ih, bias_hh, h, c), biased=biased, reverse=reverse)


def _lstm_shapes(x: Tensor, *others: Tensor | bool) -> _Forward:
    *_, h, c, biased, _ = others
    assert isinstance(h, Tensor)
    assert isinstance(c, Tensor)
    steps, batch, features = x.shape
    workspace = _workspace_size(steps, batch, features, h.shape[1], biased=bool(biased))
    hidden, kept = x.new_empty(steps, batch, h.shape[1]), x.new_empty(workspace, dtype=torch.uint8)
    return hidden, h.new_empty(h.shape), c.new_empty(c.shape), kept


@functools.cache
def _workspace_size(steps: int, batch: int, features: int, size: int, *, biased: bool) -> int:
    """How many bytes the kernel keeps, found by running it."""
    with torch_private.without_modes(), fused_lstm.with_lstm_operators(None):
        x, state, bias = torch.zeros(steps, batch, features), torch.zeros(batch, size), torch.zeros(4 * size)
        tensors = (x, torch.zeros(4 * size, features), torch.zeros(4 * size, size), bias, bias, state, state)
        return fused_lstm.lstm(tensors, biased=biased, reverse=False)[3].numel()


def _lstm_backward(  # noqa: PLR0917  # as `fused_lstm.lstm_backward`, but flat
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    h: Tensor,
    c: Tensor,
    hidden: Tensor,
    last_h: Tensor,
    last_c: Tensor,
    workspace: Tensor,
    grad: Tensor,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    biased: bool,
    reverse: bool,
) -> _Backward:
    tensors, given = (x, weight_ih, weight_hh, bias_ih, bias_hh, h, c), (hidden, last_h, last_c, workspace)
    return fused_lstm.lstm_backward(tensors, given, (grad, grad_h, grad_c), biased=biased, reverse=reverse)


def _lstm_backward_shapes(x: Tensor, weight_ih: Tensor, weight_hh: Tensor, *others: Tensor | bool | None) -> _Backward:
    _, _, h, c = others[:4]
    assert isinstance(h, Tensor)
    assert isinstance(c, Tensor)
    rows = weight_ih.shape[0]
    weights = x.new_empty(weight_ih.shape), x.new_empty(weight_hh.shape), x.new_empty(rows), x.new_empty(rows)
    return x.new_empty(x.shape), *weights, h.new_empty(h.shape), c.new_empty(c.shape)

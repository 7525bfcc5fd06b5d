"""cuDNN's recurrent networks as operators of fundl's own, which a graph holds and a compiler calls.

Step by step, the graph would have thousands of operations, and take minutes to compile.
"""

import functools
from typing import TypeAlias

import torch
from torch import Tensor

from fundl._common import cudnn_recurrent
from fundl._common.cudnn_recurrent import GATES, Kind
from fundl._compiling import torch_private

Given: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""The hidden state after each step, h and c after the last, and what backward needs, in bytes. What there is not is empty."""
Grads: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""With respect to x, weight_ih, weight_hh, bias_ih, bias_hh, h and c. What there is not is empty."""


@functools.cache
def registered() -> cudnn_recurrent.Operators:
    """The operators, which this makes known to torch: before a graph with them is loaded."""
    forward = torch.library.custom_op("fundl::recurrent", _recurrent, mutates_args=())
    forward.register_fake(_recurrent_shapes)
    backward = torch.library.custom_op("fundl::recurrent_backward", _recurrent_backward, mutates_args=())
    backward.register_fake(_recurrent_backward_shapes)
    return cudnn_recurrent.Operators(forward, backward)


def _kind(name: str) -> Kind:
    return next(kind for kind in GATES if kind == name)


def _recurrent(kind: str, x: Tensor, weights: list[Tensor], states: list[Tensor]) -> Given:
    output, last, reserve = cudnn_recurrent.forward(_kind(kind), x, weights, states)
    return output, last[0], last[1] if len(last) > 1 else x.new_empty(0), reserve


def _recurrent_shapes(kind: str, x: Tensor, weights: list[Tensor], states: list[Tensor]) -> Given:
    (steps, batch, features), size = x.shape, weights[1].shape[1]
    kept = _reserve_size(_kind(kind), steps, batch, features, size, x.dtype, x.device)
    cell = x.new_empty(states[1].shape if len(states) > 1 else 0)
    return x.new_empty(steps, batch, size), x.new_empty(batch, size), cell, x.new_empty(kept, dtype=torch.uint8)


@functools.cache
def _reserve_size(  # noqa: PLR0917  # all that it depends on
    kind: Kind, steps: int, batch: int, features: int, size: int, dtype: torch.dtype, device: torch.device
) -> int:
    """How many bytes cuDNN keeps, found by running it."""
    rows = GATES[kind] * size
    with torch_private.without_modes(), cudnn_recurrent.with_operators(None):
        x, state, *weights = (
            torch.zeros(shape, dtype=dtype, device=device)
            for shape in ((steps, batch, features), (batch, size), (rows, features), (rows, size), (rows,), (rows,))
        )
        return cudnn_recurrent.forward(kind, x, weights, [state] * (2 if kind == "lstm" else 1))[2].numel()


def _recurrent_backward(  # noqa: PLR0917  # what an operator is given
    kind: str,
    x: Tensor,
    weights: list[Tensor],
    states: list[Tensor],
    output: Tensor,
    reserve: Tensor,
    grad: Tensor,
    grad_last: list[Tensor],
) -> Grads:
    grad_x, grads, first = cudnn_recurrent.backward(_kind(kind), x, weights, states, output, reserve, grad, grad_last)
    nothing = [x.new_empty(0) for _ in range(3)]
    own = [
        grad.clone() for grad in grads
    ]  # cuDNN's are in one piece of memory: a graph's kernels want each to begin at 16 bytes
    weight_ih, weight_hh, bias_ih, bias_hh = (*own, *nothing[: 4 - len(own)])
    return grad_x, weight_ih, weight_hh, bias_ih, bias_hh, first[0], first[1] if len(first) > 1 else nothing[2]


def _recurrent_backward_shapes(_kind: str, x: Tensor, weights: list[Tensor], states: list[Tensor], *_others: object) -> Grads:
    shapes = [weight.shape for weight in weights]
    empty = torch.Size([0])
    weight_ih, weight_hh, bias_ih, bias_hh = (x.new_empty(shape) for shape in (*shapes, *[empty] * (4 - len(shapes))))
    cell = x.new_empty(states[1].shape if len(states) > 1 else empty)
    return x.new_empty(x.shape), weight_ih, weight_hh, bias_ih, bias_hh, x.new_empty(states[0].shape), cell

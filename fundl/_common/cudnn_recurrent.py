"""cuDNN's recurrent networks: all steps of a layer in one call, forward and backward."""

import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Literal, TypeAlias

import attrs
import torch
from torch import Tensor

from fundl._common import recurrent_kernels
from fundl._common.fused_cells import cells_run
from fundl._common.modes import is_wrapped

Kind: TypeAlias = Literal["relu", "tanh", "lstm", "gru"]

_NUMBERS: Final[dict[Kind, int]] = {"relu": 0, "tanh": 1, "lstm": 2, "gru": 3}
GATES: Final[dict[Kind, int]] = {"relu": 1, "tanh": 1, "lstm": 4, "gru": 3}
"""How many each has."""
_MOST_ROWS: Final = 2**16 - 1
_MOST_NUMBERS: Final = 2**31 - 1


@attrs.frozen
class Operators:  # type: ignore[explicit-any]  # of its fields
    """Functions like the two below as operators that a graph can hold; see `fundl._compiling.cudnn_operators`."""

    forward: Callable[..., tuple[Tensor, ...]]  # type: ignore[explicit-any]  # as stands there
    backward: Callable[..., tuple[Tensor, ...]]  # type: ignore[explicit-any]  # likewise


class _Tracing(threading.local):
    operators: Operators | None = None


_tracing: Final = _Tracing()


@contextmanager
def with_operators(operators: Operators | None) -> Iterator[None]:
    """Have this thread call operators in the place of cuDNN, for graphs that processes like this one run; or not."""
    before, _tracing.operators = _tracing.operators, operators
    try:
        yield
    finally:
        _tracing.operators = before


def cudnn_runs(gates: int, x: Tensor, *tensors: Tensor) -> bool:
    """Whether cuDNN takes what belongs to a sweep over x (T, B, in), with so many gates in all.

    It takes float32 and float64, not mapped, and traced where a graph can hold it. Its bits may differ from run to run: not
    where they must not.
    """
    return (
        x.is_cuda
        and not torch.version.hip
        and x.dtype in {torch.float32, torch.float64}
        and x.shape[1] <= _MOST_ROWS
        and math.prod(x.shape[:2]) * max(gates, x.shape[2]) <= _MOST_NUMBERS
        and torch._C._has_cudnn
        and torch._C._get_cudnn_enabled()
        and not torch.are_deterministic_algorithms_enabled()
        and (cells_run(x, *tensors) if _tracing.operators is None else _alike(x, tensors))
    )


def _alike(x: Tensor, tensors: Sequence[Tensor]) -> bool:
    """What the cells ask as well, of tensors that are traced."""
    return all(
        one.dtype == x.dtype and one.device == x.device and one.numel() > 0 and not is_wrapped(one) for one in (x, *tensors)
    )


def forward(kind: Kind, x: Tensor, weights: Sequence[Tensor], states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
    """The hidden state after each step (T, B, H), the states after the last, and what backward needs, in bytes.

    weights are weight_ih, weight_hh, bias_ih and bias_hh, or the first two.
    """
    if operators := _tracing.operators:
        output, *last, reserve = operators.forward(kind, x, [*weights], [*states])
        return output, last[: len(states)], reserve
    hidden, cell = _layers(states)
    given = x.contiguous(), [*weights], len(weights), _packed(kind, weights), hidden, cell
    number, size = _NUMBERS[kind], weights[1].shape[1]
    output, hidden, cell, reserve, _ = recurrent_kernels.cudnn_rnn(
        *given, number, size, 0, 1, False, 0.0, True, False, (), None
    )
    return output, [last.squeeze(0) for last in (hidden, cell)[: len(states)]], reserve


def backward(  # noqa: PLR0917  # as in all such kernels
    kind: Kind,
    x: Tensor,
    weights: Sequence[Tensor],
    states: Sequence[Tensor],
    output: Tensor,
    reserve: Tensor,
    grad: Tensor,
    grad_last: Sequence[Tensor] | None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The gradients with respect to x, the weights, and the states before the first step.

    cuDNN writes over what forward left for it: it gets a copy.
    """
    if operators := _tracing.operators:
        last = [torch.zeros_like(state) for state in states] if grad_last is None else [*grad_last]
        traced = operators.backward(kind, x, [*weights], [*states], output, reserve, grad, last)
        return traced[0], [*traced[1:5]][: len(weights)], [*traced[5:]][: len(states)]
    hidden, cell = _layers(states)
    given = x.contiguous(), [*weights], len(weights), _packed(kind, weights), hidden, cell
    grad_hidden, grad_cell = (None, None) if grad_last is None else _layers(grad_last)
    grads = output.contiguous(), grad.contiguous(), grad_hidden, grad_cell
    number, size, wanted = _NUMBERS[kind], weights[1].shape[1], (True, True, kind == "lstm", True)
    grad_x, *of_states, found = recurrent_kernels.cudnn_rnn_backward(
        *given, *grads, number, size, 0, 1, False, 0.0, True, False, (), None, reserve.clone(), wanted
    )
    return grad_x, found, [first.squeeze(0) for first in of_states[: len(states)] if first is not None]


def _layers(states: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """States (B, H) as those of the one layer, (1, B, H); without a cell, None."""
    hidden, *cell = (state.unsqueeze(0).contiguous() for state in states)
    return hidden, cell[0] if cell else None


def _packed(kind: Kind, weights: Sequence[Tensor]) -> Tensor:
    """All weights in one piece of memory, as cuDNN wants them; biases that there are not are 0."""
    first = weights[0]
    length, places = _places(kind, first.shape[1], weights[1].shape[1], first.dtype, first.device)
    packed = first.new_zeros(length)
    parts = [packed.narrow(0, place, own.numel()).view(own.shape) for place, own in zip(places, weights, strict=False)]
    torch._foreach_copy_(parts, list(weights))
    return packed


@functools.cache
def _places(kind: Kind, inputs: int, size: int, dtype: torch.dtype, device: torch.device) -> tuple[int, tuple[int, ...]]:
    """How many numbers the piece has, and where the weights begin in it: torch tells by putting some there."""
    rows = GATES[kind] * size
    shapes = (rows, inputs), (rows, size), (rows,), (rows,)
    weights = [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]
    packed = recurrent_kernels.cudnn_pack(weights, len(weights), inputs, _NUMBERS[kind], size, 0, 1, False, False)
    return packed.numel(), tuple([int(weight.storage_offset()) for weight in weights])

"""Recurrent layers that take a state and give one."""

from collections.abc import Sequence
from typing import Generic, Self, TypeAlias, cast, final, overload

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common.listed import Listed
from fundl.layer import Layer
from fundl.layers.recurrent._base import Recurrent, Residuals
from fundl.layers.recurrent.layers import GRU, LSTM, RNN
from fundl.layers.recurrent.recurrence import States
from fundl.shapes import AnySize
from fundl.tree import Record, describe


@final
@attrs.frozen(eq=False)
class LSTMState(Record, metaclass=Listed):
    """The state of an `LSTM`, for `stateful`, or of an `LSTMCell`.

    Args:
        hidden: h of each recurrence, of shape (B, R, hidden), with R = depth times directions: the directions of the first
            layer, those of the second, and so on. Of a cell, of shape (B, hidden).
        cell: c of each recurrence, likewise.
    """

    hidden: Tensor
    cell: Tensor


AnyRecurrent: TypeAlias = Recurrent[AnySize, AnySize, AnySize]
L = TypeVar("L", bound=AnyRecurrent)
WithCell = TypeVar("WithCell", bound=LSTM)
WithoutCell = TypeVar("WithoutCell", bound=RNN | GRU)
State = TypeVar("State", bound=Tensor | LSTMState)
StatefulResiduals: TypeAlias = tuple[Residuals, tuple[States, ...]]


@final
@attrs.frozen(eq=False)
class Stateful(Layer[StatefulResiduals, tuple[Tensor, State], tuple[Tensor, State]], Generic[L, State]):
    """A recurrent layer that goes on where it was: from (x, state before the first step) to (y, state after the last).

    A long sequence can so be run in parts, each from the state that the part before it gave, and a decoder from the state of
    an encoder. Where the layer has a mask, the state after the last step is that after the last real one.

    Its vjp is that of the layer, backward through time from the gradient with respect to the state after the last step, down
    to the gradient with respect to the state before the first.

    Args:
        layer: an RNN, GRU or LSTM; best given to `stateful`, which knows the type of its state.

    Shape:
        ((B, T, in), state) to ((B, T, hidden directions), state). The state of an RNN or GRU is a tensor (B, R, hidden), with
        R = depth times directions: the directions of the first layer, those of the second, and so on; that of an LSTM is an
        `LSTMState` of two such.

    Residuals:
        Those of the layer; the state, shared.

    Raises:
        TypeError: the input is not a tuple of a tensor and a state of the layer's kind, or they are of two dtypes.
        ValueError: the state is not of shape (B, R, hidden), or what the layer raises.
    """

    layer: L

    @override
    def forward(self, x: tuple[Tensor, State]) -> tuple[tuple[Tensor, State], StatefulResiduals]:
        states = self._of_each(x)
        output, last, residuals = self.layer.run(x[0], states)
        return (output, self._joined(last)), (residuals, states)

    @override
    def backward(self, residuals: StatefulResiduals, grad: tuple[Tensor, State]) -> tuple[Self, tuple[Tensor, State]]:
        grads, grad_x, first = self.layer.run_back(*residuals, grad[0], _apart(grad[1]))
        return self.gradient(grads()), (grad_x(), self._joined(first))

    @override
    def backward_params(self, residuals: StatefulResiduals, grad: tuple[Tensor, State]) -> Self:
        return self.gradient(self.layer.run_back(*residuals, grad[0], _apart(grad[1]))[0]())

    @override
    def backward_input(self, residuals: StatefulResiduals, grad: tuple[Tensor, State]) -> tuple[Tensor, State]:
        _, grad_x, first = self.layer.run_back(*residuals, grad[0], _apart(grad[1]))
        return grad_x(), self._joined(first)

    def zeros(self, batch: int) -> State:
        """The state of zeros, for a batch of so many sequences.

        >>> from fundl import gru, initialize, key, stateful
        >>> initialize(key(0), stateful(gru(3, 4, depth=2))).zeros(5).shape
        torch.Size([5, 2, 4])
        """
        weight, count = self.layer.layers[0][0].weight_hh, sum(map(len, self.layer.layers))
        zeros = weight.new_zeros(batch, weight.shape[1])
        return self._joined([(zeros,) * self.layer.parts_of_state] * count)

    def first(self, batch: int) -> State:
        """The state from which the layer itself starts, for a batch of so many sequences: what it learned, or zeros."""
        return self._joined(self.layer.first(batch))

    def _of_each(self, given: object) -> tuple[States, ...]:
        """The state of each recurrence, from the input of the layer."""
        if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], Tensor)):
            raise TypeError(f"the input of a stateful layer is (x, state), a tensor and a state, not {describe(given)}")
        name, layers = type(self.layer).__name__, self.layer.layers
        x, state = given
        if not isinstance(state, LSTMState if isinstance(self.layer, LSTM) else Tensor):
            wanted = "LSTMState(hidden, cell)" if isinstance(self.layer, LSTM) else "a tensor"
            raise TypeError(f"the state of {name} is {wanted}, not {describe(state)}")
        shape = (*x.shape[:1], sum(map(len, layers)), layers[0][0].weight_hh.shape[1])
        for part in _parts(state):
            if part.shape != shape:
                raise ValueError(
                    f"{name} expects a state of shape {shape}, (B, depth times directions, hidden), but it is of shape"
                    f" {tuple(part.shape)}"
                )
            if part.dtype != x.dtype:
                raise TypeError(f"the state of {name} is {part.dtype}, but the input is {x.dtype}: convert one of them")
        return _apart(state)

    def _joined(self, states: Sequence[States]) -> State:
        """The state of the layer, from that of each recurrence."""
        parts = [torch.stack(every, 1) for every in zip(*states, strict=True)]
        # `stateful` pairs the kind of the layer with that of the state
        return cast("State", LSTMState(*parts) if isinstance(self.layer, LSTM) else parts[0])


def _parts(state: Tensor | LSTMState) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else (state.hidden, state.cell)


def _apart(state: Tensor | LSTMState) -> tuple[States, ...]:
    """The state of each recurrence."""
    return tuple(zip(*(part.unbind(1) for part in _parts(state)), strict=True))


@overload
def stateful(layer: WithCell) -> Stateful[WithCell, LSTMState]: ...
@overload
def stateful(layer: WithoutCell) -> Stateful[WithoutCell, Tensor]: ...
def stateful(layer: AnyRecurrent) -> object:
    """A `Stateful` of an RNN, GRU or LSTM; all else is refused by a TypeError.

    >>> from fundl import apply, gru, initialize, key, stateful
    >>> layer = initialize(key(0), stateful(gru(3, 4)))
    >>> y, state = apply(layer, (torch.zeros(2, 5, 3), torch.zeros(2, 1, 4)))
    >>> torch.equal(state[:, 0], y[:, -1])
    True
    """
    if not isinstance(layer, Recurrent):
        raise TypeError(f"stateful is for a recurrent layer, an RNN, GRU or LSTM, not {describe(layer)}")
    return Stateful[AnyRecurrent, Tensor | LSTMState](layer)

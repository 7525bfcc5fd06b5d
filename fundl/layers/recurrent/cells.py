"""Cells: one step of a recurrent layer, from an input and the state before it to the state after it."""

from abc import abstractmethod
from typing import Generic, Self, TypeAlias, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl import tree
from fundl._common.half import HALF, narrowed, widened
from fundl._common.suggestions import with_suggestions
from fundl.initializers import Initializer
from fundl.layer import Layer
from fundl.layers._layout import require_sizes
from fundl.layers.linear import explain_misfit
from fundl.layers.recurrent import _sweeps
from fundl.layers.recurrent._base import HiddenFeatures, layers_of
from fundl.layers.recurrent.recurrence import Activation, Kept, Recurrence, States, Sweep, SweptBack, require_activation
from fundl.layers.recurrent.stateful import LSTMState
from fundl.shapes import InFeatures
from fundl.tree import describe

In = TypeVar("In", bound=int)
Hidden = TypeVar("Hidden", bound=int)
State = TypeVar("State", bound=Tensor | LSTMState, default=Tensor)
CellResiduals: TypeAlias = tuple[Tensor, States, Kept]
"""The input, the state before the step, and what the recurrence keeps."""


@attrs.frozen(eq=False)
class _Cell(Layer[CellResiduals, tuple[Tensor, State], State], Generic[InFeatures, HiddenFeatures, State]):
    """What all cells share: they are a sweep of one step."""

    weights: Recurrence

    @abstractmethod
    def _sweep(self, sweep: Sweep) -> tuple[Tensor, States, Kept]:
        """The output of the recurrence, its state after the last step, and what backward needs."""

    @abstractmethod
    def _sweep_back(self, sweep: Sweep, kept: Kept, grad: States) -> SweptBack:
        """The gradients of the recurrence, given those with respect to the state after the step."""

    @abstractmethod
    def _parts(self, state: object) -> States:
        """The tensors of a state."""

    @abstractmethod
    def _joined(self, parts: States) -> State:
        """A state of its tensors."""

    @override
    def forward(self, x: tuple[Tensor, State]) -> tuple[State, CellResiduals]:
        given, state = self._given(x)
        if self._is_half(given):
            wide = tree.cast_to(self, torch.float32)
            after, residuals = wide._run(widened(given), tuple(map(widened, state)))
            return self._joined(tuple(narrowed(part, given) for part in after)), residuals
        after, residuals = self._run(given, state)
        return self._joined(after), residuals

    def _run(self, x: Tensor, state: States) -> tuple[States, CellResiduals]:
        try:
            _, after, kept = self._sweep(self._step_of(x, state))
        except RuntimeError as error:
            explain_misfit(type(self).__name__, x, self.weights.weight_ih, error, are="weights are")
            raise
        return after, (x, state, (after[0].unsqueeze(0), *kept[1:]))  # the hidden state is the output

    @override
    def backward(self, residuals: CellResiduals, grad: State) -> tuple[Self, tuple[Tensor, State]]:
        parts = self._parts(grad)
        for part in parts:
            require_sizes(part, residuals[1][0].shape)
        if self._is_half(parts[0]):
            wide = tree.cast_to(self, torch.float32)._back(residuals, tuple(map(widened, parts)))
            grad_x, *state = (narrowed(part, parts[0]) for part in (wide.grad_x().squeeze(0), *wide.state))
            grads = tree.cast_to(wide.grads().with_first(None), parts[0].dtype)
            return self.gradient(grads), (grad_x, self._joined(tuple(state)))
        back = self._back(residuals, parts)
        return self.gradient(back.grads().with_first(None)), (back.grad_x().squeeze(0), self._joined(back.state))

    def _back(self, residuals: CellResiduals, grad: States) -> SweptBack:
        x, state, kept = residuals
        return self._sweep_back(self._step_of(x, state), kept, grad)

    def _step_of(self, x: Tensor, state: States) -> Sweep:
        return Sweep(self.weights, x.unsqueeze(0), state, None, reverse=False)

    def _is_half(self, x: Tensor) -> bool:
        return x.dtype in HALF and self.weights.weight_ih.dtype is x.dtype

    def zeros(self, batch: int) -> State:
        """The state of zeros, for a batch of so many sequences."""
        weight = self.weights.weight_hh
        zeros = weight.new_zeros(batch, weight.shape[1])
        return self._joined((zeros, zeros))

    def _given(self, given: object) -> tuple[Tensor, States]:
        """The input and the tensors of the state."""
        name = type(self).__name__
        if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], Tensor)):
            raise TypeError(f"the input of {name} is (x, state), a tensor and a state, not {describe(given)}")
        x, state = given
        parts = self._parts(state)
        if x.ndim != 2:
            raise ValueError(f"{name} takes the input of one step, of shape (B, in), not {tuple(x.shape)}")
        shape = x.shape[0], self.weights.weight_hh.shape[1]
        for part in parts:
            if part.shape != shape:
                raise ValueError(f"{name} expects a state of shape {shape}, but it is of shape {tuple(part.shape)}")
            if part.dtype != x.dtype:
                raise TypeError(f"the state of {name} is {part.dtype}, but the input is {x.dtype}: convert one of them")
        return x, parts


class _WithoutCell(_Cell[InFeatures, HiddenFeatures, Tensor]):
    """What is true of cells whose state is one tensor."""

    @override
    def _parts(self, state: object) -> States:
        if not isinstance(state, Tensor):
            raise TypeError(f"the state of {type(self).__name__} is a tensor, not {describe(state)}")
        return (state,)

    @override
    def _joined(self, parts: States) -> Tensor:
        return parts[0]


# --- RNN ---------------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class RNNCell(_WithoutCell[InFeatures, HiddenFeatures]):
    """One step of an `RNN`: from (x, h) to h' = activation(W x + b + U h + v).

    W = weight_ih, U = weight_hh, b = bias_ih, v = bias_hh. ``RNNCell(rnn.layers[0][0])`` is that of an RNN's first layer.

    Its vjp, with d = activation'(...) grad:

        grad_x = W^T d,    grad_h = U^T d
        grad_W = sum of d x^T,    grad_U = sum of d h^T,    grad_b = grad_v = sum of d

    Args:
        weights: the parameters, best made by `rnn_cell`.
        activation: "tanh", the default, or "relu".

    Shape:
        ((B, in), (B, hidden)) to (B, hidden)

    Residuals:
        The input, the state and the output, shared.

    Raises:
        TypeError: the input is not a tuple of two tensors, or they are of other dtypes than the weights.
        ValueError: the input is not of shape (B, in), or the state not of shape (B, hidden).

    Source:
        Elman, Finding structure in time, 1990.

    >>> from fundl import apply, initialize, key, rnn_cell
    >>> cell = initialize(key(0), rnn_cell(3, 4))
    >>> apply(cell, (torch.zeros(2, 3), cell.zeros(2))).shape
    torch.Size([2, 4])
    """

    activation: Activation = attrs.field(default="tanh", kw_only=True)

    def __attrs_post_init__(self) -> None:
        require_activation("RNNCell", self.activation)

    @override
    def _sweep(self, sweep: Sweep) -> tuple[Tensor, States, Kept]:
        return _sweeps.rnn_forward(sweep, self.activation)

    @override
    def _sweep_back(self, sweep: Sweep, kept: Kept, grad: States) -> SweptBack:
        return _sweeps.rnn_backward(sweep, kept, grad[0].unsqueeze(0), None, activation=self.activation)


@with_suggestions
def rnn_cell(
    in_features: In,
    hidden_features: Hidden,
    *,
    activation: Activation = "tanh",
    bias: bool = True,
    weight_ih_init: Initializer | None = None,
    weight_hh_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> RNNCell[In, Hidden]:
    """An `RNNCell` of the given sizes, without values: give it some with `initialize`. It takes what `rnn` takes of one layer.

    >>> from fundl import rnn_cell
    >>> rnn_cell(3, 4).weights
    Recurrence(weight_ih=float32[4, 3], weight_hh=float32[4, 4], bias_ih=float32[4], bias_hh=float32[4])
    """
    inits = (weight_ih_init, weight_hh_init, bias_init)
    return RNNCell(_weights(1, in_features, hidden_features, bias=bias, inits=inits, dtype=dtype), activation=activation)


# --- GRU ---------------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class GRUCell(_WithoutCell[InFeatures, HiddenFeatures]):
    """One step of a `GRU`, which has the formulas: from (x, h) to the next h.

    Its vjp is that of a GRU over one step, to the input and the state.

    Args:
        weights: the parameters, best made by `gru_cell`; those of a layer of a GRU will do.

    Shape:
        ((B, in), (B, hidden)) to (B, hidden)

    Residuals:
        The input, the state and the output, shared; the three gates and q, 4 numbers for each element of the output.

    Raises:
        TypeError: the input is not a tuple of two tensors, or they are of other dtypes than the weights.
        ValueError: the input is not of shape (B, in), or the state not of shape (B, hidden).

    Source:
        That of `GRU`.

    >>> from fundl import apply, gru_cell, initialize, key
    >>> cell = initialize(key(0), gru_cell(3, 4))
    >>> apply(cell, (torch.zeros(2, 3), cell.zeros(2))).shape
    torch.Size([2, 4])
    """

    @override
    def _sweep(self, sweep: Sweep) -> tuple[Tensor, States, Kept]:
        return _sweeps.gru_forward(sweep)

    @override
    def _sweep_back(self, sweep: Sweep, kept: Kept, grad: States) -> SweptBack:
        return _sweeps.gru_backward(sweep, kept, grad[0].unsqueeze(0), None)


@with_suggestions
def gru_cell(
    in_features: In,
    hidden_features: Hidden,
    *,
    bias: bool = True,
    weight_ih_init: Initializer | None = None,
    weight_hh_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> GRUCell[In, Hidden]:
    """A `GRUCell` of the given sizes, without values: give it some with `initialize`. It takes what `gru` takes of one layer.

    >>> from fundl import gru_cell
    >>> gru_cell(3, 4, bias=False).weights
    Recurrence(weight_ih=float32[12, 3], weight_hh=float32[12, 4], bias_ih=None, bias_hh=None)
    """
    inits = (weight_ih_init, weight_hh_init, bias_init)
    return GRUCell(_weights(3, in_features, hidden_features, bias=bias, inits=inits, dtype=dtype))


# --- LSTM --------------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class LSTMCell(_Cell[InFeatures, HiddenFeatures, LSTMState]):
    """One step of an `LSTM`, which has the formulas: from (x, LSTMState(h, c)) to the next state.

    Its vjp is that of an LSTM over one step, to the input and the state.

    Args:
        weights: the parameters, best made by `lstm_cell`; those of a layer of an LSTM will do.

    Shape:
        ((B, in), LSTMState of two (B, hidden)) to such a state

    Residuals:
        The input, the state and the next one, shared; the four gates, 4 numbers for each element of h. In float32 on the CPU,
        oneDNN's kernel keeps about 15 numbers in the place of the 4.

    Raises:
        TypeError: the input is not a tuple of a tensor and an `LSTMState`, or they are of other dtypes than the weights.
        ValueError: the input is not of shape (B, in), or the state's tensors not of shape (B, hidden).

    Source:
        That of `LSTM`.

    >>> from fundl import apply, initialize, key, lstm_cell
    >>> cell = initialize(key(0), lstm_cell(3, 4))
    >>> apply(cell, (torch.zeros(2, 3), cell.zeros(2)))
    LSTMState(hidden=float32[2, 4], cell=float32[2, 4])
    """

    @override
    def _sweep(self, sweep: Sweep) -> tuple[Tensor, States, Kept]:
        output, after, kept = _sweeps.lstm_forward(sweep)
        if len(kept) == 3:  # hidden states, gates and cells, of which the last is the next state's
            kept = (*kept[:2], after[1].unsqueeze(0))
        return output, after, kept

    @override
    def _sweep_back(self, sweep: Sweep, kept: Kept, grad: States) -> SweptBack:
        hidden, cell = grad
        return _sweeps.lstm_backward(sweep, kept, hidden.unsqueeze(0), (torch.zeros_like(hidden), cell))

    @override
    def _parts(self, state: object) -> States:
        if not isinstance(state, LSTMState):
            raise TypeError(f"the state of LSTMCell is LSTMState(hidden, cell), not {describe(state)}")
        return state.hidden, state.cell

    @override
    def _joined(self, parts: States) -> LSTMState:
        return LSTMState(*parts)


@with_suggestions
def lstm_cell(
    in_features: In,
    hidden_features: Hidden,
    *,
    bias: bool = True,
    forget_bias: float | None = None,
    weight_ih_init: Initializer | None = None,
    weight_hh_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> LSTMCell[In, Hidden]:
    """An `LSTMCell` of the given sizes, without values: give it some with `initialize`. It takes what one layer by `lstm` does.

    >>> from fundl import lstm_cell
    >>> lstm_cell(3, 4).weights
    Recurrence(weight_ih=float32[16, 3], weight_hh=float32[16, 4], bias_ih=float32[16], bias_hh=float32[16])
    """
    inits = (weight_ih_init, weight_hh_init, bias_init)
    weights = _weights(4, in_features, hidden_features, bias=bias, inits=inits, dtype=dtype, forget_bias=forget_bias)
    return LSTMCell(weights)


def _weights(
    gates: int,
    in_features: int,
    hidden_features: int,
    *,
    bias: bool,
    inits: tuple[Initializer | None, Initializer | None, Initializer | None],
    dtype: torch.dtype,
    forget_bias: float | None = None,
) -> Recurrence:
    """The recurrence of one layer in one direction, without values."""
    layers = layers_of(
        gates,
        in_features,
        hidden_features,
        depth=1,
        bidirectional=False,
        bias=bias,
        inits=inits,
        dtype=dtype,
        forget_bias=forget_bias,
    )
    return layers[0][0]

"""Recurrent layers: RNN, GRU and LSTM, of any depth, in one direction or in both."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, Literal, Self, TypeAlias, final, overload

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl import tree
from fundl._common.half import HALF, narrowed, widened
from fundl._common.suggestions import with_suggestions
from fundl.initializers import Initializer, VarianceScaling
from fundl.layer import Layer
from fundl.layers.recurrent import sweeps
from fundl.layers.recurrent.sweeps import Activation, Kept, Recurrence, States, Sweep, SweptBack
from fundl.shapes import AnySize, Product, Shape, expect
from fundl.tree import BUFFER

InFeatures = TypeVar("InFeatures", bound=int, covariant=True, default=AnySize)
HiddenFeatures = TypeVar("HiddenFeatures", bound=int, covariant=True, default=AnySize)
Directions = TypeVar("Directions", bound=int, covariant=True, default=AnySize)
In = TypeVar("In", bound=int)
Hidden = TypeVar("Hidden", bound=int)
Batch = TypeVar("Batch")
Steps = TypeVar("Steps")

One: TypeAlias = Literal[1]
Two: TypeAlias = Literal[2]
Residuals: TypeAlias = tuple[tuple[Tensor, ...], tuple[Kept, ...]]
"""The input of each layer, (T, B, ...), and what each recurrence keeps."""


# --- Layers of recurrences ---------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Recurrent(Layer[Residuals], Generic[InFeatures, HiddenFeatures, Directions]):
    """What RNN, GRU and LSTM have in common: layers of recurrences, each layer over the output of the one before it.

    Args:
        layers: the recurrences of each layer: one, or one in each direction.
        mask: of shape (B, T) and dtype bool, True where a step is real; None if all are.
    """

    layers: tuple[tuple[Recurrence, ...], ...]
    mask: Tensor | None = attrs.field(default=None, metadata=BUFFER, kw_only=True)

    @abstractmethod
    def _sweep(self, sweep: Sweep) -> tuple[Tensor, States, Kept]:
        """The output of one recurrence (T, B, H), its state after the last step, and what backward needs."""

    @abstractmethod
    def _sweep_back(self, sweep: Sweep, kept: Kept, grad: Tensor, grad_last: States | None) -> SweptBack:
        """The gradients of one recurrence, given those with respect to its output and its state after the last step."""

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Residuals]:
        output, _, residuals = self.run(x, None)
        return output, residuals

    @override
    def backward(self, residuals: Residuals, grad: Tensor) -> tuple[Self, Tensor]:
        grads, grad_x, _ = self.run_back(residuals, None, grad, None)
        return grads(), grad_x()

    @override
    def backward_params(self, residuals: Residuals, grad: Tensor) -> Self:
        return self.run_back(residuals, None, grad, None)[0]()

    @override
    def backward_input(self, residuals: Residuals, grad: Tensor) -> Tensor:
        return self.run_back(residuals, None, grad, None)[1]()

    @override
    def output_shape(self, shape: Shape[Batch, Steps, InFeatures]) -> Shape[Batch, Steps, Product[HiddenFeatures, Directions]]:
        batch, steps, features = shape.exactly(3)
        layer = self.layers[0]
        expect("features", features, layer[0].weight_ih.shape[1])
        return Shape(batch, steps, layer[0].weight_hh.shape[1] * len(layer))

    def run(self, x: Tensor, states: Sequence[States] | None) -> tuple[Tensor, list[States], Residuals]:
        """The output for an input and the state of each recurrence, their states after the last step, and the residuals."""
        self._require_sequences(x)
        if self._is_half(x):
            output, after, residuals = tree.cast_to(self, torch.float32).run(widened(x), _widened(states))
            return narrowed(output, x), _narrowed(after, x), residuals
        sequence = x.transpose(0, 1)
        inputs: list[Tensor] = []
        kept: list[Kept] = []
        last: list[States] = []
        try:
            for index in range(len(self.layers)):
                inputs.append(sequence)
                results = [self._sweep(sweep) for sweep in self._sweeps(index, sequence, states)]
                sequence = results[0][0] if len(results) == 1 else torch.cat([output for output, _, _ in results], 2)
                last += [state for _, state, _ in results]
                kept += self._sharing(sequence, [own for _, _, own in results])
        except RuntimeError as error:
            self._explain(x, error)
            raise
        return sequence.transpose(0, 1), last, (tuple(inputs), tuple(kept))

    def run_back(
        self, residuals: Residuals, states: Sequence[States] | None, grad: Tensor, grad_last: Sequence[States] | None
    ) -> tuple[Callable[[], Self], Callable[[], Tensor], list[States]]:
        """What computes the gradients with respect to the parameters and the input, and those with respect to the states."""
        if self._is_half(grad):
            wide = tree.cast_to(self, torch.float32)
            grads, grad_x, state = wide.run_back(residuals, _widened(states), widened(grad), _widened(grad_last))
            return lambda: tree.cast_to(grads(), grad.dtype), lambda: narrowed(grad_x(), grad), _narrowed(state, grad)
        inputs, kept = residuals
        every: list[list[SweptBack]] = []
        back: list[SweptBack] = []
        grad = grad.transpose(0, 1)
        for index, layer in reversed(list(enumerate(self.layers))):
            if back:
                grad = _grad_x(back)
            place = index * len(layer)
            runs = zip(self._sweeps(index, inputs[index], states), kept[place:], grad.chunk(len(layer), 2), strict=False)
            back = [
                self._sweep_back(*run, None if grad_last is None else grad_last[place + direction])
                for direction, run in enumerate(runs)
            ]
            every.insert(0, back)
        return (
            lambda: attrs.evolve(self, layers=tuple(tuple(found.grads() for found in of_layer) for of_layer in every)),
            lambda: _grad_x(every[0]).transpose(0, 1),
            [found.state for of_layer in every for found in of_layer],
        )

    def _is_half(self, x: Tensor) -> bool:
        """Whether to run in float32, and round what comes: what a state adds up over the steps, 16 bits do not hold."""
        return x.dtype in HALF and self.layers[0][0].weight_ih.dtype is x.dtype

    def _sweeps(self, index: int, x: Tensor, states: Sequence[States] | None) -> list[Sweep]:
        """Where the recurrences of a layer run: the first from the first step to the last, the second back."""
        mask = None if self.mask is None else self.mask.t().unsqueeze(2)
        layer = self.layers[index]
        return [
            Sweep(weights, x, None if states is None else states[index * len(layer) + direction], mask, reverse=direction == 1)
            for direction, weights in enumerate(layer)
        ]

    def _sharing(self, output: Tensor, kept: list[Kept]) -> list[Kept]:
        """What recurrences keep, with their hidden states in the layer's output, where they are as well without padding."""
        if self.mask is not None:
            return kept
        parts = output.chunk(len(kept), 2)
        return [(hidden, *own[1:]) for hidden, own in zip(parts, kept, strict=True)]

    def _require_sequences(self, x: Tensor) -> None:
        if x.ndim != 3 or (self.mask is not None and self.mask.shape != x.shape[:2]):
            wanted = "(B, T, F)" if self.mask is None else f"({', '.join(map(str, self.mask.shape))}, F) by its mask"
            raise ValueError(f"{type(self).__name__} expects an input of shape {wanted}, but it is of shape {tuple(x.shape)}")

    def _explain(self, x: Tensor, error: RuntimeError) -> None:
        """Say in the layer's words what a kernel refused."""
        name, weight = type(self).__name__, self.layers[0][0].weight_ih
        if x.shape[2] != weight.shape[1]:
            raise ValueError(
                f"{name} expects {weight.shape[1]} features, but the input's shape is {tuple(x.shape)}: its last axis must"
                f" be of size {weight.shape[1]}"
            ) from error
        if x.dtype != weight.dtype:
            raise TypeError(
                f"{name}'s weights are {weight.dtype}, but the input is {x.dtype}: convert one of them, the input with"
                f" x.to({weight.dtype}) or the model with tree.cast_to(model, {x.dtype})"
            ) from error


def _widened(states: Sequence[States] | None) -> list[States] | None:
    return None if states is None else [tuple(map(widened, state)) for state in states]


def _narrowed(states: Sequence[States], like: Tensor) -> list[States]:
    return [tuple(narrowed(part, like) for part in state) for state in states]


def _grad_x(back: list[SweptBack]) -> Tensor:
    """The gradient with respect to the input of a layer, (T, B, in): the sum of those of its directions."""
    first, *others = (result.grad_x() for result in back)
    return first + others[0] if others else first


# --- RNN ---------------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class RNN(Recurrent[InFeatures, HiddenFeatures, Directions]):
    """The plain recurrent network: what it has seen so far, mixed with each step's input.

        h_t = activation(W x_t + b + U h_{t-1} + v)        W = weight_ih, U = weight_hh, b = bias_ih, v = bias_hh

    h_0 is 0; `stateful` takes and gives states. The output is h_t, of the last layer, at each t; a deeper layer's
    input is the output of the one before. In both directions, each layer has a second recurrence, from the last step to the
    first, and its output at t is h_t of the one followed by h_t of the other. At a step that the mask calls padding, h stays,
    and the output is 0. To drop elements between layers, compose layers of depth 1 with `Dropout`.

    Its vjp goes backward through time. grad_h_t is the output's gradient and what step t + 1 adds:

        d_t = activation'(...) grad_h_t,    where tanh' = 1 - h_t^2, and relu' is 1 where h_t is positive, else 0
        grad_h_{t-1} = grad_y_{t-1} + U^T d_t,    grad_x_t = W^T d_t
        grad_W = sum_t d_t x_t^T,    grad_U = sum_t d_t h_{t-1}^T,    grad_b = grad_v = sum_t d_t

    Args:
        layers: the recurrences of each layer, one for each direction; best made by `rnn`.
        activation: "tanh", the default, or "relu".
        mask: of shape (B, T) and dtype bool, True where a step is real; None, the default, if all are. `on_masked` and
            `from_masked` fill it.

    Shape:
        (B, T, in) to (B, T, hidden), or to (B, T, 2 hidden) in both directions. T may be 0.

    Residuals:
        The input and the output, shared, and the outputs of inner layers. With a mask, for each element of each layer's
        output, h as well.

    Raises:
        ValueError: the input is not of shape (B, T, in), or not of the mask's B and T.
        TypeError: the input's dtype is not the weights'.

    Source:
        Elman, Finding structure in time, 1990.

    >>> from fundl import apply, initialize, key, rnn
    >>> apply(initialize(key(0), rnn(3, 4, bidirectional=True)), torch.zeros(2, 5, 3)).shape
    torch.Size([2, 5, 8])
    """

    activation: Activation = attrs.field(default="tanh", kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.activation not in {"tanh", "relu"}:
            raise ValueError(f"RNN's activation must be 'tanh' or 'relu', not {self.activation!r}")

    @override
    def _sweep(self, sweep: Sweep) -> tuple[Tensor, States, Kept]:
        return sweeps.rnn_forward(sweep, self.activation)

    @override
    def _sweep_back(self, sweep: Sweep, kept: Kept, grad: Tensor, grad_last: States | None) -> SweptBack:
        return sweeps.rnn_backward(sweep, kept, grad, grad_last, activation=self.activation)


@overload
def rnn(
    in_features: In,
    hidden_features: Hidden,
    *,
    activation: Activation = "tanh",
    depth: int = 1,
    bidirectional: Literal[False] = False,
    bias: bool = True,
    weight_ih_init: Initializer | None = None,
    weight_hh_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> RNN[In, Hidden, One]: ...
@overload
def rnn(
    in_features: In,
    hidden_features: Hidden,
    *,
    activation: Activation = "tanh",
    depth: int = 1,
    bidirectional: Literal[True],
    bias: bool = True,
    weight_ih_init: Initializer | None = None,
    weight_hh_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> RNN[In, Hidden, Two]: ...
@overload
def rnn(
    in_features: In,
    hidden_features: Hidden,
    *,
    activation: Activation = "tanh",
    depth: int = 1,
    bidirectional: bool,
    bias: bool = True,
    weight_ih_init: Initializer | None = None,
    weight_hh_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> RNN[In, Hidden]: ...
@with_suggestions
def rnn(
    in_features: int,
    hidden_features: int,
    *,
    activation: Activation = "tanh",
    depth: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    weight_ih_init: Initializer | None = None,
    weight_hh_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> RNN:
    """An `RNN` of the given sizes, without values: give it some with `initialize`.

    Args:
        in_features: size of the input's last axis, at least 1.
        hidden_features: size of the state, at least 1.
        activation: "tanh" or "relu".
        depth: the number of layers, at least 1.
        bidirectional: whether each layer also goes from the last step to the first.
        bias: whether to add the two biases.
        weight_ih_init: how to draw the weights from the input; by default, as all, from U(-1/sqrt(hidden), 1/sqrt(hidden)).
        weight_hh_init: how to draw the weights from the hidden state.
        bias_init: how to draw both biases.
        dtype: the parameters' dtype.

    Raises:
        ValueError: a size or the depth is less than 1, or the activation is something else.

    >>> from fundl import rnn
    >>> rnn(3, 4, depth=2).layers[1][0]
    Recurrence(weight_ih=float32[4, 4], weight_hh=float32[4, 4], bias_ih=float32[4], bias_hh=float32[4])
    """
    inits = (weight_ih_init, weight_hh_init, bias_init)
    layers = _layers(
        1, in_features, hidden_features, depth=depth, bidirectional=bidirectional, bias=bias, inits=inits, dtype=dtype
    )
    return RNN(layers, activation=activation)


# --- GRU ---------------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class GRU(Recurrent[InFeatures, HiddenFeatures, Directions]):
    """The gated recurrent unit: at each step, its gates say how much of the state is kept, and how much is new.

    With the rows of weight_ih, weight_hh, bias_ih and bias_hh as W, U, b and v of r, z and n, one gate below the other:

        r = sigmoid(W_r x_t + b_r + U_r h_{t-1} + v_r)        how much of the state the new one sees
        z = sigmoid(W_z x_t + b_z + U_z h_{t-1} + v_z)        how much of the state is kept
        n = tanh(W_n x_t + b_n + r q),    q = U_n h_{t-1} + v_n
        h_t = (1 - z) n + z h_{t-1}

    h_0 is 0; `stateful` takes and gives states. The output is h_t, of the last layer, at each t; a deeper layer's
    input is the output of the one before. In both directions, each layer has a second recurrence, from the last step to the
    first, and its output at t is h_t of the one followed by h_t of the other. At a step that the mask calls padding, h stays,
    and the output is 0. To drop elements between layers, compose layers of depth 1 with `Dropout`.

    Its vjp goes backward through time. grad_h_t is the output's gradient and what step t + 1 adds:

        s_t = (1 - z) (1 - n^2) grad_h_t
        d_t = (q r (1 - r) s_t, (h_{t-1} - n) z (1 - z) grad_h_t, s_t)
        e_t = d_t with r s_t in the place of s_t
        grad_h_{t-1} = grad_y_{t-1} + z grad_h_t + U^T e_t,    grad_x_t = W^T d_t
        grad_W = sum_t d_t x_t^T,    grad_b = sum_t d_t,    grad_U = sum_t e_t h_{t-1}^T,    grad_v = sum_t e_t

    Args:
        layers: the recurrences of each layer, one for each direction; best made by `gru`.
        mask: of shape (B, T) and dtype bool, True where a step is real; None, the default, if all are. `on_masked` and
            `from_masked` fill it.

    Shape:
        (B, T, in) to (B, T, hidden), or to (B, T, 2 hidden) in both directions. T may be 0.

    Residuals:
        The input and the output, shared. For each element of each layer's output, the three gates and q, 4 numbers; for each
        of an inner layer's output, that too. With a mask, h as well, 1 more for each
        element of each layer's output.

    Raises:
        ValueError: the input is not of shape (B, T, in), or not of the mask's B and T.
        TypeError: the input's dtype is not the weights'.

    Source:
        Cho, van Merriënboer, Gulcehre, Bahdanau, Bougares, Schwenk and Bengio, Learning phrase representations using RNN
        encoder-decoder for statistical machine translation, 2014; r behind the product with U_n as in later libraries.

    >>> from fundl import apply, initialize, key, gru
    >>> apply(initialize(key(0), gru(3, 4, bidirectional=True)), torch.zeros(2, 5, 3)).shape
    torch.Size([2, 5, 8])
    """

    @override
    def _sweep(self, sweep: Sweep) -> tuple[Tensor, States, Kept]:
        return sweeps.gru_forward(sweep)

    @override
    def _sweep_back(self, sweep: Sweep, kept: Kept, grad: Tensor, grad_last: States | None) -> SweptBack:
        return sweeps.gru_backward(sweep, kept, grad, grad_last)


@overload
def gru(
    in_features: In,
    hidden_features: Hidden,
    *,
    depth: int = 1,
    bidirectional: Literal[False] = False,
    bias: bool = True,
    weight_ih_init: Initializer | None = None,
    weight_hh_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> GRU[In, Hidden, One]: ...
@overload
def gru(
    in_features: In,
    hidden_features: Hidden,
    *,
    depth: int = 1,
    bidirectional: Literal[True],
    bias: bool = True,
    weight_ih_init: Initializer | None = None,
    weight_hh_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> GRU[In, Hidden, Two]: ...
@overload
def gru(
    in_features: In,
    hidden_features: Hidden,
    *,
    depth: int = 1,
    bidirectional: bool,
    bias: bool = True,
    weight_ih_init: Initializer | None = None,
    weight_hh_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> GRU[In, Hidden]: ...
@with_suggestions
def gru(
    in_features: int,
    hidden_features: int,
    *,
    depth: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    weight_ih_init: Initializer | None = None,
    weight_hh_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> GRU:
    """A `GRU` of the given sizes, without values: give it some with `initialize`.

    Args:
        in_features: size of the input's last axis, at least 1.
        hidden_features: size of the state, at least 1.
        depth: the number of layers, at least 1.
        bidirectional: whether each layer also goes from the last step to the first.
        bias: whether to add the two biases.
        weight_ih_init: how to draw the weights from the input; by default, as all, from U(-1/sqrt(hidden), 1/sqrt(hidden)).
        weight_hh_init: how to draw the weights from the hidden state.
        bias_init: how to draw both biases.
        dtype: the parameters' dtype.

    Raises:
        ValueError: a size or the depth is less than 1.

    >>> from fundl import gru
    >>> gru(3, 4, depth=2).layers[1][0]
    Recurrence(weight_ih=float32[12, 4], weight_hh=float32[12, 4], bias_ih=float32[12], bias_hh=float32[12])
    """
    inits = (weight_ih_init, weight_hh_init, bias_init)
    layers = _layers(
        3, in_features, hidden_features, depth=depth, bidirectional=bidirectional, bias=bias, inits=inits, dtype=dtype
    )
    return GRU(layers)


# --- LSTM --------------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class LSTM(Recurrent[InFeatures, HiddenFeatures, Directions]):
    """Long short-term memory: a cell that forgets, takes in and gives out what its gates say, over the steps of a sequence.

    With the rows of weight_ih, weight_hh, bias_ih and bias_hh as W, U, b and v of i, f, g and o, one gate below the other:

        i = sigmoid(W_i x_t + b_i + U_i h_{t-1} + v_i)        how much the cell takes in
        f = sigmoid(W_f x_t + b_f + U_f h_{t-1} + v_f)        how much it keeps
        g = tanh(W_g x_t + b_g + U_g h_{t-1} + v_g)           what there is to take in
        o = sigmoid(W_o x_t + b_o + U_o h_{t-1} + v_o)        how much it gives out
        c_t = f c_{t-1} + i g
        h_t = o tanh(c_t)

    h_0 and c_0 are 0; `stateful` takes and gives states. The output is h_t, of the last layer, at each t; a deeper layer's
    input is the output of the one before. In both directions, each layer has a second recurrence, from the last step to the
    first, and its output at t is h_t of the one followed by h_t of the other. At a step that the mask calls padding, h and c
    stay, and the output is 0. To drop elements between layers, compose layers of depth 1 with `Dropout`.

    Its vjp goes backward through time. grad_h_t is the output's gradient and what step t + 1 adds:

        grad_c_t = f_{t+1} grad_c_{t+1} + o (1 - tanh(c_t)^2) grad_h_t
        d_t = (g i (1 - i) grad_c_t, c_{t-1} f (1 - f) grad_c_t, i (1 - g^2) grad_c_t, tanh(c_t) o (1 - o) grad_h_t)
        grad_h_{t-1} = grad_y_{t-1} + U^T d_t,    grad_x_t = W^T d_t
        grad_W = sum_t d_t x_t^T,    grad_U = sum_t d_t h_{t-1}^T,    grad_b = grad_v = sum_t d_t

    Args:
        layers: the recurrences of each layer, one for each direction; best made by `lstm`.
        mask: of shape (B, T) and dtype bool, True where a step is real; None, the default, if all are. `on_masked` and
            `from_masked` fill it.

    Shape:
        (B, T, in) to (B, T, hidden), or to (B, T, 2 hidden) in both directions. T may be 0.

    Residuals:
        The input and the output, shared. For each element of each layer's output, the four gates and c, 5 numbers; for each
        of an inner layer's output, that too. With a mask, h as well, 1 more for each element of each layer's output. In
        float32 on the CPU, without a mask, oneDNN's kernel does the work, and keeps about 15 numbers in the place of the 5.

    Raises:
        ValueError: the input is not of shape (B, T, in), or not of the mask's B and T.
        TypeError: the input's dtype is not the weights'.

    Source:
        Hochreiter and Schmidhuber, Long short-term memory, 1997; Gers, Schmidhuber and Cummins, Learning to forget:
        continual prediction with LSTM, 2000.

    >>> from fundl import apply, initialize, key, lstm
    >>> apply(initialize(key(0), lstm(3, 4)), torch.zeros(2, 5, 3)).shape
    torch.Size([2, 5, 4])
    """

    @override
    def _sweep(self, sweep: Sweep) -> tuple[Tensor, States, Kept]:
        return sweeps.lstm_forward(sweep)

    @override
    def _sweep_back(self, sweep: Sweep, kept: Kept, grad: Tensor, grad_last: States | None) -> SweptBack:
        return sweeps.lstm_backward(sweep, kept, grad, grad_last)


@overload
def lstm(
    in_features: In,
    hidden_features: Hidden,
    *,
    depth: int = 1,
    bidirectional: Literal[False] = False,
    bias: bool = True,
    weight_ih_init: Initializer | None = None,
    weight_hh_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> LSTM[In, Hidden, One]: ...
@overload
def lstm(
    in_features: In,
    hidden_features: Hidden,
    *,
    depth: int = 1,
    bidirectional: Literal[True],
    bias: bool = True,
    weight_ih_init: Initializer | None = None,
    weight_hh_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> LSTM[In, Hidden, Two]: ...
@overload
def lstm(
    in_features: In,
    hidden_features: Hidden,
    *,
    depth: int = 1,
    bidirectional: bool,
    bias: bool = True,
    weight_ih_init: Initializer | None = None,
    weight_hh_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> LSTM[In, Hidden]: ...
@with_suggestions
def lstm(
    in_features: int,
    hidden_features: int,
    *,
    depth: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    weight_ih_init: Initializer | None = None,
    weight_hh_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> LSTM:
    """An `LSTM` of the given sizes, without values: give it some with `initialize`.

    Args:
        in_features: size of the input's last axis, at least 1.
        hidden_features: size of the state, at least 1.
        depth: the number of layers, at least 1.
        bidirectional: whether each layer also goes from the last step to the first.
        bias: whether to add the two biases.
        weight_ih_init: how to draw the weights from the input; by default, as all, from U(-1/sqrt(hidden), 1/sqrt(hidden)).
        weight_hh_init: how to draw the weights from the hidden state.
        bias_init: how to draw both biases.
        dtype: the parameters' dtype.

    Raises:
        ValueError: a size or the depth is less than 1.

    >>> from fundl import lstm
    >>> lstm(3, 4, depth=2).layers[1][0]
    Recurrence(weight_ih=float32[16, 4], weight_hh=float32[16, 4], bias_ih=float32[16], bias_hh=float32[16])
    """
    inits = (weight_ih_init, weight_hh_init, bias_init)
    layers = _layers(
        4, in_features, hidden_features, depth=depth, bidirectional=bidirectional, bias=bias, inits=inits, dtype=dtype
    )
    return LSTM(layers)


# --- Making the parameters ---------------------------------------------------------------------------------------------


def _layers(
    gates: int,
    in_features: int,
    hidden_features: int,
    *,
    depth: int,
    bidirectional: bool,
    bias: bool,
    inits: tuple[Initializer | None, Initializer | None, Initializer | None],
    dtype: torch.dtype,
) -> tuple[tuple[Recurrence, ...], ...]:
    """The recurrences of each layer, without values."""
    for name, size in (("in_features", in_features), ("hidden_features", hidden_features), ("depth", depth)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")
    rows, directions = gates * hidden_features, 2 if bidirectional else 1
    # U(-b, b), b = 1/sqrt(hidden), is of the variance 1/(3 hidden), and the fan out of each weight is gates hidden.
    weight_ih_init, weight_hh_init, bias_init = (given or VarianceScaling(gates / 3, "fan_out", "uniform") for given in inits)

    def recurrence(columns: int) -> Recurrence:
        return Recurrence(
            weight_ih=torch.empty(rows, columns, dtype=dtype, device="meta"),
            weight_hh=torch.empty(rows, hidden_features, dtype=dtype, device="meta"),
            bias_ih=torch.empty(rows, dtype=dtype, device="meta") if bias else None,
            bias_hh=torch.empty(rows, dtype=dtype, device="meta") if bias else None,
            weight_ih_init=weight_ih_init,
            weight_hh_init=weight_hh_init,
            bias_ih_init=bias_init,
            bias_hh_init=bias_init,
        )

    columns = [in_features, *[directions * hidden_features] * (depth - 1)]
    return tuple(tuple(recurrence(count) for _ in range(directions)) for count in columns)

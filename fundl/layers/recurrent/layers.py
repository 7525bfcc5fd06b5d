"""Recurrent layers: RNN, GRU and LSTM, of any depth, in one direction or in both."""

from typing import Literal, TypeAlias, final, overload

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, Unpack, override

from fundl._common.looping import loop_for
from fundl._common.suggestions import with_suggestions
from fundl.initializers import Initializer
from fundl.layers.recurrent import _looped, _sweeps
from fundl.layers.recurrent._base import Directions, HiddenFeatures, Options, Recurrent, layers_of
from fundl.layers.recurrent.recurrence import Activation, Kept, States, Sweep, SweptBack, require_activation
from fundl.shapes import InFeatures

In = TypeVar("In", bound=int)
Hidden = TypeVar("Hidden", bound=int)

One: TypeAlias = Literal[1]
Two: TypeAlias = Literal[2]


# --- RNN ---------------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class RNN(Recurrent[InFeatures, HiddenFeatures, Directions]):
    """The plain recurrent network: what it has seen so far, mixed with each step's input.

        h_t = activation(W x_t + b + U h_{t-1} + v)        W = weight_ih, U = weight_hh, b = bias_ih, v = bias_hh

    h_0 is 0, or a parameter; `stateful` takes and gives states. The output is h_t, of the last layer, at each t; a deeper
    layer's input is the output of the one before. In both directions, each layer has a second recurrence, from the last step to
    the first, and its output at t is h_t of the one followed by h_t of the other. At a step that the mask calls padding, h
    stays, and the output is 0. To drop elements between layers, compose layers of depth 1 with `Dropout`.

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
        output, h as well. On a GPU, without a mask, cuDNN does the work, and keeps bytes of its own.

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
        require_activation("RNN", self.activation)

    @override
    def _sweep(self, sweep: Sweep) -> tuple[Tensor, States, Kept]:
        loop = loop_for(len(sweep.x))
        return (
            _sweeps.rnn_forward(sweep, self.activation) if loop is None else _looped.rnn_forward(loop, sweep, self.activation)
        )

    @override
    def _sweep_back(self, sweep: Sweep, kept: Kept, grad: Tensor, grad_last: States | None) -> SweptBack:
        if (loop := loop_for(len(sweep.x))) is not None:
            return _looped.rnn_backward(loop, sweep, kept, grad, grad_last, activation=self.activation)
        return _sweeps.rnn_backward(sweep, kept, grad, grad_last, activation=self.activation)


class RNNOptions(Options, total=False):
    """The options of `rnn` on which no type depends."""

    activation: Activation


@overload
def rnn(
    in_features: In, hidden_features: Hidden, *, bidirectional: Literal[False] = False, **options: Unpack[RNNOptions]
) -> RNN[In, Hidden, One]: ...
@overload
def rnn(
    in_features: In, hidden_features: Hidden, *, bidirectional: Literal[True], **options: Unpack[RNNOptions]
) -> RNN[In, Hidden, Two]: ...
@overload
def rnn(in_features: In, hidden_features: Hidden, *, bidirectional: bool, **options: Unpack[RNNOptions]) -> RNN[In, Hidden]: ...
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
    learned_state: bool = False,
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
        learned_state: whether the state before the first step is a parameter of each recurrence, which begins as zeros; by
            default it is zeros.
        dtype: the parameters' dtype.

    Raises:
        ValueError: a size or the depth is less than 1, or the activation is something else.

    >>> from fundl import rnn
    >>> rnn(3, 4, depth=2).layers[1][0]
    Recurrence(weight_ih=float32[4, 4], weight_hh=float32[4, 4], bias_ih=float32[4], bias_hh=float32[4])
    """
    inits = (weight_ih_init, weight_hh_init, bias_init)
    layers = layers_of(
        1,
        in_features,
        hidden_features,
        depth=depth,
        bidirectional=bidirectional,
        bias=bias,
        inits=inits,
        dtype=dtype,
        learned_state=learned_state,
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

    h_0 is 0, or a parameter. The output, states, deeper layers, both directions and the mask are as for `RNN`.

    Its vjp goes backward through time. grad_h_t is the output's gradient and what step t + 1 adds:

        s_t = (1 - z) (1 - n^2) grad_h_t
        d_t = (q r (1 - r) s_t, (h_{t-1} - n) z (1 - z) grad_h_t, s_t)
        e_t = d_t with r s_t in the place of s_t
        grad_h_{t-1} = grad_y_{t-1} + z grad_h_t + U^T e_t,    grad_x_t = W^T d_t
        grad_W = sum_t d_t x_t^T,    grad_b = sum_t d_t,    grad_U = sum_t e_t h_{t-1}^T,    grad_v = sum_t e_t

    Args:
        layers: as for `RNN`; best made by `gru`.
        mask: as for `RNN`.

    Shape:
        (B, T, in) to (B, T, hidden), or to (B, T, 2 hidden) in both directions. T may be 0.

    Residuals:
        The input and the output, shared. For each element of each layer's output, the three gates and q, 4 numbers; for each
        of an inner layer's output, that too. With a mask, h as well, 1 more for each element of each layer's output. On a GPU,
        without a mask, cuDNN does the work, and keeps bytes of its own in the place of the 4.

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
        loop = loop_for(len(sweep.x))
        return _sweeps.gru_forward(sweep) if loop is None else _looped.gru_forward(loop, sweep)

    @override
    def _sweep_back(self, sweep: Sweep, kept: Kept, grad: Tensor, grad_last: States | None) -> SweptBack:
        if (loop := loop_for(len(sweep.x))) is not None:
            return _looped.gru_backward(loop, sweep, kept, grad, grad_last)
        return _sweeps.gru_backward(sweep, kept, grad, grad_last)


@overload
def gru(
    in_features: In, hidden_features: Hidden, *, bidirectional: Literal[False] = False, **options: Unpack[Options]
) -> GRU[In, Hidden, One]: ...
@overload
def gru(
    in_features: In, hidden_features: Hidden, *, bidirectional: Literal[True], **options: Unpack[Options]
) -> GRU[In, Hidden, Two]: ...
@overload
def gru(in_features: In, hidden_features: Hidden, *, bidirectional: bool, **options: Unpack[Options]) -> GRU[In, Hidden]: ...
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
    learned_state: bool = False,
    dtype: torch.dtype = torch.float32,
) -> GRU:
    """A `GRU` of the given sizes, without values: give it some with `initialize`.

    It takes what `rnn` takes, but for the activation.

    Raises:
        ValueError: a size or the depth is less than 1.

    >>> from fundl import gru
    >>> gru(3, 4, depth=2).layers[1][0]
    Recurrence(weight_ih=float32[12, 4], weight_hh=float32[12, 4], bias_ih=float32[12], bias_hh=float32[12])
    """
    inits = (weight_ih_init, weight_hh_init, bias_init)
    layers = layers_of(
        3,
        in_features,
        hidden_features,
        depth=depth,
        bidirectional=bidirectional,
        bias=bias,
        inits=inits,
        dtype=dtype,
        learned_state=learned_state,
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

    h_0 and c_0 are 0, or parameters. The output, states, deeper layers, both directions and the mask are as for `RNN`; padding
    leaves c, too.

    Its vjp goes backward through time. grad_h_t is the output's gradient and what step t + 1 adds:

        grad_c_t = f_{t+1} grad_c_{t+1} + o (1 - tanh(c_t)^2) grad_h_t
        d_t = (g i (1 - i) grad_c_t, c_{t-1} f (1 - f) grad_c_t, i (1 - g^2) grad_c_t, tanh(c_t) o (1 - o) grad_h_t)
        grad_h_{t-1} = grad_y_{t-1} + U^T d_t,    grad_x_t = W^T d_t
        grad_W = sum_t d_t x_t^T,    grad_U = sum_t d_t h_{t-1}^T,    grad_b = grad_v = sum_t d_t

    Args:
        layers: as for `RNN`; best made by `lstm`.
        mask: as for `RNN`.

    Shape:
        (B, T, in) to (B, T, hidden), or to (B, T, 2 hidden) in both directions. T may be 0.

    Residuals:
        The input and the output, shared. For each element of each layer's output, the four gates and c, 5 numbers; for each
        of an inner layer's output, that too. With a mask, h as well, 1 more for each element of each layer's output. In
        float32 on the CPU, without a mask, oneDNN's kernel does the work, and keeps about 15 numbers in the place of the 5; on
        a GPU, without a mask, cuDNN, which keeps bytes of its own.

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

    parts_of_state = 2  # hidden, cell

    @override
    def _sweep(self, sweep: Sweep) -> tuple[Tensor, States, Kept]:
        loop = loop_for(len(sweep.x))
        return _sweeps.lstm_forward(sweep) if loop is None else _looped.lstm_forward(loop, sweep)

    @override
    def _sweep_back(self, sweep: Sweep, kept: Kept, grad: Tensor, grad_last: States | None) -> SweptBack:
        if (loop := loop_for(len(sweep.x))) is not None:
            return _looped.lstm_backward(loop, sweep, kept, grad, grad_last)
        return _sweeps.lstm_backward(sweep, kept, grad, grad_last)


class LSTMOptions(Options, total=False):
    """The options of `lstm` on which no type depends."""

    forget_bias: float | None


@overload
def lstm(
    in_features: In, hidden_features: Hidden, *, bidirectional: Literal[False] = False, **options: Unpack[LSTMOptions]
) -> LSTM[In, Hidden, One]: ...
@overload
def lstm(
    in_features: In, hidden_features: Hidden, *, bidirectional: Literal[True], **options: Unpack[LSTMOptions]
) -> LSTM[In, Hidden, Two]: ...
@overload
def lstm(
    in_features: In, hidden_features: Hidden, *, bidirectional: bool, **options: Unpack[LSTMOptions]
) -> LSTM[In, Hidden]: ...
@with_suggestions
def lstm(
    in_features: int,
    hidden_features: int,
    *,
    depth: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    forget_bias: float | None = None,
    weight_ih_init: Initializer | None = None,
    weight_hh_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    learned_state: bool = False,
    dtype: torch.dtype = torch.float32,
) -> LSTM:
    """An `LSTM` of the given sizes, without values: give it some with `initialize`.

    It takes what `rnn` takes, but for the activation, and one more:

    Args:
        forget_bias: what the bias of the forget gate, the sum of both, begins with: of 1, say, cells remember at first. None,
            the default, has it drawn as all others.

    Raises:
        ValueError: a size or the depth is less than 1; or a forget_bias is given without a bias.

    Source:
        Jozefowicz, Zaremba and Sutskever, An empirical exploration of recurrent network architectures, 2015.

    >>> from fundl import lstm
    >>> lstm(3, 4, depth=2).layers[1][0]
    Recurrence(weight_ih=float32[16, 4], weight_hh=float32[16, 4], bias_ih=float32[16], bias_hh=float32[16])
    """
    inits = (weight_ih_init, weight_hh_init, bias_init)
    layers = layers_of(
        4,
        in_features,
        hidden_features,
        depth=depth,
        bidirectional=bidirectional,
        bias=bias,
        inits=inits,
        dtype=dtype,
        learned_state=learned_state,
        forget_bias=forget_bias,
    )
    return LSTM(layers)

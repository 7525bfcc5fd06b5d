"""Recurrent layers."""

from typing import Literal

from torch import nn

from fundl import tree
from fundl.interop.torch_nn._counterparts import META, copied, require, with_parameters
from fundl.interop.torch_nn._rules import model_of, module_of, stands_alone
from fundl.layers.recurrent.cells import GRUCell, LSTMCell, RNNCell
from fundl.layers.recurrent.layers import GRU, LSTM, RNN, gru, lstm, rnn
from fundl.layers.recurrent.recurrence import Recurrence

stands_alone(
    "it gives a pair of output and states, which nn.Sequential would hand on: convert the modules, or the layers, before it and"
    " behind it one by one",
    *(nn.RNN, nn.GRU, nn.LSTM, RNN, GRU, LSTM),
)

stands_alone(
    "it takes an input and a state, which nn.Sequential does not hand on: convert it by itself",
    *(nn.RNNCell, nn.GRUCell, nn.LSTMCell, RNNCell, GRUCell, LSTMCell),
)


@model_of.register
def _(module: nn.RNN | nn.GRU | nn.LSTM, *_: object) -> RNN | GRU | LSTM:
    require(
        module.batch_first,
        "batch_first=False, but a layer's input is (B, T, features): set the module's batch_first to True, and give it such",
    )
    require(
        module.dropout == 0 or module.num_layers == 1,
        f"dropout={module.dropout} between its layers: take modules of one layer, with Dropout between what they convert to",
    )
    require(module.proj_size == 0, f"proj_size={module.proj_size}, but LSTM has no projection: choose 0")
    tensors = [copied(weight) for weights in module.all_weights for weight in weights]  # in the order of ours
    return tree.with_trainable_leaves(_of_its_sizes(module), tensors)


def _of_its_sizes(module: nn.RNN | nn.GRU | nn.LSTM) -> RNN | GRU | LSTM:
    sizes, depth = (module.input_size, module.hidden_size), module.num_layers
    if isinstance(module, nn.RNN):
        activation: Literal["relu", "tanh"] = "relu" if module.nonlinearity == "relu" else "tanh"
        return rnn(*sizes, activation=activation, depth=depth, bidirectional=module.bidirectional, bias=module.bias)
    if isinstance(module, nn.GRU):
        return gru(*sizes, depth=depth, bidirectional=module.bidirectional, bias=module.bias)
    return lstm(*sizes, depth=depth, bidirectional=module.bidirectional, bias=module.bias)


@module_of.register
def _(layer: RNN | GRU | LSTM, *_: object) -> nn.Module:
    require(layer.mask is None, "it has a mask, but a module is given its lengths when it is called: convert it without")
    first: Recurrence = layer.layers[0][0]
    require(
        first.first_hidden is None,
        "it learned the state before its first step, which a module is given when it is called: convert it without",
    )
    kind: type[nn.Module] = getattr(nn, type(layer).__name__)
    module = kind(
        first.weight_ih.shape[1],
        first.weight_hh.shape[1],
        len(layer.layers),
        bias=first.bias_ih is not None,
        batch_first=True,
        bidirectional=len(layer.layers[0]) == 2,
        device=META,
        **({"nonlinearity": layer.activation} if isinstance(layer, RNN) else {}),
    )
    for name, tensor in zip(dict(module.named_parameters()), tree.trainable_leaves(layer), strict=True):
        setattr(module, name, nn.Parameter(copied(tensor)))  # it keeps a list of them
    return module


# --- Cells -------------------------------------------------------------------------------------------------------------


@model_of.register
def _(module: nn.RNNCell | nn.GRUCell | nn.LSTMCell, *_: object) -> RNNCell | GRUCell | LSTMCell:
    own = dict(module.named_parameters())
    weights = Recurrence(
        copied(own["weight_ih"]), copied(own["weight_hh"]), copied(own.get("bias_ih")), copied(own.get("bias_hh"))
    )
    if isinstance(module, nn.RNNCell):
        return RNNCell(weights, activation="relu" if module.nonlinearity == "relu" else "tanh")
    return GRUCell(weights) if isinstance(module, nn.GRUCell) else LSTMCell(weights)


@module_of.register
def _(layer: RNNCell | GRUCell | LSTMCell, *_: object) -> nn.Module:
    weights: Recurrence = layer.weights
    kind: type[nn.Module] = getattr(nn, type(layer).__name__)
    module = kind(
        weights.weight_ih.shape[1],
        weights.weight_hh.shape[1],
        bias=weights.bias_ih is not None,
        device=META,
        **({"nonlinearity": layer.activation} if isinstance(layer, RNNCell) else {}),
    )
    tensors = {name: getattr(weights, name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    return with_parameters(module, **tensors)

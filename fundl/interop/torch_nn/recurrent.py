"""Recurrent layers."""

from typing import Final, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from fundl import tree
from fundl.interop.torch_nn.pairs import META, Row, copied, pair, require
from fundl.layers.recurrent.layers import GRU, LSTM, RNN, Recurrent, gru, lstm, rnn
from fundl.layers.recurrent.sweeps import Recurrence

R = TypeVar("R", bound=Recurrent)
M = TypeVar("M", bound=nn.RNNBase)

ALONE: Final = (
    "it gives a pair of output and states, which nn.Sequential would hand on: convert the modules, or the layers, before it and"
    " behind it one by one"
)


# --- From modules ------------------------------------------------------------------------------------------------------


def _with_values(layer: R, module: nn.RNNBase) -> R:
    """The layer, of the module's sizes, with its parameters, which are in the same order."""
    require(
        module.batch_first,
        "batch_first=False, but a layer's input is (B, T, features): set the module's batch_first to True, and give it such",
    )
    require(
        module.dropout == 0 or module.num_layers == 1,
        f"dropout={module.dropout} between its layers: take modules of one layer, with Dropout between what they convert to",
    )
    return tree.with_trainable_leaves(layer, [copied(weight) for weights in module.all_weights for weight in weights])


def _from_rnn(module: nn.RNN) -> RNN:
    return _with_values(
        rnn(
            module.input_size,
            module.hidden_size,
            activation="relu" if module.nonlinearity == "relu" else "tanh",
            depth=module.num_layers,
            bidirectional=module.bidirectional,
            bias=module.bias,
        ),
        module,
    )


def _from_gru(module: nn.GRU) -> GRU:
    sizes = module.input_size, module.hidden_size
    return _with_values(gru(*sizes, depth=module.num_layers, bidirectional=module.bidirectional, bias=module.bias), module)


def _from_lstm(module: nn.LSTM) -> LSTM:
    require(module.proj_size == 0, f"proj_size={module.proj_size}, but LSTM has no projection: choose 0")
    sizes = module.input_size, module.hidden_size
    return _with_values(lstm(*sizes, depth=module.num_layers, bidirectional=module.bidirectional, bias=module.bias), module)


# --- To modules --------------------------------------------------------------------------------------------------------


class _Sizes(TypedDict):
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    bidirectional: bool
    device: torch.device


def _sizes(layer: Recurrent) -> _Sizes:
    require(layer.mask is None, "it has a mask, but a module is given its lengths when it is called: convert it without")
    first: Recurrence = layer.layers[0][0]
    return {
        "input_size": first.weight_ih.shape[1],
        "hidden_size": first.weight_hh.shape[1],
        "num_layers": len(layer.layers),
        "bias": first.bias_ih is not None,
        "batch_first": True,
        "bidirectional": len(layer.layers[0]) == 2,
        "device": META,
    }


def _given(module: M, layer: Recurrent) -> M:
    """The module with the parameters of a layer of its sizes."""
    for index, recurrences in enumerate(layer.layers):
        for recurrence, direction in zip(recurrences, ("", "_reverse"), strict=False):
            tensors: dict[str, Tensor | None] = {name: getattr(recurrence, name) for name in recurrence.children}
            for name, tensor in tensors.items():
                if tensor is not None:
                    setattr(module, f"{name}_l{index}{direction}", nn.Parameter(copied(tensor)))  # it keeps a list of them
    return module


ROWS: Final[tuple[Row, ...]] = (
    *pair(
        nn.RNN, RNN, _from_rnn, lambda layer: _given(nn.RNN(**_sizes(layer), nonlinearity=layer.activation), layer), alone=ALONE
    ),
    *pair(nn.GRU, GRU, _from_gru, lambda layer: _given(nn.GRU(**_sizes(layer)), layer), alone=ALONE),
    *pair(nn.LSTM, LSTM, _from_lstm, lambda layer: _given(nn.LSTM(**_sizes(layer)), layer), alone=ALONE),
)

"""Activations, softmax and dropout."""

from typing import Final

from torch import nn

from fundl.interop.torch_nn.pairs import Refused, Row, from_module, pair, require
from fundl.layer import AnyLayer
from fundl.layers.activation import (
    ELU,
    GELU,
    SELU,
    Hardtanh,
    LeakyReLU,
    Mish,
    ReLU,
    Sigmoid,
    SiLU,
    Softplus,
    Tanh,
)
from fundl.layers.dropout import Dropout
from fundl.layers.feed_forward import GLU
from fundl.layers.softmax import LogSoftmax, Softmax

# --- Dropout -----------------------------------------------------------------------------------------------------------


def _from_dropout(module: nn.Dropout) -> Dropout:
    require(module.p < 1, f"p={module.p} drops all, which Dropout does not: choose a p below 1")
    return Dropout(module.p)


def _to_dropout(layer: Dropout) -> nn.Module:
    require_no_key(layer.key)
    return nn.Dropout(layer.rate)


def require_no_key(key: object) -> None:
    """Raise if a layer would draw: a module draws from the global generator instead."""
    require(
        key is None,
        "it has a key, but a module draws from torch's global generator: convert the model without keys, as it was before"
        " rekey",
    )


# --- With options ------------------------------------------------------------------------------------------------------


def _from_gelu(module: nn.GELU) -> GELU:
    require(module.approximate in {"none", "tanh"}, f"approximate={module.approximate!r} is neither 'none' nor 'tanh'")
    return GELU("tanh" if module.approximate == "tanh" else "none")


def _from_softmax(module: nn.Softmax) -> Softmax:
    return Softmax(_axis(module.dim))


def _from_log_softmax(module: nn.LogSoftmax) -> LogSoftmax:
    return LogSoftmax(_axis(module.dim))


def _axis(dim: int | None) -> int:
    if dim is None:
        raise Refused("dim=None has torch guess the axis from the input: set the module's dim, to -1 for the last axis")
    return dim


def _to_glu(layer: GLU) -> nn.Module:
    activation: AnyLayer = layer.activation
    require(type(activation) is Sigmoid, f"its activation is {activation}, but nn.GLU's gate is always a sigmoid")
    return nn.GLU(layer.axis)


ROWS: Final[tuple[Row, ...]] = (
    *pair(nn.ReLU, ReLU, lambda _: ReLU(), lambda _: nn.ReLU()),
    *pair(nn.LeakyReLU, LeakyReLU, lambda m: LeakyReLU(m.negative_slope), lambda layer: nn.LeakyReLU(layer.negative_slope)),
    *pair(nn.Hardtanh, Hardtanh, lambda m: Hardtanh(m.min_val, m.max_val), lambda layer: nn.Hardtanh(layer.low, layer.high)),
    from_module(nn.ReLU6, lambda _: Hardtanh(0.0, 6.0)),
    *pair(nn.ELU, ELU, lambda m: ELU(m.alpha), lambda layer: nn.ELU(layer.alpha)),
    *pair(nn.SELU, SELU, lambda _: SELU(), lambda _: nn.SELU()),
    *pair(nn.Sigmoid, Sigmoid, lambda _: Sigmoid(), lambda _: nn.Sigmoid()),
    *pair(nn.Tanh, Tanh, lambda _: Tanh(), lambda _: nn.Tanh()),
    *pair(
        nn.Softplus, Softplus, lambda m: Softplus(m.beta, m.threshold), lambda layer: nn.Softplus(layer.beta, layer.threshold)
    ),
    *pair(nn.GELU, GELU, _from_gelu, lambda layer: nn.GELU(layer.approximate)),
    *pair(nn.SiLU, SiLU, lambda _: SiLU(), lambda _: nn.SiLU()),
    *pair(nn.Mish, Mish, lambda _: Mish(), lambda _: nn.Mish()),
    *pair(nn.GLU, GLU, lambda m: GLU(axis=m.dim), _to_glu),
    *pair(nn.Softmax, Softmax, _from_softmax, lambda layer: nn.Softmax(layer.axis)),
    *pair(nn.LogSoftmax, LogSoftmax, _from_log_softmax, lambda layer: nn.LogSoftmax(layer.axis)),
    from_module(nn.Softmax2d, lambda _: Softmax(-3)),
    *pair(nn.Dropout, Dropout, _from_dropout, _to_dropout),
)

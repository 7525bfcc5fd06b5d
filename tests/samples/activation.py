"""Sample layers: functions of each element, and softmax."""

from collections.abc import Callable
from typing import Final, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fundl import (
    ELU,
    GELU,
    SELU,
    Dropout,
    Hardtanh,
    Identity,
    LeakyReLU,
    LogSoftmax,
    Mish,
    Model,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
    key,
    random,
)
from tests.samples.table import Sample, normal, sample

P = TypeVar("P", bound=Model)


def elementwise(name: str, layer: P, function: Callable[[Tensor], Tensor], *, kept: int = 0) -> Sample:
    """The row of a function of each element."""
    return sample(name, layer, normal(5, 4), lambda _, x: function(x), kept=kept)


def dropped(x: Tensor) -> Tensor:
    """What Dropout(0.4, key(3)) makes of x."""
    return x * random.bernoulli(key(3), x.shape, probability=0.6) / 0.6


ELEMENTWISE: Final = (
    elementwise("ReLU", ReLU(), torch.relu),
    elementwise("LeakyReLU", LeakyReLU(), F.leaky_relu),
    elementwise("LeakyReLU, falling", LeakyReLU(negative_slope=-0.3), lambda x: F.leaky_relu(x, -0.3)),
    elementwise("Hardtanh", Hardtanh(), F.hardtanh),
    elementwise("Hardtanh, asymmetric", Hardtanh(low=-0.3, high=0.8), lambda x: F.hardtanh(x, -0.3, 0.8)),
    elementwise("ELU", ELU(), F.elu),
    elementwise("ELU, alpha", ELU(alpha=0.4), lambda x: F.elu(x, 0.4)),
    elementwise("SELU", SELU(), F.selu),
    elementwise("Sigmoid", Sigmoid(), torch.sigmoid),
    elementwise("Tanh", Tanh(), torch.tanh),
    elementwise("Softplus", Softplus(), F.softplus),
    elementwise("Softplus, sharp", Softplus(beta=3.0, threshold=2.0), lambda x: F.softplus(x, 3.0, 2.0)),
    elementwise("GELU", GELU(), F.gelu),
    elementwise("GELU, tanh", GELU(approximate="tanh"), lambda x: F.gelu(x, approximate="tanh")),
    elementwise("SiLU", SiLU(), F.silu),
    elementwise("Mish", Mish(), F.mish),
    elementwise("Identity", Identity(), lambda x: x),
    elementwise("Dropout, no key", Dropout(0.4), lambda x: x),
    elementwise("Dropout", Dropout(0.4, key(3)), dropped, kept=5 * 4),
)

SAMPLES: Final = (
    *ELEMENTWISE,
    sample("Softmax", Softmax(), normal(5, 4), lambda p, x: torch.softmax(x, p.axis)),
    sample("Softmax, axis", Softmax(axis=1), normal(5, 4, 3), lambda p, x: torch.softmax(x, p.axis)),
    sample("LogSoftmax", LogSoftmax(), normal(5, 4), lambda p, x: torch.log_softmax(x, p.axis)),
    sample("LogSoftmax, axis", LogSoftmax(axis=-2), normal(5, 4, 3), lambda p, x: torch.log_softmax(x, p.axis)),
)

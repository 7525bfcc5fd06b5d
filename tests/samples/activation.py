"""Sample layers: functions of each element, and softmax."""

import math
from collections.abc import Callable
from typing import Final, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fundl import (
    CELU,
    ELU,
    GELU,
    SELU,
    AlphaDropout,
    ChannelDropout,
    Dropout,
    DropPath,
    GaussianNoise,
    Hardshrink,
    Hardsigmoid,
    Hardswish,
    Hardtanh,
    Identity,
    LeakyReLU,
    LogSigmoid,
    LogSoftmax,
    Maxout,
    Mish,
    Model,
    PReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softmin,
    Softplus,
    Softshrink,
    Softsign,
    Tanh,
    Tanhshrink,
    Threshold,
    key,
    prelu,
    random,
)
from tests.samples.table import Sample, normal, sample

P = TypeVar("P", bound=Model)


def elementwise(name: str, layer: P, function: Callable[[Tensor], Tensor], *, kept: int = 0) -> Sample:
    """The row of a function of each element."""
    return sample(name, layer, normal(5, 4), lambda _, x: function(x), kept=kept)


def with_slopes(p: PReLU, x: Tensor) -> Tensor:
    return x.clamp(min=0) + p.weight.reshape(-1, *[1] * (x.ndim - 2)) * x.clamp(max=0)


def mask(*shape: int) -> Tensor:
    """What Dropout(0.4, key(3)) and its kin draw."""
    return random.bernoulli(key(3), shape, probability=0.6)


def alpha_dropped(x: Tensor) -> Tensor:
    """What AlphaDropout(0.4, key(3)) makes of x: mean 0 and variance 1 stay, of numbers that are as independent as the mask."""
    least = F.selu(torch.tensor(-1e9, dtype=torch.float64)).item()
    mean, square = 0.4 * least, 0.6 + 0.4 * least**2
    return (torch.where(mask(*x.shape), x, least) - mean) / math.sqrt(square - mean**2)


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
    elementwise("CELU", CELU(), F.celu),
    elementwise("CELU, alpha", CELU(alpha=0.5), lambda x: F.celu(x, 0.5)),
    elementwise("SELU", SELU(), F.selu),
    elementwise("Sigmoid", Sigmoid(), torch.sigmoid),
    elementwise("Tanh", Tanh(), torch.tanh),
    elementwise("Softplus", Softplus(), F.softplus),
    elementwise("Softplus, sharp", Softplus(beta=3.0, threshold=2.0), lambda x: F.softplus(x, 3.0, 2.0)),
    elementwise("GELU", GELU(), F.gelu),
    elementwise("GELU, tanh", GELU(approximate="tanh"), lambda x: F.gelu(x, approximate="tanh")),
    elementwise("SiLU", SiLU(), F.silu),
    elementwise("Mish", Mish(), F.mish),
    elementwise("Hardswish", Hardswish(), F.hardswish),
    elementwise("Hardsigmoid", Hardsigmoid(), lambda x: F.hardtanh(x / 6 + 0.5, 0, 1)),
    elementwise("LogSigmoid", LogSigmoid(), F.logsigmoid),
    elementwise("Softsign", Softsign(), F.softsign),
    elementwise("Softshrink", Softshrink(), F.softshrink),
    elementwise("Softshrink, bound", Softshrink(bound=0.1), lambda x: F.softshrink(x, 0.1)),
    elementwise("Hardshrink", Hardshrink(bound=0.25), lambda x: F.hardshrink(x, 0.25)),
    elementwise("Tanhshrink", Tanhshrink(), F.tanhshrink),
    elementwise("Threshold", Threshold(0.2, -0.7), lambda x: F.threshold(x, 0.2, -0.7)),
    elementwise("Threshold, of a greater value", Threshold(-0.3, 0.7), lambda x: F.threshold(x, -0.3, 0.7)),
    elementwise("Identity", Identity(), lambda x: x),
    elementwise("Dropout, no key", Dropout(0.4), lambda x: x),
    elementwise("Dropout", Dropout(0.4, key(3)), dropped, kept=5 * 4),
)

SAMPLES: Final = (
    *ELEMENTWISE,
    sample("PReLU", prelu(), normal(5, 4), with_slopes),
    sample("PReLU, slopes of channels", prelu(4), normal(5, 4), with_slopes),
    sample("PReLU of images", prelu(3), normal(5, 3, 2, 2), with_slopes),
    sample("Maxout", Maxout(2), normal(5, 4), lambda _, x: torch.unflatten(x, 1, (2, 2)).amax(-1), kept=5 * 2 * 8),
    sample(
        "Maxout, axis", Maxout(3, axis=1), normal(5, 6, 2), lambda _, x: torch.unflatten(x, 1, (2, 3)).amax(2), kept=5 * 4 * 8
    ),
    sample("AlphaDropout", AlphaDropout(0.4, key(3)), normal(5, 4), lambda _, x: alpha_dropped(x), kept=5 * 4),
    sample(
        "GaussianNoise",
        GaussianNoise(0.4, key(3)),
        normal(5, 4),
        lambda _, x: x + random.normal(key(3), tuple(x.shape), std=0.4, dtype=torch.float64),
    ),
    sample("DropPath", DropPath(0.4, key(3)), normal(5, 4), lambda _, x: x * mask(len(x)).unsqueeze(1) / 0.6, kept=5),
    sample(
        "ChannelDropout",
        ChannelDropout(0.4, key(3)),
        normal(5, 4, 3, 2),
        lambda _, x: x * mask(*x.shape[:2]).reshape(*x.shape[:2], 1, 1) / 0.6,
        kept=5 * 4,
    ),
    sample(
        "ChannelDropout of sequences",
        ChannelDropout(0.4, key(3), axis=-1),
        normal(5, 3, 4),
        lambda _, x: x * mask(len(x), 4).unsqueeze(1) / 0.6,
        kept=5 * 4,
    ),
    sample("Softmax", Softmax(), normal(5, 4), lambda p, x: torch.softmax(x, p.axis)),
    sample("Softmax, axis", Softmax(axis=1), normal(5, 4, 3), lambda p, x: torch.softmax(x, p.axis)),
    sample("Softmin", Softmin(), normal(5, 4), lambda p, x: F.softmin(x, p.axis)),
    sample("Softmin, axis", Softmin(axis=1), normal(5, 4, 3), lambda p, x: F.softmin(x, p.axis)),
    sample("LogSoftmax", LogSoftmax(), normal(5, 4), lambda p, x: torch.log_softmax(x, p.axis)),
    sample("LogSoftmax, axis", LogSoftmax(axis=-2), normal(5, 4, 3), lambda p, x: torch.log_softmax(x, p.axis)),
)

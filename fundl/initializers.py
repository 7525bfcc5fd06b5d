"""Initialisers: how to draw a parameter, as a value.

An initialiser is a frozen record, which a layer keeps beside the parameter: in the static field ``weight_init`` for the
parameter ``weight``. There `initialize` finds it.
"""

import math
from abc import abstractmethod
from typing import Literal, Self, TypeAlias

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import random
from fundl._common.listed import ListedABC
from fundl._common.numbers import finite, non_negative
from fundl._common.suggestions import with_suggestions
from fundl.fan import Fans
from fundl.random import Key

Fan: TypeAlias = Literal["fan_in", "fan_out", "fan_mean"]
"""What a variance is scaled by: the inputs, the outputs, or the mean of the two."""


class Initializer(metaclass=ListedABC):
    """How to draw a parameter: a frozen, comparable record of its options, called with a key.

    An initialiser of your own is a frozen attrs class:

    >>> from fundl import Initializer, initialize, key, linear, random
    >>> @attrs.frozen
    ... class Signs(Initializer):
    ...     scale: float
    ...
    ...     def __call__(self, key, shape, fans, *, dtype, device):
    ...         positive = random.bernoulli(key, shape, probability=0.5)
    ...         return torch.where(positive, self.scale, -self.scale).to(dtype)
    >>> initialize(key(0), linear(2, 3, weight_init=Signs(0.5))).weight
    tensor([[ 0.5000,  0.5000],
            [ 0.5000,  0.5000],
            [ 0.5000, -0.5000]])
    """

    __slots__ = ()

    @abstractmethod
    def __call__(self, key: Key, shape: tuple[int, ...], fans: Fans, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of the given shape, dtype and device, drawn with a key of its own; a bias has the fans of its weight."""


# --- Initialisers -----------------------------------------------------------------------------------------------------


def _require_fan(_record: object, field: "attrs.Attribute[Fan]", value: Fan) -> None:
    if value not in {"fan_in", "fan_out", "fan_mean"}:
        raise ValueError(f"{field.name} must be 'fan_in', 'fan_out' or 'fan_mean', not {value!r}")


@attrs.frozen
class VarianceScaling(Initializer):
    """Zero mean and variance scale / fan, uniform or normal: what is named after Kaiming, Xavier and LeCun.

    The uniform distribution of that variance is U(-b, b), b = sqrt(3 scale / fan).
    """

    scale: float = attrs.field(validator=non_negative)
    mode: Fan = attrs.field(validator=_require_fan)
    distribution: Literal["uniform", "normal"]

    @override
    def __call__(self, key: Key, shape: tuple[int, ...], fans: Fans, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        fan: float = getattr(fans, self.mode)
        variance = self.scale / (fan or 1)  # where there are no inputs, there is nothing to scale
        if self.distribution == "normal":
            return random.normal(key.to(device), shape, std=math.sqrt(variance), dtype=dtype)
        bound = math.sqrt(3 * variance)
        if bound == 0:
            return torch.zeros(shape, dtype=dtype, device=device)
        own = key if key.device == device else key.to(device)  # which takes time even if there is nothing to do
        return random.uniform(own, shape, low=-bound, high=bound, dtype=dtype)


@attrs.frozen
class Normal(Initializer):
    """The normal distribution."""

    std: float = attrs.field(validator=non_negative)
    mean: float = attrs.field(validator=finite)

    @override
    def __call__(self, key: Key, shape: tuple[int, ...], fans: Fans, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return random.normal(key.to(device), shape, mean=self.mean, std=self.std, dtype=dtype)


@attrs.frozen
class TruncatedNormal(Initializer):
    """The normal distribution between two bounds."""

    std: float = attrs.field(validator=non_negative)
    mean: float = attrs.field(validator=finite)
    low: float
    high: float

    def __attrs_post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must be less than high, but low={self.low} and high={self.high}")

    @override
    def __call__(self, key: Key, shape: tuple[int, ...], fans: Fans, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return random.truncated_normal(
            key.to(device), shape, mean=self.mean, std=self.std, low=self.low, high=self.high, dtype=dtype
        )


@attrs.frozen
class Orthogonal(Initializer):
    """A random matrix with orthonormal rows or columns."""

    gain: float = attrs.field(validator=finite)

    @override
    def __call__(self, key: Key, shape: tuple[int, ...], fans: Fans, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        if len(shape) < 2:
            raise ValueError(f"orthogonal() draws matrices, of two or more axes, not a parameter of shape {tuple(shape)}")
        rows, columns = shape[0], math.prod(shape[1:])
        tall = (max(rows, columns), min(rows, columns))
        q, r = torch.linalg.qr(random.normal(key.to(device), tall, dtype=torch.float64))
        # Q R is unique, and Q uniformly distributed, once the diagonal of R is positive; the kernel leaves its signs open.
        matrix: Tensor = q * torch.where(r.diagonal() < 0, -self.gain, self.gain)
        return (matrix if rows >= columns else matrix.t()).to(dtype).reshape(shape).contiguous()


@attrs.frozen
class Constant(Initializer):
    """One number everywhere."""

    value: float = attrs.field(validator=finite)

    @override
    def __call__(self, key: Key, shape: tuple[int, ...], fans: Fans, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.full(shape, self.value, dtype=dtype, device=device)


@attrs.frozen
class Stacked(Initializer):
    """Several weights of the same inputs, one below the other in one tensor, each drawn by itself and with its own fans."""

    initializer: Initializer
    rows: tuple[int, ...]
    """How many outputs each of them has."""

    @property
    def as_given(self) -> Initializer:
        """What the maker of the layer was given: the layer prints it, unless it is the default."""
        return self.initializer

    @override
    def __call__(self, key: Key, shape: tuple[int, ...], fans: Fans, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        keys, rest = random.split(key, len(self.rows)), shape[1:]
        parts = [
            self.initializer(part_key, (rows, *rest), Fans(fans.fan_in, rows * math.prod(rest[1:])), dtype=dtype, device=device)
            for part_key, rows in zip(keys, self.rows, strict=True)
        ]
        return torch.cat(parts)


# --- Their names ------------------------------------------------------------------------------------------------------


def uniform_fan_in() -> VarianceScaling:
    """U(-b, b), b = 1 / sqrt(fan_in): the usual choice for a weight together with its bias.

    >>> from fundl import initialize, key, linear
    >>> layer = initialize(key(0), linear(100, 50))
    >>> bool(layer.weight.abs().max() <= 0.1), bool(layer.bias.abs().max() <= 0.1)
    (True, True)
    """
    return VarianceScaling(1 / 3, "fan_in", "uniform")


@with_suggestions
def kaiming_uniform(*, gain: float = math.sqrt(2), negative_slope: float = 0.0, mode: Fan = "fan_in") -> VarianceScaling:
    """U(-b, b), b = gain sqrt(3 / ((1 + negative_slope^2) fan)): keeps the variance from layer to layer.

    Args:
        gain: by how much the next activation shrinks what it is given; sqrt(2) is for rectifiers, see `gain_of` for others.
        negative_slope: of the leaky ReLU that follows; 0 for a ReLU, and for other activations.
        mode: "fan_in" keeps the variance of the values in the forward pass, "fan_out" that of the gradients, "fan_mean" is
            between the two.

    Raises:
        ValueError: the mode is none of these, or a number is not finite.

    Source: He, Zhang, Ren and Sun, "Delving deep into rectifiers", 2015.

    >>> from fundl import kaiming_uniform, linear
    >>> layer = linear(2, 25, weight_init=kaiming_uniform(mode="fan_out"))
    """
    return VarianceScaling(gain**2 / (1 + negative_slope**2), mode, "uniform")


@with_suggestions
def kaiming_normal(*, gain: float = math.sqrt(2), negative_slope: float = 0.0, mode: Fan = "fan_in") -> VarianceScaling:
    """N(0, std^2), std = gain / sqrt((1 + negative_slope^2) fan): as `kaiming_uniform`, of which it has the arguments."""
    return attrs.evolve(kaiming_uniform(gain=gain, negative_slope=negative_slope, mode=mode), distribution="normal")


@with_suggestions
def xavier_uniform(*, gain: float = 1.0) -> VarianceScaling:
    """U(-b, b), b = gain sqrt(6 / (fan_in + fan_out)): between what keeps the values' variance and the gradients'.

    Args:
        gain: by how much the next activation shrinks what it is given, see `gain_of`: 5/3 is for tanh.

    Raises:
        ValueError: the gain is not finite.

    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010.
    """
    return VarianceScaling(gain**2, "fan_mean", "uniform")


@with_suggestions
def xavier_normal(*, gain: float = 1.0) -> VarianceScaling:
    """N(0, std^2), std = gain sqrt(2 / (fan_in + fan_out)): as `xavier_uniform`, of which it has the gain."""
    return attrs.evolve(xavier_uniform(gain=gain), distribution="normal")


def lecun_uniform() -> VarianceScaling:
    """U(-b, b), b = sqrt(3 / fan_in): outputs of variance 1 from inputs of variance 1.

    Source: LeCun, Bottou, Orr and Müller, "Efficient backprop", 1998.
    """
    return VarianceScaling(1.0, "fan_in", "uniform")


def lecun_normal() -> VarianceScaling:
    """N(0, std^2), std = 1 / sqrt(fan_in): as `lecun_uniform`; SELU networks need it."""
    return VarianceScaling(1.0, "fan_in", "normal")


@with_suggestions
def normal(std: float = 1.0, *, mean: float = 0.0) -> Normal:
    """N(mean, std^2), the normal distribution.

    Raises:
        ValueError: std is negative, or a number is not finite.
    """
    return Normal(std, mean)


@with_suggestions
def truncated_normal(std: float = 1.0, *, mean: float = 0.0, low: float = -2.0, high: float = 2.0) -> TruncatedNormal:
    """N(mean, std^2), given that it is between mean + low std and mean + high std.

    Mean and std are those before it is truncated; by the default bounds, the standard deviation becomes 0.88 std.

    Raises:
        ValueError: std is negative, a number is not finite, or low is not less than high.
    """
    return TruncatedNormal(std, mean, low, high)


@with_suggestions
def orthogonal(*, gain: float = 1.0) -> Orthogonal:
    """A random orthogonal matrix times the gain, uniform over all of them: W W^T = gain^2 I, or W^T W if W is tall.

    It is Q of the decomposition Q R of a normal matrix, R with a positive diagonal. A weight of more than two axes is seen
    as the matrix (out, in * kernel).

    Args:
        gain: the singular values; see `gain_of`.

    Raises:
        ValueError: the gain is not finite; when drawn, the parameter has fewer than two axes.

    Source: Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks", 2014.

    >>> from fundl import initialize, key, linear, orthogonal
    >>> layer = initialize(key(0), linear(5, 3, weight_init=orthogonal()))
    >>> torch.allclose(layer.weight @ layer.weight.t(), torch.eye(3), atol=1e-6)
    True
    """
    return Orthogonal(gain)


def zeros() -> Constant:
    """0 everywhere."""
    return Constant(0.0)


def ones() -> Constant:
    """1 everywhere."""
    return Constant(1.0)


@with_suggestions
def constant(value: float) -> Constant:
    """The value everywhere.

    Raises:
        ValueError: the value is not finite.
    """
    return Constant(value)


# --- Parameters that depend on others ---------------------------------------------------------------------------------


class Dependent(metaclass=ListedABC):
    """A layer with parameters that begin at what others of it begin at: the length of a weight, say."""

    __slots__ = ()

    @abstractmethod
    def with_dependent(self) -> Self:
        """The layer with the parameters that depend on others; `initialize` asks for it, once all are drawn."""

"""Initialisers, and giving a model its parameters.

An initialiser is a value: a frozen record of how to draw a parameter, which a layer keeps beside the parameter, in the
static field ``weight_init`` for the parameter ``weight``. `initialize` goes through a model and draws them all from one key.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal, Self, TypeAlias, TypeVar

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import random, tree
from fundl._common.modes import no_grad
from fundl._common.suggestions import with_suggestions
from fundl.fan import Fans, fans_of
from fundl.layer import Model
from fundl.model import output_shape, require_model
from fundl.random import Key
from fundl.tree import Record, describe

P = TypeVar("P", bound=Model)

Fan: TypeAlias = Literal["fan_in", "fan_out", "fan_mean"]
"""What a variance is scaled by: the inputs, the outputs, or the mean of the two."""


class Initializer(ABC):
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
        """A tensor of the given shape, dtype and device, drawn with the key.

        Args:
            key: of this parameter alone; `initialize` gives it on `device`.
            shape: of the parameter.
            fans: of the parameter: a bias has those of its weight.
            dtype: of the result.
            device: of the result.
        """


# --- Initialisers -----------------------------------------------------------------------------------------------------


def _require_finite(_record: object, field: "attrs.Attribute[float]", value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{field.name} must be a finite number, not {value}")


def _require_not_negative(_record: object, field: "attrs.Attribute[float]", value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{field.name} must be a finite number of 0 or more, not {value}")


def _require_fan(_record: object, field: "attrs.Attribute[Fan]", value: Fan) -> None:
    if value not in {"fan_in", "fan_out", "fan_mean"}:
        raise ValueError(f"{field.name} must be 'fan_in', 'fan_out' or 'fan_mean', not {value!r}")


def _fan(fans: Fans, mode: Fan) -> float:
    match mode:
        case "fan_in":
            return fans.fan_in
        case "fan_out":
            return fans.fan_out
        case "fan_mean":
            return (fans.fan_in + fans.fan_out) / 2


@attrs.frozen
class VarianceScaling(Initializer):
    """Zero mean and variance scale / fan, uniform or normal: what is named after Kaiming, Xavier and LeCun.

    The uniform distribution of that variance is U(-b, b), b = sqrt(3 scale / fan).
    """

    scale: float = attrs.field(validator=_require_not_negative)
    mode: Fan = attrs.field(validator=_require_fan)
    distribution: Literal["uniform", "normal"]

    @override
    def __call__(self, key: Key, shape: tuple[int, ...], fans: Fans, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        variance = self.scale / (_fan(fans, self.mode) or 1)  # where there are no inputs, there is nothing to scale
        if self.distribution == "normal":
            return random.normal(key.to(device), shape, std=math.sqrt(variance), dtype=dtype)
        bound = math.sqrt(3 * variance)
        if bound == 0:
            return torch.zeros(shape, dtype=dtype, device=device)
        return random.uniform(key.to(device), shape, low=-bound, high=bound, dtype=dtype)


@attrs.frozen
class Normal(Initializer):
    """The normal distribution."""

    std: float = attrs.field(validator=_require_not_negative)
    mean: float = attrs.field(validator=_require_finite)

    @override
    def __call__(self, key: Key, shape: tuple[int, ...], fans: Fans, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return random.normal(key.to(device), shape, mean=self.mean, std=self.std, dtype=dtype)


@attrs.frozen
class TruncatedNormal(Initializer):
    """The normal distribution between two bounds."""

    std: float = attrs.field(validator=_require_not_negative)
    mean: float = attrs.field(validator=_require_finite)
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

    gain: float = attrs.field(validator=_require_finite)

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

    value: float

    @override
    def __call__(self, key: Key, shape: tuple[int, ...], fans: Fans, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.full(shape, self.value, dtype=dtype, device=device)


@attrs.frozen
class Stacked(Initializer):
    """Several weights of the same inputs, one below the other in one tensor, each drawn by itself and with its own fans."""

    initializer: Initializer
    rows: tuple[int, ...]
    """How many outputs each of them has."""

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
    return VarianceScaling(_kaiming_scale(gain, negative_slope), mode, "uniform")


@with_suggestions
def kaiming_normal(*, gain: float = math.sqrt(2), negative_slope: float = 0.0, mode: Fan = "fan_in") -> VarianceScaling:
    """N(0, std^2), std = gain / sqrt((1 + negative_slope^2) fan): keeps the variance from layer to layer.

    Args:
        gain: by how much the next activation shrinks what it is given; sqrt(2) is for rectifiers, see `gain_of` for others.
        negative_slope: of the leaky ReLU that follows; 0 for a ReLU, and for other activations.
        mode: "fan_in" keeps the variance of the values in the forward pass, "fan_out" that of the gradients, "fan_mean" is
            between the two.

    Raises:
        ValueError: the mode is none of these, or a number is not finite.

    Source: He, Zhang, Ren and Sun, "Delving deep into rectifiers", 2015.
    """
    return VarianceScaling(_kaiming_scale(gain, negative_slope), mode, "normal")


def _kaiming_scale(gain: float, negative_slope: float) -> float:
    return gain**2 / (1 + negative_slope**2)


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
    """N(0, std^2), std = gain sqrt(2 / (fan_in + fan_out)): between what keeps the values' variance and the gradients'.

    Args:
        gain: by how much the next activation shrinks what it is given, see `gain_of`: 5/3 is for tanh.

    Raises:
        ValueError: the gain is not finite.

    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010.
    """
    return VarianceScaling(gain**2, "fan_mean", "normal")


def lecun_uniform() -> VarianceScaling:
    """U(-b, b), b = sqrt(3 / fan_in): outputs of variance 1 from inputs of variance 1.

    Source: LeCun, Bottou, Orr and Müller, "Efficient backprop", 1998.
    """
    return VarianceScaling(1.0, "fan_in", "uniform")


def lecun_normal() -> VarianceScaling:
    """N(0, std^2), std = 1 / sqrt(fan_in): outputs of variance 1 from inputs of variance 1, as SELU networks need it.

    Source: LeCun, Bottou, Orr and Müller, "Efficient backprop", 1998.
    """
    return VarianceScaling(1.0, "fan_in", "normal")


@with_suggestions
def normal(std: float = 1.0, *, mean: float = 0.0) -> Normal:
    """N(mean, std^2).

    Args:
        std: the standard deviation.
        mean: of the distribution.

    Raises:
        ValueError: std is negative, or a number is not finite.
    """
    return Normal(std, mean)


@with_suggestions
def truncated_normal(std: float = 1.0, *, mean: float = 0.0, low: float = -2.0, high: float = 2.0) -> TruncatedNormal:
    """N(mean, std^2), given that it is between mean + low std and mean + high std.

    Args:
        std: the standard deviation of the distribution before it is truncated (by the default bounds, to 0.88 of it).
        mean: of the distribution before it is truncated.
        low: the lower bound, in standard deviations from the mean.
        high: the upper bound, likewise.

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


def constant(value: float) -> Constant:
    """One number everywhere.

    Args:
        value: the number.
    """
    return Constant(value)


# --- Parameters that depend on others ---------------------------------------------------------------------------------


class Dependent(ABC):
    """A layer with parameters that begin at what others of it begin at: the length of a weight, say."""

    __slots__ = ()

    @abstractmethod
    def with_dependent(self) -> Self:
        """The layer with the parameters that depend on others; `initialize` asks for it, once all are drawn."""


# --- Giving a model its parameters ------------------------------------------------------------------------------------


@with_suggestions
def initialize(key: Key, model: P, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> P:
    """The model with new parameters, drawn by the initialisers that its layers keep.

    Every layer has a key of its own, by its place: what stands after a layer does not change what it is given. Initialising
    again is the reset: the same key gives the same bits, whatever values the model had. Parameters and buffers that have
    values and no initialiser keep them, moved and cast as asked, and so do all of `frozen` layers; None stays None.

    Args:
        key: what all is drawn from, such as ``key(0)``.
        model: a layer or a nested tuple of layers.
        device: where the parameters go: by default to where they are, and from the meta device to the CPU. On "meta", the
            result has shapes and dtypes only.
        dtype: of the floating-point parameters; by default the one they have.

    Raises:
        TypeError: `model` is not a model or `key` not a key, the dtype is not a floating-point one, or a parameter has
            neither values nor an initialiser.
        ValueError: the model has no layers, or they do not fit together, or there is more than one key.

    >>> from fundl import ReLU, compose, initialize, key, linear
    >>> model = initialize(key(0), compose(linear(2, 3), ReLU(), linear(3, 1)))
    >>> model[0].weight.shape, model[0].weight.device
    (torch.Size([3, 2]), device(type='cpu'))
    """
    random.require_key(key)
    require_model(model)
    output_shape(model)  # raises, if layers do not fit together
    _require_initializers(model)
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"parameters are of a floating-point dtype, such as torch.float32, not {dtype}")
    target = None if device is None else torch.device(device)
    with no_grad():
        frozen = tree.records_in_buffers(model)
        turns = zip(random.split(key, len(frozen)), frozen, strict=True)
        is_new: list[bool] = []

        def drawn(record: Record) -> Record:
            own_key, is_frozen = next(turns)
            is_new.append(not is_frozen or any(leaf.is_meta for _, leaf in _own_leaves(record).values()))
            return _drawn(own_key, record, target, dtype, keep=is_frozen)

        def settled(record: Record) -> Record:
            return record.with_dependent() if next(turns_again) and isinstance(record, Dependent) else record

        model = tree.map_records(drawn, model)
        turns_again = iter(is_new)
        return tree.map_records(settled, model)


def _drawn(key: Key, record: Record, device: torch.device | None, dtype: torch.dtype | None, *, keep: bool) -> Record:
    """The record with new values in its own leaves, but for those to keep; inner records wait until it is their turn."""
    own = _own_leaves(record)
    if not own:
        return record
    leaves, structure = tree.flatten(record)
    keys = random.split(key, len(leaves))
    for place, (name, leaf) in own.items():
        to_device = device or (torch.device("cpu") if leaf.is_meta else leaf.device)
        to_dtype = dtype if dtype is not None and leaf.is_floating_point() else leaf.dtype
        initializer = _initializer(record, name)
        if initializer is None or to_device.type == "meta" or (keep and not leaf.is_meta):
            leaves[place] = leaf.to(to_device, to_dtype)
        else:
            own_fans = fans_of(record, name, leaf, [other for _, other in own.values()])
            try:
                leaves[place] = _new_leaf(initializer, keys[place], leaf.shape, own_fans, dtype=to_dtype, device=to_device)
            except Exception as error:
                error.add_note(f"in initialize: {name} of {record!r}")
                raise
    return tree.unflatten(structure, leaves)


def _new_leaf(
    initializer: Initializer, key: Key, shape: torch.Size, fans: Fans, *, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What the initialiser draws, after a check that it is what it was asked for: it may be the user's own."""
    new = initializer(key.to(device), tuple(shape), fans, dtype=dtype, device=device)
    if new.shape != shape or new.dtype != dtype or new.device.type != device.type:
        asked = describe(torch.empty(shape, dtype=dtype, device="meta"))
        raise TypeError(f"{initializer!r} was asked for {asked} on {device}, but made {describe(new)} on {new.device}")
    return new


def _own_leaves(record: Record) -> dict[int, tuple[str, Tensor]]:
    """The tensors of a record that are not those of an inner record: their places in `tree.flatten`, their fields' names."""
    parts = [part for name in record.children for part in tree.outer_records(getattr(record, name))]
    inner = {id(leaf) for part in parts for leaf in tree.leaves(part)}
    named = [(name, leaf) for name in record.children for leaf in tree.flatten(getattr(record, name))[0]]
    return {place: (name, leaf) for place, (name, leaf) in enumerate(named) if leaf is not None and id(leaf) not in inner}


def _initializer(record: Record, name: str) -> Initializer | None:
    initializer: object = getattr(record, f"{name}_init", None)
    if initializer is None or isinstance(initializer, Initializer):
        return initializer
    raise TypeError(
        f"{type(record).__name__}.{name}_init must be an initialiser, such as kaiming_uniform() with its parentheses,"
        f" not {initializer!r}"
    )


def _require_initializers(model: Model) -> None:
    """Raise unless every parameter has values or a way to get some."""
    for record in tree.records(model):
        for name, leaf in _own_leaves(record).values():
            if _initializer(record, name) is None and leaf.is_meta:
                places = zip(tree.paths(model), tree.flatten(model)[0], strict=True)
                path = next((f"model{path}" for path, other in places if other is leaf), name)  # none of what is stacked
                raise TypeError(f"{path} has no values, and {_how_to_draw(record, name)}")


def _how_to_draw(record: Record, name: str) -> str:
    """What to say of a field that has neither values nor an initialiser."""
    layer = type(record).__name__
    if name in record.trainable:
        return (
            f"{layer} does not say how to draw them: give {layer} the field `{name}_init: Initializer = zeros()`, or another"
            " initialiser"
        )
    return f"as a buffer it gets none here: make {layer} of what has values, as those that were trained or loaded"

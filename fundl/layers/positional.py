"""Positions: what tells a layer that sees all steps of a sequence alike where each of them is."""

import math
from typing import Generic, Self, TypeAlias, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common.listed import Listed
from fundl._common.place import Place
from fundl._common.suggestions import with_suggestions
from fundl.fan import Fans, OwnFans
from fundl.initializers import Initializer, normal
from fundl.layer import Layer
from fundl.layers._refusals import require_at_least_one, require_dtype
from fundl.layers._same_shape import SameShape
from fundl.shapes import Features, Lead, Shape, Steps, expect
from fundl.tree import Record

Out = TypeVar("Out", bound=int)


# --- Learned -----------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class LearnedPositions(Layer[None], OwnFans, Generic[Features]):
    """Adds a row of the weight to each step of a sequence: y[..., t, :] = x[..., t, :] + weight[t].

    Its vjp, with grad of T steps:

        grad_weight[t] = sum over the sequences of grad[..., t, :] for t < T, else 0,    grad_x = grad

    Args:
        weight: a row for each step, of shape (length, features).
        weight_init: how `initialize` draws the weight; from N(0, 0.02^2) by default.

    Shape:
        (..., T, features), kept, T at most length

    Residuals:
        None.

    Raises:
        ValueError: a sequence is longer than the weight, or has another number of features, or there is no axis of steps.
        TypeError: the input's dtype is not the weight's.

    Source:
        Gehring, Auli, Grangier, Yarats and Dauphin, Convolutional sequence to sequence learning, 2017.

    >>> from fundl import LearnedPositions, apply
    >>> apply(LearnedPositions(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), torch.zeros(1, 2, 2))
    tensor([[[1., 2.],
             [3., 4.]]])
    """

    weight: Tensor
    weight_init: Initializer = attrs.field(default=normal(0.02), kw_only=True)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        length, features = self.weight.shape
        if x.ndim < 2 or x.shape[-1] != features:  # a single feature would be repeated in silence
            raise ValueError(
                f"LearnedPositions expects an input of shape (..., steps, {features}), but the input's is {tuple(x.shape)}"
            )
        if x.shape[-2] > length:
            raise ValueError(
                f"LearnedPositions knows {length} positions, but the input has {x.shape[-2]} steps: make it longer, or cut the"
                " sequences"
            )
        require_dtype("LearnedPositions' weight is", self.weight, x)
        return x + self.weight[: x.shape[-2]], None

    @override
    def first_cache(self, batch: int, length: int) -> object:
        if length > self.weight.shape[0]:
            raise ValueError(
                f"LearnedPositions knows {self.weight.shape[0]} positions, but the cache is for {length}: take a shorter one"
            )
        return ()

    @override
    def step(self, x: Tensor, cache: object, place: Place) -> tuple[Tensor, object]:
        _require_sequences("LearnedPositions", x)
        require_dtype("LearnedPositions' weight is", self.weight, x)
        return x + torch.embedding(self.weight, place.at), cache

    @override
    def backward_params(self, residuals: None, grad: Tensor) -> Self:
        used = grad.sum(tuple(range(grad.ndim - 2))) if grad.ndim > 2 else grad  # (T, features)
        unused = self.weight.shape[0] - used.shape[0]
        return self.gradient(torch.constant_pad_nd(used, (0, 0, 0, unused)) if unused else used)

    @override
    def backward_input(self, residuals: None, grad: Tensor) -> Tensor:
        return grad

    @override
    def output_shape(self, shape: Shape[*Lead, Steps, Features]) -> Shape[*Lead, Steps, Features]:
        *lead, steps, features = shape.trailing(2)
        expect("features", features, self.weight.shape[-1])
        return Shape(*lead, steps, self.weight.shape[-1])

    @override
    def own_fans(self) -> Fans:
        """Each number of the output gets one of the weight."""
        return Fans(1, 1)


@with_suggestions
def learned_positions(
    length: int,
    features: Out,
    *,
    weight_init: Initializer = normal(0.02),  # a frozen record
    dtype: torch.dtype = torch.float32,
) -> LearnedPositions[Out]:
    """A `LearnedPositions` of the given sizes, without values: give it some with `initialize`.

    Args:
        length: of the longest sequence, at least 1.
        features: size of the input's last axis, at least 1.
        dtype: the weight's dtype.

    The other option, weight_init, is as in `LearnedPositions`.

    Raises:
        ValueError: a size is less than 1.

    >>> from fundl import compose, embedding, learned_positions
    >>> compose(embedding(1000, 16), learned_positions(50, 16))
    (Embedding(weight=float32[1000, 16]), LearnedPositions(weight=float32[50, 16]))
    """
    require_at_least_one(length=length, features=features)
    return LearnedPositions(torch.empty(length, features, dtype=dtype, device="meta"), weight_init=weight_init)


# --- Angles ------------------------------------------------------------------------------------------------------------


Stretch: TypeAlias = tuple[float, float, float, float]
"""How slow rotations are made slower still, for longer sequences: factor, low, high, and the length of before."""


def _angles(times: Tensor, features: int, base: float, stretch: Stretch | None = None) -> Tensor:
    """The angle of each step t for each pair i of features, t base^(-2 i / features): (..., features / 2) for steps (...).

    In float64, in which the angles of a million steps are still right to ten digits.
    """
    exponents = torch.arange(0, features, 2, dtype=torch.float64, device=times.device) / -features
    speeds = base**exponents
    return times.to(torch.float64).unsqueeze(-1) * (speeds if stretch is None else _stretched(speeds, stretch))


def _stretched(speeds: Tensor, stretch: Stretch) -> Tensor:
    """The angles of a step, of which those that turn less than `low` times in the length of before are divided by the factor.

    Those that turn more than `high` times stay, and those between go from one to the other in proportion.
    """
    factor, low, high, length = stretch
    turns = speeds * (length / (2 * math.pi))
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return speeds * (share + (1 - share) / factor)


def require_stretch(stretch: Stretch | None) -> None:
    """Raise unless a stretch is one."""
    if stretch is None:
        return
    unchecked: object = stretch
    if not isinstance(unchecked, tuple) or len(unchecked) != 4 or not all(type(one) in {int, float} for one in unchecked):
        raise TypeError(f"a stretch of rotations is four numbers, (factor, low, high, length), not {unchecked!r}")
    factor, low, high, length = stretch
    if not (0 < factor < math.inf and 0 < low < high < math.inf and 0 < length < math.inf):
        raise ValueError(f"a stretch (factor, low, high, length) has finite numbers above 0, low below high, not {stretch}")


def _require_sequences(layer: str, x: Tensor) -> None:
    if x.ndim != 3:
        raise ValueError(f"{layer} is run a position at a time on sequences of shape (B, T, F), not {tuple(x.shape)}")


def _require_base(base: float) -> None:
    if not 1 < base < float("inf"):
        raise ValueError(f"base must be a finite number above 1, not {base}")


# --- Sinusoidal --------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class SinusoidalPositions(SameShape, Layer[None]):
    """Adds waves, from fast to slow, to the features of each step: y[..., t, :] = x[..., t, :] + p[t].

        p[t, 2 i] = sin(t base^(-2 i / d)),    p[t, 2 i + 1] = cos(t base^(-2 i / d)),    d features

    Its vjp: grad_x = grad.

    The waves are found anew each time, in float64, and then rounded: there is no longest sequence.

    Args:
        base: the slowest wave is nearly 2 pi base steps long; 10000 by default, above 1.

    Shape:
        (..., T, d), kept

    Residuals:
        None.

    Raises:
        ValueError: base is not above 1, or there is no axis of steps.

    Source:
        Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser and Polosukhin, Attention is all you need, 2017.

    >>> from fundl import SinusoidalPositions, apply
    >>> apply(SinusoidalPositions(), torch.zeros(1, 2, 4))
    tensor([[[0.0000, 1.0000, 0.0000, 1.0000],
             [0.8415, 0.5403, 0.0100, 0.9999]]])
    """

    base: float = 10_000.0

    def __attrs_post_init__(self) -> None:
        _require_base(self.base)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        if x.ndim < 2:
            raise ValueError(f"SinusoidalPositions expects an input of shape (..., steps, features), not {tuple(x.shape)}")
        return x + self._waves(torch.arange(x.shape[-2], device=x.device), x), None

    def _waves(self, times: Tensor, x: Tensor) -> Tensor:
        """What is added to x at each step."""
        angles = _angles(times, x.shape[-1], self.base)
        waves = torch.stack((angles.sin(), angles.cos()), -1).flatten(-2)
        return waves.narrow(-1, 0, x.shape[-1]).to(x.dtype)  # the last of an odd number is a sine

    @override
    def first_cache(self, batch: int, length: int) -> object:
        return ()

    @override
    def step(self, x: Tensor, cache: object, place: Place) -> tuple[Tensor, object]:
        _require_sequences("SinusoidalPositions", x)
        return x + self._waves(place.at, x), cache

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
        return self, grad


# --- Rotary ------------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class Rotation(Record, metaclass=Listed):
    """By how much to turn each pair of features at each step of a sequence; made by `rotation`.

    The pair i of d features is feature i and feature i + d/2: the first half of the features goes with the second half. At
    step t it is turned, as a point of the plane, by the angle a = t base^(-2 i / d):

        y_i = x_i cos a - x_{i + d/2} sin a,    y_{i + d/2} = x_{i + d/2} cos a + x_i sin a

    Written with whole vectors, C = [cos a, cos a], S = [-sin a, sin a], and the halves of x swapped: y = x C + swap(x) S.

    Args:
        cos: C, of shape (T, d).
        sin: S, of shape (T, d): the sines, with their signs.
    """

    cos: Tensor
    sin: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """The features, turned.

        Args:
            x: of shape (..., T, d), such as queries (B, heads, T, d).
        """
        return _turned(x, self.cos, self.sin)

    def backward(self, grad: Tensor) -> Tensor:
        """The vjp of `forward`: a rotation's transpose is its inverse, so grad is turned back, grad C - swap(grad) S.

        Args:
            grad: of shape (..., T, d).
        """
        return _turned(grad, self.cos, -self.sin)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The product x cos + swap(x) sin, with no more than two new arrays."""
    swapped = torch.roll(x, x.shape[-1] // 2, -1)
    return torch.addcmul(swapped.mul_(sin), x, cos)


@with_suggestions
def rotation(
    steps: int,
    features: int,
    *,
    base: float = 10_000.0,
    start: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Rotation:
    """The `Rotation` of the steps of a sequence, for queries and keys of attention.

    The angles are found in float64, and their cosines and sines then rounded.

    Args:
        steps: T, how many.
        features: d, of each head; even.
        base: of the angles base^(-2 i / d) by which the pairs turn from one step to the next; above 1.
        start: the position of the first step; more than 0 where the steps before it are kept from earlier.
        dtype: of what is to be turned.
        device: likewise.

    Raises:
        ValueError: the features are odd, or base is not above 1.

    Source:
        Su, Lu, Pan, Murtadha, Wen and Liu, RoFormer: enhanced transformer with rotary position embedding, 2021. It pairs
        neighbours, features 2 i and 2 i + 1; halves, as most later models have them, are the same up to the order of features.

    >>> from fundl import rotation
    >>> rotation(2, 4).forward(torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]))
    tensor([[1.0000, 1.0000, 0.0000, 0.0000],
            [0.5403, 0.9999, 0.8415, 0.0100]])
    """
    return turning(steps, features, base=base, start=start, dtype=dtype, device=device)


def turning(
    steps: int,
    features: int,
    *,
    base: float,
    start: int = 0,
    dtype: torch.dtype,
    device: torch.device | str | None,
    stretch: Stretch | None = None,
) -> Rotation:
    """`rotation`, for layers, which know what they give."""
    return turning_at(torch.arange(start, start + steps, device=device), features, base=base, dtype=dtype, stretch=stretch)


def turning_at(times: Tensor, features: int, *, base: float, dtype: torch.dtype, stretch: Stretch | None = None) -> Rotation:
    """The rotation of steps (...): cosines and sines (..., features)."""
    _require_base(base)
    if features % 2:
        raise ValueError(f"a rotation turns pairs of features: their number must be even, not {features}")
    angles = _angles(times, features, base, stretch)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return Rotation(torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))


@final
@attrs.frozen(eq=False)
class Rotary(SameShape, Layer[Rotation]):
    """Turns each pair of features by an angle that grows with the step: the layer of `Rotation`, which has the formula.

    The product of a turned query and a turned key depends on how far apart their steps are, and not on where they are.

    Its vjp: grad is turned back.

    Args:
        base: of the angles base^(-2 i / d) by which the pairs turn from one step to the next; 10000 by default, above 1.

    Shape:
        (..., T, d), kept, d even

    Residuals:
        The rotation, 2 T d numbers: for x of shape (B, heads, T, d), 2 / (B heads) of its bytes.

    Raises:
        ValueError: base is not above 1, or the features are odd, or there is no axis of steps.

    Source:
        Su, Lu, Pan, Murtadha, Wen and Liu, RoFormer: enhanced transformer with rotary position embedding, 2021.

    >>> from fundl import Rotary, apply
    >>> apply(Rotary(), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor([[1.0000, 0.0000],
            [0.5403, 0.8415]])
    """

    base: float = 10_000.0

    def __attrs_post_init__(self) -> None:
        _require_base(self.base)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Rotation]:
        if x.ndim < 2:
            raise ValueError(f"Rotary expects an input of shape (..., steps, features), not {tuple(x.shape)}")
        turn = turning(x.shape[-2], x.shape[-1], base=self.base, dtype=x.dtype, device=x.device)
        return turn.forward(x), turn

    @override
    def first_cache(self, batch: int, length: int) -> object:
        return ()

    @override
    def step(self, x: Tensor, cache: object, place: Place) -> tuple[Tensor, object]:
        _require_sequences("Rotary", x)
        return turning_at(place.at, x.shape[-1], base=self.base, dtype=x.dtype).forward(x), cache

    @override
    def backward(self, residuals: Rotation, grad: Tensor) -> tuple[Self, Tensor]:
        return self, residuals.backward(grad)

"""Positions: what tells a layer that sees all steps of a sequence alike where each of them is."""

from typing import Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl.layer import Layer
from fundl.shapes import S
from fundl.tree import Record

# --- Angles ------------------------------------------------------------------------------------------------------------


def _angles(steps: int, features: int, *, base: float, start: int, device: torch.device | str | None) -> Tensor:
    """The angle of each step t for each pair i of features, t base^(-2 i / features): (steps, features / 2).

    In float64, in which the angles of a million steps are still right to ten digits.
    """
    exponents = torch.arange(0, features, 2, dtype=torch.float64, device=device) / -features
    times = torch.arange(start, start + steps, dtype=torch.float64, device=device)
    return times.unsqueeze(1) * base**exponents


def _require_base(base: float) -> None:
    if not 1 < base < float("inf"):
        raise ValueError(f"base must be a finite number above 1, not {base}")


# --- Rotary ------------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class Rotation(Record):
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
        return torch.addcmul(x * self.cos, _swap(x), self.sin)

    def backward(self, grad: Tensor) -> Tensor:
        """The vjp of `forward`: a rotation's transpose is its inverse, so grad is turned back, grad C - swap(grad) S.

        Args:
            grad: of shape (..., T, d).
        """
        return torch.addcmul(grad * self.cos, _swap(grad), self.sin, value=-1)


def _swap(x: Tensor) -> Tensor:
    return torch.roll(x, x.shape[-1] // 2, -1)


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
    >>> rotation(2, 4).forward(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    tensor([[1.0000, 1.0000, 0.0000, 0.0000],
            [0.5403, 0.9999, 0.8415, 0.0100]])
    """
    _require_base(base)
    if features % 2:
        raise ValueError(f"a rotation turns pairs of features: their number must be even, not {features}")
    angles = _angles(steps, features, base=base, start=start, device=device)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return Rotation(torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))


@final
@attrs.frozen(eq=False)
class Rotary(Layer[Rotation]):
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
        turn = rotation(x.shape[-2], x.shape[-1], base=self.base, dtype=x.dtype, device=x.device)
        return turn.forward(x), turn

    @override
    def backward(self, residuals: Rotation, grad: Tensor) -> tuple[Self, Tensor]:
        return self, residuals.backward(grad)

    @override
    def output_shape(self, shape: S) -> S:
        return shape

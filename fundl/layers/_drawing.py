"""What layers share that draw random numbers by a key of their own, and those of them that drop what a mask says."""

from abc import abstractmethod
from typing import ClassVar, Generic, Self

import attrs
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl import random
from fundl._common import dropping
from fundl.layer import Layer
from fundl.layers._same_shape import SameShape
from fundl.random import Key
from fundl.tree import BUFFER

Drawn = TypeVar("Drawn")
"""What backward is to know of what was drawn; there is None where nothing was."""


@attrs.frozen(eq=False, init=False)
class Drawing(SameShape, Layer[Drawn | None], Generic[Drawn]):
    """A layer that draws random numbers if it has a key, and has use for one; else y = x."""

    @property
    @abstractmethod
    def key(self) -> Key | None:
        """What it draws from: a buffer, behind what says how much it changes."""

    @property
    @abstractmethod
    def draws(self) -> bool:
        """Whether it has any use for a key."""

    @abstractmethod
    def _drawn(self, key: Key, x: Tensor) -> tuple[Tensor, Drawn]:
        """What `forward` gives with a key that there is a use for."""

    def __attrs_post_init__(self) -> None:
        key: object = self.key
        if key is not None and not isinstance(key, Tensor):
            raise TypeError(f"{type(self).__name__}'s key is a tensor made by key(seed), split or fold_in, not {key!r}")

    @property
    @override
    def elementwise(self) -> bool:
        return self.key is None

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Drawn | None]:
        return (x, None) if self.key is None or not self.draws else self._drawn(self.key, x)

    @override
    @abstractmethod
    def backward(self, residuals: Drawn | None, grad: Tensor) -> tuple[Self, Tensor]: ...


@attrs.frozen(eq=False)
class Dropping(Drawing[Tensor]):
    """A layer that drops something at random, by a mask that it keeps, and scales up the rest: y = x mask / (1 - rate)."""

    dropped: ClassVar[str]
    """What it drops, as a sentence says it."""

    rate: float
    key: Key | None = attrs.field(default=None, metadata=BUFFER)

    @override
    def __attrs_post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            what = f"{type(self).__name__}'s rate is the probability to drop {self.dropped}"
            raise ValueError(f"{what}, from 0 up to, but not including, 1, not {self.rate}")
        super().__attrs_post_init__()

    @property
    @override
    def draws(self) -> bool:
        return self.rate > 0

    @override
    def backward(self, residuals: Tensor | None, grad: Tensor) -> tuple[Self, Tensor]:
        return self, grad if residuals is None else dropping.masked(grad, residuals, self.rate)

    def _mask(self, key: Key, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A mask that is True where something stays, where another tensor lies."""
        return random.bernoulli(key.to(like.device), shape, probability=1 - self.rate)

"""Where in its sequences a model is run, when it is run a few positions at a time."""

from collections.abc import Callable, Hashable
from typing import Final, TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")


class Place:
    """The positions at which a model is run, for layers that keep something of those before.

    Args:
        at: which position each is of its sequence, (B, T), counted from 0.
        length: how many positions a cache holds.
        used: a number that no position reaches, if one is known that is less than the length.
        is_first: whether the positions are 0 to T - 1 of all sequences, and there are none before.
        writes_over: whether nobody else has the caches, so that they may be written over.
        is_padded: whether some of the positions are padding, behind the end of their sequence.
        last: the one of the positions of each sequence at which the output is wanted, (B,); None for all.
    """

    __slots__ = ("_found", "at", "is_first", "is_padded", "last", "length", "used", "writes_over")

    def __init__(
        self,
        at: Tensor,
        length: int,
        *,
        used: int | None = None,
        is_first: bool = False,
        writes_over: bool = False,
        is_padded: bool = False,
        last: Tensor | None = None,
    ) -> None:
        self.at: Final = at
        self.length: Final = length
        self.used: Final = length if used is None else min(used, length)
        self.is_first: Final = is_first
        self.writes_over: Final = writes_over
        self.is_padded: Final = is_padded
        self.last: Final = last
        self._found = dict[Hashable, object]()

    def once(self, name: Hashable, make: Callable[[], T]) -> T:
        """What is made of the positions, for all layers that ask for what has that name."""
        if name not in self._found:
            self._found[name] = make()
        return cast("T", self._found[name])  # by the name, it is what was made before

    @property
    def distance(self) -> Tensor:
        """How far before each of the positions each of those in a cache is, (B, 1, T, used); less than 0 for later ones."""
        places = self.once("places", lambda: torch.arange(self.used, device=self.at.device))
        return self.once("distance", lambda: (self.at.unsqueeze(2) - places).unsqueeze(1))

    def wanted(self, x: Tensor) -> Tensor:
        """Of (B, T, ...) the positions at which the output is wanted; what follows looks at each by itself."""
        if self.last is None or x.shape[1] != self.at.shape[1]:
            return x
        return x[torch.arange(x.shape[0], device=x.device), self.last].unsqueeze(1)

    def written(self, cache: Tensor, new: Tensor) -> Tensor:
        """A cache (B, length, ...) with what is new at the positions, (B, T, ...)."""
        if self.is_first and self.writes_over:
            cache.narrow(1, 0, new.shape[1]).copy_(new)
            return cache
        rows = self.once("rows", lambda: torch.arange(cache.shape[0], device=cache.device).unsqueeze(1))
        put = torch.index_put_ if self.writes_over else torch.index_put
        return put(cache, (rows, self.at), new)

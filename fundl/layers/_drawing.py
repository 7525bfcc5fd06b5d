"""What layers have in common that draw random numbers: what they refuse, and what a mask leaves."""

from torch import Tensor

from fundl import random
from fundl.random import Key


def require_rate(layer: str, rate: float, dropped: str) -> None:
    """Raise unless a layer's rate is the probability to drop what it says it drops."""
    if not 0 <= rate < 1:
        raise ValueError(f"{layer}'s rate is the probability to drop {dropped}, from 0 up to, but not including, 1, not {rate}")


def require_own_key(layer: str, key: object) -> None:
    """Raise unless a layer's key is one, or None."""
    if key is not None and not isinstance(key, Tensor):
        raise TypeError(f"{layer}'s key is a tensor made by key(seed), split or fold_in, not {key!r}")


def kept(key: Key, shape: tuple[int, ...], rate: float, like: Tensor) -> Tensor:
    """A mask that is True where something stays, as drawn from the key, where another tensor lies."""
    return random.bernoulli(key.to(like.device), shape, probability=1 - rate)

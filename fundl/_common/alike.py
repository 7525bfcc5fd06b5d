"""Models that are alike: of one structure, with tensors of the same shapes, dtypes and devices.

What is checked and looked up of a model depends on nothing else, and takes longer than to make a small one: so it is kept for
the next that is like it.
"""

import contextlib
from collections.abc import Hashable
from typing import Final, Generic, TypeAlias, TypeVar, final

from fundl import tree
from fundl._common.modes import is_traced

T = TypeVar("T")

Likeness: TypeAlias = Hashable

_MOST: Final = 64


def likeness(model: object, *options: Hashable) -> Likeness | None:
    """What models have in common that are alike, with the same options; None for what is no model, or cannot be compared."""
    try:
        leaves, structure = tree.flatten(model)
        kinds = [None if leaf is None else (type(leaf), leaf.shape, leaf.dtype, leaf.device) for leaf in leaves]
        found = (structure, tuple(kinds), options)
        hash(found)
    except Exception:  # whoever asks goes on to tell what is wrong
        return None
    return None if is_traced() else found


@final
class Findings(Generic[T]):
    """What was found of models, by their likeness: of a few dozen, then it begins anew."""

    def __init__(self) -> None:
        self._found: dict[Likeness, T] = {}

    def get(self, like: Likeness | None) -> T | None:
        """What was found of a model that is alike, if there was one."""
        with contextlib.suppress(Exception):  # static fields that cannot be compared, as those with tensors inside
            return self._found.get(like)
        return None

    def keep(self, like: Likeness | None, found: T) -> None:
        """Remember what was found of a model."""
        if like is None:
            return
        if len(self._found) >= _MOST:
            self._found.clear()
        with contextlib.suppress(Exception):  # likewise
            self._found[like] = found

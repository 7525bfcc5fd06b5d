"""Some of the leaves of a tree: those of a part, or those that a function chooses."""

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

Where: TypeAlias = str | Callable[[str, Tensor], bool]
"""Which leaves: the path of a part, as ``"[3].adapter"``, or a function of a leaf's path and the leaf."""


def chooses(where: Where | None, path: str, leaf: Tensor) -> bool:
    """Whether a leaf is chosen."""
    if where is None:
        return True
    return is_in(path, where) if isinstance(where, str) else bool(where(path, leaf))


def is_in(path: str, part: str) -> bool:
    """Whether a path is that of a part, or of something in it."""
    return path.startswith(part) and (not part or path[len(part) : len(part) + 1] in {"", ".", "["})

"""Sizes by the names of torchvision's functions."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


def known(kind: str, sizes: Mapping[str, T], name: str) -> T:
    """The sizes of a name; raises an error that says which there are."""
    if name not in sizes:
        close = get_close_matches(str(name), sizes, 1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no {kind} is named {name!r}: known are {', '.join(sizes)}{meant}")
    return sizes[name]

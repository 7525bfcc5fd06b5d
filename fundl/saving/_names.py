"""Names of other programs' files, and where in a tree their tensors belong."""

import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from fundl.tree import describe

Change: TypeAlias = Callable[[Tensor], Tensor]
To: TypeAlias = str | tuple[str, Change] | None


class Names(Protocol):
    """A map of names and expressions: any dict of them. A Mapping would not do: to a checker, it is not one of names alone."""

    def items(self) -> AbstractSet[tuple[str | re.Pattern[str], To]]: ...


Rename: TypeAlias = Names | Callable[[str], str | None]
"""From the names in a file to paths in a tree: see `load`."""


class Source(NamedTuple):
    """A tensor of a file, by its name there, and how it is changed; as it will be, on the meta device."""

    name: str
    change: Change | None
    like: Tensor


def renamed(tensors: Mapping[str, Tensor], rename: Rename | None) -> dict[str, Source]:
    """The tensors of a file by the paths where they belong; what the map does not know keeps its name."""
    if rename is not None and not callable(rename) and not hasattr(rename, "items"):
        raise TypeError(f"rename must be a dict from names to paths, or a function of a name, not {describe(rename)}")
    rules = [] if rename is None or callable(rename) else [_rule(key, to) for key, to in rename.items()]
    found: dict[str, Source] = {}
    for name, like in tensors.items():
        target = _by_function(rename, name) if callable(rename) else _target(name, rules)
        if target is None:
            continue
        path, change = target
        if path in found:
            raise ValueError(
                f"two tensors of the file are to go to {path or 'its root'}, {found[path].name} and {name}: give rename other"
                " places, or None for one of them"
            )
        found[path] = Source(name, change, like if change is None else _changed(name, like, change))
    return found


def _by_function(rename: Callable[[str], str | None], name: str) -> "Target":
    path: object = rename(name)
    if path is not None and not isinstance(path, str):
        raise TypeError(f"rename must give a path or None for each name, but for {name!r} it gives {path!r}")
    return None if path is None else (path, None)


def changed(source: Source, numbers: Tensor) -> Tensor:
    """The tensor as the tree has it, in memory of its own."""
    if source.change is None or (made := source.change(numbers)) is numbers:
        return numbers
    return made.clone(memory_format=torch.contiguous_format)  # a view would keep all of what it is a part of


def _changed(name: str, like: Tensor, change: Change) -> Tensor:
    try:
        made: object = change(like)
    except Exception as error:
        error.add_note(f"as rename's function changes {name}, {describe(like)}")
        raise
    if not isinstance(made, Tensor):
        raise TypeError(f"rename's function for {name} must make a tensor of a tensor, not {made!r}")
    return torch.empty_like(made, device="meta")


Target: TypeAlias = "tuple[str, Change | None] | None"


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    is_wild: bool
    to: To


def _rule(key: str | re.Pattern[str], to: To) -> _Rule:
    """A row of the map: in a text, each star stands for some text without dots."""
    if isinstance(key, re.Pattern):
        return _Rule(key, is_wild=False, to=to)
    return _Rule(re.compile("([^.]*)".join(map(re.escape, key.split("*")))), is_wild=True, to=to)


def _target(name: str, rules: Sequence[_Rule]) -> Target:
    """Where a tensor belongs, by the first rule that its whole name fits."""
    for pattern, is_wild, to in rules:
        if match := pattern.fullmatch(name):
            if to is None:
                return None
            path, change = to if isinstance(to, tuple) else (to, None)
            return (_filled(path, match) if is_wild else match.expand(path)), change
    return name, None


def _filled(path: str, match: "re.Match[str]") -> str:
    """The path, each star of it filled with what the star in its place stood for."""
    first, *rest = path.split("*")
    if len(rest) > len(match.groups()):
        raise ValueError(
            f"rename has {path!r} with {len(rest)} stars, but in the name that leads to it only {len(match.groups())}: give"
            " both as many"
        )
    return first + "".join(f"{text}{after}" for text, after in zip(match.groups(), rest, strict=False))

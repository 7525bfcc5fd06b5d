"""One place of a tree, to read it or to make a new tree in which it is another."""

import copy
import operator
from collections.abc import Callable
from typing import Generic, TypeVar, cast

import attrs

from fundl.tree._nodes import evolved, rebuilt
from fundl.tree._records import Record
from fundl.tree._structure import T

V = TypeVar("V")


def at(tree: T, where: Callable[[T], V]) -> "Place[T, V]":
    """One place of a tree, to read it or to make a new tree in which it is another.

    Args:
        tree: a record, tuple, list or dict of them.
        where: goes from the tree to the place by attributes and indices, and does nothing else.

    Raises:
        TypeError: `where` did something else than going to a place.

    >>> import torch
    >>> from fundl import tree
    >>> pair = (torch.ones(1), {"rate": torch.zeros(1)})
    >>> tree.at(pair, lambda pair: pair[1]["rate"]).set(torch.ones(1))
    (tensor([1.]), {'rate': tensor([1.])})
    """
    # The trail stands in for the tree while `where` walks it: it answers attributes and indices alone.
    try:
        trail = where(cast("T", _Trail(())))
    except Exception as error:  # of any kind: what it asks for is not there
        raise TypeError(
            "`where` goes to a place of the tree by attributes and indices alone, such as `lambda model: model[0].weight`; what"
            f" else it did failed ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(trail, _Trail):
        raise TypeError(f"`where` must return a place of the tree, such as `lambda model: model[0].weight`, not {trail!r}")
    return Place(tree, trail._steps)


class _Trail:
    """Records which attributes and indices were asked of it."""

    __slots__ = ("_steps",)

    def __init__(self, steps: tuple["_Step", ...]) -> None:
        self._steps = steps

    def __getattr__(self, name: str) -> "_Trail":
        return _Trail((*self._steps, _Step(name, is_attribute=True)))

    def __getitem__(self, key: int | str) -> "_Trail":
        return _Trail((*self._steps, _Step(key, is_attribute=False)))


@attrs.frozen
class _Step:
    """One step into a tree: an attribute's name, or an index or key."""

    key: int | str
    is_attribute: bool

    def read(self, node: object) -> object:
        if self.is_attribute:
            return getattr(node, str(self.key))
        return operator.getitem(cast("dict[object, object]", node), self.key)

    def replaced(self, node: object, value: object) -> object:
        """The node with the child at this step replaced."""
        match node:
            case Record() if self.is_attribute:
                return evolved(node, {str(self.key): value})
            case tuple() if self.is_attribute and self.key in (names := getattr(node, "_fields", ())):
                return rebuilt(node, [value if name == self.key else part for name, part in zip(names, node, strict=True)])
            case tuple() | list() if isinstance(self.key, int):
                index = range(len(node))[self.key]
                return rebuilt(node, [*node[:index], value, *node[index + 1 :]])
            case dict():
                new = copy.copy(node)
                new[self.key] = value
                return new
            case _:
                raise TypeError(f"a {type(node).__name__} has no part {self.key!r} that can be replaced")


@attrs.frozen(eq=False)
class Place(Generic[T, V]):
    """One place of a tree; made by `at`."""

    tree: T
    _steps: tuple[_Step, ...]

    def _nodes(self) -> list[object]:
        """The tree, and what each step leads to."""
        nodes: list[object] = [self.tree]
        for step in self._steps:
            nodes.append(step.read(nodes[-1]))
        return nodes

    def get(self) -> V:
        """What is there."""
        return cast("V", self._nodes()[-1])  # `where` said so: it goes from a T to a V by the steps that were just repeated

    def set(self, value: V) -> T:
        """The tree with another value there; the tree itself stays as it is."""
        new: object = value
        for node, step in zip(self._nodes()[-2::-1], reversed(self._steps), strict=True):
            new = step.replaced(node, new)
        return cast("T", new)  # made of a T by replacing one part by another of the same type

    def apply(self, function: Callable[[V], V]) -> T:
        """The tree with a function of the value there in its place."""
        return self.set(function(self.get()))

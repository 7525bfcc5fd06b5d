"""A place of a tree, or several, to read what is there or to make a new tree in which it is another."""

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, cast

import attrs

from fundl.tree._nodes import evolved, rebuilt
from fundl.tree._records import Record, describe
from fundl.tree._structure import T

V = TypeVar("V")


def at(tree: T, where: Callable[[T], V]) -> "Place[T, V]":
    """A place of a tree, or several, to read what is there or to make a new tree in which it is another.

    Args:
        tree: a record, tuple, list or dict of them.
        where: goes from the tree to the place by attributes and indices, and does nothing else. Or to several places, of which
            it returns the tuple or list: then what is read, and set, is such a tuple or list.

    Raises:
        TypeError: `where` did something else than going to a place.
        ValueError: one of several places is in another one.

    >>> import torch
    >>> from fundl import tree
    >>> pair = (torch.ones(1), {"rate": torch.zeros(1)})
    >>> tree.at(pair, lambda pair: pair[1]["rate"]).set(torch.ones(1))
    (tensor([1.]), {'rate': tensor([1.])})
    >>> tree.at(pair, lambda pair: (pair[0], pair[1]["rate"])).apply(lambda places: (places[1], places[0]))
    (tensor([0.]), {'rate': tensor([1.])})
    """
    # The trail stands in for the tree while `where` walks it: it answers attributes and indices alone.
    try:
        trail = where(cast("T", _Trail(())))
    except Exception as error:  # of any kind: what it asks for is not there
        raise TypeError(
            "`where` goes to a place of the tree by attributes and indices alone, such as `lambda model: model[0].weight`; what"
            f" else it did failed ({type(error).__name__}: {error})"
        ) from error
    trails: object = trail
    if isinstance(trails, _Trail):
        return Place(tree, (trails._steps,), None)
    if isinstance(trails, tuple | list) and trails and type(trails) in {tuple, list}:
        routes = [one._steps for one in trails if isinstance(one, _Trail)]
        if len(routes) == len(trails):
            _require_apart(routes)
            return Place(tree, tuple(routes), type(trails))
    raise TypeError(
        "`where` must return a place of the tree, or several in a tuple, such as `lambda model: model[0].weight`, not"
        f" {describe(trails) if isinstance(trails, tuple | list) else repr(trails)}"
    )


def _require_apart(routes: Sequence[tuple["_Step", ...]]) -> None:
    for place, one in enumerate(routes):
        for other, longer in enumerate(routes):
            if place != other and longer[: len(one)] == one:
                raise ValueError(
                    f"of several places, none is in another one, but number {other} is in number {place}: set one, and then the"
                    " other, tree.at(tree.at(...).set(...), ...)"
                )


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
    """A place of a tree, or several; made by `at`."""

    tree: T
    _routes: tuple[tuple[_Step, ...], ...]
    _kind: type[tuple[object, ...]] | type[list[object]] | None  # of several places

    def get(self) -> V:
        """What is there; of several places the tuple or list of it."""
        found = [_nodes(self.tree, route)[-1] for route in self._routes]
        # `where` said so: it goes from a T to a V by the steps that were just repeated.
        return cast("V", found[0] if self._kind is None else self._kind(found))

    def set(self, value: V) -> T:
        """The tree with another value there, of several places with one for each; the tree itself stays as it is."""
        values: Sequence[object] = [value]
        if self._kind is not None:
            if not isinstance(value, tuple | list) or len(value) != len(self._routes):
                raise ValueError(
                    f"there are {len(self._routes)} places, and one value is needed for each, in a tuple or list: not"
                    f" {describe(value)}"
                )
            values = value
        tree: object = self.tree
        for route, new in zip(self._routes, values, strict=True):
            tree = _with(tree, route, new)
        return cast("T", tree)  # made of a T by replacing parts by others of the same type

    def apply(self, function: Callable[[V], V]) -> T:
        """The tree with a function of the value there in its place."""
        return self.set(function(self.get()))


def _nodes(tree: object, route: tuple[_Step, ...]) -> list[object]:
    """The tree, and what each step leads to."""
    nodes = [tree]
    for step in route:
        nodes.append(step.read(nodes[-1]))
    return nodes


def _with(tree: object, route: tuple[_Step, ...], value: object) -> object:
    """The tree with another value at the end of a route."""
    for node, step in zip(_nodes(tree, route)[-2::-1], reversed(route), strict=True):
        value = step.replaced(node, value)
    return value

"""Nodes of trees: their parts, nodes made of other parts, and the records among them."""

import copy
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeVar, cast

import attrs
from torch import Tensor

from fundl.tree._records import Record, describe
from fundl.tree._structure import T, flatten

R = TypeVar("R")


def parts(node: object) -> list[tuple[str, object]]:
    """The parts of a node, each with the step that leads to it as one would write it: ``.weight``, ``[0]``, ``['a']``."""
    match node:
        case Record():
            return [(f".{name}", getattr(node, name)) for name in node.children]
        case tuple() | list():
            names: Sequence[str] = getattr(node, "_fields", ())  # of a named tuple
            steps = [f".{name}" for name in names] or [f"[{index}]" for index in range(len(node))]
            return [*zip(steps, node, strict=True)]
        case dict():
            return [(f"[{key!r}]", part) for key, part in node.items()]
        case _:
            return []


def rebuilt(sequence: Sequence[object], parts: Sequence[object]) -> object:
    """The parts as a list, tuple or named tuple, whichever the sequence is."""
    if isinstance(sequence, list):
        return [*parts]
    if type(sequence) is tuple:
        return tuple(parts)
    make: Callable[[Iterable[object]], object] = operator.attrgetter("_make")(type(sequence))  # every named tuple has it
    return make(parts)


def evolved(record: Record, changes: Mapping[str, object]) -> Record:
    """The record with some fields changed, through its constructor; a private field goes in without its underscore."""
    aliases = {field.name: field.alias for field in attrs.fields(type(record))}
    return attrs.evolve(record, **{aliases[name]: value for name, value in changes.items()})


def children(record: Record) -> list[object]:
    """The children of a record, in order."""
    return [getattr(record, name) for name in record.children]


def with_children(record: Record, children: Sequence[object]) -> Record:
    """The record with other children, past its constructor: in half a microsecond, where nothing is to be checked."""
    return record._with_children(*children)


# --- Records -----------------------------------------------------------------------------------------------------------


def records(tree: object) -> list[Record]:
    """Every record of a tree, outer before inner, from left to right; of records that are stacked, each of them."""
    return [record for record, _ in records_and_buffers(tree)]


def records_of(tree: object, cls: type[R]) -> list[R]:
    """The `records` of a tree that are of a class: all layers that are a `Linear`, say, from left to right.

    To replace them, write ``tree.map_records`` with a function that looks at the class.

    Args:
        tree: a model, or any other tree.
        cls: a class of records, or one that it derives from.

    >>> from fundl import Linear, ReLU, compose, linear, tree
    >>> [layer.weight.shape[0] for layer in tree.records_of(compose(linear(2, 3), ReLU(), linear(3, 1)), Linear)]
    [3, 1]
    """
    unchecked: object = cls
    if not isinstance(unchecked, type):
        raise TypeError(f"cls is a class, such as Linear, not {describe(cls)}")
    return [record for record in records(tree) if isinstance(record, cls)]


def outer_records(tree: object) -> list[Record]:
    """The records of a tree that are inside no other, from left to right; stacked ones as they are."""
    return [tree] if isinstance(tree, Record) else [record for part in _held(tree) for record in outer_records(part)]


def _held(tree: object) -> Iterable[object]:
    """The parts of a container; `parts` would write out the steps, and `mixed_precision` comes here at each run."""
    if isinstance(tree, tuple | list):
        return tree
    return tree.values() if isinstance(tree, dict) else ()


def records_and_buffers(tree: object) -> list[tuple[Record, bool]]:
    """The `records`, each with whether it is inside a buffer, where none of its tensors is trainable."""
    found: list[tuple[Record, bool]] = []
    _find(tree, found, in_buffer=False)
    return found


def _find(tree: object, found: list[tuple[Record, bool]], *, in_buffer: bool) -> None:
    if not isinstance(tree, Record):
        for part in _held(tree):
            _find(part, found, in_buffer=in_buffer)
        return
    found.append((tree, in_buffer))
    for name in tree.children:
        if _is_tree(getattr(tree, name)):
            for part in tree.trees_of(name):
                _find(part, found, in_buffer=in_buffer or name not in tree.trainable)


def _is_tree(child: object) -> bool:
    """Whether there may be records in a child: most are tensors, and have none."""
    return child is not None and not isinstance(child, Tensor)


def misplaced_tensors(tree: object) -> list[str]:
    """The fields of a tree's records that hold a tensor though their annotation names none; there should be none.

    Such a tensor would be static: no gradient, no optimizer and no file would see it.
    """
    return static_fields(tree, lambda value: isinstance(value, Tensor))


def static_fields(tree: object, holds: Callable[[object], bool]) -> list[str]:
    """The static fields of a tree's records that hold a thing of some kind, by the names of their classes and their own."""
    return [
        f"{type(record).__name__}.{name}"
        for record, _ in records_and_buffers(tree)
        for name in record._static
        if not isinstance(value := getattr(record, name), _PLAIN) and _holds(value, holds)
    ]


def _holds(value: object, holds: Callable[[object], bool]) -> bool:
    """Whether a static field is, or a container or record there has, a thing of some kind."""
    return any(map(holds, flatten(value)[0])) if isinstance(value, _NODES) else holds(value)


_PLAIN: Final = (int, float, str, type(None))  # which hold nothing
_NODES: Final = (Record, tuple, list, dict)


def map_records(function: Callable[[Record], Record], tree: T) -> T:
    """Replace each record of a tree by a function of it, outer before inner, in the order of `records`.

    The function sees a record whose inner records are still the old ones; those of what it returns come next. If it puts
    something around a record, as `frozen` does, it does not see that record again, only those in it.
    """
    if not callable(function):
        raise TypeError(f"the function comes first, tree.map_records(function, tree), but here is {describe(function)}")
    try:
        mapped = _map_records(function, tree)
    except RecursionError as error:
        raise RecursionError(
            "the function of map_records sees what it returns again, part by part, and so finds no end: it may put a layer"
            " around a record that it was given, but not around a new one of the kind that it looks for"
        ) from error
    return cast("T", mapped)  # a record is replaced by one of its class: the tree keeps its type


def _map_records(function: Callable[[Record], Record], tree: object, seen: tuple[Record, ...] = ()) -> object:
    match tree:
        case Record():
            new = tree if seen and any(tree is one for one in seen) else function(tree)
            seen = seen if new is tree else (*seen, tree)
            changed: dict[str, object] = {}
            for name in new.children:
                if not _is_tree(getattr(new, name)):
                    continue
                before = new.trees_of(name)
                after = [_map_records(function, part, seen) for part in before]
                if any(part is not old for part, old in zip(after, before, strict=True)):
                    changed[name] = new.child_of(name, before, after)
            return evolved(new, changed) if changed else new
        case tuple() | list():
            mapped = [_map_records(function, part, seen) for part in tree]
            unchanged = all(part is old for part, old in zip(mapped, tree, strict=True))
            return tree if unchanged else rebuilt(tree, mapped)
        case dict():
            new_dict = copy.copy(tree)
            new_dict.update({key: _map_records(function, part, seen) for key, part in tree.items()})
            return new_dict
        case _:
            return tree

"""Trees as a process would have them that has all of what several have parts of."""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import attrs
from torch import Tensor

from fundl.tree._divided import Divided, Split, holds, is_divided
from fundl.tree._nodes import evolved, rebuilt
from fundl.tree._records import Record
from fundl.tree._structure import flatten
from fundl.tree._trainable import trainable_leaves

Cuts: TypeAlias = tuple[Split, ...]
"""What a leaf is a part of, and that of, and so on: () of one that is whole. Their axes are counted from the last one, -1."""


def as_whole(tree: object) -> object:
    """The tree as a process would have it that has all, and nothing divided; what is divided is on the meta device.

    A path in it tells nothing of how the tree is divided.
    """
    return whole_and_cuts(tree)[0]


def cuts_of(tree: object) -> tuple[Cuts, ...]:
    """What the trainable leaves of a tree are parts of, in their order; () if there is nothing divided in it."""
    if not holds(is_divided, tree):
        return ()
    cuts = dict(zip(map(id, flatten(tree)[0]), whole_and_cuts(tree)[1], strict=True))
    found = tuple([cuts[id(leaf)] for leaf in trainable_leaves(tree)])
    return found if any(found) else ()


def whole_and_cuts(tree: object) -> tuple[object, Sequence[Cuts]]:
    """The tree `as_whole`, and what each leaf is a part of, in the order of `flatten`."""
    cuts: list[Cuts] = []
    return _whole(tree, cuts), cuts


def _whole(node: object, cuts: list[Cuts]) -> object:
    if not holds(is_divided, node):
        cuts += [()] * len(flatten(node)[0])
        return node
    if isinstance(node, Divided) and (whole := node.as_whole()) is not node:
        return _put_together(node, whole, cuts)
    if isinstance(node, Record):
        changed = {name: _child(node, name, cuts) for name in node.children}
        return evolved(node, changed)
    if isinstance(node, dict):
        changed_dict = copy.copy(node)  # its class and order stay
        for key in node if isinstance(node, OrderedDict) else sorted(node):  # as `flatten` goes through it
            changed_dict[key] = _whole(node[key], cuts)
        return changed_dict
    return rebuilt(node, [_whole(part, cuts) for part in node]) if isinstance(node, tuple | list) else node


def _put_together(record: Divided, whole: object, cuts: list[Cuts]) -> object:
    splits = dict(zip(map(id, trainable_leaves(record)), record.splits(), strict=True))
    further, inner = whole_and_cuts(whole)
    if not flatten(record)[0]:  # others have all of it
        return further
    for leaf, rest in zip(flatten(record)[0], inner, strict=True):
        split = splits.get(id(leaf))
        cuts.append(rest if leaf is None or split is None else (_from_last(split, leaf), *rest))
    return further


def _from_last(split: Split, leaf: Tensor) -> Split:
    return attrs.evolve(split, axis=split.axis - leaf.ndim) if split.axis >= 0 else split


def _child(record: Record, name: str, cuts: list[Cuts]) -> object:
    """A child of a record; where several trees are stacked in it, their leaves are parts of the same."""
    child = getattr(record, name)
    if not holds(is_divided, child):
        return _whole(child, cuts)
    before = record.trees_of(name)
    after = [_whole(before[0], cuts), *[as_whole(one) for one in before[1:]]]
    return record.child_of(name, before, after)


def with_whole_shapes(leaves: Iterable[Tensor], cuts: Iterable[Cuts]) -> list[Tensor]:
    """The leaves, of which those that are cut are as large as what they are first a part of: on the meta device."""
    return [of[0].shown(leaf) if of else leaf for leaf, of in zip(leaves, cuts, strict=True)]

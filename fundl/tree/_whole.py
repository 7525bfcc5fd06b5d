"""Trees as a process would have them that has all of what several have parts of."""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import attrs
from torch import Tensor

from fundl.tree._divided import Cuts, Divided, Division, Held, Piece, holds, is_divided
from fundl.tree._nodes import evolved, rebuilt
from fundl.tree._records import Record
from fundl.tree._structure import flatten
from fundl.tree._trainable import trainable_leaves


def as_whole(tree: object) -> object:
    """The tree as a process would have it that has all, and nothing divided; what is divided is on the meta device.

    A path in it tells nothing of how the tree is divided.
    """
    return whole_and_pieces(tree)[0]


def cuts_of(tree: object) -> tuple[Cuts, ...]:
    """What the trainable leaves of a tree are parts of, in their order; () if there is nothing divided in it."""
    if not holds(is_divided, tree):
        return ()
    cuts = {id(piece.own): piece.cuts for piece in whole_and_pieces(tree)[1] if piece.is_here}
    found = tuple([cuts[id(leaf)] for leaf in trainable_leaves(tree)])
    return found if any(found) else ()


def whole_and_pieces(tree: object) -> tuple[object, Sequence[Piece]]:
    """The tree `as_whole`, and what this process has of each of its leaves, in the order of `flatten`.

    Those that are here are the leaves of the tree, in their order.
    """
    pieces: list[Piece] = []
    whole = _whole(tree, pieces)
    here = [place for place, piece in enumerate(pieces) if piece.is_here]
    for place, own in zip(here, flatten(tree)[0], strict=True):
        if pieces[place].own is not own:  # it is of a tree that is stacked there
            pieces[place] = attrs.evolve(pieces[place], own=own)
    return whole, pieces


def _whole(node: object, pieces: list[Piece]) -> object:
    if not holds(is_divided, node):
        pieces += map(Piece, flatten(node)[0])
        return node
    if isinstance(node, Divided) and (whole := node.as_whole()) is not node:
        return _put_together(node, whole, pieces)
    if isinstance(node, Record):
        changed = {name: _child(node, name, pieces) for name in node.children}
        return evolved(node, changed)
    if isinstance(node, dict):
        changed_dict = copy.copy(node)  # its class and order stay
        for key in node if isinstance(node, OrderedDict) else sorted(node):  # as `flatten` goes through it
            changed_dict[key] = _whole(node[key], pieces)
        return changed_dict
    return _sequence(node, pieces) if isinstance(node, tuple | list) else node


def _sequence(node: Sequence[object], pieces: list[Piece]) -> object:
    beyond, parts = _beyond(node), list[object]()
    for part in node:
        first = len(pieces)
        parts.append(_whole(part, pieces))
        if beyond is not None and _elsewhere(part) is None:
            held = Held(beyond, beyond.rank)
            pieces[first:] = [attrs.evolve(piece, held=held) for piece in pieces[first:]]
    return rebuilt(node, parts)


def _beyond(node: Sequence[object]) -> Division | None:
    """Those who have the layers of a tuple that are in the places of others; None where all have the same."""
    found = [_elsewhere(part) for part in node]
    return next(filter(None, found), None) if None in found else None  # of a tuple inside there may be nothing here


def _elsewhere(node: object) -> Division | None:
    """Those of whom another one has all of this; None where this process has some of it."""
    if isinstance(node, Divided):
        return node.beyond
    if not isinstance(node, tuple) or not node:
        return None
    found = [_elsewhere(part) for part in node]
    return None if None in found else found[0]


def _put_together(record: Divided, whole: object, pieces: list[Piece]) -> object:
    further, inner = whole_and_pieces(whole)
    for first, then in zip(record.pieces(), inner, strict=True):
        pieces.append(attrs.evolve(first, cuts=(*first.cuts, *then.cuts), held=first.held or then.held))
    return further


def _child(record: Record, name: str, pieces: list[Piece]) -> object:
    """A child of a record; where several trees are stacked in it, their leaves are parts of the same."""
    child = getattr(record, name)
    if not holds(is_divided, child):
        return _whole(child, pieces)
    before = record.trees_of(name)
    after = [_whole(before[0], pieces), *[as_whole(one) for one in before[1:]]]
    return record.child_of(name, before, after)


def with_all_layers(node: object) -> object:
    """The tree with the layers of others in their places, as these have them, on the meta device."""
    if isinstance(node, Divided) and node.beyond is not None:
        return node.as_whole()
    if isinstance(node, dict):
        changed = copy.copy(node)
        changed.update({key: with_all_layers(part) for key, part in node.items()})
        return changed
    return rebuilt(node, [with_all_layers(part) for part in node]) if isinstance(node, tuple | list) else node


def with_whole_shapes(leaves: Iterable[Tensor], cuts: Iterable[Cuts]) -> list[Tensor]:
    """The leaves, of which those that are cut are as large as what they are first a part of: on the meta device."""
    return [of[0].shown(leaf) if of else leaf for leaf, of in zip(leaves, cuts, strict=True)]

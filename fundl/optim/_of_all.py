"""The state of an optimizer whose parameters are in stages, as one process would have it that has all of them."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar, cast, final

import attrs
from torch import Tensor

from fundl import tree
from fundl.optim.flat import OfSome, is_part
from fundl.tree import Cuts, Held, Outline, Piece, describe

S = TypeVar("S")


@final
@attrs.frozen
class StateOfAll:
    """What a state is for all parameters, of which this process has some.

    Args:
        outline: of the state for the parameters as each stage has them.
        cuts: for each leaf of that, what it is a part of.
        held: and who has it, where not all have.
        here: and whether this process has it.
    """

    outline: Outline
    cuts: tuple[Cuts, ...]
    held: tuple[Held | None, ...]
    here: tuple[bool, ...]

    def whole(self, own: S) -> S:
        """The state of the whole, with what of it is here and no part; all else is on the meta device."""
        leaves, structure = tree.flatten(self.outline.on("meta"))
        given = iter(tree.flatten(own)[0])
        for place, (leaf, cuts, here) in enumerate(zip(leaves, self.cuts, self.here, strict=True)):
            mine, shown = next(given) if here else leaf, leaf
            for cut in cuts:
                shown = None if shown is None else cut.shown(shown)
            leaves[place] = shown if cuts else mine
        return cast("S", tree.unflatten(structure, leaves))  # `start` makes both

    def pieces(self, own: S) -> Sequence[Piece]:
        """What this process has of each leaf."""
        given = iter(tree.flatten(own)[0])
        rows = zip(self.cuts, self.held, self.here, strict=True)
        return [Piece(next(given) if here else None, cuts, held, here) for cuts, held, here in rows]


def state_of_all(params: object, own: S, start: Callable[[object], S]) -> StateOfAll | None:
    """What the state is for all parameters; None where this process has all of them.

    Args:
        params: of this process.
        own: the state for them.
        start: makes the state for params, which have no values here.

    Raises:
        TypeError: the state does not tell what of it belongs to which of the params.
    """
    if tree.beyond_of(tree.splits_of(params)) is None:
        return None
    whole, pieces = tree.whole_and_pieces(params)
    by_leaf = dict(zip(map(id, tree.flatten(whole)[0]), pieces, strict=True))
    try:
        of_all = start(tree.map(lambda leaf: leaf.to("meta"), tree.with_all_layers(params)))
    except RuntimeError as error:
        error.add_note("the first state was made for the parameters of other stages, too: these have no values here")
        raise
    found = _pieces(own, of_all, tuple([by_leaf[id(leaf)] for leaf in tree.trainable_leaves(whole)]))
    made = StateOfAll(
        Outline.of(of_all),
        tuple([piece.cuts for piece in found]),
        tuple([piece.held for piece in found]),
        tuple([piece.is_here for piece in found]),
    )
    _require_mine(own, made)
    return made


def _pieces(own: object, of_all: object, params: tuple[Piece, ...]) -> list[Piece]:
    """What this process has of the leaves of a state of all params; of its own there may be nothing.

    A tuple that has a tensor for each of the params has other lengths in the two.
    """
    if of_all is None or isinstance(of_all, Tensor):
        return [_of_several(params)]
    if isinstance(of_all, OfSome):
        mine = own.portions(tuple([piece for piece in params if piece.is_here])) if isinstance(own, OfSome) else ()
        return _of_parts([part for part, _ in mine], of_all.portions(params))
    if isinstance(of_all, tree.Divided):  # it says itself what its leaves are parts of
        params = tuple([attrs.evolve(piece, cuts=()) for piece in params])
    elif isinstance(of_all, tuple | list) and _has_one_for_each(own, of_all, params):
        return [
            piece if is_part(leaf, piece.cuts) else attrs.evolve(piece, cuts=())
            for leaf, piece in zip(of_all, params, strict=True)
        ]
    return _of_parts(_parts(own), [(part, params) for part in _parts(of_all)])


def _has_one_for_each(own: object, of_all: Sequence[object], params: Sequence[Piece]) -> bool:
    is_one = len(of_all) == len(params) and all(isinstance(leaf, Tensor) for leaf in of_all)
    return is_one and (not isinstance(own, tuple | list) or len(own) != len(of_all))


def _of_parts(own: Sequence[object], of_all: Sequence[tuple[object, tuple[Piece, ...]]]) -> list[Piece]:
    mine = own if len(own) == len(of_all) else [None] * len(of_all)
    return [piece for one, (part, its) in zip(mine, of_all, strict=True) for piece in _pieces(one, part, its)]


def _parts(node: object) -> Sequence[object]:
    """The parts of a node, in the order of `flatten`."""
    if isinstance(node, dict) and not isinstance(node, OrderedDict):
        return [node[key] for key in sorted(node)]
    return [part for _, part in tree.parts(node)]


def _of_several(params: Sequence[Piece]) -> Piece:
    """What all have who have some of these params."""
    held = [piece.held for piece in params if piece.held is not None]
    havers = {one.giver for one in held}
    if not held or len(havers) == held[0].among.size:
        return Piece(None)
    among = held[0].among
    return Piece(None, (), Held(among, min(havers)), among.rank in havers)


def _require_mine(own: object, of_all: StateOfAll) -> None:
    """Raise unless what is found to be here is what is here."""
    expected = [kind for kind, here in zip(of_all.outline.kinds, of_all.here, strict=True) if here]
    found = Outline.of(own).kinds
    if expected != [*found]:
        raise TypeError(
            f"of the optimizer's state it cannot be told what belongs to which of the parameters, which are in stages: it is"
            f" {describe(own)}. Let it have a tensor for each of them in a tuple, and such a tuple for each thing that it"
            " remembers"
        )

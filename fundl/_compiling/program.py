"""Compiled forms, and what becomes of the arguments that they write their results over."""

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import cast

import attrs
from torch import Tensor

from fundl._compiling import inductor, torch_private
from fundl._compiling.kinds import Kind, Like
from fundl._compiling.tracing import Traced, source_of
from fundl._compiling.walk import Leaf, children, flatten, replace, with_parts


@attrs.frozen(eq=False)
class Heir:
    """What becomes of a donated argument.

    Args:
        name: of the argument.
        place: of it, among all.
        leaves: from which to which of the leaves of all arguments are its own.
        part: of the result, that takes its place; None for all of the result.
        heir: that part: a tree like the argument, of leaves of the kind "heir".
        sources: what the heir's tensors are.
        kind: of both, something unique.
    """

    name: str
    place: int
    leaves: range
    part: int | None
    heir: object
    sources: tuple[torch_private.Source, ...]
    kind: object


@attrs.frozen(eq=False)
class Program:
    """A compiled form.

    Args:
        run: what runs it.
        library: the folder that it is in.
        kind: of the arguments that it is for.
        constants: its last inputs.
        result: made of its outputs.
        outputs: how many there are.
        slots: tensors that it writes its outputs to, its very last inputs; none if it returns them.
        donated: the arguments that it writes to.
    """

    run: inductor.Run
    library: Path
    kind: Kind
    constants: list[Tensor]
    result: object
    outputs: int
    slots: tuple[Like, ...]
    donated: tuple[Heir, ...]


def _map_leaves(function: Callable[[Leaf], Leaf], tree: object) -> object:
    leaves = flatten(tree, "", constants=True).leaves
    return replace(tree, iter([function(leaf) for leaf in cast("list[Leaf]", leaves)]))


def find_heir(
    traced: Traced, signature: Hashable, examples: Sequence[Tensor], taken: Sequence[int | None], *, whole: bool
) -> tuple[int | None, object, tuple[torch_private.Source, ...]] | None:
    """The part of the result that can take the place of a donated tree: where it is, what it is, where it comes from.

    Args:
        traced: gives the result.
        signature: of the donated tree.
        examples: its tensors.
        taken: the parts that are the heirs of others.
        whole: whether all of the result may be the heir.
    """
    parts: list[tuple[int | None, object]] = [(None, traced.result)] if whole else []
    if isinstance(traced.result, tuple):
        parts += enumerate(part for _, part in children(traced.result, ""))
    for place, part in parts:
        flat = flatten(part, "", constants=True)
        leaves = cast("list[Leaf]", flat.leaves)
        if place not in taken and flat.signature == signature and all(map(traced.is_like, leaves, examples)):
            heirs = iter([Leaf("heir", number) for number in range(len(leaves))])
            return place, replace(part, heirs), tuple(map(source_of, leaves))
    return None


def write_back(traced: Traced, donated: Sequence[Heir], inputs: int) -> tuple[torch_private.Graph, object, int, list[Tensor]]:
    """The graph that writes over donated arguments, what the result is made of then, and of how many further tensors.

    These, too, it writes to tensors that it is given, if they are contiguous: inductor puts what it computes on the way on the
    stack, if nothing is returned. Last come tensors like them, if so.

    Args:
        traced: the function.
        donated: the arguments.
        inputs: how many the graph has.
    """
    mine = {number for one in donated for number in one.leaves}
    returned: list[Leaf] = []

    def elsewhere(leaf: Leaf) -> Leaf:
        if leaf.kind == "constant" or (leaf.kind == "input" and leaf.index not in mine):
            return leaf
        same = (number for number, old in enumerate(returned) if (old.kind, old.index) == (leaf.kind, leaf.index))
        if (number := next(same, None)) is None:
            number = len(returned)
            returned.append(leaf)
        return Leaf("output", number)

    places = {one.part: Leaf("tree", number) for number, one in enumerate(donated)}
    if None in places:
        result: object = places[None]
    else:
        parts = enumerate(part for _, part in children(traced.result, ""))
        result = with_parts(traced.result, [places.get(i) or _map_leaves(elsewhere, part) for i, part in parts])
    changes = [change for one in donated for change in zip(one.leaves, one.sources, strict=True)]
    writes = [(number, source) for number, source in changes if source != ("input", number)]
    outputs = [leaf.index for leaf in returned]
    if not all(leaf.kind == "output" and traced.graph.is_contiguous(leaf.index) for leaf in returned):
        return traced.graph.write_back(writes, [*map(source_of, returned)]), result, len(returned), []
    graph, slots = traced.graph.with_slots(outputs)
    writes += [(inputs + number, ("output", output)) for number, output in enumerate(outputs)]
    return graph.write_back(writes, []), result, len(returned), slots

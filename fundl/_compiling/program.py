"""Compiled programs of `jit`, and what takes the place of the arguments that they write their results over."""

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import cast

import attrs
from torch import Tensor

from fundl._compiling import inductor
from fundl._compiling.cache_keys import CacheKey, TensorSpec
from fundl._compiling.graphs import Graph, Source
from fundl._compiling.tracing import Traced, source_of
from fundl._compiling.trees import Leaf, children, flatten, replace, with_parts


@attrs.frozen(eq=False)
class DonatedArgument:
    """A donated argument, and the part of the result that is written over it and takes its place.

    Args:
        name: of the argument.
        place: of it, among all.
        leaves: from which to which of the leaves of all arguments are its own.
        part: number of the part of the result; None for all of the result.
        replacement: that part: a tree like the argument, of leaves "over donated".
        sources: where the graph has the replacement's tensors.
        key: one object for all arguments of that place and structure; a `Returned` has it as well.
    """

    name: str
    place: int
    leaves: range
    part: int | None
    replacement: object
    sources: tuple[Source, ...]
    key: object


@attrs.frozen(eq=False)
class Program:
    """A compiled program.

    Args:
        run: runs it.
        library: the folder that it is in.
        key: of the arguments that it is for.
        constants: its last inputs.
        result: made of its outputs.
        outputs: how many there are.
        slots: what the tensors are like that it writes its outputs to, its very last inputs; none if it returns its outputs.
        donated: the arguments that it writes to.
    """

    run: inductor.Run
    library: Path
    key: CacheKey
    constants: list[Tensor]
    result: object
    outputs: int
    slots: tuple[TensorSpec, ...]
    donated: tuple[DonatedArgument, ...]


def find_replacement(
    traced: Traced, signature: Hashable, examples: Sequence[Tensor], taken: Sequence[int | None], *, or_all: bool
) -> tuple[int | None, object, tuple[Source, ...]] | None:
    """The part of the result that can be written over a donated tree: its number, a tree like it, and where its tensors are.

    Args:
        traced: has the result.
        signature: of the donated tree.
        examples: its tensors.
        taken: the parts that are written over others.
        or_all: whether all of the result may be written over it.
    """
    parts: list[tuple[int | None, object]] = [(None, traced.result)] if or_all else []
    if isinstance(traced.result, tuple):
        parts += enumerate(part for _, part in children(traced.result, ""))
    for number, part in parts:
        flat = flatten(part, "", constants=True)
        leaves = cast("list[Leaf]", flat.leaves)
        if number not in taken and flat.signature == signature and all(map(traced.is_like, leaves, examples)):
            over = iter([Leaf("over donated", index) for index in range(len(leaves))])
            return number, replace(part, over), tuple(map(source_of, leaves))
    return None


def write_back(traced: Traced, donated: Sequence[DonatedArgument], inputs: int) -> tuple[Graph, object, int, list[Tensor]]:
    """The graph that writes over donated arguments; the result that is left, and its number of outputs; and slots for these.

    Slots are further inputs that the graph writes its outputs to, where all of them are contiguous: what inductor computes on
    the way is on the stack then, since nothing is returned.

    Args:
        traced: the function.
        donated: the arguments.
        inputs: how many the graph has.
    """
    mine = {number for one in donated for number in one.leaves}
    outputs: list[Leaf] = []

    def as_output(leaf: Leaf) -> Leaf:
        """The leaf as an output, unless the caller has the tensor, and keeps it."""
        if leaf.kind == "constant" or (leaf.kind == "input" and leaf.index not in mine):
            return leaf
        same = (number for number, old in enumerate(outputs) if (old.kind, old.index) == (leaf.kind, leaf.index))
        if (number := next(same, None)) is None:
            number = len(outputs)
            outputs.append(leaf)
        return Leaf("output", number)

    places = {one.part: Leaf("tree", number) for number, one in enumerate(donated)}
    if None in places:
        result: object = places[None]
    else:
        parts = enumerate(part for _, part in children(traced.result, ""))
        result = with_parts(traced.result, [places.get(number) or _map_leaves(as_output, part) for number, part in parts])
    changes = [change for one in donated for change in zip(one.leaves, one.sources, strict=True)]
    writes = [(number, source) for number, source in changes if source != ("input", number)]
    if not all(leaf.kind == "output" and traced.graph.is_contiguous(leaf.index) for leaf in outputs):
        return traced.graph.write_back(writes, [*map(source_of, outputs)]), result, len(outputs), []
    graph, slots = traced.graph.with_slots([leaf.index for leaf in outputs])
    writes += [(inputs + number, source_of(leaf)) for number, leaf in enumerate(outputs)]
    return graph.write_back(writes, []), result, len(outputs), slots


def _map_leaves(function: Callable[[Leaf], Leaf], tree: object) -> object:
    leaves = flatten(tree, "", constants=True).leaves
    return replace(tree, iter([function(leaf) for leaf in cast("list[Leaf]", leaves)]))

"""What programs of `jit` give, and what takes the place of the arguments that they write it over."""

import re
from collections.abc import Sequence
from typing import TypeAlias, cast

import attrs
from torch import Tensor

from fundl._compiling import inductor
from fundl._compiling.cache_keys import CacheKey, TensorSpec, spec_of
from fundl._compiling.graphs import Graph
from fundl._compiling.programs import Interface, Program
from fundl._compiling.tracing import Traced
from fundl._compiling.trees import Flat, Leaf, children, flatten, replace, with_parts


@attrs.frozen(eq=False)
class DonatedArgument:
    """A donated argument, and the part of the result that is written over it and takes its place."""

    name: str
    place: int  # of it, among all arguments
    leaves: range  # which of the leaves of all arguments are its own
    part: int | None  # number of the part of the result; None for all of the result
    replacement: object  # that part: a tree like the argument, of leaves "over donated"
    sources: Sequence[Leaf]  # where the graph has the replacement's tensors


@attrs.frozen(eq=False, kw_only=True)
class CallInterface(Interface):
    """What a program of `jit` takes and gives."""

    outputs: int  # so many tensors are computed
    slots: Sequence[TensorSpec] = ()  # its very last inputs, for them to be written to; none if they are returned
    donated: Sequence[DonatedArgument] = ()  # the arguments that it writes to


CallProgram: TypeAlias = Program[CallInterface, inductor.Run]


def donated_arguments(function: str, donate: Sequence[str], traced: Traced, key: CacheKey, flat: Flat) -> list[DonatedArgument]:
    """The arguments of a function that are donated, as far as they are given and have tensors.

    Raises:
        TypeError: there is nothing in the result to be written over one of them.
    """
    parts: dict[int | None, object] = {None: traced.result} if len(donate) == 1 else {}
    if isinstance(traced.result, tuple):
        parts |= enumerate(part for _, part in children(traced.result, ""))
    names, found = [name for name, _ in key.signature.arguments], list[DonatedArgument]()
    for name in donate:
        mine = [number for number, path in enumerate(flat.paths) if re.split(r"[.\[]", path, maxsplit=1)[0] == name]
        if not mine:
            continue
        place, leaves = names.index(name), range(mine[0], mine[-1] + 1)
        for part, tree in parts.items():
            new = flatten(tree, "", constants=True)
            sources = cast("list[Leaf]", new.leaves)  # a traced result has them in the place of tensors
            same = new.signature == key.signature.arguments[place][1]
            if same and all(map(traced.graph.is_like, sources, flat.leaves[leaves.start : leaves.stop])):
                replacement = replace(tree, iter([Leaf("over donated", index) for index in range(len(leaves))]))
                found.append(DonatedArgument(name, place, leaves, part, replacement, sources))
                del parts[part]
                break
        else:
            raise TypeError(
                f"donate={name!r}: no part of what {function} returns is a tree like this argument, with tensors of the same"
                " shapes and dtypes, to be written over it"
            )
    return found


def write_back(traced: Traced, donated: Sequence[DonatedArgument], inputs: int) -> tuple[Graph, CallInterface, list[Tensor]]:
    """The graph, of so many inputs, that writes over donated arguments; and slots, tensors for its outputs.

    Slots are further inputs that the graph writes its outputs to, where all of them are contiguous: what inductor computes on
    the way is on the stack then, since nothing is returned.
    """
    places = {one.part: Leaf("tree", number) for number, one in enumerate(donated)}
    result = places.get(None) or with_parts(
        traced.result, [places.get(number, part) for number, (_, part) in enumerate(children(traced.result, ""))]
    )
    leaves = cast("list[Leaf]", flatten(result, "", constants=True).leaves)  # likewise
    mine = {number for one in donated for number in one.leaves}
    # An input that is not donated is no output: the caller has it.
    computed = (leaf for leaf in leaves if leaf.kind == "output" or (leaf.kind == "input" and leaf.index in mine))
    outputs = [*dict.fromkeys(computed)]
    result = replace(result, iter([Leaf("output", outputs.index(leaf)) if leaf in outputs else leaf for leaf in leaves]))
    changes = [change for one in donated for change in zip(one.leaves, one.sources, strict=True)]
    writes = [(number, leaf) for number, leaf in changes if (leaf.kind, leaf.index) != ("input", number)]
    graph, returned, slots = traced.graph, outputs, list[Tensor]()
    if all(leaf.kind == "output" and graph.is_contiguous(leaf.index) for leaf in outputs):
        graph, slots = graph.with_slots([leaf.index for leaf in outputs])
        writes, returned = [*writes, *enumerate(outputs, inputs)], []
    specs = [*map(spec_of, slots)]
    interface = CallInterface(constants=traced.constants, result=result, outputs=len(outputs), slots=specs, donated=donated)
    return graph.write_back(writes, returned), interface, slots

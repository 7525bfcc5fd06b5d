"""Loops as Scan: a body that is run for each row."""

from collections.abc import Sequence
from itertools import chain

import attrs
from torch.fx import Node

from fundl.interop._description import Value
from fundl.interop.onnx._writer import Body, Name, Operation, Writer, example_of, needed, value_of


def loop(
    w: Writer, _node: Node, carried: Sequence[Node], rows: Sequence[Node], fixed: Sequence[Node], number: int, reverse: bool
) -> list[Name]:
    """A loop; what is fixed, its body takes from the graph around it."""
    inner = Writer(w.rules, w.bodies, f"{w.prefix}loop{number}.")
    module = w.bodies[number]
    places = iter(module.graph.find_nodes(op="placeholder"))
    own = [value_of(inner.fresh("in"), example_of(next(places))) for _ in chain(carried, rows)]
    outside = [value_of(w.value(one), example_of(one)) for one in fixed]
    outputs: list[Value] = []
    computed = inner.write(module, [*own, *outside])
    for name, value in computed:  # an output of a body is an output of an operation in it, once
        outputs.append(attrs.evolve(value, name=inner.fresh("out")))
        inner.operations.append(Operation("Identity", (name,), (outputs[-1].name,), {}, w.where()))
    operations = needed(inner.operations, [output.name for output in outputs])
    used = set[Name]().union(*(operation.uses for operation in operations))
    constants = {name: array for name, array in inner.constants.items() if name in used}
    body = Body(own, outputs, operations, constants)
    given = [w.value(one) for one in (*carried, *rows)]
    directions = {
        "scan_input_directions": [int(reverse)] * len(rows),
        "scan_output_directions": [int(reverse)] * (len(computed) - len(carried)),
    }
    return w.add("Scan", given, len(computed), body=body, num_scan_inputs=len(rows), **directions)

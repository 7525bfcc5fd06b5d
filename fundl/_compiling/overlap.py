"""Exchanges between processes as early, and waited for as late, as a graph allows: it computes while tensors travel.

They stay in the order that they had: it is the same in all processes, whatever the sizes of their tensors.
"""

from typing import TYPE_CHECKING, Final

from fundl._common import exchanges
from fundl._compiling import graphs

if TYPE_CHECKING:
    from torch.fx import Graph, GraphModule, Node

NAMES: Final = ("torch._inductor.config.reorder_for_peak_memory",)
"""What is private in torch and used here."""

SETTINGS: Final[dict[str, object]] = {"reorder_for_peak_memory": False}  # which puts each wait right behind its start


_LIGHT: Final = frozenset({"cat", "clone", "convert_element_type", "_to_copy", "permute", "reshape", "t", "transpose", "view"})
"""Operations that prepare a tensor to travel."""


def spread(module: "GraphModule") -> None:
    """Move the beginning of each exchange to where its tensor has been computed, and each wait to where its result is used."""
    last: Node | None = None
    for node in [node for node in module.graph.nodes if graphs.is_collective(node)]:
        _raise(node, last)
        last = node
    order = _order(module.graph)
    for node in [node for node in reversed(module.graph.nodes) if node.target is exchanges.wait]:
        if node.users:
            first = min(node.users, key=order.__getitem__)
            first.prepend(node)
            order[node] = order[first]  # whoever is asked for later is before it
    module.graph.lint()
    module.recompile()


def _raise(node: "Node", last: "Node | None" = None) -> None:
    """Move a node to right behind all that it is made of, and likewise what prepares its inputs; but behind another one."""
    for source in node.all_input_nodes:
        target: object = getattr(source.target, "_opname", None)
        if target in _LIGHT:
            _raise(source)
    order = _order(node.graph)
    before = [*node.all_input_nodes, *([] if last is None else [last])]
    place = max((one for one in before), key=order.__getitem__)
    if place.op == "placeholder":
        place = node.graph.find_nodes(op="placeholder")[-1]
    if place.next is not node:
        place.append(node)


def _order(graph: "Graph") -> "dict[Node, int]":
    return {node: place for place, node in enumerate(graph.nodes)}

"""Numbers by their places: gathering, scattering, sorting."""

from collections.abc import Sequence

import torch
from torch.fx import Node

from fundl.interop.onnx._writer import ExportError, Name, Number, Rules, Writer, dtype_of, example_of, rank_of

_aten = torch.ops.aten


def _embedded(w: Writer, _node: Node, weight: Node, tokens: Node, *_: object) -> Name:
    return w.op("Gather", w.value(weight), w.value(tokens), axis=0)


def _chosen(w: Writer, _node: Node, x: Node, axis: int, places: Node) -> Name:
    return w.op("Gather", w.value(x), w.value(places), axis=axis)


def _gathered(w: Writer, _node: Node, x: Node, axis: int, places: Node, **_: object) -> Name:
    return w.op("GatherElements", w.value(x), w.value(places), axis=axis) if rank_of(x) else w.value(x)


def _added(w: Writer, _node: Node, x: Node, axis: int, places: Node, source: Node) -> Name:
    return w.op("ScatterElements", w.value(x), w.value(places), w.value(source), axis=axis, reduction="add")


def _scattered(w: Writer, _node: Node, x: Node, axis: int, places: Node, source: Number) -> Name:
    values = w.full(source, dtype_of(x))
    if isinstance(source, int | float):
        values = w.op("Expand", values, w.op("Shape", w.value(places)))
    return w.op("ScatterElements", w.value(x), w.value(places), values, axis=axis)


def _used(w: Writer, indices: Sequence[Node | None]) -> tuple[int, list[Node]]:
    """The first axis that is indexed, and the indices; those that onnx can follow are side by side, and no booleans."""
    used = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    first = used[0][0]
    if any(dtype_of(index) is torch.bool for _, index in used):
        raise ExportError(f"there is no ONNX for an index of booleans, {w.where()}: use torch.where")
    if [axis for axis, _ in used] != [*range(first, first + len(used))]:
        raise ExportError(f"there is no ONNX for indices of axes that are not side by side, {w.where()}: transpose before")
    return first, [index for _, index in used]


def _as_points(w: Writer, indices: Sequence[Node]) -> Name:
    """Several indices as one tensor, whose last axis goes through them."""
    shape: Sequence[int] = torch.broadcast_shapes(*[example_of(index).shape for index in indices])  # type: ignore[no-untyped-call]  # torch leaves them out
    like = torch.empty(shape, device="meta") if all(type(size) is int for size in shape) else None
    if like is not None:
        sizes = w.shape_of(like)
    else:  # the index with the most axes has the sizes of all
        widest = max(indices, key=rank_of)
        if any(example_of(index).shape != shape for index in indices if rank_of(index) == rank_of(widest)):
            raise ExportError(f"there is no ONNX for indices that are stretched along a size that is free, {w.where()}")
        sizes = w.op("Shape", w.value(widest))
    parts = [w.op("Expand", w.full(index, torch.int64), sizes) for index in indices]
    return w.op("Concat", *[w.op("Unsqueeze", part, w.ints(-1)) for part in parts], axis=-1)


def _indexed(w: Writer, _node: Node, x: Node, indices: Sequence[Node | None]) -> Name:
    first, used = _used(w, indices)
    if len(used) == 1:
        return w.op("Gather", w.value(x), w.full(used[0], torch.int64), axis=first)
    rank, count, width = rank_of(x), len(used), max(map(rank_of, used))
    y = w.value(x)
    if first:
        order = [*range(first, first + count), *range(first), *range(first + count, rank)]
        y = w.op("Transpose", y, perm=order)
    y = w.op("GatherND", y, _as_points(w, used))
    if first:
        order = [*range(width, width + first), *range(width), *range(width + first, rank - count + width)]
        y = w.op("Transpose", y, perm=order)
    return y


def _put(w: Writer, _node: Node, x: Node, indices: Sequence[Node | None], values: Node, accumulate: bool = False) -> Name:
    first, used = _used(w, indices)
    rank, count, width = rank_of(x), len(used), max(map(rank_of, used))
    points, sizes = _as_points(w, used), w.op("Shape", w.value(x))
    lead = w.op("Slice", sizes, w.ints(0), w.ints(first))
    places = w.op("Slice", w.op("Shape", points), w.ints(0), w.ints(-1))
    rest = w.op("Slice", sizes, w.ints(first + count), w.ints(2**62))
    given = w.op("Expand", w.full(values, dtype_of(x)), w.op("Concat", lead, places, rest, axis=0))
    y = w.value(x)
    if first:  # the axes that are indexed come to the front, and go back
        tail = rank - first - count
        order = [*range(first, first + count), *range(first), *range(first + count, rank)]
        y = w.op("Transpose", y, perm=order)
        given = w.op(
            "Transpose", given, perm=[*range(first, first + width), *range(first), *range(first + width, first + width + tail)]
        )
    y = w.op("ScatterND", y, points, given, **({"reduction": "add"} if accumulate else {}))
    back = [*range(count, count + first), *range(count), *range(count + first, rank)]
    return w.op("Transpose", y, perm=back) if first else y


def _top(
    w: Writer, _node: Node, x: Node, count: int, axis: int = -1, largest: bool = True, in_order: bool = True
) -> list[Name]:
    options = {"axis": axis, "largest": int(largest), "sorted": int(in_order)}
    return w.add("TopK", [w.value(x), w.shape([count])], 2, **options)


def _sorted(
    w: Writer, _node: Node, x: Node, *given: object, dim: int = -1, descending: bool = False, **_: object
) -> list[Name]:
    places = [value for value in given if type(value) is int]
    flags = [value for value in given if isinstance(value, bool)]
    axis = places[0] if places else dim
    size = w.along(w.op("Gather", w.op("Shape", w.value(x)), w.index(axis), axis=0))
    return w.add("TopK", [w.value(x), size], 2, axis=axis, largest=int(flags[-1] if flags else descending))


TABLE: Rules = {
    _aten.embedding.default: _embedded,
    _aten.gather.default: _gathered,
    _aten.index.Tensor: _indexed,
    _aten.index_put.default: _put,
    _aten.index_select.default: _chosen,
    _aten.scatter.src: _scattered,
    _aten.scatter.value: _scattered,
    _aten.scatter_add.default: _added,
    _aten.sort.default: _sorted,
    _aten.sort.stable: _sorted,
    _aten.topk.default: _top,
}

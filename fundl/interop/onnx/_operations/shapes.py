"""What moves numbers, and makes them: views, parts, joins, constants."""

import operator
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch.fx import Node

from fundl.interop.onnx._writer import Name, Number, Rules, Writer, dtype_of, element, example_of, rank_of

_aten, _prims = torch.ops.aten, torch.ops.prims
Size: TypeAlias = int | Node
_FAR = 2**62  # beyond each end

# --- Sizes ---------------------------------------------------------------------------------------------------------------


def _size(w: Writer, _node: Node, x: Node, axis: int) -> Name:
    return w.op("Gather", w.op("Shape", w.value(x)), w.index(axis), axis=0)


def _count(w: Writer, _node: Node, x: Node) -> Name:
    return w.op("ReduceProd", w.op("Shape", w.value(x)), keepdims=0)


def _item(w: Writer, _node: Node, several: Node, index: int) -> Name:
    return w.values(several)[index]


# --- Views ---------------------------------------------------------------------------------------------------------------


def _view(w: Writer, node: Node, x: Node, sizes: Sequence[Size]) -> Name:
    empty = {"allowzero": 1} if any(type(size) is int and size == 0 for size in example_of(node).shape) else {}
    wanted = w.shape_of(example_of(node)) if -1 in sizes and empty else w.shape(sizes)
    return w.op("Reshape", w.value(x), wanted, **empty)


def _permuted(w: Writer, _node: Node, x: Node, axes: Sequence[int]) -> Name:
    rank = rank_of(x)
    return w.op("Transpose", w.value(x), perm=[axis % rank for axis in axes]) if rank else w.value(x)


def _transposed(w: Writer, node: Node, x: Node, a: int = 0, b: int = 1) -> Name:
    axes = [*range(rank_of(x))]
    if len(axes) < 2:
        return w.value(x)
    axes[a], axes[b] = axes[b], axes[a]
    return _permuted(w, node, x, axes)


def _expanded(w: Writer, _node: Node, x: Node, sizes: Sequence[Size], **_: object) -> Name:
    return w.op("Expand", w.value(x), w.shape([1 if type(size) is int and size == -1 else size for size in sizes]))


def _broadcast(w: Writer, node: Node, x: Node, sizes: Sequence[Size], axes: Sequence[int]) -> Name:
    """Each axis of x goes to a place of its own; the others repeat."""
    missing = [axis for axis in range(len(sizes)) if axis not in axes]
    y = w.op("Unsqueeze", w.value(x), w.ints(*missing)) if missing else w.value(x)
    return w.op("Expand", y, w.shape_of(example_of(node)))


def _squeezed(w: Writer, _node: Node, x: Node, dims: int | Sequence[int] | None = None) -> Name:
    shape = example_of(x).shape
    axes = range(len(shape)) if dims is None else [dims] if isinstance(dims, int) else dims
    single = [axis % len(shape) for axis in axes if type(shape[axis]) is int and shape[axis] == 1] if shape else []
    return w.op("Squeeze", w.value(x), w.ints(*single)) if single else w.value(x)


def _unsqueezed(w: Writer, _node: Node, x: Node, axis: int) -> Name:
    return w.op("Unsqueeze", w.value(x), w.ints(axis))


# --- Parts and joins -----------------------------------------------------------------------------------------------------


def _joined(w: Writer, node: Node, parts: Sequence[Node], axis: int = 0) -> Name:
    rank = rank_of(node)
    real = [part for part in parts if rank_of(part) == rank]  # an empty tensor of one axis joins everything
    return w.op("Concat", *[w.full(part, dtype_of(node)) for part in real], axis=axis)


def _stacked(w: Writer, node: Node, parts: Sequence[Node], axis: int = 0) -> Name:
    place = axis % rank_of(node)
    return w.op("Concat", *[w.op("Unsqueeze", w.full(part, dtype_of(node)), w.ints(place)) for part in parts], axis=place)


def _slice(
    w: Writer, _node: Node, x: Node, axis: int = 0, start: Size | None = None, end: Size | None = None, step: int = 1
) -> Name:
    first, last = 0 if start is None else start, _FAR if end is None else end
    return w.op("Slice", w.value(x), w.shape([first]), w.shape([last]), w.ints(axis), w.ints(step))


def _with_slice(
    w: Writer,
    node: Node,
    x: Node,
    source: Node,
    axis: int = 0,
    start: Size | None = None,
    end: Size | None = None,
    step: int = 1,
) -> Name:
    """A tensor with other numbers in a part of an axis: what is before it, they, what is after it."""
    size = example_of(x).shape[axis]
    assert step == 1, "a part with gaps is written by torch's own decomposition"
    first, last = 0 if start is None else start, size if end is None else end
    parts = [w.full(source, dtype_of(node))]
    if not (type(first) is int and first == 0):
        parts.insert(0, _slice(w, node, x, axis, 0, first))
    if not (type(last) is int and type(size) is int and last >= size):
        parts.append(_slice(w, node, x, axis, last, None))
    return w.op("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]


def _with_row(w: Writer, node: Node, x: Node, source: Node, axis: int, index: int) -> Name:
    """A tensor with other numbers at one place of an axis."""
    axis, size = axis % rank_of(x), example_of(x).shape[axis]
    place = index % size
    parts = [w.op("Unsqueeze", w.full(source, dtype_of(node)), w.ints(axis))]
    if place > 0:
        parts.insert(0, _slice(w, node, x, axis, 0, place))
    if not (type(size) is int and place == size - 1):
        parts.append(_slice(w, node, x, axis, place + 1, None))
    return w.op("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]


def _selected(w: Writer, _node: Node, x: Node, axis: int, index: Number) -> Name:
    return w.op("Gather", w.value(x), w.full(index, torch.int64), axis=axis)


def _split(w: Writer, node: Node, x: Node, _sizes: object, axis: int = 0) -> list[Name]:
    parts: Sequence[torch.Tensor] = node.meta["val"]
    if len(parts) == 1:
        return [w.value(x)]
    sizes: list[int] = [part.shape[axis] for part in parts]
    return w.add("Split", [w.value(x), w.ints(*sizes)], len(parts), axis=axis)


def _unbound(w: Writer, node: Node, x: Node, axis: int = 0) -> list[Name]:
    return [w.op("Gather", w.value(x), w.index(index), axis=axis) for index in range(len(node.meta["val"]))]


def _flipped(w: Writer, _node: Node, x: Node, axes: Sequence[int]) -> Name:
    if not axes:
        return w.value(x)
    backward, ends = w.ints(*[-1] * len(axes)), w.ints(*[-_FAR] * len(axes))
    return w.op("Slice", w.value(x), backward, ends, w.ints(*axes), backward)


def _repeated(w: Writer, _node: Node, x: Node, times: Sequence[Size]) -> Name:
    more = len(times) - rank_of(x)
    y = w.op("Unsqueeze", w.value(x), w.ints(*range(more))) if more else w.value(x)
    return w.op("Tile", y, w.shape(times))


def _padded(w: Writer, _node: Node, x: Node, padding: Sequence[Size], value: Number = 0) -> Name:
    axes = [rank_of(x) - 1 - index for index in range(len(padding) // 2)]
    pads = w.shape([*padding[::2], *padding[1::2]])
    return w.op("Pad", w.value(x), pads, w.full(value, dtype_of(x)), w.ints(*axes), mode="constant")


# --- Constants -----------------------------------------------------------------------------------------------------------

_SMALL = 64


def _filled(w: Writer, node: Node, value: Number) -> Name:
    dtype, example = dtype_of(node), example_of(node)
    if not example.ndim:
        return w.full(value, dtype)
    known = all(type(size) is int for size in example.shape)
    if known and isinstance(value, int | float) and example.numel() <= _SMALL:
        return w.constant(np.full(tuple(example.shape), value, element(dtype).numpy))
    return w.op("Expand", w.full(value, dtype), w.shape_of(example))


def _zeros(w: Writer, node: Node, *_: object, **__: object) -> Name:
    return _filled(w, node, 0)


def _ones(w: Writer, node: Node, *_: object, **__: object) -> Name:
    return _filled(w, node, 1)


def _full(w: Writer, node: Node, _like: object, value: Number, **_: object) -> Name:
    return _filled(w, node, value)


def _new_full(w: Writer, node: Node, _like: object, _sizes: object, value: Number, **_: object) -> Name:
    return _filled(w, node, value)


def _number(w: Writer, node: Node, value: Number, **_: object) -> Name:
    return w.full(value, dtype_of(node))


def _counted(w: Writer, node: Node, *given: Number, **_: object) -> Name:
    """arange(end), arange(start, end) or arange(start, end, step)."""
    start, end, step = (0, given[0], 1) if len(given) == 1 else (*given, 1)[:3]
    dtype = dtype_of(node)
    return w.op("Range", w.full(start, dtype), w.full(end, dtype), w.full(step, dtype))


def _iota(w: Writer, node: Node, length: Number, *, start: Number, step: Number, **_: object) -> Name:
    dtype = dtype_of(node)
    counted = w.op("Range", w.full(0, dtype), w.full(length, dtype), w.full(1, dtype))
    if step != 1:
        counted = w.op("Mul", counted, w.full(step, dtype))
    return counted if start == 0 else w.op("Add", counted, w.full(start, dtype))


def _eye(w: Writer, node: Node, *_: object, **__: object) -> Name:
    rows, columns = example_of(node).shape
    return w.constant(np.eye(rows, columns, dtype=element(dtype_of(node)).numpy))


TABLE: Rules = {
    operator.getitem: _item,
    _aten._unsafe_view.default: _view,
    _aten.arange.default: _counted,
    _aten.arange.start: _counted,
    _aten.arange.start_step: _counted,
    _aten.cat.default: _joined,
    _aten.constant_pad_nd.default: _padded,
    _aten.empty.memory_format: _zeros,
    _aten.empty_like.default: _zeros,
    _aten.empty_strided.default: _zeros,
    _aten.expand.default: _expanded,
    _aten.eye.default: _eye,
    _aten.eye.m: _eye,
    _aten.fill.Scalar: _full,
    _aten.flip.default: _flipped,
    _aten.full.default: _full,
    _aten.full_like.default: _full,
    _aten.new_empty.default: _zeros,
    _aten.new_empty_strided.default: _zeros,
    _aten.new_full.default: _new_full,
    _aten.new_ones.default: _ones,
    _aten.new_zeros.default: _zeros,
    _aten.ones.default: _ones,
    _aten.ones_like.default: _ones,
    _aten.permute.default: _permuted,
    _aten.repeat.default: _repeated,
    _aten.reshape.default: _view,
    _aten.scalar_tensor.default: _number,
    _aten.select.int: _selected,
    _aten.select_scatter.default: _with_row,
    _aten.slice.Tensor: _slice,
    _aten.slice_scatter.default: _with_slice,
    _aten.split.Tensor: _split,
    _aten.split_with_sizes.default: _split,
    _aten.squeeze.default: _squeezed,
    _aten.squeeze.dim: _squeezed,
    _aten.squeeze.dims: _squeezed,
    _aten.stack.default: _stacked,
    _aten.sym_numel.default: _count,
    _aten.sym_size.int: _size,
    _aten.t.default: _transposed,
    _aten.transpose.int: _transposed,
    _aten.unbind.int: _unbound,
    _aten.unsqueeze.default: _unsqueezed,
    _aten.view_copy.default: _view,
    _aten.zeros.default: _zeros,
    _aten.zeros_like.default: _zeros,
    _prims.broadcast_in_dim.default: _broadcast,
    _prims.empty_strided.default: _zeros,
    _prims.iota.default: _iota,
    _prims.rev.default: _flipped,
    _prims.transpose.default: _permuted,
}

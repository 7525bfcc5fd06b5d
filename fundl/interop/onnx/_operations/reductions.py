"""Sums, maxima and the like along axes."""

import functools
import math
from collections.abc import Sequence

import torch
from torch.fx import Node

from fundl.interop.onnx._writer import ExportError, Name, Rules, Writer, dtype_of, rank_of

_aten, _prims = torch.ops.aten, torch.ops.prims


def _axes(dims: int | Sequence[int] | None) -> list[int]:
    return [dims] if isinstance(dims, int) else [*(dims or ())]


def _reduced(
    w: Writer, node: Node, x: Node, dims: int | Sequence[int] | None = None, keepdim: bool = False, *, kind: str, **_: object
) -> Name:
    y = w.full(x, dtype_of(node))
    axes = _axes(dims)
    if rank_of(x) == 0:
        return y
    return w.op(kind, y, *([w.ints(*axes)] if axes else []), keepdims=int(keepdim))


def _quantified(
    w: Writer, _node: Node, x: Node, dims: int | Sequence[int] | None = None, keepdim: bool = False, *, kind: str
) -> Name:
    """Any is the maximum, all the minimum, of zeros and ones."""
    asked = w.full(x, torch.bool)
    if rank_of(x) == 0:
        return asked
    axes = _axes(dims)
    numbers = w.cast(asked, torch.bool, torch.int32)
    return w.cast(w.op(kind, numbers, *([w.ints(*axes)] if axes else []), keepdims=int(keepdim)), torch.int32, torch.bool)


def _extreme_place(w: Writer, _node: Node, x: Node, dim: int | None = None, keepdim: bool = False, *, kind: str) -> Name:
    y = w.value(x)
    if dim is None:
        y, dim = w.op("Reshape", y, w.ints(-1)), 0
    return w.op(kind, y, axis=dim, keepdims=int(keepdim)) if rank_of(x) else w.index(0)


def _extreme(w: Writer, _node: Node, x: Node, dim: int, keepdim: bool = False, *, kind: str) -> list[Name]:
    """Along one axis: the values, and their places."""
    y = w.value(x)
    values = w.op(f"Reduce{kind}", y, w.ints(dim), keepdims=int(keepdim))
    return [values, w.op(f"Arg{kind}", y, axis=dim, keepdims=int(keepdim))]


def _cumulative(w: Writer, node: Node, x: Node, dim: int, **_: object) -> Name:
    y = w.full(x, dtype_of(node))
    return w.op("CumSum", y, w.index(dim)) if rank_of(x) else y


def _norm(
    w: Writer, node: Node, x: Node, order: float = 2, dims: Sequence[int] | None = None, keepdim: bool = False, **_: object
) -> Name:
    y = w.full(x, dtype_of(node))
    axes = [w.ints(*dims)] if dims else []
    if rank_of(x) == 0:
        return w.op("Abs", y)
    if order == 2:
        return w.op("Sqrt", w.op("ReduceSum", w.op("Mul", y, y), *axes, keepdims=int(keepdim)))
    if order in {1, math.inf}:
        return w.op("ReduceSum" if order == 1 else "ReduceMax", w.op("Abs", y), *axes, keepdims=int(keepdim))
    raise ExportError(f"there is no ONNX for a norm of order {order}, {w.where()}: take 1, 2 or infinity")


def _softmax(w: Writer, node: Node, x: Node, dim: int, _half: bool, *, kind: str) -> Name:
    return w.op(kind, w.full(x, dtype_of(node)), axis=dim) if rank_of(x) else w.full(float(kind == "Softmax"), dtype_of(node))


def _variance(w: Writer, node: Node, x: Node, dims: Sequence[int] | None, correction: float = 1.0, **_: object) -> Name:
    dtype, y = dtype_of(node), w.value(x)
    axes = w.ints(*(range(rank_of(x)) if dims is None else dims))
    deviation = w.op("Sub", y, w.op("ReduceMean", y, axes, keepdims=1))
    squares = w.op("Mul", deviation, deviation)
    if correction == 0:
        return w.op("ReduceMean", squares, axes, keepdims=0)
    sizes = w.op("Gather", w.op("Shape", y), axes, axis=0)
    count = w.cast(w.op("ReduceProd", sizes, keepdims=0), torch.int64, dtype)
    return w.op("Div", w.op("ReduceSum", squares, axes, keepdims=0), w.op("Sub", count, w.full(correction, dtype)))


_sum = functools.partial(_reduced, kind="ReduceSum")
_mean = functools.partial(_reduced, kind="ReduceMean")
_product = functools.partial(_reduced, kind="ReduceProd")
_maximum = functools.partial(_reduced, kind="ReduceMax")
_minimum = functools.partial(_reduced, kind="ReduceMin")
_any = functools.partial(_quantified, kind="ReduceMax")
_all = functools.partial(_quantified, kind="ReduceMin")

TABLE: Rules = {
    _aten._log_softmax.default: functools.partial(_softmax, kind="LogSoftmax"),
    _aten._softmax.default: functools.partial(_softmax, kind="Softmax"),
    _aten.all.default: _all,
    _aten.all.dim: _all,
    _aten.all.dims: _all,
    _aten.amax.default: _maximum,
    _aten.amin.default: _minimum,
    _aten.any.default: _any,
    _aten.any.dim: _any,
    _aten.any.dims: _any,
    _aten.argmax.default: functools.partial(_extreme_place, kind="ArgMax"),
    _aten.argmin.default: functools.partial(_extreme_place, kind="ArgMin"),
    _aten.cumsum.default: _cumulative,
    _aten.linalg_vector_norm.default: _norm,
    _aten.max.default: _maximum,
    _aten.max.dim: functools.partial(_extreme, kind="Max"),
    _aten.mean.default: _mean,
    _aten.mean.dim: _mean,
    _aten.min.default: _minimum,
    _aten.min.dim: functools.partial(_extreme, kind="Min"),
    _aten.prod.default: _product,
    _aten.prod.dim_int: _product,
    _aten.sum.default: _sum,
    _aten.sum.dim_IntList: _sum,
    _prims.amax.default: _maximum,
    _prims.amin.default: _minimum,
    _prims.sum.default: _sum,
    _prims.var.default: _variance,
}

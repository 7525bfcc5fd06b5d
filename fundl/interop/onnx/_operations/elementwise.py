"""Number by number: arithmetic, comparisons, logic, and the bits that random numbers are made of."""

import functools
import math
import operator
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor
from torch.fx import Node

from fundl.interop.onnx._writer import Name, Number, Rule, Rules, Writer, dtype_of, example_of

_aten, _prims = torch.ops.aten, torch.ops.prims

# --- Of one --------------------------------------------------------------------------------------------------------------


def _unary(w: Writer, node: Node, x: Node, *, kind: str) -> Name:
    return w.op(kind, w.full(x, dtype_of(node)))


def _not(w: Writer, _node: Node, x: Node) -> Name:
    return w.op("Not", w.full(x, torch.bool))


def _bitwise_not(w: Writer, _node: Node, x: Node) -> Name:
    return w.op("Not" if dtype_of(x) is torch.bool else "BitwiseNot", w.value(x))


def _asked(w: Writer, _node: Node, x: Node, *, kind: str) -> Name:
    if not dtype_of(x).is_floating_point:
        return w.op("Expand", w.full(False, torch.bool), w.op("Shape", w.value(x)))
    return w.op(kind, w.value(x))


def _rsqrt(w: Writer, node: Node, x: Node) -> Name:
    return w.op("Reciprocal", w.op("Sqrt", w.full(x, dtype_of(node))))


def _log1p(w: Writer, node: Node, x: Node) -> Name:
    """log(u) x / (u - 1) with u = 1 + x, and x where u is 1: right to the last bits (Kahan)."""
    dtype = dtype_of(node)
    given, one = w.full(x, dtype), w.full(1, dtype)
    u = w.op("Add", given, one)
    flat = w.op("Equal", u, one)
    below = w.op("Where", flat, one, w.op("Sub", u, one))
    y = w.op("Div", w.op("Mul", w.op("Log", u), given), below)
    infinite = w.op("Equal", u, w.full(math.inf, dtype))
    return w.op("Where", flat, given, w.op("Where", infinite, u, y))


def _expm1(w: Writer, node: Node, x: Node) -> Name:
    """(u - 1) x / log(u) with u = exp(x), x where u is 1, and u - 1 far from 0 (Kahan)."""
    dtype = dtype_of(node)
    given, one = w.full(x, dtype), w.full(1, dtype)
    u = w.op("Exp", given)
    less = w.op("Sub", u, one)
    flat, far = w.op("Equal", u, one), w.op("Greater", w.op("Abs", given), one)
    log = w.op("Where", w.op("Or", flat, far), one, w.op("Log", u))
    return w.op("Where", flat, given, w.op("Where", far, less, w.op("Mul", less, w.op("Div", given, log))))


def _exp2(w: Writer, node: Node, x: Node) -> Name:
    dtype = dtype_of(node)
    return w.op("Pow", w.full(2, dtype), w.full(x, dtype))


def _same(w: Writer, _node: Node, x: Node, **_: object) -> Name:
    return w.value(x)


def _cast(w: Writer, node: Node, x: Node, *_: object, **__: object) -> Name:
    return w.cast(w.value(x), dtype_of(x), dtype_of(node))


# --- Of two --------------------------------------------------------------------------------------------------------------

_OF_BOOLS: Final[Mapping[str, str]] = {"Add": "Or", "Mul": "And", "Max": "Or", "Min": "And"}


def _binary(w: Writer, node: Node, a: Number, b: Number, *, kind: str, alpha: float = 1) -> Name:
    dtype = dtype_of(node)
    x, y = w.full(a, dtype), w.full(b, dtype)
    if alpha != 1:
        y = w.op("Mul", y, w.full(alpha, dtype))
    return w.op(_OF_BOOLS[kind] if dtype is torch.bool else kind, x, y)


def _subtracted_from(w: Writer, node: Node, a: Number, b: Number, alpha: float = 1) -> Name:
    return _binary(w, node, b, a, kind="Sub", alpha=alpha)


def _of_sizes(w: Writer, node: Node, a: Number, b: Number, *, kind: str) -> Name:
    dtype = dtype_of(node)
    return w.op(kind, w.full(a, dtype), w.full(b, dtype))


def _rounded_quotient(w: Writer, node: Node, a: Number, b: Number, rounding_mode: str = "floor") -> Name:
    dtype = dtype_of(node)
    x, y = w.full(a, dtype), w.full(b, dtype)
    if dtype.is_floating_point:
        quotient = w.op("Div", x, y)
        if rounding_mode == "floor":
            return w.op("Floor", quotient)
        return w.op("Mul", w.op("Sign", quotient), w.op("Floor", w.op("Abs", quotient)))
    if rounding_mode == "trunc":
        return w.op("Div", x, y)
    return w.op("Div", w.op("Sub", x, w.op("Mod", x, y)), y)


def _remainder(w: Writer, node: Node, a: Number, b: Number) -> Name:
    dtype = dtype_of(node)
    x, y = w.full(a, dtype), w.full(b, dtype)
    if dtype.is_floating_point:
        return w.op("Sub", x, w.op("Mul", w.op("Floor", w.op("Div", x, y)), y))
    return w.op("Mod", x, y)


def _fmod(w: Writer, node: Node, a: Number, b: Number) -> Name:
    dtype = dtype_of(node)
    return w.op("Mod", w.full(a, dtype), w.full(b, dtype), fmod=1)


def _power(w: Writer, node: Node, a: Number, b: Number) -> Name:
    dtype = dtype_of(node)
    x = w.full(a, dtype)
    if isinstance(b, int | float):
        simple = {0.5: "Sqrt", -1: "Reciprocal"}
        if b == 1:
            return x
        if b in {2, 3}:
            square = w.op("Mul", x, x)
            return square if b == 2 else w.op("Mul", square, x)
        if b in simple:
            return w.op(simple[b], x)
    return w.op("Pow", x, w.full(b, dtype))


def _compared(w: Writer, _node: Node, a: Number, b: Number, *, kind: str) -> Name:
    dtype = _common_dtype(a, b)
    x, y = w.full(a, dtype), w.full(b, dtype)
    equality = kind in {"Equal", "Unequal"}
    if dtype is torch.bool and not equality:
        x, y = w.cast(x, dtype, torch.int32), w.cast(y, dtype, torch.int32)
    return w.op("Not", w.op("Equal", x, y)) if kind == "Unequal" else w.op(kind, x, y)


def _common_dtype(a: Number, b: Number) -> torch.dtype:
    """The dtype in which torch compares: a tensor with axes counts more than one without, and that more than a number."""
    return torch.result_type(_stand_in(a), _stand_in(b))


def _stand_in(value: Number) -> float | Tensor:
    if isinstance(value, int | float):
        return value
    found: object = example_of(value)
    if isinstance(found, Tensor):
        return torch.empty((1,) * found.ndim, dtype=found.dtype, device="cpu")
    return 1.0 if isinstance(found, float | torch.SymFloat) else 1


def _logical(w: Writer, _node: Node, a: Node, b: Node, *, kind: str) -> Name:
    return w.op(kind, w.full(a, torch.bool), w.full(b, torch.bool))


def _bitwise(w: Writer, node: Node, a: Number, b: Number, *, kind: str) -> Name:
    dtype = dtype_of(node)
    return w.op(kind if dtype is torch.bool else f"Bitwise{kind}", w.full(a, dtype), w.full(b, dtype))


def _shift_right(w: Writer, node: Node, a: Node, places: int) -> Name:
    """ONNX shifts unsigned integers alone; (a - (a mod 2^n)) / 2^n is exact, and rounds down, for negative ones, too."""
    dtype = dtype_of(node)
    low = w.op("BitwiseAnd", w.value(a), w.full(2**places - 1, dtype))
    return w.op("Div", w.op("Sub", w.value(a), low), w.full(2**places, dtype))


def _shift_left(w: Writer, node: Node, a: Node, places: int) -> Name:
    return w.op("Mul", w.value(a), w.full(2**places, dtype_of(node)))


# --- Of three ------------------------------------------------------------------------------------------------------------


def _where(w: Writer, node: Node, condition: Node, a: Number, b: Number) -> Name:
    dtype = dtype_of(node)
    return w.op("Where", w.full(condition, torch.bool), w.full(a, dtype), w.full(b, dtype))


def _clamped(w: Writer, node: Node, x: Node, low: Number | None = None, high: Number | None = None) -> Name:
    dtype = dtype_of(node)
    y = w.full(x, dtype)
    if low is not None:
        y = w.op("Max", y, w.full(low, dtype))
    return y if high is None else w.op("Min", y, w.full(high, dtype))


def _at_most(w: Writer, node: Node, x: Node, high: Number) -> Name:
    return _clamped(w, node, x, None, high)


# --- The table -----------------------------------------------------------------------------------------------------------

_UNARY: Final[Mapping[str, str]] = {
    "abs": "Abs", "acos": "Acos", "acosh": "Acosh", "asin": "Asin", "asinh": "Asinh", "atan": "Atan", "atanh": "Atanh",
    "ceil": "Ceil", "cos": "Cos", "cosh": "Cosh", "erf": "Erf", "exp": "Exp", "floor": "Floor", "log": "Log", "neg": "Neg",
    "reciprocal": "Reciprocal", "relu": "Relu", "round": "Round", "sigmoid": "Sigmoid", "sign": "Sign", "sin": "Sin",
    "sinh": "Sinh", "sqrt": "Sqrt", "tan": "Tan", "tanh": "Tanh",
}  # fmt: skip
_BINARY: Final[Mapping[str, str]] = {
    "add": "Add", "div": "Div", "maximum": "Max", "minimum": "Min", "mul": "Mul", "sub": "Sub", "true_divide": "Div",
}  # fmt: skip
_COMPARED: Final[Mapping[str, str]] = {
    "eq": "Equal", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "lt": "Less", "ne": "Unequal",
}  # fmt: skip
_OVERLOADS: Final = ("default", "Tensor", "Scalar")


def _table() -> dict[object, Rule]:
    table: dict[object, Rule] = {
        operator.add: functools.partial(_of_sizes, kind="Add"),
        operator.sub: functools.partial(_of_sizes, kind="Sub"),
        operator.mul: functools.partial(_of_sizes, kind="Mul"),
        operator.floordiv: functools.partial(_of_sizes, kind="Div"),  # sizes are not negative
        operator.truediv: functools.partial(_of_sizes, kind="Div"),
        torch.sym_float: lambda w, _, x: w.cast(w.value(x), dtype_of(x), torch.float64),
        torch.sym_max: functools.partial(_of_sizes, kind="Max"),
        torch.sym_min: functools.partial(_of_sizes, kind="Min"),
        _aten.logical_not.default: _not,
        _aten.bitwise_not.default: _bitwise_not,
        _aten.isnan.default: functools.partial(_asked, kind="IsNaN"),
        _aten.isinf.default: functools.partial(_asked, kind="IsInf"),
        _aten.log1p.default: _log1p,
        _aten.expm1.default: _expm1,
        _aten.exp2.default: _exp2,
        _prims.exp2.default: _exp2,
        _aten.where.self: _where,
        _prims.where.default: _where,
        _aten.clamp.default: _clamped,
        _aten.clamp.Tensor: _clamped,
        _aten.clamp_min.default: _clamped,
        _aten.clamp_min.Tensor: _clamped,
        _aten.clamp_max.default: _at_most,
        _aten.clamp_max.Tensor: _at_most,
        _aten.hardtanh.default: _clamped,
        _aten.div.Tensor_mode: _rounded_quotient,
        _aten.div.Scalar_mode: _rounded_quotient,
        _aten.floor_divide.default: _rounded_quotient,
        _aten.floor_divide.Scalar: _rounded_quotient,
        _aten.pow.Tensor_Scalar: _power,
        _aten.pow.Tensor_Tensor: _power,
        _aten.pow.Scalar: _power,
        _prims.pow.default: _power,
        _prims.fmod.default: _fmod,
        _aten.logical_and.default: functools.partial(_logical, kind="And"),
        _aten.logical_or.default: functools.partial(_logical, kind="Or"),
        _aten.logical_xor.default: functools.partial(_logical, kind="Xor"),
        _aten.bitwise_right_shift.Tensor_Scalar: _shift_right,
        _aten.__rshift__.Scalar: _shift_right,
        _aten.bitwise_left_shift.Tensor_Scalar: _shift_left,
        _aten.__lshift__.Scalar: _shift_left,
        _aten.rsqrt.default: _rsqrt,
        _prims.rsqrt.default: _rsqrt,
    }
    for name, kind in _UNARY.items():
        _insert(table, name, functools.partial(_unary, kind=kind))
    for name, kind in _BINARY.items():
        _insert(table, name, functools.partial(_binary, kind=kind))
    for name, kind in _COMPARED.items():
        _insert(table, name, functools.partial(_compared, kind=kind))
    for name, kind in {"and": "And", "or": "Or", "xor": "Xor"}.items():
        for own in (f"bitwise_{name}", f"__{name}__"):
            _insert(table, own, functools.partial(_bitwise, kind=kind))
    _insert(table, "rsub", _subtracted_from)
    _insert(table, "remainder", _remainder)
    _insert(table, "fmod", _fmod)
    for kept in ("alias", "clone", "contiguous", "detach", "detach_", "lift_fresh", "lift_fresh_copy"):
        _insert(table, kept, _same)
    for cast in (_aten._to_copy.default, _aten.to.dtype, _prims.convert_element_type.default):
        table[cast] = _cast
    table[_prims.view_of.default] = _same
    return table


def _insert(table: dict[object, Rule], name: str, rule: Rule) -> None:
    """A rule for what ATen, or torch's primitive operations, have by a name."""
    for namespace in (_aten, _prims):
        packet = getattr(namespace, name, None)
        overloads: list[str] = [] if packet is None else packet.overloads()
        table.update({getattr(packet, own): rule for own in overloads if own in _OVERLOADS})


TABLE: Rules = _table()

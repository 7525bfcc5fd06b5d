"""Kernels that take all leaves of an optimizer at once, leaf by leaf."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from fundl._compiling.graphs import Decompositions

_aten = torch.ops.aten

_Rule = Callable[..., Tensor]  # type: ignore[explicit-any]  # of a tensor and any arguments


def _leaf_by_leaf(tensors: Sequence[Tensor], *arguments: object, rule: _Rule, **options: object) -> list[Tensor]:
    def of(value: object, index: int) -> object:
        return value[index] if isinstance(value, list | tuple) else value

    return [
        rule(tensor, *[of(value, index) for value in arguments], **{name: of(value, index) for name, value in options.items()})
        for index, tensor in enumerate(tensors)
    ]


def _one_by_one(tensors: Sequence[Tensor], a: object, b: object, values: Tensor, *, rule: _Rule) -> list[Tensor]:
    """With a number for each of the tensors, which are those of one tensor."""
    of_each = [values[index].to(tensor.dtype) for index, tensor in enumerate(tensors)]
    return _leaf_by_leaf(tensors, a, b, of_each, rule=rule)


def _powers(base: float, exponents: Sequence[Tensor]) -> list[Tensor]:
    return [torch.pow(base, exponent) for exponent in exponents]


def _addcmul(x: Tensor, a: Tensor, b: Tensor, value: float = 1) -> Tensor:
    return x + a * b * value


def _addcdiv(x: Tensor, a: Tensor, b: Tensor, value: float = 1) -> Tensor:
    return x + a / b * value


def _norm(x: Tensor, order: float = 2, dtype: torch.dtype | None = None) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(x, order, dtype=dtype)
    return found


def _like(x: Tensor, value: float | Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.full((), value, dtype=x.dtype)


def _at_least(x: Tensor, value: float | Tensor) -> Tensor:
    return torch.maximum(x, _like(x, value))


def _at_most(x: Tensor, value: float | Tensor) -> Tensor:
    return torch.minimum(x, _like(x, value))


def lerp(start: Tensor, end: Tensor, weight: float | Tensor) -> Tensor:
    """As the kernel has it: from the nearer end."""
    near, far = start + weight * (end - start), end - (end - start) * (1 - weight)
    if isinstance(weight, Tensor):
        return torch.where(weight.abs() < 0.5, near, far)
    return near if abs(weight) < 0.5 else far


_RULES: Final[Mapping[str, _Rule]] = {
    "abs": torch.abs,
    "add": torch.add,
    "addcdiv": _addcdiv,
    "addcmul": _addcmul,
    "clamp_max": _at_most,
    "clamp_min": _at_least,
    "copy": lambda x, source, *_: source.to(x.dtype),
    "div": torch.div,
    "exp": torch.exp,
    "lerp": lerp,
    "log": torch.log,
    "maximum": _at_least,
    "minimum": _at_most,
    "mul": torch.mul,
    "neg": torch.neg,
    "norm": _norm,
    "pow": torch.pow,
    "reciprocal": torch.reciprocal,
    "sign": torch.sign,
    "sqrt": torch.sqrt,
    "sub": torch.sub,
    "zero": torch.zeros_like,
}


def _table() -> dict[object, Callable[..., list[Tensor]]]:  # type: ignore[explicit-any]  # of any arguments
    table: dict[object, Callable[..., list[Tensor]]] = {}  # type: ignore[explicit-any]  # likewise
    for name, rule in _RULES.items():
        packet = getattr(_aten, f"_foreach_{name}", None)
        for overload in packet.overloads() if packet is not None else ():
            if "out" not in overload.split("_"):
                table[getattr(packet, overload)] = functools.partial(_leaf_by_leaf, rule=rule)
    for name, rule in ("addcdiv", _addcdiv), ("addcmul", _addcmul):
        table[getattr(_aten, f"_foreach_{name}").Tensor] = functools.partial(_one_by_one, rule=rule)
    table[_aten._foreach_pow.ScalarAndTensor] = _powers
    return table


TABLE: Decompositions = _table()

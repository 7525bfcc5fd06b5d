"""Arithmetic on flat tuples of tensors, the trainable leaves of a tree: what several transforms share."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeAlias, TypeVar

import attrs
import torch
from torch import Tensor

from fundl import tree
from fundl._common import half
from fundl.tree import Record
from fundl.tree._divided import trainable_parts

S = TypeVar("S")
T = TypeVar("T")

Number: TypeAlias = float | Tensor
"""A hyper-parameter: a number, or, where `adjustable` has put it into the state, a tensor without axes (float64)."""

Tensors: TypeAlias = tuple[Tensor, ...]
"""The trainable leaves of a tree, from left to right."""


def all_widened(tensors: Tensors) -> Tensors:
    """The tensors, those of 16 bits in float32: in 16, sums stop growing at 256, and epsilon is 0."""
    if tensors and tensors[0].is_cuda:
        return tuple(half.all_to(tensors, [torch.float32 if tensor.dtype in half.HALF else tensor.dtype for tensor in tensors]))
    return tuple(half.widened(tensor) for tensor in tensors)


def all_narrowed(tensors: Tensors, like: Tensors) -> Tensors:
    """What was computed of tensors that were widened, in the dtypes of those."""
    if tensors and tensors[0].is_cuda:
        return tuple(half.all_to(tensors, [original.dtype for original in like]))
    return tuple(half.narrowed(tensor, original) for tensor, original in zip(tensors, like, strict=True))


def zeros_like(tensors: Tensors) -> Tensors:
    """Zeros of the shapes, dtypes and devices of the tensors."""
    return tuple(torch.zeros_like(tensor) for tensor in tensors)


def new_count(tensors: Tensors) -> Tensor:
    """A count of steps, at 0, on the device of the tensors."""
    return torch.zeros((), dtype=torch.int64, device=tensors[0].device)


def times(tensors: Tensors, factor: Tensor) -> Tensors:
    """The tensors times a factor, a tensor without axes; they keep their dtypes."""
    products = torch._foreach_mul(tensors, _as_wide(factor, tensors))
    # Among tensors without axes, the wider dtype wins.
    return tuple(
        product if product.dtype == tensor.dtype else product.to(tensor.dtype)
        for product, tensor in zip(products, tensors, strict=True)
    )


def times_over(tensors: Tensors, factor: Tensor) -> Tensors:
    """The same, written over the tensors."""
    torch._foreach_mul_(tensors, _as_wide(factor, tensors))
    return tensors


def _as_wide(factor: Tensor, tensors: Tensors) -> Tensor:
    """The factor in the dtype of the widest: another costs a conversion for each of the tensors, instead of the one here."""
    wide = torch.float64 in [tensor.dtype for tensor in tensors]
    return factor.to(torch.float64 if wide else torch.float32)


def scaled_by(tensors: Tensors, factor: Number) -> Tensors:
    """The tensors times a number."""
    return times(tensors, factor) if isinstance(factor, Tensor) else torch._foreach_mul(tensors, factor)


def plus(tensors: Tensors, others: Tensors, factor: Number) -> Tensors:
    """The tensors plus others times a number."""
    if isinstance(factor, Tensor):
        return torch._foreach_add(tensors, times(others, factor))
    return torch._foreach_add(tensors, others, alpha=factor)


def mixed(old: Tensors, new: Tensors, share: Number) -> Tensors:
    """Means of two, in which the new ones have a share."""
    return torch._foreach_lerp(old, new, _for_each(share, old) if isinstance(share, Tensor) else share)


def shifted(tensors: Tensors, number: Number) -> Tensors:
    """The tensors plus a number."""
    return torch._foreach_add(tensors, _for_each(number, tensors) if isinstance(number, Tensor) else number)


def _for_each(number: Tensor, tensors: Tensors) -> Tensors:
    """A number in the dtype and on the device of each tensor: kernels for lists take no other."""
    return tuple(number.to(tensor) for tensor in tensors)


def all_finite(tensors: Tensors, splits: tree.Splits = ()) -> Tensor:
    """Whether all numbers are finite, those of others too that have parts of the same: the largest of each tensor tells."""
    finite = _all_finite(tensors)
    for among in dict.fromkeys(split.among for split in splits if split is not None):
        finite = _of_all(among, finite)
    beyond = tree.beyond_of(splits)
    return finite if beyond is None else _of_all(beyond, finite)


def _of_all(among: tree.Division, finite: Tensor) -> Tensor:
    return among.of_all(finite.reshape(1).to(torch.uint8)).to(torch.bool).all()


def _all_finite(tensors: Tensors) -> Tensor:
    filled = tuple(tensor for tensor in tensors if tensor.numel())
    if not filled:
        return torch.ones((), dtype=torch.bool, device=tensors[0].device)
    wide = any(tensor.dtype == torch.float64 for tensor in filled)
    largest = torch._foreach_norm(filled, math.inf, dtype=torch.float64 if wide else torch.float32)
    return torch.stack(largest).isfinite().all()


def copies(tensors: Tensors) -> Tensors:
    """Tensors of the same values in memory of their own.

    The maximum of a tensor and itself is that tensor, and of all foreach kernels the cheapest that says so: torch 2.11 has
    none that copies.
    """
    return torch._foreach_maximum(tensors, tensors)


def select(condition: Tensor, yes: S, no: S) -> S:
    """One of two trees of the same structure, by a condition without axes, whose value stays on its device."""
    yes_leaves, structure = tree.flatten(yes)
    pairs = zip(yes_leaves, tree.flatten(no)[0], strict=True)
    return tree.unflatten(
        structure, [None if one is None or other is None else torch.where(condition, one, other) for one, other in pairs]
    )


def require_fit(state: Tensors, grads: Tensors) -> None:
    """Raise unless a transform's tensors have the gradients' shapes: kernels would broadcast some that have not.

    Of the dtypes, which kernels would promote, it looks at the first: who casts params casts all of them.
    """
    if [tensor.shape for tensor in state] != [grad.shape for grad in grads] or state[0].dtype is not grads[0].dtype:
        raise ValueError("the state's tensors are not of the gradient's shapes and dtypes")


class StateError(ValueError):
    """A state lacks what a transform's hyper-parameters ask for: it was made under others."""

    def __init__(self, hyper_parameter: str, missing: str) -> None:
        super().__init__(
            f"{hyper_parameter} needs {missing}, which the state has not: it was made under other hyper-parameters. Make a"
            " new one with init(params), or go on under those"
        )


# --- Of which processes have parts -------------------------------------------------------------------------------------


@attrs.frozen(eq=False, init=False)
class OfSome(Record):
    """A state whose parts are of some of the leaves each, and not of all."""

    @abstractmethod
    def portions(self, parts: tuple[T, ...]) -> Sequence[tuple[object, tuple[T, ...]]]:
        """Its parts, each with those of what is given, one for each leaf, that belong to its leaves."""


def cuts_along(state: object, parts: tuple[tree.Cuts, ...]) -> list[tree.Cuts]:
    """What the trainable leaves of a state are parts of, where the leaves that it is of are these parts.

    A tuple that has a tensor for each of the leaves has it for its part of that leaf, if it is of the part's size.
    """
    if isinstance(state, Tensor):
        return [()]
    if isinstance(state, tree.Divided):
        return [()] * len(tree.trainable_leaves(state))  # it says itself what they are
    if isinstance(state, OfSome):
        return [cuts for part, its in state.portions(parts) for cuts in cuts_along(part, its)]
    if isinstance(state, tuple | list) and len(state) == len(parts) and all(isinstance(leaf, Tensor) for leaf in state):
        return [cuts if is_part(leaf, cuts) else () for leaf, cuts in zip(state, parts, strict=True)]
    return [cuts for part in trainable_parts(state) for cuts in cuts_along(part, parts)]


def is_part(leaf: Tensor, cuts: tree.Cuts) -> bool:
    """Whether a tensor is as large as the part of a leaf is."""
    return bool(cuts) and leaf.ndim >= -cuts[0].axis and leaf.shape[cuts[0].axis] == cuts[0].part

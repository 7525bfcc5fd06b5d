"""Arithmetic on whole trees: sums of products, trees plus trees, choices between trees, and reductions over all numbers.

A tree's numbers are those of its tensors that are trainable, as in `norm`; buffers stay as they are. In a traced function all
of it is traced.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from fundl.tree._divided import splits_of
from fundl.tree._records import describe
from fundl.tree._structure import T, flatten, paths, require_same_structure
from fundl.tree._trainable import trainable_leaves, trainable_paths, with_trainable_leaves

_WIDE: Final = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def sum(tree: object) -> Tensor:
    """The sum of all trainable numbers, in float32, or in float64 if a tensor is.

    >>> from fundl import tree
    >>> tree.sum({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([[4.0]])})
    tensor(8.)
    """
    leaves = _leaves(tree, "sum")
    dtype = _sum_dtype(leaves)
    return _reduced([leaf.sum(dtype=dtype) for leaf in leaves], torch.sum, torch.zeros((), dtype=dtype))


def mean(tree: object) -> Tensor:
    """The mean of all trainable numbers, each with the same weight: NaN of none.

    >>> from fundl import tree
    >>> tree.mean({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([[5.0]])})
    tensor(3.)
    """
    leaves = _leaves(tree, "mean")
    count = math.fsum(leaf.numel() for leaf in leaves)
    return sum(tree) / count if count else torch.full((), math.nan)


def max(tree: object) -> Tensor:
    """The greatest of all trainable numbers; NaN if one is NaN.

    Raises:
        ValueError: there is none.

    >>> from fundl import tree
    >>> tree.max({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([[4.0]])})
    tensor(4.)
    """
    return _reduced([leaf.amax() for leaf in _filled(tree, "max")], torch.amax, None)


def min(tree: object) -> Tensor:
    """The least of all trainable numbers; NaN if one is NaN.

    Raises:
        ValueError: there is none.

    >>> from fundl import tree
    >>> tree.min({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([[4.0]])})
    tensor(1.)
    """
    return _reduced([leaf.amin() for leaf in _filled(tree, "min")], torch.amin, None)


def all(tree: object) -> Tensor:
    """Whether all trainable numbers are true, that is, not 0; of booleans whether all are. True of none.

    >>> from fundl import tree
    >>> tree.all(tree.map(torch.isfinite, {"a": torch.tensor([1.0, torch.inf]), "b": torch.ones(1)}))
    tensor(False)
    """
    return _reduced([leaf.to(torch.bool).all() for leaf in _leaves(tree, "all")], torch.all, torch.ones((), dtype=torch.bool))


def any(tree: object) -> Tensor:
    """Whether some trainable number is true, that is, not 0; of booleans whether one is. False of none.

    >>> from fundl import tree
    >>> tree.any(tree.map(torch.isnan, {"a": torch.tensor([1.0, torch.nan]), "b": torch.ones(1)}))
    tensor(True)
    """
    return _reduced([leaf.to(torch.bool).any() for leaf in _leaves(tree, "any")], torch.any, torch.zeros((), dtype=torch.bool))


def inner_product(first: T, second: T) -> Tensor:
    """The sum of the products of all trainable numbers of two trees, in float32, or in float64 if a tensor is.

    A direction d and a gradient g make the slope along d, ``tree.inner_product(g, d)``.

    Args:
        first, second: of one structure, with tensors of the same shapes.

    >>> from fundl import tree
    >>> tree.inner_product((torch.tensor([1.0, 2.0]), torch.ones(1)), (torch.tensor([3.0, 4.0]), torch.ones(1)))
    tensor(12.)
    """
    pairs = _alike(first, second, ("first", "second"))
    _leaves(first, "inner_product")
    dtype = _sum_dtype([leaf for pair in pairs for leaf in pair])
    products = [torch.sum(one.to(dtype) * other.to(dtype)) for one, other in pairs]
    return _reduced(products, torch.sum, torch.zeros((), dtype=dtype))


def axpy(factor: float | Tensor, x: T, y: T) -> T:
    """A tree times a number, plus another tree: factor x + y, leaf by leaf, in the dtypes of y.

    Args:
        factor: a number, or a tensor without axes.
        x, y: of one structure, with tensors of the same shapes. Of buffers, those of y stay.

    >>> from fundl import tree
    >>> tree.axpy(-0.5, {"weight": torch.tensor([2.0])}, {"weight": torch.tensor([1.0])})
    {'weight': tensor([0.])}
    """
    if isinstance(factor, Tensor):
        if factor.ndim:
            raise ValueError(f"factor is one number, or a tensor without axes, not {describe(factor)}")
    elif isinstance(factor, bool) or not isinstance(factor, int | float):
        raise TypeError(f"factor is a number, or a tensor without axes, not {describe(factor)}")
    pairs = _alike(x, y, ("x", "y"))
    return with_trainable_leaves(y, [(factor * one + other).to(other.dtype) for one, other in pairs])


def where(condition: T | Tensor, yes: T, no: T) -> T:
    """One tree where a condition is true, and another one where it is not, leaf by leaf, without looking at the condition.

    Args:
        condition: a boolean tensor without axes, for all of them; or a tree like the others, of booleans.
        yes, no: of one structure, with tensors of the same shapes. Of buffers, those of `no` stay.

    >>> from fundl import tree
    >>> old, new = {"weight": torch.zeros(2)}, {"weight": torch.tensor([1.0, torch.nan])}
    >>> tree.where(tree.all(tree.map(torch.isfinite, new)), new, old)
    {'weight': tensor([0., 0.])}
    >>> tree.where(tree.map(torch.isfinite, new), new, old)
    {'weight': tensor([1., 0.])}
    """
    pairs = _alike(yes, no, ("yes", "no"))
    if isinstance(condition, Tensor) and not condition.ndim:
        conditions = [condition] * len(pairs)
    else:
        conditions = [one for one, _ in _alike(condition, no, ("condition", "no"))]
    for one in conditions:
        if one.dtype != torch.bool:
            raise TypeError(f"condition is of booleans, not of {one.dtype}: write condition != 0, say")
    return with_trainable_leaves(no, [torch.where(one, *pair) for one, pair in zip(conditions, pairs, strict=True)])


# --- What they have in common -------------------------------------------------------------------------------------------


def _leaves(tree: object, name: str) -> list[Tensor]:
    """The trainable leaves of a tree that this process has as a whole."""
    if [split for split in splits_of(tree) if split is not None]:
        raise ValueError(
            f"tree.{name} is of tensors that one process has as a whole, but here are parts of larger ones; tree.norm and"
            " tree.count are of the whole"
        )
    return trainable_leaves(tree)


def _filled(tree: object, name: str) -> list[Tensor]:
    leaves = [leaf for leaf in _leaves(tree, name) if leaf.numel()]
    if not leaves:
        raise ValueError(f"there is no number of which tree.{name} could be: {describe(tree)}")
    return leaves


def _sum_dtype(leaves: Sequence[Tensor]) -> torch.dtype:
    """The dtype of a sum: 16 bits would stop to grow."""
    dtype = torch.bool
    for leaf in leaves:
        dtype = torch.promote_types(dtype, leaf.dtype)
    if dtype.is_floating_point or dtype.is_complex:
        return _WIDE.get(dtype, dtype)
    return torch.int64 if leaves else torch.float32


def _reduced(found: Sequence[Tensor], reduce: Callable[[Tensor], Tensor], empty: Tensor | None) -> Tensor:
    """What is found of each leaf, as one."""
    if not found:
        assert empty is not None
        return empty
    dtype = found[0].dtype
    for one in found:
        dtype = torch.promote_types(dtype, one.dtype)
    return reduce(torch.stack([one.to(dtype) for one in found]))


def _alike(first: object, second: object, names: tuple[str, str]) -> list[tuple[Tensor, Tensor]]:
    """The trainable leaves of two trees, pair by pair; they must be of one structure, and of the same shapes."""
    require_same_structure(first, second, names=names)
    for place, (one, other) in enumerate(zip(flatten(first)[0], flatten(second)[0], strict=True)):
        if (one is None) is not (other is None):
            raise TypeError(f"at {paths(first)[place]}, one of {names[0]} and {names[1]} has a tensor, and the other None")
    pairs = [*zip(trainable_leaves(first), trainable_leaves(second), strict=True)]
    for place, (one, other) in enumerate(pairs):
        if one.shape != other.shape:
            path = trainable_paths(second)[place]
            raise ValueError(f"{names[0]}{path} is {describe(one)}, but {names[1]}{path} is {describe(other)}")
    return pairs

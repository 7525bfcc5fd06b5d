"""Numbers about trees: how large they are, how many elements they hold, whether two are the same."""

import contextlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fundl._common.modes import is_traced, no_grad
from fundl.tree._divided import Splits, beyond_of, holds, is_divided, splits_of
from fundl.tree._structure import flatten, leaves
from fundl.tree._trainable import trainable_leaves
from fundl.tree._whole import as_whole


def norm(tree: object) -> Tensor:
    """The global norm of a tree: the square root of the sum of the squares of all its trainable elements.

    It is right wherever float32 (float64, if an element is) can hold it, also where it could not hold the squares. Where
    processes have parts of a tensor each, as those of `distributed.shard`, it is that of the whole, and all of them ask for it.

    >>> from fundl import tree
    >>> tree.norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])})
    tensor(5.)
    """
    tensors = trainable_leaves(tree)
    splits = splits_of(tree)
    with no_grad() if splits else contextlib.nullcontext():
        return norm_of(tensors, splits).to(torch.float64 if _is_wide(tensors) else torch.float32)


def norm_of(tensors: Sequence[Tensor], splits: Splits = ()) -> Tensor:
    """The global norm of several tensors, in float32, or in float64 where that could not hold it or its square.

    Those that are parts of larger ones count as the larger ones.
    """
    if not tensors:
        return torch.zeros(())
    if any(splits):
        return norm_of(_with_norms_of_all(tensors, splits))
    wide = _is_wide(tensors)
    if is_traced() or not tensors[0].is_cpu:
        return _scaled_norm(tensors) if wide else _plain_norm(tensors, torch.float64)
    total = _plain_norm(tensors, torch.float64 if wide else torch.float32)
    least, most = (1e-140, 1e150) if wide else (1e-15, 1e18)
    # For the CPU, to look at a number costs little, and sums in a wider dtype much.
    if least < total.item() < most:
        return total
    return _scaled_norm(tensors) if wide else _plain_norm(tensors, torch.float64)


def _with_norms_of_all(tensors: Sequence[Tensor], splits: Splits) -> list[Tensor]:
    """The whole tensors, and for the parts of others a norm of each who has some: alike for all, to the bit."""
    whole = [tensor for tensor, split in zip(tensors, splits, strict=True) if split is None]
    for among in dict.fromkeys(split.among for split in splits if split is not None):
        parts = [one for one, split in zip(tensors, splits, strict=True) if split is not None and split.among == among]
        whole.append(among.of_all(norm_of(parts).to(torch.float64).reshape(1)))
    if (beyond := beyond_of(splits)) is not None:
        return [beyond.of_all(norm_of(whole).to(torch.float64).reshape(1))]
    return whole


def _is_wide(tensors: Sequence[Tensor]) -> bool:
    return torch.float64 in [tensor.dtype for tensor in tensors]


def _plain_norm(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The norm by squares of that dtype; half precision would overflow at 256."""
    total: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tuple(tensors), dtype=dtype)))
    return total


def _scaled_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm where even float64 may not hold the squares: all is divided by the largest number first."""
    filled = [tensor.to(torch.float64) for tensor in tensors if tensor.numel()]
    if not filled:
        return torch.zeros((), dtype=torch.float64, device=tensors[0].device)
    largest = torch.stack(torch._foreach_norm(filled, math.inf)).amax()
    unit = torch.where(largest.isfinite() & (largest > 0), largest, 1.0)
    return unit * _plain_norm(torch._foreach_div(filled, unit), torch.float64)


def count(tree: object) -> int:
    """How many trainable numbers a tree holds; where a process has a part of a tensor, those of the whole count.

    >>> from fundl import tree
    >>> tree.count((torch.zeros(2, 3), None, torch.zeros(2)))
    8
    """
    return sum(leaf.numel() for leaf in trainable_leaves(as_whole(tree) if holds(is_divided, tree) else tree))


def nbytes(tree: object) -> int:
    """How many bytes all the tensors of a tree take, in this process, buffers included.

    >>> from fundl import tree
    >>> tree.nbytes((torch.zeros(2, 3), torch.tensor(1)))
    32
    """
    return sum(leaf.nbytes for leaf in leaves(tree))


def equal(first: object, second: object) -> bool:
    """Whether two trees have the same structure, and leaves of the same shape, dtype and bits (NaN equals NaN).

    >>> from fundl import tree
    >>> tree.equal((torch.ones(2), None), (torch.ones(2), None)), tree.equal((torch.ones(2),), (torch.zeros(2),))
    (True, False)
    """
    first_leaves, first_structure = flatten(first)
    second_leaves, second_structure = flatten(second)
    return first_structure == second_structure and all(
        _same_bits(one, other) for one, other in zip(first_leaves, second_leaves, strict=True)
    )


def _same_bits(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.is_meta or second.is_meta:
        return first.device == second.device
    if first.numel() == 0:
        return True
    return torch.equal(_bytes(first), _bytes(second))


def _bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor in order; one of a single number counts as contiguous, whatever its strides."""
    return tensor.contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8)

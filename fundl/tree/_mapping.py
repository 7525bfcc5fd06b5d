"""Trees made of other trees, leaf by leaf."""

from collections.abc import Callable, Iterable, Sequence
from typing import overload

import torch
from torch import Tensor

from fundl.tree._records import describe
from fundl.tree._structure import T, flatten, leaves, paths, require_same_structure, unflatten


@overload
def map(function: Callable[[Tensor], Tensor], tree: T, /) -> T: ...
@overload
def map(function: Callable[[Tensor, Tensor], Tensor], tree: T, second: T, /) -> T: ...
@overload
def map(function: Callable[[Tensor, Tensor, Tensor], Tensor], tree: T, second: T, third: T, /) -> T: ...
def map(function: Callable[..., Tensor], tree: T, /, *rest: T) -> T:  # type: ignore[explicit-any]  # see the overloads
    """Apply a function to each tensor of a tree, or to the tensors at the same place of several trees.

    None stays None. All trees must have the structure of the first.

    Args:
        function: takes as many tensors as there are trees, and returns one.
        tree: the tree whose structure the result has.
        rest: more trees of the same structure.

    Raises:
        TypeError: the structures differ; the message tells where.

    >>> from fundl import tree
    >>> tree.map(torch.add, (torch.ones(2), None), (torch.ones(2), None))
    (tensor([2., 2.]), None)
    """
    if not callable(function):
        raise TypeError(f"the function comes first, tree.map(function, tree), but here is {describe(function)}")
    first, structure = flatten(tree)
    others = [flatten(other) for other in rest]
    for place, (_, other_structure) in enumerate(others):
        if other_structure != structure:
            require_same_structure(tree, rest[place], names=("the first tree", f"tree {place + 2}"))
    columns = [*zip(first, *(other for other, _ in others), strict=True)]
    for place, column in enumerate(columns):
        if len({leaf is None for leaf in column}) > 1:
            raise TypeError(f"at {paths(tree)[place]}, some of the trees have a tensor and others None")
    return unflatten(structure, [None if leaf is None else function(leaf, *more) for leaf, *more in columns])


def map_with_path(function: Callable[[str, Tensor], Tensor], tree: T, /) -> T:
    """Apply a function to each tensor of a tree and the path that leads to it, as `paths` has it. None stays None.

    Args:
        function: takes a path, such as ``"[0].weight"``, and the tensor there, and returns a tensor.
        tree: the tree whose structure the result has.

    >>> from fundl import tree
    >>> tree.map_with_path(lambda path, leaf: -leaf if path == "[1]" else leaf, (torch.ones(1), torch.ones(1)))
    (tensor([1.]), tensor([-1.]))
    """
    if not callable(function):
        raise TypeError(f"the function comes first, tree.map_with_path(function, tree), but here is {describe(function)}")
    first, structure = flatten(tree)
    return unflatten(
        structure, [None if leaf is None else function(path, leaf) for path, leaf in zip(paths(tree), first, strict=True)]
    )


def stack(trees: Sequence[T]) -> T:
    """Trees of one structure as one, whose tensors have a first axis that tells them apart; None stays None.

    Args:
        trees: at least 1.

    Raises:
        TypeError: the structures differ, or there is a tensor in one and None in the same place of another.

    >>> from fundl import tree
    >>> tree.stack([(torch.zeros(2), None), (torch.ones(2), None)])
    (tensor([[0., 0.],
            [1., 1.]]), None)
    """
    unchecked: object = trees
    if not isinstance(unchecked, Iterable):
        raise TypeError(f"trees are stacked from a list of them, not from {describe(unchecked)}")
    flat = [flatten(tree) for tree in trees]
    if not flat:
        raise ValueError("there is nothing to stack: trees are one or more, in a list")
    structure = flat[0][1]
    for place, (_, other) in enumerate(flat):
        if other != structure:
            require_same_structure(trees[0], trees[place], names=("tree 0", f"tree {place}"))
    return unflatten(structure, [_stacked(column) for column in zip(*(leaves for leaves, _ in flat), strict=True)])


def _stacked(column: tuple[Tensor | None, ...]) -> Tensor | None:
    if not isinstance(column[0], Tensor):  # None, or what a user's tree holds besides
        return column[0]
    tensors = [leaf for leaf in column if leaf is not None]
    if len(tensors) < len(column):
        raise TypeError(f"at the same place, some of the trees have a tensor and others None: {describe(column)}")
    try:
        return torch.stack(tensors)
    except RuntimeError as error:
        raise ValueError(f"tensors that are stacked are of one shape and dtype, but here are {describe(column)}") from error


def unstack(tree: T, count: int) -> list[T]:
    """The trees that were stacked: undoes `stack`. Their tensors are views.

    Args:
        tree: whose tensors have a first axis of the size `count`.
        count: how many trees there are.

    >>> from fundl import tree
    >>> tree.unstack((torch.tensor([[1.0, 2.0], [3.0, 4.0]]), None), 2)
    [(tensor([1., 2.]), None), (tensor([3., 4.]), None)]
    """
    leaves, structure = flatten(tree)
    if type(count) is not int:
        raise TypeError(f"count, of the trees, must be an int, not {count!r}")
    for path, leaf in zip(paths(tree), leaves, strict=True):
        if isinstance(leaf, Tensor) and leaf.shape[:1] != (count,):
            raise ValueError(f"trees that were stacked have a first axis of size {count}, but at {path} is {describe(leaf)}")
    columns = [leaf.unbind() if isinstance(leaf, Tensor) else (leaf,) * count for leaf in leaves]
    return [unflatten(structure, row) for row in zip(*columns, strict=True)] if leaves else [tree] * count


def cast_to(tree: T, dtype: torch.dtype) -> T:
    """The tree with its floating-point tensors in another dtype; integer and boolean tensors stay as they are.

    >>> from fundl import tree
    >>> tree.cast_to((torch.ones(1), torch.tensor(3)), torch.float64)
    (tensor([1.], dtype=torch.float64), tensor(3))
    """
    unchecked: object = dtype
    if not isinstance(unchecked, torch.dtype) or not unchecked.is_floating_point:
        raise TypeError(f"tree.cast_to(tree, dtype) takes a floating-point dtype, such as torch.float32, not {describe(dtype)}")
    return map(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, tree)


def move_to(tree: T, device: torch.device | str) -> T:
    """The tree with its tensors on another device.

    Raises:
        ValueError: there is no such device; or a tensor is on the meta device: it has no values to move.
    """
    try:
        torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise (TypeError if isinstance(error, TypeError) else ValueError)(
            f'tree.move_to(tree, device) takes a device, such as "cpu" or "cuda:0", not {describe(device)}'
        ) from error
    if torch.device(device).type != "meta" and any(leaf.is_meta for leaf in leaves(tree)):
        raise ValueError(
            f"tensors on the meta device have no values to move to {device}: call initialize(key, model, device=...) first"
        )
    return map(lambda leaf: leaf.to(device), tree)


def zeros_like(tree: T) -> T:
    """The tree with every tensor replaced by zeros of its shape, dtype and device."""
    return map(torch.zeros_like, tree)

"""The vector-Jacobian product of a pure function of torch, as torch finds it."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from fundl import tree
from fundl._common.modes import no_grad
from fundl._common.tape import off_tape
from fundl.layer import zero_gradient
from fundl.tree import describe

T = TypeVar("T")


def pulled(function: Callable[[T], object], point: T, grad: object) -> T:
    """The gradients of a tree's trainable leaves, from that of the function's value: a tree like the point.

    What records a tape outside finds nothing of it. Buffers stay as they are; integers have a gradient of zeros.
    """

    def values(moved: T) -> tuple[Tensor, ...]:
        return tuple(leaf for leaf in tree.leaves(function(moved)) if leaf.is_floating_point())

    cotangents = tuple(leaf for leaf in tree.leaves(grad) if leaf.is_floating_point())
    return _differentiated(values, point, lambda _: cotangents)[1]


def value_and_gradient(function: Callable[[T], Tensor], point: T) -> tuple[Tensor, T]:
    """A number, and its gradient: a tree like the point."""
    (value,), grad = _differentiated(lambda moved: (function(moved),), point, lambda values: (torch.ones_like(values[0]),))
    return value, grad


def require_tensors(value: object, claim: str) -> None:
    """Raise an error that begins with the claim, unless a value is a tree of tensors."""
    for leaf in tree.flatten(value)[0]:
        if leaf is not None and not isinstance(leaf, Tensor):  # whatever a user's function gives
            raise TypeError(f"{claim} a tensor, or a tuple, dict or record of tensors, not {describe(value)}")


def _differentiated(
    function: Callable[[T], tuple[Tensor, ...]],
    point: T,
    cotangents: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]],
) -> tuple[tuple[Tensor, ...], T]:
    with no_grad():
        leaves = [off_tape(leaf) for leaf in tree.trainable_leaves(point)]

    def of_numbers(*numbers: Tensor) -> tuple[Tensor, ...]:
        moved = iter(numbers)
        return function(tree.with_trainable_leaves(point, _in_place(leaves, moved)))

    numbers = [leaf for leaf in leaves if leaf.is_floating_point()]
    with no_grad():  # what the function closes over may be on a tape outside
        values, pull, *_ = torch.func.vjp(of_numbers, *numbers)
        found = iter(pull(cotangents(values)) if numbers else ())
    gradients = [next(found) if leaf.is_floating_point() else zero_gradient(leaf) for leaf in leaves]
    return values, tree.with_trainable_leaves(point, gradients)


def _in_place(leaves: list[Tensor], numbers: Iterator[Tensor]) -> list[Tensor]:
    """The leaves, with other tensors in the places of those that have derivatives."""
    return [next(numbers) if leaf.is_floating_point() else leaf for leaf in leaves]

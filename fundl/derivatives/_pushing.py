"""The Jacobian-vector product of functions of this library, as torch finds it kernel by kernel."""

import functools
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from fundl import tree
from fundl._common.modes import no_grad
from fundl._common.suggestions import require_tensor
from fundl._common.tape import off_tape, refuse_tape
from fundl.layer import zero_gradient
from fundl.tree import describe

T = TypeVar("T")
Y = TypeVar("Y")


class Moving:
    """A point that moves: some of its trainable leaves have a tangent, the others stay.

    Args:
        point: a tree of tensors.
        ways: where it moves to, trees like parts of the point; each with that part, and what errors call the two. None: it
            stays.
    """

    def __init__(self, point: T, ways: "Sequence[tuple[object, object | None, str, str]]") -> None:
        refuse_tape(point, [way for _, way, *_ in ways])
        with no_grad():
            self._leaves = [off_tape(leaf) for leaf in tree.trainable_leaves(point)]
        self._point = point
        self._places: list[int] = []
        self.tangents: list[Tensor] = []
        first = 0
        for part, way, of_part, of_way in ways:
            leaves = tree.trainable_leaves(part)
            if way is not None:
                self._move(first, leaves, part, way, (of_part, of_way))
            first += len(leaves)

    def _move(self, first: int, leaves: list[Tensor], part: object, way: object, names: tuple[str, str]) -> None:
        tree.require_same_structure(part, way, names=names)
        tangents = tree.trainable_leaves(way)
        for place, (path, leaf, tangent) in enumerate(zip(tree.trainable_paths(part), leaves, tangents, strict=True), first):
            if not leaf.is_floating_point():
                continue  # which has no derivative
            if (tangent.shape, tangent.dtype, tangent.device) != (leaf.shape, leaf.dtype, leaf.device):
                raise ValueError(
                    f"{names[1]}{path} must be like {names[0]}{path}, {describe(leaf)} on {leaf.device}, not"
                    f" {describe(tangent)} on {tangent.device}"
                )
            self._places.append(place)
            self.tangents.append(tangent)

    @property
    def primals(self) -> tuple[Tensor, ...]:
        """The leaves that move."""
        return tuple(self._leaves[place] for place in self._places)

    def moved(self, leaves: Sequence[Tensor]) -> object:
        """The point with other leaves in the places of those that move."""
        replaced = [*self._leaves]
        for place, leaf in zip(self._places, leaves, strict=True):
            replaced[place] = leaf
        return tree.with_trainable_leaves(self._point, replaced)


def pushed(function: Callable[[object], Y], moving: Moving) -> tuple[Y, Y]:
    """The value of a function, and its derivative as its argument moves: two trees alike."""
    if not moving.tangents:  # of no parameters
        with no_grad():
            value = function(moving.moved(()))
        return value, tree.map(torch.zeros_like, value)
    made: list[Y] = []

    def of_numbers(*leaves: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        made.append(function(moving.moved(leaves)))
        found = tree.leaves(made[0])
        return tuple(leaf for leaf in found if leaf.is_floating_point()), tuple(found)

    prepare()
    with no_grad():
        _, ways, *rest = torch.func.jvp(of_numbers, moving.primals, tuple(moving.tangents), has_aux=True)
    (values,), tangents = rest, iter(ways)
    of_each = iter([next(tangents) if leaf.is_floating_point() else zero_gradient(leaf) for leaf in values])
    of_value, form = iter(values), made[0]
    return tree.map(lambda _: next(of_value), form), tree.map(lambda _: next(of_each), form)


@functools.cache
def prepare() -> None:
    """Have torch load what forward mode needs, which warns of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def require_tensor_output(output: object, name: str) -> Tensor:
    """The output of a model, which must be one tensor."""
    require_tensor(output, f"{name}: the model must give")
    assert isinstance(output, Tensor)
    return output

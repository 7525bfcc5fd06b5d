"""What belongs to many runs: trees whose tensors have a first axis of the runs, and functions of each run."""

from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeVar, TypeVarTuple, final

import attrs
import torch
from torch import Tensor

from fundl import tree
from fundl._common import suggestions
from fundl._common.suggestions import with_suggestions
from fundl.tree import describe

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def each(function: Callable[[*Ts], T]) -> Callable[[*Ts], T]:
    """The function that does for each of R runs, all at once, what a function does for one.

    Args:
        function: pure, of trees of tensors to a tree of tensors, such as a loss. It sees what belongs to one run, and must
            not look at the values of tensors to decide what to do.

    Returns:
        A function of trees whose tensors have a first axis of size R, and so have those that it returns.

    Raises:
        ValueError: when called: a tensor lacks the axis, or the axes are of different sizes.

    Data of its own for each run:

    >>> from fundl import disk, ensemble, key, split
    >>> points, labels = ensemble.each(lambda key: disk(key, 100))(split(key(0), 3))
    >>> points.shape, labels.shape
    (torch.Size([3, 100, 2]), torch.Size([3, 100]))
    """
    if not callable(function):
        raise TypeError(f"ensemble.each(function) takes a function of one run, not {describe(function)}")

    def of_runs(*trees: *Ts) -> T:
        count_runs(trees, "what is given")
        leaves, structure = tree.flatten(trees)
        made: list[tuple[list[Tensor | None], tree.Structure[T]]] = []

        def of_one(*tensors: Tensor) -> tuple[Tensor, ...]:
            made.append(tree.flatten(function(*tree.unflatten(structure, _filled(leaves, tensors)))))
            return tuple([leaf for leaf in made[0][0] if isinstance(leaf, Tensor)])

        outputs: tuple[Tensor, ...] = torch.vmap(of_one)(*[leaf for leaf in leaves if isinstance(leaf, Tensor)])
        return tree.unflatten(made[0][1], _filled(made[0][0], outputs))

    of_runs.__name__ = suggestions.name_of(function)  # for messages
    return of_runs


def _filled(leaves: Sequence[Tensor | None], tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """The leaves with other tensors in the places of theirs; what is no tensor stays."""
    remaining = iter(tensors)
    return [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in leaves]


@with_suggestions
def share(data: T, runs: int) -> T:
    """The same data for each of R runs: its tensors behind a first axis of size R. Nothing is copied.

    Args:
        data: a tree of tensors.
        runs: R, at least 1.

    Raises:
        ValueError: there is less than 1 run.

    >>> from fundl import ensemble
    >>> ensemble.share(torch.tensor([1.0, 2.0]), 3)
    tensor([[1., 2.],
            [1., 2.],
            [1., 2.]])
    """
    if type(runs) is not int:
        raise TypeError(f"how many runs there are must be an int, not {describe(runs)}: ensemble.share(data, runs)")
    if runs < 1:
        raise ValueError(f"an ensemble has 1 run or more, not {runs}")
    return tree.map(lambda leaf: leaf.expand(runs, *leaf.shape), data)


def count_runs(values: object, name: str) -> int:
    """The size of the first axis, that of the runs, which all tensors of a tree must share."""
    sizes = {leaf.shape[:1] for leaf in tree.leaves(values)}
    if len(sizes) != 1 or not all(sizes):
        raise ValueError(
            f"in an ensemble, all tensors have a first axis of one size, that of the runs, but {name} is {describe(values)}:"
            " ensemble.share(data, runs) gives all runs the same"
        )
    return sizes.pop()[0]


@final
@attrs.frozen
class Runs:
    """Whether tensors are of one run, or of many: training is written for one run, and `each` makes it that of many.

    Args:
        axes: how many first axes of tensors are those of the runs: 1 in an ensemble, else 0.
    """

    axes: Literal[0, 1]

    def each(self, function: Callable[[*Ts], T]) -> Callable[[*Ts], T]:
        """The function that does for all runs what a function does for one."""
        return each(function) if self.axes else function

    def apart(self, values: T) -> list[T]:
        """A tree taken apart: one for each run. The tensors are views."""
        return tree.unstack(values, len(tree.leaves(values)[0])) if self.axes else [values]


ONE: Final = Runs(0)
MANY: Final = Runs(1)

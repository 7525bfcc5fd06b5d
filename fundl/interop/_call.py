"""What is to become a file for another program: a function, what it is called with, and what its results are called."""

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias, TypeVarTuple, cast

import attrs
import torch
from torch import Tensor

from fundl._common.modes import no_grad
from fundl._compiling.exports import SizeError
from fundl._compiling.trees import flatten, replace
from fundl.layer import Model, P, Prediction, Target
from fundl.model import apply
from fundl.training.step import S, Step, TrainState, X
from fundl.tree import describe

Examples = TypeVarTuple("Examples")

Function: TypeAlias = Callable[[Sequence[object]], object]
"""A function of a list of what it is called with."""


@attrs.frozen(eq=False)
class Argument:
    """What a function is given, by name.

    Args:
        name: of the argument.
        example: of it.
        free: whether the first axes of its tensors may have any size.
        inside: whether its tensors are to be in the file, as they are.
    """

    name: str
    example: object
    free: bool = False
    inside: bool = False


@attrs.frozen(eq=False)
class Call:
    """A function of trees, and how it is called.

    Args:
        function: from trees of tensors to a tree of tensors.
        arguments: what it is called with.
        results: what it returns is called: one name for all, or one for each part of a tuple.
    """

    function: Function
    arguments: Sequence[Argument]
    results: Sequence[str]

    def leaves(self) -> tuple[list[Tensor], list[str], list[Argument]]:
        """All tensors of the arguments, where they are, and the argument of each.

        Raises:
            TypeError: an argument is no tree of tensors.
            ValueError: one is sparse.
        """
        flats = [flatten(argument.example, argument.name) for argument in self.arguments]
        leaves, paths = [leaf for flat in flats for leaf in flat.leaves], [path for flat in flats for path in flat.paths]
        for tensor, path in zip(leaves, paths, strict=True):
            if tensor.layout is not torch.strided:
                raise ValueError(f"{path} is a sparse tensor, for which the file has no place: give tensor.to_dense()")
        return leaves, paths, [argument for argument, flat in zip(self.arguments, flats, strict=True) for _ in flat.leaves]

    def of_leaves(self, tensors: Sequence[Tensor]) -> object:
        """The function, of all tensors of its arguments."""
        given = iter(tensors)
        with no_grad():
            return self.function([replace(argument.example, given) for argument in self.arguments])

    def parts(self, result: object) -> list[tuple[str, object]]:
        """What the function returned, by name.

        Raises:
            TypeError: it is not what the results say.
        """
        if len(self.results) == 1:
            return [(self.results[0], result)]
        if not isinstance(result, tuple) or len(result) != len(self.results):
            raise TypeError(f"the function must return a tuple of {', '.join(self.results)}, not {describe(result)}")
        return [*zip(self.results, result, strict=True)]

    def not_free(self, error: SizeError) -> ValueError:
        """The error for rows that cannot be free."""
        names = ", ".join(argument.name for argument in self.arguments if argument.free)
        return ValueError(f"the rows of {names} cannot be free: {error}; with free=() the file is for one size")


def free_axes(leaves: Sequence[Tensor], owners: Sequence[Argument]) -> set[tuple[int, int]]:
    """The number of a tensor, and its axis, for each size that is free."""
    return {(number, 0) for number, leaf in enumerate(leaves) if owners[number].free and leaf.ndim}


# --- What is exported ---------------------------------------------------------------------------------------------------


def call_of(
    function: Callable[[*Examples], object],
    examples: tuple[*Examples],
    free: str | Collection[str],
    results: str | Sequence[str],
) -> Call:
    """Any function, called with examples.

    Raises:
        TypeError: the examples do not fit the function.
        ValueError: what is to be free is no parameter.
    """
    given: tuple[object, ...] = examples
    names = _parameters(function, len(given))
    asked = [free] if isinstance(free, str) else [*free]
    if unknown := [name for name in asked if name not in names]:
        raise ValueError(f"free is to name parameters of the function, {', '.join(names)}, not {', '.join(unknown)}")
    arguments = [Argument(name, example, free=name in asked) for name, example in zip(names, given, strict=True)]
    return Call(_of_list(function), arguments, [results] if isinstance(results, str) else results)


def call_of_step(
    step: Step[P, S, X, Target, Prediction], state: TrainState[P, S], batch: tuple[X, Target], free: str | Collection[str]
) -> Call:
    """A training step.

    Raises:
        ValueError: what is to be free is not the batch.
    """
    asked = [free] if isinstance(free, str) else [*free]
    if any(name != "batch" for name in asked):
        raise ValueError(f'free is "batch" or (), for of a step the rows of the batch alone may be any number, not {free!r}')
    arguments = [Argument("state", state), Argument("batch", batch, free=bool(asked))]
    return Call(_of_list(step), arguments, ["next.state", "report"])


def call_of_apply(model: Model, x: object, free: str | Collection[str]) -> Call:
    """What `apply` does, with the model in the file.

    Raises:
        ValueError: what is to be free is not the input.
    """
    asked = [free] if isinstance(free, str) else [*free]
    if any(name != "x" for name in asked):
        raise ValueError(f'free is "x" or (), for of a model the rows of its input alone may be any number, not {free!r}')
    arguments = [Argument("model", model, inside=True), Argument("x", x, free=bool(asked))]
    return Call(_of_list(apply), arguments, ["output"])


def _parameters(function: object, count: int) -> list[str]:
    """The names of what a function is given."""
    if not callable(function):
        raise TypeError(f"what is exported is a function, not {function!r:.60}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # it is written in C
        return [f"argument_{index}" for index in range(count)]
    try:
        bound = signature.bind(*[None] * count)
    except TypeError as error:
        raise TypeError(f"the examples do not fit the function: {error}") from error
    names: list[str] = []
    for name in bound.arguments:
        several = signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
        names += [f"{name}_{index}" for index in range(count - len(names))] if several else [name]
    return names


def _of_list(function: Callable[[*Examples], object]) -> Function:
    """The same function, of a list of its arguments, which are like the examples."""
    return lambda arguments: function(*cast("tuple[*Examples]", tuple(arguments)))

"""What a mean divided by: so that means of several batches can be put together as the mean of all.

A loss or a metric of a batch is a mean over something: over elements, samples, tokens that count, weights. What the sum was
divided by is the batch's weight, and the mean over several batches is

    (w_1 m_1 + ... + w_k m_k) / (w_1 + ... + w_k)

The losses and metrics of fundl can be asked for it, by `weight_of`, and so can one of a user's that `weighed_by` marks. Any
other counts as a mean over the batch's rows. A loss that is a sum divides by nothing: several are added up, w = 1.
"""

import functools
import types
from collections.abc import Callable
from typing import Final, Literal, ParamSpec, TypeAlias, TypeVar, cast, overload

from torch import Tensor

from fundl import tree
from fundl.layer import Prediction, Target

F = TypeVar("F")
P = ParamSpec("P")

Weight: TypeAlias = Tensor | float
"""A weight: a number, or a tensor without axes."""
Rule: TypeAlias = Callable[[object, object], Weight]
"""From a prediction and its target to the weight of their mean."""

_MARK: Final = "__fundl_weight__"


class Sum(int):
    """The weight of a sum, 1: the sums of several batches are added up, and not averaged."""


SUM: Final = Sum(1)


def _of_a_sum(*_args: object, **_options: object) -> Weight:
    return SUM


@overload
def weighed_by(rule: Callable[P, Weight]) -> Callable[[F], F]: ...
@overload
def weighed_by(rule: Literal["sum"]) -> Callable[[F], F]: ...
def weighed_by(rule: Callable[P, Weight] | Literal["sum"]) -> Callable[[F], F]:
    """Say what a loss or a metric, which is a mean, divides by: a decorator that marks it, and changes nothing else.

    Args:
        rule: from the same arguments, options included, to what the mean is divided by: a number where the shapes alone decide
            it, else a tensor without axes, 0 or more. Like a loss, it must not look at the values of tensors to decide what
            to do. Or "sum", for a loss that is a sum, and divides by nothing.

    Raises:
        TypeError: it is neither.

    A loss over the tokens that are not padding, by hand:

    >>> import torch
    >>> from fundl import weight_of, weighed_by
    >>> def tokens(prediction, target):
    ...     return (target >= 0).sum()
    >>> @weighed_by(tokens)
    ... def squared(prediction, target):
    ...     grad = torch.where(target >= 0, prediction - target, 0.0) * (2 / tokens(prediction, target))
    ...     return (grad * (prediction - target)).sum() / 2, grad
    >>> weight_of(squared, torch.zeros(2, 3), torch.tensor([[1.0, 1.0, -1.0], [1.0, -1.0, -1.0]]))
    tensor(3)
    """
    if not callable(rule) and rule != "sum":
        raise TypeError(
            'weighed_by takes a function of a prediction and a target that returns what the mean divides by, or "sum", not'
            f" {rule!r}"
        )

    def mark(function: F) -> F:
        setattr(function, _MARK, rule if callable(rule) else _of_a_sum)
        return function

    return mark


def weight_of(mean: Callable[[Prediction, Target], object], prediction: Prediction, target: Target) -> Weight:
    """What a loss or a metric divides by, for this prediction and target.

    Args:
        mean: the loss or metric; a `functools.partial` of one, or what `functools.wraps` one, is asked as that one is.
        prediction: as it takes it.
        target: likewise.

    Returns:
        A number, or a tensor without axes: for ``reduction="mean"`` the number of elements, or of samples that count, or the
        sum of their weights; for "batch_mean" the number of samples; for "sum" a 1 that says that it is of a sum. Of a function
        that nothing is known of, the number of rows: the size of the first axis of the prediction, or of its first tensor that
        has one; 1 if none has.

    >>> import functools, torch
    >>> from fundl import cross_entropy, mse, weight_of
    >>> weight_of(mse, torch.zeros(4, 3), torch.zeros(4, 3))
    12
    >>> weight_of(functools.partial(cross_entropy, ignore_index=0), torch.zeros(3, 5), torch.tensor([2, 0, 4]))
    tensor(2)
    """
    if not callable(mean):
        raise TypeError(f"weight_of(mean, prediction, target) takes a loss or a metric, not {tree.describe(mean)}")
    return (rule_of(mean) or by_rows)(prediction, target)


def rule_of(function: object) -> Rule | None:
    """How a function's results weigh; None if nothing is known."""
    if isinstance(function, functools.partial):
        rule = rule_of(function.func)
        if rule is None or rule is _of_a_sum:
            return rule
        if function.keywords.get("reduction") == "sum":
            return _of_a_sum
        return functools.partial(rule, *function.args, **function.keywords)
    rule = cast("Rule | None", getattr(function, _MARK, None))  # only `weighed_by` writes it
    if rule is None:
        wrapped: object = getattr(function, "__wrapped__", None)
        return None if wrapped is None else rule_of(wrapped)
    if isinstance(function, types.MethodType):
        return functools.partial(rule, function.__self__)
    return rule


def adds_up(loss: object) -> bool:
    """Whether a loss is a sum, and says so: of several batches its values are added, too."""
    return rule_of(loss) is _of_a_sum


def by_rows(prediction: object, _target: object) -> int:
    """The weight of a mean over rows, those of the prediction."""
    return count_along(prediction, 0)


def count_along(value: object, axis: int) -> int:
    """The size of an axis of a tree's first tensor that has it, such as the number of rows of a batch; 1 if none has it."""
    if isinstance(value, Tensor):
        return value.shape[axis] if value.ndim > axis else 1
    return next((leaf.shape[axis] for leaf in tree.leaves(value) if leaf.ndim > axis), 1)

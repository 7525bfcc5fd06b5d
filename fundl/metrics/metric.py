"""What a metric is: a function of a prediction and its target, which may be a mean over rows, or of all data at once."""

import functools
from collections.abc import Callable, Mapping
from typing import Concatenate, Final, ParamSpec, TypeAlias, TypeVar, cast, final

import attrs
from torch import Tensor

from fundl import tree
from fundl._common import suggestions
from fundl.layer import Prediction, Target
from fundl.losses.reduction import OfOptions

F = TypeVar("F")
Options = ParamSpec("Options")

Metric: TypeAlias = Callable[[Prediction, Target], Tensor]
"""A metric goes from a prediction and its target to one number, as `accuracy` does.

One of your own is a function:

>>> from torch import Tensor
>>> def largest_error(prediction: Tensor, target: Tensor) -> Tensor:
...     return (prediction - target).abs().amax()
"""


def require_metrics(metrics: Mapping[str, Metric[Prediction, Target]] | None) -> Mapping[str, Metric[Prediction, Target]]:
    """Metrics by their names, none for None.

    Raises:
        TypeError: they are no functions by names.
        ValueError: one is called "loss".
    """
    given: object = {} if metrics is None else metrics
    if not isinstance(given, Mapping) or not all(callable(metric) for metric in given.values()):
        name = suggestions.name_of(given) if suggestions.is_function(given) else "accuracy"
        raise TypeError(f'metrics are functions by names of your own, metrics={{"{name}": {name}}}, not {tree.describe(given)}')
    for name in given:
        require_name(name)
    return {} if metrics is None else metrics


def require_name(name: object) -> str:
    """A name that a metric can have."""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise TypeError(f'the name of a metric is a word, such as "accuracy", not {name!r}')
    if name == "loss":
        raise ValueError('no metric can be called "loss": the loss itself has that name')
    return name


# --- Metrics of all data at once -------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class Gathering:
    """How a metric is found of what there is to know of each batch.

    Args:
        known: from a prediction, a target and the metric's options: sums, of shape (K,), or numbers of each row, (N, K).
        value: from what is known of all batches, in float64, and the options.
        in_rows: whether rows are put behind each other; else sums are added.
    """

    known: OfOptions[Tensor]
    value: OfOptions[Tensor]
    in_rows: bool


_GATHERING: Final = "__fundl_gathering__"


def gathered_as(gathering: Gathering) -> Callable[[F], F]:
    """Say of a metric how it is found of all data: a decorator that marks it, and changes nothing else."""

    def mark(metric: F) -> F:
        setattr(metric, _GATHERING, gathering)
        return metric

    return mark


def gathering_of(metric: object) -> Gathering | None:
    """How a metric is found of all data, its options included; None if it is a mean."""
    if isinstance(metric, functools.partial) and not metric.args:
        if (inner := gathering_of(metric.func)) is None:
            return None
        known, value = (functools.partial(part, **metric.keywords) for part in (inner.known, inner.value))
        return Gathering(known, value, inner.in_rows)
    return cast("Gathering | None", getattr(metric, _GATHERING, None))  # only `gathered_as` writes it


def metric_of_sums(
    sums: Callable[Concatenate[Prediction, Target, Options], Tensor], value: Callable[Concatenate[Tensor, Options], Tensor]
) -> Callable[Concatenate[Prediction, Target, Options], Tensor]:
    """The metric that is a function of sums over the data, but no mean: a ratio or a root of them, say.

        metric(prediction, target) = value(sums(prediction, target))

    Over many batches, and processes, the sums are added up in float64 before the value is found: it is that of all data,
    exactly, however they are cut.

    Args:
        sums: from a prediction, a target and options to K numbers, of shape (K,), which are added up.
        value: from the sums and the same options to a tensor without axes.

    Returns:
        The metric, for `evaluate` and `fit`; its options are given by `functools.partial`.

    Raises:
        TypeError: they are no functions.

    >>> import torch
    >>> from fundl import Identity, evaluate, metric_of_sums, mse
    >>> def squares(prediction, target):
    ...     return torch.stack([(prediction - target).square().sum(), torch.tensor(float(len(target)))])
    >>> root = metric_of_sums(squares, lambda sums: (sums[0] / sums[1]).sqrt())
    >>> batches = [(torch.tensor([3.0]), torch.tensor([0.0])), (torch.tensor([4.0, 5.0]), torch.tensor([0.0, 0.0]))]
    >>> f"{evaluate(mse, Identity(), batches, metrics={'root': root}).metrics['root']:.4f}"  # sqrt of (9 + 16 + 25) / 3
    '4.0825'
    """
    return _made("metric_of_sums", sums, value, in_rows=False)


def metric_of_rows(
    rows: Callable[Concatenate[Prediction, Target, Options], Tensor], value: Callable[Concatenate[Tensor, Options], Tensor]
) -> Callable[Concatenate[Prediction, Target, Options], Tensor]:
    """The metric that needs all data at once, as what depends on their order does: a median, a rank, an area under a curve.

        metric(prediction, target) = value(rows(prediction, target))

    Over many batches, and processes, the rows are kept, and put behind each other before the value is found.

    Args:
        rows: from a prediction, a target and options to K numbers for each of N rows, of shape (N, K).
        value: from the rows of all data and the same options to a tensor without axes. The rows are in no order that tells.

    Returns:
        The metric, for `evaluate` and `fit`; its options are given by `functools.partial`.

    Raises:
        TypeError: they are no functions.

    >>> import torch
    >>> from fundl import Identity, evaluate, metric_of_rows, mse
    >>> median = metric_of_rows(lambda x, t: (x - t).abs().reshape(-1, 1), lambda rows: rows.median())
    >>> batches = [(torch.tensor([3.0]), torch.tensor([0.0])), (torch.tensor([4.0, 5.0]), torch.tensor([0.0, 0.0]))]
    >>> evaluate(mse, Identity(), batches, metrics={"median error": median}).metrics["median error"]
    4.0
    """
    return _made("metric_of_rows", rows, value, in_rows=True)


def _made(
    name: str,
    known: Callable[Concatenate[Prediction, Target, Options], Tensor],
    value: Callable[Concatenate[Tensor, Options], Tensor],
    *,
    in_rows: bool,
) -> Callable[Concatenate[Prediction, Target, Options], Tensor]:
    part = "rows" if in_rows else "sums"
    for function in (known, value):
        if not callable(function):
            raise TypeError(
                f"{name} takes two functions, {part} of a batch and the value of all, not {tree.describe(function)}"
            )

    def metric(prediction: Prediction, target: Target, /, *args: Options.args, **options: Options.kwargs) -> Tensor:
        return value(known(prediction, target, *args, **options), *args, **options)

    metric.__name__ = suggestions.name_of(value)
    return gathered_as(Gathering(known, value, in_rows))(metric)

"""What a history tells: its numbers as a table, whether the last epoch is the best, and whether nothing gets better any more.

All are functions of the history, which a run that is taken up has whole: it decides as if it had never stopped.
"""

import math
from collections.abc import Iterator, Sequence

from fundl._common.suggestions import with_suggestions
from fundl.training.history import Epoch
from fundl.tree import describe


@with_suggestions
def table(history: Sequence[Epoch]) -> dict[str, list[float | None]]:
    """The numbers of a history, column by column.

    A column each for ``epoch``, ``step``, ``seconds``, ``train_loss`` and the metrics of the training, such as
    ``train_accuracy``; then the same with ``test_``, if anything was evaluated, and None after which epochs it was not.
    ``pandas.DataFrame(table(history))`` makes a data frame of it.

    >>> from fundl import Epoch, Evaluation, table
    >>> first = Epoch(1, 10, Evaluation(0.7, {"accuracy": 0.5}), None, 0.1)
    >>> second = Epoch(2, 20, Evaluation(0.6, {"accuracy": 0.75}), Evaluation(0.65), 0.1)
    >>> columns = table([first, second])
    >>> columns["train_accuracy"], columns["test_loss"]
    ([0.5, 0.75], [None, 0.65])
    """
    rows = [epoch.numbers for epoch in _epochs(history)]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


@with_suggestions
def is_best(history: Sequence[Epoch], number: str, *, greatest: bool = False) -> bool:
    """Whether a number of the last epoch is better than in all before it.

    Args:
        history: of the epochs so far.
        number: the name of one in `table`, such as "test_loss" or "test_accuracy".
        greatest: whether the greatest is the best, and not the least.

    Returns:
        False as well if the number is NaN, or was not measured after the last epoch.

    Raises:
        ValueError: the epochs have no such number.

    In a loop: ``if is_best(epoch.history, "test_loss"): best = epoch``, and ``best.state`` is the best state; `Checkpoints`
    keeps it in a file, for runs that are taken up.

    >>> from fundl import Epoch, Evaluation, is_best
    >>> history = [Epoch(1, 10, Evaluation(0.7), None, 0.1), Epoch(2, 20, Evaluation(0.6), None, 0.1)]
    >>> is_best(history, "train_loss")
    True
    """
    numbers = _ascending(history, number, greatest=greatest)
    if not numbers or number not in history[-1].numbers or math.isnan(numbers[-1]):
        return False
    return not any(before <= numbers[-1] for before in numbers[:-1])


@with_suggestions
def is_stalled(history: Sequence[Epoch], number: str, *, patience: int, greatest: bool = False, change: float = 0.0) -> bool:
    """Whether a number has not become better for some time: whether to stop early.

    Args:
        history: of the epochs so far.
        number: the name of one in `table`, such as "test_loss" or "test_accuracy".
        patience: for how many epochs it has not become better; those after which it was not measured do not count.
        greatest: whether the greatest is the best, and not the least.
        change: by more than this it must differ from the best before it to be better. NaN never is.

    Raises:
        ValueError: the epochs have no such number, the patience is less than 1 epoch, or the change negative.

    In a loop: ``if is_stalled(epoch.history, "test_loss", patience=5): break``.

    >>> from fundl import Epoch, Evaluation, is_stalled
    >>> losses = [0.7, 0.5, 0.6, 0.55]
    >>> history = [Epoch(place, 10 * place, Evaluation(loss), None, 0.1) for place, loss in enumerate(losses, 1)]
    >>> is_stalled(history, "train_loss", patience=2), is_stalled(history, "train_loss", patience=3)
    (True, False)
    """
    if patience < 1:
        raise ValueError(f"the patience is 1 epoch or more, not {patience}")
    if not change >= 0:
        raise ValueError(f"the change, by which a number must become better, is 0 or more, not {change}")
    best, waited = math.inf, 0
    for value in _ascending(history, number, greatest=greatest):
        better = value < best - change if math.isfinite(best) else value < best
        best, waited = (value, 0) if better else (best, waited + 1)
    return waited >= patience


def _epochs(history: Sequence[Epoch]) -> Sequence[Epoch]:
    """The epochs of a history, once it is found to be one."""
    given: object = history
    if not isinstance(given, Sequence) or not all(isinstance(epoch, Epoch) for epoch in given):
        raise TypeError(
            f"a history is the epochs so far, in a list, as fit returns it and epoch.history holds it, not {describe(given)}"
        )
    return history


def _ascending(history: Sequence[Epoch], name: str, *, greatest: bool) -> list[float]:
    """A number of each epoch that has it, so that the least is the best."""
    if not isinstance(name, str):
        raise TypeError(f'a number is named as in the table, "train_loss" or "test_accuracy", say, not {describe(name)}')
    try:
        numbers = [number for number in _each(history, name) if number is not None]
    except (AttributeError, TypeError):
        _epochs(history)
        raise
    if history and not numbers and (not name.startswith("test_") or any(epoch.test is not None for epoch in history)):
        raise ValueError(f"no epoch has a number {name!r}, but {', '.join(table(history))}")
    return [-number for number in numbers] if greatest else numbers


def _each(history: Sequence[Epoch], name: str) -> Iterator[float | None]:
    """A number of each epoch, or None. `Epoch.numbers` has it as well, and takes ten times as long, for each of all epochs."""
    part, _, metric = name.partition("_")
    for epoch in history:
        result = epoch.train if part == "train" else epoch.test if part == "test" else None
        if result is None:
            yield epoch.numbers.get(name) if part not in {"train", "test"} else None
        else:
            yield result.loss if metric == "loss" else result.metrics.get(metric)

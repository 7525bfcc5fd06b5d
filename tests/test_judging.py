"""What a history tells: its table, which epoch is the best, and when a number is stalled."""

import math
from collections.abc import Sequence

import pytest

from fundl import Epoch, Evaluation, is_best, is_stalled, table


def history(losses: Sequence[float], tests: Sequence[float | None] = ()) -> list[Epoch]:
    found = [*tests, *[None] * len(losses)]
    return [
        Epoch(place, 10 * place, Evaluation(loss, {"accuracy": -loss}), None if test is None else Evaluation(test), 0.5)
        for place, (loss, test) in enumerate(zip(losses, found, strict=False), 1)
    ]


def test_a_history_is_a_table() -> None:
    columns = table(history([0.5, 0.25, math.nan], [None, 0.75]))
    assert [*columns] == ["epoch", "step", "seconds", "train_loss", "train_accuracy", "test_loss"]
    assert columns["epoch"] == [1, 2, 3]
    assert columns["step"] == [10, 20, 30]
    assert columns["seconds"] == [0.5] * 3
    assert columns["train_loss"][:2] == [0.5, 0.25]
    assert columns["test_loss"] == [None, 0.75, None]
    assert table([]) == {}


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.0], [True]),
        ([1.0, 0.5, 0.5, 0.25, 0.75], [True, True, False, True, False]),  # equal is no better
        ([math.nan, math.nan, 2.0, math.nan, 1.0], [False, False, True, False, True]),
        ([math.inf, 1.0, -math.inf], [True, True, True]),
    ],
)
def test_the_best_is_better_than_all_before(losses: list[float], expected: list[bool]) -> None:
    epochs = history(losses)
    assert [is_best(epochs[:count], "train_loss") for count in range(1, len(losses) + 1)] == expected
    assert [is_best(epochs[:count], "train_accuracy", greatest=True) for count in range(1, len(losses) + 1)] == expected


def test_what_was_not_measured_is_not_the_best() -> None:
    epochs = history([1.0] * 4, [None, 0.5, None, 0.25])
    assert [is_best(epochs[:count], "test_loss") for count in range(5)] == [False, False, True, False, True]


@pytest.mark.parametrize(
    ("losses", "patience", "change", "stops"),
    [
        ([1.0, 1.0], 1, 0.0, 2),
        ([1.0, 0.9, 0.95, 0.91, 0.89, 0.9, 0.9], 3, 0.0, None),
        ([1.0, 0.9, 0.95, 0.91, 0.89, 0.9, 0.9], 2, 0.0, 4),
        ([1.0, 0.99, 0.98, 0.97], 3, 0.1, 4),  # each a little better, and not by enough
        ([1.0, 0.95, 0.85, 0.75], 2, 0.1, None),
        ([math.nan] * 3, 3, 0.0, 3),
        ([math.inf, 1.0], 2, 1.0, None),
        ([], 1, 0.0, None),
    ],
)
def test_patience_ends(losses: list[float], patience: int, change: float, stops: int | None) -> None:
    epochs = history(losses)
    for name, greatest in ("train_loss", False), ("train_accuracy", True):
        said = [
            is_stalled(epochs[:count], name, patience=patience, change=change, greatest=greatest)
            for count in range(len(losses) + 1)
        ]
        assert (said.index(True) if True in said else None) == stops


def test_epochs_without_a_number_do_not_count() -> None:
    epochs = history([1.0] * 6, [None, 0.5, None, 0.6, None, 0.7])
    assert [is_stalled(epochs[:count], "test_loss", patience=2) for count in range(7)] == [False] * 6 + [True]


def test_a_number_that_is_not_there_is_said() -> None:
    epochs = history([1.0, 1.0], [None, 0.5])
    for name in ("loss", "test_accuracy", "train_recall"):
        text = f"no epoch has a number '{name}', but epoch, step, seconds, train_loss, "
        with pytest.raises(ValueError, match=text):
            is_best(epochs, name)
        with pytest.raises(ValueError, match=text):
            is_stalled(epochs, name, patience=1)
    assert not is_stalled(epochs[:1], "test_accuracy", patience=1)  # nobody can know it yet
    with pytest.raises(ValueError, match="the patience is 1 epoch or more, not 0"):
        is_stalled(epochs, "train_loss", patience=0)
    with pytest.raises(ValueError, match="is 0 or more, not -1"):
        is_stalled(epochs, "train_loss", patience=1, change=-1)

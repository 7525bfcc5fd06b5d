"""What is told of a run: epoch by epoch, and by a checkpoint."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias, final

import attrs
from typing_extensions import override

from fundl._common.listed import Listed
from fundl.metrics.metric import require_name
from fundl.tree import describe


class Numbers(Mapping[str, float]):
    """Numbers by their names, in an order, which stay as they are. NaN equals NaN."""

    __slots__ = ("_numbers",)

    def __init__(self, numbers: Mapping[str, float] = {}) -> None:  # which is only read
        given: object = numbers
        if not isinstance(given, Mapping):
            raise TypeError(f'metrics are numbers by their names, such as {{"accuracy": 0.5}}, not {describe(given)}')
        self._numbers = {require_name(name): require_number(number, name) for name, number in numbers.items()}

    @override
    def __getitem__(self, name: str) -> float:
        if name not in self._numbers:
            raise KeyError(f"there is no number {name!r}, but {', '.join(map(repr, self._numbers)) or 'none at all'}")
        return self._numbers[name]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    @override
    def __len__(self) -> int:
        return len(self._numbers)

    @override
    def __contains__(self, name: object) -> bool:
        return name in self._numbers

    @override
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return self.keys() == other.keys() and all(_comparable(self[name]) == _comparable(other[name]) for name in self)

    @override
    def __hash__(self) -> int:
        return hash(frozenset((name, _comparable(number)) for name, number in self.items()))

    @override
    def __repr__(self) -> str:
        return repr(self._numbers)


def require_number(number: object, name: str) -> float:
    """A number of an evaluation, as a float."""
    if not isinstance(number, int | float):
        raise TypeError(f"an evaluation holds numbers, but its {name} is {describe(number)}: of a tensor take number.item()")
    return float(number)


def _comparable(number: object) -> object:
    """What is equal where numbers are, and where both are NaN."""
    return number if number == number else "nan"  # noqa: PLR0124  # which NaN alone is not


def _loss(number: float) -> float:
    return require_number(number, "loss")


@final
@attrs.frozen
class Evaluation(metaclass=Listed):
    """What a model is worth on some data: means over the examples.

    Args:
        loss: the loss.
        metrics: the metrics, by their names; they stay as they are, and NaN equals NaN.

    >>> from fundl import Evaluation
    >>> result = Evaluation(0.25, {"accuracy": 0.9})
    >>> result, result.metrics["accuracy"]
    (Evaluation(loss=0.25, metrics={'accuracy': 0.9}), 0.9)
    """

    loss: float = attrs.field(converter=_loss, eq=_comparable)
    metrics: Mapping[str, float] = attrs.field(factory=Numbers, converter=Numbers)

    @property
    def numbers(self) -> dict[str, float]:
        """The loss and the metrics, by their names."""
        return {"loss": self.loss, **self.metrics}


@attrs.frozen
class Epoch(metaclass=Listed):
    """What `fit` and `epochs` tell of an epoch.

    Args:
        epoch: its number, from 1 on, in this call of `fit`.
        step: how many steps the state has made at its end.
        train: means over the epoch, of each batch before its update.
        test: what the function given as `evaluate` returned; None if it was not asked after this epoch.
        seconds: that the steps took. Two epochs that differ in nothing else are equal.
    """

    epoch: int
    step: int
    train: Evaluation
    test: Evaluation | None
    seconds: float = attrs.field(eq=False)

    @property
    def numbers(self) -> dict[str, float]:
        """All of them by name: ``epoch``, ``step``, ``seconds``, ``train_loss``, ``train_accuracy``, ``test_loss`` ..."""
        numbers: dict[str, float] = {"epoch": self.epoch, "step": self.step, "seconds": self.seconds}
        for part, result in ("train", self.train), ("test", self.test):
            if result is not None:
                numbers |= {f"{part}_{name}": number for name, number in result.numbers.items()}
        return numbers


Known: TypeAlias = tuple[float, ...]
"""What is known of numbers: of a mean, the sum of each times its weight, and that of the weights; else what a metric says."""


@attrs.frozen
class Sums:
    """What is known of batches, of which means are to be made.

    Args:
        count: of batches.
        examples: in them.
        loss: for each run.
        metrics: by their names, likewise.
    """

    count: int
    examples: int
    loss: Sequence[Known]
    metrics: Mapping[str, Sequence[Known]]


@attrs.frozen
class Unfinished:
    """How far an epoch has come that is not finished.

    Args:
        first_step: how many steps the state had made when it began.
        seconds: that it took so far.
        sums: of its batches, as each process has its part of them, in the order of the ranks.
    """

    first_step: int
    seconds: float
    sums: Sequence[Sums]

    @property
    def step(self) -> int:
        """How many steps the state has made."""
        return self.first_step + self.sums[0].count


@attrs.frozen
class Course:
    """What a checkpoint tells of a run, beside its state.

    Args:
        history: of the epochs that are finished.
        began: how many steps the state had made when the pass through the batches began.
        compiled: whether its steps are.
        unfinished: the epoch that is under way; None between two epochs.
    """

    history: Sequence[tuple[Epoch, ...]]
    began: int
    compiled: bool
    unfinished: Unfinished | None = None

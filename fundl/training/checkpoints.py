"""Checkpoints of a run: files from which it goes on as if it had never stopped."""

import json
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar, final

import attrs

from fundl._common.listed import Listed
from fundl.collectives import gather_numbers
from fundl.groups import Group
from fundl.saving import load, load_metadata, save
from fundl.training.history import Epoch, Evaluation, Found
from fundl.tree import describe

T = TypeVar("T")

_NAME: Final = re.compile(r"epoch-(\d{6,})\.safetensors")
_BEST: Final = "best.safetensors"
_RUN: Final = "run"  # the name of what is told of the run, among the metadata of a file


@final
@attrs.frozen
class Checkpoints(metaclass=Listed):
    """Where checkpoints of a run are kept, and which; for `epochs` and `fit`, which go on from the newest that they find there.

    A checkpoint is a file, written whole or not at all, with the state at the end of an epoch and the history so far. A run
    that was killed is taken up by starting the same program again: it goes on from the newest checkpoint that is whole, and
    ends with the same bits as one that was not killed. What was done since that checkpoint is done again; where epochs take
    hours, let an epoch be some hundred steps, ``epochs(..., every=500)``.

    Args:
        folder: of the files, for this run alone; it is made if it is not there.
        every: after how many epochs one is written. After the last one is written in any case.
        seconds: or after so many seconds, at the end of the epoch that is on the way then; None for never.
        keep: so many of the newest are kept.
        best: what is kept besides, as ``best.safetensors``: the state after the epoch of which this number is the least, such
            as ``lambda epoch: epoch.train.loss``.

    Raises:
        ValueError: a number is not above 0.

    >>> from tempfile import TemporaryDirectory
    >>> from fundl import Checkpoints, disk, epochs, initialize, key, linear, minibatches, mse, one_hot, sgd
    >>> from fundl import train_state, train_step
    >>> points, labels = disk(key(0), 100)
    >>> data, optimizer = (points, one_hot(labels, 2)), sgd(0.1)
    >>> def run(folder, count):
    ...     state, step = train_state(key(2), initialize(key(1), linear(2, 2)), optimizer), train_step(mse, optimizer)
    ...     batches, checkpoints = (lambda key: minibatches(key, data, 10)), Checkpoints(folder)
    ...     passed = epochs(step, state, batches, count=count, checkpoints=checkpoints, progress=False)
    ...     return [epoch.epoch for epoch in passed]
    >>> with TemporaryDirectory() as folder:
    ...     run(folder, 2), run(folder, 5)
    ([1, 2], [3, 4, 5])
    """

    folder: str | os.PathLike[str]
    every: int = 1
    seconds: float | None = None
    keep: int = 3
    best: Callable[[Epoch], float] | None = None

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.folder, str | os.PathLike):
            raise TypeError(f"Checkpoints(folder) takes the path of a folder, not {describe(self.folder)}")
        if self.best is not None and not callable(self.best):
            raise TypeError(
                "Checkpoints(..., best=) is a function from an epoch to the number that is to be small, such as"
                f" lambda epoch: epoch.train.loss, not {self.best!r}"
            )
        for name, value in ("every", self.every), ("seconds", self.seconds), ("keep", self.keep):
            if value is None and name != "seconds":
                raise TypeError(f"Checkpoints(..., {name}=) must be an int, not None")
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int if name != "seconds" else int | float)
            ):
                raise TypeError(
                    f"Checkpoints(..., {name}=) must be {'a number' if name == 'seconds' else 'an int'}, not {value!r}"
                )
            if value is not None and not value > 0:
                raise ValueError(f"Checkpoints(..., {name}=) must be above 0, not {value!r}")


@attrs.define
class Writer:
    """Finds and writes the checkpoints of a run; of many processes the first writes, and all find the same."""

    where: Checkpoints
    over: Group | None = None
    newest: Path | None = attrs.field(default=None, init=False)
    _written: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._written = time.monotonic()

    @property
    def folder(self) -> Path:
        """Where they are."""
        return Path(self.where.folder)

    def find(self, like: T) -> tuple[T, Found] | None:
        """The newest checkpoint that is whole, and its state, which is one like a given state; None if there is none.

        Raises:
            ValueError: there are some, and none can be gone on from; with what is wrong with the newest.
        """
        wrong: list[ValueError] = []
        for path in reversed(self._paths()):
            try:
                found = _found(path, load_metadata(path).get(_RUN))
                state = load(path, like)
            except ValueError as error:
                wrong.append(error)
            else:
                for reason in wrong:
                    warnings.warn(f"a checkpoint is left out, since it is not whole: {reason}", RuntimeWarning, stacklevel=2)
                self.newest = path
                self._require_alike(found.history[-1][0].step if found.history else 0)
                return state, found
        self._require_alike(-1)
        if wrong:
            raise ValueError(
                f"no checkpoint in {self.folder} can be gone on from: give Checkpoints another folder, or fit the state that"
                f" the run began with ({wrong[0]})"
            ) from wrong[0]
        return None

    def _require_alike(self, step: int) -> None:
        """Raise unless all processes have found a checkpoint of the same step."""
        if self.over is not None and len(found := {*gather_numbers([step], self.over)}) > 1:
            steps = ", ".join("none" if one < 0 else f"one of step {one}" for one in sorted(found))
            raise ValueError(
                f"the processes do not find the same checkpoint in {self.folder}, but {steps}: it must be a folder that all of"
                " them share"
            )

    def is_due(self, epoch: int) -> bool:
        """Whether a checkpoint is to be written at the end of an epoch."""
        late = self.where.seconds is not None and time.monotonic() - self._written >= self.where.seconds
        return epoch % self.where.every == 0 or late

    def write(self, state: object, history: Sequence[tuple[Epoch, ...]], *, began: int, compiled: bool) -> None:
        """Write a checkpoint, and remove those that are not to be kept."""
        if self.over is not None and self.over.rank:
            return
        told = {"history": [[_texts(epoch) for epoch in row] for row in history], "began": began, "compiled": compiled}
        texts = {_RUN: json.dumps(told)}
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"epoch-{len(history):06}.safetensors"
        save(path, state, metadata=texts)
        self.newest, self._written = path, time.monotonic()
        for old in self._paths()[: -self.where.keep]:
            old.unlink(missing_ok=True)

    def write_best(self, state: object, history: Sequence[tuple[Epoch, ...]]) -> None:
        """Write the state of an epoch that is better than all before it."""
        if self.where.best is None or (self.over is not None and self.over.rank):
            return
        number = self._score(history[-1])
        if not math.isnan(number) and not any(self._score(row) <= number for row in history[:-1]):
            self.folder.mkdir(parents=True, exist_ok=True)
            save(self.folder / _BEST, state, metadata={_RUN: json.dumps({"history": [[_texts(one) for one in history[-1]]]})})

    def _score(self, row: tuple[Epoch, ...]) -> float:
        assert self.where.best is not None
        try:
            return math.fsum(float(self.where.best(epoch)) for epoch in row) / len(row)
        except (AttributeError, TypeError) as error:
            if any(epoch.test is None for epoch in row):
                raise TypeError(
                    f"Checkpoints(best=) could make no number of epoch {row[0].epoch}, which has no test ({error}): evaluate"
                    " after each epoch, or give math.inf for one without a test"
                ) from error
            raise

    def _paths(self) -> list[Path]:
        """The checkpoints, from the oldest to the newest."""
        if not self.folder.is_dir():
            return []
        return sorted(
            (path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)),
            key=lambda path: int(path.stem.removeprefix("epoch-")),
        )


# --- As text ----------------------------------------------------------------------------------------------------------


def _texts(epoch: Epoch) -> dict[str, object]:
    """An epoch, for JSON."""
    texts: dict[str, object] = {"epoch": epoch.epoch, "step": epoch.step, "seconds": epoch.seconds}
    texts["train"] = epoch.train.numbers
    texts["test"] = None if epoch.test is None else epoch.test.numbers
    return texts


def _found(path: Path, text: str | None) -> Found:
    """What a checkpoint tells of its run.

    Raises:
        ValueError: it is no checkpoint.
    """
    try:
        told = json.loads(text or "null")
        history = [tuple([_epoch(one) for one in row]) for row in told["history"]]
        return Found(path, history, int(told["began"]), bool(told["compiled"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not tell of a run, as a checkpoint does ({error!r})") from error


def _epoch(told: Mapping[str, object]) -> Epoch:
    names = {field.name for field in attrs.fields(Epoch)}
    numbers = {name: _evaluation(value) if isinstance(value, dict) else value for name, value in told.items() if name in names}
    return Epoch(**numbers)  # type: ignore[arg-type]  # as `_texts` wrote it; another name is a TypeError


def _evaluation(told: Mapping[str, float]) -> Evaluation:
    return Evaluation(told["loss"], {name: number for name, number in told.items() if name != "loss"})

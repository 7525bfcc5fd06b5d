"""Checkpoints of a run: files from which it goes on as if it had never stopped."""

import functools
import json
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar, final

import attrs

from fundl._common.listed import Listed
from fundl.collectives import gather_numbers
from fundl.groups import Group
from fundl.saving import load, load_metadata
from fundl.saving._background import Background
from fundl.saving._company import first_with
from fundl.saving._writing import Content, content_of, write
from fundl.training._partners import Partners
from fundl.training.history import Course, Epoch, Evaluation, Known, Sums, Unfinished
from fundl.tree import describe

T = TypeVar("T")

_NAME: Final = re.compile(r"epoch-(\d{6,})(?:-step-(\d{6,}))?\.safetensors")
_BEST: Final = "best.safetensors"
_RUN: Final = "run"  # the name of what is told of the run, among the metadata of a file


@final
@attrs.frozen
class Checkpoints(metaclass=Listed):
    """Where checkpoints of a run are kept, and which; for `epochs` and `fit`, which go on from the newest that they find there.

    A checkpoint is a file, written whole or not at all, with the state, the history so far, and in the middle of an epoch what
    its means are made of. A run that was killed is taken up by starting the same program again: it goes on from the newest
    checkpoint that is whole, and ends with the same bits as one that was not killed, its history's numbers among them. What
    was done since that checkpoint is done again. Ctrl-C and SIGTERM write one before the run ends, between two steps; of
    several processes that make the run together, all end after the same step, whichever of them is told to.

    Files are written while the run goes on, by a thread; what is written there needs memory of its own until it is done, for
    as much of the state as changes in the meantime. A run that donates its states has none to spare: it waits. An error is
    raised at the end of the epoch that is on the way, or of the run; whatever ends the run, the file that has been begun is
    written to its end.

    Args:
        folder: of the files, for this run alone; it is made if it is not there.
        every: after how many epochs one is written. After the last one is written in any case.
        seconds: and after so many seconds, also in the middle of an epoch; None for never. Where several processes make a run
            together, the first one's clock says when.
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
    ([1, 2], [2, 3, 4, 5])
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
    """Finds and writes the checkpoints of a run; all processes find the same.

    Of many processes those write that have the state together with the first: that one alone, where each has all of it.

    Args:
        where: where they are kept.
        over: the processes of which each has rows of a batch; None for one.
        partners: those that make the run together.
    """

    where: Checkpoints
    over: Group | None
    partners: Partners
    is_anothers: bool = attrs.field(default=False, init=False)  # whether other processes write
    newest: Path | None = attrs.field(default=None, init=False)  # that is whole
    _last: Path | None = attrs.field(default=None, init=False)  # that was begun
    _begun: float = attrs.field(init=False)
    _least: float | None = attrs.field(default=None, init=False)  # what the best epoch's number is, once it is known
    _judged: int = attrs.field(default=0, init=False)  # of so many epochs
    _rows: list[str] = attrs.field(factory=list, init=False)  # of the history, as texts, each made once
    _background: Background = attrs.field(factory=Background, init=False)

    def __attrs_post_init__(self) -> None:
        self._begun = time.monotonic()

    @property
    def folder(self) -> Path:
        """Where they are."""
        return Path(self.where.folder)

    def find(self, like: T) -> tuple[T, Course] | None:
        """The newest checkpoint that is whole, and its state, which is one like a given state; None if there is none.

        Raises:
            ValueError: there are some, and none can be gone on from; with what is wrong with the newest.
        """
        wrong: list[ValueError] = []
        for path in reversed(self._paths()):
            try:
                course = _course(path, load_metadata(path).get(_RUN))
                state = load(path, like)
            except ValueError as error:
                wrong.append(error)
            else:
                for reason in wrong:
                    warnings.warn(f"a checkpoint is left out, since it is not whole: {reason}", RuntimeWarning, stacklevel=2)
                self.newest = self._last = path
                self._require_alike(course)
                return state, course
        self._require_alike(None)
        if wrong:
            raise ValueError(
                f"no checkpoint in {self.folder} can be gone on from: give Checkpoints another folder, or fit the state that"
                f" the run began with ({wrong[0]})"
            ) from wrong[0]
        return None

    def _require_alike(self, course: Course | None) -> None:
        """Raise unless all processes have found the same checkpoint."""
        step = 0 if course is None else 1 + _step(course)
        (first,) = self.partners.of_first(step)
        (other,) = self.partners.largest(0 if step == first else 1 + self.partners.number)
        if other:
            (theirs,) = self.partners.largest(step if other == 1 + self.partners.number else 0)
            found = [f"one of step {one - 1}" if one else "none" for one in (first, theirs)]
            raise ValueError(
                f"the processes do not find the same checkpoint in {self.folder}, but {found[0]} in process 0 and {found[1]} in"
                f" process {other - 1}: it must be a folder that all of them share"
            )

    def begin(self, state: object) -> None:
        """Find who writes; all processes of the run ask together."""
        if self.over is not None:
            mine = first_with(state, self.over.rank)
            self.is_anothers = mine != min(gather_numbers([mine], self.over))

    def prepare(self) -> None:
        """Make the folder, if it is not there, and find out whether files can be written there, before any work is done."""
        if self.is_anothers:
            return
        where = self.folder.absolute()
        if where.exists() and not where.is_dir():
            raise NotADirectoryError(
                f"{where} is a file: give Checkpoints the path of a folder, which is made if it is not there"
            )
        where.mkdir(parents=True, exist_ok=True)
        if not os.access(where, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(
                f"no file may be written into the folder {where}: give Checkpoints another one, or the right to write there"
            )

    def tidy(self) -> None:
        """Remove what a process left that ended after it had written the newest one, before it removed what is not kept."""
        if self.is_anothers or self.newest is None:
            return
        with suppress(OSError):  # a run that is over can be looked at where nothing may be written; `prepare` is for others
            self._remove_surplus(self.newest)

    @property
    def is_late(self) -> bool:
        """Whether it is so many seconds since the last one was begun that one is due."""
        return self.where.seconds is not None and time.monotonic() - self._begun >= self.where.seconds

    def is_due(self, epoch: int) -> bool:
        """Whether one is due at the end of an epoch."""
        return epoch % self.where.every == 0 or self.is_late

    def is_best(self, history: Sequence[tuple[Epoch, ...]]) -> bool:
        """Whether the last epoch is better than all before it; each is to be asked about."""
        if self.where.best is None or not self.partners.is_first:
            return False
        best = False
        for row in history[self._judged :]:
            number = self._score(row)
            best = not math.isnan(number) and (self._least is None or number < self._least)
            self._least = number if best else self._least
        self._judged = len(history)
        return best

    def has(self, course: Course) -> bool:
        """Whether the last one that was begun is of this place of the run."""
        return self._last is not None and self._last.name == _name(course)

    def has_written(self, course: Course) -> bool:
        """Whether the newest one that is whole is of this place of the run."""
        return self.newest is not None and self.newest.name == _name(course)

    def learn(self, course: Course) -> None:
        """Take it that one of this place of the run is written, by whichever process."""
        self.newest = self._last = self.folder / _name(course)

    def write(self, state: object, course: Course, *, is_best: bool = False, is_due: bool = True, wait: bool = False) -> None:
        """Begin to write a checkpoint, or the best state, or both; what is not to be kept is removed once that is done.

        Args:
            state: whose tensors nobody writes over until then.
            course: what is told of the run.
            is_best: whether to write the best state.
            is_due: whether to write a checkpoint.
            wait: whether to wait until all is written.

        Raises:
            OSError: one before could not be written; or this one, if it is waited for.
        """
        if self.is_anothers:
            return
        self._background.wait()
        began, files = time.monotonic(), list[tuple[Path, Content]]()
        if is_best:  # at first: where a run is taken up, all epochs before have been judged
            only_last = f'{{"history": [{_row(course.history[-1])}]}}'
            files.append((self.folder / _BEST, content_of(state, {_RUN: only_last}, None)))
        path = self.folder / _name(course) if is_due else None
        if path is not None:
            self._rows += map(_row, course.history[len(self._rows) :])
            told = _told(course, self._rows[: len(course.history)])
            files.append((path, content_of(state, {_RUN: told}, None)))
        work = functools.partial(self._write, files, path)
        del state  # from now on the files alone hold it
        if wait:
            work()
        else:
            self._background.start(work)
        if path is not None:
            self._last, self._begun = path, began

    def look(self) -> None:
        """Raise the error of a file that could not be written."""
        self._background.look()

    def wait(self) -> None:
        """Wait until all is written."""
        self._background.wait()

    def wait_beside(self, error: BaseException) -> None:
        """Wait until all is written, while an error is on its way."""
        self._background.wait_beside(error)

    def _write(self, files: list[tuple[Path, Content]], path: Path | None) -> None:
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"the folder {self.folder.absolute()} of the checkpoints is gone, and nothing can be written there: give"
                " Checkpoints one that stays, or make it again"
            )
        while files:
            write(*files.pop(0), None)
        if path is None:
            return
        self.newest = path
        self._remove_surplus(path)

    def _remove_surplus(self, newest: Path) -> None:
        """Remove what is not to be kept beside the newest one; a later one is not whole, or of another run."""
        before = [old for old in self._paths() if _place(old) < _place(newest)]
        for old in before[: max(0, len(before) + 1 - self.where.keep)]:
            old.unlink(missing_ok=True)

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
        return sorted([path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)], key=_place)


def _name(course: Course) -> str:
    """What a checkpoint is called: after an epoch, or a step in one."""
    number, unfinished = len(course.history), course.unfinished
    if unfinished is None:
        return f"epoch-{number:06}.safetensors"
    return f"epoch-{number + 1:06}-step-{_step(course):06}.safetensors"


def _step(course: Course) -> int:
    """How many steps were made."""
    if (unfinished := course.unfinished) is not None:
        return unfinished.step
    return course.history[-1][0].step if course.history else 0


def _place(path: Path) -> tuple[int, float]:
    """The place of a checkpoint in the run, by its name: the epoch, and the step in it."""
    parts = _NAME.fullmatch(path.name)
    assert parts is not None
    return int(parts[1]), math.inf if parts[2] is None else int(parts[2])


# --- As text ----------------------------------------------------------------------------------------------------------


def _row(row: tuple[Epoch, ...]) -> str:
    """An epoch of each run, as JSON, which keeps each bit of a number."""
    return json.dumps([_texts(epoch) for epoch in row])


def _texts(epoch: Epoch) -> dict[str, object]:
    texts: dict[str, object] = {"epoch": epoch.epoch, "step": epoch.step, "seconds": epoch.seconds}
    texts["train"] = epoch.train.numbers
    texts["test"] = None if epoch.test is None else epoch.test.numbers
    return texts


def _told(course: Course, rows: Sequence[str]) -> str:
    """The course of a run, as JSON, of the rows of its history."""
    rest: dict[str, object] = {"began": course.began, "compiled": course.compiled}
    if course.unfinished is not None:
        rest["unfinished"] = attrs.asdict(course.unfinished)
    return f'{{"history": [{", ".join(rows)}], {json.dumps(rest)[1:]}'


def _course(path: Path, text: str | None) -> Course:
    """What a checkpoint tells of its run.

    Raises:
        ValueError: it is no checkpoint.
    """
    try:
        told = json.loads(text or "null")
        history = [tuple([_epoch(one) for one in row]) for row in told["history"]]
        unfinished = None
        if (epoch := told.get("unfinished")) is not None:
            sums = list[Sums]()
            for one in epoch["sums"]:
                metrics = {str(name): _of_runs(of_runs) for name, of_runs in one["metrics"].items()}
                sums.append(Sums(int(one["count"]), int(one["examples"]), _of_runs(one["loss"]), metrics))
            unfinished = Unfinished(int(epoch["first_step"]), float(epoch["seconds"]), sums)
        return Course(history, int(told["began"]), bool(told["compiled"]), unfinished)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not tell of a run, as a checkpoint does ({error!r})") from error


def _epoch(told: Mapping[str, object]) -> Epoch:
    names = {field.name for field in attrs.fields(Epoch)}
    numbers = {name: _evaluation(value) if isinstance(value, dict) else value for name, value in told.items() if name in names}
    return Epoch(**numbers)  # type: ignore[arg-type]  # as `_texts` wrote it; another name is a TypeError


def _evaluation(told: Mapping[str, float]) -> Evaluation:
    return Evaluation(told["loss"], {name: number for name, number in told.items() if name != "loss"})


def _of_runs(told: Sequence[Sequence[float]]) -> list[Known]:
    return [tuple([float(number) for number in of_run]) for of_run in told]

"""Checkpoints of a run on its way, and signals that end it: of one process, or of many that make it together."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, NoReturn

import attrs

from fundl.layer import P, Prediction, Target
from fundl.training._partners import SECONDS, Looks
from fundl.training._run import Run
from fundl.training._signals import HeldSignals
from fundl.training.checkpoints import Checkpoints, Writer
from fundl.training.interruption import terminated_as_interrupted
from fundl.training.step import S, TrainState, X


@attrs.define
class Keeper(Generic[P, S, X, Target, Prediction]):
    """Writes the checkpoints of a run, and hears what is to end it.

    Where many processes make the run, a signal may come to any of them, at any time, but all have to stop after the same step,
    and no process may stop in the middle of an exchange. So signals wait until all look at each other, see `Looks`.

    Args:
        run: the run.
        writer: of checkpoints; None for none.
    """

    run: Run[P, S, X, Target, Prediction]
    writer: Writer | None = None
    _looks: Looks = attrs.field(init=False)
    _signals: HeldSignals | None = attrs.field(default=None, init=False)  # during an epoch that many processes make

    def __attrs_post_init__(self) -> None:
        seconds = None if self.writer is None else self.writer.where.seconds
        self._looks = Looks(self.run.partners, SECONDS if seconds is None else min(SECONDS, seconds))

    @classmethod
    def of(
        cls, run: Run[P, S, X, Target, Prediction], where: Checkpoints | None, count: int
    ) -> "Keeper[P, S, X, Target, Prediction]":
        """That of a run of so many epochs, which goes on from the newest checkpoint, if there is one."""
        if where is None:
            return cls(run)
        writer = Writer(where, run.over, run.partners)
        writer.begin(run.good)
        if (found := writer.find(run.good)) is not None:
            try:
                run.take_up(*found)
            except ValueError as error:
                raise ValueError(f"{writer.newest} cannot be gone on from: {error}") from None
            writer.tidy()
        if run.is_under_way or len(run.history) < count:  # else there are to be no more
            run.partners.each(writer.prepare)
        return cls(run, writer)

    @contextmanager
    def during_epoch(self) -> Iterator[Callable[[], None] | None]:
        """What is to be done between the steps of an epoch, until all is done with it."""
        with terminated_as_interrupted():
            if not self.run.partners:
                yield None if self.writer is None else functools.partial(self._write_if_late, self.writer)
                return
            with HeldSignals(SECONDS) as self._signals:
                self._signals.hold()
                yield functools.partial(self._look, self._signals)
            self._signals = None

    def after_epoch(self, *, is_last: bool) -> None:
        """Write what checkpoints there are to be at the end of an epoch; and end the run, if it is to end."""
        partners = self.run.partners
        stop = None if self._signals is None else partners.stop(self._signals)
        if self.writer is not None:
            self._write(self.writer, is_due=is_last or stop is not None)
        if stop is not None:
            self._end(stop, self.run.good)

    def after_loop(self, state: TrainState[P, S]) -> None:
        """Write a checkpoint of where the run has come to, if there is none, for one who leaves the loop with a state."""
        if self.writer is not None:
            self.writer.wait()
            self._write_if_new(self.writer, state)

    def wait(self) -> None:
        """Wait until all is written."""
        if self.writer is not None:
            self.writer.wait()

    def end_with(self, error: BaseException) -> None:
        """Wait until all is written, while an error is on its way; if that is Ctrl-C, write a checkpoint of one process's run.

        Whatever happens, the run ends with that error. Many processes have written theirs by now: no exchange is possible
        any more, since an error may be that of one of them.
        """
        if self.writer is None:
            return
        if not isinstance(error, KeyboardInterrupt):
            self.writer.wait_beside(error)
            return
        try:
            self.writer.wait_beside(error)
            if not self.run.partners and (state := self.run.snapshot()) is not None:
                self._write_if_new(self.writer, state)
        except BaseException as second:  # Ctrl-C once more, among others
            error.add_note(f"besides, no checkpoint could be written: {second}")

    @property
    def how_to_go_on(self) -> str:
        """A sentence on how to go on, if there is one."""
        newest = None if self.writer is None else self.writer.newest
        return "" if newest is None else f" The same call goes on from {newest}."

    def _write(self, writer: Writer, *, is_due: bool) -> None:
        """Write at the end of an epoch."""
        run = self.run
        found = False, False

        def judge() -> None:
            nonlocal found
            writer.look()
            found = writer.is_best(run.history), is_due or writer.is_due(len(run.history))

        run.partners.each(judge)
        is_best, due = run.partners.of_first(*found)  # clocks differ, and numbers of evaluations may
        if is_best or due:
            course = run.course()
            run.partners.each(lambda: writer.write(run.good, course, is_best=bool(is_best), is_due=bool(due), wait=run.donate))

    def _write_if_late(self, writer: Writer) -> None:
        """Write a checkpoint between two steps of one process, if one is due."""
        if writer.is_late and (state := self.run.snapshot()) is not None:
            writer.write(state, self.run.course(), wait=self.run.donate)

    def _write_if_new(self, writer: Writer, state: TrainState[P, S]) -> None:
        if not writer.has(course := self.run.course()):
            writer.write(state, course, wait=True)

    # --- Of many processes ---------------------------------------------------------------------------------------------

    def _look(self, signals: HeldSignals) -> None:
        """Look at the others, if it is time to; and then do what all find is to be done."""
        if not self._looks.is_due():
            return
        run, writer = self.run, self.writer
        waits, late = self._looks.look(
            signals,
            is_late=writer is not None and writer.is_late,
            is_settled=writer is None or run.is_settled,
        )
        stop = run.partners.stop(signals) if waits else None
        if stop is not None:
            try:
                state = run.snapshot() if writer is not None else None
            except Exception as second:  # all of them find that the run diverges
                stop.add_note(f"besides, no checkpoint could be written: {second}")
                raise stop from second
            self._end(stop, state)
        if writer is not None and late and (state := run.snapshot()) is not None:
            course = run.course()
            run.partners.each(functools.partial(writer.write, state, course, wait=run.donate))

    def _end(self, stop: BaseException, state: TrainState[P, S] | None) -> NoReturn:
        """End the run in all of its processes, once it is written where it has come to."""
        writer = self.writer
        if writer is not None and state is not None:
            course = self.run.course()
            try:
                writer.wait()
                if not writer.has(course):
                    writer.write(state, course, wait=True)
            except BaseException as second:  # Ctrl-C once more, among others
                stop.add_note(f"besides, no checkpoint could be written: {second}")
            (is_written,) = self.run.partners.largest(writer.has_written(course))  # for which all of them wait
            if is_written:
                writer.learn(course)
        raise stop

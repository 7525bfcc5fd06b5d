"""What is left of a run that an error ended: nothing that was done is lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self, cast

from fundl._common.donated import DonatedError
from fundl._common.listed import Listed
from fundl.layer import P
from fundl.training.history import Epoch
from fundl.training.step import S, TrainState, require_state
from fundl.tree import describe


class Interrupted(KeyboardInterrupt, metaclass=Listed):
    """Ctrl-C, or SIGTERM, during `fit`, with all that was done so far. Who does not catch it stops, as after any Ctrl-C.

    Args:
        state: the `TrainState` after the last step; `last_good` gives it with its type.
        history: of the epochs that were finished.
        more: a sentence on how to go on, if there is one.
    """

    def __init__(self, state: object, history: tuple[Epoch, ...], more: str = "") -> None:
        super().__init__(
            f"finished epochs: {len(history)}. Nothing is lost: `except Interrupted as stop` has stop.state and stop.history;"
            f" in a notebook, sys.last_value has them{more and '.'}{more}"
        )
        self.state = state
        self.history = history


Interrupted.__module__ = "fundl"  # where users find it: tracebacks say so


class Left(str):
    """A note on an error that ended a run; it has what is left of it."""

    __slots__ = ("history", "state")
    state: object
    history: tuple[Epoch, ...]

    @classmethod
    def of(cls, state: object, history: tuple[Epoch, ...], more: str = "") -> Self:
        """The note of what is left, and a sentence on how to go on, if there is one."""
        note = cls(
            f"during fit, finished epochs: {len(history)}. Nothing is lost: `except Exception as error` has the last good state"
            " and the history, by `state, history = last_good(error, state)`; in a notebook, error is sys.last_value"
            f"{more and '.'}{more}"
        )
        note.state, note.history = state, history
        return note


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM meanwhile is what Ctrl-C is, unless the program has its own use for it: else a process ends without a word."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not ours:
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt("SIGTERM")


def last_good(error: BaseException, state: TrainState[P, S]) -> tuple[TrainState[P, S], tuple[Epoch, ...]]:
    """What was done by a `fit` before an error ended it: whatever error that was, Ctrl-C among them.

    Args:
        error: that was raised.
        state: that was given to `fit`.

    Returns:
        The state after the last step that left the model finite (after an error that was found at the end of an epoch, or in
        the midst of an optimizer's update, that before the epoch), and the history of the epochs that were finished. Of an
        error that does not come from a `fit`, the given state and an empty history.

    Raises:
        DonatedError: no such state is left: `fit` was given ``donate=True``, and wrote over the one before the epoch.

    >>> import torch
    >>> from fundl import fit, initialize, key, last_good, linear, mse, sgd, train_state, train_step
    >>> def batches():
    ...     yield torch.ones(4, 2), torch.zeros(4, 1)
    ...     raise OSError("the disk is gone")
    >>> state = train_state(key(1), initialize(key(0), linear(2, 1)), sgd(0.1))
    >>> try:
    ...     state, history = fit(train_step(mse, sgd(0.1)), state, batches(), epochs=5, progress=False)
    ... except OSError as error:
    ...     state, history = last_good(error, state)
    >>> state.step, history
    (tensor(1), ())
    """
    unchecked: object = error
    if not isinstance(unchecked, BaseException):
        raise TypeError(f"last_good(error, state) takes the error that ended a fit, not {describe(unchecked)}")
    require_state(state)
    notes = [note for note in getattr(error, "__notes__", ()) if isinstance(note, Left)]
    left = error if isinstance(error, Interrupted) else notes[-1] if notes else None
    if left is None:
        return state, ()
    if not isinstance(left.state, TrainState):
        raise DonatedError(
            "no good state is left: with donate=True, fit wrote over the one before the epoch, and what it wrote is not finite,"
            " or not whole: fit without donate keeps one"
        ) from error
    return cast("TrainState[P, S]", left.state), left.history  # a run's states are all of the type of the first

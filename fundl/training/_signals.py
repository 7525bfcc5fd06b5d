"""Signals that wait until what was begun is done."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Final, Self, TypeAlias

_Handler: TypeAlias = Callable[[int, FrameType | None], object]


_NAMES: Final = ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2")
_STOPPING: Final[list[int]] = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
"""Signals whose handlers are known to raise errors: of clusters and of timeouts, beside Ctrl-C."""


class HeldSignals:
    """Lets Ctrl-C, and what else may stop a program, wait until what was begun is done.

        with HeldSignals() as signals:
            signals.hold()
            ...  # a step that writes over its state
            signals.release()  # what came in between is handled here

    Who presses it twice does not want to wait. Only the main thread handles signals; elsewhere there is nothing to hold.

    Args:
        seconds: within so many the same signal is the same still: a launcher hands on what a terminal has sent already.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._handlers: dict[int, _Handler] = {}
        self._waiting: dict[int, tuple[float, FrameType | None]] = {}  # since when
        self._seconds = seconds
        self._holding = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _STOPPING:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._handle:  # nobody put another one there
                signal.signal(number, handler)
        self.release()

    def hold(self) -> None:
        """From now on, signals wait."""
        self._holding = True

    def release(self) -> None:
        """Handle those that waited, and let others come through."""
        self._holding = False
        while self._waiting:
            number, (_, frame) = self._waiting.popitem()
            self._handlers[number](number, frame)

    @property
    def are_waiting(self) -> bool:
        """Whether any wait."""
        return bool(self._waiting)

    def heard(self) -> BaseException | None:
        """Handle those that waited, while others go on to wait: the error of the first handler that raises one."""
        while self._waiting:
            number, (_, frame) = self._waiting.popitem()
            try:
                self._handlers[number](number, frame)
            except BaseException as error:  # it is raised once others know of it
                return error
        return None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        since, _ = self._waiting.get(number, (now, None))
        if self._holding and (number not in self._waiting or now - since < self._seconds):
            self._waiting[number] = since, frame
        else:
            self._handlers[number](number, frame)

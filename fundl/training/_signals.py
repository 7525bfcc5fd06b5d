"""Signals that wait until what was begun is done."""

import signal
import threading
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
    """

    def __init__(self) -> None:
        self._handlers: dict[int, _Handler] = {}
        self._waiting: dict[int, FrameType | None] = {}
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
            number, frame = self._waiting.popitem()
            self._handlers[number](number, frame)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._holding and number not in self._waiting:
            self._waiting[number] = frame
        else:
            self._handlers[number](number, frame)

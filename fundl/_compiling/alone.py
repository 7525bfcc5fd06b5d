"""One at a time: what torch's tracer and compiler do is for one thread alone, and some of it must be done to the end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

ALONE: Final = threading.RLock()
"""Held while something is traced, compiled or loaded: torch keeps what it works at in variables of its modules."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """In it, Ctrl-C waits: what torch's modules register when they are imported must be registered whole, and once."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # which Ctrl-C does not interrupt
        return
    waiting: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if waiting:
            before(*waiting[0])

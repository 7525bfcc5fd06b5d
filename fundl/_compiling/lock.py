"""The lock on torch's tracer and compiler, which keep what they work at in variables of their modules."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

COMPILER_LOCK: Final = threading.RLock()
"""Held while something is traced, compiled or loaded."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C until the end: half imported, modules of torch would register some of their operators twice, or never."""
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

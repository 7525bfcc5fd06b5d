"""What is shown while something compiles: what it is, and how long that is likely to take."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from fundl._compiling.graphs import Graph

_SECONDS: Final = (2.0, 0.02)  # for any graph, and for each of its operations; measured: from half to twice as many

_function: Final = ContextVar("function", default="a function")
_say: Final[ContextVar[Callable[[str], None] | None]] = ContextVar("say", default=None)


@contextmanager
def compiling(function: str) -> Iterator[None]:
    """What compiles meanwhile is this function."""
    token = _function.set(function)
    try:
        yield
    finally:
        _function.reset(token)


@contextmanager
def told_to(say: Callable[[str], None]) -> Iterator[None]:
    """What would be shown on the terminal meanwhile is said by this instead."""
    token = _say.set(say)
    try:
        yield
    finally:
        _say.reset(token)


@contextmanager
def shown(graph: Graph) -> Iterator[None]:
    """Show that a graph compiles: on standard error while it does so, if that is a terminal."""
    fixed, each = _SECONDS
    count = graph.operations
    text = f"compiling {_function.get()}: {count:,} operation{'s' * (count != 1)}, about {fixed + each * count:.0f} s"
    if say := _say.get():
        say(text)
        yield
    elif sys.stderr is not None and sys.stderr.isatty():
        line = text[: shutil.get_terminal_size().columns - 1]
        _write(line)
        try:
            yield
        finally:
            _write(f"\r{' ' * len(line)}\r")
    else:
        yield


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()

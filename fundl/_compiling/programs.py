"""The compiled programs of a function: one for each cache key, and a record of each compilation that says what was new."""

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar, final

import attrs
from torch import Tensor
from typing_extensions import override

from fundl._common.listed import Listed
from fundl._compiling import inductor, torch_private, tracing, waiting
from fundl._compiling.cache_keys import CacheKey
from fundl._compiling.graphs import programs_forgotten
from fundl._compiling.lock import COMPILER_LOCK, uninterrupted


@attrs.frozen(eq=False, kw_only=True)
class Interface:
    """What a program takes beside its arguments, and what it gives; see the classes derived from it."""

    constants: Sequence[Tensor] = ()  # further inputs: the tensors that the function uses without being given them
    result: object = None  # what it returns, with a `Leaf` for each tensor
    together: bool = False  # whether it exchanges tensors with other processes


Kind = TypeVar("Kind", bound=Interface)
Run = TypeVar("Run")


@attrs.frozen(eq=False)
class Program(Generic[Kind, Run]):
    """A compiled program."""

    key: CacheKey  # of the arguments that it is for
    interface: Kind
    library: Path  # the folder that it is in
    run: Run


class RetraceError(RuntimeError, metaclass=Listed):
    """A function was called with arguments that it is not compiled for, more often than it may be; the message says which."""


RetraceError.__module__ = "fundl"  # where users find it: tracebacks say so


@final
@attrs.frozen
class Trace(metaclass=Listed):
    """One compilation of a function.

    Args:
        reason: why it was necessary: what of the arguments was new.
        seconds: that tracing and compiling took.
        cached: whether the compiled code was on disk.
        compiled: whether there is any: without a compiler the function runs as it is, which a warning says.
        loaded: whether it came from a file that was loaded; then nothing was traced.
    """

    reason: str
    seconds: float
    cached: bool
    compiled: bool = True
    loaded: bool = False


@attrs.define(eq=False)
class Programs(Generic[Kind, Run]):
    """The compiled programs of a function, by cache key; None where it must run as it is."""

    name: str  # of the function
    most: int | None  # of them may be traced
    traces: tuple[Trace, ...] = ()  # in order
    _found: dict[CacheKey, Program[Kind, Run] | None] = attrs.field(factory=dict)

    def find(self, key: CacheKey, make: Callable[[], tuple[Kind, Run, Path, bool]]) -> Program[Kind, Run] | None:
        """The program for a cache key; if there is none, what compiles it tells as well whether it was on disk.

        Raises:
            RetraceError: there is none, and may not be another.
        """
        if key in self._found:
            return self._found[key]
        with COMPILER_LOCK:
            if key not in self._found:
                self._found[key] = self._make(key, make)
            return self._found[key]

    def all(self) -> list[Program[Kind, Run]]:
        """All programs."""
        with COMPILER_LOCK:
            return [program for program in self._found.values() if program is not None]

    def add(self, program: Program[Kind, Run], trace: Trace) -> None:
        """Add a program that another process compiled, unless there is one for its key."""
        with COMPILER_LOCK:
            if self._found.get(program.key) is None:
                self._found[program.key] = program
                self.traces = (*self.traces, trace)

    @override
    def __str__(self) -> str:
        loaded = sum(trace.loaded for trace in self.traces)
        return f"traced {len(self.traces) - loaded} times" + (f", loaded {loaded}" if loaded else "")

    def _make(self, key: CacheKey, make: Callable[[], tuple[Kind, Run, Path, bool]]) -> Program[Kind, Run] | None:
        reason, start = self._reason(key), time.perf_counter()
        traced = sum(not trace.loaded for trace in self.traces)
        if self.most is not None and traced >= self.most:
            times = "once" if traced == 1 else f"{traced} times"
            raise RetraceError(
                f"{self.name} was traced {times}, and may not be traced again (max_traces={self.most}), but {reason}"
            )
        program, cached = None, False
        try:
            with uninterrupted():
                torch_private.require_known(torch_private.NAMES)
                tracing.prepare()
            with programs_forgotten(), waiting.compiling(self.name):
                interface, run, library, cached = make()
            program = Program(key, interface, library, run)
        except (inductor.CompilerError, torch_private.UnknownTorchError) as error:
            warnings.warn(f"{self.name} is not compiled, and runs as it is: {error}", RuntimeWarning, stacklevel=6)
        self.traces = (*self.traces, Trace(reason, time.perf_counter() - start, cached, compiled=program is not None))
        return program

    def _reason(self, key: CacheKey) -> str:
        """What is new in a key, compared to the one before it that differs the least."""
        if not self._found:
            return "it is the first call"
        reasons = [key.explain(old) for old in reversed(self._found)]
        return min(reasons, key=len)

"""What the objects that `jit` and `scan` return have in common: they are copied and pickled as functions are, and saved."""

import os
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, Self, TypeVar

from typing_extensions import override

from fundl._compiling import archive
from fundl._compiling.lock import COMPILER_LOCK
from fundl._compiling.programs import Programs, Trace

F = TypeVar("F")


class Savable(ABC, Generic[F]):
    """A function with its compiled programs.

    Args:
        function: the function.
        name: of it, for messages.
        max_traces: how often it may be compiled.
    """

    def __init__(self, function: object, name: str, max_traces: int | None) -> None:
        self._compiled_of = function
        self._programs = Programs[F](name, max_traces)

    @property
    def traces(self) -> tuple[Trace, ...]:
        """What was compiled so far, in order."""
        return self._programs.traces

    # --- As functions are: their own copies, pickled by name ---

    def __deepcopy__(self, _memo: object) -> Self:
        return self

    def __copy__(self) -> Self:
        return self

    @override
    def __reduce__(self) -> str | tuple[object, ...]:
        module, name = getattr(self._compiled_of, "__module__", None), getattr(self._compiled_of, "__qualname__", "")
        if module and name and "<" not in name:
            try:
                if pkgutil.resolve_name(f"{module}:{name}") is self:
                    return str(name)
            except (AttributeError, ImportError, ValueError):
                pass
        elif "<" in name:
            raise TypeError(
                f"{name} cannot be pickled, compiled or not: it is made inside of a function, where no other process finds it;"
                " define it at the top of a module, or hand on what was compiled, by save and load"
            )
        return type(self), self._arguments()

    @abstractmethod
    def _arguments(self) -> tuple[object, ...]:
        """The arguments that its class makes another one of, which compiles anew."""

    # --- Files ---

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was compiled so far to a file, whole or not at all, for `load` in another process.

        The file has the compiled code for each kind of arguments that the function was called with, and the tensors that the
        function uses without being given them: a process that loads it neither traces nor compiles, and needs no compiler.

        Args:
            path: of the file; one that is there already is replaced.

        Raises:
            TypeError: a static field or argument, or the result, holds what cannot be pickled, such as a lambda; the message
                names it.
            ValueError: nothing is compiled yet, or what was is no longer in FUNDL_CACHE_DIR.
            OSError: the file cannot be written; FileNotFoundError if there is no such folder.

        Compiled where there is a compiler, and run where there is none; likewise with scan in the place of jit:

            step = jit(train_step(cross_entropy, adamw(0.001)), donate="state")
            state, report = step(state, batch)
            step.save("step.compiled")

            step = jit(train_step(cross_entropy, adamw(0.001)), donate="state")
            step.load("step.compiled")
            state, report = step(state, batch)  # runs at once
        """
        archive.save(path, self._origin(), self._entries())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take over what was compiled in another process, from a file that `save` wrote: `traces` has it, as loaded.

        Other kinds of arguments are compiled when they come, unless max_traces forbids it, which does not count what is
        loaded: with max_traces=0 nothing is ever compiled. The code is written to FUNDL_CACHE_DIR if it is not there.

        What is checked: the versions of torch, fundl and Python, the machine, its CPU or GPU, and the number of threads. That
        the function is the one that was saved: its code, what it closes over (a loss and an optimizer with its rates), and
        the functions, classes and values that it names in modules of yours, and theirs in turn; the classes and static
        values of its arguments likewise. Not checked is what a program finds by other ways than names, and what other
        libraries than fundl and torch do.

        Load only files that you trust: a file holds machine code, and pickled names of classes and functions. Whoever wrote
        it can have this process do anything. Loading itself replaces no code that is there: the name of code is its digest.

        Args:
            path: of the file.

        Raises:
            FileNotFoundError: there is no such file; another OSError if it may not be read.
            ValueError: it is no such file, or only a part of one, or it does not fit the function or this process; the
                message says what differs. Then nothing of it is taken over.
        """
        with COMPILER_LOCK:
            found = archive.load(path, self._origin(), self._installed)
        for entry, program, trace in found:
            self._programs_of(entry.role).add(entry.key, program, trace)

    @abstractmethod
    def _origin(self) -> archive.Origin:
        """What its files are of."""

    @abstractmethod
    def _entries(self) -> Sequence[archive.Entry]:
        """What its file has of each program."""

    @abstractmethod
    def _installed(self, entry: archive.Entry) -> F:
        """The program of a file's entry."""

    def _programs_of(self, _role: str) -> Programs[F]:
        return self._programs

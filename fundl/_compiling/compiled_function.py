"""What the objects that `jit` and `scan` return have in common: how a call finds its program; copies, pickles and files."""

import operator
import os
import pkgutil
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, NoReturn, Self, cast

from torch import Tensor
from typing_extensions import override

from fundl._common.donated import DonatedError
from fundl._common.listed import ListedABC
from fundl._compiling import archive, cuda, torch_private
from fundl._compiling.cache_keys import CacheKey, Signature, leaf_key
from fundl._compiling.call_text import MISS, MOST_CALLS
from fundl._compiling.calls import Arguments, Call
from fundl._compiling.donation import require_not_donated
from fundl._compiling.lock import COMPILER_LOCK
from fundl._compiling.programs import Kind, Program, Programs, Run, Trace
from fundl._compiling.torch_settings import torch_settings
from fundl._compiling.trees import Flat, StaticArgument, flatten, replace
from fundl.tree import Record, describe


def _how_to_call(value: object) -> str:
    """What to compile instead of a model."""
    return ": write lambda model, x: apply(model, x), or apply itself" if isinstance(value, tuple | Record) else ""


class CompiledFunction(Generic[Kind, Run], metaclass=ListedABC):
    """A function with its compiled programs.

    Args:
        function: the function.
        name: of it, for messages.
        parameters: the names of those that can be given by place.
        max_traces: how often it may be compiled.
        options: that it is compiled with, in the order in which its class takes them.
    """

    def __init__(  # type: ignore[explicit-any]  # of any arguments
        self,
        function: Callable[..., object],
        name: str,
        parameters: Sequence[str],
        max_traces: int | None,
        **options: Sequence[str],
    ) -> None:
        if not callable(function):
            raise TypeError(
                f"what is compiled must be a function from tensors to tensors, not {describe(function)}{_how_to_call(function)}"
            )
        if max_traces is not None and (type(max_traces) is not int or max_traces < 0):
            raise TypeError(f"max_traces, how often it may be compiled, is an int of 0 or more, or None, not {max_traces!r}")
        self._function, self._name, self._parameters, self._options = function, name, parameters, options
        self._programs = Programs[Kind, Run](name, max_traces)
        self._calls: tuple[Call, ...] = ()  # the latest first

    @property
    def traces(self) -> tuple[Trace, ...]:
        """What was compiled so far, in order."""
        return self._programs.traces

    # --- Calls ---

    def _call(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """What the function returns, computed by its compiled program."""
        try:
            for call in self._calls:
                result = call(args, kwargs)
                if result is not MISS:
                    return result
        except RuntimeError as error:
            self._explain(error, args, kwargs)
        return self._first_call(args, kwargs)

    def _first_call(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Find the compiled program for these arguments, or make it; write the function for such calls, and call it."""
        if not torch_private.is_known(self._name):
            return self._run_as_it_is(args, kwargs)
        arguments = self._with_static(args, kwargs)
        flat = self._flatten(arguments)
        require_not_donated(flat.leaves, flat.paths)
        if torch_private.is_watched() or not all(map(torch_private.is_plain, flat.leaves)):
            return self._run_as_it_is(args, kwargs)  # within another trace, or for shapes alone
        leaves = [*map(self._as_compiled_for, flat.leaves)]
        if not all(map(operator.is_, leaves, flat.leaves)):
            return self._call(*cast("Arguments", replace(arguments, iter(leaves))))  # of the same form
        key = self._key(flat)
        program = self._programs.find(key, lambda: self._compile(key, arguments, flat))
        if program is None:
            return self._run_as_it_is(args, kwargs)
        call = self._write_call(arguments, flat, key, program)
        self._calls = (call, *self._calls)[:MOST_CALLS]
        try:
            result = call(args, kwargs)
        except RuntimeError as error:
            self._explain(error, args, kwargs)
        return self._run_as_it_is(args, kwargs) if result is MISS else result

    def _explain(self, error: RuntimeError, args: tuple[object, ...], kwargs: dict[str, object]) -> NoReturn:
        """Raise what the function itself raises for arguments that its program refused: it knows better what is wrong.

        One that exchanges tensors with other processes is not run again: they would take what it sends for something else.
        """
        together = any(program.interface.together for program in self._programs.all())
        if not isinstance(error, DonatedError) and not together:
            try:
                self._run_as_it_is(args, kwargs)
            except Exception as better:
                if donated := self._options.get("donate"):
                    better.add_note(f"{', '.join(donated)} may be written over in part: go on from a copy")
                raise better from None
        raise error

    def _run_as_it_is(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        return self._function(*args, **kwargs)

    def _with_static(self, args: tuple[object, ...], kwargs: dict[str, object]) -> Arguments:
        """The arguments, with those that are static marked as such."""
        static = self._options.get("static")
        if not static:
            return args, kwargs
        names = [*self._parameters, *[""] * len(args)]
        marked = tuple(StaticArgument(arg) if name in static else arg for name, arg in zip(names, args, strict=False))
        return marked, {name: StaticArgument(arg) if name in static else arg for name, arg in kwargs.items()}

    def _flatten(self, arguments: Arguments) -> Flat:
        args, kwargs = arguments
        names = [*self._parameters, *(f"argument {place}" for place in range(len(self._parameters), len(args)))]
        parts = {name: flatten(arg, name) for name, arg in [*zip(names, args, strict=False), *kwargs.items()]}
        signature = Signature(tuple((name, part.signature) for name, part in parts.items()), len(args))
        leaves = [leaf for part in parts.values() for leaf in part.leaves]
        return Flat(signature, leaves, [path for part in parts.values() for path in part.paths])

    def _as_compiled_for(self, leaf: Tensor) -> Tensor:
        """A tensor in the only form that programs take; itself, if it is."""
        return torch_private.resolved(leaf)

    def _key(self, flat: Flat) -> CacheKey:
        assert isinstance(flat.signature, Signature)
        settings = torch_settings(on_gpu=cuda.is_on_gpu(flat.leaves))
        return CacheKey(flat.signature, tuple(map(leaf_key, flat.leaves)), settings, tuple(flat.paths))

    @abstractmethod
    def _compile(self, key: CacheKey, arguments: Arguments, flat: Flat) -> tuple[Kind, Run, Path, bool]:
        """Trace and compile the function: what makes a program for a cache key, and whether it was on disk."""

    @abstractmethod
    def _write_call(self, arguments: Arguments, flat: Flat, key: CacheKey, program: Program[Kind, Run]) -> Call:
        """The function that calls with such arguments go through."""

    # --- As functions are: their own copies, pickled by name ---

    def __deepcopy__(self, _memo: object) -> Self:
        return self

    def __copy__(self) -> Self:
        return self

    @override
    def __reduce__(self) -> str | tuple[object, ...]:
        module, name = getattr(self._function, "__module__", None), getattr(self._function, "__qualname__", "")
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
        return type(self), (self._function, *self._options.values(), self._programs.most)  # another one, which compiles anew

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
        archive.save(path, self._origin(), {role: programs.all() for role, programs in self._by_role().items()})

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
            found = archive.load(path, self._origin(), self._loaded)
        for role, program, trace in found:
            self._by_role()[role].add(program, trace)

    def _origin(self) -> archive.Origin:
        return archive.Origin(self._function, self._name, {name: repr(names) for name, names in self._options.items()})

    def _by_role(self) -> dict[str, Programs[Kind, Run]]:
        """The programs for each role that they have in a file."""
        return {"": self._programs}

    @abstractmethod
    def _loaded(self, key: CacheKey, interface: Kind, library: Path) -> Run:
        """The program in a folder, ready to run."""

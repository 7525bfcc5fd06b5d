"""A function that compiles itself for the trees that it is called with."""

import functools
import inspect
import os
import re
import types
from collections.abc import Callable, Sequence
from typing import Concatenate, Final, Generic, NoReturn, ParamSpec, Self, TypeVar, cast, final, overload

import attrs
from torch import Tensor
from typing_extensions import override

from fundl._common.donated import DonatedError
from fundl._common.modes import no_grad
from fundl._compiling import archive, cache, torch_private
from fundl._compiling.alone import ALONE
from fundl._compiling.ambient import ambient
from fundl._compiling.calls import Arguments, Call, QuickCall
from fundl._compiling.donation import Estates, require_not_donated
from fundl._compiling.kinds import Forms, Kind, Like, Signature, Trace, leaf_kind, like
from fundl._compiling.pickling import pickled
from fundl._compiling.program import Heir, Program, find_heir, write_back
from fundl._compiling.quick import MOST
from fundl._compiling.tracing import Traced, trace
from fundl._compiling.walk import MISS, Flat, Static, flatten, replace

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
T = TypeVar("T")


@final
class Compiled(Generic[P, R]):
    """A compiled function; made by `jit`. It is called as the function that it is of.

    Args:
        function: the function.
    """

    def __init__(self, function: Callable[P, R], static: Sequence[str], donate: Sequence[str], max_traces: int | None) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self._parameters = _parameters(function)
        self._static, self._donate = frozenset(static), tuple(donate)
        for option, names in (("static", static), ("donate", donate)):
            for name in {*names} - {*self._parameters}:
                raise ValueError(f"{option}={name!r} is not a parameter of {_name(function)}{inspect.signature(function)}")
        if both := self._static & {*donate}:
            raise ValueError(f"{min(both)!r} is in static and in donate: what is no tree has no memory to be written over")
        self._forms = Forms[Program](_name(function), max_traces)
        self._calls: tuple[Call, ...] = ()  # quick ones, each for trees of one kind
        self._estates = {name: Estates() for name in donate}
        self._kinds: dict[object, object] = {}  # of what was donated
        self._shared = Compiled(function, static, (), max_traces) if donate else None

    @property
    def traces(self) -> tuple[Trace, ...]:
        """What was compiled so far, in order."""
        return self._forms.traces

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """What the function returns, computed by its compiled form."""
        try:
            for call in self._calls:
                result = call(args, kwargs)
                if result is not MISS:
                    return cast("R", result)  # a compiled form returns what the function does
        except RuntimeError as error:
            self._explain(error, args, kwargs)
        return self._first_call(args, kwargs)

    @override
    def __repr__(self) -> str:
        return f"<compiled {_name(self.function)}, {self._forms}>"

    # --- As functions are: methods of classes, their own copies, pickled by name ---

    @overload
    def __get__(self, instance: None, owner: type, /) -> Self: ...
    @overload
    def __get__(self: "Compiled[Concatenate[T, Q], R]", instance: T, owner: type | None = None, /) -> Callable[Q, R]: ...
    def __get__(self, instance: object, owner: type | None = None, /) -> object:
        """The compiled function as a method: its first argument is the instance."""
        return self if instance is None else types.MethodType(self, instance)

    def __deepcopy__(self, _memo: object) -> Self:
        return self

    def __copy__(self) -> Self:
        return self

    @override
    def __reduce__(self) -> str | tuple[object, ...]:
        options = (tuple(self._static), self._donate, self._forms.most)
        return pickled(self, self.function, (Compiled, (self.function, *options)))

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

        Compiled where there is a compiler, and run where there is none:

            step = jit(train_step(cross_entropy, adamw(0.001)), donate="state")
            state, report = step(state, batch)
            step.save("step.compiled")

            step = jit(train_step(cross_entropy, adamw(0.001)), donate="state")
            step.load("step.compiled")
            state, report = step(state, batch)  # runs at once
        """
        archive.save(path, self._origin, self._entries())

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
        with ALONE:
            found = archive.load(path, self._origin, self._installed)
        for entry, program, loaded in found:
            self._of_role(entry.role)._forms.add(entry.kind, program, loaded)

    @property
    def _origin(self) -> archive.Origin:
        options = {"compiled by": "jit", "static": repr(sorted(self._static)), "donate": repr(self._donate)}
        return archive.Origin(self.function, _name(self.function), options)

    def _entries(self) -> list[archive.Entry]:
        own = [
            archive.Entry(
                program.kind,
                (program.constants, program.result, program.outputs, program.slots, program.donated),
                flatten(program.result, "", constants=True).signature,
                program.library,
            )
            for program in self._forms.there()
        ]
        return own + [attrs.evolve(entry, role=_SHARED) for entry in (self._shared._entries() if self._shared else ())]

    def _installed(self, entry: archive.Entry) -> Program:
        """The form of a file's entry."""
        form = cast("tuple[list[Tensor], object, int, tuple[Like, ...], tuple[Heir, ...]]", entry.form)
        constants, result, outputs, slots, donated = form
        run = cache.load(entry.library, [*entry.devices, *(constant.device for constant in constants)])
        donated = tuple(attrs.evolve(one, kind=self._unique(entry.kind, one.place, one.leaves)) for one in donated)
        return Program(run, entry.library, entry.kind, constants, result, outputs, slots, donated)

    def _of_role(self, role: str) -> "Compiled[P, R]":
        return self._shared if role == _SHARED and self._shared else self

    def _unique(self, kind: Kind, place: int, leaves: range) -> object:
        """What stands for a donated argument's kind."""
        return self._kinds.setdefault((*kind.signature.arguments[place], kind.leaves[leaves.start : leaves.stop]), object())

    # --- What a call of a new kind does ---

    def _first_call(self, args: tuple[object, ...], kwargs: dict[str, object]) -> R:
        """Find the compiled form for these arguments, or make it, and call it."""
        if not torch_private.is_known(_name(self.function)):
            return self._run_as_it_is(args, kwargs)
        arguments = self._with_static(args, kwargs)
        flat = self._flatten(arguments)
        require_not_donated(flat.leaves, flat.paths)
        if torch_private.is_watched() or not all(map(torch_private.is_plain, flat.leaves)):
            return self._run_as_it_is(args, kwargs)  # within another trace, or for shapes alone
        if any(map(torch_private.is_lazy, flat.leaves)):
            args, kwargs = cast("Arguments", replace(arguments, map(torch_private.resolved, flat.leaves)))
            return self(*args, **kwargs)  # type: ignore[arg-type]  # they are P's
        kind = _kind(flat)
        found = self._forms.find(kind, lambda: self._compile(kind, arguments, flat))
        if found is None:
            return self._run_as_it_is(args, kwargs)
        call = QuickCall(arguments, flat, kind, found).write(self._estates, self._shared)
        self._calls = (call, *self._calls)[:MOST]
        try:
            result = call(args, kwargs)
        except RuntimeError as error:
            self._explain(error, args, kwargs)
        return self._run_as_it_is(args, kwargs) if result is MISS else cast("R", result)

    def _explain(self, error: RuntimeError, args: tuple[object, ...], kwargs: dict[str, object]) -> NoReturn:
        """Raise what the function itself raises for arguments that its compiled form refused: it knows better what is wrong."""
        if not isinstance(error, DonatedError):
            try:
                self._run_as_it_is(args, kwargs)
            except Exception as better:
                if self._donate:
                    better.add_note(f"{', '.join(self._donate)} may be written over in part: go on from a copy")
                raise better from None
        raise error

    def _run_as_it_is(self, args: tuple[object, ...], kwargs: dict[str, object]) -> R:
        return cast("Callable[..., R]", self.function)(*args, **kwargs)  # type: ignore[explicit-any]  # they are P's

    def _with_static(self, args: tuple[object, ...], kwargs: dict[str, object]) -> Arguments:
        """The arguments, with those that are static marked as such."""
        if not self._static:
            return args, kwargs
        names = [*self._parameters, *[""] * len(args)]
        marked = tuple(Static(arg) if name in self._static else arg for name, arg in zip(names, args, strict=False))
        return marked, {name: Static(arg) if name in self._static else arg for name, arg in kwargs.items()}

    def _flatten(self, arguments: Arguments) -> Flat:
        args, kwargs = arguments
        names = [*self._parameters, *(f"argument {place}" for place in range(len(self._parameters), len(args)))]
        parts = {name: flatten(arg, name) for name, arg in [*zip(names, args, strict=False), *kwargs.items()]}
        signature = Signature(tuple((name, part.signature) for name, part in parts.items()), len(args))
        leaves = [leaf for part in parts.values() for leaf in part.leaves]
        return Flat(signature, leaves, [path for part in parts.values() for path in part.paths])

    def _compile(self, kind: Kind, arguments: Arguments, flat: Flat) -> tuple[Program, bool]:
        def function(leaves: Sequence[Tensor]) -> object:
            with no_grad():
                return self._run_as_it_is(*cast("Arguments", replace(arguments, iter(leaves))))

        examples = [*map(torch_private.usual, flat.leaves)]
        traced = trace(function, examples)
        graph, result, outputs, slots = traced.graph, traced.result, traced.outputs, list[Tensor]()
        donated = self._donated(traced, kind, flat)
        if donated:
            graph, result, outputs, slots = write_back(traced, donated, len(flat.leaves) + len(traced.constants))
        run, library, cached = cache.compiled(graph, [*examples, *traced.constants, *slots])
        return Program(run, library, kind, traced.constants, result, outputs, tuple(map(like, slots)), donated), cached

    def _donated(self, traced: Traced, kind: Kind, flat: Flat) -> tuple[Heir, ...]:
        """What becomes of the arguments that are donated, as far as they are given and have tensors."""
        found: list[Heir] = []
        names = [name for name, _ in kind.signature.arguments]
        for name in self._donate:
            mine = [number for number, path in enumerate(flat.paths) if _argument(path) == name]
            if not mine:
                continue
            place, leaves = names.index(name), range(mine[0], mine[-1] + 1)
            signature = kind.signature.arguments[place][1]
            taken = [other.part for other in found]
            heir = find_heir(traced, signature, [flat.leaves[number] for number in leaves], taken, whole=len(self._donate) == 1)
            if heir is None:
                raise TypeError(
                    f"donate={name!r}: no part of what {_name(self.function)} returns is a tree like this argument, with"
                    " tensors of the same shapes and dtypes, to be written over it"
                )
            found.append(Heir(name, place, leaves, *heir, self._unique(kind, place, leaves)))
        return tuple(found)


_SHARED: Final = "shared"  # the role of forms for donated trees that are not written over


def _name(function: Callable[..., object]) -> str:  # type: ignore[explicit-any]  # of any arguments
    return str(getattr(function, "__qualname__", repr(function)))


def _parameters(function: Callable[..., object]) -> list[str]:  # type: ignore[explicit-any]  # of any arguments
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of what is written in C
        return []
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return [parameter.name for parameter in parameters if parameter.kind in positional]


def _argument(path: str) -> str:
    """The name of the argument that a path starts with."""
    return re.split(r"[.\[]", path, maxsplit=1)[0]


def _kind(flat: Flat) -> Kind:
    assert isinstance(flat.signature, Signature)
    return Kind(flat.signature, tuple(map(leaf_kind, flat.leaves)), ambient(), tuple(flat.paths))


def jit(
    function: Callable[P, R],
    *,
    static: str | Sequence[str] = (),
    donate: str | Sequence[str] = (),
    max_traces: int | None = None,
) -> Compiled[P, R]:
    """Compile a pure function of trees.

    The function is run once for each kind of arguments, on stand-ins for their tensors, and all that it does with tensors is
    compiled as one graph. The compiled function gives the same results, and costs next to nothing beside the arithmetic. They
    have the same bits where the same kernels compute them (LSTMs, large linear layers) or nothing is rounded (integers, random
    bits). Else they differ by rounding, since sums are added up in another order: for every layer, loss and optimizer by 5e-6
    of a tensor's largest number at most in float32, and 1e-13 in float64.

    Kinds of arguments differ in the trees' structure (with all static fields), and in the tensors' shapes, strides, dtypes and
    devices, and in what torch is set to (the number of threads, the default dtype and device, autocast, deterministic
    algorithms). A last batch that is smaller than the others is compiled for once more, not each time it comes.

    Args:
        function: of trees of tensors (models, states of optimizers, batches, keys), to such a tree. It must be pure: what
            else it does, it does once per kind of arguments.
        static: the names of arguments that are no trees (functions, numbers, flags): hashable, and a part of the kind.
        donate: the names of arguments that are used up: the part of the result that is a tree like it is written over the
            memory of each, which saves allocating and copying. Whoever uses it again, or a tensor of it that he held on to,
            gets a `DonatedError`; only views that were taken of its tensors before go unnoticed, and show the new numbers. A
            tree whose tensors share memory stays as it is, and is not written over.
        max_traces: how often it may be compiled, at most; another kind of arguments is then an error that says what is new.

    Raises:
        TraceError: the function asks for the value of a tensor, writes into its arguments, keeps a tensor, or draws random
            numbers other than from a key; the message names the line.
        RetraceError: see `max_traces`.

    A compiled training step, with the loop around it as it was:

        step = jit(train_step(cross_entropy, adamw(0.001)), donate="state")
        for batch in batches:
            state, report = step(state, batch)
        print(step.traces)

    Compiling takes seconds, once: what is compiled is kept on disk, in the folder that the environment variable
    FUNDL_CACHE_DIR names (by default ~/.cache/fundl), and found by the next process. If that folder cannot be written,
    or others can write to it, a warning says so, and each process compiles anew.
    """
    return Compiled(function, _names(static), _names(donate), max_traces)


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)

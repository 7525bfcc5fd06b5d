"""A function that compiles itself for the trees that it is called with."""

import functools
import inspect
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
from fundl._compiling.cache_keys import CacheKey, Signature, TensorSpec, leaf_key, spec_of
from fundl._compiling.call_text import MISS, MOST_CALLS
from fundl._compiling.calls import Arguments, Call, CallWriter
from fundl._compiling.donation import LastReturned, require_not_donated
from fundl._compiling.program import DonatedArgument, Program, find_replacement, write_back
from fundl._compiling.programs import Programs
from fundl._compiling.savable import Savable
from fundl._compiling.torch_settings import torch_settings
from fundl._compiling.tracing import Traced, trace
from fundl._compiling.trees import Flat, StaticArgument, flatten, replace

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
T = TypeVar("T")


@final
class Compiled(Savable[Program], Generic[P, R]):
    """A compiled function; made by `jit`. It is called as the function that it is of.

    Args:
        function: the function.
    """

    def __init__(self, function: Callable[P, R], static: Sequence[str], donate: Sequence[str], max_traces: int | None) -> None:
        functools.update_wrapper(self, function)
        super().__init__(function, _name(function), max_traces)
        self.function = function
        self._parameters = _parameters(function)
        self._static, self._donate = frozenset(static), tuple(donate)
        for option, names in (("static", static), ("donate", donate)):
            for name in {*names} - {*self._parameters}:
                raise ValueError(f"{option}={name!r} is not a parameter of {_name(function)}{inspect.signature(function)}")
        if both := self._static & {*donate}:
            raise ValueError(f"{min(both)!r} is in static and in donate: what is no tree has no memory to be written over")
        self._calls: tuple[Call, ...] = ()  # the latest first
        self._returned = {name: LastReturned() for name in donate}
        self._donated_keys: dict[object, object] = {}
        self._shared = Compiled(function, static, (), max_traces) if donate else None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """What the function returns, computed by its compiled program."""
        try:
            for call in self._calls:
                result = call(args, kwargs)
                if result is not MISS:
                    return cast("R", result)  # a compiled program returns what the function does
        except RuntimeError as error:
            self._explain(error, args, kwargs)
        return self._first_call(args, kwargs)

    @override
    def __repr__(self) -> str:
        return f"<compiled {_name(self.function)}, {self._programs}>"

    @overload
    def __get__(self, instance: None, owner: type, /) -> Self: ...
    @overload
    def __get__(self: "Compiled[Concatenate[T, Q], R]", instance: T, owner: type | None = None, /) -> Callable[Q, R]: ...
    def __get__(self, instance: object, owner: type | None = None, /) -> object:
        """The compiled function as a method: its first argument is the instance."""
        return self if instance is None else types.MethodType(self, instance)

    # --- Pickles and files ---

    @override
    def _arguments(self) -> tuple[object, ...]:
        return self.function, tuple(self._static), self._donate, self._programs.most

    @override
    def _origin(self) -> archive.Origin:
        options = {"compiled by": "jit", "static": repr(sorted(self._static)), "donate": repr(self._donate)}
        return archive.Origin(self.function, _name(self.function), options)

    @override
    def _entries(self) -> list[archive.Entry]:
        own = [
            archive.Entry(
                program.key,
                (program.constants, program.result, program.outputs, program.slots, program.donated),
                flatten(program.result, "", constants=True).signature,
                program.library,
            )
            for program in self._programs.all()
        ]
        return own + [attrs.evolve(entry, role=_SHARED) for entry in (self._shared._entries() if self._shared else ())]

    @override
    def _installed(self, entry: archive.Entry) -> Program:
        form = cast("tuple[list[Tensor], object, int, tuple[TensorSpec, ...], tuple[DonatedArgument, ...]]", entry.form)
        constants, result, outputs, slots, donated = form
        run = cache.load(entry.library, [*entry.devices, *(constant.device for constant in constants)])
        donated = tuple(attrs.evolve(one, key=self._donated_key(entry.key, one.place, one.leaves)) for one in donated)
        return Program(run, entry.library, entry.key, constants, result, outputs, slots, donated)

    @override
    def _programs_of(self, role: str) -> Programs[Program]:
        return self._shared._programs if role == _SHARED and self._shared else self._programs

    def _donated_key(self, key: CacheKey, place: int, leaves: range) -> object:
        """The one object that stands for all arguments of that place and structure: it is compared in no time."""
        structure = (*key.signature.arguments[place], key.leaves[leaves.start : leaves.stop])
        return self._donated_keys.setdefault(structure, object())

    # --- A call that no function is written for yet ---

    def _first_call(self, args: tuple[object, ...], kwargs: dict[str, object]) -> R:
        """Find the compiled program for these arguments, or make it; write the function for such calls, and call it."""
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
        key = _cache_key(flat)
        program = self._programs.find(key, lambda: self._compile(key, arguments, flat))
        if program is None:
            return self._run_as_it_is(args, kwargs)
        call = CallWriter(arguments, flat, key, program).write(self._returned, self._shared)
        self._calls = (call, *self._calls)[:MOST_CALLS]
        try:
            result = call(args, kwargs)
        except RuntimeError as error:
            self._explain(error, args, kwargs)
        return self._run_as_it_is(args, kwargs) if result is MISS else cast("R", result)

    def _explain(self, error: RuntimeError, args: tuple[object, ...], kwargs: dict[str, object]) -> NoReturn:
        """Raise what the function itself raises for arguments that its program refused: it knows better what is wrong."""
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
        marked = tuple(StaticArgument(arg) if name in self._static else arg for name, arg in zip(names, args, strict=False))
        return marked, {name: StaticArgument(arg) if name in self._static else arg for name, arg in kwargs.items()}

    def _flatten(self, arguments: Arguments) -> Flat:
        args, kwargs = arguments
        names = [*self._parameters, *(f"argument {place}" for place in range(len(self._parameters), len(args)))]
        parts = {name: flatten(arg, name) for name, arg in [*zip(names, args, strict=False), *kwargs.items()]}
        signature = Signature(tuple((name, part.signature) for name, part in parts.items()), len(args))
        leaves = [leaf for part in parts.values() for leaf in part.leaves]
        return Flat(signature, leaves, [path for part in parts.values() for path in part.paths])

    def _compile(self, key: CacheKey, arguments: Arguments, flat: Flat) -> tuple[Program, bool]:
        def function(leaves: Sequence[Tensor]) -> object:
            with no_grad():
                return self._run_as_it_is(*cast("Arguments", replace(arguments, iter(leaves))))

        examples = [*map(torch_private.as_normal, flat.leaves)]
        traced = trace(function, examples)
        graph, result, outputs, slots = traced.graph, traced.result, traced.outputs, list[Tensor]()
        donated = self._donated(traced, key, flat)
        if donated:
            graph, result, outputs, slots = write_back(traced, donated, len(flat.leaves) + len(traced.constants))
        run, library, cached = cache.compiled(graph, [*examples, *traced.constants, *slots])
        return Program(run, library, key, traced.constants, result, outputs, tuple(map(spec_of, slots)), donated), cached

    def _donated(self, traced: Traced, key: CacheKey, flat: Flat) -> tuple[DonatedArgument, ...]:
        """The arguments that are donated, as far as they are given and have tensors."""
        found: list[DonatedArgument] = []
        names = [name for name, _ in key.signature.arguments]
        for name in self._donate:
            mine = [number for number, path in enumerate(flat.paths) if _argument(path) == name]
            if not mine:
                continue
            place, leaves = names.index(name), range(mine[0], mine[-1] + 1)
            examples, taken = [flat.leaves[number] for number in leaves], [other.part for other in found]
            signature = key.signature.arguments[place][1]
            replacement = find_replacement(traced, signature, examples, taken, or_all=len(self._donate) == 1)
            if replacement is None:
                raise TypeError(
                    f"donate={name!r}: no part of what {_name(self.function)} returns is a tree like this argument, with"
                    " tensors of the same shapes and dtypes, to be written over it"
                )
            found.append(DonatedArgument(name, place, leaves, *replacement, self._donated_key(key, place, leaves)))
        return tuple(found)


_SHARED: Final = "shared"  # the role of programs for donated trees that are not written over


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


def _cache_key(flat: Flat) -> CacheKey:
    assert isinstance(flat.signature, Signature)
    return CacheKey(flat.signature, tuple(map(leaf_key, flat.leaves)), torch_settings(), tuple(flat.paths))


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

"""A function that compiles itself for the trees that it is called with."""

import functools
import inspect
import threading
import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Final, Generic, ParamSpec, TypeAlias, TypeVar, cast, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl.jit import cache, torch_private
from fundl.jit.tracing import Traced, trace
from fundl.jit.walk import MISS, Flat, Source, Static, explain, flatten, replace
from fundl.kernels import no_grad
from fundl.tree import describe

P = ParamSpec("P")
R = TypeVar("R")

_Arguments: TypeAlias = tuple[tuple[object, ...], dict[str, object]]
_Call: TypeAlias = Callable[[tuple[object, ...], dict[str, object]], object]


class RetraceError(RuntimeError):
    """A function was called with arguments that it is not compiled for, more often than it may be; the message says which."""


@final
@attrs.frozen
class Trace:
    """One compilation of a function.

    Args:
        reason: why it was necessary: what of the arguments was new.
        seconds: that tracing and compiling took.
        cached: whether the compiled code was on disk.
    """

    reason: str
    seconds: float
    cached: bool


@attrs.frozen
class _Signature:
    """The structures of arguments, by place and by name."""

    arguments: tuple[tuple[str, Hashable], ...]
    positional: int  # so many of them are given by place

    def explain(self, old: "_Signature") -> str:
        """Where it differs from another one."""
        names, old_names = [name for name, _ in self.arguments], [name for name, _ in old.arguments]
        if names != old_names or self.positional != old.positional:
            return (
                f"the arguments were ({', '.join(old_names)}), and are ({', '.join(names)}), {self.positional} of them by place"
            )
        columns = zip(old.arguments, self.arguments, strict=True)
        return next(explain(before, after, name) for (name, before), (_, after) in columns if before != after)


@attrs.frozen
class _Key:
    """What a compiled form is for."""

    signature: _Signature
    leaves: tuple[str, ...]
    threads: int
    paths: tuple[str, ...] = attrs.field(eq=False)


@final
class Compiled(Generic[P, R]):
    """A compiled function; made by `jit`. It is called as the function that it is of.

    Args:
        function: the function.
        traces: what was compiled so far, in order.
    """

    def __init__(self, function: Callable[P, R], static: Sequence[str], max_traces: int | None) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.traces: tuple[Trace, ...] = ()
        self._parameters = _parameters(function)
        self._static = frozenset(static)
        self._max_traces = max_traces
        self._lock = threading.RLock()
        self._calls: tuple[_Call, ...] = ()  # quick ones, each for trees of one kind
        self._compiled: dict[_Key, tuple[Traced, torch_private.Run] | None] = {}  # None: must run as it is
        for name in self._static - set(self._parameters):
            raise ValueError(f"static={name!r} is not a parameter of {_name(function)}{inspect.signature(function)}")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """What the function returns, computed by its compiled form."""
        for call in self._calls:
            result = call(args, kwargs)
            if result is not MISS:
                return cast("R", result)  # a compiled form returns what the function does
        return self._first_call(args, kwargs)

    @override
    def __repr__(self) -> str:
        return f"<compiled {_name(self.function)}, traced {len(self.traces)} times>"

    # --- What a call of a new kind does ---

    def _first_call(self, args: tuple[object, ...], kwargs: dict[str, object]) -> R:
        """Find the compiled form for these arguments, or make it, and call it."""
        arguments = self._with_static(args, kwargs)
        flat = self._flatten(arguments)
        if torch_private.mode_count() or not all(map(torch_private.is_plain, flat.leaves)):
            return self._run_as_it_is(args, kwargs)  # within another trace, or for shapes alone
        key = _key(flat)
        with self._lock:
            if key not in self._compiled:
                self._compiled[key] = self._compile(key, arguments, flat)
            found = self._compiled[key]
            if found is None:
                return self._run_as_it_is(args, kwargs)
            call = _quick_call(arguments, flat, key, *found)
            self._calls = (call, *self._calls)[:_QUICK]
        return cast("R", call(args, kwargs))

    def _run_as_it_is(self, args: tuple[object, ...], kwargs: dict[str, object]) -> R:
        return cast("Callable[..., R]", self.function)(*args, **kwargs)  # type: ignore[explicit-any]  # they are P's

    def _with_static(self, args: tuple[object, ...], kwargs: dict[str, object]) -> _Arguments:
        """The arguments, with those that are static marked as such."""
        if not self._static:
            return args, kwargs
        names = [*self._parameters, *[""] * len(args)]
        marked = tuple(Static(arg) if name in self._static else arg for name, arg in zip(names, args, strict=False))
        return marked, {name: Static(arg) if name in self._static else arg for name, arg in kwargs.items()}

    def _flatten(self, arguments: _Arguments) -> Flat:
        args, kwargs = arguments
        names = [*self._parameters, *(f"argument {place}" for place in range(len(self._parameters), len(args)))]
        parts = {name: flatten(arg, name) for name, arg in [*zip(names, args, strict=False), *kwargs.items()]}
        signature = _Signature(tuple((name, part.signature) for name, part in parts.items()), len(args))
        leaves = [leaf for part in parts.values() for leaf in part.leaves]
        return Flat(signature, leaves, [path for part in parts.values() for path in part.paths])

    def _compile(self, key: _Key, arguments: _Arguments, flat: Flat) -> tuple[Traced, torch_private.Run] | None:
        reason, start = self._reason(key), time.perf_counter()
        if self._max_traces is not None and len(self.traces) >= self._max_traces:
            raise RetraceError(
                f"{_name(self.function)} was traced {len(self.traces)} times, and may not be traced again (max_traces="
                f"{self._max_traces}), but {reason}"
            )

        def function(leaves: Sequence[Tensor]) -> object:
            with no_grad():
                return self._run_as_it_is(*cast("_Arguments", replace(arguments, iter(leaves))))

        traced = trace(function, flat.leaves)
        try:
            run, cached = cache.compiled(traced.graph, [*flat.leaves, *traced.constants])
        except torch_private.NoCompilerError as error:
            warnings.warn(
                f"{_name(self.function)} is not compiled, and runs as it is: {error}. Compiling needs a compiler for C++, g++"
                " or clang++; the environment variable CXX says where it is",
                RuntimeWarning,
                stacklevel=4,
            )
            return None
        self.traces = (*self.traces, Trace(reason, time.perf_counter() - start, cached))
        return traced, run

    def _reason(self, key: _Key) -> str:
        """What is new in a key, compared to the one before it that differs the least."""
        if not self._compiled:
            return "it is the first call"
        reasons = [_difference(old, key) for old in reversed(self._compiled)]
        return min(reasons, key=len)


_QUICK: Final = 16


def _name(function: Callable[..., object]) -> str:  # type: ignore[explicit-any]  # of any arguments
    return str(getattr(function, "__qualname__", repr(function)))


def _parameters(function: Callable[..., object]) -> list[str]:  # type: ignore[explicit-any]  # of any arguments
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of what is written in C
        return []
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return [parameter.name for parameter in parameters if parameter.kind in positional]


def _key(flat: Flat) -> _Key:
    assert isinstance(flat.signature, _Signature)
    return _Key(flat.signature, tuple(map(_described, flat.leaves)), torch.get_num_threads(), tuple(flat.paths))


def _described(leaf: Tensor) -> str:
    """A leaf, as far as compiled code depends on it; the strides of axes of one element do not matter."""
    contiguous = leaf.is_contiguous()
    strides = (
        "" if contiguous else f" with strides {[s if n > 1 else 1 for s, n in zip(leaf.stride(), leaf.shape, strict=True)]}"
    )
    device = "" if leaf.is_cpu else f" on {leaf.device}"
    return f"{describe(leaf.detach())}{strides}{device}"


def _difference(old: _Key, new: _Key) -> str:
    if old.signature != new.signature:
        return new.signature.explain(old.signature)
    changed = [
        f"{path} was {before}, and is {after}"
        for path, before, after in zip(new.paths, old.leaves, new.leaves, strict=True)
        if before != after
    ]
    if changed:
        more = f" (and {len(changed) - 1} more tensors differ)" if len(changed) > 1 else ""
        return changed[0] + more
    return f"torch had {old.threads} threads, and has {new.threads}"


def _quick_call(
    arguments: _Arguments,
    flat: Flat,
    key: _Key,
    traced: Traced,
    run: torch_private.Run,
) -> _Call:
    """Write the function that a call goes through: it takes trees of one kind apart, runs, and puts the result together."""
    source, (args, kwargs) = Source(), arguments
    source.scope |= {
        "check": torch_private.guard([*{id(leaf): leaf for leaf in flat.leaves}.values()]) if flat.leaves else None,
        "modes": torch_private.mode_count,
        "threads": torch.get_num_threads,
        "run": run,
    }
    names = [source.variable() for _ in args]
    source.add(f"if len(args) != {len(args)} or modes() or threads() != {key.threads}: return MISS")
    source.add(f"if tuple(kwargs) != {tuple(kwargs)!r}: return MISS" if kwargs else "if kwargs: return MISS")
    if names:
        source.add(f"({', '.join(names)},) = args")
    leaves = [leaf for name, arg in zip(names, args, strict=True) for leaf in source.read(name, arg)]
    for keyword, arg in kwargs.items():
        name = source.variable()
        source.add(f"{name} = kwargs[{keyword!r}]")
        leaves += source.read(name, arg)
    unique: dict[int, str] = {}
    for name, leaf in zip(leaves, flat.leaves, strict=True):
        first = unique.setdefault(id(leaf), name)
        if first is not name:  # the guard takes no tensor twice
            source.add(f"if {name} is not {first}: return MISS")
    if leaves:
        source.add(f"if not check({', '.join(unique.values())}): return MISS")
    inputs = ", ".join([*leaves, *(source.constant(constant) for constant in traced.constants)])
    outputs = [source.variable() for _ in range(traced.outputs)]
    source.add(f"({', '.join(outputs)},) = run([{inputs}])" if outputs else "")
    source.add(f"return {source.build(traced.result, leaves, outputs)}")
    return cast("_Call", source.compile("def call(args, kwargs)"))


def jit(function: Callable[P, R], *, static: str | Sequence[str] = (), max_traces: int | None = None) -> Compiled[P, R]:
    """Compile a pure function of trees.

    The function is run once for each kind of arguments, on stand-ins for their tensors, and all that it does with tensors is
    compiled as one graph. The compiled function gives the same results, up to rounding, and costs next to nothing beside
    the arithmetic. Kinds of arguments differ in the trees' structure (with all static fields), and in the tensors' shapes,
    strides, dtypes and devices; torch's number of threads is a part of it too. A last batch that is smaller than the others
    is compiled for once more, not each time it comes.

    Args:
        function: of trees of tensors (models, states of optimizers, batches, keys), to such a tree. It must be pure: what
            else it does, it does once per kind of arguments.
        static: the names of arguments that are no trees (functions, numbers, flags): hashable, and a part of the kind.
        max_traces: how often it may be compiled, at most; another kind of arguments is then an error that says what is new.

    Raises:
        TraceError: the function asks for the value of a tensor, writes into its arguments, keeps a tensor, or draws random
            numbers other than from a key; the message names the line.
        RetraceError: see `max_traces`.

    A compiled training step, with the loop around it as it was:

        step = jit(train_step(cross_entropy, adamw(0.001)))
        for batch in batches:
            state, report = step(state, batch)
        print(step.traces)

    Compiling takes seconds, once: what is compiled is kept on disk, in the folder that the environment variable
    FUNDL_CACHE_DIR names (by default ~/.cache/fundl), and found by the next process.
    """
    return Compiled(function, (static,) if isinstance(static, str) else tuple(static), max_traces)

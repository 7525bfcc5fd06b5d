"""A function that compiles itself for the trees that it is called with."""

import functools
import inspect
import re
import threading
import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Final, Generic, ParamSpec, TypeAlias, TypeVar, cast, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl.donated import DonatedError, refusal
from fundl.jit import cache, torch_private
from fundl.jit.donation import Donated, Estate, are_exclusive, bury, empty
from fundl.jit.tracing import Traced, trace
from fundl.jit.walk import MISS, Flat, Leaf, Source, Static, children, explain, flatten, replace, with_parts
from fundl.kernels import no_grad
from fundl.tree import Record, describe

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


@attrs.frozen(eq=False)
class _Donated:
    """What becomes of the donated argument.

    Args:
        place: of the argument, among all.
        leaves: from which to which of the leaves of all arguments are its own.
        heir: the part of the result that takes its place: a tree like it, of leaves of the kind "heir".
        kind: of both, something unique.
    """

    place: int
    leaves: tuple[int, int]
    heir: object
    kind: object


@attrs.frozen(eq=False)
class _Program:
    """A compiled form.

    Args:
        run: what runs it.
        constants: its last inputs.
        result: made of its outputs.
        outputs: how many there are.
        donated: which inputs it writes to, if it does.
    """

    run: torch_private.Run
    constants: list[Tensor]
    result: object
    outputs: int
    donated: _Donated | None


@final
class Compiled(Generic[P, R]):
    """A compiled function; made by `jit`. It is called as the function that it is of.

    Args:
        function: the function.
        traces: what was compiled so far, in order.
    """

    def __init__(self, function: Callable[P, R], static: Sequence[str], donate: str | None, max_traces: int | None) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.traces: tuple[Trace, ...] = ()
        self._parameters = _parameters(function)
        self._static = frozenset(static)
        self._max_traces = max_traces
        self._lock = threading.RLock()
        self._calls: tuple[_Call, ...] = ()  # quick ones, each for trees of one kind
        self._compiled: dict[_Key, _Program | None] = {}  # None: must run as it is
        self._donate = donate
        self._estate = Estate()
        self._kinds: dict[object, object] = {}  # of what was donated
        self._shared = None if donate is None else Compiled(function, static, None, max_traces)
        for option, names in (("static", self._static), ("donate", {donate} - {None})):
            for name in names - {*self._parameters}:
                raise ValueError(f"{option}={name!r} is not a parameter of {_name(function)}{inspect.signature(function)}")

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
        if any(isinstance(leaf, Donated) for leaf in flat.leaves):
            path = next(path for path, leaf in zip(flat.paths, flat.leaves, strict=True) if isinstance(leaf, Donated))
            raise DonatedError(f"{path}: {refusal('tensor')}")
        if torch_private.mode_count() or not all(map(torch_private.is_plain, flat.leaves)):
            return self._run_as_it_is(args, kwargs)  # within another trace, or for shapes alone
        key = _key(flat)
        with self._lock:
            if key not in self._compiled:
                self._compiled[key] = self._compile(key, arguments, flat)
            found = self._compiled[key]
            if found is None:
                return self._run_as_it_is(args, kwargs)
            call = _QuickCall(arguments, flat, key, found).write(self._estate, self._shared)
            self._calls = (call, *self._calls)[:_QUICK]
        result = call(args, kwargs)
        return self._run_as_it_is(args, kwargs) if result is MISS else cast("R", result)

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

    def _compile(self, key: _Key, arguments: _Arguments, flat: Flat) -> _Program | None:
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
        graph, result, outputs, donated = traced.graph, traced.result, traced.outputs, None
        if self._donate is not None and self._donate in dict(key.signature.arguments):
            graph, result, outputs, donated = self._write_back(traced, key, flat)
        try:
            run, cached = cache.compiled(graph, [*flat.leaves, *traced.constants])
        except torch_private.NoCompilerError as error:
            warnings.warn(
                f"{_name(self.function)} is not compiled, and runs as it is: {error}. Compiling needs a compiler for C++, g++"
                " or clang++; the environment variable CXX says where it is",
                RuntimeWarning,
                stacklevel=4,
            )
            return None
        self.traces = (*self.traces, Trace(reason, time.perf_counter() - start, cached))
        return _Program(run, traced.constants, result, outputs, donated)

    def _write_back(self, traced: Traced, key: _Key, flat: Flat) -> "tuple[torch_private.Graph, object, int, _Donated]":
        """The graph that writes over the donated argument, and what the result is made of then."""
        names = [name for name, _ in key.signature.arguments]
        place = names.index(str(self._donate))
        signature = key.signature.arguments[place][1]
        first = next((i for i, path in enumerate(flat.paths) if _argument(path) == self._donate), 0)
        last = first + sum(_argument(path) == self._donate for path in flat.paths)
        heirs = _heirs(traced, signature, flat.leaves[first:last])
        if heirs is None:
            raise TypeError(
                f"donate={self._donate!r}: no part of what {_name(self.function)} returns is a tree like this argument, with"
                " tensors of the same shapes and dtypes, to be written over it"
            )
        where, heir, sources = heirs
        returned: list[Leaf] = []

        def elsewhere(leaf: Leaf) -> Leaf:
            if leaf.kind == "constant" or (leaf.kind == "input" and not first <= leaf.index < last):
                return leaf
            same = (number for number, old in enumerate(returned) if (old.kind, old.index) == (leaf.kind, leaf.index))
            if (number := next(same, None)) is None:
                number = len(returned)
                returned.append(leaf)
            return Leaf("output", number)

        result: object = Leaf("tree", 0)
        if where is not None:
            parts = [part for _, part in children(traced.result, "")]
            rest = [part if i == where else _map_leaves(elsewhere, part) for i, part in enumerate(parts)]
            rest[where] = Leaf("tree", 0)
            result = with_parts(traced.result, rest)
        writes = [(first + i, source) for i, source in enumerate(sources) if source != ("input", first + i)]
        graph = traced.graph.write_back(writes, [_source(leaf) for leaf in returned])
        kind = self._kinds.setdefault((signature, key.leaves[first:last]), object())
        return graph, result, len(returned), _Donated(place, (first, last), heir, kind)

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


def _argument(path: str) -> str:
    """The name of the argument that a path starts with."""
    return re.split(r"[.\[]", path, maxsplit=1)[0]


def _source(leaf: Leaf) -> torch_private.Source:
    return ("input", leaf.index) if leaf.kind == "input" else ("output", leaf.index)


def _map_leaves(function: Callable[[Leaf], Leaf], tree: object) -> object:
    leaves = flatten(tree, "", constants=True).leaves
    return replace(tree, iter([function(leaf) for leaf in cast("list[Leaf]", leaves)]))


def _heirs(
    traced: Traced, signature: Hashable, examples: Sequence[Tensor]
) -> tuple[int | None, object, list[torch_private.Source]] | None:
    """The part of the result that can take the place of the donated tree: where it is, what it is, where it comes from."""
    parts: list[tuple[int | None, object]] = [(None, traced.result)]
    if isinstance(traced.result, tuple):
        parts += enumerate(part for _, part in children(traced.result, ""))
    for place, part in parts:
        flat = flatten(part, "", constants=True)
        leaves = cast("list[Leaf]", flat.leaves)
        if flat.signature == signature and all(map(traced.is_like, leaves, examples)):
            heirs = iter([Leaf("heir", number) for number in range(len(leaves))])
            return place, replace(part, heirs), [_source(leaf) for leaf in leaves]
    return None


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


class _QuickCall:
    """Writes the function that a call goes through: it takes trees of one kind apart, runs, and puts the result together."""

    def __init__(self, arguments: _Arguments, flat: Flat, key: _Key, program: _Program) -> None:
        self.args, self.kwargs = arguments
        self.flat, self.key, self.program = flat, key, program
        self.source = Source()
        self.source.scope |= {"modes": torch_private.mode_count, "threads": torch.get_num_threads, "run": program.run}
        self.names = [self.source.variable() for _ in self.args]
        self.constants = [self.source.constant(constant) for constant in program.constants]
        self.outputs = [self.source.variable() for _ in range(program.outputs)]

    def write(self, estate: Estate, shared: Callable[..., object] | None) -> _Call:  # type: ignore[explicit-any]  # of any arguments
        """The function.

        Args:
            estate: where what is donated comes from, if it comes from the last call.
            shared: the function compiled without donation, for donated trees that are not the only ones in their memory.
        """
        source, args, kwargs = self.source, self.args, self.kwargs
        source.add(f"if len(args) != {len(args)} or modes() or threads() != {self.key.threads}: return MISS")
        source.add(f"if tuple(kwargs) != {tuple(kwargs)!r}: return MISS" if kwargs else "if kwargs: return MISS")
        if args:
            source.add(f"({', '.join(self.names)},) = args")
        if self.program.donated:
            source.scope |= {"estate": estate, "shared": shared, "exclusive": are_exclusive, "bury": bury, "empty": empty}
            self._write_shortcut(self.program.donated)
        leaves = [leaf for name, arg in zip(self.names, args, strict=True) for leaf in source.read(name, arg)]
        for keyword, arg in kwargs.items():
            name = source.variable()
            source.add(f"{name} = kwargs[{keyword!r}]")
            leaves += source.read(name, arg)
        self._check(leaves, self.flat.leaves)
        if self.program.donated:
            self._write_donating(self.program.donated, leaves)
        else:
            self._run(leaves)
            source.add(f"return {source.build(self.program.result, {'input': leaves, 'output': self.outputs})}")
        return cast("_Call", source.compile("def call(args, kwargs)"))

    def _check(self, names: Sequence[str], leaves: Sequence[Tensor]) -> None:
        """Write that leaves are as they were when the function was compiled."""
        unique: dict[int, tuple[str, Tensor]] = {}
        for name, leaf in zip(names, leaves, strict=True):
            first, _ = unique.setdefault(id(leaf), (name, leaf))
            if first is not name:  # the guard takes no tensor twice
                self.source.add(f"if {name} is not {first}: return MISS")
        if unique:
            check = self.source.constant(torch_private.guard([leaf for _, leaf in unique.values()]))
            self.source.add(f"if not {check}({', '.join(name for name, _ in unique.values())}): return MISS")

    def _run(self, leaves: Sequence[str]) -> None:
        call = f"run([{', '.join([*leaves, *self.constants])}])"
        if self.outputs:
            self.source.add(f"({', '.join(self.outputs)},) = {call}")
        elif self.program.donated:
            self.source.add(call)

    def _write_donating(self, donated: _Donated, leaves: list[str]) -> None:
        """Write a call that leaves nothing of the donated tree."""
        first, last = donated.leaves
        mine, others = ", ".join(leaves[first:last]), ", ".join([*leaves[:first], *leaves[last:], *self.constants])
        self.source.add(f"if not exclusive([{mine}], [{others}]): return shared(*args, **kwargs)")
        self._run(leaves)
        heirs = [self.source.variable() for _ in range(first, last)]
        self.source.add(f"({', '.join(heirs)},) = bury([{mine}])")
        tree = self.source.variable()
        self.source.add(f"{tree} = {self.source.build(donated.heir, {'heir': heirs})}")
        self.source.add(f"estate.adopt({tree}, {self.source.constant(donated.kind)}, [{', '.join(heirs)}])")
        self._return(leaves, tree)

    def _return(self, leaves: Sequence[str], tree: str) -> None:
        names = {"input": leaves, "output": self.outputs, "tree": [tree]}
        self.source.add(f"return {self.source.build(self.program.result, names)}")

    def _write_shortcut(self, donated: _Donated) -> None:
        """Write what is done if the donated record is the one that the last call returned, and nobody has a part of it."""
        root = self.args[donated.place] if donated.place < len(self.args) else None
        if not isinstance(root, Record) or self.kwargs:
            return
        source, name, before = self.source, self.names[donated.place], len(self.source.lines)
        others = [[] if arg is root else source.read(given, arg) for given, arg in zip(self.names, self.args, strict=True)]
        first, last = donated.leaves
        leaves = [
            leaf for place, given in enumerate(others) for leaf in (["*estate.leaves"] if place == donated.place else given)
        ]
        self._check([leaf for given in others for leaf in given], [*self.flat.leaves[:first], *self.flat.leaves[last:]])
        self._run(leaves)
        new = source.move(name, root)
        source.add(f"empty({name})", f"estate.follow({new})")
        self._return([], new)
        kind = source.constant(donated.kind)
        condition = f"if estate.kind is {kind} and {name} is estate.root() and estate.is_untouched():"
        source.lines[before:] = [condition, *(f"    {line}" for line in source.lines[before:])]


def jit(
    function: Callable[P, R], *, static: str | Sequence[str] = (), donate: str | None = None, max_traces: int | None = None
) -> Compiled[P, R]:
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
        donate: the name of an argument that is used up: the part of the result that is a tree like it is written over its
            memory, which saves allocating and copying. Whoever uses it again, or a tensor of it that he held on to, gets a
            `DonatedError`; only views that were taken of its tensors before go unnoticed, and show the new numbers. A tree
            whose tensors share memory stays as it is, and is not written over.
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
    FUNDL_CACHE_DIR names (by default ~/.cache/fundl), and found by the next process.
    """
    return Compiled(function, (static,) if isinstance(static, str) else tuple(static), donate, max_traces)

"""A function that compiles itself for the trees that it is called with."""

import functools
import inspect
import os
import re
import types
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Concatenate, Final, Generic, NoReturn, ParamSpec, Self, TypeAlias, TypeVar, cast, final, overload

import attrs
from torch import Tensor
from typing_extensions import override

from fundl.donated import DonatedError
from fundl.jit import archive, cache, inductor, torch_private
from fundl.jit.alone import ALONE
from fundl.jit.ambient import ambient
from fundl.jit.donation import Estates, are_exclusive, bury, empty, require_not_donated
from fundl.jit.kinds import Forms, Kind, Like, Signature, Trace, leaf_kind, like
from fundl.jit.pickling import pickled
from fundl.jit.quick import MOST, write_ambient, write_empty, write_guard
from fundl.jit.tracing import Traced, source_of, trace
from fundl.jit.walk import MISS, Flat, Leaf, Source, Static, children, flatten, replace, with_parts
from fundl.kernels import no_grad
from fundl.tree import Record

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
T = TypeVar("T")

_Arguments: TypeAlias = tuple[tuple[object, ...], dict[str, object]]
_Call: TypeAlias = Callable[[tuple[object, ...], dict[str, object]], object]


@attrs.frozen(eq=False)
class _Donated:
    """What becomes of a donated argument.

    Args:
        name: of the argument.
        place: of it, among all.
        leaves: from which to which of the leaves of all arguments are its own.
        part: of the result, that takes its place; None for all of the result.
        heir: that part: a tree like the argument, of leaves of the kind "heir".
        sources: what the heir's tensors are.
        kind: of both, something unique.
    """

    name: str
    place: int
    leaves: range
    part: int | None
    heir: object
    sources: tuple[torch_private.Source, ...]
    kind: object


@attrs.frozen(eq=False)
class _Program:
    """A compiled form.

    Args:
        run: what runs it.
        library: the folder that it is in.
        kind: of the arguments that it is for.
        constants: its last inputs.
        result: made of its outputs.
        outputs: how many there are.
        slots: tensors that it writes its outputs to, its very last inputs; none if it returns them.
        donated: the arguments that it writes to.
    """

    run: inductor.Run
    library: Path
    kind: Kind
    constants: list[Tensor]
    result: object
    outputs: int
    slots: tuple[Like, ...]
    donated: tuple[_Donated, ...]


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
        self._forms = Forms[_Program](_name(function), max_traces)
        self._calls: tuple[_Call, ...] = ()  # quick ones, each for trees of one kind
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

    def _installed(self, entry: archive.Entry) -> _Program:
        """The form of a file's entry."""
        form = cast("tuple[list[Tensor], object, int, tuple[Like, ...], tuple[_Donated, ...]]", entry.form)
        constants, result, outputs, slots, donated = form
        run = cache.load(entry.library, [*entry.devices, *(constant.device for constant in constants)])
        donated = tuple(attrs.evolve(one, kind=self._unique(entry.kind, one.place, one.leaves)) for one in donated)
        return _Program(run, entry.library, entry.kind, constants, result, outputs, slots, donated)

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
            args, kwargs = cast("_Arguments", replace(arguments, map(torch_private.resolved, flat.leaves)))
            return self(*args, **kwargs)  # type: ignore[arg-type]  # they are P's
        kind = _kind(flat)
        found = self._forms.find(kind, lambda: self._compile(kind, arguments, flat))
        if found is None:
            return self._run_as_it_is(args, kwargs)
        call = _QuickCall(arguments, flat, kind, found).write(self._estates, self._shared)
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
        signature = Signature(tuple((name, part.signature) for name, part in parts.items()), len(args))
        leaves = [leaf for part in parts.values() for leaf in part.leaves]
        return Flat(signature, leaves, [path for part in parts.values() for path in part.paths])

    def _compile(self, kind: Kind, arguments: _Arguments, flat: Flat) -> tuple[_Program, bool]:
        def function(leaves: Sequence[Tensor]) -> object:
            with no_grad():
                return self._run_as_it_is(*cast("_Arguments", replace(arguments, iter(leaves))))

        examples = [*map(torch_private.usual, flat.leaves)]
        traced = trace(function, examples)
        graph, result, outputs, slots = traced.graph, traced.result, traced.outputs, list[Tensor]()
        donated = self._donated(traced, kind, flat)
        if donated:
            graph, result, outputs, slots = _write_back(traced, donated, len(flat.leaves) + len(traced.constants))
        run, library, cached = cache.compiled(graph, [*examples, *traced.constants, *slots])
        return _Program(run, library, kind, traced.constants, result, outputs, tuple(map(like, slots)), donated), cached

    def _donated(self, traced: Traced, kind: Kind, flat: Flat) -> tuple[_Donated, ...]:
        """What becomes of the arguments that are donated, as far as they are given and have tensors."""
        found: list[_Donated] = []
        names = [name for name, _ in kind.signature.arguments]
        for name in self._donate:
            mine = [number for number, path in enumerate(flat.paths) if _argument(path) == name]
            if not mine:
                continue
            place, leaves = names.index(name), range(mine[0], mine[-1] + 1)
            signature = kind.signature.arguments[place][1]
            taken = [other.part for other in found]
            heir = _heir(traced, signature, [flat.leaves[number] for number in leaves], taken, whole=len(self._donate) == 1)
            if heir is None:
                raise TypeError(
                    f"donate={name!r}: no part of what {_name(self.function)} returns is a tree like this argument, with"
                    " tensors of the same shapes and dtypes, to be written over it"
                )
            found.append(_Donated(name, place, leaves, *heir, self._unique(kind, place, leaves)))
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


def _map_leaves(function: Callable[[Leaf], Leaf], tree: object) -> object:
    leaves = flatten(tree, "", constants=True).leaves
    return replace(tree, iter([function(leaf) for leaf in cast("list[Leaf]", leaves)]))


def _heir(
    traced: Traced, signature: Hashable, examples: Sequence[Tensor], taken: Sequence[int | None], *, whole: bool
) -> tuple[int | None, object, tuple[torch_private.Source, ...]] | None:
    """The part of the result that can take the place of a donated tree: where it is, what it is, where it comes from.

    Args:
        traced: gives the result.
        signature: of the donated tree.
        examples: its tensors.
        taken: the parts that are the heirs of others.
        whole: whether all of the result may be the heir.
    """
    parts: list[tuple[int | None, object]] = [(None, traced.result)] if whole else []
    if isinstance(traced.result, tuple):
        parts += enumerate(part for _, part in children(traced.result, ""))
    for place, part in parts:
        flat = flatten(part, "", constants=True)
        leaves = cast("list[Leaf]", flat.leaves)
        if place not in taken and flat.signature == signature and all(map(traced.is_like, leaves, examples)):
            heirs = iter([Leaf("heir", number) for number in range(len(leaves))])
            return place, replace(part, heirs), tuple(map(source_of, leaves))
    return None


def _write_back(
    traced: Traced, donated: Sequence[_Donated], inputs: int
) -> tuple[torch_private.Graph, object, int, list[Tensor]]:
    """The graph that writes over donated arguments, what the result is made of then, and of how many further tensors.

    These, too, it writes to tensors that it is given, if they are contiguous: inductor puts what it computes on the way on the
    stack, if nothing is returned. Last come tensors like them, if so.

    Args:
        traced: the function.
        donated: the arguments.
        inputs: how many the graph has.
    """
    mine = {number for one in donated for number in one.leaves}
    returned: list[Leaf] = []

    def elsewhere(leaf: Leaf) -> Leaf:
        if leaf.kind == "constant" or (leaf.kind == "input" and leaf.index not in mine):
            return leaf
        same = (number for number, old in enumerate(returned) if (old.kind, old.index) == (leaf.kind, leaf.index))
        if (number := next(same, None)) is None:
            number = len(returned)
            returned.append(leaf)
        return Leaf("output", number)

    places = {one.part: Leaf("tree", number) for number, one in enumerate(donated)}
    if None in places:
        result: object = places[None]
    else:
        parts = enumerate(part for _, part in children(traced.result, ""))
        result = with_parts(traced.result, [places.get(i) or _map_leaves(elsewhere, part) for i, part in parts])
    changes = [change for one in donated for change in zip(one.leaves, one.sources, strict=True)]
    writes = [(number, source) for number, source in changes if source != ("input", number)]
    outputs = [leaf.index for leaf in returned]
    if not all(leaf.kind == "output" and traced.graph.is_contiguous(leaf.index) for leaf in returned):
        return traced.graph.write_back(writes, [*map(source_of, returned)]), result, len(returned), []
    graph, slots = traced.graph.with_slots(outputs)
    writes += [(inputs + number, ("output", output)) for number, output in enumerate(outputs)]
    return graph.write_back(writes, []), result, len(returned), slots


def _kind(flat: Flat) -> Kind:
    assert isinstance(flat.signature, Signature)
    return Kind(flat.signature, tuple(map(leaf_kind, flat.leaves)), ambient(), tuple(flat.paths))


class _QuickCall:
    """Writes the function that a call goes through: it takes trees of one kind apart, runs, and puts the result together."""

    def __init__(self, arguments: _Arguments, flat: Flat, kind: Kind, program: _Program) -> None:
        self.args, self.kwargs = arguments
        self.flat, self.kind, self.program = flat, kind, program
        self.source = Source(program.kind.signature.counterparts(kind.signature))
        self.source.scope["run"] = program.run
        self.names = [self.source.variable() for _ in self.args]
        self.constants = [self.source.constant(constant) for constant in program.constants]
        self.outputs = [self.source.variable() for _ in range(program.outputs)]

    def write(self, estates: dict[str, Estates], shared: Callable[..., object] | None) -> _Call:  # type: ignore[explicit-any]  # of any arguments
        """The function.

        Args:
            estates: where what is donated comes from, if it comes from the last call, by name.
            shared: the function compiled without donation, for donated trees that are not the only ones in their memory.
        """
        source, args, kwargs = self.source, self.args, self.kwargs
        donated = sum(len(one.leaves) for one in self.program.donated)
        write_ambient(source, self.kind.ambient, autocast=len(self.flat.leaves) == donated)
        source.add(f"if len(args) != {len(args)}: return MISS")
        source.add(f"if tuple(kwargs) != {tuple(kwargs)!r}: return MISS" if kwargs else "if kwargs: return MISS")
        if args:
            source.add(f"({', '.join(self.names)},) = args")
        if self.program.donated:
            source.scope |= {"shared": shared, "exclusive": are_exclusive, "bury": bury, "empty": empty}
            for one in self.program.donated:
                source.scope[f"estates_{one.place}"] = estates[one.name]
            self._write_shortcut(self.program.donated)
        leaves = [leaf for name, arg in zip(self.names, args, strict=True) for leaf in source.read(name, arg)]
        for keyword, arg in kwargs.items():
            name = source.variable()
            source.add(f"{name} = kwargs[{keyword!r}]")
            leaves += source.read(name, arg)
        write_guard(source, leaves, self.flat.leaves)
        if self.program.donated:
            self._write_donating(self.program.donated, leaves)
        else:
            self._run(leaves)
            source.add(f"return {source.build(self.program.result, {'input': leaves, 'output': self.outputs})}")
        return cast("_Call", source.compile("def call(args, kwargs)"))

    def _run(self, leaves: Sequence[str]) -> None:
        slots = self.outputs if self.program.slots else []
        call = f"run([{', '.join([*leaves, *self.constants, *slots])}])"
        if self.program.slots:
            write_empty(self.source, self.outputs, self.program.slots)
            self.source.add(call)
        elif self.outputs:
            self.source.add(f"({', '.join(self.outputs)},) = {call}")
        elif self.program.donated:
            self.source.add(call)

    def _write_donating(self, donated: Sequence[_Donated], leaves: list[str]) -> None:
        """Write a call that leaves nothing of the donated trees."""
        numbers = [number for one in donated for number in one.leaves]
        mine = ", ".join(leaves[number] for number in numbers)
        others = ", ".join([*(leaf for number, leaf in enumerate(leaves) if number not in numbers), *self.constants])
        self.source.add(f"if not exclusive([{mine}], [{others}]): return shared(*args, **kwargs)")
        self._run(leaves)
        heirs = [self.source.variable() for _ in numbers]
        self.source.add(f"({', '.join(heirs)},) = bury([{mine}])")
        trees = []
        for one in donated:
            own, heirs = heirs[: len(one.leaves)], heirs[len(one.leaves) :]
            trees.append(self.source.build(one.heir, {"heir": own}))
            kind = self.source.constant(one.kind)
            self.source.add(f"estates_{one.place}.adopt({trees[-1]}, {kind}, [{', '.join(own)}])")
        self._return(leaves, trees)

    def _return(self, leaves: Sequence[str], trees: Sequence[str]) -> None:
        names = {"input": leaves, "output": self.outputs, "tree": trees}
        self.source.add(f"return {self.source.build(self.program.result, names)}")

    def _write_shortcut(self, donated: Sequence[_Donated]) -> None:
        """Write what is done if the donated records are those that the last call returned, and nobody has a part of them."""
        roots = {
            one.place: root
            for one in donated
            if one.place < len(self.args) and isinstance(root := self.args[one.place], Record)
        }
        if len(roots) < len(donated) or self.kwargs:
            return
        source, before = self.source, len(self.source.lines)
        leaves: list[str] = []
        others: list[str] = []
        for place, (name, arg) in enumerate(zip(self.names, self.args, strict=True)):
            read = [] if place in roots else source.read(name, arg)
            leaves += [f"*estate_{place}.leaves"] if place in roots else read
            others += read
        mine = {number for one in donated for number in one.leaves}
        write_guard(source, others, [leaf for number, leaf in enumerate(self.flat.leaves) if number not in mine])
        self._run(leaves)
        trees = [source.move(self.names[place], root) for place, root in roots.items()]
        for place, tree in zip(roots, trees, strict=True):
            source.add(f"empty({self.names[place]})", f"estate_{place}.follow({tree})")
        self._return([], trees)
        conditions = [
            f"estate_{one.place}.kind is {source.constant(one.kind)} and {self.names[one.place]} is estate_{one.place}.root()"
            f" and estate_{one.place}.is_untouched()"
            for one in donated
        ]
        shortcut = [f"if {' and '.join(conditions)}:", *(f"    {line}" for line in source.lines[before:])]
        source.lines[before:] = [*(f"estate_{place} = estates_{place}.last" for place in roots), *shortcut]


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

"""Many steps as one compiled call: an epoch without Python between its steps."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, ParamSpec, Self, TypeAlias, TypeVar, cast, final, overload

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.modes import no_grad
from fundl._compiling import archive, cache, torch_private
from fundl._compiling.alone import ALONE
from fundl._compiling.ambient import ambient
from fundl._compiling.donation import require_not_donated
from fundl._compiling.kinds import Forms, Kind, Like, Signature, Trace, like
from fundl._compiling.loops import Loop, Plan
from fundl._compiling.pickling import pickled
from fundl._compiling.quick import MOST, write_ambient, write_empty, write_guard
from fundl._compiling.tracing import source_of, trace
from fundl._compiling.walk import MISS, Flat, Leaf, Source, explain, flatten, replace
from fundl.data import Minibatches, count_rows
from fundl.tree import describe

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
B = TypeVar("B")
K = TypeVar("K")
Before = TypeVar("Before")


@attrs.frozen(eq=False)
class _Form:
    """A compiled loop.

    Args:
        run: the loop over the graph of a step.
        library: the folder that the graph's compiled form is in.
        kind: of the arguments that it is for.
        plan: what the loop is over.
        report: what a step's report is made of: a `Leaf` for each tensor.
    """

    run: Loop
    library: Path
    kind: Kind
    plan: Plan
    report: object


@final
class Scanned(Generic[P, R]):
    """Many steps as one; made by `scan`.

    Args:
        step: the step.
    """

    def __init__(self, step: Callable[P, R], max_traces: int | None) -> None:
        self.step: Callable[P, R] = step
        self.__wrapped__: Callable[P, R] = step
        self._name = f"a scan of {getattr(step, '__qualname__', repr(step))}"
        self._forms = Forms[_Form](self._name, max_traces)
        self._calls: tuple[_Call, ...] = ()  # quick ones, each for trees of one kind

    @property
    def traces(self) -> tuple[Trace, ...]:
        """What was compiled so far, in order."""
        return self._forms.traces

    @override
    def __repr__(self) -> str:
        return f"<{self._name}, {self._forms}>"

    def __deepcopy__(self, _memo: object) -> Self:
        return self

    def __copy__(self) -> Self:
        return self

    @override
    def __reduce__(self) -> str | tuple[object, ...]:
        return pickled(self, self.step, (Scanned, (self.step, self._forms.most)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was compiled so far to a file, whole or not at all, for `load` in another process.

        All that the function which `jit` returns says of its own `save` holds.

        Args:
            path: of the file; one that is there already is replaced.

        Raises:
            TypeError, ValueError, OSError: as there.

        An epoch, compiled where there is a compiler, and run where there is none:

            epoch = scan(train_step(cross_entropy, adamw(0.001)))
            state, reports = epoch(state, batches)
            epoch.save("epoch.compiled")

            epoch = scan(train_step(cross_entropy, adamw(0.001)))
            epoch.load("epoch.compiled")
            state, reports = epoch(state, batches)  # runs at once
        """
        entries = [
            archive.Entry(
                form.kind,
                (attrs.astuple(form.plan, recurse=False), form.report),
                flatten(form.report, "", constants=True).signature,
                form.library,
            )
            for form in self._forms.there()
        ]
        archive.save(path, self._origin, entries)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take over what was compiled in another process, from a file that `save` wrote: `traces` has it, as loaded.

        What is checked, and what is not, is what the function that `jit` returns says of its own `load`. Load only files that
        you trust: a file holds machine code, and pickled names of classes and functions.

        Args:
            path: of the file.

        Raises:
            FileNotFoundError, OSError, ValueError: as there.
        """
        with ALONE:
            found = archive.load(path, self._origin, _installed)
        for entry, form, loaded in found:
            self._forms.add(entry.kind, form, loaded)

    @property
    def _origin(self) -> archive.Origin:
        return archive.Origin(self.step, self._name, {"compiled by": "scan"})

    @overload
    def __call__(  # type: ignore[explicit-any]  # a generic step leaves no parameter to name: any minibatches are taken
        self: "Scanned[..., tuple[Before, K]]", state: S, batches: Minibatches[B], /
    ) -> tuple[S, K]: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def __call__(self, *args: object, **kwargs: object) -> object:
        """The state after all steps, and the reports of all steps, stacked along a new first axis.

        Args:
            args: the state before the first step, which stays as it is, and the batches: a tree like a batch, whose tensors
                have one more axis, the first, along which the batches are; or what `minibatches` returns. A last batch that
                is smaller is compiled for by itself, and its report must be like the others.
            kwargs: none.
        """
        if len(args) != 2 or kwargs:
            raise TypeError("a scan takes the state and the batches, by place")
        state, batches = args
        if isinstance(batches, Minibatches):
            return self._minibatches(state, *batches.stacked())
        return self._batches(state, batches)

    def _minibatches(self, state: object, whole: object, rest: object) -> tuple[object, object]:
        """What all steps make: those over batches of whole size, and then one over what is left."""
        reports: list[object] = []
        for batches in (whole, None if rest is None else tree.map(lambda leaf: leaf.unsqueeze(0), rest)):
            if batches is not None:
                state, report = cast("tuple[object, object]", self._batches(state, batches))
                reports.append(report)
        unlike = len({tuple([(leaf.dtype, leaf.shape[1:]) for leaf in tree.leaves(report)]) for report in reports}) > 1
        if unlike:
            raise ValueError(
                "the last batch is smaller than the others, and what the step reports of it has other shapes, so that the"
                " reports cannot be stacked: leave it out, minibatches(..., drop_last=True), or report means"
            )
        return state, tree.map(lambda *parts: torch.cat(parts), *reports)

    def _batches(self, state: object, batches: object) -> object:
        for call in self._calls:
            result = self._run(call, state, batches)
            if result is not MISS:
                return result
        return self._first_call(state, batches)

    def _run(self, call: "_Call", state: object, batches: object) -> object:
        try:
            return call(state, batches)
        except RuntimeError:
            self._one_by_one(state, batches, count_rows(batches))  # raises what says better what is wrong
            raise

    # --- What a call of a new kind does ---

    def _first_call(self, state: object, batches: object) -> object:
        """Find the loop for these arguments, or make it, and run it."""
        steps = count_rows(batches)
        if not torch_private.is_known(self._name):
            return self._one_by_one(state, batches, steps)
        before, data = flatten(state, "state"), flatten(batches, "batches")
        require_not_donated(before.leaves, before.paths)
        leaves = [*before.leaves, *data.leaves]
        if torch_private.is_watched() or not all(map(torch_private.is_plain, leaves)):
            return self._one_by_one(state, batches, steps)
        if any(map(torch_private.is_lazy, leaves)):
            in_memory = map(torch_private.resolved, leaves)
            return self._first_call(replace(state, in_memory), replace(batches, in_memory))
        kind = _kind(before, data)
        form = self._forms.find(kind, lambda: self._compile(kind, state, batches, before, data))
        if form is None:
            return self._one_by_one(state, batches, steps)
        if not all(leaf.is_contiguous() for leaf in leaves):
            close = iter([leaf.detach().contiguous() for leaf in leaves])
            state, batches = replace(state, close), replace(batches, close)
            before, data = flatten(state, "state"), flatten(batches, "batches")
        call = _quick_call(form, kind, (state, batches), before, data)
        self._calls = (call, *self._calls)[:MOST]
        result = self._run(call, state, batches)
        return self._one_by_one(state, batches, steps) if result is MISS else result

    def _compile(self, kind: Kind, state: object, batches: object, before: Flat, data: Flat) -> tuple[_Form, bool]:
        """Trace a step, and compile the loop over it; and whether that was on disk."""
        rows = [leaf.detach()[0].contiguous() for leaf in data.leaves]
        plan = Plan(tuple(map(like, before.leaves)), tuple(map(like, rows)), (), ())
        count = len(plan.groups)

        def step(stand_ins: Sequence[Tensor]) -> object:
            leaves = plan.leaves(stand_ins[:count])
            with no_grad():
                after, report = self._step(replace(state, iter(leaves)), replace(batches, iter(stand_ins[count:])))
                joined = plan.joined(_like_before(before, flatten(after, "state", constants=True)))
                return joined, _separate(report, [*stand_ins, *leaves])

        inputs = [*plan.joined([leaf.detach() for leaf in before.leaves]), *rows]
        traced = trace(step, inputs)
        joined, report = cast("tuple[list[Leaf], object]", traced.result)
        outputs = [leaf.index for leaf in cast("list[Leaf]", flatten(report, "report", constants=True).leaves)]
        graph, slots = traced.graph.with_slots(outputs)
        first = len(inputs) + len(traced.constants)
        writes = [(place, _source(leaf)) for place, leaf in enumerate(joined)]
        writes += [(first + number, ("output", output)) for number, output in enumerate(outputs)]
        plan = attrs.evolve(plan, constants=tuple(traced.constants), reports=tuple(map(like, slots)))
        examples = [*inputs, *traced.constants, *slots]
        run, library, cached = cache.compiled_loop(graph.write_back(writes, []), examples, plan)
        return _Form(run, library, kind, plan, report), cached

    def _one_by_one(self, state: object, batches: object, steps: int) -> tuple[object, object]:
        data, columns = flatten(batches, "batches"), list[list[Tensor]]()
        report: object = None
        for number in range(steps):
            state, report = self._step(state, replace(batches, iter([leaf[number] for leaf in data.leaves])))
            columns.append(flatten(report, "report", constants=True).leaves)
        stacked: Iterator[Tensor] = (torch.stack(column) for column in zip(*columns, strict=True))
        return state, replace(report, stacked)

    def _step(self, state: object, batch: object) -> tuple[object, object]:
        result = cast("Callable[..., object]", self.step)(state, batch)  # type: ignore[explicit-any]  # they are P's
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"a step returns a pair, the next state and a report, not {describe(result)}")
        state, report = result
        return state, report


_Call: TypeAlias = Callable[[object, object], object]


def _quick_call(form: _Form, kind: Kind, arguments: tuple[object, object], before: Flat, data: Flat) -> _Call:
    """What takes trees like these apart, runs the loop, and puts its results together; it returns MISS for other trees."""
    (state, batches), source = arguments, Source(form.kind.signature.counterparts(kind.signature))
    source.scope |= {"run": form.run, "like": torch.empty_like}
    write_ambient(source, form.kind.ambient, autocast=not (before.leaves or data.leaves))
    old, rows = source.read("state", state), source.read("batches", batches)
    write_guard(source, old, before.leaves)
    write_guard(source, rows, data.leaves, any_rows=True)
    source.add(f"steps = {rows[0]}.shape[0]")
    unlike = [f"{name}.shape[0] != steps" for name in rows[1:]]
    source.add(f"if {' or '.join(['not steps', *unlike])}: return MISS")
    new, reports = [source.variable() for _ in old], [source.variable() for _ in form.plan.reports]
    source.add(*(f"{name} = like({leaf})" for name, leaf in zip(new, old, strict=True)))
    write_empty(source, reports, form.plan.reports, rows="steps")
    lists = (f"[{', '.join(names)}]" for names in (old, rows, new, reports))
    source.add(f"run({', '.join(lists)}, steps)")
    leaves = itertools.count()
    after = replace(state, iter([Leaf("output", next(leaves)) for _ in old]))
    report = replace(form.report, iter([Leaf("output", next(leaves)) for _ in reports]))
    source.add(f"return {source.build((after, report), {'output': [*new, *reports]})}")
    return cast("_Call", source.compile("def call(state, batches)"))


def _like_before(before: Flat, after: Flat) -> list[Tensor]:
    """The leaves of the state after a step, if it is like the one before."""
    if after.signature != before.signature:
        raise TypeError(
            f"a step must return a state like the one that it is given: {explain(before.signature, after.signature, 'state')}"
        )
    for path, new, leaf in zip(after.paths, after.leaves, before.leaves, strict=True):
        if like(new) != like(leaf):
            raise TypeError(
                f"a step must return a state like the one that it is given: {path} is {describe(leaf)} before it, and"
                f" {describe(new)} after it"
            )
    return after.leaves


_Fields: TypeAlias = tuple[tuple[Like, ...], tuple[Like, ...], tuple[Tensor, ...], tuple[Like, ...]]


def _installed(entry: archive.Entry) -> _Form:
    """The form of a file's entry."""
    fields, report = cast("tuple[_Fields, object]", entry.form)
    plan = Plan(*fields)
    return _Form(cache.load_loop(entry.library, plan), entry.library, entry.kind, plan, report)


def _separate(report: object, inputs: Sequence[Tensor]) -> object:
    """The report with tensors that were computed: those that are handed through, or there twice, as copies."""
    seen = {id(tensor) for tensor in inputs}
    leaves: list[Tensor] = []
    for leaf in flatten(report, "report", constants=True).leaves:
        leaves.append(leaf.clone() if id(leaf) in seen or torch_private.is_plain(leaf) else leaf)
        seen.add(id(leaf))
    return replace(report, iter(leaves))


def _source(leaf: Leaf) -> torch_private.Source:
    if leaf.kind == "constant":
        raise TypeError("a step returned a tensor from outside as a part of its state: return a copy of it, tensor.clone()")
    return source_of(leaf)


def _kind(state: Flat, batches: Flat) -> Kind:
    """What a loop is compiled for: any number of batches; all is made contiguous."""
    signature = Signature((("state", state.signature), ("batches", batches.signature)), 2)
    leaves = [*state.leaves, *(leaf.detach()[0] for leaf in batches.leaves)]
    paths = [*state.paths, *(f"a batch of {path}" for path in batches.paths)]
    return Kind(
        signature, tuple([(leaf.dtype, tuple(leaf.shape), None, leaf.device) for leaf in leaves]), ambient(), tuple(paths)
    )


def scan(step: Callable[P, R], *, max_traces: int | None = None) -> Scanned[P, R]:
    """Many steps as one compiled call, without Python between them.

        state, reports = scan(step)(state, batches)

    computes what this does, up to rounding:

        reports = []
        for batch in batches:
            state, report = step(state, batch)
            reports.append(report)

    where batches, and the reports that are returned, are trees whose tensors have the steps along their first axis. The step
    is compiled once, whatever their number: a loop in C runs it, in place. What holds for the function that `jit` takes
    holds for the step.

    Args:
        step: from a state and a batch to the next state, a tree like it, and a report, any tree of tensors; such as
            `train_step` makes.
        max_traces: how often it may be compiled, at most; another kind of arguments is then an error that says what is new.

    Raises:
        TypeError: the step does not return a state like the one that it is given, and a report.
        ValueError: the batches' tensors have different numbers of rows, or none.
        TraceError, RetraceError: as of `jit`.

    An epoch of 50 batches of 8 examples; where the batches lie one behind the other, their tensors can be given as well:

        epoch = scan(train_step(cross_entropy, adamw(0.001)))
        state, reports = epoch(state, minibatches(key(0), (x, target), 8))
        print(reports.loss.mean())
    """
    return Scanned(step, max_traces)

"""Many steps as one compiled call: an epoch without Python between its steps."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Generic, ParamSpec, TypeAlias, TypeVar, cast, final, overload

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.generated import define
from fundl._common.modes import no_grad
from fundl._compiling import archive, cache, torch_private
from fundl._compiling.cache_keys import CacheKey, Signature, TensorSpec, spec_of
from fundl._compiling.call_text import MISS, MOST_CALLS, CallText, fill, lines, listed
from fundl._compiling.donation import require_not_donated
from fundl._compiling.graphs import Source
from fundl._compiling.loops import Loop, Plan
from fundl._compiling.savable import Savable
from fundl._compiling.torch_settings import torch_settings
from fundl._compiling.tracing import source_of, trace
from fundl._compiling.trees import Flat, Leaf, explain, flatten, replace
from fundl.data import Minibatches, count_rows
from fundl.tree import describe

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
B = TypeVar("B")
K = TypeVar("K")
Before = TypeVar("Before")


@attrs.frozen(eq=False)
class _Program:
    """A compiled loop.

    Args:
        run: the loop over the graph of a step.
        library: the folder that the graph's compiled form is in.
        key: of the arguments that it is for.
        plan: what the loop is over.
        report: what a step's report is made of: a `Leaf` for each tensor.
    """

    run: Loop
    library: Path
    key: CacheKey
    plan: Plan
    report: object


@final
class Scanned(Savable[_Program], Generic[P, R]):
    """Many steps as one; made by `scan`.

    Args:
        step: the step.
    """

    def __init__(self, step: Callable[P, R], max_traces: int | None) -> None:
        self._name = f"a scan of {getattr(step, '__qualname__', repr(step))}"
        super().__init__(step, self._name, max_traces)
        self.step: Callable[P, R] = step
        self.__wrapped__: Callable[P, R] = step
        self._calls: tuple[_Call, ...] = ()  # the latest first

    @override
    def __repr__(self) -> str:
        return f"<{self._name}, {self._programs}>"

    # --- Pickles and files ---

    @override
    def _arguments(self) -> tuple[object, ...]:
        return self.step, self._programs.most

    @override
    def _origin(self) -> archive.Origin:
        return archive.Origin(self.step, self._name, {"compiled by": "scan"})

    @override
    def _entries(self) -> list[archive.Entry]:
        return [
            archive.Entry(
                program.key,
                (attrs.astuple(program.plan, recurse=False), program.report),
                flatten(program.report, "", constants=True).signature,
                program.library,
            )
            for program in self._programs.all()
        ]

    @override
    def _installed(self, entry: archive.Entry) -> _Program:
        fields, report = cast("tuple[_Fields, object]", entry.form)
        plan = Plan(*fields)
        return _Program(cache.load_loop(entry.library, plan), entry.library, entry.key, plan, report)

    # --- Calls ---

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

    def _minibatches(self, state: object, full: object, rest: object) -> tuple[object, object]:
        """What all steps make: those over full batches, and then one over the rows that are left."""
        reports: list[object] = []
        for batches in (full, None if rest is None else tree.map(lambda leaf: leaf.unsqueeze(0), rest)):
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

    # --- A call that no function is written for yet ---

    def _first_call(self, state: object, batches: object) -> object:
        """Find the loop for these arguments, or make it; write the function for such calls, and call it."""
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
        key = _cache_key(before, data)
        program = self._programs.find(key, lambda: self._compile(key, state, batches, before, data))
        if program is None:
            return self._one_by_one(state, batches, steps)
        if not all(leaf.is_contiguous() for leaf in leaves):
            close = iter([leaf.detach().contiguous() for leaf in leaves])
            state, batches = replace(state, close), replace(batches, close)
            before, data = flatten(state, "state"), flatten(batches, "batches")
        call = _write_call(program, key, (state, batches), before, data)
        self._calls = (call, *self._calls)[:MOST_CALLS]
        result = self._run(call, state, batches)
        return self._one_by_one(state, batches, steps) if result is MISS else result

    def _compile(self, key: CacheKey, state: object, batches: object, before: Flat, data: Flat) -> tuple[_Program, bool]:
        """Trace a step, and compile the loop over it; and whether that was on disk."""
        rows = [leaf.detach()[0].contiguous() for leaf in data.leaves]
        plan = Plan(tuple(map(spec_of, before.leaves)), tuple(map(spec_of, rows)), (), ())
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
        plan = attrs.evolve(plan, constants=tuple(traced.constants), reports=tuple(map(spec_of, slots)))
        examples = [*inputs, *traced.constants, *slots]
        run, library, cached = cache.compiled_loop(graph.write_back(writes, []), examples, plan)
        return _Program(run, library, key, plan, report), cached

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


_Fields: TypeAlias = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], tuple[Tensor, ...], tuple[TensorSpec, ...]]
_Call: TypeAlias = Callable[[object, object], object]

_CALL: Final = """
def call(state, batches):
    if {settings_changed}: return MISS
    {take_apart}
    {require_like_tensors}
    steps = {first}.shape[0]
    if {steps_differ}: return MISS
    {allocate}
    run([{state}], [{batches}], [{new_state}], [{reports}], steps)
    {make_result}
    return {result}
"""


def _write_call(program: _Program, key: CacheKey, arguments: tuple[object, object], before: Flat, data: Flat) -> _Call:
    """The function that calls go through whose arguments have the structure of these; it returns MISS for others."""
    (state, batches), text = arguments, CallText(program.key.signature.counterparts(key.signature))
    text.scope |= {"run": program.run, "like": torch.empty_like}
    take_state, old = text.take_apart("state", state)
    take_batches, rows = text.take_apart("batches", batches)
    new, reports = text.variables(len(old)), text.variables(len(program.plan.reports))
    leaves = itertools.count()
    after = replace(state, iter([Leaf("output", next(leaves)) for _ in old]))
    report = replace(program.report, iter([Leaf("output", next(leaves)) for _ in reports]))
    make_result, result = text.put_together((after, report), {"output": [*new, *reports]})
    source = fill(
        _CALL,
        settings_changed=text.settings_changed(program.key.settings, autocast=not (before.leaves or data.leaves)),
        take_apart=lines(take_state, take_batches),
        require_like_tensors=lines(text.require_like(old, before.leaves), text.require_like(rows, data.leaves, any_rows=True)),
        first=rows[0],
        steps_differ=" or ".join(["not steps", *(f"{name}.shape[0] != steps" for name in rows[1:])]),
        allocate=lines(
            *(f"{name} = like({leaf})" for name, leaf in zip(new, old, strict=True)),
            text.allocate(reports, program.plan.reports, rows="steps"),
        ),
        state=listed(old),
        batches=listed(rows),
        new_state=listed(new),
        reports=listed(reports),
        make_result=make_result,
        result=result,
    )
    return cast("_Call", define(source, "call", text.scope))


def _like_before(before: Flat, after: Flat) -> list[Tensor]:
    """The leaves of the state after a step, if it is like the one before."""
    if after.signature != before.signature:
        raise TypeError(
            f"a step must return a state like the one that it is given: {explain(before.signature, after.signature, 'state')}"
        )
    for path, new, leaf in zip(after.paths, after.leaves, before.leaves, strict=True):
        if spec_of(new) != spec_of(leaf):
            raise TypeError(
                f"a step must return a state like the one that it is given: {path} is {describe(leaf)} before it, and"
                f" {describe(new)} after it"
            )
    return after.leaves


def _separate(report: object, inputs: Sequence[Tensor]) -> object:
    """The report with tensors that the graph computes: copies of those that it was given, or that are there twice."""
    seen = {id(tensor) for tensor in inputs}
    leaves: list[Tensor] = []
    for leaf in flatten(report, "report", constants=True).leaves:
        leaves.append(leaf.clone() if id(leaf) in seen or torch_private.is_plain(leaf) else leaf)
        seen.add(id(leaf))
    return replace(report, iter(leaves))


def _source(leaf: Leaf) -> Source:
    if leaf.kind == "constant":
        raise TypeError("a step returned a tensor from outside as a part of its state: return a copy of it, tensor.clone()")
    return source_of(leaf)


def _cache_key(state: Flat, batches: Flat) -> CacheKey:
    """The cache key of a loop, which is compiled for any number of batches, and contiguous tensors."""
    signature = Signature((("state", state.signature), ("batches", batches.signature)), 2)
    leaves = [*state.leaves, *(leaf.detach()[0] for leaf in batches.leaves)]
    paths = [*state.paths, *(f"a batch of {path}" for path in batches.paths)]
    return CacheKey(
        signature,
        tuple([(leaf.dtype, tuple(leaf.shape), None, leaf.device) for leaf in leaves]),
        torch_settings(),
        tuple(paths),
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

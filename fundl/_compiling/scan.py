"""Many steps as one compiled call: an epoch without Python between its steps."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Generic, ParamSpec, TypeVar, cast, final, overload

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.generated import define
from fundl._common.modes import no_grad
from fundl._common.suggestions import with_suggestions
from fundl._compiling import cache, torch_private
from fundl._compiling.cache_keys import CacheKey, spec_of
from fundl._compiling.call_text import CallText, fill, lines, listed
from fundl._compiling.calls import Arguments, Call
from fundl._compiling.compiled_function import CompiledFunction
from fundl._compiling.loops import Loop, Plan
from fundl._compiling.programs import Program
from fundl._compiling.tracing import trace
from fundl._compiling.trees import Flat, Leaf, explain, flatten, replace
from fundl.data import Minibatches, count_rows
from fundl.tree import describe

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
B = TypeVar("B")
K = TypeVar("K")
Before = TypeVar("Before")


@final
class Scanned(CompiledFunction[Plan, Loop], Generic[P, R]):
    """Many steps as one; made by `scan`.

    Args:
        step: the step.
    """

    def __init__(self, step: Callable[P, R], max_traces: int | None) -> None:
        super().__init__(step, f"a scan of {getattr(step, '__qualname__', repr(step))}", ["state", "batches"], max_traces)
        self.step: Callable[P, R] = step
        self.__wrapped__: Callable[P, R] = step

    @override
    def __repr__(self) -> str:
        return f"<{self._name}, {self._programs}>"

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
        return self._call((state, batches), {})

    def _minibatches(self, state: object, full: object, rest: object) -> tuple[object, object]:
        """What all steps make: those over full batches, and then one over the rows that are left."""
        reports: list[object] = []
        for batches in (full, None if rest is None else tree.map(lambda leaf: leaf.unsqueeze(0), rest)):
            if batches is not None:
                state, report = cast("tuple[object, object]", self._call((state, batches), {}))  # as a step gives
                reports.append(report)
        unlike = len({tuple([(leaf.dtype, leaf.shape[1:]) for leaf in tree.leaves(report)]) for report in reports}) > 1
        if unlike:
            raise ValueError(
                "the last batch is smaller than the others, and what the step reports of it has other shapes, so that the"
                " reports cannot be stacked: leave it out, minibatches(..., drop_last=True), or report means"
            )
        return state, tree.map(lambda *parts: torch.cat(parts), *reports)

    @override
    def _first_call(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        count_rows(args[1])  # says what is wrong with the batches
        return super()._first_call(args, kwargs)

    @override
    def _as_compiled_for(self, leaf: Tensor) -> Tensor:
        return super()._as_compiled_for(leaf if leaf.is_contiguous() else leaf.detach().contiguous())

    @override
    def _key(self, flat: Flat) -> CacheKey:
        """That of a batch: any number of them will do."""
        count = len([path for path in flat.paths if path.startswith("state")])
        rows, paths = [leaf.detach()[0] for leaf in flat.leaves[count:]], [f"a batch of {path}" for path in flat.paths[count:]]
        return super()._key(Flat(flat.signature, flat.leaves[:count] + rows, flat.paths[:count] + paths))

    @override
    def _compile(self, key: CacheKey, arguments: Arguments, flat: Flat) -> tuple[Plan, Loop, Path, bool]:
        """Compile the loop over the graph of a step."""
        (state, batches), _ = arguments
        before, data = flatten(state, "state"), flatten(batches, "batches")
        rows = [leaf.detach()[0] for leaf in data.leaves]
        plan = Plan(state=[*map(spec_of, before.leaves)], batch=[*map(spec_of, rows)])
        count = len(plan.groups)

        def step(stand_ins: Sequence[Tensor]) -> object:
            leaves = plan.leaves(stand_ins[:count])
            with no_grad():
                after, report = self._step(replace(state, iter(leaves)), replace(batches, iter(stand_ins[count:])))
                joined = plan.joined(_like_before(before, flatten(after, "state", constants=True)))
                return joined, _separate(report, [*stand_ins, *leaves])

        inputs = [*plan.joined([leaf.detach() for leaf in before.leaves]), *rows]
        traced = trace(step, inputs)
        joined, report = cast("tuple[list[Leaf], object]", traced.result)  # as `step` gives them
        if any(leaf.kind == "constant" for leaf in joined):
            raise TypeError("a step returned a tensor from outside as a part of its state: return a copy of it, tensor.clone()")
        computed = cast("list[Leaf]", flatten(report, "report", constants=True).leaves)  # in the place of tensors
        graph, slots = traced.graph.with_slots([leaf.index for leaf in computed])
        examples = [*inputs, *traced.constants, *slots]
        writes = [*enumerate(joined), *enumerate(computed, len(inputs) + len(traced.constants))]
        result = replace(report, iter([Leaf("output", number) for number in range(len(slots))]))
        together = bool(traced.graph.groups)
        reports = [*map(spec_of, slots)]
        plan = attrs.evolve(plan, constants=traced.constants, result=result, reports=reports, together=together)
        return plan, *cache.compiled_loop(graph.write_back(writes, []), examples, plan)

    @override
    def _loaded(self, key: CacheKey, interface: Plan, library: Path) -> Loop:
        return cache.load_loop(library, interface)

    @override
    def _write_call(self, arguments: Arguments, flat: Flat, key: CacheKey, program: Program[Plan, Loop]) -> Call:
        (state, batches), _ = arguments
        plan, text = program.interface, CallText(program.key.signature.counterparts(key.signature))
        text.scope |= {"run": program.run, "like": torch.empty_like}
        take_state, old = text.take_apart("state", state)
        take_batches, rows = text.take_apart("batches", batches)
        new, reports = text.variables(len(old)), text.variables(len(plan.reports))
        after = replace(state, iter([Leaf("input", number) for number in range(len(new))]))
        make_result, result = text.put_together((after, plan.result), {"input": new, "output": reports})
        source = fill(
            _CALL,
            settings_changed=text.settings_changed(key.settings, autocast=not flat.leaves),
            take_apart=lines(take_state, take_batches),
            require_like_tensors=lines(
                text.require_like(old, flat.leaves[: len(old)]), text.require_like(rows, flat.leaves[len(old) :], any_rows=True)
            ),
            first=rows[0],
            steps_differ=" or ".join(["not steps", *(f"{name}.shape[0] != steps" for name in rows[1:])]),
            allocate=lines(
                *(f"{name} = like({leaf})" for name, leaf in zip(new, old, strict=True)),
                text.allocate(reports, plan.reports, rows="steps"),
            ),
            state=listed(old),
            batches=listed(rows),
            new_state=listed(new),
            reports=listed(reports),
            make_result=make_result,
            result=result,
        )
        return cast("Call", define(source, "call", text.scope))

    # --- Step by step ---

    @override
    def _run_as_it_is(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        state, batches = args
        data, columns, report = flatten(batches, "batches"), list[list[Tensor]](), None
        for number in range(count_rows(batches)):
            state, report = self._step(state, replace(batches, iter([leaf[number] for leaf in data.leaves])))
            columns.append(flatten(report, "report", constants=True).leaves)
        stacked = (torch.stack(column) for column in zip(*columns, strict=True))
        return state, replace(report, stacked)

    def _step(self, state: object, batch: object) -> tuple[object, object]:
        result = self._function(state, batch)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"a step returns a pair, the next state and a report, not {describe(result)}")
        state, report = result
        return state, report


_CALL: Final = """
def call(args, kwargs):
    state, batches = args
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


@with_suggestions
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

"""Many steps as one compiled call: an epoch without Python between its steps."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, ParamSpec, TypeVar, cast, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl.data import count_rows
from fundl.donated import DonatedError, refusal
from fundl.jit import archive, cache, torch_private
from fundl.jit.ambient import ambient
from fundl.jit.donation import Donated
from fundl.jit.kinds import Forms, Kind, Signature, Trace, leaf_kind
from fundl.jit.tracing import trace
from fundl.jit.walk import Flat, Leaf, explain, flatten, replace
from fundl.kernels import no_grad
from fundl.tree import describe

P = ParamSpec("P")
R = TypeVar("R")


@attrs.frozen(eq=False)
class _Loop:
    """A compiled loop.

    Args:
        run: the loop over the graph of a step.
        library: the folder that the graph's compiled form is in.
        kind: of the arguments that it is for.
        cuts: which inputs of the graph are cut along their first axis.
        constants: inputs of the graph between the batch and the reports.
        report: what a step's report is made of: a `Leaf` for each tensor.
        slots: tensors like those of a report.
    """

    run: torch_private.Loop
    library: Path
    kind: Kind
    cuts: list[bool]
    constants: list[Tensor]
    report: object
    slots: list[Tensor]


@final
class Scanned(Generic[P, R]):
    """Many steps as one; made by `scan`.

    Args:
        step: the step.
    """

    def __init__(self, step: Callable[P, R], max_traces: int | None) -> None:
        self.step = self.__wrapped__ = step
        self._name = f"a scan of {getattr(step, '__qualname__', repr(step))}"
        self._forms = Forms[_Loop](self._name, max_traces)

    @property
    def traces(self) -> tuple[Trace, ...]:
        """What was compiled so far, in order."""
        return self._forms.traces

    @override
    def __repr__(self) -> str:
        return f"<{self._name}, {self._forms}>"

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
                loop.kind,
                (loop.cuts, loop.constants, loop.report, [(tuple(s.shape), s.dtype, s.device) for s in loop.slots]),
                flatten(loop.report, "", constants=True).signature,
                loop.library,
            )
            for loop in self._forms.there()
        ]
        on_cpu = [all(device.type == "cpu" for device in entry.devices) for entry in entries]
        archive.save(path, self._origin, entries, with_loop=any(on_cpu))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take over what was compiled in another process, from a file that `save` wrote: `traces` has it, as loaded.

        What is checked, and what is not, is what the function that `jit` returns says of its own `load`. Load only files that
        you trust: a file holds machine code, and pickled names of classes and functions.

        Args:
            path: of the file.

        Raises:
            FileNotFoundError, OSError, ValueError: as there.
        """
        for entry, loop, loaded in archive.load(path, self._origin, _installed):
            self._forms.add(entry.kind, loop, loaded)

    @property
    def _origin(self) -> archive.Origin:
        return archive.Origin(self.step, self._name, {"compiled by": "scan"})

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The state after all steps, and the reports of all steps, stacked along a new first axis.

        Args:
            args: the state before the first step, which stays as it is, and the batches: a tree like a batch, whose tensors
                have one more axis, the first, along which the batches are.
            kwargs: none.
        """
        if len(args) != 2 or kwargs:
            raise TypeError("a scan takes the state and the batches, by place")
        state, batches = args
        return cast("R", self._call(state, batches))  # of the types that a step's result is of

    def _call(self, state: object, batches: object) -> tuple[object, object]:
        steps = count_rows(batches)
        before, data = flatten(state, "state"), flatten(batches, "batches")
        for path, leaf in zip(before.paths, before.leaves, strict=True):
            if isinstance(leaf, Donated):
                raise DonatedError(f"{path}: {refusal('tensor')}")
        if torch_private.is_watched() or not all(map(torch_private.is_plain, (*before.leaves, *data.leaves))):
            return self._one_by_one(state, batches, steps)
        kind = _kind(before, data)
        loop = self._forms.find(kind, lambda: self._compile(kind, state, batches, before, data))
        if loop is None:
            return self._one_by_one(state, batches, steps)
        after = [leaf.clone(memory_format=torch.contiguous_format) for leaf in map(torch.Tensor.detach, before.leaves)]
        reports = [slot.new_empty((steps, *slot.shape)) for slot in loop.slots]
        try:
            loop.run([*after, *data.leaves, *loop.constants, *reports], steps)
        except RuntimeError:
            self._one_by_one(state, batches, steps)  # raises what says better what is wrong
            raise
        return replace(state, iter(after)), replace(loop.report, iter(reports))

    def _compile(self, kind: Kind, state: object, batches: object, before: Flat, data: Flat) -> tuple[_Loop, bool]:
        """Trace a step, and compile the loop over it; and whether that was on disk."""
        leaves = [*(leaf.detach().contiguous() for leaf in before.leaves), *(leaf.detach()[0] for leaf in data.leaves)]

        def step(stand_ins: Sequence[Tensor]) -> object:
            tensors = iter(stand_ins)
            with no_grad():
                after, report = self._step(replace(state, tensors), replace(batches, tensors))
                return after, _separate(report, stand_ins)

        traced = trace(step, leaves)
        after, report = cast("tuple[object, object]", traced.result)
        new, kept = flatten(after, "state"), flatten(report, "report", constants=True)
        if new.signature != before.signature:
            raise TypeError(
                f"a step must return a state like the one that it is given: {explain(before.signature, new.signature, 'state')}"
            )
        sources = [_source(leaf) for leaf in cast("list[Leaf]", new.leaves)]
        for path, source, leaf in zip(new.paths, sources, before.leaves, strict=True):
            if not traced.graph.is_like(source[0] == "output", source[1], leaf):
                raise TypeError(
                    f"a step must return a state like the one that it is given: {path} is {describe(leaf)} before it"
                )
        outputs = [leaf.index for leaf in cast("list[Leaf]", kept.leaves)]
        graph, slots = traced.graph.with_slots(outputs)
        first = len(leaves) + len(traced.constants)
        writes = [(place, source) for place, source in enumerate(sources) if source != ("input", place)]
        writes += [(first + number, ("output", output)) for number, output in enumerate(outputs)]
        numbers = (len(before.leaves), len(data.leaves), len(traced.constants), len(slots))
        cuts = [cut for cut, number in zip((False, True, False, True), numbers, strict=True) for _ in range(number)]
        inputs = [*leaves, *traced.constants, *slots]
        run, library, cached = cache.compiled_loop(graph.write_back(writes, []), inputs, cuts)
        return _Loop(run, library, kind, cuts, traced.constants, report, slots), cached

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


def _installed(entry: archive.Entry) -> _Loop:
    """The form of a file's entry."""
    form = cast("tuple[list[bool], list[Tensor], object, list[tuple[tuple[int, ...], torch.dtype, torch.device]]]", entry.form)
    cuts, constants, report, kinds = form
    slots = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype, device in kinds]
    run = cache.load_loop(entry.library, [*entry.devices, *(constant.device for constant in constants)], cuts)
    return _Loop(run, entry.library, entry.kind, cuts, constants, report, slots)


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
    return ("input", leaf.index) if leaf.kind == "input" else ("output", leaf.index)


def _kind(state: Flat, batches: Flat) -> Kind:
    """What a loop is compiled for: any number of batches; the state is made contiguous."""
    signature = Signature((("state", state.signature), ("batches", batches.signature)), 2)
    before = [(leaf.dtype, tuple(leaf.shape), None, leaf.device) for leaf in state.leaves]
    paths = [*state.paths, *(f"a batch of {path}" for path in batches.paths)]
    return Kind(signature, (*before, *(leaf_kind(leaf.detach()[0]) for leaf in batches.leaves)), ambient(), tuple(paths))


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

    An epoch of 50 batches of 8 examples:

        data = tree.map(lambda leaf: leaf[order].unflatten(0, (50, 8)), (x, target))
        state, reports = scan(train_step(cross_entropy, adamw(0.001)))(state, data)
        print(reports.loss.mean())
    """
    return Scanned(step, max_traces)

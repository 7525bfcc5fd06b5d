"""Loops that run a compiled graph many times, with the state in place: in C where possible, else in Python.

The graph gets the state as one tensor for each dtype, its leaves one behind the other: so it is copied by few calls.
"""

import ctypes
import itertools
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

import attrs
import torch
from torch import Tensor

from fundl._common.modes import inference_mode, no_grad
from fundl._compiling import inductor, replays
from fundl._compiling.cache_keys import TensorSpec, spec_of
from fundl._compiling.programs import Interface

Tensors: TypeAlias = Sequence[Tensor]


@attrs.frozen(eq=False, kw_only=True)
class Plan(Interface):
    """What a loop is over; its result is the report of one step."""

    state: Sequence[TensorSpec]  # its leaves
    batch: Sequence[TensorSpec]  # likewise of one batch
    reports: Sequence[TensorSpec] = ()  # the tensors of one step's report

    @property
    def devices(self) -> list[torch.device]:
        """Those of all tensors."""
        specs = [*self.state, *self.batch, *map(spec_of, self.constants), *self.reports]
        return [device for _, _, device in specs]

    @property
    def groups(self) -> list[tuple[torch.dtype, torch.device]]:
        """The dtypes and devices of the tensors that hold the state, in the order of the graph's inputs."""
        return [*dict.fromkeys((dtype, device) for dtype, _, device in self.state)]

    @property
    def sizes(self) -> list[int]:
        """How many numbers each of them has."""
        return [sum(self._numbers(group)) for group in self.groups]

    def _numbers(self, group: tuple[torch.dtype, torch.device]) -> list[int]:
        return [torch.Size(shape).numel() for dtype, shape, device in self.state if (dtype, device) == group]

    def joined(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """The tensors that hold some leaves."""
        pairs = [*zip(leaves, self.state, strict=True)]
        return [torch.cat([leaf.reshape(-1) for leaf, spec in pairs if spec[::2] == group]) for group in self.groups]

    def leaves(self, joined: Sequence[Tensor]) -> list[Tensor]:
        """The leaves, as parts of what holds them."""
        parts = {
            group: iter(tensor.split_with_sizes(self._numbers(group)))
            for group, tensor in zip(self.groups, joined, strict=True)
        }
        return [next(parts[dtype, device]).view(shape) for dtype, shape, device in self.state]


class Loop(Protocol):
    """Runs a graph so many times."""

    def __call__(self, before: Tensors, batches: Tensors, after: Tensors, reports: Tensors, steps: int) -> None:
        """Run it.

        Args:
            before: the leaves of the state; they stay as they are.
            batches: their tensors, with the steps along the first axis.
            after: tensors like the leaves, for those of the state after the last step.
            reports: tensors for those of the reports, with the steps along the first axis.
            steps: how many.

        All tensors are contiguous.
        """


def python_loop(run: inductor.Run, plan: Plan) -> Loop:
    """The loop in Python; on a GPU, of replays of one step."""
    first, last = len(plan.groups) + len(plan.batch), len(plan.constants)
    if not plan.together:
        fixed = [*range(len(plan.groups)), *range(first, first + last)]
        written = range(first + last, first + last + len(plan.reports))
        run = replays.replayed(run, plan.devices, fixed, written)
    if isinstance(run, replays.Replayed):
        return _loop_in_place(run, plan)

    def loop(before: Tensors, batches: Tensors, after: Tensors, reports: Tensors, steps: int) -> None:
        state = plan.joined(before)
        for number in range(steps):
            run([*state, *(x[number] for x in batches), *plan.constants, *(x[number] for x in reports)])
        for leaf, new in zip(after, plan.leaves(state), strict=True):
            leaf.copy_(new)

    return loop


def _loop_in_place(run: replays.Replayed, plan: Plan) -> Loop:
    """The loop with the state always at the same addresses."""
    kept: dict[Hashable, list[Tensor]] = {}  # by stream: what is on its way on one does not wait for another
    lock = threading.Lock()

    def loop(before: Tensors, batches: Tensors, after: Tensors, reports: Tensors, steps: int) -> None:
        with lock:
            with torch.inference_mode(False), no_grad():
                state, place = plan.joined(before), run.graphs.place()
            with inference_mode():  # where tensors may be written that were made in it, or not
                for own, new in zip(kept.setdefault(place, state), state, strict=True):
                    if own is not new:
                        own.copy_(new)
                state = kept[place]
                for number in range(steps):
                    run([*state, *(x[number] for x in batches), *plan.constants, *(x[number] for x in reports)])
                for leaf, new in zip(after, plan.leaves(state), strict=True):
                    leaf.copy_(new)

    return loop


# --- In C ---------------------------------------------------------------------------------------------------------------


class _Loop(ctypes.Structure):
    """`loop_t`, see library_entries.h."""

    _fields_ = (  # type: ignore[mutable-override]  # it is not changed
        *((name, ctypes.c_int64) for name in ("groups", "leaves", "inputs")),
        *((name, ctypes.POINTER(ctypes.c_int64)) for name in ("bytes", "leaf", "step")),
    )


def c_loop(file: Path, plan: Plan) -> Loop:
    """The loop over a graph in a library with an entry of fundl's own."""
    sizes = [size * dtype.itemsize for size, (dtype, _) in zip(plan.sizes, plan.groups, strict=True)]
    tables = sizes, [*_leaves(plan)], [*_steps(plan)]
    counts = len(sizes), len(plan.state), len(tables[2])
    c = _Loop(*counts, *((ctypes.c_int64 * len(table))(*table) for table in tables))
    in_c = ctypes.CDLL(str(file))
    in_c.fundl_reason.restype = ctypes.c_char_p
    run: Callable[..., int] = in_c.fundl_loop  # type: ignore[explicit-any]  # of what `loop` gives it
    pointers = ctypes.c_void_p * (2 * len(plan.state) + len(tables[2]) - len(sizes))
    constants = [tensor.data_ptr() for tensor in plan.constants]
    address = Tensor.data_ptr

    def loop(before: Tensors, batches: Tensors, after: Tensors, reports: Tensors, steps: int) -> None:
        first, last = map(address, itertools.chain(before, after, batches)), map(address, reports)
        if run(ctypes.byref(c), ctypes.c_int64(steps), pointers(*first, *constants, *last)):
            raise RuntimeError(in_c.fundl_reason().decode(errors="replace"))

    return loop


def _leaves(plan: Plan) -> Iterator[int]:
    """The `leaf_t` of each leaf of the state."""
    ends = dict.fromkeys(plan.groups, 0)
    for dtype, shape, device in plan.state:
        size = torch.Size(shape).numel() * dtype.itemsize
        yield from (plan.groups.index((dtype, device)), ends[dtype, device], size)
        ends[dtype, device] += size


def _steps(plan: Plan) -> Iterator[int]:
    """How many bytes it is from one step's input to the next one's, for each input of the graph, in their order."""

    def size(spec: TensorSpec) -> int:
        dtype, shape, _ = spec
        return torch.Size(shape).numel() * dtype.itemsize

    yield from (0 for _ in plan.groups)
    yield from map(size, plan.batch)
    yield from (0 for _ in plan.constants)
    yield from map(size, plan.reports)

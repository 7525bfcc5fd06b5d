"""Programs on a GPU as CUDA graphs: what a call launches is captured once, and then launched by one word.

A graph reads and writes at the addresses that it was captured with. A donated state stays where it is, and what else is given
and computed, batches and reports, is copied into buffers and out of them, which is little. Where that does not hold, or where
something cannot be captured, the program runs as it is: for another state, on another stream, while the user captures himself.
"""

import threading
import warnings
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Final, Protocol

import attrs
import torch
from torch import Tensor

from fundl._common.modes import inference_mode
from fundl._compiling.inductor import Run

_MOST_CAPTURES: Final = 4  # for states that come and go, none pays
_CALLS_BEFORE: Final = 2  # that warm up what is made at a first call: handles, workspaces, kernels that are loaded


class Graphs(Protocol):
    """What captures."""

    def place(self) -> Hashable | None:
        """The stream that the calling thread launches on; None if nothing may be captured now."""

    def captured(self, run: Callable[[], object]) -> Callable[[], object]:
        """What a function launches, which it does not do yet; that is done by what is returned."""


@attrs.frozen
class CudaGraphs:
    """Those of torch, on a device."""

    device: torch.device

    def place(self) -> Hashable | None:
        """See `Graphs`."""
        if torch.cuda.is_current_stream_capturing():
            return None
        return torch.cuda.current_stream(self.device).cuda_stream

    def captured(self, run: Callable[[], object]) -> Callable[[], object]:
        """See `Graphs`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            run()
        return graph.replay


@attrs.frozen(eq=False)
class _Captured:
    place: Hashable  # the stream that it is replayed on
    addresses: Sequence[int]  # of what stays where it is
    inputs: Sequence[Tensor]  # the graph's own
    replay: Callable[[], object]


@attrs.define(eq=False)
class Replayed:
    """A program that returns nothing, and whose calls are replayed where they can be.

    Args:
        run: the program.
        fixed: the places of the tensors, among those it is given, that stay where they are: the state, and constants.
        written: the places of those that it only writes.
        graphs: what captures.
    """

    run: Run
    fixed: Sequence[int]
    written: Collection[int]
    graphs: Graphs
    reason: str = ""  # why it is not captured any more
    captures: int = 0  # how many there were
    replays: int = 0  # likewise
    _captured: _Captured | None = None
    _seen: tuple[Hashable, list[int]] | None = None  # stream and addresses of the last call that ran as it is
    _calls: int = 0  # with these
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        """Run the program, or replay it."""
        if self.reason and self._captured is None:
            return self.run(tensors)
        with self._lock:
            place = self.graphs.place()
            if place is None:
                return self.run(tensors)
            addresses = [tensors[number].data_ptr() for number in self.fixed]
            if self._captured is not None and (self._captured.place, self._captured.addresses) == (place, addresses):
                return self._replay(self._captured, tensors)
            self._calls = self._calls + 1 if self._seen == (place, addresses) else 1
            self._seen = place, addresses
            if self._calls <= _CALLS_BEFORE or self.reason:
                return self.run(tensors)
            if (captured := self._capture(place, addresses, tensors)) is None:
                return self.run(tensors)
            return self._replay(captured, tensors)

    def _replay(self, captured: _Captured, tensors: Sequence[Tensor]) -> list[Tensor]:
        with inference_mode():  # where tensors may be written that were made in it, or not
            for own, given in self._copies(captured.inputs, tensors, written=False):
                own.copy_(given)
            captured.replay()
            for own, given in self._copies(captured.inputs, tensors, written=True):
                given.copy_(own)
        self.replays += 1
        return []

    def _copies(self, own: Sequence[Tensor], tensors: Sequence[Tensor], *, written: bool) -> list[tuple[Tensor, Tensor]]:
        fixed = {*self.fixed}
        numbers = [number for number in range(len(tensors)) if number not in fixed and (number in self.written) is written]
        return [(own[number], tensors[number]) for number in numbers]

    def _capture(self, place: Hashable, addresses: list[int], tensors: Sequence[Tensor]) -> _Captured | None:
        """A graph of a call; None if there cannot be one."""
        self._captured = None  # its memory is free for the next one
        if self.captures >= _MOST_CAPTURES:
            self.reason = f"{self.captures} states were given one after the other, each at other addresses"
            return None
        self.captures += 1
        fixed = {*self.fixed}
        with torch.inference_mode(False):
            try:
                inputs = [tensor.detach() if number in fixed else _like(tensor) for number, tensor in enumerate(tensors)]
                replay = self.graphs.captured(lambda: self.run([*inputs]))
            except Exception as error:  # of whatever kind: a kernel may do what no graph holds
                self.reason = f"a call cannot be captured ({(str(error) or type(error).__name__).splitlines()[0]})"
                warnings.warn(f"a compiled function runs without a CUDA graph: {self.reason}", RuntimeWarning, stacklevel=2)
                return None
        # What stays where it is is known by its address: a reference to it would be one that others have to the state.
        own = [inputs[0].new_empty(0) if number in fixed else tensor for number, tensor in enumerate(inputs)]
        self._captured = _Captured(place, addresses, own, replay)
        return self._captured


def _like(tensor: Tensor) -> Tensor:
    """Memory for such a tensor."""
    if any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)):
        raise ValueError("numbers of a tensor share their memory")
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def replayed(run: Run, devices: Sequence[torch.device], fixed: Sequence[int], written: Collection[int]) -> Run:
    """A program, replayed if all that it is given is on one GPU, and something stays where it is; see `Replayed`.

    Args:
        run: the program, which returns nothing.
        devices: of the tensors that it is given.
        fixed: the places of those that stay where they are.
        written: the places of those that it only writes.
    """
    if len({*devices}) != 1 or devices[0].type != "cuda" or not fixed:
        return run
    return Replayed(run, fixed, written, CudaGraphs(devices[0]))

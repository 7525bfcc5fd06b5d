"""A process of one side and one case of `benchmarks.on_device`, which measures when it is asked to.

    python -m benchmarks.device_worker PEER CASE DEVICE

It reads one request a line, and answers with one line of JSON:

    first STEPS     the losses of the first steps, and the seconds that they take with all that they compile
    time SECONDS    the seconds of a step, measured over as many as take about so long
    memory          the most bytes on the device at once, since the process began

What frameworks print goes to standard error.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence

import torch

from benchmarks.device_cases import CASES, Case
from benchmarks.peers.on_device import Step, with_fundl, with_torch

_FEW = 5  # steps that tell how long one takes


def prepare(peer: str, case: Case, device: str) -> Step:
    """A step of a side."""
    match peer:
        case "fundl" | "fundl-donating" | "fundl-jit":
            return with_fundl(case, device, donate=peer != "fundl", compiled=peer == "fundl-jit")
        case "torch.nn" | "torch.nn-autocast":
            return with_torch(case, device, mode=None, autocast=peer == "torch.nn-autocast")
        case "torch.compile":
            return with_torch(case, device, mode="default")
        case "torch.compile-graphs" | "torch.compile-whole":
            return with_torch(case, device, mode="reduce-overhead", whole=peer == "torch.compile-whole")
        case "jax":
            made: Step = importlib.import_module("benchmarks.peers.jax_on_device").prepare(case, device)
            return made
        case _:
            raise ValueError(f"there is no {peer}")


class Worker:
    """What answers the requests."""

    def __init__(self, peer: str, case: Case, device: str) -> None:
        self.peer, self.case, self.device = peer, case, device
        self.step: Step | None = None
        self.calls = 0  # of a round

    def answer(self, request: str, *arguments: str) -> Mapping[str, Sequence[float]]:
        """The answer to a request."""
        match request, arguments:
            case "first", (steps,):
                return self._first(int(steps))
            case "time", (seconds,):
                return {"seconds": [self._time(float(seconds))]}
            case "memory", ():
                return {"bytes": [self._peak()]}
            case _:
                raise ValueError(f"no such request: {request} {' '.join(arguments)}")

    def _first(self, steps: int) -> Mapping[str, Sequence[float]]:
        start = time.perf_counter()
        self.step = prepare(self.peer, self.case, self.device)
        losses = [float(self.step()) for _ in range(steps)]  # type: ignore[arg-type]  # a tensor or JAX's array: both go
        return {"losses": losses, "first": [time.perf_counter() - start]}

    def _time(self, seconds: float) -> float:
        if not self.calls:
            self._taken(_FEW)
            self.calls = max(1, round(seconds / self._taken(_FEW)))
        self._taken(1)  # another side has left its own in the caches, and the clock of the device low
        return self._taken(self.calls)

    def _taken(self, calls: int) -> float:
        """The seconds of a step."""
        assert self.step is not None
        loss: object = None
        start = time.perf_counter()
        for _ in range(calls):
            loss = self.step()
        if self.peer == "jax":
            importlib.import_module("benchmarks.peers.jax_on_device").wait(loss)
        elif self.device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / calls

    def _peak(self) -> float:
        if self.peer == "jax":
            found: float = importlib.import_module("benchmarks.peers.jax_on_device").peak()
            return found
        return float(torch.cuda.max_memory_allocated()) if self.device == "cuda" else float("nan")


def main(peer: str, case: str, device: str) -> None:
    """Answer requests from standard input until it ends."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        worker = Worker(peer, CASES[case], device)
        for line in sys.stdin:
            answers.write(json.dumps(worker.answer(*line.split())) + "\n")
            answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])

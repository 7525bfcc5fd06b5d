"""A process of one peer and one case, which measures when it is asked to.

    python -m benchmarks.worker PEER CASE

It reads one request a line, and answers with one line of JSON, which has numbers for each setting of the peer:

    first           how many seconds the first call takes, of the first setting alone, with all that it compiles
    losses CALLS    the losses of the first calls, one by one
    time SECONDS    the seconds and the processor's seconds of a call, measured over as many calls as take about so long
    memory          the bytes that a call takes at most, beyond what the process had before it
    long CALLS      the processor's seconds of each of so many calls, from the first parameters on; the first of them compiles

What frameworks print goes to standard error.
"""

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from benchmarks.cases import CASES, Case
from benchmarks.peers import PEERS, Peer, Run

_CALLS: Final = 5  # that a turn has at least, if a call is a step
_PATIENCE: Final = 10  # seconds, after which no long training begins again
_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")


class Worker:
    """What answers the requests."""

    def __init__(self, peer: Peer, case: Case) -> None:
        self.peer, self.case = peer, case
        self.runs: Mapping[str, Run] = {}
        self.seconds: dict[str, float] = {}  # of a call, to find out how many to measure

    def answer(self, request: str, *arguments: str) -> Mapping[str, Sequence[float]]:
        """The answer to a request."""
        match request, arguments:
            case "first", ():
                return self._first()
            case "losses", (calls,):
                return self._losses(int(calls))
            case "time", (seconds,):
                return {setting: self._time(setting, float(seconds)) for setting in self.runs}
            case "memory", ():
                return {setting: [_peak(run)] for setting, run in self.runs.items()}
            case "long", (calls,):
                return self._long(int(calls))
            case _:
                raise ValueError(f"no such request: {request} {' '.join(arguments)}")

    def _first(self) -> Mapping[str, Sequence[float]]:
        start = time.perf_counter()
        setting, run = next(iter(self.peer.prepare(self.case).items()))
        run(1)
        return {setting: [time.perf_counter() - start]}

    def _losses(self, calls: int) -> Mapping[str, Sequence[float]]:
        self.runs = self.peer.prepare(self.case)
        return {setting: [run(1) for _ in range(calls)] for setting, run in self.runs.items()}

    def _long(self, calls: int) -> Mapping[str, Sequence[float]]:
        """The least of three trainings for each call, of fewer where they take long."""
        start = time.perf_counter()
        least = {setting: _each(run, calls) for setting, run in self.peer.prepare(self.case).items()}
        for _ in range(2):
            if time.perf_counter() - start < _PATIENCE:
                for setting, run in self.peer.prepare(self.case).items():
                    least[setting] = [*map(min, least[setting], _each(run, calls))]
        return least

    def _time(self, setting: str, seconds: float) -> tuple[float, float]:
        run = self.runs[setting]
        if setting not in self.seconds:  # what is compiled late, and caches, are warm after some calls
            run(2)
            self.seconds[setting] = _timed(run, 3)[0]
        if not self.case.epoch:
            run(1)  # the turn of another peer has left its own in the caches
        calls = max(1 if self.case.epoch else _CALLS, round(seconds / self.seconds[setting]))
        wall, processor = _timed(run, calls)
        self.seconds[setting] = wall
        return wall, processor


def _each(run: Run, calls: int) -> list[float]:
    return [_timed(run, 1)[1] for _ in range(calls)]


def _timed(run: Run, calls: int) -> tuple[float, float]:
    start, processor = time.perf_counter(), time.process_time()
    run(calls)
    return (time.perf_counter() - start) / calls, (time.process_time() - processor) / calls


def _peak(run: Run) -> float:
    """What a call takes at most, as the kernel counts the pages of the process; NaN where it cannot be asked."""
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # so that what was freed is not there already
        before = _kibibytes("VmRSS")
        _CLEAR.write_text("5")  # the peak so far is forgotten
        run(1)
        return 1024 * (_kibibytes("VmHWM") - before)
    except (OSError, AttributeError):  # not Linux, or another C library
        return float("nan")


def _kibibytes(name: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return float(line.split()[1])


def main(
    peer: Annotated[str, typer.Argument(help="Who trains.")], case: Annotated[str, typer.Argument(help="What is trained.")]
) -> None:
    """Answer requests from standard input until it ends."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        worker = Worker(PEERS[peer], CASES[case])
        for line in sys.stdin:
            answers.write(json.dumps(worker.answer(*line.split())) + "\n")
            answers.flush()


if __name__ == "__main__":
    typer.run(main)

"""Two sides that take turns in one process, so that a change of the machine's speed meets both; and what machine it is."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final, TypeAlias

SECONDS: Final = 0.02
"""That one turn of a side takes, about."""

Side: TypeAlias = Callable[[], object]


def seconds(run: Side, calls: int = 1) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def in_turns(sides: Sequence[Side], rounds: int) -> list[tuple[float, ...]]:
    """The seconds of each side, round by round."""
    calls = [max(1, round(SECONDS / seconds(run, 3))) for run in sides]
    return [tuple(seconds(run, count) for run, count in zip(sides, calls, strict=True)) for _ in range(rounds)]


def compared(ours: Side, theirs: Side, rounds: int) -> tuple[float, float]:
    """The seconds of our side, and how many times as long theirs takes; medians over the turns."""
    turns = in_turns((ours, theirs), rounds)
    return statistics.median(mine for mine, _ in turns), statistics.median(other / mine for mine, other in turns)


def machine() -> str:
    """What all is measured with."""
    return f"torch {version('torch')}, Python {platform.python_version()}, {processor()}, {os.cpu_count()} cores"


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())

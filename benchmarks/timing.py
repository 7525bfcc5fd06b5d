"""What the benchmarks share: taking turns, and saying on what machine."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch

Step = Callable[[], object]


def machine() -> str:
    """On what the benchmark runs."""
    threads = torch.get_num_threads()
    return (
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores,"
        f" {threads} {'thread' if threads == 1 else 'threads'}"
    )


def medians(steps: Mapping[str, Step], *, rounds: int, calls: int = 1) -> dict[str, float]:
    """The median seconds of a call of each, over rounds in which they take turns.

    fundl's runs in inference mode, as in `fit`; autograd cannot.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 3):
        for name, step in steps.items():
            with torch.inference_mode(name == "fundl"):
                start = time.perf_counter()
                for _ in range(calls):
                    step()
            if round_ >= 3:  # the first rounds warm up
                times[name].append((time.perf_counter() - start) / calls)
    return {name: statistics.median(values) for name, values in times.items()}

"""How much ``import fundl`` adds to ``import torch``: fresh processes in turn, the difference of their medians.

python -m benchmarks.imports
"""

import statistics
import subprocess
import sys
from typing import Annotated

import typer

PROGRAM = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
IMPORTS = ("import torch", "import torch, fundl")


def seconds(statement: str) -> float:
    """The time that a statement takes in a new process, without the start of Python."""
    program = PROGRAM.format(statement)
    return float(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)


def main(rounds: Annotated[int, typer.Option(help="How often each side has its turn.")] = 7) -> None:
    """Print the seconds that both imports take, and their difference."""
    times: dict[str, list[float]] = {statement: [] for statement in IMPORTS}
    for _ in range(rounds):
        for statement in IMPORTS:
            times[statement].append(seconds(statement))
    medians = {statement: statistics.median(times[statement]) for statement in IMPORTS}
    for statement, median in medians.items():
        print(f"{statement:<22}{median:6.3f} s")
    print(f"{'fundl alone':<22}{medians[IMPORTS[1]] - medians[IMPORTS[0]]:6.3f} s")


if __name__ == "__main__":
    typer.run(main)

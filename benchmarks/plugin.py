"""What fundl_mypy adds to the time and the memory that mypy takes: a file of 1,000 models of ten layers, each written out.

All that the file imports is in the cache, with the plugin and without: it is the check of the file that is measured.

    python -m benchmarks.plugin
"""

import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

HEAD = "from fundl import ReLU, Tanh, compose, linear, residual\n\n"
MODEL = (
    "model_{n} = compose(linear({n}, 25), ReLU(), linear(25, 30), Tanh(), residual(linear(30, 30), ReLU()),"
    " linear(30, 20), (ReLU(), linear(20, 10)), Tanh(), linear(10, {n}))\n"
)


def run(folder: Path, *, plugin: bool) -> tuple[float, float]:
    """Seconds and MiB that mypy takes for the file, which has just changed."""
    (folder / "mypy.ini").write_text(f"[mypy]\nstrict = true\n{'plugins = fundl_mypy' if plugin else ''}\n")
    with (folder / "models.py").open("a") as file:
        file.write("\n")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "mypy", "--cache-dir", f"cache-{plugin}", "models.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Success"), done.stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime, after.ru_maxrss / 1024


def main(
    rounds: Annotated[int, typer.Option(help="How often each side has its turn.")] = 5,
    models: Annotated[int, typer.Option(help="How many models the file has.")] = 1000,
) -> None:
    """Print the seconds with the plugin and without, and their ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "models.py").write_text(HEAD + "".join(MODEL.format(n=n) for n in range(1, models + 1)))
        for plugin in (False, True):
            run(folder, plugin=plugin)
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(rounds):
            for plugin, seconds in times.items():
                seconds.append(run(folder, plugin=plugin)[0])
    without, with_plugin = statistics.median(times[False]), statistics.median(times[True])
    print(
        f"{models} models, without the plugin {without:.2f} s, with it {with_plugin:.2f} s: {with_plugin / without:.2f} times"
    )


if __name__ == "__main__":
    typer.run(main)

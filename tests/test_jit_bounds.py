"""Indices out of range in compiled code: the error of the function itself, on one thread and on several, and nothing worse."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from fundl import Embedding, cross_entropy, jit, key, nll, random, scan

torch.set_num_threads(int(sys.argv[1]))
ROWS = 5000
ALL = "tokens", "classes", "gathered", "indexed", "log classes", "selected", "masked", "scattered", "added"
names = ALL if sys.argv[2] == "all" else ALL[:4]
WRAPS = {"indexed", "masked", "selected", "added"}  # -1 is the last one; for two of them in compiled code alone: pytorch#185885
if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
    WRAPS |= {"tokens", "gathered", "scattered"}  # pytorch#183608


def function(inputs: dict[str, Tensor]) -> dict[str, object]:
    table, x = inputs["table"], inputs["x"]
    rows = torch.arange(ROWS)
    results: dict[str, Callable[[], object]] = {
        "tokens": lambda: Embedding(table).forward(inputs["tokens"])[0],
        "classes": lambda: cross_entropy(x, inputs["classes"]),
        "log classes": lambda: nll(torch.log_softmax(x, 1), inputs["log classes"]),
        "gathered": lambda: torch.gather(x, 1, inputs["gathered"].unsqueeze(1)),
        "selected": lambda: torch.index_select(x, 1, inputs["selected"][:3]),
        "indexed": lambda: x[rows, inputs["indexed"]],
        "masked": lambda: torch.where(x > 0, x[rows, inputs["masked"]].unsqueeze(1), x),
        "scattered": lambda: x.scatter(1, inputs["scattered"].unsqueeze(1), 1.0),
        "added": lambda: torch.zeros(7).index_add(0, inputs["added"], x[:, 0]),
    }

    return {name: results[name]() for name in names}


inputs = {name: random.randint(key(number), (ROWS,), low=0, high=7) for number, name in enumerate(ALL)}
inputs |= {"table": random.normal(key(20), (7, 40)), "x": random.normal(key(21), (ROWS, 7))}
compiled = jit(function)
calls = [lambda bad: compiled(bad)]
compiled(inputs)
if names is ALL:
    step = scan(lambda state, batch: (state + 1, function(batch | {"table": state})))
    calls.append(lambda bad: step(bad["table"], {name: torch.stack([bad[name]] * 2) for name in (*ALL, "x")}))
    calls[1](inputs)
    assert all(trace.compiled for trace in step.traces)
assert all(trace.compiled for trace in compiled.traces)
for name in names:
    for index in (7, 10**12, -(10**12)) if name in WRAPS else (-1, 7, 10**12, -(10**12)):
        place = 1 if name == "selected" else 3000
        bad = inputs | {name: inputs[name].index_fill(0, torch.tensor([place]), index)}
        for call in calls:
            try:
                call(bad)
            except (IndexError, ValueError, RuntimeError) as error:
                words = str(error)
                assert "compiled" not in words and "run_func" not in words, words
            else:
                raise AssertionError(f"{name} may be {index}")
print("all told")
"""


@pytest.mark.parametrize(
    ("threads", "which"),
    [(2, "some"), pytest.param(1, "all", marks=pytest.mark.slow), pytest.param(2, "all", marks=pytest.mark.slow)],
)
def test_an_index_out_of_range_is_an_error(threads: int, which: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    run = subprocess.run([sys.executable, str(program), str(threads), which], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "all told\n"), run.stderr
    assert set(run.stderr.splitlines()) == {"Error: an index is out of range"}  # and no stack of C++

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

from fundl import Embedding, cross_entropy, jit, key, nll, random, scan, vjp

torch.set_num_threads(int(sys.argv[1]))
ROWS = 5000
SOME = "tokens", "token gradients", "classes", "gathered", "selected", "added", "indexed"
ALL = *SOME, "log classes", "masked", "scattered", "summed", "largest", "copied", "filled", "put", "taken"
names = ALL if sys.argv[2] == "all" else SOME


def function(inputs: dict[str, Tensor]) -> dict[str, object]:
    table, x = inputs["table"], inputs["x"]
    rows = torch.arange(ROWS)
    results: dict[str, Callable[[Tensor], object]] = {
        "tokens": lambda index: Embedding(table).forward(index)[0],
        "token gradients": lambda index: vjp(Embedding(table, padding=2), index, x[:, :1].expand(-1, 40))[0].weight,
        "classes": lambda index: cross_entropy(x, index),
        "log classes": lambda index: nll(torch.log_softmax(x, 1), index),
        "gathered": lambda index: torch.gather(x, 1, index.unsqueeze(1)),
        "selected": lambda index: torch.index_select(x, 1, index[:3]),
        "added": lambda index: torch.zeros(7).index_add(0, index, x[:, 0]),
        "indexed": lambda index: x[rows, index],
        "masked": lambda index: torch.where(x > 0, x[rows, index].unsqueeze(1), x),
        "scattered": lambda index: x.scatter(1, index.unsqueeze(1), 1.0),
        "summed": lambda index: x.scatter_add(1, index.clamp(max=9).unsqueeze(1), x[:, :1]),  # of which inductor knows bounds
        "largest": lambda index: x.scatter_reduce(1, index.unsqueeze(1), x[:, :1], "amax"),
        "copied": lambda index: x.index_copy(1, index[:3], x[:, 3:6]),
        "filled": lambda index: x.index_fill(1, index[:3], 0.5),
        "put": lambda index: x.index_put((rows, index), x[:, 0], accumulate=True),
        "taken": lambda index: x[:1].take(index),
    }

    return {name: results[name](inputs[name]) for name in names}


inputs = {name: random.randint(key(number), (ROWS,), low=0, high=7) for number, name in enumerate(names)}
inputs |= {name: torch.tensor([3, 1, 6]).repeat(2) for name in ("selected", "copied", "filled") if name in names}
inputs |= {"table": random.normal(key(20), (7, 40)), "x": random.normal(key(21), (ROWS, 7))}
compiled = jit(function)
calls = [lambda bad: compiled(bad)]
compiled(inputs)
if names is ALL:
    step = scan(lambda state, batch: (state + 1, function(batch | {"table": state})))
    several = {name: torch.stack([inputs[name]] * 2) for name in (*ALL, "x")}
    calls.append(lambda bad: step(bad["table"], several | {name: torch.stack([bad[name]] * 2) for name in ALL})[1])
    calls[1](inputs)
    assert all(trace.compiled for trace in step.traces)
assert all(trace.compiled for trace in compiled.traces)


def outcome(call: Callable[[dict[str, Tensor]], object], bad: dict[str, Tensor]) -> object:
    # What a function returns, or the error that it raises.
    try:
        return call(bad)
    except (IndexError, ValueError, RuntimeError) as error:
        return error


for name in names:
    for index in (-1, 7, 10**12, -(10**12)):
        place = torch.tensor([min(3000, len(inputs[name]) - 5)])
        bad = inputs | {name: inputs[name].index_fill(0, place, index)}
        right = outcome(function, bad)
        for number, call in enumerate(calls):
            found = outcome(call, bad)
            assert type(found) is type(right), f"{name} may be {index}: {type(found)}, not {right!r}"
            if isinstance(right, Exception):
                assert number == 1 or str(found) == str(right), f"{name}, {index}: {found!r}, not {right!r}"
            elif number == 0:
                torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
        if index == -1:
            print(name, type(right).__name__)
"""
COUNT_FROM_THE_END = {"indexed", "masked", "filled", "put", "taken"}


@pytest.mark.parametrize(
    ("threads", "which"),
    [(2, "some"), pytest.param(1, "all", marks=pytest.mark.slow), pytest.param(2, "all", marks=pytest.mark.slow)],
)
def test_an_index_out_of_range_is_an_error(threads: int, which: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    run = subprocess.run([sys.executable, str(program), str(threads), which], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    outcomes = dict(line.rsplit(maxsplit=1) for line in run.stdout.splitlines())  # of -1
    assert outcomes
    assert {name for name, found in outcomes.items() if found == "dict"} == COUNT_FROM_THE_END & outcomes.keys()
    told = {line for line in run.stderr.splitlines() if "No CUDA runtime" not in line}  # which 2.11 tells of
    if which == "some":
        assert not told  # no stack of C++ either, which kernels that are called write

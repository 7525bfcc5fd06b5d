"""Compiled functions in several threads, and where Ctrl-C comes at a bad time."""

import linecache
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor

from fundl import jit, scan, tree
from fundl.tree import Record

TRACED_ALONE = """
import sys
from pathlib import Path

from fundl._compiling import cache, loops


def interpreted(graph, _examples):
    return lambda inputs: list(graph.module(*inputs)), Path("nowhere"), False


def loop(graph, _examples, plan):
    return loops.python_loop(lambda inputs: list(graph.module(*inputs)), plan), Path("nowhere"), False


if "compiled" not in sys.argv:
    cache.compiled, cache.compiled_loop = interpreted, loop
"""

FIRST_CALLS = """
import threading

import torch
from fundl import compose, initialize, jit, key, linear, lstm, mse, random, scan, sgd, train_state, train_step, tree, vjp

errors = []
start = threading.Barrier(8)


def call(number):
    model = initialize(key(number), lstm(3, number + 1) if number % 4 == 0 else linear(3, number + 1))
    x = random.normal(key(number), (4, 2, 3) if number % 4 == 0 else (4, 3))
    step, state = train_step(mse, sgd(0.1)), train_state(key(0), model, sgd(0.1))
    target = torch.zeros(*x.shape[:-1], number + 1)
    start.wait()
    try:
        if number % 2:
            after, report = scan(step)(state, (x[None], target[None]))
            report = tree.map(lambda leaf: leaf[0], report)
        else:
            after, report = jit(step)(state, (x, target))
        expected, expected_report = step(state, (x, target))
        for one, other in zip(tree.leaves((after, report)), tree.leaves((expected, expected_report)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    except BaseException as error:
        errors.append(f"{number}: {type(error).__name__}: {error}")


threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(errors)
"""

INTERRUPTED = """
import os
import signal
import sys
import threading
import time

import torch
from fundl import jit

signal.signal(signal.SIGINT, signal.default_int_handler)
compiled = jit(lambda x: x @ x + 1)
interrupted = 0
threading.Timer(float(sys.argv[1]), os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    compiled(torch.ones(2, 2))
    time.sleep(10)
except KeyboardInterrupt:
    interrupted = 1
assert torch.equal(compiled(torch.ones(2, 2)), torch.full((2, 2), 3.0))
assert torch.equal(jit(lambda x: x - 1)(torch.ones(2, 2)), torch.zeros(2, 2))
print(interrupted, compiled.traces[-1].compiled)
"""


def output_of(program: str, tmp_path: Path, *arguments: str) -> str:
    path = tmp_path / "program.py"
    path.write_text(TRACED_ALONE + program)
    run = subprocess.run([sys.executable, str(path), *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.parametrize("how", ["traced", pytest.param("compiled", marks=pytest.mark.slow)])
def test_first_calls_of_many_functions_may_come_at_once(how: str, tmp_path: Path) -> None:
    for _ in range(1 if how == "traced" else 2):  # then with everything on disk
        assert output_of(FIRST_CALLS, tmp_path, how) == "[]"


@pytest.mark.parametrize(
    ("seconds", "how"),
    [
        (0.3, "traced"),
        *(pytest.param(seconds, "traced", marks=pytest.mark.slow) for seconds in (0.05, 0.1, 0.6, 1, 2)),
        *(pytest.param(seconds, "compiled", marks=pytest.mark.slow) for seconds in (0.3, 2, 4, 6, 8)),
    ],
)
def test_an_interrupted_first_call_may_be_repeated(seconds: float, how: str, tmp_path: Path) -> None:
    assert output_of(INTERRUPTED, tmp_path, str(seconds), how) == "1 True"


@pytest.mark.usefixtures("interpreted", "interpreted_loop")
def test_compiled_functions_that_are_dropped_leave_nothing() -> None:
    from torch.fx import graph_module  # which takes a second

    def make() -> tuple[int, int]:
        jit(lambda x: x * 2)(torch.ones(2))
        scan(lambda state, x: (state + x, x))(torch.ones(2), torch.ones(3, 2))
        kept: dict[str, str] = graph_module._loader.eval_cache
        return len(kept), sum(name.startswith("<eval_with_key>") for name in linecache.cache)

    first = make()
    assert [make() for _ in range(3)] == [first] * 3


@attrs.frozen(eq=False)
class Run(Record):
    pair: tuple[Tensor, Tensor]
    total: Tensor


def advance(run: Run, x: Tensor) -> tuple[Run, Tensor]:
    (first, second), total = run.pair, run.total
    return Run((second + x, first), total + first.sum()), second


def new_run(number: int) -> Run:
    return Run((torch.full((3,), float(number)), torch.full((3,), number + 0.5)), torch.zeros(()))


@pytest.fixture
def often_switched() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("interpreted", "often_switched")
def test_threads_may_donate_states_of_their_own() -> None:
    compiled, x, errors = jit(advance, donate="run"), torch.ones(3), list[str]()
    start = threading.Barrier(8)

    def steps(number: int, take: Callable[[Run, Tensor], tuple[Run, Tensor]]) -> Run:
        run = new_run(number)
        for _ in range(200):
            run, _ = take(run, x)
        return run

    def call(number: int) -> None:
        start.wait()
        try:
            run, expected = steps(number, compiled), steps(number, advance)
        except Exception as error:
            errors.append(f"{number}: {type(error).__name__}: {error}")
        else:
            errors.extend([] if tree.equal(run, expected) else [f"{number} is wrong"])

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []

"""The same key gives the same bits: in any process, thread and mode, whatever was done before."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeAlias

import pytest
import torch
from torch import Tensor

from fundl import (
    Dropout,
    Linear,
    ReLU,
    adamw,
    compose,
    cosine_schedule,
    cross_entropy,
    disk,
    fit,
    initialize,
    jit,
    key,
    linear,
    minibatches,
    train_state,
    train_step,
    tree,
)

Trained: TypeAlias = tuple[Linear[int, int], ReLU, Dropout, Linear[int, int]]

DATA: Final = disk(key(0), 60)
OPTIMIZER: Final = adamw(cosine_schedule(0.02, 60))
STEP: Final = train_step(cross_entropy, OPTIMIZER)
COMPILED: Final = jit(STEP)


def model() -> Trained:
    return initialize(key(1), compose(linear(2, 16), ReLU(), Dropout(0.2), linear(16, 2)))


def trained(start: Trained, seed: int, *, compiled: bool) -> list[Tensor]:
    """The leaves of a state after five epochs."""
    state = train_state(key(seed), start, OPTIMIZER)
    if compiled:
        for number in range(15):
            rows = slice(20 * (number % 3), 20 * (number % 3) + 20)
            state, _ = COMPILED(state, (DATA[0][rows], DATA[1][rows]))
    else:
        state, _ = fit(STEP, state, lambda key: minibatches(key, DATA, 20), epochs=5, progress=False)
    return tree.leaves(state)


def digest(leaves: Sequence[Tensor]) -> str:
    return hashlib.sha256(
        b"".join(leaf.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for leaf in leaves)
    ).hexdigest()


@pytest.mark.parametrize("compiled", [False, True])
def test_threads_that_train_from_one_model_do_what_they_do_one_by_one(compiled: bool) -> None:
    start = model()
    before = digest(tree.leaves(start))
    expected = [digest(trained(start, seed, compiled=compiled)) for seed in range(8)]
    found: dict[int, str] = {}
    ready = threading.Barrier(8)

    def run(seed: int) -> None:
        ready.wait()
        found[seed] = digest(trained(start, seed, compiled=compiled))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(8)] == expected
    assert digest(tree.leaves(start)) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_that_was_forked_after_compiling() -> None:
    expected = digest(trained(model(), 3, compiled=True))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, digest(trained(model(), 3, compiled=True)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    assert answer == expected


PROGRAM: Final = """
import sys

sys.path.insert(0, {root!r})
import torch

torch.set_num_threads({threads})
{before}
from tests.test_same_bits import digest, model, trained

print(digest(trained(model(), 3, compiled=False)), digest(trained(model(), 3, compiled=True)))
"""

WORK: Final = """
torch.manual_seed(17)
torch.rand(1000)
import random
random.seed(5)
from fundl import key, random as numbers, split
numbers.normal(key(9), (100,)), split(key(3), 5)
"""


@pytest.mark.parametrize(
    ("before", "environment"),
    [
        ("", {}),
        ("torch.set_grad_enabled(False)", {}),
        (WORK, {}),
        ("", {"PYTHONHASHSEED": "12"}),
        ("", {"PYTHONOPTIMIZE": "2"}),
    ],
    ids=["another process", "grad mode off", "after other work", "another hash seed", "optimised"],
)
def test_other_processes(before: str, environment: dict[str, str]) -> None:
    root = str(Path(__file__).parent.parent)
    program = PROGRAM.format(root=root, threads=torch.get_num_threads(), before=before)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    assert done.stdout.split() == [digest(trained(model(), 3, compiled=compiled)) for compiled in (False, True)]


def test_modes_of_torch_change_nothing() -> None:
    expected = [digest(trained(model(), 3, compiled=compiled)) for compiled in (False, True)]
    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            assert [digest(trained(model(), 3, compiled=compiled)) for compiled in (False, True)] == expected

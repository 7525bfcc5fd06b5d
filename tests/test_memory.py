"""Whether freed memory is kept: it is where the C library can, and unless the user said otherwise."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from fundl import keep_freed_memory
kept = keep_freed_memory() if {keep} else None
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    torch.ones(10 * 2**20)  # 40 MiB, of which glibc lets go at once
for _ in range(3):
    step()
before = faults()
for _ in range(10):
    step()
print(kept, faults() - before)
"""


def run(*, keep: bool, **environment: str) -> tuple[str, int]:
    program = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    done = subprocess.run(program, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc that gives memory back")
def test_freed_memory_is_kept() -> None:
    kept, few = run(keep=True)
    _, many = run(keep=False)
    if kept == "False":
        pytest.skip("this C library is not glibc")
    assert few < many / 2


@pytest.mark.parametrize(
    "variable",
    [
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"MALLOC_MMAP_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"},
    ],
)
def test_the_users_choice_stays(variable: dict[str, str]) -> None:
    assert run(keep=True, **variable)[0] == "False"

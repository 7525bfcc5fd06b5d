"""A run of two processes of which one dies goes on, started again by torchrun, and ends with the same bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import Tensor

from fundl import load, tree
from fundl.distributed import Group
from tests import restarting
from tests.processes import together

ROOT = Path(__file__).parent.parent


def whole(group: Group, folder: str) -> list[Tensor]:
    return restarting.run(group, folder, 0)


def started(tmp_path: Path, kills: int) -> tuple[list[Tensor], list[Tensor]]:
    """The state of a run that was killed so often, and of one that was not."""
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--monitor-interval",
        "0.1",
    ]
    end = tmp_path / "end.safetensors"
    own = [str(ROOT / "tests" / "restarting.py"), str(tmp_path / "killed"), str(kills), str(end)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, "--max-restarts", str(kills), *own], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("exitcode: -9") >= kills
    expected = together(2, whole, str(tmp_path / "whole"))[0]
    return load(end, expected), expected


def test_a_killed_process(tmp_path: Path) -> None:
    assert tree.equal(*started(tmp_path, 1))


@pytest.mark.slow  # many starts
def test_ten_killed_processes(tmp_path: Path) -> None:
    assert tree.equal(*started(tmp_path, 10))

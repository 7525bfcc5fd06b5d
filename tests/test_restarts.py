"""A run of two processes of which one dies goes on, started again by torchrun, and ends with the same bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import Tensor

from fundl import load, load_metadata, tree
from fundl.distributed import Group
from tests import restarting
from tests.processes import together

ROOT = Path(__file__).parent.parent


def whole(group: Group, folder: str, how: str) -> tuple[list[Tensor], list[float]]:
    return restarting.run(group, folder, 0, how)


def require_the_same(tmp_path: Path, kills: int, how: str = "whole") -> None:
    """A run that is killed so often, in the middle of epochs, comes to the model and the history of one that is not."""
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
    own = [str(ROOT / "tests" / "restarting.py"), str(tmp_path / "killed"), str(kills), str(end), how]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, "--max-restarts", str(kills), *own], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("exitcode: -9") >= kills
    expected, losses = together(2, whole, str(tmp_path / "whole"), how)[0]
    assert tree.equal(load(end, expected), expected)
    assert load_metadata(end)["losses"] == repr(losses)


@pytest.mark.slow  # many starts
@pytest.mark.parametrize("how", ["whole", "sharded", "stages"])
def test_ten_killed_processes(tmp_path: Path, how: str) -> None:
    require_the_same(tmp_path, 10, how)

"""The example of many processes: two of them, started as its text says, print what one prints."""

import os
import re
import subprocess
import sys

import pytest

from tests.scripts import EXAMPLES, run

FEW = ["--epochs", "2", "--features", "8", "--depth", "2", "--heads", "2", "--length", "16", "--quiet", "--device", "cpu"]


def numbers_of(printed: str) -> list[float]:
    """What an example prints, whose lines must be these."""
    losses = r"train       loss (\d+\.\d{4}) nats .*\nvalidation  loss (\d+\.\d{4}) nats per character\n"
    found = re.fullmatch(rf"3,368 characters; [\d,]+ parameters; processes: (\d)\n{losses}", printed)
    assert found is not None, printed
    return [float(number) for number in found.groups()]


@pytest.mark.parametrize("options", [[], ["--sharded"]])
def test_two_processes_print_what_one_prints(options: list[str]) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(EXAMPLES / "distributed.py"), *FEW, *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = run("distributed", *FEW)
    assert alone.returncode == 0, alone.stderr
    (of_two, *losses), (of_one, *expected) = numbers_of(done.stdout), numbers_of(alone.stdout)
    assert (of_two, of_one) == (2, 1)
    assert all(abs(loss - one) < 1e-3 for loss, one in zip(losses, expected, strict=True))

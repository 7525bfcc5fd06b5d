"""The example in C++: it is compiled, trains without Python, and its losses and parameters are Python's."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import ROOT

EXAMPLE = ROOT / "examples" / "cpp"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++") or not shutil.which("make"), reason="there is no g++, or no make")
def test_it_trains_to_the_numbers_of_python(tmp_path: Path) -> None:
    def run(*command: str | Path) -> str:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run(sys.executable, EXAMPLE / "export.py", "write", tmp_path)
    run("make", "--directory", EXAMPLE, f"PYTHON={sys.executable}", f"FOLDER={tmp_path}")
    losses = run(tmp_path / "train", tmp_path, "400")
    (tmp_path / "losses").write_text(losses)
    told = run(sys.executable, EXAMPLE / "export.py", "compare", tmp_path)
    assert told.startswith("the largest difference to Python: of 400 losses ")
    assert float(losses.split()[-1]) < 0.5 * float(losses.split()[0])

    wrong = losses.replace(losses.split()[7], "9.5", 1)
    (tmp_path / "losses").write_text(wrong)
    command = [sys.executable, str(EXAMPLE / "export.py"), "compare", str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=False, env=environment).returncode == 1

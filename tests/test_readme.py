"""What the README shows is true: its Python runs, and type-checks."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from mypy import api

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's Python blocks, one after the other, as a program."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert blocks
    program = tmp_path_factory.mktemp("readme") / "tour.py"
    program.write_text("\n".join(blocks))
    return program


def test_the_tour_runs(tour: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", str(tour)], capture_output=True, text=True, cwd=tour.parent, check=False
    )
    assert result.returncode == 0, result.stderr


def test_the_tour_type_checks(tour: Path) -> None:
    out, err, code = api.run(["--config-file", str(ROOT / "pyproject.toml"), str(tour)])
    assert code == 0, out + err


def test_the_transcript_is_what_the_terminal_shows(tmp_path: Path) -> None:
    block = re.search(r"^```console\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert block
    _, program, mypy_says, python_says = re.split(r"^\$ .*\n", block[1], flags=re.MULTILINE)
    (tmp_path / "misfit.py").write_text(program)
    (tmp_path / "mypy.ini").write_text("[mypy]\nplugins = fundl_mypy\n")
    cache = ROOT / ".mypy_cache" / "readme"
    commands = (["-m", "mypy", "--cache-dir", str(cache), "misfit.py"], ["misfit.py"])
    checked, ran = (
        subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        for command in commands
    )
    assert checked.stdout == mypy_says
    assert ran.stderr.splitlines(keepends=True)[-1] == python_says

"""Programs that mypy must judge in a known way: what is right reveals the right type, what is wrong is an error.

Each file in tests/typing/ is such a program, or many small ones. A line that ends in ``# E: text`` must bring an error with
that text, one that ends in ``# R: type`` must reveal that type, and no other line may bring anything. Where the text is long,
it stands in a line of its own before the one that it is about.

The functions in misfits.py are programs that must fail, and those in fits.py must not: neither in mypy, nor when they run.
"""

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest
from mypy import api

from tests.typing import fits, misfits

ROOT: Final = Path(__file__).parent.parent
PROGRAMS: Final = sorted((ROOT / "tests" / "typing").glob("*.py"))
OLDEST: Final = ROOT / ".venv" / "oldest-mypy"
"""Where `make` puts the oldest mypy that fundl_mypy works with."""
OPTIONS: Final = ("--config-file", str(ROOT / "pyproject.toml"), "--no-error-summary", "--hide-error-context")

Finding = tuple[str, int, str]  # program, line, what mypy says


def expected(program: Path) -> Iterator[Finding]:
    for number, line in enumerate(program.read_text().splitlines(), start=1):
        about = number + 1 if line.lstrip().startswith("# ") else number
        for kind, text in re.findall(r"# ([ER]): (.*?)(?=  # [ER]: |$)", line):
            yield program.name, about, f"error: {text}" if kind == "E" else f'note: Revealed type is "{text}"'


def findings(said: str) -> list[Finding]:
    matches = [re.fullmatch(r".*?([^/]+\.py):(\d+): (.*)", line) for line in said.splitlines()]
    return [(match[1], int(match[2]), match[3]) for match in matches if match]


def differences(program: Path, found: list[Finding]) -> tuple[list[Finding], list[Finding]]:
    """What the program expects that was not found, and what was found that it does not expect."""
    want = list(expected(program))
    said = [finding for finding in found if finding[0] == program.name]
    unexpected = [finding for finding in said if not any(finding[:2] == other[:2] and other[2] in finding[2] for other in want)]
    missing = [other for other in want if not any(finding[:2] == other[:2] and other[2] in finding[2] for finding in said)]
    return missing, unexpected


@pytest.fixture(scope="module")
def found() -> list[Finding]:
    out, err, _ = api.run([*OPTIONS, *map(str, PROGRAMS)])
    assert not err
    return findings(out)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_mypy_says_what_the_program_expects(program: Path, found: list[Finding]) -> None:
    assert differences(program, found) == ([], [])


@pytest.mark.skipif(not OLDEST.exists(), reason="needs the oldest mypy, which `make test` installs")
def test_the_oldest_mypy_says_the_same_of_what_fits_and_what_does_not() -> None:
    programs = [Path(str(module.__file__)) for module in (misfits, fits)]
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(ROOT / ".mypy_cache" / "oldest"), *OPTIONS]
    environment = {**os.environ, "PYTHONPATH": str(OLDEST)}
    assert (
        "mypy 1.19.0"
        in subprocess.run([*command, "--version"], env=environment, capture_output=True, text=True, check=False).stdout
    )
    done = subprocess.run(
        [*command, *map(str, programs)], env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert not done.stderr
    for program in programs:
        assert differences(program, findings(done.stdout)) == ([], [])


@pytest.mark.slow
def test_trees_in_training_need_no_plugin(tmp_path: Path) -> None:
    config = tmp_path / "pyproject.toml"
    settings = (ROOT / "pyproject.toml").read_text().replace('plugins = ["fundl_mypy"]\n', "")
    config.write_text(settings.replace("$MYPY_CONFIG_FILE_DIR", str(ROOT)))
    program = ROOT / "tests" / "test_training_trees.py"
    options = ["--config-file", str(config), "--cache-dir", str(ROOT / ".mypy_cache" / "no_plugin")]
    assert api.run([*options, str(program)])[::2] == ("Success: no issues found in 1 source file\n", 0)


# --- What fits, and what does not --------------------------------------------------------------------------------------


def programs_in(module: ModuleType) -> list[Callable[[], None]]:
    """The functions of a module that take nothing and return nothing."""
    functions = [function for _, function in inspect.getmembers(module, inspect.isfunction)]
    nothing = inspect.signature(lambda: None).replace(return_annotation=None)
    return [
        function for function in functions if function.__module__ == module.__name__ and inspect.signature(function) == nothing
    ]


def test_there_are_many_programs(capsys: pytest.CaptureFixture[str]) -> None:
    wrong, right = len(programs_in(misfits)), len(programs_in(fits))
    with capsys.disabled():
        print(f"\n{wrong} programs whose layers do not fit, {right} whose layers fit")
    assert wrong >= 60
    assert right >= 60


@pytest.mark.parametrize("program", programs_in(misfits), ids=lambda program: program.__name__)
def test_what_does_not_fit_is_told_in_the_same_words_when_it_runs(program: Callable[[], None]) -> None:
    (sentence,) = re.findall(r"# E: (.*)", inspect.getsource(program))
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        program()
    assert str(caught.value) == sentence


@pytest.mark.parametrize("program", programs_in(fits), ids=lambda program: program.__name__)
def test_what_fits_runs(program: Callable[[], None]) -> None:
    program()

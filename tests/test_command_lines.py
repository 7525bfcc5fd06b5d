"""A mistake on a command line is answered by one line on stderr, and the exit status 2."""

import functools
import io
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Final

import pytest
import torch

import benchmarks.__main__ as measuring
from shared.options import start
from tests.bad_input.command_lines import OTHER_OPTIONS, ROWS
from tests.scripts import EXAMPLES, namespace_of

FEW: Final[Mapping[str, str]] = {
    "disk": "--train-count 20 --test-count 10 --hidden 4 --optimizer sgd --epochs 1 --quiet",
    "mnist": "--channels 4 --hidden 4 --epochs 1 --quiet",
    "shakespeare": "--features 8 --depth 1 --heads 2 --length 8 --steps 1 --count 1 --epochs 1 --quiet",
}
"""Options for runs that take no time."""


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Puts back the number of threads, which the examples set for their process."""
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What stands in the braces of the rows."""
    home = tmp_path_factory.mktemp("paths")
    (home / "folder").mkdir()
    (home / "file").write_text("hello")
    (home / "bytes").write_bytes(bytes(range(128, 256)))
    (home / "images").mkdir()
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (home / "images" / name).write_text("hello")
    return {name: str(home / name) for name in ("folder", "file", "bytes", "images", "missing")}


def outcome(program: str, options: list[str]) -> tuple[int, str, str]:
    """The exit status of a program that is run in this process, and what it printed on stdout and on stderr."""
    printed, said = io.StringIO(), io.StringIO()
    run: Callable[[list[str]], int] = measuring.start
    if program != "benchmarks":
        main = namespace_of(program)["main"]
        assert callable(main)
        run = functools.partial(start, main)
    with redirect_stdout(printed), redirect_stderr(said):
        status = run(options)
    return status, printed.getvalue(), said.getvalue()


@pytest.mark.parametrize(("program", "options", "sentence"), ROWS, ids=[f"{program} {options}" for program, options, _ in ROWS])
def test_a_mistake_on_a_command_line(paths: Mapping[str, str], program: str, options: str, sentence: str) -> None:
    names = {**paths, "seed": "/seed-0" if program == "disk" else ""}
    words = [word.format_map(names) for word in options.split(" ")] if options else []
    few = FEW.get(program, "").split() if words[:1] != ["--epochs"] else []
    status, printed, said = outcome(program, [*few, *words])
    assert (status, printed, said.count("\n")) == (2, "", 1)
    assert sentence.format_map(names) in said


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes the folder of checkpoints of a run of an example."""

    @functools.cache
    def folder_of(program: str) -> Path:
        folder = tmp_path_factory.mktemp(program)
        status, _, said = outcome(program, [*FEW[program].split(), "--checkpoints", str(folder)])
        assert (status, said) == (0, "")
        return folder

    return folder_of


@pytest.mark.parametrize(("program", "options", "sentence"), OTHER_OPTIONS)
def test_checkpoints_of_other_options(begun: Callable[[str], Path], program: str, options: str, sentence: str) -> None:
    status, printed, said = outcome(program, [*FEW[program].split(), "--checkpoints", str(begun(program)), *options.split()])
    assert (status, printed, said.count("\n")) == (2, "", 1)
    assert sentence in said


def test_checkpoints_of_nobody_knows_which_options(begun: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(begun("disk"), tmp_path / "disk")
    (folder / "seed-0" / "options.json").unlink()
    status, printed, said = outcome("disk", [*FEW["disk"].split(), "--checkpoints", str(folder), "--hidden", "3"])
    assert (status, printed, said.count("\n")) == (2, "", 1)
    assert "--checkpoints: what is there is no run with these options: give those it began with, or another folder" in said
    assert "at .model[0].weight, the file has float32[4, 2], and like has float32[3, 2]" in said


@pytest.mark.parametrize("program", FEW)
def test_a_plot_needs_matplotlib(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    status, printed, said = outcome(program, [*FEW[program].split(), "--plot", "run.png"])
    assert (status, printed, said.count("\n")) == (2, "", 1)
    assert '--plot: a plot needs matplotlib: pip install "fundl[plot]"' in said


@pytest.mark.parametrize("program", [*FEW, "reports", "benchmarks"])
def test_a_mistake_in_a_process_of_its_own(program: str) -> None:
    script = [str(EXAMPLES / f"{program}.py")] if program != "benchmarks" else ["-m", program]
    run = subprocess.run(
        [sys.executable, *script, "--nonsense"], capture_output=True, text=True, check=False, cwd=EXAMPLES.parent
    )
    name = f"{program}.py" if program != "benchmarks" else "python -m benchmarks"
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert run.stderr.startswith(f"{name}: No such option: --nonsense")

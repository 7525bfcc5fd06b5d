"""Results of benchmarks are kept by commit, and drawn over time."""

import json
import math
import subprocess
from pathlib import Path

import attrs
import pytest

from benchmarks import history
from benchmarks.history import RESULTS
from benchmarks.session import Failed, Measured, Outcome

OUTCOMES: list[Outcome] = [
    Measured("mlp", "fundl-jit", "", (1.0, 1.0, 1.0)),
    Measured("mlp", "torch-eager", "", (3.0, 3.0, 6.0)),
    Measured("mlp", "torch-eager", "fused", (2.0, 2.0, 3.0), processors=1.5),
    Measured("rows-1000", "fundl-eager", "", (2.0,)),
    Measured("rows-1000", "torch-eager", "", (1.0,)),
    Failed("mlp", "jax", "it is not there"),
]


@pytest.fixture
def at_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "commit", lambda: "abcdef012345+")


@pytest.mark.usefixtures("at_a_commit")
def test_what_is_kept_is_read(tmp_path: Path) -> None:
    path = history.keep(OUTCOMES, 0.5, tmp_path)
    assert path.name.startswith(f"{json.loads(path.read_text())['date']}-abcdef012345+-")
    (result,) = history.results(tmp_path)
    assert (result.load, result.seconds["mlp"]) == (0.5, {"fundl-jit": 1.0, "torch-eager": 2.0})
    assert {"torch", "jax"} <= {*result.versions}
    first, last = result.ratios
    assert (first.name, first.base, first.median, first.processors) == ("mlp", "fundl-jit", 2.0, 1.5)
    assert math.isnan(last.processors)


@pytest.mark.usefixtures("at_a_commit")
def test_results_are_drawn_over_time(tmp_path: Path) -> None:
    history.keep(OUTCOMES, 0.5, tmp_path)
    (first,) = history.results(tmp_path)
    slower = [attrs.evolve(row, median=2 * row.median) for row in first.ratios if row.name == "mlp"]
    others = [attrs.evolve(first, commit="0123456789ab", ratios=slower), attrs.evolve(first, processor="another")]
    history.draw([first, *others], tmp_path / "out")
    lines = (tmp_path / "out" / "history.md").read_text().splitlines()
    assert lines[-2:] == [
        "| mlp | fundl, jit and scan | torch.nn, eager | 2.00 | 4.00 | 2.00 |",
        "| rows-1000 | fundl, eager | torch.nn, eager | 0.50 | - | 0.50 |",
    ]
    assert (tmp_path / "out" / "history.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_that_is_no_result_is_told(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"ratios": 3}')
    with pytest.raises(ValueError, match=r"other.json is no result that `python -m benchmarks --keep` wrote"):
        history.results(tmp_path)


def test_without_git_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_words: object, **_options: object) -> None:
        raise subprocess.CalledProcessError(128, "git")

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(RuntimeError, match=r"results are kept by commit, but .* is no repository of git"):
        history.keep(OUTCOMES, 0.5, tmp_path)
    assert not [*tmp_path.iterdir()]


def test_the_name_of_a_processor_is_short() -> None:
    assert history._slug("AMD EPYC 9R14 96-Core Processor") == "EPYC-9R14"
    assert history._slug("Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz") == "Xeon-Platinum-8488C"
    assert history._slug("") == "unknown"


def test_the_results_that_are_here_can_be_read() -> None:
    assert all(result.ratios for result in history.results(RESULTS))

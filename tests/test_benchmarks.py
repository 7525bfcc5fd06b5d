import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import session
from benchmarks.__main__ import _chosen
from benchmarks.cases import CASES
from benchmarks.peers import PEERS, fundl_eager, torch_eager
from benchmarks.report import disagreements, ratios, write
from benchmarks.session import Failed, Losses, Measured, Outcome, compiling, training
from benchmarks.worker import Worker

NAMES = ("disk-sgd-1", "disk-adam-10", "epoch-sgd-100", "mlp", "convolutional", "lstm", "transformer")


@pytest.mark.parametrize("name", NAMES)
def test_fundl_and_torch_compute_the_same(name: str) -> None:
    runs = [fundl_eager.prepare(CASES[name])[""], torch_eager.prepare(CASES[name])["fused"]]
    ours, theirs = ([run(1) for _ in range(3)] for run in runs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert ours[0] != ours[1] != ours[2]


def test_all_optimizers_compute_the_same() -> None:
    for name in ("optimizer-momentum", "optimizer-adam"):
        settings = torch_eager.prepare(CASES[name])
        run = fundl_eager.prepare(CASES[name])[""]
        ours = [run(1) for _ in range(3)]
        for other in settings.values():
            np.testing.assert_allclose(ours, [other(1) for _ in range(3)], rtol=1e-4)


def test_a_worker_answers() -> None:
    worker = Worker(PEERS["torch-eager"], CASES["disk-sgd-1"])
    losses = worker.answer("losses", "2")
    assert {*losses} == {"plain", "foreach", "fused"}
    assert losses["plain"] == pytest.approx(losses["fused"])
    for wall, processor in worker.answer("time", "0.001").values():
        assert 0 < wall < 1
        assert 0 <= processor < 1
    assert all(not peak[0] < 0 for peak in worker.answer("memory").values())
    (first,) = worker.answer("first").values()
    assert first[0] > 0
    with pytest.raises(ValueError, match="no such request: dance"):
        worker.answer("dance")


# --- The report ---


OUTCOMES: list[Outcome] = [
    Measured("disk-sgd-1", "fundl-jit", "", (1.0, 2.0, 4.0), 1.0),
    Measured("disk-sgd-1", "fundl-eager", "", (2.0, 4.0, 8.0), 1.0),
    Measured("disk-sgd-1", "torch-eager", "fused", (2.0, 8.0, 40.0), 1.0),
    Measured("mlp", "torch-eager", "fused", (1.0, 1.0, 1.0), 2.0),  # without fundl's: no ratio
    Failed("disk-sgd-1", "tinygrad", "no compiler"),
]


def test_ratios_are_of_times_of_one_round() -> None:
    found = {(ratio.base, ratio.peer): (ratio.lower, ratio.median, ratio.upper) for ratio in ratios(OUTCOMES)}
    assert found == {
        ("fundl-jit", "fundl-eager"): (2.0, 2.0, 2.0),
        ("fundl-jit", "torch-eager"): (3.0, 4.0, 7.0),
        ("fundl-eager", "torch-eager"): (1.5, 2.0, 3.5),
    }


def test_losses_that_disagree_are_told() -> None:
    usual = [Losses(peer, "", (0.5, 0.25)) for peer in ("fundl-jit", "jax")]
    assert disagreements({"mlp": usual}) == []
    (told,) = disagreements({"mlp": [*usual, Losses("thinc", "", (0.5, 0.26))]})
    assert told == "mlp: the losses of thinc are (0.5, 0.26), those of most (0.5, 0.25)"


def test_a_report_has_a_table_rows_and_a_picture(tmp_path: Path) -> None:
    write(tmp_path, OUTCOMES, {"disk-sgd-1": [Losses("jax", "", (0.5, 0.25))]})
    text = (tmp_path / "benchmarks.md").read_text()
    assert "| disk-sgd-1 | 2.00 (2.00 to 2.00) | 4.00 (3.00 to 7.00) |" in text
    assert "- disk-sgd-1, tinygrad, TinyJit: no compiler" in text
    lines = (tmp_path / "benchmarks.csv").read_text().splitlines()
    rows = [*csv.DictReader(line for line in lines if not line.startswith("#"))]
    assert [row["median"] for row in rows] == ["2.0", "4.0", "2.0"]
    assert (tmp_path / "benchmarks.png").read_bytes().startswith(b"\x89PNG")


def test_names_are_chosen_by_how_they_begin() -> None:
    assert _chosen("case", ["epoch-sgd", "mlp"], [*CASES]) == ["epoch-sgd-1", "epoch-sgd-10", "epoch-sgd-100", "mlp"]
    assert _chosen("case", None, [*CASES]) == [*CASES]
    with pytest.raises(Exception, match="there is no case mnist, but disk-sgd-1, "):
        _chosen("case", ["mnist"], [*CASES])


@pytest.mark.slow
def test_the_program_measures(tmp_path: Path) -> None:
    options = ["--case", "disk-sgd-10", "--peer", "fundl-eager", "--peer", "torch-eager", "--quick", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "benchmarks", *options], check=True, capture_output=True, text=True)
    assert "| disk-sgd-10 |" in done.stdout
    assert "The first losses of all peers agree" in done.stdout


@pytest.mark.slow
def test_a_peer_that_is_not_there_is_told() -> None:
    options = ["--case", "disk-sgd-10", "--peer", "fundl-eager", "--peer", "torch-compile", "--check"]
    without = {**os.environ, "CXX": "no-compiler"}
    command = [sys.executable, "-m", "benchmarks", *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=without)
    assert "disk-sgd-10, torch.nn, torch.compile: " in done.stdout


def test_a_peer_that_is_not_ready_in_time_is_left_out() -> None:
    outcomes, losses = training(CASES["disk-sgd-1"], ["torch-eager"], rounds=1, seconds=0.01, patience=0.01)
    assert losses == []
    assert outcomes == [Failed("disk-sgd-1", "torch-eager", "it was not ready in time")]


def test_what_does_not_compile_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_MODULE", "benchmarks.missing")
    (told,) = compiling(CASES["disk-sgd-1"], ["tinygrad", "thinc"], rounds=2)
    assert isinstance(told, Failed)
    assert "No module named" in told.reason

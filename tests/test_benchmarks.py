import csv
import os
import subprocess
import sys
from pathlib import Path

import attrs
import numpy as np
import pytest

from benchmarks import pairs, session
from benchmarks.__main__ import _chosen
from benchmarks.cases import CASES
from benchmarks.peers import PEERS, fundl_eager, torch_eager
from benchmarks.peers.fundl_networks import batches, model_of
from benchmarks.report import disagreements, growths, ratios, slowings, write
from benchmarks.session import Failed, Losses, Measured, Outcome, compiling, long_training, training
from benchmarks.worker import Worker
from fundl import adam, apply, key, mse, train_state, train_step

NAMES = (
    "disk-sgd-1",
    "disk-adam-10",
    "epoch-sgd-100",
    "dying-adam-1",
    "mlp",
    "convolutional",
    "lstm",
    "transformer",
    "deep-4",
    "blocks-2",
)


@pytest.mark.parametrize("name", NAMES)
def test_fundl_and_torch_compute_the_same(name: str) -> None:
    runs = [fundl_eager.prepare(CASES[name])[""], torch_eager.prepare(CASES[name])["fused"]]
    ours, theirs = ([run(1) for _ in range(3)] for run in runs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert ours[0] != ours[1] != ours[2]


@pytest.mark.parametrize("name", ["deep-repeat-4", "blocks-repeat-2"])
def test_blocks_that_are_stacked_compute_the_same(name: str) -> None:
    runs = [fundl_eager.prepare(CASES[each])[""] for each in (name, name.replace("-repeat", ""))]
    stacked, unrolled = ([run(1) for _ in range(3)] for run in runs)
    np.testing.assert_allclose(stacked, unrolled, rtol=1e-4)


def test_half_of_the_hidden_units_die() -> None:
    case = CASES["dying-adam-1"]
    state = train_state(key(0), model_of(case), adam(case.rate))
    step, (xs, targets) = train_step(mse, adam(case.rate)), batches(case)
    for _ in range(3):
        for batch in zip(xs, targets, strict=True):
            state, _ = step(state, batch)
    x, alive = xs[:, 0], []
    for layer in state.model if isinstance(state.model, tuple) else ():
        x = apply(layer, x)
        alive.append(int((x.amax(0) > 0).sum()))
    assert all(0 < count <= 13 for count in alive[1:-1:2]), alive


def test_rows_are_all_seen() -> None:
    case = attrs.evolve(CASES["rows-100000"], points=2500)
    assert [peer.prepare(case).popitem()[1](2) for peer in (fundl_eager, torch_eager)] == [2500, 2500]


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
    assert all(len(seconds) == 7 for seconds in worker.answer("long", "7").values())
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


def test_growth_is_told_for_each_layer() -> None:
    sizes = {4: (8.0, 4.0, 9.0), 32: (32.0, 33.0, 50.0), 128: (256.0,)}
    outcomes = [Measured(f"compile-cold-deep-{size}", "jax", "", values, grows=size) for size, values in sizes.items()]
    assert growths([*outcomes, *OUTCOMES]) == ["| compile-cold-deep | JAX, equinox, optax | 4: 1, 32: 1, 128: 2 |"]
    assert growths(outcomes[:1]) == []


def test_what_a_long_training_comes_to_is_told_for_each_setting() -> None:
    times = {"first": (4.0, 2.0), "last": (3.0, 5.0)}
    outcomes = [Measured(f"{name}-dying-adam-1", "fundl-jit", "scan", values) for name, values in times.items()]
    assert slowings([*outcomes, *OUTCOMES]) == ["| dying-adam-1 | fundl, jit and scan scan | 1.50 |"]


def test_of_several_settings_the_quickest_counts() -> None:
    quicker = Measured("disk-sgd-1", "torch-eager", "foreach", (1.0, 2.0, 4.0))
    for outcomes in ([*OUTCOMES, quicker], [quicker, *OUTCOMES]):
        assert [ratio.median for ratio in ratios(outcomes) if ratio.peer == "torch-eager"] == [1.0, 0.5]


def test_pairs_take_turns_in_one_process() -> None:
    found = pairs.pairs()
    mine, other = pairs.measured("normal-100", found["normal-100"](), 2)
    assert (mine.peer, other.peer, len(mine.values)) == ("fundl-eager", "torch-eager", 2)
    (alone,) = pairs.measured("count-4", found["count-4"](), 2)
    assert (alone.peer, alone.grows) == ("fundl-eager", 4)


def test_what_is_long_goes_on_where_a_peer_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_MODULE", "benchmarks.missing")
    (told,) = long_training(CASES["dying-adam-1"], ["fundl-eager"], calls=7)
    assert isinstance(told, Failed)
    assert told.name == "last-dying-adam-1"


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

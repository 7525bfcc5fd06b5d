"""The five reports are repeated: every set-up trains, fundl and torch.nn stay together, and the results are written."""

import csv
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import torch
import typer
from matplotlib import image
from rich.console import Console
from typer.testing import CliRunner

import fundl
import reports
from five_reports import runs, tables, timing
from five_reports.at_once import AtOnce, train_at_once
from five_reports.catalogue import EXPERIMENTS, HUMNE, KIM, KONG
from five_reports.engine import (
    Learned,
    Run,
    accuracy_of,
    distance,
    epochs_of,
    is_inside,
    run_both,
    start_of,
    targets_of,
    torch_network,
)
from five_reports.setups import Labels, Setup
from fundl import tree

EXAMPLES = Path(__file__).parent.parent / "examples"

SETUPS = [
    pytest.param(setup, id=f"{experiment.name}-{setup.name}")
    for experiment in EXPERIMENTS.values()
    for setup in experiment.setups
]
EXACT = [  # dropout is drawn differently
    pytest.param(setup, id=f"{experiment.name}-{setup.name}")
    for experiment in EXPERIMENTS.values()
    for setup in experiment.setups
    if not setup.is_noisy
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the example computes; and puts back the number of threads."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """The example in a process of its own."""
    command = [sys.executable, str(EXAMPLES / "reports.py"), *options]
    wide = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=wide)


# --- The engine -------------------------------------------------------------------------------------------------------


def test_the_five_reports_are_there() -> None:
    assert list(EXPERIMENTS) == ["humne2020", "kong2020", "borba2021", "kim2021", "cappelletti2019"]
    for experiment in EXPERIMENTS.values():
        names = [setup.name for setup in experiment.setups]
        assert len(set(names)) == len(names)
        assert experiment.choices
        assert any(setup.to_reach is not None for setup in experiment.setups)


@pytest.mark.parametrize("setup", EXACT)
def test_fundl_and_torch_nn_stay_together(setup: Setup) -> None:
    assert distance(setup, seed=0, steps=200) < 1e-9


def test_the_distance_is_seen() -> None:
    """The comparison would not pass if the two were not the same."""
    setup = KONG.setups[0]
    start = start_of(0, 0, torch.float64)
    model = fundl.initialize(start.model_key, setup.model, dtype=torch.float64)
    parameters = list(torch_network(model).parameters())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(tree.leaves(model), parameters, strict=True))
    assert distance(HUMNE.setups[4], seed=0, steps=10) > 1e-9  # the one with dropout


@pytest.mark.parametrize("setup", SETUPS)
def test_each_set_up_trains(setup: Setup) -> None:
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1

    small = attrs.evolve(setup, epochs=2, batch_size=max(setup.batch_size, 50))
    both, model = run_both(small, seed=3, run=1, tick=tick)
    assert ticks == 4
    assert len(both.fundl.curve) == len(both.torch.curve) == 2
    start = start_of(3, 1)
    assert not tree.equal(model, fundl.initialize(start.model_key, setup.model))
    assert len(both.wrong) == pytest.approx(1000 * (1 - both.fundl.test), abs=0.01)
    if not setup.is_noisy and "normal" not in setup.name:
        assert both.fundl.test == pytest.approx(both.torch.test, abs=0.01)


@pytest.mark.parametrize("number", [0, 1])
def test_all_runs_at_once_end_where_they_do_one_by_one(number: int) -> None:
    setup = attrs.evolve(KIM.setups[number], epochs=4)
    together = train_at_once(setup, seed=2, runs=3)
    one_by_one = [run_both(setup, 2, run, lambda: None)[0].fundl.test for run in range(3)]
    assert together.accuracies == pytest.approx(one_by_one, abs=0.005)


def test_a_run_can_be_repeated_and_others_differ() -> None:
    setup = attrs.evolve(KONG.setups[0], epochs=2)
    first, again, other = (run_both(setup, 0, number, lambda: None)[0] for number in (0, 0, 1))
    assert first.fundl.curve == again.fundl.curve
    assert first.wrong == again.wrong
    assert first.wrong != other.wrong


def test_batches_are_shuffled_only_if_the_set_up_says_so() -> None:
    start = start_of(0, 0)
    shuffled = attrs.evolve(KONG.setups[1], epochs=2)
    ordered = attrs.evolve(shuffled, is_shuffled=False)
    (first, second), (third, fourth) = (
        [torch.cat([x for x, _ in batches]) for batches in epochs_of(setup, start)] for setup in (shuffled, ordered)
    )
    assert not torch.equal(first, second)
    assert torch.equal(third, start.train_points)
    assert torch.equal(fourth, start.train_points)


@pytest.mark.parametrize(
    ("labels", "targets", "prediction"),
    [
        ("-1/+1", [[-1.0], [1.0]], [[-0.1], [0.1]]),
        ("0/1", [[0.0], [1.0]], [[0.4], [0.6]]),
        ("one-hot", [[1.0, 0.0], [0.0, 1.0]], [[0.2, 0.1], [0.1, 0.2]]),
        ("class", [0, 1], [[-3.0, -4.0], [-4.0, -3.0]]),
    ],
)
def test_labels(labels: Labels, targets: list[float], prediction: list[list[float]]) -> None:
    setup = attrs.evolve(KONG.setups[0], labels=labels)
    target = targets_of(setup, torch.tensor([0, 1]), torch.float32)
    assert target.tolist() == targets
    answer = torch.tensor(prediction)
    assert accuracy_of(setup, answer, target) == 1
    assert (is_inside(setup, answer) > 0).tolist() == [False, True]
    assert accuracy_of(setup, answer.flip(0), target) == 0


def test_a_model_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "kong.safetensors"
    job = runs.Job("kong2020", setup=0, run=0, seed=4, epochs=1, model_file=file)
    done = runs.do_all([job, attrs.evolve(job, run=1, model_file=None)], 1, Console(quiet=True))
    assert {each.run for each in done} == {0, 1}
    assert fundl.load_metadata(file) == {"report": "kong2020", "setup": "summed loss, normalised", "seed": "4", "run": "0"}
    _, model = run_both(runs.setup_of(job), 4, 0, lambda: None)
    assert tree.equal(fundl.load(file, KONG.setups[0].model), model)


def test_a_layer_that_no_report_has() -> None:
    with pytest.raises(TypeError, match=r"none of the five reports has a layer such as GELU"):
        torch_network(fundl.GELU())


# --- The tables -------------------------------------------------------------------------------------------------------


def test_a_row_and_its_table(tmp_path: Path) -> None:
    setup = attrs.evolve(KONG.setups[0], reported="- / 96.8", to_reach=96.8)
    made = [Run(Learned((0.5, test), test, 1.0), Learned((0.5, 0.9), 0.9, 2.0), wrong=()) for test in (0.96, 0.98)]
    row = tables.row_of(KONG, setup, made, AtOnce((0.97, 0.97), seconds=0.5))
    assert str(row.fundl_test) == "97.00 ± 1.41"
    assert str(row.torch_test) == "90.00 ± 0.00"
    assert row.reached == "yes"
    assert attrs.evolve(row, to_reach=97.1).reached == "no"
    assert attrs.evolve(row, to_reach=None).reached == ""
    lines = tables.accuracy_table([row]).splitlines()
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
        *("kong2020", "summed loss, normalised", "2", "- / 96.8", "97.00 ± 1.41 / 97.00 ± 1.41"),
        *("90.00 ± 0.00 / 90.00 ± 0.00", "yes", "2.0x", "8.0x"),
    ]
    assert len({len(line) for line in lines}) == 1
    tables.write_rows(tmp_path / "table.csv", [row])
    with (tmp_path / "table.csv").open(encoding="utf-8") as stream:
        (read,) = csv.DictReader(stream)
    assert read["fundl_test_mean"] == "97.0000"
    assert read["reached"] == "yes"
    assert read["at_once"] == "8.000"
    assert tables.row_of(KONG, setup, made, None).at_once is None


def test_times() -> None:
    times = timing.measure(KONG.setups[0].model, sizes=(10, 20), rounds=3)
    assert [(time.part, time.points) for time in times] == [
        ("initialisation", 0),
        *((part, points) for points in (10, 20) for part in ("forward", "backward")),
    ]
    assert all(time.fundl > 0 and time.torch > 0 for time in times)
    assert attrs.evolve(times[0], fundl=3.0, torch=2.0).ratio == 1.5


# --- The command ------------------------------------------------------------------------------------------------------


def test_a_small_report(tmp_path: Path) -> None:
    result = run("borba2021", "--runs", "2", "--epochs", "1", "--out", str(tmp_path / "new"), "--processes", "2")
    assert result.returncode == 0, result.stderr
    assert "borba2021 Xavier: 2 runs done" in result.stderr
    folder = tmp_path / "new" / "borba2021"
    assert (folder / "table.md").read_text(encoding="utf-8") in result.stdout
    assert "Chosen where the report is silent" in result.stdout
    with (folder / "table.csv").open(encoding="utf-8") as stream:
        assert [row["setup"] for row in csv.DictReader(stream)] == ["Xavier", "standard normal, which fails"]
    for name in ("curves", "Xavier", "standard-normal-which-fails"):
        assert image.imread(folder / f"{name}.png").std() > 0.1  # it is not blank
    assert len(list(folder.glob("*.safetensors"))) == 2


@pytest.mark.slow
def test_all_reports(tmp_path: Path) -> None:
    result = run("all", "--runs", "1", "--epochs", "1", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    for experiment in EXPERIMENTS.values():
        assert table.count(f"| {experiment.name}") == len(experiment.setups)
        assert (tmp_path / experiment.name / "curves.png").stat().st_size > 10_000
    assert image.imread(tmp_path / "kong2020" / "times.png").std() > 0.1
    assert image.imread(tmp_path / "overview.png").std() > 0.1


def test_wrong_options(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    app = typer.Typer()
    app.command()(reports.main)
    for options, message in (
        (["smith2020"], "'smith2020' is not one of 'humne2020', 'kong2020'"),
        (["kong2020", "--runs", "0"], "--runs"),
        (["kong2020", "--seed", "-1"], "--seed"),
        (["kong2020", "--out", str(blocked / "below")], "cannot be made: Not a directory"),
    ):
        result = CliRunner().invoke(app, options)
        assert result.exit_code == 2
        words = re.sub(r"[│╭╮╰╯─]", " ", result.output).split()
        assert message in " ".join(words)

"""The experiments of five reports on small deep-learning libraries, repeated with fundl and with torch.nn.

One report, or all of them, as many runs as it made; tables and pictures go into a folder:

    python examples/reports.py kong2020
    python examples/reports.py all --out reports
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import attrs
import torch
from rich.console import Console
from typer import Argument, BadParameter, Option

import fundl
from five_reports import pictures, tables
from five_reports.at_once import train_at_once
from five_reports.catalogue import EXPERIMENTS
from five_reports.engine import Run, distance, start_of
from five_reports.pictures import Trained
from five_reports.runs import Job, do_all
from five_reports.setups import Experiment, Setup
from five_reports.tables import Row
from five_reports.timing import Times, measure
from shared.options import start

PARITY_STEPS = 200
MANY_RUNS = 10  # are worth an ensemble


@attrs.frozen
class Options:
    """What was asked for on the command line."""

    runs: int | None
    epochs: int | None
    seed: int
    out: Path


def main(
    report: Annotated[
        Literal["humne2020", "kong2020", "borba2021", "kim2021", "cappelletti2019", "all"],
        Argument(help="Whose experiments to repeat."),
    ],
    *,
    runs: Annotated[
        int | None, Option(min=1, help="How many runs to make of each set-up.", show_default="as many as the report made")
    ] = None,
    epochs: Annotated[
        int | None, Option(min=1, help="How often each point is seen, for a quick look.", show_default="as in the report")
    ] = None,
    seed: Annotated[int, Option(min=0, max=2**32, help="Decides data, parameters and order; times are times.")] = 7,
    out: Annotated[Path, Option(help="Folder for tables, pictures and trained models; made if it is not there.")] = Path(
        "reports"
    ),
    processes: Annotated[
        int, Option(min=1, help="Runs to make at the same time, one thread each.", show_default="one a core")
    ] = os.cpu_count() or 1,
) -> None:
    """Train what five reports trained, and compare: the accuracy reported, fundl's, and torch.nn's from the same start."""
    began = time.perf_counter()
    torch.set_num_threads(1)
    options = Options(runs, epochs, seed, out)
    experiments = list(EXPERIMENTS.values()) if report == "all" else [EXPERIMENTS[report]]
    for experiment in experiments:
        make_folder(out / experiment.name)
    jobs = [job for experiment in experiments for job in jobs_of(experiment, options)]
    try:
        done = do_all(jobs, processes, Console(stderr=True))
    except FloatingPointError as error:
        raise BadParameter(str(error), param_hint="--seed") from error
    chapters: list[str] = []
    rows: list[Row] = []
    for experiment in experiments:
        text, more = present(experiment, {job: run for job, run in done.items() if job.report == experiment.name}, options)
        chapters.append(text)
        rows += more
    if report == "all":
        summary = tables.accuracy_table(rows)
        (out / "table.md").write_text(f"{summary}\n{tables.LEGEND}", encoding="utf-8")
        tables.write_rows(out / "table.csv", rows)
    print("\n".join(chapters))
    print(f"{len(jobs)} runs in {time.perf_counter() - began:.0f} s; tables, pictures and models are in {out}/")


def make_folder(folder: Path) -> None:
    """Make the folder of a report, or say why that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadParameter(f"the folder {str(folder)!r} cannot be made: {error.strerror}", param_hint="--out") from error


def jobs_of(experiment: Experiment, options: Options) -> list[Job]:
    """The runs of an experiment; the model of the first of each set-up is saved."""
    return [
        Job(
            report=experiment.name,
            setup=number,
            run=run,
            seed=options.seed,
            epochs=options.epochs,
            model_file=model_file(experiment, number, options) if run == 0 else None,
        )
        for number, setup in enumerate(experiment.setups)
        for run in range(options.runs or setup.runs)
    ]


def model_file(experiment: Experiment, number: int, options: Options) -> Path:
    """Where the model of a set-up's first run goes."""
    name = "".join(letter if letter.isalnum() else "-" for letter in experiment.setups[number].name)
    return options.out / experiment.name / f"{name.replace('--', '-')}.safetensors"


# --- What comes of it ---------------------------------------------------------------------------------------------------


def present(experiment: Experiment, done: dict[Job, Run], options: Options) -> tuple[str, list[Row]]:
    """Write the tables and the pictures of an experiment; the text and the rows of its table."""
    folder = options.out / experiment.name
    results: dict[str, list[Run]] = {setup.name: [] for setup in experiment.setups}
    for job, run in sorted(done.items(), key=lambda item: item[0].run):
        results[experiment.setups[job.setup].name].append(run)
    rows = [row_of(experiment, setup, results[setup.name], options) for setup in experiment.setups]
    times = measure(experiment.setups[0].model) if experiment.times else []
    apart = distance(experiment.setups[0], options.seed, PARITY_STEPS)
    text = tables.chapter(experiment, rows, apart, times)
    (folder / "table.md").write_text(text, encoding="utf-8")
    tables.write_rows(folder / "table.csv", rows)
    draw(experiment, results, times, options)
    if times:
        tables.write_times(folder / "times.csv", times)
    return text, rows


def row_of(experiment: Experiment, setup: Setup, runs: Sequence[Run], options: Options) -> Row:
    """The row of a set-up; where there are many runs, an ensemble makes them all at once as well."""
    with_epochs = setup if options.epochs is None else attrs.evolve(setup, epochs=options.epochs)
    at_once = train_at_once(with_epochs, options.seed, len(runs)) if len(runs) >= MANY_RUNS else None
    return tables.row_of(experiment, setup, runs, at_once)


def draw(experiment: Experiment, results: dict[str, list[Run]], times: Sequence[Times], options: Options) -> None:
    """Draw the pictures of an experiment, with the trained models that were saved."""
    folder, start = options.out / experiment.name, start_of(options.seed, 0)
    pictures.draw_curves(experiment, results, folder / "curves.png")
    for number, setup in enumerate(experiment.setups):
        file = model_file(experiment, number, options)
        trained = Trained(setup, start, fundl.load(file, setup.model))
        pictures.draw_square(experiment, trained, results[setup.name], file.with_suffix(".png"))
        if times and number == len(experiment.setups) - 1:
            pictures.draw_times(experiment, times, folder / "times.png")
            pictures.draw_overview(setup, results[setup.name], trained, times, options.out / "overview.png")


if __name__ == "__main__":
    sys.exit(start(main))

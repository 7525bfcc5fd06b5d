"""The tables: what was reported, what fundl reaches, and what torch.nn does; as Markdown and as CSV."""

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
from typing_extensions import override

from five_reports.at_once import AtOnce
from five_reports.engine import Learned, Run
from five_reports.setups import Experiment, Setup
from five_reports.timing import Times

Results = Mapping[str, Sequence[Run]]
"""The runs of an experiment by the name of the set-up."""


@attrs.frozen
class Spread:
    """Mean and standard deviation, over runs, of accuracies in percent; the deviation of a single run is given as 0."""

    mean: float
    std: float

    @classmethod
    def of(cls, accuracies: Sequence[float]) -> "Spread":
        """Those of accuracies from 0 to 1."""
        percent = [100 * accuracy for accuracy in accuracies]
        return cls(statistics.mean(percent), statistics.stdev(percent) if len(percent) > 1 else 0.0)

    @override
    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.std:.2f}"


@attrs.frozen
class Row:
    """What a table says of a set-up."""

    report: str
    setup: str
    runs: int
    reported: str
    to_reach: float | None
    fundl_train: Spread
    fundl_test: Spread
    torch_train: Spread
    torch_test: Spread
    speed: float  # how many times as fast as torch.nn's steps fundl's are
    at_once: float | None  # how many times as fast as torch.nn's runs an ensemble of all runs is

    @property
    def reached(self) -> str:
        """Whether the mean test accuracy is that of the report, or better."""
        if self.to_reach is None:
            return ""
        return "yes" if self.fundl_test.mean >= self.to_reach else "no"


def row_of(experiment: Experiment, setup: Setup, runs: Sequence[Run], at_once: AtOnce | None) -> Row:
    """A row, from the runs of its set-up, one after the other and maybe all at once."""
    ours: list[Learned] = [run.fundl for run in runs]
    theirs: list[Learned] = [run.torch for run in runs]
    return Row(
        report=experiment.name,
        setup=setup.name,
        runs=len(runs),
        reported=setup.reported,
        to_reach=setup.to_reach,
        fundl_train=Spread.of([learned.train for learned in ours]),
        fundl_test=Spread.of([learned.test for learned in ours]),
        torch_train=Spread.of([learned.train for learned in theirs]),
        torch_test=Spread.of([learned.test for learned in theirs]),
        speed=statistics.median(run.torch.seconds / run.fundl.seconds for run in runs),
        at_once=None if at_once is None else sum(learned.seconds for learned in theirs) / at_once.seconds,
    )


# --- Markdown -----------------------------------------------------------------------------------------------------------


def markdown(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table whose columns line up in plain text as well."""
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    lines = [header, ["-" * width for width in widths], *cells]
    return "".join(f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |\n" for line in lines)


def accuracy_table(rows: Sequence[Row]) -> str:
    """Accuracies in percent: reported, by fundl, by torch.nn."""
    header = ("report", "set-up", "runs", "reported", "fundl", "torch.nn", "reached", "speed", "at once")
    return markdown(
        header,
        [
            (
                row.report,
                row.setup,
                str(row.runs),
                row.reported,
                f"{row.fundl_train} / {row.fundl_test}",
                f"{row.torch_train} / {row.torch_test}",
                row.reached,
                f"{row.speed:.1f}x",
                "" if row.at_once is None else f"{row.at_once:.1f}x",
            )
            for row in rows
        ],
    )


LEGEND = (
    "Accuracy in percent, training / test: mean ± standard deviation over the runs. fundl and torch.nn start each run from the"
    " same data and the same parameters, and see the same batches. *Reached*: whether fundl's mean test accuracy is the"
    " reported one or better. *Speed*: torch.nn's time for a step divided by fundl's, one thread each. *At once*: torch.nn's"
    " time for one run after the other on one thread divided by that of fundl for all runs as one ensemble on all cores.\n"
)


def times_table(times: Sequence[Times]) -> str:
    """Milliseconds of fundl and torch.nn."""
    header = ("part", "points", "fundl [ms]", "torch.nn [ms]", "fundl / torch.nn")
    return markdown(
        header,
        [(time.part, str(time.points or "-"), f"{time.fundl:.3f}", f"{time.torch:.3f}", f"{time.ratio:.2f}") for time in times],
    )


def chapter(experiment: Experiment, rows: Sequence[Row], distance: float, times: Sequence[Times]) -> str:
    """All that is to be said of a report."""
    parts = [f"## {experiment.name}\n", f"{experiment.about}.\n", accuracy_table(rows), LEGEND]
    parts.append(
        "Chosen where the report is silent, by trial on the test points of seeds 0 and 1 (other seeds were not looked at):\n"
    )
    parts.append("".join(f"- {choice}\n" for choice in experiment.choices))
    parts.append(
        f"After 200 steps in float64 from the same parameters ({experiment.setups[0].name}), those of fundl and torch.nn are at"
        f" most {distance:.0e} apart.\n"
    )
    if times:
        parts.append(times_table(times))
        parts.append(f"{experiment.times}\n")
    return "\n".join(parts)


# --- CSV ----------------------------------------------------------------------------------------------------------------


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    """Write rows with all their numbers."""
    sides = ("fundl_train", "fundl_test", "torch_train", "torch_test")
    header = ["report", "setup", "runs", "reported", "to_reach"]
    header += [f"{side}_{what}" for side in sides for what in ("mean", "std")]
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([*header, "reached", "speed", "at_once"])
        for row in rows:
            spreads = (row.fundl_train, row.fundl_test, row.torch_train, row.torch_test)
            numbers = [f"{number:.4f}" for spread in spreads for number in (spread.mean, spread.std)]
            to_reach = "" if row.to_reach is None else row.to_reach
            start = (row.report, row.setup, row.runs, row.reported, to_reach)
            writer.writerow(
                [*start, *numbers, row.reached, f"{row.speed:.3f}", "" if row.at_once is None else f"{row.at_once:.3f}"]
            )


def write_times(file: Path, times: Sequence[Times]) -> None:
    """Write medians in milliseconds."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["part", "points", "fundl_ms", "torch_ms", "ratio"])
        writer.writerows((time.part, time.points, time.fundl, time.torch, time.ratio) for time in times)

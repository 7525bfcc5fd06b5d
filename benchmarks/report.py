"""What was measured, as ratios to fundl: tables in Markdown, rows in CSV, and a picture.

A ratio is of two times of one round. Of the ratios of all rounds, the median and the quartiles are told.
"""

import csv
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Final

import attrs
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.peers import PEERS
from benchmarks.session import Failed, Losses, Measured, Outcome
from benchmarks.turns import processor

BASES: Final = ("fundl-jit", "fundl-eager")
_TOLERANCE: Final = 1e-3  # of losses, relative: of sums in different orders, through some steps of Adam

_PEERS_BY_BASE: Final[Mapping[str, Sequence[str]]] = {
    "fundl-jit": [peer for peer in PEERS if peer != "fundl-jit"],
    "fundl-eager": [name for name, peer in PEERS.items() if name != "fundl-eager" and not peer.compiles],
}


@attrs.frozen
class Ratio:
    """How many times as much as fundl a peer takes.

    Args:
        name: of the thing.
        peer: its key in `PEERS`.
        setting: of the peer, the one that took the least.
        base: which fundl.
        median: over the rounds.
        lower: the quartile.
        upper: the quartile.
        rounds: how many there were.
        processors: that the peer kept busy on average.
    """

    name: str
    peer: str
    setting: str
    base: str
    median: float
    lower: float
    upper: float
    rounds: int
    processors: float


def ratios(outcomes: Iterable[Outcome]) -> list[Ratio]:
    """All ratios that there are."""
    ordered = sorted((each for each in outcomes if isinstance(each, Measured)), key=lambda each: -median(each.values))
    measured = {(each.name, each.peer): each for each in outcomes if isinstance(each, Measured)}  # in the order of the cases
    measured |= {(each.name, each.peer): each for each in ordered}  # of several settings the quickest
    return [
        _ratio(each, measured[name, base])
        for base in BASES
        for (name, peer), each in measured.items()
        if (name, base) in measured and peer in _PEERS_BY_BASE[base]
    ]


def _ratio(peer: Measured, base: Measured) -> Ratio:
    values = np.array(peer.values) / np.maximum(np.array(base.values), 1e-9)
    lower, middle, upper = (float(value) for value in np.quantile(values, (0.25, 0.5, 0.75)))
    return Ratio(peer.name, peer.peer, peer.setting, base.peer, middle, lower, upper, len(values), round(peer.processors, 2))


def slowings(outcomes: Iterable[Outcome]) -> list[str]:
    """Rows of a table: how many times as long as early in a long training a step takes late in it."""
    measured = [each for each in outcomes if isinstance(each, Measured)]
    early = {(each.name, each.peer, each.setting): each for each in measured}
    rows = []
    for late in measured:
        before = early.get((late.name.replace("last-", "first-", 1), late.peer, late.setting))
        if late.name.startswith("last-") and before is not None:
            who = f"{PEERS[late.peer].name} {late.setting}".strip()
            rows.append(f"| {late.name.removeprefix('last-')} | {who} | {min(late.values) / min(before.values):.2f} |")
    return rows


def growths(outcomes: Iterable[Outcome]) -> list[str]:
    """Rows of a table: time or memory for each layer, row or step, as a multiple of that of the smallest of a family."""
    families: dict[tuple[str, str], dict[int, float]] = {}
    for each in outcomes:
        if isinstance(each, Measured) and each.grows:
            family = each.name.removesuffix(f"-{each.grows}")
            families.setdefault((family, each.peer), {})[each.grows] = min(each.values) / each.grows
    rows = []
    for (family, peer), sizes in families.items():
        least = sizes[min(sizes)]
        if len(sizes) > 1 and least > 0:
            cells = [f"{size}: {sizes[size] / least:.3g}" for size in sorted(sizes)]
            rows.append(f"| {family} | {PEERS[peer].name} | {', '.join(cells)} |")
    return rows


def disagreements(losses: Mapping[str, Sequence[Losses]]) -> list[str]:
    """Peers whose first losses are not those of most others, with both."""
    found = []
    for name, columns in losses.items():
        usual = tuple(float(value) for value in np.median([each.values for each in columns], 0)) if columns else ()
        for each in columns:
            if not np.allclose(each.values, usual, rtol=_TOLERANCE):
                peer = f"{PEERS[each.peer].name} {each.setting}".strip()
                found.append(f"{name}: the losses of {peer} are {each.values}, those of most {usual}")
    return found


# --- Files ---------------------------------------------------------------------------------------------------------------


def write(folder: Path, outcomes: Sequence[Outcome], losses: Mapping[str, Sequence[Losses]]) -> None:
    """Write benchmarks.md, benchmarks.csv and benchmarks.png."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ratios(outcomes)
    failed = [each for each in outcomes if isinstance(each, Failed)]
    lines = _markdown(rows, outcomes, failed, losses)
    (folder / "benchmarks.md").write_text("\n".join(lines) + "\n")
    with (folder / "benchmarks.csv").open("w", newline="") as file:
        file.write("".join(f"# {line}\n" for line in header()))
        writer = csv.writer(file)
        writer.writerow(field.name for field in attrs.fields(Ratio))
        writer.writerows(attrs.astuple(row) for row in rows)
    _draw(rows, folder / "benchmarks.png")


def header() -> list[str]:
    """Of when, where and what."""
    packages = ", ".join(f"{name} {number}" for name, number in versions().items())
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return [
        f"{date.today().isoformat()}; {processor()}, {os.cpu_count()} cores, load {load}; {platform.platform()}",
        f"Python {platform.python_version()}, {packages}",
        shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
    ]


def versions() -> dict[str, str]:
    """Of torch and all that the peers need."""
    names = dict.fromkeys(("torch", *(package for peer in PEERS.values() for package in peer.packages)))
    return {name: _version(name) for name in names}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _markdown(
    rows: Sequence[Ratio], outcomes: Sequence[Outcome], failed: Sequence[Failed], losses: Mapping[str, Sequence[Losses]]
) -> list[str]:
    lines = ["# fundl and its peers", "", *(f"- {line}" for line in header()), ""]
    lines += [*_NOTES.splitlines(), ""]
    for base in (base for base in BASES if any(row.base == base for row in rows)):
        lines += [f"## Times as multiples of those of {PEERS[base].name}", "", *_table(rows, base), ""]
    if growing := growths(outcomes):
        lines += ["## Growth", "", *_GROWTH.splitlines(), "", "| what | by | sizes: multiples |", "|---|---|---|", *growing, ""]
    if slowing := slowings(outcomes):
        lines += ["## Long training", "", *_SLOWING.splitlines(), "", "| what | by | times |", "|---|---|---:|", *slowing, ""]
    if failed:
        lines += ["## What could not be measured", ""]
        lines += [f"- {each.name}, {PEERS[each.peer].name}: {each.reason}" for each in failed] + [""]
    wrong = disagreements(losses)
    agree = f"The first losses of all peers agree, to {_TOLERANCE:g} of their size; cases: {len(losses)}."
    return [*lines, "## Losses", "", *(f"- {line}" for line in wrong), *([] if wrong else [agree])]


_NOTES: Final = """\
Above 1, the peer takes longer. Each cell: the median over the rounds of the ratio of two times of one round, and its quartiles.

- `disk` and `epoch`: 2-25-25-25-2, ReLU, MSE, with the optimizer and the batch size; a step a call, and an epoch of 1,000
  points a call. Peers without a loop of their own go through batches that are cut already.
- `optimizer`: an update of 50 MB of parameters, alone.
- `normal`, `uniform`, `bernoulli`, `initialize`, `step-with-dropout`: both sides in one process; `initialize` is what
  torch.nn's constructors do. The others that have no peer, such as `summary`, are there for their growth.
- `dropout`: the disk's network with a dropout after each ReLU. Each peer draws by itself: losses are not compared.
- `deep`, `blocks`: linear layers of 64, and the transformer's blocks with 1 x 128 tokens; by `repeat`, one record has the
  parameters of all blocks, stacked, and JAX loops through them.
- `first` and `last`: a hundred steps of Adam on single points, early and late in a long training (see there).
- `rows`: once through data in random batches of 1,000; `steps`: so many steps of Adam, batch 1, as one call, whose losses
  after so long are not compared. fundl returns what each step reports, 12 bytes, JAX the last loss alone.
- `memory`: what a step takes at most beyond what the process holds between steps, as Linux counts its pages. JAX goes on
  holding what it took for the LSTM, so that its steps seem to take nothing.
- `compile`: the first step in a new process, with empty caches and with full ones, of `disk-adam-10` or the case named.
- `import`: of all that a program needs, in a new process.
- "-": not asked for, not natural for this peer, or not available (see below).

All peers begin with the same parameters, and their first losses are compared. Each is a process of its own, and they take
turns; of a turn the first step does not count. Of a peer with several settings the fastest counts. fundl keeps the memory that
it frees (`keep_freed_memory`), others return it; with the variables MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ set, all
do what these say. One thread for `disk` and `epoch`, two for all else, set for every peer by OMP_NUM_THREADS, MKL_NUM_THREADS,
OPENBLAS_NUM_THREADS and BLIS_NUM_THREADS, and for XLA by NPROC and --xla_cpu_multi_thread_eigen; no process is bound to
processors. The column `processors` of the CSV says how many each kept busy."""


_GROWTH: Final = """\
Time, or memory, for each layer, row, step or example: how many times that of the smallest of its kind, both the least of all
rounds. Where it stays about 1, all grows linearly; below 1, what is the same for any size still counts."""
_SLOWING: Final = """\
How many times as long as early in a training, in its steps 100 to 600, a step takes late, in the last 500 of 20,000; of
both the quickest hundred. The units that died have left a third of Adam's moments as numbers so small that some processors take
much longer for each: Intel's take over a hundred cycles, AMD's a few."""


def _table(rows: Sequence[Ratio], base: str) -> list[str]:
    cells = {(row.name, row.peer): f"{row.median:.2f} ({row.lower:.2f} to {row.upper:.2f})" for row in rows if row.base == base}
    peers = [peer for peer in _PEERS_BY_BASE[base] if any(row.peer == peer and row.base == base for row in rows)]
    names = dict.fromkeys(name for name, _ in cells)
    lines = [f"| case | {' | '.join(PEERS[peer].name for peer in peers)} |", f"|---|{'---:|' * len(peers)}"]
    return [*lines, *(f"| {name} | {' | '.join(cells.get((name, peer), '-') for peer in peers)} |" for name in names)]


def _draw(rows: Sequence[Ratio], path: Path) -> None:
    """A row for each thing, a mark for each peer: its ratio to compiled fundl, with its quartiles."""
    rows = [row for row in rows if row.base == "fundl-jit"]
    if not rows:
        return
    names = [*dict.fromkeys(row.name for row in rows)]
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.3 * len(names)), layout="constrained")
    for marker, peer in zip("os^vDP*Xh", PEERS, strict=True):
        chosen = [row for row in rows if row.peer == peer]
        if chosen:
            errors = [[row.median - row.lower for row in chosen], [row.upper - row.median for row in chosen]]
            places = [names.index(row.name) for row in chosen]
            medians = [row.median for row in chosen]
            axes.errorbar(medians, places, xerr=errors, fmt=marker, capsize=2, label=PEERS[peer].name, alpha=0.8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="both", alpha=0.3)
    axes.set_xlabel(f"times as much as {PEERS['fundl-jit'].name}, medians and quartiles")
    axes.set_title(f"fundl and its peers, {date.today().isoformat()}, {processor()}", fontsize="medium")
    axes.legend(fontsize="small", ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.04))
    figure.savefig(path, dpi=150)
    plt.close(figure)

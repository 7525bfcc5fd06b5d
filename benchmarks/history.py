"""Results that are kept, by commit: a file of JSON for each measurement, and all of them drawn over time.

    python -m benchmarks --case disk --case mlp --keep    # writes benchmarks/results/2026-11-27-0123456789ab-EPYC-9R14.json
    python -m benchmarks --history                        # draws reports/benchmarks/history.png, and writes history.md

Times of different days and machines tell little beside one another. What is drawn are ratios to fundl, of sides that took
turns; a line goes through the results of one processor.
"""

import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Final

import attrs
import matplotlib.pyplot as plt

from benchmarks.peers import PEERS
from benchmarks.report import BASES, Ratio, ratios, versions
from benchmarks.session import Measured, Outcome
from benchmarks.turns import processor

RESULTS: Final = Path(__file__).parent / "results"


@attrs.frozen
class Result:
    """One measurement.

    Args:
        date: of it, as 2026-11-27.
        commit: that was measured: its first 12 digits, with a "+" if files were changed since.
        processor: that it ran on.
        cores: that the system counts.
        load: how many processes wanted a core before it, on average over a minute.
        python: its version.
        versions: of fundl's and the peers' packages.
        ratios: of the peers' times to fundl's.
        seconds: medians, by thing and peer; bytes for the things that are memory.
    """

    date: str
    commit: str
    processor: str
    cores: int
    load: float
    python: str
    versions: Mapping[str, str]
    ratios: Sequence[Ratio]
    seconds: Mapping[str, Mapping[str, float]]


def keep(outcomes: Sequence[Outcome], load: float, folder: Path = RESULTS) -> Path:
    """Write what was measured to a file named by date, commit and processor, whose path is returned."""
    measured = [each for each in outcomes if isinstance(each, Measured)]
    seconds: dict[str, dict[str, float]] = {}
    for each in measured:
        found = seconds.setdefault(each.name, {})
        found[each.peer] = min(median(each.values), found.get(each.peer, float("inf")))  # of several settings the quickest
    today, cores, rows = date.today().isoformat(), os.cpu_count() or 1, ratios(outcomes)
    result = Result(today, commit(), processor(), cores, load, platform.python_version(), versions(), rows, seconds)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.date}-{result.commit}-{_slug(result.processor)}.json"
    path.write_text(json.dumps(attrs.asdict(result, value_serializer=for_json), indent=1, allow_nan=False) + "\n")
    return path


def for_json(_record: object, _field: object, value: object) -> object:
    """A value as JSON has it, for `attrs.asdict`."""
    return None if isinstance(value, float) and math.isnan(value) else value  # there is no NaN in JSON


def commit() -> str:
    """The commit that the files here are of, with a "+" if some were changed since."""
    name, changes = _git("rev-parse", "--short=12", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    if name is None:
        raise RuntimeError(
            f"results are kept by commit, but {RESULTS.parent.parent} is no repository of git, or there is no git"
        )
    return name + ("+" if changes else "")


def _git(*words: str) -> str | None:
    """What git says of the repository that this is in; None if it does not know."""
    try:
        done = subprocess.run(["git", "-C", str(RESULTS.parent.parent), *words], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _slug(name: str) -> str:
    """The words of a processor's name that tell it from others, for a file's name."""
    words = re.sub(r"\(R\)|\(TM\)|@.*|\b(AMD|Intel|CPU|Processor|\d+-Core)\b", "", name).split()
    return "-".join(words) or "unknown"


def results(folder: Path = RESULTS) -> list[Result]:
    """All that were kept, by date, and of one day in the order of their commits."""
    return sorted(map(_read, folder.glob("*.json")), key=lambda result: (result.date, _age(result.commit)))


def _read(path: Path) -> Result:
    fields: dict[str, object] = json.loads(path.read_text())
    try:
        rows = fields.pop("ratios")
        assert isinstance(rows, list)
        known = [Ratio(**{**row, "processors": row["processors"] or math.nan}) for row in rows]
        return Result(**fields, ratios=known)  # type: ignore[arg-type]  # JSON has no types
    except (AssertionError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result that `python -m benchmarks --keep` wrote: {error}") from error


def _age(of: str) -> int:
    """How many commits led to one; 0 where git does not know it."""
    return int(_git("rev-list", "--count", of.removesuffix("+")) or 0)


# --- Over time -----------------------------------------------------------------------------------------------------------


def draw(kept: Sequence[Result], folder: Path) -> None:
    """Write history.png and history.md: of each thing, the ratios to compiled fundl, or else to eager fundl, over time."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [*dict.fromkeys(row.name for result in kept for row in result.ratios)]
    places = [f"{result.date}\n{result.commit[:7]}" for result in kept]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    size = (1.5 + 3.5 * columns, 1.2 + 2.6 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", sharex=True)
    for place, axes in enumerate(grid.flat):
        axes.set_visible(place < len(names))
    for name, axes in zip(names, grid.flat, strict=False):
        base, lines = _lines(kept, name)
        for peer, found in lines.items():
            marker, color = "os^vDP*Xh"[[*PEERS].index(peer)], f"C{[*PEERS].index(peer)}"
            for line in found.values():
                axes.plot([*line], [row.median for row in line.values()], marker=marker, color=color, label=PEERS[peer].name)
        axes.axhline(1, color="black", linewidth=1)
        axes.set_yscale("log")
        axes.set_title(f"{name}, to {PEERS[base].name}", fontsize="small")
        axes.set_xticks(range(len(places)), places, fontsize="x-small")
        axes.grid(alpha=0.3)
    handles = {label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend([*handles.values()], [*handles], loc="outside upper center", ncols=5, fontsize="small")
    figure.savefig(folder / "history.png", dpi=120)
    plt.close(figure)
    (folder / "history.md").write_text("\n".join(_markdown(kept, names)) + "\n")


def _lines(kept: Sequence[Result], name: str) -> tuple[str, dict[str, dict[str, dict[int, Ratio]]]]:
    """The fundl that a thing is compared to, and of each peer, by processor, the ratios by their place in time."""
    found = {row.base for result in kept for row in result.ratios if row.name == name}
    base = next(base for base in BASES if base in found)
    lines: dict[str, dict[str, dict[int, Ratio]]] = {}
    for place, result in enumerate(kept):
        for row in result.ratios:
            if row.name == name and row.base == base:
                lines.setdefault(row.peer, {}).setdefault(result.processor, {})[place] = row
    return base, lines


def _markdown(kept: Sequence[Result], names: Iterable[str]) -> list[str]:
    lines = ["# fundl and its peers, over time", "", "Medians; above 1, the peer takes longer than fundl.", ""]
    lines += [
        f"- {place}: {each.date}, commit {each.commit}, {each.processor}, {each.cores} cores, load {each.load:.1f}, Python"
        f" {each.python}, {', '.join(f'{package} {version}' for package, version in each.versions.items())}"
        for place, each in enumerate(kept, 1)
    ]
    lines += [
        "",
        f"| case | to | peer | {' | '.join(map(str, range(1, len(kept) + 1)))} |",
        f"|---|---|---|{'---:|' * len(kept)}",
    ]
    for name in names:
        base, by_peer = _lines(kept, name)
        for peer, by_processor in by_peer.items():
            found = {place: row.median for line in by_processor.values() for place, row in line.items()}
            cells = [f"{found[place]:.2f}" if place in found else "-" for place in range(len(kept))]
            lines.append(f"| {name} | {PEERS[base].name} | {PEERS[peer].name} | {' | '.join(cells)} |")
    return lines

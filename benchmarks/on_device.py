"""Training on a GPU: fundl beside torch.nn, torch.compile and JAX, at equal work.

    python -m benchmarks --device cuda
    python -m benchmarks --device cuda --case blocks --peer fundl-jit --peer jax

Each side has a process of its own. All sides of a case make their first steps at once, which for most means to compile, and are
compared by the losses of these; then they take turns, of about 0.1 s. A step is forward, loss, backward and AdamW, of one batch
that is on the device, which is waited for at the end of a turn. The ratio is the median, over the turns, of a side's time over
that of fundl's side of its kind: above 1, fundl is quicker. `benchmarks.device_cases` tells what is trained.

fundl                 a step gives the next state beside the old one
fundl-donating        a step writes over its state, as `fit` has it
fundl-jit             compiled with donation, and replayed as a CUDA graph
torch.nn              eager, with scaled_dot_product_attention and the fused AdamW
torch.nn-autocast     the same with torch.autocast, which has norms, sums and what lies between blocks in float32
torch.compile         forward and backward compiled in mode "default"; the fused AdamW
torch.compile-graphs  the same in mode "reduce-overhead", which replays CUDA graphs
torch.compile-whole   the same, with AdamW compiled as well
jax                   a step compiled with donation; optax.adamw; cuDNN's attention

What takes more than 8 minutes together is left out. Memory is the most that was on the device at once, since a side began.
The result is written to device.json, and with ``--keep`` by commit and GPU to benchmarks/results/devices as well.
"""

import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import attrs
import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import history
from benchmarks.device_cases import CASES
from benchmarks.session import Worker, WorkerError, started
from benchmarks.turns import processor

PEERS: Final = {  # each with the side of fundl that it is compared to
    "fundl": "fundl",
    "fundl-donating": "fundl",
    "torch.nn": "fundl-donating",
    "torch.nn-autocast": "fundl-donating",
    "fundl-jit": "fundl-jit",
    "torch.compile": "fundl-jit",
    "torch.compile-graphs": "fundl-jit",
    "torch.compile-whole": "fundl-jit",
    "jax": "fundl-jit",
}
STEPS: Final = 5  # whose losses are compared
SECONDS: Final = 0.1  # of a turn
LIMIT: Final = 440.0  # seconds, after which no case begins and nothing is waited for
TOLERANCES: Final = {torch.float32: 1e-3, torch.bfloat16: 3e-2}
"""By how much losses may differ, as a part of them: sums in another order are other numbers, and steps make more of it."""


@attrs.frozen
class Side:
    """What a side gave, or why it gave nothing.

    Args:
        case: what was trained.
        peer: who trained.
        losses: of the first steps.
        first: the seconds of the first steps, with all that was compiled.
        rounds: the seconds of a step, turn by turn.
        bytes: the most on the device at once, where it was counted.
        failed: why it gave nothing more.
    """

    case: str
    peer: str
    losses: Sequence[float] = ()
    first: float = math.nan
    rounds: Sequence[float] = ()
    bytes: float = math.nan
    failed: str = ""


def main(
    device: str,
    cases: Sequence[str],
    peers: Sequence[str],
    out: Path,
    *,
    rounds: int,
    patience: float,
    keep: bool = False,
) -> int:
    """Measure, print what each side gave, and write it as JSON.

    Args:
        device: cuda, or cpu to see that all runs.
        cases: names of `CASES`.
        peers: names of `PEERS`.
        out: the folder for device.json.
        rounds: how often each side has its turn; 0 for the losses alone.
        patience: how many seconds the sides of a case have together for their first steps.
        keep: whether to keep the result by commit as well.

    Returns:
        The status: 1 if losses differ, else 0.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("torch finds no GPU here: torch.cuda.is_available() is False", param_hint="--device")
    out.mkdir(parents=True, exist_ok=True)
    console, setting, deadline = Console(width=None if sys.stdout.isatty() else 120), settings(device), time.monotonic() + LIMIT
    console.print(", ".join(f"{name} {value}" for name, value in setting.items()), highlight=False)
    sides: list[Side] = []
    for case in cases:
        found: list[Side] = []
        for side in measured(case, peers, device, rounds=rounds, until=deadline, patience=patience):
            found.append(side)
            print(f"{case}: {side.peer}: {side.failed or _told(side)}", flush=True)
            _write(out / "device.json", setting, [*sides, *found])  # who stops the rest keeps these
        sides += found
        console.print(table(case, found))
    if keep:
        name = f"{setting['date']}-{setting['commit']}-{setting.get('GPU', setting['processor']).replace(' ', '-')}.json"
        (history.RESULTS / "devices").mkdir(parents=True, exist_ok=True)
        _write(history.RESULTS / "devices" / name, setting, sides)
    differing = [*disagreements(sides)]
    for line in differing:
        print(line)
    return int(bool(differing))


def measured(case: str, peers: Sequence[str], device: str, *, rounds: int, until: float, patience: float) -> Iterator[Side]:
    """What each side gives of a case; who fails does so alone.

    Args:
        case, peers, device, rounds, patience: see `main`.
        until: when all ends, as `time.monotonic` counts.
    """
    peers = [peer for peer in peers if CASES[case].is_mixed or peer != "torch.nn-autocast"]
    if time.monotonic() > until:
        yield from (Side(case, peer, failed="there was no time left") for peer in peers)
        return
    variables = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
    with ExitStack() as stack:
        sides: dict[str, Side] = {}
        workers: list[Worker] = []
        for peer in peers:
            command = [sys.executable, "-m", "benchmarks.device_worker", peer, case, device]
            workers.append(stack.enter_context(started(peer, command, variables)))
            _ask(workers[-1], "first", STEPS)
        ready = min(until, time.monotonic() + patience)
        for worker in workers:
            try:
                given = worker.answer(ready)
                sides[worker.peer] = Side(case, worker.peer, given["losses"], given["first"][0])
            except WorkerError as error:
                worker.process.kill()  # it must not disturb the others
                yield Side(case, worker.peer, failed=str(error))
        yield from _in_turns([worker for worker in workers if worker.peer in sides], sides, rounds, until)


def _in_turns(workers: list[Worker], sides: dict[str, Side], rounds: int, until: float) -> Iterator[Side]:
    """The sides with their times; the first turn warms up, and every other one is in reverse order."""
    taken: dict[str, list[float]] = {worker.peer: [] for worker in workers}
    for number in range(rounds + 1 if rounds else 0):
        for worker in workers[:: -1 if number % 2 else 1]:
            try:
                worker.ask("time", SECONDS)
                seconds = worker.answer(until)["seconds"][0]
            except WorkerError as error:
                worker.process.kill()
                yield attrs.evolve(sides[worker.peer], failed=str(error))
                workers = [other for other in workers if other is not worker]
            else:
                taken[worker.peer] += [seconds] if number else []
    for worker in workers:
        try:
            worker.ask("memory")
            yield attrs.evolve(sides[worker.peer], rounds=taken[worker.peer], bytes=worker.answer(until)["bytes"][0])
        except WorkerError as error:
            yield attrs.evolve(sides[worker.peer], failed=str(error))


def _ask(worker: Worker, *request: object) -> None:
    """Send a request; who has ended already says so when it should answer."""
    try:
        worker.ask(*request)
    except WorkerError:
        return


# --- What is told -------------------------------------------------------------------------------------------------------


def settings(device: str) -> Mapping[str, str]:
    """What all is measured with."""
    gpu = {"GPU": torch.cuda.get_device_name()} if device == "cuda" else {}
    cuda = {"CUDA": torch.version.cuda} if torch.version.cuda else {}
    packages = {name: _version(name) for name in ("torch", "triton", "jax", "optax")}
    try:
        commit = history.commit()
    except RuntimeError:
        commit = "unknown"
    own = {"processor": processor(), "cores": str(os.cpu_count()), "Python": platform.python_version()}
    return {"date": date.today().isoformat(), "commit": commit, **gpu, **own, **cuda, **packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _told(side: Side) -> str:
    times = f"{1e3 * statistics.median(side.rounds):.3f} ms a step, " if side.rounds else ""
    return f"{times}{side.first:.0f} s for the first steps, losses {', '.join(f'{loss:.4f}' for loss in side.losses)}"


def _write(path: Path, setting: Mapping[str, str], sides: Sequence[Side]) -> None:
    rows = [attrs.asdict(side, value_serializer=history.for_json) for side in sides]
    path.write_text(json.dumps({**setting, "sides": rows}, indent=1, allow_nan=False) + "\n")


def table(case: str, sides: Sequence[Side]) -> Table:
    """What the sides of a case gave."""
    shown = Table("", "ms a step", "quartiles", "ratio", "to", "GB at most", "first steps, s", title=case)
    for column in shown.columns[1:]:
        column.justify = "right"
    by_peer = {side.peer: side for side in sides}
    for peer in PEERS:
        if peer not in by_peer:
            continue
        side = by_peer[peer]
        if not side.rounds:
            shown.add_row(peer, side.failed or "-")
            continue
        low, middle, high = (f"{1e3 * seconds:.3f}" for seconds in quartiles(side.rounds))
        base = by_peer.get(PEERS[peer])
        ratio = "" if base is None or not base.rounds else f"{ratio_of(side, base):.2f}"
        memory = "" if math.isnan(side.bytes) else f"{side.bytes / 1e9:.2f}"
        shown.add_row(peer, middle, f"{low} to {high}", ratio, PEERS[peer] if ratio else "", memory, f"{side.first:.0f}")
    return shown


def quartiles(values: Sequence[float]) -> list[float]:
    """The lower quartile, the median and the upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3


def ratio_of(side: Side, base: Side) -> float:
    """How many times as long as another a side takes: the median over their turns."""
    return statistics.median(own / other for own, other in zip(side.rounds, base.rounds, strict=True))


def disagreements(sides: Sequence[Side]) -> Iterator[str]:
    """Sides whose first losses are not those of the first side of the case that gave some."""
    for case in dict.fromkeys(side.case for side in sides):
        first, *others = [side for side in sides if side.case == case and side.losses] or [Side(case, "")]
        tolerance = TOLERANCES[CASES[case].compute]
        for side in others:
            pairs = zip(side.losses, first.losses, strict=True)
            if not all(abs(own - other) <= tolerance * abs(other) for own, other in pairs):  # NaN is not within it
                yield f"{case}: {side.peer}'s first losses are {_listed(side)}, but those of {first.peer} {_listed(first)}"


def _listed(side: Side) -> str:
    return ", ".join(f"{loss:.5f}" for loss in side.losses)

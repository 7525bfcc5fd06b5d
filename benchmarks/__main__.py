"""fundl and its peers side by side: every case, with every peer that it is natural for.

    python -m benchmarks
    python -m benchmarks --case disk --case epoch-adam-10 --peer fundl-jit --peer jax --quick
    python -m benchmarks --case normal --case initialize --case dropout --case dying
    python -m benchmarks --case deep --case blocks --case rows --case steps --case compile
    python -m benchmarks --check
    python -m benchmarks --names
    python -m benchmarks --case disk --keep
    python -m benchmarks --history
    python -m benchmarks --device cuda

It writes benchmarks.md, benchmarks.csv and benchmarks.png; ``--keep`` keeps the result by commit as well, and ``--history``
draws all that were kept over time. Three things are commands of their own: ``python -m benchmarks.ensemble``, ``python -m
benchmarks.corners`` and ``python -m benchmarks.plugin``; and ``python -m benchmarks.drawing`` is the quick way to some of the
cases.
"""

import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from benchmarks import history as kept
from benchmarks import on_device, pairs
from benchmarks.cases import CASES
from benchmarks.device_cases import NAMES as NAMES_ON_DEVICE
from benchmarks.peers import PEERS
from benchmarks.report import disagreements, write
from benchmarks.session import Failed, Losses, Measured, Outcome, compiling, importing, long_training, training

_COMPILED: Final = {  # whose first step in a new process is measured
    "compile": "disk-adam-10",
    **{f"compile-{name}": name for name, case in CASES.items() if case.deepens},
}
_PAIRS: Final = pairs.pairs()
_NAMES: Final = (*CASES, *_PAIRS, *_COMPILED, "import")


def main(
    *,
    case: Annotated[list[str] | None, typer.Option(help="What to measure: a name, or how names begin. All by default.")] = None,
    peer: Annotated[list[str] | None, typer.Option(help=f"Who takes part, of {', '.join(PEERS)}. All by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each peer has its turn.")] = 15,
    patience: Annotated[float, typer.Option(help="After so many seconds a peer that still compiles a case is left out.")] = 240,
    quick: Annotated[bool, typer.Option("--quick", help="Three short rounds: to see that all runs, not for figures.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only compare the first losses of all peers.")] = False,
    names: Annotated[bool, typer.Option("--names", help="Only print the names of all that can be measured.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Also keep the result in benchmarks/results, by commit.")] = False,
    history: Annotated[bool, typer.Option("--history", help="Only draw the results that were kept, over time.")] = False,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="cuda: cases of their own, of benchmarks.on_device.")] = "cpu",
    out: Annotated[Path, typer.Option(help="Where tables and picture go.")] = Path("reports/benchmarks"),
) -> None:
    """Measure, and write tables and a picture."""
    cases = _chosen("case", case, _NAMES if device == "cpu" else NAMES_ON_DEVICE)
    peers = _chosen("peer", peer, [*PEERS] if device == "cpu" else [*on_device.PEERS])
    if names:
        print("\n".join(cases))
        raise typer.Exit
    if not check or device == "cuda":
        _make(out)
    if history:
        over_time(out)
        raise typer.Exit
    if device == "cuda":
        turns = 0 if check else 3 if quick else rounds
        raise typer.Exit(on_device.main(device, cases, peers, out, rounds=turns, patience=patience, keep=keep))
    rounds, seconds = (3, 0.02) if quick else (rounds, 0.1)
    before = os.getloadavg()[0]
    outcomes: list[Outcome] = []
    losses: dict[str, list[Losses]] = {}
    for name in cases:
        start = time.perf_counter()
        if name in CASES:
            turns = 0 if check else rounds
            found, losses[name] = training(CASES[name], peers, rounds=turns, seconds=seconds, patience=patience)
            outcomes += found
            if CASES[name].network == "dropout" or CASES[name].looped:
                del losses[name]  # each draws by itself; and after so many steps, the order of each sum has told
            if CASES[name].network == "dying" and not check:
                outcomes += long_training(CASES[name], peers)
        elif not check:
            outcomes += _of_pair(name, peers, rounds) if name in _PAIRS else _of_processes(name, peers, 1 if quick else rounds)
        if not check:
            write(out, outcomes, losses)  # after each case: who stops the rest keeps these
            if keep:
                kept.keep(outcomes, before)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    _tell(disagreements(losses))
    if check:
        _tell(f"{each.name}, {PEERS[each.peer].name}: {each.reason}" for each in outcomes if isinstance(each, Failed))
        raise typer.Exit(bool(disagreements(losses)))
    print((out / "benchmarks.md").read_text())


def _tell(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def over_time(out: Path) -> None:
    """Draw all results that were kept."""
    found = kept.results()
    if not found:
        raise typer.BadParameter(f"no result is in {kept.RESULTS} yet: measure with --keep", param_hint="--history")
    kept.draw(found, out)
    print((out / "history.md").read_text())


def _of_processes(name: str, peers: Sequence[str], rounds: int) -> list[Outcome]:
    if name == "import":
        return importing(peers, rounds=min(rounds, 7))
    case = CASES[_COMPILED[name]]
    if name == "compile":
        return compiling(case, peers, rounds=min(rounds, 3))
    return compiling(case, peers, rounds=1, name=case.name)  # each takes a minute


def _of_pair(name: str, peers: Sequence[str], rounds: int) -> list[Measured]:
    return [each for each in pairs.measured(name, _PAIRS[name](), rounds) if each.peer in peers]


def _make(folder: Path) -> None:
    """Make the folder of the results, or say why that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"the folder {str(folder)!r} cannot be made: {error.strerror}", param_hint="--out") from error


def _chosen(option: str, wanted: Sequence[str] | None, names: Sequence[str]) -> list[str]:
    """The names that are wanted, or begin with what is wanted and a hyphen."""
    for word in wanted or ():
        if not any(_meant(name, word) for name in names):
            raise typer.BadParameter(f"there is no {option} {word}, but {', '.join(names)}", param_hint=f"--{option}")
    return [name for name in names if not wanted or any(_meant(name, word) for word in wanted)]


def _meant(name: str, word: str) -> bool:
    return name == word or name.startswith(f"{word}-")


def start(arguments: Sequence[str] | None = None) -> int:
    """Measure what stands on the command line, or other arguments; what is wrong with them is one line, and the status 2."""
    app = typer.Typer(add_completion=False)
    app.command()(main)
    try:
        status: object = app(None if arguments is None else [*arguments], standalone_mode=False)
    except Exception as error:
        said: object = getattr(error, "format_message", None)
        if not callable(said):
            raise
        print(f"python -m benchmarks: {' '.join(said().split())}", file=sys.stderr)
        return 2
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    sys.exit(start())

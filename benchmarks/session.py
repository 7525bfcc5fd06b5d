"""Workers, one process a peer, and turns among them.

A change of the machine's speed meets all peers alike, because they take turns; what is compared is their times of one round.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final, TypeAlias

import attrs

from benchmarks.cases import Case
from benchmarks.peers import PEERS

Answer: TypeAlias = Mapping[str, Sequence[float]]
"""What a worker answers: numbers for each setting of its peer."""
THREADS: Final = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLIS_NUM_THREADS", "NPROC"]  # NPROC is XLA's


_MODULE: Final = "benchmarks.worker"


class WorkerError(RuntimeError):
    """A worker ended without an answer; the message is the last that it said."""


@attrs.frozen(eq=False)
class Worker:
    """A process that measures.

    Args:
        peer: its key in `PEERS`.
        process: that answers.
        said: its standard error.
    """

    peer: str
    process: subprocess.Popen[str]
    said: IO[str]

    def ask(self, *request: object) -> None:
        """Send a request; the answer is `answer`'s."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(" ".join(map(str, request)) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._error() from None

    def answer(self, deadline: float | None = None) -> Answer:
        """The answer to the last request, once it comes.

        Args:
            deadline: when to give up, as `time.monotonic` counts.
        """
        assert self.process.stdout is not None
        if deadline is not None:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                raise WorkerError("it was not ready in time")
        line = self.process.stdout.readline()
        if not line:
            raise self._error()
        answer: Answer = json.loads(line)
        return answer

    def _error(self) -> WorkerError:
        self.process.wait()
        self.said.seek(0)
        lines = [line.strip() for line in self.said if line.strip(" │╰╯─\n")]
        return WorkerError(lines[-1] if lines else f"it ended with {self.process.returncode}, and said nothing")


@contextmanager
def worker(peer: str, case: Case, **environment: str) -> Iterator[Worker]:
    """A worker, which ends with the context."""
    threads = str(case.threads)
    variables = {
        **os.environ,
        **dict.fromkeys(THREADS, threads),
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={'true' if case.threads > 1 else 'false'}",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "DEV": "CPU",  # of tinygrad
        "TYPER_STANDARD_TRACEBACK": "1",
        **environment,
    }
    with started(peer, [sys.executable, "-m", _MODULE, peer, case.name], variables) as each:
        yield each


@contextmanager
def started(peer: str, command: Sequence[str], variables: Mapping[str, str]) -> Iterator[Worker]:
    """A worker by its command and its environment, which ends with the context."""
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, env=variables, stdin=pipe, stdout=pipe, stderr=said, text=True) as process,
    ):
        try:
            yield Worker(peer, process, said)
        finally:
            process.kill()


# --- What is measured ----------------------------------------------------------------------------------------------------


@attrs.frozen
class Measured:
    """What a peer was found to take for one thing, round by round.

    Args:
        name: of the thing, in tables.
        peer: its key in `PEERS`.
        setting: of the peer, the one that took the least.
        values: seconds or bytes, one a round.
        processors: how many processors were busy on average; NaN where that was not measured.
        grows: see `Case`.
    """

    name: str
    peer: str
    setting: str
    values: tuple[float, ...]
    processors: float = float("nan")
    grows: int = 0


@attrs.frozen
class Failed:
    """A peer that could not do what it was asked to.

    Args:
        name: of the thing, in tables.
        peer: its key in `PEERS`.
        reason: what its worker said last.
    """

    name: str
    peer: str
    reason: str


Outcome: TypeAlias = Measured | Failed


@attrs.frozen
class Losses:
    """The losses of the first calls of one peer's setting."""

    peer: str
    setting: str
    values: tuple[float, ...]


def training(
    case: Case, peers: Sequence[str], *, rounds: int, seconds: float, patience: float
) -> tuple[list[Outcome], list[Losses]]:
    """Time of a call, and memory where the case asks for it; with the first losses, for a comparison.

    Args:
        case: what is trained.
        peers: who trains it; who does not take the case is left out.
        rounds: how often each peer has its turn; 0 for the losses alone.
        seconds: that a turn takes, about.
        patience: how many seconds all have together to compile, and to make the first calls.
    """
    outcomes: list[Outcome] = []
    losses: list[Losses] = []
    with ExitStack() as stack:
        workers = [stack.enter_context(worker(peer, case)) for peer in peers if PEERS[peer].takes(case)]
        for each in workers:
            each.ask("losses", 3)
        deadline = time.monotonic() + patience
        alive: list[Worker] = []
        for each in workers:
            try:
                losses += [Losses(each.peer, setting, tuple(values)) for setting, values in each.answer(deadline).items()]
                alive.append(each)
            except WorkerError as error:
                each.process.kill()  # it must not disturb the others
                outcomes.append(Failed(case.name, each.peer, str(error)))
        if rounds:
            rounds = min(rounds, 3) if case.looped else rounds  # one call takes seconds
            times = _turns(alive, rounds, "time", seconds)
            outcomes += [_least(case.name, each.peer, times[each.peer], case.grows) for each in alive]
            if case.memory:
                peaks = _turns(alive, min(rounds, 3), "memory")
                outcomes += [_least(f"memory-{case.name}", each.peer, peaks[each.peer], case.grows) for each in alive]
    return outcomes, losses


def _turns(workers: Sequence[Worker], rounds: int, *request: object) -> dict[str, list[Answer]]:
    """The answers of some rounds; a first one warms up. Every other round is in reverse order."""
    answers: dict[str, list[Answer]] = {each.peer: [] for each in workers}
    for number in range(rounds + 1):
        for each in workers if number % 2 else workers[::-1]:
            each.ask(*request)
            answer = each.answer()
            if number:
                answers[each.peer].append(answer)
    return answers


def _least(name: str, peer: str, answers: Sequence[Answer], grows: int = 0) -> Measured:
    """The setting whose median is the least."""
    measured = [
        Measured(name, peer, setting, tuple(answer[setting][0] for answer in answers), _processors(setting, answers), grows)
        for setting in answers[0]
    ]
    return min(measured, key=lambda each: sorted(each.values)[len(each.values) // 2])


def _processors(setting: str, answers: Sequence[Answer]) -> float:
    columns = list(zip(*(answer[setting] for answer in answers), strict=True))
    return sum(columns[1]) / sum(columns[0]) if len(columns) > 1 else float("nan")


# Of the time of a long training: calls 2 to 6 of a hundred steps each, before what decays is too small for a processor, and
# the last ones. The first call compiles.
LONG: Final = 200
_EARLY: Final = slice(1, 6)
_LATE: Final = slice(-5, None)


def long_training(case: Case, peers: Sequence[str], *, calls: int = LONG) -> list[Outcome]:
    """The processor's seconds of calls early and late in a training, `first-` and `last-`: each peer is by itself.

    Args:
        case: what is trained; a call has a hundred steps.
        peers: who trains it; who does not take the case is left out.
        calls: how many.
    """
    outcomes: list[Outcome] = []
    for peer in peers:
        if PEERS[peer].takes(case):
            try:
                with worker(peer, case) as each:
                    each.ask("long", calls)
                    for setting, values in each.answer().items():
                        outcomes.append(Measured(f"first-{case.name}", peer, setting, tuple(values[_EARLY])))
                        outcomes.append(Measured(f"last-{case.name}", peer, setting, tuple(values[_LATE])))
            except WorkerError as error:
                outcomes.append(Failed(f"last-{case.name}", peer, str(error)))
    return outcomes


def compiling(case: Case, peers: Sequence[str], *, rounds: int, name: str = "") -> list[Outcome]:
    """Seconds of the first call in a new process, without what earlier processes compiled ("cold") and with it ("warm").

    Args:
        case: what is trained.
        peers: who trains it; who does not take the case, or compiles nothing, is left out.
        rounds: how often.
        name: of the case in tables, after a hyphen; none for the usual case.
    """
    name = f"-{name}" if name else ""
    times: dict[tuple[str, str], list[Answer]] = {}
    failed: dict[str, Outcome] = {}
    for _ in range(rounds):
        for peer in peers:
            if not PEERS[peer].compiles or not PEERS[peer].takes(case) or peer in failed:
                continue
            with tempfile.TemporaryDirectory() as folder:
                for state in ("cold", "warm"):
                    try:
                        with worker(peer, case, **_caches(Path(folder))) as each:
                            each.ask("first")
                            answer = each.answer()
                        times.setdefault((state, peer), []).append(answer)
                    except WorkerError as error:
                        failed[peer] = Failed(f"compile-cold{name}", peer, str(error))
                        break
    measured = [_least(f"compile-{state}{name}", peer, answers, case.grows) for (state, peer), answers in times.items()]
    return [*measured, *failed.values()]


def _caches(folder: Path) -> dict[str, str]:
    """Variables that make each peer keep what it compiles in a folder."""
    return {
        "XDG_CACHE_HOME": str(folder),
        "FUNDL_CACHE_DIR": str(folder / "fundl"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


_IMPORT: Final = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def importing(peers: Sequence[str], *, rounds: int) -> list[Outcome]:
    """Seconds that a new process takes to import what a peer needs, without the start of Python."""
    statements = {PEERS[peer].imports: peer for peer in reversed(peers)}  # of the peers with one import, the first
    times: dict[str, list[float]] = {}
    outcomes: list[Outcome] = []
    for number in range(rounds + 1):
        for modules, peer in [*statements.items()][:: -1 if number % 2 else 1]:
            command = [sys.executable, "-c", _IMPORT.format(modules)]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                del statements[modules]
                outcomes.append(Failed("import", peer, done.stderr.strip().splitlines()[-1]))
            elif number:  # the first reads from disk
                times.setdefault(peer, []).append(float(done.stdout))
    return [*(Measured("import", peer, "", tuple(values)) for peer, values in times.items()), *outcomes]

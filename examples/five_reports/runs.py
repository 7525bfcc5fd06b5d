"""Many runs on several processor cores, with bars that tell how far they are."""

import multiprocessing
import queue
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import attrs
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

import fundl
from five_reports.catalogue import EXPERIMENTS
from five_reports.engine import Run, is_inside, run_both, scaled, start_of, steps_of
from five_reports.setups import Setup
from fundl import Model, tree

TELL_EVERY = 10  # epochs from one message to the next


@attrs.frozen
class Job:
    """A run to make: a few words, since they travel to another process.

    Args:
        report: the experiment's name.
        setup: which of its set-ups.
        run: the number of the run.
        seed: of all runs.
        epochs: to train for; None for as many as the report did.
        model_file: where to save the trained model; None for nowhere.
    """

    report: str
    setup: int
    run: int
    seed: int
    epochs: int | None
    model_file: Path | None


def setup_of(job: Job) -> Setup:
    """What a job trains."""
    setup = EXPERIMENTS[job.report].setups[job.setup]
    return setup if job.epochs is None else attrs.evolve(setup, epochs=job.epochs)


def do(job: Job, tell: Callable[[Job, int], None]) -> Run:
    """Make a run, and say from time to time how many epochs more are done."""
    torch.set_num_threads(1)
    setup, epochs = setup_of(job), 0

    def tick() -> None:
        nonlocal epochs
        epochs += 1
        if epochs % TELL_EVERY == 0:
            tell(job, TELL_EVERY)

    run, model = run_both(setup, job.seed, job.run, tick)
    tell(job, epochs % TELL_EVERY)
    if job.model_file is not None:
        keep(setup, job, model, job.model_file)
    return run


def keep(setup: Setup, job: Job, model: Model, file: Path) -> None:
    """Save a trained model, load it again, and make sure that nothing was lost; and that it can be reset."""
    fundl.save(file, model, metadata={"report": job.report, "setup": setup.name, "seed": str(job.seed), "run": str(job.run)})
    start = start_of(job.seed, job.run)
    x = scaled(setup, start, start.test_points)
    before, after = (is_inside(setup, fundl.apply(each, x)) for each in (model, fundl.load(file, setup.model)))
    if not torch.equal(before, after):
        raise RuntimeError(f"the model loaded from {file} does not predict what the saved one did")
    # Initialising again is the reset: the same key gives the first parameters back, whatever was learned since.
    first, reset = (fundl.initialize(start.model_key, each) for each in (setup.model, model))
    if not tree.equal(first, reset):
        raise RuntimeError(f"the model of {setup.name} was not reset by initialising it again")


# --- All jobs ---------------------------------------------------------------------------------------------------------


def do_all(jobs: Sequence[Job], processes: int, console: Console) -> dict[Job, Run]:
    """Make all runs, the longest first, on several processes, and show how far they are.

    Args:
        jobs: what to do.
        processes: how many at once; with 1 everything is done in this process.
        console: where to show the progress.
    """
    longest_first = sorted(jobs, key=lambda job: -steps_of(setup_of(job)))
    bars = Bars(jobs, console)
    with bars.progress:
        if processes == 1:
            return {job: bars.finish(job, do(job, bars.move)) for job in longest_first}
        return in_processes(longest_first, processes, bars)


def in_processes(jobs: Sequence[Job], processes: int, bars: "Bars") -> dict[Job, Run]:
    """Make the runs in other processes. They are started afresh: torch does not survive being forked."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(processes, mp_context=context) as pool:
        messages: queue.Queue[tuple[Job, int]] = manager.Queue()
        waiting: dict[Future[Run], Job] = {pool.submit(do, job, Telling(messages)): job for job in jobs}
        done: dict[Job, Run] = {}
        try:
            while waiting:
                read(messages, bars)
                for future in [future for future in waiting if future.done()]:
                    job = waiting.pop(future)
                    done[job] = bars.finish(job, future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return done


def read(messages: "queue.Queue[tuple[Job, int]]", bars: "Bars") -> None:
    """Wait a moment for a message, and pass on all that are there."""
    try:
        bars.move(*messages.get(timeout=0.2))
        while True:
            bars.move(*messages.get_nowait())
    except queue.Empty:
        return


@attrs.frozen
class Telling:
    """Sends how many epochs more are done; unlike a function within a function it can travel to another process."""

    messages: "queue.Queue[tuple[Job, int]]"

    def __call__(self, job: Job, epochs: int) -> None:
        """Send it."""
        self.messages.put((job, epochs))


class Bars:
    """A bar for each set-up, over the epochs of all its runs; where there is no terminal, a line when it is finished."""

    def __init__(self, jobs: Sequence[Job], console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            TextColumn("run {task.fields[runs]}"),
            BarColumn(bar_width=30),
            TextColumn("epoch {task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_interactive,
        )
        self._console = console
        self._runs = Counter((job.report, job.setup) for job in jobs)
        self._done: Counter[tuple[str, int]] = Counter()
        self._bars: dict[tuple[str, int], TaskID] = {}
        for job in jobs:
            place, setup = (job.report, job.setup), setup_of(job)
            if place not in self._bars:
                epochs, runs = 2 * setup.epochs * self._runs[place], f"0/{self._runs[place]}"  # fundl's and torch.nn's
                self._bars[place] = self.progress.add_task(f"{job.report} {setup.name}", total=epochs, runs=runs)

    def move(self, job: Job, epochs: int) -> None:
        """Show that some epochs more are done."""
        self.progress.advance(self._bars[job.report, job.setup], epochs)

    def finish(self, job: Job, run: Run) -> Run:
        """Show that a run is done."""
        place = job.report, job.setup
        self._done[place] += 1
        done, runs = self._done[place], self._runs[place]
        self.progress.update(self._bars[place], runs=f"{done}/{runs}")
        if done == runs and not self._console.is_interactive:
            self._console.print(f"{job.report} {setup_of(job).name}: {runs} runs done", markup=False, highlight=False)
        return run

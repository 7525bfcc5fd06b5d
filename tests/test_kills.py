"""Runs that are killed, on purpose and at chosen instants: taken up, they end with the bits of one that was not."""

import dataclasses
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

import pytest
import torch

from fundl import Checkpoints, Interrupted, accuracy, epochs, key, load, save, train_state
from fundl._common import files
from fundl._common.files import is_unfinished
from fundl.data import Minibatches
from fundl.saving import _numbers, _writing
from fundl.training import _means, checkpoints
from tests.nursery import Nursery
from tests.test_checkpoints import OPTIMIZER, STEP, Batch, batches, measured, model

if TYPE_CHECKING:
    from _typeshed import TraceFunction

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="process groups, and what is in /proc")

EPOCHS: Final = 5
FEW: Final = 50  # numbers of predictions that wait: those of two batches, so that epochs can be interrupted in their middle


@dataclasses.dataclass
class Ending:
    """How a process ends itself.

    Args:
        batch: as it is asked for this batch.
        line: before this line of the code that writes checkpoints.
        number: the signal.
        group: whether it is for all of its process group.
    """

    batch: int = 0
    line: int = 0
    number: int = signal.SIGKILL
    lines: int = 0  # that were seen
    batches: int = 0

    def end(self) -> None:
        if self.number == signal.SIGKILL:
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), self.number)

    def of_batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.batches += 1
            if self.batches == self.batch:
                self.end()
            yield batch

    def trace(self, frame: FrameType, _event: str, _argument: object) -> "TraceFunction | None":
        return self.trace_lines if frame.f_code.co_filename in WRITING else None

    def trace_lines(self, _frame: FrameType, event: str, _argument: object) -> "TraceFunction | None":
        self.lines += event == "line"
        if self.lines == self.line:
            self.end()
        return self.trace_lines


WRITING: Final = {module.__file__ for module in (files, _numbers, _writing, checkpoints)}


def train(
    folder: str,
    result: str,
    *,
    batch: int = 0,
    line: int = 0,
    number: int = signal.SIGKILL,
    compiled: bool = False,
    seconds: float = 1e-9,
) -> None:
    """A run that goes on, and may end itself; it saves what comes out, and prints how many lines and batches there were."""
    torch.set_num_threads(1)
    ending = Ending(batch=batch, line=line, number=number)
    threading.settrace(ending.trace)
    patch = pytest.MonkeyPatch()
    original: Callable[[Minibatches[Batch]], Iterator[Batch]] = Minibatches.__iter__
    patch.setattr(Minibatches, "__iter__", lambda self: ending.of_batches(original(self)))
    patch.setattr(_means, "_BUFFER_NUMBERS", FEW)
    kept = Checkpoints(folder, seconds=seconds, best=lambda epoch: epoch.train.loss)

    passed = epochs(
        STEP,
        train_state(key(2), model(), OPTIMIZER),
        batches,
        count=EPOCHS,
        metrics={"accuracy": accuracy},
        evaluate=measured,
        evaluate_every=2,
        checkpoints=kept,
        compile=compiled,
        progress=False,
    )
    *_, last = passed
    told = repr([(one.epoch, one.step, one.train, one.test) for one in last.history])
    save(result, last.state, metadata={"history": told})
    print(ending.lines, ending.batches)


class Killed:
    """A run that is ended again and again, and what it is to come to."""

    def __init__(self, nursery: Nursery, folder: Path, **options: object) -> None:
        self._nursery, self._options = nursery, options
        self.folder, self.result = folder / "run", folder / "result"
        assert nursery.run("train", folder=str(folder / "whole"), result=str(self.result), **options) == 0, nursery.printed
        self.expected = self.result.read_bytes()
        self.lines, self.batches = map(int, nursery.printed.split())
        self.result.unlink()

    def go_on(self, **ending: int) -> int:
        """The exit status of the process that goes on."""
        status = self._nursery.run("train", folder=str(self.folder), result=str(self.result), **self._options, **ending)
        self.require_whole()
        return status

    def require_whole(self) -> None:
        """All files are whole, and of an unfinished one there is one at most."""
        names = os.listdir(self.folder)
        for name in names:
            if not is_unfinished(name):
                load(self.folder / name, train_state(key(2), model(), OPTIMIZER))
        assert sum(map(is_unfinished, names)) <= 1

    def require_the_same(self) -> None:
        """Gone on from for the last time, it ends with the bits of a whole one, and leaves nothing behind."""
        assert self.go_on() == 0, self._nursery.printed
        assert self.result.read_bytes() == self.expected
        assert not any(map(is_unfinished, os.listdir(self.folder)))
        names = sorted(os.listdir(self.folder))  # a signal leaves a checkpoint also where none was due
        assert (len(names), names[0], names[-1]) == (4, "best.safetensors", f"epoch-{EPOCHS:06}.safetensors")


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery("tests.test_kills", tmp_path_factory.mktemp("nursery")) as one:
        yield one


def in_saves(killed: Killed, instants: int) -> None:
    """End a run inside of saves, each time at another line of them."""
    saves = (
        3 * EPOCHS + EPOCHS + 3
    )  # two in the middle of an epoch of five batches, one when these are done, and one more; best ones
    for instant in range(instants):
        line = killed.lines * (2 + instant / instants) / saves
        assert killed.go_on(line=int(line)) == -signal.SIGKILL
    killed.require_the_same()


def test_killed_inside_of_saves(nursery: Nursery, tmp_path: Path) -> None:
    in_saves(Killed(nursery, tmp_path), 3)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_killed_inside_of_saves_at_many_lines(nursery: Nursery, compiled: bool, tmp_path: Path) -> None:
    in_saves(Killed(nursery, tmp_path, compiled=compiled), 10)


def test_killed_in_the_middle_of_an_epoch(nursery: Nursery, tmp_path: Path) -> None:
    killed = Killed(nursery, tmp_path)
    for batch in (4, 3):
        assert killed.go_on(batch=batch) == -signal.SIGKILL
    killed.require_the_same()


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("seconds", [1e-9, 1e9])
def test_killed_in_the_middle_of_many_epochs(nursery: Nursery, compiled: bool, seconds: float, tmp_path: Path) -> None:
    killed = Killed(nursery, tmp_path, compiled=compiled, seconds=seconds)
    for batch in (2, 3, 7, 4, 8, 3, 2, 9, 4, 3):
        assert killed.go_on(batch=batch) in {-signal.SIGKILL, 0}
    killed.require_the_same()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ended_by_a_signal_in_the_middle_of_an_epoch_nothing_is_lost(nursery: Nursery, number: int, tmp_path: Path) -> None:
    killed = Killed(nursery, tmp_path, seconds=1e9)
    for batch, step in ((3, 3), (5, 8), (3, 10)):  # the first batch of a pass that is taken up is asked for, to know its kind
        assert killed.go_on(batch=batch, number=number) == 1
        assert Interrupted.__name__ in nursery.printed
        newest = max(os.listdir(killed.folder))
        assert newest.endswith(f"-step-{step:06}.safetensors")
        assert f"The same call goes on from {killed.folder / newest}." in nursery.printed
    killed.require_the_same()
    _, batches = map(int, nursery.printed.split())
    assert batches == killed.batches - 10 + 1  # no step is made twice


def at_random_instants(nursery: Nursery, folder: Path, *, times: int, compiled: bool, number: int) -> None:
    """End a run at some random instants, wherever it is by then."""
    draw = random.Random(number)
    start = time.monotonic()
    killed = Killed(nursery, folder, compiled=compiled)
    whole = time.monotonic() - start
    for _ in range(times):
        nursery.start("train", folder=str(killed.folder), result=str(killed.result), compiled=compiled)
        if not nursery.is_over(draw.uniform(0.0, 0.7) * whole):
            nursery.send(number)
        nursery.wait()
    killed.require_the_same()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ended_at_random_instants(nursery: Nursery, number: int, tmp_path: Path) -> None:
    at_random_instants(nursery, tmp_path, times=4, compiled=False, number=number)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ended_at_many_random_instants(nursery: Nursery, number: int, compiled: bool, tmp_path: Path) -> None:
    at_random_instants(nursery, tmp_path, times=25, compiled=compiled, number=number)


# --- While compiling --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_while_compiling(tmp_path: Path) -> None:
    """Also while compilers run, of which none is left; into one cache, that is new."""
    kept = tmp_path / "cache"
    environment = {"FUNDL_CACHE_DIR": str(kept), "TORCHINDUCTOR_CACHE_DIR": str(kept / "inductor")}
    with Nursery("tests.test_kills", tmp_path, {name: f"{value}-whole" for name, value in environment.items()}) as nursery:
        start = time.monotonic()
        killed = Killed(nursery, tmp_path, compiled=True)
        whole = time.monotonic() - start
    seen = set[str]()
    with Nursery("tests.test_kills", tmp_path, environment) as nursery:
        killed._nursery = nursery
        for instant in range(10):
            nursery.start("train", folder=str(killed.folder), result=str(killed.result), compiled=True)
            until_compiler_or(nursery, whole * (instant // 2 + 1) / 12, wait_for_one=bool(instant % 2))
            seen |= nursery.names()
            if nursery.is_over(0):
                nursery.wait()
            else:
                nursery.send(signal.SIGKILL)
                assert nursery.wait() == -signal.SIGKILL
            if killed.folder.is_dir():
                killed.require_whole()
        assert seen & COMPILERS
        killed.require_the_same()


COMPILERS: Final = {"cc1plus", "as", "ld", "collect2", "g++", "c++", "clang", "clang++"}


def until_compiler_or(nursery: Nursery, seconds: float, *, wait_for_one: bool) -> None:
    """Wait for some time; and then for a compiler to run, if it is to be waited for, and something runs at all."""
    over = nursery.is_over(seconds)
    until = time.monotonic() + 60
    while wait_for_one and not over and not nursery.names() & COMPILERS and time.monotonic() < until:
        over = nursery.is_over(0.002)

"""Checkpoints: a run that stops anywhere, and however, is taken up and ends with the same bits."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeAlias

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fundl import (
    Batches,
    Checkpoints,
    Dropout,
    Epoch,
    Evaluation,
    Interrupted,
    Key,
    Linear,
    ReLU,
    accuracy,
    adam,
    adamw,
    compose,
    cosine_schedule,
    cross_entropy,
    disk,
    ensemble,
    epochs,
    evaluate,
    fit,
    generator,
    initialize,
    key,
    last_good,
    linear,
    load,
    load_metadata,
    minibatches,
    save,
    sgd,
    split,
    train_state,
    train_step,
    tree,
)
from fundl.saving._writing import Content, write
from fundl.training import _means, _step_runner
from fundl.training import checkpoints as checkpoints_module
from fundl.training import epochs as epochs_module
from fundl.training._keeping import Keeper
from fundl.training.checkpoints import Writer

Batch: TypeAlias = tuple[Tensor, Tensor]
Trained: TypeAlias = tuple[Linear[int, int], ReLU, Dropout, Linear[int, int]]

DATA: Final[Batch] = disk(key(0), 50)  # five batches of 12, the last of 2
OPTIMIZER: Final = adamw(cosine_schedule(0.02, 40))
STEP: Final = train_step(cross_entropy, OPTIMIZER)


def model() -> Trained:
    return initialize(key(1), compose(linear(2, 8), ReLU(), Dropout(0.2), linear(8, 2)))


def batches(key: Key) -> Iterable[Batch]:
    return minibatches(key, DATA, 12)


def loaded(key: Key) -> Iterable[Batch]:
    return DataLoader(TensorDataset(*DATA), batch_size=12, shuffle=True, generator=generator(key))


KINDS: Final[dict[str, Batches[Tensor, Tensor]]] = {
    "minibatches": batches,
    "in order": lambda _key: minibatches(None, DATA, 12),
    "DataLoader": loaded,
    "list": [*minibatches(None, DATA, 12)],
}


METRICS: Final = {"accuracy": accuracy}


def measured(model: Trained) -> Evaluation:
    return evaluate(cross_entropy, model, [DATA], metrics={"accuracy": accuracy})


def run(
    folder: Path | None,
    count: int,
    *,
    every: int | None = None,
    batches: Batches[Tensor, Tensor] = batches,
    compiled: bool = False,
    donate: bool = False,
) -> tuple[object, tuple[Epoch, ...]]:
    return fit(
        STEP,
        train_state(key(2), model(), OPTIMIZER),
        batches,
        epochs=count,
        every=every,
        metrics=METRICS,
        evaluate=measured,
        evaluate_every=2,
        checkpoints=None if folder is None else Checkpoints(folder),
        compile=compiled,
        donate=donate,
        progress=False,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- The same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [None, 1, 2, 7])
def test_a_run_in_parts_has_the_bits_of_a_whole_one(kind: str, every: int | None, tmp_path: Path) -> None:
    state, history = run(None, 6, every=every, batches=KINDS[kind])
    for stop in (1, 2, 3, 6):
        folder = tmp_path / str(stop)
        for count in range(stop, 6, stop):
            run(folder, count, every=every, batches=KINDS[kind])
        again, told = run(folder, 6, every=every, batches=KINDS[kind])
        assert tree.equal(again, state)
        assert [one.train for one in told] == [one.train for one in history]
        assert [one.step for one in told] == [one.step for one in history]


@pytest.mark.parametrize("every", [None, 4])
@pytest.mark.parametrize("donate", [False, True])
def test_compiled_and_donating_runs_too(every: int | None, donate: bool, tmp_path: Path) -> None:
    state, history = run(None, 5, every=every, compiled=True)
    for stop in (1, 2):
        run(tmp_path / str(stop), stop, every=every, compiled=True, donate=donate)
        again, told = run(tmp_path / str(stop), 5, every=every, compiled=True, donate=donate)
        assert tree.equal(again, state)
        assert [one.train for one in told] == [one.train for one in history]


def test_epochs_of_some_steps_go_through_all_batches() -> None:
    """The order within a pass, and the key of each, are those of whole epochs."""
    state, _ = run(None, 4)
    again, history = run(None, 10, every=2)
    assert tree.equal(again, state)
    assert [one.step for one in history] == [*range(2, 21, 2)]


def test_the_choice_to_compile_is_the_run_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def automatic(folder: Path | None, count: int) -> object:
        checkpoints = None if folder is None else Checkpoints(folder)
        first = train_state(key(2), model(), OPTIMIZER)
        return fit(STEP, first, batches, epochs=count, checkpoints=checkpoints, progress=False)[0]

    monkeypatch.setattr(epochs_module, "pays", lambda _steps, _model: True)
    expected = automatic(None, 3)
    automatic(tmp_path, 1)
    monkeypatch.setattr(epochs_module, "pays", lambda _steps, _model: False)
    assert tree.equal(automatic(tmp_path, 3), expected)


def test_an_ensemble(tmp_path: Path) -> None:
    def run(folder: Path | None, count: int) -> tuple[object, tuple[tuple[Epoch, ...], ...]]:
        optimizer = adam(0.01)
        models = ensemble.initialize(split(key(0), 3), compose(linear(2, 4), ReLU(), linear(4, 2)))
        return ensemble.fit(
            ensemble.train_step(cross_entropy, optimizer),
            ensemble.train_state(split(key(1), 3), models, optimizer),
            lambda keys: ensemble.minibatches(keys, ensemble.share(DATA, 3), 12),
            epochs=count,
            checkpoints=None if folder is None else Checkpoints(folder),
            progress=False,
        )

    state, histories = run(None, 4)
    run(tmp_path, 1)
    again, told = run(tmp_path, 4)
    assert tree.equal(again, state)
    assert told == histories
    assert len(told) == 3


# --- What is kept -----------------------------------------------------------------------------------------------------


def test_the_newest_are_kept_and_the_best(tmp_path: Path) -> None:
    wanted: list[float] = []

    def loss(epoch: Epoch) -> float:
        return epoch.train.loss

    checkpoints = Checkpoints(tmp_path / "a" / "b", keep=2, best=loss)
    first = train_state(key(2), model(), OPTIMIZER)
    best: object = None
    for epoch in epochs(STEP, first, batches, count=5, checkpoints=checkpoints, progress=False):
        if not any(one <= epoch.train.loss for one in wanted):
            best = tree.map(torch.clone, epoch.state)
        wanted.append(epoch.train.loss)
    assert names(tmp_path / "a" / "b") == ["best.safetensors", "epoch-000004.safetensors", "epoch-000005.safetensors"]
    assert tree.equal(load(tmp_path / "a" / "b" / "best.safetensors", first), best)


def test_what_a_killed_run_did_not_remove_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a call that finds nothing more to do, or may not write, and then leaves all as it is."""
    first, where = train_state(key(2), model(), OPTIMIZER), Checkpoints(tmp_path, keep=2)
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "_remove_surplus", lambda _writer, _newest: None)  # as one that ends just before
        fit(STEP, first, batches, epochs=4, checkpoints=where, progress=False)
    assert len(names(tmp_path)) == 4
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        fit(STEP, first, batches, epochs=4, checkpoints=where, progress=False)
    with pytest.raises(ValueError, match="another key"):
        fit(STEP, train_state(key(3), model(), OPTIMIZER), batches, epochs=4, checkpoints=where, progress=False)
    assert len(names(tmp_path)) == 4
    fit(STEP, first, batches, epochs=4, checkpoints=where, progress=False)
    assert names(tmp_path) == ["epoch-000003.safetensors", "epoch-000004.safetensors"]


def refused(path: Path, **_: object) -> None:
    raise PermissionError(path)


def test_how_often(tmp_path: Path) -> None:
    first = train_state(key(2), model(), OPTIMIZER)
    fit(STEP, first, batches, epochs=5, checkpoints=Checkpoints(tmp_path / "a", every=2, keep=9), progress=False)
    assert names(tmp_path / "a") == [f"epoch-00000{number}.safetensors" for number in (2, 4, 5)]


def test_so_many_seconds_after_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the middle of an epoch, and as soon as there are no predictions left to measure."""
    clock = [0.0]

    def slow(key: Key) -> Iterable[Batch]:
        for batch in batches(key):
            clock[0] += 10
            yield batch

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    first, where = train_state(key(2), model(), OPTIMIZER), Checkpoints(tmp_path, every=1000, seconds=25, keep=9)
    fit(STEP, first, slow, epochs=2, checkpoints=where, compile=False, progress=False)
    assert names(tmp_path) == [
        "epoch-000001-step-000003.safetensors",
        "epoch-000002-step-000006.safetensors",
        "epoch-000002-step-000009.safetensors",
        "epoch-000002.safetensors",
    ]
    for path in tmp_path.iterdir():
        path.unlink()
    fit(STEP, first, slow, epochs=2, metrics={"accuracy": accuracy}, checkpoints=where, compile=False, progress=False)
    assert names(tmp_path) == ["epoch-000001.safetensors", "epoch-000002.safetensors"]  # till then all wait to be measured


@pytest.mark.parametrize(
    ("kind", "every", "compiled", "donate"),
    [
        *[(kind, every, False, every is not None) for kind in KINDS for every in (None, 7)],
        ("minibatches", None, True, True),
        pytest.param("minibatches", 7, True, False, marks=pytest.mark.slow),
    ],
)
def test_a_run_interrupted_between_any_two_steps_has_the_bits_of_a_whole_one(
    *, kind: str, every: int | None, compiled: bool, donate: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_means, "_BUFFER_NUMBERS", 0)
    monkeypatch.setattr(_step_runner, "_MOST_STEPS", 3)  # in one call, and so between two checkpoints
    state, history = run(None, 3, every=every, batches=KINDS[kind], compiled=compiled)
    interrupted = interrupt_between_steps(monkeypatch)
    again: tuple[object, tuple[Epoch, ...]] | None = None
    while again is None:
        try:
            again = run(tmp_path, 3, every=every, batches=KINDS[kind], compiled=compiled, donate=donate)
        except Interrupted as stop:
            left, _ = last_good(stop, train_state(key(2), model(), OPTIMIZER))
            steps = [int(left.step), int(names(tmp_path)[-1].partition("-step-")[2].removesuffix(".safetensors"))]
            assert steps == [interrupted[-1]] * 2
    assert interrupted[-1] == history[-1].step
    assert len(interrupted) == history[-1].step + 1 or compiled
    assert tree.equal(again[0], state)
    assert again[1] == history


def interrupt_between_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have runs interrupted after each step, once; the steps."""
    interrupted, write_if_late = [0], Keeper._write_if_late

    def between(keeper: Keeper[Trained, object, Tensor, Tensor, Tensor], writer: Writer) -> None:
        write_if_late(keeper, writer)
        snapshot = keeper.run.snapshot()
        if snapshot is not None and int(snapshot.step) > interrupted[-1]:
            interrupted.append(int(snapshot.step))
            del snapshot
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Keeper, "_write_if_late", between)
    return interrupted


def test_a_run_that_is_finished_gives_its_last_epoch_once_more(tmp_path: Path) -> None:
    first, checkpoints = train_state(key(2), model(), OPTIMIZER), Checkpoints(tmp_path)
    *_, last = epochs(STEP, first, batches, count=3, checkpoints=checkpoints, progress=False)
    (again,) = epochs(STEP, first, batches, count=3, checkpoints=checkpoints, progress=False)
    assert again == last
    assert tree.equal(again.state, last.state)
    assert [one.epoch for one in again.history] == [1, 2, 3]


def test_the_history_has_what_was_before(tmp_path: Path) -> None:
    first, checkpoints = train_state(key(2), model(), OPTIMIZER), Checkpoints(tmp_path)
    for epoch in epochs(STEP, first, batches, count=10, checkpoints=checkpoints, progress=False):
        if epoch.epoch == 3:
            break
    seen = [*epochs(STEP, first, batches, count=5, checkpoints=checkpoints, progress=False)]
    assert [one.epoch for one in seen] == [3, 4, 5]  # what was to be done with the third may not have been done
    assert [one.epoch for one in seen[-1].history] == [1, 2, 3, 4, 5]
    told = json.loads(load_metadata(tmp_path / "epoch-000005.safetensors")["run"])
    assert [row[0]["epoch"] for row in told["history"]] == [1, 2, 3, 4, 5]


# --- What is wrong ----------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty])
def test_a_checkpoint_that_is_not_whole_is_left_out(damage: Callable[[Path], None], tmp_path: Path) -> None:
    state, _ = run(None, 5)
    run(tmp_path, 3)
    damage(tmp_path / "epoch-000003.safetensors")
    with pytest.warns(RuntimeWarning, match=r"a checkpoint is left out, since it is not whole: .*epoch-000003"):
        again, _ = run(tmp_path, 5)
    assert tree.equal(again, state)


def test_checkpoints_of_another_run_are_an_error(tmp_path: Path) -> None:
    run(tmp_path, 1)
    advice = "give Checkpoints another folder"
    with pytest.raises(ValueError, match=advice):
        fit(
            train_step(cross_entropy, sgd(0.1)),
            train_state(key(2), model(), sgd(0.1)),
            batches,
            epochs=2,
            checkpoints=Checkpoints(tmp_path),
            progress=False,
        )
    with pytest.raises(ValueError, match=f"of a run with another key: {advice}"):
        fit(STEP, train_state(key(7), model(), OPTIMIZER), batches, epochs=2, checkpoints=Checkpoints(tmp_path), progress=False)
    save(tmp_path / "epoch-000009.safetensors", train_state(key(2), model(), OPTIMIZER))
    with pytest.warns(RuntimeWarning, match="epoch-000009.safetensors does not tell of a run"):
        run(tmp_path, 2)
    other = tmp_path / "other"
    other.mkdir()
    save(other / "epoch-000009.safetensors", model())
    with pytest.raises(ValueError, match=f"no checkpoint in .*other can be gone on from: {advice}.*does not tell of a run"):
        run(other, 2)


def test_the_best_of_epochs_without_a_test(tmp_path: Path) -> None:
    def loss(epoch: Epoch) -> float:
        return epoch.test.loss  # type: ignore[union-attr]  # the mistake that the test is about

    with pytest.raises(TypeError, match=r"no number of epoch 1, which has no test \('NoneType'.*\): evaluate after each epoch"):
        fit(
            STEP,
            train_state(key(2), model(), OPTIMIZER),
            batches,
            epochs=2,
            evaluate=measured,
            evaluate_every=2,
            checkpoints=Checkpoints(tmp_path, best=loss),
            progress=False,
        )


def test_numbers_that_make_no_sense() -> None:
    for wrong in ({"every": 0}, {"keep": 0}, {"seconds": -1.0}):
        with pytest.raises(ValueError, match=rf"Checkpoints\(\.\.\., {next(iter(wrong))}=\) must be above 0, not"):
            Checkpoints("a", **wrong)
    with pytest.raises(ValueError, match="every, the steps of an epoch, must be 1 or more, not 0"):
        run(None, 1, every=0)


def test_leaving_the_loop_leaves_a_checkpoint_of_where_it_was_left(tmp_path: Path) -> None:
    first, where = train_state(key(2), model(), OPTIMIZER), Checkpoints(tmp_path, every=100)
    for epoch in epochs(STEP, first, batches, count=9, checkpoints=where, progress=False):
        if epoch.epoch == 3:
            break
    assert names(tmp_path) == ["epoch-000003.safetensors"]
    again = next(epochs(STEP, first, batches, count=9, checkpoints=where, progress=False))
    assert again == epoch
    assert tree.equal(again.state, epoch.state)


def test_other_metrics_in_the_middle_of_an_epoch_are_an_error(tmp_path: Path) -> None:
    first, where = train_state(key(2), model(), OPTIMIZER), Checkpoints(tmp_path, seconds=1e-9, keep=99)
    fit(STEP, first, batches, epochs=1, checkpoints=where, compile=False, progress=False)
    (tmp_path / "epoch-000001.safetensors").unlink()
    message = r"step-000005.safetensors cannot be gone on from: .* in which no metric was measured, not 'accuracy': give those"
    with pytest.raises(ValueError, match=message):
        fit(STEP, first, batches, epochs=1, metrics={"accuracy": accuracy}, checkpoints=where, progress=False)


def test_a_later_file_that_is_not_whole_costs_no_other(tmp_path: Path) -> None:
    (tmp_path / "epoch-000009.safetensors").write_bytes(b"")
    where, first = Checkpoints(tmp_path, keep=1), train_state(key(2), model(), OPTIMIZER)
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be gone on from"):
        fit(STEP, first, batches, epochs=2, checkpoints=where, progress=False)
    (tmp_path / "epoch-000009.safetensors").unlink()
    run_ = epochs(STEP, first, batches, count=3, checkpoints=where, progress=False)
    next(run_)
    (tmp_path / "epoch-000009.safetensors").write_bytes(b"")
    assert len([*run_]) == 2
    assert names(tmp_path) == ["epoch-000003.safetensors", "epoch-000009.safetensors"]


# --- Beside the run ---------------------------------------------------------------------------------------------------


def write_after(monkeypatch: pytest.MonkeyPatch, wait: Callable[[], object]) -> None:
    """Have the files of checkpoints written after something else."""

    def write_later(path: Path, content: Content, worker: None) -> None:
        wait()
        write(path, content, worker)

    monkeypatch.setattr(checkpoints_module, "write", write_later)


@pytest.mark.parametrize(("donate", "compiled"), [(False, False), (True, False), (False, True)])
def test_what_is_written_is_the_state_as_it_was(
    donate: bool, compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is written over the tensors before the thread gets there: in the middle of epochs, and at their ends."""
    first = train_state(key(2), model(), OPTIMIZER)
    expected = [one.state for one in epochs(STEP, first, batches, count=5, every=1, compile=compiled, progress=False)]
    write_after(monkeypatch, lambda: time.sleep(0.05))
    where = Checkpoints(tmp_path, seconds=1e-9, keep=99)
    monkeypatch.setattr(_step_runner, "_MOST_STEPS", 1)
    fit(STEP, first, batches, epochs=1, checkpoints=where, compile=compiled, donate=donate, progress=False)
    first = train_state(key(2), model(), OPTIMIZER)
    like = train_state(key(2), model(), OPTIMIZER)
    for step, state in enumerate(expected, 1):
        assert tree.equal(load(tmp_path / f"epoch-000001-step-{step:06}.safetensors", like), state)
    assert tree.equal(load(tmp_path / "epoch-000001.safetensors", like), expected[-1])


def test_a_run_does_not_wait_for_what_is_written_but_one_that_donates_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    write_after(monkeypatch, lambda: go.wait(20))
    passed = epochs(STEP, train_state(key(2), model(), OPTIMIZER), batches, count=2, checkpoints=Checkpoints(tmp_path / "a"))
    next(passed)
    assert names(tmp_path / "a") == []
    go.set()
    passed.close()
    assert names(tmp_path / "a") == ["epoch-000001.safetensors"]
    first = train_state(key(2), model(), OPTIMIZER)
    passed = epochs(STEP, first, batches, count=2, checkpoints=Checkpoints(tmp_path / "b"), donate=True, progress=False)
    next(passed)
    assert names(tmp_path / "b") == ["epoch-000001.safetensors"]


def test_an_error_beside_the_run_ends_it_at_the_end_of_the_epoch_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, failing = train_state(key(2), model(), OPTIMIZER), [True]

    def third_fails(path: Path, content: Content, worker: None) -> None:
        if failing and path.name == "epoch-000003.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content, worker)

    monkeypatch.setattr(checkpoints_module, "write", third_fails)
    seen: list[int] = []

    def loop() -> None:
        for epoch in epochs(STEP, first, batches, count=9, metrics=METRICS, checkpoints=Checkpoints(tmp_path), progress=False):
            seen.append(epoch.epoch)
            time.sleep(0.1)

    with pytest.raises(OSError, match=r"No space left on device") as caught:
        loop()
    assert seen == [1, 2, 3]
    assert names(tmp_path) == ["epoch-000001.safetensors", "epoch-000002.safetensors"]
    state, history = last_good(caught.value, first)
    assert len(history) == 4
    assert tree.equal(state, run(None, 4)[0])
    note = next(note for note in caught.value.__notes__ if "Nothing is lost" in note)
    assert note.endswith(f"The same call goes on from {tmp_path / 'epoch-000002.safetensors'}.")
    failing.clear()
    again, _ = run(tmp_path, 5)
    assert tree.equal(again, run(None, 5)[0])


def test_an_error_at_the_end_is_raised_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    first = train_state(key(2), model(), OPTIMIZER)
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="No space left") as caught:
        fit(STEP, first, batches, epochs=1, checkpoints=Checkpoints(tmp_path), progress=False)
    assert tree.equal(last_good(caught.value, first)[0], run(None, 1)[0])
    assert names(tmp_path) == []


# --- Processes that end -----------------------------------------------------------------------------------------------

TERMINATED: Final = """
import os, signal, sys
sys.path.insert(0, {root!r})
from tests.test_checkpoints import STEP, OPTIMIZER, batches, model
from fundl import Checkpoints, Interrupted, fit, key, train_state

made = 0

def ending(key):
    global made
    made += 1
    if made == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return batches(key)

first = train_state(key(2), model(), OPTIMIZER)
try:
    fit(STEP, first, ending, epochs=9, checkpoints=Checkpoints({folder!r}), progress=False)
except Interrupted as stop:
    print(len(stop.history), int(stop.state.step), signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
    print(stop)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_sigterm_is_told_as_ctrl_c_is(tmp_path: Path) -> None:
    text = TERMINATED.format(root=str(Path(__file__).parent.parent), folder=str(tmp_path / "runs"))
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    numbers, message = done.stdout.splitlines()
    assert numbers == "2 10 True"
    assert message.endswith(f"The same call goes on from {tmp_path / 'runs' / 'epoch-000002.safetensors'}.")
    assert names(tmp_path / "runs") == ["epoch-000001.safetensors", "epoch-000002.safetensors"]

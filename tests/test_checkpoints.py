"""Checkpoints: a run that stops anywhere, and however, is taken up and ends with the same bits."""

import itertools
import json
import random as python_random
import signal
import subprocess
import sys
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
from fundl.training import epochs as epochs_module

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
        metrics={"accuracy": accuracy},
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


def test_how_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train_state(key(2), model(), OPTIMIZER)
    fit(STEP, first, batches, epochs=5, checkpoints=Checkpoints(tmp_path / "a", every=2, keep=9), progress=False)
    assert names(tmp_path / "a") == [f"epoch-00000{number}.safetensors" for number in (2, 4, 5)]
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    checkpoints = Checkpoints(tmp_path / "b", every=1000, seconds=25, keep=9)
    fit(STEP, first, batches, epochs=6, checkpoints=checkpoints, progress=False)
    assert names(tmp_path / "b") == ["epoch-000003.safetensors", "epoch-000006.safetensors"]


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
    assert [one.epoch for one in seen] == [4, 5]
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


def test_a_folder_that_vanishes_is_made_again(tmp_path: Path) -> None:
    first, folder = train_state(key(2), model(), OPTIMIZER), tmp_path / "a"
    for epoch in epochs(STEP, first, batches, count=3, checkpoints=Checkpoints(folder), progress=False):
        if epoch.epoch == 1:
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
    assert names(folder) == ["epoch-000002.safetensors", "epoch-000003.safetensors"]


def test_a_file_in_place_of_the_folder_leaves_the_state_in_memory(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    first = train_state(key(2), model(), OPTIMIZER)
    with pytest.raises(OSError, match="a") as caught:
        fit(STEP, first, batches, epochs=3, checkpoints=Checkpoints(tmp_path / "a"), progress=False)
    state, history = last_good(caught.value, first)
    expected, _ = run(None, 1)
    assert tree.equal(state, expected)
    assert len(history) == 1


# --- Processes that end -----------------------------------------------------------------------------------------------

PROGRAM: Final = """
import sys
from pathlib import Path

sys.path.insert(0, {root!r})
import torch

torch.set_num_threads(1)
from tests.test_checkpoints import run
from fundl import save

state, history = run(Path({folder!r}), 8, every=3, compiled={compiled!r})
save({result!r}, state, metadata={{"history": repr([(one.epoch, one.step, one.train) for one in history])}})
"""


def program(tmp_path: Path, *, compiled: bool) -> tuple[list[str], Path]:
    root, result = str(Path(__file__).parent.parent), tmp_path / "result.safetensors"
    text = PROGRAM.format(root=root, folder=str(tmp_path / "runs"), result=str(result), compiled=compiled)
    return [sys.executable, "-c", text], result


def killed_until_done(tmp_path: Path, *, times: int, compiled: bool, number: int, seed: int) -> bytes:
    """What a process writes in the end that was ended so many times, each at a random instant."""
    command, result = program(tmp_path, compiled=compiled)
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    whole, expected = time.monotonic() - start, result.read_bytes()
    for path in (tmp_path / "runs").iterdir():
        path.unlink()
    result.unlink()
    draw = python_random.Random(seed)
    for _ in range(times):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            time.sleep(draw.uniform(0.3, 1.0) * whole)
            process.send_signal(number)
            process.communicate()
    subprocess.run(command, check=True, capture_output=True)
    assert result.read_bytes() == expected
    return expected


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_killed_and_taken_up_again(tmp_path: Path) -> None:
    killed_until_done(tmp_path, times=3, compiled=False, number=signal.SIGKILL, seed=1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ended_at_many_random_instants(compiled: bool, number: int, tmp_path: Path) -> None:
    killed_until_done(tmp_path, times=25, compiled=compiled, number=number, seed=number)


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

"""Runs of many processes that are ended, or saved, in the middle of an epoch: all stop after the same step."""

import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest
import torch
from torch import Tensor

from fundl import (
    Checkpoints,
    Dropout,
    Epoch,
    Evaluation,
    Interrupted,
    ReLU,
    TrainState,
    accuracy,
    adam,
    compose,
    cross_entropy,
    evaluate,
    fit,
    initialize,
    key,
    linear,
    minibatches,
    train_state,
    train_step,
    tree,
)
from fundl.distributed import Group, pipeline_step, shard, stages
from fundl.layer import Model
from fundl.random import Key, normal, randint
from fundl.training import _run, _step_runner
from fundl.training._signals import HeldSignals
from tests.processes import together

Batch = tuple[Tensor, Tensor]
History = list[tuple[int, float, float]]
EPOCHS = 3


def plain(_group: Group) -> Model:
    return compose(linear(6, 9), ReLU(), Dropout(0.2), linear(9, 5))


def sharded(group: Group) -> Model:
    return compose(shard(group, linear(6, 9), ReLU()), Dropout(0.2), shard(group, linear(9, 5)))


def staged(group: Group) -> Model:
    return stages(group, compose(linear(6, 9), ReLU(), Dropout(0.2), linear(9, 5)))


MODELS = {"plain": plain, "sharded": sharded, "stages": staged}
OPTIMIZER: Final = adam(1e-2)


class How(NamedTuple):
    """How a run is made.

    Args:
        model: what it trains.
        number: the signal that ends it.
        compiled: whether its steps are.
        every: how many steps an epoch has, if not as many as there are batches.
        settled: after so many steps no predictions wait to be measured.
        seconds: between two checkpoints.
    """

    model: str = "plain"
    number: int = signal.SIGTERM
    compiled: bool = False
    every: int | None = None
    settled: int = 1
    seconds: float = 1e-9


def steps_of(stop: Interrupted) -> int:
    assert isinstance(stop.state, TrainState)
    return int(stop.state.step)


def run(group: Group, how: How, folder: str | None, ends: dict[int, int]) -> tuple[list[Tensor], History]:
    """A run of epochs of five batches, the last of two rows; before given steps, given processes get a signal."""
    data = normal(key(1), (42, 6)), randint(key(2), (42,), low=0, high=5)
    over = None if how.model == "stages" else group
    made = 0

    def batches(some_key: Key) -> Iterator[Batch]:
        nonlocal made
        for batch in minibatches(some_key, data, 10, part=over):
            made += 1
            if ends.get(made) in {group.rank, group.size}:
                signal.raise_signal(how.number)
            yield batch

    state = train_state(key(3), initialize(key(0), MODELS[how.model](group)), OPTIMIZER)
    checkpoints = None if folder is None else Checkpoints(folder, seconds=how.seconds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_run, "_SETTLED", how.settled)
        patch.setattr(_step_runner, "_MOST_STEPS", 2)  # in one call
        if over is None:
            step = pipeline_step(cross_entropy, OPTIMIZER, through=group, micro_batches=3)
            return told(*fit(step, state, batches, epochs=EPOCHS, every=how.every, checkpoints=checkpoints, progress=False))
        return told(
            *fit(
                train_step(cross_entropy, OPTIMIZER, over=over),
                state,
                batches,
                epochs=EPOCHS,
                every=how.every,
                metrics={"accuracy": accuracy},
                checkpoints=checkpoints,
                compile=how.compiled,
                over=over,
                progress=False,
            )
        )


def told(state: object, history: Sequence[Epoch]) -> tuple[list[Tensor], History]:
    return tree.leaves(state), [(one.step, one.train.loss, one.train.metrics.get("accuracy", 0.0)) for one in history]


def ended_again_and_again(group: Group, how: How, folder: str) -> tuple[list[int], list[Tensor], History]:
    """At which steps a run was ended that goes on each time, once in each process and once in all, and what comes out."""
    steps: list[int] = []
    behind = 0  # so many batches of a pass of five a run that is taken up begins
    while True:
        try:
            return steps, *run(group, how, folder, {behind + 1: len(steps) % (group.size + 1)})
        except Interrupted as error:
            stop = error
        newest = max(os.listdir(folder))
        steps.append(steps_of(stop))
        is_between = "-step-" not in newest
        behind = 0 if is_between and how.every is None else (steps[-1] - 1) % 5 + 1
        where = int(newest.removesuffix(".safetensors").rpartition("-")[2]) * ((how.every or 5) if is_between else 1)
        if where != steps[-1] or f"The same call goes on from {folder}/{newest}." not in str(stop):
            raise AssertionError(f"{stop} at step {steps[-1]}, but {newest}")


@pytest.mark.parametrize(
    ("how", "size"),
    [
        (How(), 2),
        (How("sharded", signal.SIGINT, every=4), 2),
        (How("stages", signal.SIGINT), 2),
        pytest.param(How("stages", every=4), 2, marks=pytest.mark.slow),
        pytest.param(How(settled=2), 2, marks=pytest.mark.slow),
        pytest.param(How(number=signal.SIGINT, compiled=True), 2, marks=pytest.mark.slow),
        pytest.param(How("sharded", compiled=True, every=4), 2, marks=pytest.mark.slow),
        pytest.param(How("sharded", seconds=1e9), 4, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_any_process_ends_all_after_the_same_step(how: How, size: int, tmp_path: Path) -> None:
    expected = together(size, run, how, None, {})
    found = together(size, ended_again_and_again, how, str(tmp_path))
    steps = found[0][0]
    assert len(steps) >= 3
    assert tree.equal([leaves for _, leaves, _ in found], [leaves for leaves, _ in expected])
    assert [(its_steps, history) for its_steps, _, history in found] == [(steps, history) for _, history in expected]


def ended_without_checkpoints(group: Group) -> str:
    try:
        run(group, How(), None, {3: 1})
    except Interrupted as stop:
        return f"{steps_of(stop)}: {stop.__cause__}"
    return "not ended"


def test_a_run_without_checkpoints_ends_in_all_as_well() -> None:
    first, second = together(2, ended_without_checkpoints)
    assert first.endswith(": a signal was sent to process 1, which ends the run in all of them")
    assert second.endswith(": SIGTERM")
    assert first.partition(":")[0] == second.partition(":")[0]


def ended_in_an_evaluation(group: Group, folder: str) -> tuple[int, int, list[str]]:
    data, optimizer = (normal(key(1), (20, 6)), randint(key(2), (20,), low=0, high=5)), adam(1e-2)

    def measured(model: Model) -> Evaluation:
        if group.rank:
            signal.raise_signal(signal.SIGINT)
        return evaluate(cross_entropy, model, minibatches(None, data, 10, part=group), over=group)

    try:
        fit(
            train_step(cross_entropy, optimizer, over=group),
            train_state(key(3), initialize(key(0), plain(group)), optimizer),
            lambda some_key: minibatches(some_key, data, 10, part=group),
            epochs=5,
            evaluate=measured,
            checkpoints=Checkpoints(folder, every=3),
            over=group,
            progress=False,
        )
    except Interrupted as stop:
        return steps_of(stop), len(stop.history), os.listdir(folder)
    raise AssertionError("not ended")


def test_a_signal_in_an_evaluation_is_heard_at_its_end(tmp_path: Path) -> None:
    assert together(2, ended_in_an_evaluation, str(tmp_path)) == [(2, 1, ["epoch-000001.safetensors"])] * 2


def twice(_group: Group) -> str:
    """Who sends a signal once more, after some time, does not want to wait."""
    with HeldSignals(0.05) as signals:
        signals.hold()
        try:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # as a launcher does that hands on what the terminal has sent
            time.sleep(0.1)
            assert signals.are_waiting
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            assert isinstance(signals.heard(), KeyboardInterrupt)
            return "at once"
    return "later"


def test_a_second_signal_does_not_wait() -> None:
    assert together(2, twice) == ["at once"] * 2


def stopped_at(group: Group, folder: str, at: int) -> tuple[list[Tensor], History] | None:
    try:
        return run(group, How("sharded"), folder, {at: 0})
    except Interrupted:
        return None


def test_another_number_of_processes_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """With the same steps; sums are added up in another order."""
    expected, history = together(1, run, How("sharded"), None, {})[0]
    assert together(2, stopped_at, str(tmp_path), 3) == [None, None]
    found = together(1, run, How("sharded"), str(tmp_path), {})[0]
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)
    for its, other in zip(found[1], history, strict=True):
        assert its == pytest.approx(other, rel=1e-5)
    for path in tmp_path.iterdir():
        path.unlink()
    assert together(1, stopped_at, str(tmp_path), 8) == [None]
    for _, its_history in together(2, run, How("sharded"), str(tmp_path), {}):
        for its, other in zip(its_history, history, strict=True):
            assert its == pytest.approx(other, rel=1e-5)


def failing(group: Group, folder: str) -> str:
    """The folder goes away once the run has begun."""
    data, optimizer = (normal(key(1), (20, 6)), randint(key(2), (20,), low=0, high=5)), adam(1e-2)

    def measured(_model: Model) -> Evaluation:
        if not group.rank:
            shutil.rmtree(folder, ignore_errors=True)
        return Evaluation(0.0)

    try:
        fit(
            train_step(cross_entropy, optimizer, over=group),
            train_state(key(3), initialize(key(0), plain(group)), optimizer),
            lambda some_key: minibatches(some_key, data, 2, part=group),
            epochs=5,
            evaluate=measured,
            checkpoints=Checkpoints(folder, seconds=1e-9),
            over=group,
            progress=False,
        )
    except (OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def test_a_checkpoint_that_cannot_be_written_ends_all(tmp_path: Path) -> None:
    first, second = together(2, failing, str(tmp_path / "run"))
    assert first.startswith("FileNotFoundError: ")
    assert second.startswith("RuntimeError: process 0 cannot go on, so the run ends in all of them")

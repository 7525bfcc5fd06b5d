"""Runs of many processes that are ended, or saved, in the middle of an epoch: all stop after the same step."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from torch import Tensor

from fundl import (
    Checkpoints,
    Dropout,
    Interrupted,
    ReLU,
    accuracy,
    adam,
    compose,
    cross_entropy,
    fit,
    initialize,
    key,
    linear,
    minibatches,
    train_state,
    train_step,
    tree,
)
from fundl.distributed import Group, shard
from fundl.layer import Model
from fundl.random import Key, normal, randint
from fundl.training import _run, _step_runner
from tests.processes import together

Batch = tuple[Tensor, Tensor]
History = list[tuple[int, float, float]]
EPOCHS = 3


def plain(_group: Group) -> Model:
    return compose(linear(6, 9), ReLU(), Dropout(0.2), linear(9, 5))


def sharded(group: Group) -> Model:
    return compose(shard(group, linear(6, 9), ReLU()), Dropout(0.2), shard(group, linear(9, 5)))


MODELS = {"plain": plain, "sharded": sharded}


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


def run(group: Group, how: How, folder: str | None, ends: dict[int, int]) -> tuple[list[Tensor], History]:
    """A run of epochs of five batches, the last of two rows; before given steps, given processes get a signal."""
    data = normal(key(1), (42, 6)), randint(key(2), (42,), low=0, high=5)
    optimizer = adam(1e-2)
    made = 0

    def batches(some_key: Key) -> Iterator[Batch]:
        nonlocal made
        for batch in minibatches(some_key, data, 10, part=group):
            made += 1
            if ends.get(made) in {group.rank, group.size}:
                signal.raise_signal(how.number)
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_run, "_SETTLED", how.settled)
        patch.setattr(_step_runner, "_MOST_STEPS", 2)  # in one call
        state, history = fit(
            train_step(cross_entropy, optimizer, over=group),
            train_state(key(3), initialize(key(0), MODELS[how.model](group)), optimizer),
            batches,
            epochs=EPOCHS,
            every=how.every,
            metrics={"accuracy": accuracy},
            checkpoints=None if folder is None else Checkpoints(folder, seconds=how.seconds),
            compile=how.compiled,
            over=group,
            progress=False,
        )
    return tree.leaves(state), [(one.step, one.train.loss, one.train.metrics["accuracy"]) for one in history]


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
        steps.append(int(stop.state.step))
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

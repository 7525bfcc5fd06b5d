"""A run of two processes of which one is killed, now and then; torchrun starts both again. See test_restarts.py."""

import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import torch

from fundl import (
    AnyTransform,
    Checkpoints,
    Dropout,
    ReLU,
    Step,
    TrainState,
    adam,
    compose,
    cross_entropy,
    epochs,
    initialize,
    key,
    linear,
    minibatches,
    save,
    train_state,
    train_step,
    tree,
)
from fundl.distributed import Group, pipeline_step, shard, stages, start, unshard, unstage, zero_bubble
from fundl.layer import Model
from fundl.random import Key, normal, randint

R = TypeVar("R")
S = TypeVar("S")
Batch = tuple[torch.Tensor, torch.Tensor]
EVERY, COUNT = 6, 12  # steps of an epoch, and epochs
OPTIMIZER: Final[AnyTransform] = adam(1e-2)


def run(group: Group, folder: str, kills: int, how: str = "whole") -> tuple[list[torch.Tensor], list[float]]:
    """The state after all epochs of the run, and their losses; in the first so many starts a process dies on the way."""
    begun = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    dice = random.Random(begun)
    victim, at = dice.randrange(group.size), dice.randrange(1, EVERY + 1)
    made = 0
    data = normal(key(1), (40, 6)), randint(key(2), (40,), low=0, high=5)
    over = None if how == "stages" else group

    def batches(some_key: Key) -> Iterator[Batch]:
        nonlocal made
        for batch in minibatches(some_key, data, 8, part=over):
            made += 1
            if begun < kills and group.rank == victim and made == at:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    layers = compose(linear(6, 16), ReLU(), Dropout(0.2), linear(16, 5))
    if how == "stages":
        through = pipeline_step(cross_entropy, OPTIMIZER, through=group, micro_batches=3, schedule=zero_bubble)
        return course(through, begin(stages(group, layers)), batches, folder, None)
    sharded = compose(shard(group, linear(6, 16), ReLU()), Dropout(0.2), shard(group, linear(16, 5)))
    state = begin(sharded if how == "sharded" else layers)
    return course(train_step(cross_entropy, OPTIMIZER, over=group), state, batches, folder, group)


def begin(model: Model) -> TrainState[Model, object]:
    state: TrainState[Model, object] = train_state(key(3), initialize(key(0), model), OPTIMIZER)
    return state


def course(
    step: Step[Model, S, torch.Tensor, torch.Tensor, R],
    state: TrainState[Model, S],
    batches: Callable[[Key], Iterator[Batch]],
    folder: str,
    over: Group | None,
) -> tuple[list[torch.Tensor], list[float]]:
    losses: list[float] = []
    passed = epochs(
        step,
        state,
        batches,
        count=COUNT,
        every=EVERY,
        checkpoints=Checkpoints(folder, seconds=1e-9),
        over=over,
        compile=False,
        progress=False,
    )
    for epoch in passed:
        state, losses = epoch.state, [one.train.loss for one in epoch.history]
    return tree.leaves(unshard(unstage(state.model))), losses


if __name__ == "__main__":
    torch.set_num_threads(1)
    group, _ = start(device="cpu", minutes=2)
    leaves, losses = run(group, sys.argv[1], int(sys.argv[2]), sys.argv[4])
    if group.rank == 0:
        save(sys.argv[3], leaves, metadata={"losses": repr(losses)})

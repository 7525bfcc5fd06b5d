"""What processes say to each other in a step does not depend on who holds its state: each may hold it for another time.

A step that is to use up its state writes over it only where nobody else holds it. In a run that is a matter of time: a
checkpoint may be written beside the next steps, in one process longer than in another.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pytest
import torch
from torch import Tensor

from fundl import (
    AnyTransform,
    ReLU,
    accumulate,
    adam,
    chain,
    clip_by_global_norm,
    compose,
    cross_entropy,
    dynamic_loss_scale,
    initialize,
    key,
    layer_norm,
    linear,
    momentum,
    skip_nonfinite,
    train_state,
    train_step,
)
from fundl._common import exchanges
from fundl.distributed import Group, pipeline_step, shard, shard_moments, stages
from fundl.layer import Model
from fundl.training.step import Step
from tests.optimizer_catalogue import CATALOGUE
from tests.optimizer_samples import OPTIMIZERS
from tests.optimizer_transforms import TRANSFORMS
from tests.processes import together

CLIPPED: Final = chain(clip_by_global_norm(0.1), adam(0.01))
SOMETIMES: Final[dict[str, AnyTransform]] = {  # around what asks others for a norm, and applied in some steps only
    "gathered, clipped": accumulate(CLIPPED, 2),
    "skipped, gathered, clipped": skip_nonfinite(accumulate(CLIPPED, 2)),
    "gathered, skipped": accumulate(skip_nonfinite(CLIPPED, limit=3), 2),
    "scaled, clipped": dynamic_loss_scale(chain(clip_by_global_norm(0.1), momentum(0.1)), every=2),
}
ALL: Final[dict[str, AnyTransform]] = {**SOMETIMES, **OPTIMIZERS, **CATALOGUE, **TRANSFORMS}
NAMES: Final = ("all_reduce", "all_reduce_", "all_gather", "reduce_scatter", "broadcast")


@contextmanager
def heard() -> Iterator[list[str]]:
    """What this process begins to exchange."""
    said, before = list[str](), {name: getattr(exchanges, name) for name in NAMES}

    def listened(name: str) -> Callable[..., Tensor]:  # type: ignore[explicit-any]  # as the exchanges are
        def exchange(x: Tensor, *rest: object) -> Tensor:
            said.append(f"{name.rstrip('_')} {tuple(x.shape)} {x.dtype}")
            exchanged: Tensor = before[name](x, *rest)
            return exchanged

        return exchange

    try:
        for name in NAMES:
            setattr(exchanges, name, listened(name))
        yield said
    finally:
        for name in NAMES:
            setattr(exchanges, name, before[name])


def sharded(group: Group, optimizer: AnyTransform) -> tuple[Model, AnyTransform, Step[Model, object, Tensor, Tensor, Tensor]]:
    step = train_step(cross_entropy, optimizer, over=group, donate=True)
    return compose(shard(group, linear(5, 7), ReLU(), layer_norm(7)), linear(7, 3)), optimizer, step


def with_moments_divided(
    group: Group, inner: AnyTransform
) -> tuple[Model, AnyTransform, Step[Model, object, Tensor, Tensor, Tensor]]:
    optimizer: AnyTransform = shard_moments(group, inner)
    return (
        compose(linear(5, 7), ReLU(), linear(7, 3)),
        optimizer,
        train_step(cross_entropy, optimizer, over=group, donate=True),
    )


def in_stages(group: Group, optimizer: AnyTransform) -> tuple[Model, AnyTransform, Step[Model, object, Tensor, Tensor, None]]:
    step = pipeline_step(cross_entropy, optimizer, through=group, micro_batches=2, donate=True)
    return stages(group, compose(linear(5, 7), ReLU(), linear(7, 3))), optimizer, step


WAYS: Final = {"sharded": sharded, "moments": with_moments_divided, "stages": in_stages}


def said_in_steps(group: Group, way: str, optimizer: AnyTransform, is_held: bool) -> list[list[str]]:
    """What is exchanged in each of some steps, of which the third has gradients that are not finite."""
    model, own, step = WAYS[way](group, optimizer)
    state = train_state(key(1), initialize(key(0), model), own)
    x, target = torch.linspace(-1.0, 1.0, 20).view(4, 5).sin(), torch.arange(4) % 3
    held, said = list[object](), list[list[str]]()
    for number in range(5):
        if is_held:
            held.append((state.model, state.optimizer))  # as a checkpoint would that is being written
        with heard() as in_step:
            state, _ = step(state, (x / 0 if number == 2 else x, target))
        said.append(in_step)
    return said


def both(group: Group, way: str, name: str) -> tuple[list[list[str]], list[list[str]]] | None:
    """With a state that is used up, and with one that is held; None for an optimizer that refuses parts of parameters."""
    try:
        return said_in_steps(group, way, ALL[name], False), said_in_steps(group, way, ALL[name], True)
    except (TypeError, ValueError):
        return None


def in_turn(group: Group, way: str, names: list[str]) -> dict[str, tuple[list[list[str]], list[list[str]]] | None]:
    return {name: both(group, way, name) for name in names}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "names", [[*SOMETIMES], pytest.param([*ALL][len(SOMETIMES) :], marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_processes_say_the_same_whoever_holds_the_state(way: str, names: list[str]) -> None:
    first, second = together(2, in_turn, way, names)
    assert first.keys() == {*names}
    for name, said in first.items():
        assert said == second[name]
        if said is not None:
            used_up, held = said
            assert used_up == held, name
            assert all(used_up), name  # there is something to compare
        assert said is not None or name not in SOMETIMES

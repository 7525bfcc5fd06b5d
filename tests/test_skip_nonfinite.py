"""Steps whose gradients are not finite: left out, and counted."""

import math
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor

from fundl import (
    Linear,
    accumulate,
    adam,
    chain,
    clip_by_global_norm,
    compose,
    dynamic_loss_scale,
    ensemble,
    initialize,
    key,
    linear,
    momentum,
    mse,
    partition,
    random,
    sgd,
    skip_nonfinite,
    skipped_steps,
    split,
    train_state,
    train_step,
    tree,
)
from fundl.optim.chain import AnyTransform
from fundl.training.step import Step

Model: TypeAlias = tuple[Linear[int, int]]
TypedStep: TypeAlias = Step[Model, Any, Tensor, Tensor, Tensor]  # type: ignore[explicit-any]  # of any optimizer

GOOD = random.normal(key(0), (6, 3)), random.normal(key(1), (6, 2))
BAD = GOOD[0], torch.full((6, 2), math.inf)


def model() -> Model:
    return initialize(key(2), compose(linear(3, 2)))


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize(
    "inner",
    [sgd(0.1), momentum(0.1), adam(0.1), chain(clip_by_global_norm(0.1), adam(0.1))],
    ids=["sgd", "momentum", "adam", "chain"],
)
def test_the_others_are_as_if_it_had_not_been(inner: AnyTransform, *, donate: bool) -> None:
    optimizer = skip_nonfinite(inner)
    step: TypedStep = train_step(mse, optimizer, donate=donate)
    plain: TypedStep = train_step(mse, inner)
    state, expected = train_state(key(3), model(), optimizer), train_state(key(3), model(), inner)
    for batch in (GOOD, BAD, GOOD, BAD, BAD, GOOD):
        state, report = step(state, batch)
        if batch is GOOD:
            expected, _ = plain(expected, batch)
        assert bool(report.loss.isfinite()) == (batch is GOOD)
    assert tree.equal(state.model, expected.model)
    assert tree.equal(state.optimizer.inner.inner, expected.optimizer.inner)
    assert (int(skipped_steps(state)), int(state.step)) == (3, 6)


def test_micro_batches_are_left_out_around_what_gathers_and_steps_within() -> None:
    around, within = skip_nonfinite(accumulate(sgd(0.1), 2)), accumulate(skip_nonfinite(sgd(0.1)), 2)
    first = model()
    found: list[tuple[int, bool]] = []
    optimizers: list[AnyTransform] = [around, within]
    for optimizer in optimizers:
        step: TypedStep = train_step(mse, optimizer)
        state = train_state(key(3), first, optimizer)
        for batch in (GOOD, BAD, GOOD):
            state, _ = step(state, batch)
        found.append((int(skipped_steps(state)), tree.equal(state.model, first)))
    assert found == [(1, False), (1, True)]


def test_a_loss_scale_looks_first() -> None:
    optimizer = dynamic_loss_scale(skip_nonfinite(adam(0.1)), initial=8.0)
    step: TypedStep = train_step(mse, optimizer)
    state = train_state(key(3), model(), optimizer)
    for batch in (GOOD, BAD, GOOD):
        state, _ = step(state, batch)
    assert (int(skipped_steps(state)), float(state.optimizer.inner.scale)) == (0, 4.0)
    assert all(bool(leaf.isfinite().all()) for leaf in tree.leaves(state.model))
    with pytest.raises(ValueError, match=r"dynamic_loss_scale is the outermost of all transforms, and skips .* by itself"):
        skip_nonfinite(dynamic_loss_scale(sgd(0.1)))


def test_each_run_of_an_ensemble_skips_its_own() -> None:
    optimizer = skip_nonfinite(adam(0.1))
    state = ensemble.train_state(split(key(3), 2), ensemble.initialize(split(key(2), 2), model()), optimizer)
    batch = ensemble.share(GOOD[0], 2), torch.stack([BAD[1], GOOD[1]])
    after, _ = ensemble.train_step(mse, optimizer)(state, batch)
    assert skipped_steps(after).tolist() == [1, 0]
    moved = [not tree.equal(*both) for both in zip(ensemble.unstack(state.model), ensemble.unstack(after.model), strict=True)]
    assert moved == [False, True]


def test_several_counts_are_summed_and_none_is_told() -> None:
    optimizer = partition(
        {"weight": skip_nonfinite(sgd(0.1)), "rest": skip_nonfinite(sgd(0.1))}, where={"weight": "[0].weight"}
    )
    step: TypedStep = train_step(mse, optimizer)
    state, _ = step(train_state(key(3), model(), optimizer), BAD)
    assert int(skipped_steps(state)) == 2
    with pytest.raises(ValueError, match=r"counts no skipped steps: those of skip_nonfinite\(optimizer\) are counted"):
        skipped_steps(sgd(0.1).init(model()))
    with pytest.raises(TypeError, match="an optimizer is what"):
        skip_nonfinite(adam)  # type: ignore[arg-type]

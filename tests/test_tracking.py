"""Statistics that a training step follows: those that `track` finds outside of it, whatever takes the steps."""

from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor

from fundl import (
    BatchNorm,
    Dropout,
    Linear,
    ReLU,
    TrainState,
    adam,
    apply,
    batch_norm,
    compose,
    dynamic_loss_scale,
    ensemble,
    evaluate,
    fit,
    forward,
    frozen,
    initialize,
    key,
    linear,
    mixed_precision,
    momentum,
    mse,
    random,
    split,
    track,
    train_state,
    train_step,
    tree,
    with_statistics,
    without_statistics,
)
from fundl.model import backward_params
from fundl.training.step import Step

Model: TypeAlias = tuple[Linear[int, int], BatchNorm[int], ReLU, Linear[int, int]]
State: TypeAlias = TrainState[Model, Any]  # type: ignore[explicit-any]  # of any optimizer
TypedStep: TypeAlias = Step[Model, Any, Tensor, Tensor, Tensor]  # type: ignore[explicit-any]

BATCHES = [(3 * random.normal(key(n), (6, 3)) + 1, random.normal(key(n + 50), (6, 2))) for n in range(4)]
OPTIMIZER = momentum(0.1)


def model() -> Model:
    made: Model = initialize(key(2), compose(linear(3, 4), batch_norm(4), ReLU(), linear(4, 2)))
    return made


def by_hand(state: State, batch: tuple[Tensor, Tensor], weight: float) -> State:
    """A step that tracks, as the docs of `track` have it."""
    training = without_statistics(state.model)
    prediction, residuals = forward(training, batch[0])
    _, grad = mse(prediction, batch[1])
    seen = track(state.model, residuals, momentum=weight)
    grads = backward_params(training, residuals, grad)
    moved, memory = OPTIMIZER.step(grads, state.optimizer, seen)
    return TrainState(moved, memory, state.key, state.step + 1)


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_a_step_follows_what_track_follows(weight: float, *, prepared: bool, donate: bool) -> None:
    step: TypedStep = train_step(mse, OPTIMIZER, donate=donate, track=weight)
    first = with_statistics(model()) if prepared else model()
    state = tree.map(torch.clone, train_state(key(3), first, OPTIMIZER))
    expected = train_state(key(3), model(), OPTIMIZER)
    for batch in BATCHES:
        state, _ = step(state, batch)
        expected = by_hand(expected, batch, weight)
    assert tree.equal(state, expected)


def test_an_evaluation_uses_them() -> None:
    step: TypedStep = train_step(mse, OPTIMIZER, track=0.5)
    state, _ = step(train_state(key(3), model(), OPTIMIZER), BATCHES[0])
    one = state.model
    alone = [apply(one, row.unsqueeze(0)) for row in BATCHES[1][0].unbind()]  # a batch of one would be refused without
    torch.testing.assert_close(torch.cat(alone), apply(one, BATCHES[1][0]))
    assert evaluate(mse, one, [BATCHES[1]]).loss != evaluate(mse, without_statistics(one), [BATCHES[1]]).loss


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_fit_follows_them(*, compiled: bool) -> None:
    step: TypedStep = train_step(mse, OPTIMIZER, track=0.1)
    state, _ = fit(
        step, train_state(key(3), with_statistics(model()), OPTIMIZER), BATCHES, epochs=2, compile=compiled, progress=False
    )
    expected = train_state(key(3), model(), OPTIMIZER)
    for batch in BATCHES * 2:
        expected = by_hand(expected, batch, 0.1)
    for one, other in zip(tree.leaves(state), tree.leaves(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_somebody_else_holds_stays() -> None:
    step: TypedStep = train_step(mse, OPTIMIZER, donate=True, track=0.1)
    state = tree.map(torch.clone, train_state(key(3), with_statistics(model()), OPTIMIZER))
    state, _ = step(state, BATCHES[0])
    held = state.model[1].mean
    assert held is not None
    before = held.clone()
    state, _ = step(state, BATCHES[1])
    assert torch.equal(held, before)
    assert state.model[1].mean is not held


def test_of_an_ensemble_each_run_has_its_own() -> None:
    optimizer = momentum(0.1)  # adam would make steps of the rounding in the gradient of a bias, which is 0
    models = ensemble.initialize(split(key(2), 2), model())
    state = ensemble.train_state(split(key(3), 2), models, optimizer)
    step = ensemble.train_step(mse, optimizer, track=0.2)
    alone = [train_state(key(3), one, optimizer) for one in ensemble.unstack(models)]
    step_of_one: TypedStep = train_step(mse, optimizer, track=0.2)
    for batch in BATCHES:
        state, _ = step(state, ensemble.share(batch, 2))
        alone = [step_of_one(one, batch)[0] for one in alone]
    for run, one in zip(ensemble.unstack(state.model), alone, strict=True):
        for leaf, other in zip(tree.leaves(run), tree.leaves(one.model), strict=True):
            torch.testing.assert_close(leaf, other, rtol=1e-4, atol=1e-5)


def test_it_goes_with_what_else_a_step_does() -> None:
    inner = compose(linear(3, 4), batch_norm(4), Dropout(0.2), ReLU(), linear(4, 2))
    optimizer = dynamic_loss_scale(adam(0.1), initial=8.0)
    state = train_state(key(3), initialize(key(2), compose(mixed_precision(inner, compute=torch.bfloat16))), optimizer)
    step = train_step(mse, optimizer, track=0.5)
    for batch in BATCHES:
        state, _ = step(state, batch)
    layers = [record for record in tree.records(state.model) if isinstance(record, BatchNorm)]
    assert len(layers) == 1
    assert layers[0].mean is not None
    assert layers[0].mean.dtype == torch.float32
    assert bool((layers[0].mean != 0).all())


def test_frozen_ones_keep_theirs() -> None:
    body = with_statistics(initialize(key(2), compose(linear(3, 4), batch_norm(4))))
    state = train_state(key(3), (frozen(body), initialize(key(1), linear(4, 2))), OPTIMIZER)
    after, _ = train_step(mse, OPTIMIZER, track=0.5)(state, BATCHES[0])
    assert tree.equal(after.model[0], state.model[0])


def test_a_model_without_batch_norms_is_trained_as_ever() -> None:
    first: tuple[Linear[int, int]] = initialize(key(2), compose(linear(3, 2)))
    plain, _ = train_step(mse, OPTIMIZER)(train_state(key(3), first, OPTIMIZER), BATCHES[0])
    tracked, _ = train_step(mse, OPTIMIZER, track=0.1)(train_state(key(3), first, OPTIMIZER), BATCHES[0])
    assert tree.equal(plain, tracked)
    assert with_statistics(first) is first


def test_statistics_to_begin_with() -> None:
    used = track(model(), forward(model(), BATCHES[0][0])[1])
    assert with_statistics(used) is used
    half = tree.cast_to(model(), torch.float16)
    assert {leaf.dtype for leaf in (with_statistics(half)[1].mean, with_statistics(half)[1].var) if leaf is not None} == {
        torch.float32
    }
    assert with_statistics(BatchNorm()).mean is None  # of how many channels, nobody knows


@pytest.mark.parametrize("wrong", [-0.1, 1.5, float("nan")])
def test_what_is_no_weight_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match=f"track is the weight of the batch, between 0 and 1, not {wrong}"):
        train_step(mse, OPTIMIZER, track=wrong)
    with pytest.raises(TypeError, match="track must be a number or None, not True"):
        train_step(mse, OPTIMIZER, track=True)

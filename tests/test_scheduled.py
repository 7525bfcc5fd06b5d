"""Any hyper-parameter by a schedule: the bits of a step, compiled once, saved, donated, in an ensemble; and what is refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest
import torch
from torch import Tensor

from fundl import (
    Linear,
    ReLU,
    accumulate,
    adam,
    adamw,
    adjustable,
    chain,
    clip_by_global_norm,
    compose,
    constant_schedule,
    cosine_schedule,
    ema,
    ensemble,
    hyperparameters,
    initialize,
    is_matrix,
    jit,
    key,
    linear,
    linear_schedule,
    lion,
    load,
    momentum,
    mse,
    partition,
    random,
    rmsprop,
    save,
    scan,
    scheduled,
    sgd,
    split,
    train_state,
    train_step,
    tree,
    with_hyperparameters,
)
from fundl.optim.chain import AnyTransform
from fundl.training.step import Step

TypedStep: TypeAlias = Step["Model", Any, Tensor, Tensor, Tensor]  # type: ignore[explicit-any]  # of any optimizer
Model: TypeAlias = tuple[Linear[int, int], ReLU, Linear[int, int]]

BATCH: Final = random.normal(key(0), (6, 3)), random.normal(key(1), (6, 2))
RISE: Final = linear_schedule(0.5, 0.875, steps=4)
FALL: Final = cosine_schedule(0.5, 4, final=0.125)


def model() -> Model:
    made: Model = initialize(key(2), compose(linear(3, 4), ReLU(), linear(4, 2)))
    return made


CASES: Final[dict[str, tuple[AnyTransform, Callable[[float, float], AnyTransform]]]] = {
    "sgd": (scheduled(momentum(0.1), momentum=RISE, rate=FALL), lambda rise, fall: momentum(fall, momentum=rise)),
    "adamw": (
        scheduled(adamw(0.1), beta1=RISE, weight_decay=FALL, epsilon=RISE, beta2=RISE),
        lambda rise, fall: adamw(0.1, beta1=rise, beta2=rise, epsilon=rise, weight_decay=fall),
    ),
    "lion": (scheduled(lion(0.1), beta1=RISE, beta2=FALL), lambda rise, fall: lion(0.1, beta1=rise, beta2=fall)),
    "rmsprop": (scheduled(rmsprop(0.1), decay=RISE), lambda rise, _: rmsprop(0.1, decay=rise)),
    "chain": (
        scheduled(chain(clip_by_global_norm(1.0), ema(0.9), sgd(0.1)), max_norm=FALL, decay=RISE),
        lambda rise, fall: chain(clip_by_global_norm(fall), ema(rise), sgd(0.1)),
    ),
    "names with dots": (
        scheduled(partition({"a": adam(0.1), "b": adam(0.1)}, where={"a": is_matrix}), {"a.rate": RISE, "b.rate": FALL}),
        lambda rise, fall: partition({"a": adam(rise), "b": adam(fall)}, where={"a": is_matrix}),
    ),
    "twice": (scheduled(scheduled(adam(0.1), beta1=RISE), beta2=FALL), lambda rise, fall: adam(0.1, beta1=rise, beta2=fall)),
    "inside": (
        chain(clip_by_global_norm(1.0), scheduled(adam(0.1), beta1=RISE)),
        lambda rise, _: chain(clip_by_global_norm(1.0), adam(0.1, beta1=rise)),
    ),
}


def plain(state: object) -> object:
    """The state without what schedules count."""
    if isinstance(state, tuple):
        return tuple(map(plain, state))
    return plain(state.inner) if type(state).__name__ == "ScheduledState" else state  # type: ignore[attr-defined]  # it is one


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize(("optimizer", "at"), CASES.values(), ids=CASES.keys())
def test_the_bits_are_those_of_the_optimizer_with_the_numbers(
    optimizer: AnyTransform, at: Callable[[float, float], AnyTransform], *, donate: bool
) -> None:
    state, expected = train_state(key(3), model(), optimizer), train_state(key(3), model(), at(0.5, 0.5))
    step: TypedStep = train_step(mse, optimizer, donate=donate)
    for count in range(6):
        state, _ = step(state, BATCH)
        expected, _ = train_step(mse, at(float(RISE(count)), float(FALL(count))))(expected, BATCH)
    assert tree.equal(state.model, expected.model)
    assert tree.equal(plain(state.optimizer.inner), expected.optimizer.inner)


def test_nothing_is_compiled_anew_as_it_counts() -> None:
    optimizer = scheduled(adamw(0.1), beta1=RISE, weight_decay=FALL, rate=lambda count: 0.1 / (1 + count))
    plain: TypedStep = train_step(mse, optimizer)
    step = jit(plain, max_traces=1)
    state, eager = (train_state(key(3), model(), optimizer) for _ in range(2))
    for _ in range(5):
        (state, _), (eager, _) = step(state, BATCH), plain(eager, BATCH)
        for one, other in zip(tree.leaves(state), tree.leaves(eager), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert len(step.traces) == 1


@pytest.mark.slow
def test_it_is_scanned() -> None:
    optimizer = scheduled(momentum(0.1), momentum=RISE)
    step: TypedStep = train_step(mse, optimizer)
    state = train_state(key(3), model(), optimizer)
    many, _ = scan(step)(state, tree.stack([BATCH] * 5))
    for _ in range(5):
        state, _ = step(state, BATCH)
    for one, other in zip(tree.leaves(many), tree.leaves(state), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_run_that_is_taken_up_goes_on_to_the_bit(tmp_path: Path) -> None:
    optimizer = scheduled(adamw(0.1), beta1=RISE, weight_decay=FALL)
    step: TypedStep = train_step(mse, optimizer)
    state = train_state(key(3), model(), optimizer)
    for _ in range(2):
        state, _ = step(state, BATCH)
    save(tmp_path / "state.safetensors", state)
    loaded = load(tmp_path / "state.safetensors", train_state(key(4), model(), optimizer))
    for _ in range(3):
        (state, _), (loaded, _) = step(state, BATCH), step(loaded, BATCH)
    assert tree.equal(loaded, state)


@pytest.mark.parametrize("outer", [None, clip_by_global_norm(1e3)], ids=["all at once", "each run"])
def test_each_run_of_an_ensemble_is_as_it_is_alone(outer: AnyTransform | None) -> None:
    own = scheduled(adam(0.1), beta1=RISE)
    optimizer: AnyTransform = own if outer is None else chain(outer, own)
    models = ensemble.initialize(split(key(2), 2), model())
    state = ensemble.train_state(split(key(3), 2), models, optimizer)
    alone = [train_state(one, each, optimizer) for one, each in zip(split(key(3), 2), ensemble.unstack(models), strict=True)]
    single: TypedStep = train_step(mse, optimizer)
    for _ in range(4):
        state, _ = ensemble.train_step(mse, optimizer)(state, ensemble.share(BATCH, 2))
        alone = [single(one, BATCH)[0] for one in alone]
    for of_run, one in zip(ensemble.unstack(state.model), alone, strict=True):
        for leaf, other in zip(tree.leaves(of_run), tree.leaves(one.model), strict=True):
            torch.testing.assert_close(leaf, other, rtol=1e-5, atol=1e-6)


def test_it_counts_micro_batches_around_what_gathers_and_whole_steps_within() -> None:
    counts = []
    optimizers: list[AnyTransform] = [
        scheduled(accumulate(sgd(0.1), 2), rate=RISE),
        accumulate(scheduled(sgd(0.1), rate=RISE), 2),
    ]
    for optimizer in optimizers:
        params, state = torch.zeros(1), optimizer.init(torch.zeros(1))
        for _ in range(4):
            params, state = optimizer.step(torch.ones(1), state, params)
        counts.append(-float(params))
    assert counts == [float(RISE(1) + RISE(3)), float(RISE(0) + RISE(1))]


def test_what_no_schedule_decides_can_be_adjusted() -> None:
    optimizer = adjustable(scheduled(adam(0.1), beta1=RISE))
    state = train_state(key(3), model(), optimizer)
    assert list(hyperparameters(state)) == ["beta2", "epsilon", "weight_decay", "rate"]
    step: TypedStep = train_step(mse, optimizer)
    after, _ = step(with_hyperparameters(state, rate=0.0), BATCH)
    assert tree.equal(after.model, state.model)
    with pytest.raises(ValueError, match=r"the transform has no hyper-parameter 'beta1' .*: it has none"):
        scheduled(adjustable(adam(0.1)), beta1=RISE)


def test_what_cannot_follow_a_schedule_is_told() -> None:
    with pytest.raises(ValueError, match=r"'beta3' .*: it has beta1, beta2, epsilon, weight_decay, rate\. What"):
        scheduled(adam(0.1), beta3=RISE)
    with pytest.raises(ValueError, match=r"'momentum' .*: it has weight_decay, rate\. .* as a momentum of 0 is"):
        scheduled(sgd(0.1), momentum=RISE)
    with pytest.raises(ValueError, match="'rate'"):
        scheduled(sgd(constant_schedule(0.1)), rate=RISE)
    with pytest.raises(ValueError, match=r"no number is given a schedule: write scheduled\(.* of weight_decay, rate"):
        scheduled(sgd(0.1))
    with pytest.raises(
        TypeError, match=r"beta1 is a schedule, such as .* not 0\.5: a number is the transform's own, as now 0\.9"
    ):
        scheduled(adam(0.1), beta1=0.5)  # type: ignore[arg-type]  # the mistake
    with pytest.raises(TypeError, match=r"beta1 is a schedule, but cosine_schedule only makes one: call it, cosine_schedule\("):
        scheduled(adam(0.1), beta1=cosine_schedule)  # type: ignore[arg-type]  # likewise
    with pytest.raises(TypeError, match="numbers are a dict of schedules by name"):
        scheduled(adam(0.1), RISE)  # type: ignore[arg-type]  # likewise
    with pytest.raises(TypeError, match="an optimizer is what"):
        scheduled(adam, beta1=RISE)  # type: ignore[arg-type]  # likewise


@pytest.mark.parametrize(("value", "message"), [(1.5, r"beta1 must be in \[0, 1\), not 1\.5"), (math.nan, "not nan")])
def test_a_value_out_of_bounds_is_told_with_its_step(value: float, message: str) -> None:
    optimizer = scheduled(adam(0.1), beta1=lambda count: torch.where(count == 1, value, 0.5))
    params, state = optimizer.step(torch.ones(2), optimizer.init(torch.ones(2)), torch.ones(2))
    with pytest.raises(ValueError, match=message) as caught:
        optimizer.step(torch.ones(2), state, params)
    assert caught.value.__notes__ == ["a schedule gave that after 1 steps"]


def test_a_schedule_that_gives_no_number_is_told() -> None:
    optimizer = scheduled(adam(0.1), beta1=lambda count: count.expand(2))
    with pytest.raises(TypeError, match="a schedule gives a number for each count"):
        optimizer.step(torch.ones(2), optimizer.init(torch.ones(2)), torch.ones(2))

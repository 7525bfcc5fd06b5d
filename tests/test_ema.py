"""The average of the params that is kept in the state: what it is, wherever the transform is, and how it is read."""

import copy
import math
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fundl import (
    Checkpoints,
    EmaState,
    Evaluation,
    Linear,
    TrainState,
    accumulate,
    adam,
    adamw,
    adjustable,
    averaged,
    batch_norm,
    chain,
    compose,
    dynamic_loss_scale,
    ema,
    ensemble,
    epochs,
    evaluate,
    fit,
    frozen,
    initialize,
    jit,
    key,
    linear,
    load,
    mixed_precision,
    momentum,
    mse,
    partition,
    random,
    save,
    scan,
    sgd,
    skip_nonfinite,
    split,
    train_state,
    train_step,
    tree,
    with_hyperparameters,
    with_statistics,
)
from fundl.optim.chain import AnyTransform
from fundl.training.step import Step

Model: TypeAlias = tuple[Linear[int, int], Linear[int, int]]
AnyState: TypeAlias = TrainState[Model, Any]  # type: ignore[explicit-any]  # of any optimizer
AnyStep: TypeAlias = Step[Model, Any, Tensor, Tensor, Tensor]  # type: ignore[explicit-any]

BATCHES: Final = [
    (random.normal(key(seed), (6, 3), dtype=torch.float64), random.normal(key(seed + 50), (6, 2), dtype=torch.float64))
    for seed in range(7)
]
BAD: Final = BATCHES[0][0], torch.full((6, 2), math.nan, dtype=torch.float64)


def model() -> Model:
    return initialize(key(2), compose(linear(3, 4), linear(4, 2)), dtype=torch.float64)


def mean(models: list[Model], decay: float) -> Model:
    """The mean of models of which each weighs less than the next."""
    weights = [decay ** (len(models) - 1 - place) for place in range(len(models))]
    columns = zip(*map(tree.leaves, models), strict=True)
    leaves = [
        torch.stack([w * leaf for w, leaf in zip(weights, column, strict=True)]).sum(0) / sum(weights) for column in columns
    ]
    return tree.with_trainable_leaves(models[0], leaves)


def assert_close(one: object, other: object, tolerance: float = 1e-12) -> None:
    for first, second in zip(tree.leaves(one), tree.leaves(other), strict=True):
        torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


def steps(optimizer: AnyTransform, batches: list[tuple[Tensor, Tensor]], *, donate: bool = False) -> list[AnyState]:
    """The states after all steps, copied."""
    step: AnyStep = train_step(mse, optimizer, donate=donate)
    state, states = train_state(key(3), model(), optimizer), []
    for batch in batches:
        state, _ = step(state, batch)
        states.append(tree.map(torch.clone, state))
    return states


# --- What it is ----------------------------------------------------------------------------------------------------------


def test_it_equals_torchs() -> None:
    optimizer = chain(ema(0.8, debias=False), momentum(0.1))
    module = torch.nn.ParameterList(tree.leaves(model()))
    peer = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.8))  # type: ignore[no-untyped-call]  # it is so
    peer.update_parameters(module)  # the first call copies
    for state in steps(optimizer, BATCHES):
        for leaf, new in zip(module, tree.leaves(state.model), strict=True):
            leaf.data = new
        peer.update_parameters(module)
        assert_close(averaged(state), [leaf.detach() for leaf in peer.module.parameters()])


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("optimizer", [chain(ema(0.8), adamw(0.1)), chain(momentum(0.1), ema(0.8))], ids=["first", "last"])
def test_without_bias_it_is_a_weighted_mean(optimizer: AnyTransform, *, donate: bool) -> None:
    states = steps(optimizer, BATCHES, donate=donate)
    for count in range(1, len(states) + 1):
        assert_close(averaged(states[count - 1]), mean([state.model for state in states[:count]], 0.8))
    before = train_state(key(3), model(), optimizer)
    assert tree.equal(averaged(before), before.model)


def test_training_is_as_it_was() -> None:
    for donate in (False, True):
        with_it = steps(chain(ema(0.8), adamw(0.1)), BATCHES, donate=donate)
        assert tree.equal(with_it[-1].model, steps(adamw(0.1), BATCHES)[-1].model)
        assert int(with_it[-1].optimizer.inner[0].count) == len(BATCHES)


def test_by_hand() -> None:
    optimizer, params, grads = chain(ema(0.5), sgd(1.0)), {"a": torch.zeros(2)}, {"a": -torch.ones(2)}
    state = optimizer.init(params)
    for _ in range(2):
        params, state = optimizer.step(grads, state, params)
    assert averaged(state, params)["a"].tolist() == pytest.approx([5 / 3] * 2)


def test_what_weighs_nothing_leaves_no_trace() -> None:
    for first in (1e8, -3e38, math.inf, math.nan):
        transform, state = ema(0.5), ema(0.5).init(torch.tensor([first]))
        for params in (torch.tensor([first]), torch.tensor([1.0])):
            _, state = transform.update(torch.zeros(1), state, params)
        assert averaged(state, torch.tensor([4.0])).tolist() == [3.0]


def test_equal_params_are_their_average() -> None:
    params = torch.tensor([0.1, 1e8, 1e-30])
    state = ema(0.9).init(params)
    for _ in range(50):
        _, state = ema(0.9).update(torch.zeros(3), state, params)
    assert torch.equal(averaged(state, params), params)


# --- Wherever it is ------------------------------------------------------------------------------------------------------


def test_steps_that_are_left_out_are_not_taken_in() -> None:
    expected = averaged(steps(chain(ema(0.8), adam(0.1)), BATCHES)[-1])
    inside = skip_nonfinite(chain(ema(0.8), adam(0.1)))
    assert_close(averaged(steps(inside, [BATCHES[0], BAD, *BATCHES[1:], BAD])[-1]), expected, 0.0)
    state = steps(dynamic_loss_scale(chain(ema(0.8), adam(0.1)), initial=8.0), [BATCHES[0], BAD, *BATCHES[1:]])[-1]
    assert_close(averaged(state), expected)
    around = steps(chain(ema(0.8), skip_nonfinite(adam(0.1))), [BATCHES[0], BAD, BATCHES[1]])
    assert_close(averaged(around[-1]), mean([state.model for state in around], 0.8))


def test_windows_count_once_inside_of_what_gathers() -> None:
    states = steps(accumulate(chain(ema(0.8), adam(0.1)), 2), BATCHES)
    assert_close(averaged(states[-1]), mean([states[place].model for place in (1, 3, 5)], 0.8))
    assert tree.equal(averaged(states[-1]), averaged(states[-2]))


def test_parts_have_averages_of_their_own() -> None:
    optimizer = partition({"first": chain(ema(0.8), adam(0.1)), "rest": chain(ema(0.5), momentum(0.1))}, where={"first": "[0]"})
    states = steps(optimizer, BATCHES)
    models = [state.model for state in states]
    expected = mean(models, 0.8)[0], mean(models, 0.5)[1]
    assert_close(averaged(states[-1]), expected)
    only = steps(partition({"first": adam(0.1), "rest": chain(ema(0.5), momentum(0.1))}, where={"first": "[0]"}), BATCHES)[-1]
    assert_close(averaged(only), (only.model[0], expected[1]))
    assert only.model[0].weight is averaged(only)[0].weight


def test_its_decay_can_be_set() -> None:
    optimizer = adjustable(chain(ema(0.8), adam(0.1)))
    step: AnyStep = train_step(mse, optimizer)
    state, models = train_state(key(3), model(), optimizer), []
    for batch in BATCHES[:3]:
        state, _ = step(state, batch)
        models.append(state.model)
    before = averaged(state)
    assert_close(before, mean(models, 0.8))
    state, _ = step(with_hyperparameters(state, decay=0.5), BATCHES[3])
    share = 0.5 / (1 - 0.5**4)
    assert_close(averaged(state), tree.map(lambda old, new: old + share * (new - old), before, state.model))


@pytest.mark.parametrize(
    "optimizer",
    [
        chain(ema(0.8), adamw(0.1)),  # elementwise
        skip_nonfinite(chain(ema(0.8), momentum(0.1))),
        partition({"first": chain(ema(0.8), adam(0.1)), "rest": sgd(0.1)}, where={"first": "[0]"}),
    ],
    ids=["chain", "skip", "partition"],
)
def test_of_an_ensemble_it_is_that_of_each_run(optimizer: AnyTransform) -> None:
    keys, models = split(key(3), 2), [model(), tree.map(lambda leaf: leaf * 0.5, model())]
    state = ensemble.train_state(keys, ensemble.stack(models), optimizer)
    step, one = ensemble.train_step(mse, optimizer), train_step(mse, optimizer)
    states = [train_state(its, first, optimizer) for its, first in zip(keys, models, strict=True)]
    for place, batch in enumerate(BATCHES):
        pairs = [batch, BAD if place == 2 else batch]
        if not isinstance(optimizer, type(skip_nonfinite(sgd(0.1)))):
            pairs = [batch, batch]
        state, _ = step(state, tree.stack(pairs))
        states = [one(its, pair)[0] for its, pair in zip(states, pairs, strict=True)]
    for found, its in zip(ensemble.unstack(averaged(state)), states, strict=True):
        assert_close(found, averaged(its))


def test_buffers_and_what_is_frozen_are_the_models() -> None:
    layers = initialize(key(2), compose(frozen(linear(3, 4)), batch_norm(4), linear(4, 2)), dtype=torch.float64)
    optimizer = chain(ema(0.8), adam(0.1))
    step, state = train_step(mse, optimizer, track=0.1), train_state(key(3), with_statistics(layers), optimizer)
    models = []
    for batch in BATCHES:
        state, _ = step(state, batch)
        models.append(state.model)
    found = averaged(state)
    assert_close(found[2], tree.map(lambda *leaves: leaves[0], mean([(one[2], one[2]) for one in models], 0.8)[0]))
    assert found[0] is state.model[0]
    assert (found[1].mean, found[1].var) == (state.model[1].mean, state.model[1].var)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_of_16_bits_it_is_kept_in_float32_and_rounded_as_it_is_read(dtype: torch.dtype) -> None:
    optimizer = chain(ema(0.99), sgd(0.125))
    batches = [tree.cast_to(batch, dtype) for batch in BATCHES] * 20
    step: AnyStep = train_step(mse, optimizer)
    state, models = train_state(key(3), tree.cast_to(model(), dtype), optimizer), []
    for batch in batches:
        state, _ = step(state, batch)
        models.append(tree.cast_to(state.model, torch.float64))
    expected = mean(models, 0.99)
    assert {leaf.dtype for leaf in state.optimizer.inner[0].average} == {torch.float32}
    assert tree.equal(averaged(state), tree.cast_to(tree.cast_to(expected, torch.float32), dtype))
    wide = TrainState(tree.cast_to(state.model, torch.float32), state.optimizer, state.key, state.step)
    assert_close(averaged(wide), tree.cast_to(expected, torch.float32), 1e-5)


def test_params_of_mixed_precision_are_in_float32() -> None:
    layers = initialize(key(2), mixed_precision(linear(3, 4), linear(4, 2), compute=torch.bfloat16))
    optimizer = chain(ema(0.8), adam(0.1))
    step, state = train_step(mse, optimizer), train_state(key(3), layers, optimizer)
    models = []
    for batch in BATCHES:
        state, _ = step(state, tree.cast_to(batch, torch.float32))
        models.append(tree.cast_to(state.model.layers, torch.float64))
    assert_close(tree.cast_to(averaged(state).layers, torch.float64), mean(models, 0.8), 1e-5)


def test_small_steps_are_not_lost_in_16_bits() -> None:
    transform, ones = ema(0.999, debias=False), torch.ones(1, dtype=torch.bfloat16)
    state = transform.init(torch.zeros(1, dtype=torch.bfloat16))
    for _ in range(3000):
        _, state = transform.update(ones, state, ones)
    found = averaged(tree.cast_to(state, torch.float32), ones.to(torch.float32))
    assert found.item() == pytest.approx(1 - 0.999**3000, rel=1e-4)


# --- In a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compiled_donated_and_scanned_it_is_the_same() -> None:
    optimizer = chain(ema(0.8), adamw(0.1))
    step: AnyStep = train_step(mse, optimizer)
    expected = steps(optimizer, BATCHES)[-1]
    compiled, state = jit(step, donate=("state",)), train_state(key(3), model(), optimizer)
    for batch in BATCHES:
        state, _ = compiled(state, batch)
    scanned, _ = scan(step)(train_state(key(3), model(), optimizer), tree.stack(BATCHES))
    for found in (state, scanned):
        assert_close(averaged(found), averaged(expected))
        assert_close(jit(averaged)(found), averaged(expected))


def test_a_run_evaluates_it_in_place_of_the_model(tmp_path: Path) -> None:
    optimizer = chain(ema(0.5), adamw(0.1))
    step: AnyStep = train_step(mse, optimizer)

    def test(one: Model) -> Evaluation:
        return evaluate(mse, one, BATCHES)

    def run(count: int, where: Path) -> tuple[AnyState, tuple[object, ...]]:
        return fit(
            step, train_state(key(3), model(), optimizer), BATCHES, epochs=count, evaluate=test, evaluated=averaged,
            checkpoints=Checkpoints(where), progress=False,
        )  # fmt: skip

    state, history = run(4, tmp_path / "whole")
    run(2, tmp_path / "parts")
    again, parts = run(4, tmp_path / "parts")
    assert tree.equal(state, again)
    assert history == parts
    for epoch in epochs(step, train_state(key(3), model(), optimizer), BATCHES, count=2, evaluate=test, progress=False):
        assert epoch.test == test(epoch.state.model)
    for epoch in epochs(
        step, train_state(key(3), model(), optimizer), BATCHES, count=4, evaluate=test, evaluated=averaged, progress=False
    ):
        assert epoch.test == test(averaged(epoch.state))
    assert epoch.history == history
    save(tmp_path / "state.safetensors", state)
    assert tree.equal(averaged(load(tmp_path / "state.safetensors", state)), averaged(state))


def test_an_ensemble_evaluates_it_likewise() -> None:
    optimizer, keys = chain(ema(0.5), adamw(0.1)), split(key(3), 2)
    state = ensemble.train_state(keys, ensemble.initialize(keys, linear(3, 2), dtype=torch.float64), optimizer)
    shared = [ensemble.share(batch, 2) for batch in BATCHES]
    state, histories = ensemble.fit(
        ensemble.train_step(mse, optimizer), state, shared, epochs=2, evaluate=lambda one: evaluate(mse, one, BATCHES),
        evaluated=averaged, progress=False,
    )  # fmt: skip
    for history, one in zip(histories, ensemble.unstack(averaged(state)), strict=True):
        assert history[-1].test == evaluate(mse, one, BATCHES)


def test_reading_changes_nothing_and_shares_nothing() -> None:
    state = steps(chain(ema(0.5), adamw(0.1)), BATCHES)[-1]
    before = tree.map(torch.clone, state)
    for leaf in tree.leaves(averaged(state)):
        leaf.add_(1.0)
    first = steps(chain(ema(0.5), adamw(0.1)), BATCHES[:1])[-1]  # all of it is the newest
    kept = tree.map(torch.clone, first)
    for leaf in tree.leaves(averaged(first)):
        leaf.add_(1.0)
    assert tree.equal((state, first), (before, kept))
    assert copy.copy(ema(0.5)) == ema(0.5)


# --- Mistakes ------------------------------------------------------------------------------------------------------------


def test_what_has_no_average_or_several_is_told() -> None:
    with pytest.raises(ValueError, match=r"has no average: one of chain\(ema\(0\.999\), optimizer\) has"):
        averaged(train_state(key(3), model(), sgd(0.1)))
    twice = chain(ema(0.5), ema(0.9), sgd(0.1))
    with pytest.raises(ValueError, match="several averages of the same params"):
        averaged(train_state(key(3), model(), twice))
    state = chain(ema(0.5), sgd(0.1)).init(model())
    with pytest.raises(ValueError, match="the average in the state is of other params than"):
        averaged(state, initialize(key(0), compose(linear(3, 5), linear(5, 2)), dtype=torch.float64))
    with pytest.raises(TypeError, match=r"write averaged\(state, params\)"):
        averaged(state)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="averaged takes the state of a run"):
        averaged(model())  # type: ignore[call-overload]
    assert isinstance(state.inner[0], EmaState)

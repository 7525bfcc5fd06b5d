"""Hyper-parameters in the state: read, set, and what the next steps make of them."""

from pathlib import Path
from typing import Any, TypeAlias

import attrs
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from typing_extensions import override

from fundl import (
    Checkpoints,
    Linear,
    ReLU,
    Tensors,
    accumulate,
    adam,
    adamw,
    adjustable,
    chain,
    clip_by_global_norm,
    clip_by_value,
    compose,
    constant_schedule,
    dynamic_loss_scale,
    ensemble,
    epochs,
    hyperparameters,
    initialize,
    jit,
    key,
    linear,
    lion,
    load,
    momentum,
    mse,
    partition,
    random,
    reduce_on_plateau,
    rmsprop,
    save,
    scale,
    scale_by_learning_rate,
    scan,
    sgd,
    split,
    train_state,
    train_step,
    tree,
    with_hyperparameters,
)
from fundl.optim._numbers import numbers_of
from fundl.optim.chain import AnyTransform
from fundl.optim.transform import Stateless
from fundl.training.step import Step
from tests.optimizer_samples import OPTIMIZERS

TypedStep: TypeAlias = Step["Model", Any, Tensor, Tensor, Tensor]  # type: ignore[explicit-any]  # of any optimizer
Model: TypeAlias = tuple[Linear[int, int], ReLU, Linear[int, int]]

BATCH = random.normal(key(0), (6, 3)), random.normal(key(1), (6, 2))


def model() -> Model:
    made: Model = initialize(key(2), compose(linear(3, 4), ReLU(), linear(4, 2)))
    return made


ADJUSTABLE = {
    name: optimizer for name, optimizer in OPTIMIZERS.items() if not name.startswith("adjustable") and numbers_of(optimizer)
}


@pytest.mark.parametrize("name", ADJUSTABLE)
def test_the_bits_are_those_of_the_plain_optimizer(name: str) -> None:
    plain: AnyTransform = ADJUSTABLE[name]
    held = adjustable(plain)
    for donate in (False, True):
        one, other = train_state(key(3), model(), plain), train_state(key(3), model(), held)
        step, step_of_held = train_step(mse, plain), train_step(mse, held, donate=donate)
        for _ in range(5):
            one, _ = step(one, BATCH)
            other, _ = step_of_held(other, BATCH)
        assert tree.equal(one.model, other.model)


@pytest.mark.parametrize(
    ("before", "after", "numbers"),
    [
        (sgd(0.1), sgd(0.02, weight_decay=0.1), {"rate": 0.02, "weight_decay": 0.1}),
        (momentum(0.1), momentum(0.02, momentum=0.5), {"rate": 0.02, "momentum": 0.5}),
        (
            sgd(0.1, momentum=0.9, dampening=0.5),
            sgd(0.1, momentum=0.9, dampening=0.25),
            {"dampening": 0.25},
        ),
        (
            adam(0.1),
            adam(0.2, beta1=0.5, beta2=0.75, epsilon=1e-3),
            {"rate": 0.2, "beta1": 0.5, "beta2": 0.75, "epsilon": 1e-3},
        ),
        (rmsprop(0.1), rmsprop(0.2, decay=0.5, epsilon=1e-3), {"rate": 0.2, "decay": 0.5, "epsilon": 1e-3}),
        (lion(0.1), lion(0.2, beta1=0.5, beta2=0.25), {"rate": 0.2, "beta1": 0.5, "beta2": 0.25}),
        (
            chain(clip_by_global_norm(1.0), clip_by_value(1.0), scale(-0.1)),
            chain(clip_by_global_norm(0.5), clip_by_value(0.01), scale(-0.3)),
            {"max_norm": 0.5, "limit": 0.01, "factor": -0.3},
        ),
    ],
    ids=["sgd", "momentum", "dampening", "adam", "rmsprop", "lion", "chain"],
)
def test_what_is_set_holds_from_the_next_step_on(before: AnyTransform, after: AnyTransform, numbers: dict[str, float]) -> None:
    held = adjustable(before)
    state = train_state(key(3), model(), held)
    state, _ = train_step(mse, held)(state, BATCH)
    plain = attrs.evolve(state, optimizer=attrs.evolve(state.optimizer, inner=state.optimizer.inner.inner))
    state = with_hyperparameters(state, numbers)
    assert {name: float(value) for name, value in hyperparameters(state).items() if name in numbers} == numbers

    expected, _ = train_step(mse, after)(plain, BATCH)
    eager, _ = train_step(mse, held)(state, BATCH)
    assert tree.equal(eager.model, expected.model)
    # What a compiler sees: numbers that it cannot look at.
    leaves, structure = tree.flatten((state, BATCH))

    def flat(*tensors: Tensor) -> list[Tensor]:
        filling = iter(tensors)
        given, batch = tree.unflatten(structure, [leaf if leaf is None else next(filling) for leaf in leaves])
        return tree.leaves(train_step(mse, held)(given, batch)[0].model)

    tensors = [leaf for leaf in leaves if leaf is not None]
    results = make_fx(flat, tracing_mode="fake")(*tensors)(*tensors)
    for one, other in zip(results, tree.leaves(expected.model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_nothing_is_compiled_anew() -> None:
    optimizer = adjustable(adamw(0.1))
    plain: TypedStep = train_step(mse, optimizer)
    step = jit(plain, max_traces=1)
    state, eager = (train_state(key(3), model(), optimizer) for _ in range(2))
    before = state.model
    for rate in (0.1, 0.01, 0.0):
        state, eager = (with_hyperparameters(one, rate=rate, beta1=0.5 + rate) for one in (state, eager))
        before, (state, _) = state.model, step(state, BATCH)
        eager, _ = train_step(mse, optimizer)(eager, BATCH)
        for one, other in zip(tree.leaves(state.model), tree.leaves(eager.model), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert tree.equal(before, state.model)  # at a rate of 0
    assert len(step.traces) == 1


@pytest.mark.slow
def test_it_is_scanned() -> None:
    optimizer = adjustable(momentum(0.1))
    state = with_hyperparameters(train_state(key(3), model(), optimizer), rate=0.05, momentum=0.5)
    step: TypedStep = train_step(mse, optimizer)
    many, _ = scan(step)(state, tree.stack([BATCH] * 3))
    for _ in range(3):
        state, _ = train_step(mse, optimizer)(state, BATCH)
    for one, other in zip(tree.leaves(many), tree.leaves(state), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_names_tell_parts_apart() -> None:
    assert list(numbers_of(adamw(constant_schedule(0.1)))) == ["beta1", "beta2", "epsilon", "weight_decay"]
    assert list(numbers_of(momentum(0.1))) == ["weight_decay", "momentum", "rate"]
    assert list(numbers_of(chain(clip_by_global_norm(1.0), sgd(0.1)))) == ["max_norm", "weight_decay", "rate"]
    assert list(numbers_of(chain(scale(1.0), scale(2.0)))) == ["0.factor", "1.factor"]
    assert list(numbers_of(accumulate(sgd(0.1), 2))) == ["weight_decay", "rate"]


def test_it_goes_inside_and_around_what_decides_when_to_step() -> None:
    optimizers: list[AnyTransform] = [
        adjustable(dynamic_loss_scale(accumulate(adam(0.1), 2), initial=8.0)),
        dynamic_loss_scale(accumulate(adjustable(adam(0.1)), 2), initial=8.0),
    ]
    for optimizer in optimizers:
        plain = dynamic_loss_scale(accumulate(adam(0.02), 2), initial=8.0)
        state = with_hyperparameters(train_state(key(3), model(), optimizer), rate=0.02)
        expected = train_state(key(3), model(), plain)
        for _ in range(4):
            state, _ = train_step(mse, optimizer, donate=True)(state, BATCH)
            expected, _ = train_step(mse, plain)(expected, BATCH)
        assert tree.equal(state.model, expected.model)


def test_an_ensemble_has_a_number_for_each_run_where_runs_are_apart() -> None:
    cases: list[tuple[AnyTransform, float | Tensor]] = [
        (adjustable(adam(0.1)), 0.05),
        (adjustable(chain(clip_by_global_norm(1e3), adam(0.1))), torch.tensor([0.0, 0.05])),
    ]
    batch = ensemble.share(BATCH, 2)
    for optimizer, rates in cases:
        state = ensemble.train_state(split(key(3), 2), ensemble.initialize(split(key(2), 2), model()), optimizer)
        state = with_hyperparameters(state, rate=rates)
        after, _ = ensemble.train_step(mse, optimizer)(state, batch)
        moved = [
            not tree.equal(*both) for both in zip(ensemble.unstack(state.model), ensemble.unstack(after.model), strict=True)
        ]
        assert moved == [isinstance(rates, float), True]


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    optimizer = adjustable(adam(0.1))
    state = with_hyperparameters(train_state(key(3), model(), optimizer), rate=0.03)
    save(f"{tmp_path}/state.safetensors", state)
    loaded = load(f"{tmp_path}/state.safetensors", train_state(key(4), model(), optimizer))
    assert tree.equal(loaded, state)
    assert hyperparameters(loaded)["rate"] == 0.03


@attrs.frozen
class Times(Stateless):
    """A user's transform."""

    numbers = ("factor",)

    factor: "float | Tensor"

    @override
    def updates(self, grads: Tensors) -> Tensors:
        return tuple(grad * self.factor for grad in grads)


def test_a_users_transform_says_what_its_numbers_are() -> None:
    optimizer = adjustable(chain(Times(2.0), sgd(0.5)))
    state = with_hyperparameters(optimizer.init(torch.ones(2)), factor=-1.0)
    assert optimizer.step(torch.ones(2), state, torch.ones(2))[0].tolist() == [1.5, 1.5]


def test_what_is_held_is_not_changed() -> None:
    optimizer = adjustable(sgd(0.1))
    state = train_state(key(3), model(), optimizer)
    read = hyperparameters(state)
    read["rate"].zero_()
    assert hyperparameters(state)["rate"] == 0.1
    changed = with_hyperparameters(state, rate=0.2)
    assert hyperparameters(state)["rate"] == 0.1
    assert changed.model[0] is state.model[0]


def test_what_cannot_be_is_refused() -> None:
    state = adjustable(sgd(0.1)).init(torch.ones(2))
    with pytest.raises(ValueError, match=r"no hyper-parameter 'lr': it has weight_decay, rate"):
        with_hyperparameters(state, lr=0.1)
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="rate must be a finite number of 0 or more"):
            with_hyperparameters(state, rate=wrong)
    with pytest.raises(TypeError, match=r"rate must be a number, not '0.1'"):
        with_hyperparameters(state, rate="0.1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"rate is one number, of shape"):
        with_hyperparameters(state, rate=torch.ones(2))
    with pytest.raises(ValueError, match=r"has no hyper-parameters: .* adjustable\(optimizer\)"):
        hyperparameters(sgd(0.1).init(torch.ones(2)))
    with pytest.raises(ValueError, match=r"has 2 sets of hyper-parameters"):
        hyperparameters(chain(adjustable(scale(1.0)), adjustable(scale(2.0))).init(torch.ones(2)))
    with pytest.raises(ValueError, match="has no number that could be adjusted"):
        adjustable(scale_by_learning_rate(constant_schedule(0.1)))
    with pytest.raises(TypeError, match="an optimizer is what"):
        adjustable(adam)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("optimizer", "name", "value", "message"),
    [
        (adam(0.1), "beta1", 1.0, r"beta1 must be in \[0, 1\), not 1.0"),
        (sgd(0.1, momentum=0.9), "momentum", 1.5, r"momentum must be in \[0, 1\), not 1.5"),
        (sgd(0.1), "rate", -0.1, "rate must be a finite number of 0 or more, not -0.1"),
        (chain(clip_by_global_norm(1.0), sgd(0.1)), "max_norm", 0.0, "max_norm must be a finite number above 0, not 0.0"),
        (partition({"a": adam(0.1), "rest": sgd(0.1)}, where={"a": "[0]"}), "a.beta2", 1.0, r"a\.beta2 must be in \[0, 1\)"),
    ],
)
def test_a_number_out_of_bounds_is_refused_as_it_is_set(optimizer: AnyTransform, name: str, value: float, message: str) -> None:
    state = adjustable(optimizer).init((torch.ones(2), torch.ones(2)))
    for given in (value, torch.tensor(value, dtype=torch.float64)):
        with pytest.raises(ValueError, match=message):
            with_hyperparameters(state, {name: given})


def test_bounds_of_ones_own_are_looked_at_by_the_next_step() -> None:
    def at_most_ten(_record: object, _field: object, value: float) -> None:
        if value > 10:
            raise ValueError(f"ten at most, not {value}")

    @attrs.frozen
    class Times(Stateless):
        numbers = ("size",)

        size: float = attrs.field(validator=at_most_ten)

        @override
        def updates(self, grads: Tensors) -> Tensors:
            return tuple(torch._foreach_mul(grads, self.size))

    optimizer = adjustable(Times(2.0))
    state = with_hyperparameters(optimizer.init(torch.ones(2)), size=-3.0)
    assert optimizer.update(torch.ones(2), state, torch.ones(2))[0].tolist() == [-3.0, -3.0]
    with pytest.raises(ValueError, match="ten at most, not 11"):
        optimizer.step(torch.ones(2), with_hyperparameters(state, size=11.0), torch.ones(2))
    with pytest.raises(ValueError, match="size must be a finite number, not inf"):
        with_hyperparameters(state, size=float("inf"))


def test_a_state_of_another_optimizer_is_refused() -> None:
    state = adjustable(sgd(0.1)).init(torch.ones(2))
    with pytest.raises(ValueError, match=r"the state"):
        adjustable(adam(0.1)).step(torch.ones(2), state, torch.ones(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the state is of another transform"):
        adjustable(sgd(0.1)).step(torch.ones(2), sgd(0.1).init(torch.ones(2)), torch.ones(2))  # type: ignore[arg-type]


# --- On a plateau ------------------------------------------------------------------------------------------------------


def test_the_rate_falls_as_that_of_torch() -> None:
    losses = [3.0, 2.0, 2.5, 2.0, 2.1, 1.9, 1.95, float("nan"), 1.9, 2.0, 2.0, 2.0, 1.0, float("inf"), 1.0, 1.0, 1.0]
    for patience in (1, 2, 3):
        theirs = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, factor=0.5, patience=patience - 1, threshold=0.0)
        state = adjustable(sgd(1.0)).init(torch.ones(2))
        for count, loss in enumerate(losses, 1):
            scheduler.step(loss)
            state = reduce_on_plateau(state, losses[:count], factor=0.5, patience=patience)
            assert float(hyperparameters(state)["rate"]) == theirs.param_groups[0]["lr"]


def test_all_rates_fall_and_none_below_the_least() -> None:
    state = adjustable(chain(sgd(0.1), sgd(1.0))).init(torch.ones(2))
    state = reduce_on_plateau(state, [1.0, 1.0], patience=1, least=0.05)
    numbers = hyperparameters(state)
    assert {name: float(number) for name, number in numbers.items() if "rate" in name} == {"0.rate": 0.05, "1.rate": 0.1}


def test_what_is_no_plateau_is_refused() -> None:
    state = adjustable(sgd(1.0)).init(torch.ones(2))
    with pytest.raises(ValueError, match="factor, what the rate is multiplied by, must be above 0 and below 1, not 10"):
        reduce_on_plateau(state, [1.0], factor=10)
    with pytest.raises(ValueError, match="patience must be 1 loss or more, not 0"):
        reduce_on_plateau(state, [1.0], patience=0)
    with pytest.raises(ValueError, match="least, the least rate, must be 0 or more"):
        reduce_on_plateau(state, [1.0], least=-1.0)
    with pytest.raises(ValueError, match="follows a schedule"):
        reduce_on_plateau(adjustable(sgd(constant_schedule(0.1))).init(torch.ones(2)), [1.0])
    with pytest.raises(ValueError, match="has no hyper-parameters"):
        reduce_on_plateau(sgd(0.1).init(torch.ones(2)), [1.0])


# --- In a run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compiled", "donate"), [(False, False), (False, True), pytest.param(True, False, marks=pytest.mark.slow)]
)
def test_a_run_goes_on_with_what_it_is_sent(*, compiled: bool, donate: bool) -> None:
    optimizer = adjustable(sgd(0.1))
    step: TypedStep = train_step(mse, optimizer)
    state = train_state(key(3), model(), optimizer)
    run = epochs(step, state, [BATCH] * 2, count=6, compile=compiled, donate=donate, progress=False)
    rates: list[float] = []
    last = state
    for epoch in run:
        reduced = reduce_on_plateau(epoch.state, [1.0] * epoch.epoch, factor=0.5, patience=2)
        item = run.send(reduced)
        assert (item.epoch, item.state) == (epoch.epoch, reduced)
        rates.append(float(hyperparameters(item.state)["rate"]))
        last = tree.map(torch.clone, item.state)
    assert rates == [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]

    by_hand = train_state(key(3), model(), optimizer)
    for rate in rates:
        for _ in range(2):
            by_hand, _ = step(by_hand, BATCH)
        by_hand = with_hyperparameters(by_hand, rate=rate)
    for one, other in zip(tree.leaves(last), tree.leaves(by_hand), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3 if compiled else 0, atol=1e-5 if compiled else 0)


@pytest.mark.parametrize("seconds", [None, 1e-9])
@pytest.mark.parametrize("before", [False, True])
def test_what_was_sent_is_sent_again_where_a_run_is_taken_up(tmp_path: Path, before: bool, seconds: float | None) -> None:
    """Whether the loop was left before, or after: a number that depends on the one before it is changed once."""
    optimizer = adjustable(sgd(0.1))
    step: TypedStep = train_step(mse, optimizer)

    def run_of(folder: str, *, leave_after: int) -> list[tuple[int, float, float]]:
        state = train_state(key(3), model(), optimizer)
        kept = Checkpoints(tmp_path / folder, seconds=seconds)
        run, seen = epochs(step, state, [BATCH] * 2, count=5, checkpoints=kept, compile=False, progress=False), []
        for epoch in run:
            rate = float(hyperparameters(epoch.state)["rate"])
            seen.append((epoch.epoch, epoch.train.loss, rate))
            if epoch.epoch == leave_after and before:
                break
            run.send(with_hyperparameters(epoch.state, rate=0.5 * rate))
            if epoch.epoch == leave_after:
                break
        return seen

    whole = run_of("whole", leave_after=9)
    assert [rate for _, _, rate in whole] == pytest.approx([0.1, 0.05, 0.025, 0.0125, 0.00625])
    assert run_of("parts", leave_after=3) == whole[:3]
    assert run_of("parts", leave_after=9) == whole[2:]


def test_what_is_no_state_of_the_run_is_not_taken() -> None:
    optimizer = adjustable(sgd(0.1))
    step: TypedStep = train_step(mse, optimizer)
    state = train_state(key(3), model(), optimizer)
    run = epochs(step, state, [BATCH], count=2, compile=False, progress=False)
    next(run)
    with pytest.raises(ValueError, match=r"made of epoch.state, of step 1 .* not another state, of step 0"):
        run.send(state)
    run = epochs(step, state, [BATCH], count=2, compile=False, progress=False)
    next(run)
    with pytest.raises(TypeError, match=r"what a run is sent is a state, made of epoch.state, not {}"):
        run.send({})  # type: ignore[arg-type]

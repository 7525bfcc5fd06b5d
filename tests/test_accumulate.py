"""Micro-batches as one large batch, whatever the loss divides by, and windows that end before they are full."""

import functools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fundl import (
    Accumulate,
    AnyTransform,
    Checkpoints,
    Linear,
    Report,
    Tensors,
    TrainState,
    Transform,
    accumulate,
    adam,
    adjustable,
    binary_cross_entropy_with_logits,
    chain,
    clip_by_global_norm,
    cross_entropy,
    dynamic_loss_scale,
    ema,
    ensemble,
    epochs,
    finish,
    fit,
    huber,
    initialize,
    jit,
    key,
    kl_divergence,
    linear,
    momentum,
    mse,
    nll,
    partition,
    random,
    scan,
    sgd,
    skip_nonfinite,
    split,
    trace,
    train_state,
    train_step,
    tree,
    value_and_grad,
    weighed_by,
    weight_of,
)
from fundl.layer import Loss
from fundl.training.step import Step, donating_of

Model: TypeAlias = Linear[int, int]
AnyState: TypeAlias = TrainState[Model, Any]  # type: ignore[explicit-any]  # of any optimizer
AnyStep: TypeAlias = Step[Model, Any, Tensor, Tensor, Tensor]  # type: ignore[explicit-any]
Batch: TypeAlias = tuple[Tensor, Tensor]

X, TARGET = random.normal(key(0), (7, 3)), random.normal(key(1), (7, 2))


def model() -> Model:
    return initialize(key(2), linear(3, 2))


def wide() -> Model:
    return initialize(key(2), linear(3, 4), dtype=torch.float64)


# --- As one large batch --------------------------------------------------------------------------------------------------

ROWS: Final = random.normal(key(0), (12, 3), dtype=torch.float64)
NUMBERS: Final = random.normal(key(4), (12, 4), dtype=torch.float64)
SHARES: Final = torch.softmax(NUMBERS, 1)
CLASSES: Final = torch.arange(12) % 4
SOME: Final = CLASSES.index_fill(0, torch.tensor([0, 2, 3, 9]), -100)  # of the first micro-batch none
WEIGHT: Final = torch.tensor([0.5, 2.0, 0.0, 1.0], dtype=torch.float64)


def of_rows(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """A user's own, of which nothing is known."""
    difference = prediction - target
    return difference.square().sum() / len(prediction), 2 * difference / len(prediction)


@weighed_by("sum")
def summed(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    difference = prediction - target
    return difference.square().sum(), 2 * difference


@weighed_by(lambda _prediction, target: (target > -5).sum())
def of_known(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """One that divides by 0 where nothing is known: its gradient is no number then."""
    known = target > -5
    difference = torch.where(known, prediction - target, 0.0)
    return difference.square().sum() / known.sum(), 2 * difference / known.sum()


LOSSES: Final[dict[str, tuple[Loss[Tensor, Tensor], Tensor]]] = {
    "mse": (mse, NUMBERS),
    "mse: sum": (functools.partial(mse, reduction="sum"), NUMBERS),
    "mse: batch_mean": (functools.partial(mse, reduction="batch_mean"), NUMBERS),
    "huber": (functools.partial(huber, delta=0.5), NUMBERS),
    "cross_entropy": (cross_entropy, CLASSES),
    "cross_entropy: some": (cross_entropy, SOME),
    "cross_entropy: all": (functools.partial(cross_entropy, weight=WEIGHT, label_smoothing=0.1), SOME),
    "cross_entropy: sum": (functools.partial(cross_entropy, weight=WEIGHT, reduction="sum"), SOME),
    "cross_entropy: batch_mean": (functools.partial(cross_entropy, weight=WEIGHT, reduction="batch_mean"), SOME),
    "cross_entropy: shares": (functools.partial(cross_entropy, weight=WEIGHT), SHARES),
    "nll": (functools.partial(nll, weight=WEIGHT), SOME),
    "binary": (functools.partial(binary_cross_entropy_with_logits, pos_weight=3.0), SHARES),
    "kl_divergence": (functools.partial(kl_divergence, reduction="batch_mean"), SHARES),
    "own": (of_rows, NUMBERS),
    "own: sum": (summed, NUMBERS),
    "own: of known": (of_known, torch.where(torch.arange(12).unsqueeze(1) == 0, -9.0, NUMBERS)),
}


def pieces(target: Tensor, sizes: tuple[int, ...] = (1, 7, 4)) -> list[Batch]:
    return list(zip(torch.split(ROWS, [*sizes]), torch.split(target, [*sizes]), strict=True))


def of_windows(name: str, sizes: tuple[int, ...], take: Callable[[AnyStep, AnyState, list[Batch]], AnyState]) -> None:
    """Compare three windows with three large batches."""
    (loss, target), inner = LOSSES[name], chain(trace(0.9), ema(0.5), sgd(0.01))
    whole: AnyStep = train_step(loss, inner)
    expected: AnyState = train_state(key(3), wide(), inner)
    state: AnyState = train_state(key(3), wide(), accumulate(inner, 3))
    for _ in range(3):
        expected, _ = whole(expected, (ROWS, target))
        state = take(train_step(loss, accumulate(inner, 3)), state, pieces(target, sizes))
    both = (state.model, state.optimizer.inner.inner), (expected.model, expected.optimizer.inner)
    for one, other in zip(*map(tree.leaves, both), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_ragged_micro_batches_are_one_large_batch_to_the_last_digits(name: str) -> None:
    def one_by_one(step: AnyStep, state: AnyState, batches: list[Batch]) -> AnyState:
        for batch in batches:
            state, _ = step(state, batch)
        return state

    of_windows(name, (1, 7, 4), one_by_one)
    of_windows(name, (1, 7, 4), lambda step, state, batches: one_by_one(donating_of(step) or step, state, batches))


@pytest.mark.parametrize("name", [pytest.param("mse: sum", marks=pytest.mark.slow), "own: of known"])
def test_so_are_those_of_a_scan(name: str) -> None:
    of_windows(name, (4, 4, 4), lambda step, state, batches: scan(step)(state, tree.stack(batches))[0])


@pytest.mark.parametrize("name", ["mse: sum", "cross_entropy: all", "own: of known"])
def test_so_are_those_of_an_ensemble(name: str) -> None:
    loss, target = LOSSES[name]
    keys, optimizer = split(key(3), 2), accumulate(momentum(0.01), 3)
    state = ensemble.train_state(keys, ensemble.initialize(keys, linear(3, 4), dtype=torch.float64), optimizer)
    expected = ensemble.train_state(keys, state.model, momentum(0.01))
    step, whole = ensemble.train_step(loss, optimizer), ensemble.train_step(loss, momentum(0.01))
    for _ in range(2):
        for batch in pieces(target):
            state, _ = step(state, ensemble.share(batch, 2))
        expected, _ = whole(expected, ensemble.share((ROWS, target), 2))
    for one, other in zip(tree.leaves(state.model), tree.leaves(expected.model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_by_hand_a_sum_is_told_by_its_weight() -> None:
    optimizer, params = accumulate(sgd(1.0), 2), torch.zeros(1)
    weight = weight_of(summed, torch.zeros(2), torch.zeros(2))
    assert weight == 1
    state = optimizer.init(params)
    for grad in (1.0, 2.0):
        params, state = optimizer.step(torch.tensor([grad]), state, params, weight=weight)
    assert params.tolist() == [-3.0]


@pytest.mark.parametrize("weight", [0, torch.tensor(0.0), torch.tensor(0)], ids=["number", "float", "int"])
def test_what_weighs_nothing_adds_nothing_whatever_it_is(weight: float | Tensor) -> None:
    optimizer, params = accumulate(sgd(1.0), 2), torch.zeros(1)
    nothing = optimizer.weighed(weight)
    for step in (Accumulate.step, Accumulate.step_over):
        state = optimizer.init(params)
        moved, state = step(nothing, torch.tensor([math.nan]), state, params.clone())
        moved, state = step(optimizer.weighed(3), torch.tensor([2.0]), state, moved)
        assert moved.tolist() == [-2.0]


# --- Windows that are not full -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_window_that_is_not_full_is_finished(dtype: torch.dtype) -> None:
    inner = chain(clip_by_global_norm(0.1), adam(0.1))
    optimizer = accumulate(inner, steps=3)
    (x, target), first = tree.cast_to((X, TARGET), dtype), tree.cast_to(model(), dtype)
    state = train_state(key(3), first, optimizer)
    step = train_step(mse, optimizer)
    for start, stop in ((0, 2), (2, 7)):  # of 2 rows and of 5
        state, _ = step(state, (x[start:stop], target[start:stop]))
    assert tree.equal(state.model, first)
    assert int(state.optimizer.inner.count) == 2

    finished, memory = optimizer.finish(state.optimizer, state.model)
    _, grads = value_and_grad(mse, first, x, target)
    expected, _ = inner.step(grads, inner.init(first), first)
    for one, other in zip(tree.leaves(finished), tree.leaves(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4 if dtype == torch.float32 else 2e-2, atol=1e-5)
    assert (int(memory.inner.count), float(memory.inner.weight)) == (0, 0.0)
    assert not any(bool(total.any()) for total in memory.inner.total)
    again, same = optimizer.finish(memory, finished)
    assert tree.equal((again, same), (finished, memory))


def test_finish_refuses_what_step_refuses() -> None:
    optimizer = accumulate(sgd(0.1), steps=2)
    with pytest.raises(ValueError, match="the state is of"):
        optimizer.finish(optimizer.init(torch.ones(2)), torch.ones(3))


# Each around a window of four, and what does the same with the batch as one.
AROUND: Final[dict[str, Callable[[AnyTransform], AnyTransform]]] = {
    "alone": lambda inner: inner,
    "chain": lambda inner: chain(clip_by_global_norm(1e6), inner),
    "nested": lambda inner: chain(ema(0.5), chain(inner)),
    "adjustable": adjustable,
    "skip_nonfinite": skip_nonfinite,
    "dynamic_loss_scale": lambda inner: dynamic_loss_scale(inner, initial=8.0),
    "all": lambda inner: dynamic_loss_scale(skip_nonfinite(adjustable(chain(ema(0.5), inner)))),
    "partition": lambda inner: partition({"weight": inner, "rest": momentum(0.1)}, where={"weight": ".weight"}),
}


@pytest.mark.parametrize("name", AROUND)
def test_finish_finds_what_waits_wherever_it_is(name: str) -> None:
    optimizer, inner = AROUND[name](accumulate(momentum(0.1), 4)), AROUND[name](momentum(0.1))
    step: AnyStep = train_step(mse, optimizer)
    whole: AnyStep = train_step(mse, inner)
    state: AnyState = train_state(key(3), wide(), optimizer)
    expected: AnyState = train_state(key(3), wide(), inner)
    for batch in pieces(NUMBERS):
        state, _ = step(state, batch)
    before = tree.map(torch.clone, state)
    after = finish(step, state)
    expected, _ = whole(expected, (ROWS, NUMBERS))
    torch.testing.assert_close(
        after.model.weight, expected.model.weight, rtol=1e-12 if name != "partition" else 1.0, atol=1e-12
    )
    assert not tree.equal(after.model.weight, state.model.weight)
    assert tree.equal(state, before)
    assert int(after.step) == 3
    assert tree.equal(finish(step, after), after)
    if name == "partition":
        assert after.model.bias is not None
        assert tree.equal(after.model.bias, state.model.bias)
        assert tree.equal(after.optimizer.inner.inner[1], state.optimizer.inner.inner[1])
    compiled = jit(step)
    assert tree.equal(finish(compiled, state), after)


def test_where_nothing_gathers_nothing_happens() -> None:
    step: AnyStep = train_step(mse, adam(0.1))
    state, _ = step(train_state(key(3), model(), adam(0.1)), (X, TARGET))
    assert tree.equal(finish(step, state), state)


def test_an_ensemble_is_finished_run_by_run() -> None:
    keys, optimizer = split(key(3), 2), skip_nonfinite(accumulate(adam(0.1), 3))
    state = ensemble.train_state(keys, ensemble.initialize(keys, linear(3, 2)), optimizer)
    step, one = ensemble.train_step(mse, optimizer), train_step(mse, optimizer)
    states = [train_state(its, first, optimizer) for its, first in zip(keys, ensemble.unstack(state.model), strict=True)]
    bad = X, TARGET * math.nan
    for pairs in ([(X, TARGET), (X, TARGET)], [(X, TARGET), bad]):
        state, _ = step(state, tree.stack(pairs))
        states = [one(its, pair)[0] for its, pair in zip(states, pairs, strict=True)]
    for found, its in zip(ensemble.unstack(finish(step, state).model), states, strict=True):
        for leaf, other in zip(tree.leaves(found), tree.leaves(finish(one, its).model), strict=True):
            torch.testing.assert_close(leaf, other)


def test_what_cannot_be_finished_is_told() -> None:
    @attrs.frozen
    class Around(Transform[object]):
        """A user's, which hands on no `rest`."""

        inner: AnyTransform

        @override
        def start(self, leaves: Tensors, paths: tuple[str, ...]) -> object:
            return self.inner.start(leaves, paths)

        @override
        def change(self, grads: Tensors, state: object, params: Tensors) -> tuple[Tensors, object]:
            return self.inner.change(grads, state, params)

    cases: list[tuple[AnyTransform, str]] = [
        (Around(accumulate(sgd(0.1), 2)), "1 micro-batch waits still: a transform around `accumulate` does not hand on `rest`"),
        (chain(accumulate(trace(0.5), 2), sgd(0.1)), "part 0 of the chain gathers micro-batches, but only the last can be"),
    ]
    for optimizer, message in cases:
        gathering: AnyStep = train_step(mse, optimizer)
        waiting, _ = gathering(train_state(key(3), model(), optimizer), (X, TARGET))
        with pytest.raises(ValueError, match=message):
            finish(gathering, waiting)
    step: AnyStep = train_step(mse, sgd(0.1))
    state: AnyState = train_state(key(3), model(), sgd(0.1))

    def own(state: AnyState, batch: Batch) -> tuple[AnyState, Report]:
        return step(state, batch)

    with pytest.raises(TypeError, match=r"finish takes a step that train_step made, not .*optimizer\.finish"):
        finish(own, state)
    with pytest.raises(TypeError, match=r"finish\(step, state\) takes the state"):
        finish(step, state.model)  # type: ignore[arg-type]  # on purpose


# --- At the end of a run -------------------------------------------------------------------------------------------------

BATCHES: Final = list(zip(torch.split(X, 1), torch.split(TARGET, 1), strict=True))


def test_a_run_tells_what_waits_where_it_was_called() -> None:
    optimizer = accumulate(adam(0.1), 4)
    step: AnyStep = train_step(mse, optimizer)
    state = train_state(key(3), model(), optimizer)
    with pytest.warns(UserWarning, match=r"^3 micro-batches wait at the end of the run, .*finish\(step, state\)") as told:
        after, _ = fit(step, state, BATCHES, epochs=1, progress=False)
    assert [one.filename for one in told] == [__file__]
    with pytest.warns(UserWarning, match=r"^1 micro-batch waits at the end") as told:
        for _epoch in epochs(step, state, BATCHES[:5], count=1, progress=False):
            pass
    assert [one.filename for one in told] == [__file__]
    many = ensemble.train_state(split(key(0), 2), ensemble.initialize(split(key(0), 2), linear(3, 2)), optimizer)
    shared = [ensemble.share(batch, 2) for batch in BATCHES]
    with pytest.warns(UserWarning, match=r"^2 micro-batches wait") as told:
        ensemble.fit(ensemble.train_step(mse, optimizer), many, shared, epochs=2, progress=False)
    assert [one.filename for one in told] == [__file__]
    full, _ = fit(step, state, BATCHES, epochs=4, progress=False)  # in which nothing waits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts, _ = fit(step, after, BATCHES, epochs=3, progress=False)
    assert tree.equal(parts, full)
    assert tree.equal(finish(step, full), full)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_is_the_same_once_it_is_taken_up(tmp_path: Path, *, compiled: bool) -> None:
    optimizer = dynamic_loss_scale(accumulate(chain(ema(0.5), adam(0.1)), 3), every=2)
    step: AnyStep = train_step(mse, optimizer)

    def run(count: int, folder: Path) -> AnyState:
        state, _ = fit(
            step, train_state(key(3), model(), optimizer), BATCHES, epochs=count, every=5, compile=compiled,
            checkpoints=Checkpoints(folder), progress=False,
        )  # fmt: skip
        return state

    with pytest.warns(UserWarning, match="1 micro-batch waits"):
        whole = run(2, tmp_path / "whole")
    with pytest.warns(UserWarning, match="2 micro-batches wait"):
        run(1, tmp_path / "parts")
    with pytest.warns(UserWarning, match="1 micro-batch waits"):
        again = run(2, tmp_path / "parts")
    assert tree.equal(again, whole)
    assert tree.equal(finish(step, again), finish(step, whole))

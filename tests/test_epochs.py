"""A run as an iterator: what it gives of each epoch, what `fit` makes of it, and what is left of it wherever one leaves."""

import contextlib
import gc
import io
import itertools
import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import pytest
import torch
from rich.console import Console
from torch import Tensor

from fundl import (
    DonatedError,
    Dropout,
    Epoch,
    Evaluation,
    Interrupted,
    Key,
    Linear,
    Model,
    ReLU,
    accuracy,
    adam,
    compose,
    cross_entropy,
    disk,
    epochs,
    evaluate,
    fit,
    initialize,
    key,
    last_good,
    linear,
    minibatches,
    train_state,
    train_step,
    tree,
)

Batch: TypeAlias = tuple[Tensor, Tensor]
Trained: TypeAlias = tuple[Linear[int, int], ReLU, Dropout, Linear[int, int]]

DATA: Batch = disk(key(0), 60)
OPTIMIZER = adam(0.01)
STEP = train_step(cross_entropy, OPTIMIZER)


def model() -> Trained:
    return initialize(key(1), compose(linear(2, 8), ReLU(), Dropout(0.2), linear(8, 2)))


def batches(key: Key) -> Iterable[Batch]:
    return minibatches(key, DATA, 20)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_loop_is_fit_to_the_bit(compiled: bool) -> None:
    def measured(model: Model) -> Evaluation:
        return evaluate(cross_entropy, model, [DATA])

    first = train_state(key(2), model(), OPTIMIZER)
    state, history = fit(
        STEP,
        first,
        batches,
        epochs=4,
        metrics={"accuracy": accuracy},
        evaluate=measured,
        evaluate_every=2,
        compile=compiled,
        progress=False,
    )
    passed = [
        *epochs(
            STEP,
            first,
            batches,
            count=4,
            metrics={"accuracy": accuracy},
            evaluate=measured,
            evaluate_every=2,
            compile=compiled,
            progress=False,
        )
    ]
    assert tree.equal(passed[-1].state, state)
    numbers = [Epoch(one.epoch, one.step, one.train, one.test, one.seconds) for one in passed]
    assert numbers == [*history]
    assert [one.epoch for one in passed] == [1, 2, 3, 4]
    assert [one.test is None for one in passed] == [True, False, True, False]
    assert "state" not in repr(passed[0])


@pytest.mark.parametrize("compiled", [False, True])
def test_each_state_stays_as_it_is_and_can_be_gone_on_from(compiled: bool) -> None:
    first = train_state(key(2), model(), OPTIMIZER)
    before = tree.map(torch.clone, first)
    kept: list[tuple[object, object]] = []
    half = first
    for epoch in epochs(STEP, first, batches, count=4, compile=compiled, progress=False):
        kept.append((epoch.state, tree.map(torch.clone, epoch.state)))
        if epoch.epoch == 2:
            half = epoch.state
    for state, copy in kept:
        assert tree.equal(state, copy)
    assert tree.equal(first, before)
    after, _ = fit(STEP, half, batches, epochs=2, compile=compiled, progress=False)
    assert tree.equal(after, kept[-1][0])


def test_a_step_is_compiled_once_for_the_whole_loop() -> None:
    file = io.StringIO()
    step = train_step(cross_entropy, OPTIMIZER)
    run = epochs(
        step, train_state(key(2), model(), OPTIMIZER), batches, count=3, compile=True, progress=Console(file=file, width=120)
    )
    for _ in run:
        pass
    assert file.getvalue().count("compiled in") == 1
    assert [f"epoch {number}/3" in file.getvalue() for number in (1, 2, 3)] == [True] * 3


def test_nothing_runs_before_it_is_asked_for_but_what_is_wrong_is_told_at_once() -> None:
    seen: list[int] = []

    def counted(key: Key) -> Iterable[Batch]:
        seen.append(1)
        return batches(key)

    first = train_state(key(2), model(), OPTIMIZER)
    run = epochs(STEP, first, counted, count=3, progress=False)
    assert not seen
    next(run)
    assert len(seen) == 1
    with pytest.raises(ValueError, match="the number of epochs must be 0 or more, not -1"):
        epochs(STEP, first, batches, count=-1)
    with pytest.raises(ValueError, match="evaluate_every must be 1 epoch or more, not 0"):
        epochs(STEP, first, batches, count=1, evaluate_every=0)
    with pytest.raises(TypeError, match="the state is what train_state"):
        epochs(STEP, model(), batches, count=1)  # type: ignore[arg-type]  # on purpose
    assert [*epochs(STEP, first, batches, count=0, progress=False)] == []


def test_whoever_leaves_the_loop_has_the_state() -> None:
    first = train_state(key(2), model(), OPTIMIZER)
    expected, _ = fit(STEP, first, batches, epochs=2, progress=False)
    for epoch in epochs(STEP, first, batches, count=1000, progress=False):
        if epoch.epoch == 2:
            break
    assert tree.equal(epoch.state, expected)
    with contextlib.suppress(ZeroDivisionError):  # of the loop's own
        for epoch in epochs(STEP, first, batches, count=1000, progress=False):
            _ = 1 / (2 - epoch.epoch)
    assert tree.equal(epoch.state, expected)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_within_an_epoch_leaves_all_that_was_done(error: type[BaseException]) -> None:
    def breaking() -> Callable[[Key], Iterator[Batch]]:
        made = 0

        def three_epochs(key: Key) -> Iterator[Batch]:
            nonlocal made
            made += 1
            for number, batch in enumerate(minibatches(key, DATA, 20)):
                if made == 3 and number == 1:
                    raise error
                yield batch

        return three_epochs

    first, numbers = train_state(key(2), model(), OPTIMIZER), list[int]()
    run = epochs(STEP, first, breaking(), count=5, progress=False)
    for epoch in itertools.islice(run, 2):
        numbers.append(epoch.epoch)
    with pytest.raises(Interrupted if error is KeyboardInterrupt else error) as caught:
        next(run)
    assert numbers == [1, 2]
    assert int(epoch.state.step) == 6
    state, history = last_good(caught.value, first)
    assert [one.epoch for one in history] == [1, 2]
    assert int(state.step) == 7  # also the step of the epoch that was not finished


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_state_before() -> None:
    bad = (torch.full((20, 2), math.nan), DATA[1][:20])
    first = train_state(key(2), model(), OPTIMIZER)
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1, at step 4"):
        for _ in epochs(STEP, first, [*minibatches(None, DATA, 20), bad], count=2, progress=False):
            pass
    before = next(epochs(STEP, first, batches, count=1, progress=False))
    assert tree.equal(first, train_state(key(2), model(), OPTIMIZER))
    assert math.isfinite(before.train.loss)


def test_no_more_states_are_held_than_needed() -> None:
    first, seen = train_state(key(2), model(), OPTIMIZER), list[weakref.ref[Tensor]]()
    for epoch in epochs(STEP, first, batches, count=6, progress=False):
        gc.collect()
        seen.append(weakref.ref(epoch.state.model[0].weight))
        assert sum(one() is not None for one in seen) <= 2  # this one, and the one before, which the run began with


def test_a_donating_run_gives_states_that_last_for_an_epoch() -> None:
    expected, _ = fit(STEP, train_state(key(2), model(), OPTIMIZER), batches, epochs=3, progress=False)
    run = epochs(STEP, train_state(key(2), model(), OPTIMIZER), batches, count=3, donate=True, progress=False)
    first = next(run)
    assert int(first.state.step) == 3
    *_, last = run
    with pytest.raises(DonatedError):
        _ = first.state.model
    assert tree.equal(last.state, expected)

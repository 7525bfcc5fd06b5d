"""What ends a run, and what is left then; in which mode a user's code runs; what compiled runs do with odd batches."""

import io
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import pytest
import torch
from rich.console import Console
from torch import Tensor
from typing_extensions import override

from fundl import (
    BatchNorm,
    Evaluation,
    Interrupted,
    Key,
    Linear,
    Metric,
    SGDState,
    TrainState,
    accuracy,
    apply,
    backward_params,
    disk,
    ensemble,
    evaluate,
    fit,
    forward,
    initialize,
    jit,
    key,
    last_good,
    linear,
    minibatches,
    mse,
    one_hot,
    random,
    sgd,
    split,
    track,
    train_state,
    train_step,
    tree,
    without_statistics,
)
from fundl.training import epochs as epochs_module
from fundl.training.step import Report

Batch: TypeAlias = tuple[Tensor, Tensor]
Normalized: TypeAlias = tuple[BatchNorm, Linear[int, int]]
State: TypeAlias = TrainState[Linear[int, int], SGDState]
State2: TypeAlias = TrainState[Normalized, SGDState]

POINTS, LABELS = disk(key(0), 40)
DATA: Batch = POINTS, one_hot(LABELS, 2)
OPTIMIZER = sgd(0.1, momentum=0.9)
STEP = train_step(mse, OPTIMIZER)


def start() -> State:
    model: Linear[int, int] = initialize(key(1), linear(2, 2))
    return train_state(key(2), model, OPTIMIZER)


def batches(epoch_key: Key) -> Iterable[Batch]:
    return minibatches(epoch_key, DATA, 10)


# --- What ends a run --------------------------------------------------------------------------------------------------


def in_the_data(error: BaseException) -> tuple[State, tuple[object, ...]]:
    """What is left of a run whose data raises an error in the third batch of epoch 3."""
    epochs: list[Key] = []

    def failing(epoch_key: Key) -> Iterator[Batch]:
        epochs.append(epoch_key)
        for place, batch in enumerate(batches(epoch_key)):
            if len(epochs) == 3 and place == 2:
                raise error
            yield batch

    state = start()
    try:
        fit(STEP, state, failing, epochs=5, progress=False)
    except BaseException as caught:
        return last_good(caught, state)
    raise AssertionError("the error was swallowed")


@pytest.mark.parametrize(
    "error",
    [
        OSError("gone"),
        MemoryError(),
        SystemExit(143),
        KeyboardInterrupt(),
        StopIteration(),
        torch.OutOfMemoryError("none left"),
        AssertionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_error_of_the_data_loses_anything(error: BaseException) -> None:
    state, history = in_the_data(error)
    expected, finished = fit(STEP, start(), batches, epochs=2, progress=False)
    assert history == finished
    third = list(batches(random.fold_in(state.key, 2**63 + 8)))
    for batch in third[:2]:
        expected, _ = STEP(expected, batch)
    assert tree.equal(state, expected)
    assert not any(leaf.is_inference() for leaf in tree.leaves(state))


def test_the_error_is_the_one_that_was_raised_and_says_what_to_do() -> None:
    def failing(_key: Key) -> Iterator[Batch]:
        yield DATA
        raise OSError("gone")

    with pytest.raises(OSError, match="gone") as caught:
        fit(STEP, start(), failing, epochs=3, progress=False)
    (note,) = caught.value.__notes__
    assert "finished epochs: 0" in note
    assert "last_good(error, state)" in note


def failing_after(count: int, error: Exception) -> Callable[[Tensor, Tensor], Tensor]:
    """A metric that raises an error once it was asked so often."""
    asked: list[int] = []

    def metric(prediction: Tensor, target: Tensor) -> Tensor:
        asked.append(len(prediction))
        if len(asked) > count:
            raise error
        return accuracy(prediction, target)

    return metric


def test_no_error_of_a_metric_loses_anything() -> None:
    state = start()
    with pytest.raises(ZeroDivisionError) as caught:
        fit(STEP, state, batches, epochs=5, metrics={"failing": failing_after(9, ZeroDivisionError())}, progress=False)
    left, history = last_good(caught.value, state)
    assert len(history) == 2
    assert int(left.step) == 10  # the step of the batch that was measured last is made


def test_no_error_of_evaluate_loses_anything() -> None:
    asked: list[Linear] = []

    def measured(model: Linear[int, int]) -> Evaluation:
        asked.append(model)
        if len(asked) == 3:
            raise RuntimeError("the probe is broken")
        return evaluate(mse, model, [DATA])

    state = start()
    with pytest.raises(RuntimeError, match="the probe is broken") as caught:
        fit(STEP, state, batches, epochs=5, evaluate=measured, progress=False)
    left, history = last_good(caught.value, state)
    assert int(left.step) == 12
    assert [epoch.test is None for epoch in history] == [False, False, True]  # what was trained is told


class Closed(io.StringIO):
    """A stream that cannot be written to any more."""

    @override
    def write(self, text: str) -> int:
        raise OSError(f"no space left for {text!r}")


def test_no_error_of_the_progress_loses_anything() -> None:
    state = start()
    with pytest.raises(OSError, match="no space left") as caught:
        fit(STEP, state, batches, epochs=2, progress=Console(file=Closed()))
    left, history = last_good(caught.value, state)
    assert int(left.step) == 4
    assert len(history) == 1


def test_a_loss_that_is_not_finite_leaves_the_state_before_its_epoch() -> None:
    bad = DATA[0], torch.full_like(DATA[1], math.inf)
    epochs: list[Key] = []

    def failing(epoch_key: Key) -> Iterator[Batch]:
        epochs.append(epoch_key)
        yield from batches(epoch_key)
        if len(epochs) == 3:
            yield bad

    state = start()
    with pytest.raises(FloatingPointError, match="the loss is inf in epoch 3, at step 13") as caught:
        fit(STEP, state, failing, epochs=5, progress=False)
    left, history = last_good(caught.value, state)
    expected, finished = fit(STEP, state, batches, epochs=2, progress=False)
    assert tree.equal(left, expected)
    assert history == finished


def nan_gradient_at(step: int) -> Callable[[State, Batch], tuple[State, Report[Tensor]]]:
    """A step that spoils the model when it is made for that time, though its loss is finite."""

    def spoiling(state: State, batch: Batch) -> tuple[State, Report[Tensor]]:
        after, report = STEP(state, batch)
        spoiled = torch.where(state.step == step - 1, math.nan, after.model.weight)
        model = Linear(spoiled, after.model.bias)
        return TrainState(model, after.optimizer, after.key, after.step), report

    return spoiling


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("interpreted_loop")
def test_a_model_that_the_last_step_of_an_epoch_spoils_is_found_before_it_replaces_anything(*, compiled: bool) -> None:
    seen: list[Linear[int, int]] = []

    def measured(model: Linear[int, int]) -> Evaluation:
        seen.append(model)
        return evaluate(mse, model, [DATA])

    state = start()
    with pytest.raises(FloatingPointError, match=r"after step 8, in epoch 2: model\.weight holds nan") as caught:
        fit(nan_gradient_at(8), state, batches, epochs=2, evaluate=measured, compile=compiled, progress=False)
    left, history = last_good(caught.value, state)
    assert int(left.step) == 4
    assert len(history) == len(seen) == 1
    assert all(leaf.isfinite().all() for leaf in tree.leaves(left.model))


def test_ctrl_c_after_the_model_was_spoiled_leaves_the_last_good_state() -> None:
    def failing(_key: Key) -> Iterator[Batch]:
        yield DATA
        yield DATA
        raise KeyboardInterrupt

    state = start()
    with pytest.raises(Interrupted) as caught:
        fit(nan_gradient_at(2), state, failing, epochs=2, progress=False)
    assert tree.equal(last_good(caught.value, state)[0], state)


def test_what_no_fit_raised_leaves_what_there_was() -> None:
    state = start()
    left, history = last_good(ValueError(), state)
    assert left is state
    assert history == ()


def test_an_ensemble_loses_nothing_either() -> None:
    models = ensemble.initialize(split(key(1), 3), linear(2, 2))
    state = ensemble.train_state(split(key(2), 3), models, OPTIMIZER)
    data = ensemble.share(DATA, 3)
    epochs: list[Tensor] = []

    def failing(keys: Tensor) -> Iterator[Batch]:
        epochs.append(keys)
        yield from ensemble.minibatches(keys, data, 10)
        if len(epochs) == 3:
            raise OSError("gone")

    step = ensemble.train_step(mse, OPTIMIZER)
    with pytest.raises(OSError, match="gone") as caught:
        ensemble.fit(step, state, failing, epochs=5, metrics={"accuracy": accuracy}, progress=False)
    left, history = last_good(caught.value, state)
    assert int(left.step) == 12
    assert len(history) == 2


def test_a_run_of_an_ensemble_that_the_last_step_spoils_is_named() -> None:
    optimizer = sgd(1e30)
    models = ensemble.initialize(split(key(1), 3), linear(2, 2))
    state = ensemble.train_state(split(key(2), 3), models, optimizer)
    x, _ = ensemble.share(DATA, 3)
    target = apply(models, x)  # two of the runs have nothing to learn
    target = torch.where(torch.arange(3).reshape(3, 1, 1) == 1, 1e15, target)
    with pytest.raises(FloatingPointError, match="the model of run 1 is no longer finite after step 1, in epoch 1"):
        ensemble.fit(ensemble.train_step(mse, optimizer), state, [(x, target)], epochs=1, progress=False)


# --- In which mode a user's code runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("interpreted_loop")
def test_only_steps_run_in_inference_mode(mode: Callable[[], torch.no_grad], *, compiled: bool) -> None:
    kept: list[Tensor] = []
    modes: list[tuple[bool, bool]] = []

    def note(*tensors: Tensor) -> None:
        kept.extend(tensors)
        modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

    def made(epoch_key: Key) -> Iterator[Batch]:
        note(epoch_key)
        for x, target in batches(epoch_key):
            note(x, target)
            yield x + 0, target
            note()

    def metric(prediction: Tensor, target: Tensor) -> Tensor:
        kept.extend((prediction, target))
        assert not torch.is_inference_mode_enabled()
        return accuracy(prediction, target)

    def probe(model: Linear[int, int]) -> Evaluation:
        note(*tree.leaves(model))
        with torch.enable_grad():
            weight = model.weight.requires_grad_()
            (gradient,) = torch.autograd.grad((POINTS @ weight.t()).square().mean(), weight)
        weight.requires_grad_(False)
        return Evaluation(float(gradient.norm()))

    with mode():
        grad = torch.is_grad_enabled()
        state, _ = fit(
            STEP, start(), made, epochs=2, metrics={"accuracy": metric}, evaluate=probe, compile=compiled, progress=False
        )
    assert set(modes) == {(False, grad)}
    assert not any(tensor.is_inference() for tensor in [*kept, *tree.leaves(state)])
    for tensor in kept:
        if tensor.is_floating_point() and tensor._base is None:
            tensor.add_(0)


# --- Steps that donate, and what is no state --------------------------------------------------------------------------


@pytest.mark.usefixtures("interpreted")
def test_a_step_that_donates_leaves_the_callers_state_alone() -> None:
    state = start()
    before = tree.map(torch.clone, state)
    expected, _ = fit(STEP, state, batches, epochs=2, progress=False)
    step = jit(STEP, donate="state")
    first, _ = fit(step, state, batches, epochs=1, progress=False)
    second, _ = fit(step, first, batches, epochs=1, progress=False)
    assert tree.equal(state, before)
    torch.testing.assert_close(second.model.weight, expected.model.weight)
    assert int(first.step) == 4


def test_what_is_no_state_is_said() -> None:
    state = start()
    with pytest.raises(TypeError, match=r"the state is what train_state\(key, model, optimizer\) makes.*not Linear\("):
        fit(STEP, state.model, batches, epochs=1, progress=False)  # type: ignore[arg-type]  # what the test is about


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.5, "0.5"),
        ({"a": torch.ones(())}, "a"),
        (torch.ones(3), "float32"),
        (torch.ones((), dtype=torch.complex64), "complex64"),
    ],
)
def test_a_metric_that_gives_no_tensor_is_said(number: object, text: str) -> None:
    def share_of_right(_prediction: Tensor, _target: Tensor) -> object:
        return number

    metric: Metric[Tensor, Tensor] = share_of_right  # type: ignore[assignment]  # what the test is about
    with pytest.raises(TypeError, match=rf"a metric returns a single number.*but 'right' returned .*{text}.*make torch.tensor"):
        evaluate(mse, start().model, [DATA], metrics={"right": metric})


def test_what_evaluate_must_return_is_said() -> None:
    with pytest.raises(TypeError, match=r"returns an Evaluation, as fundl.evaluate.* does, not 0.25"):
        fit(STEP, start(), batches, epochs=1, evaluate=lambda _model: 0.25, progress=False)  # type: ignore[arg-type,return-value]  # likewise


def test_batch_sizes_are_whole_numbers() -> None:
    with pytest.raises(TypeError, match=r"batch_size must be an int, not 2\.0"):
        minibatches(None, DATA, 2.0)  # type: ignore[arg-type]  # what the test is about


# --- Compiled runs ----------------------------------------------------------------------------------------------------


def alike(prediction: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Which of two tasks it is, the target's key tells."""
    if "a" in target:
        return mse(prediction, target["a"])
    value, grad = mse(prediction, -target["b"])
    return value, grad


@pytest.mark.parametrize("metrics", [None, {"same": lambda prediction, target: alike(prediction, target)[0]}])
@pytest.mark.usefixtures("interpreted_loop")
def test_batches_are_told_apart_by_structure(metrics: dict[str, Metric[Tensor, dict[str, Tensor]]] | None) -> None:
    x, t = DATA
    mixed = [(x, {"a": t}), (x, {"a": t}), (x, {"b": t}), (x, {"a": t})]
    step = train_step(alike, OPTIMIZER)
    plain, plain_history = fit(step, start(), mixed, epochs=2, metrics=metrics, compile=False, progress=False)
    compiled, history = fit(step, start(), mixed, epochs=2, metrics=metrics, compile=True, progress=False)
    torch.testing.assert_close(compiled.model.weight, plain.model.weight)
    assert history[-1].train.loss == pytest.approx(plain_history[-1].train.loss, rel=1e-5)
    if metrics is not None:
        assert history[-1].train.metrics["same"] == pytest.approx(history[-1].train.loss, rel=1e-5)


def tracking(state: State2, batch: Batch) -> tuple[State2, Report[Tensor]]:
    """A step that keeps running statistics, which the first state has not."""
    x, target = batch
    prediction, residuals = forward(without_statistics(state.model), x)
    value, grad = mse(prediction, target)
    grads = backward_params(without_statistics(state.model), residuals, grad)
    model, memory = OPTIMIZER.step(grads, state.optimizer, without_statistics(state.model))
    kept: Normalized = track((state.model[0], model[1]), residuals)
    return TrainState(kept, memory, state.key, state.step + 1), Report(value, prediction)


@pytest.mark.usefixtures("interpreted_loop")
def test_a_step_whose_state_gains_a_leaf_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs_module, "pays", lambda _steps, _model: True)
    model: Normalized = initialize(key(1), (BatchNorm(), linear(2, 2)))
    state, file = train_state(key(2), model, OPTIMIZER), io.StringIO()
    after, history = fit(tracking, state, batches, epochs=2, progress=Console(file=file, width=100))
    expected, _ = fit(tracking, state, batches, epochs=2, compile=False, progress=False)
    assert tree.equal(after, expected)
    assert len(history) == 2
    assert "not compiled: the step gives a state of another structure" in file.getvalue()
    with pytest.raises(TypeError, match="a step must return a state like the one that it is given"):
        fit(tracking, state, batches, epochs=2, compile=True, progress=False)

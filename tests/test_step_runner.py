"""Compiled runs: the same numbers up to rounding, batch by batch, whatever comes last; and what cannot be compiled is said."""

import io
import re
from collections.abc import Iterable

import pytest
import torch
from rich.console import Console
from torch import Tensor

from fundl import (
    AdamChainState,
    Epoch,
    Model,
    Tanh,
    TraceError,
    TrainState,
    accuracy,
    adam,
    assert_trees_close,
    compose,
    disk,
    fit,
    initialize,
    key,
    linear,
    minibatches,
    mse,
    one_hot,
    train_state,
    train_step,
    tree,
)
from fundl.training import epochs as epochs_module
from fundl.training._step_runner import pays

POINTS, LABELS = disk(key(0), 100)
DATA = POINTS, one_hot(LABELS, 2)
OPTIMIZER = adam(0.01)
State = TrainState[Model, AdamChainState]


def start() -> State:
    model: Model = compose(linear(2, 5), Tanh(), linear(5, 2))
    return train_state(key(2), initialize(key(1), model), OPTIMIZER)


def run(*, is_compiled: bool, batch_size: int, epochs: int = 3) -> tuple[State, tuple[Epoch, ...]]:
    step = train_step(mse, OPTIMIZER)
    return fit(
        step,
        start(),
        lambda key: minibatches(key, DATA, batch_size),
        epochs=epochs,
        metrics={"accuracy": accuracy},
        compile=is_compiled,
        progress=False,
    )


def numbers(history: Iterable[Epoch]) -> Tensor:
    return torch.tensor([(epoch.step, epoch.train.loss, epoch.train.metrics["accuracy"]) for epoch in history])


def test_a_compiled_run_is_the_run_up_to_rounding_and_repeats_itself_to_the_bit() -> None:
    plain, compiled, again = (run(is_compiled=is_compiled, batch_size=30) for is_compiled in (False, True, True))
    assert_trees_close(compiled[0], plain[0], rtol=1e-4, atol=1e-5)
    assert_trees_close(numbers(compiled[1]), numbers(plain[1]), rtol=1e-4, atol=1e-5)
    assert int(compiled[0].step) == 12  # batches of 30, 30, 30 and 10, three times
    assert tree.equal(compiled[0], again[0])
    assert compiled[1] == tuple(
        Epoch(epoch.epoch, epoch.step, epoch.train, None, compiled[1][place].seconds) for place, epoch in enumerate(again[1])
    )


def test_a_compiled_run_can_be_taken_up_again_to_the_bit() -> None:
    whole, _ = run(is_compiled=True, batch_size=30, epochs=3)
    step = train_step(mse, OPTIMIZER)
    state = start()
    for epochs in (1, 2):
        state, _ = fit(step, state, lambda key: minibatches(key, DATA, 30), epochs=epochs, compile=True, progress=False)
    assert tree.equal(state, whole)


def test_the_bar_says_how_long_compiling_took() -> None:
    file = io.StringIO()
    console = Console(file=file, width=100)
    step, batches = train_step(mse, OPTIMIZER), [*minibatches(None, DATA, 30)]
    fit(step, start(), batches, epochs=1, compile=True, progress=console)
    first, *middle, last = file.getvalue().splitlines()
    assert first == "tracing the step ..."
    *estimate, second = middle  # which is there, unless it was compiled before
    for line in estimate:
        assert re.fullmatch(r"compiling a scan of train_step.* \d+ operations, about \d+ s", line)
    assert re.fullmatch(r"compiled in \d+\.\d s", second)
    assert last.startswith("epoch 1/1  loss ")


def asks_for_a_value(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    value, grad = mse(prediction, target)
    return (value, grad) if float(value) < 1e9 else (value, -grad)


def test_a_step_that_cannot_be_compiled_is_an_error_only_where_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    step, batches = train_step(asks_for_a_value, OPTIMIZER), [*minibatches(None, DATA, 50)]
    with pytest.raises(TraceError, match=r"asks for the value of a tensor, at .*float\(value\)"):
        fit(step, start(), batches, epochs=1, compile=True, progress=False)
    monkeypatch.setattr(epochs_module, "pays", lambda _steps, _model: True)
    file = io.StringIO()
    state, _ = fit(step, start(), batches, epochs=2, progress=Console(file=file, width=100))
    plain, _ = fit(step, start(), batches, epochs=2, compile=False, progress=False)
    assert tree.equal(state, plain)
    assert "not compiled: the step does what no graph can hold; compile=True says where" in file.getvalue()


def test_it_pays_to_compile_long_runs_of_large_trees() -> None:
    model = start().model
    assert not pays(20_000, model)
    assert pays(1_000_000, model)
    assert not pays(10**9, compose(Tanh()))

"""Steps that write over a state: the same bits as without, nothing that somebody else can see, and nothing half-written."""

import gc
import signal
from collections.abc import Callable, Iterator
from typing import Final

import pytest
import torch
from torch import Tensor

from fundl import (
    DonatedError,
    Interrupted,
    Key,
    ReLU,
    accumulate,
    adam,
    adamw,
    chain,
    clip_by_global_norm,
    compose,
    dynamic_loss_scale,
    ensemble,
    fit,
    initialize,
    jit,
    key,
    last_good,
    linear,
    mixed_precision,
    momentum,
    mse,
    scale,
    sgd,
    skip_nonfinite,
    split,
    train_step,
    tree,
)
from fundl.optim.chain import AnyTransform
from fundl.training.step import Report
from tests.donating import (
    BATCH,
    TARGET,
    Batch,
    State,
    X,
    addresses,
    every_optimizer,
    fresh,
    start,
)
from tests.optimizer_samples import OPTIMIZERS

# --- The same bits ----------------------------------------------------------------------------------------------------


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_step_that_donates_gives_the_same_bits(optimizer: AnyTransform, dtype: torch.dtype) -> None:
    batch = tree.cast_to(BATCH, dtype)
    step, donating = train_step(mse, optimizer), train_step(mse, optimizer, donate=True)
    expected, state = start(optimizer, dtype), start(optimizer, dtype)
    for _ in range(4):
        expected, report = step(expected, batch)
        state, other_report = donating(state, batch)
        assert tree.equal(state, expected)
        assert tree.equal(other_report, report)


@pytest.mark.parametrize("optimizer", [adam(0.1), adamw(0.1), skip_nonfinite(adam(0.1)), accumulate(adamw(0.1), steps=2)])
def test_optimizers_that_others_follow_give_the_same_bits(optimizer: AnyTransform) -> None:
    """Their updates are written over, not the params."""
    followed = chain(optimizer, scale(0.5))
    step, donating = train_step(mse, followed), train_step(mse, followed, donate=True)
    expected, state = start(followed), start(followed)
    for value in (1.0, torch.inf, 1.0, 1.0):
        batch = X * value, TARGET
        expected, state = step(expected, batch)[0], donating(state, batch)[0]
        for one, other in zip(tree.leaves(state), tree.leaves(expected), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@every_optimizer
def test_infinite_gradients_and_nan_give_the_same_bits(optimizer: AnyTransform) -> None:
    step, donating = train_step(mse, optimizer), train_step(mse, optimizer, donate=True)
    expected, state = start(optimizer), start(optimizer)
    for value in (1e30, torch.inf, torch.nan, 1.0):
        batch = X * value, TARGET
        expected, state = step(expected, batch)[0], donating(state, batch)[0]
        for one, other in zip(tree.leaves(state), tree.leaves(expected), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


UPHILL: Final = {"ema", "ema: from the first on", *(name for name in OPTIMIZERS if name.startswith(("trace", "add_decayed")))}
"""What hands gradients on as they are: there is no run of it."""

CONVERGING: Final[dict[str, AnyTransform]] = {name: optimizer for name, optimizer in OPTIMIZERS.items() if name not in UPHILL}


@pytest.mark.parametrize("optimizer", CONVERGING.values(), ids=CONVERGING.keys())
def test_fit_gives_the_bits_of_its_steps(optimizer: AnyTransform) -> None:
    step, state = train_step(mse, optimizer), start(optimizer)
    before = tree.map(torch.clone, state)
    expected = state
    for _ in range(6):
        expected, _ = step(expected, BATCH)
    fitted, _ = fit(step, state, [BATCH] * 3, epochs=2, compile=False, progress=False)
    assert tree.equal(state, before)
    assert tree.equal(fitted, expected)
    assert not any(leaf.is_inference() for leaf in tree.leaves(fitted))
    donated, _ = fit(step, state, [BATCH] * 3, epochs=2, compile=False, donate=True, progress=False)
    assert tree.equal(donated, expected)


@pytest.mark.parametrize(
    "optimizer", [sgd(0.1), momentum(0.1), adam(0.1), adamw(0.1), chain(clip_by_global_norm(1.0), adam(0.1))]
)
def test_models_in_16_bits_and_masters_give_the_same_bits(optimizer: AnyTransform) -> None:
    scaled = dynamic_loss_scale(optimizer)
    model = initialize(key(2), mixed_precision(linear(3, 5), ReLU(), linear(5, 2), compute=torch.float16))
    expected, state = fresh(scaled, model), fresh(scaled, model)
    for _ in range(3):
        expected = train_step(mse, scaled)(expected, BATCH)[0]
        state = train_step(mse, scaled, donate=True)(state, BATCH)[0]
    assert tree.equal(state, expected)


def test_an_ensemble_gives_the_same_bits() -> None:
    optimizer: AnyTransform = adam(0.1)
    models = ensemble.initialize(split(key(2), 3), compose(linear(3, 5), ReLU(), linear(5, 2)))
    state = ensemble.train_state(split(key(3), 3), models, optimizer)
    data = ensemble.share(BATCH, 3)
    expected, donated = state, tree.map(torch.clone, state)
    for _ in range(3):
        expected, _ = ensemble.train_step(mse, optimizer)(expected, data)
        donated, _ = ensemble.train_step(mse, optimizer, donate=True)(donated, data)
    assert tree.equal(donated, expected)
    fitted, _ = ensemble.fit(ensemble.train_step(mse, optimizer), state, [data] * 3, epochs=1, progress=False)
    assert tree.equal(fitted, expected)


@pytest.mark.parametrize("optimizer", [momentum(0.1), adamw(0.1), OPTIMIZERS["adamw: scheduled"]])
def test_large_leaves_which_are_copied_part_by_part_give_the_same_bits(optimizer: AnyTransform) -> None:
    model = initialize(key(2), compose(linear(3, 5), ReLU(), linear(5, 90_001), linear(90_001, 3)))
    expected, state = fresh(optimizer, model), fresh(optimizer, model)
    for _ in range(3):
        expected = train_step(mse, optimizer)(expected, (X, X))[0]
        state = train_step(mse, optimizer, donate=True)(state, (X, X))[0]
        assert tree.equal(state, expected)


# --- Compiled ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("interpreted")
def test_a_step_that_donates_can_be_compiled() -> None:
    optimizer: AnyTransform = adam(0.1)
    state = start(optimizer)
    expected, _ = train_step(mse, optimizer)(state, BATCH)
    step: Callable[[State, Batch], tuple[State, Report[Tensor]]] = train_step(mse, optimizer, donate=True)
    after, _ = jit(step)(state, BATCH)
    torch.testing.assert_close(tree.leaves(after.model), tree.leaves(expected.model))
    assert int(state.step) == 0


# --- Errors and signals -----------------------------------------------------------------------------------------------


def test_a_donated_run_uses_its_state_up() -> None:
    optimizer: AnyTransform = adam(0.1)
    state = start(optimizer)
    before = addresses(state)
    after, _ = fit(train_step(mse, optimizer), state, [BATCH] * 2, epochs=2, compile=False, donate=True, progress=False)
    assert addresses(after) == before
    with pytest.raises(DonatedError):
        _ = state.model


def test_a_donated_run_that_diverges_says_that_nothing_is_left() -> None:
    optimizer: AnyTransform = sgd(0.1)
    state, bad = start(optimizer), (X, torch.full_like(TARGET, torch.inf))
    with pytest.raises(FloatingPointError) as caught:
        fit(train_step(mse, optimizer), state, [BATCH, bad], epochs=1, compile=False, donate=True, progress=False)
    with pytest.raises(DonatedError, match="no good state is left: with donate=True, fit wrote over the one before the epoch"):
        last_good(caught.value, state)


def test_an_error_of_the_data_loses_nothing_of_a_donated_run() -> None:
    optimizer: AnyTransform = adam(0.1)
    state = start(optimizer)
    expected = train_step(mse, optimizer)(train_step(mse, optimizer)(state, BATCH)[0], BATCH)[0]

    def failing(_key: Key) -> Iterator[Batch]:
        yield from [BATCH, BATCH]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone") as caught:
        fit(train_step(mse, optimizer), state, failing, epochs=1, compile=False, donate=True, progress=False)
    assert tree.equal(last_good(caught.value, state)[0], expected)


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """Ctrl-C is heard, also where a shell has started the tests in the background, and has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupting(optimizer: AnyTransform, at: int, times: int) -> tuple[State, State]:
    """What is left of a run in which Ctrl-C is pressed in the midst of an update, and what its steps gave."""
    presses: list[int] = []
    fused: Callable[..., object] = torch._fused_adam_  # type: ignore[explicit-any]  # of its many arguments

    def pressed(*columns: object, **options: object) -> object:
        presses.append(0)
        if len(presses) == at:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return fused(*columns, **options)

    state, step = start(optimizer), train_step(mse, optimizer)
    expected = state
    for _ in range(at):
        expected, _ = step(expected, BATCH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "_fused_adam_", pressed)
        with pytest.raises(Interrupted) as caught:
            fit(step, state, [BATCH] * 8, epochs=1, compile=False, progress=False)
    return last_good(caught.value, state)[0], expected if times == 1 else state


@pytest.mark.usefixtures("_ctrl_c")
@pytest.mark.parametrize("at", [1, 2, 5])
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_in_the_midst_of_an_update_leaves_a_whole_state(at: int, times: int) -> None:
    handler = signal.getsignal(signal.SIGINT)
    left, expected = interrupting(adam(0.1), at, times)
    assert tree.equal(left, expected)
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_error_in_the_midst_of_an_update_leaves_the_state_before_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer: AnyTransform = adam(0.1)
    state = start(optimizer)
    updates: list[int] = []
    fused: Callable[..., object] = torch._fused_adam_  # type: ignore[explicit-any]  # of its many arguments

    def failing(*columns: object, **options: object) -> object:
        updates.append(0)
        result = fused(*columns, **options)
        if len(updates) == 5:
            raise RuntimeError("the device is gone")
        return result

    step = train_step(mse, optimizer)
    expected = state
    for _ in range(3):
        expected, _ = step(expected, BATCH)
    monkeypatch.setattr(torch, "_fused_adam_", failing)
    with pytest.raises(RuntimeError, match="the device is gone") as caught:
        fit(step, state, [BATCH] * 3, epochs=2, compile=False, progress=False)
    left, history = last_good(caught.value, state)
    assert tree.equal(left, expected)
    assert len(history) == 1


# --- Memory -----------------------------------------------------------------------------------------------------------


def test_a_run_keeps_two_states_and_no_more() -> None:
    optimizer: AnyTransform = adam(0.1)
    state = fresh(optimizer, initialize(key(0), linear(3, 71, bias=False)))
    alive: list[int] = []

    def counted(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        gc.collect()
        tensors = [leaf for leaf in gc.get_objects() if type(leaf) is Tensor and leaf.shape == (71, 3)]
        alive.append(len({leaf.data_ptr() for leaf in tensors}))
        return mse(prediction, target)

    batch = X, torch.zeros(6, 71)
    fit(train_step(counted, optimizer), state, [batch] * 3, epochs=2, compile=False, progress=False)
    of_state = 3  # a weight and its two moments
    assert alive == [of_state * copies for copies in (1, 2, 2, 2, 3, 3)]
    alive.clear()
    fit(train_step(counted, optimizer), state, [batch] * 3, epochs=2, compile=False, donate=True, progress=False)
    assert alive == [of_state] * 6

"""Steps that write over a state: the same bits as without, nothing that somebody else can see, and nothing half-written."""

import gc
import signal
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias, TypeVar

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fundl import (
    BatchNorm,
    DonatedError,
    Dropout,
    Evaluation,
    Interrupted,
    Key,
    Layer,
    LayerNorm,
    Linear,
    ReLU,
    Tensors,
    TrainState,
    Transform,
    adam,
    adamw,
    chain,
    clip_by_global_norm,
    compose,
    dynamic_loss_scale,
    ensemble,
    evaluate,
    fit,
    initialize,
    jit,
    key,
    last_good,
    layer_norm,
    linear,
    mixed_precision,
    momentum,
    mse,
    random,
    scale_by_learning_rate,
    sgd,
    split,
    train_state,
    train_step,
    tree,
)
from fundl.layer import P
from fundl.optim.chain import AnyTransform
from fundl.training.step import Report
from tests.optimizer_samples import OPTIMIZERS

S = TypeVar("S")

Batch: TypeAlias = tuple[Tensor, Tensor]
Network: TypeAlias = tuple[Linear[int, int], LayerNorm[int], ReLU, Dropout, Linear[int, int]]
State: TypeAlias = TrainState[Network, Any]  # type: ignore[explicit-any]  # of any optimizer

X, TARGET = random.normal(key(0), (6, 3)), random.normal(key(1), (6, 2))
BATCH: Final = X, TARGET

every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def network(dtype: torch.dtype = torch.float32) -> Network:
    model: Network = initialize(key(2), compose(linear(3, 5), layer_norm(5), ReLU(), Dropout(0.2), linear(5, 2)), dtype=dtype)
    return model


def fresh(optimizer: Transform[S], model: P) -> TrainState[P, S]:
    """A state that nobody else holds a part of."""
    return tree.map(torch.clone, train_state(key(3), model, optimizer))


def start(optimizer: AnyTransform, dtype: torch.dtype = torch.float32) -> State:
    """That of the network."""
    return fresh(optimizer, network(dtype))


def written(state: TrainState[P, S]) -> list[Tensor]:
    return [*tree.trainable_leaves((state.model, state.optimizer)), state.step]


def addresses(state: TrainState[P, S]) -> list[int]:
    return [leaf.data_ptr() for leaf in written(state)]


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


@every_optimizer
def test_infinite_gradients_and_nan_give_the_same_bits(optimizer: AnyTransform) -> None:
    step, donating = train_step(mse, optimizer), train_step(mse, optimizer, donate=True)
    expected, state = start(optimizer), start(optimizer)
    for value in (1e30, torch.inf, torch.nan, 1.0):
        batch = X * value, TARGET
        expected, state = step(expected, batch)[0], donating(state, batch)[0]
        for one, other in zip(tree.leaves(state), tree.leaves(expected), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


CONVERGING: Final[dict[str, AnyTransform]] = {
    name: optimizer for name, optimizer in OPTIMIZERS.items() if name.partition(":")[0] not in {"trace", "add_decayed_weights"}
}


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


# --- What is written over, and what is not ----------------------------------------------------------------------------


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_of_a_state_is_written_over(optimizer: AnyTransform, dtype: torch.dtype) -> None:
    step, state = train_step(mse, optimizer, donate=True), start(optimizer, dtype)
    for _ in range(3):
        before = addresses(state)
        state, _ = step(state, tree.cast_to(BATCH, dtype))
        assert addresses(state) == before


def test_a_state_is_used_up_whether_it_was_written_over_or_not() -> None:
    optimizer: AnyTransform = adam(0.1)
    step = train_step(mse, optimizer, donate=True)
    model = network()
    for state in (start(optimizer), train_state(key(3), model, optimizer)):
        step(state, BATCH)
        with pytest.raises(DonatedError, match="this TrainState was donated to a compiled function or a step"):
            step(state, BATCH)
        with pytest.raises(DonatedError, match="this TrainState was donated"):
            _ = state.model


Holder: TypeAlias = Callable[[State], object]


def _arrays(state: State) -> object:
    """Tensors over arrays, over the memory of the weights."""
    return [torch.from_numpy(leaf.numpy()) for leaf in tree.trainable_leaves(state.model)]


HOLDERS: Final[dict[str, Holder]] = {
    "the model": lambda state: state.model,
    "a layer": lambda state: state.model[0],
    "a weight": lambda state: tree.trainable_leaves(state.model)[0],
    "a view of a weight": lambda state: tree.trainable_leaves(state.model)[0][1:],
    "a weight without its tape": lambda state: tree.trainable_leaves(state.model)[0].detach(),
    "arrays": _arrays,
    "the optimizer's state": lambda state: state.optimizer,
    "a moment": lambda state: tree.leaves(state.optimizer)[1],
    "the count": lambda state: state.step,
    "a state of the same parts": attrs.evolve,
}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS.keys())
@pytest.mark.parametrize("steps", [0, 2])
def test_what_somebody_else_holds_stays_as_it_is(holder: Holder, steps: int) -> None:
    optimizer: AnyTransform = adam(0.1)
    step, pure, state = train_step(mse, optimizer, donate=True), train_step(mse, optimizer), start(optimizer)
    for _ in range(steps):
        state, _ = step(state, BATCH)
    before, held = tree.map(torch.clone, state), holder(state)
    seen = repr(tree.leaves(held))
    after, _ = step(state, BATCH)
    assert repr(tree.leaves(held)) == seen
    assert tree.equal(after, pure(before, BATCH)[0])


def _from_arrays(leaf: Tensor) -> Tensor:
    return torch.from_numpy(leaf.numpy().copy()) if leaf.ndim else leaf


def _expanded(leaf: Tensor) -> Tensor:
    return leaf[:1].expand(leaf.shape) if leaf.ndim == 1 else leaf


def _transposed(leaf: Tensor) -> Tensor:
    return leaf.t().contiguous().t() if leaf.ndim == 2 else leaf


def _in_inference_mode(leaf: Tensor) -> Tensor:
    with torch.inference_mode():
        return leaf.clone()


@pytest.mark.parametrize("change", [_from_arrays, _expanded, _transposed, _in_inference_mode])
@pytest.mark.parametrize("optimizer", [sgd(0.1), momentum(0.1), adam(0.1), OPTIMIZERS["lion"]])
def test_any_layout_gives_the_same_bits(change: Callable[[Tensor], Tensor], optimizer: AnyTransform) -> None:
    expected, state = (tree.map(change, start(optimizer)) for _ in range(2))
    for _ in range(3):
        expected = train_step(mse, optimizer)(expected, BATCH)[0]
        state = train_step(mse, optimizer, donate=True)(state, BATCH)[0]
        assert tree.equal(state, expected)


def test_a_tensor_in_two_places_is_not_written_over() -> None:
    optimizer: AnyTransform = sgd(0.1)
    layer = Linear(torch.eye(3), torch.zeros(3))
    state = TrainState((layer, ReLU(), layer), optimizer.init((layer, ReLU(), layer)), key(0), torch.tensor(0))
    weight = tree.map(torch.clone, layer.weight)
    expected, _ = train_step(mse, optimizer)(state, (X, X))
    parts = (Linear(layer.weight, layer.bias), ReLU(), Linear(layer.weight, layer.bias))
    after, _ = train_step(mse, optimizer, donate=True)(attrs.evolve(state, model=parts), (X, X))
    assert tree.equal(layer.weight, weight)
    assert tree.equal(after.model[0], expected.model[0])
    assert tree.equal(after.model[2], expected.model[2])


@attrs.frozen(eq=False)
class Constant(Layer[tuple[int, ...]]):
    """Gives its weight, whatever it is given: a prediction that is a parameter."""

    weight: Tensor

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        return self.weight.expand(len(x), -1), tuple(x.shape)

    @override
    def backward(self, residuals: tuple[int, ...], grad: Tensor) -> tuple["Constant", Tensor]:
        return self.gradient(grad.sum(0)), grad.new_zeros(residuals)


def test_a_prediction_that_is_a_parameter_stays_what_it_was() -> None:
    optimizer: AnyTransform = sgd(0.5)
    seen: list[Tensor] = []

    def metric(prediction: Tensor, target: Tensor) -> Tensor:
        seen.append(prediction.clone())
        return (prediction - target).mean()

    state = train_state(key(3), (Constant(torch.zeros(2)),), optimizer)
    step = train_step(mse, optimizer)
    fit(step, state, [BATCH] * 3, epochs=1, metric=metric, compile=False, progress=False)
    for prediction in seen:
        expected, report = step(state, BATCH)
        assert torch.equal(prediction, report.prediction)
        state = expected


@attrs.frozen(eq=False)
class Remembering(Layer[Tensor]):
    """Keeps what it makes of its weight, as long as there is this layer: it is a value, whose weight does not change."""

    weight: Tensor

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        doubled = MADE.setdefault(self, 2 * self.weight)
        return x * doubled, x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple["Remembering", Tensor]:
        return self.gradient((2 * residuals * grad).sum(0)), grad * MADE[self]


MADE: Final[weakref.WeakKeyDictionary[Remembering, Tensor]] = weakref.WeakKeyDictionary()


def test_what_is_remembered_of_a_layer_stays_true() -> None:
    optimizer: AnyTransform = adam(0.1)
    state, step = fresh(optimizer, (Remembering(torch.ones(3)),)), train_step(mse, optimizer)
    expected = state
    for _ in range(4):
        expected, _ = step(expected, (X, X))
        MADE.clear()
    fitted, _ = fit(step, state, [(X, X)] * 4, epochs=1, compile=False, progress=False)
    assert tree.equal(fitted, expected)


def test_what_evaluate_keeps_stays_what_it_was() -> None:
    optimizer: AnyTransform = adam(0.1)
    kept: list[Network] = []
    copies: list[Network] = []

    def measured(model: Network) -> Evaluation:
        kept.append(model)
        copies.append(tree.map(torch.clone, model))
        return evaluate(mse, model, [BATCH])

    fit(train_step(mse, optimizer), start(optimizer), [BATCH] * 3, epochs=3, evaluate=measured, compile=False, progress=False)
    assert tree.equal(kept, copies)
    assert not tree.equal(kept[0], kept[1])


@attrs.frozen
class Halved(Transform[tuple[Tensors]]):
    """A user's transform, which knows nothing of writing over: half the mean of the last two gradients."""

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> tuple[Tensors]:
        return (tuple(map(torch.zeros_like, leaves)),)

    @override
    def change(self, grads: Tensors, state: tuple[Tensors], params: Tensors) -> tuple[Tensors, tuple[Tensors]]:
        return tuple((grad + before) / 4 for grad, before in zip(grads, state[0], strict=True)), (grads,)


@pytest.mark.parametrize("optimizer", [Halved(), chain(Halved(), scale_by_learning_rate(0.1)), chain(Halved(), adam(0.1))])
def test_transforms_of_a_user_run_as_they_are(optimizer: AnyTransform) -> None:
    assert not optimizer.writes_over
    step, state = train_step(mse, optimizer), start(optimizer)
    expected = state
    for _ in range(4):
        expected, _ = step(expected, BATCH)
    assert tree.equal(fit(step, state, [BATCH] * 4, epochs=1, compile=False, progress=False)[0], expected)
    donating = train_step(mse, optimizer, donate=True)
    for _ in range(4):
        state, _ = donating(state, BATCH)
    assert tree.equal(state, expected)


def test_buffers_may_be_shared_and_stay() -> None:
    optimizer: AnyTransform = momentum(0.1)
    norm = BatchNorm(torch.ones(3), torch.zeros(3), mean=torch.zeros(3), var=torch.ones(3))
    mean = norm.mean
    state = fresh(optimizer, (norm, initialize(key(1), linear(3, 2))))
    state = attrs.evolve(state, model=(attrs.evolve(state.model[0], mean=mean), state.model[1]))
    before = addresses(state)
    state, _ = train_step(mse, optimizer, donate=True)(state, BATCH)
    assert addresses(state) == before
    assert state.model[0].mean is mean


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

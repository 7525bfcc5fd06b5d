"""What a step writes over, and what it leaves alone, since somebody else can see it."""

import weakref
from collections.abc import Callable
from typing import Final, TypeAlias

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fundl import (
    BatchNorm,
    DonatedError,
    Evaluation,
    Layer,
    Linear,
    ReLU,
    Tensors,
    TrainState,
    Transform,
    adam,
    chain,
    evaluate,
    fit,
    initialize,
    key,
    linear,
    momentum,
    mse,
    scale_by_learning_rate,
    sgd,
    train_state,
    train_step,
    tree,
)
from fundl.optim.chain import AnyTransform
from tests.donating import BATCH, Network, State, X, addresses, every_optimizer, fresh, network, start
from tests.optimizer_samples import OPTIMIZERS


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
        assert repr((state,)) == "(<a TrainState that was donated>,)"


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
    fit(step, state, [BATCH] * 3, epochs=1, metrics={"mine": metric}, compile=False, progress=False)
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

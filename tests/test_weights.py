"""What a mean divided by: so that batches of unequal sizes weigh as much as what is in them."""

import functools
import math
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from fundl import (
    Linear,
    Loss,
    Transform,
    accumulate,
    accuracy,
    chain,
    clip_by_value,
    cross_entropy,
    dynamic_loss_scale,
    ensemble,
    evaluate,
    fit,
    initialize,
    key,
    linear,
    mae,
    mse,
    nll,
    random,
    scale_loss,
    scan,
    sgd,
    split,
    train_state,
    train_step,
    tree,
    weighed_by,
    weight_of,
)
from fundl.optim.chain import AnyTransform
from tests.loss_samples import SAMPLES

S = TypeVar("S")

# --- What can be asked ------------------------------------------------------------------------------------------------


def test_what_is_known_of_losses() -> None:
    scores, classes = torch.zeros(4, 3), torch.tensor([0, 1, 1, 2])
    weight = torch.tensor([1.0, 0.5, 0.25])
    assert weight_of(mse, scores, scores) == 12
    assert weight_of(functools.partial(mae, reduction="batch_mean"), scores, scores) == 4
    assert weight_of(functools.partial(mse, reduction="sum"), scores, scores) == 1
    assert weight_of(cross_entropy, scores, scores) == 4
    assert weight_of(cross_entropy, scores, classes) == 4
    assert weight_of(functools.partial(cross_entropy, ignore_index=1), scores, classes) == 2
    assert weight_of(functools.partial(functools.partial(nll, weight=weight), ignore_index=2), scores, classes) == 2
    assert weight_of(functools.partial(cross_entropy, axis=-1), torch.zeros(2, 5, 3), torch.zeros(2, 5, 3)) == 10
    assert weight_of(scale_loss(mse, 8.0), scores, scores) == 12
    assert weight_of(accuracy, scores, classes) == 4
    assert weight_of(functools.partial(accuracy, threshold=0.5), scores, scores) == 12


def test_of_what_nothing_is_known_the_weight_is_the_rows() -> None:
    def loss(prediction: object, _target: object) -> tuple[Tensor, object]:
        return torch.zeros(()), prediction

    def given(_prediction: Tensor, _target: Tensor, *, count: float) -> float:
        return count

    assert weight_of(loss, torch.zeros(4, 3), None) == 4
    assert weight_of(loss, {"a": torch.zeros(()), "b": torch.zeros(5, 2)}, None) == 5
    assert weight_of(loss, torch.zeros(()), None) == 1

    @weighed_by(given)
    def counted(prediction: Tensor, target: Tensor, *, count: float) -> tuple[Tensor, Tensor]:
        return prediction.sum() / count, target / count

    assert weight_of(functools.partial(counted, count=7.0), torch.zeros(2), torch.zeros(2)) == 7.0


@pytest.mark.parametrize("name", SAMPLES)
def test_the_mean_of_two_batches_is_that_of_both(name: str) -> None:
    loss, prediction, target = SAMPLES[name].loss, SAMPLES[name].prediction, SAMPLES[name].target
    if len(prediction) < 2 or "sum" in str(getattr(loss, "keywords", "")):
        pytest.skip("no two batches, or no mean")
    parts = [(prediction[:1], target[:1]), (prediction[1:], target[1:])]
    weights = [torch.as_tensor(weight_of(loss, *part)).double() for part in parts]
    values, grads = zip(*(loss(*part) for part in parts), strict=True)
    value, grad = loss(prediction, target)
    total = sum(weights, torch.zeros(()))
    torch.testing.assert_close(torch.as_tensor(weight_of(loss, prediction, target)).double(), total.double())
    counted = [torch.where(weight == 0, 0.0, number * weight) for number, weight in zip(values, weights, strict=True)]
    torch.testing.assert_close(sum(counted) / total, value.double(), rtol=1e-4, atol=1e-5, equal_nan=True)
    together = torch.cat([part.double() * weight / total for part, weight in zip(grads, weights, strict=True)])
    torch.testing.assert_close(together, grad.double(), rtol=2e-2 if grad.dtype.itemsize < 4 else 1e-4, atol=1e-5)


# --- Micro-batches ----------------------------------------------------------------------------------------------------

LOSSES: list[tuple[Loss[Tensor, Tensor], Tensor]] = [
    (mse, random.normal(key(3), (5, 3))),
    (cross_entropy, torch.tensor([0, 2, 1, 2, 0])),
    (functools.partial(cross_entropy, ignore_index=2), torch.tensor([0, 2, 1, 2, 0])),
    (functools.partial(cross_entropy, weight=torch.tensor([0.1, 1.0, 3.0])), torch.tensor([0, 2, 1, 2, 0])),
]
OPTIMIZERS: dict[str, Callable[[int], AnyTransform]] = {
    "alone": lambda steps: accumulate(sgd(1.0), steps),
    "in a chain": lambda steps: chain(clip_by_value(1e6), accumulate(sgd(1.0), steps)),
    "scaled": lambda steps: dynamic_loss_scale(accumulate(sgd(1.0), steps), initial=4.0),
    "within": lambda steps: accumulate(dynamic_loss_scale(sgd(1.0), initial=4.0), steps),
}
X = random.normal(key(4), (5, 2))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("loss", "target"), LOSSES)
def test_micro_batches_are_one_large_batch(loss: Loss[Tensor, Tensor], target: Tensor, optimizer: str) -> None:
    model = initialize(key(0), linear(2, 3))
    whole: AnyTransform = sgd(1.0)
    gathering = OPTIMIZERS[optimizer](2)
    expected, _ = train_step(loss, whole)(train_state(key(1), model, whole), (X, target))
    state = train_state(key(1), model, gathering)
    for rows in (slice(0, 4), slice(4, 5)):
        state, _ = train_step(loss, gathering)(state, (X[rows], target[rows]))
    torch.testing.assert_close(state.model.weight, expected.model.weight)


def test_so_are_those_of_an_ensemble_whose_runs_weigh_differently() -> None:
    loss = functools.partial(cross_entropy, ignore_index=2)
    models = ensemble.initialize(split(key(0), 2), linear(2, 3))
    target = torch.tensor([[0, 2, 1, 2, 0], [2, 2, 1, 1, 0]])
    x = ensemble.share(X, 2)

    def after(optimizer: Transform[S], parts: list[tuple[int, int]]) -> Tensor:
        state = ensemble.train_state(split(key(1), 2), models, optimizer)
        for start, end in parts:
            state, _ = ensemble.train_step(loss, optimizer)(state, (x[:, start:end], target[:, start:end]))
        return tree.leaves(state.model)[0]

    expected = after(sgd(1.0), [(0, 5)])
    torch.testing.assert_close(after(accumulate(sgd(1.0), 2), [(0, 4), (4, 5)]), expected)
    torch.testing.assert_close(after(accumulate(sgd(1.0), 2), [(0, 2), (2, 5)]), expected)


def test_micro_batches_in_which_nothing_counts_are_a_step_of_nothing() -> None:
    optimizer = accumulate(sgd(1.0), 2)
    state = train_state(key(1), initialize(key(0), linear(2, 3)), optimizer)
    after = state
    for _ in range(2):
        after, _ = train_step(functools.partial(cross_entropy, ignore_index=1), optimizer)(after, (X, torch.ones(5).long()))
    assert tree.equal(after.model, state.model)


@pytest.mark.usefixtures("interpreted_loop")
def test_a_compiled_step_weighs_micro_batches_too() -> None:
    loss, target = functools.partial(cross_entropy, ignore_index=2), torch.tensor([0, 2, 1, 2])
    optimizer = accumulate(sgd(1.0), 2)
    step = train_step(loss, optimizer)
    state = compiled = train_state(key(1), initialize(key(0), linear(2, 3)), optimizer)
    many = scan(step)
    batches = X[:4].reshape(2, 2, 2), target.reshape(2, 2)
    for place in range(2):
        state, _ = step(state, (batches[0][place], batches[1][place]))
    compiled, _ = many(compiled, batches)
    torch.testing.assert_close(compiled.model.weight, state.model.weight)


# --- Means ------------------------------------------------------------------------------------------------------------

IDENTITY = Linear(torch.eye(3), bias=None)


@pytest.mark.parametrize(("loss", "target"), LOSSES)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("interpreted_loop")
def test_the_mean_over_batches_is_that_of_all_data(loss: Loss[Tensor, Tensor], target: Tensor, *, compiled: bool) -> None:
    x = random.normal(key(5), (5, 3))
    batches = [(x[:2], target[:2]), (x[2:4], target[2:4]), (x[4:], target[4:])]
    whole = evaluate(loss, IDENTITY, [(x, target)])
    assert evaluate(loss, IDENTITY, batches).loss == pytest.approx(whole.loss, rel=1e-6)
    optimizer = sgd(0.0)
    state = train_state(key(1), IDENTITY, optimizer)
    _, history = fit(train_step(loss, optimizer), state, batches, epochs=1, compile=compiled, progress=False)
    assert history[0].train.loss == pytest.approx(whole.loss, rel=1e-6)


def test_a_batch_in_which_nothing_counts_does_not_count() -> None:
    loss = functools.partial(cross_entropy, ignore_index=0)
    x = torch.eye(3)
    nobody, somebody = (x, torch.zeros(3).long()), (x, torch.ones(3).long())
    expected = evaluate(loss, IDENTITY, [somebody])
    assert evaluate(loss, IDENTITY, [nobody, somebody, nobody]) == expected
    optimizer = sgd(0.0)
    state = train_state(key(1), IDENTITY, optimizer)
    state, history = fit(train_step(loss, optimizer), state, [nobody, somebody], epochs=1, progress=False)
    assert history[0].train == expected
    assert not math.isnan(float(state.model.weight.sum()))
    with pytest.raises(ValueError, match="nothing to average: what the loss divided by is 0"):
        evaluate(loss, IDENTITY, [nobody])


def distances(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square().mean().sqrt()


def test_the_loss_and_metric_of_sequences_of_several_lengths() -> None:
    batches = [(random.normal(key(length), (4, length, 3)), torch.zeros(4, length, 3)) for length in (7, 5)] * 2
    values = [x.square().mean().item() for x, _ in batches]
    result = evaluate(mse, IDENTITY, batches, metrics={"accuracy": distances})
    assert result.loss == pytest.approx(sum(value * size for value, size in zip(values, (7, 5, 7, 5), strict=True)) / 24)
    assert result.metrics["accuracy"] == pytest.approx(sum(map(math.sqrt, values)) / 4)  # each batch has 4 rows
    of_labels = [(x, x.argmax(2)) for x, _ in batches]
    by_axis = functools.partial(accuracy, axis=-1)
    assert (
        evaluate(functools.partial(cross_entropy, axis=-1), IDENTITY, of_labels, metrics={"accuracy": by_axis}).metrics[
            "accuracy"
        ]
        == 1.0
    )


@pytest.mark.parametrize("numbers", [0, 40, 10**6])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("interpreted_loop")
def test_a_metric_that_is_no_mean_is_averaged_over_the_batches(
    monkeypatch: pytest.MonkeyPatch, numbers: int, *, compiled: bool
) -> None:
    monkeypatch.setattr("fundl.training._means._BUFFER_NUMBERS", numbers)
    x = random.normal(key(6), (25, 3))
    batches = [(x[:10], 0 * x[:10]), (x[10:20], 0 * x[:10]), (x[20:], 0 * x[20:])]
    expected = sum(distances(x, target).item() * len(x) for x, target in batches) / 25
    assert evaluate(mse, IDENTITY, batches, metrics={"accuracy": distances}).metrics["accuracy"] == pytest.approx(
        expected, rel=1e-6
    )
    optimizer = sgd(0.0)
    state = train_state(key(1), IDENTITY, optimizer)
    _, history = fit(
        train_step(mse, optimizer), state, batches, epochs=1, metrics={"accuracy": distances}, compile=compiled, progress=False
    )
    assert history[0].train.metrics["accuracy"] == pytest.approx(expected, rel=1e-6)

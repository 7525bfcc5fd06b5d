"""Losses one by one, and each with a weight of its own: of every sample loss, and of what a user writes."""

from functools import partial
from typing import Final

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fundl import (
    DeferredLogits,
    Identity,
    Loss,
    Reduction,
    accumulate,
    chunked_cross_entropy,
    cosine_embedding,
    cross_entropy,
    ctc,
    ensemble,
    evaluate,
    from_function,
    gaussian_nll,
    hinge,
    initialize,
    key,
    linear,
    mse,
    nll,
    random,
    sgd,
    train_state,
    train_step,
    triplet,
    unreduced,
    weight_of,
    weighted,
)
from tests.loss_base import REDUCTIONS, normal, uniform
from tests.loss_base import Loss as SampleLoss
from tests.loss_samples import INDICES, SAMPLES, WEIGHT
from tests.more_loss_samples import UNSTACKED

NAMES: Final = [name for name, row in SAMPLES.items() if (getattr(row.loss, "func", row.loss)) not in UNSTACKED]
every_loss = pytest.mark.parametrize("name", NAMES)


def case(name: str) -> tuple[SampleLoss, Tensor, Tensor]:
    row = SAMPLES[name]
    return row.loss, row.prediction, row.target


# --- One by one --------------------------------------------------------------------------------------------------------


@every_loss
def test_they_add_up_to_the_sum(name: str) -> None:
    loss, prediction, target = case(name)
    losses, grad = unreduced(loss)(prediction, target)
    total, expected = partial(loss, reduction="sum")(prediction, target)
    torch.testing.assert_close(losses.sum(), total)
    torch.testing.assert_close(grad, expected)
    for given in REDUCTIONS:
        torch.testing.assert_close(unreduced(partial(loss, reduction=given))(prediction, target), (losses, grad))


@every_loss
def test_each_is_that_of_its_rows(name: str) -> None:
    loss, prediction, target = case(name)
    losses, grad = unreduced(loss)(prediction, target)
    alone = partial(loss, reduction="sum")
    for place in range(len(prediction)):
        value, own = alone(prediction[place : place + 1], target[place : place + 1])
        torch.testing.assert_close(losses[place].sum(), value)
        torch.testing.assert_close(grad[place : place + 1], own)


def test_shapes() -> None:
    scores, labels = normal(2, 5, 3), torch.tensor([[0, 1, 2, 0, 1], [1, 1, 2, -100, 0]])
    assert unreduced(mse)(scores, scores)[0].shape == (2, 5, 3)
    assert unreduced(partial(cross_entropy, axis=-1))(scores, labels)[0].shape == (2, 5)
    assert unreduced(partial(nll, axis=-1))(scores, labels)[0][1, 3] == 0
    assert unreduced(cosine_embedding)((scores, scores), torch.ones(2, 5))[0].shape == (2, 5)
    assert unreduced(triplet)((scores, scores, scores), None)[0].shape == (2, 5)
    assert unreduced(ctc)(scores, torch.tensor([[1], [2]]))[0].shape == (2,)


def own(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over rows of a user, of which nothing is known."""
    difference = prediction - target
    return difference.square().sum() / len(prediction), 2 * difference / len(prediction)


@from_function
def by_torch(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square().sum(1).mean()


@pytest.mark.parametrize("loss", [own, by_torch])
def test_those_of_a_user_are_of_rows(loss: Loss[Tensor, Tensor]) -> None:
    x, t = normal(5, 3), uniform(5, 3)
    losses, grad = unreduced(loss)(x, t)
    torch.testing.assert_close(losses, (x - t).square().sum(1))
    torch.testing.assert_close(grad, 2 * (x - t))


# --- Weights -----------------------------------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_weight_of_each_row_is_how_often_it_is_there(name: str, reduction: Reduction) -> None:
    loss, prediction, target = case(name)
    loss = partial(loss, reduction=reduction)
    often = torch.tensor([2, 0, 1, 3, 1, 1, 2])[: len(prediction)]
    places = torch.arange(len(prediction)).repeat_interleave(often)
    value, grad = weighted(loss)(prediction, (target, often))
    expected, of_each = loss(prediction[places], target[places])
    added = torch.zeros_like(grad).index_add(0, places, of_each)
    if reduction == "batch_mean":  # which divides by the rows, whatever they weigh
        expected, added = expected * len(places) / len(prediction), added * len(places) / len(prediction)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, added)


@every_loss
def test_what_is_masked_may_be_anything(name: str) -> None:
    loss, prediction, target = case(name)
    mask = torch.arange(len(prediction)) != 1
    expected, of_kept = loss(prediction[mask], target[mask])
    broken, wrong = prediction.clone(), target.clone()
    broken[1] = torch.nan
    wrong[1] = torch.nan if wrong.is_floating_point() else 77
    value, grad = weighted(loss)(broken, (wrong, mask))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad[mask], of_kept)
    assert not grad[1].any()
    weight = weight_of(weighted(loss), broken, (wrong, mask))
    torch.testing.assert_close(float(weight), float(weight_of(loss, prediction[mask], target[mask])))


@every_loss
def test_weights_of_nothing(name: str) -> None:
    loss, prediction, target = case(name)
    nothing = torch.zeros(len(prediction), dtype=torch.bool)
    value, grad = weighted(loss)(prediction, (target, nothing))
    assert value.isnan()
    assert not grad.any()
    assert weight_of(weighted(loss), prediction, (target, nothing)) == 0
    assert weighted(partial(loss, reduction="sum"))(prediction, (target, nothing))[0] == 0


@every_loss
def test_in_half_precision(name: str) -> None:
    row = SAMPLES[name]
    prediction, target = row.inputs(torch.bfloat16)
    weight = uniform(len(prediction)).float()
    value, grad = weighted(row.loss)(prediction, (target, weight))
    wide = prediction.double(), target.double() if target.is_floating_point() else target
    expected, expected_grad = weighted(row.loss)(wide[0], (wide[1], weight.double()))
    assert value.dtype == torch.float32
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-2, atol=1e-4)


def test_weights_by_element() -> None:
    x, t, weight = normal(4, 3), uniform(4, 3), uniform(4, 3)
    value, grad = weighted(mse)(x, (t, weight))
    torch.testing.assert_close(value, ((x - t).square() * weight).sum() / weight.sum())
    torch.testing.assert_close(grad, 2 * (x - t) * weight / weight.sum())


def test_a_weight_of_a_single_number() -> None:
    loss, two = weighted(partial(mse, reduction="sum")), torch.tensor(2.0)
    value, grad = loss(torch.tensor(3.0), (torch.tensor(0.0), two))
    assert (value.item(), grad.item()) == (18.0, 12.0)
    of_pair = weighted(partial(gaussian_nll, reduction="sum"))((torch.tensor(3.0), torch.tensor(1.0)), (torch.tensor(0.0), two))
    assert of_pair[0].item() == 9.0


def test_weights_of_positions_and_of_classes() -> None:
    scores, labels, weight = normal(2, 5, 3), torch.arange(10).reshape(2, 5) % 3, uniform(2, 5)
    loss = partial(cross_entropy, axis=-1, weight=WEIGHT, label_smoothing=0.1, ignore_index=1)
    value, _ = weighted(loss)(scores, (labels, weight))
    losses, _ = unreduced(loss)(scores, labels)
    counts = WEIGHT[labels] * (labels != 1)
    torch.testing.assert_close(value, (losses * weight).sum() / (counts * weight).sum())


def test_weights_of_pairs() -> None:
    first, second, signs, mask = normal(4, 3), uniform(4, 3), torch.tensor([1, -1, 1, 9]), torch.tensor([1, 1, 0, 0]).bool()
    value, (one, other) = weighted(cosine_embedding)((first.masked_fill(~mask[:, None], torch.nan), second), (signs, mask))
    expected, grads = cosine_embedding((first[:2], second[:2]), signs[:2])
    torch.testing.assert_close((value, (one[:2], other[:2])), (expected, grads))
    assert not one[2:].any()
    assert not other[2:].any()
    value, _ = weighted(triplet)((first, second, first), (None, mask))
    torch.testing.assert_close(value, triplet((first[:2], second[:2], first[:2]))[0])
    variance = torch.where(mask.unsqueeze(1), second, -1.0)
    value, _ = weighted(gaussian_nll)((first, variance), (first, mask))
    torch.testing.assert_close(value, gaussian_nll((first[:2], second[:2]), first[:2])[0])


@pytest.mark.parametrize("chunk", [None, 4])
def test_weights_of_logits_that_are_never_there(chunk: int | None) -> None:
    logits = DeferredLogits(normal(6, 2), normal(3, 2), normal(3))
    labels, weight = torch.tensor([0, 1, 2, 2, 1, 55]), torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0, 0.0])
    value, grad = weighted(partial(chunked_cross_entropy, chunk=chunk))(logits, (labels, weight))
    x = logits.features @ logits.weight.t() + normal(3)
    expected, grad_x = weighted(cross_entropy)(x, (labels, weight))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad.features, grad_x @ logits.weight)
    torch.testing.assert_close(grad.weight, grad_x.t() @ logits.features)


@pytest.mark.parametrize("loss", [own, by_torch])
def test_weights_of_rows_of_a_users_loss(loss: Loss[Tensor, Tensor]) -> None:
    x, t, mask = normal(5, 3), uniform(5, 3), torch.tensor([True, False, True, True, False])
    value, grad = weighted(loss)(torch.where(mask.unsqueeze(1), x, torch.nan), (t, mask))
    torch.testing.assert_close((value, grad[mask]), loss(x[mask], t[mask]))
    assert not grad[~mask].any()


# --- In training ----------------------------------------------------------------------------------------------------------

X: Final = random.normal(key(4), (12, 3))
MASK: Final = torch.tensor([1, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0, 1], dtype=torch.bool)
LOSSES: Final[dict[str, tuple[Loss[Tensor, Tensor], Tensor]]] = {
    "mse": (mse, random.normal(key(5), (12, 3))),
    "classes": (partial(cross_entropy, weight=WEIGHT.float()), torch.arange(12) % 3),
    "hinge": (hinge, random.normal(key(5), (12, 3)) > 0),
    "own": (own, random.normal(key(5), (12, 3))),
}
every_training = pytest.mark.parametrize("name", LOSSES)


@every_training
def test_masked_batches_of_any_sizes_are_the_data_that_is_kept(name: str) -> None:
    loss, target = LOSSES[name]
    batches = [(X[rows], (target[rows], MASK[rows])) for rows in (slice(1), slice(1, 8), slice(4, 7), slice(8, 12))]
    expected = evaluate(loss, Identity(), [(X[MASK], target[MASK])])
    assert evaluate(weighted(loss), Identity(), batches[:2] + batches[3:]).loss == pytest.approx(expected.loss)
    assert evaluate(weighted(loss), Identity(), batches[:2] + batches[3:] + [batches[2]]).loss != 0


@every_training
def test_masked_micro_batches_are_one_batch_of_what_is_kept(name: str) -> None:
    loss, target = LOSSES[name]
    model, optimizer = initialize(key(0), linear(3, 3)), sgd(0.1)
    expected, _ = train_step(loss, optimizer)(train_state(key(1), model, optimizer), (X[MASK], target[MASK]))
    gathering = accumulate(optimizer, 3)
    step, state = train_step(weighted(loss), gathering), train_state(key(1), model, gathering)
    for rows in (slice(0, 2), slice(2, 4), slice(4, 12)):
        state, _ = step(state, (X[rows], (target[rows], MASK[rows])))
    torch.testing.assert_close(state.model.weight, expected.model.weight)


def test_an_ensemble_has_masks_of_its_own() -> None:
    masks = torch.stack((MASK, ~MASK))
    target = LOSSES["mse"][1]
    values, grads = ensemble.each(weighted(mse))(ensemble.share(X, 2), (ensemble.share(target, 2), masks))
    for place, mask in enumerate(masks):
        torch.testing.assert_close((values[place], grads[place]), weighted(mse)(X, (target, mask)))


@every_training
def test_they_can_be_traced(name: str) -> None:
    loss, target = LOSSES[name]
    traced = make_fx(lambda x, t, w: weighted(loss)(x, (t, w)))(X, target, MASK)
    torch.testing.assert_close(traced(X, target, MASK), weighted(loss)(X, (target, MASK)))


# --- What is refused --------------------------------------------------------------------------------------------------


def test_targets_without_weights() -> None:
    x = torch.ones(4, 2)
    with pytest.raises(TypeError, match=r"target of weighted\(mse\) is a pair, \(target, weight\)"):
        weighted(mse)(x, x)  # type: ignore[arg-type]  # the error under test
    with pytest.raises(ValueError, match=r"the weight's shape is \(2,\), but the losses' allow \(4,\) or \(4, 2\)"):
        weighted(mse)(x, (x, torch.ones(2)))
    with pytest.raises(ValueError, match=r"weight of a weighted loss must hold finite numbers of 0 or more, but goes from -1"):
        weighted(mse)(x, (x, torch.tensor([1.0, -1.0, 1.0, 1.0])))
    with pytest.raises(TypeError, match="a weight is of real numbers or booleans"):
        weighted(mse)(x, (x, torch.ones(4, dtype=torch.complex64)))


def test_reduction_none_is_told_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"not 'none'; the losses one by one are what unreduced\(loss\)"):
        cross_entropy(normal(5, 3), INDICES, reduction="none")  # type: ignore[arg-type]  # the error under test


def test_rows_must_be_the_same() -> None:
    def scalar(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return (prediction - target).sum(), torch.ones_like(prediction)

    with pytest.raises(ValueError, match="taken apart by rows"):
        unreduced(scalar)(torch.ones(3), torch.tensor(1.0))

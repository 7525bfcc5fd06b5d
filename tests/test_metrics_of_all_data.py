"""Metrics that are no means: against formulas by brute force, and of batches and processes against all data at once."""

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import attrs
import pytest
import torch
from torch import Tensor

from fundl import (
    Evaluation,
    Identity,
    Linear,
    Metric,
    Report,
    accuracy,
    auroc,
    compose,
    cross_entropy,
    ensemble,
    evaluate,
    f1,
    fit,
    key,
    linear,
    mean_absolute_error,
    metric_of_rows,
    metric_of_sums,
    mse,
    perplexity,
    precision,
    r2,
    recall,
    root_mean_squared_error,
    sgd,
    split,
    top_k_accuracy,
    train_state,
    train_step,
    tree,
)
from fundl.groups import Group
from fundl.runs import ONE
from fundl.training._means import Means
from tests.loss_base import normal, uniform
from tests.processes import together

N: Final = 40
SCORES: Final = normal(N, 4).round(decimals=1)
LABELS: Final = torch.randint(0, 3, (N,), generator=torch.Generator().manual_seed(0))  # class 3 never occurs
YES: Final = uniform(N) > 0.6
NUMBERS: Final = 100 + normal(N, 2)
ERRORS: Final = NUMBERS + 0.3 * uniform(N, 2)


# --- By brute force -----------------------------------------------------------------------------------------------------


def pairs_in_order(scores: Tensor, labels: Tensor) -> float:
    yes, no = scores[labels].tolist(), scores[~labels].tolist()
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in yes for b in no) / (len(yes) * len(no))


def counted(which: str, found: list[int], true: list[int], c: int) -> tuple[float, float]:
    right = sum(a == b == c for a, b in zip(found, true, strict=True))
    there = {"precision": found.count(c), "recall": true.count(c), "f1": found.count(c) + true.count(c)}[which]
    return (2 if which == "f1" else 1) * right, there


def ratio(above: float, below: float) -> float:
    return above / below if below else 0.0


RATIOS: Final[Mapping[str, Callable[..., Tensor]]] = {"precision": precision, "recall": recall, "f1": f1}  # type: ignore[explicit-any]  # of one signature


@pytest.mark.parametrize("which", RATIOS)
def test_ratios_of_classes(which: str) -> None:
    found, true = SCORES.argmax(1).tolist(), LABELS.tolist()
    counts = [counted(which, found, true, c) for c in range(4)]
    of_each = [ratio(*one) for one in counts]
    metric = RATIOS[which]
    assert metric(SCORES, LABELS).item() == pytest.approx(sum(of_each) / 4)
    assert metric(SCORES, LABELS, of=1).item() == pytest.approx(of_each[1])
    assert metric(SCORES, LABELS, of=3).item() == 0
    assert metric(SCORES, LABELS, average="micro").item() == pytest.approx(accuracy(SCORES, LABELS).item())
    some = SCORES[:, [0, 1, 2]]
    wider = torch.cat((some, torch.full((N, 1), -9.0)), 1)  # a class that neither occurs nor is found
    assert metric(wider, LABELS).item() == pytest.approx(metric(some, LABELS).item())
    last = SCORES.reshape(8, 5, 4)
    assert metric(last, LABELS.reshape(8, 5), axis=-1) == metric(SCORES, LABELS)


@pytest.mark.parametrize("which", RATIOS)
def test_ratios_of_yes(which: str) -> None:
    scores = uniform(N)
    found, true = (scores > 0.5).int().tolist(), YES.int().tolist()
    for labels in (YES, YES.float(), 2 * YES.int() - 1):
        assert RATIOS[which](scores, labels, threshold=0.5).item() == pytest.approx(ratio(*counted(which, found, true, 1)))


def test_ratios_of_nothing() -> None:
    assert precision(torch.zeros(3), torch.tensor([0, 0, 1]), threshold=0.5) == 0
    assert f1(torch.zeros(3), torch.zeros(3), threshold=0.5).isnan()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_area_under_the_curve(dtype: torch.dtype) -> None:
    scores = uniform(N).to(dtype)
    assert auroc(scores, YES).item() == pytest.approx(pairs_in_order(scores, YES))
    ties = (4 * scores).round()
    assert auroc(ties, YES.int()).item() == pytest.approx(pairs_in_order(ties, YES))
    assert auroc(scores.reshape(-1, 1), YES.reshape(-1, 1)) == auroc(scores, YES)
    assert auroc(torch.where(YES, math.inf, -math.inf), YES) == 1
    assert auroc(scores, torch.ones(N)).isnan()
    assert auroc(scores.index_fill(0, torch.tensor(3), math.nan), YES).isnan()


def test_among_the_highest() -> None:
    for k in range(1, 5):
        orders = [sorted(range(4), key=lambda c, row=row: (-row[c], c))[:k] for row in SCORES.tolist()]  # type: ignore[misc]  # of a row
        expected = sum(true in order for true, order in zip(LABELS.tolist(), orders, strict=True)) / N
        assert top_k_accuracy(SCORES, LABELS, k=k).item() == pytest.approx(expected)
    assert top_k_accuracy(SCORES, LABELS, k=1) == accuracy(SCORES, LABELS)
    assert top_k_accuracy(torch.tensor([[math.nan, 1.0]]), torch.tensor([0]), k=1) == 0


def test_errors_of_numbers() -> None:
    x, t = ERRORS.float(), NUMBERS.float()
    assert mean_absolute_error(x, t).item() == pytest.approx((x - t).abs().mean().item())
    assert root_mean_squared_error(x, t).item() == pytest.approx((x - t).square().mean().sqrt().item())
    of_each = [1 - ((x - t)[:, i] ** 2).sum() / ((t[:, i] - t[:, i].mean()) ** 2).sum() for i in range(2)]
    assert r2(x, t).item() == pytest.approx(torch.stack(of_each).mean().item(), rel=1e-4)
    assert r2(x[:, 0], t[:, 0]).item() == pytest.approx(of_each[0].item(), rel=1e-4)
    assert r2(t, t) == 1
    assert r2(torch.full((3,), 0.1), torch.full((3,), 0.1)) == 1
    assert r2(torch.full((3,), 0.2), torch.full((3,), 0.1)) == 0


# --- Of batches ------------------------------------------------------------------------------------------------------------

CLASSES: Final[Mapping[str, Metric[Tensor, Tensor]]] = {
    "F1": f1,
    "accuracy": accuracy,
    "precision of 1": partial(precision, of=1),
    "recall": partial(recall, average="macro"),
    "perplexity": perplexity,
    "top 2": partial(top_k_accuracy, k=2),
}
OF_NUMBERS: Final[Mapping[str, Metric[Tensor, Tensor]]] = {
    "r2": r2,
    "root": root_mean_squared_error,
    "mae": mean_absolute_error,
}
DECISIONS: Final[Mapping[str, Metric[Tensor, Tensor]]] = {"area": auroc, "F1": partial(f1, threshold=0.5)}


def cut(prediction: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor]]:
    sizes = [1, 7, 12, 0, 20]
    parts = zip(torch.split(prediction, sizes), torch.split(target, sizes), strict=True)
    return [(x, t) for x, t in parts if len(x)]


def assert_whole(metrics: Mapping[str, Metric[Tensor, Tensor]], prediction: Tensor, target: Tensor, found: Evaluation) -> None:
    for name, metric in metrics.items():
        assert found.metrics[name] == pytest.approx(metric(prediction, target).item(), rel=1e-5), name


def test_batches_amount_to_all_data() -> None:
    for loss, metrics, x, t in (
        (cross_entropy, CLASSES, SCORES, LABELS),
        (mse, OF_NUMBERS, ERRORS, NUMBERS),
        (mse, DECISIONS, uniform(N), YES.double()),
    ):
        found = evaluate(loss, Identity(), cut(x, t), metrics=metrics)
        assert_whole(metrics, x, t, found)
        assert list(found.metrics) == list(metrics)


def test_so_do_those_of_training() -> None:
    optimizer = sgd(0.0)
    step = train_step(cross_entropy, optimizer)
    state = train_state(key(0), Linear(torch.eye(4, dtype=torch.float64), None), optimizer)
    _, history = fit(step, state, cut(SCORES, LABELS), epochs=1, metrics=CLASSES, progress=False)
    assert_whole(CLASSES, SCORES, LABELS, history[0].train)


def test_so_do_those_of_each_run_of_an_ensemble() -> None:
    optimizer, other = sgd(0.0), SCORES.flip(0)
    models = ensemble.initialize(split(key(0), 2), compose(linear(4, 4, bias=False)))
    models = tree.map(lambda leaf: torch.eye(4, dtype=torch.float64).expand(leaf.shape), models)
    state = ensemble.train_state(split(key(1), 2), models, optimizer)
    pairs = zip(cut(SCORES, LABELS), cut(other, LABELS), strict=True)
    batches = [(torch.stack((x, y)), torch.stack((t, t))) for (x, t), (y, _) in pairs]
    step = ensemble.train_step(cross_entropy, optimizer)
    _, histories = ensemble.fit(step, state, batches, epochs=1, metrics=CLASSES, progress=False)
    for own, history in zip((SCORES, other), histories, strict=True):
        assert_whole(CLASSES, own, LABELS, history[0].train)


def of_processes(group: Group) -> list[Evaluation]:
    """Each has some of the batches, and one of them may have none."""
    found = []
    for loss, metrics, x, t in (
        (cross_entropy, CLASSES, SCORES, LABELS),
        (mse, DECISIONS, uniform(N), YES.double()),
    ):
        own = [batch for place, batch in enumerate(cut(x, t)) if place % 2 == group.rank]
        found.append(evaluate(loss, Identity(), own, metrics=metrics, over=group))
        first = cut(x, t) if not group.rank else []
        found.append(evaluate(loss, Identity(), first, metrics=metrics, over=group))
    return found


def test_so_do_those_of_processes() -> None:
    for classes, classes_of_one, decisions, decisions_of_one in together(2, of_processes):
        for found in (classes, classes_of_one):
            assert_whole(CLASSES, SCORES, LABELS, found)
        for found in (decisions, decisions_of_one):
            assert_whole(DECISIONS, uniform(N), YES.double(), found)


@pytest.mark.parametrize("many", [1, 3])
def test_an_epoch_that_is_taken_up_in_the_middle(many: int) -> None:
    """Also what several processes have seen, by one."""
    x, t = uniform(N), YES.double()

    def means() -> Means[Tensor, Tensor]:
        return Means(mse, DECISIONS, ONE)

    def add(to: Means[Tensor, Tensor], batches: list[tuple[Tensor, Tensor]]) -> Means[Tensor, Tensor]:
        for own, target in batches:
            to.add(own, target, Report(mse(own, target)[0], own))
        to.settle()
        return to

    batches = cut(x, t)
    seen = [add(means(), batches[:3][rank::many]).sums()[0] for rank in range(many)]
    told = [attrs.evolve(one, metrics=json.loads(json.dumps(dict(one.metrics)))) for one in seen]
    later = means()
    later.go_on_from(told)
    assert_whole(DECISIONS, x, t, add(later, batches[3:]).results()[0])


# --- A user's own ----------------------------------------------------------------------------------------------------------


def sums_of_scaled(prediction: Tensor, target: Tensor, *, scale: float = 1.0) -> Tensor:
    return torch.stack((scale * (prediction - target).square().sum(), torch.tensor(float(len(target)))))


def root_of(sums: Tensor, *, scale: float = 1.0) -> Tensor:
    return (sums[0] / sums[1]).sqrt() / scale


def test_those_of_a_user_have_options() -> None:
    metric = metric_of_sums(sums_of_scaled, root_of)
    scaled = partial(metric, scale=4.0)
    x, t = uniform(N), YES.double()
    expected = (x - t).square().mean().sqrt().item()
    assert scaled(x, t).item() == pytest.approx(expected / 2)
    found = evaluate(mse, Identity(), cut(x, t), metrics={"plain": metric, "scaled": scaled}).metrics
    assert found["plain"] == pytest.approx(expected)
    assert found["scaled"] == pytest.approx(expected / 2)


def test_what_is_wrong_with_those_of_a_user() -> None:
    batches = cut(uniform(N), YES.double())

    def found(metric: Metric[Tensor, Tensor]) -> Evaluation:
        return evaluate(mse, Identity(), batches, metrics={"mine": metric})

    with pytest.raises(TypeError, match=r"metric 'mine' is found of sums, of shape \(K,\), real numbers, but was given"):
        found(metric_of_sums(lambda x, _t: x.sum(), lambda sums: sums[0]))
    with pytest.raises(TypeError, match=r"metric 'mine' is found of rows, of shape \(N, K\)"):
        found(metric_of_rows(lambda x, _t: x, lambda rows: rows.sum()))
    with pytest.raises(TypeError, match="the value of a metric is a single number"):
        found(metric_of_sums(lambda x, _t: x.sum().reshape(1), lambda sums: sums))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: top_k_accuracy(SCORES, LABELS, k=5), "k must be an int from 1 to the number of classes, 4, not 5"),
        (lambda: f1(SCORES, LABELS, of=4), "of=4 is to be a class, from 0 to 3"),
        (lambda: f1(SCORES, LABELS, average="weighted"), 'average must be "macro" or "micro", not \'weighted\''),  # type: ignore[arg-type]  # the error under test
        (lambda: f1(SCORES[:, :1], LABELS), "has no score for each class"),
        (lambda: auroc(SCORES, LABELS), "the target must have the prediction's shape"),
        (lambda: auroc(SCORES[:, 0], LABELS), "labels of yes and no must be 0 and 1, or -1 and 1, but one is 2"),
        (lambda: r2(SCORES, SCORES[:3]), "they must be equal"),
    ],
)
def test_what_is_refused(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()

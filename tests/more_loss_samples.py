"""Sample losses beyond differences and cross-entropies, and their formulas: see loss_samples.py.

A prediction of several tensors is one tensor here, which has them along axis 1.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fundl import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    binary_focal,
    contrastive,
    cosine_embedding,
    ctc,
    dice,
    focal,
    gaussian_nll,
    hinge,
    hinge_embedding,
    log_cosh,
    margin_ranking,
    multi_class_margin,
    multi_label_margin,
    pinball,
    poisson_nll,
    soft_margin,
    squared_hinge,
    triplet,
)
from tests.loss_base import (
    Costs,
    Formula,
    Options,
    Reference,
    Sample,
    elementwise,
    exp,
    log,
    log_sigmoid,
    normal,
    number,
    times,
    uniform,
)

UNSTACKED: Final[dict[object, object]] = {}
"""Losses of several tensors, by the functions of one that stand for them."""


Stacked = Callable[..., tuple[Tensor, Tensor]]  # type: ignore[explicit-any]  # with options of its own
Several = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]  # type: ignore[explicit-any]  # likewise
Function = Callable[..., Tensor]  # type: ignore[explicit-any]  # likewise


def stacked(loss: Several) -> Stacked:
    """A loss of several tensors as one of a tensor that has them along axis 1."""

    def run(prediction: Tensor, target: Tensor, /, **options: object) -> tuple[Tensor, Tensor]:
        value, grads = loss(prediction.unbind(1), target, **options)
        return value, torch.stack(grads, 1)

    UNSTACKED[run] = loss
    return run


def reduced(each: Callable[[Tensor, Tensor], Tensor]) -> Reference:
    """A reference from the losses one by one."""

    def run(prediction: Tensor, target: Tensor, /, *, reduction: str) -> Tensor:
        losses = each(prediction, target)
        return losses.mean() if reduction == "mean" else losses.sum()

    return run


def of_parts(function: Function, **options: object) -> Reference:
    """A function of torch that takes the parts of a prediction one by one, and then the target."""

    def run(prediction: Tensor, target: Tensor, /, *, reduction: str) -> Tensor:
        return function(*prediction.unbind(1), target, **options, reduction=reduction)

    return run


def smoothed(function: Reference) -> Reference:
    def run(prediction: Tensor, target: Tensor, /, *, reduction: str) -> Tensor:
        return function(prediction, 0.8 * target + 0.1, reduction=reduction)

    return run


# --- References -------------------------------------------------------------------------------------------------------


def gaussian(mean: Tensor, var: Tensor, target: Tensor, *, full: bool, reduction: str) -> Tensor:
    return F.gaussian_nll_loss(mean, target, var, full=full, reduction=reduction)


def triplets(a: Tensor, b: Tensor, c: Tensor, _target: Tensor, *, swap: bool, reduction: str) -> Tensor:
    return F.triplet_margin_loss(a, b, c, eps=0, swap=swap, reduction=reduction)


def contrasts(prediction: Tensor, target: Tensor) -> Tensor:
    distance = (prediction[:, 0] - prediction[:, 1]).norm(dim=-1)
    return torch.where(target > 0, distance.square(), (2 - distance).clamp(min=0).square()) / 2


def labelled(prediction: Tensor, target: Tensor, /, *, reduction: str) -> Tensor:
    """That of torch takes indices."""
    rows = [row.nonzero().flatten().tolist() for row in target > 0]
    indices = torch.tensor([row + [-1] * (target.shape[1] - len(row)) for row in rows])
    return F.multilabel_margin_loss(prediction, indices, reduction=reduction)


def focal_reference(prediction: Tensor, target: Tensor, /, *, reduction: str, gamma: float, weight: Tensor) -> Tensor:
    kept = target != 1
    cost = F.cross_entropy(prediction, target, reduction="none", ignore_index=1)
    losses = ((1 - torch.exp(-cost)) ** gamma * cost * weight[target] * kept).sum()
    return losses / (weight[target] * kept).sum() if reduction == "mean" else losses


def binary_focal_reference(prediction: Tensor, target: Tensor) -> Tensor:
    p = prediction.sigmoid()
    return -0.25 * target * (1 - p) ** 2 * p.log() - 0.75 * (1 - target) * p**2 * (1 - p).log()


def dices(prediction: Tensor, target: Tensor) -> Tensor:
    p, t = prediction.flatten(2), target.flatten(2)
    return 1 - (2 * (p * t).sum(2) + 1) / ((p + t).sum(2) + 1)


def ctc_reference(prediction: Tensor, target: Tensor, /, *, reduction: str) -> Tensor:
    """Torch's mean is another one."""
    lengths, frames = (target >= 0).sum(1), torch.full((len(target),), prediction.shape[1])
    log_p = prediction.log_softmax(2).transpose(0, 1)
    value = F.ctc_loss(log_p, target[target >= 0], frames, lengths, reduction="sum")
    return value / lengths.clamp(min=1).sum() if reduction == "mean" else value


# --- The samples -------------------------------------------------------------------------------------------------------

SIGNS: Final = torch.where(normal(5, 3) > 0, 1.0, -1.0).to(torch.float64)
COUNTS: Final = torch.tensor([[0.0, 1.0, 4.0], [2.0, 0.0, 7.0], [3.0, 3.0, 1.0]], dtype=torch.float64)
INDICES: Final = torch.tensor([1, 0, 2, 1, 2])
WEIGHT: Final = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
LABELS: Final = torch.tensor([[1, 1], [2, -1], [-1, -1]])

MORE_SAMPLES: Final[dict[str, Sample]] = {
    "log_cosh": Sample(log_cosh, reduced(lambda x, t: torch.log(torch.cosh(x - t))), 2 * normal(5, 3), uniform(5, 3)),
    "pinball": Sample(pinball, reduced(lambda x, t: (x - t).abs() / 2), normal(5, 3), uniform(5, 3)),
    "pinball, quantiles": Sample(
        partial(pinball, quantile=0.3 * WEIGHT),
        reduced(lambda x, t: torch.maximum((1 - 0.3 * WEIGHT) * (x - t), -0.3 * WEIGHT * (x - t))),
        normal(5, 3),
        uniform(5, 3),
    ),
    "poisson_nll": Sample(poisson_nll, F.poisson_nll_loss, normal(3, 3), COUNTS),
    "poisson_nll, rates": Sample(
        partial(poisson_nll, log_input=False, full=True),
        partial(F.poisson_nll_loss, log_input=False, full=True),
        0.1 + uniform(3, 3),
        COUNTS,
    ),
    "gaussian_nll of pairs": Sample(
        stacked(gaussian_nll), of_parts(gaussian, full=False), 0.1 + uniform(5, 2, 3), normal(5, 3)
    ),
    "gaussian_nll, full": Sample(
        partial(stacked(gaussian_nll), full=True), of_parts(gaussian, full=True), 0.1 + uniform(5, 2, 3), normal(5, 3)
    ),
    "binary_cross_entropy, label_smoothing": Sample(
        partial(binary_cross_entropy, label_smoothing=0.2),
        smoothed(F.binary_cross_entropy),
        0.1 + 0.8 * uniform(5, 3),
        uniform(5, 3),
    ),
    "binary_cross_entropy_with_logits, label_smoothing": Sample(
        partial(binary_cross_entropy_with_logits, label_smoothing=0.2),
        smoothed(F.binary_cross_entropy_with_logits),
        3 * normal(5, 3),
        uniform(5, 3),
    ),
    "hinge of labels": Sample(hinge, reduced(lambda x, t: (1 - t * x).clamp(min=0)), 2 * normal(3, 5).t(), SIGNS),
    "squared_hinge of labels": Sample(
        partial(squared_hinge, margin=0.7),
        reduced(lambda x, t: (0.7 - t * x).clamp(min=0).square()),
        2 * normal(3, 5).t(),
        SIGNS,
    ),
    "soft_margin of labels": Sample(soft_margin, F.soft_margin_loss, 2 * normal(3, 5).t(), SIGNS),
    "hinge_embedding of labels": Sample(
        partial(hinge_embedding, margin=0.7), partial(F.hinge_embedding_loss, margin=0.7), uniform(5, 3), SIGNS
    ),
    "margin_ranking of pairs": Sample(
        partial(stacked(margin_ranking), margin=0.3), of_parts(F.margin_ranking_loss, margin=0.3), normal(5, 2, 3), SIGNS
    ),
    "multi_class_margin of classes": Sample(multi_class_margin, F.multi_margin_loss, normal(5, 3), INDICES),
    "multi_class_margin, all options": Sample(
        partial(multi_class_margin, power=2, margin=0.7, weight=WEIGHT),
        partial(F.multi_margin_loss, p=2, margin=0.7, weight=WEIGHT),
        normal(5, 3),
        INDICES,
    ),
    "multi_label_margin of labels": Sample(multi_label_margin, labelled, normal(5, 3), (SIGNS + 1) / 2),
    "contrastive of pairs": Sample(partial(stacked(contrastive), margin=2.0), reduced(contrasts), normal(5, 2, 3), SIGNS[:, 0]),
    "cosine_embedding of pairs": Sample(
        partial(stacked(cosine_embedding), margin=0.1),
        of_parts(F.cosine_embedding_loss, margin=0.1),
        normal(5, 2, 3),
        SIGNS[:, 0],
    ),
    "triplet of three": Sample(stacked(triplet), of_parts(triplets, swap=False), normal(5, 3, 3), SIGNS[:, 0]),
    "triplet, swap": Sample(partial(stacked(triplet), swap=True), of_parts(triplets, swap=True), normal(5, 3, 3), SIGNS[:, 0]),
    "focal of classes": Sample(
        partial(focal, gamma=1.5, weight=WEIGHT, ignore_index=1),
        partial(focal_reference, gamma=1.5, weight=WEIGHT),
        normal(5, 3),
        INDICES,
    ),
    "binary_focal, alpha": Sample(
        partial(binary_focal, alpha=0.25), reduced(binary_focal_reference), 2 * normal(5, 3), uniform(5, 3)
    ),
    "dice of planes": Sample(dice, reduced(dices), uniform(2, 3, 2, 2), uniform(2, 3, 2, 2).round()),
    "ctc of sequences": Sample(ctc, ctc_reference, normal(3, 4, 3), LABELS),
}


# --- The formulas -----------------------------------------------------------------------------------------------------


def above(x: float) -> float:
    return x if math.isnan(x) else max(x, 0.0)


def sign(t: float) -> float:
    return 1.0 if t > 0 else -1.0


def log_cosh_cost(x: float, t: float, _options: Options, _place: int) -> float:
    d = abs(x - t)
    return d + math.log1p(math.exp(-2 * d)) - math.log(2)


def pinball_cost(x: float, t: float, options: Options, place: int) -> float:
    quantile = options.get("quantile")
    q = float(quantile[place]) if isinstance(quantile, Tensor) else 0.5
    return times(1 - q, x - t) if x > t else times(q, t - x)


def poisson_cost(x: float, t: float, options: Options, _place: int) -> float:
    stirling = t * log(t) - t + log(2 * math.pi * t) / 2 if options.get("full") and t > 1 else 0.0
    if options.get("log_input", True):
        return exp(x) - times(t, x) + stirling
    return x - times(t, log(x + 1e-8) if x > -1e-8 else math.nan) + stirling


def focal_cost(x: float, t: float, options: Options, _place: int) -> float:
    alpha = number(options, "alpha", 0.25)

    def of(z: float) -> float:
        return -times(exp(2 * log_sigmoid(-z)), log_sigmoid(z))

    return times(alpha * t, of(x)) + times((1 - alpha) * (1 - t), of(-x))


def margin_cost(cost: Callable[[float, float, float], float], margin: float) -> Formula:
    """Of a score, a sign and the margin."""
    return elementwise(lambda x, t, options, _place: cost(x, sign(t), number(options, "margin", margin)))


def of_pairs(cost: Callable[[float, float, float, Options], float]) -> Formula:
    """Of the two numbers of a pair, and the target."""

    def formula(prediction: Tensor, target: Tensor, options: Options) -> Costs:
        first, second = prediction.unbind(1)
        numbers = (x.flatten().tolist() for x in (first, second, target.double()))
        for x, y, t in zip(*numbers, strict=True):
            yield cost(x, y, t, options), 1.0

    return formula


def gaussian_cost(mean: float, var: float, t: float, options: Options) -> float:
    s = math.nan if math.isnan(var) else max(var, 1e-6)
    constant = math.log(2 * math.pi) / 2 if options.get("full") else 0.0
    return ((math.inf if math.isinf(s) else log(s)) + (mean - t) ** 2 / s) / 2 + constant


def of_vectors(cost: Callable[[list[list[float]], float, Options], float]) -> Formula:
    def formula(prediction: Tensor, target: Tensor, options: Options) -> Costs:
        for vectors, t in zip(prediction.tolist(), target.tolist(), strict=True):
            yield cost(vectors, t, options), 1.0

    return formula


def distance(x: list[float], y: list[float]) -> float:
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)))


def contrastive_cost(vectors: list[list[float]], t: float, options: Options) -> float:
    d = distance(*vectors)
    return d**2 / 2 if t > 0 else above(number(options, "margin", 1.0) - d) ** 2 / 2


def cosine_cost(vectors: list[list[float]], t: float, options: Options) -> float:
    x, y = vectors
    norms = math.sqrt((sum(a * a for a in x) + 1e-12) * (sum(a * a for a in y) + 1e-12))
    cosine = sum(a * b for a, b in zip(x, y, strict=True)) / norms
    return 1 - cosine if t > 0 else above(cosine - number(options, "margin", 0.0))


def triplet_cost(vectors: list[list[float]], _t: float, options: Options) -> float:
    a, b, c = vectors
    far = distance(a, c)
    if options.get("swap") and not math.isnan(far):
        other = distance(b, c)
        far = other if math.isnan(other) else min(far, other)
    return above(distance(a, b) - far + number(options, "margin", 1.0))


def multi_class_costs(prediction: Tensor, target: Tensor, options: Options) -> Costs:
    weight, margin, power = options.get("weight"), number(options, "margin", 1.0), number(options, "power", 1)
    for row, y in zip(prediction.tolist(), target.tolist(), strict=True):
        own = float(weight[y]) if isinstance(weight, Tensor) else 1.0
        short = [above(margin - row[y] + x) ** power for i, x in enumerate(row) if i != y]
        yield times(own, sum(short) / len(row)), 1.0


def multi_label_costs(prediction: Tensor, target: Tensor, _options: Options) -> Costs:
    for row, labels in zip(prediction.tolist(), (target > 0).tolist(), strict=True):
        yes = [x for x, label in zip(row, labels, strict=True) if label]
        no = [x for x, label in zip(row, labels, strict=True) if not label]
        yield sum(above(1 - a + b) for a in yes for b in no) / len(row), 1.0


def focal_costs(prediction: Tensor, target: Tensor, options: Options) -> Costs:
    weight = options.get("weight")
    assert isinstance(weight, Tensor)
    for row, y in zip(prediction.tolist(), target.tolist(), strict=True):
        if y != number(options, "ignore_index", -100):
            highest = max(row)
            total = sum(exp(x - highest) for x in row)
            q = math.nan if math.isnan(total) else row[y] - highest - log(total)
            factor = math.nan if math.isnan(q) else (-math.expm1(q)) ** number(options, "gamma", 2.0)
            yield -times(float(weight[y]) * factor, q), float(weight[y])


def dice_costs(prediction: Tensor, target: Tensor, _options: Options) -> Costs:
    count = prediction.shape[0] * prediction.shape[1]
    if count:
        regions = zip(prediction.reshape(count, -1).tolist(), target.reshape(count, -1).tolist(), strict=True)
        for p, t in regions:
            yield 1 - (2 * sum(a * b for a, b in zip(p, t, strict=True)) + 1) / (sum(p) + sum(t) + 1), 1.0


def ctc_costs(prediction: Tensor, target: Tensor, _options: Options) -> Costs:
    """By all ways to write classes into the frames."""
    for frames, row in zip(prediction.log_softmax(2).tolist(), target.tolist(), strict=True):
        labels = [label for label in row if label >= 0]
        logarithms = [
            sum(frame[c] for frame, c in zip(frames, path, strict=True))
            for path in itertools.product(range(len(frames[0])), repeat=len(frames))
            if [c for c, _ in itertools.groupby(path) if c] == labels
        ]
        highest = max(logarithms, default=-math.inf)
        if math.isinf(highest):
            yield math.inf, float(max(len(labels), 1))
        else:
            yield -highest - log(sum(exp(one - highest) for one in logarithms)), float(max(len(labels), 1))


MORE_FORMULAS: Final[Mapping[object, Formula]] = {
    log_cosh: elementwise(log_cosh_cost),
    pinball: elementwise(pinball_cost),
    poisson_nll: elementwise(poisson_cost),
    gaussian_nll: of_pairs(gaussian_cost),
    hinge: margin_cost(lambda x, y, margin: above(margin - y * x), 1.0),
    squared_hinge: margin_cost(lambda x, y, margin: above(margin - y * x) ** 2, 1.0),
    soft_margin: margin_cost(lambda x, y, _margin: -log_sigmoid(y * x), 1.0),
    hinge_embedding: margin_cost(lambda x, y, margin: x if y > 0 else above(margin - x), 1.0),
    margin_ranking: of_pairs(lambda x, y, t, options: above(number(options, "margin", 0.0) - sign(t) * (x - y))),
    multi_class_margin: multi_class_costs,
    multi_label_margin: multi_label_costs,
    contrastive: of_vectors(contrastive_cost),
    cosine_embedding: of_vectors(cosine_cost),
    triplet: of_vectors(triplet_cost),
    focal: focal_costs,
    binary_focal: elementwise(focal_cost),
    dice: dice_costs,
    ctc: ctc_costs,
}

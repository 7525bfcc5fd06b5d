"""The table of sample losses, which drives the generic tests, and the formula of every loss in it.

A new loss gets a row, and its formula, at the end: one number at a time in Python's floats, which shares no kernel with the
library. There, a cost that is weighed with 0 adds nothing, even if it is infinite. What has no value, as a mean of nothing,
is nan.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fundl import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber,
    kl_divergence,
    mae,
    mse,
    nll,
)
from tests.loss_base import (
    Costs,
    Formula,
    Loss,
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
from tests.more_loss_samples import MORE_FORMULAS, MORE_SAMPLES, UNSTACKED

# --- The samples -------------------------------------------------------------------------------------------------------


def distributions(*shape: int) -> Tensor:
    return torch.softmax(normal(*shape).neg(), 1)


def kl_reference(prediction: Tensor, target: Tensor, /, *, reduction: str, log_target: bool = False) -> Tensor:
    """That of torch; but its mean warns that it is not the mathematical one."""
    value = F.kl_div(prediction, target, reduction="sum", log_target=log_target)
    return value / prediction.numel() if reduction == "mean" else value


def along(axis: int, reference: Reference) -> Reference:
    """A function of torch, which wants classes along axis 1, for classes along another."""

    def moved(prediction: Tensor, target: Tensor, /, *, reduction: str) -> Tensor:
        target = target.movedim(axis, 1) if target.is_floating_point() else target
        return reference(prediction.movedim(axis, 1).contiguous(), target, reduction=reduction)

    return moved


INDICES: Final = torch.tensor([1, 0, 2, 1, 2])
PLANES: Final = torch.tensor([[[1, 0], [2, 2], [0, 1]], [[2, 1], [1, 1], [0, 2]]])  # (2, 3, 2)
WEIGHT: Final = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
POS_WEIGHT: Final = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)

SAMPLES: Final[dict[str, Sample]] = {
    "mse": Sample(mse, F.mse_loss, normal(5, 3), normal(3, 5).t()),
    "mse of one axis": Sample(mse, F.mse_loss, normal(7), uniform(7)),
    "mse of four axes": Sample(mse, F.mse_loss, normal(2, 3, 2, 4), uniform(2, 3, 2, 4)),
    "mae": Sample(mae, F.l1_loss, normal(5, 3), uniform(5, 3)),
    "huber": Sample(huber, F.huber_loss, 2 * normal(5, 3), uniform(5, 3)),
    "huber, delta": Sample(partial(huber, delta=0.3), partial(F.huber_loss, delta=0.3), normal(5, 3), uniform(5, 3)),
    "cross_entropy": Sample(cross_entropy, F.cross_entropy, normal(5, 3), INDICES),
    "cross_entropy of planes": Sample(cross_entropy, F.cross_entropy, normal(2, 3, 3, 2), PLANES),
    "cross_entropy of sequences": Sample(cross_entropy, F.cross_entropy, normal(2, 3, 3), PLANES[..., 0]),
    "cross_entropy, weight": Sample(
        partial(cross_entropy, weight=WEIGHT), partial(F.cross_entropy, weight=WEIGHT), normal(5, 3), INDICES
    ),
    "cross_entropy, label_smoothing": Sample(
        partial(cross_entropy, label_smoothing=0.2), partial(F.cross_entropy, label_smoothing=0.2), normal(5, 3), INDICES
    ),
    "cross_entropy, ignore_index": Sample(
        partial(cross_entropy, ignore_index=2), partial(F.cross_entropy, ignore_index=2), normal(5, 3), INDICES
    ),
    "cross_entropy, all options": Sample(
        partial(cross_entropy, weight=WEIGHT, label_smoothing=0.3, ignore_index=0),
        partial(F.cross_entropy, weight=WEIGHT, label_smoothing=0.3, ignore_index=0),
        normal(5, 3),
        INDICES,
    ),
    "cross_entropy of planes, all options": Sample(
        partial(cross_entropy, weight=WEIGHT, label_smoothing=0.3, ignore_index=0),
        partial(F.cross_entropy, weight=WEIGHT, label_smoothing=0.3, ignore_index=0),
        normal(2, 3, 3, 2),
        PLANES,
    ),
    "cross_entropy, all smoothed": Sample(
        partial(cross_entropy, label_smoothing=1.0), partial(F.cross_entropy, label_smoothing=1.0), normal(5, 3), INDICES
    ),
    "cross_entropy of probabilities": Sample(cross_entropy, F.cross_entropy, normal(5, 3), distributions(5, 3)),
    "cross_entropy of probabilities, all options": Sample(
        partial(cross_entropy, weight=WEIGHT, label_smoothing=0.3),
        partial(F.cross_entropy, weight=WEIGHT, label_smoothing=0.3),
        normal(2, 3, 4),
        distributions(2, 3, 4),
    ),
    "nll": Sample(nll, F.nll_loss, normal(5, 3).log_softmax(1), INDICES),
    "nll of planes": Sample(nll, F.nll_loss, normal(2, 3, 3, 2).log_softmax(1), PLANES),
    "nll, all options": Sample(
        partial(nll, weight=WEIGHT, ignore_index=0),
        partial(F.nll_loss, weight=WEIGHT, ignore_index=0),
        normal(2, 3, 3, 2).log_softmax(1),
        PLANES,
    ),
    "cross_entropy, classes last": Sample(
        partial(cross_entropy, axis=-1), along(-1, F.cross_entropy), normal(2, 3, 2, 3), PLANES
    ),
    "cross_entropy, classes last, of a transpose": Sample(
        partial(cross_entropy, axis=-1), along(-1, F.cross_entropy), normal(3, 3, 2).transpose(0, 2), PLANES[..., 0]
    ),
    "cross_entropy, classes last, all options": Sample(
        partial(cross_entropy, axis=-1, weight=WEIGHT, label_smoothing=0.3, ignore_index=0),
        along(-1, partial(F.cross_entropy, weight=WEIGHT, label_smoothing=0.3, ignore_index=0)),
        normal(2, 3, 2, 3),
        PLANES,
    ),
    "cross_entropy, classes in between": Sample(
        partial(cross_entropy, axis=2), along(2, F.cross_entropy), normal(2, 3, 3, 2), PLANES
    ),
    "cross_entropy of probabilities, classes last, all options": Sample(
        partial(cross_entropy, axis=-1, weight=WEIGHT, label_smoothing=0.3),
        along(-1, partial(F.cross_entropy, weight=WEIGHT, label_smoothing=0.3)),
        normal(2, 4, 3),
        distributions(2, 3, 4).transpose(1, 2),
    ),
    "nll, classes last": Sample(partial(nll, axis=-1), along(-1, F.nll_loss), normal(2, 3, 2, 3).log_softmax(-1), PLANES),
    "nll, classes last, all options": Sample(
        partial(nll, axis=-1, weight=WEIGHT, ignore_index=0),
        along(-1, partial(F.nll_loss, weight=WEIGHT, ignore_index=0)),
        normal(2, 3, 3).log_softmax(-1),
        PLANES[..., 0],
    ),
    "binary_cross_entropy": Sample(binary_cross_entropy, F.binary_cross_entropy, 0.1 + 0.8 * uniform(5, 3), uniform(3, 5).t()),
    "binary_cross_entropy_with_logits": Sample(
        binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits, 3 * normal(5, 3), uniform(5, 3)
    ),
    "binary_cross_entropy_with_logits, pos_weight": Sample(
        partial(binary_cross_entropy_with_logits, pos_weight=POS_WEIGHT),
        partial(F.binary_cross_entropy_with_logits, pos_weight=POS_WEIGHT),
        3 * normal(5, 3),
        uniform(5, 3),
    ),
    "binary_cross_entropy_with_logits, one pos_weight": Sample(
        partial(binary_cross_entropy_with_logits, pos_weight=3.0),
        partial(F.binary_cross_entropy_with_logits, pos_weight=torch.tensor(3.0, dtype=torch.float64)),
        3 * normal(5),
        uniform(5).round(),
    ),
    "kl_divergence": Sample(kl_divergence, kl_reference, normal(5, 3).log_softmax(1), distributions(5, 3)),
    "kl_divergence, log_target": Sample(
        partial(kl_divergence, log_target=True),
        partial(kl_reference, log_target=True),
        normal(5, 3).log_softmax(1),
        distributions(5, 3).log(),
    ),
    **MORE_SAMPLES,
}


def function_of(loss: Loss) -> object:
    """A loss without its options."""
    function: object = loss.func if isinstance(loss, partial) else loss
    return UNSTACKED.get(function, function)


# --- The formulas, and how they are run -------------------------------------------------------------------------------


def naive(loss: object, prediction: Tensor, target: Tensor, options: Options) -> tuple[float, float]:
    """The sum of a loss, and what its mean divides by. Prediction and target are taken as they are, in float64."""
    costs, counts = [0.0], [0.0]
    for cost, count in FORMULAS[UNSTACKED.get(loss, loss)](prediction.double(), target, options):
        costs.append(cost)
        counts.append(count)
    return sum(costs), sum(counts)


def slopes(loss: object, prediction: Tensor, target: Tensor, options: Options, step: float = 1e-6) -> Tensor:
    """The gradient of the sum by finite differences."""
    x = prediction.double()
    differences = []
    for place in range(x.numel()):
        move = torch.zeros(x.numel(), dtype=torch.float64).index_fill(0, torch.tensor(place), step).reshape(x.shape)
        above, _ = naive(loss, x + move, target, options)
        below, _ = naive(loss, x - move, target, options)
        differences.append(above - below)
    return torch.tensor(differences, dtype=torch.float64).reshape(x.shape) / (2 * step)


# --- Of each element ---------------------------------------------------------------------------------------------------


def huber_cost(x: float, t: float, options: Options, _place: int) -> float:
    delta, distance = number(options, "delta", 1.0), abs(x - t)
    return distance**2 / 2 if distance <= delta else delta * (distance - delta / 2)


def smoothed(t: float, options: Options) -> float:
    smoothing = number(options, "label_smoothing", 0.0)
    return (1 - smoothing) * t + smoothing / 2


def binary_cost(p: float, t: float, options: Options, _place: int) -> float:
    t = smoothed(t, options)
    return -times(t, max(log(p), -100)) - times(1 - t, max(log(1 - p), -100))


def binary_cost_of_logits(x: float, t: float, options: Options, place: int) -> float:
    weight = options.get("pos_weight")
    t = smoothed(t, options)
    yes = float(weight.reshape(-1)[place]) if isinstance(weight, Tensor) else number(options, "pos_weight", 1.0)
    return -times(yes * t, log_sigmoid(x)) - times(1 - t, log_sigmoid(-x))


def divergence(x: float, t: float, options: Options, _place: int) -> float:
    t, log_t = (exp(t), t) if options.get("log_target") else (t, log(t))
    return times(t, log_t - x)


# --- Of each sample ----------------------------------------------------------------------------------------------------


def log_softmax(row: list[float]) -> list[float]:
    highest = max(row)
    total = sum(exp(x - highest) for x in row)
    return [math.nan if math.isnan(total) else x - highest - log(total) for x in row]


def axis_of(options: Options) -> int:
    return int(number(options, "axis", 1))


def by_class(scores: Tensor, options: Options) -> list[list[float]]:
    """The scores of each sample and position, (B, C, ...) as rows of C."""
    moved = scores.movedim(axis_of(options), -1)
    rows: list[list[float]] = moved.reshape(-1, moved.shape[-1]).tolist()
    return rows


def weights(prediction: Tensor, options: Options) -> list[float]:
    weight = options.get("weight")
    return weight.tolist() if isinstance(weight, Tensor) else [1.0] * prediction.shape[axis_of(options)]


def of_log_probabilities(prediction: Tensor, target: Tensor, options: Options) -> Costs:
    weight, ignored = weights(prediction, options), number(options, "ignore_index", -100)
    for row, y in zip(by_class(prediction, options), target.flatten().tolist(), strict=True):
        if y != ignored:
            yield times(weight[y], -row[y]), weight[y]


def of_logits(prediction: Tensor, target: Tensor, options: Options) -> Costs:
    weight, ignored = weights(prediction, options), number(options, "ignore_index", -100)
    smoothing, classes = number(options, "label_smoothing", 0.0), len(weight)
    soft = target.is_floating_point()
    targets = by_class(target.double(), options) if soft else target.flatten().tolist()
    for row, t in zip(map(log_softmax, by_class(prediction, options)), targets, strict=True):
        if not soft and t == ignored:
            continue
        shares = t if soft else [float(c == t) for c in range(classes)]
        costs = (
            times(w * ((1 - smoothing) * share + smoothing / classes), -q)
            for w, share, q in zip(weight, shares, row, strict=True)
        )
        yield sum(costs), 1.0 if soft else weight[t]


FORMULAS: Final[Mapping[object, Formula]] = {
    mse: elementwise(lambda x, t, _options, _place: (x - t) ** 2),
    mae: elementwise(lambda x, t, _options, _place: abs(x - t)),
    huber: elementwise(huber_cost),
    binary_cross_entropy: elementwise(binary_cost),
    binary_cross_entropy_with_logits: elementwise(binary_cost_of_logits),
    kl_divergence: elementwise(divergence),
    cross_entropy: of_logits,
    nll: of_log_probabilities,
    **MORE_FORMULAS,
}

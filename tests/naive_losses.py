"""The formulas of all losses, one number at a time in Python's floats: an oracle that shares no kernel with the library.

A cost that is weighed with 0 adds nothing, even if it is infinite. What has no value, as a mean of nothing, is nan.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeAlias

import torch
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

Options: TypeAlias = Mapping[str, object]
Costs: TypeAlias = Iterator[tuple[float, float]]
"""Of each element or sample: what it costs, and what it adds to the divisor of a mean."""
Formula: TypeAlias = Callable[[Tensor, Tensor, Options], Costs]


def naive(loss: object, prediction: Tensor, target: Tensor, options: Options) -> tuple[float, float]:
    """The sum of a loss, and what its mean divides by. Prediction and target are taken as they are, in float64."""
    costs, counts = [0.0], [0.0]
    for cost, count in FORMULAS[loss](prediction.double(), target, options):
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


def times(weight: float, cost: float) -> float:
    return 0.0 if weight == 0 else weight * cost


def exp(x: float) -> float:
    return math.inf if x > 709 else math.exp(x)


def log(x: float) -> float:
    return -math.inf if x == 0 else math.log(x)


def log_sigmoid(x: float) -> float:
    return -math.log1p(exp(-x)) if x > 0 else x - math.log1p(exp(x))


def elementwise(cost: Callable[[float, float, Options, int], float]) -> Formula:
    """Of x, t and where in its sample the element stands."""

    def formula(prediction: Tensor, target: Tensor, options: Options) -> Costs:
        each = prediction[0].numel() if len(prediction) else 1
        pairs = zip(prediction.flatten().tolist(), target.double().flatten().tolist(), strict=True)
        for place, (x, t) in enumerate(pairs):
            yield cost(x, t, options, place % each), 1.0

    return formula


def number(options: Options, name: str, default: float) -> float:
    option = options.get(name)
    return default if option is None else float(str(option))


def huber_cost(x: float, t: float, options: Options, _place: int) -> float:
    delta, distance = number(options, "delta", 1.0), abs(x - t)
    return distance**2 / 2 if distance <= delta else delta * (distance - delta / 2)


def binary_cost(p: float, t: float, _options: Options, _place: int) -> float:
    return -times(t, max(log(p), -100)) - times(1 - t, max(log(1 - p), -100))


def binary_cost_of_logits(x: float, t: float, options: Options, place: int) -> float:
    weight = options.get("pos_weight")
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
}

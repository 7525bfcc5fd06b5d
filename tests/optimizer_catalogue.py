"""The sample optimizers of the catalogue, each from a paper, and the formulas of their transforms: see `optimizer_samples`."""

import math
from typing import Final

import torch

from fundl import (
    adadelta,
    adafactor,
    adamax,
    adamw,
    chain,
    cosine_schedule,
    is_matrix,
    lamb,
    lars,
    linear_schedule,
    muon,
    nadam,
    partition,
    radam,
    scale,
    scale_by_adadelta,
    scale_by_adafactor,
    scale_by_adamax,
    scale_by_muon,
    scale_by_nadam,
    scale_by_radam,
    scale_by_trust_ratio,
    schedule_free,
    schedule_free_adamw,
)
from fundl.optim.adadelta import _ScaleByAdadelta
from fundl.optim.adafactor import _ScaleByAdafactor
from fundl.optim.adamax import _ScaleByAdamax
from fundl.optim.chain import AnyTransform
from fundl.optim.muon import _ScaleByMuon
from fundl.optim.nadam import _ScaleByNAdam
from fundl.optim.radam import _ScaleByRAdam
from fundl.optim.schedule_free import _ScheduleFree
from fundl.optim.trust_ratio import _ScaleByTrustRatio
from tests.optimizer_memory import Flat, Memory, decayed, formula, put

CATALOGUE: Final[dict[str, AnyTransform]] = {
    "scale_by_radam": chain(scale_by_radam(), scale(-0.1)),
    "radam": radam(0.1),
    "radam: all options": radam(cosine_schedule(0.1, 10), beta1=0.7, beta2=0.95, weight_decay=0.3, where=is_matrix),
    "scale_by_nadam": scale_by_nadam(),
    "nadam": nadam(0.1),
    "nadam: all options": nadam(
        cosine_schedule(0.1, 10), beta1=0.7, beta2=0.95, momentum_decay=0.1, weight_decay=0.3, where=is_matrix
    ),
    "scale_by_adamax": scale_by_adamax(),
    "adamax": adamax(0.1),
    "adamax: all options": adamax(cosine_schedule(0.1, 10), beta1=0.8, beta2=0.95, weight_decay=0.3, where=is_matrix),
    "scale_by_adadelta": scale_by_adadelta(),
    "adadelta": adadelta(),
    "adadelta: all options": adadelta(cosine_schedule(0.5, 10), decay=0.8, epsilon=1e-3, weight_decay=0.3, where=is_matrix),
    "scale_by_adafactor": scale_by_adafactor(),
    "adafactor": adafactor(0.1),
    "adafactor: all options": adafactor(
        cosine_schedule(0.1, 10), decay_power=0.6, threshold=0.5, least_size=0.7, weight_decay=0.3, where=is_matrix
    ),
    "scale_by_muon": partition({"matrices": scale_by_muon(), "rest": scale(-0.1)}, where={"matrices": is_matrix}),
    "muon": partition({"matrices": muon(0.1), "rest": adamw(0.1)}, where={"matrices": is_matrix}),
    "muon: all options": partition(
        {
            "matrices": muon(cosine_schedule(0.1, 10), momentum=0.8, nesterov=False, iterations=3, match_adam=True),
            "rest": adamw(0.1),
        },
        where={"matrices": is_matrix},
    ),
    "scale_by_trust_ratio": scale_by_trust_ratio(),
    "scale_by_trust_ratio: matrices": scale_by_trust_ratio(coefficient=0.5, epsilon=0.1, where=is_matrix),
    "lamb": lamb(0.1),
    "lamb: all options": lamb(cosine_schedule(0.1, 10), beta1=0.8, beta2=0.9, weight_decay=0.3, where=is_matrix),
    "lars": lars(0.1),
    "lars: all options": lars(
        cosine_schedule(0.1, 10), momentum=0.8, nesterov=True, coefficient=0.5, weight_decay=0.3, where=is_matrix
    ),
    "schedule_free": schedule_free(scale(1.0), 0.1, interpolation=0.8),
    "schedule_free_adamw": schedule_free_adamw(0.1),
    "schedule_free_adamw: all options": schedule_free_adamw(
        linear_schedule(0.0, 0.1, steps=2), interpolation=0.7, beta2=0.9, weight_decay=0.3, where=is_matrix
    ),
}


@formula.register
def _(trust: _ScaleByTrustRatio, grads: Flat, memory: Memory, params: Flat) -> Flat:
    results = []
    for g, p, path in zip(grads, params, memory.paths, strict=True):
        length, size = (g**2).sum().sqrt(), (p**2).sum().sqrt()
        on = trust.where is None or trust.where(path, p)
        results.append(g * (trust.coefficient * size / (length + trust.epsilon)) if on and length != 0 and size != 0 else g)
    return results


@formula.register
def _(radam: _ScaleByRAdam, grads: Flat, memory: Memory, _params: Flat) -> Flat:
    memory.count += 1
    steps, beta2 = memory.count, float(radam.beta2)
    first = put(memory, "first", decayed(float(radam.beta1), memory.of("first"), grads))
    second = put(memory, "second", decayed(beta2, memory.of("second"), [g**2 for g in grads]))
    mean = [m / (1 - radam.beta1**steps) for m in first]
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * steps * beta2**steps / (1 - beta2**steps)
    if length <= 5:
        return mean
    rectified = math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
    factor = rectified * math.sqrt(1 - beta2**steps)
    return [m * factor / (v.sqrt() + radam.epsilon) for m, v in zip(mean, second, strict=True)]


@formula.register
def _(nadam: _ScaleByNAdam, grads: Flat, memory: Memory, _params: Flat) -> Flat:
    memory.count += 1
    steps = memory.count

    def momentum(step: int) -> float:
        return float(nadam.beta1 * (1 - 0.5 * 0.96 ** (step * nadam.momentum_decay)))

    product = memory.numbers["product"] = memory.numbers.get("product", 1.0) * momentum(steps)
    first = put(memory, "first", decayed(float(nadam.beta1), memory.of("first"), grads))
    second = put(memory, "second", decayed(float(nadam.beta2), memory.of("second"), [g**2 for g in grads]))
    own, ahead = (1 - momentum(steps)) / (1 - product), momentum(steps + 1) / (1 - product * momentum(steps + 1))
    roots = [(v / (1 - nadam.beta2**steps)).sqrt() + nadam.epsilon for v in second]
    return [(own * g + ahead * m) / root for g, m, root in zip(grads, first, roots, strict=True)]


@formula.register
def _(adamax: _ScaleByAdamax, grads: Flat, memory: Memory, _params: Flat) -> Flat:
    memory.count += 1
    first = put(memory, "first", decayed(float(adamax.beta1), memory.of("first"), grads))
    sizes = [torch.maximum(adamax.beta2 * s, g.abs() + adamax.epsilon) for s, g in zip(memory.of("most"), grads, strict=True)]
    put(memory, "most", sizes)
    return [m / (1 - adamax.beta1**memory.count) / s for m, s in zip(first, sizes, strict=True)]


@formula.register
def _(adadelta: _ScaleByAdadelta, grads: Flat, memory: Memory, _params: Flat) -> Flat:
    decay, epsilon = float(adadelta.decay), float(adadelta.epsilon)
    square = put(memory, "square", decayed(decay, memory.of("square"), [g**2 for g in grads]))
    last = zip(grads, memory.of("updates"), square, strict=True)
    updates = [g * (w + epsilon).sqrt() / (v + epsilon).sqrt() for g, w, v in last]
    put(memory, "updates", decayed(decay, memory.of("updates"), [u**2 for u in updates]))
    return updates


@formula.register
def _(adafactor: _ScaleByAdafactor, grads: Flat, memory: Memory, params: Flat) -> Flat:
    memory.count += 1
    kept, epsilon, results = 1 - memory.count**-adafactor.decay_power, adafactor.epsilon, []
    squares = put(memory, "squares", decayed(float(kept), memory.of("squares"), [g**2 for g in grads]))
    for g, p, v in zip(grads, params, squares, strict=True):
        if g.ndim >= 2:  # the means of rows and columns of decayed squares are decayed means of theirs
            rows, columns = v.mean(-1, keepdim=True), v.mean(-2, keepdim=True)
            v = rows * columns / rows.mean(-2, keepdim=True).clamp(min=epsilon**2)  # noqa: PLW2901
        u = g / v.sqrt().clamp(min=epsilon)
        size, length = (p**2).mean().sqrt().clamp(min=adafactor.least_size), (u**2).mean().sqrt()
        results.append(u * size / (length / adafactor.threshold).clamp(min=1.0))
    return results


@formula.register
def _(muon: _ScaleByMuon, grads: Flat, memory: Memory, _params: Flat) -> Flat:
    beta, results = float(muon.momentum), []
    mean = put(memory, "momentum", decayed(beta, memory.of("momentum"), grads))
    for g, b in zip(grads, mean, strict=True):
        x = (decayed(beta, [b], [g])[0] if muon.nesterov else b).reshape(len(g), -1)
        rows, columns = x.shape
        x = x / (x**2).sum().sqrt().clamp(min=muon.epsilon)
        for _ in range(muon.iterations):
            x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
        size = 0.2 * math.sqrt(max(rows, columns)) if muon.match_adam else math.sqrt(max(1, rows / columns))
        results.append(size * x.reshape(g.shape))
    return results


@formula.register(_ScheduleFree)
def _(free: _ScheduleFree[object], grads: Flat, memory: Memory, params: Flat) -> Flat:
    direction, step = formula(free.direction, grads, memory.part(0), params), memory.part(1)
    before = memory.numbers.get("interpolation", 0.5)
    if not step.count:
        memory.tensors["fast"] = params
    rate = -float(formula(free.rate, [torch.ones((), dtype=torch.float64)], step, params)[0])
    greatest = memory.numbers["greatest"] = max(memory.numbers.get("greatest", 0.0), rate)
    weight = memory.numbers["weight"] = memory.numbers.get("weight", 0.0) + greatest**2
    share = greatest**2 / weight if weight else 0.0
    average = [p + (1 / before - 1) * (p - z) for p, z in zip(params, memory.of("fast"), strict=True)]
    fast = put(memory, "fast", [z - rate * d for z, d in zip(memory.of("fast"), direction, strict=True)])
    memory.numbers["interpolation"] = float(free.interpolation)
    mixed = decayed(float(free.interpolation), decayed(1 - share, average, fast), fast)
    return [y - p for y, p in zip(mixed, params, strict=True)]

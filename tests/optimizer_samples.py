"""One table of sample optimizers, which drives the generic tests, and the formula of every transform in it.

A new transform gets a row, and the formula that its docstring has: in float64, tensor by tensor, by loops. The formulas share
nothing with the library but the records of hyper-parameters. What they remember does not depend on these: so it can go on under
others.
"""

import math
from typing import Final

import attrs
import torch

from fundl import (
    Transform,
    accumulate,
    adagrad,
    adam,
    adamw,
    add_decayed_weights,
    adjustable,
    chain,
    clip_by_global_norm,
    clip_by_value,
    cosine_schedule,
    dynamic_loss_scale,
    ema,
    is_matrix,
    linear_schedule,
    lion,
    momentum,
    partition,
    rmsprop,
    scale,
    scale_by_adagrad,
    scale_by_adam,
    scale_by_learning_rate,
    scale_by_lion,
    scale_by_rms,
    scheduled,
    sgd,
    skip_nonfinite,
    trace,
)
from fundl.optim.accumulate import Accumulate
from fundl.optim.adagrad import _ScaleByAdagrad
from fundl.optim.adam import _Adam, _ScaleByAdam
from fundl.optim.adjustable import Adjustable
from fundl.optim.chain import AnyTransform, _Chain
from fundl.optim.clipping import _ClipByGlobalNorm, _ClipByValue
from fundl.optim.decay import AddDecayedWeights
from fundl.optim.ema import _Ema
from fundl.optim.lion import _ScaleByLion
from fundl.optim.lookahead import Lookahead
from fundl.optim.loss_scale import DynamicLossScale
from fundl.optim.partition import Partition
from fundl.optim.rms import _ScaleByRMS
from fundl.optim.scaling import ScaleByLearningRate, _Scale
from fundl.optim.schedule_free import _ScheduleFree
from fundl.optim.scheduled import Scheduled
from fundl.optim.sgd import _SGD, _Trace
from fundl.optim.skip_nonfinite import SkipNonfinite
from tests.optimizer_catalogue import CATALOGUE
from tests.optimizer_memory import Flat, Memory, decayed, formula, put
from tests.optimizer_transforms import TRANSFORMS

# By name: what comes before a colon is the public function that makes it.
OPTIMIZERS: Final[dict[str, AnyTransform]] = {
    "scale": scale(-0.1),
    "dynamic_loss_scale": dynamic_loss_scale(sgd(0.1), initial=2.0, every=2),
    "dynamic_loss_scale: of adam": dynamic_loss_scale(adam(0.1), initial=8.0),
    "scale_by_learning_rate": scale_by_learning_rate(0.1),
    "scale_by_learning_rate: scheduled": scale_by_learning_rate(linear_schedule(0.1, 0.0, steps=3)),
    "clip_by_global_norm": clip_by_global_norm(1.0),
    "clip_by_global_norm: far": clip_by_global_norm(1e3),
    "clip_by_value": clip_by_value(0.5),
    "add_decayed_weights": add_decayed_weights(0.1),
    "add_decayed_weights: matrices": add_decayed_weights(0.1, where=is_matrix),
    "trace": trace(0.9),
    "trace: dampened": trace(0.9, dampening=0.3),
    "trace: nesterov": trace(0.9, nesterov=True),
    "sgd": sgd(0.1),
    "sgd: all options": sgd(cosine_schedule(0.1, 10), momentum=0.9, dampening=0.5, weight_decay=0.01),
    "momentum": momentum(0.1),
    "scale_by_adam": scale_by_adam(),
    "scale_by_adam: amsgrad": scale_by_adam(amsgrad=True),
    "adam": adam(0.1),
    "adam: all options": adam(cosine_schedule(0.1, 10), beta1=0.8, beta2=0.9, weight_decay=0.01, amsgrad=True),
    "adamw": adamw(0.1),
    "adamw: matrices": adamw(0.1, weight_decay=0.3, where=is_matrix),
    "adamw: none": adamw(0.1, weight_decay=0.3, where=lambda _path, _leaf: False),
    "adamw: scheduled": adamw(linear_schedule(0.0, 0.1, steps=3), weight_decay=0.3, where=is_matrix, amsgrad=True),
    "scale_by_rms": scale_by_rms(),
    "scale_by_rms: unbiased": scale_by_rms(decay=0.9, debias=True),
    "rmsprop": rmsprop(0.1),
    "rmsprop: all options": rmsprop(0.1, decay=0.9, momentum=0.9, centered=True, weight_decay=0.01),
    "scale_by_adagrad": scale_by_adagrad(),
    "adagrad": adagrad(0.1),
    "adagrad: all options": adagrad(0.1, rate_decay=0.1, initial=0.5, weight_decay=0.01),
    "scale_by_lion": scale_by_lion(),
    "lion": lion(0.1),
    "lion: all options": lion(0.1, beta1=0.8, beta2=0.9, weight_decay=0.1, where=is_matrix),
    "accumulate": accumulate(adamw(0.1), steps=2),
    "adjustable": adjustable(adamw(0.1, weight_decay=0.3, where=is_matrix)),
    "adjustable: of a chain": adjustable(chain(clip_by_global_norm(1.0), sgd(0.1, momentum=0.9, dampening=0.5))),
    "adjustable: of small ones": adjustable(chain(clip_by_value(1.0), scale_by_rms(), scale_by_lion(), scale(0.5))),
    "scheduled": scheduled(adamw(0.1, weight_decay=0.3), beta1=linear_schedule(0.5, 0.9, steps=3)),
    "scheduled: of a chain": scheduled(
        chain(clip_by_global_norm(1.0), sgd(0.1, momentum=0.9, nesterov=True, weight_decay=0.1)),
        momentum=linear_schedule(0.5, 0.9, steps=3),
        max_norm=cosine_schedule(2.0, 4, final=0.5),
        rate=lambda count: 0.1 / (1 + count),
    ),
    "partition": partition({"matrices": adamw(0.1), "rest": momentum(0.1)}, where={"matrices": is_matrix}),
    "partition: of chains": partition(
        {"vectors": accumulate(sgd(cosine_schedule(0.1, 10)), steps=2), "matrices": chain(clip_by_global_norm(0.5), adam(0.1))},
        where={"matrices": is_matrix, "vectors": lambda path, leaf: not is_matrix(path, leaf)},
    ),
    "skip_nonfinite": skip_nonfinite(adamw(0.1)),
    "skip_nonfinite: inside": accumulate(skip_nonfinite(chain(clip_by_global_norm(1.0), sgd(0.1, momentum=0.9))), steps=2),
    "ema": chain(ema(0.9), sgd(0.1)),
    "ema: from the first on": chain(sgd(0.1), ema(0.5, debias=False)),
    "ema: before an optimizer": chain(ema(0.9), adamw(0.1)),
    "ema: in parts and windows": accumulate(
        partition(
            {"matrices": chain(momentum(0.1), ema(0.5)), "rest": adjustable(chain(ema(0.0), adam(0.1)))},
            where={"matrices": is_matrix},
        ),
        steps=2,
    ),
    "chain": chain(clip_by_global_norm(1.0), adam(0.1)),
    "chain: nested": chain(chain(clip_by_value(1.0), scale(2.0)), chain(accumulate(sgd(0.1, momentum=0.9), steps=3))),
    **CATALOGUE,
    **TRANSFORMS,
}


# --- The formulas -----------------------------------------------------------------------------------------------------

GREATEST_SCALE: Final = 2.0**24


def begin(transform: AnyTransform, leaves: Flat, paths: list[str]) -> Memory:
    """The memory before the first step; what is settled there is settled."""
    memory = Memory(leaves, paths)
    _settle(transform, memory)
    return memory


def _settle(transform: AnyTransform, memory: Memory) -> None:
    match transform:
        case AddDecayedWeights(_, where):
            for path, leaf in zip(memory.paths, memory.leaves, strict=True):
                memory.numbers[path] = 1.0 if where is None or where(path, leaf) else 0.0
        case Partition():
            for place in range(len(transform.transforms)):
                own = [number for number, its in enumerate(parts_by_path(transform, memory)) if its == place]
                memory.parts[place] = Memory([memory.leaves[n] for n in own], [memory.paths[n] for n in own])
        case _ScaleByAdagrad():
            memory.of("sum", transform.initial)
        case DynamicLossScale():
            memory.numbers["scale"] = transform.initial
        case _:
            pass
    for place, part in enumerate(parts_of(transform)):
        _settle(part, memory.part(place))


def parts_of(transform: AnyTransform) -> list[AnyTransform]:
    """The inner transforms, in the order in which they are applied."""
    match transform:
        case _Chain() | Partition():
            return list(transform.transforms)
        case _Adam():
            if transform.decoupled:
                return [transform.moments, transform.decay, transform.rate]
            return [transform.decay, transform.moments, transform.rate]
        case _SGD() | _ScheduleFree():
            return [part for part in attrs.astuple(transform, recurse=False) if isinstance(part, Transform)]
        case Accumulate() | DynamicLossScale() | Adjustable() | Scheduled() | SkipNonfinite() | Lookahead():
            return [transform.transform]
        case _:
            return []


@formula.register(_Chain)
@formula.register(_Adam)
@formula.register(_SGD)
def _(transform: AnyTransform, grads: Flat, memory: Memory, params: Flat) -> Flat:
    for place, part in enumerate(parts_of(transform)):
        grads = formula(part, grads, memory.part(place), params)
    return grads


@formula.register
def _(scale: _Scale, grads: Flat, _memory: Memory, _params: Flat) -> Flat:
    return [scale.factor * g for g in grads]


@formula.register
def _(scale: ScaleByLearningRate, grads: Flat, memory: Memory, _params: Flat) -> Flat:
    memory.count += 1
    rate = float(scale.rate(torch.tensor(memory.count - 1))) if callable(scale.rate) else scale.rate
    return [-rate * g for g in grads]


@formula.register
def _(_ema: _Ema, grads: Flat, _memory: Memory, _params: Flat) -> Flat:
    return grads


@formula.register
def _(clip: _ClipByGlobalNorm, grads: Flat, _memory: Memory, _params: Flat) -> Flat:
    norm = math.sqrt(sum(float((g**2).sum()) for g in grads))
    return [g * (1.0 if norm <= clip.max_norm else clip.max_norm / norm) for g in grads]


@formula.register
def _(clip: _ClipByValue, grads: Flat, _memory: Memory, _params: Flat) -> Flat:
    return [g.clamp(-float(clip.limit), float(clip.limit)) for g in grads]


@formula.register
def _(decay: AddDecayedWeights, grads: Flat, memory: Memory, params: Flat) -> Flat:
    shares = [memory.numbers[path] * decay.weight_decay for path in memory.paths]
    return [g + share * p if share else g for g, p, share in zip(grads, params, shares, strict=True)]


@formula.register
def _(trace: _Trace, grads: Flat, memory: Memory, _params: Flat) -> Flat:
    memory.count += 1
    if trace.momentum == 0:
        return put(memory, "trace", grads)
    share = 1.0 if memory.count == 1 else 1 - trace.dampening
    total = put(memory, "trace", [trace.momentum * b + share * g for b, g in zip(memory.of("trace"), grads, strict=True)])
    return [g + trace.momentum * b for g, b in zip(grads, total, strict=True)] if trace.nesterov else total


@formula.register
def _(adam: _ScaleByAdam, grads: Flat, memory: Memory, _params: Flat) -> Flat:
    memory.count += 1
    first = put(memory, "first", decayed(float(adam.beta1), memory.of("first"), grads))
    second = put(memory, "second", decayed(float(adam.beta2), memory.of("second"), [g**2 for g in grads]))
    most = put(memory, "most", [torch.maximum(a, b) for a, b in zip(memory.of("most"), second, strict=True)])
    unbiased = [v / (1 - adam.beta2**memory.count) for v in (most if adam.amsgrad else second)]
    mean = [m / (1 - adam.beta1**memory.count) for m in first]
    return [m / (v.sqrt() + adam.epsilon) for m, v in zip(mean, unbiased, strict=True)]


@formula.register
def _(rms: _ScaleByRMS, grads: Flat, memory: Memory, _params: Flat) -> Flat:
    squares = [g**2 for g in grads]
    put(memory, "most", [torch.maximum(a, b) for a, b in zip(memory.of("most"), squares, strict=True)])  # has to be held too
    memory.count += 1
    weight = 1 - rms.decay**memory.count if rms.debias else 1.0
    square = [v / weight for v in put(memory, "square", decayed(float(rms.decay), memory.of("square"), squares))]
    mean = put(memory, "mean", decayed(float(rms.decay), memory.of("mean"), grads))
    variance = [v - m**2 for v, m in zip(square, mean, strict=True)] if rms.centered else square
    return [g / (v.clamp(min=0).sqrt() + rms.epsilon) for g, v in zip(grads, variance, strict=True)]


@formula.register(Accumulate)
def _(accumulate: Accumulate[object], grads: Flat, memory: Memory, params: Flat) -> Flat:
    memory.count += 1
    total = put(memory, "total", [a + g for a, g in zip(memory.of("total"), grads, strict=True)])
    weight = memory.numbers["weight"] = memory.numbers.get("weight", 0.0) + 1.0
    if memory.count < accumulate.steps:
        return [torch.zeros_like(g) for g in grads]
    memory.count, memory.numbers["weight"] = 0, 0.0
    put(memory, "total", [torch.zeros_like(g) for g in grads])
    return formula(accumulate.transform, [t / weight for t in total], memory.part(0), params)


@formula.register(DynamicLossScale)
def _(outer: DynamicLossScale[object], grads: Flat, memory: Memory, params: Flat) -> Flat:
    scale = memory.numbers["scale"]
    if not all(bool(g.isfinite().all()) for g in grads):
        memory.count, memory.numbers["scale"] = 0, max(scale * outer.backoff, 1.0)
        return [torch.zeros_like(g) for g in grads]
    memory.count += 1
    if memory.count >= outer.every:
        memory.count, memory.numbers["scale"] = 0, min(scale * outer.growth, GREATEST_SCALE)
    return formula(outer.transform, [g / scale for g in grads], memory.part(0), params)


def parts_by_path(partition: Partition, memory: Memory) -> list[int]:
    """Which part each leaf of the samples is in: `where` is of functions."""
    found = []
    for path, leaf in zip(memory.paths, memory.leaves, strict=True):
        has = [chosen is not None and not isinstance(chosen, str) and chosen(path, leaf) for chosen in partition.chosen]
        found.append(has.index(True) if True in has else partition.chosen.index(None))
    return found


@formula.register
def _(partition: Partition, grads: Flat, memory: Memory, params: Flat) -> Flat:
    parts, results = parts_by_path(partition, memory), [*grads]
    for place, transform in enumerate(partition.transforms):
        own = [number for number, its in enumerate(parts) if its == place]
        of_part = formula(transform, [grads[n] for n in own], memory.part(place), [params[n] for n in own])
        for number, result in zip(own, of_part, strict=True):
            results[number] = result
    return results


@formula.register(SkipNonfinite)
def _(outer: SkipNonfinite[object], grads: Flat, memory: Memory, params: Flat) -> Flat:
    if all(bool(g.isfinite().all()) for g in grads):
        memory.numbers["in a row"] = 0.0
        return formula(outer.transform, grads, memory.part(0), params)
    memory.numbers["in a row"] = memory.numbers.get("in a row", 0.0) + 1
    if outer.limit is not None and memory.numbers["in a row"] > outer.limit:
        return formula(outer.transform, grads, memory.part(0), params)
    return [torch.zeros_like(g) for g in grads]


@formula.register(Adjustable)
def _(outer: Adjustable[object], grads: Flat, memory: Memory, params: Flat) -> Flat:
    return formula(outer.transform, grads, memory.part(0), params)


@formula.register(Scheduled)
def _(outer: Scheduled[object], grads: Flat, memory: Memory, params: Flat) -> Flat:
    memory.count += 1
    transform: AnyTransform = outer.transform
    for name, schedule in outer.schedules:
        transform = with_number(transform, name, float(schedule(torch.tensor(memory.count - 1))))
    return formula(transform, grads, memory.part(0), params)


def with_number(transform: AnyTransform, name: str, value: float) -> AnyTransform:
    """The transform with another number, which is its own or one of the parts'."""
    cls: type[attrs.AttrsInstance] = type(transform)  # type: ignore[assignment]  # all are
    fields = {field.name: getattr(transform, field.name) for field in attrs.fields(cls) if field.init}
    if name in fields and not isinstance(fields[name], Transform):
        return attrs.evolve(transform, **{name: value})  # type: ignore[misc]  # likewise
    changes: dict[str, object] = {}
    for field, part in fields.items():
        if isinstance(part, Transform):
            changes[field] = with_number(part, name, value)
        elif isinstance(part, tuple):
            changes[field] = tuple(with_number(one, name, value) if isinstance(one, Transform) else one for one in part)
    return attrs.evolve(transform, **changes)  # type: ignore[misc]  # likewise


@formula.register
def _(adagrad: _ScaleByAdagrad, grads: Flat, memory: Memory, _params: Flat) -> Flat:
    total = put(memory, "sum", [s + g**2 for s, g in zip(memory.of("sum"), grads, strict=True)])
    return [g / (s.sqrt() + adagrad.epsilon) for s, g in zip(total, grads, strict=True)]


@formula.register
def _(lion: _ScaleByLion, grads: Flat, memory: Memory, _params: Flat) -> Flat:
    before = memory.of("momentum")
    put(memory, "momentum", decayed(float(lion.beta2), before, grads))
    return [torch.where(u.isnan(), u, u.sign()) for u in decayed(float(lion.beta1), before, grads)]

"""The sample transforms of gradients, and those around an optimizer, with their formulas: see `optimizer_samples`."""

import math
from typing import Final

import torch
from torch import Tensor

from fundl import (
    adamw,
    add_noise,
    centralize,
    chain,
    clip_adaptively,
    clip_by_global_norm,
    clip_by_norm,
    fold_in,
    key,
    lookahead,
    momentum,
    random,
    scale,
    sgd,
    skip_nonfinite,
)
from fundl.optim.centralize import _Centralize
from fundl.optim.chain import AnyTransform
from fundl.optim.clipping import _ClipAdaptively, _ClipByNorm
from fundl.optim.lookahead import Lookahead
from fundl.optim.noise import _AddNoise
from tests.optimizer_memory import Flat, Memory, formula

TRANSFORMS: Final[dict[str, AnyTransform]] = {
    "clip_by_norm": clip_by_norm(1.0),
    "clip_by_norm: in a chain": chain(clip_by_norm(0.3), sgd(0.1)),
    "clip_adaptively": clip_adaptively(),
    "clip_adaptively: options": chain(clip_adaptively(0.5, epsilon=0.9), scale(-0.1)),
    "centralize": chain(centralize(), scale(-0.1)),
    "centralize: in a chain": chain(centralize(), momentum(0.1)),
    "add_noise": chain(add_noise(key(5)), scale(-0.1)),
    "lookahead": lookahead(sgd(0.1), every=2),
    "lookahead: of adam": lookahead(chain(clip_by_global_norm(1.0), adamw(0.1)), every=3, share=0.25),
    "skip_nonfinite: with a limit": skip_nonfinite(sgd(0.1), limit=1),
}


def norm(x: Tensor) -> float:
    return math.sqrt(float((x**2).sum()))


@formula.register
def _(clip: _ClipByNorm, grads: Flat, _memory: Memory, _params: Flat) -> Flat:
    return [g * (float(clip.max_norm) / norm(g)) if not norm(g) <= clip.max_norm else g for g in grads]


@formula.register
def _(clip: _ClipAdaptively, grads: Flat, _memory: Memory, params: Flat) -> Flat:
    def clipped(g: Tensor, p: Tensor) -> Tensor:
        most = float(clip.ratio) * max(norm(p), float(clip.epsilon))
        return g * (most / norm(g)) if not norm(g) < most else g

    found = []
    for g, p in zip(grads, params, strict=True):
        rows = g.ndim >= 2 and len(g) > 0
        found.append(torch.stack([clipped(*row) for row in zip(g, p, strict=True)]) if rows else clipped(g, p))
    return found


@formula.register
def _(_centralize: _Centralize, grads: Flat, _memory: Memory, _params: Flat) -> Flat:
    return [
        torch.stack([row - sum(row.flatten()) / row.numel() for row in g]) if g.ndim >= 2 and g.numel() > 0 else g
        for g in grads
    ]


@formula.register
def _(noise: _AddNoise, grads: Flat, memory: Memory, _params: Flat) -> Flat:
    memory.count += 1
    size = (noise.variance / memory.count**noise.decay) ** 0.5
    own = fold_in(torch.tensor(noise.words), memory.count - 1)
    numbers = random.normal(own, (sum(g.numel() for g in grads),), dtype=torch.float64).split_with_sizes(
        [g.numel() for g in grads]
    )
    return [g + size * drawn.reshape(g.shape) for g, drawn in zip(grads, numbers, strict=True)]


@formula.register(Lookahead)
def _(outer: Lookahead[object], grads: Flat, memory: Memory, params: Flat) -> Flat:
    slow = memory.tensors.setdefault("slow", [leaf.to(torch.float64) for leaf in memory.leaves])
    updates = formula(outer.transform, grads, memory.part(0), params)
    memory.count += 1
    if memory.count < outer.every:
        return updates
    memory.count, fast = 0, [p + u for p, u in zip(params, updates, strict=True)]
    memory.tensors["slow"] = [s + outer.share * (f - s) for s, f in zip(slow, fast, strict=True)]
    return [s - p for s, p in zip(memory.tensors["slow"], params, strict=True)]

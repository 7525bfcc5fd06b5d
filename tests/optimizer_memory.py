"""What the formulas of optimizers remember, and what finds the formula of a transform: see `optimizer_samples`."""

import functools

import attrs
import torch
from torch import Tensor

from fundl.optim.chain import AnyTransform

Flat = list[Tensor]


@attrs.define
class Memory:
    """What a transform remembers, for each leaf of the params, and what its parts do."""

    leaves: Flat
    paths: list[str]
    count: int = 0
    tensors: dict[str, Flat] = attrs.Factory(dict)
    numbers: dict[str, float] = attrs.Factory(dict)
    parts: dict[int, "Memory"] = attrs.Factory(dict)

    def of(self, name: str, initial: float = 0.0) -> Flat:
        """A tensor for each leaf; in the beginning a number."""
        return self.tensors.setdefault(name, [torch.full_like(leaf, initial, dtype=torch.float64) for leaf in self.leaves])

    def part(self, place: int) -> "Memory":
        """The memory of an inner transform."""
        return self.parts.setdefault(place, Memory(self.leaves, self.paths))

    def all(self) -> Flat:
        """All that is remembered, by the parts too."""
        own = [tensor for flat in self.tensors.values() for tensor in flat]
        return own + [tensor for part in self.parts.values() for tensor in part.all()]


@functools.singledispatch
def formula(transform: AnyTransform, grads: Flat, memory: Memory, params: Flat) -> Flat:  # of all formulas
    """The updates, in float64; the memory is changed."""
    raise NotImplementedError(f"write the formula of {type(transform).__name__} here")


def put(memory: Memory, name: str, values: Flat) -> Flat:
    """Remember values under a name."""
    memory.tensors[name] = values
    return values


def decayed(decay: float, old: Flat, new: Flat) -> Flat:
    """Decayed means."""
    # 0 times infinity: a decay of 0 forgets everything.
    return [decay * a + (1 - decay) * b if decay else b.clone() for a, b in zip(old, new, strict=True)]

"""Cache keys: a function is compiled once for each. They say what the arguments are like, and what torch is set to."""

from collections.abc import Hashable
from typing import TypeAlias

import attrs
import torch
from torch import Tensor

from fundl._compiling.torch_settings import TorchSettings
from fundl._compiling.trees import explain, statics


@attrs.frozen
class Signature:
    """The structures of arguments, by name, the first ones given by place."""

    arguments: tuple[tuple[str, Hashable], ...]
    positional: int  # so many of them are given by place

    def explain(self, old: "Signature") -> str:
        """The first difference from another one, in words."""
        names, old_names = [name for name, _ in self.arguments], [name for name, _ in old.arguments]
        if names != old_names or self.positional != old.positional:
            return (
                f"the arguments were ({', '.join(old_names)}), and are ({', '.join(names)}), {self.positional} of them by place"
            )
        columns = zip(old.arguments, self.arguments, strict=True)
        return next(explain(before, after, name) for (name, before), (_, after) in columns if before != after)

    def counterparts(self, other: "Signature") -> dict[int, object]:
        """For the ids of static values of this one, the same values of an equal signature."""
        columns = zip(self.arguments, other.arguments, strict=True)
        pairs = [zip(statics(one, ""), statics(same, ""), strict=True) for (_, one), (_, same) in columns]
        return {id(value): same for part in pairs for (_, value), (_, same) in part}


TensorSpec: TypeAlias = tuple[torch.dtype, tuple[int, ...], torch.device]
"""The dtype, shape and device of a contiguous tensor."""


def spec_of(tensor: Tensor) -> TensorSpec:
    """The dtype, shape and device of a tensor."""
    return tensor.dtype, tuple(tensor.shape), tensor.device


LeafKey: TypeAlias = tuple[torch.dtype, tuple[int, ...], tuple[int, ...] | None, torch.device]
"""A tensor's dtype, shape, strides (None if it is contiguous) and device."""


def leaf_key(leaf: Tensor) -> LeafKey:
    """A tensor as far as compiled code depends on it; the strides of axes of one element do not matter."""
    steps = tuple([step if size > 1 else 1 for step, size in zip(leaf.stride(), leaf.shape, strict=True)])
    return leaf.dtype, tuple(leaf.shape), None if leaf.is_contiguous() else steps, leaf.device


@attrs.frozen
class CacheKey:
    """What a compiled program is for."""

    signature: Signature  # of the arguments
    leaves: tuple[LeafKey, ...]  # what their tensors are like
    settings: TorchSettings
    paths: tuple[str, ...] = attrs.field(eq=False)  # where the tensors are, for messages

    @property
    def devices(self) -> list[torch.device]:
        """Those of the tensors."""
        return [device for _, _, _, device in self.leaves]

    def explain(self, old: "CacheKey") -> str:
        """The first difference from another one, in words."""
        if old.signature != self.signature:
            return self.signature.explain(old.signature)
        changed = [
            f"{path} was {_described(before)}, and is {_described(after)}"
            for path, before, after in zip(self.paths, old.leaves, self.leaves, strict=True)
            if before != after
        ]
        if changed:
            more = f" (and {len(changed) - 1} more tensors differ)" if len(changed) > 1 else ""
            return changed[0] + more
        return self.settings.explain(old.settings)


def _described(leaf: LeafKey) -> str:
    dtype, shape, strides, device = leaf
    with_strides = "" if strides is None else f" with strides {list(strides)}"
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}{with_strides}{'' if device.type == 'cpu' else f' on {device}'}"

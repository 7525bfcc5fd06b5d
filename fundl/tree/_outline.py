"""What trees look like, as values that can be compared."""

from typing import final

import attrs
import torch
from torch import Tensor

from fundl.tree._structure import Structure, flatten, unflatten


@final
@attrs.frozen
class Outline:
    """What a tree looks like: its structure, and the shapes and dtypes of its tensors. It can be compared, and hashed.

    Args:
        structure: of the tree.
        kinds: shape and dtype of each leaf; None for none.
    """

    structure: "Structure[object]"
    kinds: tuple[tuple[tuple[int, ...], torch.dtype] | None, ...]

    @classmethod
    def of(cls, tree: object) -> "Outline":
        """The outline of a tree."""
        leaves, structure = flatten(tree)
        return cls(structure, tuple([None if leaf is None else (tuple(leaf.shape), leaf.dtype) for leaf in leaves]))

    def on(self, device: torch.device | str) -> object:
        """A tree of this outline, whose tensors have no values yet."""
        room: list[Tensor | None] = [
            None if kind is None else torch.empty(kind[0], dtype=kind[1], device=device) for kind in self.kinds
        ]
        return unflatten(self.structure, room)

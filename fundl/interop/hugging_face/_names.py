"""Where in a file of another layout the tensors of a model are: which of them make up a leaf, and how."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor


class Piece(NamedTuple):
    """Rows of a leaf that are a tensor of a file.

    Args:
        name: of the tensor.
        rows: how many rows of the leaf it is.
        is_transposed: whether it has them as columns.
    """

    name: str
    rows: int
    is_transposed: bool = False

    def shape(self, leaf: Tensor) -> tuple[int, ...]:
        """That of the tensor in the file."""
        shape = self.rows, *leaf.shape[1:]
        return shape[::-1] if self.is_transposed else shape

    def of_leaf(self, rows: Tensor) -> Tensor:
        """The rows as the leaf has them, of the tensor, or the other way round."""
        return rows.t() if self.is_transposed else rows


Names: TypeAlias = Mapping[str, Sequence[Piece]]
"""The pieces of each leaf of a model, by its path."""


def pieces_of(leaf: Tensor, pieces: Sequence[Piece]) -> Sequence[tuple[Piece, Tensor]]:
    """The pieces of a leaf, each with the rows that it is: views."""
    return list(zip(pieces, torch.split_with_sizes(leaf, [piece.rows for piece in pieces]), strict=True))

"""Where the tensors of a model are in files of another layout: which of them make up a leaf, and how; read, and written."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from fundl import tree
from fundl.layer import Model
from fundl.saving._file import File, Wanted
from fundl.saving._writing import Content, write
from fundl.tree import describe

P = TypeVar("P", bound=Model)

_MOST: Final = 20
"""Of what is amiss, so much is told."""


class Piece(NamedTuple):
    """Rows of a leaf that are a tensor of a file.

    Args:
        name: of the tensor.
        rows: how many rows of the leaf it is.
        is_transposed: whether it has them as columns.
        ones: how many axes of size 1 it has before them.
    """

    name: str
    rows: int
    is_transposed: bool = False
    ones: int = 0

    def shape(self, leaf: Tensor) -> tuple[int, ...]:
        """That of the tensor in the file."""
        shape = self.rows, *leaf.shape[1:]
        return (1,) * self.ones + (shape[::-1] if self.is_transposed else shape)

    def of_leaf(self, rows: Tensor) -> Tensor:
        """The tensor, of rows as the leaf has them."""
        return (rows.t() if self.is_transposed else rows)[(None,) * self.ones]

    def to_leaf(self, tensor: Tensor) -> Tensor:
        """The rows as the leaf has them, of the tensor."""
        rows = tensor[(0,) * self.ones]
        return rows.t() if self.is_transposed else rows


Names: TypeAlias = Mapping[str, Sequence[Piece]]
"""The pieces of each leaf of a model, by its path."""


class Stored(NamedTuple):
    """A tensor that another program has written.

    Args:
        like: of its shape and dtype.
        read: gives it, with memory of its own, on the CPU.
    """

    like: Tensor
    read: Callable[[], Tensor]


def stored(file: File) -> dict[str, Stored]:
    """The tensors of a file that is open."""

    def one(name: str) -> Stored:
        def read() -> Tensor:
            (tensor,) = file.read([Wanted(name, torch.device("cpu"))])
            return tensor

        return Stored(file.tensors[name], read)

    return {name: one(name) for name in file.tensors}


def pieces_of(leaf: Tensor, pieces: Sequence[Piece]) -> Sequence[tuple[Piece, Tensor]]:
    """The pieces of a leaf, each with the rows that it is: views."""
    return list(zip(pieces, torch.split_with_sizes(leaf, [piece.rows for piece in pieces]), strict=True))


# --- Read --------------------------------------------------------------------------------------------------------------


def filled(
    like: P,
    names: Names,
    found: Mapping[str, Stored],
    *,
    what: str,
    left_out: Sequence[str],
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> P:
    """A model with the tensors that are found.

    Args:
        like: of its structure, shapes and dtypes.
        names: which tensors make up its leaves.
        found: the tensors, by name.
        what: begins the sentence of an error, "the tensors in weights are not those of".
        left_out: endings of names that may be there, and belong nowhere.
        device: where the leaves go; None for the CPU.
        dtype: of the leaves; None for those of `like`.

    Raises:
        ValueError: a tensor is missing or has another shape, or there are others: the message lists all that differ.
    """
    leaves, structure = tree.flatten(like)
    paths = tree.paths(like)
    faults = _faults(dict(zip(paths, leaves, strict=True)), names, found, left_out)
    if faults:
        more = [f"and {len(faults) - _MOST} more"] if len(faults) > _MOST else []
        raise ValueError("\n    ".join([f"{what}:", *faults[:_MOST], *more]))
    home = torch.device("cpu" if device is None else device)
    made: list[Tensor | None] = []
    for path, leaf in zip(paths, leaves, strict=True):
        made.append(leaf if leaf is None else _leaf(names[path], found, home, dtype or leaf.dtype))  # one at a time
    return tree.unflatten(structure, made)


def _faults(
    leaves: Mapping[str, Tensor | None], names: Names, found: Mapping[str, Stored], left_out: Sequence[str]
) -> list[str]:
    faults = list[str]()
    for path, pieces in names.items():
        leaf = leaves[path]
        assert leaf is not None  # `names` is of the model
        for piece in pieces:
            if piece.name not in found:
                faults.append(f"{piece.name} is not there")
            elif tuple((given := found[piece.name].like).shape) != piece.shape(leaf):
                faults.append(f"{piece.name} is {describe(given)}, and must be of shape {piece.shape(leaf)}")
    known = {piece.name for pieces in names.values() for piece in pieces}
    others = (name for name in sorted({*found} - known) if not name.endswith(tuple(left_out)))
    return [*faults, *(f"{name} is there, and belongs nowhere" for name in others)]


def _leaf(pieces: Sequence[Piece], found: Mapping[str, Stored], device: torch.device, dtype: torch.dtype) -> Tensor:
    parts = [piece.to_leaf(found[piece.name].read()) for piece in pieces]
    whole = torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()
    return whole.to(device=device, dtype=dtype)


# --- Written -----------------------------------------------------------------------------------------------------------


def tensors_of(model: Model, names: Names, sizes: object) -> dict[str, Tensor]:
    """The tensors of a model by their names in another layout: views, where they can be.

    Raises:
        ValueError: the model is not of the structure that has these names: that of the sizes.
    """
    leaves = dict(zip(tree.paths(model), tree.flatten(model)[0], strict=True))
    here = {path for path, leaf in leaves.items() if leaf is not None and not path.endswith((".key", ".mask"))}
    if here != {*names}:
        differ = sorted(here ^ {*names})
        raise ValueError(
            f"the model is not one of {sizes}: {', '.join(differ[:5])} {'is' if len(differ) == 1 else 'are'} amiss"
        )
    tensors: dict[str, Tensor] = {}
    for path, pieces in names.items():
        leaf = leaves[path]
        assert leaf is not None  # it is among those that are there
        if leaf.shape[0] != sum(piece.rows for piece in pieces):
            raise ValueError(f"the model is not one of {sizes}: {path} is {describe(leaf)}")
        tensors |= {piece.name: piece.of_leaf(rows).contiguous() for piece, rows in pieces_of(leaf, pieces)}
    return tensors


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor]) -> None:
    """Write a file as other programs read it: they ask for its "format"."""
    content = Content(tensors, tensors, dict.fromkeys(tensors, tree.Piece(None)), {"format": "pt"}, None)
    with ThreadPoolExecutor(1) as worker:
        write(path, content, worker)

"""The blocks of a leaf: `repeat` stacks many layers as one, and what looks at a whole parameter looks at each of them."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self, TypeAlias

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.listed import Listed
from fundl.optim.flat import Tensors
from fundl.optim.transform import Transform
from fundl.tree import Record, Split, Splits

Stacked: TypeAlias = tuple[int, ...]
"""For each leaf along how many axes, the first ones, it is stacked of blocks."""


def stacked_axes(path: str) -> int:
    """Along how many axes, the first ones, the leaf at a path is stacked of blocks."""
    return path.count(".stacked[")


def block_norms(tensors: Tensors, stacked: Stacked, splits: Splits = ()) -> list[Tensor]:
    """The norm of each block of each tensor, in float64, of shapes that the tensors can be multiplied by.

    Blocks of which others have parts count as a whole.
    """
    whole = [place for place, axes in enumerate(stacked) if not axes]
    norms: list[Tensor] = [*tensors]
    plain = torch._foreach_norm([tensors[place] for place in whole], dtype=torch.float64) if whole else ()
    for place, norm in zip(whole, plain, strict=True):
        norms[place] = norm
    for place, axes in enumerate(stacked):
        if axes:
            inner = tuple(range(axes, tensors[place].ndim))
            norms[place] = torch.linalg.vector_norm(tensors[place], dim=inner, keepdim=True, dtype=torch.float64)
    if any(splits):
        _add_parts(norms, tensors, stacked, splits)
    return norms


def _add_parts(norms: list[Tensor], tensors: Tensors, stacked: Stacked, splits: Splits) -> None:
    """Put the norms of whole blocks in the place of those of their parts, which all ask for together."""
    divided = [
        place for place, split in enumerate(splits) if split is not None and is_divided(split, tensors[place], stacked[place])
    ]
    for among in dict.fromkeys(_split(splits, place).among for place in divided):
        places = [place for place in divided if _split(splits, place).among == among]
        of_all = among.of_all(torch.cat([norms[place].reshape(-1) for place in places]).unsqueeze(0))  # (n, blocks of all)
        totals = torch.linalg.vector_norm(of_all, dim=0).split([norms[place].numel() for place in places])
        for place, total in zip(places, totals, strict=True):
            norms[place] = total.reshape(norms[place].shape)


def is_divided(split: Split, part: Tensor, stacked: int) -> bool:
    """Whether blocks are divided: where it is the stack that is, each is whole."""
    return split.axis % part.ndim >= stacked


def _split(splits: Sequence[Split | None], place: int) -> Split:
    split = splits[place]
    assert split is not None
    return split


def unit_axes(path: str, leaf: Tensor) -> int:
    """How many axes, the first ones, tell the units of a leaf apart: a matrix has its rows, a vector is one as a whole."""
    stacked = stacked_axes(path)
    return stacked + 1 if leaf.ndim - stacked >= 2 else stacked


@attrs.frozen(eq=False)
class BlocksState(Record, metaclass=Listed):
    """The state of what looks at blocks of a leaf, each by itself: `clip_by_norm`, `clip_adaptively`, `centralize`.

    Args:
        axes: for each leaf, how many axes, the first ones, tell its blocks apart. It is static.
    """

    axes: Stacked


@attrs.frozen
class OfBlocks(Transform[BlocksState]):
    """A transform of each block of each leaf by itself."""

    writes_over = True  # its state is static

    splits: Splits = attrs.field(default=(), kw_only=True, repr=False)

    @abstractmethod
    def axes(self, path: str, leaf: Tensor) -> int:
        """How many axes, the first ones, tell the blocks of a leaf apart."""

    @abstractmethod
    def updates(self, grads: Tensors, axes: Stacked, params: Tensors) -> Tensors:
        """The updates."""

    @override
    def divided(self, splits: Splits) -> Self:
        return attrs.evolve(self, splits=splits)

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> BlocksState:
        return BlocksState(tuple(self.axes(path, leaf) for path, leaf in zip(paths, leaves, strict=True)))

    @override
    def change(self, grads: Tensors, state: BlocksState, params: Tensors) -> tuple[Tensors, BlocksState]:
        if type(state) is not BlocksState:
            raise TypeError("the state is of another transform")
        if len(state.axes) != len(grads):
            raise ValueError("the state's axes are of other leaves")
        return self.updates(grads, state.axes, params), state

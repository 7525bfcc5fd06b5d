"""Records whose leaves are parts of larger tensors, which the processes of a group have among them.

Whoever looks at more than each number by itself asks them: a norm is that of all parts, and a gradient is finite if all are.
"""

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol, TypeAlias

import attrs
import torch
from torch import Tensor

from fundl.tree._records import Record
from fundl.tree._structure import flatten
from fundl.tree._trainable import trainable_leaves


class Talk(Protocol):
    """Texts that processes tell each other, one after the other."""

    def told(self, text: str, together: Callable[[Sequence[str]], str], /) -> str:
        """What the first process makes of the texts of all, in their order: each of them gets it.

        Raises:
            RuntimeError: another process has left the talk, or did not come.
        """

    def leave(self) -> None:
        """End it for all, since this process does not go on."""


class Division(Protocol):
    """Those who have the parts of a tensor: what a `distributed.Group` is."""

    @property
    def size(self) -> int:
        """How many there are."""

    @property
    def rank(self) -> int:
        """Which of them this process is, from 0 on."""

    def talk(self) -> Talk:
        """What goes beside all exchanges of tensors, also in a thread; all of them begin their talks in the same order."""

    def of_all(self, tensor: Tensor, /) -> Tensor:
        """The rows of all, in order, from those that each of them has; all have as many, and ask together."""


@attrs.frozen
class Split:
    """What one leaf is a part of.

    One axis of the whole is divided. It may consist of blocks, such as queries, keys and values in one matrix: each of them is
    divided by itself, and a part has its piece of each, one behind the other.

    Args:
        among: those who have the parts.
        whole: the size of the axis that is divided, in the whole.
        part: its size in each of the parts. All are of one shape: what there is too much is 0.
        axis: which one it is; the first by default. Negative: counted from the end, which holds for stacked leaves, too.
        blocks: the sizes of the blocks, each of which all have equal pieces of; (), the default, for one block.
        beyond: those who have other leaves of the same tree, as the stages of a pipeline have; None where each has all.
    """

    among: Division
    whole: int
    part: int
    axis: int = 0
    blocks: tuple[int, ...] = ()
    beyond: Division | None = None

    def ranges(self, rank: int) -> tuple[tuple[int, int], ...]:
        """Where in the whole the part of one of them lies along the axis, piece by piece: from, and up to but not including.

        What a part has beyond them is 0.
        """
        if not self.blocks:
            return ((min(rank * self.part, self.whole), min((rank + 1) * self.part, self.whole)),)
        found: list[tuple[int, int]] = []
        start = 0
        for block in self.blocks:
            piece = block // self.among.size
            found.append((start + rank * piece, start + (rank + 1) * piece))
            start += block
        return tuple(found)

    def part_of(self, whole: Tensor, rank: int) -> Tensor:
        """The part of one of them, in memory of its own."""
        if whole.is_meta:
            return whole.new_empty(self._with_size(whole, self.part))
        pieces = [whole.narrow(self.axis, start, stop - start) for start, stop in self.ranges(rank)]
        if missing := self.part - sum(piece.shape[self.axis] for piece in pieces):
            pieces.append(whole.new_zeros(self._with_size(whole, missing)))
        return torch.cat(pieces, self.axis) if len(pieces) > 1 else pieces[0].clone(memory_format=torch.contiguous_format)

    def whole_of(self, part: Tensor) -> Tensor:
        """The whole, from the parts of all, who ask together."""
        axis = self.axis % part.ndim
        parts = self.among.of_all(part.unsqueeze(0))  # (n, ...)
        sizes = [stop - start for start, stop in self.ranges(0)] if self.blocks else [self.part]
        blocks = [torch.cat(block.unbind(), axis) for block in parts.split_with_sizes(sizes, axis + 1)]
        return torch.cat(blocks, axis).narrow(axis, 0, self.whole)

    def shown(self, part: Tensor) -> Tensor:
        """What the whole looks like: of its shape, on the meta device."""
        return torch.empty(self._with_size(part, self.whole), dtype=part.dtype, device="meta")

    def _with_size(self, tensor: Tensor, size: int) -> tuple[int, ...]:
        """The shape of a tensor, with another size of the axis."""
        shape = [*tensor.shape]
        shape[self.axis] = size
        return tuple(shape)


@attrs.frozen
class Held:
    """That not all of some processes have a leaf, such as stages of a pipeline, which have other layers.

    Args:
        among: the processes.
        giver: the first of those that have it.
    """

    among: Division
    giver: int

    @property
    def is_given_here(self) -> bool:
        """Whether this process is the one that has it, or the first of several."""
        return self.among.rank == self.giver


Cuts: TypeAlias = tuple[Split, ...]
"""What a leaf is a part of, and that of, and so on: () of one that is whole. Their axes are counted from the last one, -1."""


@attrs.frozen(eq=False)
class Piece:
    """What a process has of a leaf of a tree that several have together.

    Args:
        own: the leaf, or the part of it, that is here; None where there is nothing.
        cuts: what the part is a part of.
        held: who has it, where not all processes have some of it; None where all have.
        is_here: whether this process has it, or a part of it.
    """

    own: Tensor | None
    cuts: Cuts = ()
    held: Held | None = None
    is_here: bool = True

    @property
    def among(self) -> "Sequence[Division]":
        """Those of whom not all have the same of it, one along each axis of their grid."""
        return [*(split.among for split in self.cuts), *([] if self.held is None else [self.held.among])]


Splits: TypeAlias = tuple[Split | None, ...]
"""For each trainable leaf of a tree what it is a part of; None where it is whole, and the same for all."""


@attrs.frozen
class _Alone:
    """The division of a leaf that one has as a whole."""

    size: int = 1
    rank: int = 0

    def talk(self) -> Talk:
        raise RuntimeError("who is alone talks to nobody")

    def of_all(self, tensor: Tensor, /) -> Tensor:
        return tensor


_ALONE: Final = _Alone()


@attrs.frozen(eq=False, init=False)
class Divided(Record):
    """A record some of whose trainable leaves are parts of larger ones, or are with others."""

    @property
    def beyond(self) -> Division | None:
        """Those who have other leaves of the tree that the record is in; None where each has all."""
        return None

    @property
    def places(self) -> int:
        """How many records it stands for, beside those that it shows: so many places of keys are passed over."""
        return 0

    @abstractmethod
    def splits(self) -> Splits:
        """What its trainable leaves are parts of, in their order."""

    @abstractmethod
    def summed_over(self) -> Sequence[Division]:
        """Those of whose gradients its backward gives the sum: each of the first with each of the second, and so on.

        Nobody where it gives its own alone, as other layers do.
        """

    def undivided(self) -> object:
        """What it would be if nobody had divided it, with all of its numbers, for which all ask together; itself by default."""
        return self

    @abstractmethod
    def as_whole(self) -> object:
        """What a process would have in its place that has all, and nothing divided, as a layer that is not of this kind.

        It has the same leaves in the same order, and those that others have: these, and what is divided, are of the whole's
        shape, on the meta device.
        """

    def pieces(self) -> Sequence[Piece]:
        """What this process has of each leaf of `as_whole`, in the order of its leaves: by default, its own leaves."""
        splits = dict(zip(map(id, trainable_leaves(self)), self.splits(), strict=True))
        return [
            Piece(leaf) if leaf is None or (split := splits.get(id(leaf))) is None else Piece(leaf, (_from_last(split, leaf),))
            for leaf in flatten(self)[0]
        ]


def _from_last(split: Split, leaf: Tensor) -> Split:
    return attrs.evolve(split, axis=split.axis - leaf.ndim) if split.axis >= 0 else split


def is_divided(cls: type[Record]) -> bool:
    """Whether records of a class have parts of leaves."""
    return issubclass(cls, Divided)


def splits_of(tree: object) -> Splits:
    """What the trainable leaves of a tree are parts of, in their order; () if there is nothing divided in it."""
    if not holds(is_divided, tree):
        return ()
    splits, beyond = tuple(_splits(tree)), _beyond(tree)
    if beyond is None:
        return splits
    return tuple([attrs.evolve(split or Split(_ALONE, 1, 1), beyond=beyond) for split in splits])


def _beyond(tree: object) -> Division | None:
    """Those who have other leaves of a tree."""
    if isinstance(tree, Divided):
        return tree.beyond
    for part in () if isinstance(tree, Tensor) else trainable_parts(tree):
        if (found := _beyond(part)) is not None:
            return found
    return None


def beyond_of(splits: Splits) -> Division | None:
    """Those who have other leaves than these."""
    return next((split.beyond for split in splits if split is not None), None)


def summed_over(tree: object) -> Sequence[Sequence[Division]]:
    """For each trainable leaf of a tree, in their order, of whose gradients its backward gives the sum."""
    if isinstance(tree, Tensor):
        return ((),)
    if isinstance(tree, Divided):
        return [tree.summed_over()] * len(tree.splits())
    return [among for part in trainable_parts(tree) for among in summed_over(part)]


def _splits(tree: object) -> Iterable[Split | None]:
    if isinstance(tree, Tensor):
        return (None,)
    if isinstance(tree, Divided):
        return tree.splits()
    return [split for part in trainable_parts(tree) for split in _splits(part)]


def trainable_parts(tree: object) -> Sequence[object]:
    """The parts of a node that may have trainable leaves, in the order of `trainable_leaves`."""
    if isinstance(tree, Record):
        return [getattr(tree, name) for name in tree.trainable]
    if isinstance(tree, tuple | list):
        return tree
    return [tree[key] for key in sorted(tree)] if isinstance(tree, dict) else ()


def holds(kind: Callable[[type[Record]], bool], tree: object) -> bool:
    """Whether a tree has a record of a kind. Each step asks, so it takes a microsecond; to find it takes a hundred."""
    parts: Iterable[object] = ()
    if isinstance(tree, Record):
        found, inner = _where_it_holds(kind, type(tree))  # type: ignore[arg-type]  # a class can be hashed, whatever its records can
        if found or not inner:
            return found
        parts = [getattr(tree, name) for name in inner]
    elif isinstance(tree, tuple | list):
        known = _known(kind, tuple(map(type, tree)))
        if known is not None:
            return known
        parts = tree
    elif isinstance(tree, dict):
        parts = tree.values()
    for part in parts:  # noqa: SIM110  # any() over a generator takes four times as long
        if holds(kind, part):
            return True
    return False


@functools.cache
def _known(kind: Callable[[type[Record]], bool], classes: tuple[type, ...]) -> bool | None:
    """Whether things of these classes have a record of a kind among them; None if that depends on what they hold."""
    found = [_where_it_holds(kind, cls) for cls in classes if issubclass(cls, Record)]  # type: ignore[arg-type]  # likewise
    if any(is_one for is_one, _ in found):
        return True
    is_all = len(found) == sum(not issubclass(cls, Tensor | None) for cls in classes) and not any(inner for _, inner in found)
    return False if is_all else None


@functools.cache
def _where_it_holds(kind: Callable[[type[Record]], bool], cls: type[Record]) -> tuple[bool, tuple[str, ...]]:
    """Whether records of a class are of a kind, and which fields may hold more than a tensor."""
    children = [field for field in attrs.fields(cls) if field.name in cls.children]
    return kind(cls), tuple(field.name for field in children if field.type not in {Tensor, Tensor | None})

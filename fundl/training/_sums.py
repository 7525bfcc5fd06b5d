"""Sums over processes that begin while the tensors to be added up are still being made."""

from collections.abc import Iterator, Sequence
from typing import Final, final

import torch
from torch import Tensor

from fundl._common import exchanges
from fundl.collectives import BUCKET_BYTES, explained
from fundl.groups import Group


@final
class Sums:
    """The sums, over the processes of a group, of tensors that are made one after the other: the first travel meanwhile.

    A tensor is let go of here once it has been copied for its way, so that all of them take memory once. It is for what
    nothing traces; the caller has turned grad mode off, and gives tensors of the same shapes in the same order everywhere.
    """

    __slots__ = ("_count", "_flying", "_group", "_waiting")

    def __init__(self, group: Group) -> None:
        self._group, self._count = group, 0
        self._waiting: dict[object, list[tuple[int, Tensor]]] = {}  # by dtype and device
        self._flying: list[tuple[list[tuple[int, torch.Size]], Tensor]] = []

    def add(self, tensor: Tensor) -> int:
        """The place of a tensor's sum among `totals`."""
        bucket = self._waiting.setdefault((tensor.dtype, tensor.device), [])
        bucket.append((self._count, tensor))
        self._count += 1
        if _is_full([waiting for _, waiting in bucket]):
            self._begin(bucket)
        return self._count - 1

    def totals(self) -> list[Tensor]:
        """All sums, in the order of the tensors, once they are there."""
        for bucket in self._waiting.values():
            if bucket:
                self._begin(bucket)
        found = [torch.empty(0)] * self._count
        for places, flat in self._flying:
            parts = exchanges.wait(flat).split_with_sizes([shape.numel() for _, shape in places])
            for (place, shape), part in zip(places, parts, strict=True):
                found[place] = part.reshape(shape)
        return found

    def _begin(self, bucket: list[tuple[int, Tensor]]) -> None:
        """Send the tensors of a bucket off, which is empty then."""
        places = [(place, tensor.shape) for place, tensor in bucket]
        flat = torch.cat([tensor.reshape(-1) for _, tensor in bucket])  # of one alone it is a copy, too
        bucket.clear()
        with explained(self._group):
            self._flying.append((places, exchanges.all_reduce_(flat, "sum", self._group.name)))


def early_buckets(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """The places of tensors that `Sums` sends off together, where they are made from the last to the first."""
    waiting: dict[object, list[int]] = {}
    for place in reversed(range(len(tensors))):
        bucket = waiting.setdefault((tensors[place].dtype, tensors[place].device), [])
        bucket.append(place)
        if _is_full([tensors[one] for one in bucket]):
            yield [*bucket]
            bucket.clear()
    yield from (bucket for bucket in waiting.values() if bucket)


def _is_full(bucket: Sequence[Tensor]) -> bool:
    last = bucket[-1]
    return sum(tensor.nbytes for tensor in bucket) >= (BUCKET_BYTES if last.is_cuda else _EARLY_BYTES)


_EARLY_BYTES: Final = 4 * 2**20
"""Through a socket so many bytes are as quick as more, and the sooner they are on their way, the better."""

"""Where parts of tensors are in a whole, and the checksum that all of them make together."""

import functools
import itertools
import operator
import zlib
from collections.abc import Sequence

import attrs
import pytest
import torch
from torch import Tensor

from fundl.distributed import Group
from fundl.saving._pieces import Run, past_zeros, remainder, runs, sum_of_remainder
from fundl.tree import Cuts, Split


def split(size: int, rank: int, whole: int, axis: int, blocks: tuple[int, ...] = ()) -> Split:
    part = sum(-(-block // size) for block in blocks or (whole,))
    return Split(Group(f"of {size}", size, rank), whole, part, axis, blocks)


def part_of(tensor: Tensor, cut: Split) -> Tensor:
    """The part of a process, by the definition: of each block its share, filled up with zeros."""
    parts: list[Tensor] = []
    for block in torch.split(tensor, [*cut.blocks] or [cut.whole], cut.axis):
        count = -(-block.shape[cut.axis] // cut.among.size)
        shares = [*torch.split(block, count, cut.axis), *[block.narrow(cut.axis, 0, 0)] * cut.among.size]
        share = shares[cut.among.rank]
        missing = [*share.shape]
        missing[cut.axis] = count - share.shape[cut.axis]
        parts.append(torch.cat((share, share.new_zeros(missing)), cut.axis))
    return torch.cat(parts, cut.axis)


CASES = [
    ((7, 3), 2, 7, -2, ()),
    ((7, 3), 4, 7, -2, ()),  # the last of whom have none
    ((1,), 3, 1, -1, ()),
    ((4, 6), 3, 6, -1, ()),
    ((2, 5, 4), 2, 5, -2, ()),  # stacked
    ((2, 3, 9, 2), 4, 9, -2, ()),
    ((12, 2), 2, 12, -2, (6, 4, 2)),  # queries, keys and values
    ((3, 9), 3, 9, -1, (6, 3)),
    ((0, 3), 2, 0, -2, ()),
    ((4, 0), 2, 4, -2, ()),
]


@pytest.mark.parametrize(("shape", "size", "whole", "axis", "blocks"), CASES)
def test_all_parts_make_the_whole(shape: tuple[int, ...], size: int, whole: int, axis: int, blocks: tuple[int, ...]) -> None:
    tensor = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)
    cuts = [(split(size, rank, whole, axis, blocks),) for rank in range(size)]
    check(tensor, [part_of(tensor, *cut) for cut in cuts], cuts)


@pytest.mark.parametrize("axes", [(-2, -2), (-1, -2), (-2, -1)])
def test_parts_of_parts(axes: tuple[int, int]) -> None:
    tensor = torch.arange(1.0, 71).view(7, 10)
    cuts: list[Cuts] = []
    parts: list[Tensor] = []
    for outer, inner in itertools.product(range(2), range(3)):
        second = split(3, inner, tensor.shape[axes[1]], axes[1])
        middle = part_of(tensor, second)
        first = split(2, outer, middle.shape[axes[0]], axes[0])
        parts.append(part_of(middle, first))
        cuts.append((first, second))
    check(tensor, parts, cuts)


def in_memory(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())


def check(tensor: Tensor, parts: Sequence[Tensor], cuts: Sequence[Cuts]) -> None:
    put, remainders = torch.zeros_like(tensor), list[int]()
    for part, cut in zip(parts, cuts, strict=True):
        places = [*runs(part.shape, tensor.shape, cut)]
        assert [one.whole for one in places] == sorted(one.whole for one in places)
        for own, start, count in places:
            assert (put.view(-1)[start : start + count] == 0).all()  # nobody else has it
            put.view(-1)[start : start + count] = part.view(-1)[own : own + count]
        in_bytes = [Run(*(4 * number for number in one)) for one in places]
        remainders.append(remainder(memoryview(in_memory(part)), in_bytes, tensor.nbytes))
    assert torch.equal(put, tensor)
    numbers = in_memory(put)
    assert sum_of_remainder(functools.reduce(operator.xor, remainders), len(numbers)) == zlib.crc32(numbers)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000, 2**20 + 7])
def test_a_remainder_is_taken_past_zeros(count: int) -> None:
    first = zlib.crc32(b"some bytes", 2**32 - 1) ^ (2**32 - 1)
    assert past_zeros(first, count) == zlib.crc32(b"some bytes" + bytes(count), 2**32 - 1) ^ (2**32 - 1)


def test_a_split_is_compared_without_the_rank() -> None:
    assert split(2, 0, 7, 0) == split(2, 1, 7, 0) != attrs.evolve(split(2, 0, 7, 0), axis=1)

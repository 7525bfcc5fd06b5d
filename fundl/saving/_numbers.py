"""The numbers of tensors, written to files and read, with a checksum of each.

CRC-32 finds each flipped bit. It takes less time than to copy the numbers, and another thread finds it meanwhile.
"""

import ctypes
import zlib
from collections.abc import Callable
from concurrent.futures import Executor
from io import FileIO
from typing import BinaryIO, Final

import torch
from torch import Tensor

from fundl.saving._pieces import Run, remainder, runs
from fundl.tree import Cuts

SMALL: Final = 2**16  # bytes that take less time than another thread to ask


def sum_of(dense: Tensor, worker: Executor | None) -> Callable[[], int]:
    """What waits for the checksum of a contiguous tensor's numbers; without a worker it is found at once."""
    if dense.nbytes > SMALL and worker is not None:
        return worker.submit(zlib.crc32, _memory(dense)).result
    number = zlib.crc32(_memory(dense))
    return lambda: number


def write_numbers(file: BinaryIO, tensor: Tensor, worker: Executor | None) -> int:
    """Write the numbers of one tensor, from the first axis to the last; and their checksum."""
    dense = _dense(tensor)
    sums = sum_of(dense, worker)
    file.write(_memory(dense))
    return sums()


def read_numbers(file: FileIO, start: int, dense: Tensor) -> bool:
    """Read a contiguous tensor's numbers, straight into its memory; and whether all of them were there."""
    file.seek(start)
    rest = memoryview(_memory(dense)).cast("B") if dense.nbytes else memoryview(b"")
    while rest and (count := file.readinto(rest)):  # a system reads no more than two gigabytes at once
        rest = rest[count:]
    return not rest


def write_part(file: FileIO | None, begin: int, part: Tensor, whole: Tensor, cuts: Cuts) -> int:
    """Write the numbers of a part to where they are in a whole, which begins somewhere in a file, if there is one.

    Returns:
        their remainder.
    """
    dense = _dense(part)
    places = _in_bytes(dense, whole, cuts)
    numbers = memoryview(_memory(dense)).cast("B") if dense.nbytes else memoryview(b"")
    if file is not None:
        for own, start, count in places:
            file.seek(begin + start)
            rest = numbers[own : own + count]
            while rest:
                rest = rest[file.write(rest) :]
    return remainder(numbers, places, whole.nbytes)


def read_part(file: FileIO, begin: int, part: Tensor, whole: Tensor, cuts: Cuts) -> int | None:
    """Read the numbers of a part from where they are in a whole, and their remainder; None if they are not all there."""
    places = _in_bytes(part, whole, cuts)
    numbers = memoryview(_memory(part)).cast("B") if part.nbytes else memoryview(b"")
    for own, start, count in places:
        file.seek(begin + start)
        rest = numbers[own : own + count]
        while rest and (found := file.readinto(rest)):
            rest = rest[found:]
        if rest:
            return None
    return remainder(numbers, places, whole.nbytes)


def part_of(whole: Tensor, part: Tensor, cuts: Cuts) -> Tensor:
    """The part of a whole that has the shape of another part."""
    made = torch.zeros(part.shape, dtype=whole.dtype)
    flat, numbers = made.view(-1), whole.reshape(-1)
    for own, start, count in runs(part.shape, whole.shape, cuts):
        flat[own : own + count] = numbers[start : start + count]
    return made


def _in_bytes(part: Tensor, whole: Tensor, cuts: Cuts) -> list[Run]:
    size = whole.element_size()
    return [Run(size * own, size * start, size * count) for own, start, count in runs(part.shape, whole.shape, cuts)]


def _dense(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()


def _memory(dense: Tensor) -> "ctypes.Array[ctypes.c_char]":
    return (ctypes.c_char * dense.nbytes).from_address(dense.data_ptr())

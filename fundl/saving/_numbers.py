"""The numbers of tensors, written to files and read, with a checksum of each.

CRC-32 finds each flipped bit. It takes less time than to copy the numbers, and another thread finds it meanwhile.
"""

import ctypes
import zlib
from collections.abc import Callable
from concurrent.futures import Executor
from io import FileIO
from typing import BinaryIO, Final

from torch import Tensor

SMALL: Final = 2**16  # bytes that take less time than another thread to ask


def sum_of(dense: Tensor, worker: Executor | None) -> Callable[[], int]:
    """What waits for the checksum of a contiguous tensor's numbers; without a worker it is found at once."""
    if dense.nbytes > SMALL and worker is not None:
        return worker.submit(zlib.crc32, _memory(dense)).result
    number = zlib.crc32(_memory(dense))
    return lambda: number


def write_numbers(file: BinaryIO, tensor: Tensor, worker: Executor | None) -> int:
    """Write the numbers of one tensor, from the first axis to the last; and their checksum."""
    dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
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


def _memory(dense: Tensor) -> "ctypes.Array[ctypes.c_char]":
    return (ctypes.c_char * dense.nbytes).from_address(dense.data_ptr())

"""IDX files: the format of MNIST and of the data sets made after it."""

import gzip
import math
import os
import zlib
from io import BufferedIOBase
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from fundl._common.suggestions import with_suggestions

_DTYPES: Final = {
    0x08: torch.uint8,
    0x09: torch.int8,
    0x0B: torch.int16,
    0x0C: torch.int32,
    0x0D: torch.float32,
    0x0E: torch.float64,
}

_PART: Final = 2**20  # bytes that are read at once, and numbers that are turned round


@with_suggestions
def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """The tensor in an IDX file, gzipped or not.

    The file says itself whether it is gzipped, and its dtype and shape: two zeros, a byte for the dtype, a byte for the number
    of axes, the size of each axis as four bytes, and the numbers in row-major order, the most significant byte first.

    Args:
        path: of the file, such as ``"train-images-idx3-ubyte.gz"``.

    Returns:
        A tensor of the file's dtype: for MNIST images (N, 28, 28) from 0 to 255, and labels (N,), both uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no IDX file, or is cut off, or goes on after its end. What is gzipped is unpacked no further than its
            header says.

    Source:
        LeCun, Cortes and Burges, The MNIST database of handwritten digits, 1998.

    >>> import tempfile, pathlib
    >>> from fundl import read_idx
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "labels-idx1-ubyte")
    ...     _ = file.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    ...     read_idx(file)
    tensor([7, 2, 1], dtype=torch.uint8)
    """
    with open(path, "rb") as file:
        is_gzipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not is_gzipped:
            return _read(Path(path), file, os.fstat(file.fileno()).st_size)
        try:
            with gzip.open(file) as unpacked:
                return _read(Path(path), unpacked, None)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is gzipped, but cannot be unpacked, it may be cut off: {error}") from error


def _read(path: Path, file: BufferedIOBase, size: int | None) -> Tensor:
    """The tensor of an open file; one of unknown size is unpacked as it is read, no further than its header says."""
    dtype, shape = _header(path, file)
    expected = math.prod(shape) * dtype.itemsize
    behind = expected if size is None else size - 4 - 4 * len(shape)
    content = _whole(file, expected) if behind == expected else bytearray()
    if behind == expected and len(content) < expected:
        behind = len(content)
    more = "more" if behind == expected and file.read(1) else ""  # where the gzipped end, their checksum is looked at
    if behind != expected or more:
        what = "is cut off" if behind < expected else "goes on after its end"
        raise ValueError(
            f"{path} {what}: {dtype} of shape {tuple(shape)} are {expected} bytes, but {more or behind} follow its header"
        )
    try:
        return _numbers(content, dtype).reshape(shape) if expected else torch.empty(shape, dtype=dtype)
    except (RuntimeError, OverflowError) as error:  # of sizes that are too large, beside a zero
        raise ValueError(f"{path} is of a shape that no tensor has, {shape}") from error


def _header(path: Path, file: BufferedIOBase) -> tuple[torch.dtype, list[int]]:
    first = file.read(4)
    if len(first) < 4 or first[:2] != b"\0\0" or first[2] not in _DTYPES:
        raise ValueError(
            f"{path} is not an IDX file: it must begin with two zeros and a byte for the dtype, but it begins with"
            f" {first.hex(' ') or 'nothing'}"
        )
    axes, sizes = first[3], file.read(4 * first[3])
    if len(sizes) < 4 * axes:
        raise ValueError(f"{path} is cut off: it is to state the sizes of {axes} axes, but is only {4 + len(sizes)} bytes long")
    return _DTYPES[first[2]], [int.from_bytes(sizes[place : place + 4], "big") for place in range(0, len(sizes), 4)]


def _whole(file: BufferedIOBase, count: int) -> bytearray:
    """So many bytes, or as many as there are: no memory is taken for what a header only promises."""
    content = bytearray()
    while len(content) < count and (part := file.read(min(count - len(content), _PART))):
        content += part
    return content


def _numbers(content: bytearray, dtype: torch.dtype) -> Tensor:
    """The numbers of which the file has the most significant byte first: torch has the least significant one first."""
    numbers = torch.frombuffer(content, dtype=torch.uint8).reshape(-1, dtype.itemsize)
    for start in range(0, len(numbers), _PART) if dtype.itemsize > 1 else ():
        numbers[start : start + _PART] = numbers[start : start + _PART].flip(1)
    return numbers.view(dtype)

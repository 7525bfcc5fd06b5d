"""IDX files: the format of MNIST and of the data sets made after it."""

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

_DTYPES: Final = {
    0x08: torch.uint8,
    0x09: torch.int8,
    0x0B: torch.int16,
    0x0C: torch.int32,
    0x0D: torch.float32,
    0x0E: torch.float64,
}


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
        ValueError: it is no IDX file, or is cut off, or goes on after its end.

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
    path = Path(path)
    content = _uncompressed(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _DTYPES:
        raise ValueError(
            f"{path} is not an IDX file: it must begin with two zeros and a byte for the dtype, but it begins with"
            f" {content[:4].hex(' ') or 'nothing'}"
        )
    dtype, axes = _DTYPES[content[2]], content[3]
    start = 4 + 4 * axes
    if len(content) < start:
        raise ValueError(f"{path} is cut off: it is to state the sizes of {axes} axes, but is only {len(content)} bytes long")
    shape = [int.from_bytes(content[place : place + 4], "big") for place in range(4, start, 4)]
    expected = math.prod(shape) * dtype.itemsize
    if len(content) - start != expected:
        what = "is cut off" if len(content) - start < expected else "goes on after its end"
        raise ValueError(
            f"{path} {what}: {dtype} of shape {tuple(shape)} are {expected} bytes, but {len(content) - start} follow its header"
        )
    if not expected:
        return torch.empty(shape, dtype=dtype)
    numbers = torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).reshape(-1, dtype.itemsize)
    return numbers.flip(1).view(dtype).reshape(shape)  # torch reads the least significant byte first


def _uncompressed(path: Path) -> bytes:
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is gzipped, but cannot be unpacked, it may be cut off: {error}") from error

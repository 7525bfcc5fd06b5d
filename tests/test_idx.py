"""IDX files: what is written in the format is read; what is not gets an error that says why."""

import gzip
import re
import struct
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fundl import read_idx

# dtype, its byte in the file, its letter for struct
DTYPES = (
    (torch.uint8, 0x08, "B"),
    (torch.int8, 0x09, "b"),
    (torch.int16, 0x0B, "h"),
    (torch.int32, 0x0C, "i"),
    (torch.float32, 0x0D, "f"),
    (torch.float64, 0x0E, "d"),
)


def content(code: int, letter: str, shape: Sequence[int], numbers: Sequence[float]) -> bytes:
    sizes = struct.pack(f">{len(shape)}I", *shape)
    return bytes([0, 0, code, len(shape)]) + sizes + struct.pack(f">{len(numbers)}{letter}", *numbers)


@pytest.mark.parametrize(("dtype", "code", "letter"), DTYPES)
@pytest.mark.parametrize("is_gzipped", [False, True])
def test_reads_every_dtype(tmp_path: Path, dtype: torch.dtype, code: int, letter: str, *, is_gzipped: bool) -> None:
    numbers = [0, 1, 2, 3, 100, 127]
    written = content(code, letter, (3, 1, 2), numbers)
    file = tmp_path / "any"
    file.write_bytes(gzip.compress(written) if is_gzipped else written)
    read = read_idx(file)
    assert read.dtype == dtype
    assert torch.equal(read, torch.tensor(numbers, dtype=dtype).reshape(3, 1, 2))
    read.add_(1)  # it is the reader's own memory, not that of an immutable bytes


def test_negative_and_large_numbers(tmp_path: Path) -> None:
    file = tmp_path / "any"
    file.write_bytes(content(0x0B, "h", (3,), (-32768, -2, 32767)))
    assert read_idx(str(file)).tolist() == [-32768, -2, 32767]


@pytest.mark.parametrize("shape", [(0,), (0, 28, 28), (3, 0)])
def test_a_file_of_nothing(tmp_path: Path, shape: tuple[int, ...]) -> None:
    file = tmp_path / "any"
    file.write_bytes(content(0x08, "B", shape, ()))
    assert read_idx(file).shape == shape


def test_a_single_number(tmp_path: Path) -> None:
    file = tmp_path / "any"
    file.write_bytes(content(0x0E, "d", (), (2.5,)))
    assert torch.equal(read_idx(file), torch.tensor(2.5, dtype=torch.float64))


GOOD = content(0x08, "B", (2, 3), range(6))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (b"", "is not an IDX file: it must begin with two zeros and a byte for the dtype, but it begins with nothing"),
        (b"\0\0\x08", "but it begins with 00 00 08"),
        (b"\x89PNG\r\n", "but it begins with 89 50 4e 47"),
        (b"\0\0\x0a\x01\0\0\0\0", "but it begins with 00 00 0a 01"),
        (GOOD[:9], "is cut off: it is to state the sizes of 2 axes, but is only 9 bytes long"),
        (GOOD[:-1], "is cut off: torch.uint8 of shape (2, 3) are 6 bytes, but 5 follow its header"),
        (GOOD + b"\0", "goes on after its end: torch.uint8 of shape (2, 3) are 6 bytes, but 7 follow its header"),
        (gzip.compress(GOOD, mtime=0)[:-9], "is gzipped, but cannot be unpacked, it may be cut off: "),
        (gzip.compress(GOOD, mtime=0)[:10] + b"\xff" * 20, "is gzipped, but cannot be unpacked, it may be cut off: "),
        (b"\x1f\x8b\x00", "is gzipped, but cannot be unpacked, it may be cut off: "),
    ],
    ids=[
        "empty",
        "short",
        "other",
        "unknown dtype",
        "no sizes",
        "cut off",
        "too long",
        "half a gzip",
        "no gzip",
        "only its magic",
    ],
)
def test_a_malformed_file_gets_an_error(tmp_path: Path, written: bytes, message: str) -> None:
    file = tmp_path / "images"
    file.write_bytes(written)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))} .*{re.escape(message)}"):
        read_idx(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_idx(tmp_path / "nowhere")


def test_what_is_gzipped_is_unpacked_no_further_than_its_header_says(tmp_path: Path) -> None:
    file = tmp_path / "images"
    file.write_bytes(gzip.compress(GOOD + bytes(2**26), 9))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"goes on after its end: .* of shape \(2, 3\) are 6 bytes, but more follow"):
            read_idx(file)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_header_that_promises_much_takes_no_memory(tmp_path: Path) -> None:
    file, sizes = tmp_path / "images", struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1)
    for written in (bytes([0, 0, 0x0E, 3]) + sizes + bytes(100), bytes([0, 0, 0x0E, 255]) + 85 * sizes + bytes(100)):
        for content in (written, gzip.compress(written)):
            file.write_bytes(content)
            with pytest.raises(ValueError, match=r"images is cut off: torch.float64 of .* bytes, but 100 follow its header"):
                read_idx(file)


def test_a_shape_that_no_tensor_has(tmp_path: Path) -> None:
    file = tmp_path / "images"
    file.write_bytes(bytes([0, 0, 0x08, 4, 0, 0, 0, 0]) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1))
    with pytest.raises(ValueError, match="images is of a shape that no tensor has"):
        read_idx(file)


def test_numbers_of_several_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fundl.idx._PART", 4)
    file = tmp_path / "any"
    for packed in (False, True):
        written = content(0x0D, "f", (5, 3), range(15))
        file.write_bytes(gzip.compress(written) if packed else written)
        assert torch.equal(read_idx(file), torch.arange(15.0).reshape(5, 3))

"""The header of a safetensors file: what it says of its tensors, written and read.

The format is the length of a header in 8 bytes, the header in JSON, and the numbers of the tensors, without gaps. Reader and
writer are our own. The writer of safetensors asks for numpy, refuses tensors that share memory, makes files that no other user
may read, and puts metadata in random order. Its reader maps the file: whoever writes there meanwhile changes what is read, or
ends the process.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

CODES: Final[Mapping[torch.dtype, str]] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What the format calls each dtype."""

DTYPES: Final[Mapping[str, torch.dtype]] = {code: dtype for dtype, code in CODES.items()}
"""The dtypes by what the format calls them."""

_METADATA: Final = "__metadata__"
_LONGEST: Final = 100_000_000  # bytes of a header, which the format allows


class Entry(NamedTuple):
    """What a header says of a tensor: its dtype and shape, on the meta device, and where its numbers begin."""

    like: Tensor
    start: int


def header_of(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> bytes:
    """The header of a file that has the numbers of these tensors behind it, in their order."""
    entries: dict[str, object] = {_METADATA: texts}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": CODES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [start, end]}
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


# --- Reading ----------------------------------------------------------------------------------------------------------


class HeaderError(ValueError):
    """What is wrong with a header."""


def length_of(first: bytes, size: int) -> int:
    """How many bytes the header has, of which the first 8 bytes of a file of some size tell."""
    if len(first) < 8:
        raise HeaderError(f"it has only {len(first)} bytes")
    length = int.from_bytes(first, "little")
    if length > min(size - 8, _LONGEST):
        raise HeaderError(f"its header is to have {length} bytes, but the file has {size}")
    return length


def parsed(text: bytes, behind: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """What a header says: the tensors by name, and the metadata; so many bytes of numbers are behind it."""
    try:
        entries = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_number)
    except HeaderError:
        raise
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"its header is not JSON: {error}") from None
    if not isinstance(entries, dict):
        raise HeaderError("its header is not an object of JSON")
    texts = entries.pop(_METADATA, {})
    if not isinstance(texts, dict) or not all(isinstance(value, str) for value in texts.values()):
        raise HeaderError("its metadata are not texts by name")
    if not all(map(is_text, (*entries, *texts, *texts.values()))):
        raise HeaderError("a name or text in its header has half a letter")
    found: dict[str, tuple[Entry, int]] = {name: _entry(name, entry) for name, entry in entries.items()}
    end = 0
    for name, (entry, stop) in sorted(found.items(), key=lambda item: (item[1][0].start, item[1][1])):
        if entry.start != end:
            raise HeaderError(f"the numbers of {name!r} begin at {entry.start}, where {end} was to be expected")
        end = stop
    if end != behind:
        raise HeaderError(f"it is cut off, or goes on after its end: its tensors have {end} bytes, but {behind} are there")
    return {name: entry for name, (entry, _) in found.items()}, texts


def is_text(text: str) -> bool:
    """Whether a text is Unicode: JSON can have half of a letter, a surrogate, which no file and no terminal takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unique(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise HeaderError("two things in its header have the same name")
    return made


def _no_number(text: str) -> object:
    raise HeaderError(f"its header is not JSON: it has {text}")


def _entry(name: str, entry: object) -> tuple[Entry, int]:
    """What the header says of one tensor, and where its numbers end."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"of {name!r} it does not say dtype, shape and data_offsets")
    shape, places = _naturals(entry["shape"]), _naturals(entry["data_offsets"])
    if shape is None or places is None or len(places) != 2:
        raise HeaderError(f"the shape or the place of {name!r} is none: {_short(entry)}")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise HeaderError(f"{name!r} is of dtype {_short(entry['dtype'])}, which is not known here")
    dtype = DTYPES[entry["dtype"]]
    nbytes = math.prod(shape) * dtype.itemsize
    if places[1] - places[0] != nbytes:
        raise HeaderError(f"{name!r} has {nbytes} bytes by its shape, but {places[1] - places[0]} by its place")
    try:
        return Entry(torch.empty(shape, dtype=dtype, device="meta"), places[0]), places[1]
    except (RuntimeError, TypeError, OverflowError):  # of a shape with a zero that is too large otherwise
        raise HeaderError(f"no tensor has the shape of {name!r}, {_short(shape)}") from None


def _naturals(value: object) -> list[int] | None:
    """The value, if it is a list of whole numbers from 0 on."""
    is_one = isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)
    return value if is_one and isinstance(value, list) else None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."

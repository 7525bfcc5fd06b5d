"""Files that were changed at random, each made of a seed: to be read as what they were, or refused with a sentence."""

import gzip
import json
import random
import resource
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

SIZES: Final = (0, 1, -1, 2, 3, 4, 7, 8, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64, 10**30)
BOUND: Final = 64 * 2**20
"""Bytes that reading a small file may take beside what a process has anyway."""


def mutated(content: bytes, seed: int, headers: Callable[[bytes, random.Random], bytes]) -> bytes:
    """The content with one to three changes."""
    chance = random.Random(seed)
    for _ in range(chance.choice((1, 1, 2, 3))):
        change = chance.choice((_flipped, _set, _cut, _doubled, _removed, _swapped, _longer, headers, headers, headers))
        content = change(content, chance)
    return content


def _flipped(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _set(content: bytes, chance: random.Random) -> bytes:
    place, length = chance.randrange(len(content) + 1), chance.choice((1, 2, 4, 8))
    return content[:place] + bytes([chance.choice((0, 1, 127, 128, 255))]) * length + content[place + length :]


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content) + 1)]


def _doubled(content: bytes, chance: random.Random) -> bytes:
    start, end = sorted(chance.randrange(len(content) + 1) for _ in range(2))
    return content[:end] + content[start:end] + content[end:]


def _removed(content: bytes, chance: random.Random) -> bytes:
    start, end = sorted(chance.randrange(len(content) + 1) for _ in range(2))
    return content[:start] + content[end:]


def _swapped(content: bytes, chance: random.Random) -> bytes:
    first, second, third = sorted(chance.randrange(len(content) + 1) for _ in range(3))
    return content[:first] + content[second:third] + content[first:second] + content[third:]


def _longer(content: bytes, chance: random.Random) -> bytes:
    return content + bytes(chance.choice((1, 4, 8, 1000)))


# --- The header of safetensors ----------------------------------------------------------------------------------------


def header_changed(content: bytes, chance: random.Random) -> bytes:
    """A file whose header says something else, in JSON that is mostly whole, of the length that it states."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
    except (ValueError, RecursionError):
        return content
    if isinstance(header, dict) and chance.random() < 0.5:
        metadata = header.get("__metadata__")
        if isinstance(metadata, dict) and chance.random() < 0.8:
            metadata.pop("fundl.crc32", None)  # so that nothing else finds it
        if isinstance(metadata, dict) and "fundl.tree" in metadata and chance.random() < 0.6:
            try:
                metadata["fundl.tree"] = json.dumps(_elsewhere(json.loads(str(metadata["fundl.tree"])), chance))
            except (ValueError, RecursionError):
                return content
    text = json.dumps(_elsewhere(header, chance)) if chance.random() < 0.8 else _written_otherwise(json.dumps(header), chance)
    written = text.encode(errors="surrogatepass")
    return len(written).to_bytes(8, "little") + written + content[8 + length :]


def tree_changed(content: bytes, seed: int) -> bytes:
    """A whole file that says something else of its tree."""
    chance, length = random.Random(seed), int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    told = json.loads(header["__metadata__"]["fundl.tree"])
    for _ in range(chance.choice((1, 1, 2))):
        told = _elsewhere(told, chance)
    del header["__metadata__"]["fundl.crc32"]
    header["__metadata__"]["fundl.tree"] = json.dumps(told)
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + content[8 + length :]


def _elsewhere(value: object, chance: random.Random) -> object:
    """The value, with another one in one place of it."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.1:
        return _other(value, chance)
    if isinstance(value, list):
        changed = [*value]
        place = chance.randrange(len(changed))
        changed[place : place + 1] = _instead(changed[place], chance)
        return changed
    key = chance.choice([*value])
    if chance.random() < 0.15:
        other = chance.choice((f"{key}x", "", "\ud800", "ReLU", "dict"))
        return {other if name == key else name: part for name, part in value.items()}
    changes = _instead(value[key], chance)
    return {name: changes[0] if name == key else part for name, part in value.items() if name != key or changes}


def _instead(value: object, chance: random.Random) -> Sequence[object]:
    kind = chance.random()
    return [] if kind < 0.1 else [value, value] if kind < 0.2 else [_elsewhere(value, chance)]


def _other(value: object, chance: random.Random) -> object:
    deep: object = value
    for _ in range(chance.choice((1, 10, 300))):
        deep = [deep]
    others: Sequence[object] = (
        None, True, "", "F32", "F64", "BOOL", "F4", "ReLU", "Linear", "float32[2]", "x" * 1000, 1.5, float("nan"), float("inf"),
        [], {}, [value], {"a": value}, {"list": [value]}, {"dict": {"a": value}}, {"same as": "[0].weight"}, deep,
        {"Repeat": {"stacked": [value], "count": 3}}, *SIZES,
    )  # fmt: skip
    return chance.choice(others)


def _written_otherwise(text: str, chance: random.Random) -> str:
    """JSON that no writer makes: names twice, deep nests, what is no number."""
    return chance.choice(
        (
            text[:-1] + "," + text[1:],
            text.replace("{", '{"x":1,"x":2,', 1),
            text.replace("[", "[" * 5000, 1),
            "[" * 100_000,
            '{"a":' * 20_000,
            text.replace(":0", ":-0", 1),
            text.replace("0,", "00,", 1),
            text.replace("[0", "[" + "9" * 5000, 1),
            text.replace("[0", "[1e400", 1),
            text.replace("[0", "[NaN", 1),
            text + " " * 10,
            "\ufeff" + text,
            text.replace("weight", "\\ud800"),
            text.replace("weight", "\\u0000"),
        )
    )


# --- IDX --------------------------------------------------------------------------------------------------------------


def idx_changed(content: bytes, chance: random.Random) -> bytes:
    """An IDX file with another dtype, another number of axes, or a size that is another, packed again if it was."""
    is_gzipped = content[:2] == b"\x1f\x8b"
    try:
        plain = bytearray(gzip.decompress(content) if is_gzipped else content)
    except (OSError, EOFError, zlib.error):
        return content
    if len(plain) < 8:
        return content
    match chance.randrange(4):
        case 0:
            plain[2] = chance.choice((8, 9, 0x0B, 0x0C, 0x0D, 0x0E, chance.randrange(256)))
        case 1:
            plain[3] = chance.choice((0, 1, 2, 3, 64, 65, 255))
        case 2:
            axis = chance.randrange(max(1, min(plain[3], len(plain) // 4 - 1)))
            plain[4 + 4 * axis : 8 + 4 * axis] = struct.pack(">I", chance.choice(SIZES) % 2**32)
        case _:
            plain += bytes(chance.choice((1, 10**3, 2 * 10**7)))  # which gzip packs into a few kilobytes
    return gzip.compress(bytes(plain), 1, mtime=0) if is_gzipped else bytes(plain[: 10**6])


# --- Reading ----------------------------------------------------------------------------------------------------------


def outcome(read: Callable[[Path], object], path: Path) -> object:
    """What reading gives; None if it is refused as it should be, with a sentence that names the file."""
    try:
        return read(path)
    except (ValueError, OSError) as error:
        refusal = error
    assert path.name in str(refusal).encode().decode(), f"{refusal!r} does not name the file"  # and can be printed
    return None


def peak() -> int:
    """Bytes that the process has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

"""The metadata of a file: texts of the user's, and those that begin with "fundl.": what the file is, holds, and sums up to.

`fundl.crc32` has checksums in hexadecimal: first that of all else in the header, then those of the tensors, in the order of
their names.
"""

import json
import os
import sys
import zlib
from collections.abc import Iterable, Mapping
from typing import Final

from torch import Tensor

from fundl.saving._header import CODES, is_text
from fundl.saving._structure import Json

_OURS: Final = "fundl."
FORMAT_KEY: Final = "fundl.format"  # by its version, a later fundl can tell what it reads
FORMAT: Final = "1"
VERSION_KEY: Final = "fundl.version"
TREE_KEY: Final = "fundl.tree"
SUMS_KEY: Final = "fundl.crc32"


def texts_of(metadata: Mapping[str, str], structure: Json) -> dict[str, str]:
    """The metadata of a file, but for the checksums."""
    for name, text in metadata.items():
        if not all(isinstance(part, str) for part in (name, text)):
            raise TypeError(
                f"metadata are texts by name, but here is {name!r}: {text!r}; make it text with str() or json.dumps"
            )
        if name.startswith(_OURS):
            raise ValueError(f'names of metadata that begin with "fundl." are reserved, but here is {name!r}: choose another')
        if not is_text(name + text):
            raise ValueError(f"metadata are Unicode, but here is half a letter: {name!r}: {text!r}")
    return {FORMAT_KEY: FORMAT, VERSION_KEY: _version(), TREE_KEY: json.dumps(structure), **metadata}


def _version() -> str:
    version: str = sys.modules["fundl"].__version__  # which imports this module
    return version


def users(texts: Mapping[str, str]) -> dict[str, str]:
    """The texts of a file that are not fundl's own."""
    return {name: text for name, text in texts.items() if not name.startswith(_OURS)}


def structure_of(texts: Mapping[str, str], where: str) -> Json:
    """What the file says of its tree, as JSON; None if nothing."""
    if TREE_KEY not in texts:
        return None
    try:
        structure: Json = json.loads(texts[TREE_KEY])
        if not _is_text(structure):
            raise ValueError("half a letter is no text")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is damaged: what it says of its tree is not JSON ({error}). Load another copy") from None
    return structure


def _is_text(node: Json) -> bool:
    if isinstance(node, dict):
        return all(map(is_text, node)) and all(map(_is_text, node.values()))
    return all(map(_is_text, node)) if isinstance(node, list) else not isinstance(node, str) or is_text(node)


# --- Checksums --------------------------------------------------------------------------------------------------------


def unknown_sums(count: int) -> str:
    """What takes the place of the checksums of so many tensors until they are known."""
    return " ".join(["0" * 8] * (count + 1))


def sums_text(tensors: Mapping[str, Tensor], texts: Mapping[str, str], sums: Mapping[str, int]) -> str:
    """The checksums of a file as its text."""
    names = sorted(tensors)
    described = [(name, CODES.get(tensors[name].dtype), [*tensors[name].shape], sums[name]) for name in names]
    rest = zlib.crc32(json.dumps([sorted(texts.items()), described]).encode())
    return " ".join(f"{number:08x}" for number in (rest, *(sums[name] for name in names)))


def checked_sums(where: str, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> Mapping[str, int]:
    """The checksums of a file's tensors, if all but their numbers is as it was saved; none if it has no checksums."""
    rest = {name: text for name, text in texts.items() if name != SUMS_KEY}
    written = texts.get(SUMS_KEY)
    if written is None:
        return {}
    try:
        sums = dict(zip(sorted(tensors), (int(number, 16) for number in written.split(" ")[1:]), strict=True))
    except ValueError:
        raise damaged(where, ["its checksums"]) from None
    if sums_text(tensors, rest, sums) != written:
        raise damaged(where, ["its metadata, or the names or kinds of its tensors,"])
    return sums


def damaged(path: str | os.PathLike[str], parts: Iterable[str]) -> ValueError:
    """The error for a file of which some parts are not what was saved."""
    return ValueError(
        f"{os.path.abspath(path)} is damaged: {', '.join(parts)} are not what was saved. Load another copy; if another program"
        f" has changed it on purpose, have that leave {SUMS_KEY} out of the metadata"
    )

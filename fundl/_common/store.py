"""The store of compiled code on disk, by the digest of its content: a library whose digest is not its name is not used.

graphs/KEY              the name of the library that a graph, or a file in C, was compiled to
libraries/NAME/...      its files; NAME is what ``sha256sum * | sha256sum`` prints there
"""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs

from fundl._common.files import atomic_file, is_unfinished
from fundl._common.folder import is_private

MOST_BYTES: Final = 2**30
"""So much a store holds; what was not used for the longest time goes first."""

Files = Mapping[str, bytes]
"""The files of a library, by name."""


def digest(files: Files) -> str:
    """The name of a library."""
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def is_digest(name: str) -> bool:
    """Whether a text could be the name of a library."""
    return re.fullmatch("[0-9a-f]{64}", name) is not None


def is_plain(name: str) -> bool:
    """Whether a text could be the name of a file in a library: it leads nowhere else, and can be written everywhere."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}", name) is not None


def read(folder: Path) -> Files:
    """The files of a library; a program that it was compiled from is none of them."""
    return {file.name: file.read_bytes() for file in _entries(folder) if file.is_file() and file.suffix != ".cpp"}


def _entries(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if not is_unfinished(file.name)]


@attrs.frozen
class Store:
    """Libraries in a folder to which only the user can write."""

    folder: Path

    def find(self, key: str) -> Path | None:
        """The library of a graph, as it was put there; None if there is none."""
        graph = self._graphs / key
        try:
            if not is_private(self._graphs) or not is_private(graph):
                return None
            name = graph.read_text(errors="replace").strip()
        except OSError:
            return None
        return self._libraries / name if is_digest(name) and self._is_intact(name) else None

    def add(self, files: Files, key: str | None) -> Path:
        """Put a library into the store, unless it is there, as it was put there; for a graph, if one was compiled to it.

        Raises:
            OSError: it cannot be written.
        """
        name = digest(files)
        place = self._libraries / name
        if not self._is_intact(name):
            _make(self._libraries)
            _make(place)
            for entry in _entries(place):
                if entry.name not in files:
                    _remove(entry)
            for file, content in files.items():
                _write(place / file, content)
            self._forget(kept=place)
        if key is not None:
            _make(self._graphs)
            _write(self._graphs / key, f"{name}\n".encode())
        return place

    @property
    def _graphs(self) -> Path:
        return self.folder / "graphs"

    @property
    def _libraries(self) -> Path:
        return self.folder / "libraries"

    def _is_intact(self, name: str) -> bool:
        """Whether a library is there as it was put there; then it was used just now."""
        place = self._libraries / name
        try:
            with contextlib.suppress(OSError):  # where nothing can be written
                os.utime(place)
            return all(map(is_private, [self._libraries, place, *_entries(place)])) and digest(read(place)) == name
        except OSError:
            return False

    # --- Its size ---

    def _forget(self, kept: Path) -> None:
        """Remove the libraries that were not used for the longest time, if there are too many; and what refers to them."""
        with contextlib.suppress(OSError):  # another process does the same
            ages = sorted((place.stat().st_mtime_ns, place) for place in self._libraries.iterdir())
            sizes = {place: sum(_sizes(place)) for _, place in ages}
            total = sum(sizes.values())
            for _, place in ages:
                if total > MOST_BYTES and place != kept:
                    shutil.rmtree(place, ignore_errors=True)
                    total -= sizes[place]
            for graph in self._graphs.iterdir():
                if not (self._libraries / graph.read_text(errors="replace").strip()).is_dir():
                    graph.unlink()


def _make(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    if not is_private(folder):
        raise PermissionError(f"{folder} is another user's, or others can write to it, and what is in it is run")


def _write(path: Path, content: bytes) -> None:
    if path.is_symlink() or path.is_dir():  # a link would be followed, and a folder be in the way
        _remove(path)
    with atomic_file(path, mode=0o600) as file:
        file.write(content)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sizes(folder: Path) -> Iterator[int]:
    with contextlib.suppress(OSError):
        yield from (file.stat().st_size for file in folder.iterdir())

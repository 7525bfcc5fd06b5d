"""Atomic files: written whole or not at all, even if the process dies, the disk fills up, or the power goes."""

import contextlib
import errno
import functools
import hashlib
import os
import platform
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

if sys.platform != "win32":
    import fcntl

_SUFFIX: Final = ".fundl.tmp"
_LONGEST: Final = 200  # bytes of a name that its unfinished file has in its own; file systems allow 255
_DAY: Final = 86400.0  # seconds


@contextmanager
def atomic_file(path: str | os.PathLike[str], *, mode: int | None = None) -> Iterator[BinaryIO]:
    """A file to write to, which replaces what is there once all is written; in the meantime it has another name."""
    with replacing_file(path, mode=mode) as (file, _):
        yield file


@contextmanager
def replacing_file(path: str | os.PathLike[str], *, mode: int | None = None) -> Iterator[tuple[BinaryIO, Path]]:
    """An `atomic_file`, and the path that it has in the meantime, where others may write to it as well.

    Unfinished files that dead processes have left in the folder are removed. Without a mode, the file has the mode, owner and
    group of what was there, or the usual ones.
    """
    target = require_folder(path)
    if target.exists() and not target.is_file():
        raise OSError(f"{target} is a folder or a device, not a file: give the path of a file to save to")
    _clear(target.parent)
    file, unfinished = _unfinished(target, mode)
    try:
        with file:
            yield file, unfinished
            file.flush()
            os.fsync(file.fileno())  # first the bytes reach the disk, then the name
            if sys.platform != "win32":
                unfinished.replace(target)  # while it is locked, so that nobody takes it for a dead one's
        if sys.platform == "win32":
            unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    _sync_folder(target.parent)


def require_folder(path: str | os.PathLike[str]) -> Path:
    """Where a file is to be written: what a link leads to is replaced, not the link. Raises an error if there is no folder."""
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent} to save {target.name} in: make it first, with os.makedirs")
    return target


def existing_file(path: str | os.PathLike[str]) -> str:
    """The absolute path of a file; raises an error that says what is there instead, if there is none."""
    where = os.path.abspath(path)
    if not os.path.isfile(where):
        found = ", only a folder of that name" if os.path.isdir(where) else ""
        raise FileNotFoundError(f"there is no file {where}{found}")
    return where


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can do that."""
    if sys.platform == "win32":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # one may write there, but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # of file systems that know nothing like it
            raise
    finally:
        os.close(descriptor)


def is_unfinished(name: str) -> bool:
    """Whether a file's name is that of an unfinished file."""
    return name.startswith(".") and name.endswith(_SUFFIX)


def _unfinished(target: Path, mode: int | None) -> tuple[BinaryIO, Path]:
    """A new file beside a file that is to be replaced, locked, and its path."""
    before = target.stat() if mode is None and target.exists() else None
    name = os.fsencode(target.name)[:_LONGEST].decode(errors="ignore")
    while True:
        path = target.with_name(f".{name}.{_host()}{os.urandom(4).hex()}{_SUFFIX}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags, 0o600 if before is not None else 0o666 if mode is None else mode)
        _lock(descriptor)
        if os.fstat(descriptor).st_nlink:  # else another process has just taken it for a dead one's
            break
        os.close(descriptor)
    if before is not None and sys.platform != "win32":
        _make_like(descriptor, before)
    return os.fdopen(descriptor, "wb"), path


if sys.platform != "win32":

    def _make_like(descriptor: int, before: os.stat_result) -> None:
        """Give a file the owner and group of another, as far as that is allowed, and its mode: nobody more may read it."""
        mode, now = stat.S_IMODE(before.st_mode) & 0o777, os.fstat(descriptor)
        if now.st_uid != before.st_uid:
            with contextlib.suppress(OSError):
                os.fchown(descriptor, before.st_uid, -1)
        if now.st_gid != before.st_gid:
            try:
                os.fchown(descriptor, -1, before.st_gid)
            except OSError:
                mode &= ~stat.S_IRWXG
        with contextlib.suppress(OSError):  # of file systems without modes
            os.fchmod(descriptor, mode)


# --- What dead processes left -----------------------------------------------------------------------------------------

# A process holds a lock on the file that it writes, which ends with the process. On some file systems other machines do not see
# that lock: so the name says which machine writes it, and what another machine left is removed after a day.


def _clear(folder: Path) -> None:
    """Remove the unfinished files that nobody is writing to."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:  # of a folder that may not be read
        for entry in entries:
            if is_unfinished(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):  # it is another user's, or gone
                    _remove_if_dead(entry)


def _remove_if_dead(entry: "os.DirEntry[str]") -> None:
    is_ours = entry.name.removesuffix(_SUFFIX).rpartition(".")[2].startswith(_host())
    if not is_ours and time.time() - entry.stat(follow_symlinks=False).st_mtime < _DAY:
        return
    if sys.platform == "win32":
        os.unlink(entry.path)  # which fails if it is open
        return
    descriptor = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(entry.path)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # where there are no locks, nobody gets one, and nothing is removed
            fcntl.flock(descriptor, fcntl.LOCK_EX)


@functools.cache
def _host() -> str:
    """Stands for this machine."""
    return hashlib.sha256(platform.node().encode(errors="surrogateescape")).hexdigest()[:8]

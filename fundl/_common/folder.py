"""The folder of compiled code: one to which only the user can write, since what is in it is run.

If the folder that was chosen is not such a one, code is kept in a temporary folder until the process ends.
"""

import atexit
import contextlib
import os
import shutil
import stat
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_PRIVATE: Final = 0o700


def kept() -> Path:
    """The folder in which code is kept for other processes: FUNDL_CACHE_DIR, or fundl in the user's folder of caches.

    Raises:
        OSError: it cannot be made, or somebody else can write to it; the message says which, and what to do.
    """
    folder = Path(os.path.realpath(chosen()))
    _make(folder)
    if reason := _why_not_private(folder):
        raise PermissionError(reason)
    return folder


def chosen() -> Path:
    """The folder that is to be used, whether or not it can be."""
    if named := os.environ.get("FUNDL_CACHE_DIR"):
        return Path(named)
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():  # a relative one is to be ignored, says the specification
        return base / "fundl"
    try:
        return Path.home() / ".cache" / "fundl"
    except RuntimeError as error:
        raise FileNotFoundError("this user has no home folder") from error


def _make(folder: Path) -> None:
    """Make a folder, and those that it is in, for the user alone."""
    if not folder.is_dir():
        _make(folder.parent)
        with contextlib.suppress(FileExistsError):  # another process was faster
            folder.mkdir(mode=_PRIVATE)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")


# --- Who can write to it ------------------------------------------------------------------------------------------------


def is_private(path: Path) -> bool:
    """Whether a file or folder is the user's own, or the system's, and nobody else can write to it; a link is not."""
    if sys.platform == "win32":  # whose rights are of another kind: the folders of a user are theirs
        return True
    found = path.lstat()
    is_open = stat.S_ISLNK(found.st_mode) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return found.st_uid in {0, os.geteuid()} and not is_open


def _why_not_private(folder: Path) -> str:
    """Who else could change what is in a folder, in words; an empty string if nobody could."""
    if sys.platform == "win32":
        return ""
    if not is_private(folder):
        return f"{folder} is another user's, or others can write to it ({_owner_and_mode(folder)}), and what is in it is run"
    for parent in folder.parents:
        found = parent.stat()
        if found.st_uid not in {0, os.geteuid()} or _can_be_renamed_in(found):
            return f"{folder} can be replaced by others: they can write to {parent} ({_owner_and_mode(parent)})"
    return ""


if sys.platform != "win32":

    def _can_be_renamed_in(found: os.stat_result) -> bool:
        """Whether others than its owner can rename what is in a folder; a group that has the number of the user is theirs."""
        others = found.st_mode & stat.S_IWOTH
        group = found.st_mode & stat.S_IWGRP and found.st_gid not in {0, os.geteuid()}
        return bool(others or group) and not found.st_mode & stat.S_ISVTX


def _owner_and_mode(path: Path) -> str:
    found = path.stat()
    return f"user {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}"


# --- Instead of it ------------------------------------------------------------------------------------------------------


def warn(reason: str) -> None:
    """Warn that code is not kept, once for each reason."""
    if reason not in _told:
        _told.add(reason)
        warnings.warn(
            f"compiled code is kept only until this process ends: {reason}. Name a folder of your own, to which nobody else can"
            " write, in the environment variable FUNDL_CACHE_DIR",
            RuntimeWarning,
            stacklevel=3,
        )


_told: Final = set[str]()


def temporary() -> Path:
    """A new folder for the user alone, removed at the end of the process."""
    return Path(tempfile.mkdtemp(dir=base()))


def base() -> Path:
    """The folder of this process that they are in."""
    with _lock:
        if os.getpid() not in _bases:  # a child removes its own folders, not its parent's
            _bases[os.getpid()] = Path(tempfile.mkdtemp(prefix="fundl-"))
            atexit.register(_remove, os.getpid(), _bases[os.getpid()])
        return _bases[os.getpid()]


_bases: Final = dict[int, Path]()
_lock: Final = threading.Lock()


def _remove(process: int, folder: Path) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def for_torch(own: Path) -> Iterator[None]:
    """Have torch's compiler keep what it keeps (headers, libraries, pickles) where nobody else can write.

    By default that is a folder of the user's name for all users' temporary files, which anybody could have made before.

    Args:
        own: to be used if it is not the user's, or the user has no name.
    """
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    if _suits(before):
        yield
        return
    os.environ[name] = str(own)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _suits(named: str | None) -> bool:
    """Whether torch's folder is private."""
    try:
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # noqa: PLC0415  # it takes seconds to import

        folder = Path(os.path.realpath(named or default_cache_dir()))
        _make(folder)
        return not _why_not_private(folder)
    except Exception:  # of several kinds, if the user has no name; of others, if this torch has no such function
        return False

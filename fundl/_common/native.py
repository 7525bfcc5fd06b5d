"""Functions in C, compiled once on each machine and kept with the compiled code of `fundl.jit`.

What they do can be done without them: where there is no compiler, or nothing can be written, there is no library, and no error.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fundl._common import folder
from fundl._common.processor import instructions
from fundl._common.store import Store

# Products and sums are rounded each by itself, so that the numbers are those of any other processor.
_ROUNDED: Final = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
_OPTIONS: Final = ("-x", "c", "-std=c11", "-O3", *_ROUNDED, "-shared", "-fPIC")
_LIBRARY: Final = "library.bin"


def library(source: Path) -> ctypes.CDLL | None:
    """The library of a source file: from disk, if it was compiled before for this processor."""
    try:
        return next(_libraries(source.read_bytes()), None)
    except (OSError, subprocess.SubprocessError):
        return None


def _libraries(source: bytes) -> Iterator[ctypes.CDLL]:
    for compiler in _compilers():
        for of_processor in (["-march=native"], []):  # not every compiler knows it
            command = [*compiler, *of_processor, *_OPTIONS]
            facts = [source, *map(str.encode, [*command, platform.machine(), platform.processor(), *sorted(instructions())])]
            key = hashlib.sha256(b"\n".join(facts)).hexdigest()
            place = _found(key) or _made(command, source, key)
            if place is not None:
                yield ctypes.CDLL(str(place / _LIBRARY))


def _compilers() -> Iterator[list[str]]:
    """What the user chose, and what is usual."""
    for words in (os.environ.get("CC", ""), "cc", "gcc", "clang", os.environ.get("CXX", ""), "g++", "clang++"):
        command = shlex.split(words)
        if command and shutil.which(command[0]):
            yield command


def _found(key: str) -> Path | None:
    try:
        return Store(folder.kept()).find(key)
    except OSError:
        return None


def _made(command: list[str], source: bytes, key: str) -> Path | None:
    """The folder of a library that was compiled just now; None if the compiler does not take it."""
    made = folder.temporary()
    done = subprocess.run([*command, "-o", str(made / _LIBRARY), "-"], input=source, check=False, capture_output=True)
    if done.returncode:
        shutil.rmtree(made, ignore_errors=True)
        return None
    try:
        place = Store(folder.kept()).add({_LIBRARY: (made / _LIBRARY).read_bytes()}, key)
    except OSError:  # nobody keeps it: it goes with this process
        return made
    shutil.rmtree(made, ignore_errors=True)
    return place

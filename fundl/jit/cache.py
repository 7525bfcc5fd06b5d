"""Compiled graphs on disk: what one process compiled, the next one loads."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fundl.jit import inductor, loops, whole
from fundl.jit.ambient import ambient
from fundl.jit.torch_private import Graph
from fundl.memory import keep_freed_memory


def folder() -> Path:
    """Where compiled graphs are: FUNDL_CACHE_DIR, or fundl in the user's folder of caches."""
    if chosen := os.environ.get("FUNDL_CACHE_DIR"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fundl"


def compiled(graph: Graph, examples: Sequence[Tensor]) -> tuple[inductor.Run, Path, bool]:
    """The compiled form of a graph, the folder that it is in, and whether it was on disk.

    Args:
        graph: as `trace` returned it.
        examples: of its inputs.

    Raises:
        CompilerError: it was not, and cannot be compiled.
    """
    place, found = _compiled(graph, examples)
    return load(place, [tensor.device for tensor in examples]), place, found


def compiled_loop(graph: Graph, examples: Sequence[Tensor], plan: loops.Plan) -> tuple[loops.Loop, Path, bool]:
    """A loop over a graph that writes to its inputs, the folder of its compiled form, and whether that was on disk.

    Args:
        graph: without outputs.
        examples: of its inputs.
        plan: what the loop is over.

    Raises:
        CompilerError: it was not, and cannot be compiled.
    """
    place, found = _compiled(graph, examples)
    return load_loop(place, plan), place, found


def load(place: Path, devices: Iterable[torch.device]) -> inductor.Run:
    """The compiled form in a folder.

    Args:
        place: of what was compiled.
        devices: of its inputs.
    """
    return inductor.load(place, _device(devices))


def load_loop(place: Path, plan: loops.Plan) -> loops.Loop:
    """A loop over the compiled form in a folder; see `load` and `compiled_loop`."""
    devices = plan.devices
    loop = loops.c_loop(place, loop_library(), plan) if _device(devices).type == "cpu" else None
    return loop or loops.python_loop(load(place, devices), plan)


def install(name: str, files: Mapping[str, bytes]) -> Path:
    """The folder of what another process compiled; its files are written if it is not there.

    Args:
        name: of the folder that it was in there: what has this name is the same.
        files: that were in it, by name.
    """

    def write(made: Path) -> None:
        for file, content in files.items():
            (made / file).write_bytes(content)

    with _writing():
        return _made_once(name, write)[0]


def install_loop(content: bytes) -> None:
    """Write the library with the loop in C, as another process built it, if it is not there."""

    def write(library: Path) -> None:
        library.write_bytes(content)

    with _writing():
        loop_library(write)


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"compiled code cannot be written to {folder()} ({error}): name a folder that can be in FUNDL_CACHE_DIR"
        ) from error


def _device(devices: Iterable[torch.device]) -> torch.device:
    return next((device for device in devices if device.type != "cpu"), torch.device("cpu"))


def _compiled(graph: Graph, examples: Sequence[Tensor]) -> tuple[Path, bool]:
    """The folder of a compiled graph, and whether it was there."""
    name = hashlib.sha256(f"{inductor.fingerprint(graph)}\n{ambient()}".encode()).hexdigest()
    return _made_once(name, lambda made: inductor.compile_graph(graph, examples, made))


def _made_once(name: str, make: Callable[[Path], None]) -> tuple[Path, bool]:
    """The folder of a compiled graph, filled if it is not there: whole or not at all; and whether it was."""
    keep_freed_memory()
    whole.registered()  # for graphs that have these operations
    place = folder() / "jit" / name
    found = place.exists()
    if not found:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as made:
            make(Path(made))
            try:
                os.rename(made, place)
            except OSError:  # another process was faster
                if not place.exists():
                    raise
            else:
                Path(made).mkdir()  # for the TemporaryDirectory to remove
    return place, found


def loop_library(make: Callable[[Path], None] = loops.build_loop) -> Path:
    """The library with the loop in C, made if it is not there."""
    place = folder() / "jit" / f"loop-{loops.VERSION}.so"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as made:
            make(Path(made) / "loop.so")
            os.replace(Path(made) / "loop.so", place)
    return place

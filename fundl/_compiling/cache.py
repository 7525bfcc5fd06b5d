"""Compiled graphs: what one process compiled, the next one loads from the store.

Nothing that is on disk is an error: what is broken, or cannot be read, is compiled anew; and where nothing can be written, or
others could write, code is kept for this process alone.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from fundl._common import folder, store
from fundl._compiling import cuda, cudnn_operators, inductor, library, loops, lstm_operators, processes, waiting
from fundl._compiling.graphs import Graph
from fundl._compiling.torch_settings import torch_settings
from fundl.memory import keep_freed_memory

F = TypeVar("F")


def compiled(graph: Graph, examples: Sequence[Tensor]) -> tuple[inductor.Run, Path, bool]:
    """The compiled form of a graph, given examples of its inputs; the folder that it is in, and whether it was on disk.

    Raises:
        CompilerError: it was not, and cannot be compiled.
    """
    return _of_graph(graph, examples, lambda place: load(place, [tensor.device for tensor in examples]))


def compiled_loop(graph: Graph, examples: Sequence[Tensor], plan: loops.Plan) -> tuple[loops.Loop, Path, bool]:
    """A loop over a graph that writes to its inputs, and has no outputs; else as `compiled`."""
    return _of_graph(graph, examples, lambda place: load_loop(place, plan))


def _of_graph(graph: Graph, examples: Sequence[Tensor], load: Callable[[Path], F]) -> tuple[F, Path, bool]:
    def make(made: Path) -> None:
        with waiting.shown(graph):
            inductor.compile_graph(graph, examples, made)

    key = _key(graph)
    return processes.compiled_once(graph, key, lambda: _loaded(key, make, load))


def load(place: Path, devices: Iterable[torch.device]) -> inductor.Run:
    """The compiled form in a folder, for inputs on some devices."""
    return inductor.load(place, _device(devices))


def load_loop(place: Path, plan: loops.Plan) -> loops.Loop:
    """A loop over the compiled form in a folder."""
    if (file := place / library.FILE).exists():
        return loops.c_loop(file, plan)
    return loops.python_loop(load(place, plan.devices), plan)


def install(files: store.Files) -> Path:
    """The folder of a library that another process compiled; its files are written if it is not there.

    It is found by its digest alone: no graph of this process is compiled to it.
    """
    _prepare()
    place = _kept(files, None)
    if place is None:
        place = folder.temporary()
        for name, content in files.items():
            (place / name).write_bytes(content)
    return place


def _device(devices: Iterable[torch.device]) -> torch.device:
    return next((device for device in devices if device.type != "cpu"), torch.device("cpu"))


def _key(graph: Graph) -> str:
    """A digest of a graph, and of all that its compiled form depends on."""
    text = cuda.without_number(f"{inductor.fingerprint(graph)}\n{torch_settings()}")
    return hashlib.sha256(text.encode()).hexdigest()


def _loaded(key: str, make: Callable[[Path], None], load: Callable[[Path], F]) -> tuple[F, Path, bool]:
    """What was compiled before, or is compiled now, ready to run; the folder that it is in, and whether it was there."""
    _prepare()
    place = _found(key)
    if place is not None:
        try:
            return load(place), place, True
        except Exception as error:  # of whatever kind: what loads libraries has several
            folder.warn(f"{place} is what was compiled, but cannot be loaded ({first_line(error)})")
    made, files = _made(make)
    place = _kept(files, key)
    cause: Exception | None = None
    for each in filter(None, (place, made)):
        try:
            result = load(each)
        except Exception as error:  # likewise
            cause = error
        else:
            if each is place:
                shutil.rmtree(made, ignore_errors=True)
            return result, each, False
    raise inductor.CompilerError(f"what was compiled cannot be loaded ({cause and first_line(cause)})") from cause


def _prepare() -> None:
    """Do what must be done before compiled code is loaded."""
    keep_freed_memory()
    lstm_operators.registered()
    cudnn_operators.registered()


def _made(make: Callable[[Path], None]) -> tuple[Path, store.Files]:
    """A temporary folder in which something was compiled, and what is in it."""
    try:
        made, own = folder.temporary(), folder.base()
    except OSError as error:
        raise inductor.CompilerError(f"there is no folder for temporary files ({error})") from error
    with contextlib.suppress(OSError):
        own = folder.kept()
    with folder.for_torch(own=own / "torch"):
        make(made)
    try:
        return made, store.read(made)
    except OSError as error:
        raise inductor.CompilerError(f"what was compiled cannot be read ({error})") from error


def _found(key: str) -> Path | None:
    try:
        return store.Store(folder.kept()).find(key)
    except OSError:  # there is a warning when there is something to keep
        return None


def _kept(files: store.Files, key: str | None) -> Path | None:
    """The folder in which a library is kept for other processes, as that of a key if there is one; None if it cannot be."""
    try:
        return store.Store(folder.kept()).add(files, key)
    except OSError as error:
        folder.warn(f"{folder.chosen()} cannot be written ({error.strerror})" if error.filename else str(error))
        return None


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    return (str(error) or type(error).__name__).splitlines()[0]

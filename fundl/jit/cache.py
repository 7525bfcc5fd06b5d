"""Compiled graphs on disk: what one process compiled, the next one loads."""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fundl.jit import torch_private, whole
from fundl.jit.ambient import ambient
from fundl.memory import keep_freed_memory


def folder() -> Path:
    """Where compiled graphs are: FUNDL_CACHE_DIR, or fundl in the user's folder of caches."""
    if chosen := os.environ.get("FUNDL_CACHE_DIR"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fundl"


def compiled(graph: torch_private.Graph, examples: Sequence[Tensor]) -> tuple[torch_private.Run, bool]:
    """The compiled form of a graph, and whether it was on disk.

    Args:
        graph: as `trace` returned it.
        examples: of its inputs.

    Raises:
        CompilerError: it was not, and cannot be compiled.
    """
    place, found = _compiled(graph, examples)
    return torch_private.load(place, _device(examples)), found


def compiled_loop(
    graph: torch_private.Graph, examples: Sequence[Tensor], sliced: Sequence[bool]
) -> tuple[torch_private.Loop, bool]:
    """A loop over a graph that writes to its inputs, and whether its compiled form was on disk.

    Args:
        graph: without outputs.
        examples: of its inputs.
        sliced: which inputs are cut along their first axis.

    Raises:
        CompilerError: it was not, and cannot be compiled.
    """
    (place, found), device = _compiled(graph, examples), _device(examples)
    loop = torch_private.load_loop(place, _loop_library(), sliced) if device.type == "cpu" else None
    return loop or torch_private.python_loop(torch_private.load(place, device), sliced), found


def _device(examples: Sequence[Tensor]) -> torch.device:
    return next((tensor.device for tensor in examples if not tensor.is_cpu), torch.device("cpu"))


def _compiled(graph: torch_private.Graph, examples: Sequence[Tensor]) -> tuple[Path, bool]:
    """The folder of a compiled graph, and whether it was there."""
    keep_freed_memory()
    whole.registered()  # for graphs that have these operations
    place = folder() / "jit" / hashlib.sha256(f"{graph.fingerprint()}\n{ambient()}".encode()).hexdigest()
    found = place.exists()
    if not found:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as made:
            torch_private.compile_graph(graph, examples, Path(made))
            try:
                os.rename(made, place)
            except OSError:  # another process was faster
                if not place.exists():
                    raise
            else:
                Path(made).mkdir()  # for the TemporaryDirectory to remove
    return place, found


def _loop_library() -> Path:
    """The library with the loop in C, built if it is not there."""
    place = folder() / "jit" / f"loop-{torch_private.LOOP_VERSION}.so"
    if not place.exists():
        with tempfile.TemporaryDirectory(dir=place.parent) as made:
            torch_private.build_loop(Path(made) / "loop.so")
            os.replace(Path(made) / "loop.so", place)
    return place

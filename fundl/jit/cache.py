"""Compiled graphs on disk: what one process compiled, the next one loads."""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fundl.jit import torch_private


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
        NoCompilerError: it was not, and there is no compiler.
    """
    device = next((tensor.device for tensor in examples if not tensor.is_cpu), torch.device("cpu"))
    place = folder() / "jit" / hashlib.sha256(graph.fingerprint().encode()).hexdigest()
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
    return torch_private.load(place, device), found

"""Settings of the whole test run."""

import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("FUNDL_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "fundl"))  # not the user's
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, and threads would only wait for one another

collect_ignore = ["typing"]  # programs for mypy: some of them must not run


import pytest  # noqa: E402  # torch looks at the environment when it is imported
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from fundl._compiling import cache, graphs, inductor, loops  # noqa: E402


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """For `-m cuda` only the files of such tests are imported: a machine with a GPU need not have what the others import."""
    others = collection_path.suffix == ".py" and not collection_path.name.startswith(("test_cuda", "conftest"))
    return True if config.option.markexpr == "cuda" and others else None


# --- Compiled functions -------------------------------------------------------------------------------------------------

# Compiling takes seconds: what is not about compiling itself runs traced graphs as they are.


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_the_graph(graph: graphs.Graph, _examples: Sequence[Tensor]) -> tuple[inductor.Run, Path, bool]:
        @torch.no_grad()
        def run(inputs: list[Tensor]) -> list[Tensor]:
            return list(graph.module(*inputs))

        return run, Path("nowhere"), False

    monkeypatch.setattr(cache, "compiled", run_the_graph)


@pytest.fixture
def interpreted_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_the_graph(graph: graphs.Graph, _examples: Sequence[Tensor], plan: loops.Plan) -> tuple[loops.Loop, Path, bool]:
        def run(inputs: list[Tensor]) -> list[Tensor]:
            with torch.no_grad():
                graph.module(*inputs)
            return []

        return loops.python_loop(run, plan), Path("nowhere"), False

    monkeypatch.setattr(cache, "compiled_loop", run_the_graph)

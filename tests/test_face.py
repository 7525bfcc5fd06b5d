"""The public face: one flat namespace, all of it listed, documented and importable on its own."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from torch import Tensor

import fundl
from tests.face import PUBLIC

ROOT = Path(__file__).parent.parent


def test_all_lists_what_is_public() -> None:
    """Each name that the face imports as itself: checkers take it from there."""
    imports = [node for node in ast.parse((ROOT / "fundl/__init__.py").read_text()).body if isinstance(node, ast.ImportFrom)]
    public = [name.asname for node in imports for name in node.names if name.asname == name.name]
    assert sorted(public) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_is_documented(name: str) -> None:
    value: object = getattr(fundl, name)
    if value is Tensor:  # an alias, such as Key
        return
    if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
        assert (inspect.getdoc(value) or "").strip()
    if inspect.isclass(value):
        for member, attribute in vars(value).items():
            if inspect.isfunction(attribute) and not member.startswith("_"):
                assert (inspect.getdoc(getattr(value, member)) or "").strip(), f"{name}.{member}"


def test_errors_are_named_as_they_are_caught() -> None:
    kinds: list[object] = [getattr(fundl, name) for name in PUBLIC]
    errors = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseException)]
    assert {error.__name__ for error in errors} >= {"DonatedError", "TraceError", "RetraceError", "Interrupted"}
    assert {error.__module__ for error in errors} == {"fundl"}


def test_importing_fundl_loads_nothing_heavy() -> None:
    program = "import torch, sys; before = set(sys.modules); import fundl; print(*(set(sys.modules) - before), sep='\\n')"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert "fundl.model" in loaded
    assert not loaded & {"rich", "matplotlib", "typer", "torch._dynamo", "torch._inductor"}
    assert not any(name.startswith("fundl.interop") for name in loaded)


def mentions(source: str) -> Iterator[str]:
    """The modules that a program imports, and the attributes that it reads of torch."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            yield f"torch.{node.attr}"


OURS = sorted(path for path in (ROOT / "fundl").rglob("*.py") if "interop" not in path.parts)  # which knows other frameworks


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_the_calculus_is_ours(path: Path) -> None:
    """No autograd, torch.nn nor torch.optim; torch.ops in four modules, torch.func in the package that differentiates.

    `graphs` has of the latter what makes a graph without writing, and no derivative.
    """
    doors = {"kernels.py", "recurrent_kernels.py", "graph_operations.py", "exchanges.py"}
    closed = ["torch.autograd", "torch.nn", "torch.optim"] + ["torch.ops"] * (path.name not in doors)
    closed += ["torch.func"] * ("derivatives" not in path.parts and path.name != "graphs.py")
    found = [name for name in mentions(path.read_text()) if name.startswith(tuple(closed))]
    assert not found


FACES = [
    "fundl",
    "fundl.distributed",
    "fundl.ensemble",
    "fundl.language",
    "fundl.interop.aoti",
    "fundl.interop.hugging_face",
    "fundl.interop.onnx",
    "fundl.interop.torch_nn",
    "fundl.interop.torch_vision",
]
MODULES = [found.name for found in pkgutil.walk_packages(fundl.__path__, "fundl.")]


def used_by_the_face() -> set[str]:
    """The modules whose names a user has, and those that a user has as a whole, such as `tree`."""
    files = [ROOT.joinpath(*face.split("."), "__init__.py") for face in FACES]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
    return {str(node.module) for node in nodes} | {f"{node.module}.{name.name}" for node in nodes for name in node.names}


@pytest.mark.parametrize("name", MODULES)
def test_no_name_hides_a_module(name: str) -> None:
    module = importlib.import_module(name)
    assert pkgutil.resolve_name(name.replace("fundl.", "fundl:", 1)) is module


@pytest.mark.parametrize("name", MODULES)
def test_what_is_private_looks_private(name: str) -> None:
    is_package = any(other.startswith(f"{name}.") for other in MODULES)
    assert is_package or "._" in name or name in used_by_the_face()


def imported(nodes: Iterable[ast.AST], package: str) -> Iterator[str]:
    """The modules that statements import as they run, and what they take from them."""
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [node.module])])
            module = base if node.level else str(node.module)
            yield from (f"{module}.{name.name}" if f"{module}.{name.name}" in MODULES else module for name in node.names)
        elif not isinstance(node, ast.FunctionDef) and not (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        ):
            yield from imported(ast.iter_child_nodes(node), package)


def test_imports_go_downward() -> None:
    graph: dict[str, set[str]] = {}
    for name in MODULES:
        path = ROOT.joinpath(*name.split("."))
        package, file = (name, path / "__init__.py") if path.is_dir() else (name.rpartition(".")[0], path.with_suffix(".py"))
        graph[name] = {*imported(ast.parse(file.read_text()).body, package)} & {*MODULES} - {name}
    assert sum(map(len, graph.values())) > len(MODULES)
    TopologicalSorter(graph).prepare()  # raises CycleError, which says where the circle is


def test_completion_offers_what_is_public() -> None:
    assert {name for name in dir(fundl) if not name.startswith("_")} == {*PUBLIC}
    assert fundl.__version__


def test_the_version_is_one() -> None:
    version = fundl.__version__
    assert re.search(rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()

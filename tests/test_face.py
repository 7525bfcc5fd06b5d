"""The public face: one flat namespace, all of it listed, documented and importable on its own."""

import ast
import inspect
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

import fundl

ROOT = Path(__file__).parent.parent


def test_all_lists_what_is_public() -> None:
    public = {
        name
        for name, value in vars(fundl).items()
        if not name.startswith("_") and not (isinstance(value, types.ModuleType) and name not in fundl.__all__)
    }
    assert public == set(fundl.__all__)
    assert len(fundl.__all__) == len(public)


@pytest.mark.parametrize("name", fundl.__all__)
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
    """fundl uses neither autograd nor torch.nn nor torch.optim, and only kernels.py opens torch.ops."""
    closed = ["torch.autograd", "torch.nn", "torch.optim"] + ["torch.ops"] * (path.name != "kernels.py")
    found = [name for name in mentions(path.read_text()) if name.startswith(tuple(closed))]
    assert not found

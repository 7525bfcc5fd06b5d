"""The plugin for mypy as a program: in a cache, in a daemon, beside other versions of mypy, and without torch."""

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import fundl_mypy
from fundl_mypy.defaults import default_of
from fundl_mypy.needs import NEEDS, missing

ROOT: Final = Path(__file__).parent.parent
MISFIT: Final = "error: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features  [layer-misfit]"

# A fundl of a few lines, which mypy reads in no time. The plugin goes by names, and knows none but those of fundl.

LAYER: Final = """
from abc import ABC
from typing import TypeAlias
from fundl.shapes import AnyShape, Shape

class Layer(ABC):
    def output_shape(self, shape: AnyShape) -> AnyShape:
        return Shape(...)

Model: TypeAlias = "Layer | tuple[Model, ...]"
"""
MODEL: Final = """
from typing import TypeVarTuple

Ts = TypeVarTuple("Ts")

def compose(*layers: *Ts) -> tuple[*Ts]:
    return layers
"""
LINEAR: Final = """
from typing import Generic
from typing_extensions import TypeVar, TypeVarTuple
from fundl.layer import Layer
from fundl.shapes import AnySize, Shape

InFeatures = TypeVar("InFeatures", bound=int, covariant=True, default=AnySize)
OutFeatures = TypeVar("OutFeatures", bound=int, covariant=True, default=AnySize)
In = TypeVar("In", bound=int)
Out = TypeVar("Out", bound=int)
Lead = TypeVarTuple("Lead")

class Linear(Layer, Generic[InFeatures, OutFeatures]):
    def output_shape(self, shape: Shape[*Lead, InFeatures]) -> Shape[*Lead, OutFeatures]:
        return Shape(...)

def linear(in_features: In, out_features: Out) -> Linear[In, Out]:
    return Linear()
"""
BODY: Final = """
from fundl.linear import linear
from fundl.model import compose

body = compose(linear(2, 3))
"""
USE: Final = """
from body import body
from fundl.linear import linear
from fundl.model import compose

def use() -> None:
    compose(*body, linear(4, 5))
"""


class Project:
    """A folder of modules, and mypy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.time = time.time()
        self.write("mypy.ini", "[mypy]\nplugins = fundl_mypy\ndisallow_any_explicit = true\n")
        self.write("fundl/__init__.py", "")
        for file in (ROOT / "fundl" / "shapes").glob("*.py"):
            self.write(f"fundl/shapes/{file.name}", file.read_text())
        self.write("fundl/layer.py", LAYER)
        self.write("fundl/model.py", MODEL)
        self.write("fundl/linear.py", LINEAR)
        self.write("body.py", BODY)
        self.write("use.py", USE)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_text(text)
        self.time += 10  # mypy goes by times in whole seconds
        os.utime(self.folder / name, (self.time, self.time))

    def change(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new))

    def run(self, *command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=self.folder, capture_output=True, text=True, check=False, timeout=120
        )
        assert not done.stderr, done.stderr
        return done.stdout

    def mypy(self, *arguments: str) -> str:
        return self.run("-m", "mypy", *arguments)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


SWAPPED: Final = ("[*Lead, InFeatures]) -> Shape[*Lead, OutFeatures]", "[*Lead, OutFeatures]) -> Shape[*Lead, InFeatures]")


def test_the_cache_is_kept_up_with(project: Project) -> None:
    assert MISFIT in project.mypy("use.py")
    assert MISFIT in project.mypy("use.py")
    project.change("body.py", "linear(2, 3)", "linear(2, 4)")
    assert project.mypy("use.py").startswith("Success")
    project.change("body.py", "compose(linear(2, 4))", "compose(linear(2, 3), linear(3, 4))")
    assert project.mypy("use.py").startswith("Success")
    project.change("body.py", "linear(2, 3), linear(3, 4)", "linear(2, 3)")
    assert MISFIT in project.mypy("use.py")
    project.change("fundl/linear.py", *SWAPPED)
    assert "layer 2 (Linear) expects 5 features but layer 1 (Linear) gives 2 features" in project.mypy("use.py")


@pytest.fixture
def daemon(project: Project) -> Iterator[Project]:
    project.run("-m", "mypy.dmypy", "start", "--", "--config-file", "mypy.ini")
    yield project
    project.run("-m", "mypy.dmypy", "stop")


def test_a_daemon_sees_changes(daemon: Project) -> None:
    def check() -> str:
        return daemon.run("-m", "mypy.dmypy", "check", "use.py")

    assert MISFIT in check()
    daemon.change("body.py", "linear(2, 3)", "linear(2, 4)")
    assert check().startswith("Success")
    daemon.change("body.py", "linear(2, 4)", "linear(2, 3)")
    assert MISFIT in check()
    daemon.change("fundl/linear.py", *SWAPPED)  # a rule that use.py does not name
    assert "layer 2 (Linear) expects 5 features but layer 1 (Linear) gives 2 features" in check()
    daemon.change("fundl/linear.py", SWAPPED[1], SWAPPED[0])
    assert MISFIT in check()
    daemon.change("use.py", "linear(4, 5)", "linear(3, 5)")
    assert check().startswith("Success")


def test_an_error_can_be_ignored_and_disabled(project: Project) -> None:
    project.change("use.py", "compose(*body, linear(4, 5))", "compose(*body, linear(4, 5))  # type: ignore[layer-misfit]")
    assert project.mypy("use.py", "--warn-unused-ignores").startswith("Success")
    project.write("use.py", USE)
    assert project.mypy("use.py", "--disable-error-code", "layer-misfit").startswith("Success")


def test_without_the_plugin_nothing_is_told(project: Project) -> None:
    project.write("mypy.ini", "[mypy]\nstrict = true\ndisallow_any_explicit = true\n")
    assert project.mypy("use.py").startswith("Success")


def test_mypy_loads_no_torch(project: Project) -> None:
    program = "import sys; from mypy import api; api.run(['use.py']); assert 'fundl_mypy' in sys.modules"
    project.run("-c", f"{program}; assert 'torch' not in sys.modules; assert 'fundl' not in sys.modules")


def as_if(version: str, *changes: str) -> str:
    """A program that runs mypy as if it were of another version, and otherwise, too."""
    steps = ["import mypy.version", f"mypy.version.__version__ = {version!r}", *changes, "from mypy import api"]
    return "; ".join([*steps, "print(*api.run(['use.py']))"])


def test_an_older_mypy_is_told_clearly(project: Project) -> None:
    said = project.run("-c", as_if("1.18.2"))
    assert (
        'mypy.ini:2: error: Error importing plugin "fundl_mypy": it works with mypy 1.19 to 2.4 and newer, and this is' in said
    )
    assert "Traceback" not in said


@pytest.mark.parametrize("version", ["2.5.0", "3.0.0+dev.0123456789abcdef"])
def test_a_newer_mypy_runs_if_it_has_what_is_needed(project: Project, version: str) -> None:
    assert MISFIT in project.run("-c", as_if(version))
    said = project.run("-c", as_if(version, "import mypy.main, mypy.expandtype", "del mypy.expandtype.expand_type"))
    assert (
        f'error: Error importing plugin "fundl_mypy": it is tested with mypy 1.19 to 2.4, and mypy {version} lacks'
        " mypy.expandtype.expand_type: install one of these, or a newer fundl, or take fundl_mypy out of the plugins" in said
    )
    assert "Traceback" not in said


@pytest.mark.parametrize("version", ["1.19.0", "1.20.2", "2.0.0", "2.4.1", "2.4.0+dev.0123456789abcdef", "2.5", "10.0"])
def test_mypy_from_the_oldest_on_is_welcome(version: str) -> None:
    assert fundl_mypy.plugin(version).__name__ == "FundlPlugin"


def test_what_is_missing_is_named() -> None:
    found = missing({"mypy.nodes": ["Var", "Vax", "Var.fullname", "Var.fallname", "Vax.name"], "mypy.none": ["A"]})
    assert found == ["mypy.nodes.Vax", "mypy.nodes.Var.fallname", "mypy.nodes.Vax.name", "mypy.none.A"]


def test_all_that_is_imported_is_looked_for() -> None:
    """And of the members that are looked for, all are used."""
    trees = [ast.parse(file.read_text()) for file in (ROOT / "fundl_mypy").glob("*.py") if file.name != "__init__.py"]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mypy"]
    imported = {f"{node.module}.{alias.name}" for node in froms for alias in node.names}
    needed = {f"{module}.{name}" for module, names in NEEDS.items() for name in names}
    assert imported <= needed
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)} | {
        keyword for node in nodes if isinstance(node, ast.MatchClass) for keyword in node.kwd_attrs
    }
    used |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    assert {name.rpartition(".")[2] for name in needed - imported} <= used


# --- Defaults ----------------------------------------------------------------------------------------------------------

MODULE: Final = """
import attrs

def function(a, b=1, *, c=(2, 3), d=None, e=a, f="sum", g=-1): ...

class Class:
    field: int = 4
    other: int = attrs.field(default=5, kw_only=True)
    made: int = attrs.field(factory=int)

    def method(self, a=6): ...

class Derived(Class, Generic[T]):
    other: int = attrs.field(default=8, kw_only=True)

class Derived2(Derived[int], Derived2):
    pass

@overload
def overloaded(a): ...
def overloaded(a=7): ...
"""


@pytest.mark.parametrize(
    ("name", "parameter", "default"),
    [
        ("function", "a", None),
        ("function", "b", 1),
        ("function", "c", (2, 3)),
        ("function", "d", None),
        ("function", "e", None),
        ("function", "f", "sum"),
        ("function", "g", -1),
        ("Class", "field", 4),
        ("Class", "other", 5),
        ("Class", "made", None),
        ("Class.method", "a", 6),
        ("Derived", "field", 4),
        ("Derived", "other", 8),
        ("Derived2", "field", 4),
        ("Derived2", "other", 8),
        ("Derived2", "nothing", None),
        ("overloaded", "a", 7),
        ("nothing", "a", None),
        ("function", "nothing", None),
    ],
)
def test_defaults_are_read_from_the_source(tmp_path: Path, name: str, parameter: str, default: object) -> None:
    (tmp_path / "module.py").write_text(MODULE)
    assert default_of(str(tmp_path / "module.py"), name, parameter) == default


def test_a_file_that_cannot_be_read_has_no_defaults(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def (")
    assert default_of(str(tmp_path / "broken.py"), "function", "a") is None
    assert default_of(str(tmp_path / "missing.py"), "function", "a") is None

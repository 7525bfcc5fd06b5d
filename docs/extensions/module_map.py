"""The map of modules: who imports whom, from the imports themselves."""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fundl"


def _part(module: str) -> str:
    """The folder or file right below fundl that a module is in."""
    return module.split(".")[1]


def _as_it_runs(nodes: Iterable[ast.AST]) -> Iterator[ast.ImportFrom]:
    """The imports that a module makes, but for those that a function makes, or only a checker sees."""
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            yield node
        elif not isinstance(node, ast.FunctionDef | ast.If):
            yield from _as_it_runs(ast.iter_child_nodes(node))


def _imports(file: Path) -> Iterator[str]:
    """The modules of fundl that a file imports from outside of its folder."""
    for node in _as_it_runs(ast.parse(file.read_text()).body):
        if node.module and node.module.split(".")[0] == "fundl":
            yield from ([node.module] if node.module != "fundl" else [f"fundl.{name.name}" for name in node.names])


def graph() -> dict[str, set[str]]:
    """Of each part of fundl, the parts that it imports; but for `_common`, which most import, and which imports some."""
    found: dict[str, set[str]] = defaultdict(set)
    for file in sorted(PACKAGE.rglob("*.py")):
        part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part not in {"__init__", "_common"}:
            found[part] |= {_part(module) for module in _imports(file)} - {part, "_common"}
    return found


def rows(edges: dict[str, set[str]]) -> list[list[str]]:
    """The parts, in rows: each above all that it imports."""

    @cache
    def height(part: str) -> int:
        return 1 + max(map(height, edges[part]), default=-1)

    return [sorted(part for part in edges if height(part) == level) for level in range(1 + max(map(height, [*edges])))]


def _nearest(edges: dict[str, set[str]], part: str) -> set[str]:
    """What a part imports, but for what it reaches by others as well: fewer lines, the same order."""

    @cache
    def reached(from_: str) -> frozenset[str]:
        return frozenset(edges[from_]).union(*map(reached, edges[from_]))

    return edges[part] - set[str]().union(*map(reached, edges[part]))


def _box(axes: Axes, x: float, y: float, part: str) -> None:
    is_folder = (PACKAGE / part).is_dir()
    box = {"boxstyle": "round,pad=0.4", "facecolor": "#ffe8cc" if is_folder else "white", "edgecolor": "#7a3b00"}
    axes.text(x, y, part, ha="center", va="center", fontsize=9, family="monospace", bbox=box, zorder=2)


def draw(file: Path) -> None:
    """Draw the map into a file."""
    edges = graph()
    levels = rows(edges)
    width = max(map(len, levels))
    place = {
        part: ((number + 0.5) / len(level) * width, height)
        for height, level in enumerate(levels)
        for number, part in enumerate(level)
    }
    figure = Figure(figsize=(1.5 * width, 0.75 * len(levels)), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(0, width), ylim=(-0.5, len(levels) - 0.5))
    axes.axis("off")
    for part, (x, y) in place.items():
        _box(axes, x, y, part)
        for other in _nearest(edges, part):
            to_x, to_y = place[other]
            axes.plot([x, to_x], [y, to_y], color="#b08968", linewidth=0.8, zorder=1)
    figure.savefig(file)

"""fundl's docstrings as Sphinx reads them: an indented block is a formula, single backticks are a name or code."""

import builtins
import inspect
import itertools
import keyword
import re
from collections.abc import Iterator

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.typing import ExtensionMetadata

import fundl

SECTION = re.compile(r"[A-Z][a-z]+:")
NAME = re.compile(r"[A-Za-z_][\w.]*")


def _is_indented(line: str) -> bool:
    return line.startswith("    ")


def with_formulas(lines: list[str]) -> Iterator[str]:
    """The lines of a docstring, with a directive before each block that stands alone, indented, below plain text."""
    text, is_inside = "", False  # the last line of plain text, and whether we are in a formula
    for above, line in itertools.pairwise(["", *lines]):
        if line and not _is_indented(line):
            text, is_inside = line, False
        elif _is_indented(line) and not above.strip() and not is_inside and not SECTION.fullmatch(text):
            is_inside = True
            yield from (".. code-block:: text", "   :class: formula", "")
        yield line


def _process(_app: Sphinx, _what: str, _name: str, _of: object, _options: object, lines: list[str]) -> None:
    lines[:] = with_formulas(lines)


def _parameters() -> Iterator[str]:
    """The names of all arguments and fields of what is public."""
    for module in (fundl, fundl.tree, fundl.random, fundl.ensemble, fundl.shapes):
        for value in vars(module).values():
            if inspect.isclass(value) or inspect.isroutine(value):
                yield from getattr(value, "__match_args__", ())
                try:
                    yield from inspect.signature(value).parameters
                except (TypeError, ValueError):  # a class of typing, or of C
                    continue


KNOWN = {*_parameters(), *keyword.kwlist, *dir(builtins)}


def _resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.TextElement) -> nodes.Node | None:
    """Where a reference leads that Sphinx does not find: a type by its public name, code to nowhere, else a warning."""
    if node.get("refdomain") != "py":
        return None
    target = str(node["reftarget"])
    last = target.rpartition(".")[2]
    if target.startswith("fundl.") and last in fundl.__all__:
        python = env.domains.python_domain
        return python.resolve_xref(env, node["refdoc"], app.builder, "obj", f"fundl.{last}", node, shown)
    if node["reftype"] != "obj" or not NAME.fullmatch(target):
        return shown  # a type of others, or of the inside; a piece of code
    return shown if target in KNOWN or target.startswith("torch.") else None


def setup(app: Sphinx) -> ExtensionMetadata:
    """Join the reading of docstrings (before napoleon does), and the search for what they name."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

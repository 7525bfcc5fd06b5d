"""fundl's docstrings as Sphinx reads them: an indented block is a formula, single backticks are a name or code."""

import builtins
import inspect
import itertools
import keyword
import re
import types
from collections.abc import Iterator

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.typing import ExtensionMetadata
from typing_extensions import override

import fundl

SECTION = re.compile(r"[A-Z][a-z]+:")
NAME = re.compile(r"[A-Za-z_][\w.]*")


def _is_indented(line: str) -> bool:
    return line.startswith("    ")


def _as_plain(line: str) -> str:
    """A line of text in which nothing but backticks is markup."""
    pieces = re.split(r"(`+[^`]*`+)", line)
    pieces[::2] = [re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", piece) for piece in pieces[::2]]
    return "".join(pieces)


def as_restructured(lines: list[str]) -> Iterator[str]:
    """A docstring in reStructuredText: a block that stands alone, indented, below plain text, is a formula."""
    text, is_formula, is_session = "", False, False  # text is the last line that is not indented
    for above, line in itertools.pairwise(["", *lines]):
        if line and not _is_indented(line):
            text, is_formula = line, False
        elif _is_indented(line) and not above.strip() and not is_formula and not SECTION.fullmatch(text):
            is_formula = True
            yield from (".. code-block:: text", "   :class: formula", "")
        is_session = bool(line.strip()) and (is_session or line.lstrip().startswith(">>> "))
        yield line if is_formula or is_session else _as_plain(line)


def _process(_app: Sphinx, _what: str, _name: str, _of: object, _options: object, lines: list[str]) -> None:
    lines[:] = as_restructured(lines)


class _AsIs(str):
    """A text that stands for itself, in place of a default."""

    __slots__ = ()

    @override
    def __repr__(self) -> str:
        return str(self)


def _show_defaults(_app: Sphinx, value: object, _is_method: bool) -> None:
    """Show the defaults of a constructor that attrs wrote as themselves, not as what attrs wrote."""
    if inspect.isfunction(value) and value.__code__.co_filename.startswith("<attrs generated"):
        signature = inspect.signature(value)
        shown = [
            one if one.default is one.empty else one.replace(default=_AsIs(repr(one.default)))
            for one in signature.parameters.values()
        ]
        vars(value)["__signature__"] = signature.replace(parameters=shown)


def _parts() -> Iterator[str]:
    """The names of all arguments, fields and methods of what is public."""
    for module in (fundl, fundl.distributed, fundl.ensemble, fundl.random, fundl.shapes, fundl.tree):
        for value in vars(module).values():
            if inspect.isclass(value) or inspect.isroutine(value):
                yield from getattr(value, "__match_args__", ())
                yield from vars(value)
                try:
                    yield from inspect.signature(value).parameters
                except (TypeError, ValueError):  # a class of typing, or of C
                    continue


CODE = {*_parts(), *keyword.kwlist, *dir(builtins), *dir(types.GeneratorType)}
OTHERS = ("torch.", "nn.", "functools.")


def _is_code(target: str) -> bool:
    """Whether a name that leads nowhere is right all the same: a part of what is public, or of others."""
    owner, _, part = target.rpartition(".")
    return target in CODE or target.startswith(OTHERS) or (part in CODE and owner in dir(fundl))


def _resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.TextElement) -> nodes.Node | None:
    """Where a reference leads that Sphinx does not find: a type by its public name, code to nowhere, else a warning."""
    if node.get("refdomain") != "py":
        return None
    target = str(node["reftarget"])
    if not NAME.fullmatch(target):
        return shown  # a piece of code
    python = env.domains.python_domain
    for name in (f"fundl.{target}", f"fundl.{target.rpartition('.')[2]}"):
        if name in python.objects:
            return python.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, shown)
    is_type = node["reftype"] != "obj" or target.startswith("fundl.")  # of others, of the inside, or a variable
    return shown if is_type or _is_code(target) else None


def setup(app: Sphinx) -> ExtensionMetadata:
    """Join the reading of docstrings (before napoleon does), and the search for what they name."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("autodoc-before-process-signature", _show_defaults, priority=600)  # after Sphinx has read the source
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

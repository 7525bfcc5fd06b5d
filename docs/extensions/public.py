"""`{public}`: the public names that are given, each with its signature and docstring, as it is meant for users."""

import inspect
from collections.abc import Iterator
from operator import attrgetter

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata
from typing_extensions import override

import fundl
import fundl.interop.aoti
import fundl.interop.hugging_face
import fundl.interop.onnx
import fundl.interop.torch_nn
import fundl.interop.torch_vision

CONTRACTS = (fundl.Dependent, fundl.OwnFans, fundl.Record)  # written by those who derive, and called by fundl


def _members(kind: type) -> Iterator[str]:
    """What a user calls on a value of the class: what its `dir` lists of the methods and properties that fundl gives it."""
    contract = {name for of in CONTRACTS if kind is not of for name in vars(of)}
    owners = {name: owner for owner in reversed(kind.__mro__) for name in vars(owner) if owner.__module__.startswith("fundl")}
    for name, owner in owners.items():
        value = vars(owner)[name]
        is_callable = inspect.isfunction(value) or isinstance(value, classmethod | staticmethod | property)
        is_listed = name in dir(kind) and name not in contract and not name.startswith("_")
        if is_callable and is_listed and inspect.getdoc(getattr(kind, name)):
            yield name


def _entry(name: str) -> Iterator[str]:
    value = attrgetter(name)(fundl)
    if inspect.isclass(value):
        yield f".. autoclass:: fundl.{name}"
        yield ""
        for member in _members(value):
            is_property = isinstance(inspect.getattr_static(value, member), property)
            yield f"   .. {'autoproperty' if is_property else 'automethod'}:: fundl.{name}.{member}"
    elif inspect.isroutine(value):
        yield f".. autofunction:: fundl.{name}"
    elif inspect.ismodule(value):
        yield f".. automodule:: fundl.{name}"
    else:
        yield f".. autodata:: fundl.{name}"
        yield "   :no-value:"
    yield ""


class Public(SphinxDirective):
    """Names, separated by spaces and lines; those of modules with their module's, as `tree.map`."""

    has_content = True

    @override
    def run(self) -> list[nodes.Node]:
        """Hand the names on to autodoc, which is written in reStructuredText."""
        names = " ".join(self.content).split()
        lines = [".. currentmodule:: fundl", "", *(line for name in names for line in _entry(name))]
        return self.parse_text_to_nodes("\n".join(["```{eval-rst}", *lines, "```"]))


def setup(app: Sphinx) -> ExtensionMetadata:
    """Make the directive known."""
    app.add_directive("public", Public)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

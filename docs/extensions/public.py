"""`{public}`: the public names that are given, each with its signature and docstring, as it is meant for users."""

import inspect
from collections.abc import Iterator
from operator import attrgetter

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

import fundl
import fundl.interop.torch_nn

OF_LAYERS = {"backward", "backward_input", "backward_params", "forward", "output_shape"}


def _members(kind: type) -> Iterator[str]:
    """What a user calls on a value of the class: its own documented methods and properties, but for the contract."""
    contract = OF_LAYERS if issubclass(kind, fundl.Layer) and kind is not fundl.Layer else set()
    for name, value in vars(kind).items():
        is_callable = inspect.isfunction(value) or isinstance(value, classmethod | staticmethod | property)
        if is_callable and not name.startswith("_") and name not in contract and inspect.getdoc(getattr(kind, name)):
            yield name


def _entry(name: str) -> Iterator[str]:
    value = attrgetter(name)(fundl)
    if inspect.isclass(value):
        yield f".. autoclass:: fundl.{name}"
        yield from (f"   :members: {members}" for members in [", ".join(_members(value))] if members)
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

    def run(self) -> list[nodes.Node]:
        """Hand the names on to autodoc, which is written in reStructuredText."""
        names = " ".join(self.content).split()
        lines = [".. currentmodule:: fundl", "", *(line for name in names for line in _entry(name))]
        return self.parse_text_to_nodes("\n".join(["```{eval-rst}", *lines, "```"]))


def setup(app: Sphinx) -> ExtensionMetadata:
    """Make the directive known."""
    app.add_directive("public", Public)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""`{residuals}`: what each layer keeps for its backward, from the table by which the tests hold it to that."""

from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata
from torch import Tensor
from typing_extensions import override

from fundl import Model, apply, tree
from tests.samples import SAMPLES, Sample


def _shape(tensors: object) -> str:
    return ", ".join(" x ".join(map(str, leaf.shape)) or "1" for leaf in tree.leaves(tensors))


def _output(model: Model, x: object) -> object:
    if isinstance(model, tuple):
        assert isinstance(x, Tensor)  # as it is in all samples
        return apply(model, x)
    return apply(model, x)


def _cells(sample: Sample) -> Iterator[str]:
    y = _output(sample.model, sample.x)
    yield sample.name
    yield _shape(sample.x)
    yield _shape(y)
    yield str(tree.nbytes(sample.x))
    yield str(sample.kept)


class Residuals(SphinxDirective):
    """A table with a row for each sample layer."""

    @override
    def run(self) -> list[nodes.Node]:
        """Write the table in Markdown."""
        head = ["layer", "input", "output", "the input's bytes", "bytes kept"]
        rows = [head, ["---"] * 3 + ["---:"] * 2, *(list(_cells(sample)) for sample in SAMPLES)]
        return self.parse_text_to_nodes("\n".join("| " + " | ".join(row) + " |" for row in rows))


def setup(app: Sphinx) -> ExtensionMetadata:
    """Make the directive known."""
    app.add_directive("residuals", Residuals)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

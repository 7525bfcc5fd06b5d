"""Formulas as MathML, which browsers draw by themselves: no script, no font, no other host.

docutils knows how to write TeX's formulas in MathML; Sphinx asks here for each formula of a page.
"""

import html
from typing import Final

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata
from sphinx.writers.html5 import HTML5Translator

_LOG: Final = logging.getLogger(__name__)


def _mathml(node: nodes.math | nodes.math_block, *, as_block: bool) -> str:
    """The formula; or, with a warning that says where, its text, if docutils does not know a command of it."""
    try:
        return latex2mathml.tex2mathml(node.astext(), as_block=as_block)
    except MathError as error:
        _LOG.warning("a formula cannot be drawn: %s", error, location=node)
        return f"<code>{html.escape(node.astext())}</code>"


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="formula">{_mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> ExtensionMetadata:
    """Make it the way in which formulas are written."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}

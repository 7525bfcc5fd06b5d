"""How the site is built: `make docs` writes it to docs/_build/html, and takes every warning for an error."""

import sys
from pathlib import Path

import fundl

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent)]

project = "fundl"
author = "the fundl authors"
project_copyright = f"2026, {author}"
release = version = fundl.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "docstrings",  # fundl's own conventions: backticks, formulas
    "mathml",  # formulas as the browser's own mathematics
    "pictures",  # what the build draws
    "public",  # the reference: names
    "residuals",  # the reference: bytes
]
exclude_patterns = ["_build", "extensions"]
nitpicky = True

# Prose, in Markdown.
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_inline"]
myst_heading_anchors = 3
highlight_language = "python"

# Docstrings.
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
python_display_short_literal_types = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shape", "Residuals", "Source"]
smartquotes_action = "D"  # dashes alone: what is typed in code is left as it is
toc_object_entries_show_parents = "hide"

# The look.
html_theme = "furo"
html_title = "fundl"
html_static_path = ["static"]
html_css_files = ["fundl.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#7a3b00", "color-brand-content": "#9a4a00"},
    "dark_css_variables": {"color-brand-primary": "#ffb86b", "color-brand-content": "#ffb86b"},
}
html_copy_source = False
html_show_sourcelink = False

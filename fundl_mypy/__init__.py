"""Layers that do not fit together are a type error: a plugin for mypy.

    [tool.mypy]
    plugins = ["fundl_mypy"]

It finds the sizes of layers from the numbers that they are made with, ``linear(2, 25)``, writes them into their types,
``Linear[Literal[2], Literal[25]]``, and runs the layers' shape rules, their methods `output_shape`, on models. What it cannot
know, it says nothing about. It loads mypy and no torch.

    signatures.py    the sizes that a call states, as literal types
    defaults.py      the sizes that a call leaves to the default
    rules.py         shape rules, read from types
    checks.py        which models a call makes or takes, and what is wrong with them
    shared.py        values that are kept where others may come to be: their types keep no sizes
    contract.py      layers that lack a backward
    hooks.py         what mypy calls
    needs.py         what it needs of mypy
"""

import re

from mypy.plugin import Plugin
from mypy.version import __version__

from fundl_mypy.needs import missing

OLDEST = (1, 19)
NEWEST = (2, 4)
"""The versions of mypy that the plugin is tested with; a newer one does as well if it has what is needed."""


def _require_mypy(version: str) -> None:
    """Raise unless the plugin works with this version of mypy, whose inner parts change."""
    known = " to ".join(".".join(map(str, bound)) for bound in (OLDEST, NEWEST))
    advice = "or take fundl_mypy out of the plugins"
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
        raise ImportError(f"it works with mypy {known} and newer, and this is mypy {version}: install one of these, {advice}")
    if lacking := missing():
        raise ImportError(
            f"it is tested with mypy {known}, and mypy {version} lacks {', '.join(lacking)}: install one of these, or a newer"
            f" fundl, {advice}"
        )


_require_mypy(__version__)


def plugin(version: str) -> type[Plugin]:
    """What mypy asks for the plugin's class."""
    from fundl_mypy.hooks import FundlPlugin  # noqa: PLC0415  # only once it is known that mypy has what it imports

    _require_mypy(version)
    return FundlPlugin

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
    hooks.py         what mypy calls
"""

import re

from mypy.plugin import Plugin
from mypy.version import __version__

OLDEST = (1, 19)
NEWEST = (2, 4)


def _require_mypy(version: str) -> None:
    """Raise unless this version of mypy is one of those that the plugin is tested with: its inner parts change."""
    if not OLDEST <= tuple(map(int, re.findall(r"\d+", version)[:2])) <= NEWEST:
        first, last = (".".join(map(str, bound)) for bound in (OLDEST, NEWEST))
        raise ImportError(
            f"it works with mypy {first} to {last}, and this is mypy {version}: install one of these, or take fundl_mypy out"
            " of the plugins"
        )


_require_mypy(__version__)


def plugin(version: str) -> type[Plugin]:
    """What mypy asks for the plugin's class."""
    from fundl_mypy.hooks import FundlPlugin  # noqa: PLC0415  # only once it is known that mypy has what it imports

    _require_mypy(version)
    return FundlPlugin

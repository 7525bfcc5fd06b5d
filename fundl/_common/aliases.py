"""Type aliases that `help` has something to say about: what stands below them in their module, as editors show it too."""

import inspect
import re
import sys
from types import ModuleType
from typing import Annotated, Final, ForwardRef, get_origin

_TEXT: Final = '^{}: TypeAlias = [^\n]*\n"""(.*?)"""'


def is_alias(value: object) -> bool:
    """Whether a public name is one for a type, and not for a thing of fundl's: a class, a function, a module, a constant."""
    if isinstance(value, type):
        return not value.__module__.startswith("fundl")
    return isinstance(value, str) or get_origin(value) is not None


def documented(name: str, alias: object) -> object:
    """The alias of this name, as an object that has its documentation; or the alias itself, where there is no text to read.

    Python keeps no documentation of an alias: `Key` is Tensor, and a union of types takes none. But ``Annotated[alias, ...]``,
    which means the alias to all that reads types, does.
    """
    for path, module in list(sys.modules.items()):
        if path.startswith("fundl.") and name in getattr(module, "__annotations__", {}) and vars(module)[name] is alias:
            meant = ForwardRef(alias, module=path) if isinstance(alias, str) else alias  # one that names itself is a string
            return _with_text(name, Annotated[meant, f"fundl.{name}"], _text(module, name))
    return alias


def _text(module: ModuleType, name: str) -> str:
    try:
        found = re.search(_TEXT.format(name), inspect.getsource(module), re.DOTALL | re.MULTILINE)
    except OSError:  # a program that was packed without its sources
        return ""
    return inspect.cleandoc(found[1]) if found else ""


def _with_text(name: str, alias: object, text: str) -> object:
    for attribute, value in (("__name__", name), ("__module__", "fundl"), ("__doc__", text)):
        setattr(alias, attribute, value)
    return alias

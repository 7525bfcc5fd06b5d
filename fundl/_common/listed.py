"""What `help` and completion list of a public class: what it documents itself, and nothing that others wrote into it."""

import types
from abc import ABCMeta
from collections.abc import Mapping
from typing import Final

from typing_extensions import override

from fundl._common.generated import is_generated

_METHODS: Final = (types.FunctionType, property, classmethod, staticmethod)


class Listed(type):
    """The class of public classes: `help` shows their signature, their documentation, and the methods that they document.

    attrs, typing and abc add some forty names to a class, which `help` would list one by one. What a contract (`Layer`, say)
    documents for all of its classes is listed there alone: a contract says ``_is_contract = True``.
    """

    @override
    def __dir__(cls) -> list[str]:
        bases = [vars(base) for base in cls.__mro__[1:]]
        of_all = {name for base in bases if base.get("_is_contract") for name in base}
        inherited = {name for base in bases for name in _documented(base)}
        return sorted(_documented(vars(cls)) | (inherited - of_all))


class ListedABC(Listed, ABCMeta):
    """The same for classes that leave methods to those that derive from them."""


def _documented(members: Mapping[str, object]) -> set[str]:
    """The names of methods that have documentation of their own."""
    return {
        name
        for name, value in members.items()
        if isinstance(value, _METHODS) and value.__doc__ and not is_generated(value)
        if name == "__call__" or not name.startswith("_")
    }

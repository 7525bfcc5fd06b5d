"""What a file may name: the classes of the library, and what users have registered."""

import functools
import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Final, TypeVar

from fundl._common.suggestions import with_suggestions
from fundl.initializers import Initializer
from fundl.tree import Record

T = TypeVar("T")

_KNOWN: Final[dict[str, object]] = {}  # what users registered
_NAMES: Final[dict[object, str]] = {}
_WORDS: Final = frozenset(
    {"tuple", "list", "dict", "float", "complex", "dtype", "function", "partial", "unknown", "OrderedDict", "same as"}
)
_FUNCTIONS: Final = ("fundl.losses.", "fundl.metrics", "fundl.optim.decay")  # of numbers alone: they do nothing else


@with_suggestions
def saved_as(name: str) -> Callable[[T], T]:
    """Register a class or function of yours by a name, so that `load_model` can make what holds it.

        @saved_as("Scale")
        @attrs.frozen(eq=False)
        class Scale(Layer[Tensor]):
            weight: Tensor

    A file names the classes that its tree is made of. `load_model` makes those of the library, and those that the program
    has registered; it imports nothing, and runs nothing else. What can be registered is a record, such as a layer, a
    NamedTuple, the frozen attrs class of a static field, such as an initialiser, and a function that a static field holds.
    Files are made with the name that is registered at the time; a class that is not registered goes by its module and its own
    name, and can be registered by these later.

    Args:
        name: a text of your choice, other than the names of the library's classes.

    Raises:
        TypeError: it is none of these, or the class is not finished: `saved_as` stands above ``@attrs.frozen``.
        ValueError: the name is taken, or cannot be one.

    >>> import torch
    >>> from typing import NamedTuple
    >>> from fundl import Linear, initialize, key, linear, load_model, save, saved_as
    >>> @saved_as("two towers")
    ... class Towers(NamedTuple):
    ...     left: Linear
    ...     right: Linear
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save(f"{folder}/towers.safetensors", initialize(key(0), Towers(linear(2, 3), linear(3, 1))))
    ...     load_model(f"{folder}/towers.safetensors").right
    Linear(weight=float32[1, 3], bias=float32[1])
    """
    if not name or "[" in name or name in _WORDS or name.startswith("defaultdict("):
        raise ValueError(f"a name in files is a text without brackets that is no word of theirs, not {name!r}: choose another")

    def register(thing: T) -> T:
        _require_finished(name, thing)
        before = known(name)
        if before is not None and not _is_made_again(before, thing):
            raise ValueError(f"the name {name!r} is taken by {_own_name(before)}: choose another for {_own_name(thing)}")
        _KNOWN[name] = thing
        _NAMES[thing] = name
        return thing

    return register


def _require_finished(name: str, thing: object) -> None:
    if isinstance(thing, type):
        is_finished = "__attrs_attrs__" in vars(thing) or (issubclass(thing, tuple) and hasattr(thing, "_fields"))
        if not is_finished:
            raise TypeError(
                f"saved_as({name!r}) registers records, NamedTuples and frozen attrs classes, and {thing.__name__} is none"
                " (yet): write it above @attrs.frozen(eq=False)"
            )
    elif not isinstance(thing, FunctionType):
        raise TypeError(f"saved_as({name!r}) registers a class or a function, not {thing!r}")


def _is_made_again(before: object, thing: object) -> bool:
    """Whether a class or function is another run of the same lines, as in a notebook."""
    return _own_name(before) == _own_name(thing) and _library().get(_own_name(before)) is None


def known(name: str) -> object:
    """The class or function that a name stands for in files; None if there is none."""
    return _library().get(name) or _KNOWN.get(name)


def name_in_files(thing: object) -> str:
    """What a class or function is called in files; a qualified name if it is not registered."""
    return _library_names().get(thing) or _NAMES.get(thing) or _own_name(thing)


def _own_name(thing: object) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"


@functools.cache
def _library() -> dict[str, object]:
    """The library's classes of which trees and static fields are made, and its functions of numbers, by their own names."""
    modules = [module for name, module in sys.modules.items() if name.startswith("fundl.")]
    return {name: value for module in modules for name, value in vars(module).items() if _is_ours(module, name, value)}


@functools.cache
def _library_names() -> dict[object, str]:
    return {thing: name for name, thing in _library().items()}


def _is_ours(module: ModuleType, name: str, value: object) -> bool:
    if getattr(value, "__module__", "") != module.__name__ or getattr(value, "__name__", "") != name:
        return False
    if isinstance(value, type):
        return "__attrs_attrs__" in vars(value) and issubclass(value, Record | Initializer)
    return isinstance(value, FunctionType) and not name.startswith("_") and module.__name__.startswith(_FUNCTIONS)

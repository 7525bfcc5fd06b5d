"""Digests of functions and values, to tell whether compiled code in a file was made of the same function.

A digest of a function covers its code, its defaults, what it closes over, and the functions, classes and values that it
names in its module; and theirs in turn, as far as they are the user's own. What belongs to a library counts by its name and
by what it closes over: a step that `train_step` made is known by its loss and optimizer.
"""

import ctypes
import dis
import functools
import hashlib
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
from torch import Tensor

_ATOMS: Final = (bool, int, float, complex, str, bytes, type(None), type(...))
_PACKAGES: Final = {"attr", "attrs", "fundl", "optree", "rich", "safetensors", "torch", "typing_extensions"}
_GENERATED: Final = "<attrs generated"


def digest(value: object) -> str:
    """A text that is the same only for values of which a function compiles to the same program."""
    return _Digests().of(value)


def parts(function: object) -> dict[str, str]:
    """Digests of the parts of a function, by the names that they have in it."""
    if not isinstance(function, types.FunctionType):
        return {"itself": digest(function)}
    return {name: digest(part) for name, part in _parts(function)}


def _parts(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    yield "its code", function.__code__
    yield "its defaults", (function.__defaults__, function.__kwdefaults__)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # nothing was assigned yet
            yield name, ...
    if not _is_of_library(function.__module__):
        yield from _named_values(function.__code__, function.__globals__)


def _named_values(code: types.CodeType, scope: dict[str, object]) -> Iterator[tuple[str, object]]:
    """What code names in its module, and in modules of the user's."""
    steps = [*dis.get_instructions(code)]
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        name = str(step.argval)
        if step.opname in {"LOAD_GLOBAL", "LOAD_NAME"} and name in scope:
            value = scope[name]
            if isinstance(value, types.ModuleType) and after and after.opname in {"LOAD_ATTR", "LOAD_METHOD"}:
                member = str(after.argval)
                name, value = f"{name}.{member}", None if _is_of_library(value.__name__) else vars(value).get(member)
            yield name, value
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _named_values(constant, scope)


@functools.cache
def _is_of_library(name: str | None) -> bool:
    """Whether a module is not of the user's program."""
    if name is None or name.split(".")[0] in _PACKAGES | sys.stdlib_module_names - {"__main__"}:
        return True
    file: str | None = getattr(sys.modules.get(name), "__file__", None)
    return name != "__main__" and (file is None or not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts))


class _Digests:
    """Digests of values, each computed once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[object, str]] = {}  # with the values, for their ids to stay their own

    def of(self, value: object) -> str:
        if isinstance(value, _ATOMS):
            return f"{type(value).__name__} {value!r}"
        if id(value) not in self._known:
            self._known[id(value)] = (value, "what contains it")
            lines = "\n".join(self._lines(value))
            self._known[id(value)] = (value, hashlib.sha256(lines.encode()).hexdigest())
        return self._known[id(value)][1]

    def _lines(self, value: object) -> Iterator[str]:
        """All parts of a value, as text."""
        yield _known_by_name(type(value))
        match value:
            case types.FunctionType():
                yield f"{value.__module__ if _is_of_library(value.__module__) else ''} {value.__qualname__}"
                yield from (f"{name} {self.of(part)}" for name, part in _parts(value))
            case types.CodeType():
                yield repr((value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars, value.co_flags))
                yield from (value.co_code.hex(), *map(self.of, value.co_consts))
            case types.MethodType():
                yield from (self.of(value.__func__), self.of(value.__self__))
            case functools.partial():
                yield from (self.of(value.func), self.of(value.args), self.of(value.keywords))
            case type():
                yield from self._class(value)
            case Tensor():
                yield from _tensor(value)
            case tuple() | list():
                yield from map(self.of, value)
            case dict():
                yield from (f"{self.of(key)} {self.of(part)}" for key, part in value.items())
            case set() | frozenset():
                yield from sorted(map(self.of, value))
            case _:
                yield from self._object(value)

    def _class(self, cls: type) -> Iterator[str]:
        yield _known_by_name(cls)
        if _is_of_library(cls.__module__):
            return
        yield from map(self.of, cls.__bases__)
        for name, member in sorted(vars(cls).items()):
            value = _function(member)
            generated = isinstance(value, types.FunctionType) and value.__code__.co_filename.startswith(_GENERATED)
            if not generated and (isinstance(value, types.FunctionType) or (isinstance(value, _ATOMS) and name[:2] != "__")):
                yield f"{name} {self.of(value)}"

    def _object(self, value: object) -> Iterator[str]:
        cls = type(value)
        yield self.of(cls)
        if attrs.has(cls):
            yield from (f"{field.name} {self.of(getattr(value, field.name, None))}" for field in attrs.fields(cls))
        elif hasattr(value, "__wrapped__"):
            yield self.of(value.__wrapped__)
        elif _is_of_library(cls.__module__):
            yield re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
        else:
            state: object = getattr(value, "__dict__", None)
            slots = [name for base in cls.__mro__ for name in getattr(base, "__slots__", ()) if hasattr(value, name)]
            yield self.of(state)
            yield from (f"{name} {self.of(getattr(value, name))}" for name in slots)


def _known_by_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _function(member: object) -> object:
    """What a member of a class runs."""
    if isinstance(member, staticmethod | classmethod):
        return member.__func__
    return member.fget if isinstance(member, property) else getattr(member, "func", member)


def _tensor(tensor: Tensor) -> tuple[str, str]:
    kind = f"{tensor.dtype} {tuple(tensor.shape)}"
    if tensor.is_meta:
        return kind, ""
    return kind, hashlib.sha256(numbers(tensor)).hexdigest()


def numbers(tensor: Tensor) -> bytes:
    """The numbers of a tensor, from the first axis to the last, as they are in memory."""
    dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return ctypes.string_at(dense.data_ptr(), dense.nbytes) if dense.nbytes else b""


def source_digest() -> str:
    """A digest of this library itself: what its functions do is not known by their names."""
    folder = Path(__file__).parent.parent
    found = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()[:12]

"""Trees made of what a file says of them: undoes what `described` does.

A class is made by its constructor, with the checks that it has, of fields of the types that it states. Only classes that are
known are made: what a file says is data, whoever wrote it.
"""

import contextlib
import functools
import re
import types
import typing
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from types import FunctionType
from typing import Final, NamedTuple, TypeVar

import attrs
import torch
from torch import Tensor

from fundl._common.generated import Function
from fundl.saving._registry import known
from fundl.saving._structure import DEFAULTDICT, MAKERS, SAME, Json, word_of
from fundl.tree import Record, describe


class StructureError(ValueError):
    """What a file says of its tree makes none."""


class Place(NamedTuple):
    """A place in a tree, and the tensors of the file by their places."""

    path: str
    tensors: Mapping[str, Tensor]

    def at(self, step: str) -> "Place":
        return Place(self.path + step, self.tensors)

    def error(self, what: str) -> StructureError:
        return StructureError(f"at {self.path or 'its root'}, {what}")


_TENSOR: Final = re.compile(r"\w+\[[\d, ]*\]")
_DEFAULTDICT: Final = re.compile(re.escape(DEFAULTDICT).replace(r"\{\}", "(.*)"))


def rebuilt(node: Json, place: Place) -> object:
    """The tree of which a node tells; its tensors are those of the file."""
    try:
        return _tree(node, place)
    except RecursionError:
        raise StructureError("what it says of its tree is nested too deep") from None


def _tree(node: Json, place: Place) -> object:
    if node is None:
        return None
    if isinstance(node, list):
        return tuple(_tree(part, place.at(f"[{index}]")) for index, part in enumerate(node))
    if isinstance(node, str):
        return _tensor(place, place.path, node) if _TENSOR.fullmatch(node) else _made(node, {}, place)
    return _node(*word_of(node), place)


def _node(name: str, inside: Json, place: Place) -> object:
    if isinstance(inside, dict):
        if name == "dict":
            return {key: _tree(part, place.at(f"[{key!r}]")) for key, part in inside.items()}
        return _made(name, inside, place)
    if isinstance(inside, list) and name == "list":
        return [_tree(part, place.at(f"[{index}]")) for index, part in enumerate(inside)]
    if isinstance(inside, list) and name in {"dict", "OrderedDict"}:
        keyed = dict(_keyed(pair, place) for pair in inside)
        return keyed if name == "dict" else OrderedDict(keyed)
    if isinstance(inside, list) and (default := _DEFAULTDICT.fullmatch(name)) is not None:
        return defaultdict(_maker(default[1], place), (_keyed(pair, place) for pair in inside))
    if isinstance(inside, str) and name == SAME:
        return _tensor(place, inside, None)
    raise place.error(f"{_short({name: inside})} says of no tree")


def _maker(name: str, place: Place) -> Function | None:
    """What makes the missing values of a defaultdict."""
    maker: object = MAKERS.get(name) or known(name)
    if name and not isinstance(maker, FunctionType | type):
        raise place.error(
            f"a defaultdict has its missing values made by {name}, which is not registered: write saved_as({name!r}) above it,"
            " a function with a name or a class, before the file is loaded"
        )
    return maker if isinstance(maker, FunctionType | type) else None


def _keyed(pair: Json, place: Place) -> tuple[object, object]:
    if not isinstance(pair, list) or len(pair) != 2:
        raise place.error(f"{_short(pair)} is no key and part of a dict")
    key = _static(pair[0], place)
    return key, _tree(pair[1], place.at(f"[{key!r}]"))


def _tensor(place: Place, name: str, text: str | None) -> Tensor:
    if name not in place.tensors:
        raise place.error("the file has no tensor, only a part of the tree was saved: load it with load(path, like, where=...)")
    if text is not None and describe(place.tensors[name]) != text:
        raise place.error(f"the file has {describe(place.tensors[name])}, where {text} is to be")
    return place.tensors[name]


# --- Classes ----------------------------------------------------------------------------------------------------------


def _made(name: str, values: Mapping[str, Json], place: Place) -> object:
    """An instance of the class that goes by a name, of the fields of which a file tells."""
    cls = _class(name, place)
    names = _parameters(cls)
    children = cls.children if issubclass(cls, Record) else tuple(names)
    _require_fields(cls, name, values, place)
    return _called(
        cls,
        name,
        place,
        {
            names[field]: _tree(value, place.at(f".{field}")) if field in children else _static(value, place.at(f".{field}"))
            for field, value in values.items()
        },
    )


def _parameters(cls: type) -> Mapping[str, str]:
    """What the constructor of a class calls the fields."""
    if attrs.has(cls):
        return {field.name: field.alias for field in attrs.fields(cls)}
    return {name: name for name in getattr(cls, "_fields", ())}


def _require_fields(cls: type, name: str, values: Mapping[str, Json], place: Place) -> None:
    """Raise unless a file tells of all fields; one that a class got later is by default what it was before."""
    names = _parameters(cls)
    if values.keys() - names.keys() or names.keys() - values.keys() - _with_defaults(cls):
        raise place.error(
            f"{name} has the fields {', '.join(names) or '(none)'}, but the file has {', '.join(values) or '(none)'}: it may be"
            " of another version"
        )


def _with_defaults(cls: type) -> set[str]:
    """The fields of a class that need not be given."""
    if attrs.has(cls):
        return {field.name for field in attrs.fields(cls) if field.default is not attrs.NOTHING}
    return {*getattr(cls, "_field_defaults", ())}


def _class(name: str, place: Place) -> type:
    cls = known(name)
    if cls is None:
        own = name.rpartition(".")[2]
        raise place.error(
            f"there is a {name}, which is no class of the library, nor registered: write saved_as({name!r}) above the class"
            f" {own}, or saved_as({name!r})({own}), before the file is loaded"
        )
    if not isinstance(cls, type):
        raise place.error(f"{name} is a function, where a class is to be")
    return cls


def _called(cls: type, name: str, place: Place, fields: Mapping[str, object]) -> object:
    make: Function = cls
    hints = _hints(cls)
    for field, value in fields.items():
        if not _fits(value, hints.get(field, hints.get(f"_{field}", object))):
            raise place.error(f"{name} cannot have {_short(value)} for {field}")
    try:
        made: object = make(**fields)
    except Exception as error:  # whatever a class says of its fields
        raise place.error(f"no {name} can be made: {error}") from error
    return made


def _hints(cls: type) -> Mapping[str, object]:
    try:
        return typing.get_type_hints(cls, localns={cls.__name__: cls})
    except Exception:  # of names that are not there: nothing is known of the fields
        return {}


def _fits(value: object, annotation: object) -> bool:
    """Whether a value can be of a type, as far as is seen."""
    if isinstance(annotation, TypeVar):
        return annotation.__bound__ is None or _fits(value, annotation.__bound__)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in {typing.Union, types.UnionType}:
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return any(type(value) is type(argument) and value == argument for argument in arguments)
    if origin is tuple and isinstance(value, tuple):
        return _fit(value, arguments)
    wanted = origin or annotation
    if wanted in {int, float}:
        return type(value) in {int, wanted}
    return not isinstance(wanted, type) or isinstance(value, wanted)


def _fit(values: tuple[object, ...], annotations: tuple[object, ...]) -> bool:
    """Whether values can be those of a tuple."""
    if len(annotations) == 2 and annotations[1] is ...:
        return all(_fits(value, annotations[0]) for value in values)
    if any(typing.get_origin(annotation) is typing.Unpack or _is_many(annotation) for annotation in annotations):
        return True
    return len(values) == len(annotations) and all(map(_fits, values, annotations))


def _is_many(annotation: object) -> bool:
    return isinstance(annotation, typing.TypeVarTuple) or bool(getattr(annotation, "__unpacked__", False))


# --- Static fields ----------------------------------------------------------------------------------------------------

_DTYPES: Final = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_NO_NUMBERS: Final = {text: float(text) for text in ("nan", "inf", "-inf")}


def _static(node: Json, place: Place) -> object:
    if isinstance(node, list):
        return tuple(_static(part, place) for part in node)
    if not isinstance(node, dict):
        return node
    name, inside = word_of(node)
    if isinstance(inside, dict):
        return _partial(inside, place) if name == "partial" else _value(name, inside, place)
    return _word(name, inside, place)


def _partial(inside: Mapping[str, Json], place: Place) -> object:
    function, arguments = (_static(inside.get(name), place) for name in ("function", "arguments"))
    keywords = inside.get("keywords")
    if not isinstance(function, FunctionType) or not isinstance(arguments, tuple) or not isinstance(keywords, dict):
        raise place.error(f"{_short(inside)} says of no partial function")
    return functools.partial(function, *arguments, **{name: _static(value, place) for name, value in keywords.items()})


def _word(kind: str, text: Json, place: Place) -> object:
    """What is no JSON, and so is written as a text."""
    if isinstance(text, str):
        if kind == "float" and text in _NO_NUMBERS:
            return _NO_NUMBERS[text]
        if kind == "dtype" and text in _DTYPES:
            return _DTYPES[text]
        if kind == "function":
            return _function(text, place)
        if kind == "unknown":
            raise place.error(f"there is a {text} in a static field, which files cannot tell of: load it with load(path, like)")
        with contextlib.suppress(ValueError):
            if kind == "complex" and len(text) < 100:
                return complex(text)
    raise place.error(f"{_short({kind: text})} says of no static field")


def _function(name: str, place: Place) -> FunctionType:
    function = known(name)
    if not isinstance(function, FunctionType):
        own = name.rpartition(".")[2]
        raise place.error(
            f"there is a function {name}, which is not registered: "
            + ("give it a name with def, and that to saved_as" if own == "<lambda>" else f"write saved_as({name!r})({own})")
            + " before the file is loaded"
        )
    return function


def _value(name: str, values: Mapping[str, Json], place: Place) -> object:
    """A record in a static field."""
    cls = _class(name, place)
    names = _parameters(cls)
    _require_fields(cls, name, values, place)
    return _called(cls, name, place, {names[field]: _static(value, place) for field, value in values.items()})


def _short(value: object) -> str:
    text = describe(value)
    return text if len(text) <= 100 else f"{text[:100]}..."

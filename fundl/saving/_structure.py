"""What a tree is made of, as JSON that a human can read: containers, classes, static fields, the dtypes and shapes of tensors.

    a tensor                  "float32[25, 2]"; one that is in the tree before, {"same as": "[0].weight"}
    None                      null
    a tuple                   [...]
    a list                    {"list": [...]}
    a dict                    {"dict": {"a": ...}}, or {"dict": [[key, ...], ...]} if not all keys are texts
    a defaultdict             {"defaultdict(list)": [[key, ...], ...]}, with what makes a missing value in parentheses
    a record or NamedTuple    {"Linear": {"weight": ..., "bias": ..., "weight_init": ...}}; of one without fields, "ReLU"

Static fields are numbers, texts, null and tuples as they are, {"float": "nan"} and the like for what is no JSON,
{"dtype": "float32"}, {"function": "..."}, {"partial": ...}, {"unknown": "bytes"}, and records as above.
"""

import functools
import math
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Final, TypeAlias

import attrs
import torch
from torch import Tensor

from fundl.layer import Layer
from fundl.saving._registry import name_in_files
from fundl.tree import Record, describe, parts

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

SAME: Final = "same as"
DEFAULTDICT: Final = "defaultdict({})"
MAKERS: Final[Mapping[str, type]] = {cls.__name__: cls for cls in (dict, list, tuple, set, bool, int, float, str)}
"""What makes missing values and is always known: an empty one, or 0."""


def described(tree: object) -> Json:
    """The structure of a tree."""
    return _node(tree, "", {}, in_layer=False)


def _node(tree: object, path: str, seen: dict[int, str], *, in_layer: bool) -> Json:
    match tree:
        case None:
            return None
        case Tensor():
            # That layers have a tensor in common is a part of the model. States have some by chance: their first zeros, say.
            first = seen.setdefault(id(tree), path) if in_layer else path
            return describe(tree) if first == path else {SAME: first}
        case Record():
            return _record(tree, path, seen, in_layer=in_layer or isinstance(tree, Layer))
        case dict():
            return _dict(tree, path, seen, in_layer=in_layer)
        case _:
            return _sequence(tree, path, seen, in_layer=in_layer)


def _sequence(tree: object, path: str, seen: dict[int, str], *, in_layer: bool) -> Json:
    values = [(step.removeprefix("."), _node(part, path + step, seen, in_layer=in_layer)) for step, part in parts(tree)]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return _named(type(tree), dict(values))
    in_order = [value for _, value in values]
    return in_order if type(tree) is tuple else {_word(type(tree)): in_order if type(tree) is list else {}}


def _record(record: Record, path: str, seen: dict[int, str], *, in_layer: bool) -> Json:
    values: dict[str, Json] = {}
    for field in attrs.fields(type(record)):
        value: object = getattr(record, field.name)
        is_child = field.name in record.children
        values[field.name] = _node(value, f"{path}.{field.name}", seen, in_layer=in_layer) if is_child else static(value)
    return _named(type(record), values)


def _dict(tree: dict[object, object], path: str, seen: dict[int, str], *, in_layer: bool) -> Json:
    keys = [*tree] if isinstance(tree, OrderedDict) else sorted(tree, key=lambda key: (type(key).__qualname__, repr(key)))
    pairs = [(key, _node(tree[key], f"{path}[{key!r}]", seen, in_layer=in_layer)) for key in keys]
    if type(tree) is dict and all(type(key) is str for key in keys):
        return {"dict": {str(key): value for key, value in pairs}}
    word = DEFAULTDICT.format(_maker(tree.default_factory)) if type(tree) is defaultdict else _word(type(tree))
    return {word: [[static(key), value] for key, value in pairs]}


def _maker(default: object) -> str:
    """What makes a missing value of a defaultdict, by its name; "" for nothing."""
    if default is None:
        return ""
    plain = next((name for name, maker in MAKERS.items() if maker is default), "")
    return plain or name_in_files(default if isinstance(default, FunctionType | type) else type(default))


def _word(cls: type) -> str:
    return cls.__name__ if cls in {list, dict, OrderedDict} else name_in_files(cls)


def _named(cls: type, values: dict[str, Json]) -> Json:
    name = name_in_files(cls)
    return {name: values} if values else name


def static(value: object) -> Json:
    """A static field, or the key of a dict."""
    if value is None or (isinstance(value, bool | int | str) and type(value) in {bool, int, str}):
        return value
    if isinstance(value, float) and type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, tuple) and type(value) in {tuple, torch.Size}:
        return [static(part) for part in value]
    cls = type(value)
    if attrs.has(cls) or hasattr(cls, "_fields"):
        return {name_in_files(cls): {name: static(part) for name, part in _fields(value)}}
    return _word_of(value)


def _word_of(value: object) -> Json:
    """What is no JSON, with the word for what it is."""
    match value:
        case complex():
            return {"complex": str(value)}
        case torch.dtype():
            return {"dtype": str(value).removeprefix("torch.")}
        case FunctionType():
            return {"function": name_in_files(value)}
        case functools.partial():  # a configured loss
            keywords: Json = {name: static(part) for name, part in value.keywords.items()}
            return {"partial": {"function": static(value.func), "arguments": static(value.args), "keywords": keywords}}
        case _:
            return {"unknown": name_in_files(type(value))}


def _fields(value: object) -> list[tuple[str, object]]:
    """The fields of a record or named tuple in a static field; all else has none."""
    if isinstance(value, tuple):
        return [*zip(getattr(value, "_fields", ()), value, strict=False)]
    cls = type(value)
    return [(field.name, getattr(value, field.name)) for field in attrs.fields(cls)] if attrs.has(cls) else []


# --- For whoever reads it ----------------------------------------------------------------------------------------------


def children_of(node: Json) -> list[tuple[str, Json]]:
    """The parts of a node, each with the step that leads to it; static fields are among them, as the text alone cannot tell."""
    if isinstance(node, list):
        return [(f"[{place}]", part) for place, part in enumerate(node)]
    name, inside = word_of(node)
    if isinstance(inside, dict):
        return [(f"[{key!r}]" if name == "dict" else f".{key}", part) for key, part in inside.items()]
    if not isinstance(inside, list):
        return []
    if name == "list":
        return children_of(inside)
    return [(f"[{pair[0]!r}]", pair[1]) for pair in inside if isinstance(pair, list) and len(pair) == 2]


def word_of(node: Json) -> tuple[str, Json]:
    """The word of a node that has one, and what it says of it."""
    if isinstance(node, dict) and len(node) == 1:
        return next(iter(node.items()))
    return "", None


def kind_of(node: Json) -> str:
    """A node in one word or two."""
    if isinstance(node, list):
        return f"a tuple of {len(node)}"
    name, inside = word_of(node)
    if name in {"list", "dict"} and isinstance(inside, list | dict):
        return f"a {name} of {len(inside)}"
    if name:
        return name if isinstance(inside, dict) else f"{name} {inside}"
    return str(node)


def differences(stored: Json, given: Json, path: str = "") -> Iterator[str]:
    """Where two trees are made of different things: the outermost places."""
    first, second = children_of(stored), children_of(given)
    if kind_of(stored) != kind_of(given) or [step for step, _ in first] != [step for step, _ in second]:
        where = f"at {path}" if path else "at its root"
        yield f"{where}, the file has {kind_of(stored)}, and like has {kind_of(given)}"
        return
    for (step, one), (_, other) in zip(first, second, strict=True):
        yield from differences(one, other, path + step)

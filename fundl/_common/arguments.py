"""What arguments must be, as the annotations of the functions that take them say it.

Numbers, texts, options and initialisers are looked at before a call: much of them would be taken in silence for something
else, as ``bias="no"``. All else is looked at after something has failed.
"""

import dis
import functools
import inspect
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from numbers import Integral, Real
from typing import Final, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import torch
from torch import Tensor

from fundl._common.generated import Function, module_of

_RAISE: Final = dis.opmap["RAISE_VARARGS"]
_SHORT: Final = 40  # letters


# --- Kinds of values ---------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """What an annotation stands for."""

    words: str
    """What a value must be, as a sentence says it."""
    takes: Callable[[object], bool]
    usual: AbstractSet[type] = frozenset()
    """Types whose values all are of this kind, which need no second look."""
    plain: bool = False
    """Whether it is looked at before a call."""


def _of(*classes: type) -> Callable[[object], bool]:
    def takes(value: object) -> bool:
        return isinstance(value, classes) and (not isinstance(value, bool) or bool in classes)

    return takes


def _named(name: str, words: str, *, plain: bool = False) -> Kind:
    """What is of a class of that name, or of one derived from it: those of the library import this module."""
    seen: set[type] = set()

    def takes(value: object) -> bool:
        cls = type(value)
        fits = any(base.__name__ == name for base in cls.__mro__)
        if fits and cls.__module__.startswith("fundl."):
            seen.add(cls)
        return fits

    return Kind(words, takes, seen, plain)


def _is_device(value: object) -> bool:
    if isinstance(value, str):
        try:
            torch.device(value)
        except RuntimeError:
            return False
    return isinstance(value, torch.device | str)


def _is_floating(value: object) -> bool:
    return isinstance(value, torch.dtype) and value.is_floating_point


_FLOATING: Final = Kind("a floating-point dtype, such as torch.float32", _is_floating, plain=True)
_KINDS: Final[Mapping[object, Kind]] = {
    int: Kind("an int", _of(Integral, torch.SymInt), frozenset({int}), plain=True),
    float: Kind("a number", _of(Real), frozenset({int, float}), plain=True),
    bool: Kind("True or False", _of(bool), frozenset({bool}), plain=True),
    str: Kind("a string", _of(str), frozenset({str}), plain=True),
    type(None): Kind("None", _of(type(None)), frozenset({type(None)}), plain=True),
    torch.dtype: Kind("a dtype, such as torch.float32", _of(torch.dtype), frozenset({torch.dtype}), plain=True),
    torch.device: Kind('a device, such as "cpu" or "cuda:0"', _is_device, frozenset({torch.device})),
    Tensor: Kind("a tensor", _of(Tensor), frozenset({Tensor})),
    os.PathLike: Kind("a path", _of(os.PathLike), plain=True),
    Callable: Kind("a function", callable),
    Mapping: Kind("a dict", _of(Mapping)),
    Iterable: Kind("a list, or what else one can go through", _of(Iterable)),
    Sequence: Kind("a list or a tuple", lambda value: isinstance(value, Sequence) and not isinstance(value, str)),
}
_NAMED: Final[Mapping[str, Kind]] = {
    "Initializer": _named("Initializer", "an initialiser, such as normal(0.02)", plain=True),
    "Layer": _named("Layer", "a layer, such as ReLU()"),
    "Transform": _named("Transform", "an optimizer, such as sgd(0.1)"),
}
"""Kinds of classes of the library."""


def kind_of(annotation: object) -> Kind | None:
    """What an annotation stands for; None if that is not known here."""
    if isinstance(annotation, TypeVar):
        return kind_of(annotation.__bound__)
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin in {Union, types.UnionType}:
        return _one_of(arguments)
    if origin is Literal:
        words = _either(list(map(repr, arguments)))
        return Kind(words, lambda value: any(type(value) is type(one) and value == one for one in arguments))
    if origin is tuple:
        return _tuple_of(arguments)
    if not isinstance(origin, type):
        return None
    return _KINDS.get(origin) or (_NAMED.get(origin.__name__) if origin.__module__.startswith("fundl.") else None)


def _one_of(annotations: Sequence[object]) -> Kind | None:
    if torch.device in annotations:
        annotations = [one for one in annotations if one is not str]  # only that of a device will do
    found = [kind_of(one) for one in annotations]
    kinds = [kind for kind in found if kind is not None]
    if len(kinds) < len(found):
        return None
    words = [*dict.fromkeys(kind.words for kind in kinds if kind.words != "None")]
    return Kind(
        _either([*words, "None"] if type(None) in annotations else words),
        lambda value: any(kind.takes(value) for kind in kinds),
        frozenset().union(*(kind.usual for kind in kinds)),
        all(kind.plain for kind in kinds),
    )


def _either(words: Sequence[str]) -> str:
    """Alternatives, as a sentence has them."""
    *others, last = words
    long = any("," in word for word in others)  # has an example behind it
    return f"{', '.join(others)}{',' if long else ''} or {last}" if others else last


def _tuple_of(annotations: Sequence[object]) -> Kind | None:
    items = {one for one in annotations if one is not ...}
    if items != {int}:
        return None
    count = len(annotations)
    many = "of ints" if ... in annotations else f"of {count} ints" if count > 1 else "of one int"
    return Kind(f"a tuple {many}", lambda value: isinstance(value, tuple) and all(map(_KINDS[int].takes, value)))


# --- Before a call -----------------------------------------------------------------------------------------------------


def require_plain(function: Function, args: Sequence[object], keywords: Mapping[str, object]) -> None:
    """Raise an error for the first number, text, option or initialiser of a call that is not what its annotation says."""
    places, by_name = _plain(function)
    for (word, usual, kind), value in zip(places, args, strict=False):
        if type(value) not in usual and kind is not None and not kind.takes(value):
            raise TypeError(sentence(word, kind, value))
    for word, value in keywords.items():
        if (found := by_name.get(word)) is not None and type(value) not in found.usual and not found.takes(value):
            raise TypeError(sentence(word, found, value))


@functools.cache
def _plain(function: Function) -> tuple[Sequence[tuple[str, AbstractSet[type], Kind | None]], Mapping[str, Kind]]:
    """The plain parameters of a function, by place (with gaps for those that are not plain) and by name."""
    kinds: dict[str, Kind] = {}
    places: list[str] = []
    makes_layers = function.__module__.startswith("fundl.layers")
    for word, parameter in inspect.signature(function).parameters.items():
        kind = kind_of(parameter.annotation)
        if kind is not None and kind.plain and parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            kinds[word] = _FLOATING if makes_layers and parameter.annotation is torch.dtype else kind
        if parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}:
            places.append(word)
    nothing: frozenset[type] = frozenset()
    return [(word, kinds[word].usual if word in kinds else nothing, kinds.get(word)) for word in places], kinds


def possessive(name: str) -> str:
    """What makes a name the owner of something: "'s"."""
    return "'" if name.endswith("s") else "'s"


# --- After an error ----------------------------------------------------------------------------------------------------


def is_told(error: Exception) -> bool:
    """Whether an error was raised by a statement of the library, which says what is wrong, and not by Python or a kernel."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code, home = trace.tb_frame.f_code, module_of(trace.tb_frame)
    return home.partition(".")[0] == "fundl" and code.co_code[trace.tb_lasti] == _RAISE


def caller_of(error: Exception) -> str:
    """The package whose code called the kernel, or the function of torch, that an error comes from."""
    trace, home = error.__traceback__, ""
    while trace is not None:
        package = module_of(trace.tb_frame).partition(".")[0]
        home, trace = home if package == "torch" else package, trace.tb_next
    return home


def wrong_argument(function: Function, args: Sequence[object], keywords: Mapping[str, object]) -> TypeError | None:
    """The error for the first argument of a call that is not what its annotation says; None if all are, as far as is known."""
    parameters = inspect.signature(function).parameters
    for word, value in inspect.signature(function).bind(*args, **keywords).arguments.items():
        kind = kind_of(parameters[word].annotation)
        many = parameters[word].kind in {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        if kind is not None and not many and not kind.takes(value):
            return TypeError(sentence(word, kind, value))
    return None


def wrong_field(record: object, annotations: Mapping[str, object]) -> TypeError | None:
    """The error for the first field of a record that is not what its annotation says; a layer looks at its tensors itself."""
    owner, children = type(record).__name__, getattr(record, "children", ())
    for word, annotation in annotations.items():
        kind, value = kind_of(annotation), getattr(record, word)
        if kind is not None and word not in children and not kind.takes(value):
            return TypeError(sentence(f"{owner}{possessive(owner)} {word}", kind, value))
    return None


def sentence(word: str, kind: Kind, value: object) -> str:
    """What is wrong with a value of that name."""
    return f"{word} must be {kind.words}, not {said(value)}"


def said(value: object) -> str:
    """A value as one would write it, if that is short; else what it is."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, type) or callable(value):
        name: object = getattr(value, "__name__", type(value).__name__)
        return f"{'the class' if isinstance(value, type) else 'the function' if hasattr(value, '__name__') else 'a'} {name}"
    written = repr(value)
    if len(written) <= _SHORT:
        return written
    found = (kind.words.partition(",")[0] for kind in _NAMED.values() if kind.takes(value))
    name = type(value).__name__
    return next(found, f"a {name}" if type(value).__module__ == "builtins" else f"a value of type {name}")

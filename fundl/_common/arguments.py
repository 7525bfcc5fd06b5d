"""What arguments must be, as the annotations of the functions that take them say it.

It is asked after something has failed, and of options that would be taken in silence for something else: ``bias="no"``.
"""

import dis
import functools
import inspect
import os
import types
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Final, TypeVar, Union, get_args, get_origin

import torch
from torch import Tensor

from fundl._common.generated import Function

_RAISE: Final = dis.opmap["RAISE_VARARGS"]
_KINDS: Final[Mapping[object, tuple[tuple[type, ...], str]]] = {
    int: ((Integral,), "an int"),
    float: ((Real,), "a number"),
    bool: ((bool,), "True or False"),
    str: ((str,), "a text"),
    Tensor: ((Tensor,), "a tensor"),
    torch.dtype: ((torch.dtype,), "a dtype, such as torch.float32"),
    torch.device: ((torch.device,), "a device"),
    os.PathLike: ((os.PathLike,), "a path"),
    type(None): ((type(None),), "None"),
}
"""Annotations, each with the types that it stands for, and its name in a sentence."""


def is_told(error: Exception) -> bool:
    """Whether an error was raised by a statement of the library, which says what is wrong, and not by Python or a kernel."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code, home = trace.tb_frame.f_code, str(trace.tb_frame.f_globals.get("__name__", ""))
    return home.partition(".")[0] == "fundl" and code.co_code[trace.tb_lasti] == _RAISE


def wrong_argument(function: Function, args: Sequence[object], keywords: Mapping[str, object]) -> TypeError | None:
    """The error for the first argument of a call that is not what its annotation says; None if all are, as far as is known."""
    signature = inspect.signature(function)
    given = signature.bind(*args, **keywords).arguments
    return wrong_value({word: (signature.parameters[word].annotation, value) for word, value in given.items()})


def wrong_value(values: Mapping[str, tuple[object, object]], owner: str = "") -> TypeError | None:
    """`wrong_argument`, of annotations and values by their names; an owner, such as a layer, looks at its tensors itself."""
    its = f"{owner}'{'' if owner.endswith('s') else 's'} " if owner else ""
    for word, (annotation, value) in values.items():
        if owner and any(part is Tensor for part in (annotation, *get_args(annotation))):
            continue
        if (kind := _kind(annotation)) is not None and not _is_one(value, kind[0]):
            return TypeError(f"{its}{word} must be {kind[1]}, not {_said(value)}")
    return None


def require_options(function: Function, keywords: Mapping[str, object]) -> None:
    """Raise an error for an option that would be taken in silence for something else."""
    options = _options(function)
    for word, value in keywords.items():
        if word in options and not options[word][0](value):
            raise TypeError(f"{word} must be {options[word][1]}, not {_said(value)}")


@functools.cache
def _options(function: Function) -> Mapping[str, tuple[Callable[[object], bool], str]]:
    """The parameters of a function that anything would do for, with what they take."""
    options: dict[str, tuple[Callable[[object], bool], str]] = {}
    for word, parameter in inspect.signature(function).parameters.items():
        annotation: object = parameter.annotation
        if annotation is bool:
            options[word] = (lambda value: type(value) is bool or value is None, "True or False")
        elif annotation is torch.dtype and function.__module__.startswith("fundl.layers"):
            options[word] = (_is_floating, "a floating-point dtype, such as torch.float32")
        elif getattr(annotation, "__name__", "") == "Initializer" and isinstance(annotation, type):
            options[word] = (functools.partial(_is_instance, annotation), "an initialiser, such as normal(0.02)")
    return options


def _is_floating(value: object) -> bool:
    return isinstance(value, torch.dtype) and value.is_floating_point


def _is_instance(cls: type, value: object) -> bool:
    return isinstance(value, cls)


def _kind(annotation: object) -> tuple[tuple[type, ...], str] | None:
    """The types that an annotation stands for, and their name; None if it is one of those that are not known here."""
    if isinstance(annotation, TypeVar):
        return _kind(annotation.__bound__)
    if get_origin(annotation) in {Union, types.UnionType}:
        kinds = [_kind(part) for part in get_args(annotation)]
        known = [kind for kind in kinds if kind is not None]
        names = dict.fromkeys(name for _, name in known if name != "None")
        if len(known) < len(kinds):
            return None
        words = [*names, "None"] if type(None) in get_args(annotation) else [*names]
        return tuple(one for kind in known for one in kind[0]), " or ".join(words)
    key: object = get_origin(annotation) or annotation
    return _KINDS.get(key) if isinstance(key, type) else None


def _is_one(value: object, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, bool) and bool not in kinds:
        return False
    return isinstance(value, kinds)


def _said(value: object) -> str:
    """A value as one would write it, if that is short; else what it is."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, type) or callable(value):
        name: object = getattr(value, "__name__", type(value).__name__)
        return f"{'the class' if isinstance(value, type) else 'the function' if hasattr(value, '__name__') else 'a'} {name}"
    said = repr(value)
    return said if len(said) <= 40 else f"a {type(value).__name__}"

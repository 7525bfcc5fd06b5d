"""The constructors of records: as attrs writes them, but that they say what to write where they are called as in torch.

Layers make a record of gradients at every step, so the constructor is written out, field by field, and compiled: it is as quick
as that of attrs, with its checks. Whatever fails them is explained by `fundl._common.suggestions`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Final, cast

import attrs
from torch import Tensor

from fundl._common import suggestions
from fundl._common.arguments import Kind, is_told, kind_of, possessive, sentence, wrong_argument, wrong_field
from fundl._common.generated import Function, define

_NOTHING: Final = object()


def new_constructor(
    cls: type, annotations: Mapping[str, object], parameters: Sequence[str], stores: Mapping[str, object]
) -> Callable[[], Function] | None:
    """What writes the constructor for a record class that attrs has finished; None if the class has one of its own.

    The annotations are those of all fields, the parameters the fields that hold tensors which are no buffers; for each field,
    `stores` has what writes it into a new record.
    """
    theirs: Function = cls.__init__  # type: ignore[misc]  # that of the class itself
    if not theirs.__code__.co_filename.startswith("<attrs generated"):
        return None

    def write() -> Function:
        plain = not hasattr(cls, "__attrs_pre_init__") and all(map(_is_plain, attrs.fields(cls)))
        ours = _written(cls, annotations, parameters, stores) if plain else _watched(cls, annotations, theirs)
        functools.update_wrapper(ours, theirs)
        return ours

    return write


def _is_plain(field: "attrs.Attribute[object]") -> bool:
    """Whether a field is kept as it is given."""
    is_made = isinstance(field.default, attrs.Factory)  # type: ignore[arg-type]  # a class, which attrs types as a function
    return field.init and field.converter is None and field.validator is None and not is_made


# Whatever is not given shows by its default. What cannot be right leads to `refused`: too much or unknown arguments, a field
# left out that has no default, or a size in the place of a parameter. What may be of a wrong kind is for `require` to look at.
_CONSTRUCTOR: Final = """
def __init__(self, {positional}*more, {named}**other):
    if {wrong}:
        raise refused(cls, ({given}), more, other)
    {lines}
"""


def _written(cls: type, annotations: Mapping[str, object], parameters: Sequence[str], stores: Mapping[str, object]) -> Function:
    """The constructor of a class whose fields are given as they are kept."""
    fields: Sequence[attrs.Attribute[object]] = attrs.fields(cls)
    required = [field.alias for field in fields if field.default is attrs.NOTHING]
    kinds = _kinds(annotations, parameters)
    known = kinds if suggestions.maker_of(cls) is None else parameters  # what no function makes of sizes looks at its layers
    may_be_sizes = [field.alias for field in fields if field.name in parameters and field.name in known and not field.kw_only]
    wrong = ["more", "other", *(f"{name} is NOTHING" for name in required), *(f"type({name}) is int" for name in may_be_sizes)]
    doubts = [
        f"type({field.alias}) not in usual_{field.name} and {field.alias} is not default_{field.name}"
        for field in fields
        if field.name in kinds
    ]
    lines = [f"store_{field.name}(self, {field.alias})" for field in fields]
    if doubts:
        lines += [f"if {' or '.join(doubts)}:", "    require(self, kinds)"]
    if hasattr(cls, "__attrs_post_init__"):
        lines += [
            "try:",
            "    self.__attrs_post_init__()",
            "except Exception as error:",  # which costs nothing where there is none
            "    raise explained(self, error, annotations)",
        ]
    source = _CONSTRUCTOR.format(
        positional="".join(f"{field.alias}=default_{field.name}, " for field in fields if not field.kw_only),
        named="".join(f"{field.alias}=default_{field.name}, " for field in fields if field.kw_only),
        wrong=" or ".join(wrong),
        given="".join(f"({field.alias!r}, {field.alias}, default_{field.name}, {field.kw_only}), " for field in fields),
        lines="\n    ".join(lines),
    )
    scope: dict[str, object] = {f"store_{name}": store for name, store in stores.items()}
    scope |= {f"default_{field.name}": _NOTHING if field.default is attrs.NOTHING else field.default for field in fields}
    scope |= {f"usual_{name}": kind.usual for name, kind in kinds.items()}
    scope |= {"cls": cls, "NOTHING": _NOTHING, "kinds": kinds, "annotations": annotations}
    return define(source, "__init__", scope | {"refused": _refused, "require": _require, "explained": _explained})


def _kinds(annotations: Mapping[str, object], parameters: Sequence[str]) -> Mapping[str, Kind]:
    """What the fields of a record must be that would be taken for something else, until the record is used."""
    kinds = {name: kind_of(annotation) for name, annotation in annotations.items()}
    return {
        name: kind for name, kind in kinds.items() if kind and (kind.plain or (Tensor in kind.usual and name in parameters))
    }


def _require(record: object, kinds: Mapping[str, Kind]) -> None:
    """Raise an error for the first field that is not of its kind, nor what it is if it is not given."""
    cls = cast("type[attrs.AttrsInstance]", type(record))
    defaults = {field.name: field.default for field in attrs.fields(cls)}
    for name, kind in kinds.items():
        value: object = getattr(record, name)
        if not kind.takes(value) and value is not defaults[name]:
            owner = type(record).__name__
            said = suggestions.hint(value) if Tensor in kind.usual else ""
            raise TypeError(f"{sentence(f'{owner}{possessive(owner)} {name}', kind, value)}{said}")


def _explained(record: object, error: Exception, annotations: Mapping[str, object]) -> Exception:
    """The error of a check that a value was not made for: it says what the value must be."""
    if is_told(error):
        return error
    return wrong_field(record, annotations) or error


def _refused(
    cls: type, given: Sequence[tuple[str, object, object, bool]], more: Sequence[object], other: Mapping[str, object]
) -> TypeError:
    """The error for a call, from each parameter's value and default, and what is too much or unknown."""
    positional = [(value, default) for _, value, default, named in given if not named]
    while positional and not more and positional[-1][0] is positional[-1][1]:
        positional.pop()  # was not given
    keywords = {name: value for name, value, default, named in given if named and value is not default}
    named = [(name, value) for (name, *_), (value, _) in zip(given, positional, strict=False) if value is not _NOTHING]
    gap = len(named) < len(positional)  # what is behind it was given by name
    values = [] if gap else [value for _, value in named]
    return suggestions.refused(cls, (*values, *more), {**(dict(named) if gap else {}), **keywords, **other})


def _watched(cls: type, annotations: Mapping[str, object], theirs: Function) -> Function:
    """The constructor of attrs, for a class whose fields are made of what is given; layers of these have no parameters."""
    kinds = _kinds(annotations, ())

    def __init__(self: object, *args: object, **keywords: object) -> None:  # noqa: N807  # the constructor's name
        try:
            theirs(self, *args, **keywords)
        except Exception as error:
            if suggestions.fits(cls, args, keywords):
                wrong = None if is_told(error) else wrong_argument(cls, args, keywords)
                raise wrong or error from None
            raise suggestions.refused(cls, args, keywords) from None
        _require(self, kinds)

    return __init__

"""The constructors of records: as attrs writes them, but that they say what to write where they are called as in torch.

Layers make a record of gradients at every step, so the constructor is written out, field by field, and compiled: it is as quick
as that of attrs, with its checks. Whatever fails them is explained by `fundl._common.suggestions`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import attrs

from fundl._common import suggestions
from fundl._common.arguments import is_told, wrong_argument, wrong_value
from fundl._common.generated import Function, define

_NOTHING: Final = object()


def new_constructor(cls: type, parameters: Sequence[str], stores: Mapping[str, object]) -> Callable[[], Function] | None:
    """What writes the constructor for a record class that attrs has finished; None if the class has one of its own.

    The parameters are the fields that hold tensors which are no buffers; for each field, `stores` has what writes it into a new
    record.
    """
    theirs: Function = cls.__init__  # type: ignore[misc]  # that of the class itself
    if not theirs.__code__.co_filename.startswith("<attrs generated"):
        return None

    def write() -> Function:
        plain = not hasattr(cls, "__attrs_pre_init__") and all(map(_is_plain, attrs.fields(cls)))
        ours = _written(cls, parameters, stores) if plain else _watched(cls, theirs)
        functools.update_wrapper(ours, theirs)
        return ours

    return write


def _is_plain(field: "attrs.Attribute[object]") -> bool:
    """Whether a field is kept as it is given."""
    is_made = isinstance(field.default, attrs.Factory)  # type: ignore[arg-type]  # a class, which attrs types as a function
    return field.init and field.converter is None and field.validator is None and not is_made


# Whatever is not given shows by its default. What cannot be right leads to `refused`: too much or unknown arguments, a field
# left out that has no default, or a size in the place of a parameter.
_CONSTRUCTOR: Final = """
def __init__(self, {positional}*more, {named}**other):
    if {wrong}:
        raise refused(cls, ({given}), more, other)
    {stores}
"""


def _written(cls: type, parameters: Sequence[str], stores: Mapping[str, object]) -> Function:
    """The constructor of a class whose fields are given as they are kept."""
    fields: Sequence[attrs.Attribute[object]] = attrs.fields(cls)
    required = [field.alias for field in fields if field.default is attrs.NOTHING]
    may_be_sizes = [field.alias for field in fields if field.name in parameters and not field.kw_only]
    wrong = ["more", "other", *(f"{name} is NOTHING" for name in required), *(f"type({name}) is int" for name in may_be_sizes)]
    lines = [f"store_{field.name}(self, {field.alias})" for field in fields]
    if hasattr(cls, "__attrs_post_init__"):
        lines += [
            "try:",
            "    self.__attrs_post_init__()",
            "except TypeError as error:",  # which costs nothing where there is none
            "    raise explained(cls, self, error)",
        ]
    source = _CONSTRUCTOR.format(
        positional="".join(f"{field.alias}=default_{field.name}, " for field in fields if not field.kw_only),
        named="".join(f"{field.alias}=default_{field.name}, " for field in fields if field.kw_only),
        wrong=" or ".join(wrong),
        given="".join(f"({field.alias!r}, {field.alias}, default_{field.name}, {field.kw_only}), " for field in fields),
        stores="\n    ".join(lines),
    )
    defaults = {f"default_{field.name}": _NOTHING if field.default is attrs.NOTHING else field.default for field in fields}
    writers = {f"store_{name}": store for name, store in stores.items()}
    return define(
        source,
        "__init__",
        {**defaults, **writers, "cls": cls, "NOTHING": _NOTHING, "refused": _refused, "explained": _explained},
    )


def _explained(cls: type, record: object, error: TypeError) -> TypeError:
    """The error of a check that a value was not made for: it says what the value must be."""
    if is_told(error):
        return error
    values = {field.name: (field.type, getattr(record, field.name)) for field in attrs.fields(cls)}
    return wrong_value(values, cls.__name__) or error


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


def _watched(cls: type, theirs: Function) -> Function:
    """The constructor of attrs, for a class whose fields are made of what is given; layers of these have no parameters."""

    def __init__(self: object, *args: object, **keywords: object) -> None:  # noqa: N807  # the constructor's name
        try:
            theirs(self, *args, **keywords)
        except TypeError as error:
            if suggestions.fits(cls, args, keywords):
                wrong = None if is_told(error) else wrong_argument(cls, args, keywords)
                raise wrong or error from None
            raise suggestions.refused(cls, args, keywords) from None

    return __init__

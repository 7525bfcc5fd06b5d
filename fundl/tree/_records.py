"""Records: frozen attrs classes that are nodes of trees."""

import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Final, Never, Self, TypeAlias, TypeVar

import attrs
from torch import Tensor
from typing_extensions import override

from fundl._common import constructor
from fundl._common.donated import DonatedError, refusal
from fundl._common.generated import Function, define
from fundl._common.suggestions import is_module, no_attribute
from fundl.tree._structure import register_node

BUFFER: Final[Mapping[str, bool]] = types.MappingProxyType({"fundl.buffer": True})
"""Marks a field of a record as a buffer: ``attrs.field(default=None, metadata=BUFFER)``."""

STATISTIC: Final[Mapping[str, bool]] = types.MappingProxyType({**BUFFER, "fundl.statistic": True})
"""Marks a buffer that half precision has too few bits for: layers that compute in it leave the buffer in float32."""

Replace: TypeAlias = Callable[[object, Iterator[Tensor]], object]
"""What makes a tree of another and an iterator of leaves, of which it takes as many as the tree has."""


@attrs.frozen(eq=False, init=False)
class Record:
    """A frozen attrs class that is a node of trees: its tensor fields are children, its other fields static.

    Whoever derives from it decorates the class with ``@attrs.frozen(eq=False)``. A field is a child if its annotation
    names Tensor, a Record, a type variable, or a tuple, list, dict or union of them.

    >>> import torch
    >>> from fundl import tree
    >>> @attrs.frozen(eq=False)
    ... class Moments(Record):
    ...     mean: Tensor
    ...     count: int
    >>> doubled = tree.map(lambda leaf: 2 * leaf, Moments(torch.ones(2), count=3))
    >>> doubled.mean, doubled.count
    (tensor([2., 2.]), 3)
    """

    children: ClassVar[tuple[str, ...]] = ()
    """The names of the fields that hold tensors, in order; set as the class is made."""

    trainable: ClassVar[tuple[str, ...]] = ()
    """Those of them that are no buffers."""

    kept_wide: ClassVar[tuple[str, ...]] = ()
    """Those of them that are marked as `STATISTIC`."""

    _static: ClassVar[tuple[str, ...]] = ()
    """The names of all other fields."""

    _is_contract: ClassVar[bool] = True  # see Listed

    if TYPE_CHECKING:  # each class has its own, written for its fields

        def _with_leaves(self, leaves: Iterator[Tensor], replace: Replace, /) -> Self:
            """The record with its trainable leaves replaced by those that the iterator gives."""

        def _with_children(self, *children: object) -> Self:
            """The record with other children, in the order of `children`."""

    else:  # a checker must see the constructor that attrs writes, not this one

        def __init__(self, *_args, **_kwargs):
            raise TypeError(f"{type(self).__name__} is not a record: decorate the class with @attrs.frozen(eq=False)")

        def __getattr__(self, name):  # called for what is not there, so that it costs nothing
            if name in self.children:
                raise DonatedError(refusal(type(self).__name__))
            raise no_attribute(self, name)

    def trees_of(self, name: str) -> Sequence[object]:
        """What a child is, for whoever goes through records: one tree, or several if the record has stacked them there."""
        return (getattr(self, name),)

    def child_of(self, name: str, before: Sequence[object], after: Sequence[object]) -> object:  # noqa: ARG002  # see above
        """The child that is made of other trees than those that `trees_of` gave."""
        return after[0]

    @override
    def __repr__(self) -> str:
        return printed(self)

    @classmethod
    def __attrs_init_subclass__(cls) -> None:
        """Register the class as a tree node; attrs calls this once, on the finished class."""
        if cls.__setattr__ is object.__setattr__:
            raise TypeError(f"{cls.__name__} can be mutated: decorate it with @attrs.frozen(eq=False)")
        annotations = _annotations(cls)
        _find_children(cls, annotations)
        _write_functions(cls, annotations)
        if cls.__repr__.__code__.co_filename.startswith("<attrs generated"):  # not where the class defines its own
            type.__setattr__(cls, "__repr__", Record.__repr__)  # attrs' own would print all numbers of all tensors
        if not getattr(cls, "__abstractmethods__", ()):  # attrs knows by its own that what derives from a class is frozen
            type.__setattr__(cls, "__setattr__", _refuse_to_set)


def _refuse_to_set(record: Record, name: str, _value: object) -> Never:
    """Raise attrs' error, with what to write."""
    is_field = name in [field.name for field in attrs.fields(type(record))]
    how = f": tree.at(record, lambda record: record.{name}).set(value) makes another one" if is_field else ""
    error = attrs.exceptions.FrozenInstanceError()
    error.msg = f"a {type(record).__name__} is a value, and stays as it is{how}"
    error.args = (error.msg,)
    raise error


# --- How records print -------------------------------------------------------------------------------------------------

_LONG: Final = 160  # two lines of a terminal
_LINE: Final = 80


def printed(value: object) -> str:
    """A tree in words: in one line, if that is not long, or else one line for each part that is made of records."""
    line = describe(value)
    return line if len(line) <= _LONG else _lines(value, "")


def _lines(value: object, indent: str) -> str:
    line, (opening, parts, closing) = describe(value), _apart(value)
    if len(indent) + len(line) <= _LINE or not any(_has_records(part) for _, part in parts):
        return line
    deeper = f"{indent}    "
    inner = [f"{deeper}{name}{_lines(part, deeper)},\n" for name, part in parts]
    return f"{opening}\n{''.join(inner)}{indent}{closing.removeprefix(',')}"


def _has_records(value: object) -> bool:
    return isinstance(value, Record) or any(_has_records(part) for _, part in _apart(value)[1])


def describe(value: object) -> str:
    """A tree in one line: tensors by dtype and shape, all else as it reads.

    >>> import torch
    >>> from fundl import tree
    >>> tree.describe((torch.zeros(2, 3), None))
    '(float32[2, 3], None)'
    """
    if isinstance(value, Tensor):
        try:
            return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
        except DonatedError:
            return repr(value)
    opening, parts, closing = _apart(value)
    return opening + ", ".join(name + describe(part) for name, part in parts) + closing


def _apart(value: object) -> tuple[str, list[tuple[str, object]], str]:
    """How a node begins, its parts with what stands before them, and how it ends; all else has no parts."""
    cls = type(value)
    if isinstance(value, Record) and cls.__repr__ is Record.__repr__:
        try:
            return f"{cls.__name__}(", [(f"{name}=", part) for name, part in _shown(value)], ")"
        except DonatedError:
            return f"<a {cls.__name__} that was donated>", [], ""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        names: Sequence[str] = value._fields
        return f"{cls.__name__}(", [(f"{name}=", part) for name, part in zip(names, value, strict=True)], ")"
    if isinstance(value, tuple | list) and cls in {tuple, list}:
        opening, closing = "[]" if cls is list else ("(", ",)" if len(value) == 1 else ")")
        return opening, [("", part) for part in value], closing
    if isinstance(value, dict) and cls is dict:
        return "{", [(f"{key!r}: ", part) for key, part in value.items()], "}"
    return repr(value), [], ""


def _shown(record: Record) -> Iterator[tuple[str, object]]:
    """The fields of a record that are not the default, as they were given to its maker."""
    for field in attrs.fields(type(record)):
        value: object = getattr(record, field.name)
        given: object = getattr(value, "as_given", value)  # of what the maker made of it
        if field.name in record.children:
            if value is not None or field.default is not None:
                yield field.name, value
        elif given != field.default:
            yield field.name, given


# --- What a class is made of -------------------------------------------------------------------------------------------

_RESERVED: Final = ("children", "trainable", "kept_wide", "trees_of", "child_of", "gradient")


def _find_children(cls: type[Record], annotations: Mapping[str, object]) -> None:
    """Find out which fields of a class are children."""
    fields = attrs.fields(cls)
    for field in fields:
        if field.name in _RESERVED:
            raise TypeError(
                f"{cls.__name__} has a field {field.name!r}, but every record has an attribute of that name: rename it"
            )
        if _names_a_module(annotations[field.name]):
            raise TypeError(
                f"{cls.__name__}.{field.name} is annotated as a module of torch.nn, whose parameters nothing here would see or"
                " train: make it a layer with fundl.interop.torch_nn.from_torch(module), and annotate the field with its type"
            )
    children = [field for field in fields if _holds_tensors(annotations[field.name])]
    cls.children = tuple(field.name for field in children)
    cls.trainable = tuple(field.name for field in children if "fundl.buffer" not in field.metadata)
    cls._static = tuple(field.name for field in fields if field.name not in cls.children)
    cls.kept_wide = tuple(field.name for field in children if "fundl.statistic" in field.metadata)


def _annotations(cls: type[Record]) -> Mapping[str, object]:
    try:
        return typing.get_type_hints(cls, localns={cls.__name__: cls})
    except NameError as error:
        raise TypeError(
            f"the annotations of {cls.__name__} cannot be read ({error}): import the names that they use at the top of"
            " the module, outside of `if TYPE_CHECKING`, and define there what else they need"
        ) from error


def _names_a_module(annotation: object) -> bool:
    arguments = typing.get_args(annotation)
    return is_module(annotation) if isinstance(annotation, type) else any(_names_a_module(argument) for argument in arguments)


def _holds_tensors(annotation: object) -> bool:
    """Whether a field with this annotation can hold a tensor, and so is a child of its record."""
    if isinstance(annotation, TypeVar):
        bound: object = annotation.__bound__
        return bound is None or _holds_tensors(bound)
    if isinstance(annotation, typing.TypeVarTuple | typing.ForwardRef):  # `Model` names itself, so that it is not resolved
        return True
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is None:
        return isinstance(annotation, type) and issubclass(annotation, Tensor | Record)
    if origin in {Callable, type, typing.Literal}:
        return False
    return _holds_tensors(origin) or any(_holds_tensors(argument) for argument in arguments)


# --- Functions for the records of a class ------------------------------------------------------------------------------

# They run for each record of a tree each time that the tree is mapped, so they are written for the fields of a class, without
# a loop. They make records past the constructor and its validators, since leaves may be anything for a while (None, shapes).
# The parameters of `gradient` are fields of any name, so that what it knows besides has underscores.

_APART: Final = """
def apart(record):
    return ({children}), ({static}), names
"""
_MAKE: Final = """
def {name}({parameters}):
    __record = __new(__cls)
    {stores}
    return __record
"""
_GRADIENT_DOC: Final = (
    "A record of the gradients of the parameters, given in the order of the fields; all else stays as it is here."
)


def _write_functions(cls: type[Record], annotations: Mapping[str, object]) -> None:
    """Write what takes records of a class apart, and what puts them together, for optree and for the class itself."""
    names = [field.name for field in attrs.fields(cls)]
    stores = {name: _store(cls, name) for name in names}
    scope: dict[str, object] = {f"store_{name}": store for name, store in stores.items()}
    scope |= {"__cls": cls, "__new": object.__new__, "Tensor": Tensor, "names": cls.children}

    def made(name: str, parameters: Sequence[str], values: Mapping[str, str]) -> Function:
        """A function that makes a record, of values that its text names; all other fields are those of the record itself."""
        lines = [f"store_{field}(__record, {values.get(field, f'self.{field}')})" for field in names]
        source = _MAKE.format(name=name, parameters=", ".join(parameters), stores="\n    ".join(lines))
        function = define(source, name, scope)
        function.__module__, function.__qualname__ = cls.__module__, f"{cls.__qualname__}.{name}"
        return function

    def gradient() -> Function:
        function = made("gradient", ["self", *cls.trainable], {name: name for name in cls.trainable})
        function.__doc__ = _GRADIENT_DOC
        return function

    children, others = ("".join(f"record.{name}, " for name in held) for held in (cls.children, cls._static))
    apart = define(_APART.format(children=children, static=others), "apart", scope)
    places = {name: f"children[{place}]" for place, name in enumerate(cls.children)}
    places |= {name: f"static[{place}]" for place, name in enumerate(cls._static)}
    register_node(cls, apart, made("together", ["static", "children"], places))
    renewed = {
        name: f"next(leaves) if isinstance(part := self.{name}, Tensor) else replace(part, leaves)" for name in cls.trainable
    }
    late = {
        "gradient": gradient,
        "_with_leaves": lambda: made("_with_leaves", ["self", "leaves", "replace"], renewed),
        "_with_children": lambda: made("_with_children", ["self", *cls.children], {name: name for name in cls.children}),
    }
    of_fields = {name: annotations[name] for name in names}
    if init := constructor.new_constructor(cls, of_fields, cls.trainable, stores):
        late["__init__"] = init
    for name, write in late.items():
        type.__setattr__(cls, name, _Late(cls, name, write))


@attrs.frozen(eq=False)
class _Late:
    """A function of a class that is written when it is first asked for: most classes are imported and never used."""

    cls: type[Record]
    name: str
    write: Callable[[], Function]

    def __get__(self, record: object, _: object = None) -> object:
        function = self.write()
        type.__setattr__(self.cls, self.name, function)
        return function if record is None else types.MethodType(function, record)


def _store(cls: type[Record], name: str) -> Callable[[Record, object], None]:
    """What writes a field of a new record: the slot itself, or the way around frozen classes where there is none."""
    slot: object = getattr(cls, name, None)
    if isinstance(slot, types.MemberDescriptorType):
        return slot.__set__
    return lambda record, value: object.__setattr__(record, name, value)

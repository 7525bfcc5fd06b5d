"""Trees of tensors: the one shape that parameters, gradients, optimizer state and residuals share.

A tree is a tensor, None, a `Record`, or a tuple, list, dict or named tuple of trees. Records are frozen attrs classes:
their fields that can hold tensors are the tree's children, all other fields (sizes, rates, initialisers) are static,
a part of the tree's structure. None is a leaf, so that trees with and without a bias line up.

A field marked ``attrs.field(metadata=BUFFER)`` is a child that no optimizer touches. The *trainable* leaves of a
tree are its tensors that are not in a buffer.

optree does the walking, in C++, and holds the structures. The one exception is what a training step does three times:
taking the trainable leaves out of a tree and putting others in. There a few lines of our own are three times as fast.
"""

import copy
import math
import operator
import types
import typing
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Final, Generic, Protocol, TypeVar, cast, overload

import attrs
import optree
import torch
from torch import Tensor

from fundl._common import constructor
from fundl._common.donated import DonatedError, refusal
from fundl._common.modes import is_traced
from fundl._common.suggestions import is_module, no_attribute

T = TypeVar("T")
V = TypeVar("V")
Leaf = TypeVar("Leaf")

BUFFER: Final[Mapping[str, bool]] = types.MappingProxyType({"fundl.buffer": True})
"""Marks a field of a record as a buffer: ``attrs.field(default=None, metadata=BUFFER)``."""

STATISTIC: Final[Mapping[str, bool]] = types.MappingProxyType({**BUFFER, "fundl.statistic": True})
"""Marks a buffer that half precision has too few bits for: layers that compute in it leave the buffer in float32."""

_NAMESPACE: Final = "fundl"

_DICTS: Final = frozenset({dict, OrderedDict, defaultdict})
"""What optree takes for a dict: any other class that derives from it would be a leaf."""


# --- The border -----------------------------------------------------------------------------------------------------

# optree states its types in a nominal PyTree of its own, which no record and no plain tuple is. Each thing that is
# taken from it gets its true type here, once.

if TYPE_CHECKING:

    class Structure(Protocol[T]):
        """What is left of a tree of type T when its leaves are taken out: comparable, and hashable."""

        num_leaves: int

        def _of(self, tree: T) -> T: ...  # states that T is invariant; nothing calls it

else:
    Structure = optree.PyTreeSpec


class _Flatten(Protocol):
    def __call__(self, tree: T, /, *, none_is_leaf: bool, namespace: str) -> "tuple[list[Tensor | None], Structure[T]]": ...


class _Accessors(Protocol):
    def __call__(self, tree: object, /, *, none_is_leaf: bool, namespace: str) -> list[optree.PyTreeAccessor]: ...


class _Unflatten(Protocol):
    def __call__(self, structure: "Structure[T]", leaves: Iterable[object], /) -> T: ...


class _Register(Protocol):
    def __call__(self, cls: type, apart: object, together: object, /, *, path_entry_type: type, namespace: str) -> object: ...


_tree_flatten = cast("_Flatten", optree.tree_flatten)
_tree_accessors = cast("_Accessors", optree.tree_accessors)
_tree_unflatten = cast("_Unflatten", optree.tree_unflatten)
_register_node = cast("_Register", optree.register_pytree_node)


# --- Records --------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False, init=False)
class Record:
    """A frozen attrs class that is a node of trees: its tensor fields are children, its other fields static.

    Whoever derives from it decorates the class with ``@attrs.frozen(eq=False)``. A field is a child if its annotation
    names Tensor, a Record, a type variable, or a tuple, list, dict or union of them.

    >>> @attrs.frozen(eq=False)
    ... class Moments(Record):
    ...     mean: Tensor
    ...     count: int
    >>> doubled = map(lambda leaf: 2 * leaf, Moments(torch.ones(2), count=3))
    >>> doubled.mean, doubled.count
    (tensor([2., 2.]), 3)
    """

    children: ClassVar[tuple[str, ...]] = ()
    """The names of the fields that hold tensors, in order; set as the class is made."""

    trainable: ClassVar[tuple[str, ...]] = ()
    """Those of them that are no buffers."""

    kept_wide: ClassVar[tuple[str, ...]] = ()
    """Those of them that are marked as `STATISTIC`."""

    if not TYPE_CHECKING:  # a checker must see the constructor that attrs writes, not this one

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

    @classmethod
    def __attrs_init_subclass__(cls) -> None:
        """Register the class as a tree node; attrs calls this once, on the finished class."""
        if cls.__setattr__ is object.__setattr__:
            raise TypeError(f"{cls.__name__} can be mutated: decorate it with @attrs.frozen(eq=False)")
        _register(cls)
        if cls.__repr__.__code__.co_filename.startswith("<attrs generated"):  # not where the class defines its own
            type.__setattr__(cls, "__repr__", _short_repr)  # attrs' own would print all numbers of all tensors


def _short_repr(record: Record) -> str:
    """How a record reads: its tensors by dtype and shape; static fields only where they are not the default."""
    values = [(field, getattr(record, field.name)) for field in attrs.fields(type(record))]
    shown = [
        f"{field.name}={describe(value)}" for field, value in values if field.name in record.children or value != field.default
    ]
    return f"{type(record).__name__}({', '.join(shown)})"


def describe(value: object) -> str:
    """A tree in a few words: tensors by dtype and shape, all else as it reads.

    >>> describe((torch.zeros(2, 3), None))
    '(float32[2, 3], None)'
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, tuple) and type(value) is tuple:
        return f"({', '.join(describe(part) for part in value)}{',' if len(value) == 1 else ''})"
    return repr(value)


def _register(cls: type[Record]) -> None:
    """Find out which fields are children, and how records of this class come apart and together again."""
    fields, annotations = attrs.fields(cls), _annotations(cls)
    names = [field.name for field in fields]
    for name in ("children", "trainable", "kept_wide", "trees_of", "child_of", "gradient"):
        if name in names:
            raise TypeError(f"{cls.__name__} has a field {name!r}, but every record has an attribute of that name: rename it")
    buffers = {field.name for field in fields if "fundl.buffer" in field.metadata}
    if modules := [name for name in names if _names_a_module(annotations[name])]:
        raise TypeError(
            f"{cls.__name__}.{modules[0]} is annotated as a module of torch.nn, whose parameters nothing here would see or"
            " train: make it a layer with fundl.interop.torch_nn.from_torch(module), and annotate the field with its type"
        )
    statistics = {field.name for field in fields if "fundl.statistic" in field.metadata}
    cls.children = tuple(name for name in names if _holds_tensors(annotations[name]))
    cls.trainable = tuple(name for name in cls.children if name not in buffers)
    cls.kept_wide = tuple(name for name in cls.children if name in statistics)
    _register_node(cls, *_apart_and_together(cls, names), path_entry_type=optree.GetAttrEntry, namespace=_NAMESPACE)
    _with_leaves_of[cls] = _replacing_leaves(cls, names)
    type.__setattr__(cls, "gradient", _gradient(cls, names))
    if init := constructor.new_constructor(cls, cls.trainable, {name: _store(cls, name) for name in names}):
        type.__setattr__(cls, "__init__", init)


# The functions below make functions: those run for each record of a tree each time that the tree is mapped, so they are
# written out, field by field, and compiled. They make records past the constructor and its validators, since leaves may be
# anything for a while (None, shapes). What is compiled holds nothing but the names of fields, which are identifiers.


def _apart_and_together(cls: type[Record], names: Sequence[str]) -> tuple[object, object]:
    """For optree: from a record to (children, static values, names), and from (static values, children) to a record."""
    static = tuple(name for name in names if name not in cls.children)
    apart = _compile(f"lambda record: ({_read(cls.children)}, {_read(static)}, {cls.children!r})", cls)
    stores = [f"store_{name}(record, static[{index}])" for index, name in enumerate(static)]
    stores += [f"store_{name}(record, children[{index}])" for index, name in enumerate(cls.children)]
    return apart, _compile(f"lambda static, children: (record := new(cls), {', '.join(stores)})[0]", cls)


def _replacing_leaves(cls: type[Record], names: Sequence[str]) -> "_WithLeaves":
    """From a record, and an iterator, to the record with its trainable leaves replaced by what the iterator gives."""
    stores = [
        f"store_{name}(record, next(leaves) if isinstance(part := old.{name}, Tensor) else replace(part, leaves))"
        if name in cls.trainable
        else f"store_{name}(record, old.{name})"
        for name in names
    ]
    function = _compile(f"lambda old, leaves, replace: (record := new(cls), {', '.join(stores)})[0]", cls)
    return cast("_WithLeaves", function)  # what eval returns has no type


def _gradient(cls: type[Record], names: Sequence[str]) -> object:
    """From a record, and something for each trainable field, to the record with these there."""
    stores = [f"store_{name}(__record, {name if name in cls.trainable else f'self.{name}'})" for name in names]
    source = f"lambda {', '.join(['self', *cls.trainable])}: (__record := __new(__cls), {', '.join(stores)})[0]"
    function = cast("types.FunctionType", _compile(source, cls))
    function.__qualname__ = f"{cls.__name__}.gradient"
    return function


def _read(names: Sequence[str]) -> str:
    return f"({''.join(f'record.{name}, ' for name in names)})"


def _compile(source: str, cls: type[Record]) -> object:
    scope: dict[str, object] = {f"store_{field.name}": _store(cls, field.name) for field in attrs.fields(cls)}
    scope |= {"cls": cls, "new": object.__new__, "Tensor": Tensor, "__cls": cls, "__new": object.__new__}
    function: object = eval(source, scope)
    return function


def _store(cls: type[Record], name: str) -> Callable[[Record, object], None]:
    """What writes a field of a new record: the slot itself, or the way around frozen classes where there is none."""
    slot: object = getattr(cls, name, None)
    if isinstance(slot, types.MemberDescriptorType):
        return slot.__set__
    return lambda record, value: object.__setattr__(record, name, value)


class _WithLeaves(Protocol):
    def __call__(
        self, old: Record, leaves: Iterator[Tensor], replace: Callable[[object, Iterator[Tensor]], object], /
    ) -> Record: ...


_with_leaves_of: Final[dict[type, _WithLeaves]] = {}


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
        return bound is None or isinstance(bound, typing.ForwardRef) or _holds_tensors(bound)
    if isinstance(annotation, typing.TypeVarTuple):
        return True
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is None:
        return isinstance(annotation, type) and issubclass(annotation, Tensor | Record)
    if origin in {Callable, type, typing.Literal}:
        return False
    return _holds_tensors(origin) or any(_holds_tensors(argument) for argument in arguments)


def misplaced_tensors(tree: object) -> list[str]:
    """The fields of a tree's records that hold a tensor though their annotation names none; there should be none.

    Such a tensor would be static: no gradient, no optimizer and no file would see it.
    """
    return static_fields(tree, lambda value: isinstance(value, Tensor))


def static_fields(tree: object, holds: Callable[[object], bool]) -> list[str]:
    """The static fields of a tree's records that hold a thing of some kind, by the names of their classes and their own."""
    return [
        f"{type(record).__name__}.{field.name}"
        for record in records(tree)
        for field in attrs.fields(type(record))
        if field.name not in record.children and any(holds(leaf) for leaf in flatten(getattr(record, field.name))[0])
    ]


# --- Leaves ---------------------------------------------------------------------------------------------------------


def flatten(tree: T) -> "tuple[list[Tensor | None], Structure[T]]":
    """All leaves of a tree from left to right, None and buffers included, and its structure."""
    return _tree_flatten(tree, none_is_leaf=True, namespace=_NAMESPACE)


def unflatten(structure: "Structure[T]", leaves: Iterable[Tensor | None]) -> T:
    """The tree of that structure with these leaves: undoes `flatten`."""
    return _tree_unflatten(structure, leaves)


def leaves(tree: object) -> list[Tensor]:
    """The tensors of a tree from left to right, buffers included, None left out.

    >>> leaves({"a": torch.ones(1), "b": (None, torch.zeros(2))})
    [tensor([1.]), tensor([0., 0.])]
    """
    return [leaf for leaf in flatten(tree)[0] if isinstance(leaf, Tensor)]  # residuals may hold other things


def paths(tree: object) -> list[str]:
    """Where each leaf is, in the order of `flatten`, as one would write it.

    >>> paths(({"a": torch.ones(1)}, torch.zeros(2)))
    ["[0]['a']", '[1]']
    """
    return [accessor.codify("") for accessor in _tree_accessors(tree, none_is_leaf=True, namespace=_NAMESPACE)]


def records(tree: object) -> list[Record]:
    """Every record of a tree, outer before inner, from left to right; of records that are stacked, each of them."""
    return [record for record, _ in _records(tree, in_buffer=False)]


def outer_records(tree: object) -> list[Record]:
    """The records of a tree that are inside no other, from left to right; stacked ones as they are."""
    if isinstance(tree, Record):
        return [tree]
    if isinstance(tree, tuple | list | dict):
        return [record for part in (tree.values() if isinstance(tree, dict) else tree) for record in outer_records(part)]
    return []


def records_in_buffers(tree: object) -> list[bool]:
    """For each of the `records`, whether it is inside a buffer, where none of its tensors is trainable."""
    return [in_buffer for _, in_buffer in _records(tree, in_buffer=False)]


def _records(tree: object, *, in_buffer: bool) -> list[tuple[Record, bool]]:
    parts: Iterable[object] = ()
    if isinstance(tree, Record):
        held = [(part, in_buffer or name not in tree.trainable) for name in tree.children for part in tree.trees_of(name)]
        return [(tree, in_buffer), *(inner for part, buffer in held for inner in _records(part, in_buffer=buffer))]
    if isinstance(tree, tuple | list):
        parts = tree
    elif isinstance(tree, dict):
        parts = tree.values()
    return [inner for part in parts for inner in _records(part, in_buffer=in_buffer)]


# --- Trainable leaves -----------------------------------------------------------------------------------------------


def trainable_leaves(tree: object) -> list[Tensor]:
    """The leaves that an optimizer updates, from left to right: without None, and without buffers.

    Raises:
        TypeError: something in the tree is neither a tensor, None, a record, nor a tuple, list or dict.

    >>> trainable_leaves({"b": torch.ones(1), "a": (None, torch.zeros(2))})
    [tensor([0., 0.]), tensor([1.])]
    """
    found: list[Tensor] = []
    _gather(tree, found)
    return found


def _gather(tree: object, found: list[Tensor]) -> None:
    if isinstance(tree, Record):
        for name in tree.trainable:
            part: object = getattr(tree, name)
            if isinstance(part, Tensor):
                found.append(part)
            elif part is not None:
                _gather(part, found)
    elif isinstance(tree, (tuple, list)):  # a third faster than the union
        for part in tree:
            if not isinstance(part, Record) or part.trainable:
                _gather(part, found)
    elif isinstance(tree, Tensor):
        found.append(tree)
    elif isinstance(tree, dict):
        for key in _keys(tree):
            _gather(tree[key], found)
    elif tree is not None:
        raise TypeError(
            f"a tree is made of tensors, None, records, tuples, lists and dicts, but here is a {type(tree).__name__}: {tree!r}"
        )


def with_trainable_leaves(tree: T, leaves: Iterable[Tensor]) -> T:
    """The tree with its trainable leaves, in the order of `trainable_leaves`, replaced by these.

    Raises:
        ValueError: there are more leaves, or fewer, than the tree has.

    >>> with_trainable_leaves({"b": torch.ones(1), "a": (None, torch.zeros(2))}, [torch.zeros(3), torch.zeros(4)])
    {'b': tensor([0., 0., 0., 0.]), 'a': (None, tensor([0., 0., 0.]))}
    """
    remaining = iter(leaves)
    try:
        replaced = _replace(tree, remaining)
    except StopIteration:
        raise ValueError(f"the tree has {len(trainable_leaves(tree))} trainable leaves, but fewer were given") from None
    if next(remaining, None) is not None:
        raise ValueError(f"the tree has {len(trainable_leaves(tree))} trainable leaves, but more were given")
    return cast("T", replaced)  # each node is replaced by one of its own class


def _replace(tree: object, leaves: Iterator[Tensor]) -> object:
    if isinstance(tree, Record):
        return _with_leaves_of[type(tree)](tree, leaves, _replace) if tree.trainable else tree
    if isinstance(tree, Tensor):
        return next(leaves)
    if isinstance(tree, tuple | list):
        return rebuilt(tree, [_replace(part, leaves) for part in tree])
    if isinstance(tree, dict):
        new = copy.copy(tree)  # its class and order stay
        new.update({key: _replace(tree[key], leaves) for key in _keys(tree)})
        return new
    return tree


def _keys(tree: dict[str, object]) -> list[str]:
    """The keys of a dict in order: the same leaves in the same order, however the dict was made.

    optree has it so for all but ordered dicts, where two that are made in another way are of other structure.
    """
    if type(tree) not in _DICTS:
        raise TypeError(
            f"a tree is made of plain dicts, OrderedDict and defaultdict, not of {type(tree).__name__}: make it a dict"
        )
    try:
        return sorted(tree)
    except TypeError as error:
        raise TypeError(f"the keys of a dict must be of one kind, so that they have an order, not {[*tree]}") from error


def trainable_paths(tree: object) -> list[str]:
    """Where each trainable leaf is, in the order of `trainable_leaves`, as one would write it.

    >>> trainable_paths(({"a": torch.ones(1)}, None, torch.zeros(2)))
    ["[0]['a']", '[2]']
    """
    match tree:
        case Record():
            parts = [(f".{name}", getattr(tree, name)) for name in tree.trainable]
        case tuple() | list():
            names: Sequence[str] = getattr(tree, "_fields", ())  # of a named tuple
            steps = [f".{name}" for name in names] or [f"[{index}]" for index in range(len(tree))]
            parts = [*zip(steps, tree, strict=True)]
        case dict():
            parts = [(f"[{key!r}]", tree[key]) for key in _keys(tree)]
        case _:
            return [""] if isinstance(tree, Tensor) else []
    return [step + path for step, part in parts for path in trainable_paths(part)]


def require_same_structure(first: object, second: object, *, names: tuple[str, str]) -> None:
    """Raise a TypeError that tells where two trees differ in structure, if they do."""
    if flatten(first)[1] == flatten(second)[1]:
        return
    first_paths, second_paths = paths(first), paths(second)
    only_first = [path for path in first_paths if path not in second_paths]
    only_second = [path for path in second_paths if path not in first_paths]
    if only_first:
        where = f"{names[0]} has a leaf at {only_first[0]} that {names[1]} lacks"
    elif only_second:
        where = f"{names[1]} has a leaf at {only_second[0]} that {names[0]} lacks"
    else:
        where = "their leaves are at the same places, but their records or static fields differ"
    raise TypeError(f"{names[0]} and {names[1]} are not of the same structure: {where}")


# --- Mapping --------------------------------------------------------------------------------------------------------


@overload
def map(function: Callable[[Tensor], Tensor], tree: T, /) -> T: ...
@overload
def map(function: Callable[[Tensor, Tensor], Tensor], tree: T, second: T, /) -> T: ...
@overload
def map(function: Callable[[Tensor, Tensor, Tensor], Tensor], tree: T, second: T, third: T, /) -> T: ...
def map(function: Callable[..., Tensor], tree: T, /, *rest: T) -> T:  # type: ignore[explicit-any]  # see the overloads
    """Apply a function to each tensor of a tree, or to the tensors at the same place of several trees.

    None stays None. All trees must have the structure of the first.

    Args:
        function: takes as many tensors as there are trees, and returns one.
        tree: the tree whose structure the result has.
        rest: more trees of the same structure.

    Raises:
        TypeError: the structures differ; the message tells where.

    >>> map(torch.add, (torch.ones(2), None), (torch.ones(2), None))
    (tensor([2., 2.]), None)
    """
    first, structure = flatten(tree)
    others = [flatten(other) for other in rest]
    for place, (_, other_structure) in enumerate(others):
        if other_structure != structure:
            require_same_structure(tree, rest[place], names=("the first tree", f"tree {place + 2}"))
    columns = [*zip(first, *(other for other, _ in others), strict=True)]
    for place, column in enumerate(columns):
        if len({leaf is None for leaf in column}) > 1:
            raise TypeError(f"at {paths(tree)[place]}, some of the trees have a tensor and others None")
    return unflatten(structure, [None if leaf is None else function(leaf, *more) for leaf, *more in columns])


def _evolved(record: Record, changes: Mapping[str, object]) -> Record:
    """The record with some fields changed, through its constructor; a private field goes in without its underscore."""
    aliases = {field.name: field.alias for field in attrs.fields(type(record))}
    return attrs.evolve(record, **{aliases[name]: value for name, value in changes.items()})


def rebuilt(sequence: Sequence[object], parts: Sequence[object]) -> object:
    """The parts as a list, tuple or named tuple, whichever the sequence is."""
    if isinstance(sequence, list):
        return [*parts]
    if type(sequence) is tuple:
        return tuple(parts)
    make: Callable[[Iterable[object]], object] = operator.attrgetter("_make")(type(sequence))  # every named tuple has it
    return make(parts)


def map_records(function: Callable[[Record], Record], tree: T) -> T:
    """Replace each record of a tree by a function of it, outer before inner, in the order of `records`.

    The function sees a record whose inner records are still the old ones; those of what it returns come next. If it puts
    something around a record, as `frozen` does, it does not see that record again, only those in it.
    """
    try:
        mapped = _map_records(function, tree)
    except RecursionError as error:
        raise RecursionError(
            "the function of map_records sees what it returns again, part by part, and so finds no end: it may put a layer"
            " around a record that it was given, but not around a new one of the kind that it looks for"
        ) from error
    return cast("T", mapped)  # a record is replaced by one of its class: the tree keeps its type


def _map_records(function: Callable[[Record], Record], tree: object, seen: tuple[Record, ...] = ()) -> object:
    match tree:
        case Record():
            new = tree if any(tree is one for one in seen) else function(tree)
            seen = seen if new is tree else (*seen, tree)
            changed: dict[str, object] = {}
            for name in new.children:
                before = new.trees_of(name)
                after = [_map_records(function, part, seen) for part in before]
                if any(part is not old for part, old in zip(after, before, strict=True)):
                    changed[name] = new.child_of(name, before, after)
            return _evolved(new, changed) if changed else new
        case tuple() | list():
            parts = [_map_records(function, part, seen) for part in tree]
            if all(part is old for part, old in zip(parts, tree, strict=True)):
                return tree
            return rebuilt(tree, parts)
        case dict():
            new_dict = copy.copy(tree)
            new_dict.update({key: _map_records(function, part, seen) for key, part in tree.items()})
            return new_dict
        case _:
            return tree


def stack(trees: Sequence[T]) -> T:
    """Trees of one structure as one, whose tensors have a first axis that tells them apart; None stays None.

    Args:
        trees: at least 1.

    Raises:
        TypeError: the structures differ, or there is a tensor in one and None in the same place of another.

    >>> stack([(torch.zeros(2), None), (torch.ones(2), None)])
    (tensor([[0., 0.],
            [1., 1.]]), None)
    """
    leaves, structure = flatten(trees[0])
    for place, other in enumerate(trees[1:], start=1):
        require_same_structure(trees[0], other, names=("tree 0", f"tree {place}"))
    columns = zip(*(flatten(other)[0] for other in trees), strict=True)
    stacked = [None if leaf is None else _stacked(column) for leaf, column in zip(leaves, columns, strict=True)]
    return unflatten(structure, stacked)


def _stacked(column: tuple[Tensor | None, ...]) -> Tensor:
    tensors = [leaf for leaf in column if leaf is not None]
    if len(tensors) < len(column):
        raise TypeError(f"at the same place, some of the trees have a tensor and others None: {describe(column)}")
    return torch.stack(tensors)


def unstack(tree: T, count: int) -> list[T]:
    """The trees that were stacked: undoes `stack`. Their tensors are views.

    Args:
        tree: whose tensors have a first axis of the size `count`.
        count: how many trees there are.

    >>> unstack((torch.tensor([[1.0, 2.0], [3.0, 4.0]]), None), 2)
    [(tensor([1., 2.]), None), (tensor([3., 4.]), None)]
    """
    leaves, structure = flatten(tree)
    rows = zip(*((None,) * count if leaf is None else leaf.unbind() for leaf in leaves), strict=True) if leaves else ()
    return [unflatten(structure, row) for row in rows] if leaves else [tree] * count


def cast_to(tree: T, dtype: torch.dtype) -> T:
    """The tree with its floating-point tensors in another dtype; integer and boolean tensors stay as they are.

    >>> cast_to((torch.ones(1), torch.tensor(3)), torch.float64)
    (tensor([1.], dtype=torch.float64), tensor(3))
    """
    return map(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, tree)


def move_to(tree: T, device: torch.device | str) -> T:
    """The tree with its tensors on another device.

    Raises:
        ValueError: a tensor is on the meta device: it has no values to move.
    """
    if torch.device(device).type != "meta" and any(leaf.is_meta for leaf in leaves(tree)):
        raise ValueError(
            f"tensors on the meta device have no values to move to {device}: call initialize(key, model, device=...) first"
        )
    return map(lambda leaf: leaf.to(device), tree)


def zeros_like(tree: T) -> T:
    """The tree with every tensor replaced by zeros of its shape, dtype and device."""
    return map(torch.zeros_like, tree)


# --- Measures -------------------------------------------------------------------------------------------------------


def norm(tree: object) -> Tensor:
    """The global norm of a tree: the square root of the sum of the squares of all its trainable elements.

    It is right wherever float32 (float64, if an element is) can hold it, also where it could not hold the squares.

    >>> norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])})
    tensor(5.)
    """
    tensors = trainable_leaves(tree)
    return norm_of(tensors).to(torch.float64 if _is_wide(tensors) else torch.float32)


def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """The global norm of several tensors, in float32, or in float64 where that could not hold it or its square."""
    if not tensors:
        return torch.zeros(())
    wide = _is_wide(tensors)
    if is_traced() or not tensors[0].is_cpu:
        return _scaled_norm(tensors) if wide else _plain_norm(tensors, torch.float64)
    total = _plain_norm(tensors, torch.float64 if wide else torch.float32)
    least, most = (1e-140, 1e150) if wide else (1e-15, 1e18)
    # For the CPU, to look at a number costs little, and sums in a wider dtype much.
    if least < total.item() < most:
        return total
    return _scaled_norm(tensors) if wide else _plain_norm(tensors, torch.float64)


def _is_wide(tensors: Sequence[Tensor]) -> bool:
    return torch.float64 in [tensor.dtype for tensor in tensors]


def _plain_norm(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The norm by squares of that dtype; half precision would overflow at 256."""
    total: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tuple(tensors), dtype=dtype)))
    return total


def _scaled_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm where even float64 may not hold the squares: all is divided by the largest number first."""
    filled = [tensor.to(torch.float64) for tensor in tensors if tensor.numel()]
    if not filled:
        return torch.zeros((), dtype=torch.float64, device=tensors[0].device)
    largest = torch.stack(torch._foreach_norm(filled, math.inf)).amax()
    unit = torch.where(largest.isfinite() & (largest > 0), largest, 1.0)
    return unit * _plain_norm(torch._foreach_div(filled, unit), torch.float64)


def count(tree: object) -> int:
    """How many trainable numbers a tree holds.

    >>> count((torch.zeros(2, 3), None, torch.zeros(2)))
    8
    """
    return sum(leaf.numel() for leaf in trainable_leaves(tree))


def nbytes(tree: object) -> int:
    """How many bytes all the tensors of a tree take, buffers included.

    >>> nbytes((torch.zeros(2, 3), torch.tensor(1)))
    32
    """
    return sum(leaf.nbytes for leaf in leaves(tree))


def equal(first: object, second: object) -> bool:
    """Whether two trees have the same structure, and leaves of the same shape, dtype and bits (NaN equals NaN).

    >>> equal((torch.ones(2), None), (torch.ones(2), None)), equal((torch.ones(2),), (torch.zeros(2),))
    (True, False)
    """
    first_leaves, first_structure = flatten(first)
    second_leaves, second_structure = flatten(second)
    return first_structure == second_structure and all(
        _same_bits(one, other) for one, other in zip(first_leaves, second_leaves, strict=True)
    )


def _same_bits(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.is_meta or second.is_meta:
        return first.device == second.device
    if first.numel() == 0:
        return True
    return torch.equal(*(leaf.contiguous().view(-1).view(torch.uint8) for leaf in (first, second)))


# --- One place of a tree --------------------------------------------------------------------------------------------


def at(tree: T, where: Callable[[T], V]) -> "Place[T, V]":
    """One place of a tree, to read it or to make a new tree in which it is another.

    Args:
        tree: a record, tuple, list or dict of them.
        where: goes from the tree to the place by attributes and indices, and does nothing else.

    Raises:
        TypeError: `where` did something else than going to a place.

    >>> pair = (torch.ones(1), {"rate": torch.zeros(1)})
    >>> at(pair, lambda tree: tree[1]["rate"]).set(torch.ones(1))
    (tensor([1.]), {'rate': tensor([1.])})
    """
    # The trail stands in for the tree while `where` walks it: it answers attributes and indices alone.
    trail = where(cast("T", _Trail(())))
    if not isinstance(trail, _Trail):
        raise TypeError(f"`where` must return a place of the tree, such as `lambda model: model[0].weight`, not {trail!r}")
    return Place(tree, trail._steps)


class _Trail:
    """Records which attributes and indices were asked of it."""

    __slots__ = ("_steps",)

    def __init__(self, steps: tuple["_Step", ...]) -> None:
        self._steps = steps

    def __getattr__(self, name: str) -> "_Trail":
        return _Trail((*self._steps, _Step(name, is_attribute=True)))

    def __getitem__(self, key: int | str) -> "_Trail":
        return _Trail((*self._steps, _Step(key, is_attribute=False)))


@attrs.frozen
class _Step:
    """One step into a tree: an attribute's name, or an index or key."""

    key: int | str
    is_attribute: bool

    def read(self, node: object) -> object:
        if self.is_attribute:
            return getattr(node, str(self.key))
        return operator.getitem(cast("dict[object, object]", node), self.key)

    def replaced(self, node: object, value: object) -> object:
        """The node with the child at this step replaced."""
        match node:
            case Record() if self.is_attribute:
                return _evolved(node, {str(self.key): value})
            case tuple() | list() if isinstance(self.key, int):
                index = range(len(node))[self.key]
                return rebuilt(node, [*node[:index], value, *node[index + 1 :]])
            case dict():
                new = copy.copy(node)
                new[self.key] = value
                return new
            case _:
                raise TypeError(f"a {type(node).__name__} has no part {self.key!r} that can be replaced")


@attrs.frozen(eq=False)
class Place(Generic[T, V]):
    """One place of a tree; made by `at`."""

    tree: T
    _steps: tuple[_Step, ...]

    def get(self) -> V:
        """What is there."""
        node: object = self.tree
        for step in self._steps:
            node = step.read(node)
        return cast("V", node)  # `where` said so: it goes from a T to a V by the steps that were just repeated

    def set(self, value: V) -> T:
        """The tree with another value there; the tree itself stays as it is."""
        nodes: list[object] = [self.tree]
        for step in self._steps:
            nodes.append(step.read(nodes[-1]))
        new: object = value
        for node, step in zip(reversed(nodes[:-1]), reversed(self._steps), strict=True):
            new = step.replaced(node, new)
        return cast("T", new)  # made of a T by replacing one part by another of the same type

    def apply(self, function: Callable[[V], V]) -> T:
        """The tree with a function of the value there in its place."""
        return self.set(function(self.get()))

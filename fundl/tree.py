"""Trees of tensors: the one shape that parameters, gradients, optimizer state and residuals share.

A tree is a tensor, None, a `Record`, or a tuple, list, dict or named tuple of trees. Records are frozen attrs classes:
their fields that can hold tensors are the tree's children, all other fields (sizes, rates, initialisers) are static,
a part of the tree's structure. None is a leaf, so that trees with and without a bias line up.

A field marked ``attrs.field(metadata=BUFFER)`` is a child that no optimizer touches. The *trainable* leaves of a
tree are its tensors that are not in a buffer.

optree does the walking, in C++. Records are registered twice: in the namespace "fundl", where every child is a leaf or
a sub-tree, and in "fundl.trainable", where buffers ride along in the structure, so that flattening skips them and
unflattening puts them back.
"""

import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Final, Generic, Protocol, TypeVar, cast, overload

import attrs
import optree
import torch
from torch import Tensor
from typing_extensions import override

T = TypeVar("T")
V = TypeVar("V")
Leaf = TypeVar("Leaf")

BUFFER: Final[Mapping[str, bool]] = types.MappingProxyType({"fundl.buffer": True})
"""Marks a field of a record as a buffer: ``attrs.field(default=None, metadata=BUFFER)``."""

_ALL: Final = "fundl"
_TRAINABLE: Final = "fundl.trainable"


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


class _FlattenTrainable(Protocol):
    def __call__(self, tree: T, /, *, none_is_leaf: bool, namespace: str) -> "tuple[list[Tensor], Structure[T]]": ...


class _Accessors(Protocol):
    def __call__(self, tree: object, /, *, none_is_leaf: bool, namespace: str) -> list[optree.PyTreeAccessor]: ...


class _Unflatten(Protocol):
    def __call__(self, structure: "Structure[T]", leaves: Iterable[object], /) -> T: ...


class _Register(Protocol):
    def __call__(self, cls: type, apart: object, together: object, /, *, path_entry_type: type, namespace: str) -> object: ...


_tree_flatten = cast("_Flatten", optree.tree_flatten)
_tree_flatten_trainable = cast("_FlattenTrainable", optree.tree_flatten)
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

    if not TYPE_CHECKING:  # a checker must see the constructor that attrs writes, not this one

        def __init__(self, *_args, **_kwargs):
            raise TypeError(f"{type(self).__name__} is not a record: decorate the class with @attrs.frozen(eq=False)")

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
    """Tell optree, twice, how records of this class come apart and together again."""
    fields = attrs.fields(cls)
    annotations = _annotations(cls)
    cls.children = tuple(field.name for field in fields if _holds_tensors(annotations[field.name]))
    static = tuple(field.name for field in fields if field.name not in cls.children)
    buffers = tuple(field.name for field in fields if field.name in cls.children and "fundl.buffer" in field.metadata)
    trainable = tuple(name for name in cls.children if name not in buffers)
    for namespace, children, held in ((_ALL, cls.children, ()), (_TRAINABLE, trainable, buffers)):
        apart, together = _apart_and_together(cls, children, static, held)
        _register_node(cls, apart, together, path_entry_type=optree.GetAttrEntry, namespace=namespace)


def _apart_and_together(
    cls: type[Record], children: tuple[str, ...], static: tuple[str, ...], held: tuple[str, ...]
) -> tuple[object, object]:
    """Two functions for optree: from a record to (children, structure, names), and from (structure, children) to a record.

    They run once for each record of a tree each time that it is mapped, so they are written out, field by field, and
    compiled. The second goes past the constructor and its validators: leaves may be anything for a while (None, shapes).
    """

    def as_tuple(names: tuple[str, ...]) -> str:
        return f"({''.join(f'record.{name}, ' for name in names)})"

    in_structure = f"({as_tuple(static)}, Held({as_tuple(held)}))" if held else as_tuple(static)
    static_values, held_values = ("structure[0]", "structure[1].values") if held else ("structure", "()")
    stores = [
        f"    store(record, {name!r}, {values}[{index}])"
        for values, names in (("children", children), (static_values, static), (held_values, held))
        for index, name in enumerate(names)
    ]
    source = "\n".join(
        [
            f"def apart(record): return {as_tuple(children)}, {in_structure}, names",
            "def together(structure, children):",
            "    record = new(cls)",
            *stores,
            "    return record",
        ]
    )
    scope: dict[str, object] = {
        "cls": cls,
        "names": children,
        "Held": _Held,
        "new": object.__new__,
        "store": object.__setattr__,
    }
    exec(source, scope)  # of the names of fields alone, which are identifiers
    return scope["apart"], scope["together"]


class _Held:
    """Values that ride in a structure without being part of it: all of these are equal."""

    __slots__ = ("values",)

    def __init__(self, values: tuple[object, ...]) -> None:
        self.values = values

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held)

    @override
    def __hash__(self) -> int:
        return 0


def _annotations(cls: type[Record]) -> Mapping[str, object]:
    try:
        return typing.get_type_hints(cls, localns={cls.__name__: cls})
    except NameError as error:
        raise TypeError(
            f"the annotations of {cls.__name__} cannot be read ({error}): import the names that they use at the top of"
            " the module, outside of `if TYPE_CHECKING`, and define there what else they need"
        ) from error


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
    return [
        f"{type(record).__name__}.{field.name}"
        for record in records(tree)
        for field in attrs.fields(type(record))
        if field.name not in record.children and isinstance(getattr(record, field.name), Tensor)
    ]


# --- Leaves ---------------------------------------------------------------------------------------------------------


def flatten(tree: T) -> "tuple[list[Tensor | None], Structure[T]]":
    """All leaves of a tree from left to right, None and buffers included, and its structure."""
    return _tree_flatten(tree, none_is_leaf=True, namespace=_ALL)


def flatten_trainable(tree: T) -> "tuple[list[Tensor], Structure[T]]":
    """The leaves that an optimizer updates, without None and buffers, and the tree's structure.

    The structure carries the buffers, so that `unflatten` puts them back; comparing structures passes over them.
    """
    return _tree_flatten_trainable(tree, none_is_leaf=False, namespace=_TRAINABLE)


def unflatten(structure: "Structure[T]", leaves: Iterable[Tensor | None]) -> T:
    """The tree of that structure with these leaves: undoes `flatten` and `flatten_trainable`."""
    return _tree_unflatten(structure, leaves)


def leaves(tree: object) -> list[Tensor]:
    """The tensors of a tree from left to right, buffers included, None left out.

    >>> leaves({"a": torch.ones(1), "b": (None, torch.zeros(2))})
    [tensor([1.]), tensor([0., 0.])]
    """
    return [leaf for leaf in flatten(tree)[0] if leaf is not None]


def paths(tree: object, *, trainable: bool = False) -> list[str]:
    """Where each leaf is, in the order of `flatten` (of `flatten_trainable`, if `trainable`), as one would write it.

    >>> paths(({"a": torch.ones(1)}, torch.zeros(2)))
    ["[0]['a']", '[1]']
    """
    namespace = _TRAINABLE if trainable else _ALL
    accessors = _tree_accessors(tree, none_is_leaf=not trainable, namespace=namespace)
    return [accessor.codify("") for accessor in accessors]


def records(tree: object) -> list[Record]:
    """Every record of a tree, outer before inner, from left to right."""
    if isinstance(tree, Record):
        return [tree, *(inner for name in tree.children for inner in records(getattr(tree, name)))]
    if isinstance(tree, tuple | list):
        return [record for part in tree for record in records(part)]
    if isinstance(tree, dict):
        return [record for part in tree.values() for record in records(part)]
    return []


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
    columns = zip(first, *(other for other, _ in others), strict=True)
    return unflatten(structure, [None if leaf is None else function(leaf, *more) for leaf, *more in columns])


def map_records(function: Callable[[Record], Record], tree: T) -> T:
    """Replace each record of a tree by a function of it, outer before inner, in the order of `records`.

    The function sees a record whose inner records are still the old ones; those of what it returns come next.
    """
    return cast("T", _map_records(function, tree))  # a record is replaced by one of its class: the tree keeps its type


def _map_records(function: Callable[[Record], Record], tree: object) -> object:
    match tree:
        case Record():
            new = function(tree)
            inner = {name: _map_records(function, getattr(new, name)) for name in new.children}
            changed = {name: value for name, value in inner.items() if value is not getattr(new, name)}
            return attrs.evolve(new, **changed) if changed else new
        case tuple() | list() if type(tree) in {tuple, list}:
            parts = [_map_records(function, part) for part in tree]
            if all(part is old for part, old in zip(parts, tree, strict=True)):
                return tree
            return parts if isinstance(tree, list) else tuple(parts)
        case dict():
            return {key: _map_records(function, part) for key, part in tree.items()}
        case _:
            return tree


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

    >>> norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])})
    tensor(5.)
    """
    return norm_of(flatten_trainable(tree)[0])


def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """The global norm of several tensors."""
    if not tensors:
        return torch.zeros(())
    total: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tuple(tensors))))
    return total


def count(tree: object) -> int:
    """How many trainable numbers a tree holds.

    >>> count((torch.zeros(2, 3), None, torch.zeros(2)))
    8
    """
    return sum(leaf.numel() for leaf in flatten_trainable(tree)[0])


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
            case _ if self.is_attribute and isinstance(node, Record):
                return attrs.evolve(node, **{str(self.key): value})
            case tuple() | list() if type(node) in {tuple, list} and isinstance(self.key, int):
                index = range(len(node))[self.key]
                parts = [*node[:index], value, *node[index + 1 :]]
                return parts if isinstance(node, list) else tuple(parts)
            case dict():
                return {**node, self.key: value}
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

"""Trees of arguments and results: their structure as a value, which is a part of the cache key, and their tensors."""

import copy
import operator
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from typing import Final, Literal, cast

import attrs
from torch import Tensor

from fundl._compiling.static_values import StaticValue
from fundl.tree import Record
from fundl.tree._trainable import DICTS

_TENSOR: Final = "tensor"
_CONSTANTS: Final = (bool, int, float, complex, str, bytes)


@attrs.frozen
class StaticArgument:
    """An argument that is no tree: a part of what is compiled."""

    value: object


@attrs.frozen(eq=False)
class Leaf:
    """A placeholder for a tensor of a result: an input or output of the graph, a constant, or one over a donated one's memory.

    One of the kind "tree" stands for a whole tree of the last.
    """

    kind: Literal["input", "output", "constant", "over donated", "tree"]
    index: int  # its number among those of its kind
    tensor: Tensor | None = None  # of a constant, the tensor itself


@attrs.frozen
class Structure:
    """What a node of a tree is like, but for its tensors."""

    cls: type
    static: tuple[StaticValue, ...]  # the static fields of a record, in their order, or the keys of a dict, and its default
    parts: tuple[Hashable, ...]  # each a structure, a static value, None, or what stands for any tensor

    @property
    def steps(self) -> list[str]:
        """What leads to each part, as one would write it."""
        if issubclass(self.cls, Record):
            return [f".{name}" for name in self.cls.children]
        if issubclass(self.cls, dict):
            return [f"[{key!r}]" for key in self.static[: len(self.parts)]]
        names: Sequence[str] | None = getattr(self.cls, "_fields", None)
        return [f".{name}" for name in names] if names else [f"[{index}]" for index in range(len(self.parts))]


@attrs.frozen(eq=False)
class Flat:
    """A tree taken apart."""

    signature: Hashable  # all of it but the tensors; two trees of equal signatures differ in nothing else
    leaves: list[Tensor]  # its tensors, from left to right
    paths: list[str]  # where they are


def flatten(tree: object, path: str, *, constants: bool = False) -> Flat:
    """Take a tree of tensors, None, records, tuples, lists and dicts apart.

    Args:
        tree: the tree.
        path: of the tree itself, for messages.
        constants: whether it may hold numbers and strings, too; they are part of the signature.

    Raises:
        TypeError: the tree holds something else.
    """
    flat = Flat((), [], [])
    return attrs.evolve(flat, signature=_gather(tree, path, flat, constants))


def _gather(tree: object, path: str, found: Flat, constants: bool) -> Hashable:
    if isinstance(tree, Tensor | Leaf):
        found.leaves.append(cast("Tensor", tree))  # a leaf stands for one
        found.paths.append(path)
        return _TENSOR
    if tree is None:
        return None
    if isinstance(tree, StaticArgument) or (constants and isinstance(tree, _CONSTANTS)):
        return StaticValue(tree.value if isinstance(tree, StaticArgument) else tree, path)
    parts = tuple([_gather(part, path + step, found, constants) for step, part in children(tree, path)])
    if isinstance(tree, Record):
        static = [StaticValue(value, f"{path}.{name}") for name, value in static_fields(tree).items()]
    else:
        static = [*map(StaticValue, tree)] if isinstance(tree, dict) else []
        if isinstance(tree, defaultdict):
            static.append(StaticValue(tree.default_factory, f"the default of {path}"))
    return Structure(type(tree), tuple(static), parts)


def children(tree: object, path: str) -> list[tuple[str, object]]:
    """The parts of a node, each with the step that leads to it as one would write it."""
    if isinstance(tree, Record):
        return [(f".{name}", getattr(tree, name)) for name in tree.children]
    if type(tree) is tuple or type(tree) is list:
        return [(f"[{index}]", part) for index, part in enumerate(tree)]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        names: Sequence[str] = tree._fields
        return [(f".{name}", part) for name, part in zip(names, tree, strict=True)]
    if isinstance(tree, dict) and type(tree) in DICTS:
        return [(f"[{key!r}]", part) for key, part in tree.items()]
    raise TypeError(
        f"{path} is a {type(tree).__name__}, {tree!r}: compiled functions go from trees to trees, of tensors, None, records,"
        " tuples, lists and dicts; a number that changes must be a tensor, and an argument that is part of what is compiled"
        " be named in jit(..., static=...)"
    )


def _static_names(cls: type[Record]) -> list[str]:
    return [field.name for field in attrs.fields(cls) if field.name not in cls.children]


def static_fields(tree: Record) -> dict[str, object]:
    """The static fields of a record, by name."""
    return {name: getattr(tree, name) for name in _static_names(type(tree))}


def replace(tree: object, leaves: Iterator[object]) -> object:
    """The tree with its tensors replaced, from left to right; past the constructors of its records."""
    if isinstance(tree, Tensor | Leaf):
        return next(leaves)
    if tree is None or isinstance(tree, _CONSTANTS):
        return tree
    if isinstance(tree, StaticArgument):
        return tree.value
    before = [part for _, part in children(tree, "")]
    after = [replace(part, leaves) for part in before]
    if not isinstance(tree, list | dict) and all(map(operator.is_, before, after)):
        return tree  # quick to recognise when it comes back
    return with_parts(tree, after)


def with_parts(tree: object, parts: list[object]) -> object:
    """A node with other parts."""
    if isinstance(tree, Record):
        new = object.__new__(type(tree))
        for name, value in (static_fields(tree) | dict(zip(tree.children, parts, strict=True))).items():
            object.__setattr__(new, name, value)
        return new
    if isinstance(tree, dict):
        new_dict = copy.copy(tree)  # its class stays, and its default
        new_dict.update(zip(tree, parts, strict=True))
        return new_dict
    if type(tree) is list:
        return parts
    return tuple(parts) if type(tree) is tuple else tuple.__new__(type(cast("tuple[object, ...]", tree)), parts)


def is_reusable(tree: object) -> bool:
    """Whether the same tree can be returned each time: it can be changed nowhere, and holds no tensors."""
    if isinstance(tree, Leaf | list | dict):
        return False
    if tree is None or isinstance(tree, _CONSTANTS):
        return True
    return all(is_reusable(part) for _, part in children(tree, ""))


# --- Signatures in words ------------------------------------------------------------------------------------------------


def explain(old: Hashable, new: Hashable, path: str = "") -> str:
    """Where two signatures differ, in words; an empty string if they do not."""
    if old == new:
        return ""
    if isinstance(old, Structure) and isinstance(new, Structure) and old.cls is new.cls:
        if old.static == new.static and len(old.parts) == len(new.parts):
            columns = zip(old.steps, old.parts, new.parts, strict=True)
            return next(filter(None, (explain(before, after, path + step) for step, before, after in columns)))
        if issubclass(old.cls, Record):
            fields = zip(_static_names(old.cls), old.static, new.static, strict=True)
            name, before, after = next(field for field in fields if field[1] != field[2])
            return f"{path}.{name} was {before!r}, and is {after!r}"
    return f"{path or 'the argument'} was {_described(old)}, and is {_described(new)}"


def _described(signature: Hashable) -> str:
    if not isinstance(signature, Structure):
        return "a tensor" if signature == _TENSOR else repr(signature)
    name = signature.cls.__name__
    if issubclass(signature.cls, dict):
        return f"a {name} with the keys {list(signature.static[: len(signature.parts)])}"
    return f"a {name}" if issubclass(signature.cls, Record) else f"a {name} of {len(signature.parts)}"


def statics(signature: Hashable, path: str) -> Iterator[tuple[str, object]]:
    """The classes and static values that a signature is made of, each with where it is."""
    if isinstance(signature, StaticValue):
        yield path, signature.value
    if not isinstance(signature, Structure):
        return
    yield f"the class of {path}", signature.cls
    if issubclass(signature.cls, Record):
        fields = zip(_static_names(signature.cls), signature.static, strict=True)
        yield from ((f"{path}.{name}", static.value) for name, static in fields)
    for step, part in zip(signature.steps, signature.parts, strict=True):
        yield from statics(part, path + step)

"""Trees of arguments and results: what they look like, as a value, and code that takes just such trees apart.

What runs at each call of a compiled function is written out for the very trees that it was traced with, attribute by
attribute, and compiled: to walk a tree step by step would take longer than a small network takes to compute.
"""

import operator
import types
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Final, Literal, cast

import attrs
from torch import Tensor

from fundl._compiling.fixed import Fixed, unlike
from fundl.tree import Record

_TENSOR: Final = "tensor"
_STATIC: Final = "static"
_CONSTANTS: Final = (bool, int, float, complex, str, bytes)
MISS: Final = object()
"""What the code that `write_call` makes returns if the arguments are not such as it is for."""


@attrs.frozen
class Static:
    """An argument that is no tree: a part of what is compiled."""

    value: object


@attrs.frozen(eq=False)
class Leaf:
    """Stands for a tensor of a result: number `index` of the inputs or outputs of a graph, or a constant.

    Or for a tensor that was written over one that was donated, or for the whole tree that was.
    """

    kind: Literal["input", "output", "constant", "heir", "tree"]
    index: int
    tensor: Tensor | None = None


@attrs.frozen(eq=False)
class Flat:
    """A tree taken apart.

    Args:
        signature: all of it but the tensors; two trees of equal signatures differ in nothing else.
        leaves: its tensors, from left to right.
        paths: where they are.
    """

    signature: Hashable
    leaves: list[Tensor]
    paths: list[str]


def flatten(tree: object, path: str, *, constants: bool = False) -> Flat:
    """Take a tree apart.

    Args:
        tree: of tensors, None, records, tuples, lists and dicts.
        path: of the tree itself, for messages.
        constants: whether numbers and strings may be leaves too; they are part of the signature.

    Raises:
        TypeError: the tree holds something else.
    """
    flat = Flat((), [], [])
    return attrs.evolve(flat, signature=_gather(tree, path, flat, constants))


def _gather(tree: object, path: str, found: Flat, constants: bool) -> Hashable:
    if isinstance(tree, Tensor | Leaf):
        found.leaves.append(tree)  # type: ignore[arg-type]  # a leaf stands for a tensor
        found.paths.append(path)
        return _TENSOR
    if tree is None:
        return None
    if isinstance(tree, Static) or (constants and isinstance(tree, _CONSTANTS)):
        return _STATIC, Fixed(tree.value if isinstance(tree, Static) else tree, path)
    parts = [_gather(part, path + step, found, constants) for step, part in children(tree, path)]
    if isinstance(tree, Record):
        values = tuple([Fixed(value, f"{path}.{name}") for name, value in _static_values(tree).items()])
        return (type(tree), values, *parts)  # type: ignore[arg-type]  # a class can be hashed, whatever its records can
    return (type(tree), tuple(map(Fixed, tree)) if isinstance(tree, dict) else None, *parts)


def children(tree: object, path: str) -> list[tuple[str, object]]:
    """The parts of a node, each with the step that leads to it as one would write it."""
    if isinstance(tree, Record):
        return [(f".{name}", getattr(tree, name)) for name in tree.children]
    if type(tree) is tuple or type(tree) is list:
        return [(f"[{index}]", part) for index, part in enumerate(tree)]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        names: Sequence[str] = tree._fields
        return [(f".{name}", part) for name, part in zip(names, tree, strict=True)]
    if type(tree) is dict:
        return [(f"[{key!r}]", part) for key, part in tree.items()]
    raise TypeError(
        f"{path} is a {type(tree).__name__}, {tree!r}: compiled functions go from trees to trees, of tensors, None, records,"
        " tuples, lists and dicts; a number that changes must be a tensor, and an argument that is part of what is compiled"
        " be named in jit(..., static=...)"
    )


def _static_names(tree: Record) -> list[str]:
    return [field.name for field in attrs.fields(type(tree)) if field.name not in tree.children]


def _static_values(tree: Record) -> dict[str, object]:
    return {name: getattr(tree, name) for name in _static_names(tree)}


def replace(tree: object, leaves: Iterator[object]) -> object:
    """The tree with its tensors replaced, from left to right; past the constructors of its records."""
    if isinstance(tree, Tensor | Leaf):
        return next(leaves)
    if tree is None or isinstance(tree, _CONSTANTS):
        return tree
    if isinstance(tree, Static):
        return tree.value
    before = [part for _, part in children(tree, "")]
    after = [replace(part, leaves) for part in before]
    if not isinstance(tree, list | dict) and all(map(operator.is_, before, after)):
        return tree  # quick to recognise when it comes back
    return with_parts(tree, after)


def with_parts(tree: object, parts: list[object]) -> object:
    """A node like another one, with other parts."""
    if isinstance(tree, Record):
        record = object.__new__(type(tree))
        for name, value in _static_values(tree).items():
            object.__setattr__(record, name, value)
        for name, part in zip(tree.children, parts, strict=True):
            object.__setattr__(record, name, part)
        return record
    if isinstance(tree, dict):
        return dict(zip(tree, parts, strict=True))
    if type(tree) is list:
        return parts
    return tuple(parts) if type(tree) is tuple else _named(cast("tuple[object, ...]", tree), parts)


def _named(like: tuple[object, ...], parts: list[object]) -> object:
    return tuple.__new__(type(like), parts)


def explain(old: Hashable, new: Hashable, path: str = "") -> str:
    """Where two signatures differ, in words; an empty string if they do not."""
    if old == new:
        return ""
    if not (isinstance(old, tuple) and isinstance(new, tuple) and old[0] is new[0] and old[0] != _STATIC):
        return f"{path or 'the argument'} was {_named_signature(old)}, and is {_named_signature(new)}"
    if old[1] != new[1] or len(old) != len(new):
        if isinstance(old[0], type) and issubclass(old[0], Record):
            fields = [field.name for field in attrs.fields(old[0]) if field.name not in old[0].children]
            for name, before, after in zip(fields, old[1], new[1], strict=True):
                if before != after:
                    return f"{path}.{name} was {before!r}, and is {after!r}"
        return f"{path} was {_named_signature(old)}, and is {_named_signature(new)}"
    steps = _steps(old)
    differences = [explain(one, other, path + step) for step, one, other in zip(steps, old[2:], new[2:], strict=True)]
    return next(difference for difference in differences if difference)


def _steps(signature: tuple[Hashable, ...]) -> list[str]:
    kind, keys = signature[:2]
    if isinstance(kind, type) and issubclass(kind, Record):
        return [f".{name}" for name in kind.children]
    if isinstance(keys, tuple):
        return [f"[{key!r}]" for key in keys]
    names: Sequence[str] | None = getattr(kind, "_fields", None)
    return [f".{name}" for name in names] if names else [f"[{index}]" for index in range(len(signature) - 2)]


def _named_signature(signature: Hashable) -> str:
    if signature is None:
        return "None"
    if not isinstance(signature, tuple):
        return "a tensor"
    kind = signature[0]
    if kind == _STATIC:
        return repr(signature[1])
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    if isinstance(signature[1], tuple) and kind is dict:
        return f"a dict with the keys {list(signature[1])}"
    return f"a {name}" if isinstance(kind, type) and issubclass(kind, Record) else f"a {name} of {len(signature) - 2}"


def statics(signature: Hashable, path: str) -> Iterator[tuple[str, object]]:
    """The classes and values that a signature is made of, each with where it is."""
    if not isinstance(signature, tuple):
        return
    kind, second, *parts = signature
    if kind == _STATIC:
        yield path, second.value
        return
    yield f"the class of {path}", kind
    if isinstance(kind, type) and issubclass(kind, Record):
        names = [field.name for field in attrs.fields(kind) if field.name not in kind.children]
        yield from ((f"{path}.{name}", fixed.value) for name, fixed in zip(names, second, strict=True))
    for step, part in zip(_steps(signature), parts, strict=True):
        yield from statics(part, path + step)


# --- Code -------------------------------------------------------------------------------------------------------------


class Source:
    """A function that is being written: its lines, and the values that it knows by name.

    Args:
        same: by the id of a value of an example, an equal one to take in its place: one that is quicker to recognise.
    """

    def __init__(self, same: Mapping[int, object]) -> None:
        self._same = same
        self.lines: list[str] = []
        self.scope: dict[str, object] = {"MISS": MISS, "new": object.__new__, "Tensor": Tensor}
        self._names: dict[int, str] = {}
        self._known: dict[Hashable, object] = {}
        self._count = 0

    def constant(self, value: object) -> str:
        """The name of a value."""
        name = self._names.setdefault(id(value), f"k{len(self._names)}")
        self.scope[name] = value  # which keeps it alive, and its id its own
        return name

    def variable(self) -> str:
        """A name that is not yet in use."""
        self._count += 1
        return f"v{self._count}"

    def add(self, *lines: str) -> None:
        """Write some lines."""
        self.lines += lines

    # --- Taking apart ---

    def read(self, name: str, example: object) -> list[str]:
        """Write what takes the tree of that name apart, if it is like an example; the names of its tensors."""
        if isinstance(example, Tensor):
            return [name]
        if isinstance(example, Static):
            self._require(name, example.value)
            return []
        flat = flatten(example, "")
        if not flat.leaves:
            self._known[flat.signature] = example
        if not flat.leaves and not (isinstance(example, Record) and not example.children):
            same = self.constant(_same_signature(flat.signature))
            self.add(f"if {name} is not {self.constant(example)} and not {same}({name}): return MISS")
            return []
        parts = [part for _, part in children(example, "")]
        self.add(f"if type({name}) is not {self.constant(type(example))}: return MISS")
        names = [self.variable() for _ in parts]
        if isinstance(example, Record):
            for field, value in _static_values(example).items():
                self._require(f"{name}.{field}", value)
            self.add(*(f"{part} = {name}.{field}" for part, field in zip(names, example.children, strict=True)))
        elif isinstance(example, dict):
            self._require_keys(name, tuple(example))
            self.add(f"({', '.join(names)},) = {name}.values()")
        else:
            self.add(f"if len({name}) != {len(parts)}: return MISS", f"({', '.join(names)},) = {name}")
        return [leaf for part, inner in zip(names, parts, strict=True) for leaf in self.read(part, inner)]

    def _require(self, name: str, value: object) -> None:
        """Write that what has that name is like a static value."""
        self.add(f"if {name} is not {self.constant(value)} and {self.constant(unlike(value))}({name}): return MISS")

    def _require_keys(self, name: str, keys: tuple[object, ...]) -> None:
        """Write that a dict has such keys: for strings, to be equal is enough."""
        differ = f"tuple({name}) != {self.constant(keys)}"
        if not all(type(key) is str for key in keys):
            differ = f"{self.constant(unlike(keys))}(tuple({name}))"
        self.add(f"if {differ}: return MISS")

    # --- Putting together ---

    def build(self, example: object, names: Mapping[str, Sequence[str]]) -> str:
        """Write what makes a tree like an example, whose leaves are `Leaf`, each kind of them with names; an expression."""
        if isinstance(example, Leaf):
            return self.constant(example.tensor) if example.kind == "constant" else names[example.kind][example.index]
        if _immutable_without_tensors(example):  # the very one that `read` expects, if it has seen one like it
            return self.constant(self._known.get(flatten(example, "", constants=True).signature, example))
        return self._node(example, [self.build(part, names) for _, part in children(example, "")])

    def _node(self, example: object, parts: list[str]) -> str:
        """Write what makes a node like an example, of parts for which there are expressions."""
        if isinstance(example, Record):
            return self._record(example, parts)
        if isinstance(example, dict):
            return "{" + ", ".join(f"{self.constant(key)}: {part}" for key, part in zip(example, parts, strict=True)) + "}"
        if type(example) is list:
            return f"[{', '.join(parts)}]"
        values = f"({''.join(f'{part}, ' for part in parts)})"
        return values if type(example) is tuple else f"tuple.__new__({self.constant(type(example))}, {values})"

    def _record(self, example: Record, parts: list[str]) -> str:
        cls, name = type(example), self.variable()
        self.add(f"{name} = new({self.constant(cls)})")
        values = dict(zip(example.children, parts, strict=True))
        for field in attrs.fields(cls):
            value = values.get(field.name) or self.constant(self._quicker(getattr(example, field.name)))
            self.add(f"{self._store(cls, field.name)}({name}, {value})")
        return name

    def _quicker(self, value: object) -> object:
        return self._same.get(id(value), value)

    def move(self, name: str, example: Record) -> str:
        """Write what makes a new record of the parts of the one of that name, which is like an example; its name."""
        new = self.variable()
        self.add(f"{new} = new({self.constant(type(example))})")
        for field in attrs.fields(type(example)):
            self.add(f"{self._store(type(example), field.name)}({new}, {name}.{field.name})")
        return new

    def _store(self, cls: type[Record], field: str) -> str:
        """The name of what writes a field of a new record."""
        slot: object = getattr(cls, field, None)
        name = f"store_{self.constant(cls)}_{field}"
        if name not in self.scope:
            self.scope[name] = slot.__set__ if isinstance(slot, types.MemberDescriptorType) else _setter(field)
        return name

    def compile(self, header: str) -> Callable[..., object]:  # type: ignore[explicit-any]  # of any arguments: it is being written
        """The function of that header."""
        name = header.removeprefix("def ").split("(")[0]
        source = "\n    ".join([f"{header}:", *self.lines])
        exec(compile(source, f"<compiled {name}>", "exec"), self.scope)
        return cast("Callable[..., object]", self.scope[name])  # type: ignore[explicit-any]  # see above


def _setter(field: str) -> Callable[[object, object], None]:
    return lambda record, value: object.__setattr__(record, field, value)


def _same_signature(signature: Hashable) -> Callable[[object], bool]:
    def same(tree: object) -> bool:
        try:
            flat = flatten(tree, "")
        except TypeError:
            return False
        return not flat.leaves and flat.signature == signature

    return same


def _immutable_without_tensors(tree: object) -> bool:
    """Whether a tree can be handed out again and again."""
    if isinstance(tree, Leaf | list | dict):
        return False
    if tree is None or isinstance(tree, _CONSTANTS):
        return True
    return all(_immutable_without_tensors(part) for _, part in children(tree, ""))

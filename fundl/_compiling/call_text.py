"""The text of what runs at each call: expressions and statements for the very trees that a function was called with.

They take these trees apart attribute by attribute, and put such results together: to walk a tree step by step would take longer
than a small network takes to compute. For trees that are not like the examples, the statements return MISS.
"""

import textwrap
import types
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final, TypeAlias

import attrs
import torch
from torch import Tensor

from fundl._compiling import cuda, torch_private
from fundl._compiling.cache_keys import TensorSpec
from fundl._compiling.static_values import differs_from
from fundl._compiling.torch_settings import TorchSettings, torch_settings
from fundl._compiling.trees import Leaf, StaticArgument, children, flatten, is_reusable, static_fields
from fundl.tree import Record

MISS: Final = object()
"""What a generated function returns if its arguments are not like those that it was written for."""

MOST_CALLS: Final = 16
"""How many such functions are kept, the latest first, each for arguments of one structure."""

Names: TypeAlias = Mapping[str, Sequence[str]]
"""For each kind of `Leaf`, the expressions that its leaves stand for."""


def fill(template: str, **parts: str) -> str:
    """A template whose placeholders are replaced: one alone in its line by any number of lines, or by none at all."""
    lines: list[str] = []
    for line in template.strip("\n").splitlines():
        code = line.lstrip()
        if filled := code.format(**parts):
            lines.append(textwrap.indent(filled, line.removesuffix(code)))
    return "\n".join(lines)


def lines(*statements: str) -> str:
    """Statements one below the other, without those that are empty."""
    return "\n".join(filter(None, statements))


def listed(names: Sequence[str]) -> str:
    """Names with commas between them."""
    return ", ".join(names)


class CallText:
    """Writes parts of a function, and keeps the values that they know by name.

    Args:
        same: by the id of a value of an example, an equal one to take in its place: one that is quicker to recognise.
    """

    def __init__(self, same: Mapping[int, object]) -> None:
        self._same = same
        self.scope: dict[str, object] = {"MISS": MISS, "new": object.__new__, "empty": torch.empty}
        self._names: dict[int, str] = {}
        self._known: dict[Hashable, object] = {}
        self._count = 0

    def constant(self, value: object) -> str:
        """The name of a value."""
        name = self._names.setdefault(id(value), f"k{len(self._names)}")
        self.scope[name] = value  # which keeps it alive, and its id its own
        return name

    def variables(self, count: int) -> list[str]:
        """Names that are not yet in use."""
        self._count += count
        return [f"v{number}" for number in range(self._count - count, self._count)]

    # --- Conditions ---

    def settings_changed(self, settings: TorchSettings, *, autocast: bool) -> str:
        """Whether torch is set otherwise than it was; of autocast the guard of tensors knows, if there are some."""
        if settings.autocast or torch_private.function_mode_count():
            self.scope |= {"is_watched": torch_private.is_watched, "torch_settings": torch_settings}
            return f"is_watched() or torch_settings(on_gpu={settings.precision is not None}) != {self.constant(settings)}"
        self.scope |= {
            "modes": torch_private.mode_count,
            "function_modes": torch_private.function_mode_count,
            "threads": torch.get_num_threads,
            "default_dtype": torch.get_default_dtype,
            "deterministic": torch.are_deterministic_algorithms_enabled,
            "autocast": torch_private.is_any_autocast,
            "precision": cuda.precision,
        }
        on_gpu = "" if settings.precision is None else f" or precision() != {settings.precision!r}"
        return (
            f"modes() or function_modes() or threads() != {settings.threads}"
            f" or default_dtype() is not {self.constant(settings.default_dtype)}"
            f" or deterministic() is not {settings.deterministic}{' or autocast()' if autocast else ''}{on_gpu}"
        )

    def require_like(self, names: Sequence[str], examples: Sequence[Tensor], *, any_rows: bool = False) -> str:
        """Statements that return MISS unless tensors are like examples, which `any_rows` lets have other numbers of rows."""
        unique: dict[int, tuple[str, Tensor]] = {}
        repeated: list[str] = []
        for name, example in zip(names, examples, strict=True):
            first, _ = unique.setdefault(id(example), (name, example))
            if first is not name:  # the guard takes no tensor twice
                repeated.append(f"if {name} is not {first}: return MISS")
        if not unique:
            return ""
        guard = self.constant(torch_private.guard([example for _, example in unique.values()], any_rows=any_rows))
        return lines(*repeated, f"if not {guard}({listed([name for name, _ in unique.values()])}): return MISS")

    def _require_equal(self, expression: str, value: object) -> str:
        """A statement that returns MISS unless an expression is equal to a static value."""
        differs = self.constant(differs_from(value))
        return f"if {expression} is not {self.constant(value)} and {differs}({expression}): return MISS"

    # --- Taking apart ---

    def take_apart(self, name: str, example: object) -> tuple[str, list[str]]:
        """Statements that take a tree apart which is like an example, and the names of its tensors."""
        if isinstance(example, Tensor):
            return "", [name]
        if isinstance(example, StaticArgument):
            return self._require_equal(name, example.value), []
        flat = flatten(example, "")
        if not flat.leaves:
            self._known[flat.signature] = example
            if not (isinstance(example, Record) and not example.children):
                differs = self.constant(_signature_differs(flat.signature))
                return f"if {name} is not {self.constant(example)} and {differs}({name}): return MISS", []
        parts = [part for _, part in children(example, "")]
        names = self.variables(len(parts))
        inner = [self.take_apart(part_name, part) for part_name, part in zip(names, parts, strict=True)]
        statements = lines(self._take_node_apart(name, example, names), *(code for code, _ in inner))
        return statements, [leaf for _, leaves in inner for leaf in leaves]

    def _take_node_apart(self, name: str, example: object, parts: Sequence[str]) -> str:
        cls = self.constant(type(example))
        if isinstance(example, Record):
            static = (self._require_equal(f"{name}.{field}", value) for field, value in static_fields(example).items())
            reads = (f"{part} = {name}.{field}" for part, field in zip(parts, example.children, strict=True))
            return lines(f"if type({name}) is not {cls}: return MISS", *static, *reads)
        if isinstance(example, dict):
            keys = tuple(example)
            differ = f"tuple({name}) != {self.constant(keys)}"
            if not all(type(key) is str for key in keys):  # for strings, to be equal is enough
                differ = f"{self.constant(differs_from(keys))}(tuple({name}))"
            if isinstance(example, defaultdict):
                differ += f" or {name}.default_factory is not {self.constant(example.default_factory)}"
            return f"if type({name}) is not {cls} or {differ}: return MISS\n({listed(parts)},) = {name}.values()"
        return f"if type({name}) is not {cls} or len({name}) != {len(parts)}: return MISS\n({listed(parts)},) = {name}"

    # --- Putting together ---

    def put_together(self, example: object, names: Names) -> tuple[str, str]:
        """Statements and an expression that make a tree like an example, which has a `Leaf` for each tensor."""
        if isinstance(example, Leaf):
            return "", self.constant(example.tensor) if example.kind == "constant" else names[example.kind][example.index]
        if is_reusable(example):  # the very one that `take_apart` expects, if it has seen one like it
            return "", self.constant(self._known.get(flatten(example, "", constants=True).signature, example))
        made = [self.put_together(part, names) for _, part in children(example, "")]
        code, parts = lines(*(code for code, _ in made)), [part for _, part in made]
        if isinstance(example, Record):
            values = dict(zip(example.children, parts, strict=True))
            static = {field: self.constant(self._same.get(id(value), value)) for field, value in static_fields(example).items()}
            record, name = self._new_record(type(example), static | values)
            return lines(code, record), name
        if isinstance(example, dict):
            return code, self._new_dict(example, parts)
        if type(example) is list:
            return code, f"[{listed(parts)}]"
        values_tuple = f"({''.join(f'{part}, ' for part in parts)})"
        cls = type(example)
        return code, values_tuple if cls is tuple else f"tuple.__new__({self.constant(cls)}, {values_tuple})"

    def _new_dict(self, example: dict[str, object], parts: Sequence[str]) -> str:
        """An expression that makes a dict of the class, the keys and the default of an example."""
        items = zip(map(self.constant, example), parts, strict=True)
        plain = f"{{{listed([f'{key}: {part}' for key, part in items])}}}"
        if type(example) is dict:
            return plain
        default = f"{self.constant(example.default_factory)}, " if isinstance(example, defaultdict) else ""
        return f"{self.constant(type(example))}({default}{plain})"

    def moved(self, name: str, example: Record) -> tuple[str, str]:
        """Statements that make a new record of the parts of a named one, which is like an example; and the new one's name."""
        return self._new_record(type(example), {field.name: f"{name}.{field.name}" for field in attrs.fields(type(example))})

    def _new_record(self, cls: type[Record], values: Mapping[str, str]) -> tuple[str, str]:
        (name,) = self.variables(1)
        stores = (f"{self._store(cls, field.name)}({name}, {values[field.name]})" for field in attrs.fields(cls))
        return lines(f"{name} = new({self.constant(cls)})", *stores), name

    def _store(self, cls: type[Record], field: str) -> str:
        """The name of what writes a field of a new record."""
        name = f"store_{self.constant(cls)}_{field}"
        if name not in self.scope:
            slot: object = getattr(cls, field, None)
            self.scope[name] = slot.__set__ if isinstance(slot, types.MemberDescriptorType) else _setter(field)
        return name

    def allocate(self, names: Sequence[str], specs: Sequence[TensorSpec], *, rows: str = "") -> str:
        """Statements that make tensors, with a further first axis if there is an expression for its size."""
        return lines(
            *(
                f"{name} = empty({f'({rows}, *{shape})' if rows else shape},"
                f" dtype={self.constant(dtype)}, device={self.constant(device)})"
                for name, (dtype, shape, device) in zip(names, specs, strict=True)
            )
        )


def _setter(field: str) -> Callable[[object, object], None]:
    return lambda record, value: object.__setattr__(record, field, value)


def _signature_differs(signature: Hashable) -> Callable[[object], bool]:
    """A function that tells whether a tree has another signature, or holds tensors."""

    def differs(tree: object) -> bool:
        try:
            flat = flatten(tree, "")
        except TypeError:
            return True
        return bool(flat.leaves) or flat.signature != signature

    return differs

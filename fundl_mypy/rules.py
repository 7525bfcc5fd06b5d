"""The shape rules of layers, read from their types.

A rule is the signature of a layer's method `output_shape`. It is run on the shapes of `fundl.shapes`, whose functions also
say what does not fit, so that a checker and a running program use the same words.
"""

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from mypy.maptype import map_instance_to_supertype
from mypy.nodes import Decorator, FuncDef, OverloadedFuncDef, TypeInfo, Var
from mypy.types import (
    CallableType,
    Instance,
    LiteralType,
    Overloaded,
    TupleType,
    Type,
    TypeVarId,
    TypeVarTupleType,
    TypeVarType,
    UnpackType,
    get_proper_type,
)
from mypy.typevartuples import split_with_instance

SHAPES: Final = Path(__file__).parents[1] / "fundl" / "shapes"

if TYPE_CHECKING:
    from fundl import shapes as shapes  # noqa: PLC0414
else:  # to import a module of fundl would be to import torch: the package is loaded by itself
    _spec = importlib.util.spec_from_file_location("fundl_mypy.shapes", SHAPES / "__init__.py")
    shapes = importlib.util.module_from_spec(_spec)
    sys.modules[_spec.name] = shapes
    _spec.loader.exec_module(shapes)

LAYER: Final = "fundl.layer.Layer"
RULE: Final = "output_shape"
REPORTED: Final = "fundl: a misfit inside was reported"
"""Marks the type of a layer, so that the same is not reported again of a model that it is a part of."""

Read = Callable[[str], None]
"""Called with the full name of each rule that is read: when the rule changes, mypy checks again what read it."""


def is_layer(typ: Type) -> bool:
    """Whether a type is that of a layer."""
    typ = get_proper_type(typ)
    return isinstance(typ, Instance) and typ.type.has_base(LAYER)


# --- Layers as their rules ---------------------------------------------------------------------------------------------


def parts(types: Sequence[Type], read: Read) -> tuple[object, ...]:
    """The layers of a tuple, for the functions of `shapes`; what stands behind an unknown number of them is left out."""
    known: list[object] = []
    for typ in types:
        if isinstance(typ, UnpackType):
            return (*known, _UNKNOWN)
        known.append(part(typ, read))
    return tuple(known)


class _Named(tuple[object, ...]):  # noqa: SLOT001  # no tuple can have slots
    """The layers of a named tuple, which messages call by their names."""

    _fields: Sequence[str]


def chain(typ: TupleType, read: Read) -> tuple[object, ...]:
    """The layers of a tuple; of a named one, with their names."""
    info = typ.partial_fallback.type
    if not info.is_named_tuple:
        return parts(typ.items, read)
    named = _Named(parts(typ.items, read))
    named._fields = [name for name, symbol in info.names.items() if isinstance(symbol.node, Var) and symbol.node.is_property]
    return named


def part(typ: Type, read: Read) -> object:
    """A layer or a tuple of them, for the functions of `shapes`."""
    typ = get_proper_type(typ)
    if isinstance(typ, TupleType):
        return chain(typ, read)
    if isinstance(typ, Instance) and typ.type.has_base(LAYER) and REPORTED not in _remembered(typ):
        return shapes.Stated(typ.type.name, _Rule(typ, read))
    return _UNKNOWN


def _remembered(layer: Instance) -> Mapping[str, Type]:
    return layer.extra_attrs.attrs if layer.extra_attrs else {}


_UNKNOWN: Final = shapes.Stated("?", lambda _: shapes.Shape(...))


class _Rule:
    """What a layer's type says that it makes of a shape."""

    def __init__(self, layer: Instance, read: Read) -> None:
        self.layer = layer
        self.read = read

    def __call__(self, shape: shapes.AnyShape) -> shapes.AnyShape:
        for signature, owner in _signatures(self.layer, self.read):
            match = _Match(self.layer, map_instance_to_supertype(self.layer, owner), self.read)
            applies = match.is_of(signature.arg_types[0])
            if applies is None:
                break
            if applies:
                return match.output(signature, shape)
        return shapes.Shape(...)


def _signatures(layer: Instance, read: Read) -> Iterator[tuple[CallableType, TypeInfo]]:
    """The rule's types, one for each overload, and the class that states them; none for a layer without a rule."""
    owner = layer.type.get_containing_type_info(RULE)
    if owner is None or owner.fullname == LAYER:
        read(f"{layer.type.fullname}.{RULE}")  # it may get one
        return
    read(f"{owner.fullname}.{RULE}")
    node = owner.names[RULE].node
    typ = node.var.type if isinstance(node, Decorator) else node.type if isinstance(node, FuncDef | OverloadedFuncDef) else None
    typ = get_proper_type(typ)
    items = typ.items if isinstance(typ, Overloaded) else [typ]
    for item in items:
        if isinstance(item, CallableType) and len(item.arg_types) >= 2:
            yield item, owner


# --- One rule on one shape ---------------------------------------------------------------------------------------------


class _Match:
    """What the type variables of a rule stand for: those of the layer's class at first, and the shape's once it is taken."""

    def __init__(self, layer: Instance, seen: Instance, read: Read) -> None:
        self.layer = layer
        self.read = read
        self.arguments: dict[TypeVarId, Type] = {}  # of the class
        self.packs: dict[TypeVarId, Sequence[Type]] = {}  # of the class, of any length
        self.sizes: dict[TypeVarId, shapes.Size] = {}
        self.axes: dict[TypeVarId, Sequence[shapes.Size]] = {}
        self.shapes: dict[TypeVarId, shapes.AnyShape] = {}
        variables, arguments = seen.type.defn.type_vars, seen.args
        index = seen.type.type_var_tuple_prefix
        if index is not None:
            before, middle, after = split_with_instance(seen)
            self.packs[variables[index].id] = middle
            variables, arguments = [*variables[:index], *variables[index + 1 :]], (*before, *after)
        self.arguments.update((variable.id, argument) for variable, argument in zip(variables, arguments, strict=True))

    def is_of(self, itself: Type) -> bool | None:
        """Whether the layer is of the type that an overload states for `self`; None if that is not known."""
        itself = get_proper_type(itself)
        if not isinstance(itself, Instance) or itself.type is not self.layer.type or itself.type.has_type_var_tuple_type:
            return True
        for stated, argument in zip(itself.args, self.layer.args, strict=False):
            wanted, given = get_proper_type(stated), get_proper_type(argument)
            if isinstance(wanted, LiteralType) and wanted != given:
                return False if isinstance(given, LiteralType) else None
        return True

    def output(self, signature: CallableType, shape: shapes.AnyShape) -> shapes.AnyShape:
        """The shape that the rule gives for another; a misfit, if it does not take that."""
        self.take(get_proper_type(signature.arg_types[1]), shape)
        return self.shape(signature.ret_type)

    # What the rule takes

    def take(self, pattern: Type, shape: shapes.AnyShape) -> None:
        """Find what the variables of the shape that the rule expects stand for."""
        if isinstance(pattern, TypeVarType):
            self.shapes[pattern.id] = shape
        if not isinstance(pattern, Instance) or _of_shapes(pattern.type.fullname) != "Shape":
            return
        packs = [index for index, item in enumerate(pattern.args) if isinstance(item, UnpackType)]
        before, after = (packs[0], len(pattern.args) - packs[0] - 1) if packs else (len(pattern.args), 0)
        first, middle, last = _split(shape, before, after, exactly=not packs)
        for index, (item, size) in enumerate(zip(pattern.args, first, strict=False)):
            self.take_size(item, size, index)
        for index, size in enumerate(last, start=-after):
            self.take_size(pattern.args[index], size, index)
        if packs:
            self.take_axes(pattern.args[packs[0]], middle)

    def take_size(self, item: Type, size: shapes.Size, axis: int) -> None:
        item = get_proper_type(item)
        if isinstance(item, TypeVarType) and item.id not in self.arguments and item.id not in self.sizes:
            self.sizes[item.id] = size
        else:
            shapes.expect(_noun(item, axis), size, self.size(item))

    def take_axes(self, item: Type, sizes: Sequence[shapes.Size]) -> None:
        inner = get_proper_type(item.type) if isinstance(item, UnpackType) else None
        if isinstance(inner, TypeVarTupleType):
            self.axes[inner.id] = sizes

    # What the rule gives

    def shape(self, typ: Type) -> shapes.AnyShape:
        """The shape that a type stands for."""
        typ = get_proper_type(typ)
        if isinstance(typ, TypeVarType) and typ.id in self.shapes:
            return self.shapes[typ.id]
        return self.computed(typ.type.fullname, typ.args) if isinstance(typ, Instance) else shapes.Shape(...)

    def computed(self, name: str, arguments: Sequence[Type]) -> shapes.AnyShape:
        """What a class of `shapes` computes from its type arguments."""
        shape: shapes.AnyShape = shapes.Shape(...)
        match _of_shapes(name):
            case "Shape":
                shape = shapes.Shape(*self.sizes_of(arguments))
            case "Through" | "Kept" | "Folded" as kind:
                through = {"Through": shapes.Through, "Kept": shapes.Kept, "Folded": shapes.Folded}[kind]
                shape = through(self.shape(arguments[0]), self.layers(arguments[1:]))
            case "Ending":
                shape = shapes.Ending(self.shape(arguments[0]), self.size(arguments[1]))
            case "Joined" | "Reshaped" as kind:
                shape = (self.joined if kind == "Joined" else self.reshaped)(*arguments)
            case "Windows" | "Spreads" | "Unfolded" as kind:
                shape = self.slid(kind, *arguments)
            case "Patched":
                shape = self.patched(*arguments)
            case "Resized" | "Padded" as kind:
                change = shapes.Resized if kind == "Resized" else shapes.Padded
                shape = change(self.shape(arguments[0]), *map(self.value, arguments[1:]))
            case _:
                pass
        return shape

    def joined(self, shape: Type, *branches: Type) -> shapes.AnyShape:
        join, axis = self.remembered("join"), self.remembered("axis")
        return shapes.Joined(
            self.shape(shape),
            self.layers(branches),
            join=join if isinstance(join, str) else None,
            axis=axis if isinstance(axis, int) else None,
        )

    def reshaped(self, batch: Type, example: Type, *axes: Type) -> shapes.AnyShape:
        example = get_proper_type(self.argument(example))
        if not isinstance(example, TupleType):
            return shapes.Shape(...)
        return shapes.Reshaped(self.size(batch), tuple(self.sizes_of(example.items)), *self.sizes_of(axes))

    def slid(
        self,
        kind: Literal["Windows", "Spreads", "Unfolded"],
        batch: Type,
        channels: Type,
        settings: Type,
        *axes: Type,
    ) -> shapes.AnyShape:
        result = {"Windows": shapes.Windows, "Spreads": shapes.Spreads, "Unfolded": shapes.Unfolded}[kind]
        known = self.settings(settings)
        if known is None:
            return shapes.Shape(...)
        return result(self.size(batch), self.size(channels), known, *self.sizes_of(axes))

    def patched(self, batch: Type, rows: Type, places: Type, sides: Type, settings: Type) -> shapes.AnyShape:
        known = self.settings(settings)
        if known is None:
            return shapes.Shape(...)
        return shapes.Patched(self.size(batch), self.size(rows), self.size(places), self.setting(sides), known)

    def settings(self, typ: Type) -> tuple[shapes.Setting, ...] | None:
        """The settings that a tuple of types stands for."""
        stated = get_proper_type(typ)
        return tuple(map(self.setting, stated.items)) if isinstance(stated, TupleType) else None

    def setting(self, typ: Type) -> shapes.Setting:
        """The number for all axes, or the numbers for each, that a type stands for."""
        typ = get_proper_type(self.argument(typ))
        if isinstance(typ, LiteralType) and typ.value == "same":
            return "same"
        return tuple(self.sizes_of(typ.items)) if isinstance(typ, TupleType) else self.size(typ)

    def value(self, typ: Type) -> shapes.Value:
        """The value of a field, as far as its type tells."""
        typ = get_proper_type(self.argument(typ))
        if isinstance(typ, TupleType):
            return tuple(map(self.value, typ.items))
        return typ.value if isinstance(typ, LiteralType) and isinstance(typ.value, int) else None

    def sizes_of(self, types: Sequence[Type]) -> list[shapes.Size]:
        """The sizes that types stand for, those of any number of axes among them."""
        sizes: list[shapes.Size] = []
        for typ in types:
            inner = get_proper_type(typ.type) if isinstance(typ, UnpackType) else None
            if inner is None:
                sizes.append(self.size(typ))
            elif isinstance(inner, TypeVarTupleType) and inner.id in self.axes:
                sizes.extend(self.axes[inner.id])
            else:
                sizes.append(shapes.Unknown(many=True))
        return sizes

    def size(self, typ: Type) -> shapes.Size:
        """The size that a type stands for."""
        typ = get_proper_type(self.argument(typ))
        if isinstance(typ, TypeVarType) and typ.id in self.sizes:
            return self.sizes[typ.id]
        if isinstance(typ, LiteralType) and isinstance(typ.value, int):
            return typ.value
        if isinstance(typ, Instance) and (operator := _OPERATORS.get(_of_shapes(typ.type.fullname))):
            return operator(*self.sizes_of(typ.args))
        return shapes.Unknown()

    def layers(self, types: Sequence[Type]) -> tuple[object, ...]:
        """The layers that types stand for."""
        inner: list[Type] = []
        for typ in types:
            pack = get_proper_type(typ.type) if isinstance(typ, UnpackType) else None
            if isinstance(pack, TypeVarTupleType) and pack.id in self.packs:
                inner.extend(self.packs[pack.id])
            else:
                inner.append(self.argument(typ))
        return parts(inner, self.read)

    def argument(self, typ: Type) -> Type:
        """What a type variable of the layer's class stands for, or the type itself."""
        typ = get_proper_type(typ)
        return self.arguments.get(typ.id, typ) if isinstance(typ, TypeVarType) else typ

    def remembered(self, name: str) -> object:
        """What a field of the layer is set to, where the layer's type was seen to be made; see `signatures.remember`."""
        typ = get_proper_type(_remembered(self.layer).get(name))
        return typ.value if isinstance(typ, LiteralType) else None


_OPERATORS: Final = {
    operator.__name__: operator.of
    for operator in (
        shapes.Sum,
        shapes.Product,
        shapes.Difference,
        shapes.Quotient,
        shapes.Divided,
        shapes.Window,
        shapes.Spread,
    )
}


def _of_shapes(fullname: str) -> str:
    """The name of a class of `fundl.shapes`; empty for any other class."""
    return fullname.rpartition(".")[2] if fullname.startswith("fundl.shapes.") else ""


def _split(
    shape: shapes.AnyShape, before: int, after: int, *, exactly: bool
) -> tuple[Sequence[shapes.Size], Sequence[shapes.Size], Sequence[shapes.Size]]:
    """The first sizes of a shape, the last ones, and those between."""
    if exactly:
        return shape.exactly(before), (), ()
    if not after:
        sizes = shape.leading(before)
    elif shape.front is None or not before:
        sizes = shape.trailing(before + after)
    else:  # what is known may be among the first, or behind them
        sizes = (*shape.leading(before), *shape.trailing(after)[-after:])
    return sizes[:before], sizes[before : len(sizes) - after], sizes[len(sizes) - after :]


def _noun(item: Type, axis: int) -> str:
    """What the sizes of an axis count: the last word of its type variable's name, InFeatures, if that is a plural."""
    words = re.findall("[A-Z][a-z]*", item.name) if isinstance(item, TypeVarType) else []
    return words[-1].lower() if words and words[-1].endswith("s") else f"axis {axis}"

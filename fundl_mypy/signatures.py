"""The sizes that a call states: numbers that are written in it become literal types in what it returns.

Two things tell which argument is which size. In a function, the size's type variable is the type of a parameter:

    def linear(in_features: In, out_features: Out) -> Linear[In, Out]: ...
    def conv2d(channels: In, filters: Out, kernel: Kernel, *, stride: Stride | int = 1) -> Conv2d[In, Out, Kernel, Stride]: ...

A layer's class has a type variable named like a field:

    class Repeat(Layer[None], Generic[Factor]):
        factor: int
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from mypy.checker import TypeChecker
from mypy.constant_fold import constant_fold_expr
from mypy.expandtype import expand_type
from mypy.nodes import CallExpr, Context, Expression, IntExpr, MemberExpr, NameExpr, OpExpr, StrExpr, TupleExpr, UnaryExpr
from mypy.plugin import CheckerPluginInterface, FunctionSigContext, MethodSigContext
from mypy.types import (
    AnyType,
    CallableType,
    ExtraAttrs,
    Instance,
    LiteralType,
    NoneType,
    TupleType,
    Type,
    TypeAliasType,
    TypeOfAny,
    TypeVarId,
    TypeVarType,
    UnionType,
    get_proper_type,
)

from fundl_mypy.defaults import Constant, SameAs
from fundl_mypy.rules import is_layer

UNKNOWN: Final = AnyType(TypeOfAny.special_form)

SigContext = FunctionSigContext | MethodSigContext


# --- Which parameters are sizes ----------------------------------------------------------------------------------------


def stated(signature: CallableType) -> Mapping[TypeVarType, Sequence[int]]:
    """The type variables of a signature that stand for sizes of a layer which it returns, each with its parameters."""
    known = _known.get(id(signature))
    if known is None or known[0] is not signature:
        if len(_known) > 1000:
            _known.clear()
        known = _known[id(signature)] = signature, _stated(signature)
    return known[1]


_known: Final[dict[int, tuple[CallableType, Mapping[TypeVarType, Sequence[int]]]]] = {}
"""What was found of the signatures that were seen last: a function that is called often is mostly called with the same."""


def _stated(signature: CallableType) -> Mapping[TypeVarType, Sequence[int]]:
    variables = [variable for variable in signature.variables if isinstance(variable, TypeVarType)]
    if signature.is_type_obj():
        return _named_like_fields(signature, variables) if is_layer(signature.ret_type) else {}
    reached = {argument.id for layer in layers_in(signature.ret_type) for argument in _type_variables(layer.args)}
    found = {variable: _parameters_of(variable, signature) for variable in variables if variable.id in reached}
    return {variable: places for variable, places in found.items() if places and _is_size(variable.upper_bound)}


def _named_like_fields(signature: CallableType, variables: Sequence[TypeVarType]) -> dict[TypeVarType, list[int]]:
    names = {variable: "_".join(re.findall("[A-Z][a-z0-9]*", variable.name)).lower() for variable in variables}
    return {variable: [signature.arg_names.index(name)] for variable, name in names.items() if name in signature.arg_names}


def _parameters_of(variable: TypeVarType, signature: CallableType) -> list[int]:
    """The parameters whose type is the variable, or the variable or something else; none if it is in the type of others."""
    places: list[int] = []
    for place, typ in enumerate(signature.arg_types):
        proper = get_proper_type(typ)
        options = proper.items if isinstance(proper, UnionType) else [proper]
        if variable in map(get_proper_type, options):
            places.append(place)
        elif any(inner.id == variable.id for layer in layers_in(proper) for inner in _type_variables(layer.args)):
            return []
    return places


def holds_layers(layer: Instance) -> bool:
    """Whether a layer's type tells of layers inside."""
    return any(True for argument in layer.args for _ in layers_in(argument))


def layers_in(typ: Type) -> Iterator[Instance]:
    """The types of layers that are in a type, those inside layers and tuples too."""
    if isinstance(typ, TypeAliasType) and typ.is_recursive:
        return
    typ = get_proper_type(typ)
    if isinstance(typ, Instance):
        if is_layer(typ):
            yield typ
        inner: Sequence[Type] = typ.args
    else:
        inner = typ.items if isinstance(typ, TupleType | UnionType) else ()
    for item in inner:
        yield from layers_in(item)


def _type_variables(types: Sequence[Type]) -> Iterator[TypeVarType]:
    for typ in map(get_proper_type, types):
        if isinstance(typ, TypeVarType):
            yield typ


def _is_size(bound: Type) -> bool:
    """Whether a type is one of those that a size can be of: int, a tuple of int, or one of several such."""
    if isinstance(bound, TypeAliasType) and bound.is_recursive:
        return False
    bound = get_proper_type(bound)
    match bound:
        case Instance():
            name = bound.type.fullname
            return name == "builtins.int" or (name == "builtins.tuple" and all(map(_is_size, bound.args)))
        case UnionType() | TupleType():
            return all(map(_is_size, bound.items))
        case _:
            return isinstance(bound, LiteralType | NoneType)


# --- What they are -----------------------------------------------------------------------------------------------------


def with_sizes(context: SigContext, default_of: Callable[[str], Constant]) -> CallableType:
    """The signature of a call in which the sizes that it states are literal types in what is returned.

    Those that it does not tell are of type Any, so that they fit others. Parameters keep the type that the variable is
    bound by: what was no size before is none now.
    """
    signature = context.default_signature
    sizes = stated(signature)
    if not sizes:
        return signature
    values = {variable.id: _value(places, context, default_of) for variable, places in sizes.items()}
    bounds: dict[TypeVarId, Type] = {variable.id: variable.upper_bound for variable in sizes}
    if signature.is_type_obj():
        bounds = {}
    return signature.copy_modified(
        arg_types=[expand_type(typ, bounds) for typ in signature.arg_types],
        ret_type=expand_type(signature.ret_type, values),
        variables=[variable for variable in signature.variables if variable.id not in values],
    )


def _value(places: Sequence[int], context: SigContext, default_of: Callable[[str], Constant]) -> Type:
    found = [_of_parameter(place, context, default_of) for place in places]
    return found[0] if all(typ == found[0] for typ in found) else UNKNOWN


def _of_parameter(place: int, context: SigContext, default_of: Callable[[str], Constant]) -> Type:
    given, name = context.args[place], context.default_signature.arg_names[place]
    if len(given) == 1 and not _is_starred(given[0], context.context):
        return of_expression(given[0], context.api)
    default = default_of(name) if name is not None and not given else None
    if isinstance(default, SameAs):
        return _of_parameter(context.default_signature.arg_names.index(default.field), context, default_of)
    return literal(default, context.api)


def _is_starred(argument: Expression, call: Context) -> bool:
    return isinstance(call, CallExpr) and any(
        kind.is_star() for kind, expression in zip(call.arg_kinds, call.args, strict=True) if expression is argument
    )


def of_expression(expression: Expression, api: CheckerPluginInterface) -> Type:
    """The literal type of an expression, or Any: of what is more than names, numbers and arithmetic, nothing is known."""
    match expression:
        case IntExpr() | StrExpr():
            return literal(expression.value, api)
        case TupleExpr():
            return _tuple([of_expression(item, api) for item in expression.items], api)
        case UnaryExpr() | OpExpr() if isinstance(api, TypeChecker):
            return literal(constant_fold_expr(expression, api.tree.fullname), api)
        case NameExpr() | MemberExpr():
            return _of_type(api.get_expression_type(expression))
        case _:
            return UNKNOWN


def _of_type(typ: Type) -> Type:
    typ = get_proper_type(typ)
    match typ:
        case LiteralType() | TypeVarType():
            return typ
        case Instance() if typ.last_known_value is not None:
            return typ.last_known_value
        case TupleType():
            return typ.copy_modified(items=[_of_type(item) for item in typ.items])
        case _:
            return UNKNOWN


def literal(value: object, api: CheckerPluginInterface) -> Type:
    """The literal type of a constant, or Any."""
    match value:
        case bool():
            return LiteralType(value, api.named_generic_type("builtins.bool", []))
        case int():
            return LiteralType(value, api.named_generic_type("builtins.int", []))
        case str():
            return LiteralType(value, api.named_generic_type("builtins.str", []))
        case tuple():
            return _tuple([literal(item, api) for item in value], api)
        case _:
            return UNKNOWN


def _tuple(items: list[Type], api: CheckerPluginInterface) -> Type:
    return TupleType(items, api.named_generic_type("builtins.tuple", [api.named_generic_type("builtins.int", [])]))


# --- What is no size, and yet decides over some ------------------------------------------------------------------------


def remember(layer: Instance, settings: Mapping[str, Type]) -> Instance:
    """The type of a layer that remembers what its type arguments do not tell, such as what a field is set to."""
    remembered = layer.copy_modified()
    remembered.extra_attrs = ExtraAttrs({**(layer.extra_attrs.attrs if layer.extra_attrs else {}), **settings})
    return remembered

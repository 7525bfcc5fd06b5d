"""What the plugin has to do for a call of a function or a class, found once from its signature."""

from typing import Final, NamedTuple

from mypy.nodes import Decorator, FuncDef, OverloadedFuncDef, SymbolNode, TypeInfo, Var
from mypy.types import FunctionLike, Instance, Type, TypeAliasType, TypeVarType, UnionType, get_proper_type

from fundl_mypy.rules import LAYER, is_layer
from fundl_mypy.signatures import stated

MODEL: Final = "fundl.layer.Model"


class Callee(NamedTuple):
    """What there is to do when a function or a class is called."""

    states_sizes: bool = False
    """Whether numbers in the call are sizes of a layer that it returns."""
    makes_layer: bool = False
    """Whether it returns a layer whose type depends on the arguments."""
    models: frozenset[str] = frozenset()
    """The names of the parameters that are models."""
    passes_on: bool = False
    """Whether it is one of fundl's own functions, and what it returns may have a part of a type that it was given."""


NOTHING: Final = Callee()


class Callees:
    """What there is to do for each function and class that was called."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[FunctionLike, Callee]] = {}

    def of(self, fullname: str, node: SymbolNode | None) -> Callee:
        """What there is to do when a node is called."""
        if isinstance(node, TypeInfo):
            return _of_class(node)
        signature = _signature(node)
        if signature is None:
            return NOTHING
        known = self._known.get(fullname)
        if known is None or known[0] is not signature:  # a daemon sees functions change
            passes_on = fullname.startswith("fundl.") and any(item.variables for item in signature.items)
            known = self._known[fullname] = signature, _of_function(signature)._replace(passes_on=passes_on)
        return known[1]


def _of_class(info: TypeInfo) -> Callee:
    generic_layer = bool(info.defn.type_vars) and info.has_base(LAYER)
    symbol = info.get("__init__")
    initializer = _signature(symbol.node) if symbol is not None else None
    models = _of_function(initializer).models if initializer is not None and info.defn.type_vars else frozenset[str]()
    return Callee(generic_layer, generic_layer, models)


def _of_function(signature: FunctionLike) -> Callee:
    items = signature.items
    models = (
        name
        for item in items
        for name, typ in zip(item.arg_names, item.arg_types, strict=True)
        if name is not None and _is_model(typ)
    )
    return Callee(
        states_sizes=any(stated(item) for item in items),
        makes_layer=any(is_layer(item.ret_type) and bool(item.variables) for item in items),
        models=frozenset(models),
    )


def _signature(node: SymbolNode | None) -> FunctionLike | None:
    match node:
        case Decorator():
            typ = get_proper_type(node.var.type)
        case FuncDef() | OverloadedFuncDef() | Var():
            typ = get_proper_type(node.type)
        case _:
            return None
    return typ if isinstance(typ, FunctionLike) else None


def _is_model(parameter: Type) -> bool:
    """Whether a parameter of this type takes models: it is declared as a Model, or as a type variable bound by that."""
    typ = get_proper_type(parameter.upper_bound if isinstance(parameter, TypeVarType) else parameter)
    if not isinstance(typ, UnionType):
        return False
    tuples = [item for item in map(get_proper_type, typ.items) if isinstance(item, Instance) and not is_layer(item)]
    aliases = [argument for item in tuples for argument in item.args if isinstance(argument, TypeAliasType)]
    return any(alias.alias is not None and alias.alias.fullname == MODEL for alias in aliases)  # "AnyLayer | tuple[Model, ...]"

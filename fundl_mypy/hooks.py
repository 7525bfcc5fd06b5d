"""What mypy calls: before the arguments of a call are checked, and after."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from mypy.checker import TypeChecker
from mypy.nodes import CallExpr, Expression, MypyFile, RefExpr, SymbolNode, TupleExpr, TypeInfo
from mypy.options import Options
from mypy.plugin import (
    ClassDefContext,
    FunctionContext,
    FunctionSigContext,
    MethodContext,
    MethodSigContext,
    Plugin,
    ReportConfigContext,
)
from mypy.server.trigger import make_trigger
from mypy.types import FunctionLike, Instance, TupleType, Type, UnpackType, get_proper_type
from mypy.typevartuples import split_with_instance
from typing_extensions import override

from fundl_mypy.callees import NOTHING, Callee, Callees
from fundl_mypy.checks import report
from fundl_mypy.contract import require_backward
from fundl_mypy.defaults import Constant, default_of
from fundl_mypy.forgetting import without_sizes
from fundl_mypy.rules import REPORTED, SHAPES, Read, is_layer
from fundl_mypy.shared import shared_calls
from fundl_mypy.signatures import UNKNOWN, SigContext, holds_layers, literal, of_expression, remember, with_sizes

Context = FunctionContext | MethodContext


class FundlPlugin(Plugin):
    """Finds the sizes of layers, and what does not fit."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._callees = Callees()
        self._shared: tuple[MypyFile | None, Mapping[CallExpr, Collection[int | None]]] = None, {}

    @override
    def report_config_data(self, ctx: ReportConfigContext) -> str:
        """What mypy's cache is to depend on besides the files that are checked: the plugin."""
        return _fingerprint()

    # Once a class is known

    @override
    def get_base_class_hook(self, fullname: str) -> Callable[[ClassDefContext], None] | None:
        return require_backward if fullname == "fundl.layer.Layer" else None

    # Before the arguments are checked

    @override
    def get_function_signature_hook(self, fullname: str) -> Callable[[FunctionSigContext], FunctionLike] | None:
        return self._before(fullname)

    @override
    def get_method_signature_hook(self, fullname: str) -> Callable[[MethodSigContext], FunctionLike] | None:
        return self._before(fullname)

    def _before(self, fullname: str) -> Callable[[SigContext], FunctionLike] | None:
        if "." not in fullname or self._callee(fullname).states_sizes:  # without a dot: of a function inside a function
            return partial(with_sizes, default_of=partial(self._default_of, fullname))
        return None

    # After the call is checked

    @override
    def get_function_hook(self, fullname: str) -> Callable[[FunctionContext], Type] | None:
        match fullname:
            case "fundl.model.compose":
                return self._composed
            case "fundl.tree._place.at":  # what is put at a place may have other sizes
                return lambda context: without_sizes(context.default_return_type)
            case _:
                return self._after(fullname)

    @override
    def get_method_hook(self, fullname: str) -> Callable[[MethodContext], Type] | None:
        return self._after(fullname)

    def _after(self, fullname: str) -> Callable[[Context], Type] | None:
        if "." not in fullname:
            return self._called_inside
        callee = self._callee(fullname)
        return None if callee == NOTHING else partial(self._called, fullname, callee)

    def _called_inside(self, context: Context) -> Type:
        """What a function that is defined in a function returns."""
        call = context.context
        node = call.callee.node if isinstance(call, CallExpr) and isinstance(call.callee, RefExpr) else None
        return self._called("", self._callees.of("", node), context)

    def _called(self, fullname: str, callee: Callee, context: Context) -> Type:
        """What a call returns, after a look at the models that it takes, and at the layer that it makes."""
        result = get_proper_type(context.default_return_type)
        if callee == NOTHING or not isinstance(context.context, Expression):
            return result
        wrong: list[int] = []
        for name, types, values in zip(context.callee_arg_names, context.arg_types, context.args, strict=True):
            if name in callee.models and len(types) == 1:
                wrong += report(types[0], _items(values[0]), values[0], context.api, _reading(context))
        if callee.makes_layer and isinstance(result, Instance) and is_layer(result):
            result = self._made(result, fullname, context)
        return without_sizes(result) if wrong else self._kept(result, context)

    def _made(self, layer: Instance, fullname: str, context: Context) -> Instance:
        """The type of a layer that a call made, after a look at what is inside."""
        if layer.type.fullname == "fundl.layers.structure.Parallel":
            layer = self._with_join(layer, fullname, context)
        call, api = context.context, context.api
        if holds_layers(layer) and isinstance(call, CallExpr) and isinstance(api, TypeChecker):
            given = [list(types) for types in _given(call, api)]
            wrong = report(_holding(layer, given), _arguments(call), call, api, _reading(context))
            layer = remember(layer, {REPORTED: UNKNOWN}) if wrong else layer
        return layer

    def _composed(self, context: FunctionContext) -> Type:
        """What `compose` returns: a tuple of its arguments, which are to fit together."""
        result = get_proper_type(context.default_return_type)
        call, api = context.context, context.api
        if not isinstance(call, CallExpr) or not isinstance(api, TypeChecker):
            return result
        layers = TupleType([typ for types in _given(call, api) for typ in types], api.named_type("builtins.tuple"))
        wrong = report(layers, _arguments(call), call, api, _reading(context))
        if isinstance(result, TupleType):
            items = [without_sizes(item) if index in wrong else item for index, item in enumerate(result.items, start=1)]
            result = result.copy_modified(items=items)
        return self._kept(result, context)

    def _with_join(self, result: Instance, fullname: str, context: Context) -> Instance:
        """The type of branches that are joined, with how they are."""
        settings: dict[str, Type] = {}
        for name in ("join", "axis"):
            given = context.args[context.callee_arg_names.index(name)] if name in context.callee_arg_names else []
            settings[name] = (
                of_expression(given[0], context.api) if given else literal(self._default_of(fullname, name), context.api)
            )
        return remember(result, settings)

    # What is called

    def _callee(self, fullname: str) -> Callee:
        return self._callees.of(fullname, self._node(fullname))

    def _node(self, fullname: str) -> SymbolNode | None:
        symbol = self.lookup_fully_qualified(fullname)
        if symbol is None:  # a method that is inherited, if anything
            owner, _, name = fullname.rpartition(".")
            cls = self.lookup_fully_qualified(owner) if "." in owner else None
            symbol = cls.node.get(name) if cls is not None and isinstance(cls.node, TypeInfo) else None
        return symbol.node if symbol is not None else None

    def _default_of(self, fullname: str, parameter: str) -> Constant:
        """The value of an argument that a call leaves out."""
        node = self._node(fullname)
        if not isinstance(node, TypeInfo):
            return self._written_default(fullname, parameter)
        # A field may be that of a base class, in another module.
        found = (self._written_default(base.fullname, parameter) for base in node.mro)
        return next((default for default in found if default is not None), None)

    def _written_default(self, fullname: str, parameter: str) -> Constant:
        """The default that stands where a function or a class is written."""
        module = fullname
        while module not in (self._modules or {}):
            module, dot, _ = module.rpartition(".")
            if not dot:
                return None
        assert self._modules is not None
        return default_of(self._modules[module].path, fullname.removeprefix(f"{module}."), parameter)

    def _kept(self, typ: Type, context: Context) -> Type:
        """The type of what a call returns, without sizes where it is kept in a place that other values come to."""
        if not isinstance(context.api, TypeChecker) or not isinstance(context.context, CallExpr):
            return typ
        tree, calls = self._shared
        if tree is not context.api.tree:
            self._shared = tree, calls = context.api.tree, shared_calls(context.api.tree)
        places = calls.get(context.context, ())
        result = get_proper_type(typ)
        if isinstance(result, TupleType) and None not in places:
            items = [without_sizes(item) if index in places else item for index, item in enumerate(result.items)]
            return result.copy_modified(items=items)
        return without_sizes(result) if places else result


def _arguments(call: Expression) -> Sequence[Expression]:
    """The arguments of a call, as long as each is one."""
    if not isinstance(call, CallExpr):
        return ()
    starred = [index for index, kind in enumerate(call.arg_kinds) if not kind.is_positional() or kind.is_star()]
    return call.args[: starred[0]] if starred else call.args


def _items(value: Expression) -> Sequence[Expression]:
    """The parts of a value, if it is written as a tuple."""
    return value.items if isinstance(value, TupleExpr) else ()


def _given(call: CallExpr, api: TypeChecker) -> Iterator[Sequence[Type]]:
    """The types of the arguments of a call, those of a tuple with a star among them."""
    for expression, kind in zip(call.args, call.arg_kinds, strict=True):
        typ = get_proper_type(api.lookup_type_or_none(expression)) or UNKNOWN
        if kind.is_star():
            yield typ.items if isinstance(typ, TupleType) else [UnpackType(api.named_type("builtins.tuple"))]
        else:
            yield [typ]


def _holding(layer: Instance, given: Sequence[Sequence[Type]]) -> Instance:
    """The type of a layer with the types of the layers that it was given: those of its own may say less, if declared."""
    if not layer.type.has_type_var_tuple_type:
        return layer
    before, pack, after = split_with_instance(layer)
    one_by_one = [typ for types in given for typ in types]
    tuples = [typ.items for typ in map(get_proper_type, one_by_one) if isinstance(typ, TupleType)]
    held = next((types for types in (one_by_one, *tuples) if len(types) == len(pack)), pack)
    return layer.copy_modified(args=(*before, *held, *after))


def _reading(context: Context) -> Read:
    """Has what is checked now checked again whenever a rule changes that was read for it."""
    api = context.api

    def read(rule: str) -> None:
        if isinstance(api, TypeChecker):
            api.tree.plugin_deps.setdefault(make_trigger(rule), set()).add(api.tscope.current_target())

    return read


@cache
def _fingerprint() -> str:
    files = [*sorted(Path(__file__).parent.glob("*.py")), *sorted(SHAPES.glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

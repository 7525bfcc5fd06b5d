"""Types of models without the sizes of their layers."""

from mypy.type_visitor import TypeTranslator
from mypy.types import Instance, LiteralType, TupleType, Type, TypeAliasType, get_proper_type
from typing_extensions import override

from fundl_mypy.rules import is_layer
from fundl_mypy.signatures import UNKNOWN


def without_sizes(typ: Type) -> Type:
    """The type with Any in the place of each size of a layer."""
    return typ.accept(_Forget())


class _Forget(TypeTranslator):
    @override
    def visit_instance(self, t: Instance, /) -> Type:
        arguments = [UNKNOWN if is_layer(t) and _is_size(argument) else argument.accept(self) for argument in t.args]
        forgetful = t.copy_modified(args=arguments)
        forgetful.extra_attrs = None if is_layer(t) else t.extra_attrs
        return forgetful

    @override
    def visit_type_alias_type(self, t: TypeAliasType, /) -> Type:
        return t


def _is_size(argument: Type) -> bool:
    argument = get_proper_type(argument)
    return isinstance(argument, LiteralType) or (isinstance(argument, TupleType) and all(map(_is_size, argument.items)))

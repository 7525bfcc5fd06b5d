"""What the plugin needs of mypy, whose inner parts change: it is looked for before any of it is used."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Final

NEEDS: Final[Mapping[str, Sequence[str]]] = {
    "mypy.checker": [
        "TypeChecker",
        "TypeChecker.lookup_type_or_none",
        "TypeChecker.named_type",
        "TypeChecker.tree",
        "TypeChecker.tscope",
    ],
    "mypy.constant_fold": ["constant_fold_expr"],
    "mypy.errorcodes": ["ErrorCode"],
    "mypy.expandtype": ["expand_type"],
    "mypy.maptype": ["map_instance_to_supertype"],
    "mypy.nodes": [
        *("ArgKind.is_positional", "ArgKind.is_star"),
        *("AssignmentStmt", "AssignmentStmt.lvalues", "AssignmentStmt.rvalue", "Block", "Block.body"),
        *("CallExpr", "CallExpr.arg_kinds", "CallExpr.args", "CallExpr.callee", "ClassDef", "ClassDef.defs"),
        *("ConditionalExpr", "ConditionalExpr.else_expr", "ConditionalExpr.if_expr", "Context", "Decorator", "Decorator.func"),
        *("DictExpr", "DictExpr.items", "DictionaryComprehension", "DictionaryComprehension.value", "Expression"),
        *("ExpressionStmt", "ExpressionStmt.expr", "ForStmt", "ForStmt.index", "FuncDef", "GeneratorExpr"),
        *("GeneratorExpr.left_expr", "IfStmt", "IfStmt.body", "IfStmt.else_body", "IndexExpr", "IntExpr", "ListComprehension"),
        *("ListComprehension.generator", "ListExpr", "ListExpr.items", "MatchStmt", "MatchStmt.bodies", "MemberExpr"),
        *("MemberExpr.name", "MypyFile", "MypyFile.defs", "MypyFile.fullname", "MypyFile.plugin_deps", "NameExpr", "Node"),
        *("OpExpr", "OpExpr.left", "OpExpr.right", "OverloadedFuncDef", "OverloadedFuncDef.impl", "RefExpr", "RefExpr.node"),
        *("SetComprehension", "SetExpr", "StarExpr", "StarExpr.expr", "StrExpr", "StrExpr.value", "SymbolNode", "TempNode"),
        *("TryStmt", "TryStmt.finally_body", "TryStmt.handlers", "TupleExpr", "TupleExpr.items", "TypeInfo", "TypeInfo.get"),
        *("TypeInfo.has_base", "TypeInfo.has_type_var_tuple_type", "UnaryExpr", "Var", "WhileStmt", "WithStmt"),
        *("TypeInfo.get_containing_type_info", "WithStmt.target"),
    ],
    "mypy.options": ["Options"],
    "mypy.plugin": [
        *(
            "CheckerPluginInterface",
            "ClassDefContext",
            "Plugin.get_base_class_hook",
            "CheckerPluginInterface.fail",
            "CheckerPluginInterface.get_expression_type",
        ),
        *("CheckerPluginInterface.named_generic_type", "FunctionContext", "FunctionSigContext", "MethodContext"),
        *("MethodSigContext", "Plugin", "Plugin.get_function_hook", "Plugin.get_function_signature_hook"),
        *("Plugin.get_method_hook", "Plugin.get_method_signature_hook", "Plugin.lookup_fully_qualified"),
        *("Plugin.report_config_data", "ReportConfigContext"),
    ],
    "mypy.scope": ["Scope.current_target"],
    "mypy.server.trigger": ["make_trigger"],
    "mypy.traverser": ["all_name_and_member_expressions"],
    "mypy.type_visitor": ["TypeTranslator"],
    "mypy.types": [
        *("AnyType", "CallableType", "CallableType.arg_names", "CallableType.arg_types", "CallableType.copy_modified"),
        *("CallableType.is_type_obj", "CallableType.ret_type", "CallableType.variables", "ExtraAttrs", "ExtraAttrs.attrs"),
        *("FunctionLike", "Instance", "Instance.args", "Instance.copy_modified", "Instance.extra_attrs"),
        *("Instance.last_known_value", "Instance.type", "LiteralType", "LiteralType.value", "NoneType", "Overloaded"),
        *("TupleType", "TupleType.copy_modified", "TupleType.items", "Type", "Type.accept", "TypeAliasType"),
        *("TypeAliasType.is_recursive", "TypeOfAny", "TypeOfAny.special_form", "TypeVarId", "TypeVarTupleType", "TypeVarType"),
        *("TypeVarType.id", "TypeVarType.name", "TypeVarType.upper_bound", "UnionType", "UnionType.items", "UnpackType"),
        "get_proper_type",
    ],
    "mypy.typevartuples": ["split_with_instance"],
}


def missing(needs: Mapping[str, Sequence[str]] = NEEDS) -> list[str]:
    """The parts that this mypy lacks."""
    return [f"{module}.{name}" for module, names in needs.items() for name in names if not _is_there(module, name)]


def _is_there(module: str, name: str) -> bool:
    try:
        owner: object = importlib.import_module(module)
    except ImportError:
        return False
    *classes, last = name.split(".")
    for cls in classes:
        owner = getattr(owner, cls, None)
    return hasattr(owner, last) or (isinstance(owner, type) and _has_field(owner, last))


def _has_field(cls: type, name: str) -> bool:
    """Whether objects of a class have a field, which the class of a mypy that is not compiled need not have."""
    return any(name in inspect.get_annotations(base) for base in cls.__mro__)

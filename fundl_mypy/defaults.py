"""The values of arguments that a call leaves out, read where they are written: mypy keeps no defaults in its cache."""

import ast
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

Constant: TypeAlias = "int | str | tuple[Constant, ...] | SameAs | None"


@dataclass(frozen=True)
class SameAs:
    """The default of a field that is what another one is."""

    field: str


def default_of(path: str, qualified_name: str, parameter: str) -> Constant:
    """The default of a function's parameter, or of a class' field; None if it has none, or none that is known.

    Args:
        path: of the file.
        qualified_name: of the function or the class, within the module.
        parameter: its name, or that of the field.
    """
    try:
        module = _module(path, Path(path).stat().st_mtime_ns)
    except (OSError, SyntaxError, ValueError):
        return None
    found = _definition(module, qualified_name.split("."))
    default = _of_field(found, parameter, module) if isinstance(found, ast.ClassDef) else _of_parameter(found, parameter)
    return _same_as(default) or _constant(default)


@lru_cache(maxsize=64)
def _module(path: str, _changed: int) -> ast.Module:
    return ast.parse(Path(path).read_bytes())


_Definition: TypeAlias = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _definition(scope: ast.Module | _Definition, names: list[str]) -> ast.Module | _Definition:
    """The last definition of a name, which of overloads is the one that runs."""
    for name in names:
        inner = [node for node in scope.body if isinstance(node, _Definition) and node.name == name]
        if not inner:
            return ast.Module([], [])
        scope = inner[-1]
    return scope


def _of_parameter(function: ast.Module | _Definition, name: str) -> ast.expr | None:
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = dict(zip((argument.arg for argument in reversed(positional)), reversed(arguments.defaults), strict=False))
    keywords = {argument.arg: default for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)}
    return defaults.get(name) or keywords.get(name)


def _of_field(cls: ast.ClassDef, name: str, module: ast.Module) -> ast.expr | None:
    """The default of a field, which may be one of a base class that stands further up in the module."""
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            if isinstance(node.value, ast.Call):  # attrs.field(default=1)
                return next((keyword.value for keyword in node.value.keywords if keyword.arg == "default"), None)
            return node.value
    for base in cls.bases:
        match base:
            case ast.Name(id=known) | ast.Subscript(value=ast.Name(id=known)):
                inner = _definition(module, [known])
                if isinstance(inner, ast.ClassDef) and inner.lineno < cls.lineno and (found := _of_field(inner, name, module)):
                    return found
            case _:
                pass
    return None


def _constant(expression: ast.expr | None) -> Constant:
    try:
        value: object = ast.literal_eval(expression) if expression is not None else None
    except ValueError:
        return None
    return _checked(value)


def _checked(value: object) -> Constant:
    if isinstance(value, tuple):
        return tuple(map(_checked, value))
    return value if isinstance(value, int | str) else None


def _same_as(expression: ast.expr | None) -> SameAs | None:
    """The field that attrs.Factory(lambda self: self.field, takes_self=True) reads."""
    match expression:
        case ast.Call(
            func=ast.Attribute(attr="Factory") | ast.Name(id="Factory"),
            args=[ast.Lambda(body=ast.Attribute(value=ast.Name(id="self"), attr=field))],
            keywords=[ast.keyword(arg="takes_self", value=ast.Constant(value=True))],
        ):
            return SameAs(field)
        case _:
            return None

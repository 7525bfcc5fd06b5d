"""Calls whose value is assigned where other values are assigned later: their types must not have sizes.

To mypy, a variable has the type of its first value, and a list that of its first items. If sizes were a part of it, then

    model = compose(linear(2, 25), ReLU())
    model = compose(linear(2, 50), ReLU())

would be an error. So the calls that make such values are found beforehand, file by file. A value that is made of the variable's
old one does not count: ``model = initialize(key(0), model)`` has the same sizes.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from mypy.nodes import (
    AssignmentStmt,
    Block,
    CallExpr,
    ClassDef,
    ConditionalExpr,
    Decorator,
    DictExpr,
    DictionaryComprehension,
    Expression,
    ExpressionStmt,
    ForStmt,
    FuncDef,
    GeneratorExpr,
    IfStmt,
    IndexExpr,
    ListComprehension,
    ListExpr,
    MatchStmt,
    MemberExpr,
    MypyFile,
    NameExpr,
    Node,
    OpExpr,
    OverloadedFuncDef,
    SetComprehension,
    SetExpr,
    StarExpr,
    SymbolNode,
    TempNode,
    TryStmt,
    TupleExpr,
    WhileStmt,
    WithStmt,
)
from mypy.traverser import all_name_and_member_expressions

Name = SymbolNode | str
"""What is set: a variable, or an attribute by its name, of whatever object."""


def shared_calls(tree: MypyFile) -> Mapping[CallExpr, Collection[int | None]]:
    """The calls of a file whose value shares a variable with others; of a tuple that is unpacked, at which places."""
    finder = _Finder()
    finder.look(tree.defs, in_class=False)
    shared: dict[CallExpr, set[int | None]] = {}
    for call, place in finder.calls():
        shared.setdefault(call, set()).add(place)
    return shared


class _Setting(NamedTuple):
    """What a name is set to: a value, or a part of one; None if that is not known."""

    value: Expression | None
    place: int | None = None

    def calls(self) -> Iterator[tuple[CallExpr, int | None]]:
        """The calls whose value it is."""
        if self.value is not None:
            yield from ((call, self.place) for call in _calls(self.value))


class _Finder:
    """Finds what each variable and attribute is set to, and what is put in lists and the like."""

    def __init__(self) -> None:
        self.settings: dict[Name, list[_Setting]] = {}
        self.items: list[Expression] = []

    def calls(self) -> Iterator[tuple[CallExpr, int | None]]:
        """The calls that make what is put in lists, or what a name is set to that is set to something else as well."""
        for item in self.items:
            yield from _Setting(item).calls()
        for name, settings in self.settings.items():
            others = [value is None or not _mentions(value, name) for value, _ in settings] if len(settings) > 1 else []
            if sum(others) > 1:
                for setting in settings:
                    yield from setting.calls()

    def look(self, statements: Sequence[Node], *, in_class: bool) -> None:
        """Look at statements, and at those inside them; the names that a class' body sets are attributes."""
        for statement in statements:
            match statement:
                case AssignmentStmt() if not isinstance(statement.rvalue, TempNode):  # which stands for no value
                    for target in statement.lvalues:
                        self.set(target, _Setting(statement.rvalue), in_class=in_class)
                    self.items.extend(_items(statement.rvalue))
                case ForStmt():
                    self.set(statement.index, _Setting(None), in_class=in_class)
                case WithStmt():
                    for name in statement.target:
                        self.set(name, _Setting(None), in_class=in_class)
                case ExpressionStmt(expr=CallExpr(callee=MemberExpr(fullname=""))):
                    assert isinstance(statement.expr, CallExpr)
                    self.items.extend(statement.expr.args)  # layers.append(linear(2, 3))
                case _:
                    pass
            in_class_now = isinstance(statement, ClassDef) or (in_class and not isinstance(statement, FuncDef))
            self.look(_inside(statement), in_class=in_class_now)

    def set(self, target: Expression | None, setting: _Setting, *, in_class: bool) -> None:
        """Note what something is set to."""
        match target:
            case NameExpr() if target.node is not None and not in_class:
                self.settings.setdefault(target.node, []).append(setting)
            case NameExpr() | MemberExpr():
                self.settings.setdefault(target.name, []).append(setting)
            case IndexExpr() if setting.value is not None and setting.place is None:
                self.items.append(setting.value)
            case TupleExpr() | ListExpr():
                for part, of_part in zip(target.items, _unpacked(setting, target.items), strict=True):
                    self.set(part.expr if isinstance(part, StarExpr) else part, of_part, in_class=in_class)
            case _:
                pass


def _unpacked(setting: _Setting, targets: Sequence[Expression]) -> Sequence[_Setting]:
    """What each of several targets is set to."""
    value, place = setting
    if place is not None or any(isinstance(target, StarExpr) for target in targets):
        return [_Setting(None)] * len(targets)
    if isinstance(value, TupleExpr) and len(value.items) == len(targets):
        return [_Setting(item) for item in value.items]
    return [_Setting(value, index) for index in range(len(targets))]


def _inside(statement: Node) -> Sequence[Node]:
    """The statements inside a statement."""
    match statement:
        case FuncDef():
            return statement.body.body
        case ClassDef():
            return statement.defs.body
        case Decorator():
            return [statement.func]
        case OverloadedFuncDef():
            return [] if statement.impl is None else [statement.impl]
        case _:
            return [inner for block in _blocks(statement) if block is not None for inner in block.body]


def _blocks(statement: Node) -> Sequence[Block | None]:
    match statement:
        case IfStmt():
            return [*statement.body, statement.else_body]
        case ForStmt() | WhileStmt():
            return [statement.body, statement.else_body]
        case WithStmt():
            return [statement.body]
        case TryStmt():
            return [statement.body, *statement.handlers, statement.else_body, statement.finally_body]
        case MatchStmt():
            return statement.bodies
        case _:
            return []


def _calls(value: Expression) -> Iterator[CallExpr]:
    """The calls whose value a value is, or holds."""
    match value:
        case CallExpr():
            yield value
        case TupleExpr():
            for item in value.items:
                yield from _calls(item)
        case ConditionalExpr():
            yield from _calls(value.if_expr)
            yield from _calls(value.else_expr)
        case OpExpr(op="or" | "and" | "+"):
            yield from _calls(value.left)
            yield from _calls(value.right)
        case _:
            for item in _items(value):
                yield from _calls(item)


def _items(value: Expression) -> Sequence[Expression]:
    """What a list, a set, a dictionary, or a comprehension of one, is made to hold."""
    match value:
        case ListExpr() | SetExpr():
            return value.items
        case DictExpr():
            return [item for _, item in value.items]
        case ListComprehension() | SetComprehension():
            return [value.generator.left_expr]
        case GeneratorExpr():
            return [value.left_expr]
        case DictionaryComprehension():
            return [value.value]
        case _:
            return ()


def _mentions(value: Expression, name: Name) -> bool:
    """Whether an expression mentions a variable or an attribute."""
    names, members = all_name_and_member_expressions(value)
    return any(name in {mention.node, mention.name} for mention in names) or any(mention.name == name for mention in members)

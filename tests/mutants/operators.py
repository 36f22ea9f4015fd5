"""What a mutant is: one small change of one place, and which places of a module can be changed.

A change is a piece of source that takes the place of another, so that everything else keeps its line. What no test
could or should see is left alone: docstrings and other prose, annotations, ``__all__``, decorators, assertions (also
``strict`` of ``zip``), the sentences of exceptions, and f-strings (before Python 3.12 their inner expressions have no
position of their own).

A mutant's name has no line number: it stays the same as long as the place does, whatever is written above it.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Mutant", "mutants_of"]

_COMPARED: dict[type[ast.cmpop], tuple[tuple[str, type[ast.cmpop]], ...]] = {
    ast.Lt: (("boundary", ast.LtE), ("comparison", ast.GtE)),
    ast.LtE: (("boundary", ast.Lt), ("comparison", ast.Gt)),
    ast.Gt: (("boundary", ast.GtE), ("comparison", ast.LtE)),
    ast.GtE: (("boundary", ast.Gt), ("comparison", ast.Lt)),
    ast.Eq: (("comparison", ast.NotEq),),
    ast.NotEq: (("comparison", ast.Eq),),
    ast.Is: (("comparison", ast.IsNot),),
    ast.IsNot: (("comparison", ast.Is),),
    ast.In: (("comparison", ast.NotIn),),
    ast.NotIn: (("comparison", ast.In),),
}
_COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}
_SHOWN = 90  # characters of a place that its name has


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one place of one module."""

    path: str
    scope: str
    operator: str
    before: str
    after: str
    nth: int
    """Which of the places that look the same in this scope, from 1."""
    span: tuple[int, int]
    """Where `before` stands in the module, in bytes of UTF-8."""

    @property
    def name(self) -> str:
        """What stays the same while other code changes."""
        again = f" #{self.nth}" if self.nth > 1 else ""
        return (
            f"{self.path} {self.scope} {self.operator}: {_short(self.before)} → {_short(self.after)}{again}"
        )

    def apply(self, source: bytes) -> bytes:
        """Return the module with the change."""
        first, last = self.span
        return source[:first] + self.after.encode() + source[last:]


def _short(text: str) -> str:
    line = " ".join(text.split()).replace("`", "'")
    return line if len(line) <= _SHOWN else line[:_SHOWN] + "…"


def mutants_of(path: str, source: bytes) -> list[Mutant]:
    """Return every mutant of a module, in the order of its text."""
    finder = _Finder(source)
    finder.block(ast.parse(source).body, scope="")
    seen: Counter[tuple[str, str, str, str]] = Counter()
    result = []
    for scope, operator, span, after in finder.changes:
        before = source[span[0] : span[1]].decode()
        seen[key := (scope, operator, _short(before), _short(after))] += 1
        result.append(Mutant(path, scope or "module", operator, before, after, seen[key], span))
    return result


class _Finder:
    """Walks statements with their scope, and the expressions of each."""

    def __init__(self, source: bytes) -> None:
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.changes: list[tuple[str, str, tuple[int, int], str]] = []
        self.scope, self.in_a_class = "", False

    def block(self, body: list[ast.stmt], *, scope: str, in_a_class: bool = False) -> None:
        for statement in body:
            self.scope, self.in_a_class = scope, in_a_class
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self.defaults(node.args)
                self.block(node.body, scope=f"{self.scope}.{node.name}".lstrip("."))
            case ast.ClassDef():
                self.block(node.body, scope=f"{self.scope}.{node.name}".lstrip("."), in_a_class=True)
            case ast.Import() | ast.ImportFrom() | ast.Assert() | ast.Raise():
                pass
            case ast.Expr(value=ast.Constant()):
                pass
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                pass
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                pass
            case ast.AnnAssign():
                if isinstance(node.target, ast.Attribute) and node.value is not None:
                    self.removed(node)
                if node.value is not None:
                    self.expression(node.value, "default" if self.in_a_class else None)
            case _:
                self.removed(node)
                if isinstance(node, ast.Return) and not _is_none(node.value):
                    assert node.value is not None
                    self.change("return value", node.value, "None")
                if isinstance(node, ast.If | ast.While):
                    self.negated(node.test)
                scope = self.scope
                for child in _expressions(node):
                    self.expression(child)
                for body in _bodies(node):
                    self.block(body, scope=scope)

    def removed(self, node: ast.stmt) -> None:
        match node:
            case ast.Expr(value=ast.Call() | ast.Await(value=ast.Call()) | ast.Yield() | ast.YieldFrom()):
                if not isinstance(node.value, ast.Yield | ast.YieldFrom):
                    self.change("removed call", node, "pass")
            case ast.AugAssign() | ast.Delete() | ast.Continue() | ast.Break():
                self.change("removed statement", node, "pass")
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_]):
                self.change("removed statement", node, "pass")
            case ast.AnnAssign():
                self.change("removed statement", node, "pass")

    def negated(self, test: ast.expr) -> None:
        if not isinstance(test, ast.Compare | ast.UnaryOp | ast.Constant):  # those have changes of their own
            self.change("negated condition", test, f"(not ({ast.unparse(test)}))")

    def defaults(self, args: ast.arguments) -> None:
        for default in (*args.defaults, *args.kw_defaults):
            if default is not None:
                self.expression(default, "default")

    def expression(self, node: ast.AST, operator: str | None = None) -> None:
        match node:
            case ast.JoinedStr():
                return
            case ast.Call(func=ast.Name(id="zip")):
                for arg in node.args:
                    self.expression(arg)
                return
            case ast.Call(func=ast.Name(id="cast" | "TypeVar" | "NewType")):
                return
            case ast.Compare():
                self.compared(node)
            case ast.BoolOp():
                self.combined(node)
            case ast.UnaryOp(op=ast.Not() | ast.Invert()):
                self.change("not", node, f"({ast.unparse(node.operand)})")
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant()):
                self.change(operator or "constant", node, f"({ast.unparse(node)} + 1)")
                return
            case ast.BinOp():
                if not (_is_text(node.left) or _is_text(node.right)) and type(node.op) in _COMPUTED:
                    changed = ast.BinOp(node.left, _COMPUTED[type(node.op)](), node.right)
                    self.change("arithmetic", node, f"({ast.unparse(changed)})")
            case ast.Constant():
                self.constant(node, operator or "constant")
            case ast.IfExp():
                self.negated(node.test)
            case ast.comprehension():
                for test in node.ifs:
                    self.negated(test)
            case ast.Call(func=ast.Name(id=name) as called) if name in _CALLED:
                self.change("call", called, _CALLED[name])
            case ast.Lambda():
                self.defaults(node.args)
                self.expression(node.body)
                return
        for child in ast.iter_child_nodes(node):
            self.expression(child, operator if isinstance(node, ast.Call) else None)

    def compared(self, node: ast.Compare) -> None:
        for k, op in enumerate(node.ops):
            for operator, other in _COMPARED[type(op)]:
                ops = [*node.ops[:k], other(), *node.ops[k + 1 :]]
                self.change(operator, node, f"({ast.unparse(ast.Compare(node.left, ops, node.comparators))})")

    def combined(self, node: ast.BoolOp) -> None:
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self.change("and/or", node, f"({ast.unparse(ast.BoolOp(other, node.values))})")

    def constant(self, node: ast.Constant, operator: str) -> None:
        value = node.value
        if isinstance(value, bool):
            self.change(operator, node, str(not value))
        elif isinstance(value, int | float):
            self.change(operator, node, f"({value!r} + 1)")
            if value:
                self.change(operator, node, f"({value!r} - 1)")

    def change(self, operator: str, node: ast.expr | ast.stmt, after: str) -> None:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        first = self.starts[node.lineno - 1] + node.col_offset
        last = self.starts[node.end_lineno - 1] + node.end_col_offset
        self.changes.append((self.scope, operator, (first, last), after))


def _bodies(node: ast.stmt) -> Iterator[list[ast.stmt]]:
    for field in ("body", "orelse", "finalbody"):
        if body := getattr(node, field, None):
            yield body
    for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        yield part.body


def _expressions(node: ast.stmt) -> Iterator[ast.AST]:
    """What a statement evaluates by itself."""
    for name, value in ast.iter_fields(node):
        if name in ("body", "orelse", "finalbody", "handlers", "decorator_list", "annotation", "returns"):
            continue
        if name == "cases":
            yield from (case.guard for case in value if case.guard is not None)
        elif isinstance(value, list):
            yield from (part for part in value if isinstance(part, ast.AST))
        elif isinstance(value, ast.AST):
            yield value


def _is_none(node: ast.expr | None) -> bool:
    return node is None or (isinstance(node, ast.Constant) and node.value is None)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))

"""A local name is a noun of what it holds: `descriptor`, `finding`, `row_filter`; not `one`, `found` or `what`.

A pronoun, a participle or an adverb tells that something is there, and not what it is. Whoever reads the line has
to look for the line above that fills it; where a function has two of them, they are told apart by nothing.

Names of fields and of columns are not judged here: they are read with what they belong to (`step.other`, `gap.where`).
A mask or a bool may be the adjective that it answers (`held`, `stuck`, `asked`). `left` stays where `right` is its
other side.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import finwait

ROOT = Path(finwait.__file__).parent

# What a name refers to has a noun. The name of each kind says why it is none.
REFUSED = {
    "it points at something and does not name it": (
        "it me mine one ones ours some that theirs them these they thing things this those"
    ),
    "it asks what the name should answer": "what which who whom whose",
    "it tells where its value came from and not what it is": (
        "came come found given got said told wanted went"
    ),
    "it is a verb, or an auxiliary of one": "did had has have was were",
    "it is a place without saying whose": "here there",
}
REASONS = {name: reason for reason, names in REFUSED.items() for name in names.split()}


class _Locals(ast.NodeVisitor):
    """Collects the names that functions and comprehensions bind, and those of loops outside of both."""

    def __init__(self) -> None:
        self.bound: list[tuple[int, str, frozenset[str]]] = []
        self._in_function = False
        self._siblings: frozenset[str] = frozenset()

    def _bind(self, node: ast.AST, name: str | None) -> None:
        if name:
            self.bound.append((getattr(node, "lineno", 0), name, self._siblings))

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        if not isinstance(node, ast.Lambda) and self._in_function:
            self._bind(node, node.name)
        outside = self._in_function, self._siblings
        self._in_function = True
        self._siblings = frozenset(
            inner.id if isinstance(inner, ast.Name) else inner.arg
            for inner in ast.walk(node)
            if isinstance(inner, ast.Name | ast.arg)
        )
        self.generic_visit(node)
        self._in_function, self._siblings = outside

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _function  # noqa: N815

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Pass over the fields of a class."""
        for statement in node.body:
            if not isinstance(statement, ast.Assign | ast.AnnAssign):
                self.visit(statement)

    def visit_arg(self, node: ast.arg) -> None:
        self._bind(node, node.arg)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self._bind(node, node.id)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self._bind(node, node.name)
        self.generic_visit(node)

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        self._bind(node, node.name)
        self.generic_visit(node)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        self._bind(node, node.name)

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self._bind(node, node.rest)
        self.generic_visit(node)


def refused(root: Path) -> Iterator[str]:
    """Yield each local, loop variable, variable of a comprehension and parameter that is not named for its value."""
    for path in sorted(root.rglob("*.py")):
        names = _Locals()
        names.visit(ast.parse(path.read_text()))
        for line, name, siblings in names.bound:
            reason = REASONS.get(name)
            if name == "left" and "right" not in siblings:
                reason = "it does not say what remains: seconds, bytes, rows"
            if reason is not None:
                yield f"{path.relative_to(root)}:{line}: `{name}`: {reason}"


def test_locals_are_named_for_what_they_hold() -> None:
    assert list(refused(ROOT)) == []


def test_every_way_to_bind_a_name_is_seen(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        "def f(one, *ones, what=1, **those):\n"
        "    found = [some for some in one]\n"
        "    for told in ones: ...\n"
        "    with open('x') as said: ...\n"
        "    try: ...\n"
        "    except OSError as got: ...\n"
        "    if (here := 1) and (lambda who: who): ...\n"
        "    match what:\n"
        "        case {'a': which, **have}: ...\n"
        "        case [come, *there]: ...\n"
        "        case int() as given: ...\n"
        "    async def wanted(): ...\n"
        "    left = 1\n"
        "for thing in (): ...\n"
    )
    seen = {line.split("`")[1] for line in refused(tmp_path)}
    assert seen == {
        "one", "ones", "what", "those", "found", "some", "told", "said", "got", "here", "who", "which", "have", "come",
        "there", "given", "wanted", "left", "thing",
    }  # fmt: skip


def test_fields_functions_of_modules_and_pairs_of_sides_are_not_judged(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        "class Missing:\n"
        "    what: str\n"
        "    found = 1\n"
        "    def told(self):\n"
        "        self.said = self.what\n"
        "def whom(a, b):\n"
        "    left, right = a, b\n"
        "    return f(left=left.what, found=right)\n"
    )
    assert list(refused(tmp_path)) == []

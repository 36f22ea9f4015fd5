"""Each kind of change is made where it should be, and nowhere else."""

from __future__ import annotations

import ast
from textwrap import dedent

import pytest

from tests.mutants.operators import Mutant, mutants_of


def changes(source: str) -> list[tuple[str, str, str]]:
    return [(m.operator, m.before, m.after) for m in found(source)]


def found(source: str) -> list[Mutant]:
    text = dedent(source)
    mutants = mutants_of("m.py", text.encode())
    for mutant in mutants:  # whatever is changed is a module still, and another one
        changed = mutant.apply(text.encode()).decode()
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text))
    return mutants


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = a < b", [("boundary", "a < b", "(a <= b)"), ("comparison", "a < b", "(a >= b)")]),
        ("x = a >= b", [("boundary", "a >= b", "(a > b)"), ("comparison", "a >= b", "(a < b)")]),
        ("x = a == b", [("comparison", "a == b", "(a != b)")]),
        ("x = a is None", [("comparison", "a is None", "(a is not None)")]),
        ("x = a not in b", [("comparison", "a not in b", "(a in b)")]),
        ("x = a and b", [("and/or", "a and b", "(a or b)")]),
        ("x = not a", [("not", "not a", "(a)")]),
        ("x = ~a", [("not", "~a", "(a)")]),
        ("x = a & b", [("arithmetic", "a & b", "(a | b)")]),
        ("x = a - b", [("arithmetic", "a - b", "(a + b)")]),
        ("x = a // b", [("arithmetic", "a // b", "(a * b)")]),
        ("x = 7", [("constant", "7", "(7 + 1)"), ("constant", "7", "(7 - 1)")]),
        ("x = 0", [("constant", "0", "(0 + 1)")]),
        ("x = -1", [("constant", "-1", "(-1 + 1)")]),
        ("x = True", [("constant", "True", "False")]),
        ("x = min(a)", [("call", "min", "max")]),
        ("x = any(a)", [("call", "any", "all")]),
        (
            "x = zip(a, b, c - 1, strict=True)",
            [("arithmetic", "c - 1", "(c + 1)"), ("constant", "1", "(1 + 1)"), ("constant", "1", "(1 - 1)")],
        ),
        ("f(a)", [("removed call", "f(a)", "pass")]),
        ("a.b = c", [("removed statement", "a.b = c", "pass")]),
        ("a += b", [("removed statement", "a += b", "pass")]),
        ("for a in b:\n    continue", [("removed statement", "continue", "pass")]),
        ("if a:\n    x = b", [("negated condition", "a", "(not (a))")]),
        ("x = [a for a in b if c]", [("negated condition", "c", "(not (c))")]),
        ("def f():\n    return a", [("return value", "a", "None")]),
        ("def f(a=False):\n    x = a", [("default", "False", "True")]),
        ("class A:\n    a: bool = True", [("default", "True", "False")]),
    ],
)
def test_an_operator_changes_its_place(source: str, expected: list[tuple[str, str, str]]) -> None:
    assert changes(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        '"""A module."""',
        'def f() -> None:\n    """Count to 3."""',
        "def f() -> None:\n    return None",
        "def f() -> None:\n    return",
        "__all__ = ['a', 1]",
        "assert a < b",
        "if TYPE_CHECKING:\n    a = 1",
        "raise ValueError(1 + 2)",
        "@dataclass(frozen=True)\nclass A:\n    a: int",
        "def f(a: int | None) -> Annotated[int, 7]: ...",
        "x = f'{a + 1}'",
        "x = 'a' + b",
        "x = cast('int', a)",
        "x = zip(a, b, strict=True)",
        "from a import b",
    ],
)
def test_what_says_nothing_of_the_code_is_left_alone(source: str) -> None:
    assert changes(source) == []


def test_a_name_has_no_line_and_tells_equal_places_apart() -> None:
    source = "class A:\n    def f(self):\n        x = 0\n        y = 0\n"
    names = [m.name for m in found(source)]
    assert names == ["m.py A.f constant: 0 → (0 + 1)", "m.py A.f constant: 0 → (0 + 1) #2"]
    assert [m.name for m in found("# moved\n\nz = a\n" + source)] == names


def test_letters_of_several_bytes_before_a_place_do_not_move_it() -> None:
    source = 'x = "é→" if a == b else c\n'
    (mutant,) = found(source)
    assert mutant.apply(source.encode()).decode() == 'x = "é→" if (a != b) else c\n'

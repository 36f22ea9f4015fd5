"""No function of more than 60 lines, no module of more than 700: each step has a name, each subject a module."""

import ast
from pathlib import Path

import finwait

ROOT = Path(finwait.__file__).parent
MOST_OF_A_FUNCTION = 60
MOST_OF_A_MODULE = 700

LONGER = {
    "diagnosis/assemble.py: assemble": "one argument, one line of its docstring and one column of the view a fact",
}
"""Functions that are better whole, and why."""


def test_functions_are_short() -> None:
    long = {
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MOST_OF_A_FUNCTION
    }
    assert long == set(LONGER)


def test_modules_are_short() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in ROOT.rglob("*.py")}
    assert {name: n for name, n in lines.items() if n > MOST_OF_A_MODULE} == {}

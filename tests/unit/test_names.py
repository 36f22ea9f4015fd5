"""One class, one name: who reads a name must not have to ask which of several is meant."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import finwait

ROOT = Path(finwait.__file__).parent


def public_classes(root: Path) -> dict[str, list[str]]:
    """Return where each public class name is defined, nested classes too."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{path.relative_to(root)}:{node.lineno}")
    return places


def test_no_public_class_name_is_defined_twice() -> None:
    places = public_classes(ROOT)
    assert len(places) > 300  # they were looked for
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_a_name_that_is_defined_twice_is_seen(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("class Plan: ...\n")
    (tmp_path / "two.py").write_text("class Outer:\n    class Plan: ...\n")
    assert public_classes(tmp_path)["Plan"] == ["one.py:1", "two.py:2"]

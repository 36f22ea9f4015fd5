"""A namespace is named once."""

from __future__ import annotations

from pathlib import Path

import pytest

CAPTURES = sorted((Path(__file__).parents[2] / "captures").glob("*/*.txt"))


@pytest.mark.parametrize("path", CAPTURES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_no_word_is_doubled_where_a_namespace_is_named(path: Path) -> None:
    """The pictures are held against what is printed by `tests/captures/test_captures.py`."""
    assert "netns netns" not in path.read_text(encoding="utf-8")

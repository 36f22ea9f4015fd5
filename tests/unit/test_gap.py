"""A gap knows what it is about in fields: `--not-holder PID` and "could not be entered" never read its words."""

from __future__ import annotations

import re
from pathlib import Path

from finwait.errors import Gap

SOURCE = Path(__file__).parents[2] / "src"


def test_what_a_gap_is_about_is_in_its_words_and_in_its_fields() -> None:
    one = Gap.of_processes([812], "list its descriptors", "CAP_SYS_PTRACE")
    assert (one.where, one.pid) == ("pid 812", 812)
    assert Gap.of_processes({1, 2}, "x", "").pid == 0
    space = Gap.of_namespace(7, "enter it", "CAP_SYS_ADMIN", name="web", unentered=True)
    assert (space.where, space.netns, space.unentered) == ("netns 7 (web)", 7, True)


def test_no_module_words_the_place_of_a_gap_itself() -> None:
    worded = re.compile(r'Gap\(\s*f?"(?:netns|pid) [^0]|where = f"(?:netns|pid) ')
    wrong = [
        str(file)
        for file in SOURCE.rglob("*.py")
        if worded.search(file.read_text()) and file.name != "errors.py"
    ]
    assert wrong == []

"""Values as people read them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finwait.table.units import csv_text, printable

ANY = st.text(st.characters(codec=None))


@given(ANY)
def test_what_is_made_printable_can_be_printed_and_holds_no_control_character(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode("utf-8").decode("utf-8") == shown


@given(ANY)
def test_making_it_printable_twice_changes_nothing_more(text: str) -> None:
    assert printable(printable(text)) == printable(text)


@given(st.characters(codec=None).filter(lambda c: c.isascii() is False or not c.isprintable()))
def test_what_is_escaped_reads_as_it_would_in_python(c: str) -> None:
    assert printable(c) in (c, c.encode("unicode_escape").decode("ascii"))


def test_a_name_is_escaped_where_no_module_can_be_imported_any_more() -> None:
    code = """
import builtins, sys
from finwait.table.units import printable
printable("x")
def none(name, *more):
    raise PermissionError(name)
builtins.__import__ = none
sys.path[:] = []
assert printable("a\\nb\\x1b\\ue000") == "a\\\\nb\\\\x1b\\\\ue000", printable("a\\nb")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["nginx: worker", "Web Content", "größe", "日本語", ""])
def test_ordinary_names_stay_as_they_are(name: str) -> None:
    assert printable(name) == name


def test_an_escape_sequence_a_newline_and_a_direction_override_become_visible() -> None:
    assert printable("\x1b[2Jx\ny\u202ez") == "\\x1b[2Jx\\ny\\u202ez"


@pytest.mark.parametrize(
    "text",
    ["=1+cmd|x", "+cmd", "-cmd|x", "@SUM(1)", "\t=1", "\r=1", "\n=1", "=1", "--1", "-1+1", "\uff1d1", "+1-1"],
)
def test_no_text_in_csv_is_a_formula(text: str) -> None:
    assert csv_text(text) == f"'{text}"


@pytest.mark.parametrize(
    "text", ["", "-", "-5", "+3.25", "1e3", "10.0.0.1:80", "nginx(7:3)", "[::1]:80", "'=1", "a=b"]
)
def test_numbers_and_plain_text_stay_as_they_are(text: str) -> None:
    assert csv_text(text) == text


def test_bytes_that_are_no_utf8_are_shown_as_bytes_everywhere() -> None:
    assert printable(b"a\xff\xfe".decode("utf-8", "surrogateescape")) == "a\\xff\\xfe"
    assert printable("a\ud800") == "a\\ud800"  # no byte stands behind this one

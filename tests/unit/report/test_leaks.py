"""What the report says where nothing was found, and where connections have no program."""

from __future__ import annotations

from typing import Any

import pytest

from finwait.diagnosis.leaks import CallStack, Matching, Unmatched
from finwait.report.leaks import _stack, _unwound_by, leak_lines
from finwait.report.style import Style
from finwait.uapi.stacks import StackFrame

NOTHING = Matching((), {}, 0)
VIEW: Any = None
"""Of no group nothing is looked up."""


def lines(for_ns: int, unheld: int = 0, looks_ns: int = 0) -> list[str]:
    times = {"for_ns": for_ns, "window_ns": for_ns + looks_ns, "ended_ns": 0}
    return list(leak_lines((), NOTHING, VIEW, **times, unheld=unheld, style=Style(100)))


def test_the_time_is_that_within_which_connections_are_counted_and_not_the_one_that_was_asked_for() -> None:
    assert lines(8_000_000_000, looks_ns=23_000_000_000)[0].endswith(
        "(traced for 31 s: 8.0 s, and two looks at the sockets)"
    )
    assert lines(8_000_000_000, looks_ns=30_000_000)[0].endswith("(traced for 8.0 s)")


def test_a_trace_that_was_too_short_is_no_all_clear() -> None:
    assert lines(3_000_000) == [
        "Too short to find a leak: traced for 3 ms; nothing opened in that time is known to be still there"
    ]
    assert lines(5_000_000_000)[0].startswith("No connection was found")


@pytest.mark.parametrize("for_ns", [3_000_000, 5_000_000_000])
def test_connections_whose_code_is_not_known_are_not_denied(for_ns: int) -> None:
    matching = Matching((), {Unmatched.NO_CALL: 5}, 0)
    said = list(
        leak_lines(
            (), matching, VIEW, for_ns=for_ns, window_ns=for_ns, ended_ns=0, unheld=0, style=Style(100)
        )
    )
    assert len(said) == 1
    assert said[0].startswith("5 connections opened during the trace are still there (traced for ")
    assert said[0].endswith("; the code that opened them is not known")


def test_connections_that_no_program_holds_are_counted() -> None:
    assert lines(5_000_000_000, 1)[-1] == (
        "1 connection is there that no program holds: not accepted yet, or closed by it"
    )
    assert lines(5_000_000_000, 7)[-1].startswith("7 connections are there that no program holds")
    assert len(lines(5_000_000_000)) == 1


OWN, LIBRARY = StackFrame("take"), StackFrame("accept", "/usr/lib/libc.so.6", own=False)


@pytest.mark.parametrize(
    ("stack", "said"),
    [
        (CallStack((LIBRARY, OWN)), ""),
        (CallStack((LIBRARY,)), "which frame is of the program's own code"),
        (CallStack((LIBRARY,), cut=True), "stack cut"),
        (CallStack((LIBRARY, OWN), unclear=1), "the caller is not known"),
        (CallStack((LIBRARY, OWN), unclear=2, cut=True), "stack cut"),
    ],
)
def test_why_a_stack_says_no_more_is_said(stack: CallStack, said: str) -> None:
    printed = "\n".join(_stack("opened by", stack, Style(100)))
    assert ("→ take" in printed) == (stack.matters >= 0)
    reasons = ("which frame is of the program's own code", "stack cut", "the caller is not known")
    assert [reason for reason in reasons if reason in printed] == (
        [reason for reason in reasons if reason in said]
    )


def test_of_no_stacks_it_is_not_said_how_they_were_unwound() -> None:
    assert _unwound_by(()) is None

"""A trace says of each kind once what it cannot see, and at the end how much it was."""

from __future__ import annotations

import pytest

from finwait.cli.trace import _Gaps
from finwait.errors import Gap


def processes(n: int) -> Gap:
    return Gap(f"{n} processes", "read their network namespaces", "CAP_SYS_PTRACE")


def space(inode: int) -> Gap:
    return Gap(f"netns {inode} (pod)", "enter it", "CAP_SYS_ADMIN", netns=inode, unentered=True)


def test_a_number_that_changes_is_one_line_and_one_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    gaps = _Gaps()
    assert not gaps
    for n in (134, 133, 140, 133, 131):
        gaps.tell([processes(n)])
    assert capsys.readouterr().err.splitlines() == [f"gap: {processes(134)}"]
    gaps.rest([processes(131)])
    assert capsys.readouterr().err.splitlines() == [f"gap: at the end {processes(131)}"]
    gaps.rest([processes(134)])
    assert capsys.readouterr().err == ""
    assert gaps


def test_every_namespace_that_could_not_be_entered_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    gaps = _Gaps()
    gaps.tell([space(7), Gap("netns 9", "enter it: it has vanished", "")])
    gaps.tell([space(8), space(7)])
    assert capsys.readouterr().err.splitlines() == [f"gap: {space(7)}"]
    gaps.rest([space(8)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "gap: netns 7 (pod), netns 8 (pod): could not enter it (needs CAP_SYS_ADMIN)"

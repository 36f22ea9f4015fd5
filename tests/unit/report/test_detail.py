"""A finding in full is as narrow as the terminal."""

from __future__ import annotations

import pytest

from finwait.report.detail import _typed


@pytest.mark.parametrize("width", [40, 60, 100])
def test_a_command_that_is_too_long_is_named_in_lines_that_fit(width: int) -> None:
    command = "finwait clear " + " or ".join(f"cookie = {k:#x}" for k in range(10**9, 10**9 + 99))
    lines = _typed("·", command, width)
    assert all(len(line) <= width for line in lines), lines
    assert "`-o json` has it" in " ".join(" ".join(lines).split())

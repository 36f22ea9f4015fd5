"""`finwait undo` whose reader goes away: every act that was asked for is reverted all the same."""

from __future__ import annotations

import io
import signal
import sys
from types import SimpleNamespace

import pytest

from finwait.cli import journal
from finwait.kernel.interruption import noted


class Gone(io.StringIO):
    """What is written to a pipe whose reader has gone."""

    def write(self, text: str, /) -> int:  # noqa: ARG002 - the form of a file
        raise BrokenPipeError


def test_an_undo_goes_on_when_nobody_reads_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def one(entry: SimpleNamespace, *_: object) -> str:
        done.append(entry.id)
        return "restored"

    monkeypatch.setattr(journal, "_undo_one", one)
    monkeypatch.setattr(sys, "stdout", Gone())
    counted: list[int] = []
    with pytest.raises(BrokenPipeError):
        journal._undo_each(
            [SimpleNamespace(id=k) for k in (3, 2, 1)],  # type: ignore[misc]
            None,  # type: ignore[arg-type]
            False,
            journal._print_act,
            counted,
        )
    assert done == counted == [3, 2, 1]


@noted()
def act(number: int | None) -> None:
    if number is not None:
        signal.raise_signal(number)
    raise BrokenPipeError


def test_an_interruption_counts_more_than_that_nobody_reads() -> None:
    with pytest.raises(KeyboardInterrupt):
        act(signal.SIGTERM)
    with pytest.raises(BrokenPipeError):
        act(None)

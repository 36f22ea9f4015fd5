"""An error of the system that nobody expected: what it says, and what it must not say."""

from __future__ import annotations

import errno
import socket

import pytest

from finwait import cli
from finwait.kernel import pidfd


@pytest.fixture
def _written_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "write_no_more", lambda: None)


def test_a_system_call_that_fails_unforeseen_names_where(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as sock:
        monkeypatch.setattr(pidfd, "_set_option", lambda *_: sock.getsockopt(socket.IPPROTO_TCP, 9999))
        with pytest.raises(OSError, match="not available") as raised:
            pidfd.set_options(sock, {"keepidle": 1})
    said = cli._unforeseen(raised.value)
    assert "the output" not in str(said)
    assert str(said).startswith("a system call in `finwait.kernel.pidfd` failed: ")
    assert "report it" in said.hint


@pytest.mark.usefixtures("_written_no_more")
def test_an_error_of_the_output_and_one_of_a_file_say_so() -> None:
    with pytest.raises(OSError, match="No space") as raised, open("/dev/full", "wb", buffering=0) as full:
        full.write(b"x")
    assert str(cli._unforeseen(raised.value)) == "the output could not be written: No space left on device"
    said = cli._unforeseen(OSError(errno.EIO, "Input/output error", "/proc/net/tcp"))
    assert str(said) == "`/proc/net/tcp`: Input/output error"

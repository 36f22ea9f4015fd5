"""Asking an agent: whatever answers, an age is taken only from what has one."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from finwait.agent import client
from finwait.errors import KernelError
from finwait.uapi import tcp

GOOD: dict[str, Any] = {
    "netns": 7, "cookie": "0x1f", "state": "FIN_WAIT2", "age_s": {"at_least": 61.5, "at_most": None},
}  # fmt: skip


@contextmanager
def answering(folder: Path, *answers: bytes) -> Iterator[str]:
    """A socket that answers each connection's question with one of some lines, in turn."""
    path = str(folder / "agent.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection, suppress(OSError):  # who asks may have gone
                    connection.recv(1 << 16)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield path
        thread.join(5)


def episodes(*items: object) -> bytes:
    return msgspec.json.encode({"episodes": items}) + b"\n"


def test_ages_are_told_by_namespace_cookie_and_state(tmp_path: Path) -> None:
    shut = GOOD | {"state": "CLOSE_WAIT", "age_s": {"at_least": 1, "at_most": 2.5}}
    with answering(tmp_path, episodes(GOOD, shut)) as path:
        assert client.ages([31], path) == {
            (7, 31, tcp.FIN_WAIT2): (61_500, -1),
            (7, 31, tcp.CLOSE_WAIT): (1000, 2500),
        }


@pytest.mark.parametrize(
    "strange",
    [
        {"netns": 7},
        GOOD | {"state": "ASLEEP"},
        GOOD | {"age_s": None},
        GOOD | {"age_s": {"at_least": "long", "at_most": None}},
        GOOD | {"cookie": 31},
    ],
)
def test_what_has_no_age_is_left_out(tmp_path: Path, strange: dict[str, Any]) -> None:
    with answering(tmp_path, episodes(strange, GOOD)) as path:
        assert list(client.ages([31], path)) == [(7, 31, tcp.FIN_WAIT2)]


def test_an_answer_that_is_none_is_an_error(tmp_path: Path) -> None:
    with answering(tmp_path, b'{"episodes": 5}\n') as path, pytest.raises(ValueError, match="array"):
        client.ages([31], path)


def test_many_are_asked_for_in_parts_and_no_more_than_a_report_needs(tmp_path: Path) -> None:
    parts = -(-client._COOKIES_MOST // client._AT_ONCE)
    with answering(tmp_path, *[episodes(GOOD)] * parts) as path:
        assert len(client.ages(range(10 * client._COOKIES_MOST), path)) == 1


def test_another_user_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = struct.pack("3i", 1, os.getuid() + 1, 1)
    monkeypatch.setattr(socket.socket, "getsockopt", lambda *_: ours)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with answering(tmp_path, b"") as path, pytest.raises(KernelError, match="ask the agent"):
        client.ages([31], path)

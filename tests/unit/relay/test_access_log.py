"""The access log of a worker: every line is written whole, or counted as lost."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

import pytest

from finwait.relay import accesslog
from finwait.relay.accesslog import AccessLog, LostLines

LINE = b'{"n":1}\n'


class Disk:
    """What os.write does: takes some bytes, then says that it is full."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.held = b""

    def write(self, _fd: int, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = bytes(data[: self.room])
        self.room -= len(taken)
        self.held += taken
        return len(taken)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    monkeypatch.setattr(accesslog, "say", told.append)
    return told


def write(log: AccessLog, *batches: int) -> None:
    """Write so many lines at a time, and wait until that is done."""
    for lines in batches:
        log.write([LINE] * lines)
    over = threading.Event()
    while log._waiting:
        over.wait(0.001)


@pytest.mark.parametrize("room", [0, 3, 8, 10, 16, 20, 4 * len(LINE)])
def test_what_a_full_disk_does_not_take_is_counted(
    room: int, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    disk, lost = Disk(room), LostLines()
    monkeypatch.setattr(os, "write", disk.write)
    log = AccessLog(os.open(os.devnull, os.O_WRONLY), lost)
    write(log, 2, 3, 1)
    assert disk.held.count(b"\n") + lost.count == 6
    assert said == ["could not write the access log: No space left on device; lines are dropped"]
    disk.room = 1000
    write(log, 1)
    assert disk.held.endswith(b"\n" + LINE if room else LINE)  # a line that was cut is no part of the next
    torn = room % len(LINE) != 0
    assert disk.held.count(b"\n") + lost.count == 7 + torn
    assert disk.held.count(LINE) + lost.count == 7
    disk.room = 0
    write(log, 1)
    assert len(said) == 2
    log.close(10)


def test_what_waits_too_long_is_counted_with_what_is_refused(said: list[str]) -> None:
    reading, writing = os.pipe()
    lost = LostLines()
    log = AccessLog(writing, lost)
    many = accesslog.MOST_WAITING // len(LINE)
    log.write([LINE] * many)
    log.write([LINE] * 5)
    log.write([LINE] * 2)
    assert lost.count == 7
    assert said == ["the reader of the access log is too slow; lines are dropped"]
    os.close(reading)  # EPIPE
    over: Callable[[float], bool] = threading.Event().wait
    while log._waiting:
        over(0.001)
    assert 7 < lost.count <= 7 + many
    later = AccessLog(os.open(os.devnull, os.O_WRONLY), lost)  # the log is opened anew; the count goes on
    later.close(10)
    log.close(10)
    assert lost.count > 7

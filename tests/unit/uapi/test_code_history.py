"""What was mapped where at a moment, and when that is not known."""

from __future__ import annotations

import pytest

from finwait.uapi.code_history import CodeHistory
from finwait.uapi.perf_event import Ended, Executed, Forked, Mapped


def mapped(name: str, at: int, begin: int = 0x1000, *, pid: int = 7) -> Mapped:
    return Mapped(pid, at, begin, begin + 0x1000, 0, len(name) + ord(name[-1]), name.encode())


def name_at(history: CodeHistory, time_ns: int, address: int = 0x1800) -> str:
    mapping = history.before(7, address, time_ns)
    return "" if mapping is None else mapping.name.decode()


def history_of(*records: Executed | Ended | Forked | Mapped) -> CodeHistory:
    history = CodeHistory()
    for record in records:
        history.add(record)
    return history


def test_a_library_that_took_the_place_of_another_does_not_name_its_code() -> None:
    history = history_of(mapped("/a", 10), mapped("/b", 30))
    assert [name_at(history, at) for at in (9, 10, 29, 30)] == ["", "/a", "/a", "/b"]
    assert [history.changed(7, 0x1800, at) for at in (9, 10, 29, 30)] == [True, True, True, False]
    assert not history.changed(7, 0x2000, 0)
    assert not history.changed(8, 0x1800, 0)


def test_a_library_that_comes_back_is_a_record_and_one_made_executable_again_is_none() -> None:
    history = history_of(mapped("/a", 10), mapped("/a", 20), mapped("/b", 30), mapped("/a", 40))
    assert [name_at(history, at) for at in (15, 25, 35, 45)] == ["/a", "/a", "/b", "/a"]
    assert not history_of(mapped("/a", 10), mapped("/a", 20)).changed(7, 0x1800, 15)


@pytest.mark.parametrize(
    "record", [Executed(7, 20), Forked(7, 1, 20)], ids=["another program", "another process"]
)
def test_a_new_program_has_nothing_of_what_was_mapped(record: Executed | Forked) -> None:
    assert name_at(history_of(mapped("/a", 10), record), 30) == ""


def test_records_that_were_lost_make_what_was_before_unknown() -> None:
    history = history_of(mapped("/a", 10))
    assert history.known(7, 0)
    history.lost(50)
    assert [history.known(7, at) for at in (49, 50, 51)] == [False, False, True]


def test_of_too_many_records_the_oldest_are_forgotten_and_that_is_known() -> None:
    history = CodeHistory(100, 3)
    for k in range(5):
        history.add(mapped(f"/{k}", 10 * k, 0x1000 * k))
    assert [history.known(7, at) for at in (10, 11)] == [False, True]
    assert history.known(8, 0)


def test_processes_that_ended_are_forgotten_first() -> None:
    history = CodeHistory(3)
    for pid in (1, 2, 3):
        history.add(mapped("/a", pid, pid=pid))
    history.add(Ended(3, 4, 5))
    history.add(Ended(2, 2, 5))
    history.add(mapped("/b", 9, pid=9))
    assert [history.known(pid, 1) for pid in (1, 2, 3)] == [True, False, True]

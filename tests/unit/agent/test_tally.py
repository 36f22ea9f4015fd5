"""Sums: bounded series, counters that never go back."""

from __future__ import annotations

from finwait.agent.episodes import Book, Instant
from finwait.agent.leak import Used
from finwait.agent.tally import OTHER, WORKLOADS, Tally
from finwait.uapi import tcp
from tests.agent_world import S, Sock, cause_of, said, table

NOW = Instant(1000 * S, 0)


def book_of(pids: list[int]) -> Book:
    """A book with an open episode for each pid."""
    book = Book("b")
    socks = [Sock(k, tcp.CLOSE_WAIT, sport=k, pid=pid, since_ns=S) for k, pid in enumerate(pids, 1)]
    book.walked([table(socks, NOW.boot_ns)], [1], NOW)
    book.diagnosed(said(socks, [cause_of(s) for s in socks]), NOW, everything=True)
    return book


def test_the_largest_workloads_have_series_and_the_rest_is_one() -> None:
    pids = [pid for pid in range(1, 301) for _ in range(1 + (pid <= 10))]
    tally = Tally()
    groups = {g.workload: g.count for g in tally.groups(book_of(pids), NOW.boot_ns)}
    assert len(groups) == WORKLOADS + 1
    assert groups["program1"] == 2
    assert groups[OTHER] == 100
    assert sum(groups.values()) == len(pids)
    assert tally.dropped == 100


def test_workloads_that_churn_make_no_more_series_and_no_counter_goes_back() -> None:
    tally, before = Tally(), dict[tuple[str, str], int]()
    total = 0
    for k in range(1500):
        tally.opened_more({("r", f"w{k}"): 1 + k % 3, ("r", "busy"): 5})
        total += 6 + k % 3
        now = {(c.rule, c.workload): c.total for c in tally.opened}
        assert len(now) <= WORKLOADS + 1
        assert sum(now.values()) == total
        for name in ("busy", OTHER):
            assert now.get(("r", name), 0) >= before.get(("r", name), 0)
        before = now


def test_a_connection_without_a_cause_yet_is_counted_as_that() -> None:
    book = Book("b")
    book.walked([table([Sock(1, tcp.CLOSE_WAIT, since_ns=S)], NOW.boot_ns)], [1], NOW)
    (group,) = Tally().groups(book, NOW.boot_ns)
    assert (group.rule, group.count, group.oldest_s) == ("undiagnosed", 1, 999.0)


def test_limits_tell_the_fullest_of_a_kind_and_no_time_while_nothing_grows() -> None:
    tally, book = Tally(), book_of([7])
    for k in range(5):
        limits = [
            Used("nofile", "pid 7", 100 + k, 1000, workload="program7"),
            Used("nofile", "pid 8", 500 + 100 * k, 1000, workload="program7"),
            Used("orphans", "", 10 + 100 * k, 1000),
        ]
        tally.mark(book, 1000.0 + 300 * k, limits)
    told = {(m.limit, m.workload): m for m in tally.limits}
    assert told["nofile", "program7"].used == 900
    assert [m.reached_s for m in told.values()] == [None, None], "the survivors do not grow"


def test_a_process_that_runs_into_its_limit_is_told_beside_a_fuller_one_that_is_quiet() -> None:
    tally = Tally()
    for k in range(6):
        limits = [
            Used("nofile", "pid 8", 900, 1000, workload="program7"),
            Used("nofile", "pid 7", 100 + 100 * k, 1000, workload="program7"),
            Used("nofile", "pid 9", 10 + 20 * k, 1000, workload="program7"),
        ]
        tally.mark(book_of([7] * (100 * (k + 1))), 2000.0 + 300 * k, limits)
    (told,) = tally.limits
    assert (told.subject, told.used) == ("pid 8", 900)
    assert (told.reached_subject, told.reached_s) == ("pid 7", 400 / (100 / 300))


def test_what_is_reached_soon_has_a_series_before_what_is_only_full_and_the_rest_is_counted() -> None:
    tally = Tally()
    for k in range(6):
        limits = [
            Used("nofile", f"pid {n}", 900, 1000, workload=f"full{n}") for n in range(50, 55 + WORKLOADS)
        ]
        limits.append(Used("nofile", "pid 7", 100 + 20 * k, 1000, workload="program7"))
        tally.mark(book_of([7] * (100 * (k + 1))), 2000.0 + 300 * k, limits)
    told = tally.limits
    assert len(told) == WORKLOADS
    assert [m.reached_s for m in told if m.workload == "program7"] == [800 / (20 / 300)]
    assert tally.limits_dropped == 6


def test_what_is_used_of_a_limit_may_fall_while_something_leaks() -> None:
    tally = Tally()
    for k in range(6):
        tally.mark(
            book_of([7] * (100 * (k + 1))), 2000.0 + 300 * k, [Used("tcp-mem", "", 5000 - 100 * k, 10_000)]
        )
    assert [m.reached_s for m in tally.limits] == [None]


def test_marks_that_were_stored_go_on() -> None:
    tally = Tally()
    for k in range(3):
        tally.mark(book_of([7] * (100 * (k + 1))), 2000.0 + 300 * k, [])
    again = Tally()
    stored = tally.marks.items()
    again.restore({key: [(w, m) for w, marks in windows.items() for m in marks] for key, windows in stored})
    assert not again.mark_due(2700.0)
    assert again.mark_due(2900.0)
    book = book_of([7] * 400)
    again.mark(book, 2900.0, [])
    (group,) = again.groups(book, NOW.boot_ns)
    assert group.rate == 1 / 3

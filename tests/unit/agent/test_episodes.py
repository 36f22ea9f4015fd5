"""Episodes: when they open, how they end, and what is known of their age."""

from __future__ import annotations

from dataclasses import replace as changed

import numpy as np
import pytest
from msgspec.structs import replace

from finwait.agent.episodes import Book, Cause, Episode, Instant, once
from finwait.uapi import tcp
from tests.agent_world import WALL, S, Sock, cause_of, said, table

NETNS = 1


def at(seconds: float, wall_off: int = 0) -> Instant:
    return Instant(int(seconds * S), WALL + int(seconds * S) + wall_off)


def walk(book: Book, socks: list[Sock], now: Instant, spaces: tuple[int, ...] = (NETNS,)) -> None:
    book.walked([table(socks, now.boot_ns)], spaces, now)


def answer(
    book: Book, socks: list[Sock], now: Instant, *, gaps: tuple[int, ...] = (), how: str = "vanished"
) -> None:
    asked = book.questions(100, now.boot_ns + 1)["cookie"]
    book.answered(asked, table(socks, now.boot_ns), gaps, now, lambda *_: how)  # type: ignore[arg-type]


def opened(state: int = tcp.FIN_WAIT2, **more: object) -> tuple[Book, Sock]:
    """A book with one open episode that began at 1000 s."""
    book = Book("b")
    sock = Sock(7, state, since_ns=1000 * S, entered_ns=1000 * S, **more)  # type: ignore[arg-type]
    walk(book, [sock], at(1000))
    walk(book, [sock], at(1020))
    assert book.open == 1
    return book, sock


def only(book: Book) -> Episode:
    (episode,) = book.changed()
    return episode


def test_what_passes_within_the_grace_is_no_episode() -> None:
    book = Book("b")
    sock = Sock(7, tcp.FIN_WAIT2, since_ns=1000 * S)
    walk(book, [sock], at(1001))
    assert book.open == 0
    walk(book, [], at(1010))
    answer(book, [], at(1010))
    assert (book.open, len(book), book.take()) == (0, 0, [])


def test_one_look_opens_it_where_the_kernel_tells_its_age() -> None:
    book = Book("b")
    walk(book, [Sock(7, tcp.CLOSE_WAIT, since_ns=100 * S)], at(1000))
    episode = only(book)
    assert episode.latest_ns == 100 * S
    assert episode.at_least_ns(1000 * S) == 900 * S
    assert episode.first == at(1000)


def test_a_minisocket_that_tells_no_age_opens_by_two_looks() -> None:
    book = Book("b")
    sock = Sock(7, tcp.FIN_WAIT2, held=False, since_ns=100 * S)
    walk(book, [sock], at(1000))
    assert book.open == 0
    walk(book, [sock], at(1015))
    episode = only(book)
    assert episode.at_least_ns(1015 * S) == 15 * S


def test_what_an_earlier_walk_did_not_have_began_after_it() -> None:
    book = Book("b")
    walk(book, [], at(900))
    walk(book, [Sock(7, tcp.LAST_ACK, held=False, since_ns=950 * S)], at(1000))
    walk(book, [Sock(7, tcp.LAST_ACK, held=False, since_ns=950 * S)], at(1015))
    episode = only(book)
    assert (episode.earliest_ns, episode.latest_ns) == (900 * S, 1000 * S)
    assert episode.at_most_ns(1015 * S) == 115 * S


def test_a_clock_of_the_kernel_that_starts_again_makes_nothing_younger() -> None:
    book, sock = opened()
    before = only(book).latest_ns
    sock.since_ns = 1030 * S  # a keepalive was answered
    walk(book, [sock], at(1040))
    book.touch()
    assert only(book).latest_ns == before


def test_the_turn_into_a_minisocket_goes_on_and_is_diagnosed_anew() -> None:
    book, sock = opened()
    book.diagnosed(said([sock], [cause_of(sock)]), at(1021), everything=True)
    assert book.undiagnosed == 0
    sock.held = False
    walk(book, [sock], at(1040))
    assert (book.open, book.undiagnosed) == (1, 1)
    assert only(book).at_least_ns(1040 * S) == 40 * S


def test_a_row_that_a_walk_misses_is_asked_for_before_anything_ends() -> None:
    book, sock = opened()
    walk(book, [], at(1040))
    assert book.open == 1
    assert book.take() == []
    asked = book.questions(10, 0)
    assert asked["cookie"].tolist() == [7]
    answer(book, [changed(sock, state=tcp.TIME_WAIT, held=False)], at(1041))
    (ended,) = book.take()
    assert (ended.how, ended.ended, book.open) == ("closed", at(1041), 0)
    assert ended.at_least_ns(0) == 20 * S  # from its beginning until it was last seen


@pytest.mark.parametrize("how", ["cleared", "owner-gone", "vanished"])
def test_what_is_gone_ends_as_it_is_judged(how: str) -> None:
    book, _ = opened()
    answer(book, [], at(1040), how=how)
    (ended,) = book.take()
    assert ended.how == how


def test_a_namespace_that_cannot_be_asked_ends_nothing() -> None:
    book, _ = opened()
    answer(book, [], at(1040), gaps=(NETNS,))
    assert (book.open, book.take()) == (1, [])


def test_what_was_in_a_namespace_that_is_not_found_any_more_ends_at_its_last_sight_as_unknown() -> None:
    book, sock = opened()
    walk(book, [], at(900), (3,))
    walk(book, [changed(sock, cookie=8, netns=3, sport=9, since_ns=950 * S)], at(1020), (3,))
    assert book.namespaces == {NETNS, 3}
    book.forget_namespaces({2})
    first, second = sorted(book.take(), key=lambda e: e.cookie)
    assert (first.how, first.ended, book.open) == ("unknown", at(1020), 0)
    assert first.at_least_ns(9999 * S) == 20 * S
    assert second.earliest_ns >= 0
    assert second.at_most_ns(9999 * S) == -1


def test_the_next_state_is_an_episode_of_its_own() -> None:
    book, sock = opened(tcp.FIN_WAIT1)
    sock.state, sock.since_ns = tcp.FIN_WAIT2, 1030 * S
    walk(book, [sock], at(1040))
    (ended,) = book.take()
    assert (ended.state, ended.how) == (tcp.FIN_WAIT1, "closed")
    assert book.open == 0
    walk(book, [sock], at(1046))
    assert only(book).state == tcp.FIN_WAIT2


def test_a_cookie_with_other_ports_is_another_connection() -> None:
    book, sock = opened()
    again = changed(
        sock, sport=50000, since_ns=1035 * S
    )  # the program disconnected it and connected it again
    walk(book, [again], at(1040))
    (ended,) = book.take()
    assert ended.how == "vanished"
    walk(book, [again], at(1060))
    assert only(book).local == "10.0.0.1:50000"


def test_ports_that_another_connection_has_now_do_not_keep_it() -> None:
    book, sock = opened()
    answer(book, [changed(sock, cookie=8, since_ns=1030 * S)], at(1040))
    (ended,) = book.take()
    assert (ended.cookie, ended.how) == (7, "vanished")


def test_a_restart_goes_on_with_the_same_age() -> None:
    book, sock = opened()
    stored = only(book)
    again = Book("b")
    again.restore([stored], at(5000))
    assert again.open == 1
    answer(again, [changed(sock, since_ns=4990 * S)], at(5001))
    again.touch()
    episode = only(again)
    assert episode.latest_ns == stored.latest_ns
    assert episode.at_least_ns(5001 * S) == 4001 * S
    assert episode.first == stored.first


def test_a_history_that_can_be_read_late_only_gives_the_earlier_beginning() -> None:
    book, sock = opened()
    stored = only(book)
    again = Book("b")
    walk(again, [changed(sock, since_ns=4000 * S)], at(5000))
    again.restore([stored, replace(stored, state=tcp.FIN_WAIT1)], at(5100))
    assert again.open == 1
    assert only(again).first == stored.first
    assert only(again).latest_ns == stored.latest_ns
    assert [(e.state, e.how) for e in again.take()] == [(tcp.FIN_WAIT1, "unknown")]


def test_what_ended_while_nobody_looked_ended_nobody_knows_how() -> None:
    book, _ = opened()
    again = Book("b")
    again.restore(list(book.changed()), at(5000))
    answer(again, [], at(5001), how="vanished")
    (ended,) = again.take()
    assert ended.how == "unknown"


def test_another_boot_ends_everything() -> None:
    book, _ = opened()
    again = Book("c")
    again.restore(list(book.changed()), at(10))
    (ended,) = again.take()
    assert (ended.how, ended.boot, again.open) == ("unknown", "b", 0)


def test_a_wall_clock_that_jumps_changes_no_age() -> None:
    book, sock = opened()
    jumped = at(1040, wall_off=-86_400 * S)
    walk(book, [sock], jumped)
    book.touch()
    assert only(book).at_least_ns(jumped.boot_ns) == 40 * S


def test_a_socket_that_was_connected_again_on_the_same_addresses_is_another_connection() -> None:
    for late in (False, True):
        book, sock = opened()
        book.diagnosed(said([changed(sock, other=9)], [cause_of(sock)]), at(1021), everything=True)
        again = changed(sock, since_ns=2000 * S, entered_ns=2000 * S)
        if late:  # the history can be read only after the connection was found anew
            (stored,) = book.changed()
            book = Book("b")
            walk(book, [again], at(2060))
            book.restore([stored], at(2061))
        else:
            walk(book, [again], at(2060))
        (before,) = book.take()
        assert before.last == at(1020)
        assert before.at_least_ns(0) == 20 * S
        book.touch()
        assert only(book).at_least_ns(2060 * S) == 60 * S
        assert only(book).first == at(2060)
        assert only(book).other.cookie == 0


def test_an_exact_answer_tells_of_a_connection_that_was_made_again_too() -> None:
    book, sock = opened()
    again = changed(sock, since_ns=2000 * S, entered_ns=2000 * S)
    answer(book, [again], at(2060))
    (before,) = book.take()
    assert (before.how, before.last) == ("vanished", at(1020))
    assert only(book).first == at(2060)


@pytest.mark.parametrize("asleep", [False, True])
def test_clocks_that_stood_still_or_wrapped_round_end_nothing(asleep: bool) -> None:
    book, sock = opened()
    days = 1 if asleep else 49.8
    now = at(1020 + days * 86400)
    book.asleep_ns = 86400 * S if asleep else 0
    young = changed(sock, since_ns=now.boot_ns - 50 * S, entered_ns=now.boot_ns - 50 * S)
    walk(book, [young], now)
    assert book.take() == []
    book.touch()
    assert only(book).latest_ns == 1000 * S
    assert only(book).earliest_ns <= 1000 * S


def test_an_upper_bound_counts_the_time_that_the_machine_slept() -> None:
    book = Book("b")
    book.asleep_ns = 3600 * S
    walk(book, [Sock(7, tcp.CLOSE_WAIT, since_ns=5000 * S)], at(5100))
    assert only(book).at_least_ns(5100 * S) >= 100 * S
    assert only(book).at_most_ns(5100 * S) >= 3700 * S


def test_the_other_end_of_a_connection_that_was_made_again_is_the_new_one() -> None:
    """Of LAST_ACK the kernel tells no age: that it was made again cannot be seen, but its other end can."""
    book, sock = opened(tcp.LAST_ACK)
    book.diagnosed(said([changed(sock, other=9)], [cause_of(sock)]), at(1021), everything=True)
    new = Sock(12, tcp.CLOSE_WAIT, sport=80, other=7, since_ns=2000 * S)
    walk(book, [sock, new], at(2030))
    socks = [changed(sock, other=12), new]
    book.diagnosed(said(socks, [cause_of(s) for s in socks]), at(2031), everything=True)
    assert len(book.speaking(())[0]) == 1


def test_what_was_open_before_a_reboot_ended_at_its_last_sight_and_nobody_knows_its_age_at_most() -> None:
    book, _ = opened()
    book.touch()
    stored = replace(only(book), earliest_ns=990 * S)
    for uptime in (10, 1010, 9000):  # shorter and longer than that of the boot before
        after = Book("b+")
        after.restore([stored], at(uptime))
        (ended,) = after.take()
        assert (ended.how, ended.ended) == ("unknown", stored.last)
        assert ended.at_least_ns(0) == 20 * S
        assert ended.at_most_ns(uptime * S) == -1


def test_what_is_beyond_the_room_is_counted() -> None:
    book = Book("b", most=3)
    walk(book, [Sock(k, tcp.CLOSE_WAIT, sport=k, since_ns=0) for k in range(1, 6)], at(1000))
    assert (len(book), book.untracked) == (3, 2)


def test_what_is_beyond_the_room_stays_counted_until_its_namespace_is_walked_again() -> None:
    book = Book("b", most=3)
    socks = [Sock(k, tcp.CLOSE_WAIT, sport=k, since_ns=0) for k in range(1, 6)]
    walk(book, socks, at(1000))
    answer(book, socks[:3], at(1010))
    walk(book, [], at(1015), (2,))
    assert book.untracked == 2
    walk(book, socks[:4], at(1020))
    assert book.untracked == 1
    book.emptied([NETNS])
    assert book.untracked == 0


def test_what_there_was_no_room_for_is_not_taken_for_new_later() -> None:
    book = Book("b", most=1)
    socks = [Sock(k, tcp.LAST_ACK, held=False, sport=k, since_ns=0) for k in (1, 2)]
    walk(book, socks, at(900))
    walk(book, socks[1:], at(1000))
    answer(book, socks[1:], at(1001))
    walk(book, socks[1:], at(1100))
    walk(book, socks[1:], at(1200))
    assert only(book).earliest_ns < 0


def test_the_other_end_is_kept_as_it_was_seen_first() -> None:
    book, sock = opened()
    sock.other = 9
    book.diagnosed(said([sock], [cause_of(sock)]), at(1021), everything=True)
    sock.other = 0  # conntrack has forgotten it
    book.diagnosed(said([sock], [cause_of(sock)]), at(1100), everything=True)
    book.touch()
    assert only(book).other.cookie == 9


def test_openings_are_counted_once_with_their_cause_or_at_their_end() -> None:
    book, sock = opened()
    assert not book.count_opened()
    book.diagnosed(said([sock], [cause_of(sock)]), at(1021), everything=True)
    assert dict(book.count_opened()) == {("fin-wait2-held", ""): 1}
    book.diagnosed(said([sock], [replace(cause_of(sock), rule="other")]), at(1022), everything=True)
    assert not book.count_opened()
    short, _ = opened()
    answer(short, [], at(1040))
    assert dict(short.count_opened()) == {("", ""): 1}


def test_causes_that_nothing_has_are_forgotten() -> None:
    book, sock = opened()
    for pid in range(1, 400):
        book.diagnosed(said([sock], [replace(cause_of(sock), pid=pid)]), at(1021), everything=True)
    assert len(book.causes) < 100
    assert only(book).cause.pid == 399


def test_of_two_ends_the_one_whose_move_it_is_speaks() -> None:
    cookie, other = np.array([1, 2, 3], np.uint64), np.array([2, 1, 0], np.uint64)
    rank = np.array(
        [c.rank for c in (Cause(severity="problem"), Cause(severity="problem", whose="holder"), Cause())]
    )
    assert once(cookie, other, rank.astype(np.int8)).tolist() == [False, True, True]
    assert once(cookie, other, np.zeros(3, np.int8)).tolist() == [True, False, True]


def test_of_three_that_name_one_another_in_a_circle_each_speaks() -> None:
    cookie, other = np.array([1, 2, 3], np.uint64), np.array([2, 3, 1], np.uint64)
    assert once(cookie, other, np.zeros(3, np.int8)).all()


def verdicts(book: Book) -> list[int]:
    (counts,) = book.columns("verdicts")
    return [int(n) for n in counts]


def test_the_same_verdict_is_counted_and_another_one_begins_anew() -> None:
    book, sock = opened(pid=7)
    assert verdicts(book) == [0]
    for n in (1, 2, 3):
        book.diagnosed(said([sock], [cause_of(sock)]), at(1020 + 120 * n), everything=True)
        assert verdicts(book) == [n]
    other = replace(cause_of(sock), confidence="likely")
    book.diagnosed(said([sock], [other]), at(1500), everything=True)
    assert verdicts(book) == [1]


def test_a_verdict_counts_once_in_the_time_of_a_diagnosis_however_often_it_is_given() -> None:
    book, sock = opened(pid=7)
    for second in range(100):
        book.diagnosed(said([sock], [cause_of(sock)]), at(1021 + second), everything=True)
        assert verdicts(book) == [1]
    book.diagnosed(said([sock], [cause_of(sock)]), at(1121), everything=True)
    assert verdicts(book) == [2]
    other = replace(cause_of(sock), confidence="likely")
    for second in range(99):
        book.diagnosed(said([sock], [other]), at(1122 + second), everything=True)
        assert verdicts(book) == [1], "another verdict begins anew at once"


def test_a_diagnosis_that_does_not_speak_of_it_takes_its_verdicts_back() -> None:
    book, sock = opened(pid=7)
    book.diagnosed(said([sock], [cause_of(sock)]), at(1021), everything=True)
    book.diagnosed(said([], []), at(1022), everything=False)
    assert verdicts(book) == [1], "it may not have looked there"
    book.diagnosed(said([], []), at(1023), everything=True)
    assert verdicts(book) == [0]


def test_verdicts_of_before_a_restart_do_not_count() -> None:
    book, sock = opened(pid=7)
    for n in (1, 2, 3):
        book.diagnosed(said([sock], [cause_of(sock)]), at(1020 + n), everything=True)
    again = Book("b")
    again.restore(list(book.changed()), at(1030))
    walk(again, [sock], at(1031))
    again.diagnosed(said([sock], [cause_of(sock)]), at(1032), everything=True)
    assert verdicts(again) == [1]


def test_a_diagnosis_speaks_of_what_it_saw_before_a_walk_did() -> None:
    """The first diagnosis of a large machine is made while its namespaces are still being walked."""
    book = Book("boot")
    socks = [Sock(n, tcp.FIN_WAIT2, pid=7, since_ns=S) for n in (1, 2, 3)]
    book.diagnosed(said(socks[:2], [cause_of(s) for s in socks[:2]]), at(100), everything=True)
    young = Sock(4, tcp.FIN_WAIT2, pid=7, since_ns=110 * S)
    walk(book, [socks[0], socks[2], young], at(130))
    diagnosed = dict(zip(*(column.tolist() for column in book.columns("cookie", "diagnosed")), strict=True))
    assert diagnosed == {1: True, 3: False, 4: False}
    later = Book("boot")
    later.diagnosed(said(socks, [cause_of(s) for s in socks]), at(100), everything=True)
    walk(later, socks, at(800))
    assert later.undiagnosed == 3, "too long ago"

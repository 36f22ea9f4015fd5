"""Events, looks and destroy messages joined into the story of each connection."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finwait.table import histogram
from finwait.table import transitions as tr
from finwait.table.lives import Follower
from finwait.table.sockets import SocketTable, pack_address
from finwait.uapi import tcp
from finwait.uapi import tracepoint as tp
from tests import ring_pages as rp

FORMATS = {f.id: f for f in (tp.parse_format(t) for t in (rp.SET_STATE, rp.DESTROY, rp.RESET))}
LAYOUT = tp.PageLayout()
CLOSE, LISTEN = tcp.CLOSE, tcp.LISTEN
ACTIVE = [(CLOSE, tcp.SYN_SENT), (tcp.SYN_SENT, tcp.ESTABLISHED), (tcp.ESTABLISHED, tcp.FIN_WAIT1),
          (tcp.FIN_WAIT1, tcp.FIN_WAIT2), (tcp.FIN_WAIT2, CLOSE)]  # fmt: skip


def events(*script: tuple[int, bytes], cpu: int = 0) -> tuple[tr.TransitionTable, np.ndarray]:
    """Records given as (time, payload), through real pages."""
    pages: list[bytes] = []
    page = None
    for time, payload in script:
        if page is None or page.room() < 200:
            if page is not None:
                pages.append(page.page())
            page = rp.PageWriter(LAYOUT, time)
        page.data(payload, time - page.now)
    if page is not None:
        pages.append(page.page())
    starts = np.arange(len(pages)) * 4096
    found = tp.walk(np.frombuffer(b"".join(pages), np.uint8), starts, np.full(len(pages), 4096), LAYOUT)
    return tr.decode(found, np.full(len(pages), cpu), FORMATS, byteorder="little")


def life(start: int, step: int, **more) -> list[tuple[int, bytes]]:
    return [(start + k * step, rp.set_state(o, n, **more)) for k, (o, n) in enumerate(ACTIVE)]


def sockets(**columns) -> SocketTable:
    n = len(columns["cookie"])
    given: dict[str, Any] = {
        "family": [2] * n,
        "sport": [1000] * n,
        "dport": [80] * n,
        "src": [pack_address("10.0.0.1")] * n,
        "dst": [pack_address("10.0.0.2")] * n,
        "protocol": [6] * n,
    }
    return SocketTable.from_columns(given | columns)


def test_addresses_ports_and_states_are_those_of_the_record():
    table, cookies = events((5, rp.set_state(1, 4, sport=40000, dport=443, pid=12, flags=0x10)))
    assert table.src.tolist() == [list(pack_address("10.0.0.1"))]
    assert table.dst.tolist() == [list(pack_address("10.0.0.2"))]
    assert (table.sport[0], table.dport[0], table.pid[0]) == (40000, 443, 12)
    assert table.interrupt.tolist() == [True]
    assert cookies.tolist() == [0]


def test_an_ipv6_record_keeps_its_addresses():
    src, dst = (bytes([0x20, 1, 0xD, 0xB8, *bytes(11), k]) for k in (1, 2))
    table, _ = events((5, rp.set_state(1, 4, family=10, src=src, dst=dst)))
    assert table.src.tolist() == [list(pack_address("2001:db8::1"))]
    assert table.dst.tolist() == [list(pack_address("2001:db8::2"))]


OLD = {f.id: f for f in map(tp.parse_format, (rp.OLD_RETRANSMIT, rp.OLD_SEND_RESET, rp.OLD_RECEIVE_RESET))}


@pytest.mark.parametrize(
    ("number", "kind"), [(1401, tr.RETRANSMIT), (1400, tr.SEND_RESET), (1399, tr.RECEIVE_RESET)]
)
@pytest.mark.parametrize(
    ("src", "dst", "family"),
    [
        ("10.0.0.1", "10.0.0.2", 2), ("127.0.0.6", "127.0.0.6", 2), ("2001:db8::1", "2001:db8::2", 10),
        ("fe80::1", "fe80::2", 10), ("::1", "::1", 10),
    ],
)  # fmt: skip
def test_events_of_linux_5_10_that_do_not_tell_their_family_keep_their_addresses(
    number, kind, src, dst, family
):
    import ipaddress

    page = rp.PageWriter(LAYOUT, 1000)
    packed = [ipaddress.ip_address(text).packed for text in (src, dst)]
    page.data(rp.old_event(number, src=packed[0], dst=packed[1], sport=4000, dport=443), 5)
    found = tp.walk(np.frombuffer(page.page(), np.uint8), np.array([0]), np.array([4096]), LAYOUT)
    table, cookies = tr.decode(found, np.array([0]), OLD, byteorder="little")
    assert table.kind.tolist() == [kind]
    assert table.family.tolist() == [family]
    assert table.src.tolist() == [list(pack_address(src))]
    assert table.dst.tolist() == [list(pack_address(dst))]
    assert (table.sport[0], table.dport[0]) == (4000, 443)
    assert cookies.tolist() == [77 if number == 1399 else 0]


def test_time_in_each_state_is_the_difference_within_one_life():
    follower = Follower()
    table, cookies = events(*life(1000, 10))
    assert follower.feed(table, cookies, 10_000) == 5
    rows = follower.take(10_000)
    assert rows.in_old_ns.tolist() == [0, 10, 10, 10, 10]
    assert rows.present("in_old_ns").tolist() == [False, True, True, True, True]


def test_time_in_a_state_carries_over_calls():
    follower = Follower()
    script = life(1000, 10)
    for k, event in enumerate(script):
        table, cookies = events(event)
        follower.feed(table, cookies, 1000 + 10 * k)
    rows = follower.take(10_000)
    assert rows.in_old_ns.tolist() == [0, 10, 10, 10, 10]
    assert len(set(rows.life.tolist())) == 1


def test_an_address_used_again_is_another_life():
    follower = Follower()
    table, cookies = events(*life(1000, 10), *life(2000, 7))
    follower.feed(table, cookies, 10_000)
    rows = follower.take(10_000)
    assert rows.life.tolist() == [0] * 5 + [1] * 5
    assert rows.in_old_ns.tolist() == [0, 10, 10, 10, 10, 0, 7, 7, 7, 7]


@pytest.mark.parametrize("cut", [0, 1025, 1035, 1045])
def test_a_close_of_what_was_shut_down_before_does_not_begin_the_state_anew(cut):
    script = [(1000, 1, 4), (1020, 4, 5), (1040, 5, 5), (1070, 5, 7)]
    follower = Follower()
    for part in ([s for s in script if s[0] <= cut], [s for s in script if s[0] > cut]):
        follower.feed(*events(*((t, rp.set_state(o, n)) for t, o, n in part)), 5000)
    rows = follower.take(5000)
    assert rows.in_old_ns.tolist() == [0, 20, 20, 50]
    assert rows.present("in_old_ns").tolist() == [False, True, True, True]


def test_the_time_in_a_state_that_began_before_us_is_unknown():
    follower = Follower()
    table, cookies = events((1000, rp.set_state(1, 4)), (1010, rp.set_state(4, 5)))
    follower.feed(table, cookies, 10_000)
    rows = follower.take(10_000)
    assert rows.present("in_old_ns").tolist() == [False, True]


def test_a_state_that_does_not_continue_the_last_one_has_no_age():
    follower = Follower()
    table, cookies = events((1000, rp.set_state(1, 4)), (1010, rp.set_state(5, 7)))
    follower.feed(table, cookies, 10_000)
    assert follower.take(10_000).present("in_old_ns").tolist() == [False, False]


def test_no_age_is_given_across_a_loss():
    follower = Follower()
    follower.feed(*events((1000, rp.set_state(1, 4))), 1500)
    follower.feed(*events((2000, rp.set_state(4, 5))), 2500, missed=np.array([7]))
    rows = follower.take(10_000)
    assert rows.present("in_old_ns").tolist() == [False, False]
    assert (follower.lost, follower.lost_unknown) == (7, False)


def test_events_of_two_cpus_are_put_in_order_by_the_horizon():
    follower = Follower()
    first, none = events((1000, rp.set_state(7, 2)), (1030, rp.set_state(1, 4)))
    assert follower.feed(first, none, 1010) == 1
    second, none = events((1015, rp.set_state(2, 1)), cpu=1)
    assert follower.feed(second, none, 2000) == 2
    rows = follower.take(2000)
    assert rows.newstate.tolist() == [2, 1, 4]
    assert rows.in_old_ns.tolist() == [0, 15, 15]


def test_a_look_names_a_life_that_it_covers():
    follower = Follower()
    follower.feed(*events(*life(1000, 10)[:2]), 3000)
    follower.look(tr.SocketDump(sockets(netns=[42], cookie=[77], inode=[5], state=[1]), 2000, 2500))
    rows = follower.take(2000)
    assert rows.netns.tolist() == [42, 42]
    assert rows.cookie.tolist() == [77, 77]
    assert rows.inode.tolist() == [5, 5]


@pytest.mark.parametrize(("begun", "ended"), [(1005, 1500), (900, 1500)])
def test_a_look_does_not_name_a_life_that_it_does_not_cover(begun, ended):
    follower = Follower()
    follower.feed(*events(*life(1000, 100)), 3000)  # dies at 1400
    follower.look(tr.SocketDump(sockets(netns=[42], cookie=[77], inode=[5], state=[1]), begun, ended))
    assert not follower.take(3000).present("netns").any()


def test_the_same_numbers_in_two_namespaces_name_nobody():
    follower = Follower()
    follower.feed(*events(*life(1000, 10)[:2]), 3000)
    follower.look(
        tr.SocketDump(sockets(netns=[42, 43], cookie=[77, 78], inode=[5, 6], state=[1, 1]), 2000, 2500)
    )
    assert not follower.take(2000).present("netns").any()


def test_an_orphan_that_the_tracepoint_calls_closed_became_a_minisocket():
    follower = Follower()
    follower.feed(*events(*life(1000, 10)), 3000)
    mini = sockets(netns=[42], cookie=[77], inode=[0], state=[5], timer=[3], expires_ms=[59_900])
    follower.look(tr.SocketDump(mini, 2000, 2500))
    rows = follower.take(2000)
    assert rows.present("became").tolist() == [False] * 4 + [True]
    assert (rows.became[4], rows.expires_ms[4], rows.netns[4]) == (5, 59_900, 42)
    assert rows.became_seen_ns[4] == 2000  # the beginning of the look: what it says is said of that time


def test_the_time_left_counts_from_the_row_and_not_from_the_look():
    follower = Follower()
    follower.feed(*events(*life(1000, 10)), 10**10)
    mini = sockets(netns=[42], cookie=[77], inode=[0], state=[5], timer=[3], expires_ms=[56_000])
    follower.look(tr.SocketDump(mini, 4_000_001_040, 4_000_002_000))
    rows = follower.take(4_000_001_040)
    assert rows.expires_ms.tolist() == [0, 0, 0, 0, 60_000]


def test_a_minisocket_with_another_cookie_than_a_look_gave_is_another_connections():
    follower = Follower()
    script = life(1000, 10)
    follower.feed(*events(*script[:3]), 1025)
    follower.look(tr.SocketDump(sockets(netns=[42], cookie=[99], inode=[5], state=[4]), 1021, 1022))
    follower.feed(*events(*script[3:]), 3000)
    mini = {"netns": [42], "inode": [0], "state": [5], "timer": [3], "expires_ms": [59_900]}
    follower.look(tr.SocketDump(sockets(cookie=[77], **mini), 2000, 2500))
    rows = follower.take(2000)
    assert not rows.present("became").any()
    assert rows.cookie.tolist() == [99] * 5


def test_a_cookie_that_the_destroy_event_made_need_not_be_the_minisockets():
    follower = Follower()
    follower.feed(*events(*life(1000, 10), (1041, rp.destroyed(99))), 3000)
    mini = sockets(netns=[42], cookie=[77], inode=[0], state=[5], timer=[3], expires_ms=[59_900])
    follower.look(tr.SocketDump(mini, 2000, 2500))
    rows = follower.take(2000)
    assert rows.became[4] == 5
    assert rows.cookie.tolist() == [99] * 6


def test_a_destroy_message_gives_a_short_life_its_namespace():
    follower = Follower()
    follower.feed(*events(*life(1000, 10), (1041, rp.destroyed(99))), 3000)
    follower.destroyed(sockets(netns=[42, 43], cookie=[99, 100]))
    rows = follower.take(2000)
    assert rows.netns.tolist() == [42] * 6
    assert rows.kind.tolist() == [0] * 5 + [tr.DESTROY]


def test_a_late_destroy_of_an_unknown_socket_makes_no_life():
    follower = Follower()
    follower.feed(*events((1000, rp.destroyed(99))), 3000)
    assert follower.take(3000).life.tolist() == [-1]


def test_ports_that_the_kernel_had_not_chosen_yet_come_from_the_next_event():
    follower = Follower()
    follower.feed(*events((1, rp.set_state(7, 2, sport=0)), (2, rp.set_state(2, 1, sport=41000))), 10)
    assert follower.take(10).sport.tolist() == [41000, 41000]


def test_only_what_surely_stays_longer_is_stuck():
    follower = Follower()
    follower.feed(*events(*life(1000, 10)[:3]), 3000)  # FIN_WAIT1 since 1020
    assert len(follower.staying(2000, 981)) == 0
    assert follower.staying(2000, 980)["sport"].tolist() == [1000]


def test_memory_is_given_back_and_live_connections_keep_their_story():
    follower = Follower()
    follower.feed(*events((1, rp.set_state(1, 4, sk=7)), (2, rp.set_state(4, 5, sk=7))), 5)
    assert len(follower.take(5)) == 2
    now = 10
    for _ in range(12):
        script = []
        for _ in range(500):
            script += life(now, 1)
            now += 10
        follower.feed(*events(*script), now)
        follower.look(tr.SocketDump(SocketTable.empty(), now, now))
        assert len(follower.take(now)) == 2500
    assert len(follower._lives) < 5000
    follower.feed(*events((now + 1, rp.set_state(5, 7, sk=7))), now + 2)
    rows = follower.take(now + 2)
    assert rows.in_old_ns.tolist() == [now + 1 - 2]
    assert follower.counts[5, 7] == 6001
    assert set(rows.life.tolist()) == {0}, "the number of a life does not change when memory is given back"


def test_polling_tells_of_what_differs_between_two_looks():
    before = tr.SocketDump(sockets(netns=[1] * 3, cookie=[1, 2, 3], state=[1, 5, 8], inode=[1, 2, 3]), 10, 20)
    after = tr.SocketDump(sockets(netns=[1] * 3, cookie=[1, 2, 4], state=[4, 5, 1], inode=[1, 0, 4],
                            timer=[0, 3, 0], expires_ms=[0, 60_000, 0]), 110, 120)  # fmt: skip
    rows = tr.changes(before, after)
    told = sorted(zip(rows.cookie.tolist(), rows.oldstate.tolist(), rows.newstate.tolist(), strict=True))
    assert told == [(1, 1, 4), (2, 5, 5), (3, 8, 0), (4, 0, 1)]
    assert rows.became[rows.cookie == 2].tolist() == [5]
    assert set(rows.after_ns.tolist()) == {10}
    assert set(rows.time_ns.tolist()) == {120}


@pytest.mark.parametrize(("first", "second"), [([], [1]), ([1], []), ([], [])])
def test_polling_an_empty_machine(first, second):
    looks = [
        tr.SocketDump(
            sockets(netns=[1] * len(c), cookie=c, state=[1] * len(c)) if c else SocketTable.empty(), t, t
        )
        for t, c in ((1, first), (2, second))
    ]
    assert len(tr.changes(*looks)) == len(first) + len(second)


def test_the_histogram_counts_by_powers_of_two_of_microseconds():
    bounds, counts = histogram.coarse(
        histogram.fine_histogram(np.array([0, 999, 1000, 1999, 2000, 4_000_000, 7_999_000]))
    )
    assert bounds.tolist()[:4] == [0, 1, 2, 4]
    assert counts[0] == 2
    assert counts[1] == 2
    assert counts[2] == 1
    assert int(counts.sum()) == 7
    where = np.flatnonzero(counts)[-2:]
    for k, us in zip(where.tolist(), (4000, 7999), strict=True):
        assert bounds[k] <= us < 2 * bounds[k]


@pytest.mark.parametrize("ns", [0, 999, 1000, 3000, 77_000, 1_234_567, 60_000_000_000, 10**16, (1 << 63) - 1])
def test_the_median_of_a_fine_histogram_is_near(ns):
    fine = histogram.fine_histogram(np.array([ns]))
    assert len(fine) == len(histogram.fine_histogram(np.empty(0, np.int64)))
    found = histogram.fine_median_ns(fine)
    assert abs(found - ns) <= (ns / 200 if ns >= 1000 else 999)


def test_the_median_lies_in_the_middle():
    spent = np.array([1, 2, 3, 500, 600]) * 1_000_000
    assert abs(histogram.fine_median_ns(histogram.fine_histogram(spent)) - 3_000_000) < 30_000


def test_a_reset_right_before_the_end_is_told_and_an_old_one_is_not():
    reset = rp.set_state(1, 1)  # payload of the size; the fields of tcp_send_reset are written over it
    import struct

    payload = struct.pack("<HBBiQQiI", 2280, 0, 0, 1, 0, 0xFFFF888000001000, 1, 14).ljust(88, b"\0")
    assert len(payload) > len(reset)
    follower = Follower()
    follower.feed(*events((1000, rp.set_state(7, 2)), (1500, payload), (1501, rp.set_state(2, 7))), 2000)
    rows = follower.take(2000)
    assert rows.reset[rows.newstate == 7].tolist() == [tr.SEND_RESET]
    late = 10**9
    follower.feed(
        *events((late, rp.set_state(7, 2)), (late + 1, payload), (3 * late, rp.set_state(2, 7))), 4 * late
    )
    rows = follower.take(4 * late)
    assert not rows.present("reset").any()

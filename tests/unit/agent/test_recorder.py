"""What the flight recorder makes of records: rows, which connection they are of, how it ended, when it must stop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finwait.agent.recorder import (
    FILTERS,
    PACKET,
    ROW,
    STATE_EVENT,
    Found,
    Governor,
    Ring,
    StoryQuery,
    by_task,
    decode,
    packet_rows,
    verdict,
)
from finwait.agent.stories import steps_of
from finwait.errors import DecodeError
from finwait.table import transitions as tr
from finwait.uapi import segment, tcp, tracepoint
from tests import ring_pages as rp

S = 1_000_000_000
LAYOUT = tracepoint.PageLayout()
RECEIVED = rp.DESTROY.replace(b"tcp_destroy_sock\nID: 2278", b"tcp_receive_reset\nID: 2279")
FORMATS = {form.id: form for form in map(tracepoint.parse_format, (rp.SET_STATE, RECEIVED, rp.RESET))}
WORDS = (0, 0xFFFF << 32 | 0x0A000001, 0, 0xFFFF << 32 | 0x0A000002, 1000, 80)


def received(cookie: int, **more: Any) -> bytes:
    return rp.destroyed(cookie, **more).replace(b"\xe6\x08", b"\xe7\x08", 1)  # 2278 → 2279


def decoded(*records: tuple[bytes, int], start: int = 10 * S) -> tuple[Any, Any]:
    page = rp.PageWriter(LAYOUT, start)
    for payload, delta in records:
        page.data(payload, delta)
    data = np.frombuffer(page.page(), np.uint8)
    walked = tracepoint.walk(data, np.array([0]), np.array([len(data)]), LAYOUT)
    return decode(walked, FORMATS, byteorder="little")


def filled(*records: tuple[bytes, int]) -> Ring:
    """A ring that got each record in a batch of its own."""
    ring = Ring()
    now = 10 * S
    for payload, delta in records:
        now += delta
        rows, resets = decoded((payload, 0), start=now)
        ring.append(ring.sift(rows, resets, now))
    return ring


def query(state: int, **more: Any) -> StoryQuery:
    values = {"netns": 1, "earliest_ns": -1, "latest_ns": 1 << 62, "seen_ns": 0} | more
    return StoryQuery(words=values.pop("words", WORDS), state=state, **values)


def found(ring: Ring, state: int, **more: Any) -> Found:
    (result,) = ring.find([query(state, **more)])
    return result


def test_a_record_becomes_a_row() -> None:
    rows, resets = decoded((rp.set_state(1, 4, pid=77), 5))
    assert not len(resets)
    (row,) = rows
    assert (*row["src"].tolist(), *row["dst"].tolist(), int(row["sport"]), int(row["dport"])) == WORDS
    assert (int(row["time"]), int(row["old"]), int(row["new"]), int(row["pid"])) == (10 * S + 5, 1, 4, 77)
    assert row["by_task"]
    (interrupted,), _ = decoded((rp.set_state(1, 8, flags=0x10), 5))
    assert not interrupted["by_task"]


def test_what_closes_at_once_is_not_kept_but_for_what_may_leave_a_minisocket() -> None:
    ring = Ring()
    passive = [(rp.set_state(a, b, sk=8), 1) for a, b in ((1, 8), (8, 9), (9, 7))]
    active = [(rp.set_state(a, b, sk=16, sport=2000), 1) for a, b in ((1, 4), (4, 5), (5, 7))]
    kept = ring.sift(*decoded(*passive, *active), 1 << 62)
    assert set(kept["sport"].tolist()) == {2000}
    assert ring.passed == 1


def test_the_reset_that_ends_a_connection_is_with_its_end() -> None:
    ring = filled((rp.set_state(1, 4), 0), (rp.set_state(4, 5), 1))
    rows, resets = decoded((received(99), 0), (rp.set_state(5, 7), 10), start=20 * S)
    assert resets["cookie"].tolist() == [99]
    ring.append(ring.sift(rows, resets, 1 << 62))
    end = found(ring, tcp.FIN_WAIT2).rows[-1]
    assert (int(end["reset"]), int(end["cookie"])) == (tr.RECEIVE_RESET, 99)
    # One long before ended nothing.
    ring = filled((rp.set_state(1, 4), 0), (rp.set_state(4, 5), 1))
    ring.append(ring.sift(*decoded((received(99), 0), (rp.set_state(5, 7), S), start=20 * S), 1 << 62))
    assert not found(ring, tcp.FIN_WAIT2).rows[-1]["reset"]


def test_a_reset_may_come_after_the_end_and_in_the_next_drain() -> None:
    ring = filled((rp.set_state(1, 8), 0))
    rows, resets = decoded((rp.set_state(8, 7), 0), start=20 * S)
    assert not len(ring.sift(rows, resets, 20 * S - 1)), "it waits for what may still come"
    rows, resets = decoded((received(5), 1000), start=20 * S)
    ring.append(ring.sift(rows, resets, 1 << 62))
    assert found(ring, tcp.CLOSE_WAIT).rows[-1]["reset"] == tr.RECEIVE_RESET


def test_the_entry_must_lie_where_the_episode_says() -> None:
    ring = filled((rp.set_state(1, 8), 0))
    assert found(ring, tcp.CLOSE_WAIT, latest_ns=12 * S).entered
    assert found(ring, tcp.CLOSE_WAIT, earliest_ns=9 * S, latest_ns=12 * S).entered
    assert not len(found(ring, tcp.CLOSE_WAIT, latest_ns=8 * S).rows), "it was in the state before that"
    assert not len(found(ring, tcp.CLOSE_WAIT, earliest_ns=12 * S, latest_ns=13 * S).rows), "it entered later"
    assert not len(found(ring, tcp.FIN_WAIT2).rows), "it is in another state"
    assert not len(found(ring, tcp.CLOSE_WAIT, words=(*WORDS[:5], 81)).rows)


def test_what_has_left_the_state_is_another_connection_than_one_that_was_seen_in_it_later() -> None:
    ring = filled((rp.set_state(1, 8), 0), (rp.set_state(8, 9), 2 * S))
    assert found(ring, tcp.CLOSE_WAIT, seen_ns=11 * S).entered
    assert not len(found(ring, tcp.CLOSE_WAIT, seen_ns=20 * S).rows)
    # FIN_WAIT2 goes on as a minisocket.
    ring = filled((rp.set_state(1, 4), 0), (rp.set_state(4, 5), 1), (rp.set_state(5, 7), 1))
    assert found(ring, tcp.FIN_WAIT2, seen_ns=40 * S).entered


def test_two_sockets_of_the_same_addresses_are_told_apart_by_time_or_not_at_all() -> None:
    ring = filled((rp.set_state(1, 8, sk=8), 0), (rp.set_state(1, 8, sk=16), 60 * S))
    assert found(ring, tcp.CLOSE_WAIT).ambiguous
    assert not len(found(ring, tcp.CLOSE_WAIT).rows)
    first = found(ring, tcp.CLOSE_WAIT, latest_ns=20 * S)
    assert first.rows["sk"].tolist() == [8]
    second = found(ring, tcp.CLOSE_WAIT, earliest_ns=50 * S)
    assert second.rows["sk"].tolist() == [16]


def test_an_address_of_a_socket_that_is_used_again_is_another_life() -> None:
    ring = filled(
        (rp.set_state(1, 4), 0), (rp.set_state(4, 5), S), (rp.set_state(5, 7), S),
        (rp.set_state(1, 4, sport=2000), S), (rp.set_state(4, 5, sport=2000), S),
    )  # fmt: skip
    assert len(found(ring, tcp.FIN_WAIT2).rows) == 3
    assert len(found(ring, tcp.FIN_WAIT2, words=(*WORDS[:4], 2000, 80)).rows) == 2
    # Where the end was lost, the state before tells.
    ring = filled((rp.set_state(1, 8), 0), (rp.set_state(1, 4), S))
    assert len(found(ring, tcp.CLOSE_WAIT).rows) == 1


@pytest.mark.parametrize(
    ("moves", "state", "how"),
    [
        ([(1, 8), (8, 9)], tcp.CLOSE_WAIT, "closed"),
        ([(1, 4), (4, 5)], tcp.FIN_WAIT1, "closed"),
        (
            [(1, 4), (4, 5), (5, 7)],
            tcp.FIN_WAIT2,
            "closed",
        ),  # a held one: only the peer's FIN, for no reset came
        ([(1, 4), (4, 5), (5, 5), (5, 7)], tcp.FIN_WAIT2, None),  # it was let go: a timer may have ended it
        ([(1, 8), (8, 7)], tcp.CLOSE_WAIT, None),  # a timer that gave up, or connect() to nowhere
        ([(1, 8), (8, 9), (9, 7)], tcp.LAST_ACK, None),  # the last ACK, or a timer
        ([(1, 4), (4, 7)], tcp.FIN_WAIT1, None),
        ([(1, 8)], tcp.CLOSE_WAIT, None),
    ],
)
def test_an_end_is_told_where_one_thing_alone_can_have_happened(
    moves: list[tuple[int, int]], state: int, how: str | None
) -> None:
    ring = filled(*[(rp.set_state(a, b, flags=0x10), S) for a, b in moves])
    rows = found(ring, state).rows
    assert verdict(rows, state, held=True, seen_ns=0, resets=True) == how
    if state == tcp.FIN_WAIT2:
        assert verdict(rows, state, held=False, seen_ns=0, resets=True) is None, (
            "an orphan's timer ends it as well"
        )
        assert verdict(rows, state, held=True, seen_ns=0, resets=False) is None, (
            "a reset may have been missed"
        )
        assert verdict(rows, state, held=True, seen_ns=90 * S, resets=True) is None, "a minisocket went on"


def test_a_task_is_named_only_where_it_made_the_change() -> None:
    rows, _ = decoded(
        (rp.set_state(1, 4, pid=5), 0),
        (rp.set_state(4, 5, pid=6), 1),  # a backlog is worked off in the task that holds the socket
        (rp.set_state(1, 8, pid=7, flags=0x10), 1),
        (rp.set_state(8, 9, pid=8, flags=0x10), 1),
    )
    assert by_task(rows).tolist() == [True, False, False, False]
    steps = steps_of(rows, {}, {})
    assert [step.pid for step in steps] == [5, 0, 0, 0]
    (end,) = decoded((rp.set_state(8, 7, pid=9), 0))[0][:1]
    rows = np.array([end], ROW)
    rows["reset"], rows["reason"] = tr.SEND_RESET, 11
    assert [step.pid for step in steps_of(rows, {}, {11: "TCP_ABORT_ON_CLOSE"})] == [9]
    assert [step.pid for step in steps_of(rows, {}, {11: "TCP_ABORT_ON_DATA"})] == [0], (
        "a packet made it do so"
    )


def test_a_header_of_a_packet_is_a_row_with_our_end_first_and_no_sequence_numbers() -> None:
    ours, theirs = (0, 0xFFFF << 32 | 1), (0, 0xFFFF << 32 | 2)
    sent = segment.Segment(5, ours, theirs, 1000, 80, 11, 12, segment.FIN | segment.ACK, 0, 0, True)
    came = segment.Segment(6, theirs, ours, 80, 1000, 13, 14, segment.RST, 0, 0, False)
    rows = packet_rows([(5, 9, sent), (6, 9, came)])
    assert rows["sport"].tolist() == [1000, 1000]
    assert rows["kind"].tolist() == [PACKET, PACKET]
    assert rows["cookie"].tolist() == [0, 0]
    assert [step.flags for step in steps_of(rows, {}, {})] == [segment.FIN | segment.ACK, segment.RST]
    ring = Ring()
    ring.append(rows)
    words = (*ours, *theirs, 1000, 80)
    assert len(found(ring, tcp.FIN_WAIT2, words=words, netns=9).rows) == 2
    assert not len(found(ring, tcp.FIN_WAIT2, words=words, netns=8).rows), "packets are of one namespace"


def test_the_kernel_is_asked_for_closing_states_alone() -> None:
    def passes(old: int, new: int) -> bool:
        text = FILTERS[STATE_EVENT].replace("&&", "and").replace("||", "or")
        return bool(eval(text, {"protocol": 6, "oldstate": old, "newstate": new}))

    closing = {s for s in tcp.STATES if tcp.CLOSING_STATES >> s & 1}
    for old in range(1, 13):
        for new in range(1, 13):
            wanted = new in closing | {tcp.TIME_WAIT} or (
                new == tcp.CLOSE and old in closing | {tcp.TIME_WAIT}
            )
            assert passes(old, new) == wanted, (old, new)


def test_a_format_without_a_needed_field_is_an_error() -> None:
    broken = tracepoint.parse_format(rp.SET_STATE.replace(b"skaddr", b"nobody"))
    page = rp.PageWriter(LAYOUT, 1)
    page.data(rp.set_state(1, 4), 0)
    data = np.frombuffer(page.page(), np.uint8)
    records = tracepoint.walk(data, np.array([0]), np.array([len(data)]), LAYOUT)
    with pytest.raises(DecodeError):
        decode(records, {broken.id: broken}, byteorder="little")


# ── too much ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_burst_passes_and_a_storm_does_not() -> None:
    governor = Governor(1000, 1.0)
    assert governor.drained(0.0, 0, 0.0)
    assert governor.drained(1.0, 4000, 0.0), "a deploy closes thousands at once"
    assert governor.drained(6.0, 100, 0.0)
    assert not governor.drained(7.0, 200_000, 0.0)
    assert governor.off == "rate"


def test_it_comes_back_after_two_calm_probes_and_waits_longer_after_each_that_is_not() -> None:
    governor = Governor(1000, 1.0)
    governor.drained(0.0, 0, 0.0)
    assert not governor.drained(1.0, 200_000, 0.0)
    assert governor.probe_in_s(1.0) == 10
    assert not governor.probed(11.0, 90, 0.1), "900 a second is below the limit, but not by half"
    assert governor.probe_in_s(11.0) == 20
    assert not governor.probed(31.0, 10, 0.1)
    assert governor.probe_in_s(31.0) == 10
    assert governor.probed(41.0, 10, 0.1)
    assert governor.off == ""
    assert governor.drained(42.0, 100, 0.0)


def test_what_costs_more_than_its_share_is_off_as_well() -> None:
    governor = Governor(1e6, 0.005)
    now = 0.0
    while governor.drained(now, 1000, 0.02) and now < 100:
        now += 2.0
    assert governor.off == "cost"
    assert 2 < now < 60
    assert not governor.probed(200.0, 100, 0.1), "1,000 a second would cost 2 %"
    assert not governor.probed(300.0, 1, 0.1)
    assert governor.probed(400.0, 1, 0.1)


def test_the_ring_is_bounded_whatever_comes() -> None:
    ring = Ring(most=1000)
    for k in range(50):
        rows = np.zeros(300, ROW)
        rows["time"] = np.arange(300) + k * 300
        rows["sk"], rows["new"], rows["old"] = np.arange(300) + k * 300, 8, 1
        ring.append(rows)
        assert len(ring) <= 1000
    assert ring.nbytes <= 1000 * ROW.itemsize
    assert ring.dropped == 50 * 300 - len(ring)
    assert ring._rows["time"][len(ring) - 1] == 50 * 300 - 1, "the newest is there"

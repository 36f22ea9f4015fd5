"""Which programs went on between two looks: what their kernel does for them shows no life."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from finwait.attribution.process import ProcessView
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.roles import clients, programs_at_door
from finwait.diagnosis.view import NamespaceView, View
from finwait.remedy.guards import Limits, guard_other_end, guard_rows
from finwait.uapi import tcp
from finwait.uapi.eventpoll import EPOLLIN, EPOLLOUT
from finwait.uapi.observation import LoopWatch, ProcessWaits, ThreadWait
from tests.unit.diagnosis.test_rules import CLOCKS, CW, INFO, ROOMY, E, queued, unread, without
from tests.unit.diagnosis.views import primary, socket, view

DOOR = ROOMY | {"rqueue": 0, "cookie": 1}
HUNG = ThreadWait(1, "app", "S", "futex", "other", steady=True)
SERVING = ThreadWait(2, "app", "S", "epoll_wait", "epoll", ((3, 0),), steady=True)
AT_DATABASE = ThreadWait(3, "app", "S", "recvfrom", "fd", ((8, 0),), steady=True)
SERVICE = {
    pid: ProcessView(pid, "app", exe="/bin/app", ppid=ppid, age_ms=90_000)
    for pid, ppid in ((9, 1), (10, 9), (11, 9))
}
USED = socket(state=E, inode=90, sport=80, dport=4999, cookie=900, **INFO)


def seen(rows: list[dict[str, Any]], before: list[dict[str, Any]], **how: Any) -> View:
    return view(*rows, earlier=before, watched_ms=4000, **how)


def told(v: View) -> list[tuple[str, int, str]]:
    found = engine.diagnose(v, catalogue.rules())
    return sorted(
        (f.severity, f.count, f.confidence.level)
        for f in found
        if f.rule == "established-unread" and f.primary
    )


@pytest.mark.parametrize(
    ("after", "sent", "wrote"),
    [
        ({"bytes_acked": 500, "wqueue": 500}, True, False),  # the kernel sends what it was given
        ({"bytes_acked": 500, "wqueue": 501}, True, True),
        ({"bytes_acked": 10, "wqueue": 991}, False, True),
        ({"bytes_acked": 10, "wqueue": 990}, False, False),
    ],
)
def test_what_a_program_wrote_is_not_what_its_kernel_sent(
    after: dict[str, int], sent: bool, wrote: bool
) -> None:
    v = seen([USED | after], [USED | {"bytes_acked": 10, "wqueue": 990}], holders={90: [9]})
    assert (v.sent[0], v.wrote[0]) == (sent, wrote)
    assert v.busy_pids == ({9} if wrote else set())


def test_a_fin_is_nothing_that_was_written() -> None:
    shut = USED | {"state": tcp.FIN_WAIT1, "wqueue": 1}
    v = seen([shut], [USED], holders={90: [9]})
    assert (v.sent[0], v.wrote[0]) == (False, False)


def test_without_counters_what_was_sent_may_have_been_written() -> None:
    old = {name: value for name, value in USED.items() if name != "bytes_acked"}
    v = seen([old | {"wqueue": 5}], [old | {"wqueue": 90}], holders={90: [9]})
    assert (v.sent[0], v.wrote[0]) == (True, True)


@pytest.mark.parametrize("drained", [False, True])
def test_a_send_queue_that_drains_hides_no_unread_request(drained: bool) -> None:
    more = {"bytes_acked": 500, "wqueue": 10} if drained else {}
    rows = [DOOR, *unread(4, bytes_acked=10, wqueue=500)]
    v = seen([DOOR, *(row | more for row in rows[1:])], rows, holders={50 + k: [9] for k in range(4)})
    assert told(v) == [("problem", 4, "likely")]


def test_of_the_workers_of_one_server_those_that_hang_are_a_problem() -> None:
    hung, late = unread(6), unread(7)[6:]
    rows = [DOOR, *hung, *late, USED]
    holders = {5: [9, 10, 11]} | {50 + k: [9 + k % 2] for k in range(6)} | {56: [11], 90: [11]}
    v = seen([*rows[:-1], USED | {"bytes_acked": 20}], rows, holders=holders, processes=SERVICE)
    assert v.busy_pids == {11}
    assert told(v) == [("notice", 1, "likely"), ("problem", 6, "likely")]
    idle = seen(rows, rows, holders=holders, processes=SERVICE)
    assert told(idle) == [("problem", 7, "likely")]


def accepting(new: list[dict[str, Any]], holders: dict[int, list[int]], **how: Any) -> View:
    """One listener that two processes share, whose queue of three was emptied between two looks."""
    door = DOOR | {"rqueue": 3}
    rows = [DOOR, *unread(4)]
    holders = {5: [9, 10]} | {50 + k: [9] for k in range(4)} | holders
    return seen([*rows, *new], [door, *rows[1:], *queued(3, first=300)], holders=holders, **how)


def test_of_those_that_share_a_listener_the_one_with_a_new_connection_accepted() -> None:
    fresh = USED | {"cookie": 901}
    assert accepting([fresh], {90: [10]}).busy_pids == {10}
    assert told(accepting([fresh], {90: [10]})) == [("problem", 4, "likely")]
    elsewhere = fresh | {"sport": 81}
    assert accepting([elsewhere], {90: [10]}).busy_pids == {10}, "it is at work, and 9 has unread requests"


def test_of_those_that_share_a_listener_one_that_sleeps_in_a_lock_accepted_nothing() -> None:
    waits = {9: ProcessWaits((HUNG,)), 10: ProcessWaits((SERVING,))}
    assert accepting([], {}, waits=waits).busy_pids == {10}
    both = {pid: ProcessWaits((HUNG,)) for pid in (9, 10)}
    assert accepting([], {}, waits=both).busy_pids == {10}, "one of them did, and 9 has unread requests"


@pytest.mark.parametrize("blocked", [{"timer": 4}, {"timer": 1, "retrans": 2}])
def test_a_program_is_blocked_in_sending_only_if_a_thread_may_be(blocked: dict[str, int]) -> None:
    rows = [DOOR, *unread(4), USED | {"wqueue": 9} | blocked]
    holders = {5: [9]} | {50 + k: [9] for k in range(4)} | {90: [9]}

    def busy(*threads: ThreadWait) -> frozenset[int]:
        waits = {9: ProcessWaits(threads)} if threads else None
        return seen(rows, rows, holders=holders, waits=waits).busy_pids

    def asleep(call: str, kind: str, fd: int, events: int = 0) -> ThreadWait:
        return ThreadWait(3, "app", "S", call, kind, ((fd, events),), steady=True)

    fd = 3  # of each socket here
    assert busy() == {9}
    assert busy(HUNG, asleep("sendto", "fd", fd)) == {9}
    assert busy(HUNG, asleep("poll", "set", fd, EPOLLOUT)) == {9}
    assert busy(SERVING) == {9}, "an event loop may have paused the others until there is room"
    assert busy(HUNG, ThreadWait(4, "app", "R")) == set(), "what runs is not blocked"
    assert busy(HUNG, ThreadWait(4, "app", "S", "sendto", "fd", ((fd, 0),))) == {9}, "it was not still"
    assert busy(HUNG) == set()
    assert busy(asleep("recvfrom", "fd", 8)) == set(), "it waits for a database"
    assert busy(asleep("accept4", "fd", 4), HUNG) == set()
    assert busy(asleep("sendto", "fd", 8)) == set(), "it waits for a log daemon"
    assert busy(asleep("poll", "set", fd, EPOLLIN)) == set()


@pytest.mark.parametrize("ran", [True, False])
def test_a_process_that_was_given_no_processor_accepted_nothing(ran: bool) -> None:
    door, rows = DOOR | {"rqueue": 3}, [DOOR, *unread(2), *unread(4)[2:]]
    holders = {5: [9, 10]} | {50 + k: [9 + k % 2] for k in range(4)}
    v = seen(rows, [door, *rows[1:], *queued(3, first=300)], holders=holders)
    assert replace(v, ran={9: ran}).busy_pids == ({9, 10} if ran else {10})
    read = seen(
        [DOOR, USED | {"bytes_received": 20}], [DOOR, USED | {"bytes_received": 10}], holders={90: [9, 10]}
    )
    assert replace(read, ran={9: ran}).busy_pids == ({9, 10} if ran else {10}), "a sibling read it"


def test_who_has_a_connection_that_was_not_there_is_at_work() -> None:
    rows = [DOOR, *unread(4)]
    holders = {5: [9]} | {50 + k: [9] for k in range(4)} | {90: [9]}
    v = seen([*rows, USED], rows, holders=holders)
    assert v.busy_pids == {9}
    assert told(v) == [("notice", 4, "likely")]
    assert view(*rows, USED, holders=holders).busy_pids == set(), "one look tells nothing"


@pytest.mark.parametrize(
    ("process", "threads", "halted"),
    [
        (ProcessView(9, "app", state="T", threads=3), (), True),
        (ProcessView(9, "app", state="t", threads=1), (), True),
        (ProcessView(9, "app", state="t", threads=2), (), False),  # the other thread may go on
        (ProcessView(9, "app", state="t", threads=2), ("t", "t"), True),
        (ProcessView(9, "app", state="t", threads=2), ("t", "S"), False),
        (ProcessView(9, "app", state="t", threads=3), ("t", "t"), False),
        (ProcessView(9, "app", state="S", threads=1), ("S",), False),
    ],
)
def test_a_program_is_stopped_if_all_its_threads_are(
    process: ProcessView, threads: tuple[str, ...], halted: bool
) -> None:
    waits = {9: ProcessWaits(tuple(ThreadWait(k, "app", state) for k, state in enumerate(threads)))}
    v = view(USED, holders={90: [9]}, processes={9: process}, waits=waits)
    assert v.halted.tolist() == [halted]
    shared = view(USED, holders={90: [9, 10]}, processes={9: process, 10: ProcessView(10, "app", state="S")})
    assert shared.halted.tolist() == [False]


@pytest.mark.parametrize("rqueue", [0, 1])
def test_a_stopped_program_does_not_close_while_its_kernel_drains_what_it_wrote(rqueue: int) -> None:
    shut = USED | {"state": CW, "shutdown": 1, "rqueue": rqueue, "wqueue": 90}
    rule = f"close-wait-eof-{'unread' if rqueue else 'read'}"
    for state, expected in (("T", rule), ("S", "closing-in-progress")):
        processes = {9: ProcessView(9, "app", state=state, threads=1)}
        v = seen([shut | {"bytes_acked": 50, "wqueue": 50}], [shut], holders={90: [9]}, processes=processes)
        assert primary(v) == [expected]
    v = seen(
        [shut | {"wqueue": 95}], [shut], holders={90: [9]}, processes={9: ProcessView(9, "app", state="T")}
    )
    assert primary(v) == [rule], "it was stopped after it wrote"


RANGE = {1: NamespaceView(1, sysctls={"ipv4/ip_local_port_range": "32768\t60999"}, dumped=True)}


@pytest.mark.parametrize(
    ("sport", "dport", "server"),
    [
        (80, 40_000, True),
        (40_000, 80, False),
        (40_000, 40_001, False),
        (80, 81, False),
        *((32_767, dport, True) for dport in (32_768, 60_999)),
        *((61_000, dport, True) for dport in (32_768, 60_999)),
        *((80, dport, False) for dport in (32_767, 61_000)),
        *((sport, 50_000, False) for sport in (32_768, 60_999)),
    ],
)
def test_a_server_whose_listener_is_gone_is_known_by_the_ports(sport: int, dport: int, server: bool) -> None:
    one = USED | {"sport": sport, "dport": dport}
    assert view(one, namespaces=RANGE).servers.tolist() == [server]
    turned = one | {"sport": dport, "dport": sport}
    assert clients(view(turned, namespaces=RANGE)).tolist() == [server], "the same seen from the other end"
    assert view(one).servers.tolist() == [False], "the range is not known"
    door = DOOR | {"sport": sport}
    assert view(one, door, namespaces=RANGE).servers[0]


def test_a_request_that_may_be_read_is_not_reset() -> None:
    allowed = Limits(established_named=True)

    def guard(letter: str, limits: Limits = allowed, **cells: Any) -> str | None:
        row = unread(1)[0] | cells
        processes = {9: ProcessView(9, "app", state=letter, threads=1)}
        v = seen([DOOR, row], [DOOR, row], holders={5: [9], 50: [9]}, processes=processes)
        verdict = guard_rows(v, 1, limits)
        return None if verdict is None else verdict.guard

    assert guard("S") == "unread"
    assert guard("T") is None
    assert guard("S", Limits(established_named=True, override=frozenset({"unread"}))) is None
    assert guard("S", rqueue=0) is None
    assert guard("S", sport=81) is None, "its program is the client"
    assert guard("S", state=tcp.CLOSE_WAIT) is None

    door = {5: [8], 50: [9]}
    programs = {
        8: ProcessView(8, "app", exe="/bin/app"),
        9: ProcessView(9, "sleep", state="S", exe="/bin/sleep"),
    }
    row = unread(1)[0]
    v = seen([DOOR, row], [DOOR, row], holders=door, processes=programs)
    verdict = guard_rows(v, 1, allowed)
    assert verdict is not None, "it may have been handed over to who holds it, and be read"
    assert verdict.guard == "unread"


def relayed(
    *,
    slow: dict[str, int],
    after: dict[str, int],
    age_ms: int = 20_000,
    call: str = "sendto",
    clocks: dict[str, Any] | None = None,
) -> View:
    """A relay: its backend has closed with data unread, and its client takes little, or nothing."""
    client = USED | {"sport": 80, "wqueue": 900, "bytes_acked": 100} | slow
    backend = socket(state=CW, inode=91, sport=50_000, dport=81, shutdown=1, rqueue=500, cookie=901, **INFO)
    backend |= {"last_ack_recv_ms": age_ms, "last_data_recv_ms": age_ms, "last_data_sent_ms": age_ms}
    backend |= clocks or {}
    backend = {name: cell for name, cell in backend.items() if cell is not None}
    wait = ThreadWait(3, "relay", "S", call, "fd", ((3, 0),), steady=True)
    rows = [DOOR, client | after, backend]
    return seen(
        rows, [DOOR, client, backend], holders={5: [9], 90: [9], 91: [9]}, waits={9: ProcessWaits((wait,))}
    )


@pytest.mark.parametrize(
    ("scene", "severity"),
    [
        ({"slow": {}, "after": {"bytes_acked": 400, "wqueue": 600}}, "notice"),
        ({"slow": {"timer": 4}, "after": {}}, "notice"),
        (
            {
                "slow": {"state": tcp.FIN_WAIT1},
                "after": {"bytes_acked": 400, "wqueue": 600},
                "call": "recvfrom",
            },
            "notice",
        ),
        ({"slow": {"state": tcp.FIN_WAIT1}, "after": {}, "call": "recvfrom"}, "problem"),
        ({"slow": {}, "after": {}}, "problem"),  # nothing passes there
        ({"slow": {"timer": 4}, "after": {}, "call": "recvfrom"}, "problem"),  # it does not wait to send
        ({"slow": {"timer": 4}, "after": {}, "age_ms": 700_000}, "problem"),  # longer than idle
    ],
)
@pytest.mark.parametrize("rqueue", [0, 500])
def test_a_relay_with_a_slow_client_may_leave_its_other_leg_as_it_is(
    scene: dict[str, Any], severity: str, rqueue: int
) -> None:
    v = relayed(**scene)
    v.sockets.rqueue[2] = rqueue
    (about,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.primary and 2 in f.rows)
    assert (about.rule, about.severity) == (f"close-wait-eof-{'unread' if rqueue else 'read'}", severity)
    verdict = guard_rows(v, 2, Limits())
    assert (verdict.guard if verdict else "") == ("paused" if severity == "notice" else "")
    assert ("slow client" in about.confidence.reason) == (severity == "notice")


def test_a_connection_is_not_left_alone_for_its_own_sake() -> None:
    row = USED | {"state": CW, "shutdown": 1, "wqueue": 900, "timer": 4}
    wait = ThreadWait(3, "app", "S", "sendto", "fd", ((3, 0),), steady=True)
    v = seen([row], [row], holders={90: [9]}, waits={9: ProcessWaits((wait,))})
    assert v.perhaps_paused.tolist() == [False]


@pytest.mark.parametrize(
    ("clocks", "paused"),
    [
        # Each answered probe of keepalive (timer 2) sets the clock of the state back; the data's goes on.
        ({"timer": 2, "last_ack_recv_ms": 1500, "last_data_recv_ms": 20_000}, True),
        (
            {
                "timer": 2,
                "last_ack_recv_ms": 1500,
                "last_data_recv_ms": 700_000,
                "last_data_sent_ms": 700_000,
            },
            False,
        ),
        ({"last_ack_recv_ms": 1500, "last_data_recv_ms": 700_000, "last_data_sent_ms": 700_000}, True),
    ],
)
def test_keepalive_does_not_keep_a_forgotten_leg_young(clocks: dict[str, int], paused: bool) -> None:
    v = relayed(slow={"timer": 4}, after={}, clocks=clocks)
    assert v.perhaps_paused.tolist()[1:] == [False, paused]


def test_a_half_closed_leg_on_which_data_still_comes_is_young_however_old_the_half_close_is() -> None:
    """Its upper bound counts from the last byte that it sent itself."""
    client = USED | {"sport": 80, "wqueue": 900, "bytes_acked": 100, "timer": 4}
    backend = socket(state=tcp.FIN_WAIT2, inode=91, sport=50_000, dport=81, shutdown=2, cookie=901, **INFO)
    backend |= {"rqueue": 500, "timer": 2, "last_ack_recv_ms": 900, "last_data_sent_ms": 900_000}
    wait = ThreadWait(3, "relay", "S", "sendto", "fd", ((3, 0),), steady=True)
    for received, paused in ((8_000, True), (800_000, False)):
        rows = [DOOR, client, backend | {"last_data_recv_ms": received}]
        v = seen(rows, rows, holders={5: [9], 90: [9], 91: [9]}, waits={9: ProcessWaits((wait,))})
        assert bool(v.perhaps_paused[2]) == paused


def test_a_leg_of_which_no_clock_is_known_is_not_left_alone_for_ever() -> None:
    blank = {"last_ack_recv_ms": None, "last_data_recv_ms": None, "last_data_sent_ms": None}
    v = relayed(slow={"timer": 4}, after={}, clocks=blank)
    assert not v.perhaps_paused[2]


@pytest.mark.parametrize(("heard_ms", "paused"), [(40, True), (40_000, False)])
def test_in_one_look_a_client_that_has_just_taken_something_is_slow(heard_ms: int, paused: bool) -> None:
    """Its program waits for it: monitoring looks again before it calls the other leg stuck."""
    client = USED | {"sport": 80, "wqueue": 900, "last_ack_recv_ms": heard_ms}
    backend = socket(state=CW, inode=91, sport=50_000, dport=81, shutdown=1, cookie=901, **INFO)
    wait = ThreadWait(3, "relay", "S", "sendto", "fd", ((3, 0),), steady=True)
    v = view(DOOR, client, backend, holders={5: [9], 90: [9], 91: [9]}, waits={9: ProcessWaits((wait,))})
    (about,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.primary and 2 in f.rows)
    assert (about.rule, about.severity) == ("close-wait-eof-read", "notice" if paused else "problem")
    assert about.confidence.look_again == paused


def answered(*, timer: int = 4, call: str = "sendto", peer_reads: bool = True, rqueue: int = 0) -> View:
    """A server that answers a client that half-closed and reads slowly: its window is shut most of the time."""
    server = socket(state=CW, inode=90, sport=80, dport=5000, shutdown=1, cookie=5, **INFO)
    server |= {"wqueue": 90_000, "timer": timer, "snd_wnd": 0, "rqueue": rqueue}
    client = socket(state=tcp.FIN_WAIT2, inode=91, sport=5000, dport=80, shutdown=2, cookie=6, **INFO)
    client |= {"src": "192.0.2.1", "dst": "10.0.0.1", "rqueue": 60_000}
    wait = ThreadWait(3, "server", "S", call, "fd" if call == "sendto" else "other", ((3, 0),), steady=True)
    waits = {9: ProcessWaits((wait,)), 8: ProcessWaits((replace(wait, call="nanosleep", kind="other"),))}
    rows = [DOOR, server, client | ({"rqueue": 58_000} if peer_reads else {})]
    return seen(rows, [DOOR, server, client], holders={5: [9], 90: [9], 91: [8]}, waits=waits)


@pytest.mark.parametrize("rqueue", [0, 1])
@pytest.mark.parametrize(
    ("scene", "rule", "severity", "forgot"),
    [
        ({}, "closing-in-progress", "healthy", False),
        ({"peer_reads": False}, "zero-window", "problem", False),
        ({"peer_reads": False, "call": "futex"}, "zero-window", "problem", True),  # it does not wait for room
        ({"call": "futex"}, "close-wait-eof-{}", "notice", True),  # the kernel sends what it was given
    ],
)
def test_a_program_that_waits_for_room_to_answer_has_not_forgotten_to_close(
    scene: dict[str, Any], rule: str, severity: str, forgot: bool, rqueue: int
) -> None:
    v = answered(**scene, rqueue=rqueue)
    found = [f for f in engine.diagnose(v, catalogue.rules()) if 1 in f.rows]
    (about,) = (f for f in found if f.primary)
    assert (about.rule, about.severity) == (rule.format("unread" if rqueue else "read"), severity)
    assert any(f.rule.startswith("close-wait-eof") for f in found) == forgot


def test_what_a_slow_reader_still_takes_is_not_cut_off_however_short_the_age_that_was_asked_for() -> None:
    limits = Limits(min_age_ms=2_000, answer_ms=0)
    for pauses in (False, True):  # it may sleep for longer than two looks are apart
        verdict = guard_rows(answered(peer_reads=not pauses), 1, limits)
        assert verdict is not None
        assert verdict.guard == "slow-reader"
    stopped = replace(
        answered(peer_reads=False), processes={8: ProcessView(8, "client", state="T", threads=1)}
    )
    assert guard_rows(stopped, 1, limits) is None


def test_a_relay_that_does_not_read_its_half_closed_leg_may_have_a_slow_client() -> None:
    client = USED | {"sport": 80, "wqueue": 900, "bytes_acked": 100}
    backend = socket(state=tcp.FIN_WAIT2, inode=91, sport=50_000, dport=81, shutdown=2, cookie=901, **INFO)
    backend |= {"rqueue": 500, "last_ack_recv_ms": 20_000}
    wait = ThreadWait(3, "relay", "S", "sendto", "fd", ((3, 0),), steady=True)
    for after, severity, guard in (
        ({"bytes_acked": 400, "wqueue": 600}, "notice", "paused"),
        ({}, "problem", ""),
    ):
        v = seen(
            [DOOR, client | after, backend],
            [DOOR, client, backend],
            holders={5: [9], 90: [9], 91: [9]},
            waits={9: ProcessWaits((wait,))},
        )
        (about,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.primary and 2 in f.rows)
        assert (about.rule, about.severity) == ("fin-wait2-held", severity)
        assert ("slow client" in about.confidence.reason) == (severity == "notice")
        verdict = guard_rows(v, 2, Limits())
        assert (verdict.guard if verdict else "") == guard


@pytest.mark.parametrize("listens", [True, False])
@pytest.mark.parametrize(("call", "noticed"), [("nanosleep", True), ("recvfrom", False)])
def test_an_open_connection_that_only_a_stranger_holds_and_waits_for_in_no_way(
    call: str, noticed: bool, listens: bool
) -> None:
    """Its server answered after it had started the child: when bytes passed tells nothing of the child."""
    programs = SERVICE | {8: ProcessView(8, "sleep", exe="/bin/sleep", ppid=9, age_ms=60_000)}
    kind = "fd" if call == "recvfrom" else "other"
    wait = ThreadWait(8, "sleep", "S", call, kind, ((3, 0),) if kind == "fd" else (), steady=True)
    elsewhere = DOOR if listens else DOOR | {"sport": 81}

    def noticed_of(row: dict[str, Any], programs: dict[int, ProcessView], door: dict[str, Any]) -> list[Any]:
        v = view(
            door,
            row,
            holders={5: [9], 90: [8]},
            processes=programs,
            waits={8: ProcessWaits((wait,))},
            namespaces=RANGE,
        )
        found = [f for f in engine.diagnose(v, catalogue.rules()) if f.primary and 1 in f.rows]
        return [(f.rule, f.severity) for f in found if f.rule == "inherited-descriptor"]

    row = USED | {"dport": 45_000} | dict.fromkeys(CLOCKS, 20_000)
    assert noticed_of(row, programs, elsewhere) == [("inherited-descriptor", "notice")] * noticed
    forked = programs | {8: ProcessView(8, "worker", exe=programs[9].exe, ppid=9, age_ms=60_000)}
    assert noticed_of(row, forked, elsewhere) == []
    itself = elsewhere | {"inode": 90} if not listens else elsewhere  # its holder listens, elsewhere
    assert noticed_of(row, programs, itself) == [("inherited-descriptor", "notice")] * (noticed and listens)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_stray_child_outlives_its_server_however_old_the_new_one_is(restarted: bool) -> None:
    row = USED | dict.fromkeys(CLOCKS, 20_000)
    wait = ThreadWait(8, "sleep", "S", "nanosleep", "other", steady=True)
    door_age = 10_000 if restarted else 90_000
    programs = {
        8: ProcessView(8, "sleep", exe="/bin/sleep", ppid=1, age_ms=60_000),
        9: ProcessView(9, "app", exe="/bin/app", age_ms=door_age),
    }
    v = view(DOOR, row, holders={5: [9], 90: [8]}, processes=programs, waits={8: ProcessWaits((wait,))})
    assert v.strays.tolist() == [False, True]
    upgraded = programs | {8: ProcessView(8, "app", exe="/bin/app (deleted)", ppid=1, age_ms=60_000)}
    v = view(DOOR, row, holders={5: [9], 90: [8]}, processes=upgraded, waits={8: ProcessWaits((wait,))})
    assert v.strays.tolist() == [False, False]


@pytest.mark.parametrize(("quiet_ms", "guard"), [(20_000, "handed-over"), (700_000, "")])
def test_what_may_have_been_handed_over_is_not_cut(quiet_ms: int, guard: str) -> None:
    row = USED | dict.fromkeys(CLOCKS, quiet_ms)
    wait = ThreadWait(8, "job", "S", "nanosleep", "other", steady=True)
    programs = SERVICE | {8: ProcessView(8, "job", exe="/bin/job", ppid=9, age_ms=60_000)}
    v = view(DOOR, row, holders={5: [9], 90: [8]}, processes=programs, waits={8: ProcessWaits((wait,))})
    verdict = guard_rows(v, 1, Limits(established_named=True, min_age_ms=1000))
    assert (verdict.guard if verdict else "") == guard


@pytest.mark.parametrize(
    ("state", "waits", "before", "after", "confidence"),
    [
        ("T", None, 5, 9, "certain"),
        ("S", "nobody", 5, 9, "likely"),
        ("S", None, 5, 9, "possible"),  # nobody could be asked
        ("S", "thread", 5, 9, "possible"),  # it may wait for more of it (MSG_WAITALL)
        ("S", "loop", 5, 9, "likely"),  # an event loop would have been woken
        ("S", "nobody", 0, 4, ""),  # the first bytes of an answer
        ("S", "nobody", 5, 3, ""),  # it reads
        ("T", None, 5, 5, "certain"),
        ("S", "nobody", 5, 5, "likely"),
    ],
)
def test_an_answer_that_nobody_reads_is_not_streaming(
    state: str, waits: str | None, before: int, after: int, confidence: str
) -> None:
    row = USED | {"state": tcp.FIN_WAIT2, "shutdown": 2, "rqueue": after, "bytes_received": 100}
    earlier = row | {
        "rqueue": before,
        "bytes_received": 100 - max(after - before, 0 if after == before else 2),
    }
    call = ThreadWait(9, "app", "S", "recvfrom", "fd", ((3, 0),), steady=True) if waits == "thread" else HUNG
    loops = (LoopWatch(5, 1, ((3, EPOLLIN, -1),)),) if waits == "loop" else ()
    v = seen(
        [row | {"last_data_recv_ms": 300}],
        [earlier],
        holders={90: [9]},
        processes={9: ProcessView(9, "app", state=state)},
        waits={9: ProcessWaits((call,), loops)} if waits else {},
    )
    (about,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.primary)
    if not confidence:
        assert about.rule == "fin-wait2-streaming"
        return
    severity = "notice" if confidence == "possible" else "problem"
    assert (about.rule, about.severity, about.confidence.level) == ("fin-wait2-held", severity, confidence)
    if after > before:
        assert guard_rows(v, 0, Limits()) is not None
        assert about.turn.whose == "holder"
        assert "bytes arrived" in about.confidence.reason


@pytest.mark.parametrize(
    ("call", "rule"),
    [(AT_DATABASE, "inherited-descriptor"), (replace(AT_DATABASE, waits_for=((3, 0),)), "fin-wait2-held")],
)
def test_what_two_hold_and_one_awaits_is_the_peer_s_to_end(call: ThreadWait, rule: str) -> None:
    row = USED | {"state": tcp.FIN_WAIT2, "shutdown": 2} | dict.fromkeys(CLOCKS, 20_000)
    programs = {9: ProcessView(9, "app", age_ms=90_000), 10: ProcessView(10, "cat", ppid=9, age_ms=80_000)}
    v = view(
        row, holders={90: [9, 10]}, processes=programs, waits={9: ProcessWaits((call,)), 10: ProcessWaits(())}
    )
    (about,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.primary)
    assert about.rule == rule
    assert about.turn.whose == ("holder" if rule == "inherited-descriptor" else "peer")


@pytest.mark.parametrize(
    ("exe", "child_age", "rule", "of_the_server"),
    [
        ("/bin/sleep", 5_000, "inherited-descriptor", False),
        ("/bin/sleep", 60_000, "close-wait-eof-unread", False),  # what listened before, or a child of that
        ("/bin/app (deleted)", 60_000, "close-wait-eof-unread", True),
    ],
)
def test_whose_thread_has_not_read_the_end_of_file(
    exe: str, child_age: int, rule: str, of_the_server: bool
) -> None:
    row = USED | {"state": CW, "shutdown": 1, "rqueue": 1} | dict.fromkeys(CLOCKS, 20_000)
    wait = ThreadWait(8, "sleep", "S", "nanosleep", "other", steady=True)
    programs = {
        8: ProcessView(8, "sleep", exe=exe, ppid=1, age_ms=child_age),
        9: ProcessView(9, "app", exe="/bin/app", age_ms=10_000),
    }
    v = view(DOOR, row, holders={5: [9], 90: [8]}, processes=programs, waits={8: ProcessWaits((wait,))})
    (about,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.primary and 1 in f.rows)
    assert about.rule == rule
    assert ("this server" in about.title) == of_the_server


def test_a_listener_on_all_ipv4_addresses_accepts_no_ipv6() -> None:
    row = USED | {"family": 10, "src": "fd00::1", "dst": "fd00::2"} | dict.fromkeys(CLOCKS, 20_000)
    wait = ThreadWait(9, "app", "S", "nanosleep", "other", steady=True)
    v4 = DOOR | {"src": "0.0.0.0", "inode": 6, "cookie": 2}
    v6 = DOOR | {"family": 10, "src": "::", "v6only": 1}
    programs = SERVICE | {8: ProcessView(8, "other", exe="/bin/other", age_ms=90_000)}
    v = view(
        v6, v4, row, holders={5: [9], 6: [8], 90: [9]}, processes=programs, waits={9: ProcessWaits((wait,))}
    )
    assert programs_at_door(v, 2) == {"/bin/app"}
    assert not v.strays.any()


def test_one_end_of_what_was_handed_over_is_not_cut_at_the_other() -> None:
    near = USED | dict.fromkeys(CLOCKS, 20_000)
    far = near | {
        "sport": 4999,
        "dport": 80,
        "src": near["dst"],
        "dst": near["src"],
        "inode": 91,
        "cookie": 901,
    }
    wait = ThreadWait(8, "job", "S", "nanosleep", "other", steady=True)
    programs = SERVICE | {8: ProcessView(8, "job", exe="/bin/job", ppid=9, age_ms=60_000)}
    v = view(
        DOOR,
        near,
        far,
        holders={5: [9], 90: [8], 91: [10]},
        processes=programs,
        waits={8: ProcessWaits((wait,))},
    )
    v = replace(v, other=np.array([-1, 2, 1]))
    verdict = guard_other_end(v, 2, Limits(established_named=True))
    assert verdict is not None
    assert verdict.guard == "handed-over"


def test_an_event_loop_that_sleeps_beside_unread_bytes_may_wait_for_more() -> None:
    row = USED | {
        "state": tcp.FIN_WAIT2,
        "shutdown": 2,
        "rqueue": 9,
        "bytes_received": 100,
        "last_data_recv_ms": 300,
    }
    loops = (LoopWatch(5, 1, ((3, EPOLLIN, 90),)),)
    for call, severity in ((HUNG, "problem"), (replace(SERVING, waits_for=((5, 0),)), "notice")):
        v = seen(
            [row],
            [row | {"rqueue": 5, "bytes_received": 96}],
            holders={90: [9]},
            processes={9: ProcessView(9, "app", state="S")},
            waits={9: ProcessWaits((call,), loops)},
        )
        assert v.waits.rows("loop").all()
        (about,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.primary)
        assert (about.rule, about.severity) == ("fin-wait2-held", severity)


@pytest.mark.parametrize(
    ("process", "before", "after", "confidence"),
    [
        ("T", 500, 500, "certain"),
        ("T", 500, 900, "certain"),
        ("S", 500, 900, "likely"),
        ("S", 0, 400, ""),
        ("S", 900, 500, ""),
    ],
)
def test_mptcp_that_receives_what_nobody_reads_is_not_fine(
    process: str, before: int, after: int, confidence: str
) -> None:
    base = without(USED, "bytes_received", "bytes_acked") | {"protocol": 262, "state": tcp.FIN_WAIT2}
    row, earlier = (
        base | {"rqueue": queue, "mptcp_bytes_received": count}
        for queue, count in ((after, 100), (before, 96))
    )
    v = seen([row], [earlier], holders={90: [9]}, processes={9: ProcessView(9, "app", state=process)})
    found = [f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "mptcp-half-close"]
    assert [f.confidence.level for f in found] == [confidence] * bool(confidence)
    if confidence and after > before:
        assert [f.turn.whose for f in found] == ["holder"]
    soon = engine.diagnose(replace(v, watched_ms=500), catalogue.rules())
    assert all(f.confidence.look_again for f in soon if f.rule == "mptcp-half-close")


@pytest.mark.parametrize(("only", "program"), [(1, ""), (0, "/bin/other")])
def test_a_listener_for_ipv6_only_accepts_no_ipv4(only: int, program: str) -> None:
    row = USED | dict.fromkeys(CLOCKS, 20_000)
    door = DOOR | {"family": 10, "src": "::", "v6only": only}
    programs = SERVICE | {8: ProcessView(8, "other", exe="/bin/other", age_ms=95_000)}
    v = view(door, row, holders={5: [8], 90: [9]}, processes=programs)
    assert programs_at_door(v, 1) == ({program} if program else frozenset())


def test_an_older_listener_on_another_address_has_not_accepted_it() -> None:
    row = USED | {"state": CW, "shutdown": 1, "src": "127.0.0.1"} | dict.fromkeys(CLOCKS, 20_000)
    own = DOOR | {"src": "127.0.0.1", "inode": 5, "cookie": 1}
    elsewhere = DOOR | {"src": "127.0.0.2", "inode": 6, "cookie": 2}
    programs = {
        7: ProcessView(7, "third", exe="/bin/third", age_ms=900_000),
        8: ProcessView(8, "next", exe="/bin/next", age_ms=10_000),
        9: ProcessView(9, "app", exe="/bin/app", age_ms=60_000),
    }
    wait = ThreadWait(9, "app", "S", "nanosleep", "other", steady=True)
    v = view(
        own,
        elsewhere,
        row,
        holders={5: [8], 6: [7], 90: [9]},
        processes=programs,
        waits={9: ProcessWaits((wait,))},
    )
    (about,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.primary and 2 in f.rows)
    assert about.rule == "close-wait-eof-read"


def test_a_server_that_writes_into_a_shut_window_has_not_forgotten_to_close() -> None:
    shut = {"state": CW, "shutdown": 1, "timer": 4, "snd_wnd": 0, "wqueue": 900, "bytes_acked": 100}
    row = USED | shut | dict.fromkeys(CLOCKS, 500)
    for before, rule in ((800, "zero-window"), (900, "close-wait-eof-read")):
        wait = ThreadWait(9, "app", "S", "nanosleep", "other", steady=True)
        v = seen([row], [row | {"wqueue": before}], holders={90: [9]}, waits={9: ProcessWaits((wait,))})
        (about,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.primary)
        assert about.rule == rule


@pytest.mark.parametrize(("quiet_ms", "guard"), [(20_000, "handed-over"), (700_000, "")])
def test_what_may_be_on_its_way_to_a_program_is_not_cut(quiet_ms: int, guard: str) -> None:
    """Every process was looked into, and nobody has a descriptor of it: somebody may have sent it (SCM_RIGHTS)."""
    row = USED | dict.fromkeys(CLOCKS, quiet_ms)
    v = view(DOOR, row, holders={5: [9]}, processes=SERVICE)
    assert v.holder_missing.tolist() == [False, True]
    verdict = guard_rows(v, 1, Limits(established_named=True, min_age_ms=1000))
    assert (verdict.guard if verdict else "") == guard

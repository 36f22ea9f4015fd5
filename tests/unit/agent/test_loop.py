"""The loop over a machine of values: a day in seconds, and every fault."""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from finwait.agent.episodes import Episode
from finwait.agent.loop import Looker
from finwait.agent.store import Store, StoreError
from finwait.agent.tally import Tally
from finwait.agent.telling import status_lines
from finwait.errors import Gap
from finwait.uapi import tcp
from tests.agent_world import S, World


class Bench:
    """A world, and a looker that may be started anew."""

    def __init__(self, path: Path, *, share: float = 0.01, tick_s: float = 15.0) -> None:
        self.world = World()
        self.path = path
        self.share = share
        self.tick_s = tick_s
        self.start()

    def start(self, store: Callable[[], Store] | None = None) -> None:
        self.looker = Looker(
            self.world,
            store or (lambda: Store(self.path, clock=self.world.monotonic)),
            share=self.share,
            tick_s=self.tick_s,
        )

    def run(self, seconds: float, each: Callable[[], None] | None = None) -> None:
        """Let rounds happen for so long."""
        end = self.world.now_ns + int(seconds * S)
        while self.world.now_ns < end:
            rest = self.looker.round()
            if each is not None:
                each()
            self.world.pass_(min(rest, (end - self.world.now_ns) / S + 0.001))
        self.looker.round()

    @property
    def stuck(self) -> dict[tuple[str, str], int]:
        assert self.looker.picture is not None
        return {(g.rule, g.workload): g.count for g in self.looker.picture.groups}

    @property
    def gaps(self) -> list[str]:
        assert self.looker.status is not None
        return self.looker.status.gaps

    def history(self) -> list[tuple[int, str | None]]:
        with Store(self.path, read_only=True) as store:
            return sorted((e.cookie, e.how) for e in store.episodes())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "state" / "history.sqlite")


def test_a_new_leak_is_in_the_picture_within_half_a_minute(bench: Bench) -> None:
    bench.run(120)
    for _ in range(30):
        bench.world.add(tcp.FIN_WAIT2, pid=7)
        bench.run(1)
    assert bench.stuck["fin-wait2-held", "program7"] >= 10
    assert bench.looker.picture is not None
    assert bench.looker.picture.sockets["FIN_WAIT2"] >= 15


def test_what_closes_is_in_the_history_with_its_end_and_the_series_reports_zero_for_an_hour(
    bench: Bench,
) -> None:
    sock = bench.world.add(tcp.FIN_WAIT2, pid=7)
    bench.run(60)
    assert bench.stuck["fin-wait2-held", "program7"] == 1
    sock.state, sock.held = tcp.TIME_WAIT, False
    bench.run(60)
    assert bench.stuck["fin-wait2-held", "program7"] == 0
    assert bench.history() == [(sock.cookie, "closed")]
    bench.run(3700)
    assert ("fin-wait2-held", "program7") not in bench.stuck


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (lambda w, s: w.acted.add((1, s.cookie)), "cleared"),
        (lambda w, s: w.dead.add(s.pid), "owner-gone"),
        (lambda w, s: None, "vanished"),  # noqa: ARG005 - nothing tells
    ],
)
def test_how_it_ended_is_what_can_be_proved(bench: Bench, end: Callable[..., object], how: str) -> None:
    sock = bench.world.add(tcp.CLOSE_WAIT, pid=7)
    bench.run(60)
    del bench.world.socks[sock.cookie]
    end(bench.world, sock)
    bench.run(60)
    assert bench.history() == [(sock.cookie, how)]


def test_where_another_holder_lives_no_owner_is_gone(bench: Bench) -> None:
    sock = bench.world.add(tcp.CLOSE_WAIT, pid=7, others=(8, 9))
    both = bench.world.add(tcp.CLOSE_WAIT, pid=7, others=(8,))
    bench.run(60)
    del bench.world.socks[sock.cookie], bench.world.socks[both.cookie]
    bench.world.dead |= {7, 8}
    bench.run(60)
    assert bench.history() == [(sock.cookie, "vanished"), (both.cookie, "owner-gone")]


def test_after_a_restart_it_is_not_known_who_else_held_a_connection(bench: Bench) -> None:
    sock = bench.world.add(tcp.CLOSE_WAIT, pid=7, others=(8,))
    bench.run(60)
    bench.looker.end()
    bench.world.failing = True
    bench.start()
    bench.run(30)
    del bench.world.socks[sock.cookie]
    bench.world.dead.add(7)
    bench.run(60)
    assert bench.history() == [(sock.cookie, "vanished")]


@pytest.mark.parametrize("interval_s", [200.0, 400.0, 600.0])
def test_a_leak_is_told_whatever_the_interval(tmp_path: Path, interval_s: float) -> None:
    bench = Bench(tmp_path / "state" / "history.sqlite", tick_s=interval_s)
    begun, added = bench.world.now_ns, 0

    def leak() -> None:
        nonlocal added
        while begun + added * 12 * S <= bench.world.now_ns:
            bench.world.add(tcp.CLOSE_WAIT, pid=7, since_ns=begun + added * 12 * S)
            added += 1

    bench.run(5400, leak)
    assert bench.looker.picture is not None
    assert sum(g.rate for g in bench.looker.picture.groups) == pytest.approx(5 / 60, rel=0.2)


def test_both_ends_of_one_connection_count_once(bench: Bench) -> None:
    a, b = bench.world.add(tcp.FIN_WAIT2, pid=7), bench.world.add(tcp.CLOSE_WAIT, pid=8)
    a.other, b.other = b.cookie, a.cookie
    bench.run(60)
    assert sum(bench.stuck.values()) == 1
    assert len(bench.history()) == 2


def test_a_look_that_fails_is_a_gap_and_ends_nothing(bench: Bench) -> None:
    bench.world.add(tcp.CLOSE_WAIT, pid=7)
    bench.run(60)
    bench.world.unenterable.add(1)
    bench.world.failing = True
    bench.run(1200)
    assert bench.looker.picture is not None
    assert bench.stuck["close-wait-eof-read", "program7"] == 1
    assert bench.looker.picture.gaps["CAP_SYS_ADMIN"]
    assert bench.looker.picture.unseen_s > 1000
    assert [how for _, how in bench.history()] == [None]


def test_a_restart_at_any_round_keeps_every_age(bench: Bench) -> None:
    socks = [bench.world.add(tcp.FIN_WAIT2, pid=7) for _ in range(5)]
    for k in range(40):
        bench.run(20)
        if k % 3:
            bench.looker.end()  # otherwise it was killed
        else:
            bench.looker._store.close()  # type: ignore[union-attr]
        for sock in socks:
            sock.since_ns = bench.world.now_ns  # keepalive resets the kernel's clock
        bench.start()
    bench.run(20)
    assert bench.looker.picture is not None
    (group,) = [g for g in bench.looker.picture.groups if g.count]
    assert group.count == 5
    assert group.oldest_s >= 800
    assert len(bench.history()) == 5


def test_another_boot_ends_what_was_open(bench: Bench) -> None:
    bench.world.add(tcp.CLOSE_WAIT, pid=7)
    bench.run(60)
    bench.looker.end()
    bench.world.socks.clear()
    bench.world.boot_id, bench.world.now_ns = "boot-2", 20 * S
    bench.start()
    bench.run(30)
    assert [how for _, how in bench.history()] == ["unknown"]
    assert sum(bench.stuck.values()) == 0


def test_without_a_history_it_looks_on_and_takes_it_up_when_it_can(bench: Bench) -> None:
    broken = [True]

    def store() -> Store:
        if broken[0]:
            raise StoreError(errno.ENOSPC, "open the history")
        return Store(bench.path, clock=bench.world.monotonic)

    bench.start(store)
    sock = bench.world.add(tcp.CLOSE_WAIT, pid=7)
    bench.run(200)
    assert bench.looker.picture is not None
    assert bench.looker.picture.store_errors >= 3
    assert sum(bench.stuck.values()) == 1
    broken[0] = False
    bench.run(120)
    assert bench.history() == [(sock.cookie, None)]


def test_a_history_that_opens_but_cannot_be_read_is_read_later(bench: Bench) -> None:
    sock = bench.world.add(tcp.CLOSE_WAIT, pid=7)
    bench.run(60)
    bench.looker.end()
    first = bench.world.now_ns
    failures = [2]

    class Unread(Store):
        def open_episodes(self) -> list[Episode]:
            if failures[0]:
                failures[0] -= 1
                raise StoreError(errno.EIO, "read the history")
            return super().open_episodes()

    sock.since_ns = first
    bench.start(lambda: Unread(bench.path, clock=bench.world.monotonic))
    bench.run(300)
    assert bench.history() == [(sock.cookie, None)]
    assert bench.looker.picture is not None
    assert max(g.oldest_s for g in bench.looker.picture.groups) >= 350


def test_one_run_counts_what_only_two_sights_prove_to_be_old(bench: Bench) -> None:
    """Keepalive probes keep the clock of the last ACK young."""
    sock = bench.world.add(tcp.CLOSE_WAIT, pid=7, since_ns=bench.world.now_ns)
    for _ in range(200):
        sock.since_ns = bench.world.now_ns
        bench.world.pass_(min(bench.looker.round(), 1.0))
        if bench.looker.finished:
            break
    assert bench.looker.finished
    assert bench.stuck["close-wait-eof-read", "program7"] == 1


def test_one_run_waits_for_no_grace_where_nothing_is_young(bench: Bench) -> None:
    bench.world.add(tcp.CLOSE_WAIT, pid=7, since_ns=bench.world.now_ns - 3600 * S)
    begun = bench.world.now_ns
    while not bench.looker.finished:
        bench.world.pass_(min(bench.looker.round(), 1.0))
    assert bench.world.now_ns - begun < 10 * S


def test_one_run_ends_though_what_is_young_cannot_be_asked_for(bench: Bench) -> None:
    bench.world.add(tcp.CLOSE_WAIT, pid=7)
    bench.looker.round()
    bench.world.unenterable.add(1)
    for _ in range(200):
        bench.world.pass_(min(bench.looker.round(), 1.0))
        if bench.looker.finished:
            break
    assert bench.looker.finished


@pytest.mark.parametrize("unlisted", [False, True])
def test_what_was_in_a_namespace_that_is_gone_ends_as_unknown_at_its_last_sight(
    bench: Bench, unlisted: bool
) -> None:
    world = bench.world
    world.unlisted = unlisted
    sock = world.add(tcp.CLOSE_WAIT, netns=5, pid=7)
    bench.run(90)
    gone = world.now_ns
    world.spaces.discard(5)
    del world.socks[sock.cookie]
    bench.run(120)
    with Store(bench.path, read_only=True) as store:
        (episode,) = store.episodes()
    assert episode.how == "unknown"
    assert episode.ended is not None
    assert episode.ended.boot_ns <= gone
    assert bench.looker.picture is not None
    assert "nothing" not in bench.looker.picture.gaps
    diagnoses = world.diagnoses
    bench.run(120)
    assert world.diagnoses == diagnoses


def test_a_namespace_that_only_sockets_keep_is_searched_for_before_anything_ends(bench: Bench) -> None:
    world = bench.world
    sock = world.add(tcp.CLOSE_WAIT, netns=5, pid=7)
    bench.run(90)
    world.hidden.add(5)
    told = set[str]()
    bench.run(120, lambda: told.update(map(str, bench.gaps)))
    assert told == {"netns 5: could not ask for its connections: nothing that was found leads to it"}
    assert bench.history() == [(sock.cookie, None)]
    del world.socks[sock.cookie]
    bench.run(60)
    assert bench.history() == [(sock.cookie, "vanished")]


def test_namespaces_that_come_and_go_leave_nothing_behind(bench: Bench) -> None:
    rng = random.Random(3)
    for k in range(200):
        netns = 100 + k
        for _ in range(rng.randint(0, 3)):
            bench.world.add(tcp.CLOSE_WAIT, netns=netns, pid=k + 1)
        bench.run(20)
        if k >= 5:
            gone = 95 + k
            bench.world.spaces.discard(gone)
            bench.world.socks = {c: s for c, s in bench.world.socks.items() if s.netns != gone}
    bench.run(120)
    looker = bench.looker
    assert len(looker._turns) <= 10
    assert len(looker._counting.walked_states) <= 10
    assert len(looker._counting.listeners) <= 10
    there = {s.cookie for s in bench.world.socks.values()}
    assert {cookie for cookie, how in bench.history() if how is None} <= there


def test_many_namespaces_are_walked_within_the_share_and_none_is_forgotten(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "state" / "history.sqlite")
    bench.world.walk_cost_s = 0.007
    for netns in range(1, 217):
        bench.world.add(tcp.ESTABLISHED, netns=netns)
    bench.run(600)
    used = bench.world.cost_s
    bench.world.walks.clear()
    bench.run(1800)
    times: dict[int, list[float]] = {}
    for at, netns in bench.world.walks:
        times.setdefault(netns, []).append(at)
    assert len(times) == 216
    # A round takes 216 × 7 ms at 1 %: 151 s, and rounds begin with a tick.
    assert max(b - a for walked in times.values() for a, b in itertools.pairwise(walked)) <= 180
    assert (bench.world.cost_s - used) / 1800 <= 0.0105
    assert bench.looker.picture is not None
    assert bench.looker.picture.unseen_s <= 180


def test_a_listener_that_closes_as_a_connection_gets_stuck_hides_nothing(bench: Bench) -> None:
    """Sockets in use without the established ones are as many before as after."""
    listener, sock = bench.world.add(tcp.LISTEN), bench.world.add(tcp.ESTABLISHED, pid=7)
    bench.run(120)
    del bench.world.socks[listener.cookie]
    sock.state, sock.since_ns = tcp.FIN_WAIT2, bench.world.now_ns
    bench.run(60)
    assert bench.stuck["fin-wait2-held", "program7"] == 1


def test_a_listener_whose_place_a_whole_connection_takes_between_two_ticks_hides_nothing(
    bench: Bench,
) -> None:
    listener = bench.world.add(tcp.LISTEN)
    bench.run(120)
    del bench.world.socks[listener.cookie]
    bench.world.add(tcp.FIN_WAIT2, pid=7)
    bench.run(60)
    assert bench.stuck["fin-wait2-held", "program7"] == 1


def test_a_namespace_that_comes_back_under_the_same_inode_has_its_listeners_counted_anew(
    bench: Bench,
) -> None:
    listener = bench.world.add(tcp.LISTEN, netns=5)
    bench.run(120)
    del bench.world.socks[listener.cookie]
    bench.world.spaces.discard(5)
    bench.run(90)
    assert 5 not in bench.looker._counting.listeners
    bench.world.add(tcp.FIN_WAIT2, netns=5, pid=7)
    bench.run(90)
    assert bench.stuck["fin-wait2-held", "program7"] == 1


def test_states_of_a_namespace_that_is_empty_now_are_told_no_more(bench: Bench) -> None:
    sock = bench.world.add(tcp.FIN_WAIT2, pid=7)
    bench.run(60)
    assert bench.looker.picture is not None
    assert bench.looker.picture.sockets["FIN_WAIT2"] == 1
    del bench.world.socks[sock.cookie]
    bench.run(60)
    assert bench.looker.picture.sockets.get("FIN_WAIT2", 0) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)  # many rounds of arithmetic: a minute of a processor that is its own
def test_a_day_with_a_leak_a_step_and_a_restart(bench: Bench) -> None:
    """A leak of one a minute from hour 2 to hour 10, a deploy that leaves 100 behind, short FINs, a restart."""
    world = bench.world
    alarms: dict[int, set[str]] = {}
    reached: dict[int, float | None] = {}
    for minute in range(24 * 60):
        hour = minute // 60
        if 2 <= hour < 10:
            world.add(tcp.CLOSE_WAIT, pid=7)
        if minute == 300:
            for _ in range(100):
                world.add(tcp.CLOSE_WAIT, pid=8)
        short = world.add(tcp.FIN_WAIT2, pid=9)
        if minute == 400:
            bench.looker.end()
            bench.start()
        if minute == 450:
            world.wall_off_ns = -7200 * S
        bench.run(60)
        world.socks.pop(short.cookie, None)
        assert bench.looker.picture is not None
        for g in bench.looker.picture.groups:
            if g.rate:
                alarms.setdefault(hour, set()).add(g.workload)
        limits = {(m.limit, m.workload): m for m in bench.looker.picture.limits}
        if ("nofile", "program7") in limits:
            reached[minute] = limits["nofile", "program7"].reached_s
            assert (
                limits.get(("nofile", "program8")) is None or limits["nofile", "program8"].reached_s is None
            )
    assert bench.stuck["close-wait-eof-read", "program7"] == 8 * 60
    assert all("program7" in alarms[hour] for hour in range(3, 10))
    assert all("program8" not in workloads for workloads in alarms.values())
    assert not {1, *range(18, 24)} & alarms.keys(), "before it began, and once it is long over"
    expected = (10_000 - 180) * 60
    assert reached[299] == pytest.approx(expected, rel=0.1)
    assert reached[23 * 60] is None
    assert world.cost_s / 86400 <= 0.0105


def limits_of(bench: Bench, workload: str) -> list[tuple[int, float | None]]:
    assert bench.looker.picture is not None
    return [(m.used, m.reached_s) for m in bench.looker.picture.limits if m.workload == workload]


def test_a_leak_that_begins_after_fifty_quiet_holders_runs_into_its_limit_in_sight(bench: Bench) -> None:
    for pid in range(100, 160):
        for _ in range(2):
            bench.world.add(tcp.CLOSE_WAIT, pid=pid)
    bench.run(700)
    for _ in range(130):
        bench.world.add(tcp.CLOSE_WAIT, pid=7)
        bench.run(30)
    ((used, reached_s),) = limits_of(bench, "program7")
    assert used > 100
    assert reached_s == pytest.approx((10_000 - used) * 30, rel=0.1)
    assert bench.looker.picture is not None
    assert bench.looker.picture.series_dropped == 11


def test_holders_that_are_dead_take_no_place_of_one_that_leaks(bench: Bench) -> None:
    for pid in range(100, 180):
        for _ in range(5):
            bench.world.add(tcp.CLOSE_WAIT, pid=pid)
    bench.run(400)
    bench.world.dead |= set(range(100, 180))
    bench.world.add(tcp.CLOSE_WAIT, pid=7)
    bench.run(400)
    assert limits_of(bench, "program7") == [(1, None)]


def test_a_fault_in_what_is_only_added_up_is_a_gap_and_ends_no_looking(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[Exception] = []
    bench.looker = Looker(bench.world, lambda: Store(bench.path), tick_s=15.0, fault=faults.append)
    sock = bench.world.add(tcp.CLOSE_WAIT, pid=7)
    bench.run(60)
    with monkeypatch.context() as broken:
        broken.setattr(Tally, "mark", lambda *_: 1 / 0)
        bench.run(700)
    assert [type(error) for error in faults][:1] == [ZeroDivisionError]
    assert bench.stuck["close-wait-eof-read", "program7"] == 1
    assert bench.gaps == [
        "the agent: could not add up what piles up and how full limits are, for a fault of its own"
    ]
    del bench.world.socks[sock.cookie]
    bench.run(400)
    assert bench.history() == [(sock.cookie, "vanished")]
    assert bench.gaps == []


def test_a_fault_in_what_is_added_up_is_not_hidden_from_the_tests(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tally, "mark", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench.run(60)


def test_more_gaps_than_are_told_one_by_one_are_counted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    gaps = [Gap.of_namespace(k, "enter it", f"right {k}") for k in range(70)]
    monkeypatch.setattr(bench.world, "namespaces", lambda: ([], gaps))
    bench.run(60)
    assert bench.looker.picture is not None
    assert sum(bench.looker.picture.gaps.values()) == 70
    assert len(bench.gaps) == 51
    assert bench.gaps[-1] == "20 other parts of the machine: could not be looked at"


def test_what_was_wrong_with_the_history_is_not_told_once_it_is_written_again(bench: Bench) -> None:
    fails = [StoreError(errno.ENOSPC, "open the history `h`", reason="database or disk is full")]

    def opening() -> Store:
        if fails:
            raise fails[0]
        return Store(bench.path, clock=bench.world.monotonic)

    def told() -> str:
        assert bench.looker.status is not None
        return bench.looker.status.store_said

    bench.start(opening)
    bench.run(30)
    assert told() == "it cannot be written: could not open the history `h`: database or disk is full"
    fails.clear()
    bench.run(130)
    assert told() == ""


def test_a_database_of_another_program_ends_an_agent_that_starts_and_none_that_looks(bench: Bench) -> None:
    def foreign() -> Store:
        raise StoreError(errno.EINVAL, "use `h` as the history", reason="it is a database of another program")

    bench.start(foreign)
    with pytest.raises(StoreError):
        bench.looker.round()
    bench.start(lambda: (_ for _ in ()).throw(OSError(errno.EIO, "no")))
    bench.run(30)
    bench.looker._open_store = foreign
    bench.run(130)
    assert bench.looker.status is not None
    assert "another program" in bench.looker.status.store_said


def test_what_lasts_is_in_the_new_file_after_the_old_one_was_damaged(bench: Bench) -> None:
    socks = [bench.world.add(tcp.CLOSE_WAIT, pid=7) for _ in range(5)]
    bench.run(120)
    with bench.path.open("r+b") as file:
        file.write(os.urandom(bench.path.stat().st_size))
    Path(f"{bench.path}-wal").unlink()
    bench.run(150)
    assert bench.history() == [(s.cookie, None) for s in socks]
    assert bench.looker.status is not None
    assert "was damaged while it was open" in bench.looker.status.store_said
    assert bench.looker.status.store_errors == 1
    assert bench.looker.picture is not None
    assert list(bench.path.parent.glob("*.corrupt-*"))


def test_what_is_said_in_several_lines_is_told_in_one(bench: Bench) -> None:
    bench.run(60)
    assert bench.looker.status is not None
    before = list(status_lines(bench.looker.status))
    odd = replace(
        bench.looker.status, store_said="*** in database main ***\nPage 17: x", gaps=["a\nb\x1b[2J"]
    )
    lines = list(status_lines(odd))
    assert len(lines) == len(before) + 2
    assert all(line.endswith("\n") and line[:-1].isprintable() for line in lines)


def test_how_long_it_runs_does_not_follow_a_wall_clock_that_is_set(bench: Bench) -> None:
    bench.run(60)
    bench.world.wall_off_ns -= 86_400 * S
    bench.run(60)
    assert bench.looker.status is not None
    assert 120 <= bench.looker.status.up_s < 125
    assert next(status_lines(bench.looker.status)).endswith(", up 2.0 min\n")


# ── a diagnosis takes its time, and may fail ─────────────────────────────────────────────────────────────


def stuck_now(bench: Bench) -> dict[tuple[str, str], int]:
    """Return what is stuck; what has ended reports 0 for an hour."""
    return {key: n for key, n in bench.stuck.items() if n}


def test_rounds_go_on_while_a_diagnosis_is_made(bench: Bench) -> None:
    bench.run(60)
    bench.world.diagnosis_s = 300
    bench.world.add(tcp.FIN_WAIT2, pid=7)
    bench.run(60)
    assert stuck_now(bench) == {("undiagnosed", ""): 1}
    for _ in range(10):
        bench.world.add(tcp.FIN_WAIT2, pid=8)
    bench.run(60)
    assert stuck_now(bench) == {("undiagnosed", ""): 11}, "new ones are seen meanwhile"
    bench.run(300)
    assert stuck_now(bench) == {("fin-wait2-held", "program7"): 1, ("fin-wait2-held", "program8"): 10}


def test_a_diagnosis_that_fails_is_a_gap_and_is_tried_again_later_each_time(bench: Bench) -> None:
    bench.world.failing = True
    bench.world.add(tcp.FIN_WAIT2, pid=7)
    seen: list[float] = []

    def each() -> None:
        if bench.world.diagnoses > len(seen):
            seen.append(bench.world.now_ns / S)

    bench.run(4000, each)
    pauses = [b - a for a, b in itertools.pairwise(seen)]
    assert [gap for gap in bench.gaps if "diagnose" in gap]
    assert all(b >= a for a, b in itertools.pairwise(pauses[:5])), pauses
    assert 25 <= pauses[0] <= 60
    assert all(pause <= 700 for pause in pauses), pauses
    bench.world.failing = False
    bench.run(700)
    assert stuck_now(bench) == {("fin-wait2-held", "program7"): 1}
    assert not bench.gaps


def test_a_diagnosis_that_cannot_be_started_is_a_gap_and_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = bench.world.start_diagnosis

    def refused(*_: object) -> Any:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(bench.world, "start_diagnosis", refused)
    bench.world.add(tcp.FIN_WAIT2, pid=7)
    bench.run(60)
    assert [gap for gap in bench.gaps if "start the process" in gap]
    monkeypatch.setattr(bench.world, "start_diagnosis", start)
    bench.run(120)
    assert stuck_now(bench) == {("fin-wait2-held", "program7"): 1}


def test_who_ends_the_looker_ends_the_diagnosis(bench: Bench) -> None:
    bench.world.diagnosis_s = 3600
    bench.world.add(tcp.FIN_WAIT2, pid=7)
    bench.run(60)
    begun = bench.looker._diagnosing
    assert begun is not None
    bench.looker.end()
    assert begun.ended  # type: ignore[attr-defined]


def test_a_dear_diagnosis_is_paid_off_and_walks_go_on(bench: Bench) -> None:
    """Sixteen seconds of a processor at 1 %: for nearly an hour half of the share is left for walks."""
    bench.world.diagnosis_cost_s = 16.0
    bench.world.walk_cost_s = 0.03
    bench.world.add(tcp.FIN_WAIT2, pid=7)
    bench.run(120)
    before = len(bench.world.walks)
    bench.run(600)
    assert len(bench.world.walks) - before >= 20


# ── accept queues, whatever is closing ───────────────────────────────────────────────────────────────────


def queues(bench: Bench) -> list[tuple[str, int, int]]:
    assert bench.looker.picture is not None
    limits = (limit for limit in bench.looker.picture.limits if limit.limit == "accept-queue")
    return [(limit.workload, limit.used, limit.most) for limit in limits]


def test_a_dead_accept_queue_is_told_though_nothing_is_closing(bench: Bench) -> None:
    door = bench.world.add(tcp.LISTEN, pid=7)
    bench.run(60)
    assert queues(bench) == []
    door.waiting = 129
    for _ in range(129):
        bench.world.add(tcp.ESTABLISHED, held=True)
    bench.run(60)
    assert not bench.stuck
    assert queues(bench) == [("program7", 129, 129)], "a diagnosis was made to say whose it is"
    door.waiting = 3
    bench.run(150)
    assert queues(bench) == [("program7", 3, 129)]
    door.waiting = 0
    bench.run(150)
    assert queues(bench) == []


def test_a_queue_that_nobody_can_list_any_more_is_told_no_more(bench: Bench) -> None:
    door = bench.world.add(tcp.LISTEN, pid=7, netns=5)
    door.waiting = 129
    bench.world.add(tcp.ESTABLISHED, netns=5)
    bench.run(60)
    assert [used for _, used, _ in queues(bench)] == [129]
    bench.world.unenterable.add(5)
    bench.run(60)
    assert queues(bench) == []


# ── what costs nothing ───────────────────────────────────────────────────────────────────────────────────


def test_where_no_segment_came_or_went_nothing_is_walked_and_nothing_is_unseen(bench: Bench) -> None:
    for netns in range(1, 41):
        bench.world.add(tcp.ESTABLISHED, netns=netns)
        bench.world.segments[netns] = 100
    bench.run(200)
    before = len(bench.world.walks)
    bench.run(350)
    assert len(bench.world.walks) == before
    assert bench.looker.picture is not None
    assert bench.looker.picture.unseen_s <= 30
    bench.world.add(tcp.CLOSE_WAIT, netns=7, pid=7)
    bench.world.segments[7] += 2
    bench.run(60)
    assert stuck_now(bench) == {("close-wait-eof-read", "program7"): 1}
    bench.run(600)
    assert {netns for at, netns in bench.world.walks[before:]} == set(range(1, 41)), "once in ten minutes"


def test_what_counters_do_not_prove_is_walked_though_no_segment_came(bench: Bench) -> None:
    bench.world.segments[1] = 100
    for _ in range(5):
        bench.world.add(tcp.ESTABLISHED)
    bench.run(120)
    bench.world.add(tcp.FIN_WAIT1, pid=7)  # a FIN that waits behind a closed window: no segment went
    bench.run(60)
    assert sum(bench.stuck.values()) == 1


def test_of_many_namespaces_half_are_read_at_a_tick_and_a_new_leak_is_told_within_half_a_minute(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path / "state" / "history.sqlite")
    bench.world.counters_cost_s = 0.0001
    for netns in range(1, 201):
        bench.world.add(tcp.ESTABLISHED, netns=netns)
        bench.world.segments[netns] = 1
    bench.run(300)
    read: list[int] = []
    counters = bench.world.counters

    def counted(namespaces: Sequence[Any], *args: Any, **more: Any) -> Any:
        read.append(len(namespaces))
        return counters(namespaces, *args, **more)

    bench.world.counters = counted  # type: ignore[method-assign]
    bench.run(120)
    ticks = [n for n in read if n != 200]  # all of them at the end of a window
    assert set(ticks) == {100}, read
    at = None
    for second in range(45):
        bench.world.add(tcp.FIN_WAIT2, netns=150, pid=7)
        bench.world.segments[150] += 3
        bench.run(1)
        if bench.stuck and at is None:
            at = second
    assert at is not None
    assert at <= 31

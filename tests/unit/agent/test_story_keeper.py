"""Stories are kept with episodes, across restarts, and only what the records prove is told of an end."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait.agent.episodes import Instant
from finwait.agent.loop import Looker
from finwait.agent.protocol import RecorderStatus, StoryOf
from finwait.agent.recorder import ROW, Found, Ring, StoryQuery
from finwait.agent.store import Store, StoreError
from finwait.agent.stories import RecordedStep, cell_of, merged, step_items, steps_of, story_lines, told_steps
from finwait.agent.story_keeper import StoryKeeper
from finwait.errors import Gap
from finwait.table import transitions as tr
from finwait.uapi import tcp
from tests.agent_world import MAPPED, S, Sock, World
from tests.unit.agent.test_loop import Bench

STATUS = RecorderStatus(
    state="on", said="", rate=0, rate_most=8000, events=0, kept=0, kept_bytes=0, passed=0, lost=0, dropped=0, offs=0,
    stories=0, ambiguous=0, cpu_s=0, packets=[],
)  # fmt: skip


class Source:
    """Records what a test lets happen in a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ring = Ring()
        self.resets = True
        self.gaps: tuple[Gap, ...] = ()

    def happen(self, sock: Sock, *moves: tuple[int, int], by: int = 0, reset: int = 0) -> None:
        rows = np.zeros(len(moves), ROW)
        for k, (row, (old, new)) in enumerate(zip(rows, moves, strict=True)):
            row["time"], row["asleep"] = self.world.now_ns - self.world.slept_ns + k, self.world.slept_ns
            row["sk"], row["kind"], row["old"], row["new"] = sock.cookie << 8, tr.TRANSITION, old, new
            row["src"], row["dst"] = (0, MAPPED | 0x0A000001), (0, MAPPED | 0x0A000002)
            row["sport"], row["dport"], row["pid"], row["by_task"] = sock.sport, sock.dport, by, bool(by)
            row["reset"] = reset if new == tcp.CLOSE else 0
        self.ring.append(rows)

    def catch_up(self) -> None:
        pass

    def known(self, ports: NDArray[np.uint32]) -> NDArray[np.bool_]:
        return self.ring.known(ports)

    def find(self, queries: Sequence[StoryQuery]) -> list[Found]:
        return self.ring.find(queries)

    def steps(self, story: Found) -> tuple[RecordedStep, ...]:
        return steps_of(story.rows, {}, {})

    def status(self, stories: int, ambiguous: int) -> RecorderStatus:
        return RecorderStatus(**{n: getattr(STATUS, n) for n in STATUS.__struct_fields__} | {
            "stories": stories, "ambiguous": ambiguous,
        })  # fmt: skip


class Recording(Bench):
    """A world whose looker has a recorder."""

    def start(self, store: Any = None) -> None:
        self.source = Source(self.world)
        self.looker = Looker(
            self.world,
            store or (lambda: Store(self.path, clock=self.world.monotonic)),
            share=self.share,
            tick_s=self.tick_s,
            stories=StoryKeeper(self.source),
        )

    def stories(self) -> dict[int, tuple[str | None, list[tuple[int, int]], list[int]]]:
        """Cookie → how it ended, the moves of its story, and their times."""
        with Store(self.path, read_only=True) as store:
            episodes = store.episodes()
            stories = store.stories((e.boot, e.cookie, e.state, e.first.boot_ns) for e in episodes)
        result: dict[int, tuple[str | None, list[tuple[int, int]], list[int]]] = {}
        for e in episodes:
            steps = stories.get((e.boot, e.cookie, e.state, e.first.boot_ns), ())
            result[e.cookie] = e.how, [(s.old, s.new) for s in steps], [s.boot_ns for s in steps]
        return result


@pytest.fixture
def bench(tmp_path: Path) -> Recording:
    return Recording(tmp_path / "state" / "history.sqlite")


def leak(bench: Recording, **more: Any) -> Sock:
    sock = bench.world.add(tcp.FIN_WAIT2, **more)
    bench.source.happen(sock, (1, 4), (4, 5), by=77)
    return sock


def test_what_led_to_an_episode_and_what_ended_it_is_kept_with_it(bench: Recording) -> None:
    sock = leak(bench)
    bench.run(60)
    assert bench.stories()[sock.cookie][:2] == (None, [(1, 4), (4, 5)])
    bench.source.happen(sock, (5, 7), reset=tr.RECEIVE_RESET)
    del bench.world.socks[sock.cookie]
    bench.run(60)
    assert bench.stories()[sock.cookie][:2] == ("reset", [(1, 4), (4, 5), (5, 7)])
    assert bench.looker.picture is not None
    assert [(e.how, e.total) for e in bench.looker.picture.ended] == [("reset", 1)]


@pytest.mark.parametrize(("reset", "how"), [(0, "closed"), (tr.SEND_RESET, "reset")])
def test_an_end_that_the_records_prove_is_not_vanished(bench: Recording, reset: int, how: str) -> None:
    sock = leak(bench)
    bench.run(60)
    bench.source.happen(sock, (5, 7), reset=reset)
    del bench.world.socks[sock.cookie]
    bench.run(60)
    assert bench.stories()[sock.cookie][0] == how


def test_an_end_that_they_do_not_prove_is_and_an_act_of_finwait_stays_one(bench: Recording) -> None:
    first, second, third = leak(bench), leak(bench), leak(bench)
    bench.run(60)
    bench.source.resets = False
    bench.source.happen(first, (5, 7))  # a reset may have been missed
    bench.source.happen(third, (5, 7), reset=tr.SEND_RESET)
    bench.world.acted.add((1, third.cookie))
    bench.world.socks.clear()
    bench.run(60)
    hows = {cookie: how for cookie, (how, _, _) in bench.stories().items()}
    assert hows == {first.cookie: "vanished", second.cookie: "vanished", third.cookie: "cleared"}


def test_the_story_up_to_a_restart_stays_and_the_end_after_it_is_added(bench: Recording) -> None:
    sock = leak(bench)
    bench.run(60)
    bench.start()
    bench.run(60)
    assert bench.stories()[sock.cookie][1] == [(1, 4), (4, 5)]
    bench.source.happen(sock, (5, 7), reset=tr.RECEIVE_RESET)
    del bench.world.socks[sock.cookie]
    bench.run(60)
    assert bench.stories()[sock.cookie][:2] == ("reset", [(1, 4), (4, 5), (5, 7)])


def test_an_end_right_after_a_restart_is_known_where_it_was_recorded(bench: Recording) -> None:
    sock = leak(bench)
    other = leak(bench)
    bench.run(60)
    bench.start()
    bench.source.happen(sock, (5, 7), reset=tr.RECEIVE_RESET)
    bench.world.socks.clear()
    bench.run(60)
    assert bench.stories()[sock.cookie][0] == "reset"
    assert bench.stories()[other.cookie][0] == "unknown"


def test_a_clock_that_is_set_and_a_machine_that_sleeps_change_no_time(bench: Recording) -> None:
    bench.world.sleep(3600)
    sock = leak(bench)
    at = bench.world.now_ns
    bench.world.wall_off_ns = -50 * 86400 * S
    bench.run(40)
    bench.world.wall_off_ns = 7 * 86400 * S
    bench.world.sleep(7200)
    bench.run(40)
    assert bench.stories()[sock.cookie][2] == [at, at + 1]
    asked = StoryOf(
        netns=1, cookie=sock.cookie, state=sock.state, words=[0, MAPPED | 0x0A000001, 0, MAPPED | 0x0A000002],
        sport=sock.sport, dport=80,
    )  # fmt: skip
    now = bench.world.now()
    with Store(bench.path, read_only=True) as store:
        (told,) = bench.looker.stories.told([asked], store, "boot-1", now)
    assert [step.ago_s for step in told.steps] == pytest.approx([(now.boot_ns - at) / 1e9] * 2)


def test_two_connections_of_the_same_addresses_in_two_namespaces_are_not_mixed_up(bench: Recording) -> None:
    sock = leak(bench, sport=5000)
    twin = bench.world.add(tcp.FIN_WAIT2, netns=2, sport=5000)
    bench.run(60)
    assert bench.stories()[sock.cookie][1] == []
    assert bench.stories()[twin.cookie][1] == []
    assert bench.looker.status is not None
    assert bench.looker.status.recorder is not None
    assert bench.looker.status.recorder.ambiguous == 2


def told_of(bench: Recording, *socks: Sock) -> list[Any]:
    asked = [
        StoryOf(
            netns=sock.netns, cookie=sock.cookie, state=sock.state,
            words=[0, MAPPED | 0x0A000001, 0, MAPPED | 0x0A000002], sport=sock.sport, dport=80,
        )
        for sock in socks
    ]  # fmt: skip
    with Store(bench.path, read_only=True) as store:
        return bench.looker.stories.told(asked, store, "boot-1", bench.world.now())


def test_no_connection_is_told_the_story_of_a_later_one_of_another_namespace(bench: Recording) -> None:
    """Its own was over before anything was recorded."""
    first = bench.world.add(tcp.FIN_WAIT2, sport=5000)
    bench.run(60)
    later = bench.world.add(tcp.FIN_WAIT2, netns=2, sport=5000)
    bench.source.happen(later, (1, 4), (4, 5), by=77)
    bench.run(60)
    assert [bool(told.steps) for told in told_of(bench, first, later)] == [False, False]
    assert told_of(bench, later)[0].ambiguous
    bench.source.happen(later, (5, 7), reset=tr.RECEIVE_RESET)
    del bench.world.socks[first.cookie]  # it was closed, and of that nothing was recorded
    bench.run(60)
    assert bench.stories()[first.cookie][0] == "vanished"


@pytest.mark.parametrize(("reset", "how"), [(tr.RECEIVE_RESET, "reset"), (0, "owner-gone")])
def test_a_program_that_ends_after_a_reset_did_not_end_the_connection(
    bench: Recording, reset: int, how: str
) -> None:
    sock = leak(bench)
    bench.run(60)
    bench.source.happen(sock, (5, 7), reset=reset)
    with Store(bench.path, read_only=True) as store:
        (e,) = store.episodes()
    ended = replace(e, ended=bench.world.now(), how="owner-gone")
    (judged,) = bench.looker.stories.judged([ended], bench.looker._book)
    assert judged.how == how


def test_a_story_waits_until_the_history_can_be_written(bench: Recording) -> None:
    def refused() -> Store:
        raise StoreError(30, "open the history")

    bench.start(refused)
    sock = leak(bench)
    bench.run(60)
    bench.looker._open_store = lambda: Store(bench.path, clock=bench.world.monotonic)
    bench.run(120)
    assert bench.stories()[sock.cookie][1] == [(1, 4), (4, 5)]


def test_what_it_could_not_record_is_a_gap(bench: Recording) -> None:
    bench.source.gaps = (Gap("the kernel's trace", "record", "a larger `--record-rate`"),)
    bench.run(20)
    assert any("--record-rate" in gap for gap in bench.gaps)


def test_a_story_goes_with_its_episode(bench: Recording) -> None:
    leak(bench)
    bench.run(60)
    with sqlite3.connect(bench.path) as db:
        assert db.execute("SELECT count(*) FROM stories").fetchone() == (1,)
        db.execute("DELETE FROM episodes")
        assert db.execute("SELECT count(*) FROM stories").fetchone() == (0,)
    db.close()


# ── steps ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_story_is_bounded_and_its_parts_are_put_together_once() -> None:
    steps = [RecordedStep(k, 1, 4) for k in range(40)]
    both = merged(steps[:30], steps[20:])
    assert [s.boot_ns for s in both] == [*range(8), *range(32, 40)]
    assert len(cell_of(both)) < 2000


@pytest.mark.parametrize(
    "cell", ["", "{}", "[1]", "[[]]", '[["x"]]', "[[1,99,4]]", "[[1,1,4,-1]]", "[" * 5000]
)
def test_a_cell_that_is_no_story_is_an_error(cell: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        told_steps(cell)


def test_steps_are_told_in_words_with_who_and_what_proves_it() -> None:
    steps = [
        RecordedStep(0, 1, 4, 812, "ng\x1b[31minx"),
        RecordedStep(1, 4, 5),
        RecordedStep(9 * S, 5, 7, reset="sent", reason="TCP_ABORT_ON_CLOSE", late_ms=4000),
        RecordedStep(9 * S + 1, flags=0x14, outgoing=True),
    ]
    items = step_items(steps, Instant(0, 1_700_000_000 * S), 69 * S)
    text = "".join(story_lines(items))
    assert "69 s ago" in text
    assert "ESTABLISHED → FIN_WAIT1: this end sent its FIN, by ng\\x1b[31minx(812)" in text
    assert "56 s to 60 s ago" in text
    assert "this end reset it (TCP_ABORT_ON_CLOSE)" in text
    assert "RST ACK sent" in text
    assert items[0].at == "2023-11-14T22:13:20.000Z"
    assert [item.source for item in items] == [
        "sock:inet_sock_set_state",
        "sock:inet_sock_set_state",
        "sock:inet_sock_set_state, tcp:tcp_send_reset",
        "packet socket",
    ]
    before = step_items(steps, Instant(0, 1_700_000_000 * S), None)
    assert before[0].ago_s is None
    assert "2023-11-14T22:13:29.000Z or 4 s later" in "".join(story_lines(before))

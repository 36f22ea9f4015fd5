"""What the looker answers beside the picture: groups, counts, the journal, gaps; and that it looks for none of it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finwait.agent import answers, curve, protocol, rollup_counts
from finwait.agent.curve import table_and_step
from finwait.agent.episodes import Instant
from finwait.agent.page import group_id
from finwait.agent.store import LOOKED, Store
from finwait.agent.verdict import Explained
from finwait.errors import Gap
from finwait.report.agent_page import AgentPage, SaidCause, SaidRemedy
from finwait.uapi import tcp
from finwait.uapi.cluster import ClusterNames, Endpoint, KubeService, Pod, ServicePort, merged
from tests.agent_world import S
from tests.unit.agent.test_loop import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path / "state" / "history.sqlite")
    for k in range(4):  # both ends are here
        near = made.world.add(tcp.FIN_WAIT2, pid=7)
        far = made.world.add(tcp.CLOSE_WAIT, pid=8, netns=2)
        near.other, far.other = far.cookie, near.cookie
        near.dport = 8000 + k
    made.world.add(tcp.LAST_ACK, pid=9)
    made.run(90)
    return made


def page(bench: Bench, row_filter: str = "") -> AgentPage:
    answer = answers.answer(bench.looker, protocol.AskPage(filter=row_filter))
    assert answer.page is not None, answer
    return answer.page


def test_a_connection_counts_once_and_its_group_has_the_states_of_both_ends(bench: Bench) -> None:
    made = page(bench)
    assert made.stuck == made.problems == 5
    groups = {group.workload: group for group in made.groups}
    assert {(g.rule, g.count) for g in made.groups} == {("fin-wait2-held", 4), ("other", 1)}
    assert groups["program7"].states == {"FIN_WAIT2": 4, "CLOSE_WAIT": 4}
    assert groups["program7"].id == group_id("fin-wait2-held", "program7")
    assert groups["program7"].oldest_s > 15


def test_the_groups_are_those_of_the_metrics(bench: Bench) -> None:
    assert {(g.rule, g.workload): g.count for g in page(bench).groups} == bench.stuck


@pytest.mark.parametrize(
    ("row_filter", "count"),
    [
        ("state close-wait", 4),
        ("dport = 8002", 1),
        ("netns = 2", 4),
        ("pid = 8", 4),
        ("comm = program9", 1),
        ("rule = fin-wait2-held and dport = 8001", 1),
        ("age > 1h", 0),
        ("severity = problem", 5),
    ],
)
def test_a_filter_selects_connections_by_either_end(bench: Bench, row_filter: str, count: int) -> None:
    made = page(bench, row_filter)
    assert made.stuck == count
    assert sum(group.count for group in made.groups) == count
    assert made.filter == row_filter


def test_a_filter_narrows_what_is_not_diagnosed_yet(bench: Bench) -> None:
    bench.world.diagnosis_s = 300
    for _ in range(3):
        bench.world.add(tcp.CLOSE_WAIT, pid=7, netns=3)
    bench.run(60)
    assert page(bench).undiagnosed == 3
    assert page(bench, "netns = 3").undiagnosed == 3
    assert page(bench, "netns = 2").undiagnosed == 0


@pytest.mark.parametrize(
    "row_filter", ["state nosuch", "rqueue > 5", "(", "(" * 1900, "user = root", "rule = nosuch"]
)
def test_a_filter_that_cannot_be_answered_is_refused(bench: Bench, row_filter: str) -> None:
    for question in (
        protocol.AskPage(filter=row_filter),
        protocol.AskGroup(id="0", filter=row_filter),
        protocol.AskHistory(filter=row_filter),
    ):
        assert answers.answer(bench.looker, question).refused


def test_one_group_has_the_oldest_connections_with_both_ends(bench: Bench) -> None:
    name = group_id("fin-wait2-held", "program7")
    said = SaidCause(
        title="t", harm="leak", whose="holder", act="", confidence="certain", reason="", evidence=[],
        ends_it=[SaidRemedy(text="a", kind="advice", command=""),
                 SaidRemedy(text="b", kind="destructive", command="c")],
        does_not=[], ends="", ends_why="", about=4, at="",
    )  # fmt: skip
    bench.looker.explained = Explained({("fin-wait2-held", "program7"): said})
    detail = answers.answer(bench.looker, protocol.AskGroup(id=name)).group
    assert detail is not None
    assert detail.cause == said
    assert (detail.group.ends_it, detail.group.command) == ("b", "c"), "the first that can be typed"
    assert len(detail.ends) == 8
    assert detail.more == 0
    assert [end.state for end in detail.ends[:4]] == ["FIN_WAIT2"] * 4, "those that speak first"
    near = detail.ends[0]
    assert near.other_end is not None
    assert near.other_end.state == "CLOSE_WAIT"
    assert near.holder == "program7(7)"
    narrowed = answers.answer(bench.looker, protocol.AskGroup(id=name, filter="dport = 8001")).group
    assert narrowed is not None
    assert narrowed.group.count == 1
    assert answers.answer(bench.looker, protocol.AskGroup(id="f" * 16)).group is None


def test_a_question_makes_nobody_look(bench: Bench) -> None:
    before = bench.world.diagnoses, len(bench.world.walks), bench.world.cost_s
    for question in (
        protocol.AskPage(), protocol.AskGroup(id="0"), protocol.AskHistory(), protocol.AskCounts(since_s=0),
        protocol.AskSettings(), protocol.AskJournal(), protocol.AskGaps(),
    ):  # fmt: skip
        answer = answers.answer(bench.looker, question)
        assert answer.error is None
        protocol.decode_answer(protocol.encode(answer))
    assert (bench.world.diagnoses, len(bench.world.walks), bench.world.cost_s) == before


def test_nothing_is_told_twice_of_one_round(bench: Bench) -> None:
    known = page(bench).rounds
    answer = answers.answer(bench.looker, protocol.AskPage(known=known))
    assert answer.unchanged
    assert answer.page is None
    bench.run(15)
    assert answers.answer(bench.looker, protocol.AskPage(known=known)).page is not None


def test_who_asks_while_a_look_goes_on_waits_and_is_then_told_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "_PATIENCE_S", 0.01)
    told: list[protocol.AgentAnswer] = []
    with bench.looker._lock:
        thread = threading.Thread(
            target=lambda: told.append(answers.answer(bench.looker, protocol.AskPage()))
        )
        thread.start()
        thread.join()
    assert "a look is going on" in (told[0].error or "")
    assert page(bench).stuck == 5


def test_a_group_of_several_findings_says_how_sure_each_is(bench: Bench) -> None:
    for confidence, n in (("likely", 2), ("certain", 3), ("possible", 1)):
        for _ in range(n):
            bench.world.add(tcp.FIN_WAIT2, pid=77, confidence=confidence)
    bench.run(60)
    group = next(group for group in page(bench).groups if group.workload == "program77")
    assert (group.count, group.confidence) == (6, "certain")
    assert list(group.confidences.items()) == [("certain", 3), ("likely", 2), ("possible", 1)]


def test_while_a_diagnosis_goes_on_questions_are_answered(bench: Bench) -> None:
    bench.world.diagnosis_s = 3600
    bench.world.add(tcp.FIN_WAIT2, pid=7)
    bench.run(60)
    told = answers.answer(bench.looker, protocol.AskPage())
    assert told.page is not None
    assert told.page.undiagnosed == 1


# ── counts over time ─────────────────────────────────────────────────────────────────────────────────────


def test_where_nobody_looked_a_count_is_not_known(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run(300)
    bench.world.pass_(1200)  # the agent does not run
    bench.run(300)
    now_s = bench.world.now().wall_ns // S
    monkeypatch.setattr(time, "time", lambda: float(now_s))
    counts = answers.answer(bench.looker, protocol.AskCounts(since_s=now_s - 3600)).counts
    assert counts is not None
    assert counts.step_s == 60
    (held,) = [series for series in counts.series if series.name == "fin-wait2-held"]
    unseen = [k for k, gaps in enumerate(counts.gaps) if gaps is None]
    assert all(held.values[k] is None for k in unseen)
    known = [k for k in range(len(counts.at)) if k not in unseen]
    assert held.values[known[-1]] == 4
    holes = [k for k in unseen if known[0] < k < known[-1]]
    assert 17 <= len(holes) <= 21, "twenty minutes"


def test_a_machine_on_which_nothing_is_stuck_was_looked_at_all_the_same(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "state" / "history.sqlite")
    bench.run(400)
    with Store(bench.path, read_only=True) as store:
        rows, looked = store.read(lambda db: rollup_counts.counts(db, "minutes", 0, 60, "rule", None))
        assert store.rollups("minutes", 0) == []
    assert rows == []
    assert len(looked) >= 6


def test_a_minute_without_a_look_that_succeeds_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path / "state" / "history.sqlite")
    monkeypatch.setattr(bench.world, "counters", lambda *_, **__: ({}, []))
    bench.run(400)
    with Store(bench.path, read_only=True) as store:
        assert store.read(lambda db: rollup_counts.counts(db, "minutes", 0, 60, "rule", None)) == ([], {})


def test_counts_are_filtered_by_what_a_series_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state" / "history.sqlite"
    now = Instant(0, 1_700_000_040 * S)
    with Store(path) as store:
        rollups = [
            (("fin-wait2-held", "problem", "web"), 7, 1), (("fin-wait2-held", "notice", "pod/1"), 2, 1),
            (("close-wait-eof-read", "problem", "web"), 3, 1), (LOOKED, 0, 0),
        ]  # fmt: skip
        store.round([], [], now, rollups=rollups)
        assert store.read(lambda db: rollup_counts.counts(db, "minutes", 0, 60, "workload", None))[0] == [
            (1_700_000_040, "pod/1", 2),
            (1_700_000_040, "web", 10),
        ]
    looker: Any = SimpleNamespace(history=path, boot="b")
    monkeypatch.setattr(time, "time", lambda: 1_700_000_100.0)
    for row_filter, names in (
        ("rule = fin-wait2-held", {"fin-wait2-held": 9}),
        ("severity = problem", {"fin-wait2-held": 7, "close-wait-eof-read": 3}),
        ("pod = 1", {"fin-wait2-held": 2}),
    ):
        made = answers.answer(looker, protocol.AskCounts(since_s=1_699_999_000, filter=row_filter)).counts
        assert made is not None
        assert {series.name: max(v or 0 for v in series.values) for series in made.series} == names
    assert answers.answer(looker, protocol.AskCounts(since_s=0, filter="age > 1m")).refused
    assert answers.answer(looker, protocol.AskCounts(since_s=0, filter="state close-wait")).refused


@given(st.integers(0, 200 * 86400))
def test_a_curve_has_a_bounded_number_of_steps(span: int) -> None:
    now = 1_700_000_000
    table, step = table_and_step(now - span, now)
    assert step % (60 if table == "minutes" else 900) == 0
    assert min(max(span, 60), 90 * 86400) / step <= curve.POINTS_MOST


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from([f"r{k}" for k in range(20)]), st.integers(0, 50)),
        max_size=60,
    ),
    st.sets(st.integers(0, 9)),
)
@settings(max_examples=100)
def test_no_series_is_lost_and_what_nobody_saw_is_none(
    rows: list[tuple[int, str, int]], looked: set[int]
) -> None:
    made = curve.curve(
        [(60 * at, name, n) for at, name, n in rows], {60 * at: 0 for at in looked}, "rule", 0, 599, 60
    )
    assert len(made.series) <= curve.SERIES_MOST + 1
    assert made.gaps == [0 if k in looked else None for k in range(10)]
    for k in range(10):
        values = [series.values[k] for series in made.series]
        if k in looked:
            assert sum(v or 0 for v in values) == sum(n for at, _, n in rows if at == k)
        else:
            assert set(values) <= {None}


# ── the journal ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_journal_is_read_and_its_absence_is_none(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finwait.kernel.journal import SqliteJournal
    from finwait.remedy.journal import Act

    monkeypatch.setenv("FINWAIT_STATE_DIR", str(tmp_path / "acts"))
    answer = answers.answer(bench.looker, protocol.AskJournal())
    assert answer.acts is not None
    assert (answer.acts.items, answer.acts.error) == ([], "")
    with SqliteJournal() as journal:
        number = journal.record(Act("destroy", {"connection": "a → b"}, why="fin-wait2-held"))
        journal.complete(number, {"result": "ended"})
    made = answers.answer(bench.looker, protocol.AskJournal()).acts
    assert made is not None
    assert [(act.kind, act.whom, act.result, act.why) for act in made.items] == [
        ("destroy", "a → b", "ended", "fin-wait2-held")
    ]
    (tmp_path / "acts" / "journal.sqlite").write_bytes(b"no database at all" * 100)
    assert answers.answer(bench.looker, protocol.AskJournal()).acts.error  # type: ignore[union-attr]


def test_names_that_are_too_long_for_one_answer_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_NAMES_MOST", 300)
    ends = tuple(Endpoint("shop/db", f"10.0.0.{k}", 80, pod=f"shop/db-{k}") for k in range(10))
    names = ClusterNames(
        pods=(Pod("u1", "shop", "db-0", addresses=("10.0.0.0",)),),
        services=(KubeService("shop", "db", ("10.96.0.1",), (ServicePort(80),), 1),),
        endpoints=ends,
        as_of={"pods": 1.0},
    )
    looker: Any = SimpleNamespace(cluster=SimpleNamespace(names=names, gaps=[Gap("a", "b", "c")]))
    begin, pieces = 0, []
    while True:
        told = answers.answer(looker, protocol.AskNames([e.address for e in ends], True, begin)).names
        assert told is not None
        pieces.append(told)
        begin = told.next
        if not begin:
            break
    assert len(pieces) > 3
    assert merged([piece.names for piece in pieces]) == names
    assert [len(piece.gaps) for piece in pieces] == [1] + [0] * (len(pieces) - 1)
    alone = answers.answer(looker, protocol.AskNames(["10.0.0.1"], False)).names
    assert alone is not None
    assert (alone.names.pods, alone.names.endpoints) == ((), ends[1:2])

"""What `finwait top` counts and says, on real sockets: exact where it counts, honest where it does not know."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from msgspec.structs import replace

from finwait import session, watching
from finwait.errors import KernelError
from finwait.follow import Following, Round
from finwait.kernel.observe import RunningMachine
from finwait.lab.topology import Lab
from finwait.table import decode
from finwait.table.filter import Filter, parse
from finwait.tui.note import note
from finwait.uapi import tcp
from finwait.uapi.observation import LookPlan, Observation
from finwait.watching import Live, Picture
from tests.kernel.test_trace import ONCE, own_address, tracing_is_possible, traffic  # noqa: F401

pytestmark = pytest.mark.kernel


def everything(_: Filter, diagnosis: session.Diagnosis) -> session.Diagnosis:
    return diagnosis


def pictures(feed: Live, number: int) -> Picture:
    for _ in range(number):
        picture = feed.next()
    assert picture is not None
    return picture


def until(feed: Live, wanted: Callable[[Picture], bool], seconds: float = 90) -> Picture:
    """Return the first picture that is as wanted: what is read between two depends on how busy the machine is."""
    deadline = time.monotonic() + seconds
    while not wanted(picture := pictures(feed, 1)):
        assert time.monotonic() < deadline, picture
    return picture


@contextmanager
def pairs(half_closed: int, whole: int, unaccepted: int) -> Iterator[int]:
    """Loopback connections in a namespace of their own; gives its inode."""
    with Lab() as lab, ExitStack() as stack:
        space = lab.netns("busy")
        listener = stack.enter_context(space.call(lambda: socket.create_server(("127.0.0.1", 0), backlog=64)))
        address = listener.getsockname()

        def client() -> socket.socket:
            return stack.enter_context(space.call(lambda: socket.create_connection(address)))

        for k in range(half_closed + whole):
            one = client()
            stack.enter_context(listener.accept()[0])
            if k < half_closed:
                one.shutdown(socket.SHUT_WR)
        for _ in range(unaccepted):
            client()
        yield space.inode


def test_established_connections_that_are_only_counted_are_counted_exactly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "ESTABLISHED_LIMIT", 5)
    with pairs(3, 11, 2) as inode:
        what = LookPlan(
            only=frozenset({inode}),
            extensions=0,
            conntrack=False,
            files=False,
            descriptors=True,  # nothing but a descriptor keeps a namespace of the lab
            established_limit=None,
        )
        truth = decode.sockets(RunningMachine().observe(what))
        assert (truth.state == tcp.ESTABLISHED).sum() == 2 * (11 + 2)
        lean = RunningMachine().observe(replace(what, established_limit=5))
        (space,) = lean.namespaces
        assert space.established_skipped
        rows = decode.sockets(lean)
        assert not (rows.state == tcp.ESTABLISHED).any()
        assert watching._not_dumped(space, rows) == 2 * (11 + 2)


def test_a_trace_that_is_taken_away_costs_the_flows_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with Live(None, everything, refresh=0.3) as feed:
        until(feed, lambda p: p.flows is not None)

        def gone(_: Following, __: float) -> None:
            raise KernelError(19, "read the trace")

        monkeypatch.setattr(Following, "step", gone)
        picture = until(feed, lambda p: p.flows is None)
        assert "the trace was removed: could not read the trace" in picture.circumstances.why_no_flows
        assert picture.counts


def test_rates_are_those_of_what_the_filter_selects() -> None:
    """Beside other traffic, to the connection: what passed between two pictures is what the script did."""
    host = own_address()
    with traffic(30, host=host) as mine, traffic(200, host=host) as other:
        assert mine.port != other.port
        wanted = parse(f"src {host} and ( sport = :{mine.port} or dport = :{mine.port} )")
        with Live(wanted, everything, refresh=0.2) as feed:
            until(feed, lambda p: p.flows is not None)
            other.go()
            mine.go()
            passed: Counter[tuple[int, int]] = Counter()
            deadline = time.monotonic() + 60
            while passed[9, 7] < 30:
                before = feed._passed.since
                picture = pictures(feed, 1)
                assert picture.flows is not None
                span = feed._passed.since - before
                passed.update({edge: round(rate * span) for edge, rate in picture.flows.items()})
                assert time.monotonic() < deadline
            other.wait()
            picture = pictures(feed, 1)
            assert not picture.flows
    assert passed == Counter(dict.fromkeys(ONCE, 30))


@pytest.mark.parametrize(
    ("words", "named"),
    [("comm = nginx", "comm"), ("age > 1m", "age"), ("state close-wait pid = 1", "pid"),
     ("rule = relay-pair", "rule")],
)  # fmt: skip
def test_where_events_cannot_tell_there_are_no_rates_and_the_reason_is_said(words: str, named: str) -> None:
    with Live(parse(words), everything, refresh=0.1) as feed:
        picture = pictures(feed, 2)
    assert picture.flows is None
    assert picture.circumstances.why_no_flows == f"no rates: a change of state does not include {named}"


def test_another_filter_brings_the_rates_back() -> None:
    with Live(parse("comm = no-such-name"), everything, refresh=0.1) as feed:
        assert pictures(feed, 2).flows is None
        feed.choose(parse("sport = :1"))
        assert pictures(feed, 1).flows == {}
        feed.choose(None)
        assert pictures(feed, 1).flows is not None


def test_numbers_come_before_anything_is_traced_or_diagnosed(monkeypatch: pytest.MonkeyPatch) -> None:
    def early(*_: object, **__: object) -> None:
        raise AssertionError("the numbers come first")

    own = os.stat("/proc/self/ns/net").st_ino
    with socket.create_server(("127.0.0.1", 0)), monkeypatch.context() as patch:
        patch.setattr(session, "diagnose", early)
        patch.setattr(Following, "__enter__", early)
        for row_filter in (None, parse(f"netns = {own}")):
            with Live(row_filter, refresh=0.1) as feed:
                first = pictures(feed, 1)
            assert first.counts[tcp.LISTEN] >= 1
            assert first.diagnosis is None
            assert first.flows is None
            assert first.circumstances.why_no_flows


@pytest.mark.parametrize(
    "words", ["netns = {}", "netns = {} held", "netns = {} state close-wait,fin-wait-2,established"]
)
def test_with_a_filter_by_namespace_rates_are_the_difference_of_two_looks(words: str) -> None:
    """Exactly: each half-close is one connection past ESTABLISHED at either end."""
    with Lab() as lab, ExitStack() as stack:
        space = lab.netns("busy")
        listener = stack.enter_context(space.call(lambda: socket.create_server(("127.0.0.1", 0), backlog=64)))
        pairs = []
        for _ in range(12):
            near = stack.enter_context(space.call(lambda: socket.create_connection(listener.getsockname())))
            pairs.append((near, stack.enter_context(listener.accept()[0])))
        with Live(parse(words.format(space.inode)), refresh=0.2) as feed:
            until(feed, lambda p: p.flows is not None and p.counts.get(tcp.ESTABLISHED) == 24)
            never(feed)
            for near, _ in pairs[:9]:
                near.shutdown(socket.SHUT_WR)
            passed: Counter[tuple[int, int]] = Counter()

            def all_seen(p: Picture) -> bool:
                assert p.flows is not None
                span = p.circumstances.compared_s
                assert span is not None
                passed.update({edge: round(rate * span) for edge, rate in p.flows.items()})
                return p.counts.get(tcp.FIN_WAIT2) == 9 == p.counts.get(tcp.CLOSE_WAIT)

            until(feed, all_seen, seconds=30)
            assert passed == {(1, 4): 9, (4, 5): 9, (1, 8): 9}
            for near, far in pairs[:9]:
                far.close()
                near.close()
            passed.clear()
            last = until(feed, lambda p: all_seen(p) or not p.counts.get(tcp.CLOSE_WAIT), seconds=30)
            assert passed[5, 7] == 9
            assert last.circumstances.unplaced > 0 or passed[8, 9] == 9, (
                "gone from CLOSE_WAIT: closed or reset"
            )


def test_the_second_diagnosis_comes_soon_and_says_when() -> None:
    with Live(None, refresh=0.2) as feed:
        first = until(feed, lambda p: p.diagnosis is not None)
        due, cost = first.circumstances.diagnosis_in_s, feed._diagnosis_cost
        assert due is not None
        assert due <= max(0.2, cost / watching.SECOND_SHARE)
        second = until(feed, lambda p: p.diagnosis is not first.diagnosis)
        assert second.circumstances.diagnosis_in_s is not None
        assert feed._diagnosing.due - feed._diagnosed_at > feed._diagnosis_cost / watching.SECOND_SHARE


def test_lost_events_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with Live(None, everything, refresh=0.3) as feed:
        pictures(feed, 2)
        plain = Following.step

        def losing(self: Following, timeout: float) -> Round:
            return replace(plain(self, timeout), lost=7)

        monkeypatch.setattr(Following, "step", losing)
        until(feed, lambda p: p.circumstances.lost > 0 and "events lost; flows are too low" in note(p))


def test_a_filter_that_names_what_is_not_here_is_said_to_until_another_is_chosen() -> None:
    with Live(parse(["user = no-such-name"]), refresh=0.1) as feed:
        told = until(feed, lambda picture: bool(picture.circumstances.not_here))
        assert told.circumstances.not_here == (
            "no user that this machine can list is named `no-such-name`; a number always works",
        )
        assert not told.counts
        feed.choose(parse(["user = no-such-name or state established"]))
        assert until(feed, lambda picture: not picture.circumstances.not_here)


def never(feed: Live) -> None:
    """Let there be no further diagnosis, as on a machine where the last one was expensive."""
    feed._diagnosing.due = float("inf")


@pytest.mark.parametrize("words", ["{}", "{} state fin-wait-2", "{} held", "not netns != {0}", "{} uid >= 0"])
def test_with_a_filter_by_namespace_numbers_are_those_of_now(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dumped: list[frozenset[int] | None] = []
    with Lab() as lab, ExitStack() as stack:
        space = lab.netns("busy")
        listener = stack.enter_context(space.call(lambda: socket.create_server(("127.0.0.1", 0), backlog=64)))

        def half_close(number: int) -> None:
            for _ in range(number):
                near = stack.enter_context(
                    space.call(lambda: socket.create_connection(listener.getsockname()))
                )
                stack.enter_context(listener.accept()[0])
                near.shutdown(socket.SHUT_WR)

        half_close(3)
        row_filter = parse(words.format(f"netns = {space.inode}" if "{0}" not in words else space.inode))
        with Live(row_filter, refresh=0.1) as feed:
            first = until(feed, lambda picture: picture.counts.get(tcp.FIN_WAIT2) == 3)
            assert not first.circumstances.late
            until(feed, lambda picture: picture.diagnosis is not None)
            never(feed)
            observe = RunningMachine.observe

            def noted(self: RunningMachine, plan: LookPlan) -> Observation:
                dumped.append(plan.only)
                return observe(self, plan)

            monkeypatch.setattr(RunningMachine, "observe", noted)
            half_close(4)
            newest = until(feed, lambda picture: picture.counts.get(tcp.FIN_WAIT2) == 7, seconds=20)
    assert set(dumped) == {frozenset({space.inode})}
    seen = newest.circumstances
    assert (seen.late, seen.counted_s_ago) == (False, None)


def test_numbers_that_only_a_diagnosis_knows_say_how_old_they_are() -> None:
    with pairs(3, 0, 0) as inode, Live(parse(f"netns = {inode} age >= 0s"), refresh=0.1) as feed:
        first = pictures(feed, 1)
        assert first.counts.get(tcp.FIN_WAIT2) == 3, "no zeros before the first diagnosis"
        assert not first.circumstances.late
        never(feed)
        old = until(feed, lambda picture: picture.circumstances.counted_s_ago is not None, seconds=20)
        assert old.circumstances.late
        assert old.diagnosis is first.diagnosis
        assert "counted and diagnosed" in note(old)
        feed.renew()
        assert not until(feed, lambda picture: picture.diagnosis is not first.diagnosis).circumstances.late

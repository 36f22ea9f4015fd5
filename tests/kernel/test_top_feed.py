"""What `finwait top` counts and says, on real sockets: exact where it counts, honest where it does not know."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from finwait import session, watching
from finwait.errors import KernelError
from finwait.follow import Following, Round
from finwait.kernel.observe import Machine
from finwait.lab.topology import Lab
from finwait.table import decode
from finwait.table.filter import Filter, parse
from finwait.tui.note import note
from finwait.uapi import tcp
from finwait.uapi.observation import Plan
from finwait.watching import Live, Picture
from tests.kernel.test_trace import ONCE, own_address, tracing_is_possible, traffic  # noqa: F401

pytestmark = pytest.mark.kernel


def everything(_: Filter, diagnosis: session.Diagnosis) -> NDArray[np.bool_]:
    return np.ones(len(diagnosis.view), np.bool_)


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
        what = Plan(
            only=frozenset({inode}),
            extensions=0,
            conntrack=False,
            files=False,
            descriptors=True,  # nothing but a descriptor keeps a namespace of the lab
            established_limit=None,
        )
        truth = decode.sockets(Machine().observe(what))
        assert (truth.state == tcp.ESTABLISHED).sum() == 2 * (11 + 2)
        lean = Machine().observe(replace(what, established_limit=5))
        (space,) = lean.namespaces
        assert space.established_skipped
        rows = decode.sockets(lean)
        assert not (rows.state == tcp.ESTABLISHED).any()
        assert watching._not_dumped(space, rows) == 2 * (11 + 2)


def test_a_trace_that_is_taken_away_costs_the_flows_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with Live(None, everything, refresh=0.3) as feed:
        assert pictures(feed, 1).flows is not None

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
            pictures(feed, 1)
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
    [("netns = 1", "netns"), ("comm = nginx", "comm"), ("held", "held"), ("age > 1m", "age"), ("user = root", "user"),
     ("state close-wait pid = 1", "pid"), ("wqueue > 0", "wqueue"), ("rule = relay-pair", "rule")],
)  # fmt: skip
def test_where_events_cannot_tell_there_are_no_rates_and_the_reason_is_said(words: str, named: str) -> None:
    with Live(parse(words), everything, refresh=0.1) as feed:
        picture = pictures(feed, 2)
    assert picture.flows is None
    assert picture.circumstances.why_no_flows == f"no rates: a change of state does not include {named}"


def test_another_filter_brings_the_rates_back() -> None:
    with Live(parse("netns = 1"), everything, refresh=0.1) as feed:
        assert pictures(feed, 1).flows is None
        feed.choose(parse("sport = :1"))
        assert pictures(feed, 1).flows == {}
        feed.choose(None)
        assert pictures(feed, 1).flows is not None


def test_lost_events_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with Live(None, everything, refresh=0.3) as feed:
        pictures(feed, 2)
        plain = Following.step

        def losing(self: Following, timeout: float) -> Round:
            return replace(plain(self, timeout), lost=7)

        monkeypatch.setattr(Following, "step", losing)
        until(feed, lambda p: p.circumstances.lost > 0 and "events lost, flows are too low" in note(p))


def test_a_filter_that_names_what_is_not_here_is_said_to_until_another_is_chosen() -> None:
    with Live(parse(["comm = no-such-name"]), refresh=0.1) as feed:
        told = until(feed, lambda picture: bool(picture.circumstances.not_here))
        assert told.circumstances.not_here == ("no process that holds a TCP socket is called `no-such-name`",)
        assert not told.counts
        feed.choose(parse(["comm = no-such-name or state established"]))
        assert until(feed, lambda picture: not picture.circumstances.not_here)

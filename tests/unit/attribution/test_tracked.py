"""An entry and the sockets at its ends: when they disagree, and when that says nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finwait.attribution.tracked import tracked, untracked
from finwait.table.flows import FlowTable
from finwait.table.sockets import pack_address
from finwait.uapi import conntrack as ct
from finwait.uapi import tcp
from tests.unit.attribution.test_other_end import table

CLIENT, VIP, BACKEND = "10.0.0.1", "10.96.0.1", "10.1.0.2"
HERE = frozenset({pack_address(CLIENT), pack_address(BACKEND)})


def entry(state: str) -> FlowTable:
    def words(text: str) -> Any:
        return np.array([pack_address(text)], np.uint64)

    return FlowTable.from_columns(
        {
            "netns": [1], "family": [2], "protocol": [6], "tcp_state": [ct.TCP_STATE_NUMBERS[state]],
            "orig_src": words(CLIENT), "orig_sport": [4000], "orig_dst": words(VIP), "orig_dport": [80],
            "reply_src": words(BACKEND), "reply_sport": [8080], "reply_dst": words(CLIENT), "reply_dport": [4000],
        }
    )  # fmt: skip


def verdict(
    state: str, client: int | None, server: int | None, local: frozenset[tuple[int, int]] = HERE
) -> str:
    rows = []
    if client is not None:
        rows.append((1, CLIENT, 4000, VIP, 80, client))
    if server is not None:
        rows.append((2, BACKEND, 8080, CLIENT, 4000, server))
    (said,) = tracked(table(rows), entry(state), {2: local}).verdict
    return said


@pytest.mark.parametrize(
    ("state", "client", "server", "said"),
    [
        ("ESTABLISHED", tcp.ESTABLISHED, tcp.ESTABLISHED, "agree"),
        ("CLOSE_WAIT", tcp.CLOSE_WAIT, tcp.FIN_WAIT2, "agree"),
        ("ESTABLISHED", tcp.ESTABLISHED, None, "the server end is gone"),
        ("ESTABLISHED", None, tcp.ESTABLISHED, "the client end is gone"),
        ("ESTABLISHED", None, None, "entry without sockets"),
        ("TIME_WAIT", None, None, "agree"),
        ("TIME_WAIT", tcp.TIME_WAIT, None, "agree"),
        ("ESTABLISHED", tcp.CLOSE_WAIT, tcp.FIN_WAIT2, "the ends are closing"),
        ("CLOSE", tcp.ESTABLISHED, tcp.ESTABLISHED, "the entry is closing"),
    ],
)
def test_a_verdict_follows_from_both_ends(
    state: str, client: int | None, server: int | None, said: str
) -> None:
    assert verdict(state, client, server).startswith(said)


def test_an_end_on_another_machine_is_not_held_against_the_entry() -> None:
    assert verdict("ESTABLISHED", tcp.ESTABLISHED, None, frozenset({pack_address(CLIENT)})) == "agree"
    assert verdict("ESTABLISHED", None, None, frozenset()).startswith("forwarded")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "::1"])
def test_loopback_belongs_to_the_namespace_of_the_entry(address: str) -> None:
    """The same tuple of another namespace is another connection, and no end can be on another machine."""
    words = np.array([pack_address(address)], np.uint64)
    flow = FlowTable.from_columns(
        {
            "netns": [1], "family": [2], "protocol": [6], "tcp_state": [ct.TCP_STATE_NUMBERS["ESTABLISHED"]],
            "orig_src": words, "orig_sport": [4000], "orig_dst": words, "orig_dport": [80],
            "reply_src": words, "reply_sport": [80], "reply_dst": words, "reply_dport": [4000],
        }
    )  # fmt: skip

    def said(netns: int, dumped: frozenset[int]) -> str:
        ends = [(4000, 80), (80, 4000)]
        rows = [(netns, address, sport, address, dport, tcp.ESTABLISHED) for sport, dport in ends]
        return tracked(table(rows), flow, {}, dumped).verdict[0]

    assert said(1, frozenset({1, 2})) == "agree"
    assert said(2, frozenset({1, 2})) == "entry without sockets"
    assert said(2, frozenset({2})).startswith("forwarded")


@pytest.mark.parametrize(
    ("client", "server", "local", "whole", "seen", "said"),
    [
        (
            None,
            None,
            frozenset(),
            True,
            ("elsewhere", "elsewhere"),
            "forwarded: neither end is on this machine",
        ),
        (None, None, frozenset(), False, ("not-looked-at", "not-looked-at"), "neither end was inspected"),
        (tcp.ESTABLISHED, None, frozenset(), False, ("socket", "not-looked-at"), "agree"),
        (
            None,
            None,
            frozenset({pack_address(BACKEND)}),
            False,
            ("not-looked-at", "gone"),
            "the server end is gone",
        ),
        (None, None, HERE, False, ("gone", "gone"), "entry without sockets"),
    ],
)
def test_an_end_that_was_not_looked_at_is_neither_here_nor_elsewhere(
    client: int | None,
    server: int | None,
    local: frozenset[tuple[int, int]],
    whole: bool,
    seen: tuple[str, str],
    said: str,
) -> None:
    rows = []
    if client is not None:
        rows.append((1, CLIENT, 4000, VIP, 80, client))
    if server is not None:
        rows.append((2, BACKEND, 8080, CLIENT, 4000, server))
    found = tracked(table(rows), entry("ESTABLISHED"), {2: local}, whole=whole)
    assert (found.client_seen[0], found.server_seen[0]) == seen
    assert found.verdict == (said,)
    assert found.mismatch == ("gone" in seen,)
    assert found.passing == (seen[0] == seen[1] != "gone",)


def test_an_end_is_gone_only_from_where_the_entry_s_namespace_leads_to() -> None:
    rows = [(1, CLIENT, 4000, VIP, 80, tcp.ESTABLISHED)]
    place = {2: frozenset({pack_address(BACKEND)})}

    def seen(islands: dict[int, int | None]) -> str:
        return tracked(table(rows), entry("ESTABLISHED"), place, islands=islands).server_seen[0]

    assert seen({1: 1, 2: 1}) == "gone"
    assert seen({1: 1, 2: 2}) == "elsewhere"
    assert seen({1: 1, 2: None}) == "elsewhere"


KEPT = {"netns": 1, "state": tcp.ESTABLISHED, "timer": 0, "protocol": 6}


@pytest.mark.parametrize(
    ("changed", "lone"),
    [
        *(({"state": state}, True) for state in (
            tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING)),
        *(({"state": state}, False) for state in (
            tcp.LISTEN, tcp.SYN_SENT, tcp.SYN_RECV, tcp.TIME_WAIT, tcp.CLOSE)),
        ({"netns": 2}, True),
        ({"netns": 3}, False),  # nothing is tracked there
        ({"state": tcp.FIN_WAIT2, "timer": 3}, False),  # a minisocket needs no entry
        ({"timer": 1}, True),
        ({"timer": 2}, True),
        ({"protocol": 262}, False),  # MPTCP: its subflows have the entries
    ],
)  # fmt: skip
def test_a_socket_is_without_entry_where_connections_are_tracked_and_it_should_have_one(
    changed: dict[str, int], lone: bool
) -> None:
    one = KEPT | changed
    rows = [(one["netns"], CLIENT, 4000, VIP, 80, one["state"])]
    sockets = table(rows, timer=[one["timer"]], protocol=[one["protocol"]])
    no = np.zeros(1, np.bool_)
    assert untracked(sockets, no, no, {1, 2}).tolist() == [0] * lone
    assert untracked(sockets, ~no, no, {1, 2}).tolist() == []  # it has an entry
    assert untracked(sockets, no, ~no, {1, 2}).tolist() == []  # loopback is often not tracked
    assert untracked(sockets, no, no, set()).tolist() == []


def test_sockets_without_an_entry_are_named_by_their_rows() -> None:
    states = (tcp.LISTEN, tcp.ESTABLISHED, tcp.TIME_WAIT, tcp.CLOSE_WAIT)
    sockets = table([(1, CLIENT, 4000 + k, VIP, 80, state) for k, state in enumerate(states)], timer=[0] * 4)
    no = np.zeros(4, np.bool_)
    assert untracked(sockets, no, no, {1}).tolist() == [1, 3]

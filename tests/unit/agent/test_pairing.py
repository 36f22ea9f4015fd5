"""Two ends of one connection, before a diagnosis says so."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finwait.agent.episodes import Book, Instant
from finwait.agent.pairing import paired
from finwait.uapi import tcp
from tests.agent_world import WALL, S, Sock, cause_of, said, table

_ROW = np.dtype(
    [
        ("cookie", "u8"), ("netns", "u4"), ("src", "u8", (2,)), ("dst", "u8", (2,)), ("sport", "u2"), ("dport", "u2"),
        ("other", "u8"), ("diagnosed", "?"),
    ]
)  # fmt: skip


def rows(*several: tuple[int, int, int, int, int, int]) -> NDArray[Any]:
    """Return rows of cookie, namespace, our address and port, and theirs."""
    made = np.zeros(len(several), _ROW)
    for row, (cookie, netns, src, sport, dst, dport) in zip(made, several, strict=True):
        row["cookie"], row["netns"], row["src"][1], row["dst"][1] = cookie, netns, src, dst
        row["sport"], row["dport"] = sport, dport
    return made


def test_both_ends_in_one_namespace_are_a_pair_in_each_namespace_that_has_them() -> None:
    made = rows((1, 5, 9, 40, 9, 80), (2, 5, 9, 80, 9, 40), (3, 6, 9, 40, 9, 80), (4, 6, 9, 80, 9, 40))
    assert paired(made).tolist() == [2, 1, 4, 3]


def test_ends_in_two_namespaces_are_a_pair_where_no_third_one_has_their_addresses() -> None:
    two = rows((1, 5, 9, 40, 8, 80), (2, 6, 8, 80, 9, 40))
    three = rows((1, 5, 9, 40, 8, 80), (2, 6, 8, 80, 9, 40), (3, 7, 8, 80, 9, 40))
    assert paired(two).tolist() == [2, 1]
    assert paired(three).tolist() == [0, 0, 0]


def test_the_same_addresses_in_two_namespaces_are_no_pair() -> None:
    assert paired(rows((1, 5, 9, 40, 8, 80), (2, 6, 9, 40, 8, 80))).tolist() == [0, 0]
    assert paired(rows((1, 5, 9, 80, 9, 80), (2, 6, 9, 80, 9, 80))).tolist() == [0, 0], (
        "connected to themselves"
    )


def test_what_a_diagnosis_has_seen_is_left_as_it_says() -> None:
    made = rows((1, 5, 9, 40, 9, 80), (2, 5, 9, 80, 9, 40))
    made["diagnosed"][0] = True
    assert paired(made).tolist() == [0, 0]
    made["other"][0] = 2
    assert paired(made).tolist() == [2, 1]
    assert paired(made[:0]).tolist() == []


def test_it_finds_what_a_search_row_by_row_finds() -> None:
    source = random.Random(1)

    def n() -> int:
        return source.randrange(1, 3)

    for _ in range(200):
        made = rows(*((k, n(), n(), n(), n(), n()) for k in range(1, source.randrange(2, 12))))
        found = paired(made).tolist()
        for row, other in zip(made, found, strict=True):
            if other:
                (mate,) = (r for r in made if r["cookie"] == other)
                assert (row["src"][1], row["sport"]) == (mate["dst"][1], mate["dport"])
                assert (row["dst"][1], row["dport"]) == (mate["src"][1], mate["sport"])
                assert found[[*made["cookie"]].index(other)] == row["cookie"]


def test_a_connection_counts_once_before_and_after_its_diagnosis() -> None:
    book = Book("b")
    ends = [
        (
            Sock(k, tcp.FIN_WAIT2, netns=1, sport=40000 + k, dport=80, other=100 + k, since_ns=1000 * S),
            Sock(
                100 + k,
                tcp.CLOSE_WAIT,
                netns=2,
                sport=80,
                dport=40000 + k,
                other=k,
                since_ns=1000 * S,
                turned=True,
            ),
        )
        for k in range(1, 24)
    ]
    socks = [end for pair in ends for end in pair]
    for seconds in (1000, 1020):
        now = Instant(seconds * S, WALL + seconds * S)
        book.walked([table(socks, now.boot_ns)], (1, 2), now)
    assert book.open == 46
    assert len(book.speaking(())[0]) == 23
    book.diagnosed(said(socks, [cause_of(s) for s in socks]), now, everything=True)
    assert len(book.speaking(())[0]) == 23

"""The other end: by the reversed tuple, through NAT, by the client alone; never by a guess."""

from __future__ import annotations

from typing import Any

import numpy as np

from finwait.attribution.other_end import DIRECT, HALF, NAT, NONE, other_ends
from finwait.diagnosis.assemble import loopback
from finwait.table.flows import FlowTable
from finwait.table.sockets import SocketTable, pack_address
from finwait.uapi import tcp

Row = tuple[int, str, int, str, int, int]  # netns, src, sport, dst, dport, state


def table(rows: list[Row], **more: list[Any]) -> SocketTable:
    return SocketTable.from_columns(
        {
            "netns": [r[0] for r in rows],
            "protocol": [6] * len(rows),
            "family": [10 if ":" in r[1] else 2 for r in rows],
            "src": np.array([pack_address(r[1]) for r in rows], np.uint64).reshape(-1, 2),
            "sport": [r[2] for r in rows],
            "dst": np.array([pack_address(r[3]) for r in rows], np.uint64).reshape(-1, 2),
            "dport": [r[4] for r in rows],
            "state": [r[5] for r in rows],
            **more,
        }
    )


def flows(entries: list[tuple[tuple[str, int, str, int], tuple[str, int, str, int]]]) -> FlowTable:
    def words(k: int, at: int) -> np.ndarray[Any, Any]:
        return np.array([pack_address(str(e[k][at])) for e in entries], np.uint64).reshape(-1, 2)

    columns: dict[str, Any] = {
        "netns": [9] * len(entries),
        "family": [2] * len(entries),
        "protocol": [6] * len(entries),
    }
    for k, prefix in enumerate(("orig_", "reply_")):
        columns |= {
            prefix + "src": words(k, 0),
            prefix + "sport": [e[k][1] for e in entries],
            prefix + "dst": words(k, 2),
            prefix + "dport": [e[k][3] for e in entries],
        }
    return FlowTable.from_columns(columns)


def ends(sockets: SocketTable, entries: FlowTable | None = None) -> tuple[list[int], list[int]]:
    found = other_ends(sockets, entries, loopback(sockets))
    return found.row.tolist(), found.how.tolist()


E, F1, F2, CW, LA = tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.CLOSE_WAIT, tcp.LAST_ACK


def test_the_reversed_tuple_in_another_namespace_is_the_other_end() -> None:
    sockets = table([(1, "10.0.0.1", 4000, "10.0.0.2", 80, F2), (2, "10.0.0.2", 80, "10.0.0.1", 4000, CW)])
    assert ends(sockets) == ([1, 0], [DIRECT, DIRECT])


def test_a_mapped_address_and_its_ipv4_address_are_the_same() -> None:
    sockets = table(
        [(1, "10.0.0.1", 4000, "10.0.0.2", 80, E), (2, "10.0.0.2", 80, "10.0.0.1", 4000, E)], family=[2, 10]
    )
    assert ends(sockets)[0] == [1, 0]


def test_loopback_addresses_are_compared_only_within_a_namespace() -> None:
    rows = [
        (n, *t)
        for n in (1, 2)
        for t in (("127.0.0.1", 5, "127.0.0.1", 6, E), ("127.0.0.1", 6, "127.0.0.1", 5, E))
    ]
    assert ends(table(rows))[0] == [1, 0, 3, 2]


def test_a_socket_connected_to_itself_has_no_other_end() -> None:
    assert ends(table([(1, "127.0.0.1", 5, "127.0.0.1", 5, E)])) == ([-1], [NONE])


def test_two_candidates_are_none_and_said_to_be_two() -> None:
    rows = [
        (1, "10.0.0.1", 4000, "10.0.0.2", 80, E),
        (2, "10.0.0.2", 80, "10.0.0.1", 4000, E),
        (3, "10.0.0.2", 80, "10.0.0.1", 4000, E),
    ]
    found = other_ends(table(rows), None, loopback(table(rows)))
    assert found.row.tolist() == [-1, -1, -1]
    assert found.ambiguous.tolist() == [True, True, True]


def test_whose_only_candidate_fits_another_as_well_has_none() -> None:
    """Two networks with the same addresses; of the second connection one end is gone."""
    rows = [
        (1, "10.0.0.1", 4000, "10.0.0.2", 80, CW),
        (2, "10.0.0.2", 80, "10.0.0.1", 4000, F2),
        (4, "10.0.0.2", 80, "10.0.0.1", 4000, F2),
    ]
    found = other_ends(table(rows), None, loopback(table(rows)))
    assert found.row.tolist() == [-1, -1, -1]
    assert found.how.tolist() == [NONE] * 3
    assert found.ambiguous.all()


PAIR: list[Row] = [(1, "10.0.0.1", 4000, "10.0.0.2", 80, F2), (2, "10.0.0.2", 80, "10.0.0.1", 4000, CW)]


def test_what_fits_in_a_namespace_that_is_not_known_to_be_connected_is_at_best_possible() -> None:
    sockets = table(PAIR)
    for islands in ({1: 1, 2: 2}, {1: 1, 2: None}, {1: 1}):
        found = other_ends(sockets, None, loopback(sockets), islands=islands)
        assert found.row.tolist() == [-1, -1]
        assert found.possible.tolist() == [1, 0]
    for connected in ({1: 1, 2: 1}, {1: None, 2: None}, {}):  # or nobody looked
        found = other_ends(sockets, None, loopback(sockets), islands=connected)
        assert found.row.tolist() == [1, 0]
        assert found.possible.tolist() == [-1, -1]


def test_of_two_that_fit_the_one_that_is_connected_is_the_other_end() -> None:
    sockets = table([*PAIR, (3, *PAIR[1][1:])])
    found = other_ends(sockets, None, loopback(sockets), islands={1: 1, 2: 1, 3: 3})
    assert found.row.tolist() == [1, 0, -1]
    assert found.possible.tolist() == [-1, -1, -1]  # the one that fits is another's
    assert not found.ambiguous.any()


def _addresses(*pairs: tuple[int, str]) -> dict[int, frozenset[tuple[int, int]]]:
    return {number: frozenset({pack_address(text)}) for number, text in pairs}


def test_two_ends_are_at_best_possible_where_connected_namespaces_share_the_address_of_one() -> None:
    """Pairs of namespaces with the same addresses, each with a link to one host: what is left of two fits."""
    client: Row = (1, "10.0.0.1", 5000, "10.0.0.2", 80, F2)
    server: Row = (4, "10.0.0.2", 80, "10.0.0.1", 5000, CW)
    one_host = dict.fromkeys((1, 2, 3, 4, 9), 1)
    first, second = ((1, "10.0.0.1"), (2, "10.0.0.2")), ((3, "10.0.0.1"), (4, "10.0.0.2"))
    left = table([client, server])
    found = other_ends(left, None, loopback(left), islands=one_host, addresses=_addresses(*first, *second))
    assert (found.row.tolist(), found.possible.tolist()) == ([-1, -1], [1, 0])
    for more in (first[1:], second[:1]):  # one of the two addresses is enough
        known = _addresses(first[0], second[1], *more)
        assert other_ends(left, None, loopback(left), islands=one_host, addresses=known).row.tolist() == [
            -1,
            -1,
        ]
    alone = _addresses(first[0], second[1], (9, "10.0.0.9"))
    assert other_ends(left, None, loopback(left), islands=one_host, addresses=alone).row.tolist() == [1, 0]
    apart = {1: 1, 4: 1, 2: 2, 3: 2}
    known = _addresses(*first, *second)
    assert other_ends(left, None, loopback(left), islands=apart, addresses=known).row.tolist() == [1, 0]


def test_what_several_possible_ends_fit_is_ambiguous_and_not_without_an_end() -> None:
    rows: list[Row] = [
        (netns, *ends)
        for netns, ends in (
            (1, ("10.0.0.1", 5000, "10.0.0.2", 80, E)),
            (2, ("10.0.0.2", 80, "10.0.0.1", 5000, E)),
            (3, ("10.0.0.1", 5000, "10.0.0.2", 80, E)),
            (4, ("10.0.0.2", 80, "10.0.0.1", 5000, E)),
        )
    ]
    known = _addresses((1, "10.0.0.1"), (2, "10.0.0.2"), (3, "10.0.0.1"), (4, "10.0.0.2"))
    sockets = table(rows)
    found = other_ends(
        sockets, None, loopback(sockets), islands=dict.fromkeys((1, 2, 3, 4), 1), addresses=known
    )
    assert found.row.tolist() == found.possible.tolist() == [-1] * 4
    assert found.ambiguous.all()
    found = other_ends(sockets, None, loopback(sockets), islands={1: 1, 2: 2, 3: 3, 4: 4})
    assert found.ambiguous.all()


def test_an_entry_does_not_join_namespaces_that_are_not_connected() -> None:
    sockets = table([(1, "10.0.0.1", 4000, "10.96.0.1", 80, E), (2, "10.1.0.2", 8080, "10.0.0.1", 4000, E)])
    found = other_ends(sockets, flows([DNAT]), loopback(sockets), islands={1: 1, 2: 2, 9: 1})
    assert found.row.tolist() == [-1, -1]
    assert found.possible.tolist() == [1, 0]


QUIET: dict[str, list[Any]] = {"last_data_sent_ms": [5000, 5000], "last_data_recv_ms": [5000, 5000]}


def test_ends_that_have_counted_what_cannot_be_of_one_connection_are_not_joined() -> None:
    def joined(acked: list[int], received: list[int], wqueue: int = 0, state: int = F2, **more: Any) -> bool:
        rows = [(1, "10.0.0.1", 4000, "10.0.0.2", 80, state), PAIR[1]]
        counts = {"bytes_acked": acked, "bytes_received": received, "wqueue": [wqueue, 0]}
        return ends(table(rows, **counts, **(QUIET | more)))[0] == [1, 0]

    assert joined([7, 1], [0, 6])  # SYN and FIN are counted as well
    assert not joined([7, 1], [0, 501])  # more than was sent
    assert not joined([501, 1], [0, 6])  # less than was acknowledged
    assert joined([7, 1], [0, 501], wqueue=495)  # its acknowledgment is lost
    assert joined([7, 1], [0, 501], last_data_sent_ms=[10, 5000])  # it moves: two dumps differ
    assert joined([0, 500], [0, 500], state=tcp.SYN_SENT)  # one end opens anew


def test_a_listener_is_nobody_s_other_end() -> None:
    rows = [(1, "10.0.0.1", 80, "0.0.0.0", 0, tcp.LISTEN), (1, "0.0.0.0", 0, "10.0.0.1", 80, tcp.CLOSE)]
    assert ends(table(rows))[0] == [-1, -1]


DNAT = (("10.0.0.1", 4000, "10.96.0.1", 80), ("10.1.0.2", 8080, "10.0.0.1", 4000))


def test_a_translated_connection_is_followed_through_its_entry() -> None:
    rows = [(1, "10.0.0.1", 4000, "10.96.0.1", 80, E), (2, "10.1.0.2", 8080, "10.0.0.1", 4000, E)]
    assert ends(table(rows)) == ([-1, -1], [NONE, NONE])
    assert ends(table(rows), flows([DNAT])) == ([1, 0], [NAT, NAT])


def test_destination_and_source_translated_in_two_places_are_followed() -> None:
    masquerade = (("10.0.0.1", 4000, "10.1.0.2", 8080), ("10.1.0.2", 8080, "172.16.0.9", 61000))
    rows = [(1, "10.0.0.1", 4000, "10.96.0.1", 80, E), (2, "10.1.0.2", 8080, "172.16.0.9", 61000, E)]
    assert ends(table(rows), flows([DNAT, masquerade])) == ([1, 0], [NAT, NAT])


def test_entries_that_translate_in_a_circle_end() -> None:
    circle = [
        (("10.0.0.1", 1, "10.0.0.2", 1), ("10.0.0.3", 1, "10.0.0.1", 1)),
        (("10.0.0.1", 1, "10.0.0.3", 1), ("10.0.0.2", 1, "10.0.0.1", 1)),
    ]
    assert ends(table([(1, "10.0.0.1", 1, "10.0.0.2", 1, E)]), flows(circle)) == ([-1], [NONE])


LOST: list[Row] = [(1, "10.0.0.1", 4000, "10.96.0.1", 80, LA), (2, "10.1.0.2", 8080, "10.0.0.1", 4000, F2)]
COUNTS: dict[str, list[Any]] = {"timer": [1, 0], "bytes_acked": [8, 3], "bytes_received": [3, 7]}
"""The SYN was acknowledged as well."""


def half(
    rows: list[Row], entries: FlowTable | None = None, *, known: bool = True, own: str = "", **more: list[Any]
) -> tuple[list[int], list[int]]:
    sockets = table(rows, **{**COUNTS, **more})
    local = frozenset({pack_address(own)}) if own else frozenset()
    found = other_ends(sockets, entries, loopback(sockets), untranslated=local if known else None)
    return found.row.tolist(), found.how.tolist()


def test_without_an_entry_the_client_s_address_alone_joins_a_lost_pair() -> None:
    assert half(LOST) == ([1, 0], [HALF, HALF])


def test_where_entries_may_exist_that_were_not_read_no_pair_is_lost() -> None:
    assert half(LOST, known=False) == ([-1, -1], [NONE, NONE])


def test_an_address_that_nobody_translates_is_no_service_s() -> None:
    assert half(LOST, own="10.96.0.1") == ([-1, -1], [NONE, NONE])


def test_ends_that_counted_differently_are_not_of_one_connection() -> None:
    assert half(LOST, bytes_received=[3, 4000]) == ([-1, -1], [NONE, NONE])
    assert half(LOST, bytes_acked=[8, 4000]) == ([-1, -1], [NONE, NONE])


def test_a_client_that_is_not_retransmitting_is_not_joined_by_its_address() -> None:
    rows = [(1, "10.0.0.1", 4000, "10.96.0.1", 80, E), LOST[1]]
    assert half(rows, timer=[0, 0]) == ([-1, -1], [NONE, NONE])


def test_an_entry_that_lives_is_not_a_lost_pair() -> None:
    rows = [(1, "10.0.0.1", 4000, "10.96.0.1", 80, F1), LOST[1]]
    elsewhere = (("10.0.0.1", 4000, "10.96.0.1", 80), ("10.7.7.7", 8080, "10.0.0.1", 4000))
    assert half(rows, flows([elsewhere])) == ([-1, -1], [NONE, NONE])

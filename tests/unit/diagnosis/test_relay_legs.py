"""Which legs of a relay belong together: named where one way fits, and as a set where several do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from finwait.diagnosis import catalogue, engine, hint
from finwait.diagnosis.finding import Evidence, Finding
from finwait.diagnosis.view import View
from finwait.uapi import tcp
from tests.unit.diagnosis.views import primary, socket, view

DOOR = socket(state=tcp.LISTEN, inode=5, sport=80, src="0.0.0.0", dst="0.0.0.0", dport=0)
KEEPALIVE = {"timer": 2, "expires_ms": 3000}


def wait(k: int, age: int = 60_000, got: int = 10, gave: int = 0, **more: Any) -> dict[str, Any]:
    """The leg of client ``k``, which has sent ``got`` bytes and a FIN."""
    clocks = {"last_ack_recv_ms": age, "last_data_recv_ms": 90_000, "last_data_sent_ms": 90_000}
    counts = {"bytes_received": got + 1, "bytes_acked": gave}
    cells = {"state": tcp.CLOSE_WAIT, "inode": 100 + k, "cookie": 100 + k, "sport": 80, "dport": 4000 + k}
    return socket(**cells, shutdown=1, **clocks, **counts) | more


def half(k: int, age: int = 60_000, gave: int = 10, got: int = 0, **more: Any) -> dict[str, Any]:
    """The leg that a relay opened for client ``k``, on which it has sent ``gave`` bytes and a FIN."""
    clocks = {"last_ack_recv_ms": age, "last_data_recv_ms": 90_000, "last_data_sent_ms": 90_000}
    counts = {"bytes_received": got, "bytes_acked": gave + 2}
    cells = {"state": tcp.FIN_WAIT2, "inode": 200 + k, "cookie": 200 + k, "sport": 5000 + k, "dport": 8080}
    return socket(**cells, dst="192.0.2.9", shutdown=2, **clocks, **counts) | more


def relay(*legs: dict[str, Any]) -> View:
    return view(DOOR, *legs, holders={5: [9]} | {leg["inode"]: [9] for leg in legs})


def sets(v: View) -> list[tuple[list[int], list[int], str]]:
    """Cookies of both sides of each set, and what decided."""
    of = v.sockets.cookie
    told = (
        (sorted(of[one.wait].tolist()), sorted(of[one.half].tolist()), one.by) for one in v.relay_legs.sets
    )
    return sorted(told)


def found(v: View, row: int | None = None) -> Finding:
    """The finding of relay pairs; what it says of one leg."""
    told = [f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "relay-pair"]
    (one,) = (f for f in told if row is None or (f.rows == row).any())
    if row is None:
        return one
    rows = np.array([row], np.int64)
    rule = catalogue.rule("relay-pair")
    assert rule.remedies is not None
    assert rule.observe is not None
    return replace(one, rows=rows, evidence=rule.observe(v, rows), ends_it=rule.remedies(v, rows))


def said(finding: Finding, column: str) -> Evidence:
    (one,) = (e for e in finding.evidence if e.column == column)
    return one


def test_ages_that_fit_in_one_way_name_the_other_leg() -> None:
    v = relay(wait(1, 60_000), half(1, 60_010), wait(2, 50_000), half(2, 50_010))
    assert sets(v) == [([101], [201], "age"), ([102], [202], "age")]
    leg = said(found(v, 1), "other leg")
    assert leg.value == "10.0.0.1:5001 → 192.0.2.9:8080"
    assert "the ages of both agree, and no other leg" in leg.says


def test_legs_of_one_age_are_a_set_of_which_no_partner_is_named() -> None:
    v = relay(*(leg for k in range(6) for leg in (wait(k), half(k))))
    assert sets(v) == [([100, 101, 102, 103, 104, 105], [200, 201, 202, 203, 204, 205], "age")]
    assert primary(v)[1:] == ["relay-pair"] * 12
    assert said(found(v), "legs").value == "CLOSE_WAIT ×6, FIN_WAIT2 ×6"
    assert said(found(v), "partners").value == "unknown in 6 of 6 pairs"
    assert found(v).confidence.reason.startswith("6 pairs in one process")
    leg = said(found(v, 1), "other leg")
    assert leg.value == "one of 6"
    assert all(f"10.0.0.1:500{k}" in leg.says for k in range(6))


@pytest.mark.parametrize("more", [{}, KEEPALIVE], ids=["by age", "keepalive"])
def test_bytes_tell_apart_legs_that_fit_otherwise(more: dict[str, Any]) -> None:
    legs = [wait(k, got=10 * k, gave=7, **more) for k in range(4)]
    legs += [half(k, gave=10 * k, got=7, **more) for k in (3, 1, 0, 2)]
    v = relay(*legs)
    assert sets(v) == [([100 + k], [200 + k], "bytes") for k in range(4)]
    assert "to the byte" in said(found(v, 1), "other leg").says


def test_a_byte_more_or_less_tells_nothing_apart() -> None:
    v = relay(wait(1, got=10), half(1, gave=10), wait(2, got=11), half(2, gave=11))
    assert sets(v) == [([101, 102], [201, 202], "age")]


def test_the_answers_that_came_back_tell_legs_apart_as_well() -> None:
    v = relay(wait(1, gave=100), half(1, got=200), wait(2, gave=200), half(2, got=100))
    assert sets(v) == [([101], [202], "bytes"), ([102], [201], "bytes")]


def test_bytes_that_a_relay_changes_tell_nothing() -> None:
    """One leg's count equals another's by chance; that not every leg finds an equal says that none of them is meant."""
    v = relay(wait(1, got=100), half(1, gave=180), wait(2, got=180), half(2, gave=260))
    assert sets(v) == [([101, 102], [201, 202], "age")]


def test_where_one_side_has_more_legs_an_equal_count_may_be_another_connections() -> None:
    """A relay that puts 40 bytes before what it passes on: client 1 is gone, and its other leg has what 2 has sent."""
    v = relay(wait(2, got=140), half(1, gave=140), half(2, gave=180))
    assert sets(v) == [([102], [201, 202], "age")]


def test_two_legs_that_keepalive_hides_and_that_carried_other_bytes_are_no_pair() -> None:
    assert sets(relay(wait(1, got=999), half(2, gave=100, **KEEPALIVE))) == []
    assert len(sets(relay(wait(1, got=100), half(2, gave=100, **KEEPALIVE)))) == 1


def test_legs_whose_age_keepalive_hides_are_known_only_together() -> None:
    one = relay(wait(1, **KEEPALIVE), half(1, 9, **KEEPALIVE))
    assert sets(one) == [([101], [201], "only")]
    assert "the only legs" in said(found(one, 1), "other leg").says
    v = relay(*(leg for k in range(3) for leg in (wait(k, **KEEPALIVE), half(k, 9 * k, **KEEPALIVE))))
    assert sets(v) == [([100, 101, 102], [200, 201, 202], "only")]
    assert found(v).confidence.level == "possible"
    assert "keepalive hides the age" in found(v).confidence.reason


def test_a_leg_that_is_too_young_for_the_other_is_none_of_its_pair() -> None:
    """The other one has been half-closed for longer than that: so much an answered probe tells."""
    assert sets(relay(wait(1, 20_000), half(1, 60_000, **KEEPALIVE))) == []
    assert sets(relay(wait(1, 60_000), half(1, 20_000, **KEEPALIVE))) == [([101], [201], "only")]


def test_more_legs_on_one_side_than_on_the_other_are_a_loose_set() -> None:
    v = relay(wait(1), wait(2), half(1), wait(3, 9_000))
    assert sets(v) == [([101, 102], [201], "age")]
    assert said(found(v), "legs").value == "CLOSE_WAIT ×2, FIN_WAIT2 ×1"
    assert said(found(v), "CLOSE_WAIT alone").value == "at least 1 of 2"
    assert primary(v)[1:] == ["relay-pair", "relay-pair", "relay-pair", "close-wait-eof-read"]
    assert said(found(v, 3), "other leg").value == "one of 2, or none"
    leg = int(v.relay_legs.sets[0].wait[0])
    assert said(found(v, leg), "other leg").value.startswith("perhaps ")
    assert found(v).confidence.reason.startswith(
        "at most 1 pair among 2 CLOSE_WAIT and 1 FIN_WAIT2 legs in one process; the ages"
    )


def test_of_a_loose_set_nobody_says_whose_move_a_leg_is() -> None:
    """Six pairs; the far ends of four have closed (the relay has to close those), two wait for the backend."""
    v = relay(*(wait(k) for k in range(6)), half(4), half(5))
    one = found(v)
    assert one.rows.tolist() == [*range(1, 9)]
    assert (one.turn.whose, one.variant) == ("unknown", 1)
    assert said(one, "CLOSE_WAIT alone").value == "at least 4 of 6"
    assert "which of the 6 they are is not known" in said(one, "CLOSE_WAIT alone").says
    assert not [f for f in engine.diagnose(v, catalogue.rules()) if f.primary and f.rule != "relay-pair"]


def test_byte_counts_that_do_not_fit_leave_a_pair_only_possible() -> None:
    """A request of 5 bytes, and a query of 14 that its program made meanwhile; or a proxy that speaks TLS."""
    v = relay(wait(1, got=5), half(1, gave=14))
    one = found(v)
    assert (one.confidence.level, one.turn.whose) == ("possible", "unknown")
    assert "the ages of the legs agree within 250 ms, but the byte counts do not fit" in one.confidence.reason
    assert one.confidence.reason.startswith("perhaps 1 pair in one process; ")
    assert "nothing to do with each other" in one.title
    leg = said(found(v, 1), "other leg")
    assert leg.value == "perhaps 10.0.0.1:5001 → 192.0.2.9:8080"
    assert "the byte counts do not" in leg.says
    # Nothing but `clear` of both ends one of them.
    assert not v.relay_legs.sets[0].known


def test_a_pair_says_whether_its_bytes_fit_its_ages() -> None:
    assert "agree within 250 ms, and the byte counts fit" in found(relay(wait(1), half(1))).confidence.reason
    uncounted = [{k: v for k, v in leg.items() if not k.startswith("bytes")} for leg in (wait(1), half(1))]
    told = found(relay(*uncounted)).confidence
    assert told.level == "likely"
    assert "agree within 250 ms; a program" in told.reason


def test_a_pair_whose_bytes_do_not_fit_takes_nothing_from_those_that_do() -> None:
    v = relay(wait(1), half(1), wait(2, 9_000, got=5), half(2, 9_000, gave=14))
    levels = {
        f.confidence.level: v.sockets.cookie[f.rows].tolist()
        for f in engine.diagnose(v, catalogue.rules())
        if f.rule == "relay-pair"
    }
    assert levels.keys() == {"likely", "possible"}
    assert sorted(levels["likely"]) == [101, 201]


def test_legs_for_which_neither_age_nor_bytes_speak_are_no_set() -> None:
    """A server with keepalive that leaks, and one query of its own, half-closed at any time."""
    leaked = [wait(k, got=5 + 3 * k, **KEEPALIVE) for k in range(6)]
    assert sets(relay(*leaked, half(9, gave=100, **KEEPALIVE))) == []
    assert len(sets(relay(*leaked, half(9, gave=5, **KEEPALIVE)))) == 1


FATES = ("both", "wait", "half")
"""What is left of a pair: both legs; the one that its client closed; the one on which the far server is waited for."""


@given(
    st.lists(st.tuples(st.sampled_from(FATES), st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=8),
    st.randoms(),
)
def test_whatever_the_true_pairs_are_no_statement_about_a_leg_contradicts_them(
    pairs: list[tuple[str, int, int]], shuffled: Any
) -> None:
    legs = []
    for k, (fate, step, size) in enumerate(pairs):
        age, sent = 10_000 + 20_000 * step, 10 + 30 * size
        legs += [wait(k, age, got=sent)] if fate != "half" else []
        legs += [half(k, age, gave=sent)] if fate != "wait" else []
    shuffled.shuffle(legs)
    v = relay(*legs)
    whole = {k for k, (fate, _, _) in enumerate(pairs) if fate == "both"}
    cookie = v.sockets.cookie.tolist()
    for f in engine.diagnose(v, catalogue.rules()):
        if not f.primary:
            continue
        for row in f.rows.tolist():
            leg, waits = cookie[row] % 100, cookie[row] < 200
            legs_of = v.relay_legs.of(row)
            if legs_of is not None and not legs_of.loose:
                continue  # legs that fit and are as many on both sides: "likely", not certain
            right = "peer" if not waits or leg in whole else "holder"
            assert f.turn.whose in (right, "unknown"), (cookie[row], f.turn)
    for one in v.relay_legs.sets:
        waits, halves = ({n % 100 for n in v.sockets.cookie[side].tolist()} for side in (one.wait, one.half))
        if one.loose:
            assert len(waits & halves & whole) <= one.pairs
            assert not one.known
            evidence = {e.column: e for e in found(v, int(one.wait[0])).evidence}
            if len(waits) > len(halves):
                assert (
                    evidence["CLOSE_WAIT alone"].value
                    == f"at least {len(waits) - len(halves)} of {len(waits)}"
                )
                assert len(waits - whole) >= len(waits) - len(halves)
            for row in one.rows.tolist():
                assert (
                    "none" in said(found(v, row), "other leg").value
                    or "perhaps" in said(found(v, row), "other leg").value
                )


def test_a_process_with_one_pair_tells_it_apart_from_its_parent_that_holds_all() -> None:
    legs = [leg for k in range(3) for leg in (wait(k), half(k))]
    holders = {5: [9]} | {leg["inode"]: [9, 10 + leg["inode"] % 100] for leg in legs}
    assert sets(view(DOOR, *legs, holders=holders)) == [([100 + k], [200 + k], "age") for k in range(3)]


def test_what_ends_one_leg_names_all_that_have_to_be_ended() -> None:
    """Ended alone, a leg leaves the other: the printed command selects both, or all that may be the other."""

    def command(v: View) -> str:
        finding = found(v, 1)
        (end,) = (r for r in finding.ends_it if r.clears)
        return hint.command_of(end, "relay-pair", "cookie = 0x65", hint.NOTHING_ASKED).command

    known = relay(wait(1), half(1), wait(2, 9_000), half(2, 9_000))
    assert command(known) == "finwait clear netns = 1 and cookie = 0x65, 0xc9"
    assert "cookie = 0x65, 0x66, 0xc9, 0xca" in command(relay(wait(1), wait(2), half(1), half(2)))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60)), min_size=1, max_size=7), st.randoms())
def test_no_partner_is_named_that_another_way_to_pair_the_legs_would_change(
    clients: list[tuple[int, int]], shuffled: Any
) -> None:
    """The truth is one of the ways that fit: a pair that is told as known is a pair in it."""
    ages = [10_000 + 100 * step for step, _ in clients]
    legs = [wait(k, age, got=0) for k, age in enumerate(ages)]
    legs += [
        half(k, age + jitter, gave=0) for k, (age, (_, jitter)) in enumerate(zip(ages, clients, strict=True))
    ]
    shuffled.shuffle(legs)
    v = relay(*legs)
    told = v.relay_legs.sets
    assert sum(one.pairs for one in told) == len(clients)
    for one in told:
        if one.known:
            assert int(v.sockets.cookie[one.wait[0]]) + 100 == int(v.sockets.cookie[one.half[0]])


def test_a_diagnosis_of_very_many_legs_takes_no_square_of_time() -> None:
    legs = [leg for k in range(3000) for leg in (wait(k, 60_000 + k % 7), half(k, 60_000 + k % 5))]
    v = relay(*legs)
    (one,) = v.relay_legs.sets
    assert one.pairs == 3000
    assert len(engine.diagnose(v, catalogue.rules())) > 0

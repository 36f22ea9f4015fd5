"""The closing of a connection, told from its packets."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from finwait.diagnosis.closing import Closing, EndFacts, Ending, Kind, possible
from finwait.diagnosis.closings import Closings, closings
from finwait.diagnosis.stream import ResetStanding
from finwait.report.closing import diagram, verdict
from finwait.table.sockets import pack_address
from finwait.uapi.segment import Segment

A, B = (pack_address("10.0.0.1"), 40000), (pack_address("10.0.0.2"), 80)
FLAGS = {"F": 1, "S": 2, "R": 4, "A": 16}


def say(*script: tuple, start: int = 1_700_000_000_000_000_000) -> list[Segment]:
    """``(ms, who, flags, seq, ack[, payload[, interface]])``."""
    out = []
    for ms, who, flags, seq, ack, *more in script:
        (src, sport), (dst, dport) = (A, B) if who == "a" else (B, A)
        out.append(
            Segment(
                start + int(ms * 1e6), src, dst, sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF,
                sum(FLAGS[f] for f in flags), 500, more[0] if more else 0, None, more[1] if len(more) > 1 else "",
            )
        )  # fmt: skip
    return out


OPEN = [(0, "a", "S", 99, 0), (1, "b", "SA", 199, 100), (2, "a", "A", 100, 200)]


def tell(*script: tuple) -> Closing:
    (closing,) = closings(say(*OPEN, *script))
    return closing


def states(c: Closing) -> tuple[str, str]:
    return " or ".join(c.a.states), " or ".join(c.b.states)


def missing(c: Closing) -> list[str]:
    return [line.split("| ")[1] for line in diagram(c) if "never came" in line]


def test_a_closing_in_order():
    c = tell(
        (10, "a", "FA", 100, 200),
        (11, "b", "A", 200, 101),
        (20, "b", "FA", 200, 101),
        (21, "a", "A", 101, 201),
    )
    assert verdict(c) == "Closed in order: 10.0.0.1:40000 first, 10.0.0.2:80 10.0 ms later."
    assert c.missing == ()
    assert states(c) == ("TIME_WAIT", "CLOSED")
    assert c.opened


def test_a_fin_that_answers_a_fin_acknowledges_it():
    c = tell((10, "a", "FA", 100, 200), (11, "b", "FA", 200, 101), (12, "a", "A", 101, 201))
    assert c.missing == ()
    assert states(c) == ("TIME_WAIT", "CLOSED")


def test_a_half_close_says_whose_fin_never_came():
    c = tell((10, "a", "FA", 100, 200), (50, "b", "A", 200, 101))
    assert states(c) == ("FIN_WAIT2", "CLOSE_WAIT")
    assert missing(c) == ["a FIN from 10.0.0.2:80"]
    assert verdict(c).startswith("Half closed: 10.0.0.1:40000 is done")


def test_a_half_close_that_still_carries_data_says_how_much():
    c = tell(
        (10, "a", "FA", 100, 200),
        (11, "b", "A", 200, 101),
        (12, "b", "A", 200, 101, 1000),
        (13, "b", "A", 1200, 101, 24),
    )
    assert "went on sending (1024 bytes)" in verdict(c)
    assert any(step.payload == 1024 and step.count == 2 for step in c.steps)


def test_a_fin_that_nobody_acknowledges():
    c = tell((10, "a", "FA", 100, 200), (210, "a", "FA", 100, 200), (610, "a", "FA", 100, 200))
    assert states(c) == ("FIN_WAIT1", "ESTABLISHED or CLOSE_WAIT")
    assert verdict(c) == "10.0.0.1:40000 sent a FIN (3 times) and nobody acknowledged it."
    assert missing(c) == ["the ACK of the FIN from 10.0.0.1:40000", "a FIN from 10.0.0.2:80"]


def test_a_last_ack_that_never_came():
    c = tell(
        (10, "a", "FA", 100, 200),
        (11, "b", "A", 200, 101),
        (20, "b", "FA", 200, 101),
        (220, "b", "FA", 200, 101),
    )
    assert states(c) == ("FIN_WAIT2 or TIME_WAIT", "LAST_ACK")
    assert missing(c) == ["the ACK of the FIN from 10.0.0.2:80"]


def test_both_at_once():
    c = tell(
        (10, "a", "FA", 100, 200),
        (10.5, "b", "FA", 200, 100),
        (11, "a", "A", 101, 201),
        (11.5, "b", "A", 201, 101),
    )
    assert "both at once" in verdict(c)
    assert states(c) == ("TIME_WAIT", "TIME_WAIT")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ([(10, "a", "RA", 100, 200)], "10.0.0.1:40000 reset the connection without a FIN of its own."),
        ([(10, "a", "FA", 100, 200), (11, "b", "R", 200, 0)],
         "10.0.0.2:80 reset the connection without a FIN of its own, in answer to the other end's closing."),
        ([(10, "a", "FA", 100, 200), (11, "b", "A", 200, 101), (12, "a", "R", 101, 0)],
         "10.0.0.1:40000 reset the connection after its own FIN: nobody reads data for it there any more."),
    ],
)  # fmt: skip
def test_a_reset(script, said):
    c = tell(*script)
    assert verdict(c) == said
    assert states(c) == ("CLOSED", "CLOSED")


def test_nothing_closed():
    c = tell((10, "a", "A", 100, 200, 50))
    assert verdict(c).startswith("No FIN and no RST")
    assert c.steps == ()


def test_the_ack_of_a_fin_that_wraps_is_recognised():
    top = 0xFFFFFFFF
    start = ((0, "b", "A", 499, top), (0.5, "b", "A", 499, top, 1))  # new data: it had not closed
    c = next(closings(say(*start, (1, "a", "FA", top, 500), (2, "b", "A", 500, 0))))
    assert states(c) == ("FIN_WAIT2", "CLOSE_WAIT")
    c = next(closings(say(*start, (1, "a", "FA", top, 500), (2, "b", "A", 500, top))))
    assert states(c)[0] == "FIN_WAIT1"


def test_a_copy_on_a_second_interface_is_not_a_retransmission():
    c = tell(
        (10, "a", "FA", 100, 200, 0, "veth"),
        (10.02, "a", "FA", 100, 200, 0, "cni0"),
        (11, "b", "A", 200, 101),
    )
    assert c.copies == 1
    assert sum(step.kind is Kind.FIN for step in c.steps) == 1


def test_a_new_connection_on_the_same_numbers_is_another_story():
    later = [(ms + 1000, *rest) for ms, *rest in OPEN]
    found = list(closings(say(*OPEN, (10, "a", "R", 100, 0), *later, (1010, "a", "FA", 100, 200))))
    assert [c.a.states[0] for c in found] == ["CLOSED", "FIN_WAIT1"]


def test_keepalive_probes_after_a_half_close_are_counted_as_such():
    c = tell(
        (10, "a", "FA", 100, 200),
        (11, "b", "A", 200, 101),
        (1000, "a", "A", 100, 200),
        (2000, "a", "A", 100, 200),
    )
    assert any((step.kind, step.count) == (Kind.KEEPALIVE, 2) for step in c.steps)
    assert states(c)[0] == "FIN_WAIT2"


def test_the_diagram_of_a_half_close():
    c = tell((10, "a", "FA", 100, 200), (50, "b", "A", 200, 101))
    assert diagram(c) == [
        "             10.0.0.1:40000                      10.0.0.2:80",
        "             client                              server",
        "    0.000 ms |------------ FIN,ACK ------------>| done sending",
        "   40.000 ms |<-------------- ACK --------------| acknowledges the FIN",
        "             |<........... never came ..........| a FIN from 10.0.0.2:80",
        "             FIN_WAIT2                           CLOSE_WAIT",
        "Half closed: 10.0.0.1:40000 is done, 10.0.0.2:80 acknowledged it; a FIN of its own has not come.",
    ]


def test_a_long_closing_is_drawn_by_its_ends():
    many = [
        (20 + 10 * k, "b", "A", 200 + 10 * k, 101, 10) if k % 2 else (20 + 10 * k, "a", "FA", 100, 200)
        for k in range(100)
    ]
    lines = diagram(tell((10, "a", "FA", 100, 200), *many), most=10)
    assert sum("…" in line for line in lines) == 1
    assert len(lines) < 20


# -- what an end may be in ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "acked", "received", "first", "found"),
    [
        (False, False, False, None, "ESTABLISHED"),
        (False, False, True, None, "CLOSE_WAIT"),
        (True, False, False, None, "FIN_WAIT1"),
        (True, True, False, None, "FIN_WAIT2"),
        (True, False, True, True, "CLOSING"),
        (True, True, True, True, "TIME_WAIT"),
        (True, False, True, False, "LAST_ACK"),
        (True, True, True, False, "CLOSED"),
        (True, None, True, False, "LAST_ACK CLOSED"),
        (True, True, None, False, "FIN_WAIT2 CLOSED"),
        (False, False, None, None, "ESTABLISHED CLOSE_WAIT"),
        (None, True, True, True, "CLOSE_WAIT TIME_WAIT"),
    ],
)
def test_four_facts_make_the_states_that_are_possible(sent, acked, received, first, found):
    assert list(possible(EndFacts(sent, acked, received, first))) == found.split()


def test_nothing_known_leaves_every_state():
    assert len(possible(EndFacts(None, None, None, None))) == 8


BOTH = [(5, "b", "FA", 200, 100), (6, "a", "FA", 100, 201), (7, "b", "A", 201, 101)]


def test_a_fin_that_is_sent_again_after_its_ack_was_not_closed_in_order():
    again = [
        part
        for k in range(7)
        for part in ((210 * 2**k, "a", "FA", 100, 201), (210 * 2**k + 1, "b", "A", 201, 101))
    ]
    c = tell(*BOTH, *again)
    assert c.outcome is Ending.UNHEARD
    assert states(c) == ("LAST_ACK", "TIME_WAIT")
    assert "10.0.0.1:40000 sent its FIN again 7 times after 10.0.0.2:80 had acknowledged it" in verdict(c)
    assert c.missing == ()


def test_a_fin_that_was_sent_again_once_may_have_crossed_its_ack():
    c = tell(*BOTH, (250, "a", "FA", 100, 201), (251, "b", "A", 201, 101))
    assert c.outcome is Ending.UNHEARD
    assert states(c) == ("LAST_ACK or CLOSED", "TIME_WAIT")
    assert "or the two crossed on the way" in verdict(c)


def test_a_fin_that_was_sent_twice_before_its_ack_is_in_order():
    c = tell(*BOTH[:2], (206, "a", "FA", 100, 201), (207, "b", "A", 201, 101))
    assert c.outcome is Ending.IN_ORDER


def test_data_that_is_sent_again_after_both_fins_were_acknowledged_is_no_order():
    c = tell((3, "a", "A", 100, 200, 50), (4, "b", "A", 200, 150), (5, "b", "FA", 200, 150),
             (6, "a", "FA", 150, 201), (7, "b", "A", 201, 151), (300, "a", "A", 100, 201, 50))  # fmt: skip
    assert c.outcome is Ending.UNHEARD


def test_an_end_that_has_fallen_silent_has_given_up():
    fins = [(10 + 200 * (2**k - 1), "a", "FA", 100, 200) for k in range(4)]
    segments = say(*OPEN, *fins)
    book = Closings()
    for one in segments:
        book.feed(one)
    last = segments[-1].time_ns
    (soon,) = book.told(last + 1_000_000_000)
    (later,) = book.told(last + 60_000_000_000)
    assert (soon.a.states, later.a.states) == (("FIN_WAIT1",), ("CLOSED",))
    assert "gave up" not in verdict(soon)
    assert "gave up" in verdict(later)


# -- captures that began in the middle, or see one direction --------------------------------------------------


def middle(*script: tuple) -> Closing:
    (closing,) = closings(say(*script))
    return closing


def test_a_fin_in_the_middle_does_not_say_that_the_other_end_has_not_closed():
    c = middle(
        (0, "a", "A", 100, 200), (1, "b", "A", 200, 100), (10, "a", "FA", 100, 200), (11, "b", "A", 200, 101)
    )
    assert c.outcome is Ending.HALF_OR_CLOSED
    assert states(c) == ("FIN_WAIT2 or CLOSED", "CLOSE_WAIT or TIME_WAIT")
    assert c.missing == ()
    assert "does not show" in verdict(c)


def test_new_data_in_the_middle_says_that_its_sender_had_not_closed():
    c = middle(
        (0, "b", "A", 200, 100),
        (1, "b", "A", 200, 100, 10),
        (10, "a", "FA", 100, 210),
        (11, "b", "A", 210, 101),
    )
    assert c.outcome is Ending.HALF_CLOSED
    assert c.missing


def test_the_first_data_in_the_middle_may_be_sent_again_behind_a_fin():
    c = middle((1, "b", "A", 200, 100, 10), (10, "a", "FA", 100, 210), (11, "b", "A", 210, 101))
    assert c.outcome is Ending.HALF_OR_CLOSED


def test_nothing_in_the_middle_is_no_proof_of_a_connection_that_is_open():
    c = middle((0, "a", "A", 99, 200), (1, "b", "A", 200, 100))
    assert c.outcome is Ending.UNSEEN
    assert "does not show" in verdict(c)


def test_both_fins_in_the_middle_tell_everything():
    c = middle((0, "a", "A", 100, 200), *BOTH)
    assert c.outcome is Ending.IN_ORDER
    assert states(c) == ("CLOSED", "TIME_WAIT")


def test_one_direction_says_nothing_about_the_other():
    c = middle(
        (0, "a", "S", 99, 0), (2, "a", "A", 100, 200), (10, "a", "FA", 100, 200), (20, "a", "A", 101, 201)
    )
    assert c.outcome is Ending.ONE_SIDED
    assert c.missing == ()
    assert "Only packets from 10.0.0.1:40000 are in this capture" in verdict(c)
    assert "FIN_WAIT1" in c.a.states
    assert "CLOSED" in c.a.states or "TIME_WAIT" in c.a.states


# -- resets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seq", "standing"),
    [
        (200, ResetStanding.EXACT),
        (205, ResetStanding.WINDOW),
        (199, ResetStanding.OUTSIDE),
        (1 << 20, ResetStanding.OUTSIDE),
    ],
)
def test_only_a_reset_with_the_expected_number_ends_a_connection(seq, standing):
    c = tell((10, "b", "R", seq, 0))
    (step,) = c.steps
    assert step.standing is standing
    assert (c.outcome is Ending.RESET) == (standing is ResetStanding.EXACT)
    if standing is not ResetStanding.EXACT:
        assert states(c) == ("ESTABLISHED", "ESTABLISHED")
        assert "A RST from 10.0.0.2:80" in verdict(c)


def test_a_reset_may_overtake_what_is_on_its_way():
    c = tell((10, "b", "A", 200, 100, 50), (10.1, "b", "RA", 250, 100))
    assert c.outcome is Ending.RESET


def test_the_number_of_a_fin_is_taken_as_well():
    c = tell((10, "b", "FA", 200, 100), (11, "a", "A", 100, 201), (12, "b", "R", 200, 0))
    assert c.outcome is Ending.RESET


def test_a_late_reset_ended_nothing():
    c = tell(*BOTH, (500, "b", "R", 201, 0))
    assert c.outcome is Ending.IN_ORDER
    assert "came after both ends had closed" in verdict(c)


def test_a_reset_that_answers_a_fin_sent_again_did_end_it():
    """The peer's TIME_WAIT is over; LAST_ACK is not."""
    c = tell(*BOTH[:2], (206, "a", "FA", 100, 201), (70_000, "a", "FA", 100, 201), (70_001, "b", "R", 201, 0))
    assert c.outcome is Ending.RESET


def test_a_reset_that_was_not_heard_ended_nothing():
    c = tell((10, "b", "RA", 200, 100), (3000, "a", "A", 100, 200, 20))
    assert c.outcome is not Ending.RESET
    assert "the connection went on" in verdict(c)


def test_a_reset_of_somebody_between_is_not_believed():
    c = tell((10, "b", "RA", 200, 100), (10.5, "b", "A", 200, 100, 20))
    assert c.outcome is not Ending.RESET


def test_a_refused_connection():
    (c,) = closings(say((0, "a", "S", 99, 0), (1, "b", "RA", 0, 100)))
    assert c.outcome is Ending.REFUSED
    (c,) = closings(say((0, "a", "S", 99, 0), (1, "b", "RA", 0, 1)))
    assert c.outcome is Ending.NOT_OPENED


def test_a_scaled_window_is_reckoned_with():
    opened = say((0, "a", "S", 99, 0), (1, "b", "SA", 199, 100), (2, "a", "A", 100, 200))
    scaled = [replace(one, scale=7) if one.flags & 2 else one for one in opened]
    reset = say((10, "b", "R", 200 + 500 * 100, 0))
    for begin, standing in ((opened, ResetStanding.OUTSIDE), (scaled, ResetStanding.WINDOW)):
        (c,) = closings([*begin, *reset])
        assert c.steps[-1].standing is standing


# -- order, repetition, probes ------------------------------------------------------------------------------------


HALF = [(10, "a", "FA", 100, 200), (11, "b", "A", 200, 101)]
LATE = [(20, "b", "A", 300, 101, 100), (21, "b", "A", 200, 101, 100)]


@pytest.mark.parametrize(
    ("one", "two", "kind"),
    [
        ({"tsval": 50}, {"tsval": 49}, Kind.DATA_LATE),
        ({"tsval": 50}, {"tsval": 90}, Kind.DATA_REPAIR),
        ({"ip_id": 7}, {"ip_id": 6}, Kind.DATA_LATE),
        ({"ip_id": 7}, {"ip_id": 8}, Kind.DATA_REPAIR),
        ({"ip_id": 2}, {"ip_id": 65535}, Kind.DATA_LATE),
        ({"ip_id": 2}, {"ip_id": 40000}, Kind.DATA_EITHER),
        ({"tsval": 50, "ip_id": 7}, {"tsval": 50, "ip_id": 8}, Kind.DATA_REPAIR),
        ({}, {}, Kind.DATA_EITHER),
    ],
)
def test_data_that_was_overtaken_is_not_data_again(one, two, kind):
    first, second = say(*LATE)
    (c,) = closings([*say(*OPEN, *HALF), replace(first, **one), replace(second, **two)])
    assert c.steps[-1].kind is kind
    assert c.b.late_bytes == 100 + 100 * (kind is Kind.DATA)


def test_data_that_was_here_before_is_data_again():
    c = tell(*HALF, (20, "b", "A", 200, 101, 100), (300, "b", "A", 200, 101, 100))
    assert c.steps[-1].kind is Kind.DATA_AGAIN


def test_probes_of_a_closed_window_are_told_from_keepalive():
    closed = replace(say((3, "b", "A", 200, 100))[0], window=0)
    probes = say((200, "a", "A", 99, 200), (600, "a", "A", 99, 200))
    (c,) = closings([*say(*OPEN), closed, *probes])
    assert [(s.kind, s.count) for s in c.steps] == [(Kind.WINDOW_PROBE, 2)]
    assert "The receive window of 10.0.0.2:80 is 0" in verdict(c)


def test_a_mirrored_port_shows_an_ack_once():
    ack = replace(say((12, "b", "A", 200, 101))[0], ip_id=9)
    (c,) = closings([*say(*OPEN, *HALF), ack, replace(ack, time_ns=ack.time_ns + 1000)])
    assert c.copies == 1


# -- what the kernel says ---------------------------------------------------------------------------------------------


def stated(state: str, *script: tuple, last: str = "") -> Closing:
    book = Closings()
    tuple_ = (*A, *B)
    book.state([tuple_], state, 0)
    for one in say(*script):
        book.feed(one)
    book.state([tuple_], last or state, 1 << 62)
    (closing,) = book.told()
    return closing


def test_last_ack_means_that_the_peers_fin_has_come():
    c = stated("LAST_ACK", (0, "a", "FA", 100, 201), (1, "b", "A", 201, 101), (400, "a", "FA", 100, 201),
               (401, "b", "A", 201, 101))  # fmt: skip
    assert c.outcome is Ending.UNHEARD
    assert states(c) == ("LAST_ACK", "TIME_WAIT")
    assert not c.missing
    assert "its kernel still says LAST_ACK" in verdict(c)


def test_last_ack_without_any_answer_misses_an_ack_and_no_fin():
    c = stated("LAST_ACK", (0, "a", "FA", 100, 201), (400, "a", "FA", 100, 201))
    assert missing(c) == ["the ACK of the FIN from 10.0.0.1:40000"]
    assert "has not closed" not in verdict(c)


def test_an_ack_that_the_kernel_did_not_take_is_seen_at_once():
    c = stated("ESTABLISHED", (0, "a", "A", 100, 200, 10), (1, "b", "A", 200, 110), (2, "a", "FA", 110, 200),
               (3, "b", "A", 200, 111), last="FIN_WAIT1")  # fmt: skip
    assert c.outcome is Ending.UNHEARD
    assert c.a.states == ("FIN_WAIT1",)


def test_a_reset_that_the_kernel_did_not_take_ended_nothing():
    packets = ((0, "a", "A", 100, 200), (1, "b", "A", 200, 100), (2, "b", "RA", 200, 100))
    assert stated("ESTABLISHED", *packets, last="CLOSED").outcome is Ending.RESET
    c = stated("ESTABLISHED", *packets)
    assert c.outcome is not Ending.RESET
    assert c.a.states == ("ESTABLISHED",)
    assert "the connection went on" in verdict(c)


def test_a_reset_without_anything_before_it_is_unsure_unless_the_kernel_says_so():
    (c,) = closings(say((2, "b", "RA", 200, 100)))
    assert "cannot be checked" in verdict(c)
    assert "cannot be checked" not in verdict(stated("ESTABLISHED", (2, "b", "RA", 200, 100), last="CLOSED"))


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        ("FIN_WAIT2", Ending.HALF_CLOSED),
        ("CLOSE_WAIT", Ending.HALF_CLOSED),
        ("FIN_WAIT1", Ending.UNANSWERED),
        ("LAST_ACK", Ending.LAST_UNANSWERED),
        ("CLOSING", Ending.LAST_UNANSWERED),
        ("TIME_WAIT", Ending.IN_ORDER),
    ],
)
def test_without_a_packet_the_kernel_is_the_only_witness(state, outcome):
    c = stated(state)
    assert c.packets == 0
    assert c.a.states == (state,)
    assert verdict(c)
    if state != "TIME_WAIT":
        assert c.outcome is outcome
        assert "No packet came or went" in verdict(c)
        idle = state in ("FIN_WAIT2", "CLOSE_WAIT")
        assert ("an idle connection sends nothing" in verdict(c)) == idle


def test_each_state_of_one_end_says_something_of_the_other():
    assert "CLOSE_WAIT" in stated("FIN_WAIT2").b.states
    assert "FIN_WAIT2" in stated("CLOSE_WAIT").b.states
    assert "ESTABLISHED" in stated("FIN_WAIT1").b.states
    assert set(stated("LAST_ACK").b.states) & {"FIN_WAIT2", "TIME_WAIT"}
    assert "CLOSE_WAIT" not in stated("LAST_ACK").b.states


# -- bounds -----------------------------------------------------------------------------------------------------------


def test_the_end_of_a_long_closing_is_kept():
    many = [
        (20 + k, "b", "A", 200 + 5 * k, 101, 10) if k % 2 == 0 else (20 + k, "a", "A", 100, 200 + 5 * k)
        for k in range(3000)
    ]
    c = tell((10, "a", "FA", 100, 200), *many, (9000, "b", "FA", 40_000, 101), (9001, "a", "A", 101, 40_001))
    assert c.outcome is Ending.IN_ORDER
    assert len(c.steps) + c.left_out > 2000
    assert len(c.steps) < 500
    assert any(f"{c.left_out + len(c.steps) - 40} more" in line for line in diagram(c))


def test_connections_that_are_given_up_are_counted():
    book = Closings(most=10)
    for port in range(30):
        for one in say((port, "a", "FA", 100, 200)):
            book.feed(replace(one, sport=port))
    assert len(book.told()) == 10
    assert book.given_up == 20
    assert {c.a.end[1] for c in book.told()} | {c.b.end[1] for c in book.told()} >= set(range(20, 30))


@pytest.mark.parametrize(
    ("answer", "connections"),
    [
        ([], 1),
        ([(101, "b", "A", 200, 100)], 1),  # a challenge ACK
        ([(101, "b", "SA", 199, 100)], 1),  # the answer to the first SYN, once more
        ([(101, "a", "SA", 500, 1000)], 1),
        ([(101, "b", "SA", 500, 1000)], 2),
    ],
)
def test_a_syn_with_other_numbers_begins_a_connection_only_once_it_is_answered(answer, connections):
    found = list(closings(say(*OPEN, (100, "a", "S", 999, 0), *answer)))
    assert len(found) == connections
    assert found[-1].opened


def kinds(*script):
    """What each packet of data after a half-close is taken for."""
    steps = []
    for count in range(1, len(script) + 1):
        c = tell(*HALF, *script[:count])
        steps.append(c.steps[-1].kind)
    return steps


def test_a_hole_is_filled_only_by_what_fits_into_it():
    """Bytes 200 to 299 and 400 to 499 come late and in pieces, and then once more."""
    script = (
        (20, "b", "A", 300, 101, 100),
        (21, "b", "A", 500, 101, 100),
        (22, "b", "A", 440, 101, 20),  # the middle of the second
        (23, "b", "A", 200, 101, 50),  # the first half of the first
        (300, "b", "A", 200, 101, 50),
        (301, "b", "A", 440, 101, 20),
        (302, "b", "A", 250, 101, 50),
        (303, "b", "A", 400, 101, 40),
        (304, "b", "A", 460, 101, 40),
        (600, "b", "A", 250, 101, 50),
        (601, "b", "A", 400, 101, 40),
        (602, "b", "A", 460, 101, 40),
    )
    assert kinds(*script) == [
        Kind.DATA,
        Kind.DATA,
        Kind.DATA_EITHER,
        Kind.DATA_EITHER,
        Kind.DATA_AGAIN,
        Kind.DATA_AGAIN,
        Kind.DATA_EITHER,
        Kind.DATA_EITHER,
        Kind.DATA_EITHER,
        Kind.DATA_AGAIN,
        Kind.DATA_AGAIN,
        Kind.DATA_AGAIN,
    ]


@pytest.mark.parametrize(
    ("began", "last", "first"),
    [
        ("ESTABLISHED", "FIN_WAIT1", True),
        ("ESTABLISHED", "FIN_WAIT2", True),
        ("ESTABLISHED", "CLOSING", True),
        ("ESTABLISHED", "TIME_WAIT", True),
        ("ESTABLISHED", "LAST_ACK", False),
        ("CLOSE_WAIT", "LAST_ACK", False),
        ("FIN_WAIT1", "CLOSED", True),
        ("FIN_WAIT2", "TIME_WAIT", True),
        ("LAST_ACK", "CLOSED", False),
    ],
)
def test_who_closed_first_is_what_the_kernel_says_from_the_first_state_in_which_it_has_closed(
    began, last, first
):
    c = stated(began, (5, "a", "A", 101, 201), (6, "b", "A", 201, 101), last=last)
    assert c.a_first is first
    assert c.a.states == (last,)


def test_an_end_has_given_up_only_after_four_times_its_last_interval():
    fins = [(10 * 1000, "a", "FA", 100, 200), (20 * 1000, "a", "FA", 100, 200)]
    book = Closings()
    for one in say(*OPEN, *fins):
        book.feed(one)
    end = say(fins[-1])[0].time_ns
    told = [book.told(end + s * 1_000_000_000)[0].a.states for s in (39, 40, 41)]
    assert told == [("FIN_WAIT1",), ("FIN_WAIT1",), ("CLOSED",)]


@pytest.mark.parametrize(("last", "first"), [("TIME_WAIT", True), ("FIN_WAIT1", True), ("CLOSED", True)])
def test_an_end_that_was_open_when_the_capture_began_may_still_have_closed_first(last, first):
    script = ((5, "a", "FA", 100, 200), (6, "b", "FA", 200, 101), (7, "a", "A", 101, 201))
    c = stated("ESTABLISHED", *script, last=last)
    assert c.a_first is first
    if last != "FIN_WAIT1":
        assert verdict(c) == "Closed in order: 10.0.0.1:40000 first, 10.0.0.2:80 1.0 ms later."


def test_an_end_that_acknowledges_what_is_out_of_sight_was_answered():
    assert middle((0, "a", "S", 99, 0), (1000, "a", "S", 99, 0)).outcome is Ending.NOT_OPENED
    seen = middle((0, "a", "S", 99, 0), (2, "a", "A", 100, 200))
    assert seen.outcome is Ending.UNSEEN

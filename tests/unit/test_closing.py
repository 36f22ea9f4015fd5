"""The closing of a connection, told from its packets."""

from __future__ import annotations

import pytest

from finwait.diagnosis.closing import Closing, Closings, Kind, Outcome, closings
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
         "10.0.0.1:40000 reset the connection after its own FIN."),
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
    c = next(closings(say((1, "a", "FA", top, 500), (2, "b", "A", 500, 0))))
    assert states(c) == ("FIN_WAIT2", "CLOSE_WAIT")
    c = next(closings(say((1, "a", "FA", top, 500), (2, "b", "A", 500, top))))
    assert c.a.states[0] == "FIN_WAIT1"


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
        "Half closed: 10.0.0.1:40000 is done, 10.0.0.2:80 acknowledged it and has not closed.",
    ]


def test_a_long_closing_is_drawn_by_its_ends():
    many = [
        (20 + 10 * k, "b", "A", 200 + 10 * k, 101, 10) if k % 2 else (20 + 10 * k, "a", "FA", 100, 200)
        for k in range(100)
    ]
    lines = diagram(tell((10, "a", "FA", 100, 200), *many), most=10)
    assert sum("…" in line for line in lines) == 1
    assert len(lines) < 20

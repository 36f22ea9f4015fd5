"""One connection seen in several places is told as one."""

from __future__ import annotations

from msgspec.structs import replace

from finwait.diagnosis.closing import Closing, Ending
from finwait.diagnosis.closings import Closings
from finwait.diagnosis.sightings import Sighting, key, sightings
from finwait.report.closing import drawing
from finwait.table.sockets import pack_address
from finwait.uapi.segment import Segment
from tests.unit.diagnosis.test_closing import OPEN, A, B, say

VIP = (pack_address("10.96.0.1"), 8080)
CLOSE = [(10, "a", "FA", 100, 200), (11, "b", "FA", 200, 101), (12, "a", "A", 101, 201)]


def translated(one: Segment) -> Segment:
    """The same segment in front of a translator, which makes B of the service address."""
    one = replace(one, time_ns=one.time_ns - 10_000)
    if (one.dst, one.dport) == B:
        return replace(one, dst=VIP[0], dport=VIP[1])
    return replace(one, src=VIP[0], sport=VIP[1])


def told(*groups: list[Segment], stated: tuple = ()) -> list[Closing]:
    book = Closings()
    for one in sorted((one for group in groups for one in group), key=lambda s: s.time_ns):
        book.feed(one)
    for forms, state, place in stated:
        book.state(forms, state, 1 << 62, place=place)
    return book.told()


def lines(found: Sighting) -> str:
    return " ".join(drawing(found))


def test_two_forms_of_one_connection_are_drawn_once_when_they_show_the_same():
    behind = say(*OPEN, *CLOSE)
    (found,) = sightings(told(behind, [translated(one) for one in behind]))
    assert [also.alike for also in found.also] == [True]
    assert not found.also[0].tracked
    said = lines(found)
    assert said.count("Closed in order") == 1
    assert "by the same packets (the sequence numbers are the same)" in said


def test_what_did_not_get_through_is_counted():
    behind = say(*OPEN, (10, "a", "FA", 100, 200))
    before = [translated(one) for one in say(*OPEN, *((10 + 200 * k, "a", "FA", 100, 200) for k in range(5)))]
    (found,) = sightings(told(behind, before))
    assert [also.alike for also in found.also] == [False]
    said = lines(found)
    assert "The same connection as" in said
    assert "FIN from 10.0.0.1:40000: 1 as 10.0.0.1:40000 > 10.0.0.2:80, 5 here." in said


def test_connections_that_share_no_packet_are_two():
    one = say(*OPEN, *CLOSE)
    other = [replace(translated(s), seq=s.seq + 5, ack=s.ack + 5 if s.ack else 0) for s in one]
    assert len(sightings(told(one, other))) == 2


def test_conntrack_joins_what_shares_no_packet():
    behind = say(*OPEN)
    before = [
        replace(one, time_ns=one.time_ns + 10**9) for one in map(translated, say((50, "a", "FA", 100, 200)))
    ]
    closings = told(behind, before)
    assert len(sightings(closings)) == 2
    (found,) = sightings(closings, [[key(one) for one in closings]])
    assert found.also[0].tracked
    assert "(conntrack has the translation)" in lines(found)


def test_two_places_of_one_connection_share_what_their_kernels_say():
    here = [replace(one, place="netns 1") for one in say(*OPEN, *CLOSE[:1], (11, "b", "A", 200, 101))]
    there = [replace(one, place="netns 2", time_ns=one.time_ns + 5000) for one in here]
    stated = (([(*A, *B)], "FIN_WAIT2", "netns 1"), ([(*B, *A)], "CLOSE_WAIT", "netns 2"))
    (found,) = sightings(told(here, there, stated=stated))
    assert (found.closing.a.kernel, found.closing.b.kernel) == ("FIN_WAIT2", "CLOSE_WAIT")
    assert "Also captured in netns 2" in lines(found)


def test_the_same_addresses_in_two_namespaces_that_have_nothing_to_do_with_each_other_are_two():
    one = [replace(s, place="netns 1") for s in say(*OPEN, *CLOSE)]
    two = [
        replace(s, place="netns 2", seq=s.seq + 9000, ack=s.ack + 9000 if s.ack else 0) for s in say(*OPEN)
    ]
    found = sightings(told(one, two))
    assert [s.closing.outcome for s in found] == [Ending.OPEN, Ending.IN_ORDER]


def test_an_end_that_was_taken_for_the_server_in_one_place_only_is_turned_round():
    """Without a SYN the lower port is taken for the server's, which a translator may change."""
    behind = say((0, "b", "A", 199, 100), (1, "b", "A", 199, 100, 10), *CLOSE[:1])
    before = [replace(one, sport=50_000) if one.sport == VIP[1] else replace(one, dport=50_000)
              for one in map(translated, behind)]  # fmt: skip
    (found,) = sightings(told(behind, before))
    assert [also.alike for also in found.also] == [True]


def test_a_reset_without_a_number_of_the_other_end_does_not_make_two_connections_one():
    """A firewall that knows neither number sends the same RST to everybody."""
    one = say(*OPEN)
    other = [replace(translated(s), seq=s.seq + 5, ack=s.ack + 5 if s.ack else 0) for s in one]
    for flags, ack in (("RA", 0), ("R", 7), ("R", 0)):
        (reset,) = say((30, "b", flags, 0, ack))
        assert len(sightings(told([*one, reset], [*other, translated(reset)]))) == 2

"""Fuzz the readers of capture files, the packets in them and the story told of them."""

from __future__ import annotations

import io

from tests import packets

from finwait.capturing.chosen import read_note
from finwait.diagnosis.closings import Closings
from finwait.diagnosis.sightings import sightings
from finwait.errors import DecodeError
from finwait.report.closing import drawing
from finwait.uapi import pcap
from finwait.uapi.segment import Segment, parse_segment


def seeds() -> list[bytes]:
    """The first byte is a link type for the whole as a packet; a capture file begins with its own."""
    four = [
        packets.ip4("10.0.0.1", "10.0.0.2", packets.tcp(40000, 80, flags=flags, seq=seq, ack=9))
        for flags, seq in (("A", 1), ("FA", 1), ("A", 2), ("R", 2))
    ]
    six = packets.ip6("fe80::1", "fe80::2", packets.tcp(1, 2, flags="FA"), extension=bytes([6, 0, *bytes(6)]))
    framed = {
        1: [packets.ethernet(p, vlans=k % 2) for k, p in enumerate([*four, six])],
        113: [packets.sll(p, outgoing=True) for p in four],
        276: [packets.sll2(p, outgoing=False) for p in [*four, six]],
        101: four,
    }
    found = [b"\0" + framed[1][0], b"\1" + six, b"\2" + framed[113][0], b"\3" + framed[276][-1]]
    for link, frames in framed.items():
        stamped = [(k * 1_000_000, frame) for k, frame in enumerate(frames)]
        found += [
            packets.pcap_file(stamped, link),
            packets.pcap_file(stamped, link, order=">", nano=False),
            pcap.section_block(application="finwait", comment="FIN_WAIT2")
            + pcap.interface_block(link, "lo", snaplen=96, filter_text="tcp")
            + b"".join(
                pcap.packet_block(0, when, frame, len(frame), comment="x", outgoing=True)
                for when, frame in stamped
            )
            + pcap.statistics_block(0, 5, received=4, dropped=1, ended_ns=9)
            + pcap.section_block(
                application="finwait", comment="10.0.0.1:40000 > 10.0.0.2:80 is FIN_WAIT2 in netns 1"
            ),
        ]
    return found


STATES = ("", "ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "CLOSING", "LAST_ACK", "TIME_WAIT", "CLOSED")


class Drops:
    """A source that hands out few bytes at a time, as a pipe does."""

    def __init__(self, data: bytes, most: int) -> None:
        self._file, self._most = io.BytesIO(data), most

    def read(self, size: int, /) -> bytes:
        return self._file.read(min(size, self._most))


def one_input(data: bytes) -> None:
    """Read ``data`` as a capture file, then as one packet of the link type that its first byte names."""
    most = data[-1] + 1 if data else 1
    reader = pcap.PacketReader(Drops(data, most))
    book = Closings(most=8)
    last = stopped = 0
    try:
        for frame in reader:
            for line in frame.comment.split("\n"):
                read_note(line)
            found = parse_segment(frame)
            if isinstance(found, Segment):
                last = max(last, found.time_ns)
                book.feed(found)
    except DecodeError as error:
        stopped = error.offset
    assert 0 <= stopped <= len(data)
    if data:
        links = (1, 101, 113, 276, 0, 12, 9, 50, 51, 108, 228)
        one = parse_segment(pcap.Frame(0, links[data[0] % len(links)], data[1:], len(data) - 1))
        if isinstance(one, Segment):
            book.feed(one)
            state = STATES[data[0] % len(STATES)]
            if state:
                book.state([(one.src, one.sport, one.dst, one.dport)], state, last + 1)
    told = book.told(last)
    for closing in told:
        for side in (closing.a, closing.b):
            assert side.states, "an end is in some state"
    for sighting in sightings(told):
        drawing(sighting, until_ns=last, lost=reader.dropped)

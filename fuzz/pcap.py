"""Fuzz the readers of capture files, the packets in them and the story told of them."""

from __future__ import annotations

import io

from tests import packets

from finwait.diagnosis.closings import closings
from finwait.errors import DecodeError
from finwait.report.closing import diagram
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
            + pcap.section_block(comment="the end"),
        ]
    return found


def one_input(data: bytes) -> None:
    """Read ``data`` as a capture file, then as one packet of the link type that its first byte names."""
    segments = []
    try:
        for frame in pcap.Reader(io.BytesIO(data)):
            found = parse_segment(frame)
            if isinstance(found, Segment):
                segments.append(found)
    except DecodeError:
        pass
    if data:
        links = (1, 101, 113, 276, 0, 12)
        one = parse_segment(pcap.Frame(0, links[data[0] % len(links)], data[1:], len(data) - 1))
        if isinstance(one, Segment):
            segments.append(one)
    for closing in closings(segments):
        diagram(closing)

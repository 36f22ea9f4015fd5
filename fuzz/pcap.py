"""Fuzz the readers of capture files, the packets in them and the story told of them."""

from __future__ import annotations

from finwait.diagnosis.closing import closings, diagram
from finwait.errors import DecodeError
from finwait.uapi import pcap


def one_input(data: bytes) -> None:
    """Read ``data`` as a capture file, then as one packet of the link type that its first byte names."""
    segments = []
    try:
        for frame in pcap.read(data):
            found = pcap.parse_segment(frame)
            if found is not None:
                segments.append(found)
    except DecodeError:
        pass
    if data:
        links = (1, 101, 113, 276, 0, 12)
        one = pcap.parse_segment(pcap.Frame(0, links[data[0] % len(links)], data[1:], len(data) - 1))
        if one is not None:
            segments.append(one)
    for closing in closings(segments):
        diagram(closing)

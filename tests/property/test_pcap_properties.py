"""Whatever the bytes: packets, or a DecodeError that says where; and always a story."""

from __future__ import annotations

import io

from hypothesis import given, settings
from hypothesis import strategies as st

from finwait.diagnosis.closings import closings
from finwait.errors import DecodeError
from finwait.report.closing import diagram, verdict
from finwait.uapi import pcap
from finwait.uapi.segment import Segment, Unread, parse_segment
from tests.packets import ethernet, ip4, pcap_file, tcp

GOOD = [
    pcap_file([(5, ethernet(ip4("10.0.0.1", "10.0.0.2", tcp(4000, 80, flags="FA")))), (9, b"x")], 1),
    pcap.section_block(application="a")
    + pcap.interface_block(101, "eth0")
    + pcap.packet_block(0, 7, ip4("10.0.0.1", "10.0.0.2", tcp(4000, 80, flags="R")), 40, comment="c"),
]


@given(st.binary(max_size=400), st.sampled_from(["noise", "pcap", "pcapng"]), st.integers(0, 400))
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_packets_or_a_decode_error(noise, kind, cut):
    good = {"noise": b"", "pcap": GOOD[0], "pcapng": GOOD[1]}[kind]
    at = cut % (len(good) + 1)
    data = good[:at] + noise + good[min(at + len(noise) // 2, len(good)) :]
    stopped = 0
    segments = []
    try:
        for frame in pcap.PacketReader(io.BytesIO(data)):
            assert frame.length >= len(frame.data)
            found = parse_segment(frame)
            if isinstance(found, Segment):
                segments.append(found)
    except DecodeError as error:
        stopped = error.offset
    assert 0 <= stopped <= len(data)
    assert sum(c.packets + c.copies for c in closings(segments)) == len(segments)


@given(st.binary(max_size=120), st.sampled_from([0, 1, 12, 101, 113, 276, 228, 9999]))
@settings(max_examples=400, deadline=None)
def test_any_packet_is_a_segment_or_none(data, link):
    found = parse_segment(pcap.Frame(0, link, data, len(data)))
    assert isinstance(found, Unread) or found.payload >= 0


PACKETS = st.lists(
    st.tuples(
        st.booleans(),
        st.integers(0, 20),
        st.integers(0, 20),
        st.integers(0, 31),
        st.integers(0, 3),
        st.integers(0, 10**10),
    ),
    max_size=60,
)


@given(PACKETS)
@settings(max_examples=300, deadline=None)
def test_any_sequence_of_packets_is_told_in_lines_of_at_most_100_characters(packets):
    a, b = ((0, 0xFFFF << 32 | 1), 4000), ((0, 0xFFFF << 32 | 2), 80)
    segments = []
    for from_a, seq, ack, flags, payload, time in sorted(packets, key=lambda p: p[5]):
        (src, sport), (dst, dport) = (a, b) if from_a else (b, a)
        segments.append(Segment(time, src, dst, sport, dport, seq, ack, flags, 1, payload))
    for closing in closings(segments):
        assert verdict(closing)
        lines = diagram(closing)
        assert max(len(line) for line in lines[:-1]) <= 130
        assert all("\n" not in line for line in lines)
        if closing.missing:
            assert any("never came" in line for line in lines)

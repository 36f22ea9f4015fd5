"""Capture files, the packets in them, and the filter that chooses them."""

from __future__ import annotations

import ctypes
import io
import socket
import struct

import pytest

from finwait.errors import DecodeError
from finwait.table.sockets import pack_address
from finwait.uapi import pcap
from finwait.uapi.segment import ACK, FIN, LINKTYPE_RAW, Segment, Unread, link_name, parse_segment
from finwait.uapi.socket_filter import socket_filter
from tests.packets import ethernet, ip4, ip6, pcap_file, sll, sll2, tcp

A, B = "10.0.0.1", "10.0.0.2"
A6, B6 = "2001:db8::1", "2001:db8::2"


def read(data: bytes) -> list[pcap.Frame]:
    return list(pcap.PacketReader(io.BytesIO(data)))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nano", [False, True])
def test_a_pcap_file_gives_its_packets_and_times(order, nano):
    data = pcap_file([(1_700_000_000_123_456_789, b"abc"), (5_000_000_000, b"")], 1, order=order, nano=nano)
    frames = read(data)
    assert [f.data for f in frames] == [b"abc", b""]
    assert frames[0].time_ns == 1_700_000_000_123_456_789 // (1 if nano else 1000) * (1 if nano else 1000)
    assert frames[1].link == 1


def test_a_pcapng_file_that_we_wrote_is_read_back():
    data = (
        pcap.section_block(application="finwait", comment="why")
        + pcap.interface_block(LINKTYPE_RAW, "eth0", description="netns 5", filter_text="tcp")
        + pcap.packet_block(
            0, 1_700_000_000_123_456_789, b"hello", 7, comment="FIN_WAIT2 begins", outgoing=True
        )
        + pcap.section_block(comment="nothing came")
    )
    (first,) = read(data)
    assert (first.time_ns, first.data, first.length) == (1_700_000_000_123_456_789, b"hello", 7)
    assert (first.interface, first.comment, first.link) == ("eth0", "FIN_WAIT2 begins", LINKTYPE_RAW)
    assert b"nothing came" in data


def _ng_block(kind: int, body: bytes, order: str) -> bytes:
    return struct.pack(f"{order}II", kind, 12 + len(body)) + body + struct.pack(f"{order}I", 12 + len(body))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_pcapng_file_of_others_is_read_in_either_byte_order(order):
    resolution = struct.pack(f"{order}HH", 9, 1) + b"\x83\0\0\0"  # 2**-3 seconds
    offset = struct.pack(f"{order}HHq", 14, 8, 100)
    end = struct.pack(f"{order}HH", 0, 0)
    data = (
        _ng_block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1), order)
        + _ng_block(1, struct.pack(f"{order}HHI", 113, 0, 0) + resolution + offset + end, order)
        + _ng_block(0xBAD, b"abcd", order)
        + _ng_block(6, struct.pack(f"{order}IIIII", 0, 0, 12, 2, 2) + b"hi\0\0", order)
        + _ng_block(3, struct.pack(f"{order}I", 3) + b"abc\0", order)
        + _ng_block(2, struct.pack(f"{order}HHIIII", 0, 0, 0, 8, 1, 1) + b"x\0\0\0", order)
    )
    frames = read(data)
    assert [f.data for f in frames] == [b"hi", b"abc", b"x"]
    assert [f.time_ns for f in frames] == [101_500_000_000, 100_000_000_000, 101_000_000_000]
    assert {f.link for f in frames} == {113}


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"", 0),
        (b"\x1f\x8b\x08\0", 0),
        (pcap_file([(0, b"abc")], 1)[:30], 24),
        (pcap_file([(0, b"abc")], 1)[:-1], 24),
        (pcap.section_block()[:20], 0),
        (pcap.packet_block(0, 0, b"x", 1), 0),
        (pcap.section_block() + pcap.packet_block(0, 0, b"x", 1), 36),
    ],
)
def test_a_broken_file_says_where(data, where):
    with pytest.raises(DecodeError) as caught:
        read(data)
    assert caught.value.offset == where


def test_a_file_that_was_cut_gives_the_packets_before():
    data = pcap_file([(0, b"abc"), (1, b"def")], 1)[:-1]
    frames = iter(pcap.PacketReader(io.BytesIO(data)))
    assert next(frames).data == b"abc"
    with pytest.raises(DecodeError, match="cut"):
        next(frames)


SEGMENT = tcp(4000, 80, seq=7, ack=9, flags="FA", payload=b"hello")


@pytest.mark.parametrize(
    ("link", "data", "outgoing"),
    [
        (1, ethernet(ip4(A, B, SEGMENT)), None),
        (1, ethernet(ip4(A, B, SEGMENT), vlans=1), None),
        (1, ethernet(ip4(A, B, SEGMENT), vlans=2), None),
        (1, ethernet(ip4(A, B, SEGMENT)) + bytes(20), None),  # padding to the shortest Ethernet frame
        (113, sll(ip4(A, B, SEGMENT), outgoing=True), True),
        (113, sll(ip4(A, B, SEGMENT), outgoing=False), False),
        (276, sll2(ip4(A, B, SEGMENT), outgoing=True), True),
        (101, ip4(A, B, SEGMENT), None),
        (12, ip4(A, B, SEGMENT), None),
        (228, ip4(A, B, SEGMENT), None),
        (0, b"\x02\0\0\0" + ip4(A, B, SEGMENT), None),
        (101, ip4(A, B, SEGMENT, options=b"\x01" * 8), None),
        (9, b"\x00\x21" + ip4(A, B, SEGMENT), None),
        (9, b"\xff\x03\x00\x21" + ip4(A, B, SEGMENT), None),
        (50, b"\xff\x03\x00\x21" + ip4(A, B, SEGMENT), None),
        (51, b"\x11\x00\x00\x01\x00\x2f\x00\x21" + ip4(A, B, SEGMENT), None),
        (1, bytes(12) + b"\x88\x64\x11\x00\x00\x01\x00\x2f\x00\x21" + ip4(A, B, SEGMENT), None),
        (1, bytes(12) + b"\x88\xa8\x00\x05\x81\x00\x00\x06\x08\x00" + ip4(A, B, SEGMENT), None),
    ],
)
def test_a_segment_is_found_behind_every_link_type(link, data, outgoing):
    found = parse_segment(pcap.Frame(5, link, data, len(data), "eth0"))
    assert isinstance(found, Segment)
    assert (found.src, found.dst) == (pack_address(A), pack_address(B))
    assert (found.sport, found.dport, found.seq, found.ack, found.payload) == (4000, 80, 7, 9, 5)
    assert found.flags == FIN | ACK
    assert found.outgoing is outgoing


@pytest.mark.parametrize("extension", [b"", b"\x06\x00" + bytes(6), b"\x06\x01" + bytes(14)])
def test_an_ipv6_segment_is_found_behind_extension_headers(extension):
    data = ip6(A6, B6, SEGMENT, extension=extension)
    found = parse_segment(pcap.Frame(5, 101, data, len(data)))
    assert isinstance(found, Segment)
    assert (found.src, found.dst, found.payload) == (pack_address(A6), pack_address(B6), 5)


def test_the_payload_is_counted_by_the_header_when_the_capture_cut_it():
    data = ip4(A, B, SEGMENT)
    found = parse_segment(pcap.Frame(5, 101, data[:40], len(data)))
    assert isinstance(found, Segment)
    assert found.payload == 5


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", Unread.CUT),
        (ip4(A, B, SEGMENT)[:15], Unread.CUT),
        (ip4(A, B, SEGMENT)[:30], Unread.CUT),
        (ip4(A, B, SEGMENT, protocol=17), Unread.OTHER),
        (ip4(A, B, SEGMENT, fragment=100), Unread.FRAGMENT),
        (ip6(A6, B6, SEGMENT)[:30], Unread.CUT),
        (ip6(A6, B6, SEGMENT)[:50], Unread.CUT),
        (ip6(A6, B6, SEGMENT, following=58), Unread.OTHER),
        (ip6(A6, B6, b"\x06\x00\x00\x08" + bytes(4) + SEGMENT, following=44), Unread.FRAGMENT),
        (b"\x00" * 60, Unread.OTHER),
    ],
)
def test_what_is_no_tcp_segment_is_told_apart_from_what_could_not_be_seen(data, why):
    assert parse_segment(pcap.Frame(0, 101, data, len(data))) is why


@pytest.mark.parametrize("link", [105, 127, 9999])
def test_a_link_type_that_nobody_reads_is_not_called_another_protocol(link):
    assert parse_segment(pcap.Frame(0, link, ip4(A, B, SEGMENT), 45)) is Unread.LINK
    assert str(link) in link_name(link)


# -- the filter, run by an interpreter of classic BPF written from the kernel's documentation -------------


def bpf(program: bytes, packet: bytes) -> int:
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    at, a, x = 0, 0, 0
    while True:
        op, jt, jf, k = code[at]
        at += 1
        if op in (0x20, 0x28, 0x30, 0x48):
            size = {0x20: 4, 0x28: 2, 0x30: 1, 0x48: 2}[op]
            start = k + (x if op == 0x48 else 0)
            if start + size > len(packet):
                return 0
            a = int.from_bytes(packet[start : start + size], "big")
        elif op == 0xB1:
            x = (packet[k] & 15) * 4
        elif op == 0x54:
            a &= k
        elif op == 0x15:
            at += jt if a == k else jf
        elif op == 0x45:
            at += jt if a & k else jf
        elif op == 0x05:
            at += k
        elif op == 0x06:
            return k
        else:
            raise AssertionError(hex(op))


PROGRAM = socket_filter(
    [
        (pack_address(A), 4000, pack_address(B), 80),
        (pack_address(A), 4000, pack_address("10.0.0.9"), 8080),
        (pack_address(A6), 4000, pack_address(B6), 80),
        (pack_address("192.0.2.1"), 0, pack_address(B), 443),
    ],
    snaplen=200,
)


@pytest.mark.parametrize(
    ("packet", "kept"),
    [
        (ip4(A, B, tcp(4000, 80)), True),
        (ip4(B, A, tcp(80, 4000)), True),
        (ip4(A, "10.0.0.9", tcp(4000, 8080)), True),
        (ip4("192.0.2.1", B, tcp(777, 443)), True),
        (ip4(B, "192.0.2.1", tcp(443, 12)), True),
        (ip4(A, B, tcp(4000, 80), options=b"\x01" * 20), True),
        (ip6(A6, B6, tcp(4000, 80)), True),
        (ip6(B6, A6, tcp(80, 4000)), True),
        (ip4(A, B, tcp(4000, 81)), False),
        (ip4(A, B, tcp(80, 4000)), False),
        (ip4(A, "10.0.0.9", tcp(4000, 80)), False),
        (ip4(A, B, tcp(4000, 80), protocol=17), False),
        (ip4(A, B, tcp(4000, 80), fragment=8), False),
        (ip6(A6, B6, tcp(4001, 80)), False),
        (ip6(A6, B6, tcp(4000, 80), following=17), False),
        (b"\x45\x00", False),
        (b"", False),
    ],
)
def test_the_socket_filter_keeps_both_directions_of_each_form_and_nothing_else(packet, kept):
    assert bpf(PROGRAM, packet) == (200 if kept else 0)


def test_the_kernel_takes_the_program():
    fprog = ctypes.create_string_buffer(PROGRAM, len(PROGRAM))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HL", len(PROGRAM) // 8, ctypes.addressof(fprog)))


def test_too_many_connections_are_refused():
    many = [(pack_address(A), port, pack_address(B), 80) for port in range(1, 400)]
    with pytest.raises(ValueError, match="too many"):
        socket_filter(many)

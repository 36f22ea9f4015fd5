"""Capture files as they are found: cut, damaged, hostile, of other programs, too large for memory."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest

from finwait.capturing import CaptureFile, read_closings
from finwait.capturing import file as module
from finwait.capturing.chosen import CaptureTarget, end_text, note, parse_end, read_note
from finwait.cli import main
from finwait.diagnosis.closing import Ending
from finwait.diagnosis.closings import Closings
from finwait.errors import DecodeError
from finwait.table.sockets import pack_address
from finwait.uapi import pcap
from finwait.uapi.segment import Unread
from tests.packets import ethernet, ip4, pcap_file, tcp

A, B = "10.0.0.1", "10.0.0.2"
T0 = 1_700_000_000_000_000_000


def closing(count: int = 1, *, port: int = 40000) -> list[tuple[int, bytes]]:
    """Connections that close in order, one after the other."""
    out = []
    for k in range(count):
        for ms, (src, dst, sport, dport, flags, seq, ack) in enumerate(
            (
                (A, B, port + k, 80, "S", 99, 0),
                (B, A, 80, port + k, "SA", 199, 100),
                (A, B, port + k, 80, "A", 100, 200),
                (A, B, port + k, 80, "FA", 100, 200),
                (B, A, 80, port + k, "FA", 200, 101),
                (A, B, port + k, 80, "A", 101, 201),
            )
        ):
            packet = ip4(src, dst, tcp(sport, dport, flags=flags, seq=seq + k * 1000, ack=ack + k * 1000))
            out.append((T0 + (k * 10 + ms) * 1_000_000, ethernet(packet)))
    return out


def pcapng(frames: list[tuple[int, bytes]], *more: bytes, link: int = 1) -> bytes:
    blocks = [pcap.packet_block(0, when, data, len(data)) for when, data in frames]
    return b"".join([pcap.section_block(), pcap.interface_block(link, "eth0"), *blocks, *more])


def written(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def flat(text: str) -> str:
    return " ".join(text.split())


# -- packed files -------------------------------------------------------------------------------------------------


def noise(size: int) -> bytes:
    """Bytes that do not shrink, so that a cut file has unpacked bytes for nearly all of its own."""
    return random.Random(1).randbytes(size)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_packed_file_that_was_cut_gives_all_that_could_be_unpacked(tmp_path: Path, share: float) -> None:
    data = noise(1_000_000)
    packed = gzip.compress(data, 1)
    cut = packed[: int(len(packed) * share)]
    most = len(zlib.decompressobj(wbits=31).decompress(cut))
    with CaptureFile(written(tmp_path / "x.gz", cut)) as file:
        got = b"".join(iter(lambda: file.read(10_000), b""))
        assert file.cut == f"the gzip data ends early, at byte {len(cut)} of the file"
    assert len(got) == most > 0.9 * share * len(data)
    assert data.startswith(got)


def test_a_packed_file_that_is_whole_is_not_called_cut(tmp_path: Path) -> None:
    data = noise(300_000)
    with CaptureFile(written(tmp_path / "x.gz", gzip.compress(data))) as file:
        assert b"".join(iter(lambda: file.read(7777), b"")) == data
        assert file.cut == ""


def test_members_one_behind_the_other_are_one_file(tmp_path: Path) -> None:
    one, two = noise(200_000), noise(100_000)[::-1]
    with CaptureFile(
        written(tmp_path / "x.gz", gzip.compress(one) + gzip.compress(two) + bytes(512))
    ) as file:
        assert b"".join(iter(lambda: file.read(4096), b"")) == one + two
        assert file.cut == ""


def test_a_damaged_packed_file_gives_what_was_before(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(noise(1_000_000), 1))
    packed[len(packed) // 2 :] = b"\xff" * (len(packed) - len(packed) // 2)
    with CaptureFile(written(tmp_path / "x.gz", bytes(packed))) as file:
        got = b"".join(iter(lambda: file.read(1 << 16), b""))
        assert "damaged gzip data near byte" in file.cut
    assert len(got) > 300_000


def test_a_file_that_unpacks_without_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BOMB", 1 << 20)
    packed = gzip.compress(bytes(100 << 20), 9)
    with CaptureFile(written(tmp_path / "x.gz", packed)) as file:
        size = sum(map(len, iter(lambda: file.read(1 << 18), b"")))
        assert "unpack the file first" in file.cut
    assert size < 100 * len(packed) + (1 << 20)


def test_the_command_says_where_a_packed_file_was_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = gzip.compress(pcap_file(closing(500), 1))
    path = written(tmp_path / "x.gz", packed[: len(packed) // 2])
    assert main(["explain", "--pcap", path, f"{A}:40000"]) == 3
    out, err = capsys.readouterr()
    assert "Closed in order" in out
    assert f"could not read on: the gzip data ends early, at byte {len(packed) // 2} of the file" in flat(err)


# -- lengths that nothing has -------------------------------------------------------------------------------------


class Endless:
    """A source without end, which counts what is taken from it."""

    def __init__(self, head: bytes, then: bytes) -> None:
        self._left, self._then = head, then
        self.taken = 0

    def read(self, size: int, /) -> bytes:
        while len(self._left) < size:
            self._left += self._then * (size // len(self._then) + 1)
        part, self._left = self._left[:size], self._left[size:]
        self.taken += size
        return part


HEAD = pcap_file(closing(), 1)
NG_HEAD = pcapng(closing())
EMPTY = struct.pack("<IIII", 7, 0, 0, 60)
IDB = pcap.interface_block(1, "e")


@pytest.mark.parametrize(
    ("head", "then", "said"),
    [
        (HEAD, bytes(16), "a hole"),
        (HEAD, EMPTY, "in a row without one byte"),
        (HEAD, b"\xff" * 16, "impossible"),
        (NG_HEAD, bytes(16), "a block of 0 bytes is impossible"),
        (NG_HEAD, struct.pack("<III", 99, 12, 12), "in a row without one byte"),
        (NG_HEAD, pcap.packet_block(0, 5, b"", 60), "in a row without one byte"),
        (NG_HEAD, IDB, "interfaces"),
        (NG_HEAD, struct.pack("<II", 6, 1 << 30), "impossible"),
        (NG_HEAD, b"\xff" * 16, "impossible"),
    ],
)
def test_an_endless_file_is_given_up_soon_and_what_came_before_is_kept(
    head: bytes, then: bytes, said: str
) -> None:
    source = Endless(head, then)
    frames: list[pcap.Frame] = []
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match=said):
            frames.extend(frame for frame in pcap.PacketReader(source) if frame.data)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()
    assert len(frames) == 6
    assert source.taken < 32 << 20


def test_a_hole_of_a_gigabyte_is_no_capture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(HEAD)
    with path.open("r+b") as file:
        file.truncate(1 << 30)
    assert main(["explain", "--pcap", str(path)]) == 3
    out, err = capsys.readouterr()
    assert "Closed in order" in out
    assert "from here on the file is a hole" in flat(err)


def peak(path: str) -> int:
    """The most memory that reading a file takes."""
    tracemalloc.start()
    try:
        read_closings(path).book.told()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_packets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WINDOW", 100)

    def busy(count: int) -> str:
        """One connection whose two ends send by turns: every packet would be an arrow of its own."""
        frames = closing()[:4]
        for k in range(count):
            src, dst, sport, dport = (A, B, 40000, 80) if k % 2 else (B, A, 80, 40000)
            segment = tcp(sport, dport, flags="A", seq=1000 + k * 10, ack=k, payload=bytes(10))
            frames.append((T0 + 10**7 + k * 5_000_000, ethernet(ip4(src, dst, segment))))
        return written(tmp_path / f"{count}", pcap_file(frames, 1))

    few, many = peak(busy(1000)), peak(busy(6000))
    assert many < few + (1 << 20)


def test_memory_does_not_grow_with_the_connections(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_WINDOW", 100)
    monkeypatch.setattr(Closings.__init__, "__defaults__", (100,))
    few, many = (peak(written(tmp_path / f"{count}", pcap_file(closing(count), 1))) for count in (200, 900))
    assert many < few + (1 << 20)


# -- pcapng of others ---------------------------------------------------------------------------------------------


def test_several_sections_have_interfaces_of_their_own() -> None:
    one = pcapng(closing()[:3])
    two = b"".join(
        [
            pcap.section_block(),
            pcap.interface_block(101, "tun0"),
            *(pcap.packet_block(0, when, data[14:], len(data) - 14) for when, data in closing()[3:]),
        ]
    )
    frames = list(pcap.PacketReader(io.BytesIO(one + two)))
    assert [(f.link, f.interface) for f in frames] == [(1, "eth0")] * 3 + [(101, "tun0")] * 3


def test_an_interface_of_another_section_is_not_ours() -> None:
    data = pcapng(closing()[:1]) + pcap.section_block() + pcap.packet_block(0, 1, b"x", 1)
    with pytest.raises(DecodeError, match="never described"):
        list(pcap.PacketReader(io.BytesIO(data)))


def test_an_option_that_is_cut_costs_nothing_but_itself() -> None:
    body = struct.pack("<IIIII", 0, 0, 5, 2, 2) + b"hi\0\0" + struct.pack("<HH", 1, 5000)
    block = struct.pack("<II", 6, 12 + len(body)) + body + struct.pack("<I", 12 + len(body))
    frames = list(
        pcap.PacketReader(io.BytesIO(pcap.section_block() + IDB + block + pcap.packet_block(0, 6, b"yo", 2)))
    )
    assert [f.data for f in frames] == [b"hi", b"yo"]


@pytest.mark.parametrize("resolution", [0, 3, 6, 9, 12, 19, 0x80, 0x8A, 0x80 | 63])
def test_every_resolution_of_time_stamps_is_read(resolution: int) -> None:
    ticks = 2 ** (resolution & 0x7F) if resolution & 0x80 else 10**resolution
    idb = struct.pack("<HHI", 1, 0, 0) + struct.pack("<HHBxxx", 9, 1, resolution) + struct.pack("<HH", 0, 0)
    block = struct.pack("<II", 1, 12 + len(idb)) + idb + struct.pack("<I", 12 + len(idb))
    stamp = min(ticks * 3, (1 << 64) - 1)
    body = struct.pack("<IIIII", 0, stamp >> 32, stamp & 0xFFFFFFFF, 0, 0)
    packet = struct.pack("<II", 6, 12 + len(body)) + body + struct.pack("<I", 12 + len(body))
    (frame,) = pcap.PacketReader(io.BytesIO(pcap.section_block() + block + packet))
    assert frame.time_ns == stamp * 1_000_000_000 // ticks


@pytest.mark.parametrize("resolution", [20, 0x7F, 0x80 | 64, 0xFF])
def test_a_resolution_that_no_clock_has_is_an_error(resolution: int) -> None:
    idb = struct.pack("<HHI", 1, 0, 0) + struct.pack("<HHBxxx", 9, 1, resolution)
    block = struct.pack("<II", 1, 12 + len(idb)) + idb + struct.pack("<I", 12 + len(idb))
    with pytest.raises(DecodeError, match="resolution"):
        list(pcap.PacketReader(io.BytesIO(pcap.section_block() + block)))


def test_a_simple_packet_block_is_cut_at_the_snapshot_length() -> None:
    idb = struct.pack("<HHI", 1, 0, 3)
    block = struct.pack("<II", 1, 12 + len(idb)) + idb + struct.pack("<I", 12 + len(idb))
    body = struct.pack("<I", 100) + b"abc\0"
    simple = struct.pack("<II", 3, 12 + len(body)) + body + struct.pack("<I", 12 + len(body))
    (frame,) = pcap.PacketReader(io.BytesIO(pcap.section_block() + block + simple))
    assert (frame.data, frame.length) == (b"abc", 100)


def test_losses_and_the_end_are_taken_from_the_statistics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = closing()[:4]
    end = pcap.statistics_block(0, T0, received=4, dropped=17, ended_ns=T0 + 90_000_000_000)
    path = written(tmp_path / "x", pcapng(half, end))
    found = read_closings(path)
    assert (found.dropped, found.until_ns) == (17, T0 + 90_000_000_000)
    assert main(["explain", "--pcap", path]) == 3
    out, err = capsys.readouterr()
    assert "not captured" in out
    assert "never came" not in out
    assert "The capture lost 17 packets: what is missing may be among them." in " ".join(out.split())
    assert "could not show 17 packets that the capturing program lost" in flat(err)


# -- what could not be seen -----------------------------------------------------------------------------------------


def test_a_link_type_that_is_not_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "x", pcap_file(closing(), 127))
    assert main(["explain", "--pcap", path]) == 3
    err = capsys.readouterr().err
    assert "6 packets, 0 of them not TCP" in err
    assert "could not read 6 packets of link type 127 (IEEE802_11_RADIOTAP)" in flat(err)


def test_a_snapshot_that_is_too_short_is_a_gap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "x", pcap_file([(when, data[:40]) for when, data in closing()], 1))
    assert read_closings(path).unread[Unread.CUT] == 6
    assert main(["explain", "--pcap", path]) == 3
    assert "could not read 6 packets that end before their TCP header" in flat(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\x28\xb5\x2f\xfd" + bytes(20), "zstd"),
        (b"\xfd7zXZ\0" + bytes(20), "xz"),
        (b"BZh9" + bytes(20), "bzip2"),
    ],
)
def test_other_compression_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], head: bytes, name: str
) -> None:
    assert main(["explain", "--pcap", written(tmp_path / "x", head)]) == 1
    err = capsys.readouterr().err
    assert f"compressed with {name}" in err
    assert "hint:" in err


def test_packets_out_of_order_in_the_file_are_sorted(tmp_path: Path) -> None:
    frames = closing()
    path = written(tmp_path / "x", pcap_file(frames[::-1], 1))
    (told,) = read_closings(path).book.told()
    assert told.outcome is Ending.IN_ORDER


def test_one_end_or_both_choose_connections(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "x", pcap_file(closing(3), 1))
    assert main(["explain", "--pcap", path, f"{A}:40001", f"{B}:80"]) == 0
    assert capsys.readouterr().out.count("client") == 1
    assert main(["explain", "--pcap", path, f"{A}:50000"]) == 1
    assert f"no connection of {A}:50000 is in" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["explain", "--pcap", path, "nonsense"])
    assert caught.value.code == 2


def test_of_many_connections_those_that_did_not_close_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stuck = [
        (T0 + 10**10, ethernet(ip4(B, A, tcp(80, 39999, flags="A", seq=8, ack=7)))),
        (T0 + 2 * 10**10, ethernet(ip4(A, B, tcp(39999, 80, flags="FA", seq=7, ack=8)))),
    ]
    path = written(tmp_path / "x", pcap_file([*closing(200), *stuck], 1))
    assert main(["explain", "--pcap", path]) == 0
    out, err = capsys.readouterr()
    assert f"{A}:39999" in out
    assert "201 connections\n  200 × closed in order, 1 × FIN not acknowledged\n50 of 201 are drawn" in err


def test_standard_input_is_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(gzip.compress(pcap_file(closing(), 1)))

    monkeypatch.setattr("sys.stdin", Stdin)
    (told,) = read_closings("-").book.told()
    assert told.outcome is Ending.IN_ORDER


# -- notes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["10.0.0.1:80", "[2001:db8::1]:443", "[fe80::1%eth0]:80", "10.0.0.1%vrf-red:80"]
)
def test_an_end_is_read_as_it_is_written(text: str) -> None:
    end = parse_end(text)
    assert end is not None
    assert end_text(*end) == text


@pytest.mark.parametrize(
    "text", ["", "10.0.0.1", "10.0.0.1:http", "fe80::1:80", "[10.0.0.1:80", "1.2.3.4.5:80"]
)
def test_what_is_no_end_is_none(text: str) -> None:
    assert parse_end(text) is None


def test_a_note_says_what_it_was_written_for() -> None:
    ends = (pack_address("fe80::1"), 80, pack_address("fe80::2"), 40000)
    wire = (pack_address("fe80::1"), 80, pack_address("fe80::9"), 40001)
    one = CaptureTarget(4026531840, ends, 5, forms=(ends, wire), ifindex=3, device="eth0")
    for text in (note(one, "FIN_WAIT2"), note(one, "FIN_WAIT2 as a minisocket", before="FIN_WAIT1")):
        read = read_note(text)
        assert read is not None
        assert (read.forms, read.state, read.place, read.scope) == (
            (ends, wire),
            "FIN_WAIT2",
            one.place,
            "eth0",
        )
    gone = read_note(note(one, "gone", before="FIN_WAIT2"))
    assert gone is not None
    assert gone.state == "CLOSED"


@pytest.mark.parametrize(
    "line",
    ["", "a > b is ESTABLISHED in netns 1", "10.0.0.1:1 > 10.0.0.2:2 is NONSENSE in netns 1", "held by x[1]"],
)
def test_other_lines_of_a_comment_are_no_notes(line: str) -> None:
    assert read_note(line) is None

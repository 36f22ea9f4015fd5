"""Captures of whole situations: through a translation, and of a namespace that vanishes meanwhile."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finwait.capturing import Recorder
from finwait.cli.capture import _account
from finwait.diagnosis.closings import Closings
from finwait.diagnosis.sightings import sightings
from finwait.errors import DecodeError
from finwait.kernel.capture import Capture, space_of
from finwait.lab.actor import meet
from finwait.lab.topology import Lab, unmet
from finwait.report.closing import drawing
from finwait.table.sockets import pack_address
from finwait.uapi.pcap import Frame, PacketReader
from finwait.uapi.segment import FIN, LINKTYPE_LINUX_SLL2, Segment, parse_segment
from tests.kernel.needs import missing
from tests.kernel.test_capture import capturing_is_possible, collect, frames_of  # noqa: F401

pytestmark = pytest.mark.kernel


@contextmanager
def capture(*words: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A running capture, after it said what it captures and looked at the connections once more."""
    with subprocess.Popen(
        [sys.executable, "-m", "finwait", "capture", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr
        said: list[str] = []
        deadline = time.monotonic() + 30
        while not said or "held by" not in said[-1]:
            line = process.stderr.readline()
            assert line, said
            assert time.monotonic() < deadline, said
            said.append(line)
        try:
            yield process, said
        finally:
            process.kill()


def fins(path: Path) -> int:
    """How many FINs a file has that is still being written."""
    found = 0
    with contextlib.suppress(DecodeError):
        for frame in PacketReader(io.BytesIO(path.read_bytes())):
            one = parse_segment(frame)
            found += isinstance(one, Segment) and bool(one.flags & FIN)
    return found


def needs(*what: str) -> None:
    if lacking := unmet(what):
        missing("; ".join(lacking))


def test_a_translated_connection_is_captured_as_the_wire_has_it(tmp_path: Path) -> None:
    """DNAT in the client's own namespace: the socket knows the Service address, the wire the backend's."""
    needs("netns", "tool:nft", "tool:conntrack")
    path = tmp_path / "x.pcapng"
    with Lab() as lab:
        here, there = lab.netns("here"), lab.netns("there")
        link = lab.link(here, there)
        service = lab.service_address()
        here.ip(f"route add {service} via {link.b4}")
        here.nft(
            "table ip service {\n chain output {\n  type nat hook output priority -100\n"
            f"  ip daddr {service} tcp dport 8080 dnat to {link.b4}\n }}\n}}"
        )
        client, backend = lab.actor(here, "client"), lab.actor(there, "backend")
        door = backend.listen(link.b4, 8080)
        (mine,), (other,) = meet(client, service, backend, door)
        with capture("dst", service, "--until-closed", "--for", "60s", "-w", str(path)) as (process, said):
            assert any(f"> {link.b4}:8080 (conntrack)" in line for line in said), said
            client.shutdown([mine], "WR")
            backend.read_to_end([other])
            backend.close([other])
            client.read_to_end([mine])
            out, err = process.communicate(timeout=60)
    assert process.returncode in (0, 3), err  # 3: this machine hides a process from us
    begin, _, drawn = out.partition("\n")
    assert re.fullmatch(
        rf"\S+ > {service}:8080 is translated: on the wire it is \S+ > {link.b4}:8080 \(conntrack\)", begin
    )
    assert f"{link.b4}:8080" in drawn
    assert service not in drawn
    assert "Closed in order" in out
    segments = [parse_segment(frame) for frame in frames_of(path)]
    assert len(segments) >= 3
    assert all(isinstance(one, Segment) for one in segments)


def test_a_namespace_that_vanishes_ends_the_capture_in_words(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    with Lab() as lab:
        here, there = lab.netns("here"), lab.netns("there")
        link = lab.link(here, there)
        client, backend = lab.actor(here, "client"), lab.actor(there, "backend")
        door = backend.listen(link.b4, 8080)
        (_mine,), (_other,) = meet(client, link.b4, backend, door)
        with capture("dst", link.b4, "--until-closed", "--for", "60s", "-w", str(path)) as (process, _):
            client.send([_mine], "last words")
            lab.vanish(here)
            _, err = process.communicate(timeout=90)
    assert "Traceback" not in err
    assert process.returncode in (0, 3), err
    # Which goes first is the kernel's choice: a socket without a way out may be ended before its namespace.
    assert re.search(r"was \w+ and is gone( with its namespace)?$", err, re.MULTILINE), err
    assert path.read_bytes()[:4] == b"\x0a\x0d\x0d\x0a"
    frames_of(path)  # whole to the last block


def test_a_gateway_shows_both_forms_and_says_that_they_are_one() -> None:
    """Captured where the translation happens, before it and behind it, and drawn once."""
    needs("netns", "tool:nft", "tool:conntrack")
    with Lab() as lab:
        made = lab.translated()
        (mine,), (other,) = meet(made.client, made.address, made.backend, made.door)
        ends = (pack_address(mine.src), mine.sport, pack_address(mine.dst), mine.dport)
        wire = (pack_address(other.dst), other.dport, pack_address(other.src), other.sport)
        segments = []
        with Capture(space_of(made.gateway.inode), [(ends, 0), (wire, 0)]) as capture_:
            made.client.shutdown([mine])
            made.backend.read_to_end([other])
            made.backend.close([other])
            made.client.read_to_end([mine])
            segments = collect(capture_, 6)
        book = Closings()
        for one in segments:
            book.feed(one)
    closings = book.told()
    assert len(closings) == 2
    (found,) = sightings(closings)
    assert [also.alike for also in found.also] == [True]
    assert "by the same packets" in " ".join(drawing(found))


def test_a_fin_that_is_not_translated_any_more_is_counted_before_the_translator_only() -> None:
    needs("netns", "tool:nft", "tool:conntrack")
    with Lab() as lab:
        made = lab.translated()
        made.gateway.sysctl("net.netfilter.nf_conntrack_tcp_timeout_close_wait", 1)
        made.gateway.sysctl("net.netfilter.nf_conntrack_tcp_timeout_fin_wait", 1)
        (mine,), (other,) = meet(made.client, made.address, made.backend, made.door)
        ends = (pack_address(mine.src), mine.sport, pack_address(mine.dst), mine.dport)
        wire = (pack_address(other.dst), other.dport, pack_address(other.src), other.sport)
        with Capture(space_of(made.gateway.inode), [(ends, 0), (wire, 0)]) as capture_:
            made.backend.shutdown([other])
            made.client.read_to_end([mine])
            segments = collect(capture_, 4)
            made.await_no_entries()
            made.client.close([mine])
            segments += collect(capture_, 2)  # the FIN and its first repetition
        book = Closings()
        for one in segments:
            book.feed(one)
        (found,) = sightings(book.told())
    said = " ".join(drawing(found))
    assert [also.alike for also in found.also] == [False]
    assert re.search(
        rf"FIN from {re.escape(mine.src)}:{mine.sport}: (0 as|\d+ as \S+ > \S+, 0 here)", said
    ), said


def test_packets_that_found_no_room_are_a_gap() -> None:
    needs("netns")
    with Lab() as lab:
        here, there = lab.netns("here"), lab.netns("there")
        link = lab.link(here, there)
        client, backend = lab.actor(here, "client"), lab.actor(there, "backend")
        door = backend.listen(link.b4, 8080)
        (mine,), (other,) = meet(client, link.b4, backend, door)
        backend.absorb([other])
        wanted = [((pack_address(mine.src), mine.sport, pack_address(mine.dst), mine.dport), 0)]
        with Capture(space_of(here.inode), wanted) as capture_:
            deadline = time.monotonic() + 60
            while not capture_.dropped():  # nobody takes anything from the ring
                client.send([mine], "x" * 1_000_000)
                assert time.monotonic() < deadline
            lost = capture_.dropped()
            assert lost
            recorder = Recorder(dropped=lost)
            for packet in capture_.drain():
                frame = Frame(packet.time_ns, LINKTYPE_LINUX_SLL2, packet.data, packet.length)
                segment = parse_segment(frame)
                assert isinstance(segment, Segment)
                recorder.book.feed(segment)
    assert _account(recorder, None, 0) == 3


def test_a_capture_that_is_interrupted_has_the_last_packets(tmp_path: Path) -> None:
    """What is in the ring when Ctrl-C is pressed is drawn and written."""
    needs("netns")
    path = tmp_path / "x.pcapng"
    with Lab() as lab:
        here, there = lab.netns("here"), lab.netns("there")
        link = lab.link(here, there)
        client, backend = lab.actor(here, "client"), lab.actor(there, "backend")
        door = backend.listen(link.b4, 8080)
        (mine,), (other,) = meet(client, link.b4, backend, door)
        with capture(f"{mine.src}:{mine.sport}", f"{mine.dst}:{mine.dport}", "-w", str(path)) as (process, _):
            client.close([mine])
            backend.read_to_end([other])
            backend.close([other])
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Closed in order" in out, out
    assert (
        sum(bool(one.flags & FIN) for one in map(parse_segment, frames_of(path)) if isinstance(one, Segment))
        == 2
    )


def test_last_ack_is_not_told_as_a_peer_that_has_not_closed(tmp_path: Path) -> None:
    """A filter drops the last ACKs on their way in, behind the place of capture."""
    needs("netns", "tool:nft")
    path = tmp_path / "x.pcapng"
    with Lab() as lab:
        here, there = lab.netns("here"), lab.netns("there")
        link = lab.link(here, there)
        client, backend = lab.actor(here, "client"), lab.actor(there, "backend")
        door = backend.listen(link.b4, 8080)
        (mine,), (other,) = meet(client, link.b4, backend, door)
        client.shutdown([mine])
        backend.read_to_end([other])
        there.nft(
            "table inet t {\n chain i {\n  type filter hook input priority 0\n  tcp dport 8080 drop\n }\n}"
        )
        backend.close([other])
        words = ("netns", "=", str(there.inode), "state", "last-ack")
        with capture(*words, "-w", str(path)) as (process, _):
            deadline = time.monotonic() + 60  # the FIN is sent again at ever longer intervals
            while not fins(path):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        out_of_file = subprocess.run(
            [sys.executable, "-m", "finwait", "explain", "--pcap", str(path)], capture_output=True, text=True
        ).stdout
    assert process.returncode == 130, err
    for text in (out, out_of_file):
        words_ = " ".join(text.split())
        assert "LAST_ACK, says its kernel" in words_
        assert "the ACK does not reach it; its kernel still says LAST_ACK" in words_
        assert "never came" not in words_
        assert "TIME_WAIT" in words_

"""`finwait explain --pcap`: the same story from every container, link type and compression."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from finwait.cli import main
from finwait.uapi import pcap
from tests.packets import ethernet, ip4, ip6, pcap_file, sll, sll2, tcp

LINKS = {
    1: ethernet,
    113: lambda p: sll(p, outgoing=True),
    276: lambda p: sll2(p, outgoing=False),
    101: lambda p: p,
}
"""Ethernet, Linux cooked v1 and v2, raw IP."""


def packets(six: bool) -> list[tuple[int, bytes]]:
    ip, a, b = (ip6, "2001:db8::1", "2001:db8::2") if six else (ip4, "10.0.0.1", "10.0.0.2")
    script = [
        (0, ip(a, b, tcp(40000, 80, flags="FA", seq=100, ack=7))),
        (40, ip(b, a, tcp(80, 40000, flags="A", seq=7, ack=101))),
        (900, ip(b, a, tcp(80, 40000, flags="PA", seq=7, ack=101, payload=b"late"))),
    ]
    return [(1_700_000_000_000_000_000 + ms * 1_000_000, packet) for ms, packet in script]


def pcapng(frames: list[tuple[int, bytes]], link: int) -> bytes:
    blocks = [pcap.packet_block(0, when, data, len(data)) for when, data in frames]
    return b"".join([pcap.section_block(), pcap.interface_block(link, "eth0"), *blocks])


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("container", [pcap_file, pcapng], ids=["pcap", "pcapng"])
@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
def test_every_capture_tells_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], six: bool, link: int, container: object, packed: bool
) -> None:
    frames = [(when, LINKS[link](packet)) for when, packet in packets(six)]
    data = container(frames, link)  # type: ignore[operator]
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(data) if packed else data)
    assert main(["explain", "--pcap", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "FIN,ACK" in out
    assert "acknowledges the FIN" in out
    assert "4 bytes" in out
    assert "a FIN of its own has not come. The capture ends there." in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 100
    assert err == "3 packets, 0 of them not TCP, 1 connections\n"


def test_what_is_missing_is_told_with_how_long_was_waited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = (1_700_000_012_000_000_000, ip4("10.0.0.3", "10.0.0.4", tcp(1, 2)))
    path = tmp_path / "x"
    path.write_bytes(pcap_file([*packets(False), other], 101))
    assert main(["explain", "--pcap", str(path), "10.0.0.1:40000"]) == 0
    assert "The capture went on for 11.1 s." in " ".join(capsys.readouterr().out.split())

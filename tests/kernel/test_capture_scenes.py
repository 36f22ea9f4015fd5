"""Captures of whole situations: through a translation, and of a namespace that vanishes meanwhile."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finwait.lab.actor import meet
from finwait.lab.topology import Lab, unmet
from finwait.uapi.segment import Segment, parse_segment
from tests.kernel.needs import missing
from tests.kernel.test_capture import capturing_is_possible, frames_of  # noqa: F401

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
            assert f"> {link.b4}:8080 (conntrack)" in said[1]
            client.shutdown([mine], "WR")
            backend.read_to_end([other])
            backend.close([other])
            client.read_to_end([mine])
            out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
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
    assert re.search(r"was \w+ and is gone with its namespace", err), err
    assert path.read_bytes()[:4] == b"\x0a\x0d\x0d\x0a"
    frames_of(path)  # whole to the last block

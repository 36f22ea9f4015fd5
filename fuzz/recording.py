"""Any bytes as a recording, and as the buffer inside one: an error of ours, or a diagnosis."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from finwait import session
from finwait.errors import FinwaitError
from finwait.recording import Replay, read, redact
from finwait.recording import format as fmt

__all__ = ["one_input", "seeds"]

_CAPTURES = sorted((Path(__file__).parents[1] / "tests" / "captures").glob("*/*.finwait"))
_LOOKS = read(str(next(p for p in _CAPTURES if p.stem == "nat-entry-gone")))[1]


def _file(data: bytes) -> None:
    """The framing: sealed members are sealed anew, so that what is inside them is reached."""
    try:
        fmt._read(io.BytesIO(data), len(data))
    except FinwaitError:
        return


def _inside(data: bytes) -> None:
    """A real look whose datagrams were changed."""
    look = _LOOKS[-1]
    buffer = look.buffer.copy()
    for at in range(0, len(data) - 3, 4):
        where, value = struct.unpack_from("<HH", data, at)
        buffer[(where * 7) % len(buffer)] = value & 0xFF
    changed = replace(look, buffer=buffer)
    for machine in (Replay([changed]),):
        try:
            session.diagnose(machine)
        except FinwaitError:
            continue
    try:
        redact([changed], key=b"k")
    except FinwaitError:
        return


def _sealed(data: bytes) -> None:
    """Members with right hashes around arbitrary content."""
    body = b"FINWAIT-RECORDING 1\n"
    parts = data.split(b"\xff", 3)
    for name, raw in zip(
        (b"manifest", b"look/0/facts", b"look/0/buffer", b"look/0/descriptors"), parts, strict=False
    ):
        packed = zlib.compress(raw)
        body += bytes([len(name)]) + name
        body += struct.pack("<QQ32s", len(raw), len(packed), hashlib.sha256(raw).digest()) + packed
    packed = zlib.compress(b"")
    body += b"\x03end" + struct.pack("<QQ32s", 0, len(packed), hashlib.sha256(b"").digest()) + packed
    _file(body)


def one_input(data: bytes) -> None:
    """Try one input."""
    if not data:
        return
    (_file, _inside, _sealed)[data[0] % 3](data[1:])


def seeds() -> list[bytes]:
    """A real recording, a few changes, and real members."""
    small = min(_CAPTURES, key=lambda p: p.stat().st_size).read_bytes()
    manifest = b'{"finwait":"0","looks":1}'
    facts = (
        b'{"facts":{},"namespaces":[],"processes":{},"cgroups":{},"socket_protocols":{},"close_on_exec":[],'
        b'"gaps":[],"unreadable":[],"searched":true,"complete":true}'
    )
    return [
        b"\0" + small,
        b"\1" + np.arange(64, dtype="<u2").tobytes(),
        b"\2" + b"\xff".join([manifest, facts, b"\0" * 16, b"\0" * 16]),
    ]

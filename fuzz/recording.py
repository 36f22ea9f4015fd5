"""Any bytes as a recording, and as the buffer inside one: an error of ours, or a diagnosis."""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec.structs import replace

from finwait import session
from finwait.errors import FinwaitError
from finwait.recording import Replay, read, redact
from finwait.recording import format as fmt
from finwait.report import json, text
from finwait.session import Look
from finwait.uapi.observation import Observation

__all__ = ["explained", "file", "look", "one_input", "sealed", "seeds"]

_CAPTURES = sorted((Path(__file__).parents[1] / "tests" / "captures").glob("*/*.finwait"))
_LOOKS = read(str(next(p for p in _CAPTURES if p.stem == "nat-entry-gone")))[1]
_MANIFEST = b'{"finwait":"0","looks":1}'
_FACTS = msgspec.json.encode(fmt._facts(_LOOKS[-1]))
_BUFFER = _LOOKS[-1].buffer.tobytes()
_COLUMNS = b"".join(
    column.tobytes()
    for column in (_LOOKS[-1].descriptors.pid, _LOOKS[-1].descriptors.fd, _LOOKS[-1].descriptors.inode)
)


def sealed(members: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a file of members with right sizes and hashes, so that what is inside them is reached."""
    body = b"FINWAIT-RECORDING 1\n"
    for name, raw in (*members, (b"end", b"")):
        packed = zlib.compress(raw, 1)
        body += bytes([len(name)]) + name
        body += struct.pack("<QQ32s", len(raw), len(packed), hashlib.sha256(raw).digest()) + packed
    return body


def look(manifest: bytes, facts: bytes, buffer: bytes, columns: bytes) -> bytes:
    """Return a file of one look."""
    names = (b"manifest", b"look/0/facts", b"look/0/buffer", b"look/0/descriptors")
    return sealed(zip(names, (manifest, facts, buffer, columns), strict=True))


def explained(looks: Sequence[Observation]) -> None:
    """Diagnose, tell and redact looks: each works or says what is wrong with them."""
    with contextlib.suppress(FinwaitError):
        diagnosis = session.diagnose(Replay(looks), how=Look(watch_ms=1))
        "".join(text.diagnosis(diagnosis.view, diagnosis.findings, diagnosis.gaps, "a machine"))
        "".join(json.diagnosis_lines(diagnosis.view, diagnosis.findings, diagnosis.gaps))
    with contextlib.suppress(FinwaitError):
        redact(looks, key=b"k")


def file(data: bytes) -> None:
    """Try a file."""
    with contextlib.suppress(FinwaitError):
        explained(fmt._read(io.BytesIO(data))[1])


def _inside(data: bytes) -> None:
    """A real look whose datagrams were changed."""
    buffer = _LOOKS[-1].buffer.copy()
    for at in range(0, len(data) - 3, 4):
        where, value = struct.unpack_from("<HH", data, at)
        buffer[(where * 7) % len(buffer)] = value & 0xFF
    explained([replace(_LOOKS[-1], buffer=buffer)])


def _sealed(data: bytes) -> None:
    """Right hashes around arbitrary content."""
    parts = [*data.split(b"\xff", 3), b"", b"", b""]
    file(look(parts[0], parts[1], parts[2], parts[3]))


def _facts(data: bytes) -> None:
    """A real look whose facts were changed: two bytes say where, one how much is replaced, up to eight by what."""
    changed = bytearray(_FACTS)
    for at in range(0, len(data) - 3, 11):
        where = int.from_bytes(data[at : at + 2], "little") % len(changed)
        changed[where : where + data[at + 2] % 9] = data[at + 3 : at + 11].rstrip(b"\0")
    file(look(_MANIFEST, bytes(changed), _BUFFER, _COLUMNS))


def one_input(data: bytes) -> None:
    """Try one input."""
    if not data:
        return
    (file, _inside, _sealed, _facts)[data[0] % 4](data[1:])


def seeds() -> list[bytes]:
    """A real recording, a few changes, and real members."""
    small = min(_CAPTURES, key=lambda p: p.stat().st_size).read_bytes()
    facts = (
        b'{"facts":{},"namespaces":[],"processes":{},"cgroups":{},"socket_protocols":{},"close_on_exec":[],'
        b'"gaps":[],"unreadable":[],"searched":true,"complete":true}'
    )
    return [
        b"\0" + small,
        b"\1" + np.arange(64, dtype="<u2").tobytes(),
        b"\3" + b"\x40\x00\x02-1",
        b"\2" + b"\xff".join([_MANIFEST, facts, b"\0" * 16, b"\0" * 16]),
    ]

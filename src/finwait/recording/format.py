"""The file: a line of text that names it, then members, each compressed, measured and sealed by a hash.

    FINWAIT-RECORDING 1      and a newline
    member*       name length (1 byte), name, raw size (8), packed size (8), SHA-256 of the raw bytes (32), zlib
    end           a member of the name ``end`` and no content

Sizes are little-endian. Members are ``manifest`` (JSON), and for each look *k* ``look/k/facts`` (JSON),
``look/k/buffer`` (the datagrams as received) and ``look/k/descriptors`` (pid, fd, inode as columns). Unknown
members are skipped, so that a later version can add some; an unknown major version is refused.

There are no paths, no links and no table of contents in it: a reader goes forward only, allocates no more than
it has checked against a limit, and decompresses no more than was declared. A hostile file costs an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Final, TypeVar

import msgspec
import numpy as np

from finwait.errors import Gap, RecordingError
from finwait.uapi.observation import Descriptors, Facts, Namespace, Observation, ProcessFiles
from finwait.version import __version__

__all__ = ["MAGIC", "MAX_MEMBER", "MAX_TOTAL", "Manifest", "read", "write"]

MAGIC: Final = b"FINWAIT-RECORDING "
MAJOR: Final = 1
MAX_MEMBER: Final = 2 << 30
"""The largest member, decompressed: a million full sockets are 600 MB."""
MAX_TOTAL: Final = 4 << 30
MAX_MEMBERS: Final = 4096
_HEAD = struct.Struct("<QQ32s")
_BLOCK: Final = 1 << 20
T = TypeVar("T")


class Manifest(msgspec.Struct, frozen=True):
    """What the file is."""

    finwait: str
    looks: int
    redacted: bool = False
    note: str = ""


class _Facts(msgspec.Struct, frozen=True):
    """Everything of a look but its large arrays."""

    facts: Facts
    namespaces: tuple[Namespace, ...]
    processes: dict[int, ProcessFiles]
    cgroups: dict[int, str]
    socket_protocols: dict[int, str]
    close_on_exec: tuple[tuple[int, int, bool], ...]
    gaps: tuple[Gap, ...]
    unreadable: tuple[int, ...]
    searched: bool
    complete: bool


def _plain(text: str) -> str:
    """Text that JSON can hold: bytes that were not UTF-8 are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _facts(look: Observation) -> _Facts:
    spaces = tuple(
        Namespace(
            ns.inode, tuple(map(_plain, ns.names)), ns.pids, ns.process_count, ns.dumps, ns.files,
            ns.established_skipped,
        )
        for ns in look.namespaces
    )  # fmt: skip
    return _Facts(
        look.facts,
        spaces,
        look.processes,
        {number: _plain(path) for number, path in look.cgroups.items()},
        look.socket_protocols,
        tuple((pid, fd, flag) for (pid, fd), flag in look.close_on_exec.items()),
        look.gaps,
        look.descriptors.unreadable,
        look.descriptors.searched,
        look.complete,
    )


def write(path: str, looks: Sequence[Observation], *, redacted: bool = False, note: str = "") -> None:
    """Write a recording, whole or not at all.

    Raises:
        RecordingError: the file cannot be written (a full disk, no permission); nothing is left behind.
    """
    partial = f"{path}.{os.getpid()}.partial"
    try:
        with open(partial, "xb") as out:
            out.write(MAGIC + b"%d\n" % MAJOR)
            manifest = Manifest(__version__, len(looks), redacted, note)
            _member(out, "manifest", msgspec.json.encode(manifest))
            for k, look in enumerate(looks):
                _member(out, f"look/{k}/facts", msgspec.json.encode(_facts(look)))
                _member(out, f"look/{k}/buffer", look.buffer.tobytes())
                d = look.descriptors
                columns = (
                    d.pid.astype("<u4").tobytes()
                    + d.fd.astype("<u4").tobytes()
                    + d.inode.astype("<u8").tobytes()
                )
                _member(out, f"look/{k}/descriptors", columns)
            _member(out, "end", b"")
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise RecordingError(
            f"could not write the recording `{path}`: {error.strerror or error}",
            hint="is there room on the disk, and may you write there?",
        ) from None


def _member(out: IO[bytes], name: str, raw: bytes) -> None:
    packed = zlib.compress(raw, 6)
    encoded = name.encode()
    out.write(bytes([len(encoded)]) + encoded)
    out.write(_HEAD.pack(len(raw), len(packed), hashlib.sha256(raw).digest()) + packed)


def _exactly(file: IO[bytes], n: int, what: str) -> bytes:
    data = file.read(n)
    if len(data) != n:
        raise RecordingError(f"the recording is cut off in {what}", hint="was it copied completely?")
    return data


def _members(file: IO[bytes], size: int) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each member up to ``end``."""
    total = 0
    for _ in range(MAX_MEMBERS):
        length = _exactly(file, 1, "a member's name")[0]
        try:
            name = _exactly(file, length, "a member's name").decode("ascii")
        except UnicodeDecodeError:
            raise RecordingError("a member's name is not ASCII: this is no recording of finwait") from None
        raw, packed, digest = _HEAD.unpack(_exactly(file, _HEAD.size, f"the head of `{name}`"))
        total += raw
        if raw > MAX_MEMBER or total > MAX_TOTAL:
            raise RecordingError(f"member `{name}` claims {raw} bytes: more than any machine's sockets need")
        if packed > size:
            raise RecordingError(f"member `{name}` claims {packed} bytes in a file of {size}")
        yield name, _unpack(file, name, raw, packed, digest)
        if name == "end":
            return
    raise RecordingError(f"more than {MAX_MEMBERS} members: this is no recording of finwait")


def _unpack(file: IO[bytes], name: str, raw: int, packed: int, digest: bytes) -> bytes:
    unzip = zlib.decompressobj()
    parts: list[bytes] = []
    have = 0
    left = packed
    try:
        while left:
            block = _exactly(file, min(left, _BLOCK), f"`{name}`")
            left -= len(block)
            while block:
                # One byte more than declared is enough to know that it lies; never more is unpacked.
                part = unzip.decompress(block, min(raw - have + 1, _BLOCK * 16))
                have += len(part)
                if have > raw:
                    raise RecordingError(f"member `{name}` holds more than the {raw} bytes that it declares")
                parts.append(part)
                block = unzip.unconsumed_tail
                if not part and not block:
                    break
    except zlib.error as error:
        raise RecordingError(f"member `{name}` does not decompress: {error}") from None
    data = b"".join(parts)
    if len(data) != raw or not unzip.eof or unzip.unused_data:
        raise RecordingError(f"member `{name}` is not the {raw} bytes that it declares")
    if hashlib.sha256(data).digest() != digest:
        raise RecordingError(
            f"member `{name}` is damaged: its hash does not fit", hint="was it copied completely?"
        )
    return data


def read(path: str) -> tuple[Manifest, tuple[Observation, ...]]:
    """Read a recording.

    Raises:
        RecordingError: it cannot be opened, or is not (entirely) what it claims to be.
    """
    try:
        with open(path, "rb") as file:
            return _read(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise RecordingError(f"could not read the recording `{path}`: {error.strerror or error}") from None
    except RecordingError as error:
        raise RecordingError(f"`{path}`: {error}", hint=error.hint) from None


def _read(file: IO[bytes], size: int) -> tuple[Manifest, tuple[Observation, ...]]:
    line = file.readline(64)
    if not line.startswith(MAGIC):
        raise RecordingError("not a recording of finwait", hint="`finwait record FILE` makes one")
    version = line[len(MAGIC) :].strip()
    if version != b"%d" % MAJOR:
        shown = version[:16].decode("ascii", "replace")
        raise RecordingError(
            f"a recording of version {shown}; this finwait reads version {MAJOR}", hint="upgrade finwait"
        )
    found: dict[str, bytes] = {}
    for name, data in _members(file, size):
        if name in found:
            raise RecordingError(f"member `{name}` is there twice")
        found[name] = data
    manifest = _json(found.get("manifest"), Manifest, "manifest")
    if not 1 <= manifest.looks <= 1000:
        raise RecordingError(f"{manifest.looks} looks: a recording has 1 to 1000")
    return manifest, tuple(_look(found, k) for k in range(manifest.looks))


def _json(data: bytes | None, kind: type[T], name: str) -> T:
    if data is None:
        raise RecordingError(f"member `{name}` is missing")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordingError(f"member `{name}` is not what it should be: {error}") from None


def _look(found: dict[str, bytes], k: int) -> Observation:
    facts = _json(found.get(f"look/{k}/facts"), _Facts, f"look/{k}/facts")
    raw, columns = found.get(f"look/{k}/buffer"), found.get(f"look/{k}/descriptors")
    if raw is None or columns is None:
        raise RecordingError(f"look {k} is not complete: its buffer or its descriptors are missing")
    if len(columns) % 16:
        raise RecordingError(f"the descriptors of look {k} are {len(columns)} bytes, not a multiple of 16")
    for ns in facts.namespaces:
        for dump in ns.dumps:
            if len(dump.starts) != len(dump.ends):
                raise RecordingError(
                    f"a dump of netns {ns.inode} has {len(dump.starts)} starts and {len(dump.ends)} ends"
                )
            for a, b in zip(dump.starts, dump.ends, strict=True):
                if not 0 <= a <= b <= len(raw) or a % 4:
                    raise RecordingError(
                        f"a datagram of netns {ns.inode} lies at {a}…{b} of {len(raw)} bytes"
                    )
    n = len(columns) // 16
    descriptors = Descriptors(
        np.frombuffer(columns, "<u4", n).astype(np.uint32),
        np.frombuffer(columns, "<u4", n, 4 * n).astype(np.uint32),
        np.frombuffer(columns, "<u8", n, 8 * n).astype(np.uint64),
        facts.unreadable,
        facts.searched,
    )
    # Whole words, as the live buffer has: the decoders look at it four bytes at a time.
    buffer = np.zeros((len(raw) + 7) & ~7, np.uint8)
    buffer[: len(raw)] = np.frombuffer(raw, np.uint8)
    return Observation(
        facts.facts,
        buffer,
        facts.namespaces,
        descriptors,
        facts.processes,
        facts.cgroups,
        facts.socket_protocols,
        {(pid, fd): flag for pid, fd, flag in facts.close_on_exec},
        facts.gaps,
        facts.complete,
    )

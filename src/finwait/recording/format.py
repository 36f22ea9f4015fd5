"""The file: a line of text that names it, then members, each compressed, measured and sealed by a hash.

    FINWAIT-RECORDING 1      and a newline
    member*       name length (1 byte), name, raw size (8), packed size (8), SHA-256 of the raw bytes (32), zlib
    end           a member of the name ``end`` and no content

Sizes are little-endian. Members are ``manifest`` (JSON), and for each look *k* ``look/k/facts`` (JSON),
``look/k/buffer`` (the datagrams as received) and ``look/k/descriptors`` (pid, fd, inode as columns). Unknown
members are skipped, so that a later version can add some; an unknown major version is refused.

There are no paths, no links and no table of contents in it: a reader goes forward only, allocates no more than
it has checked against a limit, and decompresses no more than was declared. A hostile file costs an error: not memory
(what is unpacked and parsed is at most `SLACK` plus `MAX_RATIO` times what was read of the file so far, checked while
it is unpacked; parsed JSON counts `JSON_WEIGHT` times its text), not time (datagrams may not overlap, so that every
byte is decoded once), and no other exception (every number is checked against what the kernel could have said).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import IO, Final, TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait import files
from finwait.errors import FileRefused, Gap, RecordingError
from finwait.uapi.cluster import NO_NAMES, ClusterNames
from finwait.uapi.observation import (
    Descriptors,
    Facts,
    LoneSocket,
    Namespace,
    Observation,
    ProcessFiles,
    ProcessWaits,
    Releasing,
    SocketOptions,
)
from finwait.version import __version__

__all__ = [
    "MAGIC",
    "MAX_JSON",
    "MAX_LOOKS",
    "MAX_MEMBER",
    "MAX_RATIO",
    "MAX_TOTAL",
    "STANDARD",
    "Manifest",
    "read",
    "received",
    "write",
    "writing",
]

MAGIC: Final = b"FINWAIT-RECORDING "
MAJOR: Final = 1
MAX_MEMBER: Final = 2 << 30
"""The largest member, decompressed: a million full sockets are 600 MB."""
MAX_JSON: Final = 256 << 20
"""The largest member that is JSON: parsed, it takes several times as much."""
MAX_TOTAL: Final = 4 << 30
MAX_RATIO: Final = 100
"""How many times the file's size its content may be (beyond the first `SLACK` bytes); sockets reach 15 to 40."""
SLACK: Final = 64 << 20
JSON_WEIGHT: Final = 10
"""What a byte of JSON counts, its own and what it becomes: lists and maps of small things take 6 to 8 times as much."""
MAX_LOOKS: Final = 1000
STANDARD: Final = "-"
"""In the place of a path: standard output."""
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


class _Content(Struct, frozen=True):
    """What a member held, and up to seven zeros after it."""

    data: NDArray[np.uint8]
    size: int


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
    lone_sockets: dict[int, LoneSocket] = {}
    one_table: tuple[tuple[int, int, bool], ...] = ()
    waits: dict[int, ProcessWaits] = {}
    socket_options: dict[int, SocketOptions] = {}
    releasing: tuple[Releasing, ...] = ()
    names: ClusterNames = NO_NAMES
    pasted: bool = False


def _plain(text: str) -> str:
    """Text that JSON can hold: bytes that were not UTF-8 are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _facts(look: Observation) -> _Facts:
    spaces = tuple(
        Namespace(
            ns.inode, tuple(map(_plain, ns.names)), ns.pids, ns.process_count, ns.dumps, ns.files,
            ns.established_skipped, ns.island,
        )
        for ns in look.namespaces
    )  # fmt: skip
    facts = look.facts
    return _Facts(
        replace(
            facts,
            kernel=_plain(facts.kernel),
            hostname=_plain(facts.hostname),
            boot_id=_plain(facts.boot_id),
        ),
        spaces,
        look.processes,
        {number: _plain(path) for number, path in look.cgroups.items()},
        look.socket_protocols,
        tuple((pid, fd, flag) for (pid, fd), flag in look.close_on_exec.items()),
        tuple(
            gap.but(where=_plain(gap.where), doing=_plain(gap.doing), needs=_plain(gap.needs))
            for gap in look.gaps
        ),
        look.descriptors.unreadable,
        look.descriptors.searched,
        look.complete,
        look.lone_sockets,
        tuple((a, b, same) for (a, b), same in look.one_table.items()),
        look.waits,
        look.socket_options,
        look.releasing,
        look.names,
        look.descriptors.pasted,
    )


_PLACE: Final = re.compile(r"(netns|pid) ([0-9]{1,10})(?: \(.*\))?", re.DOTALL)


def _placed(gap: Gap) -> Gap:
    """Return a gap with what it is about, which recordings of earlier versions say in words alone."""
    if gap.netns or gap.pid or not (place := _PLACE.fullmatch(gap.where)):
        return gap
    if place[1] == "pid":
        return gap.but(pid=int(place[2]))
    return gap.but(netns=int(place[2]), unentered=gap.doing == "enter it")


class _StandardOutput(Struct):
    """Standard output, in the place of a file that is made: it has no name to get, and nothing to take back."""

    fd: int

    def publish(self) -> None:
        """Do nothing: what was written is with the reader."""

    def discard(self) -> None:
        """Do nothing: what was written cannot be taken back."""


def _standard_output() -> _StandardOutput:
    if os.isatty(1):
        raise OSError(errno.ENOTTY, "a terminal cannot show it")
    return _StandardOutput(os.dup(1))


@contextlib.contextmanager
def _made(path: str, *, redacted: bool) -> Iterator[IO[bytes]]:
    """Give a file to be written, which gets its name when the block ends well; else nothing is left behind."""
    with _explained(path):
        new = _standard_output() if path == STANDARD else files.new_file(path, 0o644 if redacted else 0o600)
    out = os.fdopen(new.fd, "wb")
    try:
        yield out
        with _explained(path):
            out.flush()
            if path != STANDARD:
                os.fsync(new.fd)
            new.publish()
    finally:  # an interrupt, too, leaves nothing behind
        with contextlib.suppress(OSError):
            out.close()  # what is still in its buffer may not fit either
        new.discard()


@contextlib.contextmanager
def writing(
    path: str, *, looks: int, redacted: bool = False, note: str = ""
) -> Iterator[Callable[[Observation], None]]:
    """Write a recording look by look, whole or not at all.

    The file gets its name when the block ends well; until then, and for ever if it ends otherwise, what was at
    its place stays.

    Args:
        path: of the file; a regular file that is there is replaced. ``-``: standard output, where what was cut short
            lacks its end, by which every reader knows it.
        looks: how many will be added.
        redacted: whether they went through `finwait.recording.redact`. If not, the file holds command lines, and
            only its owner may read it.
        note: a line for the reader.

    Yields:
        What adds a look to the file.

    Raises:
        RecordingError: the file cannot be written (a full disk, no permission), or what is at its place must not be
            replaced (see `finwait.files`); nothing is left behind.
    """
    if not 1 <= looks <= MAX_LOOKS:
        raise ValueError(f"a recording has 1 to {MAX_LOOKS} looks, not {looks}")
    added = 0
    with _made(path, redacted=redacted) as out:

        def add(look: Observation) -> None:
            nonlocal added
            with _explained(path):
                _write_look(out, added, look)
            added += 1

        manifest = Manifest(__version__, looks, redacted, _plain(note))
        with _explained(path):
            out.write(MAGIC + b"%d\n" % MAJOR)
            _member(out, "manifest", msgspec.json.encode(manifest))
        yield add
        assert added == looks, f"{looks} looks were announced and {added} added"
        with _explained(path):
            _member(out, "end", b"")


def write(path: str, looks: Sequence[Observation], *, redacted: bool = False, note: str = "") -> None:
    """Write a recording, whole or not at all; see `writing`.

    Raises:
        RecordingError: the file cannot be written; nothing is left behind.
    """
    with writing(path, looks=len(looks), redacted=redacted, note=note) as add:
        for look in looks:
            add(look)


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn what the kernel says about the file into our error."""
    try:
        yield
    except FileRefused as error:
        raise RecordingError(
            f"could not write the recording `{_plain(path)}`: {_plain(str(error))}", hint=error.hint
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise RecordingError(
            f"could not write the recording `{_plain(path)}`: {reason}",
            hint="redirect it, or name a file"
            if path == STANDARD
            else "is there room on the disk, and may you write there?",
        ) from None


def _write_look(out: IO[bytes], k: int, look: Observation) -> None:
    d = look.descriptors
    _member(out, f"look/{k}/facts", msgspec.json.encode(_facts(look)))
    _member(out, f"look/{k}/buffer", np.ascontiguousarray(look.buffer).data)
    columns = [d.pid.astype("<u4"), d.fd.astype("<u4"), d.inode.astype("<u8")]
    _member(out, f"look/{k}/descriptors", b"".join(column.tobytes() for column in columns))


def _member(out: IO[bytes], name: str, raw: bytes | memoryview) -> None:
    packed = zlib.compress(raw, 6)
    if _weight(name, len(raw)) > SLACK // MAX_MEMBERS + MAX_RATIO * len(packed):
        # No reader takes what shrank so much, lest it be a bomb. Coded without repetitions it shrinks 8 times.
        slow = zlib.compressobj(6, strategy=zlib.Z_HUFFMAN_ONLY)
        packed = slow.compress(raw) + slow.flush()
    encoded = name.encode()
    out.write(bytes([len(encoded)]) + encoded)
    out.write(_HEAD.pack(len(raw), len(packed), hashlib.sha256(raw).digest()))
    out.write(packed)


def _weight(name: str, raw: int) -> int:
    """Return how much memory a member of so many bytes takes, once it is read."""
    return raw if name.endswith(("buffer", "descriptors")) else raw * JSON_WEIGHT


def _exactly(file: IO[bytes], n: int, part: str) -> bytes:
    data = file.read(n)
    if len(data) != n:
        raise RecordingError(f"the recording is cut off in {part}", hint="was it copied completely?")
    return data


_KNOWN: Final = re.compile(r"manifest|look/(?:0|[1-9][0-9]{0,2})/(?:facts|buffer|descriptors)")


def _members(file: IO[bytes]) -> Iterator[tuple[str, _Content]]:
    """Yield name and content of each member that this version knows, up to ``end``."""
    total = weight = packed_before = 0
    for _ in range(MAX_MEMBERS):
        length = _exactly(file, 1, "a member's name")[0]
        try:
            name = _exactly(file, length, "a member's name").decode("ascii")
        except UnicodeDecodeError:
            raise RecordingError(
                "a member's name is not ASCII, so this is not a recording of finwait"
            ) from None
        raw, packed, digest = _HEAD.unpack(_exactly(file, _HEAD.size, f"the head of `{_shown(name)}`"))
        if name == "end":
            return
        if not _KNOWN.fullmatch(name):
            while packed:
                packed -= len(_exactly(file, min(packed, _BLOCK), f"`{_shown(name)}`"))
            continue
        total += raw
        most = MAX_MEMBER if name.endswith(("buffer", "descriptors")) else MAX_JSON
        if raw > most or total > MAX_TOTAL:
            raise RecordingError(
                f"member `{name}` claims {raw} bytes, more than the sockets of any machine need"
            )
        weight += _weight(name, raw)
        budget = _Budget(name, packed_before, weight - _weight(name, raw))
        budget.check(packed, raw)
        yield name, _unpack(file, name, raw, packed, digest, budget)
        packed_before += packed
    raise RecordingError(f"more than {MAX_MEMBERS} members, so this is not a recording of finwait")


class _Budget(Struct, frozen=True):
    """How much a member may become, by what was read of the file."""

    name: str
    read: int
    """Packed bytes of the members before."""
    weight: int
    """What they became."""

    def check(self, packed: int, raw: int) -> None:
        """Refuse to go on when so many packed bytes of this member have become so many."""
        if self.weight + _weight(self.name, raw) > SLACK + MAX_RATIO * (self.read + packed):
            raise RecordingError(f"implausible compression ratio: {raw} bytes of `{self.name}` in {packed}")


def _shown(name: str) -> str:
    """A name from the file, fit for a message."""
    return ascii(name[:40])[1:-1]


def _unpack(file: IO[bytes], name: str, raw: int, packed: int, digest: bytes, budget: _Budget) -> _Content:
    unzip = zlib.decompressobj()
    seal = hashlib.sha256()
    # Whole words, as the live buffer has: the decoders look at it four bytes at a time. Zeros that nobody has
    # touched cost no memory, so a file that is cut off costs what it holds and not what it declares.
    data = np.zeros((raw + 7) & ~7, np.uint8)
    filled = 0
    remaining = packed
    try:
        while remaining:
            block = _exactly(file, min(remaining, _BLOCK), f"`{name}`")
            remaining -= len(block)
            while block:
                # One byte more than declared is enough to know that it lies; never more is unpacked.
                part = unzip.decompress(block, min(raw - filled + 1, _BLOCK * 16))
                if filled + len(part) > raw:
                    raise RecordingError(f"member `{name}` holds more than the {raw} bytes that it declares")
                data[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
                seal.update(part)
                filled += len(part)
                budget.check(packed - remaining, filled)
                block = unzip.unconsumed_tail
                if not part:
                    break
            if unzip.eof and remaining:
                break
    except zlib.error as error:
        raise RecordingError(f"member `{name}` does not decompress: {error}") from None
    if filled != raw or remaining or not unzip.eof or unzip.unused_data:
        raise RecordingError(f"member `{name}` does not contain the {raw} bytes that it declares")
    if seal.digest() != digest:
        raise RecordingError(
            f"member `{name}` is damaged: its hash does not match", hint="was it copied completely?"
        )
    return _Content(data, raw)


def received(data: bytes, path: str) -> tuple[Manifest, tuple[Observation, ...]]:
    """Read a recording that came another way, and write it to a file as it is; one that is not whole is not written.

    Args:
        data: all of it.
        path: of the file; a regular file that is there is replaced.

    Raises:
        RecordingError: it is not (entirely) what it claims to be, or the file cannot be written.
    """
    manifest, looks = _read(io.BytesIO(data))
    with _made(path, redacted=manifest.redacted) as out, _explained(path):
        out.write(data)
    return manifest, looks


def read(path: str) -> tuple[Manifest, tuple[Observation, ...]]:
    """Read a recording.

    Raises:
        RecordingError: it cannot be opened, or is not (entirely) what it claims to be.
    """
    try:
        with files.open_to_read(path, pipes=True) as file:
            return _read(file)
    except FileRefused as error:
        raise RecordingError(
            f"could not read the recording `{_plain(path)}`: {error.reason}",
            hint="`finwait record FILE` makes one; is the name correct?",
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecordingError(
            f"could not read the recording `{_plain(path)}`: {reason}",
            hint="`finwait record FILE` makes one; is the name correct, and may you read it?",
        ) from None
    except RecordingError as error:
        raise RecordingError(
            f"`{_plain(path)}`: {error}", hint=error.hint or "`finwait record FILE` makes a new one"
        ) from None


def _read(file: IO[bytes]) -> tuple[Manifest, tuple[Observation, ...]]:
    line = file.readline(64)
    if not line.startswith(MAGIC):
        raise RecordingError("not a recording of finwait", hint="`finwait record FILE` makes one")
    version = line[len(MAGIC) :].strip()
    if version != b"%d" % MAJOR:
        raise RecordingError(
            f"a recording of version {_shown(version.decode('latin-1'))}; this finwait reads version {MAJOR}",
            hint="upgrade finwait",
        )
    contents: dict[str, _Content] = {}
    for name, content in _members(file):
        if name in contents:
            raise RecordingError(f"member `{name}` exists twice")
        contents[name] = content
    manifest = _json(contents.pop("manifest", None), Manifest, "manifest")
    if not 1 <= manifest.looks <= MAX_LOOKS:
        raise RecordingError(f"{manifest.looks} looks: a recording has 1 to {MAX_LOOKS}")
    return manifest, tuple(_look(contents, k) for k in range(manifest.looks))


def _json(content: _Content | None, kind: type[T], name: str) -> T:
    if content is None:
        raise RecordingError(f"member `{name}` is missing")
    try:
        return msgspec.json.decode(content.data.data[: content.size], type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordingError(f"member `{name}` has the wrong content: {error}") from None


def _look(contents: dict[str, _Content], k: int) -> Observation:
    facts = _json(contents.pop(f"look/{k}/facts", None), _Facts, f"look/{k}/facts")
    datagrams, columns = contents.pop(f"look/{k}/buffer", None), contents.pop(f"look/{k}/descriptors", None)
    if datagrams is None or columns is None:
        raise RecordingError(f"look {k} is not complete: its buffer or its descriptors are missing")
    if columns.size % 16:
        raise RecordingError(f"the descriptors of look {k} are {columns.size} bytes, not a multiple of 16")
    _check_numbers(facts, k)
    _check_places(facts.namespaces, datagrams.size)
    n = columns.size // 16
    descriptors = Descriptors(
        np.frombuffer(columns.data, "<u4", n).astype(np.uint32),
        np.frombuffer(columns.data, "<u4", n, 4 * n).astype(np.uint32),
        np.frombuffer(columns.data, "<u8", n, 8 * n).astype(np.uint64),
        facts.unreadable,
        facts.searched,
        pasted=facts.pasted,
    )
    return Observation(
        facts.facts,
        datagrams.data,
        facts.namespaces,
        descriptors,
        facts.processes,
        facts.cgroups,
        facts.socket_protocols,
        {(pid, fd): flag for pid, fd, flag in facts.close_on_exec},
        tuple(map(_placed, facts.gaps)),
        facts.complete,
        facts.lone_sockets,
        {(a, b): same for a, b, same in facts.one_table},
        facts.waits,
        facts.socket_options,
        facts.releasing,
        facts.names,
    )


def _check_numbers(look: _Facts, k: int) -> None:
    """Numbers beyond what their columns hold would be an error far away from here."""

    def within(subject: str, numbers: Iterable[int], bits: int, least: int = 0) -> None:
        for number in numbers:
            if not least <= number < 1 << bits:
                raise RecordingError(f"look {k} gives {subject} as {number}, which is out of range")

    facts, spaces = look.facts, look.namespaces
    within("a time", (facts.unix_ns, facts.boottime_ns, facts.boottime_end_ns), 63)
    within("the clock's ticks a second", (facts.clock_ticks,), 31, 1)
    within("the page size", (facts.page_size,), 31, 1)
    within("a user", (facts.euid,), 32)
    within("the capabilities", (facts.capabilities,), 64)
    within("a namespace", (ns.inode for ns in spaces), 32)
    within("a namespace", (ns.island for ns in spaces if ns.island is not None), 32)
    within("a number of processes", (ns.process_count for ns in spaces), 31)
    within("a number of sockets", (ns.established_skipped for ns in spaces), 63)
    within("a process", (pid for ns in spaces for pid in ns.pids), 31)
    within("a process", look.processes, 31)
    within("a process", look.unreadable, 31)
    within("a process's namespace", (p.netns for p in look.processes.values() if p.netns is not None), 32)
    within("a cgroup", look.cgroups, 64)
    within("an inode", look.socket_protocols, 64)
    within("an inode", look.lone_sockets, 64)
    within("a socket's namespace", (sock.netns for sock in look.lone_sockets.values()), 32)
    within("a state", (sock.state for sock in look.lone_sockets.values()), 4)
    within("a port", (sock.sport for sock in look.lone_sockets.values()), 16)
    within("unread bytes", (sock.unread for sock in look.lone_sockets.values()), 32)
    within("a process", (pid for pid, _, _ in look.close_on_exec), 31)
    within("a process", (pid for a, b, _ in look.one_table for pid in (a, b)), 31)
    within("a descriptor", (fd for _, fd, _ in look.close_on_exec), 31)
    _check_waits(look.waits, within)
    _check_options(look.socket_options, within)
    within("a process", (thread.pid for thread in look.releasing), 31)
    within("a thread", (thread.tid for thread in look.releasing), 31)
    within("a namespace", (thread.netns for thread in look.releasing), 32)
    if len({ns.inode for ns in spaces}) != len(spaces):
        raise RecordingError(f"look {k} has a namespace twice")


def _check_options(options: Mapping[int, SocketOptions], within: Callable[..., None]) -> None:
    """As `_check_numbers`, of what programs have set on their sockets."""
    within("an inode", options, 64)
    for name in (
        "keepidle_s",
        "keepintvl_s",
        "keepcnt",
        "user_timeout_ms",
        "defer_accept_s",
        "syncnt",
        "rto_max_ms",
        "mark",
        "errno",
    ):
        within(
            f"an option ({name})",
            (n for sockopts in options.values() if (n := getattr(sockopts, name)) is not None),
            32,
        )
    for name in ("linger_s", "linger2_s"):
        within(
            f"an option ({name})",
            (n + 1 for sockopts in options.values() if (n := getattr(sockopts, name)) is not None),
            32,
        )
    for name in ("rcvtimeo_ms", "sndtimeo_ms"):
        within(
            f"an option ({name})",
            (n for sockopts in options.values() if (n := getattr(sockopts, name)) is not None),
            63,
        )


def _check_waits(waits: Mapping[int, ProcessWaits], within: Callable[..., None]) -> None:
    """As `_check_numbers`, of what threads and loops wait for."""
    threads = [thread for process in waits.values() for thread in process.threads]
    loops = [loop for process in waits.values() for loop in process.loops]
    within("a process", waits, 31)
    within("a thread", (thread.tid for thread in threads), 31)
    within("a time", (t.timeout_ms for t in threads if t.timeout_ms is not None), 63)
    within("a count", (t.slices + 1 for t in threads), 63)
    within("poll events", (events for t in threads for _, events in t.waits_for), 32)
    within("a descriptor", (fd + (1 << 31) for t in threads for fd, _ in t.waits_for), 32)
    within("a descriptor", (loop.fd for loop in loops), 31)
    within("a count", (loop.total for loop in loops), 63)
    within("a descriptor", (fd for loop in loops for fd, _, _ in loop.watched), 31)
    within("epoll events", (events for loop in loops for _, events, _ in loop.watched), 32)
    within("an inode", (inode + 1 for loop in loops for _, _, inode in loop.watched), 63)
    within(
        "a descriptor",
        (fd for process in waits.values() for fd in (*process.rings, *process.asynchronous)),
        31,
    )


def _check_places(spaces: tuple[Namespace, ...], size: int) -> None:
    """Datagrams lie in the buffer, and none in another: overlapping ones would be decoded again and again."""
    places: list[tuple[int, int]] = []
    for ns in spaces:
        for dump in ns.dumps:
            if len(dump.starts) != len(dump.ends):
                raise RecordingError(
                    f"a dump of netns {ns.inode} has {len(dump.starts)} starts and {len(dump.ends)} ends"
                )
            for a, b in zip(dump.starts, dump.ends, strict=True):
                if not 0 <= a <= b <= size or a % 4:
                    raise RecordingError(f"a datagram of netns {ns.inode} lies at {a}…{b} of {size} bytes")
                places.append((a, b))
    places.sort()
    for (a, b), (c, d) in pairwise(places):
        if c < b:
            raise RecordingError(f"datagrams overlap, at {a}…{b} and {c}…{d}")

"""Capturing chosen connections: what to capture, where, in which forms; writing it down; noticing the end.

Packets come from `finwait.kernel.capture`, states from single questions (`finwait.kernel.lookup`), both in
the namespaces of the chosen connections. A change of state becomes a comment on the next packet, so that a
reader of the file sees what the kernel made of the packets before.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import BinaryIO, Final

import numpy as np

from finwait import files as disk
from finwait.errors import FileRefused, KernelError
from finwait.kernel import netns
from finwait.kernel.capture import Capture, Packet, space_of
from finwait.kernel.lookup import Question, ask
from finwait.table.flows import FlowTable
from finwait.table.sockets import SocketTable, endpoint_text
from finwait.uapi import pcap, tcp

__all__ = ["Chosen", "Recorder", "Writer", "choose", "follow", "forms", "read_file"]

_KEPT: Final = 1_000_000  # segments remembered for the diagram
_LOOK_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Chosen:
    """One connection to capture."""

    netns: int
    ends: pcap.Tuple
    """Our end first."""
    state: int
    cookie: int = 0
    inode: int = 0
    forms: tuple[pcap.Tuple, ...] = ()
    """The tuple, and what translators make of it."""
    ifindex: int = 0
    """Interface that its socket is bound to; 0 for any."""

    def __str__(self) -> str:
        src, sport, dst, dport = self.ends
        return f"{endpoint_text(*src, sport)} > {endpoint_text(*dst, dport)}"


def forms(one: pcap.Tuple, flows: FlowTable | None) -> tuple[pcap.Tuple, ...]:
    """Return a tuple and every form that a conntrack entry says a translator gives it."""
    if flows is None or not len(flows):
        return (one,)
    entries = list(zip(_pairs(flows, "orig"), _pairs(flows, "reply"), strict=True))
    found = {_sides(one): one}
    grown = True
    while grown:  # a second translator sees what the first made of it
        grown = False
        for entry in entries:
            if any(_sides(form) in found for form in entry):
                for form in entry:
                    if _sides(form) not in found:
                        found[_sides(form)] = form
                        grown = True
    return tuple(found.values())


def _sides(one: pcap.Tuple) -> frozenset[tuple[tuple[int, int], int]]:
    return frozenset(((one[0], one[1]), (one[2], one[3])))


def _pairs(flows: FlowTable, way: str) -> list[pcap.Tuple]:
    rows = np.flatnonzero(flows["protocol"] == 6)
    src, dst = flows[f"{way}_src"][rows].tolist(), flows[f"{way}_dst"][rows].tolist()
    sport, dport = flows[f"{way}_sport"][rows].tolist(), flows[f"{way}_dport"][rows].tolist()
    return [((a[0], a[1]), p, (b[0], b[1]), q) for a, p, b, q in zip(src, sport, dst, dport, strict=True)]


def choose(sockets: SocketTable, rows: Iterable[int], flows: FlowTable | None) -> list[Chosen]:
    """Return what to capture for rows of a look; listeners have no packets of their own and are left out."""
    chosen = []
    for row in rows:
        if not int(sockets["dport"][row]):
            continue
        src, dst = sockets["src"][row].tolist(), sockets["dst"][row].tolist()
        one = (
            (src[0], src[1]), int(sockets["sport"][row]), (dst[0], dst[1]), int(sockets["dport"][row]),
        )  # fmt: skip
        chosen.append(
            Chosen(
                int(sockets["netns"][row]),
                one,
                int(sockets["state"][row]),
                int(sockets["cookie"][row]),
                int(sockets["inode"][row]),
                forms(one, flows),
                int(sockets["ifindex"][row]),
            )
        )
    return chosen


class Writer:
    """A pcapng file, or a ring of them.

    Args:
        path: the file; of a ring, its pattern (``x.pcapng`` becomes ``x.0001.pcapng`` …).
        limit: bytes after which the next file of the ring begins; 0 for one file without limit.
        files: how many files of the ring to keep.
        comment: written at the head of every file.
    """

    def __init__(self, path: str, *, limit: int = 0, files: int = 1, comment: str = "") -> None:
        self._path = path
        self._limit = limit
        self._most = files
        self._comment = comment
        self._number = 0
        self._file: BinaryIO | None = None
        self._size = 0
        self._interfaces: dict[tuple[int, int], int] = {}
        self.paths: list[str] = []
        """Files that exist now, oldest first."""
        self._known: dict[str, tuple[int, int]] = {}
        self.failed = ""
        """Why writing stopped (a full disk); empty while it goes on."""

    def packet(self, space: int, names: dict[int, str], packet: Packet, comment: str = "") -> None:
        """Write one packet; after a failure nothing more is written."""
        self._put(space, packet.ifindex, names.get(packet.ifindex, f"if{packet.ifindex}"), lambda number: (
            pcap.packet_block(
                number, packet.time_ns, packet.data, packet.length, comment=comment, outgoing=packet.outgoing
            )
        ))  # fmt: skip

    def comment(self, text: str) -> None:
        """Write a comment that belongs to no packet (a section of its own)."""
        if self.failed or self._file is None:
            return
        try:
            self._write(pcap.section_block(application="finwait", comment=text))
        except OSError as error:
            self.failed = os.strerror(error.errno or errno.EIO)
        self._interfaces = {}  # they are described anew in every section

    def _put(self, space: int, ifindex: int, name: str, block: Callable[[int], bytes]) -> None:
        if self.failed:
            return
        try:
            if self._file is None or (self._limit and self._size >= self._limit):
                self._next()
            number = self._interfaces.get((space, ifindex))
            if number is None:
                number = self._interfaces[space, ifindex] = len(self._interfaces)
                self._write(
                    pcap.interface_block(pcap.LINKTYPE_LINUX_SLL2, name, description=f"netns {space}")
                )
            self._write(block(number))
        except FileRefused as error:
            self.failed = str(error)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
                raise
            self.failed = os.strerror(error.errno)

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)
        self._size += len(data)

    def _next(self) -> None:
        self._close()
        path = self._path
        if self._limit:
            self._number += 1
            stem, dot, kind = path.rpartition(".")
            path = f"{stem}.{self._number:04}{dot}{kind}" if dot else f"{path}.{self._number:04}"
        self._file = _fresh(path)
        self.paths.append(path)
        status = os.fstat(self._file.fileno())
        self._known[path] = status.st_dev, status.st_ino
        while self._limit and len(self.paths) > self._most:
            old = self.paths.pop(0)
            disk.remove(old, self._known.pop(old))
        self._interfaces = {}
        self._size = 0
        uname = os.uname()
        self._write(
            pcap.section_block(
                system=f"{uname.sysname} {uname.release}", application="finwait", comment=self._comment
            )
        )

    def flush(self) -> None:
        """Hand what was written to the kernel."""
        if self._file is not None and not self.failed:
            try:
                self._file.flush()
            except OSError as error:
                self.failed = os.strerror(error.errno or errno.EIO)

    def open(self) -> None:
        """Begin the first file now, so that a wrong path is an error before anything is captured.

        Raises:
            FileRefused: what is there must not be replaced.
        OSError: it cannot be created.
        """
        self._next()

    def _close(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            file.close()
        except OSError as error:  # what was buffered did not fit
            self.failed = self.failed or os.strerror(error.errno or errno.EIO)

    def close(self) -> None:
        """Finish the file; idempotent."""
        self._close()


def _fresh(path: str) -> BinaryIO:
    """Begin a file that nobody else can read, in the place of a regular one or of none; it has its name at once.

    Raises:
        FileRefused: what is there must not be replaced, see `finwait.files`.
        OSError: it cannot be created.
    """
    new = disk.new_file(path)
    file = os.fdopen(new.fd, "wb")
    try:
        new.publish()
    except BaseException:
        file.close()
        raise
    finally:
        new.discard()
    return file


@dataclass(slots=True)
class Recorder:
    """What a capture saw: segments for the diagram, and how often what happened."""

    segments: list[pcap.Segment] = field(default_factory=list)
    packets: int = 0
    dropped: int = 0
    changes: list[tuple[int, Chosen, str]] = field(default_factory=list)
    """(Unix ns, connection, what became of it)."""
    over: bool = False
    """Whether every connection had ended."""


def follow(
    chosen: Sequence[Chosen],
    *,
    writer: Writer | None,
    deadline: float | None,
    until_closed: bool,
    said: Callable[[str], None],
    snaplen: int = 65535,
    spaces: dict[int, netns.NetNamespace] | None = None,
    learn: Callable[[], dict[Chosen, str]] | None = None,
) -> Iterator[Recorder]:
    """Capture until the deadline, the end of every connection, or the caller's; yields after every round.

    Args:
        chosen: the connections.
        writer: where packets go; None to draw only.
        deadline: `time.monotonic` to stop at.
        until_closed: stop a moment after the last connection has left sock_diag (or is a minisocket).
        said: told one line of each change of state.
        snaplen: bytes to keep of each packet.
        spaces: namespaces by inode, where they are known.
        learn: called once the capture runs; what it returns about connections becomes comments too.

    Raises:
        KernelError: the capture could not begin.
        ValueError: too many connections for one socket filter.
    """
    recorder = Recorder()
    states = {one: tcp.STATES.get(one.state, "?") for one in chosen}
    pending: dict[int, list[str]] = {}
    for one in chosen:
        pending.setdefault(one.netns, []).append(f"{one} is {states[one]}")
    with ExitStack() as stack:
        captures = []
        known = dict(spaces or {})
        for inode in sorted({one.netns for one in chosen}):
            space = known.get(inode) or space_of(inode)
            known[inode] = space
            tuples = [form for one in chosen if one.netns == inode for form in one.forms or (one.ends,)]
            captures.append(stack.enter_context(Capture(space, tuples, snaplen=snaplen)))
        if learn is not None:  # packets gather in the ring meanwhile
            for one, note in learn().items():
                pending.setdefault(one.netns, []).append(f"{one}: {note}")
                said(f"{one}: {note}")
        next_look = 0.0
        grace: float | None = None
        while True:
            for capture in captures:
                if capture.wait(0.05 / len(captures)):
                    for packet in capture.drain():
                        comment = "\n".join(pending.pop(capture.netns, []))
                        _take(recorder, capture, packet, writer, comment)
            now = time.monotonic()
            if now >= next_look:
                _changes(chosen, known, states, recorder, pending, said)
                next_look = time.monotonic() + _LOOK_S
                if writer is not None:
                    writer.flush()
                recorder.dropped = sum(capture.dropped() for capture in captures)
                recorder.over = all(state in ("gone", "TIME_WAIT") for state in states.values())
                if until_closed and recorder.over and grace is None:
                    grace = now + 0.5  # the last ACK may still be on its way to us
            ended = (deadline is not None and now >= deadline) or (grace is not None and now >= grace)
            if ended:
                for capture in captures:
                    for packet in capture.drain():
                        _take(recorder, capture, packet, writer, "\n".join(pending.pop(capture.netns, [])))
                if writer is not None:
                    rest = [text for texts in pending.values() for text in texts]
                    if rest:
                        writer.comment("\n".join(rest))
                yield recorder
                return
            yield recorder


def _take(recorder: Recorder, capture: Capture, packet: Packet, writer: Writer | None, comment: str) -> None:
    recorder.packets += 1
    if writer is not None:
        writer.packet(capture.netns, capture.interfaces, packet, comment)
    name = capture.interfaces.get(packet.ifindex, str(packet.ifindex))
    frame = pcap.Frame(packet.time_ns, pcap.LINKTYPE_LINUX_SLL2, packet.data, packet.length, name)
    segment = pcap.parse_segment(frame)
    if segment is not None and len(recorder.segments) < _KEPT:
        recorder.segments.append(segment)


def _question(one: Chosen) -> Question:
    src, sport, dst, dport = one.ends
    return Question(src, dst, sport, dport, one.ifindex)


def _changes(
    chosen: Sequence[Chosen],
    spaces: dict[int, netns.NetNamespace],
    states: dict[Chosen, str],
    recorder: Recorder,
    pending: dict[int, list[str]],
    said: Callable[[str], None],
) -> None:
    """Ask for the state of each connection; a change becomes a comment and a line."""
    for inode, space in list(spaces.items()):
        mine = [one for one in chosen if one.netns == inode]
        try:
            sockets, gaps = ask([_question(one) for one in mine], [space])
        except KernelError:
            continue
        if gaps:  # what led there is gone; something else may
            again = next((space for space in netns.discover()[0] if space.inode == inode), None)
            if again is not None:
                spaces[inode] = again
                continue
            for one in mine:
                if states[one] != "gone":
                    gone = f"{one} was {states[one]} and is gone with its namespace"
                    states[one] = "gone"
                    recorder.changes.append((time.time_ns(), one, gone))
                    pending.setdefault(inode, []).append(gone)
                    said(f"{gone}, which only this capture keeps until it ends")
            continue
        found = {
            Question((a[0], a[1]), (b[0], b[1]), p, q, bound): (s, t, ms)
            for a, p, b, q, bound, s, t, ms in zip(
                sockets["src"].tolist(), sockets["sport"].tolist(), sockets["dst"].tolist(),
                sockets["dport"].tolist(), sockets["ifindex"].tolist(), sockets["state"].tolist(),
                sockets["timer"].tolist(), sockets["expires_ms"].tolist(), strict=True,
            )
        }  # fmt: skip
        for one in mine:
            state, timer, left = found.get(_question(one), (0, 0, 0))
            now = tcp.STATES.get(state, "gone") if state else "gone"
            if timer == 3 and now != "TIME_WAIT":
                now = f"{now} as a minisocket"
            if now == states[one]:
                continue
            until = f", which ends by itself in {left / 1000:.0f} s" if timer == 3 else ""
            text = f"{one} was {states[one]} and is {now}{until}"
            states[one] = now
            recorder.changes.append((time.time_ns(), one, text))
            pending.setdefault(inode, []).append(text)
            said(text)


def read_file(path: str, *, most: int = 1 << 31) -> bytes:
    """Return a capture file, uncompressed if it is a gzip file.

    Raises:
        OSError: it cannot be read, or is not the gzip file that it claims to be.
        ValueError: it is larger than ``most`` bytes once uncompressed.
    """
    import gzip
    import zlib

    with open(path, "rb") as file:
        head = file.read(2)
        file.seek(0)
        if head != b"\x1f\x8b":
            data = file.read(most + 1)
        else:
            with gzip.GzipFile(fileobj=file) as packed:
                parts = []
                size = 0
                try:
                    while size <= most and (part := packed.read(1 << 20)):
                        parts.append(part)
                        size += len(part)
                except EOFError:  # cut: what there is may still tell
                    pass
                except zlib.error as error:
                    raise OSError(errno.EINVAL, f"damaged gzip data ({error})", path) from None
                data = b"".join(parts)
    if len(data) > most:
        raise ValueError(f"`{path}` is larger than {most >> 20} MiB")
    return data

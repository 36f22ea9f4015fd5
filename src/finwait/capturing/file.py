"""Capture files on the disk: a pcapng file or a ring of them written, and any of them read as a stream.

Reading keeps one block, and of every connection what `finwait.diagnosis.closing` keeps: a file of 100 GB costs
time, no memory. A compressed file that ends early, or is damaged somewhere, gives what was unpacked up to there.
"""

from __future__ import annotations

import errno
import heapq
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import BinaryIO, Final, Self

from msgspec import Struct, field

from finwait import files as disk
from finwait.capturing.chosen import End, read_note
from finwait.diagnosis.closings import Closings
from finwait.errors import DecodeError, FileRefused, Gap
from finwait.kernel.capture import Packet
from finwait.uapi import pcap
from finwait.uapi.segment import LINKTYPE_LINUX_SLL2, Segment, Unread, link_name, parse_segment

__all__ = ["CaptureFile", "FileRead", "Writer", "read_closings"]

_CHUNK: Final = 1 << 16
_BOMB: Final = 1 << 30
"""From so many unpacked bytes on it is asked how many there were packed."""
_RATIO: Final = 100
"""Packets rarely shrink to a tenth."""
_WINDOW: Final = 20_000
"""Segments that wait for one with an earlier time stamp; programs that capture write nearly in order."""


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
        self._interfaces: dict[tuple[str, int], int] = {}
        self.paths: list[str] = []
        """Files that exist now, oldest first."""
        self._known: dict[str, tuple[int, int]] = {}
        self.failed = ""
        """Why writing stopped (a full disk); empty while it goes on."""

    def packet(self, place: str, names: dict[int, str], packet: Packet, comment: str = "") -> None:
        """Write one packet; after a failure nothing more is written."""
        name = names.get(packet.ifindex, f"if{packet.ifindex}")
        self._put(place, packet.ifindex, name, lambda number: (
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

    def statistics(self, place: str, time_ns: int, received: int, dropped: int) -> None:
        """Write how many packets came and were lost at a place, and that it was watched until then."""
        self._put(place, 1, "lo", lambda number: (
            pcap.statistics_block(number, time_ns, received=received, dropped=dropped, ended_ns=time_ns)
        ))  # fmt: skip

    def _put(self, place: str, ifindex: int, name: str, block: Callable[[int], bytes]) -> None:
        if self.failed:
            return
        try:
            if self._file is None or (self._limit and self._size >= self._limit):
                self._next()
            number = self._interfaces.get((place, ifindex))
            if number is None:
                number = self._interfaces[place, ifindex] = len(self._interfaces)
                self._write(pcap.interface_block(LINKTYPE_LINUX_SLL2, name, description=place))
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


# --------------------------------------------------------------------------------------------------------
# Reading


class CaptureFile:
    """A capture file, unpacked while it is read if gzip packed it; ``-`` is standard input. A context manager.

    Raises:
        FileRefused: it is no regular file.
        OSError: it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._file = sys.stdin.buffer if path == "-" else disk.open_to_read(path, pipes=True)
        self._keep = path == "-"
        self._head = self._file.read(2)
        self._unpack = zlib.decompressobj(wbits=31) if self._head == b"\x1f\x8b" else None
        self._rest = b""
        self._over = False
        self._packed = 0
        self._unpacked = 0
        self.cut = ""
        """Why the unpacked data ends where it does; empty where it is whole, or was not packed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._keep:
            self._file.close()

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; none at the end, or where unpacking cannot go on (`cut`).

        Raises:
            OSError: the file cannot be read.
        """
        if self._unpack is None:
            head, self._head = self._head, b""
            return head + self._file.read(size - len(head)) if head else self._file.read(size)
        while not (self.cut or self._over):
            if data := self._inflate(size):
                return data
        return b""

    def _inflate(self, size: int) -> bytes:
        """Unpack some, and note when there is no more."""
        assert self._unpack is not None
        packed = self._rest or self._head + self._file.read(_CHUNK)
        self._rest = self._head = b""
        if not packed:
            self.cut = f"the gzip data ends early, at byte {self._packed} of the file"
            return b""
        try:
            data = self._unpack.decompress(packed, size)
        except zlib.error as error:
            self.cut = f"damaged gzip data near byte {self._packed} of the file ({error})"
            return b""
        self._rest = self._unpack.unconsumed_tail
        self._packed += len(packed) - len(self._rest) - len(self._unpack.unused_data)
        self._unpacked += len(data)
        if self._unpacked > max(_BOMB, _RATIO * self._packed):
            self.cut = (
                f"{self._packed} bytes of gzip data became {self._unpacked} bytes; unpack the file first"
            )
        if self._unpack.eof:
            rest = self._unpack.unused_data or self._file.read(_CHUNK)
            self._over = rest[:2] != b"\x1f\x8b"  # another member; anything else is padding
            if not self._over:
                self._unpack, self._rest = zlib.decompressobj(wbits=31), rest
        return data


class FileRead(Struct):
    """What a capture file gave."""

    book: Closings = field(default_factory=Closings)
    packets: int = 0
    unread: Counter[Unread] = field(default_factory=Counter)
    """Packets that gave no segment, by reason."""
    links: Counter[int] = field(default_factory=Counter)
    """Of those whose link type is not read: the link types."""
    late: int = 0
    """Packets that came too late to be sorted in by their time stamps."""
    dropped: int = 0
    """Packets that the capturing program says it lost."""
    until_ns: int = 0
    broken: DecodeError | None = None
    cut: str = ""

    def gaps(self, path: str) -> list[Gap]:
        """Return what in the file could not be seen."""
        gaps = [
            Gap(path, f"read {count} packets of link type {link_name(link)}", "")
            for link, count in self.links.most_common()
        ]
        if count := self.unread[Unread.CUT]:
            gaps.append(
                Gap(path, f"read {count} packets that end before their TCP header", "a larger snaplen")
            )
        if self.dropped:
            gaps.append(Gap(path, f"show {self.dropped} packets that the capturing program lost", ""))
        if self.book.given_up:
            gaps.append(
                Gap(
                    path,
                    f"keep {self.book.given_up} connections",
                    ("ADDRESS:PORT of the connections that you want"),
                )
            )
        if self.cut:
            gaps.append(Gap(path, f"read on: {self.cut}", ""))
        elif self.broken is not None:
            gaps.append(Gap(path, f"read on: {self.broken}", ""))
        return gaps


def read_closings(path: str, ends: Sequence[End] = ()) -> FileRead:
    """Read the connections of a capture file.

    Args:
        path: pcap or pcapng, packed with gzip or not; ``-`` is standard input.
        ends: one end or both of the connection; empty for all.

    Raises:
        OSError: the file cannot be read.
        DecodeError: it is no capture file.
    """
    result = FileRead()
    with CaptureFile(path) as file:
        reader = pcap.PacketReader(file)
        try:
            for segment in _in_order(_segments(reader, result), result):
                if all(_has(segment, *end) for end in ends):
                    result.book.feed(segment)
        except DecodeError as error:
            if not result.packets:
                raise
            result.broken = error
        _notes(result, reader, [], result.until_ns)
        result.dropped = reader.dropped
        result.until_ns = max(result.until_ns, reader.ended_ns)
        result.cut = file.cut
    return result


def _has(segment: Segment, address: tuple[int, int], port: int, scope: str) -> bool:
    ends = ((segment.src, segment.sport), (segment.dst, segment.dport))
    return (address, port) in ends and scope in ("", segment.interface)


def _segments(reader: pcap.PacketReader, result: FileRead) -> Iterator[Segment]:
    for frame in reader:
        result.packets += 1
        result.until_ns = max(result.until_ns, frame.time_ns)
        own = reader.application == "finwait"
        if own and (frame.comment or reader.comments):
            _notes(result, reader, frame.comment.split("\n"), frame.time_ns)
        segment = parse_segment(frame)
        if isinstance(segment, Unread):
            result.unread[segment] += 1
            if segment is Unread.LINK:
                result.links[frame.link] += 1
        else:
            yield segment


def _notes(result: FileRead, reader: pcap.PacketReader, lines: Iterable[str], time_ns: int) -> None:
    """Take in what the comments of a file of ours say about states."""
    if reader.application != "finwait":
        return
    texts = [line for comment in reader.comments for line in comment.split("\n")]
    reader.comments.clear()
    for line in (*texts, *lines):
        note = read_note(line)
        if note is not None:
            result.book.state(note.forms, note.state, time_ns, place=note.place, scope=note.scope)


def _in_order(segments: Iterable[Segment], result: FileRead) -> Iterator[Segment]:
    """Yield segments by time, as far as a window of some thousand reaches."""
    window: list[tuple[int, int, Segment]] = []
    last = 0
    failed: DecodeError | None = None
    source = enumerate(segments)
    while True:
        try:
            number, segment = next(source)
        except StopIteration:
            break
        except DecodeError as error:
            failed = error
            break
        result.late += segment.time_ns < last
        heapq.heappush(window, (segment.time_ns, number, segment))
        if len(window) > _WINDOW:
            last, _, first = heapq.heappop(window)
            yield first
    while window:
        yield heapq.heappop(window)[2]
    if failed is not None:
        raise failed

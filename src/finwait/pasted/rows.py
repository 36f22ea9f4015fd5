"""Sockets as a text shows them: columns of numbers, with a mask where a row does not say.

A recogniser adds one dictionary a row; they become arrays some thousand at a time, so that a large text costs little
more memory than its columns. Rows of several texts are joined by their ends.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from finwait.table.sockets import MAPPED
from finwait.uapi import tcp
from finwait.uapi.cluster import Pod

__all__ = ["NamedHolder", "PastedEnd", "SocketRows", "TextPart", "endpoint", "state_of"]

_CHUNK: Final = 4096
_SERVICES: Final = {
    "ftp": 21, "ssh": 22, "telnet": 23, "smtp": 25, "domain": 53, "http": 80, "kerberos": 88, "pop3": 110,
    "sunrpc": 111, "imap2": 143, "imap": 143, "ldap": 389, "https": 443, "microsoft-ds": 445, "submission": 587,
    "ldaps": 636, "rsync": 873, "imaps": 993, "pop3s": 995, "ms-sql-s": 1433, "nfs": 2049, "iscsi-target": 3260,
    "mysql": 3306, "postgresql": 5432, "amqp": 5672, "http-alt": 8080, "webcache": 8080,
}  # fmt: skip
"""Names that /etc/services gives to ports in texts of old; of any other name the port is not known."""

Words = tuple[int, int]
"""An address as two 64-bit words."""


class PastedEnd(Struct, frozen=True):
    """One end: address, port and family."""

    words: Words
    port: int
    family: int


_ENDPOINTS: dict[str, PastedEnd | None] = {}
_REMEMBERED: Final = 200_000


def endpoint(text: str) -> PastedEnd | None:
    """Return an end as ``10.0.0.1:80``, ``[::1]:22``, ``:::22``, ``*:*`` or ``10.0.0.1%eth0:ssh``; None for no end."""
    known = _ENDPOINTS.get(text, _ENDPOINTS)
    if known is not _ENDPOINTS:
        return known  # type: ignore[return-value]
    end = _endpoint(text)
    if len(_ENDPOINTS) < _REMEMBERED:
        _ENDPOINTS[text] = end
    return end


def _endpoint(text: str) -> PastedEnd | None:
    host, colon, port_text = text.rpartition(":")
    if not colon or len(text) > 100:
        return None
    if port_text == "*":
        port = 0
    elif port_text.isascii() and port_text.isdecimal():
        port = int(port_text[:6])
    else:
        port = _SERVICES.get(port_text, -1)
    if not 0 <= port <= 0xFFFF:
        return None
    host = host.removeprefix("[").removesuffix("]").partition("%")[0]
    numbers = host.split(".")
    if len(numbers) == 4 and ":" not in host:
        return _v4(numbers, port)
    if host == "*":
        return PastedEnd((0, 0), port, 10)
    try:
        number = int(ipaddress.IPv6Address(host))
    except ValueError:
        return None
    return PastedEnd((number >> 64, number & 0xFFFFFFFFFFFFFFFF), port, 10)


def _v4(numbers: list[str], port: int) -> PastedEnd | None:
    word = MAPPED >> 32
    for number in numbers:
        byte = _BYTES.get(number)
        if byte is None:
            return None
        word = word << 8 | byte
    return PastedEnd((0, word), port, 2)


_BYTES: Final = {f"{byte:0{digits}}": byte for byte in range(256) for digits in (1, 3)}
_STATES: Final = {tcp.ss_name(n): n for n in tcp.STATES} | {
    name: n for n, name in tcp.STATES.items() if n != tcp.NEW_SYN_RECV
}


def state_of(word: str) -> int | None:
    """Return the state that Linux's tools call so."""
    return _STATES.get(word)


class NamedHolder(Struct, frozen=True):
    """A descriptor, or only a process, that a text names for a row."""

    row: int
    pid: int
    name: str
    fd: int


More = Callable[[dict[str, NDArray[np.int64]], Sequence[str]], None]


class SocketRows:
    """Rows under way to a table; columns are those of `finwait.table.sockets.SCHEMA`."""

    def __init__(self, more: More | None = None) -> None:
        """Begin without rows; ``more`` adds to the columns of some rows what else stands in their text."""
        self._more = more
        self._rests: list[str] = []
        self.holders: list[NamedHolder] = []
        self._waiting: list[Mapping[str, int]] = []
        self._ends: list[tuple[Words, Words]] = []
        self._parts: list[dict[str, NDArray[np.int64]]] = []
        self._addresses: list[NDArray[np.uint64]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, src: PastedEnd, dst: PastedEnd, cells: dict[str, int], rest: str = "") -> int:
        """Add a row; return its number. What ``cells`` lacks is not told; its numbers are below 2**63."""
        cells["sport"], cells["dport"], cells["family"] = src.port, dst.port, src.family
        self._waiting.append(cells)
        if self._more is not None:
            self._rests.append(rest)
        self._ends.append((src.words, dst.words))
        self._count += 1
        if len(self._waiting) >= _CHUNK:
            self._flush()
        return self._count - 1

    def hold(self, row: int, pid: int, name: str, fd: int) -> None:
        """Note that a process holds a row."""
        if 0 < pid < 1 << 22:
            self.holders.append(NamedHolder(row, pid, name[:64], fd))

    def local_addresses(self) -> set[Words]:
        """Return the local addresses of its connections, without those that every machine has."""
        words = {src for src, _ in self._ends}
        for ends in self._addresses:
            words |= {(high, low) for high, low in np.unique(ends[:, 0], axis=0).tolist()}
        loopback = MAPPED >> 24 | 127
        return {(high, low) for high, low in words - _EVERYWHERE if high or low >> 24 != loopback}

    def _flush(self) -> None:
        names: dict[str, None] = {}
        for cells in self._waiting:
            names.update(dict.fromkeys(cells))
        part = {}
        for name in names:
            part[name] = np.array([cells.get(name, -1) for cells in self._waiting], np.int64)
        if self._more is not None:
            part.setdefault("state", np.full(len(self._waiting), -1))
            self._more(part, self._rests)
            self._rests = []
        self._parts.append(part)
        self._addresses.append(np.array(self._ends, np.uint64))
        self._waiting, self._ends = [], []

    def columns(self) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.uint64], NDArray[np.uint64]]:
        """Return the columns, −1 where a row does not say, and both addresses as two words each."""
        if self._waiting:
            self._flush()
        names = sorted({name for part in self._parts for name in part})
        sizes = [len(ends) for ends in self._addresses]
        joined = {
            name: np.concatenate(
                [
                    part[name] if name in part else np.full(n, -1)
                    for part, n in zip(self._parts, sizes, strict=True)
                ]
            )
            for name in names
        }
        if not self._addresses:
            none = np.empty((0, 2), np.uint64)
            return {}, none, none
        ends = np.concatenate(self._addresses)
        return joined, ends[:, 0], ends[:, 1]


_EVERYWHERE: Final = frozenset({(0, 0), (0, 1), (0, MAPPED)})


class TextPart(Struct):
    """What one recogniser made of the lines that are its own."""

    recogniser: str
    rows: SocketRows | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    """As `finwait.uapi.observation.Namespace.files`."""
    flows: list[bytes] = field(default_factory=list)
    """Connection tracking entries, as netlink messages."""
    names: dict[int, str] = field(default_factory=dict)
    """Pid → name of its program."""
    notes: list[str] = field(default_factory=list)
    """What it says that no column has, as sentences."""
    unread: dict[str, int] = field(default_factory=dict)
    """What lines of its own did not say well enough → how many, worded as after "could not"."""
    descriptors: list[tuple[int, int, int]] = field(default_factory=list)
    """(pid, fd, inode) of sockets."""
    pods: list[Pod] = field(default_factory=list)
    host: str = ""

    def count(self, doing: str) -> None:
        """Count a line that did not say well enough what it is."""
        self.unread[doing] = self.unread.get(doing, 0) + 1

"""``struct inet_diag_msg`` and its attributes, found in a dump without a Python loop over rows.

Mirrors include/uapi/linux/inet_diag.h. The kernel appends to its structs and never reorders them, so a
longer message is a newer kernel, not an error; a shorter one is an error.

Theory of operation. Messages of one kind have the same length and the same attributes at the same places,
so instead of parsing each we find the few *layouts* that occur. Equal length does not prove equal layout:
one row of each length is parsed as a template, its attribute headers are compared with those at the same
places of every other row of that length, and the rows that differ go round again with a new template. A
column is then a gather: row offset + place of the attribute in the row's layout + offset of the field.
Nothing is copied until a column is asked for.

What this cannot see: sockets in ``TCP_CLOSE`` are in no dump at all.

This module touches bytes only. Opening the socket is `finwait.kernel.netlink`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from finwait.errors import DecodeError
from finwait.uapi import netlink
from finwait.uapi.netlink import NLA_HEADER, NLMSG_HEADER, Messages

__all__ = [
    "AF_INET",
    "AF_INET6",
    "ATTRIBUTE_NAMES",
    "EXT_ALL",
    "IPPROTO_MPTCP",
    "IPPROTO_TCP",
    "MESSAGE_SIZE",
    "SOCK_DESTROY",
    "SOCK_DIAG_BY_FAMILY",
    "TCPDIAG_GETSOCK",
    "Rows",
    "SocketId",
    "dump_both_families",
    "dump_request",
    "extension_mask",
    "find_rows",
    "socket_request",
]

AF_INET: Final = 2
AF_INET6: Final = 10
IPPROTO_TCP: Final = 6
IPPROTO_MPTCP: Final = 262
TCPDIAG_GETSOCK: Final = 18
SOCK_DIAG_BY_FAMILY: Final = 20
SOCK_DESTROY: Final = 21
NOCOOKIE: Final = 0xFFFFFFFF

MESSAGE_SIZE: Final = 72  # sizeof(struct inet_diag_msg)
_REQ_V2 = struct.Struct("=BBBBI")  # family, protocol, ext, pad, states; then struct inet_diag_sockid
_REQ_V1 = struct.Struct("=BBBB")  # struct inet_diag_req: family, src_len, dst_len, ext; then sockid
_SOCKID_SIZE = 48

# INET_DIAG_* attribute numbers.
REQ_BYTECODE, REQ_PROTOCOL = 1, 3
MEMINFO, INFO, VEGASINFO, CONG, TOS, TCLASS, SKMEMINFO, SHUTDOWN = 1, 2, 3, 4, 5, 6, 7, 8
DCTCPINFO, PROTOCOL, SKV6ONLY, LOCALS, PEERS, PAD, MARK, BBRINFO = 9, 10, 11, 12, 13, 14, 15, 16
CLASS_ID, MD5SIG, ULP_INFO, SK_BPF_STORAGES, CGROUP_ID, SOCKOPT = 17, 18, 19, 20, 21, 22

ATTRIBUTE_NAMES: Final[dict[int, str]] = {
    MEMINFO: "MEMINFO",
    INFO: "INFO",
    VEGASINFO: "VEGASINFO",
    CONG: "CONG",
    TOS: "TOS",
    TCLASS: "TCLASS",
    SKMEMINFO: "SKMEMINFO",
    SHUTDOWN: "SHUTDOWN",
    DCTCPINFO: "DCTCPINFO",
    PROTOCOL: "PROTOCOL",
    SKV6ONLY: "SKV6ONLY",
    LOCALS: "LOCALS",
    PEERS: "PEERS",
    PAD: "PAD",
    MARK: "MARK",
    BBRINFO: "BBRINFO",
    CLASS_ID: "CLASS_ID",
    MD5SIG: "MD5SIG",
    ULP_INFO: "ULP_INFO",
    SK_BPF_STORAGES: "SK_BPF_STORAGES",
    CGROUP_ID: "CGROUP_ID",
    SOCKOPT: "SOCKOPT",
}


def extension_mask(*attributes: int) -> int:
    """Return ``idiag_ext`` for the attributes that must be asked for (bit *n − 1* asks for attribute *n*)."""
    mask = 0
    for number in attributes:
        if not 1 <= number <= 8:
            raise ValueError(f"attribute {number} cannot be asked for; it comes by itself or never")
        mask |= 1 << (number - 1)
    return mask


EXT_ALL: Final = 0xFF
"""Everything that can be asked for; SHUTDOWN, MARK, CGROUP_ID, SOCKOPT, ULP_INFO come by themselves."""


@dataclass(frozen=True, slots=True)
class SocketId:
    """``struct inet_diag_sockid``: the tuple, interface and cookie of one socket.

    Addresses are 4 or 16 bytes in network order. ``cookie`` None means INET_DIAG_NOCOOKIE: any socket.
    """

    sport: int
    dport: int
    src: bytes
    dst: bytes
    ifindex: int = 0
    cookie: int | None = None

    def pack(self) -> bytes:
        """Return the 48 bytes of the struct."""
        low, high = (
            (NOCOOKIE, NOCOOKIE) if self.cookie is None else (self.cookie & 0xFFFFFFFF, self.cookie >> 32)
        )
        return (
            struct.pack("!HH", self.sport, self.dport)
            + self.src.ljust(16, b"\0")
            + self.dst.ljust(16, b"\0")
            + struct.pack("=III", self.ifindex, low, high)
        )


_ANY = SocketId(0, 0, b"", b"").pack()


def dump_request(
    family: int, protocol: int, states: int, extensions: int, *, bytecode: bytes = b"", seq: int = 1
) -> bytes:
    """Return a ``SOCK_DIAG_BY_FAMILY`` dump request for one family.

    Args:
        family: AF_INET or AF_INET6 (v4-mapped rows appear only there).
        protocol: IPPROTO_TCP or IPPROTO_MPTCP.
        states: bit mask of ``1 << TCP_state``.
        extensions: see `extension_mask`.
        bytecode: inet_diag bytecode that the kernel applies to every socket; see `finwait.table.filter`.
        seq: sequence number that the answers repeat.
    """
    if protocol > 0xFF:  # IPPROTO_MPTCP does not fit the u8; the kernel then reads the attribute
        extra = netlink.attribute(REQ_PROTOCOL, struct.pack("=I", protocol))
        protocol = 0xFF
    else:
        extra = b""
    if bytecode:
        extra = netlink.attribute(REQ_BYTECODE, bytecode) + extra
    body = _REQ_V2.pack(family, protocol, extensions, 0, states) + _ANY + extra
    return netlink.message(SOCK_DIAG_BY_FAMILY, netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP, body, seq=seq)


def dump_both_families(states: int, extensions: int, *, bytecode: bytes = b"", seq: int = 1) -> bytes:
    """Return the older ``TCPDIAG_GETSOCK`` dump request, which answers for IPv4 and IPv6 in one walk.

    The walk over the kernel's hash table is what a dump of a small namespace costs, and the newer request
    needs one for each family (net/ipv4/inet_diag.c: ``inet_diag_dump_compat`` leaves the family open).
    """
    extra = netlink.attribute(REQ_BYTECODE, bytecode) if bytecode else b""
    body = _REQ_V1.pack(0, 0, 0, extensions) + _ANY + struct.pack("=II", states, 0) + extra
    return netlink.message(TCPDIAG_GETSOCK, netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP, body, seq=seq)


def socket_request(
    kind: int,
    family: int,
    protocol: int,
    identity: SocketId,
    *,
    states: int = 0xFFF,
    seq: int = 1,
    extensions: int = EXT_ALL,
) -> bytes:
    """Return a request about one socket: ``SOCK_DIAG_BY_FAMILY`` reads it, ``SOCK_DESTROY`` ends it.

    The kernel compares the cookie, so a socket that took over the tuple is never hit (ENOENT instead).
    """
    extra = b""
    if protocol > 0xFF:
        extra = netlink.attribute(REQ_PROTOCOL, struct.pack("=I", protocol))
        protocol = 0xFF
    body = _REQ_V2.pack(family, protocol, extensions, 0, states) + identity.pack() + extra
    flags = netlink.NLM_F_REQUEST | (netlink.NLM_F_ACK if kind == SOCK_DESTROY else 0)
    return netlink.message(kind, flags, body, seq=seq)


Path = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the attributes of one shape of message are, relative to the netlink header."""

    places: dict[Path, tuple[int, int]]
    """Attribute path → (offset, length) of its payload. Nested attributes have longer paths."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Sockets in a buffer of received datagrams, found but not yet copied.

    ``offset`` is the place of each row's netlink header, ``layout`` the index into ``layouts``, ``chain``
    the datagram it came in.
    """

    buffer: NDArray[np.uint8]
    offset: NDArray[np.int64]
    layout: NDArray[np.int32]
    chain: NDArray[np.int64]
    layouts: tuple[Layout, ...]
    _words: NDArray[np.uint32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        usable = (len(self.buffer) // 4) * 4
        object.__setattr__(self, "_words", self.buffer[:usable].view(np.uint32))

    def __len__(self) -> int:
        return len(self.offset)

    def take(self, index: NDArray[Any]) -> Rows:
        """Return some of the rows (by mask or index), without copying what they say."""
        return Rows(self.buffer, self.offset[index], self.layout[index], self.chain[index], self.layouts)

    def place(self, path: Path, need: int) -> NDArray[np.int64]:
        """Return where each row keeps an attribute (absolute offset), −1 where it is missing or too short."""
        table = np.array(
            [
                (found[0] if (found := lay.places.get(path)) is not None and found[1] >= need else -1)
                for lay in self.layouts
            ]
            or [-1],
            np.int64,
        )
        if len(table) == 1 or (table == table[0]).all():
            return self.offset + table[0] if table[0] >= 0 else np.full(len(self.offset), -1, np.int64)
        rel = table[self.layout]
        return np.where(rel >= 0, self.offset + rel, -1)

    def scalar(self, at: NDArray[np.int64], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Gather one number a row at absolute offsets ``at`` (−1 gives 0)."""
        at = np.maximum(at, 0)
        size = dtype.itemsize
        if size == 1:
            return self.buffer[at].view(dtype)
        if size == 4:
            return self._words[at >> 2].view(dtype)
        if size == 2:
            return self._words.view(np.uint16)[at >> 1].view(dtype)
        low = self._words[at >> 2].astype(np.uint64)
        high = self._words[(at >> 2) + 1].astype(np.uint64)
        return (low | (high << np.uint64(32))).view(dtype)

    def text(self, path: Path, width: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Gather a NUL-terminated string attribute as ``S<width>``, and which rows have it."""
        out = np.zeros(len(self), f"S{width}")
        present = np.zeros(len(self), np.bool_)
        for number, lay in enumerate(self.layouts):
            found = lay.places.get(path)
            if found is None:
                continue
            mine = np.flatnonzero(self.layout == number)
            if not len(mine):
                continue
            present[mine] = True
            n = min(found[1], width)
            if n:
                at = (self.offset[mine] + found[0])[:, None] + np.arange(n)
                cells = self.buffer[at]
                # What follows the first NUL is padding, not text.
                cells = np.where(np.cumsum(cells == 0, axis=1) > 0, 0, cells).astype(np.uint8)
                out[mine] = np.ascontiguousarray(cells).view(f"S{n}")[:, 0]
        return out, present

    def raw(self, row: int) -> dict[Path, bytes]:
        """Return every attribute of one row as bytes, unknown ones too."""
        start = int(self.offset[row])
        places = self.layouts[int(self.layout[row])].places
        return {path: self.buffer[start + o : start + o + n].tobytes() for path, (o, n) in places.items()}


def _template(
    buffer: NDArray[np.uint8], start: int, length: int
) -> tuple[dict[Path, tuple[int, int]], list[int]]:
    """Parse one row: its attribute places, and where its attribute headers stand (both relative)."""
    data = buffer[start : start + length].tobytes()
    places: dict[Path, tuple[int, int]] = {}
    headers: list[int] = []

    def visit(prefix: Path, begin: int, end: int) -> None:
        for kind, at, size in netlink.attributes(data, begin, end, "inet_diag attribute"):
            path = (*prefix, kind)
            headers.append(at - NLA_HEADER)
            places[path] = (at, size)
            # The nesting of ULP_INFO is fixed: name (1) is text, tls (2) and mptcp (3) hold attributes.
            if path == (ULP_INFO,) or (len(path) == 2 and path[0] == ULP_INFO and kind in (2, 3)):
                visit(path, at, at + size)

    try:
        visit((), NLMSG_HEADER + MESSAGE_SIZE, length)
    except DecodeError as error:
        raise DecodeError(error.what, start + error.offset, error.window, error.reason) from None
    return places, headers


_TEMPLATES_A_LENGTH = 64


def find_rows(buffer: NDArray[np.uint8], messages: Messages) -> Rows:
    """Find the layout of every ``inet_diag_msg`` among ``messages`` (which must hold nothing else).

    Raises:
        DecodeError: a message is shorter than the struct, or its attributes do not fit into it.
    """
    minimum = NLMSG_HEADER + MESSAGE_SIZE
    short = messages.length < minimum
    if short.any():
        where = int(messages.offset[short][0])
        raise DecodeError(
            "struct inet_diag_msg",
            where,
            buffer[where : where + 16].tobytes(),
            f"message of {int(messages.length[short][0])} bytes is shorter than {minimum}",
        )
    usable = (len(buffer) // 4) * 4
    words = buffer[:usable].view(np.uint32)
    layout = np.zeros(len(messages), np.int32)
    layouts: list[Layout] = []
    for length in np.unique(messages.length):
        rest = np.flatnonzero(messages.length == length)
        for _ in range(_TEMPLATES_A_LENGTH):
            first = int(messages.offset[rest[0]])
            places, headers = _template(buffer, first, int(length))
            same = np.ones(len(rest), np.bool_)
            at = messages.offset[rest]
            for header in headers:
                same &= words[(at + header) >> 2] == words[(first + header) >> 2]
            layout[rest[same]] = len(layouts)
            layouts.append(Layout(places))
            rest = rest[~same]
            if not len(rest):
                break
        if len(rest):
            _one_by_one(buffer, messages, rest, layout, layouts)
    return Rows(buffer, messages.offset, layout, messages.chain, tuple(layouts))


def _one_by_one(
    buffer: NDArray[np.uint8],
    messages: Messages,
    rest: Sequence[Any] | NDArray[Any],
    layout: NDArray[np.int32],
    layouts: list[Layout],
) -> None:
    """Parse rows singly: no kernel mixes so many shapes, but a crafted recording may, and stays linear."""
    known: dict[tuple[tuple[Path, tuple[int, int]], ...], int] = {}
    for row in rest:
        places, _ = _template(buffer, int(messages.offset[row]), int(messages.length[row]))
        key = tuple(places.items())
        number = known.get(key)
        if number is None:
            number = known[key] = len(layouts)
            layouts.append(Layout(places))
        layout[row] = number

"""Netlink messages and attributes, walked many datagrams at a time.

Mirrors include/uapi/linux/netlink.h and the alignment rules of include/net/netlink.h. A dump arrives as
many datagrams, each a chain of messages. Chains do not depend on one another, so `walk` steps through
*all* of them in lockstep, one vector operation a step: a chain of 55 messages costs 55 steps whether there
is one datagram or four thousand.

The surprise: ``NLMSG_DONE`` may end the last *data* datagram instead of coming alone, and an interrupted
dump says so only by a flag bit (``NLM_F_DUMP_INTR``) on the messages after the change.

This module touches bytes only. Sockets are `finwait.kernel.netlink`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.errors import DecodeError

__all__ = [
    "NLA_HEADER",
    "NLA_TYPE_MASK",
    "NLMSG_DONE",
    "NLMSG_ERROR",
    "NLMSG_HEADER",
    "NLMSG_NOOP",
    "NLMSG_OVERRUN",
    "NLM_F_ACK",
    "NLM_F_DUMP",
    "NLM_F_DUMP_INTR",
    "NLM_F_REQUEST",
    "Messages",
    "align4",
    "attribute",
    "attributes",
    "message",
    "nested",
    "walk",
]

NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE, NLMSG_OVERRUN = 1, 2, 3, 4
NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_DUMP_INTR = 0x01, 0x02, 0x04, 0x10
NLM_F_DUMP = 0x300  # NLM_F_ROOT | NLM_F_MATCH
NLA_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
NLMSG_HEADER = 16
NLA_HEADER = 4

_HEADER = struct.Struct("=IHHII")
_ATTR = struct.Struct("=HH")

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]


def align4(n: int) -> int:
    """``NLMSG_ALIGN`` and ``NLA_ALIGN``: both round up to four bytes."""
    return (n + 3) & ~3


def message(kind: int, flags: int, payload: bytes, *, seq: int = 1) -> bytes:
    """Return one netlink message: ``struct nlmsghdr`` and the payload, padded to four bytes."""
    head = _HEADER.pack(NLMSG_HEADER + len(payload), kind, flags, seq, 0)
    return (head + payload).ljust(align4(NLMSG_HEADER + len(payload)), b"\0")


def attribute(kind: int, payload: bytes) -> bytes:
    """Return one attribute: ``struct nlattr`` and the payload, padded to four bytes."""
    return (_ATTR.pack(NLA_HEADER + len(payload), kind) + payload).ljust(
        align4(NLA_HEADER + len(payload)), b"\0"
    )


def nested(kind: int, *inner: bytes) -> bytes:
    """Return an attribute that holds attributes (``NLA_F_NESTED``)."""
    return attribute(kind | 0x8000, b"".join(inner))


def attributes(
    data: bytes | memoryview, offset: int, end: int, subject: str
) -> Iterator[tuple[int, int, int]]:
    """Yield ``(type, payload offset, payload length)`` of each attribute in ``data[offset:end]``.

    Raises:
        DecodeError: a length is shorter than its own header or runs past ``end``.
    """
    while offset < end:
        if end - offset < NLA_HEADER:
            raise DecodeError(subject, offset, bytes(data[offset:end]), "trailing bytes after the attributes")
        length, kind = _ATTR.unpack_from(data, offset)
        if length < NLA_HEADER or offset + length > end:
            raise DecodeError(
                subject, offset, bytes(data[offset : offset + 16]), f"attribute length {length} is impossible"
            )
        yield kind & NLA_TYPE_MASK, offset + NLA_HEADER, length - NLA_HEADER
        offset += align4(length)


class Messages(Struct, frozen=True):
    """Where each message of many datagrams stands, as columns (one row a message, in order of arrival).

    ``offset`` is that of ``struct nlmsghdr`` in the buffer; ``chain`` the number of the datagram.
    """

    offset: I64
    length: I64
    type: NDArray[np.uint16]
    flags: NDArray[np.uint16]
    chain: I64

    def __len__(self) -> int:
        return len(self.offset)

    def where(self, mask: NDArray[np.bool_]) -> Messages:
        """Return the messages that ``mask`` selects."""
        return Messages(
            self.offset[mask], self.length[mask], self.type[mask], self.flags[mask], self.chain[mask]
        )


def walk(buffer: U8, starts: I64, ends: I64) -> Messages:
    """Find every message in the datagrams ``buffer[starts[i]:ends[i]]``.

    Each start must be a multiple of four (the receiver lays datagrams out that way), and a chain ends where
    fewer than ``NLMSG_HEADER`` bytes are left. Lengths are checked; every step makes progress.

    Raises:
        DecodeError: a message is shorter than its header or longer than its datagram.
    """
    usable = (len(buffer) // 4) * 4
    words = buffer[:usable].view(np.uint32)
    halves = buffer[:usable].view(np.uint16)
    at = starts.astype(np.int64)
    chain = np.arange(len(at), dtype=np.int64)
    live = ends - at >= NLMSG_HEADER
    at, chain, end = at[live], chain[live], ends[live].astype(np.int64)
    steps: list[tuple[I64, I64, I64]] = []  # offset, length, chain
    while len(at):
        length = words[at >> 2].astype(np.int64)
        bad = (length < NLMSG_HEADER) | (length > end - at)
        if bad.any():
            where = int(at[bad][0])
            raise DecodeError(
                "struct nlmsghdr",
                where,
                buffer[where : where + 16].tobytes(),
                f"message length {int(length[bad][0])} is impossible",
            )
        steps.append((at, length, chain))
        at = at + ((length + 3) & ~3)
        live = end - at >= NLMSG_HEADER
        if not live.all():
            at, chain, end = at[live], chain[live], end[live]
    if not steps:
        none = np.empty(0, np.int64)
        return Messages(none, none, np.empty(0, np.uint16), np.empty(0, np.uint16), none)
    # Message k of a chain goes to (messages of all chains before it) + k: order of arrival without a sort.
    counts = np.zeros(len(starts) + 1, np.int64)
    for _, _, owners in steps:
        counts[owners + 1] += 1
    base = np.cumsum(counts)
    total = int(base[-1])
    offset, size, owner = (np.empty(total, np.int64) for _ in range(3))
    for k, (at, length, owners) in enumerate(steps):
        row = base[owners] + k
        offset[row], size[row], owner[row] = at, length, owners
    return Messages(offset, size, halves[(offset >> 1) + 2], halves[(offset >> 1) + 3], owner)

"""Netlink dumps made by hand, so that what was put in is known exactly."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from finwait.table.flows import FlowTable
from finwait.table.sockets import SocketTable
from finwait.uapi import conntrack, inet_diag
from finwait.uapi import netlink as nl

Attribute = tuple[int, bytes]


def arena(datagrams: Iterable[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Lay datagrams out as the receiver does, each at a multiple of eight bytes."""
    data = bytearray()
    starts, ends = [], []
    for one in datagrams:
        starts.append(len(data))
        data += one
        ends.append(len(data))
        data += bytes(-len(data) % 8)
    return (
        np.frombuffer(bytes(data), np.uint8),
        np.array(starts, np.int64),
        np.array(ends, np.int64),
    )


def walk(datagrams: Iterable[bytes]) -> tuple[NDArray[np.uint8], nl.Messages]:
    buffer, starts, ends = arena(datagrams)
    return buffer, nl.walk(buffer, starts, ends)


def socket_message(
    attributes: Sequence[Attribute] = (),
    *,
    family: int = 2,
    state: int = 1,
    timer: int = 0,
    retrans: int = 0,
    identity: inet_diag.SocketId | None = None,
    expires: int = 0,
    rqueue: int = 0,
    wqueue: int = 0,
    uid: int = 0,
    inode: int = 0,
    extra: bytes = b"",
) -> bytes:
    """One ``inet_diag_msg`` with attributes in the given order."""
    identity = identity or inet_diag.SocketId(0, 0, b"", b"", cookie=1)
    body = struct.pack("=BBBB", family, state, timer, retrans) + identity.pack()
    body += struct.pack("=IIIII", expires, rqueue, wqueue, uid, inode) + extra
    body += b"".join(nl.attribute(kind, payload) for kind, payload in attributes)
    return nl.message(inet_diag.SOCK_DIAG_BY_FAMILY, 2, body)


def sockets(datagrams: Iterable[bytes], protocol: int = 6) -> SocketTable:
    buffer, messages = walk(datagrams)
    rows = inet_diag.find_rows(buffer, messages)
    n = len(rows)
    return SocketTable.from_rows(rows, np.full(n, 1, np.uint32), np.full(n, protocol, np.uint16))


def flow_message(attributes: Sequence[bytes], *, family: int = 2) -> bytes:
    """One ctnetlink entry of attributes that are packed already."""
    body = struct.pack("!BBH", family, 0, 0) + b"".join(attributes)
    return nl.message(conntrack.CT_NEW, 2, body)


def flows(datagrams: Iterable[bytes]) -> FlowTable:
    buffer, messages = walk(datagrams)
    rows = conntrack.find_rows(buffer, messages)
    return FlowTable.from_rows(rows, np.full(len(rows), 1, np.uint32))

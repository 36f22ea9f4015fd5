"""sock_diag dumps."""

from __future__ import annotations

import struct

import numpy as np

from finwait.errors import DecodeError
from finwait.table.sockets import SocketTable
from finwait.uapi import inet_diag as d
from finwait.uapi import netlink as nl
from fuzz.dumps import check, datagrams, read


def _socket(family: int, state: int, *attributes: bytes) -> bytes:
    body = struct.pack("=BBBB", family, state, 0, 0) + d.SocketId(443, 5000, b"", b"", cookie=7).pack()
    return nl.message(d.SOCK_DIAG_BY_FAMILY, 2, body + bytes(20) + b"".join(attributes))


def seeds() -> list[bytes]:
    ulp = nl.attribute(1, b"mptcp\0") + nl.nested(3, nl.attribute(1, bytes(4)), nl.attribute(2, bytes(4)))
    full = _socket(
        2,
        5,
        nl.attribute(d.SHUTDOWN, b"\2"),
        nl.attribute(d.INFO, bytes(range(248))),
        nl.attribute(d.MEMINFO, bytes(16)),
        nl.attribute(d.SKMEMINFO, bytes(36)),
        nl.attribute(d.CONG, b"cubic\0"),
        nl.attribute(d.CGROUP_ID, bytes(8)),
        nl.attribute(d.ULP_INFO, ulp),
        nl.attribute(d.MARK, bytes(4)),
    )
    minisock = _socket(10, 6, nl.attribute(d.MARK, bytes(4)))
    done = nl.message(nl.NLMSG_DONE, 2, bytes(4))
    return [
        b"\0" + full + minisock,
        b"\0" + minisock * 3,
        bytes([len(full) // 8]) + full + full + done,
        b"\0",
    ]


def one_input(data: bytes) -> None:
    found = datagrams(data)
    if found is None:
        return
    buffer, messages = found
    try:
        rows = d.find_rows(buffer, messages)
    except DecodeError as error:
        check(error, len(buffer))
        return
    n = len(rows)
    for protocol in (d.IPPROTO_TCP, d.IPPROTO_MPTCP):
        read(SocketTable.from_rows(rows, np.zeros(n, np.uint32), np.full(n, protocol, np.uint16)))

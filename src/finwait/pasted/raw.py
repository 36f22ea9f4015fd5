"""Raw dumps: what the kernel sent, as `ss -t -a -D FILE` writes it.

These are the very messages of sock_diag, so that nothing in them is missing: cookies, inodes, timers, and with -i also
tcp_info. Who holds a socket is not in them.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from msgspec.structs import replace

from finwait.errors import DecodeError, Gap
from finwait.table import decode
from finwait.uapi import inet_diag
from finwait.uapi import netlink as nl
from finwait.uapi.observation import Descriptors, Dump, Facts, Namespace, Observation

__all__ = ["observation"]

_A_DATAGRAM: Final = 64
_KINDS: Final = (inet_diag.SOCK_DIAG_BY_FAMILY, inet_diag.TCPDIAG_GETSOCK)


def observation(data: bytes) -> Observation | None:
    """Return the look that a raw dump is; None where the bytes are none."""
    starts, ends = _datagrams(data)
    if not starts:
        return None
    buffer = np.frombuffer(data, np.uint8)
    space = Namespace(1, ("dumped",), dumps=(Dump("tcp", tuple(starts), tuple(ends)),))
    gaps = (
        Gap("the dump", "tell who holds sockets", "`ss -tanoeip`, run as root"),
        Gap("the dump", "show other network namespaces", "`finwait record` on that machine", unentered=True),
    )
    none = replace(Descriptors.none(searched=True), pasted=True)
    look = Observation(Facts(hostname="a dump of ss"), buffer, (space,), none, gaps=gaps, complete=False)
    try:
        decode.sockets(look).load()
    except DecodeError:
        return None
    return look


def _datagrams(data: bytes) -> tuple[list[int], list[int]]:
    """Return where messages begin and end, some in each piece; nothing where one is not what a kernel sends."""
    starts: list[int] = []
    ends: list[int] = []
    at = count = 0
    while at + nl.NLMSG_HEADER <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        whole = length >= nl.NLMSG_HEADER and at + length <= len(data)
        if not whole or kind not in (*_KINDS, nl.NLMSG_DONE):
            return [], []
        if count % _A_DATAGRAM == 0:
            starts.append(at)
            ends.append(at)
        at += nl.align4(length)
        ends[-1] = min(at, len(data))
        count += 1
    return (starts, ends) if at >= len(data) else ([], [])

"""Recordings as an older kernel would have answered: attributes that it does not send, a shorter ``struct tcp_info``.

The kernel appends to tcp_info and adds attributes; it never takes any away. So what an older one would have said of the
same sockets is what a newer one said, less what was added since. A minisocket's uid was 0 before 4.19.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from finwait.uapi import inet_diag
from finwait.uapi import netlink as nl
from finwait.uapi.observation import Dump, Namespace, Observation

__all__ = ["PROFILES", "Profile", "downgraded"]

INFO, MARK, CLASS_ID, ULP_INFO, BPF_STORAGES, CGROUP_ID, SOCKOPT = 2, 15, 17, 19, 20, 21, 22
HEADER, MESSAGE = 16, 72


@dataclass(frozen=True, slots=True)
class Profile:
    """What a kernel sends."""

    kernel: str
    tcp_info: int
    """Bytes of ``struct tcp_info``."""
    lacks: frozenset[int]
    """Attributes that it does not have."""
    mptcp: bool = False
    minisocket_uid: bool = True


PROFILES = {
    one.kernel: one
    for one in (
        Profile("4.18", 200, frozenset({ULP_INFO, BPF_STORAGES, CGROUP_ID, SOCKOPT}), minisocket_uid=False),
        Profile("5.1", 224, frozenset({ULP_INFO, BPF_STORAGES, CGROUP_ID, SOCKOPT})),
        Profile("5.4", 232, frozenset({BPF_STORAGES, CGROUP_ID, SOCKOPT})),
        Profile("5.10", 232, frozenset({SOCKOPT})),
    )
}
"""With snd_wnd since 5.4 (tcp_info of 232 bytes), the cgroup since 5.7, options since 5.10."""


def downgraded(look: Observation, profile: Profile) -> Observation:
    """Return the look as that kernel would have answered."""
    buffer = bytearray()
    spaces = tuple(_namespace(ns, look.buffer.tobytes(), buffer, profile) for ns in look.namespaces)
    facts = replace(look.facts, kernel=f"{profile.kernel}.0")
    return replace(look, facts=facts, buffer=np.frombuffer(bytes(buffer), np.uint8), namespaces=spaces)


def _namespace(ns: Namespace, data: bytes, out: bytearray, profile: Profile) -> Namespace:
    dumps = tuple(_dump(one, data, out, profile) for one in ns.dumps if profile.mptcp or one.kind != "mptcp")
    files = {name: text for name, text in ns.files.items() if name != "sys/ipv4/tcp_rto_max_ms"}
    return replace(ns, dumps=dumps, files=files)


def _dump(dump: Dump, data: bytes, out: bytearray, profile: Profile) -> Dump:
    starts, ends = [], []
    for start, end in zip(dump.starts, dump.ends, strict=True):
        part = data[start:end]
        starts.append(len(out))
        out += _datagram(part, profile) if dump.kind in ("tcp", "mptcp") else part
        ends.append(len(out))
        out += bytes(-len(out) % 8)
    return replace(dump, starts=tuple(starts), ends=tuple(ends))


def _datagram(data: bytes, profile: Profile) -> bytes:
    out, at = bytearray(), 0
    while at + HEADER <= len(data):
        length, kind, flags, seq, pid = struct.unpack_from("=IHHII", data, at)
        body = data[at + HEADER : at + length]
        at += nl.align4(length)
        if kind in (inet_diag.SOCK_DIAG_BY_FAMILY, inet_diag.TCPDIAG_GETSOCK):
            body = _message(body, profile)
        out += struct.pack("=IHHII", HEADER + len(body), kind, flags, seq, pid) + body
        out += bytes(-len(out) % 4)
    return bytes(out)


def _message(body: bytes, profile: Profile) -> bytes:
    head, at = bytearray(body[:MESSAGE]), MESSAGE
    uid, inode = struct.unpack_from("=II", head, 64)
    if uid and not inode and not profile.minisocket_uid:
        struct.pack_into("=I", head, 64, 0)
    out = bytearray(head)
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        value = body[at + 4 : at + length]
        at += nl.align4(length)
        if kind & 0x3FFF in profile.lacks:
            continue
        if kind & 0x3FFF == INFO:
            value = value[: profile.tcp_info]
        out += struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
    return bytes(out)

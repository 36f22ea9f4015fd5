"""``struct inet_diag_msg`` and its attributes: requests to ``NETLINK_SOCK_DIAG``, and the rows it answers.

Mirrors include/uapi/linux/inet_diag.h. The kernel appends to its structs and never reorders them, so a
longer message is a newer kernel, not an error; a shorter one is an error.

How rows are found and columns read is `finwait.uapi.layout`.

What this cannot see: sockets in ``TCP_CLOSE`` are in no dump at all.

This module touches bytes only. Opening the socket is `finwait.kernel.netlink`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.uapi import layout, netlink
from finwait.uapi.layout import Rows, Shape
from finwait.uapi.netlink import Messages

__all__ = [
    "AF_INET",
    "AF_INET6",
    "ATTRIBUTE_NAMES",
    "EXT_ALL",
    "FAMILY_NAMES",
    "IPPROTO_MPTCP",
    "IPPROTO_TCP",
    "MESSAGE_SIZE",
    "PROTOCOL_NAMES",
    "SOCKET_NAMES",
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
FAMILY_NAMES: Final[Mapping[int, str]] = {AF_INET: "inet", AF_INET6: "inet6"}
"""As JSON and columns have them."""
PROTOCOL_NAMES: Final[Mapping[int, str]] = {6: "tcp", 262: "mptcp"}
"""IPPROTO_TCP and IPPROTO_MPTCP."""
SOCKET_NAMES: Final = frozenset({"TCP", "TCPv6", "MPTCP", "MPTCPv6"})
"""Names of sockets of these protocols in ``system.sockprotoname``."""
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


class SocketId(Struct, frozen=True):
    """``struct inet_diag_sockid``: the tuple, interface and cookie of one socket.

    Addresses are 4 or 16 bytes in network order. ``cookie`` None means INET_DIAG_NOCOOKIE: any socket.
    """

    sport: int
    dport: int
    src: bytes
    dst: bytes
    ifindex: int = 0
    cookie: int | None = None

    def pack(self, order: Literal["=", "<", ">"] = "=") -> bytes:
        """Return the 48 bytes of the struct; ``order`` is the byte order of the kernel that reads it.

        ``idiag_cookie`` is two numbers, the low half first on every machine, while ``SO_COOKIE`` is one.
        """
        low, high = (
            (NOCOOKIE, NOCOOKIE) if self.cookie is None else (self.cookie & 0xFFFFFFFF, self.cookie >> 32)
        )
        return (
            struct.pack("!HH", self.sport, self.dport)
            + self.src.ljust(16, b"\0")
            + self.dst.ljust(16, b"\0")
            + struct.pack(f"{order}III", self.ifindex, low, high)
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
    acknowledge: bool = True,
) -> bytes:
    """Return a request about one socket: ``SOCK_DIAG_BY_FAMILY`` reads it, ``SOCK_DESTROY`` ends it.

    The kernel compares the cookie, so a socket that took over the tuple is never hit (ENOENT instead). Without
    ``acknowledge`` a success of ``SOCK_DESTROY`` is not answered; a failure is, always.
    """
    extra = b""
    if protocol > 0xFF:
        extra = netlink.attribute(REQ_PROTOCOL, struct.pack("=I", protocol))
        protocol = 0xFF
    body = _REQ_V2.pack(family, protocol, extensions, 0, states) + identity.pack() + extra
    flags = netlink.NLM_F_REQUEST | (netlink.NLM_F_ACK if kind == SOCK_DESTROY and acknowledge else 0)
    return netlink.message(kind, flags, body, seq=seq)


_SHAPE: Final = Shape(
    "struct inet_diag_msg",
    MESSAGE_SIZE,
    # The nesting of ULP_INFO is fixed: name (1) is text, tls (2) and mptcp (3) hold attributes.
    frozenset({(ULP_INFO,), (ULP_INFO, 2), (ULP_INFO, 3)}),
)


def find_rows(buffer: NDArray[np.uint8], messages: Messages) -> Rows:
    """Find the layout of every ``inet_diag_msg`` among ``messages`` (which must hold nothing else).

    Raises:
        DecodeError: a message is shorter than the struct, or its attributes do not fit into it.
    """
    return layout.find_rows(buffer, messages, _SHAPE)

"""ctnetlink: connection tracking entries and statistics, and requests about them.

Mirrors include/uapi/linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h and nf_conntrack_tcp.h.
Messages are a netlink header, ``struct nfgenmsg`` and nested attributes; numbers in the attributes are in
network order, their headers and the labels in host order. How rows are found is `finwait.uapi.layout`.

The surprises: a delete request *without a tuple* flushes the whole table, so `entry_request` cannot make
one; a dump filtered by protocol must name its family (EOPNOTSUPP otherwise); and only the flag
``NLM_F_DUMP_FILTERED`` on the answer says that the kernel applied a filter, since older ones ignore what
they do not know. A conntrack state is that of the flow as a middlebox sees it, not that of either socket:
``CLOSE_WAIT`` means "one side sent a FIN that was acknowledged".

This module touches bytes only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.errors import DecodeError
from finwait.uapi import layout, netlink
from finwait.uapi.layout import Rows, Shape
from finwait.uapi.netlink import NLMSG_HEADER, Messages

__all__ = [
    "CT_DELETE",
    "CT_GET",
    "CT_GET_STATS",
    "CT_GET_STATS_CPU",
    "CT_NEW",
    "NLM_F_DUMP_FILTERED",
    "STATUS_BITS",
    "STATUS_NAMES",
    "TCP_FLAG_NAMES",
    "TCP_STATES",
    "TCP_STATE_NUMBERS",
    "FlowTuple",
    "TableStatistics",
    "cpu_statistics",
    "dump_request",
    "entry_request",
    "find_rows",
    "statistics",
    "statistics_cpu_request",
    "statistics_request",
    "total_over_cpus",
]

_SUBSYSTEM: Final = 1 << 8  # NFNL_SUBSYS_CTNETLINK; the low byte of nlmsg_type is the message
CT_NEW: Final = _SUBSYSTEM | 0
"""``nlmsg_type`` of every entry in a dump."""
CT_GET: Final = _SUBSYSTEM | 1
CT_DELETE: Final = _SUBSYSTEM | 2
CT_GET_STATS_CPU: Final = _SUBSYSTEM | 4
CT_GET_STATS: Final = _SUBSYSTEM | 5

NLM_F_DUMP_FILTERED: Final = 0x20
"""On the messages of a dump: the kernel applied the filter that was asked for."""

_NFGENMSG = struct.Struct("!BBH")  # family, version, res_id
GENMSG_SIZE: Final = _NFGENMSG.size

# CTA_*: attributes of an entry.
TUPLE_ORIG, TUPLE_REPLY, STATUS, PROTOINFO, HELP, NAT_SRC, TIMEOUT, MARK = 1, 2, 3, 4, 5, 6, 7, 8
COUNTERS_ORIG, COUNTERS_REPLY, USE, ID, NAT_DST, TUPLE_MASTER = 9, 10, 11, 12, 13, 14
SEQ_ADJ_ORIG, SEQ_ADJ_REPLY, SECMARK, ZONE, SECCTX, TIMESTAMP = 15, 16, 17, 18, 19, 20
MARK_MASK, LABELS, LABELS_MASK, SYNPROXY, FILTER, STATUS_MASK = 21, 22, 23, 24, 25, 26
# Inside CTA_TUPLE_*, and inside its two.
TUPLE_IP, TUPLE_PROTO, TUPLE_ZONE = 1, 2, 3
IP_V4_SRC, IP_V4_DST, IP_V6_SRC, IP_V6_DST = 1, 2, 3, 4
PROTO_NUM, PROTO_SRC_PORT, PROTO_DST_PORT = 1, 2, 3
PROTO_ICMP_ID, PROTO_ICMP_TYPE, PROTO_ICMP_CODE = 4, 5, 6
PROTO_ICMPV6_ID, PROTO_ICMPV6_TYPE, PROTO_ICMPV6_CODE = 7, 8, 9
# Inside CTA_PROTOINFO, and inside its CTA_PROTOINFO_TCP.
PROTOINFO_TCP, PROTOINFO_DCCP, PROTOINFO_SCTP = 1, 2, 3
TCP_STATE, TCP_WSCALE_ORIG, TCP_WSCALE_REPLY, TCP_FLAGS_ORIG, TCP_FLAGS_REPLY = 1, 2, 3, 4, 5

# Bits of CTA_FILTER_ORIG_FLAGS (net/netfilter/nf_internals.h): which parts of the given tuple must match.
_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS = 1, 2
_FILTER_PROTO_NUM = 1 << 3

_TUPLES = (TUPLE_ORIG, TUPLE_REPLY, TUPLE_MASTER)
_SHAPE: Final = Shape(
    "struct nfgenmsg",
    GENMSG_SIZE,
    frozenset(
        {
            *((t,) for t in _TUPLES),
            *((t, inner) for t in _TUPLES for inner in (TUPLE_IP, TUPLE_PROTO)),
            (PROTOINFO,),
            *((PROTOINFO, proto) for proto in (PROTOINFO_TCP, PROTOINFO_DCCP, PROTOINFO_SCTP)),
            *((kind,) for kind in (HELP, NAT_SRC, NAT_DST, COUNTERS_ORIG, COUNTERS_REPLY)),
            *((kind,) for kind in (SEQ_ADJ_ORIG, SEQ_ADJ_REPLY, SECCTX, TIMESTAMP, SYNPROXY)),
        }
    ),
)

TCP_STATES: Final[dict[int, str]] = dict(
    enumerate(
        (
            "NONE",
            "SYN_SENT",
            "SYN_RECV",
            "ESTABLISHED",
            "FIN_WAIT",
            "CLOSE_WAIT",
            "LAST_ACK",
            "TIME_WAIT",
            "CLOSE",
            "SYN_SENT2",
        )
    )
)
"""``enum tcp_conntrack`` as the ``conntrack`` command prints it."""
TCP_STATE_NUMBERS: Final[dict[str, int]] = {name: number for number, name in TCP_STATES.items()}

STATUS_NAMES: Final[dict[int, str]] = dict(
    enumerate(
        (
            "EXPECTED",
            "SEEN_REPLY",
            "ASSURED",
            "CONFIRMED",
            "SRC_NAT",
            "DST_NAT",
            "SEQ_ADJUST",
            "SRC_NAT_DONE",
            "DST_NAT_DONE",
            "DYING",
            "FIXED_TIMEOUT",
            "TEMPLATE",
            "UNTRACKED",
            "HELPER",
            "OFFLOAD",
            "HW_OFFLOAD",
        )
    )
)
"""Bit number in CTA_STATUS → ``IPS_*``."""
STATUS_BITS: Final[dict[str, int]] = {name: 1 << bit for bit, name in STATUS_NAMES.items()}

TCP_FLAG_NAMES: Final[dict[int, str]] = {
    0x01: "WINDOW_SCALE",
    0x02: "SACK_PERM",
    0x04: "CLOSE_INIT",
    0x08: "BE_LIBERAL",
    0x10: "DATA_UNACKNOWLEDGED",
    0x20: "MAXACK_SET",
    0x40: "EXP_CHALLENGE_ACK",
    0x80: "SIMULTANEOUS_OPEN",
}
"""Bits of ``nf_ct_tcp_flags.flags``, one set a direction; CLOSE_INIT: this sender sent the first FIN."""

_CPU_STATISTICS: Final[dict[int, str]] = {
    1: "searched",
    2: "found",
    3: "new",
    4: "invalid",
    5: "ignore",
    6: "delete",
    7: "delete_list",
    8: "insert",
    9: "insert_failed",
    10: "drop",
    11: "early_drop",
    12: "error",
    13: "search_restart",
    14: "clash_resolve",
    15: "chain_toolong",
}


class FlowTuple(Struct, frozen=True):
    """One direction of a flow whose protocol has ports: what ctnetlink finds an entry by.

    Addresses are 4 or 16 bytes in network order, as ``family`` (2 or 10) says.
    """

    family: int
    protocol: int
    src: bytes
    dst: bytes
    sport: int
    dport: int
    zone: int | None = None
    """Zone of this direction only; a zone of both directions is an argument of `entry_request`."""

    def pack(self, kind: int = TUPLE_ORIG) -> bytes:
        """Return the ``CTA_TUPLE_*`` attribute.

        Raises:
            ValueError: the addresses do not have the length of the family.
        """
        if self.family == 2:
            size, src, dst = 4, IP_V4_SRC, IP_V4_DST
        elif self.family == 10:
            size, src, dst = 16, IP_V6_SRC, IP_V6_DST
        else:
            raise ValueError(f"family {self.family} is neither AF_INET (2) nor AF_INET6 (10)")
        if len(self.src) != size or len(self.dst) != size:
            raise ValueError(f"addresses of family {self.family} have {size} bytes")
        attr = netlink.attribute
        return netlink.nested(
            kind,
            netlink.nested(TUPLE_IP, attr(src, self.src), attr(dst, self.dst)),
            netlink.nested(
                TUPLE_PROTO,
                attr(PROTO_NUM, bytes([self.protocol])),
                attr(PROTO_SRC_PORT, struct.pack("!H", self.sport)),
                attr(PROTO_DST_PORT, struct.pack("!H", self.dport)),
            ),
            attr(TUPLE_ZONE, struct.pack("!H", self.zone)) if self.zone is not None else b"",
        )


def _u32(kind: int, value: int) -> bytes:
    return netlink.attribute(kind, struct.pack("!I", value))


def _request(kind: int, flags: int, family: int, attributes: bytes, seq: int) -> bytes:
    return netlink.message(
        kind, netlink.NLM_F_REQUEST | flags, _NFGENMSG.pack(family, 0, 0) + attributes, seq=seq
    )


def dump_request(
    family: int = 0,
    *,
    protocol: int | None = None,
    status: tuple[int, int] | None = None,
    mark: tuple[int, int] | None = None,
    zone: int | None = None,
    seq: int = 1,
) -> bytes:
    """Return a dump request for the entries of one family, or of all (0).

    What is asked for beyond the family spares the kernel sending the rest. A kernel that does not know such
    a filter sends everything, so the caller compares again unless the answer has ``NLM_F_DUMP_FILTERED``.

    Args:
        family: 2, 10 or 0.
        protocol: IPPROTO of the original direction; needs a family.
        status: ``(bits, mask)``: only entries with ``status & mask == bits``; see `STATUS_BITS`.
        mark: ``(value, mask)`` likewise.
        zone: only entries of this zone (both directions).
        seq: sequence number that the answers repeat.

    Raises:
        ValueError: a protocol without a family (the kernel would answer EOPNOTSUPP).
    """
    attributes = b""
    if protocol is not None:
        if not family:
            raise ValueError("the kernel filters by protocol only within one family")
        flags = netlink.attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", _FILTER_PROTO_NUM))
        flags += netlink.attribute(_FILTER_REPLY_FLAGS, struct.pack("=I", 0))
        attributes += netlink.nested(FILTER, flags)
        number = netlink.attribute(PROTO_NUM, bytes([protocol]))
        attributes += netlink.nested(TUPLE_ORIG, netlink.nested(TUPLE_PROTO, number))
    if status is not None:
        attributes += _u32(STATUS, status[0]) + _u32(STATUS_MASK, status[1])
    if mark is not None:
        attributes += _u32(MARK, mark[0]) + _u32(MARK_MASK, mark[1])
    if zone is not None:
        attributes += netlink.attribute(ZONE, struct.pack("!H", zone))
    return _request(CT_GET, netlink.NLM_F_DUMP, family, attributes, seq)


def entry_request(
    kind: int, original: FlowTuple, *, zone: int | None = None, identity: int | None = None, seq: int = 1
) -> bytes:
    """Return a request about one entry: ``CT_GET`` reads it, ``CT_DELETE`` removes it.

    The kernel compares ``identity`` (CTA_ID), so an entry that took over the tuple is not hit (ENOENT).
    ``CT_GET`` answers with one ``CT_NEW`` message, ``CT_DELETE`` with an acknowledgement.

    Raises:
        ValueError: a delete request without the identity of the entry.
    """
    if kind == CT_DELETE and identity is None:
        raise ValueError("an entry is deleted by tuple *and* id")
    attributes = original.pack()
    if zone is not None:
        attributes += netlink.attribute(ZONE, struct.pack("!H", zone))
    if identity is not None:
        attributes += _u32(ID, identity)
    flags = netlink.NLM_F_ACK if kind == CT_DELETE else 0
    return _request(kind, flags, original.family, attributes, seq)


def statistics_cpu_request(*, seq: int = 1) -> bytes:
    """Return the dump request for the statistics of each CPU, answered by one message a CPU."""
    return _request(CT_GET_STATS_CPU, netlink.NLM_F_DUMP, 0, b"", seq)


def statistics_request(*, seq: int = 1) -> bytes:
    """Return the request for the number of entries and its limit, answered by one message."""
    return _request(CT_GET_STATS, 0, 0, b"", seq)


def find_rows(buffer: NDArray[np.uint8], messages: Messages) -> Rows:
    """Find the layout of every entry among ``messages`` (which must hold nothing but ``CT_NEW``).

    Raises:
        DecodeError: a message is shorter than ``struct nfgenmsg``, or its attributes do not fit into it.
    """
    return layout.find_rows(buffer, messages, _SHAPE)


def _numbers(buffer: NDArray[np.uint8], offset: int, length: int, subject: str) -> tuple[int, dict[int, int]]:
    """Return ``res_id`` and the 32-bit attributes of one statistics message."""
    data = buffer[offset : offset + length].tobytes()
    if length < NLMSG_HEADER + GENMSG_SIZE:
        raise DecodeError("struct nfgenmsg", offset, data[:16], f"message of {length} bytes is too short")
    numbers: dict[int, int] = {}
    try:
        for kind, at, size in netlink.attributes(data, NLMSG_HEADER + GENMSG_SIZE, length, subject):
            if size == 4:
                numbers[kind] = struct.unpack_from("!I", data, at)[0]
    except DecodeError as error:
        raise DecodeError(error.what, offset + error.offset, error.window, error.reason) from None
    return _NFGENMSG.unpack_from(data, NLMSG_HEADER)[2], numbers


def cpu_statistics(buffer: NDArray[np.uint8], messages: Messages) -> dict[int, dict[str, int]]:
    """Decode the answer to `statistics_cpu_request`: CPU → counter → value.

    Counters are named as in the header (``CTA_STATS_INSERT_FAILED`` is ``insert_failed``); one that this
    table does not know is kept as ``stats_<number>``. A counter that the kernel no longer has is absent.

    Raises:
        DecodeError: a message is too short, or its attributes do not fit.
    """
    result: dict[int, dict[str, int]] = {}
    for offset, length, kind in zip(
        messages.offset.tolist(), messages.length.tolist(), messages.type.tolist(), strict=True
    ):
        if kind == CT_GET_STATS_CPU:
            cpu, numbers = _numbers(buffer, offset, length, "CTA_STATS attribute")
            result[cpu] = {_CPU_STATISTICS.get(n, f"stats_{n}"): value for n, value in numbers.items()}
    return result


class TableStatistics(Struct, frozen=True):
    """How full the table of a namespace is."""

    entries: int
    max_entries: int | None
    """``nf_conntrack_max``; None from an older kernel, which does not say."""


def statistics(buffer: NDArray[np.uint8], messages: Messages) -> TableStatistics:
    """Decode the answer to `statistics_request`.

    Raises:
        DecodeError: no message of that kind, or one that is too short or has no count.
    """
    for offset, length, kind in zip(
        messages.offset.tolist(), messages.length.tolist(), messages.type.tolist(), strict=True
    ):
        if kind == CT_GET_STATS:
            _, numbers = _numbers(buffer, offset, length, "CTA_STATS_GLOBAL attribute")
            if 1 in numbers:
                return TableStatistics(numbers[1], numbers.get(2))
            raise DecodeError("CTA_STATS_GLOBAL", offset, b"", "no CTA_STATS_GLOBAL_ENTRIES")
    raise DecodeError("CTA_STATS_GLOBAL", 0, b"", "no IPCTNL_MSG_CT_GET_STATS among the messages")


def total_over_cpus(cpus: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up the counters of all CPUs; ``entries`` is that of the table and repeated, not added.

    Takes what `cpu_statistics` gives (its values) and what `finwait.uapi.proc.parse_conntrack_stat` gives.
    """
    total: dict[str, int] = {}
    for cpu in cpus:
        for name, value in cpu.items():
            total[name] = max(total.get(name, 0), value) if name == "entries" else total.get(name, 0) + value
    return total

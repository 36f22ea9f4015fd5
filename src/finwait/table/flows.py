"""Connection tracking entries as columns: everything that a ctnetlink dump says about every flow.

How columns are read, selected and joined is `finwait.table.columns`. Addresses are two 64-bit words in host
order, IPv4 as ``::ffff:a.b.c.d``, as in `finwait.table.sockets`, so that a flow's tuple and a socket's
compare equal. ``orig_*`` is the direction of the first packet; ``reply_*`` is what an answer to it looks
like *before* it is translated back: where the two are not mirror images, there is NAT.

The surprise: the kernel sends what an entry has and not what was asked for. Counters and timestamps are
there only if ``nf_conntrack_acct`` and ``nf_conntrack_timestamp`` were set when the entry was made, and an
entry that was offloaded to a flow table has neither timeout nor TCP state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from finwait.table.columns import ColumnTable
from finwait.table.schema import Column, Mask, Schema
from finwait.table.sockets import words_of_addresses
from finwait.uapi import conntrack as ct

if TYPE_CHECKING:
    from finwait.uapi.layout import Path, Rows

__all__ = ["SCHEMA", "FlowTable"]

_V6_INSTEAD: Final = {ct.IP_V4_SRC: ct.IP_V6_SRC, ct.IP_V4_DST: ct.IP_V6_DST}


def _number(name: str, dtype: str, path: Path, source: str, doc: str) -> Column:
    return Column(name, np.dtype(dtype), source, doc, path)


def _tuple(prefix: str, kind: int, where: str) -> Iterator[Column]:
    source = f"CTA_TUPLE_{where.upper()}"
    ip, proto = (kind, ct.TUPLE_IP), (kind, ct.TUPLE_PROTO)
    for name, number, words in (("src", ct.IP_V4_SRC, "Source"), ("dst", ct.IP_V4_DST, "Destination")):
        doc = f"{words} address of the {where} direction, high and low 64 bits."
        yield Column(
            prefix + name, np.uint64, f"{source}: CTA_IP_V4|V6_{name.upper()}", doc, (*ip, number), 0, 2
        )
    for name, number, words in (
        ("sport", ct.PROTO_SRC_PORT, "Source"),
        ("dport", ct.PROTO_DST_PORT, "Destination"),
    ):
        doc = f"{words} port of the {where} direction (of GRE, the key)."
        key = "SRC" if name == "sport" else "DST"
        yield _number(prefix + name, ">u2", (*proto, number), f"{source}: CTA_PROTO_{key}_PORT", doc)
    yield _number(
        f"{prefix}zone",
        ">u2",
        (kind, ct.TUPLE_ZONE),
        f"{source}: CTA_TUPLE_ZONE",
        f"Zone of the {where} direction only; a zone of both directions is in `zone`.",
    )
    for version, numbers in (
        ("icmp", (ct.PROTO_ICMP_ID, ct.PROTO_ICMP_TYPE, ct.PROTO_ICMP_CODE)),
        ("icmpv6", (ct.PROTO_ICMPV6_ID, ct.PROTO_ICMPV6_TYPE, ct.PROTO_ICMPV6_CODE)),
    ):
        for name, number, dtype in zip(("id", "type", "code"), numbers, (">u2", "u1", "u1"), strict=True):
            attr = f"CTA_PROTO_{version.upper()}_{name.upper()}"
            doc = f"{version.upper()} {name} of the {where} direction."
            yield _number(f"{prefix}{version}_{name}", dtype, (*proto, number), f"{source}: {attr}", doc)


def _both(name: str, dtype: str, paths: tuple[Path, Path], source: str, doc: str) -> Iterator[Column]:
    """One column a direction; ``{}`` in source and doc stands for the direction."""
    for where, key, path in (("orig", "original", paths[0]), ("reply", "reply", paths[1])):
        yield _number(f"{where}_{name}", dtype, path, source.format(where.upper()), doc.format(key))


def _tcp(number: int) -> Path:
    return (ct.PROTOINFO, ct.PROTOINFO_TCP, number)


def _pair(orig: int, reply: int, inner: int) -> tuple[Path, Path]:
    return (orig, inner), (reply, inner)


_SEQADJ: Final = (
    ("correction_pos", 1, "Sequence number of the last change that NAT made to the payload, {} direction."),
    ("offset_before", 2, "What is added to sequence numbers before that place, {} direction."),
    ("offset_after", 3, "What is added to sequence numbers after that place, {} direction."),
)

SCHEMA: Final = Schema(
    [
        Column("netns", np.uint32, "the namespace asked", "Inode of the network namespace."),
        Column("family", np.dtype("u1"), "nfgenmsg.nfgen_family", "2 for IPv4, 10 for IPv6.", ()),
        _number(
            "protocol",
            "u1",
            (ct.TUPLE_ORIG, ct.TUPLE_PROTO, ct.PROTO_NUM),
            "CTA_TUPLE_ORIG: CTA_PROTO_NUM",
            "IPPROTO: 6 for TCP, 17 for UDP, 1 for ICMP.",
        ),
        *_tuple("orig_", ct.TUPLE_ORIG, "orig"),
        *_tuple("reply_", ct.TUPLE_REPLY, "reply"),
        _number("zone", ">u2", (ct.ZONE,), "CTA_ZONE", "Zone of both directions; missing means zone 0."),
        _number(
            "status",
            ">u4",
            (ct.STATUS,),
            "CTA_STATUS",
            "IPS_* bits: "
            + ", ".join(f"{1 << bit} {name.lower()}" for bit, name in ct.STATUS_NAMES.items())
            + ".",
        ),
        _number(
            "timeout_s",
            ">u4",
            (ct.TIMEOUT,),
            "CTA_TIMEOUT",
            "Seconds until the entry expires if no packet comes; missing when offloaded.",
        ),
        _number("mark", ">u4", (ct.MARK,), "CTA_MARK", "Connection mark, as `ct mark` sets it."),
        _number("use", ">u4", (ct.USE,), "CTA_USE", "References to the entry, at the moment of the dump."),
        _number(
            "id", ">u4", (ct.ID,), "CTA_ID", "Identity of the entry: a keyed hash, stable while it lives."
        ),
        _number(
            "tcp_state",
            "u1",
            _tcp(ct.TCP_STATE),
            "CTA_PROTOINFO_TCP_STATE",
            "State of the flow as the tracker sees it: "
            + ", ".join(f"{number} {name}" for number, name in ct.TCP_STATES.items())
            + ".",
        ),
        *_both(
            "wscale",
            "u1",
            (_tcp(ct.TCP_WSCALE_ORIG), _tcp(ct.TCP_WSCALE_REPLY)),
            "CTA_PROTOINFO_TCP_WSCALE_{}",
            "Window scale that the sender of the {} direction announced.",
        ),
        *_both(
            "tcp_flags",
            "u1",
            (_tcp(ct.TCP_FLAGS_ORIG), _tcp(ct.TCP_FLAGS_REPLY)),
            "CTA_PROTOINFO_TCP_FLAGS_{}",
            "What is known of the sender of the {} direction: "
            + ", ".join(f"{bit} {name.lower()}" for bit, name in ct.TCP_FLAG_NAMES.items())
            + ".",
        ),
        *_both(
            "packets",
            ">u8",
            _pair(ct.COUNTERS_ORIG, ct.COUNTERS_REPLY, 1),
            "CTA_COUNTERS_{}: CTA_COUNTERS_PACKETS",
            "Packets of the {} direction; only with nf_conntrack_acct.",
        ),
        *_both(
            "bytes",
            ">u8",
            _pair(ct.COUNTERS_ORIG, ct.COUNTERS_REPLY, 2),
            "CTA_COUNTERS_{}: CTA_COUNTERS_BYTES",
            "Bytes of the {} direction, IP headers included; only with nf_conntrack_acct.",
        ),
        _number(
            "start_ns",
            ">u8",
            (ct.TIMESTAMP, 1),
            "CTA_TIMESTAMP_START",
            "Wall clock when the entry was made, nanoseconds; only with nf_conntrack_timestamp.",
        ),
        _number(
            "stop_ns",
            ">u8",
            (ct.TIMESTAMP, 2),
            "CTA_TIMESTAMP_STOP",
            "Wall clock when the entry ended, nanoseconds; only for entries that have ended.",
        ),
        Column(
            "labels", np.uint64, "CTA_LABELS", "128 label bits: bits 0–63, then 64–127.", (ct.LABELS,), 0, 2
        ),
        Column("helper", np.dtype("S16"), "CTA_HELP_NAME", "Helper (`ftp`, `sip`).", (ct.HELP, 1)),
        Column("secctx", np.dtype("S64"), "CTA_SECCTX_NAME", "Security context.", (ct.SECCTX, 1)),
        *(
            column
            for name, inner, doc in _SEQADJ
            for column in _both(
                name,
                ">u4",
                _pair(ct.SEQ_ADJ_ORIG, ct.SEQ_ADJ_REPLY, inner),
                f"CTA_SEQ_ADJ_{{}}: CTA_SEQADJ_{name.upper()}",
                doc,
            )
        ),
        _number("synproxy_isn", ">u4", (ct.SYNPROXY, 1), "CTA_SYNPROXY_ISN", "SYNPROXY: initial sequence."),
        _number("synproxy_its", ">u4", (ct.SYNPROXY, 2), "CTA_SYNPROXY_ITS", "SYNPROXY: first timestamp."),
        _number(
            "synproxy_tsoff", ">u4", (ct.SYNPROXY, 3), "CTA_SYNPROXY_TSOFF", "SYNPROXY: timestamp offset."
        ),
        *(c for c in _tuple("master_", ct.TUPLE_MASTER, "master") if "_icmp" not in c.name),
        _number(
            "dccp_state",
            "u1",
            (ct.PROTOINFO, ct.PROTOINFO_DCCP, 1),
            "CTA_PROTOINFO_DCCP_STATE",
            "State of a DCCP flow.",
        ),
        _number(
            "dccp_role",
            "u1",
            (ct.PROTOINFO, ct.PROTOINFO_DCCP, 2),
            "CTA_PROTOINFO_DCCP_ROLE",
            "Role of the original direction: 0 client, 1 server.",
        ),
        _number(
            "dccp_handshake_seq",
            ">u8",
            (ct.PROTOINFO, ct.PROTOINFO_DCCP, 3),
            "CTA_PROTOINFO_DCCP_HANDSHAKE_SEQ",
            "Sequence number of the DCCP handshake.",
        ),
        _number(
            "sctp_state",
            "u1",
            (ct.PROTOINFO, ct.PROTOINFO_SCTP, 1),
            "CTA_PROTOINFO_SCTP_STATE",
            "State of an SCTP association.",
        ),
        *_both(
            "sctp_vtag",
            ">u4",
            ((ct.PROTOINFO, ct.PROTOINFO_SCTP, 2), (ct.PROTOINFO, ct.PROTOINFO_SCTP, 3)),
            "CTA_PROTOINFO_SCTP_VTAG_{}",
            "SCTP verification tag of the {} direction.",
        ),
    ]
)


class FlowTable(ColumnTable):
    """Connection tracking entries as columns; see the module for what a cell means."""

    __slots__ = ()

    schema = SCHEMA

    @classmethod
    def from_rows(cls, rows: Rows, netns: NDArray[np.uint32]) -> FlowTable:
        """Build a table over received bytes; ``netns`` is one cell a row."""
        return cls(rows, {"netns": netns}, len(rows))

    def _wide(self, rows: Rows, column: Column) -> tuple[NDArray[Any], Mask]:
        path = column.path
        assert path
        other = _V6_INSTEAD.get(path[-1]) if len(path) == 3 else None
        if other is None:
            at = rows.place(path, 16)
            native = np.dtype(np.uint64)
            pair = [rows.scalar(np.maximum(at + 8 * k, 0), native) for k in range(2)]
            return np.where((at >= 0)[:, None], np.stack(pair, axis=1), np.uint64(0)), at >= 0
        v4, v6 = rows.place(path, 4), rows.place((*path[:-1], other), 16)
        return words_of_addresses(rows, v4, v6), (v4 >= 0) | (v6 >= 0)

    def has_status(self, *names: str) -> Mask:
        """Return which rows have all of the named ``IPS_*`` bits, e.g. ``ASSURED``.

        Raises:
            KeyError: no such bit.
        """
        bits = 0
        for name in names:
            bits |= ct.STATUS_BITS[name]
        return (self.column("status") & np.uint32(bits)) == np.uint32(bits)

    def natted(self) -> Mask:
        """Return which rows are translated: source, destination, or both."""
        either = np.uint32(ct.STATUS_BITS["SRC_NAT"] | ct.STATUS_BITS["DST_NAT"])
        return (self.column("status") & either) != 0

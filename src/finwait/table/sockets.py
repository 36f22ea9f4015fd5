"""TCP sockets as columns: everything that ``NETLINK_SOCK_DIAG`` says about every socket.

How columns are read, selected and joined is `finwait.table.columns`.

Addresses are two 64-bit words in host order, IPv4 as ``::ffff:a.b.c.d``, so that a dual-stack socket and
its IPv4 peer compare equal; `family` says what the kernel filed the socket under.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from finwait.table.columns import ColumnTable
from finwait.table.schema import Column, Mask, Schema
from finwait.table.units import endpoint
from finwait.uapi import inet_diag as d
from finwait.uapi import tcp
from finwait.uapi.netlink import NLMSG_HEADER

if TYPE_CHECKING:
    from finwait.uapi.layout import Rows

__all__ = [
    "MAPPED",
    "SCHEMA",
    "SocketTable",
    "address_text",
    "endpoint_text",
    "pack_address",
    "words_of_addresses",
]

MAPPED: Final = 0xFFFF << 32
"""The low word of ``::ffff:0.0.0.0``; the high word of every IPv4 address is 0."""


def _msg(name: str, dtype: str, offset: int, source: str, doc: str) -> Column:
    return Column(name, np.dtype(dtype), f"inet_diag_msg.{source}", doc, (), offset)


def _attr(name: str, dtype: str, attr: int, offset: int, source: str, doc: str) -> Column:
    return Column(name, np.dtype(dtype), source, doc, (attr,), offset)


_SKMEM = (
    ("skmem_rmem_alloc", "Bytes allocated in the receive queue."),
    ("skmem_rcvbuf", "Receive buffer limit, bytes."),
    ("skmem_wmem_alloc", "Bytes handed to the device or queued below TCP."),
    ("skmem_sndbuf", "Send buffer limit, bytes."),
    ("skmem_fwd_alloc", "Memory reserved and not yet used, bytes."),
    ("skmem_wmem_queued", "Bytes queued for sending."),
    ("skmem_optmem", "Memory used by socket options, bytes."),
    ("skmem_backlog", "Bytes in the backlog."),
    ("skmem_drops", "Packets dropped by the socket."),
)

SCHEMA: Final = Schema(
    [
        Column("netns", np.uint32, "the namespace asked", "Inode of the network namespace."),
        Column("protocol", np.uint16, "the request", "6 for TCP, 262 for MPTCP."),
        _msg("family", "u1", 0, "idiag_family", "2 for IPv4, 10 for IPv6 (IPv4-mapped included)."),
        _msg("state", "u1", 1, "idiag_state", "TCP state; of a timewait minisocket its substate."),
        _msg(
            "timer",
            "u1",
            2,
            "idiag_timer",
            "0 none, 1 retransmission, 2 keepalive (or an orphan's FIN timer), 3 timewait, 4 window probe.",
        ),
        _msg(
            "retrans", "u1", 3, "idiag_retrans", "Retransmissions (timer 1) or probes (2, 4) without answer."
        ),
        _msg("sport", ">u2", 4, "id.idiag_sport", "Local port."),
        _msg("dport", ">u2", 6, "id.idiag_dport", "Remote port."),
        Column(
            "src", np.uint64, "inet_diag_msg.id.idiag_src", "Local address, high and low 64 bits.", (), 8, 2
        ),
        Column(
            "dst", np.uint64, "inet_diag_msg.id.idiag_dst", "Remote address, high and low 64 bits.", (), 24, 2
        ),
        _msg("ifindex", "u4", 40, "id.idiag_if", "Interface that the socket is bound to; 0 for any."),
        Column(
            "cookie",
            np.dtype("u8"),
            "inet_diag_msg.id.idiag_cookie",
            "Identity of the socket; never used twice on a boot.",
            (),
            44,
            halves=True,  # __u32 idiag_cookie[2]
        ),
        _msg(
            "expires_ms",
            "u4",
            52,
            "idiag_expires",
            "Time left on the timer named in `timer`; 0 when none is armed.",
        ),
        _msg(
            "rqueue",
            "u4",
            56,
            "idiag_rqueue",
            "Bytes received and not read; an unread FIN counts 1. For a listener, connections to accept.",
        ),
        _msg(
            "wqueue",
            "u4",
            60,
            "idiag_wqueue",
            "Bytes written and not acknowledged; our FIN counts 1. For a listener, its backlog.",
        ),
        _msg("uid", "u4", 64, "idiag_uid", "User that created the socket; always 0 for minisockets."),
        _msg(
            "inode",
            "u4",
            68,
            "idiag_inode",
            "Inode of the struct socket; 0 when nothing refers to it or it is not yet accepted.",
        ),
        _attr(
            "shutdown",
            "u1",
            d.SHUTDOWN,
            0,
            "INET_DIAG_SHUTDOWN",
            "sk_shutdown: bit 1 receiving is shut, bit 2 sending is shut.",
        ),
        _attr("mark", "u4", d.MARK, 0, "INET_DIAG_MARK", "SO_MARK; sent only to CAP_NET_ADMIN."),
        _attr(
            "cgroup_id",
            "u8",
            d.CGROUP_ID,
            0,
            "INET_DIAG_CGROUP_ID",
            "Inode of the cgroup v2 directory in which it was created.",
        ),
        _attr("class_id", "u4", d.CLASS_ID, 0, "INET_DIAG_CLASS_ID", "net_cls class (or priority)."),
        _attr("tos", "u1", d.TOS, 0, "INET_DIAG_TOS", "IPv4 type of service."),
        _attr("tclass", "u1", d.TCLASS, 0, "INET_DIAG_TCLASS", "IPv6 traffic class."),
        _attr("v6only", "u1", d.SKV6ONLY, 0, "INET_DIAG_SKV6ONLY", "1 when IPV6_V6ONLY is set."),
        _attr(
            "sockopt",
            "u2",
            d.SOCKOPT,
            0,
            "INET_DIAG_SOCKOPT",
            "Bits of struct inet_diag_sockopt: 1 recverr, 2 is_icsk, 4 freebind, 8 hdrincl, 16 mc_loop, "
            "32 transparent, 64 mc_all, 128 nodefrag, 256 bind_address_no_port, 512 recverr_rfc4884, "
            "1024 defer_connect.",
        ),
        Column("cong", np.dtype("S16"), "INET_DIAG_CONG", "Congestion control algorithm.", (d.CONG,)),
        Column(
            "ulp",
            np.dtype("S16"),
            "INET_ULP_INFO_NAME",
            "Upper layer protocol (`tls`, `mptcp`).",
            (d.ULP_INFO, 1),
        ),
        Column(
            "mptcp_token_remote",
            np.dtype("u4"),
            "MPTCP_SUBFLOW_ATTR_TOKEN_REM",
            "Remote token of the MPTCP connection that this subflow belongs to.",
            (d.ULP_INFO, 3, 1),
        ),
        Column(
            "mptcp_token_local",
            np.dtype("u4"),
            "MPTCP_SUBFLOW_ATTR_TOKEN_LOC",
            "Local token of the MPTCP connection that this subflow belongs to.",
            (d.ULP_INFO, 3, 2),
        ),
        _attr("mem_rmem", "u4", d.MEMINFO, 0, "inet_diag_meminfo.idiag_rmem", "Receive queue, bytes."),
        _attr("mem_wmem", "u4", d.MEMINFO, 4, "inet_diag_meminfo.idiag_wmem", "Send queue, bytes."),
        _attr("mem_fmem", "u4", d.MEMINFO, 8, "inet_diag_meminfo.idiag_fmem", "Reserved memory, bytes."),
        _attr("mem_tmem", "u4", d.MEMINFO, 12, "inet_diag_meminfo.idiag_tmem", "Memory below TCP, bytes."),
        *(
            _attr(name, "u4", d.SKMEMINFO, 4 * k, f"SK_MEMINFO_{name[6:].upper()}", doc)
            for k, (name, doc) in enumerate(_SKMEM)
        ),
        _attr(
            "vegas_enabled", "u4", d.VEGASINFO, 0, "tcpvegas_info.tcpv_enabled", "Whether Vegas is enabled."
        ),
        _attr("vegas_rttcnt", "u4", d.VEGASINFO, 4, "tcpvegas_info.tcpv_rttcnt", "Round trips measured."),
        _attr(
            "vegas_rtt_us", "u4", d.VEGASINFO, 8, "tcpvegas_info.tcpv_rtt", "Round-trip time, microseconds."
        ),
        _attr(
            "vegas_minrtt_us",
            "u4",
            d.VEGASINFO,
            12,
            "tcpvegas_info.tcpv_minrtt",
            "Smallest round-trip time, microseconds.",
        ),
        _attr(
            "dctcp_enabled",
            "u2",
            d.DCTCPINFO,
            0,
            "tcp_dctcp_info.dctcp_enabled",
            "Whether DCTCP is enabled.",
        ),
        _attr(
            "dctcp_ce_state",
            "u2",
            d.DCTCPINFO,
            2,
            "tcp_dctcp_info.dctcp_ce_state",
            "Congestion mark on the last packet.",
        ),
        _attr(
            "dctcp_alpha",
            "u4",
            d.DCTCPINFO,
            4,
            "tcp_dctcp_info.dctcp_alpha",
            "Estimated share that is marked; 1024 means all.",
        ),
        _attr(
            "dctcp_ab_ecn",
            "u4",
            d.DCTCPINFO,
            8,
            "tcp_dctcp_info.dctcp_ab_ecn",
            "Bytes acknowledged with a mark.",
        ),
        _attr("dctcp_ab_tot", "u4", d.DCTCPINFO, 12, "tcp_dctcp_info.dctcp_ab_tot", "Bytes acknowledged."),
        _attr(
            "bbr_bw_lo",
            "u4",
            d.BBRINFO,
            0,
            "tcp_bbr_info.bbr_bw_lo",
            "Bandwidth, bytes per second, low half.",
        ),
        _attr(
            "bbr_bw_hi",
            "u4",
            d.BBRINFO,
            4,
            "tcp_bbr_info.bbr_bw_hi",
            "Bandwidth, bytes per second, high half.",
        ),
        _attr(
            "bbr_min_rtt_us",
            "u4",
            d.BBRINFO,
            8,
            "tcp_bbr_info.bbr_min_rtt",
            "Smallest round-trip time, microseconds.",
        ),
        _attr(
            "bbr_pacing_gain",
            "u4",
            d.BBRINFO,
            12,
            "tcp_bbr_info.bbr_pacing_gain",
            ("Pacing gain; 256 means 1."),
        ),
        _attr(
            "bbr_cwnd_gain", "u4", d.BBRINFO, 16, "tcp_bbr_info.bbr_cwnd_gain", ("Window gain; 256 means 1.")
        ),
        *(
            Column(
                name,
                np.dtype(kind),
                f"tcp_info.tcpi_{name.removesuffix('_us').removesuffix('_ms')}",
                doc,
                (d.INFO,),
                offset,
                protocol=d.IPPROTO_TCP,
            )
            for name, offset, kind, doc in tcp.TCP_INFO_FIELDS
        ),
        *(
            Column(
                name,
                np.dtype(kind),
                f"mptcp_info.mptcpi_{name[6:]}",
                doc,
                (d.INFO,),
                offset,
                protocol=d.IPPROTO_MPTCP,
            )
            for name, offset, kind, doc in tcp.MPTCP_INFO_FIELDS
        ),
    ]
)


class SocketTable(ColumnTable):
    """Sockets as columns; see the module for what a cell means."""

    __slots__ = ()

    schema = SCHEMA

    @classmethod
    def from_rows(cls, rows: Rows, netns: NDArray[np.uint32], protocol: NDArray[np.uint16]) -> SocketTable:
        """Build a table over received bytes; ``netns`` and ``protocol`` are one cell a row."""
        return cls(rows, {"netns": netns, "protocol": protocol}, len(rows))

    @property
    def unfinished(self) -> Mask:
        """Which rows a program is to do something about: held and closing, opening, unread, or a queue for accept().

        Those, too, of which nothing arrives that is sent. For all of them it is worth knowing who waits, and with which
        options.
        """
        state, unread = self.state, self.rqueue > 0
        closing = np.isin(state, [s for s in tcp.STATES if tcp.CLOSING_STATES >> s & 1]) | (
            state == tcp.SYN_SENT
        )
        unserved = unread & np.isin(state, (tcp.ESTABLISHED, tcp.LISTEN))
        resent = (state == tcp.ESTABLISHED) & np.isin(self.timer, (1, 4)) & (self.retrans > 0)
        chosen: Mask = (closing | unserved | resent) & (self.inode != 0)
        return chosen

    @property
    def answering(self) -> Mask:
        """Which rows are listeners on a port with handshakes under way: their options decide when those end."""
        state = self.state
        port = self.netns.astype(np.uint64) << np.uint64(16) | self.sport.astype(np.uint64)
        opening = np.isin(state, (tcp.SYN_RECV, tcp.NEW_SYN_RECV)) & (self.inode == 0)
        mask: Mask = (state == tcp.LISTEN) & (self.inode != 0) & np.isin(port, port[opening])
        return mask

    def _wide(self, rows: Rows, column: Column) -> tuple[NDArray[np.uint64], Mask]:
        at = rows.offset + (NLMSG_HEADER + column.offset)
        v4 = self.column("family") == d.AF_INET
        cells = words_of_addresses(rows, np.where(v4, at, -1), np.where(v4, -1, at))
        return cells, np.ones(len(rows), np.bool_)


def words_of_addresses(rows: Rows, v4: NDArray[np.int64], v6: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the two words of each row's address, which stands at ``v4`` or at ``v6`` (−1: not there)."""
    big = np.dtype(">u4")
    out = np.zeros((len(rows), 2), np.uint64)
    short = v4 >= 0
    if short.any():
        word = rows.scalar(v4, big).astype(np.uint64)
        out[:, 1] = np.where(short, np.uint64(MAPPED) | word, np.uint64(0))
    long = v6 >= 0
    if long.any():
        w = [rows.scalar(np.where(long, v6 + 4 * k, 0), big).astype(np.uint64) for k in range(4)]
        shift = np.uint64(32)
        out[:, 0] = np.where(long, (w[0] << shift) | w[1], out[:, 0])
        out[:, 1] = np.where(long, (w[2] << shift) | w[3], out[:, 1])
    return out


def address_text(high: int, low: int) -> str:
    """Return an address of two words as text: IPv4 dotted, IPv6 compressed as RFC 5952 says."""
    import ipaddress

    if high == 0 and low >> 32 == 0xFFFF:
        return f"{low >> 24 & 255}.{low >> 16 & 255}.{low >> 8 & 255}.{low & 255}"
    return str(ipaddress.IPv6Address(high << 64 | low))


def endpoint_text(high: int, low: int, port: int) -> str:
    """Return ``10.0.0.1:80`` or ``[2001:db8::1]:80``."""
    return endpoint(address_text(high, low), port)


def pack_address(text: str) -> tuple[int, int]:
    """Return the two words of an address in text, IPv4 mapped into IPv6.

    Raises:
        ValueError: not an address.
    """
    import ipaddress

    address = ipaddress.ip_address(text)
    if address.version == 4:
        return 0, MAPPED | int(address)
    return int(address) >> 64, int(address) & 0xFFFFFFFFFFFFFFFF

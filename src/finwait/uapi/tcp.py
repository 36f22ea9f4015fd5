"""TCP states and ``struct tcp_info``, field by field.

Mirrors include/net/tcp_states.h and include/uapi/linux/tcp.h. The struct has grown at its end in a dozen
releases and never been reordered, so a field is present if the attribute is long enough; nothing else says
which kernel wrote it.

State names are the kernel's (``FIN_WAIT2``); `parse_state` accepts every spelling in use.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "ALL_STATES",
    "CLOSE_WAIT",
    "CLOSING",
    "CLOSING_STATES",
    "ESTABLISHED",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "LAST_ACK",
    "LISTEN",
    "MPTCP_INFO_FIELDS",
    "OPTION_RANGES",
    "STATES",
    "STATE_NUMBERS",
    "SYN_RECV",
    "SYN_SENT",
    "TCP_INFO_FIELDS",
    "TIME_WAIT",
    "is_state_name",
    "parse_state",
    "ss_name",
    "state_name",
]

ESTABLISHED: Final = 1
SYN_SENT: Final = 2
SYN_RECV: Final = 3
FIN_WAIT1: Final = 4
FIN_WAIT2: Final = 5
TIME_WAIT: Final = 6
CLOSE: Final = 7
CLOSE_WAIT: Final = 8
LAST_ACK: Final = 9
LISTEN: Final = 10
CLOSING: Final = 11
NEW_SYN_RECV: Final = 12
BOUND_INACTIVE: Final = 13

STATES: Final[dict[int, str]] = {
    1: "ESTABLISHED",
    2: "SYN_SENT",
    3: "SYN_RECV",
    4: "FIN_WAIT1",
    5: "FIN_WAIT2",
    6: "TIME_WAIT",
    7: "CLOSE",
    8: "CLOSE_WAIT",
    9: "LAST_ACK",
    10: "LISTEN",
    11: "CLOSING",
    12: "NEW_SYN_RECV",
    13: "BOUND_INACTIVE",
}
STATE_NUMBERS: Final[dict[str, int]] = {name: number for number, name in STATES.items()}
ALL_STATES: Final = sum(1 << n for n in range(1, 13))
"""Mask of every state that a dump can hold, without ``BOUND_INACTIVE`` (6.8 and later; it costs a walk)."""
CLOSING_STATES: Final = sum(1 << n for n in (FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING))

OPTION_RANGES: Final[dict[str, tuple[int, int]]] = {
    "keepidle": (1, 32767),  # MAX_TCP_KEEPIDLE, include/net/tcp.h
    "keepintvl": (1, 32767),
    "keepcnt": (1, 127),
    "user_timeout_ms": (0, 2**31 - 1),
    "keepalive": (0, 1),
}
"""Option of a socket that finwait sets → least and most that setsockopt(2) takes."""

_SPELLINGS: Final[dict[str, int]] = {
    "estab": ESTABLISHED,
    "established": ESTABLISHED,
    "synsent": SYN_SENT,
    "synrecv": SYN_RECV,
    "synrcv": SYN_RECV,
    "finwait1": FIN_WAIT1,
    "finwait2": FIN_WAIT2,
    "timewait": TIME_WAIT,
    "timew": TIME_WAIT,
    "unconn": CLOSE,
    "close": CLOSE,
    "closed": CLOSE,
    "closewait": CLOSE_WAIT,
    "lastack": LAST_ACK,
    "listen": LISTEN,
    "listening": LISTEN,
    "closing": CLOSING,
    "boundinactive": BOUND_INACTIVE,
}


def parse_state(text: str) -> int | None:
    """Return the number of a state in any spelling (``fin-wait-2``, ``FIN_WAIT2``, ``estab``), or None."""
    return _SPELLINGS.get(text.lower().replace("-", "").replace("_", ""))


def state_name(state: int) -> str:
    """Return the kernel's name of a state; of one that it does not have here (a newer kernel's), its number."""
    return STATES.get(state, str(state))


def is_state_name(text: str) -> bool:
    """Return whether `state_name` may have given this."""
    return text in STATE_NUMBERS or (
        text.isascii() and text.isdecimal() and state_name(int(text[:4])) == text
    )


def ss_name(state: int) -> str:
    """Return a state as ``ss`` prints it (``FIN-WAIT-2``), for output that imitates it."""
    return {
        ESTABLISHED: "ESTAB",
        FIN_WAIT1: "FIN-WAIT-1",
        FIN_WAIT2: "FIN-WAIT-2",
        SYN_RECV: "SYN-RECV",
        CLOSE: "UNCONN",
    }.get(state, state_name(state).replace("_", "-"))


# name, offset, numpy kind, what it means (units where one could guess wrong)
TCP_INFO_FIELDS: Final[tuple[tuple[str, int, str, str], ...]] = (
    ("ca_state", 1, "u1", "Congestion-avoidance state: 0 Open, 1 Disorder, 2 CWR, 3 Recovery, 4 Loss."),
    ("retransmits", 2, "u1", "Retransmission timeouts in a row, with nothing acknowledged since."),
    ("probes", 3, "u1", "Keepalive or zero-window probes in a row without an answer."),
    ("backoff", 4, "u1", "How often the timer has doubled so far."),
    ("options", 5, "u1", "TCPI_OPT_* bits: 1 timestamps, 2 SACK, 4 window scaling, 8 ECN, 32 SYN data."),
    (
        "wscale",
        6,
        "u1",
        ("Window scales: the low four bits are tcpi_snd_wscale, the high four tcpi_rcv_wscale."),
    ),
    ("rto_us", 8, "u4", "Retransmission timeout in microseconds."),
    ("ato_us", 12, "u4", "Delayed-ACK timeout in microseconds."),
    ("snd_mss", 16, "u4", "Sending maximum segment size, bytes."),
    ("rcv_mss", 20, "u4", "Receiving maximum segment size, bytes."),
    ("unacked", 24, "u4", "Segments sent and not acknowledged (for a listener: connections in its queue)."),
    ("sacked", 28, "u4", "Segments selectively acknowledged (for a listener: its backlog)."),
    ("lost", 32, "u4", "Segments that the kernel presumes lost."),
    ("retrans_out", 36, "u4", "Retransmitted segments now in flight."),
    ("fackets", 40, "u4", "Not used since Linux 4.15."),
    ("last_data_sent_ms", 44, "u4", "Milliseconds since data was last sent."),
    ("last_ack_sent_ms", 48, "u4", "Not filled in by the kernel; always 0."),
    ("last_data_recv_ms", 52, "u4", "Milliseconds since data last arrived."),
    ("last_ack_recv_ms", 56, "u4", "Milliseconds since an acceptable ACK last arrived."),
    ("pmtu", 60, "u4", "Path MTU, bytes."),
    ("rcv_ssthresh", 64, "u4", "Receive-window clamp, bytes."),
    ("rtt_us", 68, "u4", "Smoothed round-trip time, microseconds."),
    ("rttvar_us", 72, "u4", "Variation of the round-trip time, microseconds."),
    ("snd_ssthresh", 76, "u4", "Slow-start threshold, segments."),
    ("snd_cwnd", 80, "u4", "Congestion window, segments."),
    ("advmss", 84, "u4", "Advertised maximum segment size, bytes."),
    ("reordering", 88, "u4", "Reordering that is tolerated, segments."),
    ("rcv_rtt_us", 92, "u4", "Receiver's estimate of the round-trip time, microseconds."),
    ("rcv_space", 96, "u4", "Receive-buffer auto-tuning target, bytes."),
    ("total_retrans", 100, "u4", "Segments ever retransmitted."),
    ("pacing_rate", 104, "u8", "Pacing rate, bytes per second."),
    ("max_pacing_rate", 112, "u8", "Upper bound of the pacing rate, bytes per second."),
    (
        "bytes_acked",
        120,
        "u8",
        "Bytes that the peer has acknowledged; a FIN and an opener's SYN count 1 each.",
    ),
    ("bytes_received", 128, "u8", "Bytes received in order; a FIN counts 1, a SYN nothing."),
    ("segs_out", 136, "u4", "Segments sent, all kinds."),
    ("segs_in", 140, "u4", "Segments received, all kinds."),
    ("notsent_bytes", 144, "u4", "Bytes that the program wrote and the kernel has not sent yet."),
    ("min_rtt_us", 148, "u4", "Smallest round-trip time seen lately, microseconds."),
    ("data_segs_in", 152, "u4", "Data segments received."),
    ("data_segs_out", 156, "u4", "Data segments sent."),
    ("delivery_rate", 160, "u8", "Delivery rate, bytes per second."),
    ("busy_time_us", 168, "u8", "Time with data outstanding, microseconds."),
    ("rwnd_limited_us", 176, "u8", "Time limited by the peer's receive window, microseconds."),
    ("sndbuf_limited_us", 184, "u8", "Time limited by our send buffer, microseconds."),
    ("delivered", 192, "u4", "Segments delivered, spurious retransmissions included."),
    ("delivered_ce", 196, "u4", "Segments delivered with a congestion mark."),
    ("bytes_sent", 200, "u8", "Bytes sent, retransmissions included."),
    ("bytes_retrans", 208, "u8", "Bytes retransmitted."),
    ("dsack_dups", 216, "u4", "Duplicate SACKs received."),
    ("reord_seen", 220, "u4", "Reordering events seen."),
    ("rcv_ooopack", 224, "u4", "Segments received out of order."),
    ("snd_wnd", 228, "u4", "The peer's receive window as it last announced it, bytes, scaled."),
    ("rcv_wnd", 232, "u4", "Our receive window as we last announced it, bytes, scaled."),
    ("rehash", 236, "u4", "Times the transmit hash was changed (PLB or timeout)."),
    ("total_rto", 240, "u2", "Retransmission timeouts ever."),
    ("total_rto_recoveries", 242, "u2", "Recoveries that began with a timeout."),
    ("total_rto_time_ms", 244, "u4", "Time spent in such recoveries, milliseconds."),
    ("received_ce", 248, "u4", "Segments received with a congestion mark (AccECN)."),
    ("delivered_e1_bytes", 252, "u4", "Bytes delivered with ECT(1) (AccECN)."),
    ("delivered_e0_bytes", 256, "u4", "Bytes delivered with ECT(0) (AccECN)."),
    ("delivered_ce_bytes", 260, "u4", "Bytes delivered with CE (AccECN)."),
    ("received_e1_bytes", 264, "u4", "Bytes received with ECT(1) (AccECN)."),
    ("received_e0_bytes", 268, "u4", "Bytes received with ECT(0) (AccECN)."),
    ("received_ce_bytes", 272, "u4", "Bytes received with CE (AccECN)."),
    ("accecn_fail_mode", 276, "u2", "Why AccECN was given up; 0 when it was not."),
    ("accecn_opt_seen", 278, "u2", "Whether the AccECN option was seen, and when."),
)

MPTCP_INFO_FIELDS: Final[tuple[tuple[str, int, str, str], ...]] = (
    ("mptcp_subflows", 0, "u1", "Additional subflows of an MPTCP connection now."),
    ("mptcp_flags", 8, "u4", "MPTCP_INFO_FLAG_*: 1 fell back to TCP, 2 the peer's key was received."),
    ("mptcp_token", 12, "u4", "Local token of an MPTCP connection."),
    ("mptcp_write_seq", 16, "u8", "Next data sequence number to write."),
    ("mptcp_snd_una", 24, "u8", "First data sequence number not acknowledged."),
    ("mptcp_rcv_nxt", 32, "u8", "Next data sequence number expected."),
    ("mptcp_retransmits", 44, "u4", "Data-level retransmissions."),
    ("mptcp_bytes_retrans", 48, "u8", "Bytes retransmitted on the data level."),
    ("mptcp_bytes_sent", 56, "u8", "Bytes sent on all subflows."),
    ("mptcp_bytes_received", 64, "u8", "Bytes received on all subflows."),
    ("mptcp_bytes_acked", 72, "u8", "Bytes that the peer has acknowledged on the data level."),
)
"""Fields of ``struct mptcp_info`` (include/uapi/linux/mptcp.h), sent as INET_DIAG_INFO of MPTCP rows."""

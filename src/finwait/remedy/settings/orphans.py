"""Settings of sockets that no process holds: FIN_WAIT2, retries, TIME_WAIT."""

from __future__ import annotations

from finwait.remedy.settings.model import (
    INT_MAX,
    IP_SYSCTL,
    PODS,
    SECONDS_MAX,
    Band,
    Effect,
    Scope,
    Setting,
    Verdict,
    bounds_new,
    by_direction,
    fin_wait2_text,
    none_of,
    of_namespace,
    orphan_text,
)

__all__ = [
    "FIN_TIMEOUT",
    "MAX_ORPHANS",
    "MAX_TW_BUCKETS",
    "ORPHAN_RETRIES",
    "RFC1337",
    "TW_REUSE",
    "TW_REUSE_DELAY",
]

FIN_TIMEOUT = of_namespace(
    "net.ipv4.tcp_fin_timeout",
    "how long an orphan stays in FIN_WAIT2",
    60,
    "seconds",
    (-1, SECONDS_MAX),
    (
        "orphans that enter FIN_WAIT2 after the change; an orphan with a value above 60 reads it again"
        " when its timer fires"
    ),
    traps=(
        "it starts when the last descriptor is closed; a socket that any process holds is never affected",
        (
            f"values above 60 do not mean what they say: an orphan lives 2*(T-60) s, so 62 gives {fin_wait2_text(62)},"
            f" 80 gives {fin_wait2_text(80)}, 200 gives {fin_wait2_text(200)}, and only 120 gives 120 s"
        ),
        "values above 120 are reduced to 120 for TCP_LINGER2; TIME_WAIT lasts 60 s whatever is set here",
        "the kernel accepts negative values without an error",
        PODS,
    ),
    bands=(
        Band(
            Verdict.HARMFUL,
            "the kernel accepts a negative time, which means nothing sensible",
            ("S12",),
            high=-1,
            instead="leave it at 60",
        ),
        Band(
            Verdict.HARMFUL,
            "an orphan has almost no time to receive the peer's FIN; late data from the peer draws a reset",
            ("X13",),
            low=0,
            high=4,
            instead="leave it at 60; do not go below a few round trips",
        ),
        Band(
            Verdict.HARMFUL,
            f"between 61 and 119 an orphan lives 2*(T-60) seconds, not T: 62 gives {fin_wait2_text(62)}",
            ("X01",),
            low=61,
            high=119,
            instead="60 or less (life = T), or exactly 120",
        ),
        Band(Verdict.NO_EFFECT, "60 is the default", ("S12",), low=60, high=60),
        Band(
            Verdict.NO_EFFECT,
            "sockets that a process holds never use it, and existing orphans keep their countdown; only "
            "later orphans go away sooner",
            ("S12", "S03", "X02"),
            low=5,
            high=59,
            instead="find who holds the socket (`finwait`); limit half-closes in that program",
        ),
        Band(
            Verdict.ONLY_WHEN,
            "orphans are kept for 120 s, first as full sockets, then as minisocks",
            ("X01",),
            low=120,
            high=120,
            instead="leave it at 60",
        ),
        Band(
            Verdict.ONLY_WHEN,
            f"orphans are kept for longer than it says, 2*(T-60) s: 200 gives {fin_wait2_text(200)}",
            ("X01",),
            low=121,
            instead="leave it at 60",
        ),
    ),
    effects=(
        by_direction(
            "fin-wait2-orphan",
            (Effect.BOUNDS_NEW, "existing orphans keep their countdown; later ones get the new one"),
            (Effect.NO_EFFECT, "existing orphans keep their countdown; later ones stay longer"),
        ),
        by_direction(
            "fin-wait2-orphan-long",
            (
                Effect.ENDS,
                "a full orphan reads the value again when its timer fires, and is reset if it is then 60 or less",
            ),
            (
                Effect.NO_EFFECT,
                "a full orphan reads the value again when its timer fires, and then stays longer",
            ),
        ),
    ),
    source=f"{IP_SYSCTL}; __tcp_close(), tcp_rcv_state_process(), tcp_fin_time()",
    ledger=("S03", "S12", "X01", "X02", "X03", "X04", "X11"),
)

MAX_ORPHANS = Setting(
    "net.ipv4.tcp_max_orphans",
    "how many orphans the machine keeps before it resets them",
    Scope.INIT_ONLY,
    None,
    "sockets",
    -2_147_483_648,
    INT_MAX,
    "orphans in FIN_WAIT1, LAST_ACK and CLOSING on the whole machine; FIN_WAIT2 minisocks are not counted",
    (
        "global: absent from /proc/sys in every namespace but the initial one",
        "the default grows with memory (131072 at 24 GB), so a fixed number often lowers it",
        "the kernel's documentation advises against lowering it",
        (
            "at the limit the kernel logs `TCP: too many orphaned sockets`, counts TCPAbortOnMemory and "
            "resets the orphan; an orphan whose peer has been silent for long counts double or fourfold"
        ),
        "the current count is `orphan` in /proc/net/sockstat, the same number in every namespace",
    ),
    (
        Band(
            Verdict.HARMFUL,
            "it lowers the current limit; orphans above it are reset and lose their last data",
            ("S20", "X55"),
            below_current=True,
            instead="leave the kernel's own value",
        ),
        Band(
            Verdict.ONLY_WHEN,
            "if orphans in FIN_WAIT1, LAST_ACK or CLOSING are at the limit (`too many orphaned sockets` in "
            "the kernel's log), a higher limit lets them deliver their last data instead of being reset; it "
            "limits nothing in FIN_WAIT2: those are minisocks and count as TIME_WAIT",
            ("S20", "X55", "X40"),
            instead="leave the kernel's own value unless the limit is reached",
        ),
    ),
    (
        by_direction(
            "fin-unanswered-orphan",
            (Effect.HARMFUL, "a lower limit resets orphans whose last data is still on its way"),
            (
                Effect.NO_EFFECT,
                "it ends none of them; if they are at the limit, it keeps the kernel from resetting later ones",
            ),
        ),
        none_of("fin-wait2-orphan", "this limit does not count FIN_WAIT2 minisocks as orphans"),
    ),
    f"{IP_SYSCTL}; ipv4_table in sysctl_net_ipv4.c; tcp_too_many_orphans(), tcp_out_of_resources(), tcp_init()",
    ("S20", "X40", "X55"),
    by_memory=True,
)

ORPHAN_RETRIES = of_namespace(
    "net.ipv4.tcp_orphan_retries",
    "how often an orphan repeats its FIN or its last data",
    0,
    "retransmissions",
    (0, 255),
    "orphans in FIN_WAIT1, LAST_ACK and CLOSING, and orphans facing a closed window; existing ones too, at "
    "their next retransmission",
    traps=(
        f"0 is the default and means 8 (about {orphan_text(0)} to a silent peer on a fast path)",
        (
            "the number stands for a time: the time that this many retransmissions take with an RTO of 200 ms; "
            "see tcp_retries2"
        ),
        "a small tcp_rto_max_ms changes the rule: 0 then really is 0",
        "sockets that a process holds obey tcp_retries2 instead",
        PODS,
    ),
    bands=(
        Band(
            Verdict.NO_EFFECT,
            f"0 is the default and means 8: an unanswered FIN lives about {orphan_text(0)}",
            ("S21",),
            low=0,
            high=0,
            instead=f"3 gives about {orphan_text(3)}, if orphans of dead peers are a problem at all",
        ),
        Band(
            Verdict.HARMFUL,
            "a peer that loses one or two packets loses the end of its data",
            ("S21", "X25"),
            low=1,
            high=1,
            instead="3 or more",
        ),
        Band(
            Verdict.ONLY_WHEN,
            f"orphans with an unacknowledged FIN go away sooner than after {orphan_text(0)}; sockets that a "
            "process holds do not",
            ("S21", "X25"),
            low=2,
            high=7,
        ),
        Band(Verdict.NO_EFFECT, "8 means the same as the default", ("S21",), low=8, high=8),
        Band(
            Verdict.HARMFUL,
            "orphans of dead peers are kept longer than by default",
            ("S21",),
            low=9,
            instead="0",
        ),
    ),
    effects=(
        by_direction(
            "fin-unanswered-orphan",
            (
                Effect.ENDS,
                "a value of 1 to 7 ends them at their next retransmission after the count is reached; 0 means 8",
            ),
            (Effect.HARMFUL, "they stay longer than before; 0 means 8"),
        ),
        by_direction(
            "zero-window",
            (Effect.ENDS, "only the orphans among them; a socket that a process holds stays"),
            (Effect.HARMFUL, "the orphans among them stay longer than before"),
        ),
        by_direction(
            "egress-blocked",
            (Effect.ENDS, "only the orphans among them; a held one obeys tcp_retries2"),
            (Effect.HARMFUL, "the orphans among them stay longer than before"),
        ),
        none_of("fin-unanswered-held", "a held socket obeys tcp_retries2"),
    ),
    source=f"{IP_SYSCTL}; tcp_orphan_retries(), tcp_write_timeout(), tcp_probe_timer()",
    ledger=("S21", "X04", "X25"),
    zero_is=8,
)

RFC1337 = of_namespace(
    "net.ipv4.tcp_rfc1337",
    "whether TIME_WAIT ignores an incoming RST",
    0,
    "flag",
    (0, 255),
    "TIME_WAIT only",
    traps=("a RST removes a minisock in FIN_WAIT2 whatever is set here", PODS),
    bands=(
        Band(Verdict.NO_EFFECT, "0 is the default", ("S22",), low=0, high=0),
        Band(
            Verdict.NO_EFFECT,
            "it only keeps TIME_WAIT alive against a RST; it ends nothing and does not affect FIN_WAIT2",
            ("S22",),
            instead="leave it out",
        ),
    ),
    effects=(none_of("time-wait-flood", "it makes TIME_WAIT harder to remove, not easier"),),
    source="tcp_timewait_state_process()",
    ledger=("S22",),
)

MAX_TW_BUCKETS = of_namespace(
    "net.ipv4.tcp_max_tw_buckets",
    "how many minisocks (TIME_WAIT and orphaned FIN_WAIT2) a namespace keeps",
    131072,
    "sockets",
    (-2_147_483_648, INT_MAX),
    "connections that would become a minisock after the change",
    traps=(
        "above the limit an orphan in FIN_WAIT2 is removed silently and its peer stays in CLOSE_WAIT",
        "the default is computed from the machine's memory",
        PODS,
    ),
    bands=(
        Band(
            Verdict.HARMFUL,
            "above the limit orphans are removed silently and strand their peers in CLOSE_WAIT",
            ("X40",),
            below_current=True,
            instead="leave the kernel's own value",
        ),
        Band(Verdict.NO_EFFECT, "it ends nothing; it only decides when minisocks are dropped", ("X40",)),
    ),
    effects=(
        by_direction(
            "time-wait-flood",
            (Effect.HARMFUL, "a lower limit drops minisocks silently"),
            (Effect.NO_EFFECT, "a higher limit changes nothing for stuck connections"),
        ),
        by_direction(
            "fin-wait2-orphan",
            (Effect.HARMFUL, "a lower limit drops later orphans silently and strands their peers"),
            (Effect.NO_EFFECT, "they have their own countdown, set when they became orphans"),
        ),
    ),
    source=f"{IP_SYSCTL}; inet_twsk_alloc(), tcp_time_wait(), tcp_sk_init()",
    ledger=("X40",),
    by_memory=True,
)

TW_REUSE = of_namespace(
    "net.ipv4.tcp_tw_reuse",
    "whether connect() may reuse the port of a TIME_WAIT",
    2,
    "mode",
    (0, 2),
    "outgoing connections made after the change",
    traps=(
        "outgoing connections only, with timestamps, and not before tcp_tw_reuse_delay (1 s)",
        "the default 2 means loopback only",
        "it does not free ports that a held FIN_WAIT2 occupies",
        PODS,
    ),
    bands=(
        Band(Verdict.NO_EFFECT, "2 is the default: loopback only", ("X41",), low=2, high=2),
        Band(
            Verdict.ONLY_WHEN,
            "lets connect() reuse the port of a TIME_WAIT after one second; it helps only clients that run "
            "out of ports",
            ("X41", "X42"),
            low=1,
            high=1,
            instead="reuse connections, or let the other side close first",
        ),
        Band(Verdict.NO_EFFECT, "0 switches reuse off, loopback included", ("X41",), low=0, high=0),
    ),
    effects=(
        bounds_new(
            "time-wait-flood",
            "connect() may reuse their ports after tcp_tw_reuse_delay; the rows themselves stay",
        ),
        none_of("fin-wait2-held", "reuse applies only to TIME_WAIT; a held FIN_WAIT2 keeps its port"),
    ),
    source=f"{IP_SYSCTL}; tcp_twsk_unique()",
    ledger=("X41", "X42"),
)

TW_REUSE_DELAY = of_namespace(
    "net.ipv4.tcp_tw_reuse_delay",
    "how old a TIME_WAIT must be before tcp_tw_reuse reuses its port",
    1000,
    "milliseconds",
    (1, 60_000),
    "outgoing connections made after the change, when tcp_tw_reuse allows them",
    traps=("absent from Linux 6.12; present in 6.18", PODS),
    bands=(
        Band(Verdict.NO_EFFECT, "1000 is the default", ("X41",), low=1000, high=1000),
        Band(
            Verdict.ONLY_WHEN,
            "a shorter wait before reuse; below the resolution of the peer's clock, a late packet of the old "
            "connection can harm the new one",
            ("X41",),
            low=1,
            high=999,
            instead="1000",
        ),
        Band(Verdict.NO_EFFECT, "ports are reused later than by default", ("X41",), low=1001),
    ),
    effects=(bounds_new("time-wait-flood", "with tcp_tw_reuse=1, their ports are reusable sooner"),),
    source="tcp_twsk_unique()",
    ledger=("X41",),
    since="absent from Linux 6.12",
)

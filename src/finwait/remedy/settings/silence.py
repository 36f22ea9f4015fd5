"""Settings that say how long a silent peer is waited for: keepalive, retransmissions, the queue of a listener."""

from __future__ import annotations

from finwait.remedy.settings.model import (
    IP_SYSCTL,
    PODS,
    SECONDS_MAX,
    Band,
    Effect,
    Verdict,
    bounds_new,
    by_direction,
    harms,
    held_text,
    none_of,
    of_namespace,
    orphan_text,
)

__all__ = [
    "ABORT_ON_OVERFLOW",
    "KEEPALIVE_INTVL",
    "KEEPALIVE_PROBES",
    "KEEPALIVE_TIME",
    "RETRIES2",
    "RTO_MAX",
]

_KEEPALIVE_ACTS = (
    "sockets with SO_KEEPALIVE and no TCP_KEEP* option of their own; Go and many others set their own (15 s)"
)

_KEEPALIVE_NEW = (
    by_direction(
        "idle-unprobed",
        (
            Effect.BOUNDS_NEW,
            "none of these has keepalive armed; a program that sets SO_KEEPALIVE uses the value on later connections",
        ),
        (Effect.NO_EFFECT, "none of these has keepalive armed; later connections would be probed even later"),
    ),
    by_direction(
        "nat-zombie",
        (
            Effect.BOUNDS_NEW,
            "a probe finds the missing end, on later connections of programs that set SO_KEEPALIVE",
        ),
        (Effect.NO_EFFECT, "on later connections the missing end would be found even later"),
    ),
    none_of(
        "fin-wait2-held", "the peer's kernel answers every probe for as long as the peer holds its socket"
    ),
    none_of("relay-pair", "both kernels answer probes for ever; the relay has to close"),
    none_of(
        "close-wait-eof-read",
        "a probe helps only if the peer's socket is gone, and the descriptor still stays open",
    ),
    none_of("data-unanswered", "keepalive does not run while data is unacknowledged"),
    none_of("zero-window", "keepalive does not run while data is unacknowledged"),
)

KEEPALIVE_TIME = of_namespace(
    "net.ipv4.tcp_keepalive_time",
    "idle time before the first keepalive probe",
    7200,
    "seconds",
    (-1, SECONDS_MAX),
    _KEEPALIVE_ACTS + "; an armed timer keeps its old time",
    traps=(
        "it turns nothing on; a program must set SO_KEEPALIVE",
        (
            "an armed timer is not shortened (it still had 7199 s left after setting 3 s); turning "
            "SO_KEEPALIVE off and on again re-arms it, also from outside through pidfd_getfd"
        ),
        "a live peer in CLOSE_WAIT answers for ever, so keepalive never ends a half-closed pair",
        PODS,
    ),
    bands=(
        Band(
            Verdict.HARMFUL,
            "the kernel accepts a value below 1, which means nothing sensible",
            ("S18",),
            high=0,
            instead="300 or less, but not below 10",
        ),
        Band(
            Verdict.ONLY_WHEN,
            "every idle connection with SO_KEEPALIVE sends a packet this often; this finds dead peers "
            "quickly, and only those",
            ("S18",),
            low=1,
            high=9,
            instead="60 is short enough for most uses",
        ),
        Band(
            Verdict.ONLY_WHEN,
            "finds dead peers and keeps NAT entries alive, for sockets with SO_KEEPALIVE armed after the "
            "change; has no effect on a half-closed pair whose peer is alive",
            ("S18", "S19", "X33"),
            low=10,
            high=340,
            instead=(
                "set SO_KEEPALIVE with TCP_KEEPIDLE, _INTVL and _CNT in the program; if you set TCP_USER_TIMEOUT "
                "too, use idle + interval * count, because it replaces the count"
            ),
        ),
        Band(
            Verdict.ONLY_WHEN,
            "finds dead peers sooner than the default, for sockets with SO_KEEPALIVE armed after the change; "
            "too late for the idle limits of common cloud NAT (350 s) and, above 900, of IPVS; no effect on "
            "a half-closed pair whose peer is alive",
            ("S18", "S19", "X33"),
            low=341,
            high=7199,
            instead="below the shortest idle limit on the path, for example 300, preferably set in the program",
        ),
        Band(Verdict.NO_EFFECT, "7200 is the default", ("S18",), low=7200, high=7200),
        Band(
            Verdict.HARMFUL,
            "longer than the default; dead peers are found even later",
            ("S18",),
            low=7201,
            instead="300",
        ),
    ),
    effects=(
        *_KEEPALIVE_NEW,
        by_direction(
            "nat-entry-gone",
            (
                Effect.BOUNDS_NEW,
                "an interval below the entry's timeout keeps later half-closed flows translated",
            ),
            (Effect.NO_EFFECT, "later probes keep no entry alive"),
        ),
    ),
    source=f"{IP_SYSCTL}; keepalive_time_when(), tcp_set_keepalive(), tcp_keepalive_timer()",
    ledger=("S07", "S18", "S19", "X18", "X20", "X31", "X32", "X33", "X51"),
)

KEEPALIVE_INTVL = of_namespace(
    "net.ipv4.tcp_keepalive_intvl",
    "time between unanswered keepalive probes",
    75,
    "seconds",
    (-1, SECONDS_MAX),
    _KEEPALIVE_ACTS,
    traps=("the time to notice a dead peer is keepalive_time + keepalive_intvl * keepalive_probes", PODS),
    bands=(
        Band(
            Verdict.HARMFUL,
            "the kernel accepts a value below 1, which means nothing sensible",
            ("S19",),
            high=0,
            instead="15",
        ),
        Band(Verdict.NO_EFFECT, "75 is the default", ("S19",), low=75, high=75),
        Band(
            Verdict.ONLY_WHEN,
            "with keepalive armed, a dead peer is found after time + intvl * probes; a live one is never "
            "disturbed or closed",
            ("S19",),
            low=1,
            high=74,
        ),
        Band(Verdict.HARMFUL, "dead peers are found later than by default", ("S19",), low=76, instead="15"),
    ),
    effects=_KEEPALIVE_NEW,
    source=f"{IP_SYSCTL}; tcp_keepalive_timer()",
    ledger=("S07", "S19", "X18", "X20"),
)

KEEPALIVE_PROBES = of_namespace(
    "net.ipv4.tcp_keepalive_probes",
    "unanswered keepalive probes before the connection is given up",
    9,
    "probes",
    (0, 255),
    _KEEPALIVE_ACTS,
    traps=(
        (
            "TCP_USER_TIMEOUT on a socket replaces this count, in both directions: up to idle + interval, "
            "one lost probe ends the connection; idle + interval * count means the same as the count"
        ),
        PODS,
    ),
    bands=(
        Band(
            Verdict.HARMFUL,
            "no probe may be lost; one lost packet can end a live connection",
            ("S19",),
            low=0,
            high=1,
            instead="5",
        ),
        Band(Verdict.NO_EFFECT, "9 is the default", ("S19",), low=9, high=9),
        Band(
            Verdict.ONLY_WHEN,
            "with keepalive armed, a dead peer is found after time + intvl * probes",
            ("S19",),
            low=2,
            high=8,
        ),
        Band(
            Verdict.NO_EFFECT,
            "more probes only increase the time until a dead peer is found",
            ("S19",),
            low=10,
        ),
    ),
    effects=_KEEPALIVE_NEW,
    source=f"{IP_SYSCTL}; tcp_keepalive_timer()",
    ledger=("S19", "X22"),
)

ABORT_ON_OVERFLOW = of_namespace(
    "net.ipv4.tcp_abort_on_overflow",
    "whether the kernel resets a handshake that finds the accept queue full",
    0,
    "flag",
    (0, 255),
    "handshakes that complete while the accept queue is full",
    traps=("it resets new clients and leaves every existing connection alone", PODS),
    bands=(
        Band(Verdict.NO_EFFECT, "0 is the default", ("S11",), low=0, high=0),
        Band(
            Verdict.HARMFUL,
            "it cleans up nothing; it resets new clients whenever a listener is slow for a moment",
            ("S11",),
            instead="leave it at 0; make the program accept, or increase its backlog",
        ),
    ),
    effects=(
        harms("never-accepted", "connections in the queue stay; new clients are reset instead of retrying"),
        harms("accept-queue-full", "it frees no place; new clients are reset instead of retrying"),
    ),
    source=f"{IP_SYSCTL}; tcp_check_req()",
    ledger=("S11",),
)

RETRIES2 = of_namespace(
    "net.ipv4.tcp_retries2",
    "retransmissions of unacknowledged data before a held connection is given up",
    15,
    "retransmissions",
    (0, 255),
    "held sockets with unacknowledged data or an unacknowledged FIN, including existing ones",
    traps=(
        (
            "the number stands for a time: the time that this many retransmissions take with an RTO of 200 "
            f"ms. 15 is about {held_text(15)}, 8 about {held_text(8)}, and a slow path gets there with fewer"
        ),
        "it does not limit a closed window; every answer to a probe restarts the count",
        PODS,
    ),
    bands=(
        Band(Verdict.NO_EFFECT, f"15 is the default, about {held_text(15)}", ("X53",), low=15, high=15),
        Band(
            Verdict.HARMFUL,
            "a short outage of the path ends every connection on it; RFC 1122 asks for at least 100 s, which is 8",
            ("X53",),
            low=0,
            high=7,
            instead="8, or TCP_USER_TIMEOUT in the program that needs it",
        ),
        Band(
            Verdict.ONLY_WHEN,
            "a dead peer is noticed sooner if data, or a FIN of a held socket, is on its way to it; it also "
            "caps the back-off of window probes, so a peer that stopped reading gets more of them",
            ("X53", "X25"),
            low=8,
            high=14,
            instead="TCP_USER_TIMEOUT in the program limits both cases",
        ),
        Band(Verdict.HARMFUL, "dead peers are held longer than by default", ("X53",), low=16, instead="15"),
    ),
    effects=(
        *(
            by_direction(
                rule,
                (Effect.ENDS, "the kernel reads the limit at every retransmission"),
                (
                    Effect.HARMFUL,
                    "the kernel reads the limit at every retransmission; they stay longer than before",
                ),
            )
            for rule in ("data-unanswered", "fin-unanswered-held")
        ),
        by_direction(
            "egress-blocked",
            (Effect.ENDS, "only those that a process holds; orphans obey tcp_orphan_retries"),
            (Effect.HARMFUL, "those that a process holds stay longer than before"),
        ),
        by_direction(
            "zero-window",
            (
                Effect.HARMFUL,
                "a lower value caps the back-off: more probes, and still no end (578 packets in 480 s)",
            ),
            (Effect.NO_EFFECT, "each answer to a window probe restarts the count"),
        ),
        none_of("idle-unprobed", "nothing is unacknowledged on an idle connection"),
        none_of("fin-unanswered-orphan", "orphans obey tcp_orphan_retries"),
    ),
    source=f"{IP_SYSCTL}; tcp_write_timeout(), tcp_probe_timer()",
    ledger=("X25", "X53"),
)

RTO_MAX = of_namespace(
    "net.ipv4.tcp_rto_max_ms",
    "the longest time between two retransmissions",
    120_000,
    "milliseconds",
    (1000, 120_000),
    "sockets created after the change; existing ones keep their value",
    traps=(
        (
            "it changes the rule, not just the clock: an orphan whose timer has reached the maximum counts "
            "as not alive, and tcp_orphan_retries=0 then means 0 instead of 8. With 1000 that gives "
            f"{orphan_text(0, 1000)} instead of {orphan_text(0)}"
        ),
        "tcp_retries2 then counts against a shorter time as well, so a short outage of the path ends connections",
        "absent from Linux 6.12; present in 6.18",
        PODS,
    ),
    bands=(
        Band(Verdict.NO_EFFECT, "120000 is the default", ("X53",), low=120_000, high=120_000),
        Band(
            Verdict.HARMFUL,
            "orphans get almost no time for their last data: tcp_orphan_retries=0 then means 0, and an "
            f"unanswered FIN lives {orphan_text(0, 1000)} (with 1000) to {orphan_text(0, 4999)} (with 4999)",
            ("S21",),
            low=1000,
            high=4999,
            instead="set tcp_orphan_retries too, or use TCP_RTO_MAX_MS in the one program that needs it",
        ),
        Band(
            Verdict.ONLY_WHEN,
            "sockets created after the change give up dead peers sooner, but also live peers behind a bad path",
            ("S21",),
            low=5000,
            high=119_999,
        ),
    ),
    effects=(
        bounds_new("data-unanswered", "sockets created later back off less and give up sooner"),
        bounds_new(
            "fin-unanswered-orphan",
            "sockets created later give up sooner, far sooner with tcp_orphan_retries=0",
        ),
        bounds_new("fin-unanswered-held", "sockets created later back off less and give up sooner"),
        bounds_new(
            "zero-window",
            "only orphans created later; the kernel probes for ever on a socket that a process holds",
        ),
    ),
    source=(
        "tcp_init_sock(), tcp_write_timeout(); TCP_RTO_MAX_MS read on sockets made before and"
        " after the change"
    ),
    ledger=("S21", "X53"),
    since="absent from Linux 6.12",
)

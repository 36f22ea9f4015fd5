"""Settings of connection tracking: how long its entries live, and how many there may be."""

from __future__ import annotations

from finwait.remedy.settings.model import (
    CT_SYSCTL,
    INT_MAX,
    SECONDS_MAX,
    Band,
    Effect,
    RuleEffect,
    Scope,
    Setting,
    Verdict,
    bounds_new,
    by_direction,
    harms,
    none_of,
    of_namespace,
)

__all__ = [
    "CT_BUCKETS",
    "CT_CLOSE_WAIT",
    "CT_ESTABLISHED",
    "CT_LIBERAL",
    "CT_LOOSE",
    "CT_MAX",
    "CT_MAX_RETRANS",
    "CT_MINOR",
]

_CT_ACTS = "flows whose state changes after the change; each packet writes the time into its entry"

_CT_TRAPS = (
    "conntrack closes no socket; when an entry goes, the address translation of that flow goes",
    "kept per network namespace; the one that translates matters, usually the node's",
)


def _ct_timeout(
    state: str,
    title: str,
    default: int,
    bands: tuple[Band, ...],
    ledger: tuple[str, ...],
    effects: tuple[RuleEffect, ...] = (),
    traps: tuple[str, ...] = (),
) -> Setting:
    return of_namespace(
        f"net.netfilter.nf_conntrack_tcp_timeout_{state}",
        title,
        default,
        "seconds",
        (-1, SECONDS_MAX),
        _CT_ACTS,
        traps=(*traps, *_CT_TRAPS),
        bands=bands,
        effects=effects,
        source=f"{CT_SYSCTL}; nf_conntrack_proto_tcp.c",
        ledger=ledger,
    )


CT_CLOSE_WAIT = _ct_timeout(
    "close_wait",
    "how long a half-closed flow keeps its address translation",
    60,
    (
        Band(
            Verdict.HARMFUL,
            "a half-closed flow that is idle this long loses its translation; the last FIN is then INVALID "
            "and never arrives, and a held FIN_WAIT2 stays for ever",
            ("S31", "S32", "X28"),
            high=59,
            instead=(
                "3600, kube-proxy's default (--conntrack-tcp-timeout-close-wait); also limit half-closes in the "
                "programs"
            ),
            tracking=True,
        ),
        Band(
            Verdict.HARMFUL,
            "60 is the kernel's default and too short behind NAT; kube-proxy raises it to 3600 because "
            "half-closed flows broke",
            ("S31",),
            low=60,
            high=60,
            instead="3600 on a node that translates addresses",
            tracking=True,
        ),
        Band(
            Verdict.ONLY_WHEN,
            "covers half-closes shorter than this; kube-proxy uses 3600",
            ("S31",),
            low=61,
            high=3599,
            instead="3600 on a node that translates addresses",
        ),
        Band(
            Verdict.HELPS,
            "half-closed flows keep their translation as long as kube-proxy intends",
            ("S31",),
            low=3600,
            high=7200,
            tracking=True,
        ),
        Band(
            Verdict.ONLY_WHEN,
            "entries of half-closed flows fill the table for longer than kube-proxy's hour",
            ("S31",),
            low=7201,
            instead="3600",
        ),
    ),
    ("S31", "S32", "X28", "X33"),
    effects=(
        by_direction(
            "nat-entry-gone",
            (Effect.HARMFUL, "lowering it makes more of these"),
            (Effect.BOUNDS_NEW, "raising it (3600) prevents it for later flows"),
        ),
        *(
            by_direction(
                rule,
                (Effect.HARMFUL, "lowering it makes half-closes behind NAT permanent"),
                (Effect.NO_EFFECT, "raising it ends nothing; conntrack closes no socket"),
            )
            for rule in ("fin-wait2-held", "relay-pair")
        ),
        by_direction(
            "fin-wait2-streaming",
            (Effect.HARMFUL, "a lowered value cuts a slow half-closed stream off"),
            (Effect.NO_EFFECT, "data still arrives: the connection is in use"),
        ),
    ),
    traps=(
        (
            "conntrack's CLOSE_WAIT means that a FIN was seen and acknowledged, from either end; it is not "
            "the socket's state"
        ),
    ),
)

CT_ESTABLISHED = _ct_timeout(
    "established",
    "how long an idle established flow keeps its address translation",
    432_000,
    (
        Band(
            Verdict.HARMFUL,
            "shorter than the default keepalive of two hours; idle connections lose their translation and "
            "become zombies if the server sends first",
            ("X35",),
            high=7199,
            instead="86400, kube-proxy's default, or keepalive shorter than it in every program",
            tracking=True,
        ),
        Band(
            Verdict.NO_EFFECT, "432000 (5 days) is the kernel's default", ("X35",), low=432_000, high=432_000
        ),
        Band(
            Verdict.ONLY_WHEN,
            "idle connections keep their translation this long; it closes no connection",
            ("X35",),
            low=7200,
        ),
    ),
    ("X35", "X34"),
    effects=(
        by_direction(
            "nat-entry-gone",
            (Effect.HARMFUL, "a shorter time makes more of these"),
            (Effect.BOUNDS_NEW, "a longer time prevents it for later idle connections"),
        ),
        by_direction(
            "idle-unprobed",
            (Effect.HARMFUL, "lowering it turns idle connections behind NAT into zombies"),
            (Effect.NO_EFFECT, "no timer is running on it; conntrack closes no socket"),
        ),
        none_of("nat-zombie", "the entry exists; one of the ends is gone"),
    ),
)


def _ct_minor(
    state: str, title: str, default: int, why: str, harm_below: int, ledger: tuple[str, ...]
) -> Setting:
    return _ct_timeout(
        state,
        title,
        default,
        (
            Band(Verdict.NO_EFFECT, f"{default} is the default", ledger, low=default, high=default),
            Band(
                Verdict.HARMFUL,
                f"shorter than the retransmissions that it has to outlive; {why}",
                ledger,
                high=harm_below - 1,
                instead=str(default),
                tracking=True,
            ),
            Band(
                Verdict.NO_EFFECT,
                f"conntrack entries go away earlier or later; no socket does; {why}",
                ledger,
            ),
        ),
        ledger,
    )


CT_MINOR = (
    _ct_minor(
        "fin_wait",
        "how long a flow whose first FIN is not yet acknowledged is kept",
        120,
        "the flow moves on to CLOSE_WAIT with the acknowledgement",
        30,
        ("S29", "X28"),
    ),
    _ct_minor(
        "last_ack",
        "how long a flow waits for the acknowledgement of its second FIN",
        30,
        "a retransmitted FIN needs the entry",
        10,
        ("S29",),
    ),
    _ct_minor(
        "time_wait",
        "how long a closed flow is remembered",
        120,
        "it frees table space, not sockets or ports",
        10,
        ("S29", "X03"),
    ),
    _ct_minor(
        "close",
        "how long a flow that was reset is remembered",
        10,
        "the sockets are already gone",
        1,
        ("S29",),
    ),
    _ct_minor("syn_sent", "how long an unanswered SYN is kept", 120, "it only affects opening", 10, ("S29",)),
    _ct_minor("syn_recv", "how long a half-open flow is kept", 60, "it only affects opening", 10, ("S29",)),
    _ct_minor(
        "max_retrans",
        "how long a flow is kept after nf_conntrack_tcp_max_retrans repeats",
        300,
        "if an entry goes while the ends still retransmit, it strands them",
        120,
        ("S29",),
    ),
    _ct_minor(
        "unacknowledged",
        "how long a flow with unacknowledged data is kept",
        300,
        "if an entry goes while the ends still retransmit, it strands them",
        120,
        ("S29", "X32"),
    ),
)

CT_MAX = Setting(
    "net.netfilter.nf_conntrack_max",
    "how many flows the machine tracks",
    Scope.INIT_WRITES,
    262_144,
    "entries",
    0,
    INT_MAX,
    "new flows: when the table is full, packets that would start one are dropped",
    (
        ("kube-proxy sets it from conntrack.maxPerCore (32768) and min (131072), again at each start"),
        "raise nf_conntrack_buckets with it, because long chains slow down every packet",
    ),
    (
        Band(
            Verdict.HARMFUL,
            "it lowers the current limit; new connections are dropped when the table is full",
            ("S36",),
            below_current=True,
            instead="conntrack.maxPerCore in KubeProxyConfiguration",
        ),
        Band(
            Verdict.NO_EFFECT,
            "it limits the number of flows; it closes no connection, and kube-proxy overwrites it",
            ("S36",),
            instead="conntrack.maxPerCore in KubeProxyConfiguration",
        ),
    ),
    (),
    f"{CT_SYSCTL}; kube-proxy conntrack settings; nf_conntrack_init_start()",
    ("S36",),
    by_memory=True,
)

CT_BUCKETS = Setting(
    "net.netfilter.nf_conntrack_buckets",
    "the number of hash chains of the conntrack table",
    Scope.INIT_WRITES,
    262_144,
    "chains",
    1024,
    INT_MAX,
    "the speed of every tracked packet",
    (
        "writable in the initial namespace only",
        "262144 is the kernel's own value above 4 GB of memory; a fixed number often shrinks the table",
    ),
    (
        Band(
            Verdict.HARMFUL,
            "it shrinks the current hash table; longer chains slow down every packet",
            ("S36",),
            below_current=True,
            instead="leave it, or use at least a quarter of nf_conntrack_max",
        ),
        Band(Verdict.NO_EFFECT, "it affects the speed of lookups; it closes no connection", ("S36",)),
    ),
    (),
    f"{CT_SYSCTL}; nf_conntrack_init_start()",
    ("S36",),
    by_memory=True,
)

CT_LIBERAL = of_namespace(
    "net.netfilter.nf_conntrack_tcp_be_liberal",
    "whether packets outside the window are let through instead of being INVALID",
    0,
    "flag",
    (0, 1),
    "packets that arrive after the change",
    traps=(
        (
            "it prevents the reset that one out-of-window packet causes (nat-zombie); it does not bring"
            " back an expired entry"
        ),
        "kube-proxy has --conntrack-tcp-be-liberal, and then omits its INVALID drop rule",
    ),
    bands=(
        Band(Verdict.NO_EFFECT, "0 is the default", ("X38",), low=0, high=0),
        Band(
            Verdict.ONLY_WHEN,
            "prevents zombies caused by out-of-window packets; does not save half-closes whose entry is gone",
            ("X38", "X29"),
            low=1,
            high=1,
        ),
    ),
    effects=(
        bounds_new("nat-zombie", "an out-of-window packet is then translated as usual and draws no reset"),
        none_of("nat-entry-gone", "it relaxes window checks only; the FIN still finds no entry"),
    ),
    source=f"{CT_SYSCTL}; tcp_in_window()",
    ledger=("X29", "X38"),
)

CT_LOOSE = of_namespace(
    "net.netfilter.nf_conntrack_tcp_loose",
    "whether conntrack may start tracking a flow in the middle",
    1,
    "flag",
    (0, 1),
    "packets without an entry that arrive after the change",
    traps=("even with 1, a FIN cannot create an entry; a half-close whose entry is gone stays lost",),
    bands=(
        Band(Verdict.NO_EFFECT, "1 is the default", ("X28",), low=1, high=1),
        Band(
            Verdict.HARMFUL,
            "a flow whose entry is gone cannot be picked up again, not even by data; its connections hang",
            ("X34", "X28"),
            low=0,
            high=0,
            instead="1",
        ),
    ),
    effects=(
        harms("nat-entry-gone", "0 removes the only thing that revives a flow: data or a keepalive probe"),
    ),
    source=f"{CT_SYSCTL}; nf_conntrack_tcp_packet()",
    ledger=("X28", "X34"),
)

CT_MAX_RETRANS = of_namespace(
    "net.netfilter.nf_conntrack_tcp_max_retrans",
    "after how many repeats a flow gets the shorter timeout_max_retrans",
    3,
    "packets",
    (0, 255),
    "flows with repeated packets after the change",
    traps=("a small value shortens the entry of every connection that loses packets",),
    bands=(
        Band(Verdict.NO_EFFECT, "3 is the default", ("S29",), low=3, high=3),
        Band(Verdict.NO_EFFECT, "it decides which timeout an entry gets; it closes no socket", ("S29",)),
    ),
    source=f"{CT_SYSCTL}; nf_conntrack_tcp_packet()",
    ledger=("S29",),
)

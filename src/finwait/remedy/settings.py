"""The kernel settings that bear on closing a TCP connection, and what each of them really does.

One `Setting` per sysctl: its scope, default, unit, the range that the kernel takes, the connections that it
acts on, its traps, what each interesting value means (`Band`), and, for every diagnosis rule, whether
changing it would end what that rule has found (`Setting.effect`). The page ``docs/reference/settings.md``,
``finwait tune`` and ``finwait audit`` all read this one table.

Ranges, defaults, scopes and file modes were read on Linux 6.18 in a fresh network namespace; what a value
does rests on the measurements that the ledger (``docs/reference/ledger.md``) lists under the ids named here,
and on ``net/ipv4/tcp*.c``, ``net/netfilter/nf_conntrack_*.c`` and ``Documentation/networking/*sysctl.rst``.

The surprise: hardly any of them can end a connection that is stuck now. A socket that a process holds obeys
none.

This module decides nothing about this machine; `finwait.remedy.tuning` does, from values that others have
read.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from finwait.diagnosis import forecast

__all__ = [
    "CATALOGUE",
    "RULES",
    "Band",
    "Effect",
    "RuleEffect",
    "Scope",
    "Setting",
    "Verdict",
    "by_key",
    "by_letters",
    "canonical_key",
    "computed_default",
]


class Scope(StrEnum):
    """Whom a sysctl governs."""

    NETNS = "per network namespace"
    """Each namespace has its own value; a new one starts at the kernel's constants, not at the host's."""
    INIT_WRITES = "global, shown read-only in other namespaces"
    """One value for the machine, writable in the initial namespace, readable (0444) in the others."""
    INIT_ONLY = "global, absent from other namespaces"
    """One value for the machine; the file exists in the initial namespace only."""


class Effect(StrEnum):
    """What changing a setting does for the connections that a diagnosis rule has found."""

    ENDS = "ends"
    """It shortens the life of those that are there now."""
    BOUNDS_NEW = "bounds-new"
    """Nothing for those that are there; the same thing happening again later is bounded or prevented."""
    NO_EFFECT = "no-effect"
    HARMFUL = "harmful"
    """It makes this pattern worse or more frequent."""


class Verdict(StrEnum):
    """What is to be said of one setting with one value."""

    HELPS = "helps"
    ONLY_WHEN = "only-when"
    """It does something useful under a condition that the reason names."""
    NO_EFFECT = "no-effect"
    HARMFUL = "harmful"


RULES: tuple[str, ...] = (
    "fin-wait2-held",
    "fin-wait2-streaming",
    "fin-wait2-shut-both",
    "fin-wait2-orphan",
    "fin-wait2-orphan-long",
    "relay-pair",
    "close-wait-eof-read",
    "close-wait-eof-unread",
    "never-accepted",
    "accept-queue-full",
    "inherited-descriptor",
    "holder-not-found",
    "established-unread",
    "half-open",
    "idle-unprobed",
    "data-unanswered",
    "fin-unanswered-orphan",
    "fin-unanswered-held",
    "zero-window",
    "egress-blocked",
    "nat-entry-gone",
    "nat-zombie",
    "time-wait",
    "time-wait-flood",
    "hidden-leak",
    "mptcp-half-close",
    "mptcp-no-subflow",
    "handshake",
    "closing-in-progress",
    "unexplained",
)
"""The names of the diagnosis rules that a setting is judged against."""

_BEYOND_SYSCTLS: dict[str, str] = {
    "fin-wait2-held": "a descriptor still refers to it, so no kernel timer runs; the peer's FIN, the owner's"
    " close() or SOCK_DESTROY end it",
    "fin-wait2-streaming": "data still arrives: the connection is in use",
    "fin-wait2-shut-both": (
        "shutdown() is not close(): a descriptor still refers to the socket and no timer runs"
    ),
    "fin-wait2-orphan": "it carries its own countdown, set when it became an orphan",
    "fin-wait2-orphan-long": "it leaves when its own timer has run",
    "relay-pair": "one process holds both legs; no timer runs on either",
    "close-wait-eof-read": "CLOSE_WAIT has no timer in any kernel; the program has to close",
    "close-wait-eof-unread": "CLOSE_WAIT has no timer in any kernel; the program has to read and close",
    "never-accepted": "the connection waits in the accept queue for the program's accept()",
    "accept-queue-full": "only accept() frees a place in the queue; a backlog counts from the next listen()",
    "inherited-descriptor": "another process still holds the descriptor",
    "holder-not-found": "something still refers to the socket, so no orphan timer applies",
    "established-unread": "to the kernel these connections are well; only the program can read",
    "half-open": "neither end gives up sooner by it: the old one is idle, and every new SYN meets it",
    "idle-unprobed": "no timer is armed on it, so no timer value matters",
    "data-unanswered": "only the retransmission limits and TCP_USER_TIMEOUT govern it",
    "fin-unanswered-orphan": "only the orphan retransmission limits govern it",
    "fin-unanswered-held": "only the retransmission limits and TCP_USER_TIMEOUT govern it",
    "zero-window": "each answer to a window probe starts the count again",
    "egress-blocked": "this machine refuses to send; only the limits of retries govern how long it tries",
    "time-wait": "TIME_WAIT lasts 60 s, a constant compiled into the kernel",
    "handshake": "it is being opened, there is nothing to close",
    "closing-in-progress": "it goes on by itself",
    "unexplained": "nobody knows why it stays, so no setting is known to act on it",
    "nat-entry-gone": "the address translation is already forgotten; packets no longer reach the other end",
    "nat-zombie": "one end is already gone and nothing asks the other",
    "time-wait-flood": "TIME_WAIT lasts 60 s, a constant compiled into the kernel",
    "mptcp-no-subflow": "no setting of TCP applies without a subflow; net.mptcp.close_timeout does",
    "hidden-leak": "the connection is gone; only the descriptor is left in the process",
    "mptcp-half-close": "the MPTCP connection, not its subflows, is what has to close",
}


@dataclass(frozen=True, slots=True)
class RuleEffect:
    """What a setting does for one diagnosis rule."""

    rule: str
    effect: Effect
    why: str
    raised: Effect | None = None
    """What raising the value does instead, where the direction decides; ``effect`` is then about lowering it."""
    raised_why: str = ""

    def of(self, step: int) -> RuleEffect:
        """Return what a change in one direction does: ``step`` is below 0 for a lower value, above for a higher."""
        if step > 0 and self.raised is not None:
            return RuleEffect(self.rule, self.raised, self.raised_why)
        return RuleEffect(self.rule, self.effect, self.why)


@dataclass(frozen=True, slots=True)
class Band:
    """A range of values of one setting that share a verdict.

    ``low`` and ``high`` are inclusive and in the setting's unit. A band with ``below_current`` applies only
    to values under the one in force now (or under the default where nothing was read); ``above_current``
    likewise. A band with ``tracking`` speaks of namespaces that translate addresses or filter by connection
    state; in others an entry of connection tracking that goes away is missed by nobody.
    """

    verdict: Verdict
    why: str
    ledger: tuple[str, ...] = ()
    instead: str = ""
    low: int | None = None
    high: int | None = None
    below_current: bool = False
    above_current: bool = False
    tracking: bool = False

    def covers(self, value: int, current: int | None) -> bool:
        """Return whether this band speaks about ``value`` where ``current`` is in force (None: unknown)."""
        if self.low is not None and value < self.low:
            return False
        if self.high is not None and value > self.high:
            return False
        if self.below_current and (current is None or value >= current):
            return False
        return not (self.above_current and (current is None or value <= current))


@dataclass(frozen=True, slots=True)
class Setting:
    """One sysctl that bears on closing."""

    key: str
    title: str
    scope: Scope
    default: int | None
    """The value of a fresh namespace; with ``by_memory`` that of a machine with 24 GB, None where none is usual."""
    unit: str
    low: int
    high: int
    """The range that the kernel takes, inclusive; outside it a write fails with EINVAL."""
    acts_on: str
    traps: tuple[str, ...]
    bands: tuple[Band, ...]
    effects: tuple[RuleEffect, ...]
    source: str
    ledger: tuple[str, ...]
    since: str = ""
    """What is known about kernels that lack it; empty when every supported kernel has it."""
    by_memory: bool = False
    """Whether the kernel computes the default from the machine's memory, see `computed_default`."""
    zero_is: int = 0
    """What 0 stands for."""

    def effect(self, rule: str, step: int = 0) -> RuleEffect:
        """Return what changing this setting does for the connections that ``rule`` finds.

        Args:
            rule: the rule.
            step: the direction of the change, see `step`; 0 for an answer about both, which lowering gives.

        Raises:
            ValueError: there is no such rule.
        """
        for known in self.effects:
            if known.rule == rule:
                return known.of(step) if step else known
        if rule not in _BEYOND_SYSCTLS:
            raise ValueError(f"no rule is named {rule!r}")
        return RuleEffect(rule, Effect.NO_EFFECT, _BEYOND_SYSCTLS[rule])

    def step(self, present: int | None, value: int) -> int:
        """Return the direction of a change: −1 down, 1 up, 0 none or not known."""
        if present is None:
            return 0
        before, after = present or self.zero_is, value or self.zero_is
        return (after > before) - (after < before)

    def band(self, value: int, current: int | None = None) -> Band:
        """Return what is to be said of ``value``; ``current`` is the value in force, where it is known.

        Where nothing was read, comparisons with the present value are made with the default.
        """
        reference = self.default if current is None else current
        for candidate in self.bands:
            if candidate.covers(value, reference):
                return candidate
        return Band(Verdict.NO_EFFECT, "nothing that is known about this value bears on closing")


def _netns(
    key: str,
    title: str,
    default: int,
    unit: str,
    span: tuple[int, int],
    acts_on: str,
    *,
    bands: tuple[Band, ...],
    source: str,
    ledger: tuple[str, ...],
    traps: tuple[str, ...] = (),
    effects: tuple[RuleEffect, ...] = (),
    since: str = "",
    by_memory: bool = False,
    zero_is: int = 0,
) -> Setting:
    return Setting(
        key,
        title,
        Scope.NETNS,
        default,
        unit,
        span[0],
        span[1],
        acts_on,
        traps,
        bands,
        effects,
        source,
        ledger,
        since,
        by_memory,
        zero_is,
    )


_SECONDS_MAX = 8_589_934
"""The largest number of seconds that the jiffies of ``proc_dointvec_jiffies`` hold at HZ=250, as measured."""
_INT_MAX = 2_147_483_647
_IP_SYSCTL = "Documentation/networking/ip-sysctl.rst"
_CT_SYSCTL = "Documentation/networking/nf_conntrack-sysctl.rst"
_PODS = "a pod has its own value: set it by securityContext.sysctls, a change on the node does not reach it"


def _fin_wait2(timeout_s: int) -> str:
    return forecast.text(forecast.fin_wait2_orphan_s(timeout_s))


def _orphan(retries: int, rto_max_ms: int = forecast.DEFAULTS.rto_max_ms) -> str:
    limits = forecast.Limits(orphan_retries=retries, rto_max_ms=rto_max_ms)
    return forecast.text(forecast.orphan(limits).seconds)


def _held(retries: int) -> str:
    return forecast.text(forecast.retransmission(forecast.Limits(retries2=retries)).seconds)


def _ends(rule: str, why: str) -> RuleEffect:
    return RuleEffect(rule, Effect.ENDS, why)


def _new(rule: str, why: str) -> RuleEffect:
    return RuleEffect(rule, Effect.BOUNDS_NEW, why)


def _bad(rule: str, why: str) -> RuleEffect:
    return RuleEffect(rule, Effect.HARMFUL, why)


def _by_direction(rule: str, lowered: tuple[Effect, str], raised: tuple[Effect, str]) -> RuleEffect:
    """An effect that depends on whether the value falls or rises."""
    return RuleEffect(rule, *lowered, *raised)


def _none(rule: str, why: str) -> RuleEffect:
    return RuleEffect(rule, Effect.NO_EFFECT, why)


_FIN_TIMEOUT = _netns(
    "net.ipv4.tcp_fin_timeout",
    "how long an orphan stays in FIN_WAIT2",
    60,
    "seconds",
    (-1, _SECONDS_MAX),
    (
        "orphans that enter FIN_WAIT2 after the change; an orphan with a value above 60 reads it again"
        " when its timer fires"
    ),
    traps=(
        "it counts from the close() of the last descriptor: a socket that any process holds is never touched",
        (
            f"values above 60 do not mean what they say: an orphan lives 2*(T-60) s, so 62 gives {_fin_wait2(62)},"
            f" 80 gives {_fin_wait2(80)}, 200 gives {_fin_wait2(200)}, and only 120 gives 120 s"
        ),
        "values above 120 are cut to 120 for TCP_LINGER2, and TIME_WAIT is 60 s whatever is set here",
        "negative values are taken without an error",
        _PODS,
    ),
    bands=(
        Band(
            Verdict.HARMFUL,
            "a negative time is accepted by the kernel and means nothing sensible",
            ("S12",),
            high=-1,
            instead="leave it at 60",
        ),
        Band(
            Verdict.HARMFUL,
            "an orphan has almost no time to receive the peer's FIN: the peer's late data draws a reset",
            ("X13",),
            low=0,
            high=4,
            instead="leave it at 60; go no lower than a few round trips",
        ),
        Band(
            Verdict.HARMFUL,
            f"between 61 and 119 an orphan lives 2*(T-60) seconds, not T: 62 gives {_fin_wait2(62)}",
            ("X01",),
            low=61,
            high=119,
            instead="60 or less (life = T), or exactly 120",
        ),
        Band(Verdict.NO_EFFECT, "60 is the default", ("S12",), low=60, high=60),
        Band(
            Verdict.NO_EFFECT,
            "sockets that a process holds never look at it, and orphans that are there keep the"
            " countdown they started with; only later orphans leave sooner",
            ("S12", "S03", "X02"),
            low=5,
            high=59,
            instead="find who holds the socket (`finwait`); bound half-closes in that program",
        ),
        Band(
            Verdict.ONLY_WHEN,
            "orphans are kept for 120 s: as full sockets first, then as minisocks",
            ("X01",),
            low=120,
            high=120,
            instead="leave it at 60",
        ),
        Band(
            Verdict.ONLY_WHEN,
            f"orphans are kept for longer than it says, 2*(T-60) s: 200 gives {_fin_wait2(200)}",
            ("X01",),
            low=121,
            instead="leave it at 60",
        ),
    ),
    effects=(
        _by_direction(
            "fin-wait2-orphan",
            (Effect.BOUNDS_NEW, "orphans that are there keep their countdown; later ones get the new one"),
            (Effect.NO_EFFECT, "orphans that are there keep their countdown; later ones stay longer"),
        ),
        _by_direction(
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
    source=f"{_IP_SYSCTL}; __tcp_close(), tcp_rcv_state_process(), tcp_fin_time()",
    ledger=("S03", "S12", "X01", "X02", "X03", "X04", "X11"),
)

_KEEPALIVE_ACTS = (
    "sockets with SO_KEEPALIVE and no TCP_KEEP* option of their own; Go, and many"
    " others, set their own (15 s)"
)
_KEEPALIVE_NEW = (
    _by_direction(
        "idle-unprobed",
        (
            Effect.BOUNDS_NEW,
            "none of these has keepalive armed; a program that sets SO_KEEPALIVE uses the value on later connections",
        ),
        (Effect.NO_EFFECT, "none of these has keepalive armed; later connections would be asked even later"),
    ),
    _by_direction(
        "nat-zombie",
        (
            Effect.BOUNDS_NEW,
            "a probe finds the missing end, on later connections of programs that set SO_KEEPALIVE",
        ),
        (Effect.NO_EFFECT, "on later connections the missing end would be found even later"),
    ),
    _none("fin-wait2-held", "the peer's kernel answers every probe for as long as the peer holds its socket"),
    _none("relay-pair", "both kernels answer probes for ever; the relay has to close"),
    _none(
        "close-wait-eof-read",
        "a probe helps only if the peer's socket is gone, and the descriptor stays open",
    ),
    _none("data-unanswered", "keepalive does not run while data is unacknowledged"),
    _none("zero-window", "keepalive does not run while data is unacknowledged"),
)

_KEEPALIVE_TIME = _netns(
    "net.ipv4.tcp_keepalive_time",
    "idle time before the first keepalive probe",
    7200,
    "seconds",
    (-1, _SECONDS_MAX),
    _KEEPALIVE_ACTS + "; a timer that is armed keeps its old time",
    traps=(
        "it switches nothing on: a program must set SO_KEEPALIVE",
        (
            "an armed timer is not shortened (7199 s were still to run after setting 3 s); switching"
            " SO_KEEPALIVE off and"
            " on again re-arms it, also from outside through pidfd_getfd"
        ),
        "a live peer in CLOSE_WAIT answers for ever: keepalive never ends a half-closed pair",
        _PODS + " (a safe sysctl since Kubernetes 1.29)",
    ),
    bands=(
        Band(
            Verdict.HARMFUL,
            "a value below 1 is accepted and means nothing sensible",
            ("S18",),
            high=0,
            instead="300 or less, but not below 10",
        ),
        Band(
            Verdict.ONLY_WHEN,
            "every idle connection with SO_KEEPALIVE sends a packet this often; finds dead peers"
            " quickly, and only those",
            ("S18",),
            low=1,
            high=9,
            instead="60 is quick enough for most",
        ),
        Band(
            Verdict.ONLY_WHEN,
            "finds dead peers, and keeps NAT entries alive, for sockets with SO_KEEPALIVE armed after the"
            " change; does nothing for a half-closed pair whose peer lives",
            ("S18", "S19", "X33"),
            low=10,
            high=340,
            instead="set SO_KEEPALIVE with TCP_KEEPIDLE, _INTVL and _CNT in the program, and TCP_USER_TIMEOUT, if at"
            " all, to idle + interval * count: it takes the place of the count",
        ),
        Band(
            Verdict.ONLY_WHEN,
            "dead peers are found sooner than by default, for sockets with SO_KEEPALIVE armed after"
            " the change;"
            " too late for the idle limits of common cloud NAT (350 s) and, above 900, of IPVS; nothing for a"
            " half-closed pair whose peer lives",
            ("S18", "S19", "X33"),
            low=341,
            high=7199,
            instead="below the shortest idle limit on the path, for example 300, and better in the program",
        ),
        Band(Verdict.NO_EFFECT, "7200 is the default", ("S18",), low=7200, high=7200),
        Band(
            Verdict.HARMFUL,
            "longer than the default: dead peers are found even later",
            ("S18",),
            low=7201,
            instead="300",
        ),
    ),
    effects=(
        *_KEEPALIVE_NEW,
        _by_direction(
            "nat-entry-gone",
            (
                Effect.BOUNDS_NEW,
                "an interval below the entry's timeout keeps later half-closed flows translated",
            ),
            (Effect.NO_EFFECT, "probes that come later keep no entry alive"),
        ),
    ),
    source=f"{_IP_SYSCTL}; keepalive_time_when(), tcp_set_keepalive(), tcp_keepalive_timer()",
    ledger=("S07", "S18", "S19", "X18", "X20", "X31", "X32", "X33", "X51"),
)

_KEEPALIVE_INTVL = _netns(
    "net.ipv4.tcp_keepalive_intvl",
    "time between unanswered keepalive probes",
    75,
    "seconds",
    (-1, _SECONDS_MAX),
    _KEEPALIVE_ACTS,
    traps=("the time to notice a dead peer is keepalive_time + keepalive_intvl * keepalive_probes", _PODS),
    bands=(
        Band(
            Verdict.HARMFUL,
            "a value below 1 is accepted and means nothing sensible",
            ("S19",),
            high=0,
            instead="15",
        ),
        Band(Verdict.NO_EFFECT, "75 is the default", ("S19",), low=75, high=75),
        Band(
            Verdict.ONLY_WHEN,
            "with keepalive armed, a dead peer is found after time + intvl * probes; a live one is"
            " never disturbed and never closed",
            ("S19",),
            low=1,
            high=74,
        ),
        Band(Verdict.HARMFUL, "dead peers are found later than by default", ("S19",), low=76, instead="15"),
    ),
    effects=_KEEPALIVE_NEW,
    source=f"{_IP_SYSCTL}; tcp_keepalive_timer()",
    ledger=("S07", "S19", "X18", "X20"),
)

_KEEPALIVE_PROBES = _netns(
    "net.ipv4.tcp_keepalive_probes",
    "unanswered keepalive probes before the connection is given up",
    9,
    "probes",
    (0, 255),
    _KEEPALIVE_ACTS,
    traps=(
        (
            "TCP_USER_TIMEOUT on a socket replaces this count, in both directions: up to idle + interval one lost"
            " probe ends the connection, and idle + interval * count is what the count means"
        ),
        _PODS,
    ),
    bands=(
        Band(
            Verdict.HARMFUL,
            "no probe may be lost: one lost packet can end a live connection",
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
            "more probes only lengthen the time until a dead peer is found",
            ("S19",),
            low=10,
        ),
    ),
    effects=_KEEPALIVE_NEW,
    source=f"{_IP_SYSCTL}; tcp_keepalive_timer()",
    ledger=("S19", "X22"),
)

_MAX_ORPHANS = Setting(
    "net.ipv4.tcp_max_orphans",
    "how many orphans the machine keeps before it resets them",
    Scope.INIT_ONLY,
    None,
    "sockets",
    -2_147_483_648,
    _INT_MAX,
    "orphans in FIN_WAIT1, LAST_ACK and CLOSING of the whole machine; FIN_WAIT2 minisocks are not counted",
    (
        "global: absent from /proc/sys in every namespace but the initial one",
        "the default grows with memory (131072 at 24 GB), so a fixed number often lowers it",
        "the kernel's documentation asks not to lower it",
        (
            "at the limit the kernel logs `TCP: too many orphaned sockets`, counts TCPAbortOnMemory and resets the"
            " orphan; one whose peer has been silent for long counts double or fourfold"
        ),
        "how many there are: `orphan` in /proc/net/sockstat, the same number in every namespace",
    ),
    (
        Band(
            Verdict.HARMFUL,
            "it lowers the limit in force: orphans above it are reset, their last data lost",
            ("S20", "X55"),
            below_current=True,
            instead="leave the kernel's own value",
        ),
        Band(
            Verdict.ONLY_WHEN,
            "where orphans in FIN_WAIT1, LAST_ACK or CLOSING are at the limit (`too many orphaned sockets` in the"
            " kernel's log) a higher one lets them deliver their last data instead of being reset; it limits nothing"
            " in FIN_WAIT2: those are minisocks and count as TIME_WAIT",
            ("S20", "X55", "X40"),
            instead="leave the kernel's own value unless the limit is met",
        ),
    ),
    (
        _by_direction(
            "fin-unanswered-orphan",
            (Effect.HARMFUL, "a lower limit resets orphans whose last data is still on its way"),
            (
                Effect.NO_EFFECT,
                "it ends none of them; where they are at the limit, it keeps the kernel from resetting later ones",
            ),
        ),
        _none("fin-wait2-orphan", "FIN_WAIT2 minisocks are not orphans to this limit"),
    ),
    f"{_IP_SYSCTL}; ipv4_table in sysctl_net_ipv4.c; tcp_too_many_orphans(), tcp_out_of_resources(), tcp_init()",
    ("S20", "X40", "X55"),
    by_memory=True,
)

_ORPHAN_RETRIES = _netns(
    "net.ipv4.tcp_orphan_retries",
    "how often an orphan repeats its FIN or its last data",
    0,
    "retransmissions",
    (0, 255),
    "orphans in FIN_WAIT1, LAST_ACK and CLOSING, and orphans facing a closed window; those that are"
    " there as well, at"
    " their next retransmission",
    traps=(
        f"0 is the default and means 8 (about {_orphan(0)} to a silent peer on a fast path)",
        "the number stands for a time, that of so many retransmissions with an RTO of 200 ms: see tcp_retries2",
        "with a small tcp_rto_max_ms the rule changes: 0 then really is 0",
        "sockets that a process holds obey tcp_retries2 instead",
        _PODS,
    ),
    bands=(
        Band(
            Verdict.NO_EFFECT,
            f"0 is the default and means 8: an unanswered FIN lives about {_orphan(0)}",
            ("S21",),
            low=0,
            high=0,
            instead=f"3 gives about {_orphan(3)}, if orphans of dead peers are a problem at all",
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
            f"orphans whose FIN nobody acknowledges leave sooner than after {_orphan(0)}; sockets that a"
            " process holds do not",
            ("S21", "X25"),
            low=2,
            high=7,
        ),
        Band(Verdict.NO_EFFECT, "8 is what the default means", ("S21",), low=8, high=8),
        Band(
            Verdict.HARMFUL,
            "orphans of dead peers are kept longer than by default",
            ("S21",),
            low=9,
            instead="0",
        ),
    ),
    effects=(
        _by_direction(
            "fin-unanswered-orphan",
            (
                Effect.ENDS,
                "a value of 1 to 7 ends them at their next retransmission once the count is reached; 0 means 8",
            ),
            (Effect.HARMFUL, "they stay longer than they would; 0 means 8"),
        ),
        _by_direction(
            "zero-window",
            (Effect.ENDS, "only the orphans among them; one that a process holds stays"),
            (Effect.HARMFUL, "the orphans among them stay longer than they would"),
        ),
        _by_direction(
            "egress-blocked",
            (Effect.ENDS, "only the orphans among them; a held one obeys tcp_retries2"),
            (Effect.HARMFUL, "the orphans among them stay longer than they would"),
        ),
        _none("fin-unanswered-held", "a held socket obeys tcp_retries2"),
    ),
    source=f"{_IP_SYSCTL}; tcp_orphan_retries(), tcp_write_timeout(), tcp_probe_timer()",
    ledger=("S21", "X04", "X25"),
    zero_is=8,
)

_RFC1337 = _netns(
    "net.ipv4.tcp_rfc1337",
    "whether TIME_WAIT ignores an incoming RST",
    0,
    "flag",
    (0, 255),
    "TIME_WAIT only",
    traps=("a minisock in FIN_WAIT2 is removed by a RST whatever is set here", _PODS),
    bands=(
        Band(Verdict.NO_EFFECT, "0 is the default", ("S22",), low=0, high=0),
        Band(
            Verdict.NO_EFFECT,
            "it only keeps TIME_WAIT alive against a RST; it ends nothing and does not touch FIN_WAIT2",
            ("S22",),
            instead="leave it out",
        ),
    ),
    effects=(_none("time-wait-flood", "it makes TIME_WAIT harder to remove, not easier"),),
    source="tcp_timewait_state_process()",
    ledger=("S22",),
)

_ABORT_ON_OVERFLOW = _netns(
    "net.ipv4.tcp_abort_on_overflow",
    "whether a handshake that meets a full accept queue is reset",
    0,
    "flag",
    (0, 255),
    "handshakes that complete while the accept queue is full",
    traps=("it resets new clients and leaves every existing connection alone", _PODS),
    bands=(
        Band(Verdict.NO_EFFECT, "0 is the default", ("S11",), low=0, high=0),
        Band(
            Verdict.HARMFUL,
            "it cleans up nothing: it resets new clients whenever a listener is slow for a moment",
            ("S11",),
            instead="leave it 0; make the program accept, or raise its backlog",
        ),
    ),
    effects=(
        _bad("never-accepted", "connections in the queue stay; new clients are reset instead of retrying"),
        _bad("accept-queue-full", "no place becomes free; new clients are reset instead of retrying"),
    ),
    source=f"{_IP_SYSCTL}; tcp_check_req()",
    ledger=("S11",),
)

_RETRIES2 = _netns(
    "net.ipv4.tcp_retries2",
    "retransmissions of unacknowledged data before a held connection is given up",
    15,
    "retransmissions",
    (0, 255),
    "held sockets with unacknowledged data or FIN, those that are there as well",
    traps=(
        (
            "the number stands for a time, that of so many retransmissions with an RTO of 200 ms: 15 is about"
            f" {_held(15)}, 8 about {_held(8)}, and a slow path gets there with fewer"
        ),
        "it does not bound a closed window: every answer to a probe starts the count again",
        _PODS,
    ),
    bands=(
        Band(Verdict.NO_EFFECT, f"15 is the default, about {_held(15)}", ("X53",), low=15, high=15),
        Band(
            Verdict.HARMFUL,
            "a short loss of the path ends every connection on it; RFC 1122 asks for at least 100 s,"
            " which is 8",
            ("X53",),
            low=0,
            high=7,
            instead="8, or TCP_USER_TIMEOUT in the program that needs it",
        ),
        Band(
            Verdict.ONLY_WHEN,
            "a dead peer is noticed sooner when data is on its way to it, or a FIN of a held socket;"
            " it caps the back-off of window probes, so a peer that stopped reading gets more of them",
            ("X53", "X25"),
            low=8,
            high=14,
            instead="TCP_USER_TIMEOUT in the program bounds both cases",
        ),
        Band(Verdict.HARMFUL, "dead peers are held longer than by default", ("X53",), low=16, instead="15"),
    ),
    effects=(
        *(
            _by_direction(
                rule,
                (Effect.ENDS, "the limit is read at every retransmission"),
                (
                    Effect.HARMFUL,
                    "the limit is read at every retransmission: they stay longer than they would",
                ),
            )
            for rule in ("data-unanswered", "fin-unanswered-held")
        ),
        _by_direction(
            "egress-blocked",
            (Effect.ENDS, "only those that a process holds; orphans obey tcp_orphan_retries"),
            (Effect.HARMFUL, "those that a process holds stay longer than they would"),
        ),
        _by_direction(
            "zero-window",
            (
                Effect.HARMFUL,
                "a lower value caps the back-off: more probes, and still no end (578 packets in 480 s)",
            ),
            (Effect.NO_EFFECT, "each answer to a window probe starts the count again"),
        ),
        _none("idle-unprobed", "nothing is unacknowledged on an idle connection"),
        _none("fin-unanswered-orphan", "orphans obey tcp_orphan_retries"),
    ),
    source=f"{_IP_SYSCTL}; tcp_write_timeout(), tcp_probe_timer()",
    ledger=("X25", "X53"),
)

_MAX_TW_BUCKETS = _netns(
    "net.ipv4.tcp_max_tw_buckets",
    "how many minisocks (TIME_WAIT and orphaned FIN_WAIT2) a namespace keeps",
    131072,
    "sockets",
    (-2_147_483_648, _INT_MAX),
    "connections that would become a minisock after the change",
    traps=(
        "above the limit an orphan in FIN_WAIT2 vanishes without a word and its peer stays in CLOSE_WAIT",
        "the default is computed from the machine's memory",
        _PODS,
    ),
    bands=(
        Band(
            Verdict.HARMFUL,
            "above the limit orphans vanish silently and strand their peers in CLOSE_WAIT",
            ("X40",),
            below_current=True,
            instead="leave the kernel's own value",
        ),
        Band(Verdict.NO_EFFECT, "it ends nothing; it only decides when minisocks are dropped", ("X40",)),
    ),
    effects=(
        _by_direction(
            "time-wait-flood",
            (Effect.HARMFUL, "a lower limit drops minisocks silently"),
            (Effect.NO_EFFECT, "raising it changes nothing that is stuck"),
        ),
        _by_direction(
            "fin-wait2-orphan",
            (Effect.HARMFUL, "a lower limit drops later orphans silently and strands their peers"),
            (Effect.NO_EFFECT, "they carry their own countdown, set when they became orphans"),
        ),
    ),
    source=f"{_IP_SYSCTL}; inet_twsk_alloc(), tcp_time_wait(), tcp_sk_init()",
    ledger=("X40",),
    by_memory=True,
)

_TW_REUSE = _netns(
    "net.ipv4.tcp_tw_reuse",
    "whether connect() may take over the port of a TIME_WAIT",
    2,
    "mode",
    (0, 2),
    "outgoing connections made after the change",
    traps=(
        "outgoing connections only, with timestamps, and not before tcp_tw_reuse_delay (1 s)",
        "the default 2 means loopback only",
        "it does not free ports that a held FIN_WAIT2 pins",
        _PODS,
    ),
    bands=(
        Band(Verdict.NO_EFFECT, "2 is the default: loopback only", ("X41",), low=2, high=2),
        Band(
            Verdict.ONLY_WHEN,
            "lets connect() reuse a port of a TIME_WAIT after a second; for clients that run out of"
            " ports, and for nothing else",
            ("X41", "X42"),
            low=1,
            high=1,
            instead="reuse connections, or let the other side close first",
        ),
        Band(Verdict.NO_EFFECT, "0 switches reuse off, loopback included", ("X41",), low=0, high=0),
    ),
    effects=(
        _new(
            "time-wait-flood",
            "connect() may reuse their ports after tcp_tw_reuse_delay; the rows themselves stay",
        ),
        _none("fin-wait2-held", "reuse looks at TIME_WAIT only; a held FIN_WAIT2 keeps its port"),
    ),
    source=f"{_IP_SYSCTL}; tcp_twsk_unique()",
    ledger=("X41", "X42"),
)

_TW_REUSE_DELAY = _netns(
    "net.ipv4.tcp_tw_reuse_delay",
    "how old a TIME_WAIT must be before tcp_tw_reuse takes its port",
    1000,
    "milliseconds",
    (1, 60_000),
    "outgoing connections made after the change, when tcp_tw_reuse allows them",
    traps=("absent from Linux 6.12; present in 6.18", _PODS),
    bands=(
        Band(Verdict.NO_EFFECT, "1000 is the default", ("X41",), low=1000, high=1000),
        Band(
            Verdict.ONLY_WHEN,
            "a shorter wait before reuse; below the peer's clock resolution a late packet of the old"
            " connection can hurt the new one",
            ("X41",),
            low=1,
            high=999,
            instead="1000",
        ),
        Band(Verdict.NO_EFFECT, "ports are reused later than by default", ("X41",), low=1001),
    ),
    effects=(_new("time-wait-flood", "with tcp_tw_reuse=1, their ports are reusable sooner"),),
    source="tcp_twsk_unique()",
    ledger=("X41",),
    since="absent from Linux 6.12",
)

_RTO_MAX = _netns(
    "net.ipv4.tcp_rto_max_ms",
    "the longest time between two retransmissions",
    120_000,
    "milliseconds",
    (1000, 120_000),
    "sockets created after the change; existing ones keep theirs",
    traps=(
        (
            "it changes the rule and not just the clock: an orphan whose timer has reached the maximum"
            " counts as not alive,"
            " and tcp_orphan_retries=0 then means 0 instead of 8: with 1000,"
            f" {_orphan(0, 1000)} instead of {_orphan(0)}"
        ),
        "tcp_retries2 counts against a shorter time as well: a short loss of the path ends connections",
        "absent from Linux 6.12; present in 6.18",
        _PODS,
    ),
    bands=(
        Band(Verdict.NO_EFFECT, "120000 is the default", ("X53",), low=120_000, high=120_000),
        Band(
            Verdict.HARMFUL,
            "orphans get almost no time for their last data: tcp_orphan_retries=0 then means 0, and a"
            f" FIN nobody answers lives {_orphan(0, 1000)} (with 1000) to {_orphan(0, 4999)} (with 4999)",
            ("S21",),
            low=1000,
            high=4999,
            instead="set tcp_orphan_retries too, or use TCP_RTO_MAX_MS in the one program that needs it",
        ),
        Band(
            Verdict.ONLY_WHEN,
            "sockets created after the change give up dead peers sooner, at the price of the same"
            " for live ones behind a bad path",
            ("S21",),
            low=5000,
            high=119_999,
        ),
    ),
    effects=(
        _new("data-unanswered", "sockets created later back off less and give up sooner"),
        _new(
            "fin-unanswered-orphan",
            "sockets created later give up sooner, far sooner with tcp_orphan_retries=0",
        ),
        _new("fin-unanswered-held", "sockets created later back off less and give up sooner"),
        _new("zero-window", "only orphans created later; one that a process holds is probed for ever"),
    ),
    source=(
        "tcp_init_sock(), tcp_write_timeout(); TCP_RTO_MAX_MS read on sockets made before and"
        " after the change"
    ),
    ledger=("S21", "X53"),
    since="absent from Linux 6.12",
)

_CT_ACTS = "flows whose state changes after the change: the time is written with each packet"
_CT_TRAPS = (
    "conntrack closes no socket: when an entry goes, the address translation of that flow goes",
    "kept per network namespace; it matters in the one that translates, usually the node's",
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
    return _netns(
        f"net.netfilter.nf_conntrack_tcp_timeout_{state}",
        title,
        default,
        "seconds",
        (-1, _SECONDS_MAX),
        _CT_ACTS,
        traps=(*traps, *_CT_TRAPS),
        bands=bands,
        effects=effects,
        source=f"{_CT_SYSCTL}; nf_conntrack_proto_tcp.c",
        ledger=ledger,
    )


_CT_CLOSE_WAIT = _ct_timeout(
    "close_wait",
    "how long a half-closed flow keeps its address translation",
    60,
    (
        Band(
            Verdict.HARMFUL,
            "a half-closed flow that is idle this long loses its translation; the last FIN is then"
            " INVALID, never arrives, and a held FIN_WAIT2 stays for ever",
            ("S31", "S32", "X28"),
            high=59,
            instead="3600, kube-proxy's default (--conntrack-tcp-timeout-close-wait), and bound half-closes"
            " in the programs",
            tracking=True,
        ),
        Band(
            Verdict.HARMFUL,
            "60 is the kernel's default and too short behind NAT: kube-proxy raises it to 3600 because"
            " half-closed flows broke",
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
        _by_direction(
            "nat-entry-gone",
            (Effect.HARMFUL, "lowering it makes more of these"),
            (Effect.BOUNDS_NEW, "raising it (3600) prevents it for later flows"),
        ),
        *(
            _by_direction(
                rule,
                (Effect.HARMFUL, "lowering it makes half-closes behind NAT permanent"),
                (Effect.NO_EFFECT, "raising it ends nothing: conntrack closes no socket"),
            )
            for rule in ("fin-wait2-held", "relay-pair")
        ),
        _by_direction(
            "fin-wait2-streaming",
            (Effect.HARMFUL, "a lowered value cuts a slow half-closed stream off"),
            (Effect.NO_EFFECT, "data still arrives: the connection is in use"),
        ),
    ),
    traps=(
        (
            "conntrack's CLOSE_WAIT means a FIN was seen and acknowledged, at either end; it is not the"
            " socket's state"
        ),
    ),
)

_CT_ESTABLISHED = _ct_timeout(
    "established",
    "how long an idle established flow keeps its address translation",
    432_000,
    (
        Band(
            Verdict.HARMFUL,
            "shorter than the two hours of default keepalive: idle connections lose their translation"
            " and become zombies when the server speaks first",
            ("X35",),
            high=7199,
            instead="86400, kube-proxy's default, or keepalive below it in every program",
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
        _by_direction(
            "nat-entry-gone",
            (Effect.HARMFUL, "a shorter time makes more of these"),
            (Effect.BOUNDS_NEW, "a longer time prevents it for later idle connections"),
        ),
        _by_direction(
            "idle-unprobed",
            (Effect.HARMFUL, "lowering it turns idle connections behind NAT into zombies"),
            (Effect.NO_EFFECT, "no timer is armed on it; conntrack closes no socket"),
        ),
        _none("nat-zombie", "the entry is there; it is one of the ends that is gone"),
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
                f"shorter than the retransmissions it has to outlive; {why}",
                ledger,
                high=harm_below - 1,
                instead=str(default),
                tracking=True,
            ),
            Band(
                Verdict.NO_EFFECT, f"conntrack entries leave earlier or later; no socket does; {why}", ledger
            ),
        ),
        ledger,
    )


_CT_MINOR = (
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
        "a repeated FIN needs the entry",
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
    _ct_minor("syn_sent", "how long an unanswered SYN is kept", 120, "it concerns opening", 10, ("S29",)),
    _ct_minor("syn_recv", "how long a half-open flow is kept", 60, "it concerns opening", 10, ("S29",)),
    _ct_minor(
        "max_retrans",
        "how long a flow is kept after nf_conntrack_tcp_max_retrans repeats",
        300,
        "an entry that goes while the ends still retransmit strands them",
        120,
        ("S29",),
    ),
    _ct_minor(
        "unacknowledged",
        "how long a flow with unacknowledged data is kept",
        300,
        "an entry that goes while the ends still retransmit strands them",
        120,
        ("S29", "X32"),
    ),
)

_CT_MAX = Setting(
    "net.netfilter.nf_conntrack_max",
    "how many flows the machine tracks",
    Scope.INIT_WRITES,
    262_144,
    "entries",
    0,
    _INT_MAX,
    "new flows: when the table is full, packets that would start one are dropped",
    (
        (
            "kube-proxy sets it itself from conntrack.maxPerCore (32768) and min (131072), and sets it"
            " again at each start"
        ),
        "raise nf_conntrack_buckets with it: long chains cost every packet",
    ),
    (
        Band(
            Verdict.HARMFUL,
            "it lowers the limit in force: new connections are dropped when the table is full",
            ("S36",),
            below_current=True,
            instead="conntrack.maxPerCore in KubeProxyConfiguration",
        ),
        Band(
            Verdict.NO_EFFECT,
            "it bounds the number of flows; it closes no connection, and kube-proxy overwrites it",
            ("S36",),
            instead="conntrack.maxPerCore in KubeProxyConfiguration",
        ),
    ),
    (),
    f"{_CT_SYSCTL}; kube-proxy conntrack settings; nf_conntrack_init_start()",
    ("S36",),
    by_memory=True,
)

_CT_BUCKETS = Setting(
    "net.netfilter.nf_conntrack_buckets",
    "the number of hash chains of the conntrack table",
    Scope.INIT_WRITES,
    262_144,
    "chains",
    1024,
    _INT_MAX,
    "the speed of every tracked packet",
    (
        "writable in the initial namespace only",
        "262144 is the kernel's own value above 4 GB of memory; a fixed number often shrinks the table",
    ),
    (
        Band(
            Verdict.HARMFUL,
            "it shrinks the hash table in force: longer chains for every packet",
            ("S36",),
            below_current=True,
            instead="leave it, or a quarter of nf_conntrack_max and more",
        ),
        Band(Verdict.NO_EFFECT, "it concerns the speed of lookups; it closes no connection", ("S36",)),
    ),
    (),
    f"{_CT_SYSCTL}; nf_conntrack_init_start()",
    ("S36",),
    by_memory=True,
)

_CT_LIBERAL = _netns(
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
        "kube-proxy has --conntrack-tcp-be-liberal and then leaves its INVALID drop rule out",
    ),
    bands=(
        Band(Verdict.NO_EFFECT, "0 is the default", ("X38",), low=0, high=0),
        Band(
            Verdict.ONLY_WHEN,
            "prevents zombies by out-of-window packets; does not save half-closes whose entry is gone",
            ("X38", "X29"),
            low=1,
            high=1,
        ),
    ),
    effects=(
        _new("nat-zombie", "an out-of-window packet is then translated as usual and draws no reset"),
        _none("nat-entry-gone", "it relaxes window checks only; the FIN still finds no entry"),
    ),
    source=f"{_CT_SYSCTL}; tcp_in_window()",
    ledger=("X29", "X38"),
)

_CT_LOOSE = _netns(
    "net.netfilter.nf_conntrack_tcp_loose",
    "whether a flow may be picked up in the middle",
    1,
    "flag",
    (0, 1),
    "packets without an entry that arrive after the change",
    traps=("also with 1 a FIN cannot create an entry: a half-close whose entry is gone stays lost",),
    bands=(
        Band(Verdict.NO_EFFECT, "1 is the default", ("X28",), low=1, high=1),
        Band(
            Verdict.HARMFUL,
            "a flow whose entry is gone cannot be picked up even by data: its connections hang",
            ("X34", "X28"),
            low=0,
            high=0,
            instead="1",
        ),
    ),
    effects=(
        _bad("nat-entry-gone", "0 takes away the one thing that revives a flow: data or a keepalive probe"),
    ),
    source=f"{_CT_SYSCTL}; nf_conntrack_tcp_packet()",
    ledger=("X28", "X34"),
)

_CT_MAX_RETRANS = _netns(
    "net.netfilter.nf_conntrack_tcp_max_retrans",
    "after how many repeats a flow gets the shorter timeout_max_retrans",
    3,
    "packets",
    (0, 255),
    "flows with repeated packets after the change",
    traps=("a small value shortens the entry of every connection that loses packets",),
    bands=(
        Band(Verdict.NO_EFFECT, "3 is the default", ("S29",), low=3, high=3),
        Band(
            Verdict.NO_EFFECT, "it decides which timeout an entry gets; no socket is closed by it", ("S29",)
        ),
    ),
    source=f"{_CT_SYSCTL}; nf_conntrack_tcp_packet()",
    ledger=("S29",),
)

CATALOGUE: tuple[Setting, ...] = (
    _FIN_TIMEOUT,
    _KEEPALIVE_TIME,
    _KEEPALIVE_INTVL,
    _KEEPALIVE_PROBES,
    _ORPHAN_RETRIES,
    _MAX_ORPHANS,
    _RETRIES2,
    _RTO_MAX,
    _RFC1337,
    _ABORT_ON_OVERFLOW,
    _MAX_TW_BUCKETS,
    _TW_REUSE,
    _TW_REUSE_DELAY,
    _CT_CLOSE_WAIT,
    _CT_ESTABLISHED,
    *_CT_MINOR,
    _CT_MAX,
    _CT_BUCKETS,
    _CT_LIBERAL,
    _CT_LOOSE,
    _CT_MAX_RETRANS,
)
"""Every setting that finwait has an opinion on, the most asked-for first."""

_GIB = 1 << 20  # in KiB


def computed_default(key: str, *, hash_entries: int | None, memory_kb: int | None) -> int | None:
    """Return the default that the kernel computed on a machine; None where that cannot be told.

    ``tcp_init`` and ``tcp_sk_init`` take half of the established hash table for the limits of orphans and minisockets;
    ``nf_conntrack_init_start`` goes by the memory alone. The number of chains depends on the kernel's version as well.

    Args:
        key: a setting with ``by_memory``.
        hash_entries: ``tcp_ehash_entries`` (6.1 and later); negative in a namespace that shares the machine's table.
        memory_kb: ``MemTotal`` of /proc/meminfo.
    """
    if key in ("net.ipv4.tcp_max_orphans", "net.ipv4.tcp_max_tw_buckets"):
        return abs(hash_entries) // 2 if hash_entries else None
    if key == "net.netfilter.nf_conntrack_max" and memory_kb is not None and memory_kb > _GIB:
        return 262_144 if memory_kb > 4 * _GIB else 65_536
    return None


_BY_KEY = {setting.key: setting for setting in CATALOGUE}
_ALIASES = {"net.nf_conntrack_max": "net.netfilter.nf_conntrack_max"}


@lru_cache(maxsize=4096)
def canonical_key(text: str) -> str:
    """Return a sysctl's name with dots, whatever way it was written.

    ``/proc/sys/net/ipv4/tcp_fin_timeout``, ``net/ipv4/tcp_fin_timeout``, ``net.ipv4.tcp_fin_timeout`` and
    the bare ``tcp_fin_timeout`` of a catalogued setting all give ``net.ipv4.tcp_fin_timeout``. As sysctl(8)
    has it, the first separator decides: in a name with slashes dots stay.
    """
    name = text.strip(" \t\r\n'\"")
    name = name.removeprefix("/proc/sys/").strip("/")
    slash, dot = name.find("/"), name.find(".")
    if slash >= 0 and (dot < 0 or slash < dot):
        name = name.replace(".", "\0").replace("/", ".").replace("\0", "/")
    if name in _ALIASES:
        return _ALIASES[name]
    if name and "." not in name:
        for key in _BY_KEY:
            if key.endswith("." + name):
                return key
        if name.startswith("tcp_"):
            return "net.ipv4." + name
        if name.startswith("nf_conntrack_"):
            return "net.netfilter." + name
    return name


def by_key(key: str) -> Setting | None:
    """Return the catalogued setting of that name (in any spelling of `canonical_key`), or None."""
    return _BY_KEY.get(canonical_key(key))


_BY_LETTERS = {"".join(c for c in key if c.isalnum()): key for key in _BY_KEY}


def by_letters(text: str) -> str | None:
    """Return the catalogued setting that a name without dots stands for: ``netIpv4TcpFinTimeout``, ``net_ipv4_…``."""
    return _BY_LETTERS.get("".join(c for c in text[:120].lower() if c.isalnum()))

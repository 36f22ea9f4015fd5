"""What is known of one sysctl: its scope, its range, what its values mean, and what changing it does for each rule."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from finwait.diagnosis import catalogue, forecast

__all__ = [
    "CT_SYSCTL",
    "INT_MAX",
    "IP_SYSCTL",
    "PODS",
    "SECONDS_MAX",
    "Band",
    "Effect",
    "RuleEffect",
    "Scope",
    "Setting",
    "Verdict",
    "by_direction",
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


class RuleEffect(Struct, frozen=True):
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


class Band(Struct, frozen=True):
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


class Setting(Struct, frozen=True):
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
        if rule not in catalogue.NAMES:
            raise ValueError(f"no rule is named {rule!r}")
        return RuleEffect(rule, Effect.NO_EFFECT, catalogue.rule(rule).beyond_sysctls)

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
        return Band(Verdict.NO_EFFECT, "nothing known about this value affects closing")


def of_namespace(
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


SECONDS_MAX = 8_589_934
"""The largest number of seconds that the jiffies of ``proc_dointvec_jiffies`` hold at HZ=250, as measured."""

INT_MAX = 2_147_483_647

IP_SYSCTL = "Documentation/networking/ip-sysctl.rst"

CT_SYSCTL = "Documentation/networking/nf_conntrack-sysctl.rst"

PODS = (
    "a pod has its own value; set it with securityContext.sysctls, because a change on the node does not "
    "reach it"
)


def fin_wait2_text(timeout_s: int) -> str:
    return forecast.text(forecast.fin_wait2_orphan_s(timeout_s))


def orphan_text(retries: int, rto_max_ms: int = forecast.DEFAULTS.rto_max_ms) -> str:
    limits = forecast.NamespaceLimits(orphan_retries=retries, rto_max_ms=rto_max_ms)
    return forecast.span(forecast.orphan(limits))


def held_text(retries: int) -> str:
    return forecast.span(forecast.retransmission(forecast.NamespaceLimits(retries2=retries)))


def ends(rule: str, why: str) -> RuleEffect:
    return RuleEffect(rule, Effect.ENDS, why)


def bounds_new(rule: str, why: str) -> RuleEffect:
    return RuleEffect(rule, Effect.BOUNDS_NEW, why)


def harms(rule: str, why: str) -> RuleEffect:
    return RuleEffect(rule, Effect.HARMFUL, why)


def by_direction(rule: str, lowered: tuple[Effect, str], raised: tuple[Effect, str]) -> RuleEffect:
    """An effect that depends on whether the value falls or rises."""
    return RuleEffect(rule, *lowered, *raised)


def none_of(rule: str, why: str) -> RuleEffect:
    return RuleEffect(rule, Effect.NO_EFFECT, why)

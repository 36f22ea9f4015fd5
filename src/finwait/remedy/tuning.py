"""From a list of wanted settings to a plan that says of each line whether it helps.

A profile (TOML), a sysctl.conf or ``key=value`` words become a `Profile`; with the values in force and the
number of connections that each diagnosis rule found, `plan` gives a `ProfilePlan`: for each line the change, a
verdict with its reason, and what it would do for the connections that are stuck now. Lines are never
corrected silently: a bad line stays in the plan with the verdict ``harmful``, and applying it takes an
explicit wish.

Nothing here reads or writes a sysctl; `finwait.kernel.sysctl` does.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from finwait.diagnosis import forecast
from finwait.diagnosis.catalogue import NAMES
from finwait.errors import FinwaitError
from finwait.remedy.settings.catalogue import by_key, canonical_key, computed_default
from finwait.remedy.settings.model import Band, Effect, Scope, Setting, Verdict
from finwait.toml.document import TomlDocument, TomlMistake
from finwait.uapi.sysctl import parse_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = [
    "COMMAND_LINE",
    "EXTRA_KEYS",
    "HereEffect",
    "Line",
    "LineState",
    "PlanLine",
    "Profile",
    "ProfileError",
    "ProfilePlan",
    "Remark",
    "TuningFacts",
    "default_of",
    "drop_in",
    "in_force",
    "parse_assignments",
    "parse_profile",
    "parse_sysctl_conf",
    "plan",
    "remarks",
    "settings_of",
    "verdicts",
]

EXTRA_KEYS = ("net.ipv4.tcp_timestamps",)
"""Sysctls outside the catalogue whose present value `plan` uses."""

COMMAND_LINE = "command-line"
"""The name of the profile that was typed as settings."""

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./:@*-]*\Z")
_VALUE = re.compile(r"-?\d{1,19}\Z")


class TuningFacts(Struct, frozen=True):
    """What a machine and a namespace say beside their settings, where verdicts depend on it; None: not known."""

    translates: bool | None = None
    """Whether the namespace translates addresses or filters by connection state, so that tracking matters there."""
    tracked_by: str = ""
    """What was seen of that: ``12 translated entries``, ``no rule that translates``, or why it was not seen."""
    orphans: int | None = None
    """Orphans of the whole machine, FIN_WAIT2 minisockets not among them."""
    aborted: int | None = None
    """TCPAbortOnMemory of the namespace: orphans that were reset at a limit, or for want of memory."""
    hash_entries: int | None = None
    memory_kb: int | None = None


def default_of(setting: Setting, facts: TuningFacts) -> int | None:
    """Return the default of a setting on the machine that ``facts`` are of; None where that cannot be told."""
    if not setting.by_memory:
        return setting.default
    return computed_default(setting.key, hash_entries=facts.hash_entries, memory_kb=facts.memory_kb)


def in_force(setting: Setting, value: int, facts: TuningFacts) -> Band:
    """Return what is to be said of a value that is in force in the namespace that ``facts`` are of."""
    band = setting.band(value, value)
    if not band.tracking or facts.translates:
        return band
    seen = f" ({facts.tracked_by})" if facts.tracked_by else ""
    if facts.translates is None:
        why = f"whether this namespace translates addresses was not seen{seen}; if it does: {band.why}"
        return Band(Verdict.ONLY_WHEN, why, band.ledger, band.instead)
    why = f"nothing here translates addresses or filters by connection state{seen}; where something does: {band.why}"
    return Band(Verdict.NO_EFFECT, why, band.ledger, band.instead)


class ProfileError(FinwaitError):
    """A list of settings that cannot be read: which file and line, and why."""

    def __init__(self, name: str, line: int, reason: str, hint: str = "") -> None:
        self.name = name
        self.line = line
        self.reason = reason
        where = f"{name}:{line}" if line else name
        super().__init__(f"{where}: {reason}")
        self.hint = (
            hint or "one `key = value` per line, as in sysctl.conf, or a TOML profile with [[line]] tables"
        )


class Line(Struct, frozen=True):
    """One wanted setting."""

    key: str
    value: str
    source: str = ""
    why: str = ""
    optional: bool = False
    """sysctl.conf's leading ``-``: no error where the sysctl is missing."""


class Profile(Struct, frozen=True):
    """A list of wanted settings."""

    name: str
    title: str
    about: str
    source: str
    lines: tuple[Line, ...]


class _TomlLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    value: str
    source: str = ""
    why: str = ""


class _TomlProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    title: str
    line: tuple[_TomlLine, ...]
    about: str = ""
    source: str = ""


def parse_profile(name: str, data: bytes) -> Profile:
    """Read a profile in TOML.

    Raises:
        ProfileError: it is not TOML, has not the profile's fields, names a setting twice or with a value that is not a
            whole number.
    """
    try:
        document = TomlDocument(data, name)
        raw = document.typed(_TomlProfile)
    except TomlMistake as mistake:
        where = f" (`{mistake.path}`)" if mistake.path else ""
        raise ProfileError(name, mistake.line, f"{mistake.problem}{where}", mistake.hint) from None
    lines = [
        (
            document.line_of(f"line[{at}].key"),
            Line(canonical_key(x.key), _decimal(x.value), x.source, x.why),
        )
        for at, x in enumerate(raw.line)
    ]
    _check(name, lines)
    return Profile(name.removesuffix(".toml"), raw.title, raw.about, raw.source, tuple(x for _, x in lines))


def parse_sysctl_conf(name: str, text: str) -> Profile:
    """Read a list of settings in the syntax of sysctl.conf(5).

    Raises:
        ProfileError: a line is no comment and no assignment, or a value is not a whole number.
    """
    lines: list[tuple[int, Line]] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        optional = line.startswith("-")
        key, equals, value = line.removeprefix("-").partition("=")
        if not equals:
            raise ProfileError(name, number, f"no `=` in {line[:60]!r}")
        lines.append(
            (number, Line(canonical_key(key), _decimal(value), f"{name}:{number}", optional=optional))
        )
    _check(name, lines)
    return Profile(name, f"settings from {name}", "", name, tuple(line for _, line in lines))


def parse_assignments(words: Sequence[str]) -> Profile:
    """Read ``key=value`` words of a command line.

    Raises:
        ProfileError: a word has no ``=`` or its value is not a whole number.
    """
    lines = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ProfileError("command line", 0, f"no `=` in {word[:60]!r}")
        lines.append((0, Line(canonical_key(key), _decimal(value), "command line")))
    _check("command line", lines)
    return Profile(COMMAND_LINE, "settings from the command line", "", "", tuple(line for _, line in lines))


def _decimal(text: str) -> str:
    """Return a value as the kernel will show it: it takes ``0x10``, and 010 is 8."""
    number = parse_number(text.strip())
    return text.strip() if number is None else str(number)


def _check(name: str, lines: Sequence[tuple[int, Line]]) -> None:
    seen: dict[str, str] = {}
    for number, line in lines:
        if not _KEY.match(line.key) or ".." in line.key:
            raise ProfileError(name, number, f"{line.key[:60]!r} is not the name of a sysctl")
        if parse_number(line.value) is None:
            raise ProfileError(
                name, number, f"the value of {line.key} is not a whole number: {line.value[:60]!r}"
            )
        if seen.get(line.key, line.value) != line.value:
            raise ProfileError(
                name, number, f"{line.key} is set twice: to {seen[line.key]} and to {line.value}"
            )
        seen[line.key] = line.value


class LineState(StrEnum):
    """What applying a line would mean in the namespace looked at."""

    CHANGE = "change"
    SAME = "same"
    """The value is already in force."""
    ABSENT = "absent"
    """This namespace (or kernel) has no such sysctl."""
    REFUSED = "refused"
    """The kernel would not take it: out of range, or read-only here."""
    UNKNOWN = "unknown"
    """finwait has no opinion on this sysctl and does not set it."""


class HereEffect(Struct, frozen=True):
    """What a setting would do for connections that are stuck on this machine now."""

    rule: str
    count: int
    effect: Effect
    why: str


class PlanLine(Struct, frozen=True):
    """One line of a plan."""

    key: str
    wanted: str
    current: str | None
    state: LineState
    verdict: Verdict
    why: str
    ledger: tuple[str, ...]
    instead: str
    source: str
    here: tuple[HereEffect, ...]
    setting: Setting | None


class Remark(Struct, frozen=True):
    """Something that follows from several settings together."""

    verdict: Verdict
    keys: tuple[str, ...]
    text: str
    ledger: tuple[str, ...] = ()


class ProfilePlan(Struct, frozen=True):
    """What applying a profile would change, with a verdict on each line."""

    profile: Profile
    lines: tuple[PlanLine, ...]
    remarks: tuple[Remark, ...]

    @property
    def changes(self) -> dict[str, str]:
        """The sysctls that applying would write, with their new values, in the profile's order."""
        return {line.key: line.wanted for line in self.lines if line.state is LineState.CHANGE}

    @property
    def harmful(self) -> tuple[PlanLine, ...]:
        """The lines that would make something worse."""
        return tuple(
            line for line in self.lines if line.verdict is Verdict.HARMFUL and line.state is LineState.CHANGE
        )

    @property
    def blocked(self) -> tuple[PlanLine, ...]:
        """The lines that cannot be applied here and were not marked optional."""
        optional = {line.key for line in self.profile.lines if line.optional}
        return tuple(
            line
            for line in self.lines
            if line.state in (LineState.ABSENT, LineState.REFUSED, LineState.UNKNOWN)
            and line.key not in optional
        )


def verdicts(
    settings: Iterable[Setting], findings_count_by_rule: Mapping[str, int], step: int = 0
) -> dict[str, tuple[HereEffect, ...]]:
    """Say for each setting what changing it would do for what the diagnosis has found, by rule.

    Args:
        settings: the settings asked about.
        findings_count_by_rule: how many connections each rule found; rules with none are left out of the
            answer, and so are names that are no rules.
        step: the direction of the change, see `Setting.step`; 0 where it is not known.

    Returns:
        By the setting's key, one `HereEffect` for each rule with findings, in the order of the catalogue.
    """
    rule_counts = [
        (rule, findings_count_by_rule[rule]) for rule in NAMES if findings_count_by_rule.get(rule, 0) > 0
    ]
    answer: dict[str, tuple[HereEffect, ...]] = {}
    for setting in settings:
        effects = (setting.effect(rule, step) for rule, _ in rule_counts)
        answer[setting.key] = tuple(
            HereEffect(rule, count, effect.effect, effect.why)
            for (rule, count), effect in zip(rule_counts, effects, strict=True)
        )
    return answer


def plan(
    profile: Profile,
    current: Mapping[str, str],
    *,
    initial_netns: bool,
    counts: Mapping[str, int],
    read_only: frozenset[str] = frozenset(),
    facts: TuningFacts | None = None,
) -> ProfilePlan:
    """Compare what is wanted with what is in force and judge every line.

    Args:
        profile: what is wanted.
        current: the values in force, by key; a key that is missing has no sysctl in this namespace.
        initial_netns: whether the namespace is the machine's first one.
        counts: how many connections each diagnosis rule found here, for the verdict on what is stuck now.
        read_only: keys whose file cannot be written in this namespace.
        facts: what the namespace says beside its settings; None for nothing.
    """
    known_facts = facts or TuningFacts(translates=True)
    lines = tuple(
        _judge(line, current, initial_netns, counts, read_only, known_facts) for line in profile.lines
    )
    future = dict(current) | {line.key: line.wanted for line in lines if line.state is LineState.CHANGE}
    touched = frozenset(line.key for line in profile.lines)
    return ProfilePlan(profile, lines, tuple(r for r in remarks(future) if touched.intersection(r.keys)))


def _judge(
    line: Line,
    current: Mapping[str, str],
    initial_netns: bool,
    counts: Mapping[str, int],
    read_only: frozenset[str],
    facts: TuningFacts,
) -> PlanLine:
    setting = by_key(line.key)
    now = current.get(line.key)
    if setting is None:
        return PlanLine(
            line.key, line.value, now, LineState.UNKNOWN, Verdict.NO_EFFECT,
            "this setting does not affect closing, so finwait has no opinion on it and does not set it",
            (), "", line.source, (), None,
        )  # fmt: skip
    value = int(line.value)
    present = int(now) if now is not None and _VALUE.match(now) else None
    band = setting.band(value, present)
    if band.tracking and (present == value or band.verdict is not Verdict.HARMFUL):
        band = in_force(
            setting, value, facts
        )  # what would harm is told as that, whether or not it would today
    verdict, why, ledger, instead = band.verdict, band.why, band.ledger, band.instead
    if band.tracking and facts.translates is False:
        why += "; nothing here translates addresses or filters by connection state now"
    if present is not None and present != value:
        before = in_force(setting, present, facts)
        if before.verdict is Verdict.HARMFUL and verdict in (Verdict.NO_EFFECT, Verdict.HELPS):
            verdict, ledger = Verdict.HELPS, before.ledger
            why = f"replaces a harmful value: {before.why}"
    step = setting.step(present, value)
    effects = verdicts((setting,), counts, step)[setting.key] if present != value else ()
    state = LineState.SAME if present == value else LineState.CHANGE
    if not setting.low <= value <= setting.high:
        state, verdict, instead = LineState.REFUSED, Verdict.NO_EFFECT, f"{setting.low} to {setting.high}"
        why = f"the kernel refuses it; it accepts {setting.low} to {setting.high} {setting.unit}"
    elif now is None:
        state = LineState.ABSENT
        why = f"{_why_absent(setting, initial_netns)}; where it can be set: {why}"
    elif state is LineState.CHANGE and line.key in read_only:
        state = LineState.REFUSED
        why = (
            f"read-only here; {why}"
            if setting.scope is Scope.NETNS
            else f"it applies to the whole machine and can only be written in the initial namespace; there: {why}"
        )
    elif state is LineState.SAME and verdict is not Verdict.HARMFUL:
        why = f"already in force; {why}"
    return PlanLine(
        line.key, line.value, now, state, verdict, why, ledger, instead, line.source, effects, setting
    )


def _why_absent(setting: Setting, initial_netns: bool) -> str:
    if setting.scope is Scope.INIT_ONLY and not initial_netns:
        return "this sysctl applies to the whole machine and does not exist in this namespace"
    if "netfilter" in setting.key:
        return "this namespace has no conntrack (the module is not loaded, or is hidden here)"
    if setting.since:
        return f"this kernel has no such sysctl ({setting.since})"
    return "this namespace has no such sysctl"


def _number(values: Mapping[str, str], key: str) -> int | None:
    text = values.get(key, "")
    return int(text) if _VALUE.match(text) else None


_MOST_ENTRIES_A_CHAIN = 8
"""Above this, a lookup in the conntrack table is no longer about constant; the kernel's default is 1."""


def remarks(values: Mapping[str, str]) -> tuple[Remark, ...]:
    """Return what follows from several settings together, for the values in force after a change."""
    judges = (_of_the_table, _of_keepalive, _of_half_closed_flows, _of_reuse, _of_orphans)
    return tuple(remark for judge in judges for remark in judge(values))


def _of_the_table(values: Mapping[str, str]) -> Iterator[Remark]:
    """Yield what conntrack's table is too large for."""
    entries = _number(values, "net.netfilter.nf_conntrack_max")
    buckets = _number(values, "net.netfilter.nf_conntrack_buckets")
    if entries and buckets and entries > _MOST_ENTRIES_A_CHAIN * buckets:
        yield Remark(
            Verdict.HARMFUL,
            ("net.netfilter.nf_conntrack_max", "net.netfilter.nf_conntrack_buckets"),
            f"{entries} entries on {buckets} chains make {entries // buckets} per chain when the table is "
            "full; every packet searches one",
            ("S36",),
        )


def _of_keepalive(values: Mapping[str, str]) -> Iterator[Remark]:
    """Yield when a dead peer is found."""
    idle = _number(values, "net.ipv4.tcp_keepalive_time")
    interval = _number(values, "net.ipv4.tcp_keepalive_intvl")
    probes = _number(values, "net.ipv4.tcp_keepalive_probes")
    if idle is not None and interval is not None and probes is not None:
        detected_s = forecast.keepalive(idle, interval, probes).seconds
        yield Remark(
            Verdict.ONLY_WHEN,
            (
                "net.ipv4.tcp_keepalive_time",
                "net.ipv4.tcp_keepalive_intvl",
                "net.ipv4.tcp_keepalive_probes",
            ),
            f"a dead peer is found after {idle} + {probes} * {interval} = {detected_s:.0f} s, on sockets with "
            "SO_KEEPALIVE, without times of their own, and without TCP_USER_TIMEOUT, which replaces the count",
            ("S19",),
        )


def _of_half_closed_flows(values: Mapping[str, str]) -> Iterator[Remark]:
    """Yield whether keepalive comes in time for a translation."""
    idle = _number(values, "net.ipv4.tcp_keepalive_time")
    half_closed = _number(values, "net.netfilter.nf_conntrack_tcp_timeout_close_wait")
    if idle is not None and half_closed is not None and 0 < half_closed <= idle:
        yield Remark(
            Verdict.HARMFUL if half_closed < 60 else Verdict.ONLY_WHEN,
            ("net.netfilter.nf_conntrack_tcp_timeout_close_wait",),
            f"keepalive starts after {idle} s, but the translation of a half-closed flow is gone after "
            f"{half_closed} s, so keepalive cannot preserve it",
            ("S31", "X33"),
        )


def _of_reuse(values: Mapping[str, str]) -> Iterator[Remark]:
    """Yield what tcp_tw_reuse lacks."""
    if _number(values, "net.ipv4.tcp_tw_reuse") == 1 and _number(values, "net.ipv4.tcp_timestamps") == 0:
        yield Remark(
            Verdict.NO_EFFECT,
            ("net.ipv4.tcp_tw_reuse",),
            "tcp_timestamps is 0; without timestamps tcp_tw_reuse has no effect",
            ("X41",),
        )


def _of_orphans(values: Mapping[str, str]) -> Iterator[Remark]:
    """Yield what becomes of orphans that are not to retry."""
    rto_max = _number(values, "net.ipv4.tcp_rto_max_ms")
    if rto_max is not None and rto_max < 5000 and _number(values, "net.ipv4.tcp_orphan_retries") == 0:
        lives = forecast.span(forecast.orphan(forecast.NamespaceLimits(rto_max_ms=max(rto_max, 1))))
        yield Remark(
            Verdict.HARMFUL,
            ("net.ipv4.tcp_rto_max_ms", "net.ipv4.tcp_orphan_retries"),
            "with a tcp_rto_max_ms this small, tcp_orphan_retries=0 really means 0: orphans lose the end "
            f"of their data after about {lives}",
            ("S21",),
        )


def settings_of(text: str) -> dict[str, str]:
    """Return the settings of a sysctl.d file as `drop_in` writes it; lines of any other form are left out."""
    settings = {}
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition("="))
        if _KEY.match(key) and _VALUE.match(value):
            settings[key] = value
    return settings


def drop_in(values: Mapping[str, str], reason: str) -> str:
    """Return the text of a sysctl.d file that sets these values at boot.

    Raises:
        ValueError: the reason or a value has a line break in it, or a key is not a sysctl's name.
    """
    if "\n" in reason or "\r" in reason:
        raise ValueError("the reason must fit on one line")
    out = [f"# {reason}", "# Applies only to the initial network namespace: pods keep their own values."]
    for key, value in values.items():
        if not _KEY.match(key) or not _VALUE.match(value):
            raise ValueError(f"not a setting: {key!r} = {value!r}")
        out.append(f"{key} = {value}")
    return "\n".join(out) + "\n"

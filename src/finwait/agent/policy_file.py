"""The policy file: TOML → a `Policy`, or the mistake in it and its line. Pure.

What may be written is declared once, in the structs below: the reader, the JSON Schema and the reference page are made
of them. Unknown keys are refused, so that a misspelt limit never means "no limit".

What a policy cannot say: ESTABLISHED connections, listeners, and guards to overrule. There is no key for them.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from finwait.diagnosis import catalogue
from finwait.diagnosis.rule import Means
from finwait.errors import FilterError, UsageError
from finwait.table.filter import Filter, parse
from finwait.table.units import parse_duration_ms
from finwait.toml.declared import declared_keys
from finwait.toml.declared import json_schema as declared_schema
from finwait.toml.document import TomlDocument, TomlMistake

__all__ = [
    "FILE_MOST",
    "ActBudget",
    "Policy",
    "PolicyError",
    "PolicyMode",
    "PolicyRule",
    "TimeWindow",
    "json_schema",
    "keys",
    "parse_policy",
]

FILE_MOST: Final = 256 << 10
"""Bytes of a policy file."""
_GENTLEST_FIRST: Final[tuple[Means, ...]] = ("fin", "keepalive", "user-timeout", "reset", "destroy")
_AGE_LEAST: Final = "10m"
_COOL_DOWN_LEAST: Final = "1m"
_LONGEST: Final = "366d"

PolicyMode = Literal["observe", "dry-run", "act"]

_Name = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
        extra={"expects": "it must be 1 to 63 lower case letters, digits and `-`, and not begin with `-`"},
    ),
]
_Most = Annotated[int, Meta(ge=0, le=5000)]
_AtOnce = Annotated[int, Meta(ge=0, le=500)]


class BudgetTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many connections may be acted on. Of `[budget]` and `[rule.budget]` the stricter number wins."""

    look: Annotated[
        _AtOnce | None,
        Meta(description="Connections in one look. Default: 10; of a rule: that of `[budget]`."),
    ] = None
    ten_minutes: Annotated[
        _Most | None,
        Meta(description="Connections in ten minutes. Default: 20; of a rule: that of `[budget]`."),
    ] = None
    day: Annotated[
        _Most | None,
        Meta(description="Connections in 24 hours. Default: 100; of a rule: that of `[budget]`."),
    ] = None
    process: Annotated[
        _Most | None,
        Meta(
            description="Connections of one process in 24 hours. Default: 20; of a rule: that of `[budget]`."
        ),
    ] = None
    workload: Annotated[
        _Most | None,
        Meta(
            description="Connections of one workload (Deployment or the like, pod, systemd unit, container, program) "
            "in 24 hours. Default: 50; of a rule: that of `[budget]`."
        ),
    ] = None


class StopTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a rule stops although its budget is not used up."""

    opening_factor: Annotated[
        float,
        Meta(
            ge=1.1,
            le=100,
            description="Stop for 24 hours where, after an act, connections with this cause open more than this many "
            "times as fast as before it: then the cure feeds the leak.",
        ),
    ] = 2.0


class RuleTable(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    rename={"with_": "with", "except_": "except"},
):
    """Which connections are ended, how, and how many."""

    name: Annotated[
        _Name,
        Meta(
            description="What the journal and the metrics call it: 1 to 63 lower case letters, digits and `-`; no `-` "
            "first."
        ),
    ]
    findings: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            description="Causes, by the names of `finwait rules`. Only findings that are certain count.",
        ),
    ]
    where: Annotated[
        str, Meta(description="A FILTER: only connections that it selects. Empty: all of these causes.")
    ] = ""
    except_: Annotated[
        str,
        Meta(
            description="A FILTER: leave alone what it selects at either end on this machine, and what it may select "
            "for all that is known."
        ),
    ] = ""
    with_: Annotated[
        tuple[Means, ...],
        Meta(
            min_length=1,
            description="Means that are allowed, the gentlest first: `fin`, `keepalive`, `user-timeout`, `reset`, "
            "`destroy`. The next one is used in a later look, if the one before did not end the connection.",
        ),
    ] = ("fin", "keepalive")
    min_age: Annotated[
        str,
        Meta(
            description="Only connections that have been in their state for this long for sure, 10 minutes or more.",
            extra_json_schema={"pattern": "^[0-9.]+(ms|s|m|h|d)?$"},
        ),
    ] = "1h"
    looks: Annotated[
        int,
        Meta(
            ge=3, le=1000, description="Diagnoses in a row that must have given the same verdict, 3 or more."
        ),
    ] = 3
    share: Annotated[
        float,
        Meta(
            gt=0,
            le=0.5,
            description="At most this part of the connections that a process holds, in one look.",
        ),
    ] = 0.5
    cool_down: Annotated[
        str,
        Meta(
            description="Time between two looks in which the rule acts, 1 minute or more. A result that was not "
            "expected starts it anew.",
            extra_json_schema={"pattern": "^[0-9.]+(ms|s|m|h|d)?$"},
        ),
    ] = "10m"
    windows: Annotated[
        tuple[str, ...],
        Meta(
            description='Times in UTC at which it may act, such as `"02:00-05:00"` or `"fri-sun 22:00-06:00"`. '
            "Outside of them the budget is 0. None: always."
        ),
    ] = ()
    stop_if: Annotated[StopTable, Meta(description="When it stops by itself.")] = StopTable()
    budget: Annotated[BudgetTable, Meta(description="Its own budget.")] = BudgetTable()


class PolicyTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"except_": "except"}):
    """What the agent may do by itself."""

    name: Annotated[
        _Name,
        Meta(
            description="The journal says `policy NAME` of each of its acts. 1 to 63 lower case letters, digits "
            "and `-`; no `-` first."
        ),
    ] = "default"
    mode: Annotated[
        PolicyMode,
        Meta(
            description="`observe`: say how many connections the rules are about. `dry-run`: plan, and record what "
            "would be done. `act`: do it."
        ),
    ] = "observe"
    except_: Annotated[str, Meta(description="A FILTER that no rule touches; as `except` of a rule.")] = ""
    budget: Annotated[BudgetTable, Meta(description="Of all rules together.")] = BudgetTable()
    rule: Annotated[
        tuple[RuleTable, ...],
        Meta(
            max_length=100,
            description="The rules. Of several that are about a connection the first one has it.",
        ),
    ] = ()


class PolicyError(UsageError):
    """A policy file is wrong; the message names file, line and key."""


class ActBudget(Struct, frozen=True):
    """How many connections; each is a limit."""

    look: int
    ten_minutes: int
    day: int
    process: int
    workload: int


class TimeWindow(Struct, frozen=True):
    """A span of the day, in UTC, that begins on some days of the week; it may go on past midnight."""

    days: frozenset[int]
    """0 is Monday."""
    start: int
    """Minute of the day, included."""
    end: int
    """Minute of the day, not included; at or before `start`: of the next day."""

    def has(self, wall_ns: int) -> bool:
        """Return whether a time (nanoseconds since 1970) is in it."""
        minutes = wall_ns // 60_000_000_000
        day, minute = divmod(minutes, 1440)
        weekday = (day + 3) % 7  # 1970 began on a Thursday
        if self.start < self.end:
            return weekday in self.days and self.start <= minute < self.end
        return (weekday in self.days and minute >= self.start) or (
            (weekday - 1) % 7 in self.days and minute < self.end
        )


class PolicyRule(Struct, frozen=True):
    """One rule, checked."""

    name: str
    findings: frozenset[str]
    where: Filter | None
    spared: tuple[Filter, ...]
    """FILTERs of which each must be known to be true: what is excepted, turned round."""
    means: tuple[Means, ...]
    """Gentlest first."""
    min_age_s: float
    looks: int
    share: float
    cool_down_s: float
    windows: tuple[TimeWindow, ...]
    opening_factor: float
    budget: ActBudget

    @property
    def where_filters(self) -> tuple[Filter, ...]:
        """The FILTER that the chosen end must pass, if there is one."""
        return (self.where,) if self.where is not None else ()

    @property
    def filters(self) -> tuple[Filter, ...]:
        """All FILTERs that a connection must pass."""
        return (*self.where_filters, *self.spared)

    def open_at(self, wall_ns: int) -> bool:
        """Return whether it may act at a time; without windows always."""
        return not self.windows or any(window.has(wall_ns) for window in self.windows)


class Policy(Struct, frozen=True):
    """A policy, checked."""

    name: str
    mode: PolicyMode
    budget: ActBudget
    rules: tuple[PolicyRule, ...]


_DEFAULTS: Final = ActBudget(look=10, ten_minutes=20, day=100, process=20, workload=50)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────


class _Misplaced(ValueError):
    """A mistake, and the path to it."""

    def __init__(self, path: str, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.path = path
        self.hint = hint


def parse_policy(data: bytes, name: str) -> Policy:
    """Return the policy that a file describes.

    Args:
        data: what the file holds.
        name: what errors call it.

    Raises:
        PolicyError: it is no TOML, or says something that cannot be; with the line or the key.
    """
    try:
        document = TomlDocument(data, name)
        table = document.typed(PolicyTable)
        try:
            return _checked(table)
        except _Misplaced as error:
            raise document.mistake(error.path, str(error), error.hint) from None
    except TomlMistake as mistake:
        hint = mistake.hint or "docs/reference/policy.md lists each key"
        raise PolicyError(str(mistake), hint=hint) from None


def _checked(table: PolicyTable) -> Policy:
    """Return a policy whose types are right.

    Raises:
        _Misplaced: something else is not.
    """
    names = [rule.name for rule in table.rule]
    for path, name in (("name", table.name), *((f"rule[{k}].name", name) for k, name in enumerate(names))):
        if "\n" in name:  # `$` lets one pass
            raise _Misplaced(path, "a name is one line")
    for k, name in enumerate(names):
        if name in names[:k]:
            raise _Misplaced(f"rule[{k}].name", f"two rules are called `{name}`")
    budget = _budget(table.budget, _DEFAULTS)
    spared = _spared(table.except_, "except")
    rules = tuple(_rule(rule, f"rule[{k}]", budget, spared) for k, rule in enumerate(table.rule))
    return Policy(table.name, table.mode, budget, rules)


def _budget(table: BudgetTable, otherwise: ActBudget) -> ActBudget:
    numbers = {name: getattr(table, name) for name in table.__struct_fields__}
    return ActBudget(**{name: getattr(otherwise, name) if n is None else n for name, n in numbers.items()})


def _rule(table: RuleTable, path: str, above: ActBudget, spared: tuple[Filter, ...]) -> PolicyRule:
    for k, name in enumerate(table.findings):
        _check_finding(name, f"{path}.findings[{k}]")
    for key, number in (("share", table.share), ("stop_if.opening_factor", table.stop_if.opening_factor)):
        if not math.isfinite(number):
            raise _Misplaced(f"{path}.{key}", f"`{number}` is not a number")
    order = [_GENTLEST_FIRST.index(means) for means in table.with_]
    if order != sorted(set(order)):
        right = ", ".join(f'"{_GENTLEST_FIRST[k]}"' for k in sorted(set(order)))
        raise _Misplaced(f"{path}.with", "the gentlest means comes first, and each once", f"write [{right}]")
    return PolicyRule(
        name=table.name,
        findings=frozenset(table.findings),
        where=_filter(table.where, f"{path}.where"),
        spared=(*spared, *_spared(table.except_, f"{path}.except")),
        means=table.with_,
        min_age_s=_duration_s(table.min_age, f"{path}.min_age", _AGE_LEAST),
        looks=table.looks,
        share=table.share,
        cool_down_s=_duration_s(table.cool_down, f"{path}.cool_down", _COOL_DOWN_LEAST),
        windows=tuple(_window(text, f"{path}.windows[{k}]") for k, text in enumerate(table.windows)),
        opening_factor=table.stop_if.opening_factor,
        budget=_budget(table.budget, above),
    )


def _check_finding(name: str, path: str) -> None:
    if name not in catalogue.NAMES:
        near = difflib.get_close_matches(name, catalogue.NAMES, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else "`finwait rules` lists them"
        raise _Misplaced(path, f"there is no rule `{name}` of the diagnosis", hint)
    rule = catalogue.rule(name)
    if rule.means is None or rule.severity == "healthy":
        raise _Misplaced(
            path, f"finwait never ends connections because of `{name}`", f"`finwait explain {name}` says why"
        )


def _filter(text: str, path: str) -> Filter | None:
    if not text:
        return None
    try:
        return parse(text, rules=catalogue.NAMES, variants=catalogue.variants)
    except FilterError as error:
        raise _Misplaced(path, str(error), error.hint) from None


def _spared(text: str, path: str) -> tuple[Filter, ...]:
    """Return what must be true of a connection that a FILTER does not except."""
    if _filter(text, path) is None:
        return ()
    return (parse(f"not ( {text} )", rules=catalogue.NAMES, variants=catalogue.variants),)


def _duration_s(text: str, path: str, least: str) -> float:
    try:
        ms = parse_duration_ms(text)
    except ValueError as error:
        raise _Misplaced(path, str(error)) from None
    if ms < parse_duration_ms(least):
        raise _Misplaced(path, f"`{text}` is less than {least}", f"write {least} or more")
    if ms > parse_duration_ms(_LONGEST):
        raise _Misplaced(path, f"`{text}` is longer than a year")
    return ms / 1000


_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW: Final = re.compile(
    rf"(?:({'|'.join(_DAYS)})(?:-({'|'.join(_DAYS)}))? )?([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)",
    re.ASCII,
)


def _window(text: str, path: str) -> TimeWindow:
    match = _WINDOW.fullmatch(text)
    hint = 'write "02:00-05:00", "sat 00:00-24:00" or "fri-sun 22:00-06:00", in UTC'
    if match is None:
        raise _Misplaced(path, f"`{text[:60]}` is not a time window", hint)
    first, last, *numbers = match.groups()
    hour, minute, end_hour, end_minute = map(int, numbers)
    start, end = 60 * hour + minute, 60 * end_hour + end_minute
    if end > 1440:
        raise _Misplaced(path, f"`{text[:60]}` ends after 24:00", hint)
    if start == end:
        raise _Misplaced(path, f"`{text[:60]}` has no length", 'a whole day is "00:00-24:00"')
    if first is None:
        days = frozenset(range(7))
    else:
        begin = _DAYS.index(first)
        span = (_DAYS.index(last or first) - begin) % 7
        days = frozenset((begin + k) % 7 for k in range(span + 1))
    return TimeWindow(days, start, end)


# ── what the declarations tell ───────────────────────────────────────────────────────────────────────────


def keys() -> Iterator[tuple[str, str, Any, str]]:
    """Yield each key: path, type in words, default (`msgspec.NODEFAULT` where it must be given), description."""
    for key in declared_keys(PolicyTable):
        yield key.path, key.words, key.default, key.description


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the file."""
    return declared_schema(PolicyTable, "finwait policy")

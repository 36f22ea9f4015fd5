"""What an audit says: one `AuditFinding` for each piece of advice, and the `Judge` that writes them.

Parsers recognise, the `Judge` decides: a parser calls it with what stands in the file and where, and the
judge takes verdict, reason, source and what to do instead from the catalogue of settings and from the ledger.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from finwait.remedy.settings import Scope, Verdict, by_key, canonical_key
from finwait.remedy.tuning import remarks

if TYPE_CHECKING:
    from finwait.remedy.knowledge import Knowledge

__all__ = ["SEVERITY", "AuditFinding", "AuditReport", "Judge", "Problem"]

SEVERITY: tuple[str, ...] = ("harmful", "false", "no-effect", "conditional", "misread", "true")
"""The verdicts of findings, the gravest first."""

_OF_SETTING = {
    Verdict.HELPS: "true",
    Verdict.ONLY_WHEN: "conditional",
    Verdict.NO_EFFECT: "no-effect",
    Verdict.HARMFUL: "harmful",
}
_WHOLE = re.compile(r"-?\d{1,19}\Z")
_SNIPPET = 160


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """One piece of advice, where it stands, and what is to be said of it."""

    file: str
    line: int
    rule: str
    """A ledger id (``S31``) where the claim has one, else the name of the advice."""
    claim: str
    """What the file says, in a few words."""
    verdict: str
    reason: str
    source: str
    instead: str
    ledger: tuple[str, ...]
    text: str
    """The place itself, shortened."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """A place in a file that could not be understood."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What was found in one file."""

    file: str
    kind: str
    """How it was read: ``sysctl``, ``shell``, ``markdown``, ``yaml``, ``haproxy``, ``nginx`` or ``code``."""
    lines: int
    findings: tuple[AuditFinding, ...]
    problems: tuple[Problem, ...]


@dataclass(slots=True)
class Judge:
    """Collects findings for one file."""

    file: str
    knowledge: Knowledge
    findings: list[AuditFinding] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    _seen: set[tuple[int, str, str]] = field(default_factory=set)
    _values: dict[str, tuple[int, str]] = field(default_factory=dict)

    def problem(self, line: int, reason: str) -> None:
        """Note that a place could not be understood; ``line`` counts from 1."""
        self.problems.append(Problem(self.file, max(line, 1), reason))

    def _add(  # noqa: PLR0913, PLR0917, RUF100 - one row of the report
        self,
        line: int,
        claim: str,
        verdict: str,
        reason: str,
        ledger: tuple[str, ...],
        *,
        source: str = "",
        instead: str = "",
        rule: str = "",
        text: str = "",
    ) -> None:
        cited = self.knowledge.cited(ledger)
        name = ledger[0] if ledger else rule
        key = (line, name, claim)
        if key in self._seen:
            return
        self._seen.add(key)
        self.findings.append(
            AuditFinding(
                self.file,
                max(line, 1),
                name,
                claim,
                verdict,
                reason or (cited[0].reason if cited else ""),
                source or "; ".join(dict.fromkeys(c.source for c in cited)),
                instead or (cited[0].instead if cited else ""),
                ledger,
                " ".join(text.split())[:_SNIPPET],
            )
        )

    def advice(self, line: int, name: str, text: str, *, detail: str = "", instead: str = "") -> None:
        """Report the advice ``name`` of the knowledge base; ``detail`` is put before its reason."""
        item = self.knowledge.advice[name]
        reason = item.reason or (self.knowledge.claims[item.claims[0]].reason if item.claims else "")
        self._add(
            line,
            item.title,
            item.verdict,
            f"{detail}{reason}",
            item.claims,
            source=item.source,
            instead=instead or item.instead,
            rule=name,
            text=text,
        )

    def sysctl(self, line: int, key: str, value: str | None, text: str, *, pod: bool = False) -> None:
        """Judge one sysctl that a file names; ``value`` is None where it is only read or not a literal."""
        name = canonical_key(key)
        if name in self.knowledge.names.gone:
            fate = self.knowledge.names.gone[name]
            self._named(line, "removed-sysctl", name, value, text, f"{fate[0].upper()}{fate[1:]}. ")
            return
        if not self._exists(name):
            self._unknown(line, name, value, text)
            return
        setting = by_key(name)
        if setting is None or value is None:
            return
        if pod and setting.scope is not Scope.NETNS:
            self.advice(line, "pod-global-sysctl", text, detail=f"{name}: ")
            return
        if not _WHOLE.match(value):
            return
        number = int(value)
        if not setting.low <= number <= setting.high:
            allowed = f"{setting.low} to {setting.high} {setting.unit}"
            self._named(line, "sysctl-out-of-range", name, value, text, f"It takes {allowed}. ")
            return
        band = setting.band(number)
        reason = band.why
        if pod and name not in self.knowledge.names.pod_safe:
            reason += "; and a pod may set it only with the kubelet's --allowed-unsafe-sysctls"
        cited = self.knowledge.cited(band.ledger)
        self._add(
            line,
            f"{name} = {number}",
            _OF_SETTING[band.verdict],
            reason[0].upper() + reason[1:],
            band.ledger,
            source="; ".join(dict.fromkeys([setting.source, *(c.source for c in cited)])),
            instead=band.instead,
            rule=name,
            text=text,
        )
        if not pod:
            self._together(line, name, value, text)

    def _together(self, line: int, name: str, value: str, text: str) -> None:
        self._values[name] = (line, value)
        for remark in remarks({key: known for key, (_, known) in self._values.items()}):
            if remark.verdict is Verdict.HARMFUL and name in remark.keys and len(remark.keys) > 1:
                told = ", ".join(f"{k.rpartition('.')[2]} = {self._values[k][1]}" for k in remark.keys)
                self._add(
                    line, told, "harmful", remark.text[0].upper() + remark.text[1:], remark.ledger, text=text
                )

    def _exists(self, name: str) -> bool:
        head, _, last = name.rpartition(".")
        if last.startswith(("tcp_", "nf_conntrack", "ip_conntrack")) and last not in (
            "tcp_",
            "nf_conntrack_",
        ):
            return name in self.knowledge.names.sysctls or head.endswith(".conf") or "*" in last
        return True

    def _named(self, line: int, advice: str, name: str, value: str | None, text: str, detail: str) -> None:
        item = self.knowledge.advice[advice]
        claim = f"{name} = {value}" if value is not None else name
        self._add(
            line, claim, item.verdict, f"{detail}{item.reason}", item.claims,
            source=item.source, instead=item.instead, rule=advice, text=text,
        )  # fmt: skip

    def _unknown(self, line: int, name: str, value: str | None, text: str) -> None:
        item = self.knowledge.advice["unknown-sysctl"]
        close = suggest(name, self.knowledge.names.sysctls)
        detail, ledger = "", ()
        if "close_wait" in name and "conntrack" not in name:
            detail = f"{self.knowledge.claims['X17'].reason} "
        elif "time_wait" in name or "timewait" in name:
            detail = f"{self.knowledge.claims['X03'].reason} "
        elif "fin_wait" in name and "conntrack" not in name:
            detail = "The kernel's timeout is tcp_fin_timeout, and it is for orphans only. "
        claim = f"{name} = {value}" if value is not None else name
        self._add(
            line, claim, item.verdict, f"{detail}{item.reason}", ledger, source=item.source,
            instead=f"Near it are {', '.join(close)}." if close else "", rule=item.id, text=text,
        )  # fmt: skip


def suggest(name: str, known: frozenset[str]) -> list[str]:
    """Return up to three existing names that are near ``name``, the nearest first."""
    last = name.rpartition(".")[2]
    by_last = {full.rpartition(".")[2]: full for full in known}
    return [by_last[x] for x in difflib.get_close_matches(last[:80], sorted(by_last), n=3, cutoff=0.6)]

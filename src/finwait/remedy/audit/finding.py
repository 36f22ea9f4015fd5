"""What an audit says: one `AuditFinding` for each piece of advice, and the `Judge` that writes them.

Parsers recognise, the `Judge` decides: a parser calls it with what stands in the file and where, and the
judge takes verdict, reason, source and what to do instead from the catalogue of settings and from the ledger.
"""

from __future__ import annotations

import difflib
import re
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING

from msgspec import Struct, field

from finwait.remedy.audit.template import UNKNOWN
from finwait.remedy.settings.catalogue import CATALOGUE, by_key, canonical_key
from finwait.remedy.settings.model import Scope, Verdict
from finwait.remedy.tuning import remarks
from finwait.uapi.sysctl import parse_number

if TYPE_CHECKING:
    from finwait.remedy.knowledge import Knowledge

__all__ = ["SEVERITY", "AuditFinding", "AuditReport", "Judge", "Problem", "Unjudged", "Within"]

SEVERITY: tuple[str, ...] = ("harmful", "false", "no-effect", "conditional", "misread", "true")
"""The verdicts of findings, the gravest first."""

_OF_SETTING = {
    Verdict.HELPS: "true",
    Verdict.ONLY_WHEN: "conditional",
    Verdict.NO_EFFECT: "no-effect",
    Verdict.HARMFUL: "harmful",
}
_REFUSED = re.compile(r"-?0[0-9]*[89][0-9]*\Z")
"""Octal by its first digit, and no octal number."""
_SNIPPET = 160
_MOST_FINDINGS = 10_000
"""Of a file; nobody reads more, and a file of a million lines must not cost a gigabyte."""
_MOST_SUGGESTIONS = 200
"""Names of a file that near ones are looked for, a millisecond each."""
_MOST_OPINIONS = 4096
_SPOKEN_OF = ("tcp_", "nf_conntrack", "ip_conntrack")
"""How names begin that are said not to exist where they do not."""
_LAST = frozenset(setting.key.rpartition(".")[2] for setting in CATALOGUE)
_BOOLEAN = {"true": "1", "yes": "1", "on": "1", "false": "0", "no": "0", "off": "0"}


class Within(StrEnum):
    """What a setting is for."""

    MACHINE = "machine"
    """Whoever runs it, mostly for the whole machine."""
    POD = "pod"
    CONTAINER = "container"
    """A container with a network namespace of its own, as Docker, Podman and Nomad start it."""
    HOST_POD = "pod with the host's network"
    HOST_CONTAINER = "container with the host's network"


_NOT_THERE = {Within.POD: "pod-global-sysctl", Within.CONTAINER: "container-global-sysctl"}
_NO_NETWORK_OF_ITS_OWN = {
    Within.HOST_POD: "pod-host-network-sysctl",
    Within.HOST_CONTAINER: "container-host-network-sysctl",
}


class AuditFinding(Struct, frozen=True):
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


class Problem(Struct, frozen=True, order=True):
    """A place in a file that could not be understood."""

    file: str
    line: int
    reason: str
    cause: str = ""
    """What kept the whole file from being read, without saying that it was not."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


class Unjudged(Struct, frozen=True, order=True):
    """A setting that was recognised, and whose value the file does not say."""

    file: str
    line: int
    claim: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.claim}: {self.reason}"


class AuditReport(Struct, frozen=True):
    """What was found in one file."""

    file: str
    kind: str
    """How it was read, one of `finwait.remedy.audit.KINDS`; empty where it was not."""
    lines: int
    findings: tuple[AuditFinding, ...]
    problems: tuple[Problem, ...]
    statements: int = 0
    """In how many places something was recognised, whether or not there is anything to say of it."""
    unjudged: tuple[Unjudged, ...] = ()
    mentions: tuple[int, ...] = ()
    """Lines that name a setting without saying anything of it that was recognised."""

    @property
    def status(self) -> str:
        """``recognised``, ``nothing`` (read, and nothing recognised) or ``not-read``."""
        if self.statements:
            return "recognised"
        return "not-read" if self.problems else "nothing"


class _Opinion(Struct, frozen=True):
    """What is to be said of a piece of advice, wherever it stands."""

    rule: str
    claim: str
    verdict: str
    reason: str
    source: str
    instead: str
    ledger: tuple[str, ...]
    judged: tuple[str, str] | None = None
    """The sysctl and its value, where a catalogued setting was judged."""


class Judge(Struct):
    """Collects findings for one file."""

    file: str
    knowledge: Knowledge
    findings: list[AuditFinding] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unjudged: list[Unjudged] = field(default_factory=list)
    statements: set[tuple[int, str]] = field(default_factory=set)
    """Line and subject of what was recognised."""
    _seen: set[tuple[int, str, str]] = field(default_factory=set)
    _values: dict[str, str] = field(default_factory=dict)
    _cut: bool = False
    _suggestions: int = 0
    _opinions: dict[tuple[str, str | None, Within], _Opinion | None] = field(default_factory=dict)

    def problem(self, line: int, reason: str) -> None:
        """Note that a place could not be understood; ``line`` counts from 1."""
        self.problems.append(Problem(self.file, max(line, 1), reason))

    def recognise(self, line: int, subject: str) -> None:
        """Note that something was understood, of which there may be nothing to say."""
        self.statements.add((max(line, 1), subject[:80]))

    def not_known(self, line: int, claim: str, reason: str, *, subject: str = "") -> None:
        """Note a setting, the subject, whose value the file does not say."""
        self.recognise(line, subject or claim)
        entry = Unjudged(self.file, max(line, 1), " ".join(claim.split())[:_SNIPPET], reason)
        if entry not in self.unjudged[-20:]:
            self.unjudged.append(entry)

    @property
    def _full(self) -> bool:
        return len(self.findings) >= _MOST_FINDINGS

    def _say(self, line: int, opinion: _Opinion, text: str) -> None:
        if self._full:
            if not self._cut:
                self._cut = True
                self.problem(
                    line, f"more than {_MOST_FINDINGS:,} findings: those from here on are not listed"
                )
            return
        key = (line, opinion.rule, opinion.claim)
        if key in self._seen:
            return
        self._seen.add(key)
        self.findings.append(
            AuditFinding(
                self.file,
                max(line, 1),
                opinion.rule,
                opinion.claim,
                opinion.verdict,
                opinion.reason,
                opinion.source,
                opinion.instead,
                opinion.ledger,
                " ".join(text[: 4 * _SNIPPET].replace(UNKNOWN, "…").split())[:_SNIPPET],
            )
        )

    def _opinion(  # noqa: PLR0913, RUF100 - the fields of a finding
        self,
        claim: str,
        verdict: str,
        reason: str,
        ledger: tuple[str, ...],
        *,
        rule: str = "",
        source: str = "",
        instead: str = "",
        judged: tuple[str, str] | None = None,
    ) -> _Opinion:
        cited = self.knowledge.cited(ledger)
        reason = reason or (cited[0].reason if cited else "")
        return _Opinion(
            ledger[0] if ledger else rule,
            claim,
            verdict,
            reason,
            source or "; ".join(dict.fromkeys(part for c in cited for part in c.source.split("; "))),
            instead or (cited[0].instead if cited else ""),
            ledger,
            judged,
        )

    def advice(self, line: int, name: str, text: str, *, detail: str = "", instead: str = "") -> None:
        """Report the advice ``name`` of the knowledge base; ``detail`` is put before its reason."""
        self.recognise(line, name)
        self._say(line, self._of_advice(name, detail=detail, instead=instead), text)

    def _of_advice(self, name: str, *, claim: str = "", detail: str = "", instead: str = "") -> _Opinion:
        item = self.knowledge.advice[name]
        reason = item.reason or (self.knowledge.claims[item.claims[0]].reason if item.claims else "")
        return self._opinion(
            claim or item.title,
            item.verdict,
            f"{detail}{reason}",
            item.claims,
            rule=name,
            source=item.source,
            instead=instead or item.instead,
        )

    def sysctl(
        self, line: int, key: str, value: str | None, text: str, *, within: Within = Within.MACHINE
    ) -> None:
        """Judge one sysctl that a file names.

        Args:
            line: where it stands, from 1.
            key: its name, in any spelling.
            value: what it is set to, as it stands there; None where it is only read.
            text: the place itself.
            within: what it is set for.
        """
        if not self._spoken_of(key):
            self.recognise(line, key)
            return
        if value is not None:
            value = _BOOLEAN.get(value.strip().lower(), value.strip())
        if UNKNOWN in key:
            self.not_known(line, "a setting", "its name is computed, and not in this file")
            return
        if self._cut:
            self.recognise(line, canonical_key(key))
            return
        asked = (key, value, within)
        if asked not in self._opinions:
            if len(self._opinions) >= _MOST_OPINIONS:
                self._opinions.clear()
            self._opinions[asked] = self._of_sysctl(canonical_key(key), value, within)
        opinion = self._opinions[asked]
        name = canonical_key(key)
        self.recognise(line, name)
        if opinion is None:
            if value is not None and by_key(name) is not None and parse_number(value) is None:
                shown = "…" if UNKNOWN in value or not value else value[:60]
                self.not_known(
                    line, f"{name} = {shown}", "its value is not a number in this file", subject=name
                )
            return
        self._say(line, opinion, text)
        if opinion.judged is not None and within is Within.MACHINE:
            self._together(line, *opinion.judged, text)

    @staticmethod
    def _spoken_of(key: str) -> bool:
        """Whether there may be anything to say of a setting, by its name; of most there is not."""
        last = key.rstrip(" \t\r\n'\"").replace("/", ".").rpartition(".")[2]
        return last in _LAST or last.startswith(_SPOKEN_OF) or UNKNOWN in key

    def _of_sysctl(self, name: str, value: str | None, within: Within) -> _Opinion | None:
        names = self.knowledge.names
        claim = f"{name} = {value.replace(UNKNOWN, '…')[:60]}" if value is not None else name
        if name in names.gone:
            fate = names.gone[name]
            return self._of_advice("removed-sysctl", claim=claim, detail=f"{fate[0].upper()}{fate[1:]}. ")
        if not self._exists(name):
            return self._unknown(name, claim)
        setting = by_key(name)
        if setting is None or value is None:
            return None
        if within in _NO_NETWORK_OF_ITS_OWN:
            return self._of_advice(_NO_NETWORK_OF_ITS_OWN[within], claim=claim)
        if within in _NOT_THERE and setting.scope is not Scope.NETNS:
            return self._of_advice(_NOT_THERE[within], claim=claim)
        number = parse_number(value)
        if number is None:
            if not _REFUSED.match(value):
                return None
            detail = "The kernel reads a number that begins with 0 as octal, and refuses this one. "
            return self._of_advice("sysctl-out-of-range", claim=claim, detail=detail)
        if not setting.low <= number <= setting.high:
            detail = f"It takes {setting.low} to {setting.high} {setting.unit}. "
            return self._of_advice("sysctl-out-of-range", claim=claim, detail=detail)
        band = setting.band(number)
        reason = band.why
        if band.below_current and setting.by_memory:
            reason += (
                f" (the kernel's own value grows with memory; compared is {setting.default}, that of 24 GB)"
            )
        if within is Within.POD and name not in names.pod_safe:
            reason += "; and a pod may set it only with the kubelet's --allowed-unsafe-sysctls"
        sources = [setting.source, *(c.source for c in self.knowledge.cited(band.ledger[:1]))]
        return self._opinion(
            f"{name} = {number}" if str(number) == value else f"{name} = {value} (that is {number})",
            _OF_SETTING[band.verdict],
            _sentence(reason),
            band.ledger,
            rule=name,
            source="; ".join(dict.fromkeys(part for text in sources for part in text.split("; "))),
            instead=band.instead,
            judged=(name, str(number)),
        )

    def _together(self, line: int, name: str, value: str, text: str) -> None:
        if self._values.get(name) == value:
            return
        self._values[name] = value
        for remark in remarks(self._values):
            if remark.verdict is Verdict.HARMFUL and name in remark.keys and len(remark.keys) > 1:
                assignments = ", ".join(f"{k.rpartition('.')[2]} = {self._values[k]}" for k in remark.keys)
                self._say(
                    line, self._opinion(assignments, "harmful", _sentence(remark.text), remark.ledger), text
                )

    def _exists(self, name: str) -> bool:
        head, _, last = name.rpartition(".")
        if last.startswith(("tcp_", "nf_conntrack", "ip_conntrack")) and last not in (
            "tcp_",
            "nf_conntrack_",
        ):
            return name in self.knowledge.names.sysctls or head.endswith(".conf") or "*" in last
        return True

    def _unknown(self, name: str, claim: str) -> _Opinion:
        self._suggestions += 1
        close = suggest(name, self.knowledge.names.sysctls) if self._suggestions <= _MOST_SUGGESTIONS else ()
        detail = ""
        instead = f"Near it are {', '.join(close)}." if close else ""
        if "close_wait" in name and "conntrack" not in name:
            detail = "CLOSE_WAIT has no timer: it ends when the program closes (X17). "
            instead = (
                "There is only nf_conntrack_tcp_timeout_close_wait, about translated flows; do not lower it."
            )
        elif "time_wait" in name or "timewait" in name:
            detail = "TIME_WAIT lasts 60 s, a constant of the kernel (X03). "
        elif "fin_wait" in name and "conntrack" not in name:
            detail = "The kernel's timeout is tcp_fin_timeout, and it is for orphans only (S03). "
        return self._of_advice("unknown-sysctl", claim=claim, detail=detail, instead=instead)


def _sentence(text: str) -> str:
    """Return a clause as a sentence: a capital where it starts with a word, and a full stop."""
    first = text.split(" ", 1)[0]
    text = text[0].upper() + text[1:] if first.isalpha() and first != "ss" else text
    return text if text.endswith(".") else f"{text}."


@lru_cache(maxsize=1024)
def suggest(name: str, known: frozenset[str]) -> tuple[str, ...]:
    """Return up to three existing names that are near ``name``, the nearest first."""
    last = name.rpartition(".")[2]
    by_last = {full.rpartition(".")[2]: full for full in known}
    near = difflib.get_close_matches(last[:80], sorted(by_last), n=3, cutoff=0.6)
    return tuple(by_last[name] for name in near)

"""What is known about advice on closing: the ledger of claims, advice to recognise, and the names that exist.

The knowledge is data: ``article.toml`` and ``expert.toml`` hold one entry for each claim of the ledger,
``advice.toml`` what to recognise in files, ``names.toml`` which sysctls and kube-proxy flags there are. This
module gives the schema and turns the bytes of those files into values. It opens no file: `finwait.shipped`
does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec
from msgspec import Struct

from finwait.errors import DecodeError
from finwait.toml.document import TomlDocument, TomlMistake

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["VERDICTS", "AdvicePattern", "Claim", "Knowledge", "SettingNames", "parse_knowledge"]

_T = TypeVar("_T", bound=msgspec.Struct)
ClaimVerdict = Literal["true", "conditional", "false", "no-effect", "harmful", "misread"]
Evidence = Literal["measured", "source", "reported"]

VERDICTS: dict[str, str] = {
    "true": "it is so",
    "conditional": "it is so under the condition named",
    "false": "it is not so",
    "no-effect": "it can be done and changes nothing of what it is meant for",
    "harmful": "it makes things worse",
    "misread": "what was seen is right, what was concluded from it is not",
}
"""The verdicts of the ledger and what they mean."""


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of the ledger."""

    id: str
    claim: str
    verdict: ClaimVerdict
    reason: str
    source: str
    evidence: Evidence
    also: Literal["", "harmful", "false"] = ""
    """A second verdict, where one alone would hide something."""
    instead: str = ""
    observed: str = ""
    """What was measured, where something was."""
    demo: str = ""
    """The demonstration that `finwait lab prove` runs for it; empty where there is none."""


class AdvicePattern(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something to recognise in a file, and what to say of it."""

    id: str
    title: str
    verdict: ClaimVerdict
    claims: tuple[str, ...]
    reason: str = ""
    source: str = ""
    instead: str = ""
    needle: str = ""
    """A string that has to be in the text, compared without case; a cheap test before the regex."""
    regex: str = ""
    lines: int = 1
    """On how many lines together the regex is tried."""


class _Pod(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    safe: dict[str, str]


class _Sysctl(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tcp: str
    conntrack: str
    gone: dict[str, str]
    pod: _Pod


class _KubeProxy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    flags: str
    old_flags: str
    conntrack_fields: str
    ipvs_fields: str
    config_fields: str
    modes: str


class _NamesFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sysctl: _Sysctl
    kube_proxy: _KubeProxy


class _ClaimsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    claim: tuple[Claim, ...]


class _AdviceFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    advice: tuple[AdvicePattern, ...]


class SettingNames(Struct, frozen=True):
    """The TCP and conntrack sysctls and the kube-proxy flags and fields that exist."""

    sysctls: frozenset[str]
    gone: Mapping[str, str]
    """Sysctls that older kernels had, with what became of them."""
    pod_safe: Mapping[str, str]
    """Sysctls that any pod may set → the version of Kubernetes since which; empty for always."""
    flags: frozenset[str]
    old_flags: frozenset[str]
    conntrack_fields: frozenset[str]
    ipvs_fields: frozenset[str]
    config_fields: frozenset[str]
    modes: frozenset[str]


class Knowledge(Struct, frozen=True):
    """All that is known, ready to use."""

    claims: Mapping[str, Claim]
    """By id, in the ledger's order."""
    advice: Mapping[str, AdvicePattern]
    """By id."""
    patterns: tuple[tuple[AdvicePattern, re.Pattern[str]], ...]
    """The advice that a regex recognises, compiled."""
    names: SettingNames

    def cited(self, ids: tuple[str, ...]) -> tuple[Claim, ...]:
        """Return the claims of these ids, in that order."""
        return tuple(self.claims[name] for name in ids)


def _decode(name: str, data: bytes, kind: type[_T]) -> _T:
    try:
        return TomlDocument(data, name).typed(kind)
    except TomlMistake as mistake:
        raise DecodeError("knowledge file", 0, b"", str(mistake)) from None


def parse_knowledge(files: Mapping[str, bytes]) -> Knowledge:
    """Turn the knowledge files, given by name, into `Knowledge`.

    ``names.toml`` and ``advice.toml`` are those; every other file holds claims.

    Raises:
        DecodeError: a file does not follow the schema, an id comes twice, or an advice cites an unknown
        claim.
    """
    claims: dict[str, Claim] = {}
    advice: dict[str, AdvicePattern] = {}
    names: SettingNames | None = None
    patterns: list[tuple[AdvicePattern, re.Pattern[str]]] = []
    for name, data in sorted(files.items()):
        if name == "names.toml":
            names = _names(_decode(name, data, _NamesFile))
        elif name == "advice.toml":
            for item in _decode(name, data, _AdviceFile).advice:
                _insert(name, data, advice, item.id, item)
                if item.regex:
                    try:
                        patterns.append((item, re.compile(item.regex, re.IGNORECASE)))
                    except re.error as error:
                        raise DecodeError(f"knowledge file {name}", 0, b"", f"{item.id}: {error}") from error
        else:
            for claim in _decode(name, data, _ClaimsFile).claim:
                _insert(name, data, claims, claim.id, claim)
    if names is None:
        raise DecodeError("knowledge", 0, b"", "names.toml is missing")
    for item in advice.values():
        for cited in item.claims:
            if cited not in claims:
                raise DecodeError(
                    "knowledge file advice.toml", 0, b"", f"{item.id} cites unknown claim {cited}"
                )
        if not item.claims and not (item.reason and item.source):
            raise DecodeError("knowledge file advice.toml", 0, b"", f"{item.id} has neither claim nor reason")
    return Knowledge(claims, advice, tuple(patterns), names)


def _insert(name: str, data: bytes, into: dict[str, _T], key: str, value: _T) -> None:
    if key in into:
        raise DecodeError(
            f"knowledge file {name}", max(data.find(key.encode()), 0), data, f"{key} comes twice"
        )
    into[key] = value


def _names(raw: _NamesFile) -> SettingNames:
    sysctls = {f"net.ipv4.tcp_{name}" for name in raw.sysctl.tcp.split()}
    sysctls |= {f"net.netfilter.nf_conntrack_{name}" for name in raw.sysctl.conntrack.split()}
    proxy = raw.kube_proxy
    return SettingNames(
        frozenset(sysctls),
        raw.sysctl.gone,
        raw.sysctl.pod.safe,
        frozenset(proxy.flags.split()),
        frozenset(proxy.old_flags.split()),
        frozenset(proxy.conntrack_fields.split()),
        frozenset(proxy.ipvs_fields.split()),
        frozenset(proxy.config_fields.split()),
        frozenset(proxy.modes.split()),
    )

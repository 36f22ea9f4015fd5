"""Judges command lines of kube-proxy, and the options of them that other tools pass on under their own names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from finwait.remedy.audit.finding import suggest
from finwait.remedy.audit.template import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from finwait.remedy.audit.finding import Judge

__all__ = ["TIMEOUTS", "allowed_unsafe", "duration_s", "kube_proxy_flags", "kube_proxy_timeout"]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_HOUR = 3600
_KEEPALIVE_DEFAULT = 7200


def duration_s(text: str) -> float | None:
    """Return the seconds of a Go or protobuf duration (``1h0m0s``, ``30s``, ``0``), or None if it is none."""
    text = text.strip().strip("'\"")
    if text == "0":
        return 0.0
    total, end = 0.0, 0
    for match in _DURATION.finditer(text):
        if match.start() != end:
            return None
        total += float(match[1]) * _UNITS[match[2]]
        end = match.end()
    return total if end == len(text) and end else None


def kube_proxy_flags(judge: Judge, words: list[tuple[int, str]]) -> None:
    """Judge the words of a kube-proxy command line, each with its line."""
    index = 0
    while index < len(words):
        line, word = words[index]
        index += 1
        word = word.strip("'\",`")
        if not word.startswith("-") or word.strip("-") == "":
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if not equals and index < len(words) and not words[index][1].strip("'\"").startswith("-"):
            value = words[index][1].strip("'\",`")
        _flag(judge, line, re.sub(r"[^\w.-].*", "", name), value.strip("'\""))


def _flag(judge: Judge, line: int, name: str, value: str) -> None:
    names = judge.knowledge.names
    plain = name.replace("_", "-")
    text = f"--{name}={value}" if value else f"--{name}"
    if not plain:
        return
    if plain in ("tcp-keepalive", "tcp-keepalive-interval") or plain.startswith("tcp-keepalive"):
        judge.advice(line, "kube-proxy-tcp-keepalive", text, detail=f"--{name}: ",
                     instead=judge.knowledge.claims["S35"].instead)  # fmt: skip
    elif name in names.old_flags or plain in names.old_flags:
        judge.advice(line, "kube-proxy-old-flag", text, detail=f"--{name}: ")
    elif name not in names.flags and plain not in names.flags:
        near = [f"--{n}" for n in suggest(plain, names.flags)]
        judge.advice(line, "kube-proxy-unknown-flag", text, detail=f"--{name}: ",
                     instead=f"Near it are {', '.join(near)}." if near else "")  # fmt: skip
    else:
        _known_flag(judge, line, plain, value, text)


def _known_flag(judge: Judge, line: int, name: str, value: str, text: str) -> None:
    if name == "proxy-mode" and value and value not in judge.knowledge.names.modes:
        if value == "userspace":
            judge.advice(line, "kube-proxy-userspace", text)
        return
    if name in TIMEOUTS and value:
        kube_proxy_timeout(judge, line, name, value, text)
    else:
        judge.recognise(line, f"--{name}")


def kube_proxy_timeout(judge: Judge, line: int, name: str, value: str, text: str) -> None:
    """Judge one of the times of `TIMEOUTS`, under whatever name it stands there."""
    seconds = None if UNKNOWN in value else duration_s(value)
    if seconds is None:
        judge.not_known(
            line, text.replace(UNKNOWN, "…"), "its value is not a duration such as 30s or 1h0m0s in this file"
        )
        return
    TIMEOUTS[name](judge, line, seconds, text)


def allowed_unsafe(judge: Judge, line: int, names: str) -> None:
    """Judge the settings that a kubelet lets pods set, separated by commas."""
    for name in names.replace(",", " ").split():
        if name.startswith("net."):
            judge.advice(line, "allowed-unsafe-sysctl", name, detail=f"{name}: ")
        else:
            judge.recognise(line, name)


def _conntrack(key: str) -> Callable[[Judge, int, float, str], None]:
    def judge_it(judge: Judge, line: int, seconds: float, text: str) -> None:
        if not seconds:  # the sysctl is left as it is
            judge.recognise(line, f"--conntrack-tcp-timeout-{key}")
        else:
            judge.sysctl(line, f"net.netfilter.nf_conntrack_tcp_timeout_{key}", str(int(seconds)), text)

    return judge_it


def _ipvs(advice: str, below: int) -> Callable[[Judge, int, float, str], None]:
    def judge_it(judge: Judge, line: int, seconds: float, text: str) -> None:
        judge.recognise(line, advice)
        if seconds and seconds < below:
            judge.advice(line, advice, text)

    return judge_it


TIMEOUTS: dict[str, Callable[[Judge, int, float, str], None]] = {
    "conntrack-tcp-timeout-close-wait": _conntrack("close_wait"),
    "conntrack-tcp-timeout-established": _conntrack("established"),
    "ipvs-tcp-timeout": _ipvs("ipvs-idle", _KEEPALIVE_DEFAULT),
    "ipvs-tcpfin-timeout": _ipvs("ipvs-fin", _HOUR),
}
"""The flags with a time that bears on closing."""

"""proxies: how HAProxy, Envoy and nginx say that a connection ended.

Understood    The termination state in HAProxy's log lines, the response flags in Envoy's access log, and
              lines of nginx's error log that speak of closing.
Told          Which side ended a request, and how often the text has it.
Not told      Which socket it was: they are notes beside the diagnosis.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

from finwait.pasted.rows import TextPart

__all__ = ["NAME", "read", "starts"]

NAME: Final = "proxies"

_HAPROXY = re.compile(
    r"\S{1,64}:\d{1,5} \[\d{1,2}/\w{3}/\d{4}:[\d:.]{8,16}\] \S{1,64} \S{1,128} [-+\d/]{3,60} "
    r"(?:-?\d{1,3} )?[+]?\d{1,19} "
    r"(?:\S{1,64} \S{1,64} )?([A-Za-z-])([A-Z-])(?:[A-Z-]{2})? \d"
)
_ENVOY = re.compile(
    r'"[A-Z]{3,10} [^"]{1,2000}" \d{1,3} (-|(?:UH|UF|UO|NR|URX|NC|DT|DC|LH|UT|LR'
    r"|UR|UC|DI|FI|RL|UAEX|RLSE|IH|SI|DPE|UPE|UMSDR|OM|DF)(?:,[A-Z]{2,5}){0,6}) "
)
_NGINX: Final = (
    (re.compile(r"upstream prematurely closed connection"), "the upstream closed before it had answered"),
    (
        re.compile(r"upstream timed out \(110:"),
        "the upstream did not answer in time; nginx closed the connection to it",
    ),
    (re.compile(r"recv\(\) failed \(104: Connection reset by peer\)"), "the other end answered with a RST"),
    (re.compile(r"client (?:prematurely )?closed (?:keepalive )?connection"), "the client closed first"),
    (
        re.compile(r"(?:writev|send|sendfile)\(\) failed \(32: Broken pipe\)"),
        "nginx wrote to an end that had closed",
    ),
)
_FIRST: Final = {
    "C": "the client ended it (FIN or RST)", "S": "the server ended it, or refused it", "P": "the proxy ended it",
    "R": "the proxy had no resources left", "I": "the proxy had an internal error", "D": "the server was down",
    "L": "the proxy answered itself", "U": "its backup server came up", "K": "an operator killed it",
    "c": "the client was silent for its timeout", "s": "the server was silent for its timeout",
}  # fmt: skip
_SECOND: Final = {
    "R": "waiting for the request", "Q": "in the queue", "C": "while connecting to the server",
    "H": "waiting for the answer's headers", "D": "during the data", "L": "while sending the last data",
    "T": "in a tarpit", "-": "after the end",
}  # fmt: skip
_FLAGS: Final = {
    "UC": "the upstream closed the connection", "UF": "the connection to the upstream failed",
    "UT": "the upstream did not answer in time", "DC": "the client closed the connection",
    "UR": "the upstream reset the connection", "LR": "Envoy itself reset the connection",
    "DT": "a request or connection lasted too long", "SI": "the stream was idle for too long",
}  # fmt: skip


def starts(line: str) -> bool:
    """Return whether a line is of such a log."""
    if len(line) > 4000:
        return False
    return (
        ("] " in line and _HAPROXY.search(line) is not None)
        or ('" ' in line and _ENVOY.search(line) is not None)
        or any(form.search(line) for form, _ in _NGINX)
    )  # fmt: skip


def read(lines: list[str], args: str) -> TextPart:  # noqa: ARG001
    """Count how requests ended."""
    seen: Counter[str] = Counter()
    for line in lines:
        if match := _HAPROXY.search(line):
            if match[1] in _FIRST:
                where = _SECOND.get(match[2], "")
                seen[
                    f"HAProxy `{match[1]}{match[2]}`: {_FIRST[match[1]]}{', ' + where if where else ''}"
                ] += 1
        elif match := _ENVOY.search(line):
            for flag in match[1].split(","):
                if flag in _FLAGS:
                    seen[f"Envoy `{flag}`: {_FLAGS[flag]}"] += 1
        else:
            for form, says in _NGINX:
                if form.search(line):
                    seen[f"nginx: {says}"] += 1
    return TextPart(NAME, notes=[f"{says}; {n} line{'s' * (n > 1)}" for says, n in seen.most_common(20)])

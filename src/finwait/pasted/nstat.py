"""nstat: counters, as nstat, netstat -s, /proc/net/sockstat and ss -s print them.

Understood    nstat (with -a, -z or without), netstat -s for the counters that closing needs, the files
              /proc/net/sockstat and sockstat6, and the summary of ss -s.
Told          How often queues overflowed, handshakes were dropped, connections were aborted; how many
              orphans and TIME_WAIT there are.
Not told      Since when a counter counts: nstat without -a shows what came since its last run.
"""

from __future__ import annotations

import re
from typing import Final

from finwait.pasted.rows import TextPart

__all__ = ["NAME", "read", "starts"]

NAME: Final = "nstat"

_COUNTER = re.compile(
    r"((?:Ip6?|Icmp6?|Tcp|TcpExt|Udp6?|UdpLite6?|IpExt|MPTcpExt)[A-Z]\w{1,48})\s+(\d{1,20})\s+[\d.]{1,12}\s*$"
)
_SOCKSTAT = re.compile(r"(?:sockets|TCP6?|UDP6?|UDPLITE6?|RAW6?|FRAG6?): (?:used|inuse) \d+(?: \w+ \d+)*\s*$")
_SUMMARY = re.compile(
    r"TCP:\s+(\d{1,9}) \(estab (\d{1,9}), closed (\d{1,9})(?:, orphaned (\d{1,9}))?.*timewait (\d{1,9})"
)
_REST_OF_SUMMARY = re.compile(
    r"Total: \d+(?: \(kernel \d+\))?\s*$|Transport Total\s+IP\s+IPv6|(?:\*|RAW|UDP|TCP|INET|FRAG)\s+\d+\s+\d+\s+\d+"
)
_SENTENCES: Final = (
    (re.compile(r"(\d+) times the listen queue of a socket overflowed"), "TcpExtListenOverflows"),
    (re.compile(r"(\d+) SYNs to LISTEN sockets (?:dropped|ignored)"), "TcpExtListenDrops"),
    (re.compile(r"(\d+) connections aborted due to timeout"), "TcpExtTCPAbortOnTimeout"),
    (re.compile(r"(\d+) connections reset due to unexpected data"), "TcpExtTCPAbortOnData"),
    (re.compile(r"(\d+) connections reset due to early user close"), "TcpExtTCPAbortOnClose"),
    (re.compile(r"(\d+) connections aborted due to memory pressure"), "TcpExtTCPAbortOnMemory"),
    (re.compile(r"(\d+) connections aborted after user close in linger timeout"), "TcpExtTCPAbortOnLinger"),
    (re.compile(r"(\d+) segments retransmitted"), "TcpRetransSegs"),
    (re.compile(r"(\d+) resets sent"), "TcpOutRsts"),
    (re.compile(r"(TCP\w{3,40}|\w{2,20}Overflow): (\d+)$"), ""),
)


def starts(line: str) -> bool:
    """Return whether a line is a counter."""
    bare = line.strip()
    if bare.startswith(("Ip", "Icmp", "Tcp", "Udp", "MPTcp")) and _COUNTER.match(bare):
        return True
    if bare.startswith(("sockets:", "TCP", "UDP", "RAW", "FRAG", "Total:", "Transport", "INET", "*")):
        return any(form.match(bare) for form in (_SOCKSTAT, _SUMMARY, _REST_OF_SUMMARY))
    return (line[:4] == "    " and any(form.match(bare) for form, _ in _SENTENCES)) or bare == "#kernel"


def read(lines: list[str], args: str) -> TextPart:  # noqa: ARG001
    """Read counters into the files of /proc that have them."""
    part, counters, sockstat = TextPart(NAME), dict[str, str](), list[str]()
    for line in lines:
        bare = line.strip()
        if match := _COUNTER.match(bare):
            counters[match[1]] = match[2]
        elif _SOCKSTAT.match(bare):
            sockstat.append(bare)
        elif match := _SUMMARY.match(bare):
            orphans = f"{match[4]} orphans and " if match[4] else ""
            part.notes.append(f"`ss -s` counts {orphans}{match[5]} sockets in TIME_WAIT")
        else:
            for form, name in _SENTENCES:
                if match := form.match(bare):
                    counters[name or f"TcpExt{match[1]}"] = match[match.lastindex or 1]
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, value in counters.items():
        group = "TcpExt" if name.startswith("TcpExt") else "Tcp" if name.startswith("Tcp") else ""
        if group:
            groups.setdefault(group, []).append((name.removeprefix(group), value))
    for group, path in (("Tcp", "net/snmp"), ("TcpExt", "net/netstat")):
        if cells := groups.get(group):
            rows = (" ".join([f"{group}:", *part_]) for part_ in zip(*cells, strict=True))
            part.files[path] = ("\n".join(rows) + "\n").encode()
    v4 = [line for line in sockstat if not line.split(":")[0].endswith("6")]
    if v4:
        part.files["net/sockstat"] = ("\n".join(v4) + "\n").encode()
    v6 = [line for line in sockstat if line.split(":")[0].endswith("6")]
    if v6:
        part.files["net/sockstat6"] = ("\n".join(v6) + "\n").encode()
    return part

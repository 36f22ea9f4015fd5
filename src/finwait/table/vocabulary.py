"""The vocabulary of a FILTER: its predicates, keywords, units, services and states, and how they are written.

`finwait.table.grammar` reads with it, `finwait.table.predicates` writes with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from finwait.table.sockets import SCHEMA
from finwait.uapi import tcp
from finwait.uapi.inet_diag import AF_INET, AF_INET6, IPPROTO_MPTCP, IPPROTO_TCP

__all__ = [
    "DURATIONS",
    "ENDS",
    "ENUMERATIONS",
    "IN_BYTES",
    "KEYWORDS",
    "NAMED_STATES",
    "OF_CONTEXT",
    "PREDICATES",
    "SERVICES",
    "SEVERITIES",
    "STATE_GROUPS",
    "WAITED",
    "WORD_OPERATORS",
    "example",
    "is_predicate",
    "named_states",
    "nearest",
    "quoted",
    "state_spellings",
    "state_text",
    "written_duration",
]

NAMED_STATES: Final = frozenset(tcp.STATES) - {tcp.NEW_SYN_RECV}  # the kernel shows it as SYN_RECV


def state_text(state: int) -> str:
    """Return a state as it is written in filters: ``fin-wait-2``."""
    return re.sub(r"wait([12])", r"wait-\1", tcp.state_name(state).lower().replace("_", "-"))


WORD_OPERATORS: Final = {
    "eq": "=",
    "ne": "!=",
    "neq": "!=",
    "lt": "<",
    "gt": ">",
    "le": "<=",
    "leq": "<=",
    "ge": ">=",
    "geq": ">=",
}

KEYWORDS: Final = frozenset({"and", "or", "not", *WORD_OPERATORS})

ENUMERATIONS: Final[Mapping[str, Mapping[str, int]]] = MappingProxyType(
    {
        "family": {"inet": AF_INET, "inet6": AF_INET6, "ipv4": AF_INET, "ipv6": AF_INET6},
        "protocol": {"tcp": IPPROTO_TCP, "mptcp": IPPROTO_MPTCP},
        "timer": {
            "none": 0,
            "off": 0,
            "on": 1,
            "retransmission": 1,
            "keepalive": 2,
            "timewait": 3,
            "persist": 4,
            "probe": 4,
        },
    }
)

IN_BYTES: Final = frozenset(
    {
        "rqueue", "wqueue", "mem_rmem", "mem_wmem", "mem_fmem", "mem_tmem", "skmem_rmem_alloc", "skmem_rcvbuf",
        "skmem_wmem_alloc", "skmem_sndbuf", "skmem_fwd_alloc", "skmem_wmem_queued", "skmem_optmem", "skmem_backlog",
        "dctcp_ab_ecn", "dctcp_ab_tot", "bbr_bw_lo", "bbr_bw_hi", "snd_mss", "rcv_mss", "pmtu", "rcv_ssthresh",
        "advmss", "rcv_space", "pacing_rate", "max_pacing_rate", "bytes_acked", "bytes_received", "notsent_bytes",
        "delivery_rate", "bytes_sent", "bytes_retrans", "snd_wnd", "rcv_wnd", "delivered_e1_bytes",
        "delivered_e0_bytes", "delivered_ce_bytes", "received_e1_bytes", "received_e0_bytes", "received_ce_bytes",
        "mptcp_bytes_retrans", "mptcp_bytes_sent", "mptcp_bytes_received", "mptcp_bytes_acked",
    }
)  # fmt: skip
"""Columns of sockets that count bytes: ``64k`` of these is 65536, of all others 64000."""

DURATIONS: Final = {
    "us": 1,
    "µs": 1,
    "ms": 1000,
    "s": 1_000_000,
    "sec": 1_000_000,
    "m": 60_000_000,
    "min": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
}


def written_duration(us: int) -> str:
    """Return microseconds as they are written in filters: ``10m``."""
    for unit in ("d", "h", "m", "s", "ms"):
        if us and us % DURATIONS[unit] == 0:
            return f"{us // DURATIONS[unit]}{unit}"
    return f"{us}us"


def quoted(text: str, value_of: str = "") -> str:
    """Return a value as it is written in filters: in quotes where it would be read as something else."""
    if re.fullmatch(r"[\w./:*?@%+~\-]+", text) and not (
        text.lower() in KEYWORDS or is_predicate(text, value_of)
    ):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


PREDICATES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "state": "TCP state or group of states.",
        "exclude": "Every state but this one.",
        "src": "Local address, prefix and port.",
        "dst": "Remote address, prefix and port.",
        "sport": "Local port or service.",
        "dport": "Remote port or service.",
        "dev": "Interface that the socket is bound to, by name or number.",
        "fwmark": "SO_MARK, optionally `/MASK`.",
        "mark": "The same as `fwmark`; also compares with `<` and `>`.",
        "cgroup": "Path of the cgroup v2 in which the socket was created.",
        "autobound": (
            "The kernel chose the local port. Refused, because no row shows it; use a range of `sport`."
        ),
        "held": (
            "A struct socket exists (inode not 0): a descriptor, a message in flight or the kernel "
            "refers to it."
        ),
        "orphan": (
            "No struct socket exists (inode 0): every holder has closed it, or it is not yet accepted."
        ),
        "age": "Time that it has certainly been in its state.",
        "rule": "Rule that names its cause, the most specific one that matched.",
        "also": "Another rule that matched, and is less specific.",
        "variant": "Variant of that rule, by its number on the rule's page; 0 for none.",
        "severity": "Severity of the finding that names its cause: `problem`, `notice` or `healthy`.",
        "pod": "`NAMESPACE/NAME`, name or UID of the pod.",
        "container": "Container id, the beginning of one, or name.",
        "namespace": "Kubernetes namespace of the pod.",
        "workload": "`NAMESPACE/NAME` or name of what the pod is part of: Deployment, StatefulSet, DaemonSet, Job …",
        "service": "`NAMESPACE/NAME` or name of the Kubernetes Service through which it goes.",
        "label": "Label of the pod: `KEY`, or `KEY=VALUE`.",
        "pid": "Process that holds it.",
        "comm": "Name of a process that holds it.",
        "waited": "Who waits for it in the programs that hold it: `thread`, `loop`, `paused`, `nobody` or `unknown`.",
        "ends": "By what it ends if nobody acts: `never`, `peer`, `keepalive`, `unknown`, `retries` or `timer`.",
        "thread": "Name of a thread that waits for it, itself or in an event loop.",
        "user": "User that created it, by name or number.",
        "netns": "Network namespace, by inode or name.",
    }
)
"""Predicates → one line for the reference page. Every column of the socket table is a predicate, too."""

SERVICES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "amqp": 5672,
        "amqps": 5671,
        "bgp": 179,
        "cassandra": 9042,
        "domain": 53,
        "dns": 53,
        "domain-s": 853,
        "elasticsearch": 9200,
        "epmd": 4369,
        "etcd": 2379,
        "etcd-client": 2379,
        "etcd-server": 2380,
        "ftp": 21,
        "git": 9418,
        "http": 80,
        "http-alt": 8080,
        "https": 443,
        "imap": 143,
        "imap2": 143,
        "imaps": 993,
        "iscsi-target": 3260,
        "kafka": 9092,
        "kerberos": 88,
        "kubelet": 10250,
        "ldap": 389,
        "ldaps": 636,
        "memcached": 11211,
        "microsoft-ds": 445,
        "mongodb": 27017,
        "mqtt": 1883,
        "ms-sql-s": 1433,
        "mysql": 3306,
        "nats": 4222,
        "nfs": 2049,
        "ntp": 123,
        "pop3": 110,
        "pop3s": 995,
        "postgresql": 5432,
        "rdp": 3389,
        "redis": 6379,
        "rsync": 873,
        "rtsp": 554,
        "sip": 5060,
        "sip-tls": 5061,
        "smtp": 25,
        "smtps": 465,
        "snmp": 161,
        "ssh": 22,
        "submission": 587,
        "submissions": 465,
        "sunrpc": 111,
        "svn": 3690,
        "syslog-tls": 6514,
        "telnet": 23,
        "vnc": 5900,
        "whois": 43,
        "xmpp-client": 5222,
        "xmpp-server": 5269,
        "zookeeper": 2181,
    }
)
"""Service names that are understood without a look at /etc/services."""

STATE_GROUPS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "all": tcp.ALL_STATES,
        "connected": tcp.ALL_STATES & ~(1 << tcp.CLOSE | 1 << tcp.LISTEN),
        "synchronized": tcp.ALL_STATES & ~(1 << tcp.CLOSE | 1 << tcp.LISTEN | 1 << tcp.SYN_SENT),
        "bucket": 1 << tcp.SYN_RECV | 1 << tcp.NEW_SYN_RECV | 1 << tcp.TIME_WAIT,
        "big": tcp.ALL_STATES & ~(1 << tcp.SYN_RECV | 1 << tcp.NEW_SYN_RECV | 1 << tcp.TIME_WAIT),
    }
)
"""Groups of states → their bits, as ``ss`` has them."""
_OF_ROWS: Final = (
    "pod",
    "container",
    "namespace",
    "workload",
    "service",
    "label",
    "pid",
    "comm",
    "user",
    "netns",
    "cgroup",
    "waited",
    "thread",
    "ends",
)
OF_CONTEXT: Final = frozenset({"rule", "also", "variant", "severity", *_OF_ROWS})
"""Predicates that the context answers."""
SEVERITIES: Final = ("problem", "notice", "healthy")
ENDS: Final = ("never", "peer", "keepalive", "unknown", "retries", "timer")
"""By what a connection ends if nobody acts, the most lasting first, see `finwait.diagnosis.outlook`."""
WAITED: Final = ("thread", "loop", "paused", "nobody", "unknown")
"""Who waits for a connection inside the programs that hold it, see `finwait.attribution.waiting`."""
_VALUES: Final[Mapping[str, tuple[str, ...]]] = {"waited": WAITED, "ends": ENDS}


def named_states(word: str) -> int | None:
    """Return the states that a word stands for, bit *n* for state *n*: one state, or a group of ``ss``."""
    low = word.lower()
    if low in STATE_GROUPS:
        return STATE_GROUPS[low]
    number = tcp.CLOSE if low in {"unconnected", "unconn"} else tcp.parse_state(low)
    if number is None:
        return None
    return 1 << number | (1 << tcp.NEW_SYN_RECV if number == tcp.SYN_RECV else 0)


def is_predicate(word: str, value_of: str = "") -> bool:
    """Return whether a word that stands where a value should is rather the next predicate, whose value is missing.

    That is one of ours, a column, or a state that stands alone.

    Args:
        word: the word.
        value_of: what it would be the value of; it may have one of that name: `ends = timer`, `rule = time-wait`.
    """
    low = word.lower()
    if low in _VALUES.get(value_of, ()):
        return False
    if low in PREDICATES or low in SCHEMA or low == "excl":
        return True
    return value_of not in ("rule", "also") and named_states(low) is not None


def state_spellings() -> list[str]:
    """Return all states as they are written in filters."""
    return [state_text(n) for n in sorted(NAMED_STATES)]


def nearest(word: str, names: Iterable[str]) -> str:
    """Return the name that a misspelt word most likely means, or nothing."""
    from difflib import get_close_matches

    plain = {name.lower().replace("_", "-"): name for name in names}
    matches = get_close_matches(word[:64].lower().replace("_", "-"), plain, 1, 0.7)
    return plain[matches[0]] if matches else ""


def example(name: str) -> str:
    """Return a predicate of that name as somebody might write it."""
    return {
        "src": "src 10.0.0.0/8",
        "dst": "dst 10.1.2.3:443",
        "sport": "sport = :443",
        "dport": "dport = :443",
        "dev": "dev eth0",
        "fwmark": "fwmark = 0x1/0xff",
        "cgroup": "cgroup = /system.slice/nginx.service",
        "age": "age > 10m",
        "rule": "rule = fin-wait2-held",
        "also": "also = fin-wait2-held",
        "variant": "variant = 1",
        "severity": "severity = problem",
        "pod": "pod = default/web-0",
        "container": "container = 3f2a9c",
        "namespace": "namespace = shop",
        "workload": "workload = shop/cart",
        "service": "service = shop/db",
        "label": "label = app=cart",
        "pid": "pid = 812",
        "comm": "comm = nginx",
        "waited": "waited = nobody",
        "ends": "ends = never",
        "thread": "thread = worker-3",
        "user": "user = www-data",
        "netns": "netns = 4026531840",
        "family": "family = inet6",
        "timer": "timer = keepalive",
        "cong": "cong = cubic",
        "ulp": "ulp = tls",
    }.get(name, f"{name} > {'100ms' if name.endswith(('_ms', '_us')) else '0'}")

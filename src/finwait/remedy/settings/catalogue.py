"""The kernel settings that bear on closing a TCP connection, and what each of them really does.

One `Setting` per sysctl: its scope, default, unit, the range that the kernel takes, the connections that it
acts on, its traps, what each interesting value means (`Band`), and, for every diagnosis rule, whether
changing it would end what that rule has found (`Setting.effect`). The page ``docs/reference/settings.md``,
``finwait tune`` and ``finwait audit`` all read this one table.

Ranges, defaults, scopes and file modes were read on Linux 6.18 in a fresh network namespace; what a value
does rests on the measurements that the ledger (``docs/reference/ledger.md``) lists under the ids named here,
and on ``net/ipv4/tcp*.c``, ``net/netfilter/nf_conntrack_*.c`` and ``Documentation/networking/*sysctl.rst``.

The surprise: hardly any of them can end a connection that is stuck now. A socket that a process holds obeys
none.

This module decides nothing about this machine; `finwait.remedy.tuning` does, from values that others have
read.
"""

from __future__ import annotations

from functools import lru_cache

from finwait.remedy.settings.model import Setting
from finwait.remedy.settings.orphans import (
    FIN_TIMEOUT,
    MAX_ORPHANS,
    MAX_TW_BUCKETS,
    ORPHAN_RETRIES,
    RFC1337,
    TW_REUSE,
    TW_REUSE_DELAY,
)
from finwait.remedy.settings.silence import (
    ABORT_ON_OVERFLOW,
    KEEPALIVE_INTVL,
    KEEPALIVE_PROBES,
    KEEPALIVE_TIME,
    RETRIES2,
    RTO_MAX,
)
from finwait.remedy.settings.tracking import (
    CT_BUCKETS,
    CT_CLOSE_WAIT,
    CT_ESTABLISHED,
    CT_LIBERAL,
    CT_LOOSE,
    CT_MAX,
    CT_MAX_RETRANS,
    CT_MINOR,
)

__all__ = ["CATALOGUE", "by_key", "by_letters", "canonical_key", "computed_default"]

CATALOGUE: tuple[Setting, ...] = (
    FIN_TIMEOUT,
    KEEPALIVE_TIME,
    KEEPALIVE_INTVL,
    KEEPALIVE_PROBES,
    ORPHAN_RETRIES,
    MAX_ORPHANS,
    RETRIES2,
    RTO_MAX,
    RFC1337,
    ABORT_ON_OVERFLOW,
    MAX_TW_BUCKETS,
    TW_REUSE,
    TW_REUSE_DELAY,
    CT_CLOSE_WAIT,
    CT_ESTABLISHED,
    *CT_MINOR,
    CT_MAX,
    CT_BUCKETS,
    CT_LIBERAL,
    CT_LOOSE,
    CT_MAX_RETRANS,
)
"""Every setting that finwait has an opinion on, the most asked-for first."""

_GIB = 1 << 20  # in KiB


def computed_default(key: str, *, hash_entries: int | None, memory_kb: int | None) -> int | None:
    """Return the default that the kernel computed on a machine; None where that cannot be told.

    ``tcp_init`` and ``tcp_sk_init`` take half of the established hash table for the limits of orphans and minisockets;
    ``nf_conntrack_init_start`` goes by the memory alone. The number of chains depends on the kernel's version as well.

    Args:
        key: a setting with ``by_memory``.
        hash_entries: ``tcp_ehash_entries`` (6.1 and later); negative in a namespace that shares the machine's table.
        memory_kb: ``MemTotal`` of /proc/meminfo.
    """
    if key in ("net.ipv4.tcp_max_orphans", "net.ipv4.tcp_max_tw_buckets"):
        return abs(hash_entries) // 2 if hash_entries else None
    if key == "net.netfilter.nf_conntrack_max" and memory_kb is not None and memory_kb > _GIB:
        return 262_144 if memory_kb > 4 * _GIB else 65_536
    return None


_BY_KEY = {setting.key: setting for setting in CATALOGUE}

_ALIASES = {"net.nf_conntrack_max": "net.netfilter.nf_conntrack_max"}


@lru_cache(maxsize=4096)
def canonical_key(text: str) -> str:
    """Return a sysctl's name with dots, whatever way it was written.

    ``/proc/sys/net/ipv4/tcp_fin_timeout``, ``net/ipv4/tcp_fin_timeout``, ``net.ipv4.tcp_fin_timeout`` and
    the bare ``tcp_fin_timeout`` of a catalogued setting all give ``net.ipv4.tcp_fin_timeout``. As sysctl(8)
    has it, the first separator decides: in a name with slashes dots stay.
    """
    name = text.strip(" \t\r\n'\"")
    name = name.removeprefix("/proc/sys/").strip("/")
    slash, dot = name.find("/"), name.find(".")
    if slash >= 0 and (dot < 0 or slash < dot):
        name = name.replace(".", "\0").replace("/", ".").replace("\0", "/")
    if name in _ALIASES:
        return _ALIASES[name]
    if name and "." not in name:
        for key in _BY_KEY:
            if key.endswith("." + name):
                return key
        if name.startswith("tcp_"):
            return "net.ipv4." + name
        if name.startswith("nf_conntrack_"):
            return "net.netfilter." + name
    return name


def by_key(key: str) -> Setting | None:
    """Return the catalogued setting of that name (in any spelling of `canonical_key`), or None."""
    return _BY_KEY.get(canonical_key(key))


_BY_LETTERS = {"".join(c for c in key if c.isalnum()): key for key in _BY_KEY}


def by_letters(text: str) -> str | None:
    """Return the catalogued setting that a name without dots stands for: ``netIpv4TcpFinTimeout``, ``net_ipv4_…``."""
    return _BY_LETTERS.get("".join(c for c in text[:120].lower() if c.isalnum()))

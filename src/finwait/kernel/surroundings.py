"""What a network namespace says beside its settings, where a verdict on these depends on it: reading only.

Whether addresses are translated there is in three places: entries of connection tracking, firewall rules, and IPVS.
Rules are known only where every tool that may have made some could list them; ``nft`` does not see those of legacy
iptables, whose tables the kernel names in ``ip_tables_names``. Nothing is loaded into the kernel for it: where
nf_tables is not there, it has no rules. Judging what was read is for others.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

from msgspec import Struct

from finwait.errors import KernelError
from finwait.kernel import procfs, sysctl

if TYPE_CHECKING:
    from finwait.kernel.sysctl import SysctlTarget

__all__ = ["Surroundings", "read"]

_NET = "/proc/thread-self/net/"
_SYS = "/proc/sys/net/"
_MOST_ENTRIES = 200_000
"""Entries that are dumped to see whether one is translated; more take too long for a side question."""


class Surroundings(Struct, frozen=True):
    """Files and answers as they came; None for what is not there or could not be read."""

    sockstat: bytes | None
    netstat: bytes | None
    meminfo: bytes | None
    hash_entries: bytes | None
    ipvs: bytes | None
    entries: int | None
    """Entries of connection tracking; None where the namespace has no connection tracking."""
    translated: int | None
    """How many of them are translated; None where that was not found out."""
    rules: str | None
    """What the tools for firewall rules print; None where one of them could not be asked."""


def read(target: SysctlTarget, *, tracking: bool = True) -> Surroundings:
    """Read what surrounds the settings of a namespace.

    Args:
        target: the namespace.
        tracking: whether to find out what is translated and filtered there, which starts programs.

    Raises:
        KernelError: the namespace cannot be entered.
    """

    def work() -> Surroundings:
        count = procfs.read(_SYS + "netfilter/nf_conntrack_count")
        entries = int(count) if count is not None and count.strip().isdigit() else None
        return Surroundings(
            procfs.read(_NET + "sockstat"),
            procfs.read(_NET + "netstat"),
            procfs.read("/proc/meminfo"),
            procfs.read(_SYS + "ipv4/tcp_ehash_entries"),
            procfs.read(_NET + "ip_vs"),
            entries,
            _translated(entries) if tracking else None,
            _rules() if tracking else None,
        )

    return sysctl.inside(target.fd, target.inode, work)


def _translated(entries: int | None) -> int | None:
    """Count the translated entries of the namespace that we are in."""
    import numpy as np

    from finwait.kernel.netlink import NETLINK_NETFILTER, Arena, dump, netlink_socket
    from finwait.table.flows import FlowTable
    from finwait.uapi import conntrack, netlink

    if not entries:
        return 0
    if entries > _MOST_ENTRIES:
        return None
    arena = Arena()
    try:
        with netlink_socket(NETLINK_NETFILTER, "dump the conntrack entries") as sock:
            answer = dump(sock, conntrack.dump_request(), arena, "dump the conntrack entries")
    except KernelError:
        return None
    buffer = arena.array()
    messages = netlink.walk(buffer, np.array(answer.starts, np.int64), np.array(answer.ends, np.int64))
    rows = conntrack.find_rows(buffer, messages.where(messages.type == conntrack.CT_NEW))
    if not len(rows):
        return 0
    return int(FlowTable.from_rows(rows, np.zeros(len(rows), np.uint32)).natted().sum())


def _rules() -> str | None:
    """List the rules of the namespace that we are in."""
    legacy = [
        _output(f"{tool}-legacy-save", f"{tool}-save")
        for tool, names in (("iptables", "ip_tables_names"), ("ip6tables", "ip6_tables_names"))
        if procfs.read(_NET + names)  # tables of legacy iptables are loaded here
    ]
    texts = [_nft(), *legacy]
    if any(
        "xt target" in (text or "") for text in texts
    ):  # rules of iptables over nftables, in its own words
        texts += [
            _output("iptables-nft-save", "iptables-save"),
            _output("ip6tables-nft-save", "ip6tables-save"),
        ]
    return None if any(text is None for text in texts) else "\n".join(text or "" for text in texts)


def _nft() -> str | None:
    modules = procfs.read("/proc/modules")
    if modules is not None and not re.search(rb"^nf_tables ", modules, re.MULTILINE):
        built_in = procfs.read(f"/lib/modules/{os.uname().release}/modules.builtin")
        if built_in is None:
            return None
        if b"/nf_tables.ko" not in built_in:
            return ""  # asking would load it
    return _output("nft", arguments=("list", "ruleset"))


def _output(*tools: str, arguments: tuple[str, ...] = ()) -> str | None:
    """Return what the first of these tools that is installed prints; None where it fails, or none is installed."""
    tool = next((path for name in tools if (path := shutil.which(name))), None)
    if tool is None:
        return None
    try:
        done = subprocess.run([tool, *arguments], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None

"""Firewall rules of a namespace, as ``nft`` and ``iptables-save`` print them there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable

from finwait.errors import Gap
from finwait.kernel import netns

__all__ = ["rulesets"]

_COMMANDS = (("nft", "-nn", "list", "ruleset"), ("iptables-legacy-save",), ("ip6tables-legacy-save",))


def rulesets(namespaces: Iterable[netns.NetNamespace]) -> tuple[dict[int, str], list[Gap]]:
    """Return by namespace what the tools print; a tool that is not there is a gap, once."""
    there = [c for c in _COMMANDS if shutil.which(c[0])]
    gaps = (
        []
        if any(c[0] == "nft" for c in there)
        else [Gap("this machine", "list firewall rules", "the command `nft`")]
    )

    def inside(_: netns.NetNamespace) -> str:
        parts = []
        for command in there:
            try:
                done = subprocess.run(command, capture_output=True, timeout=20, check=False)
            except (OSError, subprocess.TimeoutExpired):
                continue
            parts.append(done.stdout.decode("utf-8", "replace"))
        return "\n".join(parts)

    found, more = netns.visit(namespaces, inside)
    return found, gaps + more

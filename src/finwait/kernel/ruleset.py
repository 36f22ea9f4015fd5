"""Firewall rules of a namespace, as ``nft`` and ``iptables-save`` print them there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable

from finwait.errors import Gap
from finwait.kernel import netns

__all__ = ["rulesets"]

_NFT = ("nft", "list", "ruleset")  # not -n: states of conntrack would be numbers
_LEGACY = (("iptables-legacy-save",), ("ip6tables-legacy-save",))
_OVER_NFT = (("iptables-nft-save",), ("ip6tables-nft-save",))
_PLAIN = (("iptables-save",), ("ip6tables-save",))
"""Whatever backend the distribution chose; asked only where the others are not there under their own names."""

_MOST_S = 20


def rulesets(namespaces: Iterable[netns.NetNamespace]) -> tuple[dict[int, str], list[Gap]]:
    """Return by namespace what the tools print; a tool that is not there is a gap, once, and one that fails, too.

    ``nft`` shows the rules of iptables over nftables too, in its own words, but for extensions that it cannot
    translate (``xt target``); those are asked of ``iptables-nft-save``.
    """
    has_nft = shutil.which("nft") is not None
    legacy = [c for c in _LEGACY if shutil.which(c[0])]
    over_nft = [c for c in _OVER_NFT if shutil.which(c[0])]
    plain = [] if legacy and (has_nft or over_nft) else [c for c in _PLAIN if shutil.which(c[0])]
    gaps = [] if has_nft or over_nft else [Gap("this machine", "list firewall rules", "the command `nft`")]

    def inside(space: netns.NetNamespace) -> str:
        def run(command: tuple[str, ...]) -> str:
            text, failed = _output(command)
            if failed:
                gaps.append(
                    Gap.of_namespace(space.inode, "list firewall rules", f"`{' '.join(command)}`: {failed}")
                )
            return text

        text = run(_NFT) if has_nft else ""
        if not has_nft or "xt target" in text or "xt match" in text:
            text = "\n".join([text, *map(run, over_nft)])
        return "\n".join([text, *map(run, legacy), *map(run, plain)])

    texts, more = netns.visit(namespaces, inside)
    return texts, gaps + more


def _output(command: tuple[str, ...]) -> tuple[str, str]:
    """Return what a command prints, and how it failed: no rules and no answer are not the same."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=_MOST_S, check=False)
    except subprocess.TimeoutExpired:
        return "", f"no answer within {_MOST_S} s"
    except OSError as error:
        return "", error.strerror or str(error)
    failed = ""
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").split("\n")
        failed = next(
            (line.strip() for line in lines if line.strip()), f"it exited with status {done.returncode}"
        )
    return done.stdout.decode("utf-8", "replace"), failed

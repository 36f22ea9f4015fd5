"""``--kube-names``: where names of pods, workloads and Services come from."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from finwait.agent.option_texts import SOCKET

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from finwait.errors import Gap
    from finwait.uapi.cluster import ClusterNames

__all__ = ["add", "agent_ages", "asking", "may_ask"]


def add(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Add ``--kube-names``."""
    group.add_argument(
        "--kube-names",
        metavar="FILE",
        help="take names of pods, workloads and Services from FILE (`-`: standard input), which "
        "`kubectl get pods,services,endpointslices -A -o json` has printed (default: from the agent, if one runs here)",
    )


def may_ask(args: argparse.Namespace) -> bool:
    """Return whether there may be an agent to ask: all that asks one need not be loaded where there is none."""
    if args.recording or args.agent_socket == "none":
        return False
    return args.agent_socket is not None or os.path.exists(SOCKET)


def agent_ages(
    args: argparse.Namespace,
) -> Callable[[Sequence[int]], tuple[Mapping[tuple[int, int, int], tuple[int, int]], tuple[Gap, ...]]] | None:
    """Return what asks an agent for ages; None where there is none to ask."""
    if not may_ask(args):
        return None
    from finwait.agent.client import asking

    return asking(args.agent_socket)


def asking(
    args: argparse.Namespace,
) -> Callable[[Collection[str]], tuple[ClusterNames, tuple[Gap, ...]]] | None:
    """Return what tells names of a cluster: the file that was named, else an agent; None for neither.

    Raises:
        FinwaitError: the file cannot be read, or is none.
    """
    if args.kube_names is None:
        if not may_ask(args):
            return None
        from finwait.agent.client import naming

        return naming(args.agent_socket)
    from finwait.kube.documents import read_names

    names, gaps = read_names(args.kube_names)
    return lambda _: (names, gaps)

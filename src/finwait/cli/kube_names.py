"""``--kube-names``: where names of pods, workloads and Services come from."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from finwait.errors import Gap
    from finwait.uapi.cluster import ClusterNames

__all__ = ["add", "asking"]


def add(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Add ``--kube-names``."""
    group.add_argument(
        "--kube-names",
        metavar="FILE",
        help="take names of pods, workloads and Services from FILE (`-`: standard input), which "
        "`kubectl get pods,services,endpointslices -A -o json` has printed (default: from the agent, if one runs here)",
    )


def asking(
    args: argparse.Namespace,
) -> Callable[[Collection[str]], tuple[ClusterNames, tuple[Gap, ...]]] | None:
    """Return what tells names of a cluster: the file that was named, else an agent; None for neither.

    Raises:
        FinwaitError: the file cannot be read, or is none.
    """
    from finwait.agent.client import naming

    if args.kube_names is None:
        return None if args.recording else naming(args.agent_socket)
    from finwait.kube.documents import read_names

    names, gaps = read_names(args.kube_names)
    return lambda _: (names, gaps)

"""``finwait netns``: the network namespaces of this machine, and how many sockets each has in each state."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from finwait.cli import options
from finwait.report.cells import padded, widest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finwait.session import Snapshot
    from finwait.uapi.observation import Namespace

__all__ = ["add_parser", "run"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "netns",
        help="network namespaces, by all their names, with their connections by state",
        description="List every network namespace: bind mounts, processes, threads, open descriptors. Changes nothing.",
    )
    options.add_look(parser)
    options.add_output(parser, ("text", "json"))
    parser.set_defaults(run=run)


_SHOWN = ("ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "LISTEN")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from msgspec.structs import replace

    from finwait import session
    from finwait.report.shape import document, encoded

    look = options.how(args)
    look = replace(look, plan=replace(look.plan, conntrack=False, extensions=0, established_limit=None))
    shot = session.look(options.machine(args), look)
    table = [_row(shot, ns) for ns in shot.observation.namespaces]
    if args.output == "json":
        options.write([encoded(document("NetworkNamespaceList", {"items": table}, shot.gaps))])
    else:
        options.write(_lines(table))
    options.tell_gaps(shot.gaps)
    return options.status(shot.gaps)


def _row(shot: Snapshot, ns: Namespace) -> dict[str, Any]:
    """Return what is said of a namespace."""
    import numpy as np

    from finwait.uapi import tcp

    counts = np.bincount(shot.sockets.state[shot.sockets.netns == ns.inode], minlength=16)
    settings = shot.view.namespaces[ns.inode]
    return {
        "netns": ns.inode,
        "netns_names": list(settings.names),
        "processes": ns.process_count,
        "first_pid": ns.pids[0] if ns.pids else None,
        "comm": _comm(shot, ns),
        "states": {tcp.state_name(k): int(n) for k, n in enumerate(counts) if n},
        "conntrack_entries": settings.sysctl("netfilter/nf_conntrack_count"),
        "tcp_fin_timeout": settings.sysctl("ipv4/tcp_fin_timeout"),
    }


def _comm(shot: Snapshot, ns: Namespace) -> str:
    """Return the name of a namespace's first process; empty where none is known."""
    from finwait.attribution.process import process

    files = shot.machine.processes(ns.pids[:1]).get(ns.pids[0]) if ns.pids else None
    return "" if files is None else process(ns.pids[0], files, shot.observation.facts).comm


_HEADS = (
    "INODE",
    "NAME",
    "PROCS",
    "FIRST",
    "ESTAB",
    "FW1",
    "FW2",
    "CW",
    "LASTACK",
    "TW",
    "LISTEN",
    "CONNTRACK",
)


def _lines(table: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the rows as lines of one width a column."""
    lines: list[tuple[str, ...]] = [_HEADS]
    for item in table:
        entries = item["conntrack_entries"]
        lines.append(
            (
                str(item["netns"]),
                ",".join(item["netns_names"]) or "-",
                str(item["processes"]),
                f"{item['comm']}({item['first_pid']})" if item["first_pid"] else "-",
                *(str(item["states"].get(name, 0)) for name in _SHOWN),
                "-" if entries is None else str(entries),
            )
        )
    widths = [widest(line[k] for line in lines) for k in range(len(_HEADS))]
    for line in lines:
        text = "  ".join(
            padded(c, w, right=k not in (1, 3)) for k, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        yield text.rstrip() + "\n"

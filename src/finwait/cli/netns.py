"""``finwait netns``: the network namespaces of this machine, and how many sockets each has in each state."""

from __future__ import annotations

import argparse

from finwait.cli import options

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
    from dataclasses import replace

    import msgspec
    import numpy as np

    from finwait import session
    from finwait.uapi import tcp

    look = options.how(args)
    look = replace(look, plan=replace(look.plan, conntrack=False, extensions=0, established_limit=None))
    shot = session.look(options.machine(args), look)
    table = []
    for ns in shot.observation.namespaces:
        mine = shot.sockets.netns == ns.inode
        counts = np.bincount(shot.sockets.state[mine], minlength=16)
        settings = shot.view.namespaces[ns.inode]
        comm = ""
        if ns.pids:
            files = shot.machine.processes(ns.pids[:1]).get(ns.pids[0])
            if files is not None:
                from finwait.attribution.process import process

                comm = process(ns.pids[0], files, shot.observation.facts).comm
        table.append(
            {
                "inode": ns.inode,
                "names": list(settings.names),
                "processes": ns.process_count,
                "first_pid": ns.pids[0] if ns.pids else None,
                "comm": comm,
                "states": {tcp.state_name(k): int(n) for k, n in enumerate(counts) if n},
                "conntrack_entries": settings.sysctl("netfilter/nf_conntrack_count"),
                "tcp_fin_timeout": settings.sysctl("ipv4/tcp_fin_timeout"),
            }
        )
    if args.output == "json":
        out = {"apiVersion": "finwait/v1", "kind": "NetworkNamespaceList", "items": table}
        options.write([msgspec.json.encode(out).decode() + "\n"])
    else:
        heads = (
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
        lines = [heads]
        for item in table:
            states: dict[str, int] = item["states"]  # type: ignore[assignment]
            first = f"{item['comm']}({item['first_pid']})" if item["first_pid"] else "-"
            entries = item["conntrack_entries"]
            lines.append(
                (
                    str(item["inode"]),
                    ",".join(item["names"]) or "-",  # type: ignore[arg-type]
                    str(item["processes"]),
                    first,
                    *(str(states.get(name, 0)) for name in _SHOWN),
                    "-" if entries is None else str(entries),
                )
            )
        widths = [max(len(line[k]) for line in lines) for k in range(len(heads))]
        for line in lines:
            text = "  ".join(
                c.ljust(w) if k in (1, 3) else c.rjust(w)
                for k, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            options.write([text.rstrip() + "\n"])
    options.tell_gaps(shot.gaps)
    return options.status(shot.gaps)

"""``finwait conntrack``: tracking entries beside the sockets at both ends, mismatches first."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from finwait.cli import options
from finwait.selecting import mask_of, parse_filter

if TYPE_CHECKING:
    from finwait.attribution.tracked import Seen, Tracked
    from finwait.remedy.guards import Limits
    from finwait.session import Snapshot
    from finwait.table.flows import FlowTable

__all__ = ["add_parser", "run"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "conntrack",
        help="connection tracking entries beside the sockets at both ends, mismatches first",
        description="Join the connection tracking entries of every namespace with the sockets at both ends, and "
        "show first where they disagree. A FILTER selects sockets; entries of either end are shown.",
    )
    options.add_filter(parser)
    options.add_look(parser)
    options.add_output(parser, ("text", "json"))
    parser.add_argument("--all", action="store_true", help="also show entries that agree with their sockets")
    act = parser.add_argument_group("acting")
    act.add_argument(
        "--delete",
        action="store_true",
        help="delete the mismatched entries that are shown; closes no connection, see CAVEATS",
    )
    act.add_argument(
        "--yes", action="store_true", help="do it; without it, finwait only shows what would be deleted"
    )
    act.add_argument(
        "--max",
        type=options.at_least_one,
        default=100,
        metavar="N",
        help="refuse to delete more than N entries (default 100)",
    )
    act.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="GUARD",
        help="overrule a guard by name (repeatable): live-end, holder-unknown, protected, max",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from finwait import session
    from finwait.attribution.tracked import tracked, untracked
    from finwait.diagnosis.assemble import loopback
    from finwait.errors import UsageError
    from finwait.table.flows import FlowTable

    if args.recording and args.delete:
        raise UsageError("`--delete`: cannot act on a recording")
    args.established = "always" if args.established == "auto" else args.established
    found = parse_filter(args.filter)
    shot = session.look(options.machine(args), options.how(args))
    flows = shot.flows if shot.flows is not None else FlowTable.empty()
    near = loopback(shot.sockets)
    spaces = shot.view.namespaces
    local = {
        number: frozenset(a for a in ns.addresses if not _loopback(a))
        for number, ns in spaces.items()
        if ns.dumped
    }
    islands = {number: ns.island for number, ns in spaces.items()}
    dumped = frozenset(number for number, ns in spaces.items() if ns.dumped)
    joined = tracked(shot.sockets, flows, local, dumped, whole=shot.view.whole, islands=islands)
    mask = mask_of(found, shot)
    tracking = {
        ns.inode for ns in shot.observation.namespaces if any(d.kind == "conntrack" for d in ns.dumps)
    }
    lone = [r for r in untracked(shot.sockets, shot.view.has_flow, near, tracking).tolist() if mask[r]]
    order = [
        k
        for k in range(len(joined.flow))
        if not args.filter or any(end >= 0 and mask[end] for end in (joined.client[k], joined.server[k]))
    ]
    order.sort(key=lambda k: (not joined.mismatch[k], not joined.passing[k], joined.verdict[k]))
    wrong = [k for k in order if joined.mismatch[k]]
    shown = order if args.all else wrong
    rules, more = _rules(tracking) if shot.machine.live else ({}, [])
    if args.output == "json":
        _json(shot, flows, joined, shown, lone, rules)
    else:
        _text(shot, flows, joined, shown, order, lone, rules)
    options.tell_gaps((*shot.gaps, *more))
    if args.delete:
        return _delete(args, shot, flows, joined, wrong)
    return options.status((*shot.gaps, *more))


def _loopback(address: tuple[int, int]) -> bool:
    return address == (0, 1) or (address[0] == 0 and address[1] >> 24 == (0xFFFF << 32 | 127 << 24) >> 24)


def _rules(tracking: set[int]) -> tuple[dict[int, Any], list[Any]]:
    from finwait.kernel import netns, procfs, ruleset
    from finwait.uapi.ruleset import tracking_rules

    spaces = [n for n in netns.discover(procfs.descriptors()[1])[0] if n.inode in tracking]
    texts, gaps = ruleset.rulesets(spaces)
    return {inode: rules for inode, text in texts.items() if (rules := tracking_rules(text))}, gaps


def _tuple(f: FlowTable, k: int, which: str) -> str:
    from finwait.table.sockets import address_text

    src, dst = (address_text(*(int(x) for x in f[f"{which}_{end}"][k])) for end in ("src", "dst"))
    return f"{src}:{int(f[f'{which}_sport'][k])} → {dst}:{int(f[f'{which}_dport'][k])}"


_NO_SOCKET: dict[Seen, str] = {
    "socket": "",
    "gone": "gone: its address is here, and no such socket",
    "elsewhere": "not on this machine",
    "not-looked-at": "not looked at: not every namespace was",
}


def _end(shot: Snapshot, row: int, seen: Seen) -> str:
    import numpy as np

    from finwait.report.columns import Cells

    if row < 0:
        return _NO_SOCKET[seen]
    cells = Cells(shot.view, np.array([row], np.int64))
    return f"{cells.column('state_name')[0]} {cells.column('owner')[0]}"


def _entry(flows: FlowTable, k: int) -> dict[str, Any]:
    from finwait.uapi.conntrack import STATUS_NAMES, TCP_STATES

    status = int(flows.status[k])
    return {
        "netns": int(flows.netns[k]),
        "original": _tuple(flows, k, "orig"),
        "reply": _tuple(flows, k, "reply"),
        "state": TCP_STATES.get(int(flows.tcp_state[k]), "?"),
        "timeout_s": int(flows.timeout_s[k]) if flows.present("timeout_s")[k] else None,
        "status": [name for bit, name in STATUS_NAMES.items() if status >> bit & 1],
        "zone": int(flows.zone[k]),
        "mark": int(flows.mark[k]),
        "id": int(flows.id[k]),
        "nat": bool(flows.natted()[k]),
    }


def _json(
    shot: Snapshot,
    flows: FlowTable,
    joined: Tracked,
    shown: list[int],
    lone: list[int],
    rules: dict[int, Any],
) -> None:
    import msgspec
    import numpy as np

    from finwait.report.json import connections

    def socket(row: int) -> Any:  # noqa: ANN401
        if row < 0:
            return None
        return msgspec.Raw(connections(shot.view, np.array([row], np.int64), with_other=False)[0].encode())

    items = [
        {
            "entry": _entry(flows, int(joined.flow[k])),
            "client": socket(int(joined.client[k])),
            "server": socket(int(joined.server[k])),
            "verdict": joined.verdict[k],
            "client_seen": joined.client_seen[k],
            "server_seen": joined.server_seen[k],
        }
        for k in shown
    ]
    out = {
        "apiVersion": "finwait/v1",
        "kind": "ConntrackList",
        "items": items,
        "sockets_without_entry": [socket(r) for r in lone],
        "counters": {
            str(n): {
                k.removeprefix("conntrack."): v for k, v in ns.counters.items() if k.startswith("conntrack.")
            }
            for n, ns in shot.view.namespaces.items()
        },
        "rules": {str(n): list(found) for n, found in rules.items()},
    }
    sys.stdout.write(msgspec.json.encode(out).decode() + "\n")


def _text(
    shot: Snapshot,
    flows: FlowTable,
    joined: Tracked,
    shown: list[int],
    order: list[int],
    lone: list[int],
    rules: dict[int, Any],
) -> None:
    from collections import Counter

    from finwait.report.plan import wrapped

    counted = Counter(joined.verdict[k] for k in order)
    options.write(
        [
            f"{len(order)} TCP entries; "
            + (", ".join(f"{n} × {v}" for v, n in counted.most_common()) or "none")
            + "\n"
        ]
    )
    for k in shown:
        e = _entry(flows, int(joined.flow[k]))
        label = shot.view.namespaces[e["netns"]].label if e["netns"] in shot.view.namespaces else e["netns"]
        left = "offloaded" if e["timeout_s"] is None else f"{e['timeout_s']} s left"
        lines = [f"\n{joined.verdict[k]}\n  entry    {e['original']}  {e['state']}, {left}, in {label}\n"]
        if e["nat"]:
            lines.append(f"  answers  {e['reply']}  (translated)\n")
        lines.append(
            f"  client   {_end(shot, int(joined.client[k]), joined.client_seen[k])}\n"
            f"  server   {_end(shot, int(joined.server[k]), joined.server_seen[k])}\n"
        )
        options.write(lines)
    if lone:
        import numpy as np

        from finwait.report.columns import Cells

        cells = Cells(shot.view, np.array(lone[:20], np.int64))
        options.write([f"\n{len(lone)} sockets without an entry, in namespaces that track connections:\n"])
        for a, b, state, owner in zip(
            cells.column("local"),
            cells.column("peer"),
            cells.column("state_name"),
            cells.column("owner"),
            strict=True,
        ):
            options.write([f"  {a} → {b}  {state}  {owner}\n"])
        if len(lone) > 20:
            options.write([f"  … and {len(lone) - 20} more\n"])
    for number, ns in shot.view.namespaces.items():
        counters = {
            k: ns.counters.get(f"conntrack.{k}", 0)
            for k in ("invalid", "drop", "early_drop", "insert_failed")
        }
        said = ", ".join(f"{k} {v}" for k, v in counters.items() if v)
        if said:
            options.write([f"\ncounters of {ns.label}: {said}\n"])
        for rule in rules.get(number, ()):
            options.write(
                wrapped(f"rule of {ns.label}: {rule.kind} in {rule.where}: `{rule.rule}`", indent="")
            )


def _delete(
    args: argparse.Namespace, shot: Snapshot, flows: FlowTable, joined: Tracked, wrong: list[int]
) -> int:
    """Plan, and with ``--yes`` carry out, the deletion of entries; the status is 4 when guards kept all of them."""
    from collections import Counter

    from finwait.acting.entries import ENDED, delete_entries
    from finwait.errors import Refused
    from finwait.kernel.journal import opened
    from finwait.remedy.guards import ENTRY_GUARDS, guard_entry
    from finwait.report.plan import wrapped
    from finwait.table.units import printable

    options.tell_unfinished()
    limits = _limits(args)
    todo: list[int] = []
    left: Counter[tuple[str, str]] = Counter()
    for k in wrong:
        ends = tuple(int(r) for r in (joined.client[k], joined.server[k]) if r >= 0)
        seen = (("client", joined.client_seen[k]), ("server", joined.server_seen[k]))
        unseen = tuple(name for name, at in seen if at in ("elsewhere", "not-looked-at"))
        verdict = guard_entry(shot.view, ends, limits, unseen)
        if verdict is None:
            todo.append(k)
        else:
            left[verdict.guard, verdict.reason] += 1
    if len(todo) > args.max and "max" not in limits.override:
        raise Refused(
            "max",
            f"{len(todo)} entries, more than {args.max}",
            override=f"--max {len(todo)} or --override max",
        )
    tell = sys.stderr if args.output == "json" else sys.stdout
    said = [f"\n{len(todo)} entries to delete [destructive], {sum(left.values())} left alone.\n"]
    for (guard, reason), n in left.most_common():
        said += [f"\nleft alone ×{n} by guard `{guard}`:\n", *wrapped(reason)]
        said.append(f"  `--override {guard}` overrules that guard.\n")
    tell.writelines(printable(text, lines=True) for text in said)
    assert {guard for guard, _ in left} <= set(ENTRY_GUARDS)
    sys.stderr.write(
        "finwait: deleting an entry closes no connection. Where an end still lives, its next data\n"
        "  makes a new entry, but a FIN does not: it is lost, and the other end waits for ever.\n"
    )
    if not todo:
        return 4 if left else 0
    if not args.yes:
        sys.stderr.write(f"finwait: nothing was done to {len(todo)} entries; `--yes` does it\n")
        return 0
    which = [int(joined.flow[k]) for k in todo]
    results: dict[int, str] = {}
    with opened() as journal:
        try:
            delete_entries(flows, which, journal, [_entry(flows, k) for k in which], into=results)
        finally:
            if isinstance(sys.exc_info()[1], KeyboardInterrupt):
                deleted = sum(said in ENDED for said in results.values())
                sys.stderr.write(f"finwait: interrupted; {deleted} of {len(which)} entries are deleted\n")
            for k, result in sorted(results.items()):
                tell.write(printable(f"{result}: {_tuple(flows, which[k], 'orig')}\n", lines=True))
    return 0 if all(said in ENDED for said in results.values()) else 1


def _limits(args: argparse.Namespace) -> Limits:
    import os

    from finwait.errors import UsageError
    from finwait.remedy.guards import ENTRY_GUARDS, Limits

    for name in args.override:
        if name not in ENTRY_GUARDS:
            raise UsageError(
                f"`--override`: there is no guard `{name}` of entries",
                hint="guards: " + ", ".join(ENTRY_GUARDS),
            )
    return Limits(args.max, override=frozenset(args.override), own_pid=os.getpid())

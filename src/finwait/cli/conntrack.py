"""``finwait conntrack``: tracking entries beside the sockets at both ends, mismatches first."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from finwait.cli import options
from finwait.cli.streams import acts_told
from finwait.selecting import mask_of, parse_filter, undecided

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable

    from finwait.attribution.tracked import Seen, Tracked
    from finwait.diagnosis.view import NamespaceView
    from finwait.errors import Gap
    from finwait.remedy.guards import Limits
    from finwait.remedy.outcome import EntryOutcome
    from finwait.session import Snapshot
    from finwait.table.flows import FlowTable
    from finwait.uapi.ruleset import TrackingRule

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
    row_filter = parse_filter(args.filter)
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
    mask = mask_of(row_filter, shot)
    why = undecided(row_filter, shot, None, mask)
    unjudged = (why,) if why is not None else ()
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
        _json((*unjudged, *shot.gaps, *more), shot, flows, joined, shown, lone, rules)
    else:
        _text(shot, flows, joined, shown, order, lone, rules)
    options.tell_gaps((*unjudged, *shot.gaps, *more))
    if args.delete:
        return _delete(args, shot, flows, joined, wrong) or options.status(unjudged)
    return options.status((*unjudged, *shot.gaps, *more))


def _loopback(address: tuple[int, int]) -> bool:
    return address == (0, 1) or (address[0] == 0 and address[1] >> 24 == (0xFFFF << 32 | 127 << 24) >> 24)


def _rules(tracking: set[int]) -> tuple[dict[int, Any], list[Any]]:
    from finwait.kernel import netns, procfs, ruleset
    from finwait.uapi.ruleset import tracking_rules

    spaces = [n for n in netns.discover(procfs.descriptors()[1])[0] if n.inode in tracking]
    texts, gaps = ruleset.rulesets(spaces)
    return {inode: rules for inode, text in texts.items() if (rules := tracking_rules(text))}, gaps


def _tuple(f: FlowTable, k: int, direction: str) -> str:
    from finwait.table.sockets import address_text

    src, dst = (address_text(*(int(x) for x in f[f"{direction}_{end}"][k])) for end in ("src", "dst"))
    return f"{src}:{int(f[f'{direction}_sport'][k])} → {dst}:{int(f[f'{direction}_dport'][k])}"


_NO_SOCKET: dict[Seen, str] = {
    "socket": "",
    "gone": "gone: its address is on this machine, but no such socket",
    "elsewhere": "not on this machine",
    "not-looked-at": "unknown: not every namespace was inspected",
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


def _entry_json(flows: FlowTable, k: int) -> dict[str, Any]:
    """Return an entry as JSON's types: its addresses as those of a connection."""
    from finwait.table.sockets import address_text

    def way(direction: str) -> dict[str, Any]:
        src, dst = (address_text(*(int(x) for x in flows[f"{direction}_{end}"][k])) for end in ("src", "dst"))
        sport, dport = (int(flows[f"{direction}_{end}port"][k]) for end in "sd")
        return {"src": src, "sport": sport, "dst": dst, "dport": dport}

    return _entry(flows, k) | {"original": way("orig"), "reply": way("reply")}


def _json(
    gaps: Iterable[Gap],
    shot: Snapshot,
    flows: FlowTable,
    joined: Tracked,
    shown: list[int],
    lone: list[int],
    rules: dict[int, Any],
) -> None:
    import numpy as np

    from finwait.report.json import objects
    from finwait.report.shape import document, encoded

    def socket(row: int) -> dict[str, Any] | None:
        return None if row < 0 else next(objects(shot.view, np.array([row], np.int64)))

    items = [
        {
            "entry": _entry_json(flows, int(joined.flow[k])),
            "client": socket(int(joined.client[k])),
            "server": socket(int(joined.server[k])),
            "verdict": joined.verdict[k],
            "client_seen": joined.client_seen[k],
            "server_seen": joined.server_seen[k],
        }
        for k in shown
    ]
    spaces = [
        {
            "netns": n,
            "netns_names": list(ns.names),
            "counters": {
                k.removeprefix("conntrack."): v for k, v in ns.counters.items() if k.startswith("conntrack.")
            },
            "rules": list(rules.get(n, ())),
        }
        for n, ns in shot.view.namespaces.items()
    ]
    members = {
        "items": items,
        "sockets_without_entry": [socket(r) for r in lone],
        "namespaces": spaces,
    }
    sys.stdout.write(encoded(document("ConntrackList", members, gaps)))


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

    counted = Counter(joined.verdict[k] for k in order)
    verdicts = ", ".join(f"{n} × {verdict}" for verdict, n in counted.most_common()) or "none"
    options.write([f"{len(order)} TCP entries; {verdicts}\n"])
    for k in shown:
        options.write(_entry_lines(shot, flows, joined, k))
    if lone:
        options.write(_lone_lines(shot, lone))
    for number, ns in shot.view.namespaces.items():
        options.write(_namespace_lines(ns, rules.get(number, ())))


def _entry_lines(shot: Snapshot, flows: FlowTable, joined: Tracked, k: int) -> list[str]:
    """Return an entry, with the socket at each of its ends."""
    entry = _entry(flows, int(joined.flow[k]))
    netns = entry["netns"]
    label = shot.view.namespaces[netns].label if netns in shot.view.namespaces else netns
    lifetime = "offloaded" if entry["timeout_s"] is None else f"{entry['timeout_s']} s left"
    lines = [
        f"\n{joined.verdict[k]}\n  entry    {entry['original']}  {entry['state']}, {lifetime}, in {label}\n"
    ]
    if entry["nat"]:
        lines.append(f"  answers  {entry['reply']}  (translated)\n")
    lines.append(
        f"  client   {_end(shot, int(joined.client[k]), joined.client_seen[k])}\n"
        f"  server   {_end(shot, int(joined.server[k]), joined.server_seen[k])}\n"
    )
    return lines


_MOST_LONE = 20
"""Sockets without an entry that are shown."""


def _lone_lines(shot: Snapshot, lone: list[int]) -> list[str]:
    """Return the sockets that have no entry although their namespace tracks connections."""
    import numpy as np

    from finwait.report.columns import Cells

    cells = Cells(shot.view, np.array(lone[:_MOST_LONE], np.int64))
    columns = [cells.column(name) for name in ("local", "peer", "state_name", "owner")]
    lines = [f"\n{len(lone)} sockets without an entry, in namespaces that track connections:\n"]
    lines += [
        f"  {local} → {peer}  {state}  {owner}\n" for local, peer, state, owner in zip(*columns, strict=True)
    ]
    if len(lone) > _MOST_LONE:
        lines.append(f"  … and {len(lone) - _MOST_LONE} more\n")
    return lines


def _namespace_lines(ns: NamespaceView, rules: Iterable[TrackingRule]) -> list[str]:
    """Return the counters of a namespace that are not 0, and its rules about tracking."""
    from finwait.report.plan import wrapped

    counts = {
        name: ns.counters.get(f"conntrack.{name}", 0)
        for name in ("invalid", "drop", "early_drop", "insert_failed")
    }
    counters = ", ".join(f"{name} {n}" for name, n in counts.items() if n)
    lines = [f"\ncounters of {ns.label}: {counters}\n"] if counters else []
    for rule in rules:
        lines += wrapped(f"rule of {ns.label}: {rule.kind} in {rule.where}: `{rule.rule}`", indent="")
    return lines


def _delete(
    args: argparse.Namespace, shot: Snapshot, flows: FlowTable, joined: Tracked, wrong: list[int]
) -> int:
    """Plan, and with ``--yes`` carry out, the deletion of entries; the status is 4 when guards kept all of them."""
    from finwait.acting.entries import delete_entries
    from finwait.errors import Refused
    from finwait.kernel.journal import opened
    from finwait.remedy.guards import ENTRY_GUARDS
    from finwait.report.outcome import entry_text
    from finwait.report.plan import wrapped
    from finwait.table.units import printable

    options.tell_unfinished()
    limits = _limits(args)
    todo, left_alone = _guarded(shot, joined, wrong, limits)
    if len(todo) > args.max and "max" not in limits.override:
        raise Refused(
            "max",
            f"{len(todo)} entries, more than {args.max}",
            override=f"--max {len(todo)} or --override max",
        )
    tell = sys.stderr if args.output == "json" else sys.stdout
    lines = [f"\n{len(todo)} entries to delete [destructive], {sum(left_alone.values())} left alone.\n"]
    for (guard, reason), n in left_alone.most_common():
        lines += [f"\nleft alone ×{n} by guard `{guard}`:\n", *wrapped(reason)]
        lines.append(f"  `--override {guard}` overrules that guard.\n")
    tell.writelines(printable(text, lines=True) for text in lines)
    assert {guard for guard, _ in left_alone} <= set(ENTRY_GUARDS)
    sys.stderr.write(
        "finwait: deleting an entry closes no connection. If an end is still alive, its next data\n  makes "
        "a new entry, but a FIN does not: the FIN is lost, and the other end waits for ever.\n"
    )
    if not todo:
        return 4 if left_alone else 0
    if not args.yes:
        sys.stderr.write(f"finwait: nothing was done; add `--yes` to delete {len(todo)} entries\n")
        return 0
    rows = [int(joined.flow[k]) for k in todo]
    results: dict[int, EntryOutcome] = {}
    with opened() as journal:
        try:
            delete_entries(flows, rows, journal, [_entry(flows, k) for k in rows], into=results)
        finally:
            if isinstance(sys.exc_info()[1], KeyboardInterrupt):
                deleted = sum(outcome.gone for outcome in results.values())
                sys.stderr.write(f"finwait: interrupted; {deleted} of {len(rows)} entries are deleted\n")
            with acts_told(
                lambda: f"{sum(o.gone for o in results.values())} of {len(rows)} entries are deleted"
            ):
                tell.writelines(
                    printable(f"{entry_text(outcome)}: {_tuple(flows, rows[k], 'orig')}\n", lines=True)
                    for k, outcome in sorted(results.items())
                )
    return 0 if all(outcome.gone for outcome in results.values()) else 1


def _guarded(
    shot: Snapshot, joined: Tracked, wrong: list[int], limits: Limits
) -> tuple[list[int], Counter[tuple[str, str]]]:
    """Return which entries may be deleted, and how many are left alone by which guard and for which reason."""
    from collections import Counter

    from finwait.remedy.guards import guard_entry

    todo: list[int] = []
    left_alone: Counter[tuple[str, str]] = Counter()
    for k in wrong:
        ends = tuple(int(r) for r in (joined.client[k], joined.server[k]) if r >= 0)
        seen = (("client", joined.client_seen[k]), ("server", joined.server_seen[k]))
        unseen = tuple(name for name, at in seen if at in ("elsewhere", "not-looked-at"))
        verdict = guard_entry(shot.view, ends, limits, unseen)
        if verdict is None:
            todo.append(k)
        else:
            left_alone[verdict.guard, verdict.reason] += 1
    return todo, left_alone


def _limits(args: argparse.Namespace) -> Limits:
    import os

    from finwait.errors import UsageError
    from finwait.remedy.guards import ENTRY_GUARDS, Limits

    for name in args.override:
        if name not in ENTRY_GUARDS:
            raise UsageError(
                f"`--override`: entries have no guard `{name}`",
                hint="guards: " + ", ".join(ENTRY_GUARDS),
            )
    return Limits(args.max, override=frozenset(args.override), own_pid=os.getpid())

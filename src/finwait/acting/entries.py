"""Connection tracking entries, deleted by tuple, zone and id."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finwait.acting.identity import ActJournal, namespaces_of, quiet
from finwait.errors import KernelError
from finwait.kernel import interruption
from finwait.kernel import netns as ns_edge
from finwait.kernel.interruption import check, interrupted, noted
from finwait.kernel.netlink import NETLINK_NETFILTER, netlink_socket, request
from finwait.remedy.journal import Act
from finwait.remedy.outcome import EntryOutcome
from finwait.report.outcome import entry_text
from finwait.table.flows import FlowTable
from finwait.uapi import conntrack, inet_diag

__all__ = ["delete_entries"]


@noted()
def delete_entries(
    flows: FlowTable,
    rows: Sequence[int],
    journal: ActJournal,
    described: Sequence[Mapping[str, Any]],
    fault: Callable[[str], None] = quiet,
    into: dict[int, EntryOutcome] | None = None,
) -> list[EntryOutcome]:
    """Delete tracking entries, each by tuple, zone and id, in its namespace; return what came of each.

    The id is checked by the kernel: an entry that took over the tuple is not hit. Interrupted, no further entry is
    deleted, and what was done is written down.

    Args:
        flows: the tracking entries.
        rows: rows of it.
        journal: where acts are written down before they are done.
        described: what the journal is to say of each.
        fault: called with the name of each stage; a test's way to stop in the middle.
        into: takes what came of each, by index, also when this raises or is interrupted.

    Raises:
        KernelError: the journal could not be written; nothing was done but what ``into`` says.
    """
    acts = [
        Act("conntrack-delete", dict(entry), dict(entry), {}, "conntrack --delete") for entry in described
    ]
    check()
    ids = journal.record_many(acts)
    fault("journaled")
    by_ns: dict[int, list[int]] = {}
    for k, row in enumerate(rows):
        by_ns.setdefault(int(flows.netns[row]), []).append(k)
    done: dict[int, EntryOutcome] = {}
    results = {} if into is None else into
    stop = interruption.stop()

    def inside(ns: ns_edge.NetNamespace) -> None:
        with netlink_socket(NETLINK_NETFILTER, "open a conntrack socket") as sock:
            for k in by_ns[ns.inode]:
                if stop.is_set():
                    return
                done[k] = _delete_entry(sock, flows, rows[k])

    undone = EntryOutcome("interrupted")
    try:
        ns_edge.visit(namespaces_of(by_ns), inside, stop=stop)
        if not interrupted():
            undone = EntryOutcome("failed", "its namespace could not be entered")
        fault("acted")
    finally:
        results |= {k: done.get(k, undone) for k in range(len(rows))}
        journal.complete_many({act: _journaled(results[k]) for k, act in enumerate(ids)})
    check()
    return [results[k] for k in range(len(rows))]


def _journaled(outcome: EntryOutcome) -> dict[str, str]:
    return {"result" if outcome.gone else "error": entry_text(outcome)}


def _delete_entry(sock: Any, flows: FlowTable, row: int) -> EntryOutcome:  # noqa: ANN401 - socket.socket
    family = int(flows.family[row])
    ends = []
    for name in ("orig_src", "orig_dst"):
        high, low = (int(x) for x in flows[name][row])
        ends.append(
            (low & 0xFFFFFFFF).to_bytes(4, "big")
            if family == inet_diag.AF_INET
            else high.to_bytes(8, "big") + low.to_bytes(8, "big")
        )
    original = conntrack.FlowTuple(
        family,
        int(flows.protocol[row]),
        ends[0],
        ends[1],
        int(flows.orig_sport[row]),
        int(flows.orig_dport[row]),
    )
    zone = int(flows.zone[row]) if flows.present("zone")[row] else None
    message = conntrack.entry_request(conntrack.CT_DELETE, original, zone=zone, identity=int(flows.id[row]))
    try:
        request(sock, message, "delete a conntrack entry")
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return EntryOutcome("gone before")
        return EntryOutcome("failed", str(error))
    return EntryOutcome("deleted")

"""One module a rule: its docstring is its page, `RULE` its data, `match` what it sees.

What several rules say in the same words is here once: what people try, and why it does nothing; and what several
of them ask of a row that not every kernel answers. A column that a kernel lacks makes a rule less sure, or leaves a
gap; it never makes it silent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.attribution.container import NOWHERE, workload_of_path
from finwait.attribution.mptcp import MPTCP, subflows
from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy
from finwait.diagnosis.view import View
from finwait.errors import Gap
from finwait.table.sockets import SocketTable

__all__ = [
    "BOUND_IN_FLIGHT",
    "CLOSE_AT_PEER",
    "MOMENT_MS",
    "NOT_CONNTRACK",
    "NOT_FIN_TIMEOUT",
    "NOT_KEEPALIVE_ALIVE",
    "NOT_USER_TIMEOUT_IDLE",
    "NOT_WAITING_FOR_THE_GONE",
    "PREVENT_SILENCE",
    "RECENT_MS",
    "absence",
    "certain",
    "destroy",
    "holder_names",
    "just_received",
    "just_sent",
    "likely",
    "look_again",
    "mptcp_rows",
    "orphans",
    "peer_absent",
    "peer_doubtful",
    "peer_missing",
    "peer_unseen",
    "possible",
    "probe",
    "silence",
    "silence_of",
    "unclocked",
]

RECENT_MS = 3000
"""Data that passed so short ago leaves open, in a single look, whether more is coming."""
MOMENT_MS = 1000
"""Dumps are not taken at one instant: of an end that was heard of so short ago, they may contradict each other."""

NOT_FIN_TIMEOUT = Advice(
    "lower `net.ipv4.tcp_fin_timeout`",
    "it counts from the close() of the last descriptor; a socket that a descriptor still refers to never starts it",
    proofs=("held-and-orphan",),
)
NOT_KEEPALIVE_ALIVE = Advice(
    "turn on keepalive while the peer lives",
    "a peer that merely does not close answers every probe, for ever; one that is gone a probe ends: `finwait probe`",
    proofs=("live-peer-answers", "half-close-without-a-peer"),
)
NOT_USER_TIMEOUT_IDLE = Advice(
    "set TCP_USER_TIMEOUT",
    "it limits data that is not acknowledged; here nothing is in flight",
    proofs=("dead-peer",),
)
NOT_CONNTRACK = Advice(
    "lower `nf_conntrack_tcp_timeout_close_wait`",
    "conntrack closes no socket; it forgets the NAT mapping, and then the missing FIN can never arrive",
    proofs=("flows-are-not-sockets",),
)
NOT_WAITING_FOR_THE_GONE = Advice(
    "wait for the peer", "its kernel has no such connection: neither data nor a FIN will ever come"
)
PREVENT_SILENCE = Remedy(
    "keepalive in the program, shorter than the shortest idle limit on the path, prevents the next one"
)
BOUND_IN_FLIGHT = Remedy(
    "TCP_USER_TIMEOUT in the program bounds the next one: keepalive does not run meanwhile",
    proofs=("dead-peer", "retransmission-limits"),
)
CLOSE_AT_PEER = Remedy("close the connection at the other end: its FIN finishes this end properly")


def certain(reason: str) -> Confidence:
    """Return full confidence, with its reason."""
    return Confidence("certain", reason)


def likely(reason: str) -> Confidence:
    """Return the confidence of a pattern that has another, rarer explanation."""
    return Confidence("likely", reason)


def possible(reason: str) -> Confidence:
    """Return the confidence of a suspicion that only a probe can settle."""
    return Confidence("possible", reason)


def look_again(reason: str) -> Confidence:
    """Return the confidence of what a single look cannot tell from health, and a second one a few seconds on can."""
    return Confidence("possible", reason, look_again=True)


def holder_names(view: View, row: int) -> str:
    """Return the programs that hold a row, each with its pid, its descriptors and its unit, pod or container."""
    fds: dict[int, list[int]] = {}
    for pid, fd in view.holders.of(row):
        fds.setdefault(pid, []).append(fd)
    if not fds:
        return (
            "no process"
            if view.holders.complete
            else "an unknown program (not every process could be inspected)"
        )
    names = [_holder_name(view, pid, fds[pid]) for pid in sorted(fds)[:3]]
    if len(fds) > 3:
        names.append(f"{len(fds) - 3} more processes")
    return ", ".join(names)


def _holder_name(view: View, pid: int, fds: list[int]) -> str:
    process = view.processes.get(pid)
    at = f"fd {fds[0]}" if len(fds) == 1 else f"{len(fds)} descriptors"
    if process is None:
        return f"pid {pid} ({at})"
    work = workload_of_path(process.cgroup) if process.cgroup else NOWHERE
    where = f"pod {work.pod_uid}" if work.pod_uid else work.unit
    if not where and work.container_id:
        where = f"container {work.container_id[:12]}"
    return f"{process.comm} (pid {pid}, {at}{', ' + where if where else ''})"


def just_received(view: View) -> NDArray[np.bool_]:
    """Return on which rows a single look cannot say whether data is still arriving.

    It came a moment ago; or this kernel does not tell when, or whether any came at all.
    """
    s = view.sockets
    any_came = (s.bytes_received > 0) | ~s.present("bytes_received")
    recent = (s.last_data_recv_ms < RECENT_MS) | ~s.present("last_data_recv_ms")
    fresh: NDArray[np.bool_] = any_came & recent & ~view.moved_known
    return fresh


def just_sent(view: View) -> NDArray[np.bool_]:
    """Return on which rows a single look cannot say whether data is still going out; as `just_received`."""
    s = view.sockets
    any_went = (s.bytes_acked > 1) | ~s.present("bytes_acked")  # the SYN counts 1
    recent = (s.last_data_sent_ms < RECENT_MS) | ~s.present("last_data_sent_ms")
    fresh: NDArray[np.bool_] = any_went & recent & ~view.moved_known
    return fresh


def silence(view: View, *clocks: str) -> NDArray[np.int64]:
    """Return for how long nothing has happened by some clocks of tcp_info, in ms; −1 where none of them is there."""
    return silence_of(view.sockets, *clocks)


def silence_of(sockets: SocketTable, *clocks: str) -> NDArray[np.int64]:
    """As `silence`, of a table; of an MPTCP connection by the clocks of its subflows."""
    never = np.iinfo(np.int64).max
    quiet = np.full(len(sockets), never, np.int64)
    for name in clocks:
        quiet = np.minimum(
            quiet, np.where(sockets.present(name), sockets.column(name).astype(np.int64), never)
        )
    whole, part = subflows(sockets)
    np.minimum.at(quiet, whole, quiet[part])
    return np.where(quiet == never, -1, quiet)


def unclocked(
    view: View,
    rows: NDArray[np.bool_],
    clocks: tuple[str, ...] = ("last_data_sent_ms", "last_data_recv_ms"),
) -> list[Gap]:
    """Return the gaps that open connections leave when nothing says since when they are silent."""
    whole, _ = subflows(view.sockets)
    bare = (
        view.sockets.protocol != 6
    )  # MPTCP without a subflow has no clocks on any kernel: `mptcp-no-subflow`
    bare[whole] = False
    blind = rows & ~bare & (silence(view, *clocks) < 0)
    return [
        Gap.of_namespace(
            netns,
            f"tell since when {n} open connection{'s are' if n > 1 else ' is'} silent",
            "a kernel that reports tcp_info with its clocks",
        )
        for netns, n in zip(
            *(part.tolist() for part in np.unique(view.sockets.netns[blind], return_counts=True)), strict=True
        )
    ]


def peer_missing(view: View) -> NDArray[np.bool_]:
    """Return rows whose other end must be here and is not.

    Its address is local to a swept namespace, and this is known to be the namespace that they reach.
    """
    return peer_doubtful(view) & view.peer_reached


def peer_doubtful(view: View) -> NDArray[np.bool_]:
    """Return rows whose other end's address a swept namespace has that has no such connection.

    Where nothing shows that the rows reach this namespace, the address is also that of a stranger: no statement about
    the peer may rest on it (`peer_missing`).
    """
    return peer_absent(view) & ~view.has_flow


def peer_absent(view: View) -> NDArray[np.bool_]:
    """Return rows without another end although a swept namespace has its address, also after a translation.

    The two ends are dumped one after the other: one that was opened in between is not in the dump that came first,
    and of one that was closed in between only the first dump tells. A row that was heard of a moment ago, or since the
    look began, proves nothing; after two looks it must have been there, and without another end, at both.
    """
    absent = view.peer_here & (view.other < 0) & ~view.other_ambiguous & (view.other_possible < 0)
    if not absent.any():
        return absent
    quiet = silence(view, "last_data_recv_ms", "last_ack_recv_ms")
    if view.lone_before is None:
        return absent & (quiet >= max(MOMENT_MS, view.took_ms))
    return absent & view.lone_before & ((quiet < 0) | (quiet >= view.took_ms))


def absence(view: View, reason: str) -> Confidence:
    """Return the confidence in the absence of other ends: in a single look one may have been closed meanwhile."""
    if view.lone_before is not None:
        return likely(f"{reason}, in both of two looks")
    return look_again(f"{reason}; it may have been closed during this look, `--for 5s` looks twice and tells")


def mptcp_rows(view: View) -> NDArray[np.bool_]:
    """Return rows of MPTCP connections: settings and acts of TCP reach their subflows, not them."""
    rows: NDArray[np.bool_] = view.sockets.protocol == MPTCP
    return rows


def peer_unseen(view: View) -> NDArray[np.bool_]:
    """Return rows of which nothing here says whether their peer lives."""
    unseen: NDArray[np.bool_] = (view.other < 0) & ~peer_missing(view)
    return unseen


def probe(rule: str) -> Remedy:
    """Return what tells a peer that lives from one that is gone, where nothing here does."""
    return Remedy(
        "probe it: if the peer is gone this ends it within seconds, if it lives nothing else happens",
        "reversible",
        f"finwait probe rule = {rule}",
        proofs=("half-close-without-a-peer", "live-peer-answers"),
    )


def orphans(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    """Return how many orphans the machine has beside its limit, where rows are such."""
    mine = view.sockets.netns[rows[~view.held[rows] & ~view.queued[rows]]]
    spaces = [view.namespaces[n] for n in np.unique(mine).tolist() if n in view.namespaces]
    counts = [ns.counters["sockstat.TCP.orphan"] for ns in spaces if "sockstat.TCP.orphan" in ns.counters]
    if not counts:
        return ()
    # The count is the machine's, and every namespace tells it. The limit has a file in the initial namespace alone.
    limits = [n for ns in view.namespaces.values() if (n := ns.sysctl("ipv4/tcp_max_orphans")) is not None]
    if not limits:
        return (
            Evidence(
                "orphans",
                f"{max(counts)}, limit unknown",
                "/proc/net/sockstat",
                "of the whole machine; tcp_max_orphans can only be read in the initial network namespace",
            ),
        )
    count, limit = max(counts), limits[0]
    says = "of the whole machine; far from the limit, at which the kernel resets them"
    if (
        4 * count > limit
    ):  # tcp_out_of_resources() counts double those that were silent for long or met errors
        says = (
            "of the whole machine; the kernel resets those above the limit, and some from a quarter of it on "
            "(`too many orphaned sockets` in its log): raising it helps"
        )
    return (Evidence("orphans", f"{count} of {limit}", "/proc/net/sockstat and tcp_max_orphans", says),)


def destroy(rule: str) -> Remedy:
    """Return the remedy that always works on a socket of a rule, and always leaves something behind."""
    return Remedy(
        "destroy this end (SOCK_DESTROY): the peer gets a RST; the descriptor stays open in the process",
        "destructive",
        f"finwait clear --with destroy {rule}",
        proofs=("destroyed",),
    )

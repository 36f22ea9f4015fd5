"""One module a rule: its docstring is its page, `RULE` its data, `match` what it sees.

What several rules say in the same words is here once: what people try, and why it does nothing; and what several
of them ask of a row that not every kernel answers. A column that a kernel lacks makes a rule less sure, or leaves a
gap; it never makes it silent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from finwait.attribution.container import NOWHERE, workload_of_path
from finwait.attribution.mptcp import MPTCP
from finwait.diagnosis.activity import RECENT_MS
from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy
from finwait.diagnosis.view import View
from finwait.errors import Gap
from finwait.table.units import duration_text
from finwait.uapi import tcp
from finwait.uapi.observation import UNTOLD_FD
from finwait.uapi.sets import distinct

__all__ = [
    "BOUND_IN_FLIGHT",
    "CLOSE_AT_PEER",
    "LONG_WORK",
    "MOMENT_MS",
    "NOT_CONNTRACK",
    "NOT_FIN_TIMEOUT",
    "NOT_KEEPALIVE_ALIVE",
    "NOT_USER_TIMEOUT_IDLE",
    "NOT_WAITING_FOR_THE_GONE",
    "PREVENT_SILENCE",
    "RECENT_MS",
    "UNLESS_SET",
    "absence",
    "by_namespace",
    "certain",
    "destroy",
    "holder_names",
    "just_received",
    "just_seen",
    "just_sent",
    "likely",
    "look_again",
    "may_answer",
    "mptcp_rows",
    "orphans",
    "peer_absent",
    "peer_doubtful",
    "peer_missing",
    "peer_unseen",
    "possible",
    "probe",
    "silence",
    "unclocked",
    "uncounted",
    "watched_long",
]

MOMENT_MS = 1000
"""Dumps are not taken at one instant: of an end that was heard of so short ago, they may contradict each other."""

UNLESS_SET = "unless TCP_USER_TIMEOUT or TCP_RTO_MAX_MS is set"
"""What may change a predicted time, and sock_diag does not tell."""

NOT_FIN_TIMEOUT = Advice(
    "lower `net.ipv4.tcp_fin_timeout`",
    "it starts when the last descriptor is closed; a socket with an open descriptor never starts it",
    proofs=("held-and-orphan",),
)
NOT_KEEPALIVE_ALIVE = Advice(
    "turn on keepalive while the peer lives",
    "a live peer answers every probe, for ever, even if it never closes; if the peer is gone, "
    "`finwait probe` ends the connection",
    proofs=("live-peer-answers", "half-close-without-a-peer"),
)
NOT_USER_TIMEOUT_IDLE = Advice(
    "set TCP_USER_TIMEOUT",
    "it limits unacknowledged data; nothing is in flight here",
    proofs=("dead-peer",),
)
NOT_CONNTRACK = Advice(
    "lower `nf_conntrack_tcp_timeout_close_wait`",
    "conntrack closes no socket; it drops the NAT mapping, and then the missing FIN can never arrive",
    proofs=("flows-are-not-sockets",),
)
NOT_WAITING_FOR_THE_GONE = Advice(
    "wait for the peer", "its kernel no longer has this connection; neither data nor a FIN will ever come"
)
PREVENT_SILENCE = Remedy(
    "enable keepalive in the program, with an interval shorter than the shortest idle limit on the path, to "
    "prevent the next one"
)
BOUND_IN_FLIGHT = Remedy(
    "set TCP_USER_TIMEOUT in the program to limit the next one; keepalive does not run while data is in flight",
    proofs=("dead-peer", "retransmission-limits"),
)
CLOSE_AT_PEER = Remedy(
    "close the connection at the other end; its FIN then closes this end cleanly", proofs=("owed-fin",)
)


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
        return f"an unknown program ({view.doubt_of(row)})" if view.holder_unknown[row] else "no process"
    names = [_holder_name(view, pid, fds[pid]) for pid in sorted(fds)[:3]]
    if len(fds) > 3:
        names.append(f"{len(fds) - 3} more processes")
    return ", ".join(names)


def _holder_name(view: View, pid: int, fds: list[int]) -> str:
    process = view.processes.get(pid)
    at = f"fd {fds[0]}" if len(fds) == 1 else f"{len(fds)} descriptors"
    if UNTOLD_FD in fds:
        at = "descriptor not told"
    if process is None:
        return f"pid {pid} ({at})"
    work = workload_of_path(process.cgroup) if process.cgroup else NOWHERE
    where = f"pod {work.pod_uid}" if work.pod_uid else work.unit
    if not where and work.container_id:
        where = f"container {work.container_id[:12]}"
    return f"{process.comm} (pid {pid}, {at}{', ' + where if where else ''})"


def just_received(view: View) -> NDArray[np.bool_]:
    """Return on which rows the looks cannot say whether data is still arriving.

    It came a moment ago; or this kernel does not tell when, or whether any came at all. Two looks that are closer
    together than `RECENT_MS` tell no more than one: a stream may rest for longer than they are apart.
    """
    s = view.sockets
    any_came = (s.bytes_received > 0) | ~s.present("bytes_received")
    recent = (s.last_data_recv_ms < RECENT_MS) | ~s.present("last_data_recv_ms")
    fresh: NDArray[np.bool_] = any_came & recent & ~watched_long(view)
    return fresh


def just_sent(view: View) -> NDArray[np.bool_]:
    """Return on which rows the looks cannot say whether data is still going out; as `just_received`.

    What was sent and is not acknowledged yet counts too. A `bytes_acked` of 1 is the SYN of an end that opened its
    connection, or one byte of an end that accepted it: segments with data tell (Linux 4.6), and without them
    the 1 is taken for data.
    """
    s = view.sockets
    sent = np.where(s.present("data_segs_out"), s.data_segs_out > 0, (s.bytes_acked > 0) | (s.wqueue > 0))
    any_went = sent | ~s.present("bytes_acked")
    recent = (s.last_data_sent_ms < RECENT_MS) | ~s.present("last_data_sent_ms")
    fresh: NDArray[np.bool_] = any_went & recent & ~watched_long(view)
    return fresh


def watched_long(view: View) -> NDArray[np.bool_]:
    """Return the rows whose movement is known, between looks that are at least `RECENT_MS` apart.

    Looks that are closer together tell what moved, but not that nothing does.
    """
    watched: NDArray[np.bool_] = view.moved_known & (view.watched_ms >= RECENT_MS)
    return watched


def just_seen(view: View) -> NDArray[np.bool_]:
    """Return rows that only the second of two looks saw, and that may be on their way through their state.

    Of those two looks tell no more than one would: a busy server always has such. After a single look there are none.
    """
    if view.lone_before is None:
        return np.zeros(len(view), np.bool_)
    fresh: NDArray[np.bool_] = (view.queue_before < 0) & (view.at_least_ms < RECENT_MS)
    return fresh


def silence(view: View, *clocks: str) -> NDArray[np.int64]:
    """Return for how long nothing has happened by some clocks of tcp_info, in ms; −1 where none of them is there."""
    return view.silence(*clocks)


def unclocked(
    view: View,
    rows: NDArray[np.bool_],
    clocks: tuple[str, ...] = ("last_data_sent_ms", "last_data_recv_ms"),
) -> list[Gap]:
    """Return the gaps that open connections leave when nothing says since when they are silent."""
    whole, _ = view.subflows
    bare = (
        view.sockets.protocol != 6
    )  # MPTCP without a subflow has no clocks on any kernel: `mptcp-no-subflow`
    bare[whole] = False
    blind = rows & ~bare & (silence(view, *clocks) < 0)
    return by_namespace(
        view,
        blind,
        lambda n: f"tell how long {n} open connection{'s have' if n > 1 else ' has'} been silent",
        "a kernel, or a text, that reports tcp_info with its clocks",
    )


def uncounted(view: View, rows: NDArray[np.bool_], fact: str, *columns: str) -> list[Gap]:
    """Return the gaps that TCP rows leave where the kernel does not send some columns.

    Minisockets have none of the counters on any kernel, nor has an MPTCP connection: that is no gap.

    Args:
        view: the connections.
        rows: what a rule would judge by these columns.
        fact: what it would tell by them: "whether data is still arriving".
        columns: names; one that a row lacks is enough.
    """
    s = view.sockets
    minisocket = np.isin(s.state, (tcp.TIME_WAIT, tcp.NEW_SYN_RECV)) | (s.timer == 3)
    lacking = np.zeros(len(view), np.bool_)
    for name in columns:
        lacking |= ~s.present(name)
    return by_namespace(
        view,
        rows & (s.protocol == 6) & ~minisocket & lacking,
        lambda n: f"tell {fact} of {n} connection{'s' * (n > 1)}",
        f"a kernel, or a text, that reports {' and '.join(columns)}",
    )


def by_namespace(view: View, rows: NDArray[np.bool_], doing: Callable[[int], str], needs: str) -> list[Gap]:
    """Return a gap for each namespace with such rows; ``doing`` says what could not be done, of their number."""
    counted = np.unique(view.sockets.netns[rows], return_counts=True)
    return [
        Gap.of_namespace(netns, doing(n), needs)
        for netns, n in zip(*(part.tolist() for part in counted), strict=True)
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
        return likely(f"{reason} in two looks")
    return look_again(f"{reason}; it may have been closed during this look, check with `--for 5s`")


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
        "probe it: if the peer is gone, the connection ends within seconds; if the peer is alive, nothing "
        "else happens",
        "reversible",
        f"finwait probe rule = {rule}",
        proofs=("half-close-without-a-peer", "live-peer-answers"),
    )


def orphans(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    """Return how many orphans the machine has beside its limit, where rows are such."""
    netns = view.sockets.netns[rows[~view.held[rows] & ~view.queued[rows]]]
    spaces = [view.namespaces[n] for n in distinct(netns).tolist() if n in view.namespaces]
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
                "for the whole machine; tcp_max_orphans is readable only in the initial network namespace",
            ),
        )
    count, limit = max(counts), limits[0]
    says = "for the whole machine; far below the limit at which the kernel resets orphans"
    if (
        4 * count > limit
    ):  # tcp_out_of_resources() counts double those that were silent for long or met errors
        says = (
            "for the whole machine; the kernel resets orphans above the limit, and some from a quarter of it "
            "(it logs `too many orphaned sockets`); a higher limit helps"
        )
    return (Evidence("orphans", f"{count} of {limit}", "/proc/net/sockstat and tcp_max_orphans", says),)


def destroy(rule: str) -> Remedy:
    """Return the remedy that always works on a socket of a rule, and always leaves something behind."""
    return Remedy(
        "destroy this end (SOCK_DESTROY): the peer gets a RST; the descriptor stays open in the process",
        "destructive",
        f"finwait clear --with destroy {rule}",
        proofs=("destroyed",),
        unheld="destroy this end (SOCK_DESTROY): the peer gets a RST",
    )


def may_answer(view: View) -> NDArray[np.bool_]:
    """Return rows of a half-close whose answer may still be on its way: long work looks as an end that is forgotten.

    The end in FIN_WAIT2 waits, the one in CLOSE_WAIT owes the answer. Where the other end is elsewhere, that may be so.
    """
    state, other = view.sockets.state, np.maximum(view.other, 0)
    waits, owes = (view.held & (state == name) for name in (tcp.FIN_WAIT2, tcp.CLOSE_WAIT))
    elsewhere = (view.other < 0) & ~peer_missing(view)
    rows: NDArray[np.bool_] = (owes & np.where(view.other >= 0, waits[other], elsewhere)) | (
        waits & np.where(view.other >= 0, owes[other], elsewhere)
    )
    return rows


def paused_relay(view: View, subject: str) -> Confidence:
    """Return the confidence in rows that a relay may leave alone until there is room on its other leg.

    One look does not tell whether that leg moves; a second one does.
    """
    how_sure = look_again if view.lone_before is None else possible
    return how_sure(
        f"{subject} may be waiting for room on another connection, as a relay with a slow client does; it counts as "
        f"stuck once it has lasted for {duration_text(view.options.idle_ms)} (`--idle`)"
    )


def only_kernel_sends(view: View, rows: NDArray[np.int64]) -> Confidence | None:
    """Return the confidence in rows of which the peer still takes what a program wrote that does nothing more.

    A program that hangs looks like that, and one that pauses between two parts of its answer. None for others.
    """
    if not (view.draining & ~view.halted)[rows].all():
        return None
    return possible(
        "the kernel still sends what the program wrote before, and the program itself did nothing between the looks; "
        "it may pause, or hang, and counts as stuck once nothing is sent any more"
    )


LONG_WORK = "a program that works long on its answer looks the same"

"""holder-not-found: something holds the socket, but no process has a descriptor of it.

Seen as       A connection that does not finish closing, or an open one that is older than a
              second, with an inode that no /proc/*/fd entry names, although *every* process could
              be inspected, twice. One that was used within the last second may have been accepted
              and closed during the look; then a second look tells. An open connection is only a
              notice. For MPTCP the connection counts, not its subflows.
Why it stays  The descriptor is in flight in a Unix socket (SCM_RIGHTS that nobody received),
              registered with io_uring, or used by the kernel itself (NFS, iSCSI, a tunnel). Or a
              thread sleeps in a call on it that began before another thread closed the descriptor.
              No fd leads to it. While the socket is open no FIN is sent: the peer waits for an answer
              that nobody will write.
Not this      A process that we were not allowed to inspect: finwait then draws no conclusion and
              reports a gap. A thread that waits in close() until the peer has everything (SO_LINGER),
              or a process that is ending: finwait names the thread, and other rules explain the
              connection. An open connection on a port of something that the kernel itself serves
              or mounts (NFS, SMB, iSCSI, NVMe, Ceph, DRBD), or created by root in the root cgroup
              where no program created any: nothing is wrong with it.
What ends it  The receiver takes or drops the message; the ring, or the call, ends; SOCK_DESTROY.
Won't help    Killing processes in the hope that one of them is the owner. Keepalive while the peer
              is alive.
Reproduce     finwait lab run holder-not-found
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.attribution.mptcp import MPTCP, subflows
from finwait.diagnosis.finding import Advice, Confidence, Remedy, Severity, Turn
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import (
    NOT_FIN_TIMEOUT,
    certain,
    likely,
    mptcp_rows,
    unclocked,
)
from finwait.diagnosis.silence import lived_of
from finwait.diagnosis.view import View
from finwait.errors import Gap
from finwait.table.sockets import SocketTable
from finwait.uapi import tcp

__all__ = ["RULE", "kernels_own", "match", "suspects"]

KERNEL_PORTS = (139, 445, 564, 860, 2049, 3260, 3300, 4420, 6789, 7788, 7789, 10809, 20049, 21064)
"""SMB, 9P, iSCSI, NFS, Ceph, NVMe over TCP, DRBD, NBD, DLM: sockets of the kernel's own, without any descriptor."""


OLD_MS = 1000
"""A descriptor may be on its way for a moment; and what was just accepted is in no list that was made before."""


def suspects(sockets: SocketTable) -> NDArray[np.bool_]:
    """Return rows that deserve a word if no process holds them: they do not finish closing, or are not new."""
    s = sockets
    # Of MPTCP the row of the connection, not those of its subflows.
    plain = (s.inode != 0) & ((s.protocol == MPTCP) | (s.protocol == 6) & (s.ulp != b"mptcp"))
    closing = np.isin(s.state, (tcp.FIN_WAIT2, tcp.CLOSE_WAIT, tcp.FIN_WAIT1, tcp.LAST_ACK, tcp.CLOSING))
    return plain & (closing | ((s.state == tcp.ESTABLISHED) & (lived_of(s, subflows(s)) >= OLD_MS)))


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    if not view.holders.complete:
        return np.zeros(len(view), np.bool_)
    # What its peer sends arrives whether somebody holds it or not; only what is read or sent shows that somebody does.
    unread = (view.sockets.rqueue > 0) & ~_kernels(view)
    return suspects(view.sockets) & view.holder_missing & (~view.moved | unread) & ~view.sent & ~view.read


def _in_question(view: View) -> list[Gap]:
    """Return the gap that open connections leave of which a single look cannot tell whether a process holds them."""
    n = int((view.holder_in_question & suspects(view.sockets)).sum())
    if not n:
        return []
    amount, pronoun = ("1 connection", "it") if n == 1 else (f"{n} connections", "them")
    return [Gap(amount, f"tell in one look whether a process holds {pronoun}", "a second look, `--for 5s`")]


def _open(view: View) -> NDArray[np.bool_]:
    return view.connections_in(tcp.ESTABLISHED)


def kernels_own(view: View) -> NDArray[np.bool_]:
    """Return open rows that no process holds and that are the kernel's own, by all that can be seen."""
    return match(view) & _kernels(view)


def _kernels(view: View) -> NDArray[np.bool_]:
    """Return open rows that the kernel itself seems to have made.

    By a port of what it mounts or serves; or they were made by root in the root cgroup, where no program made any.
    """
    s = view.sockets
    kernels = np.isin(s.sport, KERNEL_PORTS) | np.isin(s.dport, KERNEL_PORTS)
    root = [number for number, path in view.cgroup_paths.items() if path == "/"]
    in_root = s.present("cgroup_id") & np.isin(s.cgroup_id, root)
    programs = view.holder_found & s.present("cgroup_id")
    if programs.any() and not (programs & in_root).any():
        kernels |= in_root & (s.uid == 0)
    return _open(view) & kernels


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    if _kernels(view)[rows].all():
        return "healthy"
    return "notice" if _open(view)[rows].all() else "problem"


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    if _kernels(view)[rows].all():
        return likely(
            "no process has its inode, and its port or cgroup suggests a socket of the kernel itself"
        )
    return certain("every process was inspected before and after the dump, and none has its inode")


_LOOK = Remedy("look for programs in its cgroup that pass descriptors over Unix sockets or use io_uring")
_DESTROY = Remedy(
    "destroy this end (SOCK_DESTROY): the peer gets a RST; whatever holds the socket keeps a dead one",
    "destructive",
    "finwait clear --with destroy holder-not-found",
)
_NO_OWNER = Advice("kill the owner", "no owner is known; the process that created it may have ended long ago")

RULE = Rule(
    name="holder-not-found",
    title="held, but no process has a descriptor: in flight, io_uring, or the kernel",
    severity="problem",
    rank=35,
    harm="leak",
    turn=Turn("unknown"),
    owners=True,
    means="by-state",
    beyond_sysctls="something still refers to the socket, so no orphan timer applies",
    claims=("C8", "X15"),
    clues=(
        Clue("inode", "not 0: something refers to it; no /proc/*/fd link has this number"),
        Clue("state", "the state in which it is stuck"),
        Clue("cgroup_id", "where the socket was created; the best lead"),
        Clue("uid", "the user that created it"),
    ),
    ends=(_LOOK, _DESTROY),
    does_not=(_NO_OWNER, NOT_FIN_TIMEOUT),
    confidence=_confidence,
    match=match,
    grade=_grade,
    proven=lambda view, rows: ~_open(view)[rows],  # of MPTCP too, which is a case of its own
    unjudged=lambda view: [*unclocked(view, _open(view) & view.holder_missing), *_in_question(view)],
    cases=(
        Case(
            title="open, and its port or cgroup suggests the kernel itself (NFS, SMB, iSCSI, Ceph, …)",
            turn=Turn("kernel"),
            severity="healthy",
            rows=_kernels,
            clues=(
                Clue("inode", "not 0: something refers to it; no /proc/*/fd link has this number"),
                Clue("sport", "the local port"),
                Clue("dport", "the remote port"),
                Clue("cgroup_id", "where the socket was created"),
            ),
            ends=(Remedy("unmount or detach what uses it", "read-only"),),
            does_not=(
                Advice("destroy it", "the kernel opens it again, and what is mounted hangs until then"),
            ),
        ),
        Case(
            title="an MPTCP connection is held, but no process has a descriptor: in flight, or in io_uring",
            rows=mptcp_rows,
            clues=(
                Clue("protocol", "262: the MPTCP connection itself, not one of its subflows"),
                Clue("inode", "not 0: something refers to it; no /proc/*/fd link has this number"),
                Clue("state", "the state of the data level in which it is stuck"),
                Clue("rqueue", "memory taken by unread data"),
                Clue("cgroup_id", "where the socket was created; the best lead"),
                Clue("uid", "the user that created it"),
            ),
            ends=(
                _LOOK,
                Remedy(
                    "destroy its subflows, the TCP rows with its ports (`ss -K`); the kernel then gives the "
                    "connection up after `net.mptcp.close_timeout`",
                    "destructive",
                ),
            ),
            does_not=(
                _NO_OWNER,
                Advice(
                    "destroy the connection",
                    "SOCK_DESTROY does not support MPTCP, and a reset needs a descriptor",
                ),
                NOT_FIN_TIMEOUT,
            ),
        ),
        Case(
            title="open, but no process has a descriptor to answer on it: it is in flight, or in io_uring",
            rows=_open,
            clues=(
                Clue("inode", "not 0: something refers to it; no /proc/*/fd link has this number"),
                Clue("last_data_recv_ms", "time since data last arrived"),
                Clue("last_data_sent_ms", "time since data was last sent"),
                Clue("rqueue", "bytes that nobody has read"),
                Clue("cgroup_id", "where the socket was created; the best lead"),
                Clue("uid", "the user that created it"),
            ),
            ends=(_LOOK, _DESTROY),
            does_not=(
                _NO_OWNER,
                Advice(
                    "wait for keepalive to end it while the peer lives",
                    "the kernels answer each other's probes, with or without a program",
                ),
                NOT_FIN_TIMEOUT,
            ),
        ),
    ),
)

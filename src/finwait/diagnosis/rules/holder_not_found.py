"""holder-not-found: something holds the socket, and it is no descriptor of any process.

Seen as       A connection that does not finish closing, or an open one on which nothing has passed for a second,
              with an inode, and no /proc/*/fd entry that names it although *every* process could be inspected,
              twice. An open one is only a notice. Of MPTCP the connection counts, not its subflows.
Why it stays  The descriptor is in flight in a Unix socket (SCM_RIGHTS that nobody received), registered with
              io_uring, or used by the kernel itself (NFS, iSCSI, a tunnel). It cannot be found by its fd. While it is
              open no FIN goes out: the peer waits for an answer that nobody will write.
Not this      A process that we were not allowed to look into: then nothing is concluded, and a gap is reported. An
              open connection on a port of what the kernel itself serves or mounts (NFS, SMB, iSCSI, NVMe, Ceph, DRBD),
              or made by root in the root cgroup, where no program made any: nothing is wrong with it.
What ends it  The receiver taking or dropping the message; the end of the ring; SOCK_DESTROY.
What does not Killing processes in the hope that one of them is the owner. Keepalive while the peer lives.
Reproduce     finwait lab run holder-not-found
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.attribution.mptcp import MPTCP
from finwait.diagnosis.finding import Advice, Confidence, Remedy, Severity
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import (
    NOT_FIN_TIMEOUT,
    certain,
    likely,
    mptcp_rows,
    silence_of,
    unclocked,
)
from finwait.diagnosis.view import View
from finwait.table.sockets import SocketTable
from finwait.uapi import tcp

__all__ = ["RULE", "kernels_own", "match", "suspects"]

KERNEL_PORTS = (139, 445, 564, 860, 2049, 3260, 3300, 4420, 6789, 7788, 7789, 10809, 20049, 21064)
"""SMB, 9P, iSCSI, NFS, Ceph, NVMe over TCP, DRBD, NBD, DLM: sockets of the kernel's own, without any descriptor."""


SILENT_MS = 1000
"""A descriptor may be on its way for a moment; and what was just accepted is in no list that was made before."""


def suspects(sockets: SocketTable) -> NDArray[np.bool_]:
    """Return rows that deserve a word if no process holds them: they do not finish closing, or nothing passes."""
    s = sockets
    # Of MPTCP the row of the connection, not those of its subflows.
    plain = (s.inode != 0) & ((s.protocol == MPTCP) | (s.protocol == 6) & (s.ulp != b"mptcp"))
    closing = np.isin(s.state, (tcp.FIN_WAIT2, tcp.CLOSE_WAIT, tcp.FIN_WAIT1, tcp.LAST_ACK, tcp.CLOSING))
    silent = silence_of(s, "last_data_sent_ms", "last_data_recv_ms") >= SILENT_MS
    return plain & (closing | ((s.state == tcp.ESTABLISHED) & silent))


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    if not view.holders.complete:
        return np.zeros(len(view), np.bool_)
    # Accepted after one list of descriptors and closed before the other: in neither, and nothing is wrong with it.
    fresh = view.queue_before < 0
    quiet = silence_of(view.sockets, "last_data_sent_ms", "last_data_recv_ms")
    fleeting = fresh & (quiet >= 0) & (quiet < SILENT_MS)
    return suspects(view.sockets) & view.holder_missing & ~fleeting & ~view.moved & ~view.sent & ~view.read


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
        return likely("no process has its inode, and by its port or its cgroup it is one of the kernel's own")
    return certain("every process was inspected, before and after the dump, and none has its inode")


_LOOK = Remedy("look at programs of its cgroup that pass descriptors over Unix sockets or use io_uring")
_DESTROY = Remedy(
    "destroy this end (SOCK_DESTROY): the peer gets a RST; whatever holds the socket goes on holding a dead one",
    "destructive",
    "finwait clear --with destroy holder-not-found",
)
_NO_OWNER = Advice("kill the owner", "no process can be named; the one that made it may have ended long ago")

RULE = Rule(
    name="holder-not-found",
    title="held, but by no descriptor of any process: in flight, io_uring, or the kernel",
    severity="problem",
    rank=35,
    owners=True,
    means="by-state",
    beyond_sysctls="something still refers to the socket, so no orphan timer applies",
    claims=("C8", "X15"),
    clues=(
        Clue("inode", "not 0: something refers to it; no /proc/*/fd link has this number"),
        Clue("state", "where it stopped"),
        Clue("cgroup_id", "where it was made, which is the best lead"),
        Clue("uid", "by whom it was made"),
    ),
    ends=(_LOOK, _DESTROY),
    does_not=(_NO_OWNER, NOT_FIN_TIMEOUT),
    confidence=_confidence,
    match=match,
    grade=_grade,
    unjudged=lambda view: unclocked(view, _open(view) & view.holder_missing),
    cases=(
        Case(
            title="open, and the kernel's own by its port or cgroup (NFS, SMB, iSCSI, Ceph, …): healthy",
            rows=_kernels,
            clues=(
                Clue("inode", "not 0: something refers to it; no /proc/*/fd link has this number"),
                Clue("sport", "the local port"),
                Clue("dport", "the remote port"),
                Clue("cgroup_id", "where it was made"),
            ),
            ends=(Remedy("unmounting, or detaching, what uses it", "read-only"),),
            does_not=(Advice("destroy it", "the kernel opens it again; what is mounted hangs meanwhile"),),
        ),
        Case(
            title="an MPTCP connection, held by no descriptor of any process: in flight, or in io_uring",
            rows=mptcp_rows,
            clues=(
                Clue("protocol", "262: the MPTCP connection itself, not one of its subflows"),
                Clue("inode", "not 0: something refers to it; no /proc/*/fd link has this number"),
                Clue("state", "where the data level stopped"),
                Clue("rqueue", "memory that is taken by what nobody has read"),
                Clue("cgroup_id", "where it was made, which is the best lead"),
                Clue("uid", "by whom it was made"),
            ),
            ends=(
                _LOOK,
                Remedy(
                    "destroying its subflows, which are TCP rows with its ports (`ss -K`): the kernel gives the "
                    "connection up after `net.mptcp.close_timeout`",
                    "destructive",
                ),
            ),
            does_not=(
                _NO_OWNER,
                Advice(
                    "destroy the connection",
                    "SOCK_DESTROY does not know MPTCP, and a reset takes a descriptor",
                ),
                NOT_FIN_TIMEOUT,
            ),
        ),
        Case(
            title="open, and no process can ever answer on it: its descriptor is in flight, or in io_uring",
            rows=_open,
            clues=(
                Clue("inode", "not 0: something refers to it; no /proc/*/fd link has this number"),
                Clue("last_data_recv_ms", "since data last arrived"),
                Clue("last_data_sent_ms", "since data was last sent"),
                Clue("rqueue", "bytes that nobody has read"),
                Clue("cgroup_id", "where it was made, which is the best lead"),
                Clue("uid", "by whom it was made"),
            ),
            ends=(_LOOK, _DESTROY),
            does_not=(
                _NO_OWNER,
                Advice(
                    "wait for keepalive to end it while the peer lives",
                    "the kernels answer each other's probes, whether or not a program is there",
                ),
                NOT_FIN_TIMEOUT,
            ),
        ),
    ),
)

"""Datagrams of one look → one table a kind.

All namespaces' dumps lie in one buffer and are decoded in one go; which namespace and protocol a row
belongs to follows from the datagram that it came in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from finwait.table.flows import FlowTable
from finwait.table.sockets import SocketTable, address_text
from finwait.uapi import conntrack, inet_diag, rtnetlink
from finwait.uapi import netlink as nl

if TYPE_CHECKING:
    from finwait.uapi.observation import Observation

__all__ = ["addresses", "chains", "flows", "local_addresses", "sockets"]


def chains(
    observation: Observation, *kinds: str
) -> tuple[nl.Messages, NDArray[np.uint32], NDArray[np.uint16]]:
    """Find the messages of all dumps of some kinds.

    Returns:
        The messages, and for each chain (datagram) its namespace and the index of its kind in ``kinds``.

    Raises:
        DecodeError: a datagram is not a chain of netlink messages.
    """
    starts: list[int] = []
    ends: list[int] = []
    netns: list[int] = []
    kind: list[int] = []
    for namespace in observation.namespaces:
        for dump in namespace.dumps:
            if dump.kind in kinds:
                starts += dump.starts
                ends += dump.ends
                netns += [namespace.inode] * len(dump.starts)
                kind += [kinds.index(dump.kind)] * len(dump.starts)
    messages = nl.walk(observation.buffer, np.array(starts, np.int64), np.array(ends, np.int64))
    return messages, np.array(netns, np.uint32), np.array(kind, np.uint16)


def sockets(observation: Observation) -> SocketTable:
    """Return every TCP and MPTCP socket of a look.

    Raises:
        DecodeError: the bytes are not what a kernel sends.
    """
    messages, netns, kind = chains(observation, "tcp", "mptcp")
    socket_messages = (messages.type == inet_diag.SOCK_DIAG_BY_FAMILY) | (
        messages.type == inet_diag.TCPDIAG_GETSOCK
    )
    rows = inet_diag.find_rows(observation.buffer, messages.where(socket_messages))
    protocol = np.array([inet_diag.IPPROTO_TCP, inet_diag.IPPROTO_MPTCP], np.uint16)
    if not len(rows):
        return SocketTable.empty()
    table = SocketTable.from_rows(rows, netns[rows.chain], protocol[kind[rows.chain]])
    return _without(table, _untold(observation), rows.chain)


def _untold(observation: Observation) -> dict[str, list[bool]]:
    """Return for each column that some dump does not tell, in which datagrams it is missing."""
    dumps = [d for ns in observation.namespaces for d in ns.dumps if d.kind in ("tcp", "mptcp")]
    names = {name for dump in dumps for name in dump.untold if name in SocketTable.schema}
    return {name: [name in dump.untold for dump in dumps for _ in dump.starts] for name in sorted(names)}


def _without(table: SocketTable, untold: dict[str, list[bool]], chain: NDArray[np.int64]) -> SocketTable:
    """Return the table with columns missing in the rows of some datagrams."""
    for name, where in untold.items():
        table.leave_out(name, np.array(where, np.bool_)[chain])
    return table


def flows(observation: Observation) -> FlowTable | None:
    """Return every connection tracking entry of a look; None when no namespace had any.

    Raises:
        DecodeError: the bytes are not what a kernel sends.
    """
    messages, netns, _ = chains(observation, "conntrack")
    rows = conntrack.find_rows(observation.buffer, messages.where(messages.type == conntrack.CT_NEW))
    return FlowTable.from_rows(rows, netns[rows.chain]) if len(rows) else None


def local_addresses(observation: Observation) -> dict[int, frozenset[tuple[int, int]]]:
    """Return the addresses of each namespace that was asked for them, as two 64-bit words each."""
    result: dict[int, frozenset[tuple[int, int]]] = {}
    for namespace in observation.namespaces:
        for dump in namespace.dumps:
            if dump.kind == "addresses":
                messages = nl.walk(
                    observation.buffer, np.array(dump.starts, np.int64), np.array(dump.ends, np.int64)
                )
                result[namespace.inode] = frozenset(rtnetlink.addresses(observation.buffer, messages))
    return result


def addresses(table: SocketTable, tracked: FlowTable | None) -> frozenset[str]:
    """Return the addresses of both ends of all sockets and entries, as text."""
    words = [table.src, table.dst]
    if tracked is not None:
        words += [tracked.orig_src, tracked.orig_dst, tracked.reply_src, tracked.reply_dst]
    different = np.unique(np.concatenate(words), axis=0)
    return frozenset(address_text(high, low) for high, low in different.tolist())

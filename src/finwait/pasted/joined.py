"""Rows of several texts of one moment → one row a socket, and what follows of what they say.

Texts are joined by the ends of a connection. What one does not tell another may: `netstat -tanp` names the process, `ss
-o` the timer. Of rows that show different states one that is closing counts, else the first; the others add only their
holders.

What follows without being said: a minisocket (TIME_WAIT, or a timewait timer) has no socket; a listener, and what is
being opened, has one; so has what a process is named for, and what can be in no accept queue. Nothing else follows: a
row that may be held or not stays so (`finwait.diagnosis.untold`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.pasted.encode import INFO
from finwait.pasted.rows import NamedHolder, SocketRows, TextPart
from finwait.uapi import tcp

__all__ = ["JoinedSockets", "ends_of", "joined", "names_of"]

I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

_CLOSING: Final = [
    number for number in tcp.STATES if tcp.CLOSING_STATES >> number & 1 and number != tcp.TIME_WAIT
]
_RESERVED: Final = 1024
_EPHEMERAL: Final = 32768
"""The lowest port that Linux chooses for a connection that is opened, unless set otherwise."""


class JoinedSockets(Struct):
    """All sockets of one moment: columns, which rows lack them, ends, holders, and how many had no state."""

    columns: dict[str, I64]
    missing: dict[str, Mask]
    src: NDArray[np.uint64]
    dst: NDArray[np.uint64]
    holders: list[NamedHolder]
    stateless: int
    moved: dict[int, int]
    """Inode as the text has it → the number that stands for it, where another machine has a socket of that inode."""

    def __len__(self) -> int:
        return len(self.src)


def joined(parts: Sequence[TextPart], spoken: Mapping[str, bytes], taken: set[int]) -> JoinedSockets | None:
    """Join the sockets of parts; None where none has any.

    Args:
        parts: of one moment, the most telling first.
        spoken: settings, by the names of their files.
        taken: inodes of sockets of other machines, which these must not share; those of these are added.
    """
    listed = [part.rows for part in parts if part.rows is not None and len(part.rows)]
    if not listed:
        return None
    tables = [_settled(*rows.columns()) for rows in listed]
    columns, src, dst, places = _one_row_each(tables)
    holders = [
        NamedHolder(int(place[holder.row]), holder.pid, holder.name, holder.fd)
        for rows, place in zip(listed, places, strict=True)
        for holder in rows.holders
    ]
    stateful = columns["state"] > 0
    stateless = int((~stateful).sum())
    if stateless:
        number = np.cumsum(stateful) - 1
        columns = {name: cells[stateful] for name, cells in columns.items()}
        src, dst = src[stateful], dst[stateful]
        holders = [NamedHolder(int(number[h.row]), h.pid, h.name, h.fd) for h in holders if stateful[h.row]]
    _conclude(columns, holders, spoken)
    missing = {name: cells < 0 for name, cells in columns.items()}
    moved = _stand_in_inodes(columns, missing, taken)
    _stand_in_cookies(columns, src, dst)
    filled = {name: np.maximum(cells, 0) for name, cells in columns.items()}
    return JoinedSockets(filled, missing, src, dst, holders, stateless, moved)


_Table = tuple[dict[str, I64], NDArray[np.uint64], NDArray[np.uint64]]


def _settled(columns: dict[str, I64], src: NDArray[np.uint64], dst: NDArray[np.uint64]) -> _Table:
    """Read what ss leaves out of a row as 0 where another row has it: it prints no zeros."""
    if "_info" in columns:
        informed = columns["_info"] > 0
        for name in INFO:
            if name in columns:
                cells = columns[name]
                columns[name] = np.where(informed & (cells < 0), 0, cells)
    if "inode" in columns and "uid" not in columns:
        columns["uid"] = np.where(columns["inode"] >= 0, 0, -1)
    elif "inode" in columns:
        columns["uid"] = np.where((columns["uid"] < 0) & (columns["inode"] >= 0), 0, columns["uid"])
    return columns, src, dst


def _keys(src: NDArray[np.uint64], dst: NDArray[np.uint64], columns: Mapping[str, I64]) -> NDArray[np.void]:
    """Return what tells rows apart: both ends, and how many of the same came before (SO_REUSEPORT)."""
    parts = np.empty((len(src), 6), np.uint64)
    parts[:, :2], parts[:, 2:4] = src, dst
    parts[:, 4] = columns["sport"].astype(np.uint64) << np.uint64(16) | columns["dport"].astype(np.uint64)
    parts[:, 5] = 0
    repeated = (
        columns.get("state", np.full(len(src), -1)) == tcp.LISTEN
    )  # nothing else has the ends of another
    whole = parts.view(np.dtype((np.void, 48))).reshape(-1)
    _, inverse, counts = np.unique(whole, return_inverse=True, return_counts=True)
    if (counts > 1).any():
        inverse = inverse.reshape(-1)
        order = np.argsort(inverse, kind="stable")
        begin = np.cumsum(counts) - counts
        parts[order, 5] = (np.arange(len(order)) - begin[inverse[order]]).astype(np.uint64)
        parts[~repeated, 5] = 0
        whole = parts.view(np.dtype((np.void, 48))).reshape(-1)
    return whole


def ends_of(rows: SocketRows) -> NDArray[np.void]:
    """Return the ends of the connections of a text, each once; every machine has the same listeners."""
    columns, src, dst = rows.columns()
    if not len(src):
        return np.empty(0, np.dtype((np.void, 48)))
    connected = columns.get("state", np.full(len(src), -1)) != tcp.LISTEN
    return np.unique(_keys(src, dst, columns)[connected])


def _one_row_each(
    tables: Sequence[_Table],
) -> tuple[dict[str, I64], NDArray[np.uint64], NDArray[np.uint64], list[I64]]:
    """Return one row for each socket, and for each table where its rows went."""
    keys = np.concatenate([_keys(src, dst, columns) for columns, src, dst in tables])
    if len(tables) == 1 and len(np.unique(keys)) == len(keys):
        columns, src, dst = tables[0]
        columns.setdefault("state", np.full(len(src), -1))
        return columns, src, dst, [np.arange(len(src))]
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    # In the order of the text.
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    place = rank[inverse]
    begins = np.cumsum([0, *(len(src) for _, src, _ in tables)])
    places = [place[a:b] for a, b in pairwise(begins.tolist())]
    n = len(first)
    state = np.full(n, -1, np.int64)
    for (columns, src, _), at in zip(reversed(tables), reversed(places), strict=True):
        cells = columns.get("state", np.full(len(src), -1))
        state[at[cells >= 0]] = cells[cells >= 0]
    for (columns, src, _), at in zip(tables, places, strict=True):  # one that was seen closing counts
        cells = columns.get("state", np.full(len(src), -1))
        closing = np.isin(cells, _CLOSING) & ~np.isin(state[at], _CLOSING)
        state[at[closing]] = cells[closing]
    result: dict[str, I64] = {"state": state}
    all_src, all_dst = np.empty((n, 2), np.uint64), np.empty((n, 2), np.uint64)
    for (columns, src, dst), at in zip(reversed(tables), reversed(places), strict=True):
        all_src[at], all_dst[at] = src, dst
        own = columns.get("state", np.full(len(src), -1))
        same = (own < 0) | (own == state[at])
        for name, cells in columns.items():
            if name == "state":
                continue
            column = result.setdefault(name, np.full(n, -1, np.int64))
            known = (cells >= 0) & (same | np.isin(name, ("sport", "dport", "family", "protocol")))
            column[at[known]] = cells[known]
    return result, all_src, all_dst, places


def _conclude(
    columns: dict[str, I64],
    holders: list[NamedHolder],
    spoken: Mapping[str, bytes],
) -> None:
    """Write what follows of a row; −2 for an inode that is not told, and not 0."""
    state = columns["state"]
    n = len(state)
    for name in ("timer", "retrans", "expires_ms", "rqueue", "wqueue", "uid", "inode", "cookie"):
        columns.setdefault(name, np.full(n, -1, np.int64))
    timer, inode = columns["timer"], columns["inode"]
    timer[(state == tcp.TIME_WAIT) & (timer < 0)] = 3
    columns["retrans"][(timer >= 0) & (columns["retrans"] < 0)] = 0
    columns["expires_ms"][(timer == 0) & (columns["expires_ms"] < 0)] = 0
    inode[(inode < 0) & ((timer == 3) | np.isin(state, (tcp.SYN_RECV, tcp.NEW_SYN_RECV)))] = 0
    named = np.zeros(n, np.bool_)
    named[[holder.row for holder in holders]] = True
    in_no_queue = np.isin(state, (tcp.ESTABLISHED, tcp.CLOSE_WAIT)) & _accepted(columns, spoken)
    held = named | np.isin(state, (tcp.LISTEN, tcp.SYN_SENT)) | in_no_queue
    inode[(inode < 0) & held] = -2


def _accepted(columns: Mapping[str, I64], spoken: Mapping[str, bytes]) -> Mask:
    """Return which rows can wait in no accept queue: their listener's is empty, or they were opened here."""
    state, sport = columns["state"], columns["sport"]
    doors = state == tcp.LISTEN
    if not doors.any():
        return np.zeros(len(state), np.bool_)
    waiting = np.bincount(sport[doors], np.where(columns["rqueue"][doors] == 0, 0, 1), minlength=1 << 16)
    listening = np.zeros(1 << 16, np.bool_)
    listening[sport[doors]] = True
    words = spoken.get("sys/ipv4/ip_local_port_range", b"").split()
    low = int(words[0]) if len(words) == 2 and words[0].isdigit() and len(words[0]) < 6 else _EPHEMERAL
    # Some listener may be missing from the text; no client has a port of those that only root may bind.
    opened = ~listening[sport] & (sport >= low) & (columns["dport"] < _RESERVED)
    accepted: Mask = (listening[sport] & (waiting[sport] == 0)) | opened
    return accepted


def _stand_in_inodes(columns: dict[str, I64], missing: dict[str, Mask], taken: set[int]) -> dict[int, int]:
    """Give rows numbers that stand for inodes that are not told, or are those of another machine, too."""
    inode = columns["inode"]
    twice = np.isin(inode, np.array(sorted(taken), np.int64)) & (inode > 0)
    shared = inode[twice].tolist()
    numbers = set(inode[inode > 0].tolist()) | taken
    instead: dict[int, int] = {}
    free = 0xFFFFFFFF
    for row in np.flatnonzero((inode == -2) | twice).tolist():
        known = int(inode[row])
        if known in instead:
            inode[row] = instead[known]
            continue
        while free in numbers:
            free -= 1
        inode[row] = free
        if known > 0:
            instead[known] = free
        free -= 1
    missing["inode"] = missing["inode"] | twice
    columns["inode"] = np.maximum(inode, 0)
    taken |= set(columns["inode"].tolist()) | set(shared)
    taken.discard(0)
    return instead


def _stand_in_cookies(columns: dict[str, I64], src: NDArray[np.uint64], dst: NDArray[np.uint64]) -> None:
    """Give rows without a cookie one that stands for it: the same for the same ends."""
    cookie = columns["cookie"]
    for row in np.flatnonzero(cookie < 0).tolist():
        ends = src[row].tobytes() + dst[row].tobytes()
        ports = int(columns["sport"][row]) << 16 | int(columns["dport"][row])
        digest = blake2b(ends + ports.to_bytes(4), digest_size=8).digest()
        cookie[row] = int.from_bytes(digest) >> 2 | 1 << 61
    _, first = np.unique(cookie, return_index=True)
    if len(first) != len(cookie):
        again = np.ones(len(cookie), np.bool_)
        again[first] = False
        cookie[again] += np.arange(1, int(again.sum()) + 1)


def names_of(parts: Sequence[TextPart]) -> dict[int, dict[str, None]]:
    """Return what texts call processes, by pid: one number may be several processes'."""
    names: dict[int, dict[str, None]] = {}
    for part in parts:
        for pid, name in part.names.items():
            names.setdefault(pid, {})[name] = None
        for holder in part.rows.holders if part.rows is not None else ():
            if holder.name:
                names.setdefault(holder.pid, {})[holder.name] = None
    return names

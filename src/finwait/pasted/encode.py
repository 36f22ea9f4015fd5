"""Columns of sockets → messages as sock_diag sends them, with only what was told.

Rows that lack the same columns are of one dump, which names what they lack (`finwait.uapi.observation.Dump.untold`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from finwait.table.sockets import SCHEMA
from finwait.uapi import inet_diag as d
from finwait.uapi import tcp
from finwait.uapi.netlink import NLMSG_HEADER
from finwait.uapi.observation import Dump

__all__ = ["INFO", "encoded"]

INFO: Final = tuple(name for name, _, _, _ in tcp.TCP_INFO_FIELDS)
"""Columns of tcp_info."""
_FIXED: Final = ("timer", "retrans", "ifindex", "cookie", "expires_ms", "rqueue", "wqueue", "uid", "inode")
_ALWAYS: Final = ("family", "state", "sport", "dport")
_INFO_SIZE: Final = 280
_A_DATAGRAM: Final = 64
"""Messages of a datagram."""


def encoded(
    columns: Mapping[str, NDArray[np.int64]],
    missing: Mapping[str, NDArray[np.bool_]],
    src: NDArray[np.uint64],
    dst: NDArray[np.uint64],
    at: int,
) -> tuple[NDArray[np.uint8], list[Dump]]:
    """Return the messages of sockets, and the dumps that they make.

    Args:
        columns: cells by name, 0 where they are missing (an inode that is missing may be any number).
        missing: by name, which rows lack a column; rows lack a column that is not in ``columns``.
        src: local addresses, two words each.
        dst: remote addresses.
        at: where in the buffer the first byte will be; a multiple of eight.
    """
    n = len(src)
    names = sorted(columns)
    lacks = (
        np.stack([missing.get(name, np.zeros(n, np.bool_)) for name in names]) if names else np.zeros((0, n))
    )
    packed = np.packbits(lacks.astype(np.bool_), axis=0).T.copy()
    keys = packed.view(np.dtype((np.void, packed.shape[1]))).reshape(-1)
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    buffers: list[NDArray[np.uint8]] = []
    dumps: list[Dump] = []
    for number, example in enumerate(first.tolist()):
        rows = np.flatnonzero(group.reshape(-1) == number)
        present = [name for name, gone in zip(names, lacks[:, example].tolist(), strict=True) if not gone]
        data = _messages({name: columns[name][rows] for name in names}, set(present), src[rows], dst[rows])
        size = data.shape[1]
        starts = at + np.arange(0, len(rows), _A_DATAGRAM) * size
        ends = np.minimum(starts + _A_DATAGRAM * size, at + len(rows) * size)
        untold = [name for name in _FIXED if name not in present]
        if "_info" in present:
            untold += [name for name in INFO if name not in present]
        dumps.append(Dump("tcp", tuple(starts.tolist()), tuple(ends.tolist()), untold=tuple(untold)))
        flat = data.reshape(-1)
        padding = -len(flat) % 8
        buffers += [flat, np.zeros(padding, np.uint8)]
        at += len(flat) + padding
    return np.concatenate(buffers) if buffers else np.empty(0, np.uint8), dumps


def _messages(
    columns: Mapping[str, NDArray[np.int64]],
    present: set[str],
    src: NDArray[np.uint64],
    dst: NDArray[np.uint64],
) -> NDArray[np.uint8]:
    n = len(src)
    size = NLMSG_HEADER + d.MESSAGE_SIZE
    shutdown = size if "shutdown" in present else 0
    size += 8 if shutdown else 0
    info = size if "_info" in present else 0
    size += 4 + _INFO_SIZE if info else 0
    data = np.zeros((n, size), np.uint8)
    _put(data, 0, np.full(n, size), "=u4")
    _put(data, 4, np.full(n, d.SOCK_DIAG_BY_FAMILY), "=u2")
    _put(data, 6, np.full(n, 2), "=u2")
    for name in (*_ALWAYS, *_FIXED):
        # An inode that is not told may stand for one.
        if name in columns and (name in present or name in _ALWAYS or name in ("inode", "cookie")):
            at, kind = NLMSG_HEADER + SCHEMA[name].offset, SCHEMA[name].dtype
            if name == "cookie":  # two numbers, the low one first on every machine
                _put(data, at, columns[name] & np.int64(0xFFFFFFFF), "=u4")
                _put(data, at + 4, columns[name] >> np.int64(32), "=u4")
            else:
                _put(data, at, columns[name], kind)
    family = columns["family"]
    for words, offset in ((src, 8), (dst, 24)):
        _addresses(data, NLMSG_HEADER + offset, words, family == d.AF_INET)
    if shutdown:
        _put(data, shutdown, np.full(n, 5), "=u2")
        _put(data, shutdown + 2, np.full(n, d.SHUTDOWN), "=u2")
        _put(data, shutdown + 4, columns["shutdown"], "u1")
    if info:
        _put(data, info, np.full(n, 4 + _INFO_SIZE), "=u2")
        _put(data, info + 2, np.full(n, d.INFO), "=u2")
        for name in INFO:
            if name in present:
                _put(data, info + 4 + SCHEMA[name].offset, columns[name], SCHEMA[name].dtype)
    return data


def _put(data: NDArray[np.uint8], at: int, cells: NDArray[Any], dtype: Any) -> None:  # noqa: ANN401
    kind = np.dtype(dtype)
    most = min(np.iinfo(kind).max, (1 << 63) - 1)
    whole = np.ascontiguousarray(np.clip(cells, 0, most).astype(kind))
    data[:, at : at + kind.itemsize] = whole.view(np.uint8).reshape(len(data), kind.itemsize)


def _addresses(data: NDArray[np.uint8], at: int, words: NDArray[np.uint64], v4: NDArray[np.bool_]) -> None:
    raw = np.ascontiguousarray(words.astype(">u8")).view(np.uint8).reshape(len(data), 16)
    data[:, at : at + 16] = raw
    data[v4, at : at + 4] = raw[v4, 12:]
    data[v4, at + 4 : at + 16] = 0

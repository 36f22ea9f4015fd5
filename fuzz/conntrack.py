"""ctnetlink dumps and statistics."""

from __future__ import annotations

import struct

import numpy as np

from finwait.errors import DecodeError
from finwait.table.flows import FlowTable
from finwait.uapi import conntrack as ct
from finwait.uapi import netlink as nl
from fuzz.dumps import check, datagrams, read


def _u32(kind: int, value: int) -> bytes:
    return nl.attribute(kind, struct.pack("!I", value))


def _entry(*attributes: bytes, kind: int = ct.CT_NEW) -> bytes:
    return nl.message(kind, 2, struct.pack("!BBH", 2, 0, 0) + b"".join(attributes))


def seeds() -> list[bytes]:
    v4 = ct.FlowTuple(2, 6, b"\x0a\0\0\1", b"\x0a\0\0\2", 1000, 80)
    v6 = ct.FlowTuple(10, 17, bytes(16), bytes(15) + b"\1", 1000, 53, zone=3)
    tcp = nl.nested(ct.PROTOINFO_TCP, nl.attribute(1, b"\4"), nl.attribute(4, b"\x23\0"))
    full = _entry(
        v4.pack(),
        v4.pack(ct.TUPLE_REPLY),
        _u32(ct.STATUS, 0x1AE),
        _u32(ct.TIMEOUT, 60),
        nl.nested(ct.PROTOINFO, tcp),
        nl.nested(ct.COUNTERS_ORIG, nl.attribute(1, bytes(8)), nl.attribute(2, bytes(8))),
        nl.nested(ct.TIMESTAMP, nl.attribute(1, bytes(8))),
        nl.nested(ct.HELP, nl.attribute(1, b"ftp\0")),
        nl.attribute(ct.LABELS, bytes(16)),
        nl.attribute(ct.ZONE, b"\0\5"),
    )
    short = _entry(v6.pack(), v6.pack(ct.TUPLE_REPLY), v6.pack(ct.TUPLE_MASTER))
    cpu = _entry(_u32(4, 9), _u32(9, 1), kind=ct.CT_GET_STATS_CPU)
    total = _entry(_u32(1, 9), _u32(2, 100), kind=ct.CT_GET_STATS)
    return [b"\0" + full + short, bytes([len(full) // 8]) + full + full, b"\0" + cpu + cpu, b"\0" + total]


def one_input(data: bytes) -> None:
    found = datagrams(data)
    if found is None:
        return
    buffer, messages = found
    for decode in (ct.cpu_statistics, ct.statistics):
        try:
            decode(buffer, messages)
        except DecodeError as error:
            check(error, len(buffer))
    try:
        rows = ct.find_rows(buffer, messages)
    except DecodeError as error:
        check(error, len(buffer))
        return
    table = FlowTable.from_rows(rows, np.zeros(len(rows), np.uint32))
    read(table)
    table.natted()

"""Any bytes decode, or say where they stopped; what is encoded comes back."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finwait.attribution.container import workload_of_cgroups, workload_of_path
from finwait.errors import DecodeError
from finwait.table.columns import ColumnTable
from finwait.table.sockets import SCHEMA, SocketTable
from finwait.uapi import conntrack as ct
from finwait.uapi import inet_diag as d
from finwait.uapi import netlink as nl
from finwait.uapi import proc
from tests.synthetic import Attribute, arena, flow_message, flows, socket_message, sockets, walk

ADDRESS = st.binary(min_size=16, max_size=16)
U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))


def says_where(error: DecodeError, size: int) -> None:
    assert 0 <= error.offset <= size
    assert error.reason
    assert error.what in str(error)


def read_everything(table: ColumnTable) -> None:
    for column in table.schema:
        cells, there = table.column(column.name), table.present(column.name)
        assert len(cells) == len(there) == len(table)
        assert not np.any(cells[~there]), "what is missing reads zero"
    for row in range(len(table)):
        table.attributes(row)


def reads_the_same_at_once(one_by_one: ColumnTable, fresh: ColumnTable) -> None:
    fresh.load()
    for column in one_by_one.schema:
        name = column.name
        assert fresh.column(name).dtype == one_by_one.column(name).dtype, name
        assert np.array_equal(fresh.column(name), one_by_one.column(name)), name
        assert np.array_equal(fresh.present(name), one_by_one.present(name)), name


def decodes_or_says_where(read: Callable[[], ColumnTable], size: int) -> ColumnTable | None:
    try:
        table = read()
    except DecodeError as error:
        says_where(error, size)
        return None
    read_everything(table)
    reads_the_same_at_once(table, read())
    return table


# Attribute lists that a kernel could send: known and unknown types, right and odd sizes, any order.
attribute = st.one_of(
    st.tuples(st.sampled_from(sorted(d.ATTRIBUTE_NAMES)), st.binary(max_size=24)),
    st.tuples(st.just(d.INFO), st.binary(min_size=0, max_size=300)),
    st.tuples(st.just(d.CGROUP_ID), st.binary(min_size=8, max_size=8)),
    st.tuples(st.integers(1000, 0x3FFF), st.binary(max_size=12)),
)
plain_attribute = attribute.filter(lambda one: one[0] != d.ULP_INFO)
attributes = st.lists(plain_attribute, max_size=8, unique_by=lambda one: one[0])

fixed = st.fixed_dictionaries(
    {
        "family": st.sampled_from([2, 10]),
        "state": st.integers(0, 255),
        "timer": st.integers(0, 255),
        "retrans": st.integers(0, 255),
        "expires": U32,
        "rqueue": U32,
        "wqueue": U32,
        "uid": U32,
        "inode": U32,
        "identity": st.builds(d.SocketId, U16, U16, ADDRESS, ADDRESS, U32, U64),
    }
)


@given(st.lists(st.tuples(fixed, attributes), max_size=12), st.integers(1, 4))
def test_rows_of_mixed_layouts_come_back_as_they_were_put_in(
    rows: list[tuple[dict[str, Any], list[Attribute]]], per_datagram: int
) -> None:
    messages = [socket_message(attrs, **values) for values, attrs in rows]
    datagrams = [b"".join(messages[k : k + per_datagram]) for k in range(0, len(messages), per_datagram)]
    table = sockets(datagrams)
    assert len(table) == len(rows)
    for number, (values, attrs) in enumerate(rows):
        identity: d.SocketId = values["identity"]
        for name in ("family", "state", "timer", "retrans", "rqueue", "wqueue", "uid", "inode"):
            assert table[name][number] == values[name], name
        assert table.expires_ms[number] == values["expires"]
        assert (table.sport[number], table.dport[number]) == (identity.sport, identity.dport)
        assert (table.ifindex[number], table.cookie[number]) == (identity.ifindex, identity.cookie)
        for name, raw in (("src", identity.src), ("dst", identity.dst)):
            if values["family"] == 2:
                assert table[name][number].tolist() == [0, 0xFFFF << 32 | struct.unpack("!I", raw[:4])[0]]
            else:
                assert table[name][number].tolist() == list(struct.unpack("!QQ", raw))
        assert table.attributes(number) == {(kind,): payload for kind, payload in attrs}
        by_kind = dict(attrs)
        for column in SCHEMA:
            if not column.path or column.protocol == d.IPPROTO_MPTCP:
                continue
            payload = by_kind.get(column.path[0]) if len(column.path) == 1 else None
            dtype = np.dtype(column.dtype)
            if dtype.kind == "S":
                there = payload is not None
                value: Any = (payload or b"").split(b"\0")[0][: dtype.itemsize]
            else:
                there = payload is not None and len(payload) >= column.offset + dtype.itemsize
                value = np.frombuffer(payload, dtype, 1, column.offset)[0] if there and payload else 0
            assert table.present(column.name)[number] == there, column.name
            assert table[column.name][number] == value, column.name
    read_everything(table)
    reads_the_same_at_once(table, sockets(datagrams))


@settings(max_examples=15)
@given(st.integers(65, 150), st.randoms(use_true_random=False))
def test_more_than_64_layouts_of_one_length_come_back(count: int, random: Any) -> None:
    kinds = [d.MARK, d.CLASS_ID, 1001, 1002, 1003, 1004]
    rows = []
    for number in range(count):
        order = random.sample(kinds, len(kinds))
        rows.append({kind: struct.pack("=I", number << 16 | kind) for kind in order})
    table = sockets([b"".join(socket_message(list(row.items())) for row in rows)])
    for number, row in enumerate(rows):
        assert table.attributes(number) == {(kind,): payload for kind, payload in row.items()}
    assert table.mark.tolist() == [number << 16 | d.MARK for number in range(count)]


@given(st.lists(attributes, min_size=1, max_size=4), st.data())
def test_a_dump_cut_anywhere_loses_rows_or_is_an_error_that_says_where(
    rows: list[list[Attribute]], data: st.DataObject
) -> None:
    whole = b"".join(socket_message(attrs) for attrs in rows)
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    table = decodes_or_says_where(lambda: sockets([cut]), len(cut) + 8)
    if table is not None:
        complete = sockets([whole])
        assert len(table) <= len(complete)
        for number in range(len(table)):
            assert table.attributes(number) == complete.attributes(number)


@given(st.lists(attributes, min_size=1, max_size=3), st.data())
def test_a_dump_with_bytes_overwritten_decodes_or_says_where(
    rows: list[list[Attribute]], data: st.DataObject
) -> None:
    raw = bytearray(b"".join(socket_message(attrs) for attrs in rows))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    decodes_or_says_where(lambda: sockets([bytes(raw)]), len(raw) + 8)


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_any_bytes_are_a_chain_of_messages_or_an_error_that_says_where(datagrams: list[bytes]) -> None:
    buffer, starts, ends = arena(datagrams)
    try:
        found = nl.walk(buffer, starts, ends)
    except DecodeError as error:
        says_where(error, len(buffer))
        return
    assert (found.length >= 16).all()
    assert (found.offset + found.length <= ends[found.chain]).all()
    assert (np.diff(found.offset) > 0).all()


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=120)), max_size=6))
def test_messages_of_any_content_decode_or_say_where(content: list[tuple[int, bytes]]) -> None:
    datagram = b"".join(nl.message(kind, 0, payload) for kind, payload in content)
    decodes_or_says_where(lambda: sockets([datagram]), len(datagram) + 8)
    decodes_or_says_where(lambda: flows([datagram]), len(datagram) + 8)
    for decode in (ct.cpu_statistics, ct.statistics):
        try:
            decode(*walk([datagram]))
        except DecodeError as error:
            says_where(error, len(datagram))


flow_tuples = st.one_of(
    *(
        st.builds(
            ct.FlowTuple,
            st.just(family),
            st.integers(0, 255),
            st.binary(min_size=size, max_size=size),
            st.binary(min_size=size, max_size=size),
            U16,
            U16,
            st.none() | U16,
        )
        for family, size in ((2, 4), (10, 16))
    )
)


@given(
    st.lists(
        st.tuples(flow_tuples, flow_tuples, U32, U32, st.none() | U16, st.none() | U64, st.none() | U64),
        max_size=8,
    )
)
def test_entries_of_both_families_come_back_as_they_were_put_in(rows: list[tuple[Any, ...]]) -> None:
    messages = []
    for original, reply, status, timeout, zone, packets, start in rows:
        attrs = [original.pack(), reply.pack(ct.TUPLE_REPLY)]
        attrs += [nl.attribute(ct.STATUS, struct.pack("!I", status))]
        attrs += [nl.attribute(ct.TIMEOUT, struct.pack("!I", timeout))]
        if zone is not None:
            attrs.append(nl.attribute(ct.ZONE, struct.pack("!H", zone)))
        if packets is not None:
            attrs.append(nl.nested(ct.COUNTERS_REPLY, nl.attribute(1, struct.pack("!Q", packets))))
        if start is not None:
            attrs.append(nl.nested(ct.TIMESTAMP, nl.attribute(1, struct.pack("!Q", start))))
        messages.append(flow_message(attrs, family=original.family))
    table = flows([b"".join(messages)])
    read_everything(table)

    def cell(name: str, row: int) -> int | None:
        return int(table[name][row]) if table.present(name)[row] else None

    for number, (original, reply, status, timeout, zone, packets, start) in enumerate(rows):
        for way, side in (("orig", original), ("reply", reply)):
            assert cell(f"{way}_sport", number) == side.sport
            assert cell(f"{way}_dport", number) == side.dport
            assert cell(f"{way}_zone", number) == side.zone
            for name, raw in (("src", side.src), ("dst", side.dst)):
                want = raw if len(raw) == 16 else bytes(10) + b"\xff\xff" + raw
                assert table[f"{way}_{name}"][number].tolist() == list(struct.unpack("!QQ", want))
        assert (cell("status", number), cell("timeout_s", number)) == (status, timeout)
        assert (cell("zone", number), cell("reply_packets", number)) == (zone, packets)
        assert (cell("start_ns", number), cell("protocol", number)) == (start, original.protocol)


PARSERS: list[Callable[[bytes], Any]] = [
    proc.parse_sockstat,
    proc.parse_protocols,
    proc.parse_snmp,
    proc.parse_conntrack_stat,
    proc.parse_tcp,
    proc.parse_stat,
    proc.parse_status,
    proc.parse_cmdline,
    proc.parse_cgroup,
    proc.parse_mountinfo,
    proc.parse_fdinfo,
    proc.parse_uptime,
    proc.parse_limits,
    proc.parse_ns_link,
    proc.parse_socket_link,
]
WORDS = [b"TCP:", b"inuse", b"5", b"-1", b"0x1", b"net:[4026531840]", b"socket:[1]", b"812 (a) S", b"0::/x"]
WORDS += [b"protocol", b"sockets", b"memory", b"  sl ", b"\n", b" ", b"\t", b":", b"-", b",", b"\0", b"\xff"]
WORDS += [
    b"0100007F:1F90",
    b"00000000:00000001",
    b"00:00000000",
    b"flags:",
    b"Name:",
    b"Uid:",
    b"\\040",
    b"1.5",
]
lines = st.lists(st.sampled_from(WORDS) | st.binary(max_size=6), max_size=40).map(b" ".join)


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
@given(data=st.binary(max_size=200) | lines)
def test_any_bytes_are_a_file_of_proc_or_an_error_that_says_where(
    parse: Callable[[bytes], Any], data: bytes
) -> None:
    try:
        parse(data)
    except DecodeError as error:
        says_where(error, len(data))


@given(
    st.booleans(),
    st.lists(
        st.tuples(
            ADDRESS, U16, ADDRESS, U16, st.integers(0, 255), U32, U32, st.integers(0, 4), U16, U32, U32
        ),
        max_size=8,
    ),
)
def test_lines_of_proc_net_tcp_come_back_as_they_were_put_in(v6: bool, rows: list[tuple[Any, ...]]) -> None:
    def shown(raw: bytes) -> str:
        words = struct.unpack("<4I" if v6 else "<I", raw if v6 else raw[:4])
        return "".join(f"{word:08X}" for word in words)

    text = "  sl  local_address rem_address   st tx_queue ...\n"
    for number, (src, sport, dst, dport, state, tx, rx, timer, when, uid, inode) in enumerate(rows):
        text += (
            f"{number:4}: {shown(src)}:{sport:04X} {shown(dst)}:{dport:04X} {state:02X} {tx:08X}:{rx:08X} "
            f"{timer:02X}:{when:08X} 00000000 {uid:5} {0:8} {inode} 1 0 100 0 0 10 0\n"
        )
    columns = proc.parse_tcp(text.encode(), byteorder="little")
    table = SocketTable.from_columns(columns)
    assert len(table) == len(rows)
    for number, (src, sport, dst, dport, state, tx, rx, timer, when, uid, inode) in enumerate(rows):
        assert (table.sport[number], table.dport[number]) == (sport, dport)
        assert (table.state[number], table.wqueue[number], table.rqueue[number]) == (state, tx, rx)
        assert (table.timer[number], table.uid[number], table.inode[number]) == (timer, uid, inode)
        assert table.expires_ms[number] == (when * 10 if timer else 0)
        for name, raw in (("src", src), ("dst", dst)):
            want = raw if v6 else bytes(10) + b"\xff\xff" + raw[:4]
            assert table[name][number].tolist() == list(struct.unpack("!QQ", want))


COMPONENTS = ["kubepods", "burstable", "docker", "lxc", "lxc.payload", "system.slice", "a.service", "x.scope"]
COMPONENTS += ["pod0c5ed5a2-3b1f-4c49-9d6e-0a7c2e3f4b5d", "f" * 64, "libpod-" + "0" * 64 + ".scope", ".."]
COMPONENTS += ["kubepods-burstable-podabc_def.slice", "cri-containerd-abc.scope", "kubepods-pod1.slice"]
paths = st.lists(st.sampled_from(COMPONENTS) | st.text(max_size=8), max_size=8).map("/".join)


@given(paths)
def test_any_cgroup_path_tells_only_what_it_contains(path: str) -> None:
    found = workload_of_path(path)
    plain = path.replace("\\x2d", "-")
    assert found.container_id in plain or "\\x" in path
    assert found.pod_uid in path.replace("_", "-")
    assert found.unit in path
    assert found.qos in ("", "guaranteed", "burstable", "besteffort")
    assert bool(found.qos) <= bool(found.pod_uid)
    assert bool(found.runtime) <= bool(found.container_id)
    assert workload_of_cgroups([proc.CgroupLine(0, (), path, False)]) == found

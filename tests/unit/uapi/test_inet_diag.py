from __future__ import annotations

import itertools
import socket
import struct
import sys
from typing import Any, cast

import numpy as np
import pytest

from finwait.errors import DecodeError
from finwait.table.sockets import SCHEMA, SocketTable, address_text, pack_address
from finwait.uapi import inet_diag as d
from finwait.uapi import netlink as nl
from finwait.uapi.layout import low_half_first
from tests.synthetic import socket_message, sockets, walk

LOCAL = socket.inet_aton("192.0.2.1")
OTHER = socket.inet_aton("198.51.100.7")
LOCAL6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
MAPPED = socket.inet_pton(socket.AF_INET6, "::ffff:198.51.100.7")


def test_the_fixed_struct_is_read_field_by_field() -> None:
    identity = d.SocketId(8080, 54321, LOCAL, OTHER, ifindex=3, cookie=0x1_0000_0002)
    table = sockets(
        [
            socket_message(
                family=2,
                state=5,
                timer=2,
                retrans=4,
                identity=identity,
                expires=7_140_000,
                rqueue=1,
                wqueue=2,
                uid=1000,
                inode=0xFFFFFFFE,
            )
        ]
    )
    assert (table.family[0], table.state[0], table.timer[0], table.retrans[0]) == (2, 5, 2, 4)
    assert (table.sport[0], table.dport[0], table.ifindex[0]) == (8080, 54321, 3)
    assert table.cookie[0] == 0x1_0000_0002
    assert (table.expires_ms[0], table.rqueue[0], table.wqueue[0]) == (7_140_000, 1, 2)
    assert (table.uid[0], table.inode[0]) == (1000, 0xFFFFFFFE)
    assert address_text(*map(int, table.src[0])) == "192.0.2.1"
    assert address_text(*map(int, table.dst[0])) == "198.51.100.7"
    assert table.netns[0] == 1
    assert table.protocol[0] == 6


@pytest.mark.parametrize(("order", "machine"), [("<", "little"), (">", "big")])
def test_a_cookie_is_the_same_number_on_every_machine(order: str, machine: Any) -> None:
    """The kernel writes ``__u32[2]``, low half first; SO_COOKIE gives one ``u64``, and the two are compared."""
    cookie = 0x0123_4567_89AB_CDEF
    so_cookie = struct.unpack(f"{order}Q", struct.pack(f"{order}Q", cookie))[0]
    request = d.SocketId(1, 2, LOCAL, OTHER, cookie=so_cookie).pack(cast("Any", order))
    low, high = struct.unpack_from(f"{order}II", request, 40)
    assert (low, high) == (0x89AB_CDEF, 0x0123_4567)
    message = struct.pack(f"{order}II", low, high)  # as sock_diag_save_cookie() does it
    cells = np.frombuffer(message, f"{order}u8").astype(np.uint64)
    assert low_half_first(cells, machine).tolist() == [cookie]


@pytest.mark.skipif(sys.byteorder == "big", reason="plays a big-endian machine on one that is not")
@pytest.mark.parametrize("together", [False, True])
def test_the_table_reads_cookies_by_their_halves(monkeypatch: pytest.MonkeyPatch, together: bool) -> None:
    monkeypatch.setattr("finwait.uapi.layout.low_half_first", lambda cells: low_half_first(cells, "big"))
    table = sockets([socket_message(identity=d.SocketId(1, 2, LOCAL, OTHER, cookie=0x1_0000_0002))])
    if together:
        table.load(["cookie", "inode", "state"])
    assert table.cookie.tolist() == [0x2_0000_0001]


def test_a_mapped_address_equals_the_ipv4_one_and_keeps_its_family() -> None:
    table = sockets(
        [
            socket_message(family=2, identity=d.SocketId(1, 2, LOCAL, OTHER)),
            socket_message(family=10, identity=d.SocketId(1, 2, LOCAL6, MAPPED)),
        ]
    )
    assert table.family.tolist() == [2, 10]
    assert table.dst[0].tolist() == table.dst[1].tolist() == list(pack_address("198.51.100.7"))
    assert table.src[1].tolist() == list(pack_address("2001:db8::1"))


def test_a_row_without_an_attribute_is_missing_it_and_reads_zero() -> None:
    full = socket_message([(d.SHUTDOWN, b"\2"), (d.CGROUP_ID, struct.pack("=Q", 1 << 40))])
    minisock = socket_message([(d.MARK, struct.pack("=I", 7))])
    table = sockets([full + minisock])
    assert table.present("shutdown").tolist() == [True, False]
    assert table.shutdown.tolist() == [2, 0]
    assert table.cgroup_id.tolist() == [1 << 40, 0]
    assert table.mark.tolist() == [0, 7]
    assert table.present("mark").tolist() == [False, True]
    assert table.present("state").all()
    assert not table.present("snd_cwnd").any()


def test_a_longer_tcp_info_is_a_newer_kernel_and_a_shorter_one_lacks_its_end() -> None:
    whole = bytes(range(256))
    table = sockets(
        [socket_message([(d.INFO, whole + bytes(100))]) + socket_message([(d.INFO, whole[:104])])]
    )
    assert table.total_retrans.tolist() == [struct.unpack_from("=I", whole, 100)[0]] * 2
    assert table.present("pacing_rate").tolist() == [True, False]
    assert table.pacing_rate.tolist() == [struct.unpack_from("=Q", whole, 104)[0], 0]


def test_mptcp_info_is_never_read_as_tcp_info() -> None:
    row = socket_message([(d.INFO, struct.pack("=BBBB I", 3, 0, 0, 0, 0) + bytes(100))])
    as_mptcp = sockets([row], protocol=d.IPPROTO_MPTCP)
    assert as_mptcp.mptcp_subflows.tolist() == [3]
    assert not as_mptcp.present("snd_cwnd").any()
    as_tcp = sockets([row])
    assert not as_tcp.present("mptcp_subflows").any()
    assert as_tcp.mptcp_subflows.tolist() == [0]


def test_text_ends_at_the_first_nul_and_may_fill_its_attribute() -> None:
    rows = [b"cubic\0", b"bbr\0junk", b"0123456789abcdefgh", b""]
    table = sockets([socket_message([(d.CONG, text)]) for text in rows])
    assert table.cong.tolist() == [b"cubic", b"bbr", b"0123456789abcdef", b""]
    assert table.present("cong").all()


def test_what_is_nested_in_ulp_info_is_found() -> None:
    ulp = nl.attribute(1, b"mptcp\0") + nl.nested(
        3, nl.attribute(1, struct.pack("=I", 11)), nl.attribute(2, struct.pack("=I", 22))
    )
    table = sockets([socket_message([(d.ULP_INFO, ulp)])])
    assert table.ulp.tolist() == [b"mptcp"]
    assert (table.mptcp_token_remote[0], table.mptcp_token_local[0]) == (11, 22)


def test_unknown_attributes_are_kept() -> None:
    table = sockets([socket_message([(4000, b"new"), (d.SHUTDOWN, b"\1")])])
    assert table.attributes(0) == {(4000,): b"new", (d.SHUTDOWN,): b"\1"}
    assert table.shutdown.tolist() == [1]


def test_rows_of_equal_length_and_different_attributes_are_told_apart() -> None:
    kinds = [(d.MARK, "mark"), (d.CLASS_ID, "class_id")]
    order = [0, 1, 1, 0, 1]
    table = sockets([b"".join(socket_message([(kinds[k][0], struct.pack("=I", 9))]) for k in order)])
    assert table.present("mark").tolist() == [k == 0 for k in order]
    assert table.present("class_id").tolist() == [k == 1 for k in order]


def test_more_layouts_of_one_length_than_any_kernel_has_are_still_read() -> None:
    kinds = [d.MARK, d.CLASS_ID, 101, 102, 103]
    orders = list(itertools.permutations(kinds))
    assert len(orders) == 120
    messages = [
        socket_message([(kind, struct.pack("=I", 1000 * number + kind)) for kind in order])
        for number, order in enumerate(orders * 2)
    ]
    table = sockets([b"".join(messages)])
    assert table.mark.tolist() == [1000 * n + d.MARK for n in range(240)]
    assert table.class_id.tolist() == [1000 * n + d.CLASS_ID for n in range(240)]
    assert table.attributes(239)[(103,)] == struct.pack("=I", 239103)


def test_more_lengths_than_any_kernel_has_are_still_read() -> None:
    table = sockets(
        [
            socket_message([(100, bytes(4 * (n % 100))), (d.MARK, struct.pack("=I", n))], rqueue=n)
            for n in range(300)
        ]
    )
    assert table.mark.tolist() == list(range(300))
    assert table.rqueue.tolist() == list(range(300))


def test_selecting_keeps_what_was_read_and_what_was_not() -> None:
    table = sockets([socket_message([(d.MARK, struct.pack("=I", n))], rqueue=n) for n in range(5)])
    assert table.mark.tolist() == [0, 1, 2, 3, 4]
    some = table.select(table.rqueue >= 3)
    assert some.mark.tolist() == some.rqueue.tolist() == [3, 4]
    assert some.attributes(1) == {(d.MARK,): struct.pack("=I", 4)}


def test_joined_tables_hold_the_rows_of_all() -> None:
    one = sockets([socket_message([(d.MARK, struct.pack("=I", 1))])])
    two = sockets([socket_message(rqueue=5)])
    both = SocketTable.concatenate([one, SocketTable.empty(), two])
    assert both.mark.tolist() == [1, 0]
    assert both.present("mark").tolist() == [True, False]
    assert both.rqueue.tolist() == [0, 5]
    assert all(len(both.column(name)) == 2 for name in SCHEMA.names)
    assert len(SocketTable.concatenate([])) == 0


def test_a_message_shorter_than_the_struct_is_an_error_that_says_where() -> None:
    good = socket_message()
    bad = nl.message(d.SOCK_DIAG_BY_FAMILY, 2, bytes(71))
    buffer, messages = walk([good + bad])
    with pytest.raises(DecodeError, match="87 bytes is shorter than 88") as caught:
        d.find_rows(buffer, messages)
    assert caught.value.offset == len(good)


def test_an_attribute_that_overruns_its_message_is_an_error_that_says_where() -> None:
    good = socket_message([(d.MARK, bytes(4))])
    bad = bytearray(good)
    bad[88:90] = struct.pack("=H", 9)
    buffer, messages = walk([good, bytes(bad)])
    with pytest.raises(DecodeError, match="attribute length 9 is impossible") as caught:
        d.find_rows(buffer, messages)
    assert caught.value.offset == len(good) + 88


def test_extensions_are_asked_for_by_bit() -> None:
    assert d.extension_mask(d.INFO, d.MEMINFO) == 0b11
    with pytest.raises(ValueError, match="cannot be asked for"):
        d.extension_mask(d.MARK)


def test_a_dump_request_of_mptcp_names_it_in_an_attribute() -> None:
    request = d.dump_request(2, d.IPPROTO_MPTCP, 0xFFF, 0, bytecode=b"code")
    assert struct.unpack_from("=BBBBI", request, 16) == (2, 255, 0, 0, 0xFFF)
    found = {k: request[a : a + n] for k, a, n in nl.attributes(request, 16 + 56, len(request), "request")}
    assert found == {d.REQ_BYTECODE: b"code", d.REQ_PROTOCOL: struct.pack("=I", 262)}


def test_a_destroy_request_carries_the_cookie_and_asks_for_an_answer() -> None:
    identity = d.SocketId(80, 12345, LOCAL, OTHER, cookie=0xAAAA_BBBB_CCCC_DDDD)
    request = d.socket_request(d.SOCK_DESTROY, 2, 6, identity)
    assert struct.unpack_from("=HH", request, 4) == (d.SOCK_DESTROY, nl.NLM_F_REQUEST | nl.NLM_F_ACK)
    assert struct.unpack_from("!HH4s", request, 24) == (80, 12345, LOCAL)
    assert struct.unpack_from("=II", request, 24 + 40) == (0xCCCC_DDDD, 0xAAAA_BBBB)
    anyone = d.socket_request(d.SOCK_DIAG_BY_FAMILY, 2, 6, d.SocketId(80, 0, LOCAL, b""))
    assert struct.unpack_from("=II", anyone, 24 + 40) == (d.NOCOOKIE, d.NOCOOKIE)


def test_columns_read_at_once_are_those_read_one_by_one_of_many_rows_and_mixed_protocols() -> None:
    info = bytes(range(256))
    long = [(d.INFO, info[:200]), (d.CGROUP_ID, b"\1" * 8), (d.CONG, b"cubic\0")]
    shapes = [long, [(d.INFO, info), (d.SHUTDOWN, b"\2")], [], [(d.CONG, b"bbr\0!")], long]
    datagrams = [b"".join(socket_message(a, inode=k) for a in shapes) for k in range(600)]
    one = sockets(datagrams)
    for protocol in (6, 262, np.arange(3000) % 2 * 256 + 6):
        buffer, messages = walk(datagrams)
        rows = d.find_rows(buffer, messages)
        tables = [
            SocketTable.from_rows(
                rows, np.ones(3000, np.uint32), np.asarray(np.ones(3000) * protocol, np.uint16)
            )
            for _ in range(2)
        ]
        tables[1].load()
        for name in SocketTable.schema.names:
            assert np.array_equal(tables[0].column(name), tables[1].column(name)), name
            assert np.array_equal(tables[0].present(name), tables[1].present(name)), name
    assert one.cong[:5].tolist() == [b"cubic", b"", b"", b"bbr", b"cubic"]
    assert one.inode[-1] == 599

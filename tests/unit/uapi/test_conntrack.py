from __future__ import annotations

import socket
import struct
import sys

import numpy as np
import pytest

from finwait.errors import DecodeError
from finwait.table.flows import SCHEMA, FlowTable
from finwait.table.sockets import address_text, pack_address
from finwait.uapi import conntrack as ct
from finwait.uapi import netlink as nl
from tests.synthetic import flow_message, flows, walk

# Two entries as Linux 6.18 sent them: TCP to 10.9.9.9:80 that was translated to 127.0.0.1:9999, and a
# datagram that nobody answered; nf_conntrack_acct and nf_conntrack_timestamp were set.
pytestmark = pytest.mark.skipif(
    sys.byteorder == "big", reason="its messages are those of a little-endian machine"
)

NATTED = bytes.fromhex(
    "1c010000000102000100000049260000020000003400018014000180080001000a090909080002000a0909091c00028005000100"
    "0600000006000200ac86000006000300005000003400028014000180080001007f000001080002000a0909091c00028005000100"
    "0600000006000200270f000006000300ac86000008000300000001ae080008000000000708000c00bb91ce3b08000b0000000001"
    "0800070000000077300004802c0001800500010004000000050002000a000000050003000a0000000600040023000000060005"
    "00370000001c0009800c00010000000000000000030c00020000000000000000a61c000a800c00010000000000000000030c0002"
    "0000000000000000a4100014800c00010018ea9d10f79f647c"
)
UNANSWERED = bytes.fromhex(
    "ec000000000102000100000049260000020000003400018014000180080001007f000001080002007f0000011c00028005000100"
    "1100000006000200e2c1000006000300003500003400028014000180080001007f000001080002007f0000011c00028005000100"
    "11000000060002000035000006000300e2c100000800030000000188080008000000000708000c009012847908000b0000000001"
    "080007000000001d1c0009800c00010000000000000000010c000200000000000000001d1c000a800c0001000000000000000000"
    "0c0002000000000000000000100014800c00010018ea9d10f7a5a331"
)


def u32(kind: int, value: int) -> bytes:
    return nl.attribute(kind, struct.pack("!I", value))


def test_entries_of_a_real_kernel_are_read_field_by_field() -> None:
    table = flows([UNANSWERED + NATTED])
    assert table.family.tolist() == [2, 2]
    assert table.protocol.tolist() == [17, 6]
    assert address_text(*map(int, table.orig_dst[1])) == "10.9.9.9"
    assert address_text(*map(int, table.reply_src[1])) == "127.0.0.1"
    assert table.orig_sport.tolist() == [58049, 44166]
    assert table.orig_dport.tolist() == [53, 80]
    assert table.reply_sport.tolist() == [53, 9999]
    assert table.reply_dport.tolist() == [58049, 44166]
    assert table.timeout_s.tolist() == [29, 119]
    assert table.mark.tolist() == [7, 7]
    assert table.use.tolist() == [1, 1]
    assert table.id.tolist() == [2417132665, 3146894907]
    assert table.present("tcp_state").tolist() == [False, True]
    assert ct.TCP_STATES[int(table.tcp_state[1])] == "FIN_WAIT"
    assert (table.orig_wscale[1], table.reply_wscale[1]) == (10, 10)
    assert (table.orig_tcp_flags[1], table.reply_tcp_flags[1]) == (0x23, 0x37)
    assert table.orig_packets.tolist() == [1, 3]
    assert table.orig_bytes.tolist() == [29, 166]
    assert table.reply_bytes.tolist() == [0, 164]
    assert table.start_ns.tolist() == [0x18EA9D10F7A5A331, 0x18EA9D10F79F647C]
    assert table.natted().tolist() == [False, True]
    assert table.has_status("ASSURED").tolist() == [False, True]
    assert table.has_status("CONFIRMED").tolist() == [True, True]
    for name in ("zone", "orig_zone", "helper", "labels", "secctx", "master_src", "stop_ns", "synproxy_isn"):
        assert not table.present(name).any(), name


def test_every_column_can_be_read_and_is_native() -> None:
    table = flows([UNANSWERED + NATTED])
    for column in SCHEMA:
        cells = table.column(column.name)
        assert len(cells) == len(table.present(column.name)) == 2
        assert cells.dtype.isnative
        assert cells.shape == ((2, 2) if column.width == 2 else (2,))


def test_a_table_can_be_made_of_values_and_joined() -> None:
    made = FlowTable.from_columns({"orig_dport": [443], "orig_dst": [pack_address("2001:db8::5")]})
    both = FlowTable.concatenate([flows([NATTED]), made])
    assert both.orig_dport.tolist() == [80, 443]
    assert both.present("tcp_state").tolist() == [True, False]
    assert both.orig_dst[1].tolist() == list(pack_address("2001:db8::5"))
    with pytest.raises(ValueError, match="no such column: nonsense"):
        FlowTable.from_columns({"nonsense": [1]})
    with pytest.raises(ValueError, match="differ in length"):
        FlowTable.from_columns({"mark": [1], "use": [1, 2]})


def test_ipv6_zones_labels_names_and_the_rest_are_read() -> None:
    v6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1"), socket.inet_pton(socket.AF_INET6, "2001:db8::2")
    original = ct.FlowTuple(10, 6, *v6, 1234, 443, zone=6)
    master = ct.FlowTuple(10, 6, *v6, 21, 2121)
    table = flows(
        [
            flow_message(
                [
                    original.pack(),
                    nl.attribute(ct.ZONE, struct.pack("!H", 5)),
                    nl.attribute(ct.LABELS, struct.pack("=QQ", 1 << 3, 1 << 63)),
                    nl.nested(ct.HELP, nl.attribute(1, b"ftp\0")),
                    nl.nested(ct.SECCTX, nl.attribute(1, b"system_u:object_r:x\0")),
                    nl.nested(ct.SEQ_ADJ_REPLY, u32(1, 10), u32(2, 20), u32(3, 30)),
                    nl.nested(ct.SYNPROXY, u32(1, 40), u32(2, 50), u32(3, 60)),
                    master.pack(ct.TUPLE_MASTER),
                    nl.nested(ct.PROTOINFO, nl.nested(ct.PROTOINFO_SCTP, nl.attribute(1, b"\4"), u32(2, 70))),
                    nl.nested(
                        ct.TIMESTAMP,
                        nl.attribute(2, struct.pack("!Q", 80)),
                    ),
                    nl.attribute(99, b"of a newer kernel"),
                ],
                family=10,
            )
        ]
    )
    assert table.orig_src[0].tolist() == list(pack_address("2001:db8::1"))
    assert table.present("orig_src").tolist() == [True]
    assert table.present("reply_src").tolist() == [False]
    assert (table.zone[0], table.orig_zone[0]) == (5, 6)
    assert table.labels[0].tolist() == [1 << 3, 1 << 63]
    assert table.helper.tolist() == [b"ftp"]
    assert table.secctx.tolist() == [b"system_u:object_r:x"]
    assert [int(table[f"reply_{n}"][0]) for n in ("correction_pos", "offset_before", "offset_after")] == [
        10,
        20,
        30,
    ]
    assert not table.present("orig_offset_after").any()
    assert [int(table[f"synproxy_{n}"][0]) for n in ("isn", "its", "tsoff")] == [40, 50, 60]
    assert table.master_dport.tolist() == [2121]
    assert (table.sctp_state[0], table.orig_sctp_vtag[0]) == (4, 70)
    assert table.stop_ns.tolist() == [80]
    assert table.attributes(0)[99,] == b"of a newer kernel"


def test_a_dump_request_of_everything_is_only_a_header() -> None:
    request = ct.dump_request(seq=9)
    assert struct.unpack("=IHHIIBBH", request) == (20, 0x101, 0x301, 9, 0, 0, 0, 0)


def test_a_filter_by_protocol_needs_a_family() -> None:
    with pytest.raises(ValueError, match="only within one family"):
        ct.dump_request(protocol=6)


def test_an_entry_is_deleted_only_by_tuple_and_id() -> None:
    original = ct.FlowTuple(2, 6, bytes(4), bytes(4), 1, 2)
    with pytest.raises(ValueError, match="by tuple \\*and\\* id"):
        ct.entry_request(ct.CT_DELETE, original)
    request = ct.entry_request(ct.CT_DELETE, original, zone=5, identity=0x01020304)
    assert struct.unpack_from("=HH", request, 4) == (0x102, nl.NLM_F_REQUEST | nl.NLM_F_ACK)
    kinds = {k: request[a : a + n] for k, a, n in nl.attributes(request, 20, len(request), "request")}
    assert kinds[ct.ID] == b"\1\2\3\4"
    assert kinds[ct.ZONE] == b"\0\5"
    assert ct.TUPLE_ORIG in kinds, "without a tuple the kernel would flush the whole table"


@pytest.mark.parametrize(
    "wrong",
    [
        ct.FlowTuple(2, 6, bytes(16), bytes(4), 1, 2),
        ct.FlowTuple(10, 6, bytes(4), bytes(16), 1, 2),
        ct.FlowTuple(1, 6, bytes(4), bytes(4), 1, 2),
    ],
)
def test_addresses_must_fit_the_family(wrong: ct.FlowTuple) -> None:
    with pytest.raises(ValueError, match="family"):
        wrong.pack()


def statistics_message(kind: int, cpu: int, **values: int) -> bytes:
    body = struct.pack("!BBH", 0, 0, cpu) + b"".join(u32(int(k[1:]), v) for k, v in values.items())
    return nl.message(kind, 2, body)


def test_the_statistics_of_each_cpu_keep_counters_that_are_new() -> None:
    datagram = statistics_message(ct.CT_GET_STATS_CPU, 0, n4=3, n9=1) + statistics_message(
        ct.CT_GET_STATS_CPU, 1, n4=4, n77=5
    )
    cpus = ct.cpu_statistics(*walk([datagram]))
    assert cpus == {0: {"invalid": 3, "insert_failed": 1}, 1: {"invalid": 4, "stats_77": 5}}
    assert ct.total_over_cpus(cpus.values()) == {"invalid": 7, "insert_failed": 1, "stats_77": 5}


def test_the_number_of_entries_is_not_added_up_over_cpus() -> None:
    assert ct.total_over_cpus([{"entries": 9, "drop": 1}, {"entries": 9, "drop": 2}]) == {
        "entries": 9,
        "drop": 3,
    }


def test_the_limit_is_unknown_where_the_kernel_does_not_say() -> None:
    assert ct.statistics(*walk([statistics_message(ct.CT_GET_STATS, 0, n1=5, n2=100)])) == ct.TableStatistics(
        5, 100
    )
    assert ct.statistics(*walk([statistics_message(ct.CT_GET_STATS, 0, n1=5)])) == ct.TableStatistics(5, None)


def test_an_answer_without_the_count_is_an_error() -> None:
    with pytest.raises(DecodeError, match="no CTA_STATS_GLOBAL_ENTRIES"):
        ct.statistics(*walk([statistics_message(ct.CT_GET_STATS, 0, n2=100)]))
    with pytest.raises(DecodeError, match="no IPCTNL_MSG_CT_GET_STATS"):
        ct.statistics(*walk([]))


@pytest.mark.parametrize("decode", [ct.cpu_statistics, ct.statistics])
def test_short_statistics_are_errors_that_say_where(decode: object) -> None:
    kind = ct.CT_GET_STATS_CPU if decode is ct.cpu_statistics else ct.CT_GET_STATS
    short = nl.message(kind, 2, b"\0\0")
    with pytest.raises(DecodeError, match="too short"):
        decode(*walk([short]))  # type: ignore[operator]
    overrun = nl.message(kind, 2, bytes(4) + struct.pack("=HH", 99, 1))
    with pytest.raises(DecodeError) as caught:
        decode(*walk([nl.message(1, 0, bytes(8)), overrun]))  # type: ignore[operator]
    assert caught.value.offset == 24 + 20


def test_an_entry_cut_short_is_an_error_that_says_where() -> None:
    cut = bytearray(NATTED[:100])
    cut[:4] = struct.pack("=I", len(cut))
    buffer, messages = walk([UNANSWERED, bytes(cut)])
    with pytest.raises(DecodeError) as caught:
        ct.find_rows(buffer, messages)
    assert len(UNANSWERED) <= caught.value.offset < len(UNANSWERED) + 100
    assert "nfgenmsg" in caught.value.what


def test_no_entries_are_an_empty_table() -> None:
    table = flows([])
    assert len(table) == 0
    assert table.orig_src.shape == (0, 2)
    assert table.natted().tolist() == []
    assert np.array_equal(table.present("labels"), np.empty(0, np.bool_))

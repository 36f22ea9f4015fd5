"""ctnetlink dumps of a real namespace against the `conntrack` command and /proc, line by line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finwait.table.flows import FlowTable
from finwait.table.sockets import address_text, pack_address
from finwait.uapi import conntrack as ct
from finwait.uapi import netlink as nl
from finwait.uapi import proc
from tests.kernel import needs

pytestmark = pytest.mark.kernel
NETNS = 4026530000


@pytest.fixture(scope="module")
def scene() -> dict[str, Any]:
    needs.root_and("ip", "nft", "conntrack")
    script = Path(__file__).with_name("conntrack_scene.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=110)
    if done.returncode == 77:
        needs.missing(f"no network namespace to be had: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def messages(parts: list[str]) -> tuple[np.ndarray, nl.Messages]:
    raw = [bytes.fromhex(part) for part in parts]
    ends = np.cumsum([len(part) for part in raw])
    starts = ends - [len(part) for part in raw]
    buffer = np.frombuffer(b"".join(raw), np.uint8)
    return buffer, nl.walk(buffer, starts, ends)


def table(parts: list[str]) -> FlowTable:
    buffer, found = messages(parts)
    rows = ct.find_rows(buffer, found.where(found.type == ct.CT_NEW))
    return FlowTable.from_rows(rows, np.full(len(rows), NETNS, np.uint32))


def as_conntrack_prints(flows: FlowTable, row: int) -> str:
    """One row in the words of `conntrack -L -o extended,id` (without delta-time, which is of the moment)."""

    def has(name: str) -> bool:
        return bool(flows.present(name)[row])

    def cell(name: str) -> Any:
        return flows[name][row]

    names = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}
    family = f"ipv{4 if cell('family') == 2 else 6}"
    words = [f"{family:<8} {cell('family')}", f"{names[cell('protocol')]:<8} {cell('protocol')}"]
    if has("timeout_s"):
        words.append(str(cell("timeout_s")))
    if has("tcp_state"):
        words.append(ct.TCP_STATES[int(cell("tcp_state"))])
    status = int(cell("status"))
    for way in ("orig", "reply"):
        words += [f"{k}={address_text(*map(int, cell(f'{way}_{k}')))}" for k in ("src", "dst")]
        for version in ("icmp", "icmpv6"):
            if has(f"{way}_{version}_id"):
                words += [f"{k}={cell(f'{way}_{version}_{k}')}" for k in ("type", "code", "id")]
        if has(f"{way}_sport"):
            words += [f"{k}={cell(f'{way}_{k}')}" for k in ("sport", "dport")]
        if has(f"{way}_zone"):
            words.append(f"zone-{way}={cell(f'{way}_zone')}")
        if has(f"{way}_packets"):
            words += [f"{k}={cell(f'{way}_{k}')}" for k in ("packets", "bytes")]
        if way == "orig" and not status & ct.STATUS_BITS["SEEN_REPLY"]:
            words.append("[UNREPLIED]")
        if way == "reply" and status & ct.STATUS_BITS["ASSURED"]:
            words.append("[ASSURED]")
    words.append(f"mark={cell('mark')}")
    if has("zone"):
        words.append(f"zone={cell('zone')}")
    if has("helper"):
        words.append(f"helper={cell('helper').decode()}")
    return " ".join([*words, f"use={cell('use')}", f"id={cell('id')}"])


def row_of(flows: FlowTable, port: int, family: int = 2) -> int:
    (row,) = np.flatnonzero((flows.orig_dport == port) & (flows.family == family))
    return int(row)


def test_every_row_says_what_conntrack_prints(scene: dict[str, Any]) -> None:
    flows = table(scene["dump"])
    printed = [re.sub(r" delta-time=\d+", "", line) for line in scene["text"].splitlines()]
    assert [as_conntrack_prints(flows, row) for row in range(len(flows))] == printed
    assert len(flows) == 11
    assert set(flows.netns.tolist()) == {NETNS}


def test_the_states_of_known_flows_are_read(scene: dict[str, Any]) -> None:
    flows = table(scene["dump"])
    states = {
        port: ct.TCP_STATES[int(flows.tcp_state[row_of(flows, port)])] for port in (80, 5002, 5003, 5006)
    }
    assert states == {80: "ESTABLISHED", 5002: "CLOSE_WAIT", 5003: "CLOSE", 5006: "ESTABLISHED"}
    half_closed = row_of(flows, 5002)
    assert flows.orig_tcp_flags[half_closed] & 0x04, "the client sent the first FIN (CLOSE_INIT)"
    assert not flows.reply_tcp_flags[half_closed] & 0x04
    assert flows.orig_wscale[half_closed] > 0
    assert not flows.present("tcp_state")[flows.protocol == 17].any()


def test_destination_nat_shows_in_tuple_and_status(scene: dict[str, Any]) -> None:
    flows = table(scene["dump"])
    row = row_of(flows, 80)
    assert flows.natted().tolist() == [r == row for r in range(len(flows))]
    assert flows.has_status("DST_NAT", "ASSURED", "SEEN_REPLY")[row]
    assert tuple(flows.orig_dst[row]) == pack_address("10.9.9.9")
    assert tuple(flows.reply_src[row]) == pack_address("127.0.0.1")
    assert (flows.reply_sport[row], flows.reply_dport[row]) == (5001, flows.orig_sport[row])


def test_marks_labels_zones_helpers_and_times_are_read(scene: dict[str, Any]) -> None:
    flows = table(scene["dump"])
    v6 = row_of(flows, 5001, 10)
    assert flows.mark[v6] == 0xDEADBEEF
    assert flows.labels[v6].tolist() == [0, 1 << 63], "label 127 is the last bit"
    assert flows.present("labels").sum() == 3
    assert sorted(flows.zone[flows.present("zone")].tolist()) == [5]
    assert flows.orig_zone[row_of(flows, 5006)] == 6
    assert not flows.present("reply_zone").any()
    assert flows.helper[row_of(flows, 5002)] == b"ftp"
    assert flows.present("start_ns").all()
    assert ((flows.start_ns >= scene["begin_ns"]) & (flows.start_ns <= scene["made_ns"])).all()
    assert not flows.present("stop_ns").any()


def test_the_kernel_filters_agree_with_ours(scene: dict[str, Any]) -> None:
    flows = table(scene["dump"])
    for name, mask in (
        ("tcp4", (flows.family == 2) & (flows.protocol == 6)),
        ("ipv6", flows.family == 10),
        ("assured", flows.has_status("ASSURED")),
        ("marked", flows.mark == 0xDEADBEEF),
        ("zone5", flows.zone == 5),
    ):
        buffer, found = messages(scene[name])
        entries = found.where(found.type == ct.CT_NEW)
        got = table(scene[name])
        if ((entries.flags & ct.NLM_F_DUMP_FILTERED) != 0).all():
            assert sorted(got.id.tolist()) == sorted(flows.id[mask].tolist()), name
        else:  # an older kernel sends everything
            assert len(got) == len(flows), name
        assert len(buffer)


def test_proc_lists_the_same_flows(scene: dict[str, Any]) -> None:
    flows = table(scene["dump"])
    ports = [re.findall(r"[sd]port=(\d+)", line) for line in scene["proc"].splitlines()]
    ours = [
        [
            str(v)
            for v in (flows.orig_sport[r], flows.orig_dport[r], flows.reply_sport[r], flows.reply_dport[r])
        ]
        if flows.present("orig_sport")[r]
        else []
        for r in range(len(flows))
    ]
    assert sorted(ours) == sorted(ports)


def test_statistics_agree_with_conntrack_and_proc(scene: dict[str, Any]) -> None:
    cpus = ct.cpu_statistics(*messages(scene["statistics_cpu"]))
    printed: dict[int, dict[str, int]] = {}
    for line in scene["statistics_cpu_text"].splitlines():
        pairs: dict[str, str] = dict(re.findall(r"(\w+)=(\d+)", line))
        cpu = int(pairs.pop("cpu"))
        printed[cpu] = {{"chaintoolong": "chain_toolong"}.get(k, k): int(v) for k, v in pairs.items()}
    assert cpus == printed
    total = ct.total_over_cpus(cpus.values())
    assert total["invalid"] > 0, "ICMP errors of the unanswered datagram are INVALID here"
    from_proc = ct.total_over_cpus(proc.parse_conntrack_stat(scene["statistics_cpu_proc"].encode()))
    assert from_proc["entries"] == int(scene["count"])
    for name in ("found", "invalid", "insert", "insert_failed", "drop", "early_drop", "search_restart"):
        assert from_proc[name] == total[name], name


def test_the_number_of_entries_and_the_limit_are_read(scene: dict[str, Any]) -> None:
    found = ct.statistics(*messages(scene["statistics"]))
    assert found.entries == int(scene["count"]) == 11
    assert found.max_entries in (None, int(scene["max"]))


def test_one_entry_is_read_and_deleted_by_tuple_zone_and_id_and_never_by_another_id(
    scene: dict[str, Any],
) -> None:
    enoent = [nl.NLMSG_ERROR, -2]
    for answers in scene["single"]:
        assert answers == {
            "get": [ct.CT_NEW, 0],
            "delete another": enoent,
            "delete": [nl.NLMSG_ERROR, 0],
            "get again": enoent,
        }
    assert len(scene["single"]) == 4
    assert len(scene["left"].splitlines()) == 11 - 4

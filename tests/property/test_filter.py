"""Filters: what the kernel drops never matches, text and tree say the same, and any text is answered.

The bytecode is run here by a transcription of the *rules* of net/ipv4/inet_diag.c (`inet_diag_bc_audit` and
`inet_diag_bc_run`) into Python; that the real kernel agrees is tested in tests/kernel.
"""

import ipaddress
import random
import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finwait.errors import FilterError
from finwait.table.filter import CONTEXT, parse
from finwait.table.sockets import SCHEMA, SocketTable, pack_address
from finwait.uapi import tcp

DEVICES = {"lo": 1, "eth0": 2}
CGROUPS = {"/": 1, "/a": 17, "/a/b": 18}
PORTS = [0, 1, 2, 80, 443, 65534, 65535]
ADDRESSES = [
    (2, "0.0.0.0"),
    (2, "10.0.0.1"),
    (2, "10.0.1.1"),
    (2, "10.0.2.1"),
    (2, "127.0.0.1"),
    (10, "::"),
    (10, "::1"),
    (10, "::ffff:10.0.0.1"),
    (10, "::ffff:127.0.0.1"),
    (10, "2001:db8::1"),
    (10, "2001:db8:0:1::1"),
]


@dataclass(frozen=True)
class Row:
    family: int
    src: str
    dst: str
    sport: int
    dport: int
    state: int
    ifindex: int
    inode: int
    timer: int
    mark: int
    mark_shown: bool
    cgroup: str | None
    auto: int  # 0 the program chose the port, 1 nobody (it was inherited), 2 the kernel


def population(count: int, seed: int) -> list[Row]:
    """Sockets of every kind, so that each condition has rows on both of its sides."""
    chance = random.Random(seed)
    out = []
    for _ in range(count):
        family, src = chance.choice(ADDRESSES)
        dst = chance.choice([a for f, a in ADDRESSES if f == family])
        out.append(
            Row(
                family,
                src,
                dst,
                chance.choice(PORTS),
                chance.choice(PORTS),
                chance.randint(1, 12),
                chance.choice([0, 1, 2, 3]),
                chance.choice([0, 7, 8]),
                chance.randint(0, 4),
                chance.choice([0, 1, 0x11, 0xFF]),
                chance.random() < 0.7,
                chance.choice([None, *CGROUPS]),
                chance.randint(0, 2),
            )
        )
    return out


def table_of(many: list[Row]) -> tuple[SocketTable, dict[str, list[object]]]:
    table = SocketTable.from_columns(
        {
            "family": [r.family for r in many],
            "src": [pack_address(r.src) for r in many],
            "dst": [pack_address(r.dst) for r in many],
            "sport": [r.sport for r in many],
            "dport": [r.dport for r in many],
            "state": [r.state for r in many],
            "ifindex": [r.ifindex for r in many],
            "inode": [r.inode for r in many],
            "timer": [r.timer for r in many],
            "mark": [r.mark for r in many],
            "cgroup_id": [CGROUPS.get(r.cgroup or "", 0) for r in many],
        }
    )
    shown = np.array([r.mark_shown for r in many], np.bool_)
    table._present["mark"] = shown  # what a request without CAP_NET_ADMIN leaves out
    table._present["cgroup_id"] = np.array([r.cgroup is not None for r in many], np.bool_)
    names = {number: name for name, number in DEVICES.items()}
    context: dict[str, list[object]] = {name: [None] * len(many) for name in CONTEXT}
    context["dev"] = [names.get(r.ifindex, "" if not r.ifindex else None) for r in many]
    context["cgroup"] = [r.cgroup for r in many]
    context["autobound"] = [r.auto == 2 for r in many]
    context["pid"] = [(r.inode,) if r.inode else () for r in many]
    context["age_at_least_s"] = [float(r.timer) for r in many]
    context["age_at_most_s"] = [None if r.timer == 4 else r.timer + 0.5 for r in many]
    return table, context


HOSTS = [
    "10.0.0.1",
    "10.0.0.0/16",
    "10.0.0.0/23",
    "0.0.0.0/0",
    "[::]/0",
    "[::1]",
    "[::ffff:10.0.0.1]",
    "[2001:db8::]/32",
    "[2001:db8::/64]:443",
    "127.0.0.1:80",
    "*",
    "*:443",
    ":1",
    "inet:*",
    "inet6:*:80",
    "inet:10.0.0.0/8",
]
EQUALS = ["=", "!="]
ORDER = ["=", "!=", "<", "<=", ">", ">="]


def leaves_of(names: list[str], operators: list[str], values: list[str]) -> list[str]:
    return [f"{n} {o} {v}" for n in names for o in operators for v in values]


KERNEL_LEAVES = [
    *leaves_of(["sport", "dport"], ORDER, [f":{p}" for p in PORTS]),
    *leaves_of(["src", "dst"], EQUALS, HOSTS),
    *leaves_of(["dev"], EQUALS, ["lo", "eth0", "0", "2", "7"]),
    *leaves_of(["cgroup"], EQUALS, [*CGROUPS, "/nowhere"]),
    *leaves_of(["fwmark"], EQUALS, ["0", "1", "0x11/0xff", "1/0x0f", "1/0"]),
]
OTHER_LEAVES = [
    *leaves_of(["inode"], ORDER, ["0", "7", "9"]),
    *leaves_of(["family"], ORDER, ["inet", "inet6", "3"]),
    *leaves_of(["ifindex"], ORDER, ["0", "1", "3"]),
    *leaves_of(["cgroup_id"], ORDER, ["0", "17"]),
    *leaves_of(["mark"], ORDER, ["0", "1", "0x11"]),
    *leaves_of(["timer"], EQUALS, ["0", "none,keepalive"]),
    *leaves_of(["pid"], EQUALS, ["7", "7,8"]),
    *leaves_of(["age"], ORDER, ["0", "1s", "2500ms", "1h"]),
    *["state fin-wait-2", "exclude time-wait", "close-wait,bucket", "state established state big"] * 4,
    *["autobound"] * 10,
    *["held", "orphan", "cgroup = /a*", "rule = x", "comm != 'a b'"],
]


def random_filter(seed: int, leaves: list[str]) -> str:
    chance = random.Random(seed)

    def make(depth: int) -> str:
        kind = chance.random()
        if depth == 0 or kind < 0.3:
            return chance.choice(leaves)
        if kind < 0.5:
            return f"not ( {make(depth - 1)} )"
        word = " or " if kind < 0.75 else chance.choice([" ", " and "])
        return word.join(f"( {make(depth - 1)} )" for _ in range(chance.randint(2, 3)))

    return make(chance.randint(0, 3))


seeds = st.integers(0, 2**64)

# The kernel's rules


def audit(code: bytes) -> None:
    assert len(code) >= 4
    assert len(code) % 4 == 0
    starts, at = {len(code)}, 0
    while at < len(code):
        op, yes, _ = struct.unpack_from("=BBH", code, at)
        starts.add(at)
        assert 1 <= op <= 13, "a known instruction other than NOP"
        at += yes
        assert yes >= 4
    at = 0
    while at < len(code):
        op, yes, no = struct.unpack_from("=BBH", code, at)
        left = len(code) - at
        need = 4
        if op in {2, 3, 4, 5, 9}:
            need += 4
        elif op in {10, 13}:
            need += 8
        elif op in {7, 8}:
            family, prefix = code[at + 4], code[at + 5]
            size = {0: 0, 2: 4, 10: 16}[family]
            need += 8 + size
            assert prefix <= 8 * size
        assert left >= need
        assert need <= no <= left + 4
        assert no % 4 == 0
        assert no >= left or at + no in starts, "jumps go to instructions"
        assert need <= yes <= left + 4
        assert yes % 4 == 0
        at += yes
    assert at == len(code)


def packed(family: int, text: str) -> bytes:
    address = ipaddress.ip_address(text)
    assert address.version == (4 if family == 2 else 6)
    return address.packed


def bits_match(a: bytes, b: bytes, bits: int) -> bool:
    return bits == 0 or int.from_bytes(a[:16], "big") >> (8 * len(a) - bits) == int.from_bytes(b, "big") >> (
        8 * len(b) - bits
    )


def run(code: bytes, row: Row) -> bool:
    at = 0
    while at < len(code):
        op, yes, no = struct.unpack_from("=BBH", code, at)
        argument = code[at + 4 : at + yes]
        if op == 1:
            true = False
        elif op in {2, 3, 4, 5}:
            bound = struct.unpack("=BBH", argument)[2]
            port = row.sport if op in {2, 3} else row.dport
            true = port >= bound if op in {2, 4} else port <= bound
        elif op == 6:
            true = row.auto > 0
        elif op in {7, 8}:
            family, prefix, port = struct.unpack_from("=BBxxi", argument)
            have = packed(row.family, row.src if op == 7 else row.dst)
            want = argument[8:]
            if port not in {-1, row.sport if op == 7 else row.dport}:
                true = False
            elif family not in {0, row.family}:
                mapped = row.family == 10 and family == 2 and have[:12] == bytes(10) + b"\xff\xff"
                true = mapped and bits_match(have[12:], want, prefix)
            else:
                true = prefix == 0 or bits_match(have, want, prefix)
        elif op == 9:
            true = struct.unpack("=I", argument)[0] == row.ifindex
        elif op == 10:
            mark, mask = struct.unpack("=II", argument)
            true = row.mark & mask == mark
        else:
            assert op == 13
            true = struct.unpack("=Q", argument)[0] == CGROUPS.get(row.cgroup or "", 0)
        at += yes if true else no
    return at == len(code)


KERNELS: list[dict[str, Any]] = [
    {},
    {"net_admin": True},
    {"ifindex": DEVICES.get},
    {"ifindex": DEVICES.get, "cgroup_id": CGROUPS.get, "net_admin": True},
]
ROWS = population(150, 1)
TABLE, CONTEXT_VALUES = table_of(ROWS)


def check_nothing_is_lost(text: str) -> None:
    parsed = parse(text)
    mask = parsed.mask(TABLE, CONTEXT_VALUES)
    for kernel in KERNELS:
        code = parsed.bytecode(**kernel)
        if code:
            audit(code)
            lost = [r for r, matches in zip(ROWS, mask.tolist(), strict=True) if matches and not run(code, r)]
            assert not lost, text
    assert all(
        parsed.states >> r.state & 1 for r, matches in zip(ROWS, mask.tolist(), strict=True) if matches
    )


@pytest.mark.parametrize("around", ["{}", "not ( {} )"])
def test_no_single_condition_makes_the_kernel_drop_a_match(around):
    for text in KERNEL_LEAVES + OTHER_LEAVES:
        check_nothing_is_lost(around.format(text))


@given(seeds)
@settings(max_examples=150, deadline=None)
def test_what_the_kernel_drops_does_not_match(seed):
    check_nothing_is_lost(random_filter(seed, KERNEL_LEAVES + OTHER_LEAVES))


# What a privileged caller sees of full sockets: nothing is missing.
SEEN = [
    Row(**{**vars(r), "mark_shown": True, "cgroup": r.cgroup or "/", "ifindex": r.ifindex % 3}) for r in ROWS
]
SEEN_TABLE, SEEN_CONTEXT = table_of(SEEN)


def check_the_kernel_decides(text: str) -> None:
    parsed = parse(text)
    code = parsed.bytecode(ifindex=DEVICES.get, cgroup_id=lambda p: CGROUPS.get(p, 99), net_admin=True)
    found = [not code or run(code, row) for row in SEEN]
    assert found == parsed.mask(SEEN_TABLE, SEEN_CONTEXT).tolist(), text


@pytest.mark.parametrize("around", ["{}", "not ( {} )"])
def test_every_condition_of_ss_is_decided_by_the_kernel_alone(around):
    for text in KERNEL_LEAVES:
        check_the_kernel_decides(around.format(text))


@given(seeds)
@settings(max_examples=150, deadline=None)
def test_filters_that_ss_takes_are_decided_by_the_kernel_alone(seed):
    check_the_kernel_decides(random_filter(seed, KERNEL_LEAVES))


@given(seeds)
@settings(max_examples=150, deadline=None)
def test_a_filter_and_its_negation_share_no_row(seed):
    text = random_filter(seed, KERNEL_LEAVES + OTHER_LEAVES)
    mask = parse(text).mask(TABLE, CONTEXT_VALUES)
    opposite = parse(f"not ( {text} )").mask(TABLE, CONTEXT_VALUES)
    assert not (mask & opposite).any(), text
    assert (parse(f"not ( not ( {text} ) )").mask(TABLE, CONTEXT_VALUES) == mask).all(), text


@given(seeds)
@settings(max_examples=150, deadline=None)
def test_a_filter_printed_and_read_again_is_the_same_filter(seed):
    parsed = parse(random_filter(seed, KERNEL_LEAVES + OTHER_LEAVES))
    again = parse(str(parsed))
    assert again == parsed
    assert str(again) == str(parsed)
    assert again.states == parsed.states
    assert parsed.explain()


WORDS = [
    *re.findall(
        r"\S+",
        """( ) ! and or not && || & | = == != < > <= >= , ' " \\ [ ] : / * ? :443 10.0.0.0/8 [::1]:1 state
        exclude established fin-wait-2 all big src dst sport dport dev fwmark mark cgroup autobound held
        orphan age rule severity pod container pid comm user netns 10m 1h30m 0x1f 64k 5""",
    ),
    *SCHEMA.names,
]
texts = st.one_of(
    st.text(max_size=40),
    st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=5)), max_size=12).map(" ".join),
    st.lists(st.sampled_from(WORDS), max_size=12).map("".join),
)


@given(texts)
@settings(max_examples=400, deadline=None)
def test_any_text_is_a_filter_or_an_error_that_points_into_it(text):
    mistake = None
    try:
        parsed = parse(text)
    except FilterError as error:
        mistake = error
    if mistake is not None:
        assert 0 <= mistake.column <= len(mistake.text)
        assert mistake.message
        return
    assert parse(str(parsed)) == parsed
    code = parsed.bytecode(net_admin=True)
    if code:
        audit(code)
    assert parsed.states & ~(tcp.ALL_STATES | 1 << tcp.BOUND_INACTIVE) == 0
    assert parsed.needs <= set(CONTEXT)
    assert parsed.columns <= set(SCHEMA.names)
    parsed.mask(SocketTable.empty(), {name: [] for name in parsed.needs})


@pytest.mark.parametrize("count", [10, 2000, 20000])
def test_long_filters_pass_the_audit_or_are_left_to_the_mask(count):
    code = parse(" or ".join(["sport = :1"] * count)).bytecode()
    if count <= 2000:
        audit(code)
    else:
        assert code == b""

"""sock_diag dumps, /proc/net/tcp{,6} and `ss` tell the same of every socket in a known scene."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finwait.table.sockets import SocketTable, address_text
from finwait.uapi import proc, tcp
from tests.kernel import needs
from tests.kernel.socket_scene import table

pytestmark = pytest.mark.kernel
# A listener, ESTABLISHED (two pairs and one never accepted), FIN_WAIT2 held and orphaned with their
# CLOSE_WAITs, TIME_WAIT, FIN_WAIT1 with its far end, SYN_SENT: over IPv4, IPv6, and IPv4 to an IPv6 listener.
EXPECTED = {
    "LISTEN": 3,
    "ESTABLISHED": 21,
    "FIN_WAIT2": 6,
    "CLOSE_WAIT": 6,
    "TIME_WAIT": 3,
    "FIN_WAIT1": 3,
    "SYN_SENT": 3,
}
KEY = ("family", "src", "sport", "dst", "dport")


@pytest.fixture(scope="module")
def scene() -> dict[str, Any]:
    needs.root_and("ip", "nft", "ss")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.kernel.socket_scene"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=root)
    if done.returncode == 77:
        needs.missing(f"no network namespace to be had: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def dumped(scene: dict[str, Any], when: str) -> SocketTable:
    return table([bytes.fromhex(part) for part in scene[when]])


def files(scene: dict[str, Any]) -> SocketTable:
    parts = [SocketTable.from_columns(proc.parse_tcp(scene[name].encode())) for name in ("tcp", "tcp6")]
    return SocketTable.concatenate(parts)


def by_key(sockets: SocketTable) -> dict[tuple[Any, ...], int]:
    cells = [sockets[name].tolist() for name in KEY]
    keys = [tuple(tuple(c) if isinstance(c, list) else c for c in row) for row in zip(*cells, strict=True)]
    found = {key: row for row, key in enumerate(keys)}
    assert len(found) == len(sockets), "a tuple is there once"
    return found


def test_the_known_load_is_counted_exactly(scene: dict[str, Any]) -> None:
    sockets = dumped(scene, "before")
    assert Counter(tcp.STATES[state] for state in sockets.state.tolist()) == EXPECTED
    mapped = (sockets.family == 10) & (sockets.src[:, 1] >> np.uint64(32) == 0xFFFF)
    assert mapped.sum() == 6, "the far ends of the third listener's connections"


def test_proc_tells_the_same_of_every_socket(scene: dict[str, Any]) -> None:
    sockets, told = dumped(scene, "before"), files(scene)
    ours, theirs = by_key(sockets), by_key(told)
    assert ours.keys() == theirs.keys()
    for key, row in ours.items():
        other = theirs[key]
        for name in ("state", "timer", "retrans", "rqueue", "uid", "inode"):
            assert sockets[name][row] == told[name][other], (name, key)
        if sockets.state[row] != tcp.LISTEN:  # the file does not tell a listener's backlog
            assert sockets.wqueue[row] == told.wqueue[other]


def test_running_timers_tell_the_same_within_the_time_that_passed(scene: dict[str, Any]) -> None:
    before, told, after = dumped(scene, "before"), files(scene), dumped(scene, "after")
    first, middle, last = by_key(before), by_key(told), by_key(after)
    running = [key for key, row in first.items() if before.timer[row] in (2, 3)]
    assert len(running) == 3 * 3, "a keepalive timer, an orphan and a TIME_WAIT each"
    tick = 10  # milliseconds: /proc rounds to USER_HZ
    for key in running:
        begin, end = int(before.expires_ms[first[key]]), int(after.expires_ms[last[key]])
        assert end - tick <= int(told.expires_ms[middle[key]]) <= begin + tick


def test_ss_lists_the_same_tuples_and_states(scene: dict[str, Any]) -> None:
    sockets = dumped(scene, "before")

    def shown(address: list[int], port: int, row: int) -> str:
        text = address_text(*address)
        if sockets.family[row] == 10:
            text = "*" if text == "::" and row in wildcard else f"[{text}]"
            if sockets.src[row, 1] >> np.uint64(32) == 0xFFFF:
                text = f"[::ffff:{address_text(*address)}]"
        return f"{text}:{port or '*'}"

    dual = (sockets.state == tcp.LISTEN) & (sockets.v6only == 0) & (sockets.family == 10)
    wildcard = set(np.flatnonzero(dual).tolist())
    ours = sorted(
        (
            tcp.ss_name(int(sockets.state[row])),
            str(sockets.rqueue[row]),
            str(sockets.wqueue[row]),
            shown(sockets.src[row].tolist(), int(sockets.sport[row]), row),
            shown(sockets.dst[row].tolist(), int(sockets.dport[row]), row),
        )
        for row in range(len(sockets))
    )
    assert ours == sorted(tuple(line.split()) for line in scene["ss"].splitlines())


def test_held_and_orphaned_look_as_the_field_guide_says(scene: dict[str, Any]) -> None:
    sockets = dumped(scene, "before")
    waiting = sockets.state == tcp.FIN_WAIT2
    held = sockets.select(waiting & (sockets.inode != 0))
    orphan = sockets.select(waiting & (sockets.inode == 0))
    assert len(held) == len(orphan) == 3
    assert held.timer.tolist() == [0, 0, 0]
    assert held.shutdown.tolist() == [2, 2, 2]
    assert held.present("snd_cwnd").all()
    assert orphan.timer.tolist() == [3, 3, 3]
    assert ((orphan.expires_ms > 0) & (orphan.expires_ms <= 60_000)).all()
    for name in ("shutdown", "snd_cwnd", "cong", "cgroup_id"):
        assert not orphan.present(name).any(), name
    unread = sockets.rqueue[sockets.state == tcp.CLOSE_WAIT]
    assert sorted(unread.tolist()) == [1, 1, 1, 6, 6, 6], "an unread FIN counts one"

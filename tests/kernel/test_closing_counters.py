"""Counters tell exactly how much can be closing, a walk lists exactly that, and a question finds one of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel import needs

pytestmark = pytest.mark.kernel

SCRIPT = r"""
import json, os, socket, subprocess, sys, time
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
from finwait.kernel import closing, lookup, netns
from finwait.uapi import tcp
space = [ns for ns in netns.discover()[0] if ns.inode == netns.own_netns()]
inode = space[0].inode

def counted():
    one = closing.counters(space, True)[0][inode]
    return one.in_use - one.listeners - one.established, one.established, one.timewait, one.listeners

told = [counted()]
for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    server = socket.create_server((host, 0), family=family, backlog=64)
    pairs = []
    for _ in range(6):
        client = socket.create_connection(server.getsockname()[:2])
        pairs.append((client, server.accept()[0]))
    told.append(counted())
    for client, _ in pairs[:4]:
        client.shutdown(socket.SHUT_WR)      # FIN_WAIT2 and CLOSE_WAIT
    end = time.monotonic() + 30
    rows = closing.walk(space)[0][inode].sockets
    while (rows.state == tcp.FIN_WAIT1).any() and time.monotonic() < end:
        rows = closing.walk(space)[0][inode].sockets
    told.append(counted())
    pairs[0][0].close()                      # an orphan: a minisocket
    end = time.monotonic() + 30
    while counted()[2] == told[-1][2] and time.monotonic() < end:
        time.sleep(0.01)
    told.append(counted())
    kept = globals().setdefault("kept", [])
    kept += [server, pairs]
rows = closing.walk(space)[0][inode].sockets
states = {tcp.state_name(s): int((rows.state == s).sum()) for s in set(rows.state.tolist())}
k = int((rows.state == tcp.FIN_WAIT2).nonzero()[0][0])
question = lookup.Question(tuple(rows.src[k].tolist()), tuple(rows.dst[k].tolist()), int(rows.sport[k]),
                           int(rows.dport[k]), int(rows.ifindex[k]))
nobody = question._replace(sport=1)
answers, gaps = lookup.ask_each({inode: [question, nobody], 1: [question]}, space)
print(json.dumps({"told": told, "states": states, "asked": int(rows.cookie[k]),
                  "answers": [[int(c), int(s)] for c, s in zip(answers.cookie, answers.state)],
                  "gaps": [gap.netns for gap in gaps]}))
"""


def test_counters_walks_and_questions_agree_to_the_socket() -> None:
    needs.root_and("unshare", "ip")
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["told"] == [
        [0, 0, 0, 0],
        [0, 12, 0, 1],  # six connections, both ends of each
        [4, 8, 0, 1],  # four held FIN_WAIT2; CLOSE_WAIT counts as established
        [3, 8, 1, 1],
        [3, 20, 1, 2],
        [7, 16, 1, 2],
        [6, 16, 2, 2],
    ]
    assert seen["states"] == {"FIN_WAIT2": 8, "CLOSE_WAIT": 8}
    assert seen["answers"] == [[seen["asked"], 5]], "one that is there, and none for ports that nobody has"
    assert seen["gaps"] == [1], "a namespace that is not there is a gap"


OF_THE_MACHINE = """
import json, os
from finwait.agent import edge
from finwait.kernel import closing, netns

machine = edge.Running()
found, _ = machine.namespaces()
entries, _ = closing.counters(found, False, limits=True)
print(json.dumps({
    "own": os.path.exists("/proc/sys/net/ipv4/tcp_max_orphans"),
    "limits": {used.limit: used.most for used in edge.of_machine(entries, {})},
}))
"""


def test_limits_of_the_machine_are_read_where_the_kernel_shows_them_also_from_a_container() -> None:
    needs.root_and("unshare")
    shown = Path("/proc/sys/net/ipv4/tcp_max_orphans")
    if not shown.exists():
        needs.missing("this machine's first network namespace is not at hand")
    words = ["unshare", "--net", sys.executable, "-c", OF_THE_MACHINE]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert not answer["own"], "a container does not have them itself"
    assert answer["limits"]["orphans"] == int(Path("/proc/sys/net/ipv4/tcp_max_orphans").read_text())
    assert answer["limits"]["tcp-mem"] == int(Path("/proc/sys/net/ipv4/tcp_mem").read_text().split()[2])

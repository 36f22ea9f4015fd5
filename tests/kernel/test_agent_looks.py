"""Looks of the agent at real sockets: what moves is not stuck, full queues, and namespaces that may go."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.kernel import needs

pytestmark = pytest.mark.kernel

_START = r"""
import json, os, socket, subprocess, sys, tempfile, threading, time
from pathlib import Path
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

def wait(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise SystemExit("it did not come to pass")
        time.sleep(0.02)
"""


def inside(script: str, *more: str) -> Any:
    """Run a script in a network namespace of its own; return what it prints."""
    needs.root_and("unshare", "ip")
    done = subprocess.run(
        ["unshare", "--net", *more, sys.executable, "-c", _START + script],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout.splitlines()[-1])


_STREAM = r"""
from finwait.agent.edge import Running
from finwait.uapi import tcp

server = socket.create_server(("127.0.0.1", 0))
pairs = []
for _ in range(4):
    client = socket.create_connection(server.getsockname())
    pairs.append((client, server.accept()[0]))
    client.shutdown(socket.SHUT_WR)
over = threading.Event()

def answer():                                  # the first two stream their answer, the others do nothing
    while not over.wait(0.1):
        for client, other in pairs[:2]:
            other.send(b"x" * 100)
            client.recv(65536)

thread = threading.Thread(target=answer)
thread.start()
running = Running()
begun = running.start_diagnosis()
while (look := begun.result()) is None:
    time.sleep(0.05)
from finwait import session
one = session.diagnose(running.looked_at)
own_inode = os.stat("/proc/self/ns/net").st_ino
once = [f.rule for f in one.findings if f.primary for row in f.rows.tolist()
        if one.view.sockets.state[row] == tcp.FIN_WAIT2 and one.view.sockets.netns[row] == own_inode]
over.set()
thread.join()
ports = {client.getsockname()[1]: k for k, (client, _) in enumerate(pairs)}
from finwait.kernel import closing, netns
own = [ns for ns in netns.discover()[0] if ns.inode == netns.own_netns()]
rows = closing.walk(own)[0][own[0].inode].sockets
number = {}
for cookie, sport, dport, state in zip(*(rows.column(n).tolist() for n in ("cookie", "sport", "dport", "state"))):
    number[cookie] = ports.get(sport, ports.get(dport)), tcp.state_name(state)
said = look.said
told = sorted([*number[c], said.causes[k].rule, said.causes[k].severity]
              for c, k in zip(said.cookie.tolist(), said.cause.tolist()) if c in number)
print(json.dumps({"told": told, "once": once, "cpu": running.cpu() > time.process_time()}))
"""


def test_a_half_close_on_which_an_answer_streams_is_not_stuck() -> None:
    seen = inside(_STREAM)
    told = {(k, state): (rule, severity) for k, state, rule, severity in seen["told"]}
    assert set(told) == {(k, state) for k in range(4) for state in ("FIN_WAIT2", "CLOSE_WAIT")}
    for k in (0, 1):
        assert told[k, "FIN_WAIT2"] == ("fin-wait2-streaming", "healthy")
        assert told[k, "CLOSE_WAIT"][1] == "healthy", told
    for k in (2, 3):
        assert told[k, "FIN_WAIT2"] == ("fin-wait2-held", "problem")
        assert told[k, "CLOSE_WAIT"][1] == "problem"
    assert seen["once"] == ["fin-wait2-held"] * 4, "one look cannot tell"
    assert seen["cpu"], "what it costs is counted"


_QUEUE = r"""
from finwait.kernel import closing, listening, netns
told = []
own = [ns for ns in netns.discover()[0] if ns.inode == netns.own_netns()]
for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    server = socket.create_server((host, 0), family=family, backlog=3)
    clients = [socket.create_connection(server.getsockname()[:2]) for _ in range(2)]
    for more in (0, 2):
        clients += [socket.create_connection(server.getsockname()[:2]) for _ in range(more)]
        counted = closing.counters(own, True)[0][own[0].inode].doors
        walked = closing.walk(own)[0][own[0].inode].doors
        (door,) = (d for d in counted if d.port == server.getsockname()[1])
        same = sorted(counted) == sorted(walked)
        told.append([door.waiting, door.backlog, door.full, same, door.address[1] & 0xFFFFFFFF])
    globals().setdefault("kept", []).append((server, clients))
print(json.dumps(told))
"""


def test_an_accept_queue_is_told_by_counters_and_by_walks() -> None:
    assert inside(_QUEUE) == [
        [2, 3, False, True, 0x7F000001],
        [4, 3, True, True, 0x7F000001],
        [2, 3, False, True, 1],
        [4, 3, True, True, 1],
    ]


_GONE = r"""
from finwait.agent.edge import Running
from finwait.agent.loop import Looker
from finwait.agent.store import Store

program = "import socket,sys\ns = socket.create_server(('0.0.0.0', 80))\nprint('there', flush=True)\nsys.stdin.read()"
words = ["unshare", "--net", sys.executable, "-c", program]
holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
assert holder.stdout.readline() == "there\n"
# Both ends of a veth end together: ours says when the namespace of the other is really gone.
subprocess.run(["ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", str(holder.pid)], check=True)
inode = os.stat(f"/proc/{holder.pid}/ns/net").st_ino
folder = tempfile.mkdtemp()
looker = Looker(Running(), lambda: Store(Path(folder) / "h.sqlite"), tick_s=0.2)
wait(lambda: (looker.round(), inode in looker._counting.listeners)[1])
while looker._diagnosing is not None:
    looker.round()
    time.sleep(0.05)
for _ in range(3):
    looker.round()
    time.sleep(0.25)
looker.round()
counted = looker._counting.listeners[inode][0]
holder.communicate("")
wait(lambda: not os.path.exists("/sys/class/net/v0"))        # nobody looks any more
looker.end()
print(json.dumps({"counted": counted}))
"""


def test_a_namespace_that_is_looked_at_goes_when_its_last_process_does() -> None:
    """A descriptor that is kept open would keep it: one of its nsfs file, of a file in its /proc/net, a socket."""
    script = "subprocess.run(['mount', '-t', 'sysfs', 'sys', '/sys'], check=True)\n" + _GONE
    assert inside(script, "--mount") == {"counted": 1}


_KEEPS = r"""
holder = subprocess.Popen(["unshare", "--net", "sleep", "1000"])
own = os.stat("/proc/self/ns/net").st_ino
wait(lambda: os.stat(f"/proc/{holder.pid}/ns/net").st_ino != own)
subprocess.run(["ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", str(holder.pid)], check=True)
kept = os.open(f"/proc/{holder.pid}/net/sockstat", os.O_RDONLY)
holder.kill()
holder.wait()
time.sleep(1)
there = os.path.exists("/sys/class/net/v0")
os.close(kept)
wait(lambda: not os.path.exists("/sys/class/net/v0"))
print(json.dumps(there))
"""


def test_a_descriptor_of_a_file_of_its_keeps_a_namespace() -> None:
    """Why nothing is kept open between two looks (`finwait.kernel.closing`)."""
    script = "subprocess.run(['mount', '-t', 'sysfs', 'sys', '/sys'], check=True)\n" + _KEEPS
    assert inside(script, "--mount") is True

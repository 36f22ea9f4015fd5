"""With real sockets: what is stuck is told whatever is asked, and what is suggested acts on just that."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from finwait.kernel import procfs
from finwait.lab.scenario import scenarios
from finwait.lab.topology import Lab, Netns, unmet
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns", "tool:nft")):
        missing("; ".join(lacking))


class Command:
    """finwait in some namespaces, with a state directory of its own."""

    def __init__(self, state: Path, *spaces: int) -> None:
        unread = procfs.descriptors()[0].unreadable if os.geteuid() == 0 else ()
        self.where = [w for inode in spaces for w in ("--netns", str(inode))]
        self.where += [w for pid in unread for w in ("--not-holder", str(pid))]
        self.environment = {**os.environ, "FINWAIT_STATE_DIR": str(state)}
        self.status = -1
        self.errors = ""

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "finwait", *words], capture_output=True, text=True, cwd=ROOT,
            env=self.environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        self.status, self.errors = done.returncode, done.stderr
        return done.stdout

    def diagnosis(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("diagnose", *self.where, "-o", "json", *words))
        return found


def until(true: Callable[[], Any], seconds: float = 40.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return found


@contextmanager
def program(netns: Netns, what: str) -> Iterator[int]:
    """Run a program in a namespace until it says that it is ready; end it and its children at the end."""
    code = f"import os, socket, struct, sys, time\n{what}\nprint('ready', flush=True)\nsys.stdin.read()\n"
    process = subprocess.Popen(
        ["nsenter", f"--net=/proc/{os.getpid()}/fd/{netns.fd}", sys.executable, "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
    finally:
        os.killpg(process.pid, 9)
        process.communicate()


def told(found: dict[str, Any], state: str) -> set[str]:
    return {
        f["rule"] for f in found["findings"] if f["severity"] != "healthy"
        for s in f["sockets"] if s["state"] == state
    }  # fmt: skip


def test_what_cannot_leave_this_machine_is_no_all_clear(tmp_path: Path) -> None:
    with Lab() as lab:
        situation = scenarios()["egress-blocked"].build(lab).settle()
        ask = Command(tmp_path, situation.namespaces["client"])
        until(lambda: "egress-blocked" in told(ask.diagnosis(), "FIN_WAIT1"))
        assert re.match(r"FINWAIT WARNING - \d+ egress-blocked", ask("check", *ask.where))
        assert ask.status == 1
        cookie = next(
            s["cookie"] for f in ask.diagnosis()["findings"] for s in f["sockets"] if s["state"] == "LAST_ACK"
        )
        assert "egress-blocked" in ask("explain", *ask.where, cookie)


LEAK = """
door = socket.create_server(("127.0.0.1", 9000), backlog=99)
kept = []
for _ in range(12):
    peer = socket.create_connection(("127.0.0.1", 9000))
    kept.append(door.accept()[0])
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
"""


def test_leaked_descriptors_are_told_to_whoever_asks_for_their_process_namespace_or_rule(
    tmp_path: Path,
) -> None:
    with Lab() as lab:
        netns = lab.netns("there")
        with program(netns, LEAK) as pid:
            ask = Command(tmp_path, netns.inode)

            def count(*words: str) -> int:
                return sum(
                    f["count"] for f in ask.diagnosis(*words)["findings"] if f["severity"] == "problem"
                )

            asked: tuple[tuple[str, ...], ...] = (
                (),
                (f"pid = {pid}",),
                (f"netns = {netns.inode}",),
                ("rule = hidden-leak",),
                (f"not pid = {pid + 1}",),
            )
            for given in asked:
                assert count(*given) == 12, given
                assert ask.status == 0, given
            for words in (f"pid = {os.getpid()}", "state fin-wait-2", "rule = relay-pair"):
                assert (count(words), ask.status) == (0, 0), words
            assert (count("dport = :9000"), ask.status) == (0, 3)
            assert ask("check", *ask.where, "dport = :9000").startswith("FINWAIT UNKNOWN")
            assert ask("check", *ask.where, f"pid = {pid}").startswith("FINWAIT WARNING - 12 hidden-leak")
            for words in ("netns = nosuch", "pid = 4194303", "comm = nobody-is-it"):
                ask("diagnose", *ask.where, words)
                assert ask.status == 1
                assert "cannot match anything" in ask.errors
                assert ask("check", *ask.where, words).startswith("FINWAIT UNKNOWN")


@pytest.mark.parametrize("name", ["relay-pair", "fin-unanswered-held", "inherited-descriptor"])
def test_every_command_that_is_suggested_names_just_the_connections_above_it(
    name: str, tmp_path: Path
) -> None:
    """Of a recording, so that nothing ends or ripens between the finding and what it suggests."""
    if lacking := unmet(scenarios()[name].needs):
        missing("; ".join(lacking))
    with Lab() as lab:
        situation = scenarios()[name].build(lab).settle()
        ask = Command(tmp_path, *situation.namespaces.values())
        until(lambda: any(f["rule"] == name for f in ask.diagnosis()["findings"]))
        spaces = [w for inode in situation.namespaces.values() for w in ("--netns", str(inode))]
        file = str(tmp_path / "scene.finwait")
        ask("record", file, *spaces)
    vouched = [w for w in ask.where if w not in spaces]
    found = json.loads(ask("diagnose", "--from", file, *vouched, "-o", "json"))
    tried = 0
    for finding in found["findings"]:
        own = {s["cookie"] for s in finding["sockets"]}
        ends = {s["other_end"]["cookie"] for s in finding["sockets"] if s["other_end"]}
        listed = json.loads(
            ask("list", "--from", file, *vouched, "--columns", "cookie", "-o", "json", finding["filter"])
        )
        assert {item["cookie"] for item in listed["items"]} == own, finding["filter"]
        for command in sorted({r["command"] for r in finding["ends_it"]}):
            if command.startswith("finwait clear"):
                words = shlex.split(command)[1:]
                assert f"--from {file}" in command
                plan = json.loads(ask(*words, "-o", "json", "--min-age", "0s", "--share", "1"))
                assert {step["cookie"] for step in plan["steps"]} <= own | ends, command
                assert plan["steps"] or plan["left"]
                tried += 1
    assert tried


PREFORK = """
door = socket.create_server(("127.0.0.1", 5432), backlog=99)
read, write = os.pipe()
open("/proc/self/comm", "w").write("prefork-app")
for _ in range(20):
    if os.fork() == 0:
        mine = door.accept()[0]
        mine.recv(9)
        mine.recv(9)
        os.write(write, b"x")
        time.sleep(600)
    peer = socket.create_connection(("127.0.0.1", 5432))
    peer.sendall(b"q")
    peer.close()
seen = 0
while seen < 20:
    seen += len(os.read(read, 20))
"""


def test_the_children_of_one_server_are_one_block(tmp_path: Path) -> None:
    with Lab() as lab:
        netns = lab.netns("there")
        with program(netns, PREFORK):
            ask = Command(tmp_path, netns.inode)
            found = until(lambda: d if told(d := ask.diagnosis(), "CLOSE_WAIT") else None)
            (one,) = (f for f in found["findings"] if f["severity"] == "problem" and f["primary"])
            assert (one["count"], len(one["pids"])) == (20, 20)
            assert {owner["pid"] for s in one["sockets"] for owner in s["owners"]} == set(one["pids"])
            said = ask("diagnose", *ask.where, "--color", "never")
            assert len(re.findall(r"^(?:PROBLEM|NOTICE)", said, re.MULTILINE)) == 1
            assert "prefork-app ×20" in said
            assert all(len(line) <= 100 for line in said.splitlines())


def test_a_blank_filter_is_refused(tmp_path: Path) -> None:
    """It never means everything: an unset variable of a script would select the machine."""
    with Lab() as lab:
        situation = scenarios()["close-wait-eof-read"].build(lab).settle()
        ask = Command(tmp_path, *situation.namespaces.values())
        for verb in (
            ("probe",),
            ("arm", "--user-timeout", "60s"),
            ("clear", "--yes"),
            ("list",),
            ("diagnose",),
        ):
            for word in ("", " "):
                assert ask(*verb, *ask.where, word) == ""
                assert ask.status == 2
                assert "variable of your script" in ask.errors
        assert not situation.missing()
        for option in ("--from", "--plan"):
            ask("clear", option, "", "--yes")
            assert ask.status == 2
            assert "variable of your script" in ask.errors

"""With real sockets: a report counts what is there, and a comparison what was added, by cookie and never by pid."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from finwait import session
from finwait.kernel import procfs
from finwait.lab.topology import unmet
from finwait.report.by_hand import by_hand
from finwait.uapi.observation import LookPlan
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel

HOLDER = """
import socket, subprocess, sys
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
server = socket.create_server(("127.0.0.1", 8080), backlog=100)
kept = []
print("ready", flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        client = socket.create_connection(("127.0.0.1", 8080))
        accepted, _ = server.accept()
        accepted.shutdown(socket.SHUT_WR)
        kept += [client, accepted]
    print("done", flush=True)
"""
"""Holds both ends of half-closed connections: one in FIN_WAIT2 and one in CLOSE_WAIT for each."""


class Leak:
    def __init__(self) -> None:
        self.made = 0
        own = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
        self.process = subprocess.Popen(
            [*own, sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self.netns = os.stat(f"/proc/{self.process.pid}/ns/net").st_ino
        unread = procfs.descriptors()[0].unreadable if os.geteuid() == 0 else ()
        self.walled = [word for pid in unread for word in ("--not-holder", str(pid))]

    def more(self, n: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{n}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"
        self.made += n
        end = time.monotonic() + 20
        while len(self.listed("fin-wait-2")) < self.made:
            assert time.monotonic() < end

    def listed(self, state: str) -> list[object]:
        """What finwait lists in a state: a FIN may be acknowledged a moment later."""
        words = ["list", "-o", "json", "--netns", str(self.netns), "state", state]
        done = subprocess.run([sys.executable, "-m", "finwait", *words], capture_output=True, text=True)
        items: list[object] = json.loads(done.stdout)["items"]
        return items

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([sys.executable, "-m", "finwait", *words], capture_output=True, text=True)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def record(self, path: Path) -> str:
        assert self.run(
            "record", str(path), "--netns", str(self.netns), "--interval", "100ms"
        ).returncode in (0, 3)
        return str(path)

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


@pytest.fixture
def leak() -> Iterator[Leak]:
    if lacking := unmet(("netns",)):
        missing("; ".join(lacking))
    made = Leak()
    yield made
    made.end()


def test_what_was_added_is_worse_and_the_rest_is_in_both(leak: Leak, tmp_path: Path) -> None:
    leak.more(3)
    before = leak.record(tmp_path / "before.finwait")
    leak.more(4)
    after = leak.record(tmp_path / "after.finwait")
    told = leak.run("compare", before, after, *leak.walled, "-o", "json")
    document = json.loads(told.stdout)
    assert document["same_boot"] is True
    assert sum(group["a"] for group in document["groups"]) == 6
    assert sum(group["b"] for group in document["groups"]) == 14
    assert sum(group["in_both"] for group in document["groups"] if group["a"] and group["b"]) == 6
    back = leak.run("compare", after, before, *leak.walled)
    assert back.returncode == 0, back.stdout
    assert back.stdout.startswith("Not worse")
    same = leak.run("compare", after, after, *leak.walled)
    assert same.returncode == 0, same.stdout


def test_a_live_report_counts_what_is_there(leak: Leak, tmp_path: Path) -> None:
    leak.more(23)
    path = tmp_path / "live.html"
    done = leak.run("report", str(path), "--netns", str(leak.netns), "--for", "100ms", *leak.walled)
    assert done.returncode == 0, done.stderr
    text = path.read_text()
    assert "23 × FIN_WAIT2 <code>fin-wait2-held</code>" in text
    assert "23 × CLOSE_WAIT <code>close-wait-eof-unread</code>" in text
    assert "FIN_WAIT2 23 of which 23 stuck" in text  # the words of the diagram
    redacted = tmp_path / "redacted.html"
    done = leak.run("report", str(redacted), "--netns", str(leak.netns), "--redact", *leak.walled)
    assert done.returncode == 0, done.stderr
    assert "23 × FIN_WAIT2 <code>fin-wait2-held</code>" in redacted.read_text()
    assert "python" not in redacted.read_text()


def test_the_commands_to_check_by_hand_show_the_groups(leak: Leak) -> None:
    """What is said of `ss` and of the descriptor is so: as many lines as the group has connections."""
    leak.more(3)
    how = session.Look(plan=LookPlan(only=frozenset({leak.netns})), watch_ms=100)
    made = session.diagnose(how=how)
    groups = [f for f in made.findings if f.primary and f.severity == "problem"]
    assert sum(f.count for f in groups) == 6
    for group in groups:
        listing, descriptor = by_hand(made.view, group)
        lines = subprocess.check_output(["sh", "-c", listing.command], text=True).splitlines()[1:]
        assert len(lines) == group.count == 3
        assert all(f"pid={leak.process.pid}" in line and " ino:" in line for line in lines)
        shown = subprocess.check_output(["sh", "-c", descriptor.command], text=True)
        assert descriptor.shows.split("`")[1] in shown

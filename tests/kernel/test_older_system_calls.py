"""Kernels that lack the newer system calls: what can be done without them is done, and the rest is said.

The running kernel answers ENOSYS for them (seccomp), as an older one would: pidfd_getfd came with 5.6, pidfd_open
with 5.3, the new mount API with 5.2. What such a kernel would answer otherwise, real ones are asked by
``tests.guest``.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finwait.lab.scenario import Situation, scenarios
from finwait.lab.topology import Lab, unmet
from tests.kernel.acting_pair import Pair, settled
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel
ROOT = Path(__file__).parents[2]
BEFORE_5_6 = range(436, 440)
"""close_range, openat2, pidfd_getfd, faccessat2."""
BEFORE_5_2 = range(425, 440)
"""io_uring_setup … fsopen, fsmount, pidfd_open, clone3 …: everything since 5.1."""


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns", "tool:nft")):
        missing("; ".join(lacking))


def older(calls: range, *words: str, state: Path | None = None, code: int | None = None) -> str:
    """Run the command as on a kernel without these system calls; return what it printed, errors last."""
    command = [sys.executable, "-m", "tests.kernel.fewer_rights", str(errno.ENOSYS), *map(str, calls), "--"]
    done = subprocess.run(
        [*command, sys.executable, "-m", "finwait", *words],
        capture_output=True, text=True, cwd=ROOT, stdin=subprocess.DEVNULL, timeout=110,
        env={**os.environ, "FINWAIT_STATE_DIR": str(state or ROOT / "nowhere"), "COLUMNS": "100"},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    if code is not None:
        assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def half_closed() -> Iterator[Situation]:
    if lacking := unmet(("netns",)):
        missing("; ".join(lacking))
    with Lab() as lab:
        yield scenarios()["close-wait-eof-read"].build(lab).settle()


def where(situation: Situation) -> list[str]:
    return [w for inode in situation.namespaces.values() for w in ("--netns", str(inode))]


def findings(text: str) -> list[tuple[str, int, bool]]:
    found: list[dict[str, Any]] = json.loads(text.partition("\nfinwait: ")[0])["findings"]
    return sorted((f["rule"], f["count"], f["primary"]) for f in found)


@pytest.mark.parametrize("calls", [BEFORE_5_6, BEFORE_5_2], ids=["5.5", "5.1"])
def test_a_diagnosis_is_the_same(half_closed: Situation, calls: range) -> None:
    now = subprocess.run(
        [sys.executable, "-m", "finwait", "diagnose", "-o", "json", *where(half_closed)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    then = older(calls, "diagnose", "-o", "json", *where(half_closed))
    assert findings(then) == findings(now.stdout)
    assert ("close-wait-eof-read", 7, True) in findings(then)


@pytest.mark.parametrize("calls", [BEFORE_5_6, BEFORE_5_2], ids=["5.5", "5.1"])
def test_the_lab_builds_its_scenarios(calls: range) -> None:
    said = older(calls, "lab", "run", "fin-wait2-held")
    assert "fin-wait2-held" in said
    assert "does not match everything that was built" not in said


def test_what_needs_a_descriptor_says_so_and_destroying_is_left(
    half_closed: Situation, tmp_path: Path
) -> None:
    words = ("state", "close-wait", *where(half_closed))
    plan = older(BEFORE_5_6, "clear", "--dry-run", "--min-age", "0", *words, state=tmp_path)
    assert "0 connections to end, 8 left alone" in plan
    assert "a kernel with pidfd_getfd (Linux 5.6)" in " ".join(plan.split())
    assert "`--with destroy` would end it" in plan
    probed = " ".join(older(BEFORE_5_6, "probe", *words, state=tmp_path, code=3).split())
    assert "8 not judged" in probed
    assert "pidfd_getfd (Linux 5.6)" in probed
    armed = older(BEFORE_5_6, "arm", "--keepalive", "60/15/5", "--yes", *words, state=tmp_path)
    armed = " ".join(armed.split())
    assert "8 failed" in armed
    assert "pidfd_getfd (Linux 5.6)" in armed


def test_a_connection_is_destroyed_without_its_descriptor(tmp_path: Path) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        pair.near.shutdown(pair.ours, "WR")
        settled(pair, pair.ours, "FIN_WAIT2")
        words = ("--with", "destroy", "--yes", "--min-age", "0", "--netns", str(pair.a.inode))
        said = older(BEFORE_5_6, "clear", *words, state=tmp_path, code=0)
        assert "1 ended" in said
        assert pair.states(pair.ours) == ["gone"]


def test_dead_descriptors_are_a_gap_that_names_the_kernel_and_a_few_are_none() -> None:
    """Where no socket can be asked, a socket that is not connected yet must not spoil every answer for ever."""
    with Lab() as lab:
        netns = lab.netns("there")

        def some(number: int) -> subprocess.Popen[str]:
            code = f"import socket, sys; kept = [socket.socket() for _ in range({number})]; "
            code += "print(flush=True); sys.stdin.read()"
            pipe = subprocess.PIPE
            return subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True)

        for number, wanted in ((4, False), (5, True)):
            with netns.call(lambda number=number: some(number)) as process:  # type: ignore[misc]
                assert process.stdout is not None
                assert process.stdout.readline() == "\n"
                said = older(BEFORE_5_6, "list", "--netns", str(netns.inode))
                assert process.stdin is not None
                process.stdin.close()
            said = " ".join(said.split())
            assert (f"pid {process.pid}: could not ask the TCP sockets" in said) == wanted, said
            assert ("pidfd_getfd, which came with Linux 5.6" in said) == wanted


def test_a_relay_runs_and_ends(tmp_path: Path) -> None:
    """Its supervisor watches its workers by pidfd where there are pidfds."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as backend:
        backend.settimeout(60)
        command = [
            sys.executable,
            "-m",
            "tests.kernel.fewer_rights",
            str(errno.ENOSYS),
            *map(str, BEFORE_5_2),
            "--",
        ]
        command += [sys.executable, "-m", "finwait", "relay", "run", "--listen", f"127.0.0.1:{port}"]
        command += ["--to", f"127.0.0.1:{backend.getsockname()[1]}", "--admin", str(tmp_path / "admin")]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as relay:
            try:
                client = connected(port, relay)
                server, _ = backend.accept()
                with client, server:
                    client.sendall(b"hello")
                    assert server.recv(100) == b"hello"
                    client.shutdown(socket.SHUT_WR)
                    assert server.recv(100) == b""
                relay.terminate()
                _, said = relay.communicate(timeout=60)
            finally:
                relay.kill()
        assert "Traceback" not in said, said
        assert relay.returncode == 0, said


def connected(port: int, relay: subprocess.Popen[str]) -> socket.socket:
    while True:
        assert relay.poll() is None
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=60)
        except ConnectionRefusedError:
            continue

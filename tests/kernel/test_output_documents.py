"""The documents that need real sockets are what the published schema says."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finwait.lab.topology import Lab
from tests.kernel.acting_pair import Pair, settled
from tests.kernel.relay_behaviour import Scene
from tests.output import mistakes

pytestmark = pytest.mark.kernel


def printed(state: Path, *words: str, status: tuple[int, ...] = (0, 3)) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "finwait", *words],
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, "FINWAIT_STATE_DIR": str(state)},
    )  # fmt: skip
    assert ran.returncode in status, ran.stderr + ran.stdout
    return ran.stdout


def document(state: Path, kind: str, *words: str, status: tuple[int, ...] = (0, 3)) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed(state, *words, "-o", "json", status=status))
    assert found["kind"] == kind
    assert mistakes(found) == [], kind
    return found


def line(text: str, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text.splitlines()[0])
    assert mistakes(found, kind) == []
    return found


def test_acts_and_what_came_of_them(tmp_path: Path) -> None:
    with Lab() as lab:
        pair = Pair(lab, 2)
        where = ["--netns", str(pair.a.inode), "--netns", str(pair.b.inode), "state established"]
        plan = document(tmp_path, "ArmPlan", "arm", "--user-timeout", "90s", *where)
        step = plan["steps"][0]
        assert step["owners"][0]["pid"] in (pair.near.pid, pair.far.pid)
        document(tmp_path, "OutcomeList", "arm", "--yes", "--keepalive", "60/15/5", *where)
        probes = document(tmp_path, "ProbeList", "probe", *where)
        assert {one["verdict"] for one in probes["items"]} == {"alive"}
        entries = document(tmp_path, "JournalEntryList", "journal")["items"]
        assert all(entry["connection"]["cookie"].startswith("0x") for entry in entries)
        armed = str(min(entry["id"] for entry in entries))
        document(tmp_path, "UndoPlan", "undo", armed, status=(4,))
        document(tmp_path, "UndoList", "undo", armed, "--yes")

        pair.near.shutdown(pair.ours, "WR")
        settled(pair, pair.theirs, "CLOSE_WAIT")
        spaces = where[:-1]
        words = ["clear", "fin-wait2-held", "--min-age", "0", "--share", "1", *spaces]
        found = document(tmp_path, "ClearPlan", *words)
        assert len(found["steps"]) == 2
        assert {s["other_end"] is not None for s in found["steps"]} == {True}
        ended = document(tmp_path, "OutcomeList", *words, "--yes", status=(0, 1, 3))
        assert len(ended["items"]) == 2

        netns = ["--netns", str(pair.a.inode), "--no-diagnosis"]
        if os.geteuid() == 0:
            set_ = document(tmp_path, "TuneOutcome", "tune", "apply", "tcp_fin_timeout=30", *netns, "--yes")
            act = str(set_["act"])
            document(tmp_path, "UndoPlan", "tune", "rollback", act, status=(4,))
            document(tmp_path, "UndoList", "tune", "rollback", act, "--yes")
            document(tmp_path, "JournalEntryList", "journal")


def test_looking_on_and_keeping_what_was_seen(tmp_path: Path) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        spaces = ["--netns", str(pair.a.inode), "--netns", str(pair.b.inode)]
        one = f"sport = :{pair.ours[0].sport} and dport = :8080"
        file = tmp_path / "packets.pcapng"
        found = document(tmp_path, "Capture", "capture", one, "--for", "300ms", "-w", str(file))
        assert found["files"] == [str(file)]
        assert len(found["connections"]) == 1
        document(tmp_path, "CaptureFile", "explain", "--pcap", str(file))
        made = document(
            tmp_path, "RecordingMade", "record", str(tmp_path / "r.finwait"), "--looks", "1", *spaces
        )
        assert made["connections"] >= 2

        pair.near.shutdown(pair.ours, "WR")
        settled(pair, pair.theirs, "CLOSE_WAIT")
        words = ["trace", "--poll", "-q", "--for", "20s", "--count", "1", "-o", "json"]
        stuck = line(printed(tmp_path, *words, "--stuck", "1ms", "dport = :8080"), "StuckLine")
        assert stuck["state"] == "FIN_WAIT2"
        assert (stuck["family"], stuck["ifindex"], stuck["netns"]) == ("inet", 0, pair.a.inode)


def test_a_line_of_a_trace() -> None:
    with Lab() as lab:
        pair = Pair(lab, 200)
        words = ["trace", "--poll", "-q", "--for", "60s", "--count", "1", "-o", "json", "dport = :8080"]
        running = subprocess.Popen(
            [sys.executable, "-m", "finwait", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            for conn in pair.ours:  # nobody knows when it has looked for the first time
                pair.near.shutdown([conn], "WR")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running.wait(timeout=0.2)
                    break
            out, err = running.communicate(timeout=90)
        finally:
            running.kill()
            running.wait()
        assert out, err
        row = line(out, "TraceLine")
        assert row["state"] == row["new"]


def test_what_a_relay_says() -> None:
    with Scene("finwait") as scene:
        pair = scene.pair()
        assert pair

        def asked(kind: str, *words: str) -> dict[str, Any]:
            found: dict[str, Any] = json.loads(scene.ask(*words, "-o", "json"))
            assert found["kind"] == kind
            assert mistakes(found) == []
            return found

        (conn,) = asked("RelayConnectionList", "ls")["items"]
        asked("RelayConnectionList", "show", conn["id"])
        asked("RelayStats", "stats")
        assert asked("RelayClosed", "close", conn["id"])["ended"] == 1
        asked("RelayDraining", "drain")


def test_a_demonstration(tmp_path: Path) -> None:
    document(tmp_path, "ProofResultList", "lab", "prove", "time-wait-is-constant", status=(0, 1))

"""`finwait conntrack` beside real sockets behind a real translation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finwait.lab.actor import meet
from finwait.lab.scenario import Situation, scenarios
from finwait.lab.topology import Lab, unmet
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel


def run(situation: Situation, tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    where = [x for inode in situation.namespaces.values() for x in ("--netns", str(inode))]
    return subprocess.run(
        [sys.executable, "-m", "finwait", "conntrack", *where, *words],
        capture_output=True, text=True, env={**os.environ, "FINWAIT_STATE_DIR": str(tmp_path)},
    )  # fmt: skip


def original(item: dict[str, Any]) -> str:
    way = item["entry"]["original"]
    return f"{way['src']}:{way['sport']} → {way['dst']}:{way['dport']}"


def items(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(done.stdout)["items"]
    return found


def test_a_zombie_s_entry_is_a_mismatch_and_deleting_it_is_journaled(tmp_path: Path) -> None:
    scenario = scenarios()["nat-zombie"]
    if lacking := unmet(scenario.needs):
        missing("; ".join(lacking))
    with Lab() as lab:
        situation = scenario.build(lab).settle()
        zombies = {f"{e.src}:{e.sport} → {e.dst}:{e.dport}" for e in situation.expected}
        wrong = items(run(situation, tmp_path, "-o", "json"))
        assert {original(i) for i in wrong} == zombies
        assert {i["verdict"] for i in wrong} == {"the server end is gone"}
        everything = items(run(situation, tmp_path, "-o", "json", "--all"))
        assert len(everything) > len(wrong)
        kept = run(situation, tmp_path, "--delete", "--yes")
        assert kept.returncode == 4
        assert f"left alone ×{len(wrong)} by guard `live-end`" in kept.stdout
        assert "a FIN is lost" in " ".join(kept.stdout.split())
        assert "`--override live-end`" in kept.stdout
        dry = run(situation, tmp_path, "--delete", "--override", "live-end")
        assert "nothing was done" in dry.stderr
        assert "deleting an entry closes no connection" in dry.stderr
        assert len(items(run(situation, tmp_path, "-o", "json"))) == len(wrong)
        many = run(situation, tmp_path, "--delete", "--yes", "--override", "live-end", "--max", "1")
        assert many.returncode == 4
        assert "refused by guard `max`" in many.stderr
        assert len(items(run(situation, tmp_path, "-o", "json"))) == len(wrong)
        done = run(situation, tmp_path, "--delete", "--yes", "--override", "live-end")
        assert done.stdout.count("deleted: ") == len(wrong)
        assert items(run(situation, tmp_path, "-o", "json")) == []
        # The sockets are still there: deleting an entry closes nothing.
        assert situation.missing() == ()
    journal = subprocess.run(
        [sys.executable, "-m", "finwait", "journal"],
        capture_output=True, text=True, env={**os.environ, "FINWAIT_STATE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert journal.stdout.count("conntrack-delete") == len(wrong)


def test_entries_whose_sockets_are_gone_at_both_ends_are_deleted_and_the_others_kept(tmp_path: Path) -> None:
    if lacking := unmet(("netns", "tool:nft", "tool:conntrack")):
        missing("; ".join(lacking))
    with Lab() as lab:
        path = lab.translated()
        ours, theirs = meet(path.client, path.address, path.backend, path.door, 5)
        situation = Situation(lab, "", ())
        for link in lab.links:
            link.cut()
        path.client.reset(ours[:2])  # neither end hears of it
        path.backend.reset(theirs[:2])
        wrong = items(run(situation, tmp_path, "-o", "json"))
        gone = {f"{c.src}:{c.sport} → {c.dst}:{c.dport}" for c in ours[:2]}
        assert {original(i) for i in wrong} == gone
        done = run(situation, tmp_path, "--delete", "--yes")
        assert done.returncode in (0, 3), done.stderr
        assert done.stdout.count("deleted: ") == 2
        listed = path.gateway.run("conntrack", "-L", "-p", "tcp")
        assert {f"sport={c.sport}" in listed for c in ours[:2]} == {False}
        assert {f"sport={c.sport}" in listed for c in ours[2:]} == {True}


IPTABLES = {
    "iptables-nft": "iptables",
    "ip6tables-nft": "ip6tables",
    "iptables-legacy": "iptables",
    "ip6tables-legacy": "ip6tables",
}


@pytest.mark.parametrize("tool", ["nft", *IPTABLES])
def test_rules_that_keep_packets_from_tracking_are_named(tmp_path: Path, tool: str) -> None:
    if lacking := unmet(("netns", "tool:nft", "tool:conntrack", f"tool:{tool}")):
        missing("; ".join(lacking))
    with Lab() as lab:
        path = lab.translated()
        meet(path.client, path.address, path.backend, path.door, 1)
        situation = Situation(lab, "", ())
        if tool == "nft":
            path.gateway.nft(
                "table inet guard {\n chain early {\n  type filter hook prerouting priority raw\n"
                "  tcp dport 7 notrack\n }\n chain forward {\n  type filter hook forward priority 0\n"
                "  ct state invalid counter drop\n }\n}"
            )
        else:
            track = ["-t", "raw", "-A", "PREROUTING", "-p", "tcp", "--dport", "7", "-j", "CT", "--notrack"]
            path.gateway.run(tool, *track)
            path.gateway.run(tool, "-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP")
        shown = run(situation, tmp_path)
        assert [line for line in shown.stdout.splitlines() if len(line) > 100] == []
        assert shown.stdout.count(": notrack in ") == 1
        assert shown.stdout.count(": drop-invalid in ") == 1
        spaces = json.loads(run(situation, tmp_path, "-o", "json").stdout)["namespaces"]
        (rules,) = (space["rules"] for space in spaces if space["netns"] == path.gateway.inode)
        found = {one["kind"]: one["where"] for one in rules}
        if tool.endswith("legacy"):
            assert found == {
                "notrack": f"{IPTABLES[tool]} raw PREROUTING",
                "drop-invalid": f"{IPTABLES[tool]} filter FORWARD",
            }
        else:
            assert set(found) == {"notrack", "drop-invalid"}

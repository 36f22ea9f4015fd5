"""A lab scenario is recorded from the running kernel, and the recording says what the kernel said."""

from __future__ import annotations

import ipaddress
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from finwait import session
from finwait.lab.differences import differences
from finwait.lab.scenario import Situation, scenarios
from finwait.lab.topology import Lab, unmet
from finwait.recording import Replay, open_recording, read, record, redact
from finwait.recording.format import _facts
from finwait.recording.writer import complete
from finwait.session import Diagnosis, Look
from finwait.table import decode
from finwait.uapi.observation import LookPlan, Observation
from tests.captures.make import walled_off
from tests.kernel.needs import missing
from tests.kernel.test_rules import DEADLINE_S

pytestmark = pytest.mark.kernel


@pytest.fixture(params=["relay-pair", "nat-entry-gone", "mptcp-half-close"])
def situation(request: pytest.FixtureRequest) -> Iterator[Situation]:
    scenario = scenarios()[request.param]
    if lacking := unmet(scenario.needs):
        missing("; ".join(lacking))
    with Lab() as lab:
        yield scenario.build(lab).settle()


def namespaces(situation: Situation) -> frozenset[int]:
    return frozenset(situation.namespaces.values())


def replayed(machine: Replay, only: frozenset[int] | None = None) -> Diagnosis:
    how = Look(plan=LookPlan(only=only, established_limit=None), watch_ms=1, not_holders=walled_off())
    return session.diagnose(machine, how=how)


def content(look: Observation) -> bytes:
    """Everything of a look as bytes, as a file holds it before it is compressed; bytes not in base64 either."""
    texts = [bytes(look.buffer), msgspec.json.encode(_facts(look))]
    for one in look.processes.values():
        texts += [one.stat or b"", one.status or b"", one.cmdline or b"", one.cgroup or b"", one.exe or b""]
    for ns in look.namespaces:
        texts += [*ns.files.values(), *(name.encode("utf-8", "replace") for name in ns.names)]
    return b"\n".join(texts)


def secrets(look: Observation) -> set[bytes]:
    """What of a look must not be found in its redacted copy."""
    result = {look.facts.hostname.encode(), look.facts.boot_id.encode()}
    for ns in look.namespaces:
        result |= {name.encode() for name in ns.names if name != "host"}
    for one in look.processes.values():
        if one.stat is not None:
            result.add(b"(" + one.stat[one.stat.index(b"(") + 1 : one.stat.rindex(b")")] + b")")
        result |= {word for word in (one.cmdline or b"").split(b"\0") if b"/" in word or len(word) > 8}
        result.add(one.exe or b"")
    addresses = {pair for found in decode.local_addresses(look).values() for pair in found}
    s = decode.sockets(look)
    for name in ("src", "dst"):
        addresses |= {(int(high), int(low)) for high, low in s[name].tolist()}
    for high, low in addresses:
        address = ipaddress.IPv6Address((high << 64) | low)
        plain = address.ipv4_mapped or address
        if not (plain.is_loopback or plain.is_unspecified):
            result |= {plain.packed, str(plain).encode()}
    # Shorter ones (a host called "vm") stand in any megabyte of numbers by chance.
    return {secret for secret in result if len(secret) >= 4}


def test_a_recording_replays_to_what_the_kernel_showed(situation: Situation, tmp_path: Path) -> None:
    path = str(tmp_path / "a.finwait")
    end = time.monotonic() + DEADLINE_S
    while True:
        recorded = record(
            session.live_machine(), path, looks=2, interval_ms=100, only=namespaces(situation), note="x"
        )
        manifest, looks = read(path)
        diagnosis = replayed(open_recording(path))
        if not differences(situation, diagnosis) or time.monotonic() > end:
            break
        time.sleep(0.1)
    assert not differences(situation, diagnosis)
    assert recorded.rows == len(diagnosis.view.sockets)
    assert (manifest.looks, manifest.redacted, manifest.note) == (2, False, "x")
    assert looks[1].facts.boottime_ns - looks[0].facts.boottime_ns >= 100_000_000
    # Who holds what is in the file too: nothing is asked of the machine that reads it.
    owners = {
        (int(diagnosis.view.sockets.inode[row]), pid)
        for finding in diagnosis.findings
        for row in finding.rows.tolist()
        for pid in finding.pids
        if diagnosis.view.sockets.inode[row]
    }
    assert {pid for _, pid in owners} == {p for e in situation.all if e.rule for p, _ in e.owners}
    assert all(diagnosis.view.processes[pid].comm != "?" for _, pid in owners)


def _unnamed(text: str) -> str:
    """Leave out the names of threads, which redaction replaces."""
    return re.sub(r"(thread \d+) \([^)]*\)", r"\1", text)


def evidence(diagnosis: Diagnosis) -> list[object]:
    return [
        (
            f.rule, f.primary, f.severity, f.confidence, f.count, f.rows.tolist(), f.pids,
            [(e.column, _unnamed(e.value), _unnamed(e.says)) for e in f.evidence],
        )
        for f in diagnosis.findings
    ]  # fmt: skip


def test_redaction_changes_no_finding_and_leaves_no_name(situation: Situation) -> None:
    machine = session.live_machine()
    plan = LookPlan(only=namespaces(situation), established_limit=None)
    looks = [complete(machine, plan), complete(machine, plan)]
    clean = redact(looks)
    assert evidence(replayed(Replay(clean))) == evidence(replayed(Replay(looks)))
    for before, after in zip(looks, clean, strict=True):
        original, left = content(before), content(after)
        known = {secret for secret in secrets(before) if secret in original}
        must = {ipaddress.ip_address(e.src.removeprefix("::ffff:")) for e in situation.all}
        assert {one.packed for one in must if not one.is_loopback} <= known
        assert before.facts.boot_id.encode() in known
        assert not {secret for secret in known if secret in left}


def test_a_namespace_that_a_plain_user_could_not_enter_is_not_named() -> None:
    if lacking := unmet(("netns", "tool:setpriv", "tool:ip")):
        missing("; ".join(lacking))
    name = f"s3cret(x) {os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        with tempfile.TemporaryDirectory() as folder:  # pytest's own are for one user alone
            Path(folder).chmod(0o777)
            nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
            words = [sys.executable, "-m", "finwait", "record", "--redact", f"{folder}/red.finwait"]
            done = subprocess.run([*nobody, *words], check=False, capture_output=True, text=True, cwd="/")
            assert done.returncode in (0, 3), done.stderr
            replay = open_recording(f"{folder}/red.finwait")
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)
    gaps = [gap.where for look in replay.looks for gap in look.gaps if gap.doing == "enter it"]
    assert gaps
    assert not [
        where for where in gaps if not re.fullmatch(r"netns \d+( \((netns-[0-9a-f]+|host)\))?", where)
    ]
    assert all(b"s3cret" not in content(look) for look in replay.looks)


def test_the_names_of_the_lab_can_be_kept(situation: Situation) -> None:
    look = complete(session.live_machine(), LookPlan(only=namespaces(situation), established_limit=None))
    (kept,) = redact([look], keep_names=frozenset({"backend"}))
    names = {p.stat[p.stat.index(b"(") : p.stat.index(b")") + 1] for p in kept.processes.values() if p.stat}
    assert all(name == b"(backend)" or name.startswith(b"(comm-") for name in names)


def test_only_the_namespaces_that_were_named_are_recorded(situation: Situation) -> None:
    only = namespaces(situation)
    look = complete(session.live_machine(), LookPlan(only=only, established_limit=None))
    assert {ns.inode for ns in look.namespaces} == only
    inodes = set(decode.sockets(look).inode.tolist())
    for pid in set(look.descriptors.pid.tolist()):
        mine = look.descriptors.inode[look.descriptors.pid == pid].tolist()
        assert look.processes[pid].netns in only or inodes & set(mine)


def test_the_command_records_and_every_reading_command_reads(situation: Situation, tmp_path: Path) -> None:
    path = tmp_path / "a.finwait"
    spaces = [f"--netns={inode}" for inode in sorted(namespaces(situation))]
    command = [sys.executable, "-m", "finwait"]
    done = subprocess.run(
        [*command, "record", str(path), "--redact", "--interval", "100ms", *spaces],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 3), done.stderr  # 3: this machine hides a process from us
    assert not done.stdout
    assert "in 2 looks" in done.stderr
    assert os.listdir(tmp_path) == ["a.finwait"]
    for words in (["diagnose"], ["list"], ["netns"], ["check"], ["diagnose", "-o", "json"]):
        shown = subprocess.run(
            [*command, *words, "--from", str(path)], capture_output=True, text=True, check=False
        )
        assert "Traceback" not in shown.stderr
        assert shown.stdout
        assert os.uname().nodename not in shown.stdout

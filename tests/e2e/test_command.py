"""The command as a process: what goes to which stream, with which status, in which format, for which user."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from finwait import __version__
from finwait.cli import COMMANDS, EXIT_STATUS
from finwait.diagnosis import catalogue
from finwait.lab import Lab
from finwait.lab.actor import meet
from finwait.lab.scenario import Situation, scenarios
from finwait.lab.topology import unmet
from tests.kernel.needs import missing, root_and

ROOT = Path(__file__).parents[2]
FINWAIT = [sys.executable, "-m", "finwait"]
CAPTURES = ROOT / "tests/captures/linux-6.18"
RELAY = CAPTURES / "kube-proxy-userspace.finwait"
WHOLE = ["--from", str(RELAY), "--not-holder", "1"]
"""A recording whose maker could not look into pid 1 of its sandbox, which held none of the lab's sockets."""
FORMATS = ("text", "wide", "json", "jsonl", "csv", "parquet", "arrow")


def environment(**more: str) -> dict[str, str]:
    plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    return plain | more


def finwait(*words: str, before: list[str] | None = None, **more: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*(before or []), *FINWAIT, *words],
        capture_output=True,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def said(done: subprocess.CompletedProcess[bytes]) -> str:
    return done.stdout.decode()


def complaint(done: subprocess.CompletedProcess[bytes]) -> str:
    return done.stderr.decode()


# ── usage ────────────────────────────────────────────────────────────────────────────────────────────────


EACH = [(), *((name,) for name in COMMANDS)]


@pytest.mark.parametrize("words", EACH, ids=lambda w: " ".join(w) or "finwait")
def test_every_command_has_help_on_standard_output_and_ends_with_0(words: tuple[str, ...]) -> None:
    done = finwait(*words, "--help")
    assert (done.returncode, done.stderr) == (0, b"")
    assert said(done).startswith("usage: finwait")


@pytest.mark.parametrize("words", EACH, ids=lambda w: " ".join(w) or "finwait")
def test_an_unknown_option_is_wrong_usage_with_a_hint_and_an_empty_standard_output(
    words: tuple[str, ...],
) -> None:
    done = finwait(*words, "--no-such-option")
    assert (done.returncode, done.stdout) == (2, b"")
    assert "finwait: error: " in complaint(done)
    assert complaint(done).splitlines()[-1].startswith("hint: ")


def test_the_module_is_the_command() -> None:
    assert said(finwait("--version")) == f"finwait {__version__}\n"


def test_the_parser_is_built_without_numpy() -> None:
    script = (
        "import sys; from finwait.cli import build_parser; build_parser(); "
        "print(sorted({'numpy', 'msgspec', 'arro3', 'yaml'} & {m.partition('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────

WRONG = {
    "a filter that does not parse": (["state", "fin-wait-7"], 2),
    "a filter that mixes and with or": (["list", "sport", "=", ":80", "or", "held", "and", "orphan"], 2),
    "a column that does not exist": (["list", "--columns", "lokal"], 1),
    "a column to sort by that does not exist": (["list", "--from", str(RELAY), "--sort", "lokal"], 1),
    "a namespace that does not exist": (["--netns", "no-such-namespace"], 1),
    "a recording that does not exist": (["--from", "/no/such/file.finwait"], 1),
    "a recording that is none": (["--from", str(ROOT / "LICENSE")], 1),
    "a rule that does not exist": (["explain", "fin-wait2-heldd"], 1),
    "a connection that does not exist": (["explain", "192.0.2.1:1", "--from", str(RELAY)], 1),
    "a scenario that does not exist": (["lab", "run", "relay-pear"], 1),
    "a place for a recording that does not exist": (
        ["record", "/no/such/folder/x.finwait", "--looks", "1"],
        1,
    ),
    "a recording without looks": (["record", "x.finwait", "--looks", "0"], 1),
    "a duration that is none": (["--for", "soon"], 2),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_is_on_standard_error_alone_with_what_was_wrong_and_a_hint(
    case: str, tmp_path: Path
) -> None:
    words, status = WRONG[case]
    done = subprocess.run(
        [*FINWAIT, *words], capture_output=True, env=environment(), cwd=tmp_path, timeout=60
    )
    text = done.stderr.decode()
    assert (done.returncode, done.stdout) == (status, b""), text
    assert "finwait: error: " in text
    assert text.splitlines()[-1].startswith("hint: ")
    assert "Traceback" not in text
    assert list(tmp_path.iterdir()) == []


def test_a_filter_error_points_at_the_place() -> None:
    lines = complaint(finwait("list", "state", "fin-wait-2", "dport", "=", ":https443")).splitlines()
    at = next(k for k, line in enumerate(lines) if line.strip() == "^")
    assert lines[at - 1][lines[at].index("^") :].startswith(":https443")


def test_a_near_miss_of_a_name_is_suggested() -> None:
    assert "did you mean `fin-wait2-held`?" in complaint(finwait("explain", "fin-wait2-heldd"))
    assert "did you mean `relay-pair`?" in complaint(finwait("lab", "run", "relay-pear"))


# ── streams ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "words",
    [["list"], ["list", "-o", "csv"], ["list", "-o", "json"], ["diagnose", "-o", "jsonl"]],
    ids=" ".join,
)
def test_a_reader_that_has_seen_enough_is_no_error(words: list[str]) -> None:
    big = CAPTURES / "time-wait-flood.finwait"
    running = subprocess.Popen(
        [*FINWAIT, *words, "--from", str(big), "--not-holder", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.read(10)
    running.stdout.close()
    assert running.stderr.read() == b""
    assert running.wait(30) == 0
    running.stderr.close()


def test_ctrl_c_ends_it_with_130_and_without_a_traceback() -> None:
    running = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, "--for", "60s", "--no-owners"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "watching\n"
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert (running.returncode, out, err) == (130, "", "")


INTERRUPTED = """
import signal, sys, time
from finwait import cli
signal.signal(signal.SIGINT, signal.default_int_handler)
def watching(seconds, sleep=time.sleep):
    print("watching", flush=True)
    sleep(seconds)
time.sleep = watching
raise SystemExit(cli.main(sys.argv[1:]))
"""


def test_colour_is_for_terminals_and_never_where_it_is_not_wanted() -> None:
    escape = b"\x1b["
    assert escape not in finwait("diagnose", *WHOLE).stdout
    assert escape in finwait("diagnose", *WHOLE, "--color", "always").stdout
    assert escape in on_a_terminal("diagnose", *WHOLE)
    assert escape not in on_a_terminal("diagnose", *WHOLE, NO_COLOR="1")
    assert escape not in on_a_terminal("diagnose", *WHOLE, "--color", "never")


def on_a_terminal(*words: str, **more: str) -> bytes:
    here, there = os.openpty()
    try:
        running = subprocess.Popen([*FINWAIT, *words], stdout=there, stderr=there, env=environment(**more))
        os.close(there)
        there = -1
        parts = []
        while True:
            try:
                part = os.read(here, 65536)
            except OSError:  # EIO: the other side is closed
                break
            if not part:
                break
            parts.append(part)
        running.wait(30)
        return b"".join(parts)
    finally:
        os.close(here)
        if there >= 0:
            os.close(there)


def test_the_report_fits_into_100_columns() -> None:
    for name in ("kube-proxy-userspace", "nat-entry-gone", "close-wait-eof-read", "hidden-leak"):
        for width in ("40", "250"):
            lines = said(finwait("--from", str(CAPTURES / f"{name}.finwait"), COLUMNS=width)).splitlines()
            assert max(map(len, lines)) <= 100, name


# ── formats ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", ["diagnose", "list"])
def test_every_format_gives_the_same_number_of_connections(command: str) -> None:
    documents = {form: finwait(command, *WHOLE, "-o", form) for form in FORMATS}
    assert {form: (d.returncode, d.stderr) for form, d in documents.items()} == dict.fromkeys(
        FORMATS, (0, b"")
    )
    whole = json.loads(documents["json"].stdout)
    if command == "list":
        n = len(whole["items"])
        assert n == 36
        assert len(documents["text"].stdout.splitlines()) == n + 1
        assert [json.loads(line) for line in documents["jsonl"].stdout.splitlines()] == whole["items"]
    else:
        n = sum(len(f["sockets"]) for f in whole["findings"] if f["primary"])
        lines = [json.loads(line) for line in documents["jsonl"].stdout.splitlines()]
        assert [{k: v for k, v in one.items() if k != "kind"} for one in lines] == whole["findings"]
    rows = list(csv.DictReader(io.StringIO(documents["csv"].stdout.decode())))
    assert len(rows) == n
    for form in ("parquet", "arrow"):
        assert columns_of(form, documents[form].stdout) == (n, list(rows[0]))


def columns_of(form: str, data: bytes) -> tuple[int, list[str]]:
    arro3 = pytest.importorskip("arro3.io")
    reader = arro3.read_parquet if form == "parquet" else arro3.read_ipc_stream
    table = reader(io.BytesIO(data)).read_all()
    return table.num_rows, list(table.column_names)


def test_rules_are_listed_in_every_format() -> None:
    assert said(finwait("rules", "-o", "name")).split() == list(catalogue.NAMES)
    items = json.loads(finwait("rules", "-o", "json").stdout)["items"]
    assert [r["name"] for r in items] == list(catalogue.NAMES)
    assert [line.split()[0] for line in said(finwait("rules")).splitlines()] == list(catalogue.NAMES)


@pytest.mark.parametrize("name", [catalogue.NAMES[0], catalogue.NAMES[-1]])
def test_the_page_of_a_rule_is_printed(name: str) -> None:
    done = finwait("explain", name)
    assert (done.returncode, said(done)) == (0, catalogue.page(name) + "\n")


def test_a_connection_is_explained_by_addresses_and_by_cookie_alike() -> None:
    row = json.loads(
        finwait("list", *WHOLE, "state", "close-wait", "-o", "json", "--columns", "local,peer,cookie").stdout
    )["items"][0]
    by_address = finwait("explain", row["local"], row["peer"], *WHOLE)
    by_cookie = finwait("explain", hex(row["cookie"]), *WHOLE)
    assert (by_address.returncode, by_address.stderr) == (0, b"")
    assert by_address.stdout == by_cookie.stdout
    assert "CLOSE_WAIT" in said(by_address)
    assert row["local"] in said(by_address)


def test_columns_and_headers_are_those_that_were_asked_for() -> None:
    done = finwait("list", *WHOLE, "--columns", "state_name,dport", "--no-headers", "state", "listen")
    assert [line.split() for line in said(done).splitlines()] == [["LISTEN", "0"]] * 2
    assert said(finwait("list", *WHOLE, "--columns", "dport", "--sort", "-dport")).split()[0] == "DPORT"
    ports = [
        int(p) for p in said(finwait("list", *WHOLE, "--columns", "dport", "--sort", "-dport")).split()[1:]
    ]
    assert ports == sorted(ports, reverse=True)


# ── status ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_report_full_of_problems_ends_with_0_and_one_with_gaps_with_3() -> None:
    assert finwait(*WHOLE).returncode == 0
    done = finwait("--from", str(RELAY))
    assert done.returncode == 3
    assert "Not seen:" in said(done)
    assert {0, 3} <= set(EXIT_STATUS)


@pytest.mark.parametrize(
    ("options", "status", "word"),
    [
        (["-w", "100", "-c", "200"], 0, "OK"),
        (["-w", "10", "-c", "100"], 1, "WARNING"),
        (["-w", "10", "-c", "22"], 2, "CRITICAL"),
        (["--min-age", "1h", "-w", "1"], 0, "OK"),
    ],
)
def test_check_has_the_status_and_the_line_of_a_nagios_plugin(
    options: list[str], status: int, word: str
) -> None:
    done = finwait("check", *WHOLE, *options)
    assert (done.returncode, done.stderr) == (status, b"")
    (line,) = said(done).splitlines()
    assert line.startswith(f"FINWAIT {word} - ")
    total = 0 if "--min-age" in options else 22
    assert re.search(rf"\| stuck={total};", line)


def test_check_does_not_call_it_ok_where_not_everything_was_seen() -> None:
    done = finwait("check", "--from", str(RELAY), "-w", "100", "-c", "200")
    assert (done.returncode, said(done).split()[:2]) == (3, ["FINWAIT", "UNKNOWN"])
    done = finwait("check", "--from", "/no/such/file")
    assert (done.returncode, said(done).split()[:2]) == (3, ["FINWAIT", "UNKNOWN"])


# ── this machine ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def half_closed() -> Iterator[Situation]:
    """Three half-closed connections, held by a program of root's in a namespace of its own."""
    if lacking := unmet(("netns",)):
        missing("; ".join(lacking))
    with Lab() as lab:
        near, far = lab.netns("near"), lab.netns("far")
        link = lab.link(near, far)
        client, server = lab.actor(near, "client"), lab.actor(far, "server")
        door = server.listen(link.b4, 8080)
        ours, theirs = meet(client, link.b4, server, door, 3)
        client.shutdown(ours)
        server.read_to_end(theirs)
        yield Situation(lab, "", ())


def within(situation: Situation, name: str) -> list[str]:
    netns = situation.lab.namespaces[name]
    return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{netns.fd}"]


NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@pytest.mark.kernel
def test_a_plain_user_is_told_what_there_is_and_that_holders_could_not_be_found(
    half_closed: Situation,
) -> None:
    root_and("nsenter", "setpriv")
    before = [*within(half_closed, "near"), *NOBODY]
    deadline = time.monotonic() + 10
    while True:  # the FIN's ACK may be delayed: FIN_WAIT1 first
        done = finwait("diagnose", "-o", "json", before=before)
        if done.returncode == 1 and b"Permission" in done.stderr:
            missing("this Python cannot be started by another user")
        findings = json.loads(done.stdout)["findings"]
        rules = {f["rule"]: f for f in findings}
        if "fin-wait2-held" in rules or time.monotonic() > deadline:
            break
    held = rules["fin-wait2-held"]
    assert (done.returncode, held["count"], held["pids"]) == (3, 3, [])
    assert {repr(s["owners"]) for s in held["sockets"]} == {"None"}
    assert not {"holder-not-found", "hidden-leak"} & set(rules)
    assert any("CAP_SYS_PTRACE" in gap["needs"] for gap in json.loads(done.stdout)["gaps"])
    text = finwait("diagnose", before=before)
    assert (text.returncode, text.stderr) == (3, b"")
    assert "not found; not every process could be looked into" in said(text)
    assert "nothing is wrong" not in said(text)
    rows = finwait("list", "held", "--columns", "owner", "--no-headers", before=before)
    assert (rows.returncode, said(rows).split()) == (3, ["?"] * 3)
    assert "finwait: not seen: " in complaint(rows)


@pytest.mark.kernel
def test_where_nothing_is_seen_to_be_wrong_a_plain_user_is_not_told_that_nothing_is() -> None:
    root_and("unshare", "setpriv")
    done = finwait(before=["unshare", "--net", *NOBODY])
    assert done.returncode == 3
    assert "nothing is wrong" not in said(done)
    assert "not everything could be seen" in said(done)


@pytest.mark.kernel
def test_holders_outside_of_a_pid_namespace_are_not_said_to_be_nobody(half_closed: Situation) -> None:
    root_and("nsenter", "unshare")
    before = [*within(half_closed, "near"), "unshare", "--pid", "--fork", "--mount-proc"]
    done = finwait("diagnose", "-o", "json", before=before)
    document = json.loads(done.stdout)
    assert done.returncode == 3
    assert "holder-not-found" not in {f["rule"] for f in document["findings"]}
    assert any(gap["where"] == "pid 0" for gap in document["gaps"])


NAMED = """
import socket, sys
door = socket.create_server(("127.0.0.1", 0))
near = socket.create_connection(door.getsockname())
far, _ = door.accept()
near.shutdown(socket.SHUT_WR)
open("/proc/self/comm", "wb").write(b"\\x1b[31m\\nPWNED")
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.kernel
def test_a_hostile_name_reaches_no_terminal() -> None:
    root_and("unshare", "ip")
    enter = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    victim = subprocess.Popen(
        [*enter, sys.executable, "-c", NAMED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "ready\n"
        for command in ("diagnose", "list", "netns"):
            out = finwait(command, "--netns", str(victim.pid)).stdout
            assert b"\\x1b[31m\\nPWNED" in out
            assert b"\x1b" not in out
    finally:
        victim.communicate()


@pytest.mark.kernel
def test_a_scenario_of_the_lab_is_built_diagnosed_and_removed() -> None:
    if lacking := unmet(scenarios()["fin-wait2-shut-both"].needs):
        missing("; ".join(lacking))
    done = finwait("lab", "run", "fin-wait2-shut-both", "-o", "json")
    assert done.returncode in (0, 3)
    found = {
        f["rule"] for f in json.loads(done.stdout)["findings"] if f["severity"] == "problem" and f["primary"]
    }
    assert "fin-wait2-shut-both" in found


@pytest.mark.kernel
def test_a_recording_made_now_is_diagnosed_as_the_machine_was(half_closed: Situation, tmp_path: Path) -> None:
    file = tmp_path / "now.finwait"
    inodes = [str(n.inode) for n in half_closed.lab.namespaces.values()]
    where = [word for inode in inodes for word in ("--netns", inode)]
    done = finwait("record", str(file), "--looks", "1", *where)
    assert (done.returncode, done.stdout) == (0, b""), complaint(done)
    live = json.loads(finwait("diagnose", "-o", "json", *where).stdout)["findings"]
    kept = json.loads(finwait("diagnose", "-o", "json", "--from", str(file)).stdout)["findings"]
    assert kept
    assert [(f["rule"], f["count"], f["pids"]) for f in kept] == [
        (f["rule"], f["count"], f["pids"]) for f in live
    ]


def test_every_command_is_a_module_of_the_package() -> None:
    for module in COMMANDS.values():
        assert (ROOT / "src/finwait/cli" / f"{module}.py").is_file()

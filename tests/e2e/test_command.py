"""The command as a process, further: what was not seen, hostile names, widths, signals."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finwait.cli import EXIT_STATUS
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


def test_a_filter_error_points_at_the_place() -> None:
    lines = complaint(finwait("list", "state", "fin-wait-2", "dport", "=", ":https443")).splitlines()
    at = next(k for k, line in enumerate(lines) if line.strip() == "^")
    assert lines[at - 1][lines[at].index("^") :].startswith(":https443")


def test_a_near_miss_of_a_name_is_suggested() -> None:
    assert "did you mean `fin-wait2-held`?" in complaint(finwait("explain", "fin-wait2-heldd"))
    assert "did you mean `relay-pair`?" in complaint(finwait("lab", "run", "relay-pear"))


# ── streams ──────────────────────────────────────────────────────────────────────────────────────────────


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


def test_a_connection_is_explained_by_addresses_and_by_cookie_alike() -> None:
    row = json.loads(
        finwait("list", *WHOLE, "state", "close-wait", "-o", "json", "--columns", "local,peer,cookie").stdout
    )["items"][0]
    by_address = finwait("explain", row["local"], row["peer"], *WHOLE)
    by_cookie = finwait("explain", row["cookie"], *WHOLE)
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


def test_check_does_not_call_it_ok_where_not_everything_was_seen() -> None:
    done = finwait("check", "--from", str(RELAY), "-w", "100", "-c", "200")
    assert (done.returncode, said(done).split()[:2]) == (3, ["FINWAIT", "UNKNOWN"])
    done = finwait("check", "--from", "/no/such/file")
    assert (done.returncode, said(done).split()[:2]) == (3, ["FINWAIT", "UNKNOWN"])


def test_check_leaves_out_what_has_no_age_and_says_so() -> None:
    capture = str(RELAY.with_name("hidden-leak.finwait"))
    now = said(finwait("check", "--from", capture))
    assert "5 hidden-leak" in now
    assert "stuck=5;" in now
    done = finwait("check", "--from", capture, "--min-age", "1h")
    assert "left out, of unknown age: 5 descriptors of connections that are gone" in said(done)
    assert "stuck=0;" in said(done)
    assert done.returncode == 3, "five more might count, and they never grow older"
    for rule, n in (("zero-window", 3), ("accept-queue-full", 2)):
        capture = str(RELAY.with_name(f"{rule}.finwait"))
        done = finwait("check", "--from", capture, "--not-holder", "1", "--min-age", "1h")
        assert f"left out, of unknown age: {n} connections" in said(done)
        assert done.returncode == 3, "nothing ever tells how old they are"
    capture = str(RELAY.with_name("close-wait-eof-read.finwait"))
    done = finwait("check", "--from", capture, "--not-holder", "1", "--min-age", "1h")
    assert done.returncode == 0, "these are younger, and will count when they are not"


@pytest.mark.parametrize(
    ("words", "status", "part"),
    [
        (["-w", "5", "-c", "3"], 3, "wrong arguments: `--warning 5` is above `--critical 3`"),
        (["-w", "200"], 3, "above `--critical 100` (the default)"),
        (["-w", "x"], 3, "argument -w/--warning: `x` is not a threshold"),
        (["-w"], 3, "argument -w/--warning: expected one argument"),
        (["--no-such"], 3, "unrecognized arguments: --no-such"),
        (["--from=--"], 3, "`--` is not a value"),
        (["state", "no-such"], 3, "wrong arguments: FILTER `state no-such`"),
        (["--from", "/nonexistent/x"], 3, "could not read"),
        (["-w", "10", "-c", "5:"], 1, "22 stuck"),
        (["-w", "30", "-c", "5:22"], 0, ";29;5:22;0"),
        (["-w", "30", "-c", "23:"], 2, ";29;23:;0"),
        (["-w", "@20:25", "-c", "100"], 1, ";@20:25;99;0"),
        (["-w", "~:21", "-c", "~:22"], 1, ";~:21;~:22;0"),
        (["-w", "23", "-c", "23"], 0, ";22;22;0"),
        (["-w", "22", "-c", "23"], 1, ";21;22;0"),
    ],
)
def test_check_has_one_line_and_a_plugin_s_status_for_every_command_line(
    words: list[str], status: int, part: str
) -> None:
    where = [] if "--from" in words else WHOLE
    done = finwait("check", *words, *where)
    assert (done.returncode, said(done).count("\n")) == (status, 1), said(done)
    assert said(done).startswith(f"FINWAIT {('OK', 'WARNING', 'CRITICAL', 'UNKNOWN')[status]} - ")
    assert (part if "stuck" not in part else "stuck=22;9;5:;0") in said(done)


def test_a_threshold_below_which_is_alerted_needs_the_whole_picture() -> None:
    """More than the 22 may be there: what alerts below 50 may be wrong to alert, and is not said."""
    done = finwait("check", "--from", str(RELAY), "-w", "50:", "-c", "@90:")
    assert (done.returncode, said(done).split()[:2]) == (3, ["FINWAIT", "UNKNOWN"])
    done = finwait("check", "--from", str(RELAY), "-w", "@20:", "-c", "~:99")
    assert (done.returncode, said(done).split()[:2]) == (1, ["FINWAIT", "WARNING"])


@pytest.mark.parametrize("sink", [">/dev/full", ">&-"])
@pytest.mark.parametrize("words", ["", "-w"])
def test_check_is_unknown_also_where_its_line_cannot_be_written(sink: str, words: str) -> None:
    """Any other status would be an answer: 1 is WARNING, and 0 is OK."""
    line = f"{' '.join(FINWAIT)} check {' '.join(WHOLE)} {words} {sink}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, env=environment(), timeout=60)
    assert done.returncode == 3
    assert b"Traceback" not in done.stderr


def test_check_that_fails_in_itself_is_unknown_and_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    from finwait.cli import main, options

    def fails(*_: object) -> None:
        raise TypeError("no such luck")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options, "unnarrowed", fails)
        assert main(["check"]) == 3
    out, err = capsys.readouterr()
    assert out.startswith("FINWAIT UNKNOWN - finwait itself failed (TypeError: no such luck)")
    assert "Traceback" in err


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


@pytest.mark.kernel
def test_what_was_not_to_be_looked_at_is_not_said_to_be_well() -> None:
    if lacking := unmet(("netns",)):
        missing("; ".join(lacking))
    with Lab() as lab:
        near, far = lab.netns("near"), lab.netns("far")
        link = lab.link(near, far)
        client, server = lab.actor(near, "client"), lab.actor(far, "server")
        meet(client, link.b4, server, server.listen(link.b4, 8080), 3)
        where = ["--netns", str(near.inode)]
        never = finwait(*where, "--established", "never")
        assert "nothing is wrong" not in said(never)
        assert "ESTABLISHED ones were not looked at" in " ".join(said(never).split()) or never.returncode == 3
        assert "about 3 sockets in namespaces whose ESTABLISHED ones were left out" in " ".join(
            said(never).split()
        )
        assert (
            json.loads(finwait(*where, "--established", "never", "-o", "json").stdout)["established_skipped"]
            == 3
        )
        always = finwait(*where, "--established", "always")
        assert "left out" not in said(always)


NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


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
def test_a_state_directory_that_is_a_file_is_no_empty_journal(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    done = subprocess.run(
        [*FINWAIT, "journal"],
        capture_output=True,
        text=True,
        env={**os.environ, "FINWAIT_STATE_DIR": str(tmp_path / "state")},
    )
    assert done.returncode == 1
    assert f"`{tmp_path}/state` is not a directory" in done.stderr


@pytest.mark.parametrize("form", FORMATS)
def test_a_disk_that_is_full_and_an_output_that_is_closed_are_told(form: str) -> None:
    words = [*FINWAIT, *WHOLE, "-o", form]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "finwait: error: the output could not be written: No space left on device\n",
    )
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *words], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("finwait: error: standard output is closed")


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    "words", [("rules", "-o", "json"), ("rules",), ("--help",), ("list", "-o", "csv", *WHOLE)], ids=str
)
def test_output_that_is_cut_short_is_an_error(
    words: tuple[str, ...], unbuffered: str, tmp_path: Path
) -> None:
    """The file takes some bytes, then no more: a write that takes less than it was given is no error by itself."""
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    whole = subprocess.run([*FINWAIT, *words], capture_output=True, env=env).stdout
    most = len(whole) // 2
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run(
            [*FINWAIT, *words], stdout=out, stderr=subprocess.PIPE, text=True, env=env,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
        )  # fmt: skip
    assert (tmp_path / "out").read_bytes() == whole[:most]
    assert done.returncode == 1
    assert done.stderr.startswith("finwait: error: the output could not be written: ")


def test_a_locale_without_our_characters_gets_others() -> None:
    env = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run([*FINWAIT, *WHOLE], capture_output=True, env=env)
    assert done.returncode == 0
    assert b"7 x FIN_WAIT2, 7 x CLOSE_WAIT  relay-pair" in done.stdout
    assert done.stdout.isascii()


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
    assert done.returncode in (0, 3), complaint(done)  # 3: this machine hides a process from us
    assert done.stdout == b""
    live = json.loads(finwait("diagnose", "-o", "json", *where).stdout)["findings"]
    kept = json.loads(finwait("diagnose", "-o", "json", "--from", str(file)).stdout)["findings"]
    assert kept
    # Equally grave ones may come in another order: their ages differ by less than a look takes.
    assert sorted((f["rule"], f["count"], f["pids"]) for f in kept) == sorted(
        (f["rule"], f["count"], f["pids"]) for f in live
    )

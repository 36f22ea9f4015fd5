"""The command as a process: what it prints, where, and with which status it ends."""

from __future__ import annotations

import csv
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from typing import Any

import pytest

from finwait.cli import COMMANDS
from finwait.lab.actor import meet
from finwait.lab.topology import Lab, unmet
from finwait.recording import record
from finwait.session import live_machine
from tests.kernel.needs import missing

CLEAN = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "FINWAIT_STATE_DIR")}
NOBODY = 65534
Process = subprocess.CompletedProcess[bytes]


def finwait(*args: str, env: dict[str, str] | None = None, **more: Any) -> Process:
    return subprocess.run(
        [sys.executable, "-m", "finwait", *args], capture_output=True, env={**CLEAN, **(env or {})}, **more
    )


@pytest.fixture(scope="module")
def scene() -> Iterator[list[str]]:
    """Three half-closed connections between two programs; the options that look at them only."""
    if lacking := unmet(("netns",)):
        missing("; ".join(lacking))
    with Lab() as lab:
        client, server = lab.netns("client"), lab.netns("server")
        link = lab.link(client, server)
        poller, backend = lab.actor(client, "poller"), lab.actor(server, "backend")
        door = backend.listen(link.b4, 8080)
        near, far = meet(poller, link.b4, backend, door, 3)
        poller.shutdown(near, "WR")
        backend.read_to_end(far)
        yield ["--netns", str(client.inode), "--netns", str(server.inode)]


@pytest.fixture(scope="module")
def recorded(scene: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same in a file, as two looks that saw everything of these namespaces."""
    file = str(tmp_path_factory.mktemp("recorded") / "scene.finwait")
    record(live_machine(), file, looks=2, interval_ms=50, only=frozenset(int(n) for n in scene[1::2]))
    os.chmod(file, 0o644)
    return file


def seen(ran: Process) -> None:
    """Assert that it did what it should: status 0, or 3 where this machine hides a process from us."""
    assert ran.returncode in (0, 3), ran.stderr.decode()
    assert b"Traceback" not in ran.stderr


# ── every command ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_of_a_command_is_data_and_status_0(command: str) -> None:
    ran = finwait(command, "--help")
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout.startswith(f"usage: finwait {command}".encode())


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_an_unknown_option_is_status_2_with_a_hint_on_stderr(command: str) -> None:
    ran = finwait(command, "--no-such-option")
    if command == "check":  # where 2 is CRITICAL
        assert ran.returncode == 3
        assert ran.stdout == b"FINWAIT UNKNOWN - wrong arguments: unrecognized arguments: --no-such-option\n"
    else:
        assert (ran.returncode, ran.stdout) == (2, b"")
    assert b"finwait: error: " in ran.stderr
    assert ran.stderr.splitlines()[-1].startswith(b"hint: ")


def test_version_and_the_installed_command() -> None:
    script = pathlib.Path(sysconfig.get_path("scripts")) / "finwait"
    by_script = subprocess.run([script, "--version"], capture_output=True, env=CLEAN)
    by_module = finwait("--version")
    assert (by_script.returncode, by_script.stdout) == (by_module.returncode, by_module.stdout)
    assert re.fullmatch(rb"finwait \d+\.\d+\.\d+\S*\n", by_module.stdout)


def test_the_parser_is_built_without_numpy() -> None:
    code = (
        "import sys, finwait.cli; finwait.cli.build_parser(); "
        "print([m for m in ('numpy', 'msgspec', 'asyncio') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (("--from", "/nonexistent/file"), 1),
        (("--from", "/etc/passwd"), 1),
        (("--netns", "no-such-namespace"), 1),
        (("list", "--columns", "stat_name"), 2),
        (("list", "--sort", "no-such"), 2),
        (("explain", "fin-wait-held"), 2),
        (("lab", "run", "relay-pare"), 2),
        (("record", "/nonexistent/dir/file"), 1),
        (("record", "/dev/null", "--looks", "0"), 2),
        (("state", "no-such-state"), 2),
        (("list", "sport", "=", ":80", "or", "sport", "=", ":81", "and", "held"), 2),
        (("explain", "sport", "=", "("), 2),
        (("clear", "--override", "xx"), 2),
        (("probe",), 2),
        (("arm", "sport", "=", ":1"), 2),
        (("undo",), 2),
        (("relay", "run"), 2),
        (("journal", "--limit", "-1"), 2),
        (("trace", "--for", "1x"), 2),
        (("trace", "--stuck", "abc"), 2),
        (("trace", "--interval", "3q"), 2),
        (("trace", "--interval", "0"), 2),
        (("capture", "--for", "1x", "sport = :1"), 2),
        (("tune", "show", "no.such"), 2),
        (("tune", "plan", "no-such"), 2),
        (("tune", "plan", "tcp_fin_timeout=soon"), 2),
        (("--from=",), 2),
        (("--for", "soon"), 2),
        (("list", "--output", "yaml"), 2),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_an_error_says_what_was_tried_on_stderr_and_ends_with_a_hint(
    args: tuple[str, ...], status: int
) -> None:
    ran = finwait(*args)
    assert (ran.returncode, ran.stdout) == (status, b""), ran.stderr.decode()
    lines = ran.stderr.decode().splitlines()
    assert any(line.startswith("finwait: error: ") for line in lines)
    assert lines[-1].startswith("hint: ")
    assert "Traceback" not in ran.stderr.decode()


# ── what a look prints ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.kernel
def test_finwait_alone_is_diagnose_and_finds_the_three(scene: list[str]) -> None:
    for command in ((), ("diagnose",)):
        ran = finwait(*command, *scene)
        seen(ran)
        assert b"3 \xc3\x97 FIN_WAIT2  fin-wait2-held" in ran.stdout
        assert max(len(line) for line in ran.stdout.decode().splitlines()) <= 100


@pytest.mark.kernel
def test_a_filter_alone_is_diagnose(scene: list[str]) -> None:
    ran = finwait(*scene, "state", "close-wait")
    seen(ran)
    assert b"close-wait-eof-read" in ran.stdout
    assert b"fin-wait2-held  in" not in ran.stdout


@pytest.mark.kernel
def test_list_as_text_csv_json_and_json_lines_has_the_same_rows(scene: list[str]) -> None:
    args = (
        "list",
        *scene,
        "--columns",
        "state_name,local,peer,owner",
        "--sort",
        "local",
        "state",
        "fin-wait-2",
    )
    made = {form: finwait(*args, "-o", form) for form in ("text", "csv", "json", "jsonl")}
    for ran in made.values():
        seen(ran)
    rows = json.loads(made["json"].stdout)
    assert (rows["apiVersion"], rows["kind"]) == ("finwait/v1", "ColumnsOfConnections")
    assert len(rows["items"]) == 3
    assert [json.loads(line) for line in made["jsonl"].stdout.splitlines()] == rows["items"]
    assert list(csv.DictReader(io.StringIO(made["csv"].stdout.decode()))) == rows["items"]
    text = [line.split() for line in made["text"].stdout.decode().splitlines()]
    assert [line[:3] for line in text[1:]] == [
        [r["state_name"], r["local"], r["peer"]] for r in rows["items"]
    ]
    assert all(re.fullmatch(r"poller\(\d+:\d+\)", r["owner"]) for r in rows["items"])


@pytest.mark.kernel
@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("command", [("list", "state", "fin-wait-2"), ("diagnose", "state", "fin-wait-2")])
def test_parquet_and_arrow_can_be_read_back(
    scene: list[str], form: str, command: tuple[str, ...], tmp_path: pathlib.Path
) -> None:
    arro3 = pytest.importorskip("arro3.io")
    ran = finwait(*command, *scene, "-o", form)
    seen(ran)
    (tmp_path / "rows").write_bytes(ran.stdout)
    reader = arro3.read_parquet if form == "parquet" else arro3.read_ipc_stream
    table = reader(str(tmp_path / "rows")).read_all()
    assert table["state_name"].to_pylist() == ["FIN_WAIT2"] * 3


@pytest.mark.kernel
@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_options_of_sockets_are_numbers_in_parquet_and_arrow(
    scene: list[str], form: str, tmp_path: pathlib.Path
) -> None:
    arro3 = pytest.importorskip("arro3.io")
    ran = finwait("list", "state", "fin-wait-2", *scene, "--columns", "user_timeout_ms,linger2_s", "-o", form)
    seen(ran)
    (tmp_path / "rows").write_bytes(ran.stdout)
    reader = arro3.read_parquet if form == "parquet" else arro3.read_ipc_stream
    table = reader(str(tmp_path / "rows")).read_all()
    assert table["user_timeout_ms"].to_pylist() == [0] * 3
    assert table["linger2_s"].to_pylist() == [60] * 3


@pytest.mark.kernel
@pytest.mark.parametrize("form", ["text", "wide", "json", "jsonl", "csv"])
def test_a_diagnosis_has_no_colour_unless_it_is_asked_for(scene: list[str], form: str) -> None:
    for env in ({}, {"NO_COLOR": "1"}):
        assert b"\x1b[" not in finwait(*scene, "-o", form, env=env).stdout
    forced = finwait(*scene, "-o", form, "--color", "always", env={"NO_COLOR": "1"}).stdout
    assert (b"\x1b[" in forced) is (form in ("text", "wide"))


@pytest.mark.kernel
def test_on_a_terminal_no_color_is_obeyed(recorded: str) -> None:
    for env, colored in (({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)):
        leader, terminal = os.openpty()
        try:
            child = subprocess.Popen(
                [sys.executable, "-m", "finwait", "--from", recorded],
                stdout=terminal,
                stderr=subprocess.DEVNULL,
                env={**CLEAN, **env},
            )
            os.close(terminal)
            text = b""
            while piece := read_terminal(leader):
                text += piece
            child.wait()
        finally:
            os.close(leader)
        assert b"fin-wait2-held" in text
        assert (b"\x1b[" in text) is colored, env


def read_terminal(leader: int) -> bytes:
    try:
        return os.read(leader, 65536)
    except OSError:  # EIO: the other side is closed
        return b""


@pytest.mark.kernel
@pytest.mark.parametrize(
    "args", [("list",), ("rules",), ("netns",), ("list", "-o", "csv"), ("list", "-o", "jsonl")]
)
def test_a_reader_that_has_seen_enough_is_no_error(recorded: str, args: tuple[str, ...]) -> None:
    """As `finwait list | head -1` does it; the pipe is closed before the first line is written."""
    options = () if args == ("rules",) else ("--from", recorded)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "finwait", *args, *options],
            stdout=writing,
            stderr=subprocess.PIPE,
            env=CLEAN,
        )
    finally:
        os.close(writing)
    assert ran.returncode == 0
    assert b"Traceback" not in ran.stderr
    assert b"Broken" not in ran.stderr


@pytest.mark.kernel
def test_list_into_head_prints_one_line_and_nothing_about_pipes(scene: list[str]) -> None:
    command = f"{sys.executable} -m finwait list {' '.join(scene)} | head -1"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=CLEAN)
    assert ran.stdout.startswith("STATE ")
    assert len(ran.stdout.splitlines()) == 1
    assert [
        line for line in ran.stderr.splitlines() if not line.startswith(("finwait: not seen: ", "    "))
    ] == []


@pytest.mark.kernel
def test_explain_shows_both_ends_and_a_rule_prints_its_page(scene: list[str]) -> None:
    row = json.loads(finwait("list", *scene, "state", "fin-wait-2", "-o", "json").stdout)["items"][0]
    ends = (f"{row['src']}:{row['sport']}", f"{row['dst']}:{row['dport']}")
    by_ends = finwait("explain", *ends, *scene)
    by_cookie = finwait("explain", row["cookie"], *scene)
    for ran in (by_ends, by_cookie):
        seen(ran)
        text = ran.stdout.decode()
        assert "FIN_WAIT2" in text
        assert "CLOSE_WAIT" in text
        (owner,) = row["owners"]
        assert f"{owner['comm']}({owner['pid']}:{owner['fd']})" in text
    page = finwait("explain", "fin-wait2-held")
    assert (page.returncode, page.stderr) == (0, b"")
    assert page.stdout.startswith(b"fin-wait2-held: ")


@pytest.mark.kernel
def test_netns_counts_by_state(scene: list[str]) -> None:
    ran = finwait("netns", *scene, "-o", "json")
    seen(ran)
    states = [item["states"] for item in json.loads(ran.stdout)["items"]]
    assert sorted(map(str, states)) == sorted(map(str, [{"FIN_WAIT2": 3}, {"CLOSE_WAIT": 3, "LISTEN": 1}]))


def test_rules_as_names_text_and_json_are_the_same() -> None:
    names = finwait("rules", "-o", "name").stdout.decode().split()
    assert [line.split()[0] for line in finwait("rules").stdout.decode().splitlines()] == names
    assert [i["name"] for i in json.loads(finwait("rules", "-o", "json").stdout)["items"]] == names


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("options", "status", "word"),
    [
        (("-w", "1", "-c", "100"), 1, "WARNING"),
        (("-w", "1", "-c", "6"), 2, "CRITICAL"),
        (("-w", "1", "-c", "7"), 1, "WARNING"),
        (("-w", "7", "-c", "8"), 0, "OK"),
        (("--min-age", "1d"), 0, "OK"),
    ],
)
def test_check_has_the_status_of_a_nagios_plugin(
    scene: list[str], options: tuple[str, ...], status: int, word: str
) -> None:
    hidden = [f"--not-holder={pid}" for pid in unreadable()]
    ran = finwait("check", *scene, *options, *hidden)
    line = ran.stdout.decode()
    assert (ran.returncode, line.count("\n")) == (status, 1), line
    assert line.startswith(f"FINWAIT {word} - ")
    assert f"stuck={0 if '--min-age' in options else 6};" in line


def unreadable() -> tuple[int, ...]:
    from finwait.kernel import procfs

    return procfs.descriptors()[0].unreadable


def test_check_of_something_that_cannot_be_read_is_unknown() -> None:
    ran = finwait("check", "--from", "/nonexistent")
    assert ran.returncode == 3
    assert ran.stdout.startswith(b"FINWAIT UNKNOWN - ")


@pytest.mark.kernel
def test_a_recording_is_made_and_read_by_the_commands_that_look(
    scene: list[str], tmp_path: pathlib.Path
) -> None:
    file = str(tmp_path / "incident.finwait")
    made = finwait("record", file, *scene, "--redact", "--interval", "50ms", "--note", "slow proxy")
    seen(made)
    assert made.stdout == b""
    assert b"recorded " in made.stderr
    for args in ((), ("list",), ("netns",), ("explain", "state", "fin-wait-2")):
        ran = finwait(*args, "--from", file)
        seen(ran)
        assert ran.stdout
    rows = json.loads(finwait("list", "--from", file, "state", "fin-wait-2", "-o", "json").stdout)["items"]
    assert len(rows) == 3
    assert not any("poller" in json.dumps(row) for row in rows)


@pytest.mark.kernel
def test_a_recording_goes_to_standard_output_as_to_a_file(scene: list[str], tmp_path: pathlib.Path) -> None:
    made = finwait("record", "-", *scene, "--looks", "1")
    seen(made)
    assert b"recorded " in made.stderr
    file = tmp_path / "piped.finwait"
    file.write_bytes(made.stdout)
    rows = json.loads(finwait("list", "--from", str(file), "state", "fin-wait-2", "-o", "json").stdout)[
        "items"
    ]
    assert len(rows) == 3
    file.write_bytes(made.stdout[:-60])
    cut = finwait("--from", str(file))
    assert (cut.returncode, cut.stdout) == (1, b"")
    assert b"cut off" in cut.stderr


@pytest.mark.parametrize("args", [("-o", "json"), ("--looks", "0")])
def test_a_recording_on_standard_output_leaves_no_room_for_a_report(args: tuple[str, ...]) -> None:
    refused = finwait("record", "-", *args)
    assert (refused.returncode, refused.stdout) == (2, b"")


def test_a_terminal_gets_no_recording() -> None:
    above, below = os.openpty()
    with open(below, "wb") as terminal:
        ran = subprocess.run(
            [sys.executable, "-m", "finwait", "record", "--looks", "1", "-"],
            stdout=terminal, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    os.close(above)
    assert ran.returncode == 1
    assert b"a terminal cannot show it" in ran.stderr


# ── as somebody who may not look everywhere ──────────────────────────────────────────────────────────────


AFTER_WARMING_UP = """
import ctypes, os, sys
from finwait.cli import main
args = sys.argv[1:]
out, err = os.dup(1), os.dup(2)
for fd in (1, 2):
    os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
main(args)  # imports all that is imported late
sys.stdout.flush()
os.dup2(out, 1), os.dup2(err, 2)
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0  # PR_SET_DUMPABLE: /proc/self is ours again
os.chdir("/")
sys.exit(main(args))
"""


def as_nobody(*args: str) -> Process:
    """Run as a user without any capability.

    Where that user may not read the interpreter (a venv over one in /root), a process that has imported
    everything becomes that user.
    """
    if os.geteuid() != 0:
        missing("needs root to become another user")
    other: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/"}
    try:
        readable = subprocess.run(
            [sys.executable, "-c", "import finwait.session"], capture_output=True, **other
        )
    except PermissionError:
        readable = None
    if readable is not None and readable.returncode == 0:
        return finwait(*args, **other)
    return subprocess.run(
        [sys.executable, "-c", AFTER_WARMING_UP, *args],
        capture_output=True,
        env={**CLEAN, "OPENBLAS_NUM_THREADS": "1"},
    )


@pytest.mark.kernel
def test_a_plain_user_is_told_what_could_not_be_seen_and_nothing_is_concluded_from_it() -> None:
    ran = as_nobody()
    assert ran.returncode == 3, ran.stderr.decode()
    text = ran.stdout.decode()
    assert "Not seen:" in text
    assert "CAP_SYS_PTRACE" in text
    assert "no process (all were inspected)" not in text
    assert "holder-not-found" not in text
    assert "nothing is wrong" not in text


@pytest.mark.kernel
def test_a_plain_users_list_names_unknown_owners_as_unknown() -> None:
    ran = as_nobody("list", "-o", "json")
    assert ran.returncode == 3
    assert b"finwait: not seen: " in ran.stderr
    rows = json.loads(ran.stdout)["items"]
    assert [row for row in rows if row["inode"] and row["owners"] == []] == []


@pytest.mark.kernel
def test_a_plain_user_gets_no_good_answer_from_check() -> None:
    ran = as_nobody("check", "-w", "100000000", "-c", "100000001")
    assert ran.returncode == 3
    assert ran.stdout.startswith(b"FINWAIT UNKNOWN - ")
    assert b"not seen: " in ran.stdout

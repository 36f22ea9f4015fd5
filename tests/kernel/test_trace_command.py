"""`finwait trace` as a process: what it prints, how it ends, what it leaves."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kernel.test_trace import Traffic, instances, own_address, tracing_is_possible, traffic  # noqa: F401

pytestmark = pytest.mark.kernel


@contextmanager
def trace(*options: str, stdout: int = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
    """The command, from the moment on when it is tracing."""
    process = subprocess.Popen(
        [sys.executable, "-m", "finwait", "trace", *options], stdout=stdout, stderr=subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith(b"tracing"), line
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


def finish(script: Traffic, process: subprocess.Popen[bytes]) -> bytes:
    """Let the script make its connections, end the trace when all of it has happened, and return what it said.

    How long that takes is the machine's affair.
    """
    script.go()
    script.wait()
    lasting = {"0A", "05", "06", "08"}  # LISTEN, FIN_WAIT2, TIME_WAIT, CLOSE_WAIT
    deadline = time.monotonic() + 60
    while {row.split()[3] for row in script.rows()} - lasting:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode in (0, 130), err
    return out


def of(process: subprocess.Popen[bytes]) -> list[str]:
    return [name for name in instances() if name.startswith(f"finwait-{process.pid}-")]


def test_jsonl_is_one_object_a_line_and_count_is_exact():
    host = own_address()
    with traffic(20) as script, trace("-o", "jsonl", "--count", "30", "src", host) as process:
        script.go()
        out, _ = process.communicate(timeout=60)
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 30
    assert {row["src"] for row in rows} == {host}
    assert process.returncode in (0, 3)


def test_parquet_holds_what_was_seen():
    arro3 = pytest.importorskip("arro3.io")
    host = own_address()
    with traffic(10) as script, trace("-o", "parquet", "--count", "100", "src", host) as process:
        script.go()
        out, _ = process.communicate(timeout=60)
    table = arro3.read_parquet(io.BytesIO(out)).read_all()
    assert table.num_rows == 100
    assert set(table.column("src").to_pylist()) == {host}
    assert set(table.column("new").to_pylist()) >= {"FIN_WAIT2", "CLOSE_WAIT"}


def test_a_summary_counts_every_state():
    host = own_address()
    with traffic(25) as script, trace("--summary", "src", host) as process:
        out = finish(script, process)
    assert b"LAST_ACK: 25 times" in out
    assert b"ESTABLISHED: 50 times" in out


def test_both_ends_are_told_as_one_story():
    host = own_address()
    with (
        traffic(1, "orphan") as script,
        trace("--follow-connection", f"sport = :{script.port} or dport = :{script.port}") as process,
    ):
        out = finish(script, process)
    stories = [s for s in out.decode().split("connection ") if host in s]
    assert len(stories) == 1, out
    assert "client FIN_WAIT1→FIN_WAIT2" in stories[0]
    assert "server ESTABLISHED→CLOSE_WAIT" in stories[0]
    assert "became a minisocket" in stories[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_leaves_nothing(number):
    with trace() as process:
        assert len(of(process)) == 1
        process.send_signal(number)
        process.communicate(timeout=30)
    assert of(process) == []
    assert process.returncode == 130


def test_a_reader_that_has_seen_enough_ends_it_quietly():
    read, write = os.pipe()
    with trace("src", own_address(), stdout=write) as process, traffic(5) as script:
        os.close(write)
        os.close(read)
        script.go()
        deadline = time.monotonic() + 30
        while process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        _, err = process.communicate()
    assert b"Traceback" not in err
    assert of(process) == []


def test_a_wrong_filter_is_an_error_before_anything_is_traced():
    done = subprocess.run(
        [sys.executable, "-m", "finwait", "trace", "state", "fin-wait-9"], capture_output=True
    )
    assert done.returncode == 2
    assert b"fin-wait-9" in done.stderr


def test_polling_says_so():
    done = subprocess.run(
        [sys.executable, "-m", "finwait", "trace", "--poll", "--for", "1s", "sport", "=", ":1"],
        capture_output=True,
    )
    assert done.stderr.startswith(b"polling, not tracing")
    assert b"not seen this way" in done.stderr


EVIL = """
import ctypes, socket, sys
ctypes.CDLL(None).prctl(15, b"\\x1b[2J\\x07[b]x", 0, 0, 0)
listener = socket.create_server((sys.argv[1], 0))
print(listener.getsockname()[1], flush=True)
for line in sys.stdin:
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    client.close()
    server.close()
    print("did", flush=True)
"""


@pytest.mark.parametrize("form", ["text", "wide", "csv", "jsonl"])
def test_a_program_of_a_hostile_name_says_nothing_to_the_terminal(form):
    with subprocess.Popen(
        [sys.executable, "-c", EVIL, own_address()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as evil:
        assert evil.stdin
        assert evil.stdout
        port = evil.stdout.readline().strip()
        command = [sys.executable, "-m", "finwait", "trace", "-o", form, "--for", "60s", "--count", "4"]
        with subprocess.Popen(
            [*command, "dst", f"{own_address()}:{port}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as trace:
            assert trace.stderr
            assert trace.stdout
            trace.stderr.readline()  # it traces
            evil.stdin.write("go\n")
            evil.stdin.flush()
            said = trace.stdout.read()
            trace.stderr.read()
        evil.stdin.close()
    assert "\\x1b[2J\\x07[b]x" in said.replace("\\\\", "\\")
    assert not {"\x1b", "\x07"} & set(said)


# ── how it ends ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_right_behind_the_last_connection_costs_no_row(number):
    """What was traced and waits for its look is looked up and printed before it ends."""
    with traffic(300) as script, trace(
        "-o", "jsonl", f"sport = :{script.port} or dport = :{script.port}"
    ) as process:  # fmt: skip
        script.go()
        script.wait()
        process.send_signal(number)
        out, err = process.communicate(timeout=100)
    rows = [json.loads(line) for line in out.splitlines()]
    assert len([row for row in rows if row["old"] != "LISTEN" or row["new"] != "CLOSE"]) == 3000, err
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_a_second_signal_ends_it_at_once_and_says_what_is_missing():
    """Somebody who reads nothing: the first signal cannot print what there is."""
    read, write = os.pipe()
    with (
        traffic(2000) as script,
        trace("-o", "jsonl", f"sport = :{script.port} or dport = :{script.port}", stdout=write) as process,
    ):
        os.close(write)
        script.go()
        script.wait()
        deadline = time.monotonic() + 60
        while not is_full(read):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)  # so that it is two; nothing is asserted on the time
        _, err = process.communicate(timeout=60)
        os.close(read)
    assert process.returncode == 130
    assert b"traced rows were not printed" in err
    assert b"Traceback" not in err
    assert of(process) == []


def is_full(pipe: int) -> bool:
    """Whether a pipe of the usual 64 KiB takes no further page."""
    unread = fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4)
    return int.from_bytes(unread, sys.byteorder) > 60_000


def test_a_port_filter_beside_other_traffic_ends_as_it_should():
    """Sockets of all other traffic are destroyed meanwhile; nothing of them is remembered, and nothing breaks."""
    from finwait.follow import Following
    from finwait.table.filter import parse
    from finwait.table.lives import Follower
    from tests.kernel.test_trace import gather, pairs

    with traffic(20) as mine, traffic(1500) as other:
        wanted = parse(f"( sport = :{mine.port} or dport = :{mine.port} ) and src {mine.host}")
        with Following(wanted) as following:
            following.follower = Follower(spare=64)  # as if it had run for days
            other.go()
            mine.go()
            rows = gather(following, lambda t: pairs(t)[9, 7] >= 20, mine.host, seconds=90)
            other.wait()
            deadline = time.monotonic() + 90
            following.step(0.1)
            while following.waiting:  # on a busy machine looks are far apart
                following.step(0.1)
                assert time.monotonic() < deadline
            follower = following.follower
            assert len(follower._lives) < 1500
            assert len(follower._lives.addresses) <= len(follower._lives)
            assert follower.forgotten == 0
    assert sum(pairs(rows).values()) == 200


def test_what_could_not_be_judged_is_said_and_is_no_clean_end():
    with traffic(50) as script, trace(
        "--for", "4s", "-o", "jsonl", f"user = nobody and dport = :{script.port}"
    ) as process:  # fmt: skip
        script.go()
        out, err = process.communicate(timeout=60)
    assert out == b""
    assert b"that the FILTER could not judge" in err
    assert process.returncode == 3


def test_a_filter_that_everything_could_be_judged_by_ends_clean():
    with traffic(5, "half") as script, trace(
        "--for", "3s", "-o", "jsonl", f"sport = :{script.port} and state close-wait"
    ) as process:  # fmt: skip
        script.go()
        out, err = process.communicate(timeout=60)
    assert len(out.splitlines()) == 5, err
    assert process.returncode == 0, err


def test_what_is_stuck_is_told_as_json_with_every_holder():
    with traffic(3, "half") as script, trace(
        "--stuck", "1s", "--for", "20s", "--count", "3", "-o", "jsonl", "state", "close-wait", f"sport = :{script.port}"
    ) as process:  # fmt: skip
        script.go()
        out, err = process.communicate(timeout=90)
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 3, err
    for row in rows:
        assert row["state"] == "CLOSE_WAIT"
        assert row["netns"] == script.netns
        assert row["for_ms"] >= 1000
        assert [holder["pid"] for holder in row["owners"]] == [script.process.pid]
        assert not row["orphan"]
        assert not row["not_accepted"]


def test_a_summary_with_a_filter_by_state_counts_time_in_that_state_alone():
    host = own_address()
    with traffic(25) as script, trace("--summary", "--for", "4s", f"src {host} state last-ack") as process:
        script.go()
        out, _ = process.communicate(timeout=60)
    assert out.startswith(b"LAST_ACK: 25 times")
    assert b"CLOSE_WAIT" not in out


def test_what_came_too_fast_and_what_waits_too_long_is_bounded_and_said(monkeypatch):
    from finwait.follow import following as rounds
    from finwait.table.filter import parse

    monkeypatch.setattr(rounds, "_MOST_WAITING", 50)
    with (
        traffic(200) as script,
        rounds.Following(parse(f"sport = :{script.port}"), interval=5.0) as following,
    ):
        script.go()
        script.wait()
        deadline = time.monotonic() + 60
        rows = 0
        while rows < 1000:
            rows += len(following.step(0.1).rows)
            assert time.monotonic() < deadline, rows
        assert following.follower.waiting <= 5000
        assert any("came too fast" in sentence for sentence in following.bounded)

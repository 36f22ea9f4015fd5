"""The flight recorder with real sockets: a leak that nobody watched is explained, resets are told, storms end it."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from finwait.agent import tracing as tracing_module
from finwait.agent.recorder import Governor, StoryQuery, verdict
from finwait.agent.tracing import TraceRecorder
from finwait.errors import FinwaitError, KernelError
from finwait.kernel import tracefs
from finwait.table.sockets import pack_address
from finwait.uapi import tcp
from tests.kernel import needs
from tests.kernel.test_agent import Scene, scene, until  # noqa: F401 - a fixture
from tests.output import mistakes

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

PROGRAM = """
import socket, struct, sys
server = socket.create_server(("127.0.0.1", 0), backlog=512)
clients, accepted = [], []
print(server.getsockname()[1], flush=True)
for line in sys.stdin:
    word, _, number = line.strip().partition(" ")
    if word == "leak":
        for _ in range(int(number)):
            clients.append(socket.create_connection(server.getsockname()))
            accepted.append(server.accept()[0])
            clients[-1].shutdown(socket.SHUT_WR)
    elif word == "abort":  # our end is reset, the other end receives it
        accepted[int(number)].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted[int(number)].close()
    elif word == "close":
        accepted[int(number)].close()
    elif word == "storm":
        for _ in range(int(number)):
            one = socket.create_connection(server.getsockname())
            other = server.accept()[0]
            one.close()
            other.recv(1)
            other.close()
    print("done", flush=True)
"""


def test_every_storm_is_alone() -> None:
    here = ast.parse(Path(__file__).read_text())
    for made in [node for node in here.body if isinstance(node, ast.FunctionDef)]:
        tells = re.findall(r"tell\(['\"]storm (\d+)", ast.unparse(made))
        alone = any("storm" in ast.unparse(decorator) for decorator in made.decorator_list)
        assert alone or not [n for n in tells if int(n) > 1000]


def needs_tracefs() -> None:
    needs.root_and("unshare", "nsenter", "ip")
    try:
        with tracefs.Root() as root:
            root.read("events/sock/inet_sock_set_state/format")
    except FinwaitError as error:
        needs.missing(f"no tracefs: {error}")


class Leaking:
    """The program above, in a network namespace."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.port = int(process.stdout.readline())

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


def leaking(made: Scene) -> Leaking:
    return Leaking(made.start(sys.executable, "-c", PROGRAM))


def explained(made: Scene, *words: str) -> list[dict[str, Any]]:
    """The stories that `finwait explain` tells."""
    command = made.finwait("explain", *words, "--agent-socket", made.socket, "-o", "json")
    done = made.do(*command, check=False)
    document = json.loads(done.stdout)
    assert mistakes(document, "ConnectionList") == []
    stories: list[dict[str, Any]] = document["stories"]
    return stories


def recording(made: Scene) -> dict[str, Any]:
    status = made.status()
    found: dict[str, Any] = status["recorder"] if status else {}
    return found


def moves(story: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(step["old"], step["new"]) for step in story if step["packet"] is None]


@pytest.mark.usefixtures("scene")
def test_a_leak_that_nobody_watched_is_explained_and_its_end_is_told(scene: Scene) -> None:  # noqa: F811
    needs_tracefs()
    agent = scene.agent("--packets", "self")
    until(
        "it records",
        lambda: recording(scene).get("state") == "on" and recording(scene)["packets"] == ["self"],
    )
    program = leaking(scene)
    program.tell("leak 4")
    until("every end is an episode", lambda: len(scene.history("--open")) == 8)
    until("stories are kept", lambda: all(item["story"] for item in scene.history("--open")))

    stories = {
        story["state"]: story
        for story in explained(scene, f"sport = :{program.port} or dport = :{program.port}")
    }
    assert moves(stories["FIN_WAIT2"]["steps"]) == [("ESTABLISHED", "FIN_WAIT1"), ("FIN_WAIT1", "FIN_WAIT2")]
    assert moves(stories["CLOSE_WAIT"]["steps"]) == [("ESTABLISHED", "CLOSE_WAIT")]
    closing = stories["FIN_WAIT2"]["steps"]
    by = [step["pid"] for step in closing if step["new"] == "FIN_WAIT1"]
    assert by[0], "shutdown() is a task's"
    assert [step["pid"] for step in closing if step["new"] == "FIN_WAIT2"] == [None], (
        "an ACK is nobody's here"
    )
    assert {"SYN", "FIN ACK"} <= {step["packet"] for step in closing if step["outgoing"]}
    text = scene.do(
        *scene.finwait("explain", f"dport = :{program.port}", "--agent-socket", scene.socket), check=False
    )
    assert "How it got there (recorded by the agent)" in text.stdout
    assert "sock:inet_sock_set_state" in text.stdout

    program.tell("abort 0")  # the client's end receives the reset
    program.tell("close 1")  # the client's end receives the FIN
    until("four ends are told", lambda: sum(item["how"] is not None for item in scene.history()) == 4)
    hows = sorted((item["state"], item["how"]) for item in scene.history() if item["how"])
    assert hows == [
        ("CLOSE_WAIT", "closed"),
        ("CLOSE_WAIT", "reset"),
        ("FIN_WAIT2", "closed"),
        ("FIN_WAIT2", "reset"),
    ]
    reset = next(e for e in scene.history() if (e["state"], e["how"]) == ("FIN_WAIT2", "reset"))
    assert moves(reset["story"])[-1] == ("FIN_WAIT2", "CLOSE")
    assert reset["story"][-1]["reset"] == "received" or "RST" in reset["story"][-1]["packet"]

    # Killed: what led there stays, and what it left in tracefs goes.
    os.kill(scene.inner(agent), signal.SIGKILL)
    agent.wait(60)
    again = scene.agent()
    until("it records again", lambda: recording(scene).get("state") == "on")
    kept = [item for item in scene.history("--open") if item["story"]]
    assert len(kept) == 4
    assert moves(explained(scene, f"dport = :{program.port}")[0]["steps"])[0] == ("ESTABLISHED", "FIN_WAIT1")
    program.tell("abort 2")
    until("two more ends are told", lambda: sum(item["how"] is not None for item in scene.history()) == 6)
    merged = [e for e in scene.history() if e["how"] == "reset" and e["state"] == "FIN_WAIT2"]
    assert len(merged) == 2
    for item in merged:
        assert moves(item["story"])[0] == ("ESTABLISHED", "FIN_WAIT1"), (
            "the beginning is from before the restart"
        )
        assert moves(item["story"])[-1] == ("FIN_WAIT2", "CLOSE")
    os.kill(scene.inner(again), signal.SIGTERM)
    _, said = again.communicate(timeout=60)
    assert again.returncode == 0, said
    with tracefs.Root() as root:
        left = [n for n in os.listdir(f"{root.path}/instances") if re.match(rf"finwait-{again.pid}-", n)]
    assert not left


@pytest.mark.usefixtures("scene")
def test_without_the_right_to_trace_the_rest_goes_on(scene: Scene) -> None:  # noqa: F811
    needs.root_and("setpriv")
    words = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    state = ("--share", "50%", "--interval", "2s", "--state-dir", str(scene.folder / "state"))
    scene.start(*words, *scene.finwait("agent", *state, "--socket", scene.socket))
    until("it says so", lambda: recording(scene).get("state") == "failed")
    status = scene.status()
    assert status
    assert any("record how connections get into closing states" in gap for gap in status["unseen"])
    assert status["rounds"] >= 1
    program = leaking(scene)
    program.tell("leak 1")
    until("it looks", lambda: len(scene.history("--open")) == 2)
    assert all(item["story"] is None for item in scene.history())


@pytest.mark.usefixtures("scene")
def test_whoever_does_not_want_it_gets_none(scene: Scene) -> None:  # noqa: F811
    scene.agent("--no-record-states")
    until("it looks", lambda: scene.status() is not None)
    status = scene.status()
    assert status
    assert status["recorder"] is None


@pytest.mark.usefixtures("scene")
@pytest.mark.storm
def test_a_storm_switches_it_off_and_it_comes_back(scene: Scene) -> None:  # noqa: F811
    needs_tracefs()
    scene.agent("--record-rate", "3000")
    until("it records", lambda: recording(scene).get("state") == "on")
    program = leaking(scene)

    def storming() -> bool:
        program.tell("storm 3000")
        return bool(recording(scene)["state"] == "rate")

    until("it is off by itself", storming)
    status = scene.status()
    assert status
    assert any("too many at once" in gap for gap in status["unseen"])
    rounds = status["rounds"]
    until("looking goes on", lambda: (scene.status() or {}).get("rounds", 0) > rounds)
    assert recording(scene)["kept_bytes"] <= 7 << 20
    until("it records again", lambda: recording(scene)["state"] == "on", 180)
    assert recording(scene)["offs"] >= 1


# ── the recorder itself, in this process ─────────────────────────────────────────────────────────────────


@pytest.fixture
def program() -> Iterator[Leaking]:
    needs_tracefs()
    inside = ["sh", "-c", f'ip link set lo up && exec "{sys.executable}" -c "$0"', PROGRAM]
    process = subprocess.Popen(
        ["unshare", "--net", *inside], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Leaking(process)
    finally:
        process.kill()
        process.communicate()


def rows_to(source: TraceRecorder, port: int, state: int) -> list[np.ndarray[Any, Any]]:
    """What is kept of the ends whose peer has a port: of each, its rows."""
    source.catch_up()
    ring = source._ring
    rows = ring._rows[: len(ring)]
    locals_ = sorted({int(p) for p in rows["sport"][rows["dport"] == port]})
    words = (*pack_address("127.0.0.1"), *pack_address("127.0.0.1"))
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    queries = [StoryQuery((*words, p, port), 0, state, -1, now, 0) for p in locals_]
    return [found.rows for found in source.find(queries) if len(found.rows)]


def test_who_shut_a_connection_down_has_a_name(program: Leaking) -> None:
    with TraceRecorder(rate=1e6, share=1.0) as source:
        comm = Path(f"/proc/{program.process.pid}/comm").read_text().strip()
        named: list[Any] = []

        def one_has_a_name() -> (
            bool
        ):  # of each batch only some tasks are asked: others on the machine may come first
            program.tell("leak 1")
            lives = rows_to(source, program.port, tcp.FIN_WAIT2)
            assert {int(rows["pid"][0]) for rows in lives} <= {program.process.pid}
            assert not any(rows["who"][1:].any() for rows in lives), "an ACK is nobody's"
            named[:] = [rows for rows in lives if rows["who"][0]]
            return bool(named)

        until("it has a name", one_has_a_name)
        assert source._names.told[int(named[0]["who"][0])] == (program.process.pid, comm)


def test_the_instance_goes_with_it_and_one_that_was_left_is_removed() -> None:
    needs_tracefs()
    with tracefs.Root() as root:
        stale = f"{tracefs.PREFIX}{2**22 - 1}-1-p{os.stat('/proc/self/ns/pid').st_ino}"
        os.mkdir(f"{root.path}/instances/{stale}")
        with TraceRecorder(share=1.0):
            assert stale not in os.listdir(f"{root.path}/instances"), (
                "removed by it, or by another that began just now"
            )
            own = [n for n in os.listdir(f"{root.path}/instances") if n.startswith(f"finwait-{os.getpid()}-")]
            assert len(own) == 1
        assert not set(own) & set(os.listdir(f"{root.path}/instances"))


def test_a_trace_that_is_taken_away_is_a_gap_and_comes_back(
    program: Leaking, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TraceRecorder(rate=1e6, share=1.0) as source:
        tracing = source._tracing
        assert tracing is not None

        def taken_away() -> NoReturn:  # as where somebody unmounts tracefs by force
            raise KernelError(errno.ENODEV, "read the ring buffer")

        monkeypatch.setattr(tracing, "drain", taken_away)
        source.catch_up()
        assert source.status(0, 0).state == "failed"
        assert any("record how" in gap.doing for gap in source.gaps)
        with source._lock:
            source._retry_at = 0.0
            source._open()
        assert source.status(0, 0).state == "on"
        program.tell("leak 1")
        assert len(rows_to(source, program.port, tcp.FIN_WAIT2)) == 1


def test_what_another_thread_finds_broken_is_tried_again_in_time(
    program: Leaking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing_module, "_RETRY_S", 0.2)
    with TraceRecorder(rate=1e6, share=1.0) as source:
        broken = source._tracing
        assert broken is not None

        def taken_away() -> NoReturn:
            raise KernelError(errno.ENODEV, "read the ring buffer")

        monkeypatch.setattr(broken, "drain", taken_away)
        source.catch_up()  # the recorder's own thread waits for a trace that is not there any more
        until("it records again", lambda: source.status(0, 0).state == "on")
        program.tell("leak 1")
        assert len(rows_to(source, program.port, tcp.FIN_WAIT2)) == 1


def test_what_another_thread_switches_off_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_tracefs()
    monkeypatch.setattr(Governor, "PAUSE_S", 0.3)
    with TraceRecorder(rate=1e6, share=1.0) as source:
        time.sleep(1.5 * tracing_module._GATHER_S)  # its own thread waits for records
        with monkeypatch.context() as patch:
            patch.setattr(Governor, "drained", off_at_once)
            source.catch_up()
        assert source.status(0, 0).state == "rate"
        until("it records again", lambda: source.status(0, 0).state == "on")


def off_at_once(governor: Governor, now_s: float, events: int, cpu_s: float) -> bool:
    del events, cpu_s
    governor.off, governor._probe_at = "rate", now_s + governor.PAUSE_S
    return False


@pytest.mark.storm
def test_a_storm_takes_no_memory_and_lost_records_are_counted(program: Leaking) -> None:
    with TraceRecorder(rate=50, share=1.0) as source:
        program.tell("storm 3000")
        source.catch_up()
        assert source.status(0, 0).state == "rate"
        assert any("too many at once" in gap.doing for gap in source.gaps)
        assert source.status(0, 0).kept_bytes <= 7 << 20
        events = source.status(0, 0).events
        program.tell("storm 200")
        source.catch_up()
        assert source.status(0, 0).events == events, "nothing is read while it is off"


@pytest.mark.storm
def test_records_that_the_kernel_overwrote_are_a_gap(program: Leaking) -> None:
    with TraceRecorder(rate=1e6, share=1.0) as source:
        with source._lock:  # nobody reads meanwhile
            program.tell("storm 9000")
        source.catch_up()
        assert source.status(0, 0).lost > 0
        assert any("records were lost" in gap.doing for gap in source.gaps)
        assert not source.resets, "that no reset was seen proves nothing now"


def test_a_reset_ends_what_it_ends(program: Leaking) -> None:
    with TraceRecorder(share=1.0) as source:
        program.tell("leak 2")
        source.catch_up()  # what begins and ends at once is not kept
        program.tell("abort 0")
        program.tell("close 1")
        lives = rows_to(source, program.port, tcp.FIN_WAIT2)
        hows = [verdict(rows, tcp.FIN_WAIT2, held=True, seen_ns=0, resets=source.resets) for rows in lives]
        assert sorted(map(str, hows)) == ["closed", "reset"]
        (ended,) = [rows[-1] for rows, how in zip(lives, hows, strict=True) if how == "reset"]
        assert ended["reset"] == 2
        assert ended["cookie"] != 0, "tcp_receive_reset names the socket"


def test_an_idle_recorder_reads_nothing() -> None:
    needs_tracefs()
    with TraceRecorder(states=False) as source:
        assert source.status(0, 0).state == "off"
        assert source.gaps == ()


def test_a_namespace_of_packets_that_is_not_there_is_a_gap() -> None:
    needs_tracefs()
    with TraceRecorder(states=False, packets=("no-such-namespace",)) as source:
        (gap,) = source.gaps
        assert gap.where == "`--packets no-such-namespace`"

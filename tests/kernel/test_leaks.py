"""``finwait trace --leaks``: of real programs that forget connections, the function that opened them is marked."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from finwait.kernel import user_symbols
from finwait.kernel.perf_events import Sampling
from finwait.lab.topology import Lab, Netns, unmet
from tests.kernel.needs import missing
from tests.output import mistakes

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
_ATTEMPTS = 5
"""The whole machine is sampled: what others do there may disturb a trace."""

C = """
#include <arpa/inet.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
#include <sys/socket.h>
static struct sockaddr_in a = {.sin_family = AF_INET};
__attribute__((noinline)) int open_and_forget(void) {
    int s = socket(AF_INET, SOCK_STREAM, 0);
    volatile int r = connect(s, (void *)&a, sizeof a);
    return s + r;
}
__attribute__((noinline)) int take_and_forget(int door) { volatile int s = accept(door, 0, 0); return s; }
__attribute__((noinline)) int half_close(int s) { volatile int r = shutdown(s, SHUT_WR); return r; }
__attribute__((noinline)) int serve(int door) {
    volatile int near = open_and_forget(), far = take_and_forget(door);
    half_close(near);
    return far;
}
void *work(void *door) {
    for (int k = 0; k < 3; k++) serve(*(int *)door);
    return 0;
}
int main(int count, char **words) {
    int door = socket(AF_INET, SOCK_STREAM, 0);
    socklen_t size = sizeof a;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    bind(door, (void *)&a, size); listen(door, 64); getsockname(door, (void *)&a, &size);
    puts("ready"); fflush(stdout); getchar();
    pthread_t thread;
    if (count > 1) { pthread_create(&thread, 0, work, &door); pthread_join(thread, 0); } else work(&door);
    puts("done"); fflush(stdout); getchar();
    return 0;
}
"""
PATHS = """
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <sys/socket.h>
#define PATH __attribute__((noinline))
#define KEEP __asm__ volatile("" ::: "memory")
static struct sockaddr_in a = {.sin_family = AF_INET}, closed = {.sin_family = AF_INET};
static socklen_t size = sizeof a;
static int door;
PATH int begin_it(void) {
    int s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    connect(s, (void *)&a, size); KEEP; return s;
}
PATH void ask_how_it_went(int s) {
    struct pollfd p = {s, POLLOUT, 0}; poll(&p, 1, -1); connect(s, (void *)&a, size); KEEP;
}
PATH int fail(void) {
    int s = socket(AF_INET, SOCK_STREAM, 0);
    connect(s, (void *)&closed, size); KEEP; return s;
}
PATH void fall_back(int s) { connect(s, (void *)&a, size); KEEP; }
PATH void by_fast_open(void) {
    int s = socket(AF_INET, SOCK_STREAM, 0); sendto(s, "x", 1, MSG_FASTOPEN, (void *)&a, size); KEEP;
}
PATH void deep(void) {
    char large[9000]; memset(large, 1, sizeof large); __asm__ volatile("" :: "r"(large) : "memory");
    int s = socket(AF_INET, SOCK_STREAM, 0);
    connect(s, (void *)&a, size); __asm__ volatile("" :: "r"(large) : "memory");
}
PATH void by_plugin(const char *first, const char *second) {
    void *handle = dlopen(first, RTLD_NOW);
    ((void (*)(void *))dlsym(handle, "run"))(&a);
    dlclose(handle);
    if (!dlopen(second, RTLD_NOW)) puts("no plugin");
}
PATH void take_and_close(void) { int s = accept(door, 0, 0); shutdown(s, SHUT_WR); close(s); KEEP; }
PATH void take_and_keep(void) { accept(door, 0, 0); KEEP; }
void *work(void *words) {
    char **word = words;
    puts("ready"); fflush(stdout); getchar();
    ask_how_it_went(begin_it()); take_and_keep();
    fall_back(fail()); take_and_keep();
    by_fast_open(); take_and_keep();
    deep(); take_and_keep();
    by_plugin(word[1], word[2]); take_and_keep();
    for (int k = 0; k < 300; k++) {
        int s = socket(AF_INET, SOCK_STREAM, 0);
        connect(s, (void *)&a, size);
        if (k % 10) { take_and_close(); close(s); } else take_and_keep();
    }
    puts("done"); fflush(stdout); getchar();
    return 0;
}
int main(int count, char **words) {
    pthread_t thread;
    a.sin_addr.s_addr = closed.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    closed.sin_port = htons(1);
    door = socket(AF_INET, SOCK_STREAM, 0);
    bind(door, (void *)&a, size); listen(door, 64); getsockname(door, (void *)&a, &size);
    pthread_create(&thread, 0, work, words);
    pthread_exit(0);
}
"""
PLUGIN = """
#include <sys/socket.h>
__attribute__((noinline)) void NAME(void *a) {
    int s = socket(AF_INET, SOCK_STREAM, 0);
    connect(s, a, 16); __asm__ volatile("" ::: "memory");
}
void run(void *a) { NAME(a); __asm__ volatile("" ::: "memory"); }
"""
GO = """
package main
import ("bufio"; "fmt"; "net"; "os")
var kept []net.Conn
//go:noinline
func openAndForget(where string) { c, _ := net.Dial("tcp", where); kept = append(kept, c) }
//go:noinline
func takeAndForget(door net.Listener) { c, _ := door.Accept(); kept = append(kept, c) }
func main() {
    door, _ := net.Listen("tcp", "127.0.0.1:0")
    in := bufio.NewReader(os.Stdin)
    fmt.Println("ready"); in.ReadString('\\n')
    for k := 0; k < 3; k++ { openAndForget(door.Addr().String()); takeAndForget(door) }
    fmt.Println("done"); in.ReadString('\\n')
    fmt.Println(len(kept))
}
"""
PYTHON = """
import os, socket, sys
kept = []
door = socket.create_server(("127.0.0.1", 0))
def say(word):
    print(word, flush=True)
    sys.stdin.readline()
def open_and_forget():
    kept.append(socket.create_connection(door.getsockname()))
def take_and_forget():
    kept.append(door.accept()[0])
"""
FORGETS = """
say("ready")
for _ in range(3):
    open_and_forget()
    take_and_forget()
say("done")
"""


@pytest.fixture
def netns() -> Iterator[Netns]:
    if lacking := unmet(("netns",)):
        missing("; ".join(lacking))
    with Lab() as lab:
        yield lab.netns("program")


@contextmanager
def program(netns: Netns, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A program in the namespace that says `ready`, and `done` when it may be looked at."""
    inside = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{netns.fd}"]
    with subprocess.Popen(
        [*inside, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().strip() == "ready"
            yield process
        finally:
            process.kill()
            Path(f"/tmp/perf-{process.pid}.map").unlink(missing_ok=True)  # `-X perf` leaves it behind


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline().strip() == "done"


@contextmanager
def tracing(netns: Netns, *words: str, output: str = "json") -> Iterator[subprocess.Popen[str]]:
    """finwait, when it samples."""
    command = [
        sys.executable,
        "-m",
        "finwait",
        "trace",
        "--leaks",
        "-o",
        output,
        *words,
        f"netns = {netns.inode}",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        try:
            assert process.stderr is not None
            lines = [process.stderr.readline() for _ in range(4)]
            assert lines[0].startswith("sampling "), lines
            assert "perf-PID.map" in "".join(lines)
            yield process
        finally:
            process.kill()


def ended(finwait: subprocess.Popen[str]) -> tuple[str, str]:
    """End the trace as Ctrl-C does; return what was printed."""
    finwait.send_signal(signal.SIGINT)
    out, err = finwait.communicate(timeout=300)
    assert finwait.returncode == 130, err
    return out, err


def disturbed(doings: Iterable[str]) -> bool:
    """Whether others made so many calls on this machine meanwhile that some of ours may be missing."""
    return any("in a second" in doing or "ring buffer" in doing for doing in doings)


def leaks_of(netns: Netns, *command: str) -> dict[str, Any]:
    for _ in range(_ATTEMPTS):
        with program(netns, *command) as process, tracing(netns) as finwait:
            go_on(process)
            document: dict[str, Any] = json.loads(ended(finwait)[0])
        if not disturbed(gap["doing"] for gap in document["gaps"]):
            break
    assert document["kind"] == "Leaks"
    assert mistakes(document) == []
    return document


def marked(stack: dict[str, Any]) -> str:
    """The function that matters, as the report marks it."""
    assert stack["matters"] is not None, stack
    function: str = stack["frames"][stack["matters"]]["function"]
    return function


def by_call(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    assert len(document["groups"]) == 2, json.dumps(document)
    return {group["call"]: group for group in document["groups"]}


@pytest.mark.parametrize("frames", ["-fno-omit-frame-pointer", "-fomit-frame-pointer"])
@pytest.mark.parametrize("threads", [(), ("threads",)], ids=["one thread", "another thread"])
def test_in_c_the_function_that_opened_and_the_one_that_half_closed_are_marked(
    netns: Netns, frames: str, threads: tuple[str, ...], tmp_path: Path
) -> None:
    if not shutil.which("gcc"):
        missing("gcc is not installed")
    (tmp_path / "forgets.c").write_text(textwrap.dedent(C))
    built = str(tmp_path / "forgets")
    subprocess.run(["gcc", "-O1", frames, "-pthread", "-o", built, f"{built}.c"], check=True)
    document = leaks_of(netns, built, *threads)
    groups = by_call(document)
    assert {name: group["count"] for name, group in groups.items()} == {"accept": 3, "connect": 3}
    assert marked(groups["connect"]["opened"]) == "open_and_forget"
    assert marked(groups["accept"]["opened"]) == "take_and_forget"
    assert [frame["function"] for frame in groups["accept"]["opened"]["frames"]][2:4] == ["serve", "work"]
    assert groups["accept"]["half_closed"] is None
    assert marked(groups["connect"]["half_closed"]) == "half_close"
    assert groups["connect"]["states"] == {"FIN_WAIT2": 3}
    assert groups["accept"]["states"] == {"CLOSE_WAIT": 3}
    assert document["unmatched"] == {}
    (owner,) = groups["accept"]["example"]["connection"]["owners"]
    assert (owner["fd"], owner["comm"]) == (groups["accept"]["example"]["fd"], "forgets")


@pytest.mark.parametrize(
    "compiler", [("gcc", "-static"), ("musl-gcc",), ("musl-gcc", "-static")], ids="-".join
)
def test_with_a_c_library_without_tables_or_within_the_program_its_callers_are_marked(
    netns: Netns, compiler: tuple[str, ...], tmp_path: Path
) -> None:
    if not shutil.which(compiler[0]):
        pytest.skip(f"{compiler[0]} is not installed")
    (tmp_path / "forgets.c").write_text(textwrap.dedent(C))
    built = str(tmp_path / "forgets")
    command = [*compiler, "-O1", "-fomit-frame-pointer", "-pthread", "-o", built, f"{built}.c"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip(f"{' '.join(compiler)} does not link")
    groups = by_call(leaks_of(netns, built))
    assert marked(groups["connect"]["opened"]) == "open_and_forget"
    assert marked(groups["accept"]["opened"]) == "take_and_forget"
    assert marked(groups["connect"]["half_closed"]) == "half_close"
    assert groups["accept"]["opened"]["unwound_by"] == "tables"
    assert not groups["accept"]["opened"]["cut"]


def test_of_every_path_its_own_function_is_marked(netns: Netns, tmp_path: Path) -> None:
    """Its main thread has ended; descriptors are used again at once; the library that connected is gone."""
    if not shutil.which("gcc"):
        missing("gcc is not installed")
    plugins = [str(tmp_path / f"{name}.so") for name in ("guilty", "innocent")]
    (tmp_path / "plugin.c").write_text(textwrap.dedent(PLUGIN))
    for name, plugin in zip(("guilty", "innocent"), plugins, strict=True):
        command = ["gcc", "-O1", "-shared", "-fPIC", f"-DNAME={name}", "-o", plugin, f"{tmp_path}/plugin.c"]
        subprocess.run(command, check=True)
    (tmp_path / "paths.c").write_text(textwrap.dedent(PATHS))
    built = str(tmp_path / "paths")
    subprocess.run(
        ["gcc", "-O1", "-fomit-frame-pointer", "-pthread", "-o", built, f"{built}.c", "-ldl"], check=True
    )
    document = leaks_of(netns, built, *plugins)
    assert document["unmatched"] == {}, document["gaps"]
    found = {(group["call"], marked(group["opened"])): 0 for group in document["groups"]}
    for group in document["groups"]:
        found[group["call"], marked(group["opened"])] += group["count"]
        assert group["half_closed"] is None
    assert found == {
        ("accept", "take_and_keep"): 35,
        ("connect", "work"): 30,
        ("connect", "begin_it"): 1,
        ("connect", "fall_back"): 1,
        ("connect", "deep"): 1,
        ("connect", "guilty"): 1,
        ("sendto", "by_fast_open"): 1,
    }


def test_in_go_the_function_that_opened_is_marked(netns: Netns, tmp_path: Path) -> None:
    if not shutil.which("go"):
        pytest.skip("go is not installed")
    (tmp_path / "forgets.go").write_text(GO)
    environment = {**os.environ, "GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off"}
    built = str(tmp_path / "forgets")
    subprocess.run(["go", "build", "-o", built, f"{built}.go"], check=True, env=environment)
    groups = by_call(leaks_of(netns, built))
    assert marked(groups["accept"]["opened"]) == "main.takeAndForget"
    assert marked(groups["connect"]["opened"]) == "main.openAndForget"


def pythons() -> list[str]:
    """Interpreters that can name their functions for perf."""
    places = [shutil.which(f"python3.{minor}") or "" for minor in range(12, 20)]
    places += [str(path) for path in Path.home().glob(".pyenv/versions/3.1[2-9].*/bin/python3")]
    ask = "import sys, sysconfig as s; print(sys.executable if s.get_config_var('PY_HAVE_PERF_TRAMPOLINE') else '')"
    found = []
    for place in places:
        if place:
            with suppress(OSError):
                answer = subprocess.run([place, "-c", ask], capture_output=True, text=True)
                found += answer.stdout.split()
    return sorted(set(found))


def test_in_python_the_function_that_opened_is_marked(netns: Netns, tmp_path: Path) -> None:
    interpreters = pythons()
    if not interpreters:
        pytest.skip("no Python 3.12 or later with `-X perf`")
    script = tmp_path / "forgets.py"
    script.write_text(PYTHON + FORGETS)
    for interpreter in interpreters:
        groups = by_call(leaks_of(netns, interpreter, "-X", "perf", str(script)))
        assert marked(groups["accept"]["opened"]) == "take_and_forget", interpreter
        assert marked(groups["connect"]["opened"]) == "open_and_forget"
        place = groups["accept"]["opened"]["matters"]
        assert groups["accept"]["opened"]["frames"][place]["where"] == str(script)
        assert groups["accept"]["count"] == 3


def scripted(body: str) -> tuple[str, ...]:
    return sys.executable, "-c", PYTHON + textwrap.dedent(body)


def test_a_program_that_closes_what_it_opens_has_no_group(netns: Netns) -> None:
    body = """
    say("ready")
    for _ in range(20):
        open_and_forget(); take_and_forget()
        for one in kept: one.close()
        kept.clear()
    say("done")
    """
    document = leaks_of(netns, *scripted(body))
    assert document["groups"] == []
    assert (document["still"], document["unmatched"]) == (0, {})
    assert document["calls"]["accept"] >= 20


def test_what_was_opened_before_is_counted_and_not_matched(netns: Netns) -> None:
    document = leaks_of(netns, *scripted('open_and_forget(); take_and_forget(); say("ready"); say("done")'))
    assert (document["groups"], document["before"], document["unmatched"]) == ([], 2, {})


@pytest.mark.parametrize(
    "body",
    [
        # Duplicated: the descriptor that accept() returned is closed.
        """
        say("ready")
        open_and_forget(); take_and_forget(); copy = os.dup(kept[1].fileno()); kept.pop(1).close()
        say("done")
        """,
        # The number is used again by dup2(): the last accept() on it was for another connection.
        """
        say("ready")
        for _ in range(2): open_and_forget(); take_and_forget()
        __import__("time").sleep(0.5)  # calls are checked some milliseconds after they were made
        os.dup2(kept[1].fileno(), kept[3].fileno()); kept.pop(1).close()
        say("done")
        """,
        # Inherited: the child holds it, and the parent that accepted it does not.
        """
        say("ready")
        open_and_forget(); take_and_forget()
        if not os.fork():
            door.close(); kept[0].close(); sys.stdin.readline(); os._exit(0)
        kept.pop(1).close()
        say("done")
        """,
        # Passed: to another descriptor of the same process, in a message.
        """
        say("ready")
        a, b = socket.socketpair(); open_and_forget(); take_and_forget(); other = open("/dev/null")
        socket.send_fds(a, [b"x"], [kept[1].fileno()]); kept[1] = socket.recv_fds(b, 1, 1)
        say("done")
        """,
    ],
    ids=["duplicated", "used again", "inherited", "passed"],
)
def test_what_cannot_be_matched_is_counted_and_never_guessed(netns: Netns, body: str) -> None:
    document = leaks_of(netns, *scripted(body))
    # fcntl(F_DUPFD) does not tell beforehand which descriptor it fills: calls of the same moment are not believed.
    more = document["unmatched"].pop("not_checked", 0)
    assert sum(document["unmatched"].values()) + more >= 1, document
    assert not more or "os.dup(" in body
    assert all(group["call"] == "connect" for group in document["groups"])
    assert any("tell which code opened" in gap["doing"] for gap in document["gaps"])


def test_a_program_that_was_replaced_is_not_named_by_its_successor(netns: Netns) -> None:
    body = """
    say("ready")
    open_and_forget(); take_and_forget()
    for one in kept: os.set_inheritable(one.fileno(), True)
    os.execlp("sh", "sh", "-c", "echo done; read line")
    """
    document = leaks_of(netns, *scripted(body))
    assert document["still"] == 2
    for group in document["groups"]:
        assert group["opened"]["frames"] == []
    assert any("another program since" in gap["doing"] for gap in document["gaps"])


def test_a_program_that_was_replaced_in_a_pause_is_not_named_by_its_successor(netns: Netns) -> None:
    body = """
    import time
    say("ready")
    open_and_forget(); take_and_forget()
    for one in kept: os.set_inheritable(one.fileno(), True)
    time.sleep(0.5)  # calls are checked some milliseconds after they were made
    near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    until = time.monotonic() + 3
    while time.monotonic() < until: near.connect(("127.0.0.1", 9))
    os.execlp("sh", "sh", "-c", "echo done; read line")
    """
    with program(netns, *scripted(body)) as process, tracing(netns, "--buffer-kb", "65536") as finwait:
        go_on(process)
        document = json.loads(ended(finwait)[0])
    for group in document["groups"]:
        assert group["opened"]["frames"] == []
    assert document["still"] + sum(document["unmatched"].values()) == 2


def test_a_descriptor_whose_connection_was_reset_is_a_leak_too() -> None:
    if os.geteuid():
        missing("root")
    body = """
    import struct
    say("ready")
    open_and_forget(); take_and_forget()
    kept[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)); kept[0].close()
    try: kept[1].recv(1)
    except ConnectionResetError: pass
    say("done")
    """
    from finwait.follow.leaking import Leaking

    for _ in range(_ATTEMPTS):
        with subprocess.Popen(
            scripted(body), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                process.stdout.readline()
                with Leaking() as leaking:
                    go_on(process)
                    leaks = leaking.finish()
            finally:
                process.kill()
        if not disturbed(gap.doing for gap in leaks.gaps):
            break
    mine = [group for group in leaks.groups if process.pid in group.pids]
    rows = [still.connection.row for group in mine for still in group.still]
    assert rows == [-1], (leaks.matching.unmatched, leaks.gaps)
    assert [group.call for group in mine] == ["accept"]


def test_the_report_marks_the_frame_and_says_what_it_touches(netns: Netns, tmp_path: Path) -> None:
    if not shutil.which("gcc"):
        missing("gcc is not installed")
    (tmp_path / "forgets.c").write_text(textwrap.dedent(C))
    built = str(tmp_path / "forgets")
    subprocess.run(["gcc", "-O1", "-pthread", "-o", built, f"{built}.c"], check=True)
    with program(netns, built) as process, tracing(netns, output="text") as finwait:
        go_on(process)
        out, _ = ended(finwait)
    assert out.startswith("6 connections opened during the trace are still there, from 2 code paths")
    arrows = [line.split()[1] for line in out.splitlines() if line.strip().startswith("→")]
    assert sorted(arrows) == ["half_close", "open_and_forget", "take_and_forget"]


def test_a_burst_that_overruns_the_ring_buffer_is_counted(netns: Netns) -> None:
    body = """
    say("ready")
    near = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(20)]
    for k in range(2000): near[k % 20].connect(("127.0.0.1", 9))
    open_and_forget()
    say("done")
    """
    with program(netns, *scripted(body)) as process, tracing(netns, "--buffer-kb", "8") as finwait:
        go_on(process)
        document = json.loads(ended(finwait)[0])
    assert any("ring buffer" in gap["doing"] for gap in document["gaps"]), document["gaps"]


def test_a_machine_that_makes_too_many_calls_is_spared_and_that_is_said(netns: Netns) -> None:
    body = """
    import time
    say("ready")
    near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    until = time.monotonic() + 3
    while time.monotonic() < until: near.connect(("127.0.0.1", 9))
    say("done")
    """
    with program(netns, *scripted(body)) as process, tracing(netns, "--buffer-kb", "65536") as finwait:
        go_on(process)
        document = json.loads(ended(finwait)[0])
    assert any("in a second" in gap["doing"] for gap in document["gaps"]), document["gaps"]


def test_the_time_counts_from_when_it_samples() -> None:
    if os.geteuid():
        missing("root")
    command = [sys.executable, "-m", "finwait", "trace", "--leaks", "--for", "500ms", "-o", "json"]
    done = subprocess.run([*command, "comm = nobody-is-called-so"], capture_output=True, text=True, cwd=ROOT)
    document = json.loads(done.stdout)
    assert document["for_s"] >= 0.5, done.stderr
    assert document["window_s"] >= document["for_s"]


def test_what_is_opened_while_it_looks_is_within_the_time_that_is_said(
    netns: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finwait import session
    from finwait.follow.leaking import Leaking

    if os.geteuid():
        missing("root")
    slow_s, looks = 1.0, 0
    look = session.look

    def slowly(machine: session.Machine, how: session.Look) -> session.Snapshot:
        nonlocal looks
        looks += 1
        if looks == 1:
            return look(machine, how)
        with program(netns, *scripted(FORGETS)) as process:
            kept.append(process.pid)
            go_on(process)
            time.sleep(slow_s)
            return look(machine, how)

    kept: list[int] = []
    for _ in range(_ATTEMPTS):
        looks = 0
        monkeypatch.setattr(session, "look", slowly)
        with Leaking() as leaking:
            leaks = leaking.finish()
        if not disturbed(gap.doing for gap in leaks.gaps):
            break
    assert leaks.window_ns > leaks.for_ns + slow_s * 1e9
    times = [still.opening.sample.time_ns for group in leaks.groups for still in group.still]
    assert times
    assert all(leaks.ended_ns - leaks.window_ns < at for at in times)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--stuck", "3s"], "--leaks and --stuck cannot be combined"),
        (["-o", "csv"], "--leaks prints text or json, not csv"),
        (["--poll"], "--leaks and --poll cannot be combined"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words: list[str], why: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "finwait", "trace", "--leaks", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert why in done.stderr


def test_without_the_right_it_says_what_is_needed() -> None:
    if os.geteuid():
        missing("root")
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=65534", sys.executable, "-c"]
    script = "from finwait.kernel.perf_events import Sampling\nwith Sampling({'syscalls/sys_enter_connect': ''}): pass"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([*command, script], capture_output=True, text=True, env=environment)
    if "No module named" in done.stderr or "can't open" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip("another user cannot run this interpreter")
    assert "PermissionNeeded" in done.stderr, done.stderr


def test_nothing_is_left_when_it_ends() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with Sampling({"syscalls/sys_enter_connect": ""}) as sampling:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
            near.connect(("127.0.0.1", 9))
        drawn = sampling.drain()
        assert any(sample.pid == os.getpid() for sample in drawn.samples)
        sampling.disable()
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_perf_map_is_trusted_only_if_it_is_a_plain_file_of_the_user_or_of_root(tmp_path: Path) -> None:
    if os.geteuid():
        missing("root")
    path = Path(f"/tmp/perf-{os.getpid()}.map")
    if path.exists() or path.is_symlink():
        missing(f"{path} is there already")
    line = b"1000 10 f\n"
    try:
        path.write_bytes(line)
        assert user_symbols._read_perf_map(os.getpid()) == line
        os.chown(path, 65534, -1)
        assert user_symbols._read_perf_map(os.getpid()) == b""
        os.chown(path, 0, -1)
        os.link(path, tmp_path / "second") if os.stat("/tmp").st_dev == os.stat(tmp_path).st_dev else None
        if path.stat().st_nlink > 1:
            assert user_symbols._read_perf_map(os.getpid()) == b""
        os.utime(path, (0, 0))  # of an earlier process with this number
        assert user_symbols._read_perf_map(os.getpid()) == b""
        path.unlink()
        (tmp_path / "map").write_bytes(line)
        path.symlink_to(tmp_path / "map")
        assert user_symbols._read_perf_map(os.getpid()) == b""
        path.unlink()
        os.mkfifo(path)
        assert user_symbols._read_perf_map(os.getpid()) == b""
        path.unlink()
        with path.open("wb") as file:
            file.truncate(65 << 20)
        assert user_symbols._read_perf_map(os.getpid()) == b""
    finally:
        path.unlink(missing_ok=True)


def hostile(path: Path, size: int) -> None:
    """A sparse ELF file with a table of unwinding and two of symbols, each of some bytes that say much."""
    order, program, data = b"\x7fELF\x02\x01\x01" + bytes(9), 0x6474E550, 1 << 16
    tables = [(2, data + size, size, 3), (11, data + size, size, 3), (3, data + 2 * size, size, 0)]
    with path.open("wb") as file:
        file.write(order + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 4096, 0, 64, 56, 2, 64, 5, 0))
        file.write(struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 1 << 40, 1 << 40, 4096))
        file.write(struct.pack("<IIQQQQQQ", program, 4, data, data, data, size, size, 4))
        file.seek(4096)
        file.write(bytes(64))
        for kind, at, length, link in tables:
            file.write(struct.pack("<IIQQQQIIQQ", 0, kind, 0, 0, at, length, link, 0, 0, 0))
        file.seek(data)
        file.write(bytes([1, 0x1B, 3, 0x3B]) + struct.pack("<iI", 0, size // 8 - 2))
        file.truncate(data + 3 * size)


def test_what_strangers_files_say_of_themselves_takes_no_more_memory_than_is_allowed(tmp_path: Path) -> None:
    size, count = 48 << 20, 12
    budget = user_symbols.Budget(kept=4 << 20, read_for_process=200 << 20)
    pieces = []
    tracemalloc.start()
    try:
        with user_symbols.UserSymbols(budget=budget) as symbols:
            for number in range(count):
                path = tmp_path / f"{number}"
                hostile(path, size)
                with path.open("rb") as file:
                    pieces.append(mmap.mmap(file.fileno(), 8192, prot=mmap.PROT_READ | mmap.PROT_EXEC))
            with open("/proc/self/maps", encoding="ascii") as file:
                places = [int(line.split("-")[0], 16) for line in file if str(tmp_path) in line]
            assert len(places) == count
            moment = symbols.moment(os.getpid(), os.getpid(), time.monotonic_ns())
            for place in places:
                assert moment.named(place + 0x800, called=True).function == ""
                assert moment.rule(place + 0x800, called=True) is None
            assert symbols.refused >= 2 * count - 5
            assert symbols.taken < 1 << 20
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
        for piece in pieces:
            piece.close()


def test_a_file_that_is_not_mapped_as_code_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(4096))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ) as piece:
        with open("/proc/self/maps", encoding="ascii") as maps:
            (place,) = [int(line.split("-")[0], 16) for line in maps if str(path) in line]
        with user_symbols.UserSymbols() as symbols:
            moment = symbols.moment(os.getpid(), os.getpid(), time.monotonic_ns())
            assert moment.named(place, called=False) == user_symbols.Named("", "", place)
            assert not moment.is_return(place + 64)
            assert not symbols._images
        assert len(piece) == 4096


def test_all_of_a_large_address_space_is_read() -> None:
    """A read of /proc/PID/maps ends with a page, however much is asked for."""
    with open("/proc/self/maps", "rb") as file:
        lines = len(file.read().splitlines())
    assert lines > 60
    assert abs(len(user_symbols.read_maps(os.getpid())) - lines) <= 2

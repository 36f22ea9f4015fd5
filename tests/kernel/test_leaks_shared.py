"""``finwait trace --leaks`` where others fill the same descriptors: what cannot be known is never guessed.

In each program `innocent` opens a connection and closes it, and `guilty`, which is no thread of the same process, opens
one that stays, with the same number.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finwait.lab.topology import Lab, Netns, unmet
from tests.kernel.needs import missing
from tests.kernel.test_leaks import ended, go_on, leaks_of, marked, program, tracing

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(900)]

C = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#define PATH __attribute__((noinline))
#define KEEP __asm__ volatile("" ::: "memory")
static struct sockaddr_in a = {.sin_family = AF_INET};
static socklen_t size = sizeof a;
static int door, told[2], ordered[2], stays, taken[3];
static char *rings;
static unsigned tail_at, entered;
PATH int dial(void) { int s = socket(AF_INET, SOCK_STREAM, 0); connect(s, (void *)&a, size); KEEP; return s; }
PATH void client(void) { dial(); KEEP; }
PATH void innocent_connect(void) { int s = dial(); KEEP; close(s); }
PATH void guilty_connect(void) { dial(); KEEP; }
PATH void innocent_accept(void) { int s = accept(door, 0, 0); KEEP; close(s); }
PATH int guilty_accept(void) { int s = accept(door, 0, 0); KEEP; return s; }
static int sharer(void *act) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    ((void (*)(void))act)(); write(told[1], "x", 1);
    while (stays) pause();
    syscall(SYS_exit, 0); return 0;
}
static int commanded(void *act) {
    char c;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int k = 0; k < 3; k++) { read(ordered[0], &c, 1); ((void (*)(void))act)(); write(told[1], "x", 1); }
    while (1) pause();
}
static void share(int (*what)(void *), void (*act)(void), int flags) {
    char *stack = malloc(65536);
    if (clone(what, stack + 65536, CLONE_FILES | flags | SIGCHLD, (void *)act) < 0) puts("no clone");
}
static void in_sharer(void (*act)(void), int flags) { char c; share(sharer, act, flags); read(told[0], &c, 1); }
static void open_ring(void) {
    struct io_uring_params p = {0};
    int ring = syscall(SYS_io_uring_setup, 4, &p);
    if (ring < 0) { puts("no io_uring"); fflush(stdout); _exit(0); }
    rings = mmap(0, p.sq_off.array + 16, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    struct io_uring_sqe *e = mmap(0, 4 * sizeof *e, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    dup2(ring, 199); close(ring);
    e->opcode = IORING_OP_ACCEPT; e->fd = door;
    for (int k = 0; k < 4; k++) ((unsigned *)(rings + p.sq_off.array))[k] = 0;
    tail_at = p.sq_off.tail;
}
PATH void guilty_uring(void) {
    __atomic_store_n((unsigned *)(rings + tail_at), ++entered, __ATOMIC_RELEASE);
    syscall(SYS_io_uring_enter, 199, 1, entered, IORING_ENTER_GETEVENTS, 0, 0);
}
static void *with_own_table(void *unused) {
    unshare(CLONE_FILES);
    close(taken[0]); innocent_accept();
    return unused;
}
static void once(const char *how, int k) {
    char c;
    if (strstr(how, "connect")) { innocent_connect(); in_sharer(guilty_connect, stays ? 0 : CLONE_VM); return; }
    client(); client();
    if (!strcmp(how, "accept")) { innocent_accept(); in_sharer((void (*)(void))guilty_accept, CLONE_VM); }
    if (!strcmp(how, "before")) { innocent_accept(); write(ordered[1], "x", 1); read(told[0], &c, 1); }
    if (!strcmp(how, "uring")) { innocent_accept(); guilty_uring(); }
    if (!strcmp(how, "thread")) taken[k] = guilty_accept();
    if (!strcmp(how, "vfork")) {
        pid_t child = vfork();
        if (!child) { innocent_accept(); _exit(0); }
        guilty_accept(); waitpid(child, 0, 0);
    }
}
int main(int many, char **words) {
    const char *how = words[1];
    door = socket(AF_INET, SOCK_STREAM, 0);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    bind(door, (void *)&a, size); listen(door, 64); getsockname(door, (void *)&a, &size);
    pipe(told); pipe(ordered);
    stays = !strcmp(how, "connect stays");
    if (!strcmp(how, "uring")) open_ring();
    if (!strcmp(how, "before")) share(commanded, (void (*)(void))guilty_accept, 0);
    puts("ready"); fflush(stdout); getchar();
    for (int k = 0; k < 3; k++) once(how, k);
    pthread_t thread;
    if (!strcmp(how, "thread")) { pthread_create(&thread, 0, with_own_table, 0); pthread_join(thread, 0); }
    puts("done"); fflush(stdout); getchar();
    return 0;
}
"""
SUCCESSOR = r"""
#include <arpa/inet.h>
#include <stdio.h>
#include <unistd.h>
#include <sys/socket.h>
int main(void) {
    struct sockaddr_in a = {.sin_family = AF_INET};
    socklen_t size = sizeof a;
    int door = socket(AF_INET, SOCK_STREAM, 0);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    bind(door, (void *)&a, size); listen(door, 64); getsockname(door, (void *)&a, &size);
    puts("ready"); fflush(stdout); getchar();
    for (int k = 0; k < 3; k++) connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&a, size);
    execl("/bin/sh", "sh", "-c", "echo done; read line", (char *)0);
    return 1;
}
"""


@pytest.fixture
def netns() -> Iterator[Netns]:
    if lacking := unmet(("netns",)):
        missing("; ".join(lacking))
    with Lab() as lab:
        yield lab.netns("program")


def built(source: str, folder: Path, name: str) -> str:
    if not shutil.which("gcc"):
        missing("gcc is not installed")
    path = folder / name
    path.with_suffix(".c").write_text(source)
    subprocess.run(["gcc", "-w", "-O1", "-pthread", "-o", str(path), f"{path}.c"], check=True)
    return str(path)


def functions(document: dict[str, Any]) -> set[str]:
    stacks = [
        group[side] for group in document["groups"] for side in ("opened", "half_closed") if group[side]
    ]
    return {frame["function"] for stack in stacks for frame in stack["frames"]}


def found(document: dict[str, Any]) -> dict[str, int]:
    """Connections by the function that is marked."""
    counts: dict[str, int] = {}
    for group in document["groups"]:
        name = marked(group["opened"])
        counts[name] = counts.get(name, 0) + group["count"]
    return counts


@pytest.mark.parametrize("how", ["connect", "accept", "before", "uring"])
def test_of_a_descriptor_that_others_fill_no_wrong_code_is_named(
    netns: Netns, how: str, tmp_path: Path
) -> None:
    if how == "uring":
        ring = ctypes.CDLL(None).syscall(425, 1, ctypes.create_string_buffer(256))  # io_uring_setup
        if ring < 0:
            pytest.skip("io_uring is not permitted here")
        os.close(ring)
    document = leaks_of(netns, built(C, tmp_path, "shares"), how)
    assert not {name for name in functions(document) if name.startswith("innocent")}, document["groups"]
    assert sum(document["unmatched"].values()) == 3, document
    assert any("not alone in filling its descriptors" in gap["doing"] for gap in document["gaps"])
    assert found(document) == ({} if how == "connect" else {"dial": 6})


def test_a_process_that_shares_the_descriptors_and_is_still_there_is_named(
    netns: Netns, tmp_path: Path
) -> None:
    document = leaks_of(netns, built(C, tmp_path, "shares"), "connect stays")
    (group,) = document["groups"]
    assert [frame["function"] for frame in group["opened"]["frames"]][1:3] == ["dial", "guilty_connect"]
    assert (group["count"], document["unmatched"]) == (3, {})


def test_a_child_of_vfork_has_descriptors_of_its_own(netns: Netns, tmp_path: Path) -> None:
    document = leaks_of(netns, built(C, tmp_path, "shares"), "vfork")
    assert found(document) == {"dial": 6, "guilty_accept": 3}
    assert document["unmatched"] == {}


def test_a_thread_with_descriptors_of_its_own_does_not_stand_for_its_process(
    netns: Netns, tmp_path: Path
) -> None:
    document = leaks_of(netns, built(C, tmp_path, "shares"), "thread")
    assert not {name for name in functions(document) if name.startswith("innocent")}, document["groups"]
    named = found(document).get("guilty_accept", 0)
    assert named + sum(document["unmatched"].values()) == 3, document


def test_the_name_is_that_of_the_program_that_made_the_call(netns: Netns, tmp_path: Path) -> None:
    document = leaks_of(netns, built(SUCCESSOR, tmp_path, "supervisor"))
    (group,) = document["groups"]
    assert (group["comm"], group["holder_comms"], group["count"]) == ("supervisor", ["sh"], 3)


def test_many_short_programs_are_named_as_they_were(netns: Netns, tmp_path: Path) -> None:
    """Each is born, runs `opens`, and goes on as another program."""
    opens = SUCCESSOR.replace('puts("ready"); fflush(stdout); getchar();', "").replace(
        '"echo done; read line"', '"echo; read line"'
    )
    path = built(opens, tmp_path, "opens")
    script = f"for k in $(seq 20); do {path} <&3 >/dev/null & done; sleep 1; echo done; read line"
    document = leaks_of(netns, "bash", "-c", f"exec 3< <(sleep 60); echo ready; read line; {script}")
    assert {group["comm"] for group in document["groups"]} == {"opens"}
    assert sum(group["count"] for group in document["groups"]) == 60


def test_the_report_says_what_runs_there_now(netns: Netns, tmp_path: Path) -> None:
    path = built(SUCCESSOR, tmp_path, "supervisor")
    with program(netns, path) as process, tracing(netns, output="text") as finwait:
        go_on(process)
        out, _ = ended(finwait)
    assert "opened by connect() in supervisor" in out
    assert f"holder      sh, pid {process.pid} (another program since the call)" in out


HANDLED = r"""
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
static struct sockaddr_in a = {.sin_family = AF_INET};
static socklen_t size = sizeof a;
__attribute__((noinline)) void in_handler(int number) {
    connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&a, size); __asm__ volatile("" :: "r"(number) : "memory");
}
int main(void) {
    int door = socket(AF_INET, SOCK_STREAM, 0);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    bind(door, (void *)&a, size); listen(door, 64); getsockname(door, (void *)&a, &size);
    signal(SIGUSR1, in_handler);
    puts("ready"); fflush(stdout); getchar();
    raise(SIGUSR1);
    puts("done"); fflush(stdout); getchar();
}
"""


def test_a_stack_that_ends_at_a_signal_handler_says_so(netns: Netns, tmp_path: Path) -> None:
    document = leaks_of(netns, built(HANDLED, tmp_path, "handles"))
    (group,) = document["groups"]
    assert marked(group["opened"]) == "in_handler"
    assert group["opened"]["cut"]

"""What debuggers print of threads, as they print it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from fuzz import stacks as target
from hypothesis import given
from hypothesis import strategies as st

from finwait.attribution.waiting import EventLoop, WaitedOn, Waiter
from finwait.report.stacks import roles, stack_lines
from finwait.report.style import Style
from finwait.uapi.observation import ThreadWait
from finwait.uapi.stacks import StackFrame, Stacks, ThreadStack, parse_gdb, parse_jcmd, parse_py_spy

PY_SPY = json.dumps(
    [
        {
            "pid": 812,
            "thread_id": 139,
            "thread_name": "MainThread",
            "os_thread_id": 812,
            "active": False,
            "owns_gil": False,
            "frames": [
                {"name": "recv_into", "filename": "/usr/lib/python3.11/socket.py", "short_filename": "socket.py",
                 "module": None, "line": 706, "locals": None},
                {"name": "fetch", "filename": "/srv/app.py", "line": 42},
                {"name": "<module>", "filename": "/srv/app.py", "line": 60},
            ],
        }
    ]
)  # fmt: skip
JCMD = """4242:
2026-11-29 12:00:00
Full thread dump OpenJDK 64-Bit Server VM (17.0.9+9-Debian mixed mode, sharing):

"main" #1 prio=5 os_prio=0 cpu=70.1ms elapsed=3.02s tid=0x00007f1 nid=0x1093 runnable  [0x00007f]
   java.lang.Thread.State: RUNNABLE
	at sun.nio.ch.Net.poll(java.base@17.0.9/Native Method)
	at sun.nio.ch.NioSocketImpl.park(java.base@17.0.9/NioSocketImpl.java:186)
	at com.shop.Client.fetch(Client.java:42)
	- locked <0x0000> (a java.lang.Object)
	at com.shop.Client.main(Client.java:7)

"GC Thread#0" os_prio=0 cpu=1.5ms elapsed=3.02s tid=0x00007f2 nid=4244 runnable
"""
GDB = """[New LWP 813]
Thread 2 (Thread 0x7f12 (LWP 813) "worker"):
#0  0x00007f1 in __futex_abstimed_wait_common () from /lib/x86_64-linux-gnu/libc.so.6
#1  0x00007f2 in start_thread (arg=<optimized out>) at ./nptl/pthread_create.c:442

Thread 1 (Thread 0x7f13 (LWP 812) "server"):
#0  0x00007f3 in recv () from /lib/x86_64-linux-gnu/libc.so.6
#1  0x0000555 in answer (client=4) at server.c:42
#2  0x0000556 in main (argc=1, argv=0x7ffd) at server.c:90
[Inferior 1 (process 812) detached]
"""


def test_python() -> None:
    (thread,) = parse_py_spy(PY_SPY)
    assert (thread.tid, thread.name, thread.matters) == (812, "MainThread", 1)
    assert thread.frames[1] == StackFrame("fetch", "/srv/app.py:42")
    assert thread.frames[0] == StackFrame("recv_into", "/usr/lib/python3.11/socket.py:706", own=False)


def test_java() -> None:
    main, collector = parse_jcmd(JCMD)
    assert (main.tid, main.name, main.matters) == (0x1093, "main", 2)
    assert main.frames[2] == StackFrame("com.shop.Client.fetch", "Client.java:42")
    assert not main.frames[0].own
    assert (collector.tid, collector.frames, collector.matters) == (4244, (), -1)


def test_native() -> None:
    worker, main = parse_gdb(GDB)
    assert (worker.tid, worker.name, worker.matters) == (813, "worker", -1)
    assert (main.tid, main.name, main.matters) == (812, "server", 1)
    assert main.frames[1] == StackFrame("answer", "server.c:42")


@given(
    st.sampled_from((parse_py_spy, parse_jcmd, parse_gdb)), st.text() | st.sampled_from((PY_SPY, JCMD, GDB))
)
def test_any_text_is_some_threads_or_none(parse: Callable[[str], tuple[ThreadStack, ...]], text: str) -> None:
    for thread in parse(text):
        assert -1 <= thread.matters < len(thread.frames)


@given(st.binary(max_size=300))
def test_the_fuzz_target_takes_anything(data: bytes) -> None:
    target.one_input(data)


@pytest.mark.parametrize("seed", target.seeds())
def test_each_seed_of_the_fuzz_target_is_understood(seed: bytes) -> None:
    target.one_input(seed)
    parse, content = target._KINDS[seed[0]]
    assert parse(content.decode())


def lines(stacks: Stacks, waiting: set[int], width: int = 100) -> list[str]:
    concerned = dict.fromkeys(waiting, "waits for this connection")
    return list(stack_lines(stacks, "app", concerned, Style(width)))


def test_only_a_thread_that_waits_is_said_to_wait() -> None:
    def thread(tid: int) -> ThreadWait:
        return ThreadWait(tid, "worker", "S", "epoll_wait")

    loops = tuple(
        EventLoop(812, 4, 1, thread(tid), asleep) for tid, asleep in ((7, True), (8, False), (9, None))
    )
    told = roles(WaitedOn("loop", (Waiter(812, 6, "worker", "recvfrom", False, None),), loops))
    assert told[6] == "waits for this connection"
    assert told[7] == "sleeps in the event loop that watches this connection"
    assert told[8].startswith("elsewhere: ")
    assert "not known" in told[9]
    shown = lines(Stacks(812, "native", "gdb", parse_gdb(GDB)), set())
    assert not any("waits for this connection" in line for line in shown)


def test_the_thread_that_waits_is_shown_with_the_frame_that_matters_marked() -> None:
    stacks = Stacks(812, "native", "gdb", parse_gdb(GDB))
    text = lines(stacks, {812})
    assert "which stopped it for a moment" in text[0]
    assert [line.strip() for line in text if "→" in line] == ["→ answer  server.c:42"]
    assert not any("813" in line for line in text)
    assert text[-1].strip() == "… and 1 more thread"
    assert any("thread 813 (worker)" in line for line in lines(stacks, set()))


def test_why_there_are_none_is_said_with_what_to_install() -> None:
    text = lines(
        Stacks(812, "python", "py-spy", why="`py-spy` is not installed", install="`pip install py-spy`"),
        set(),
    )
    assert "stopped" not in "".join(text)
    assert "not read: `py-spy` is not installed; `pip install py-spy`" in text[1]
    goroutines = lines(Stacks(812, "go", "gdb", parse_gdb(GDB)), set())
    assert "goroutines" in goroutines[1]


def test_a_deep_stack_and_long_names_stay_in_their_bounds() -> None:
    frames = tuple(StackFrame(f"library_{k}" * 9, "/usr/lib/x", own=False) for k in range(60))
    thread = ThreadStack(5, "x" * 200, (*frames, StackFrame("ours", "a.c:1")))
    text = lines(Stacks(5, "native", "gdb", (thread,)), {5}, 60)
    assert all(len(line) <= 60 for line in text if "library" in line or "ours" in line)
    assert any("→ ours" in line for line in text)


def innermost(*functions: str) -> str:
    """The function of the frame that matters, of a stack without debug information."""
    frames = "\n".join(f"#{k}  0x00005581{k:08x} in {name} ()" for k, name in enumerate(functions))
    (thread,) = parse_gdb(f'Thread 1 (Thread 0x7f1 (LWP 9) "app"):\n{frames}\n')
    return thread.frames[thread.matters].function


@pytest.mark.parametrize(
    "own",
    ["read_request", "recv_loop", "read_config", "poll_backends", "select_worker", "futex_pool", "readline"],
)
@pytest.mark.parametrize(
    "of_libc",
    [
        "read", "__read", "__GI___libc_read", "read@plt", "__libc_recv", "__poll_nocancel", "pread64",
        "epoll_wait@@GLIBC_2.3.2", "__select64", "__futex_abstimed_wait_common64", "___pthread_cond_wait",
        "__syscall_cp_c", "__GI___clock_nanosleep", "__clone_internal",
    ],
)  # fmt: skip
def test_only_whole_names_of_libc_are_passed_over(own: str, of_libc: str) -> None:
    assert innermost(of_libc, own, "main", "__libc_start_call_main", "_start") == own

"""What debuggers print: the first byte says which of them, the rest is its output."""

from __future__ import annotations

from collections.abc import Callable

from finwait.uapi.stacks import ThreadStack, parse_gdb, parse_jcmd, parse_py_spy

_PY_SPY = (
    b'[{"os_thread_id": 7, "thread_name": "x", "frames": [{"name": "f", "filename": "/a.py", "line": 3}]}]'
)
_JCMD = b'"main" #1 prio=5 os_prio=0 nid=0x7 runnable\n\tat java.base@17/sun.nio.ch.Net.poll(Net.java:1)\n'
_GDB = (
    b'Thread 1 (Thread 0x7f (LWP 7) "app"):\n'
    b"#0  0x7f in recv () from /lib/libc.so.6\n#1  0x5 in f (a=1) at a.c:3\n"
)
_KINDS: list[tuple[Callable[[str], tuple[ThreadStack, ...]], bytes]] = [
    (parse_py_spy, _PY_SPY),
    (parse_jcmd, _JCMD),
    (parse_gdb, _GDB),
]


def seeds() -> list[bytes]:
    return [bytes([number]) + content for number, (_, content) in enumerate(_KINDS)]


def one_input(data: bytes) -> None:
    if not data:
        return
    parse, _ = _KINDS[data[0] % len(_KINDS)]
    for thread in parse(data[1:].decode("utf-8", "replace")):
        assert 0 <= thread.tid < 10**10
        assert -1 <= thread.matters < len(thread.frames) <= 200

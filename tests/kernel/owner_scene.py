"""Programs that pass sockets on, in a network namespace of their own; run as ``owner_scene.py SCENE HOST``.

Prints the namespace's inode and the listening port, then does one step for each line on standard input and says what
it did, ending with the processes that matter. Names are set by the programs themselves.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import threading
import time

_LIBC = ctypes.CDLL(None, use_errno=True)


def name(text: str) -> None:
    """Call this thread so, as prctl(PR_SET_NAME) does."""
    _LIBC.prctl(15, text.encode(), 0, 0, 0)


def say(*words: object) -> None:
    print(*words, flush=True)


def step() -> None:
    if not sys.stdin.readline():
        os._exit(0)


def fork() -> int:
    """Fork a child that does not outlive its parent, which ends as soon as nobody writes to it any more."""
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _LIBC.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(0)
    return child


def begin(host: str) -> socket.socket:
    if _LIBC.unshare(0x40000000) != 0:
        print(os.strerror(ctypes.get_errno()), file=sys.stderr)
        raise SystemExit(77)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    listener = socket.create_server((host, 0), backlog=512)
    say(os.stat("/proc/thread-self/ns/net").st_ino, listener.getsockname()[1])
    return listener


def fork_and_close(host: str) -> None:
    """A server of the inetd kind: the parent accepts, a child serves, the parent closes its own copy."""
    listener = begin(host)
    name("fw-parent")
    step()
    client = socket.create_connection(listener.getsockname(), source_address=(host, 0))
    server, _ = listener.accept()
    say("accepted", os.getpid())
    step()
    child = fork()
    if child == 0:
        name("fw-child")
        client.close()
        listener.close()
        while True:
            time.sleep(60)
    server.close()
    say("forked", child)
    step()
    client.shutdown(socket.SHUT_WR)
    say("shut", child)
    step()
    os.kill(child, 9)


def thread(host: str) -> None:
    """A thread with a name of its own opens, shuts and closes."""
    listener = begin(host)
    name("fw-process")
    step()

    def work() -> None:
        name("fw-thread")
        client = socket.create_connection(listener.getsockname(), source_address=(host, 0))
        server, _ = listener.accept()
        say("accepted", os.getpid(), threading.get_native_id())
        step()
        client.shutdown(socket.SHUT_WR)
        say("shut", os.getpid(), threading.get_native_id())
        step()
        server.close()

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()


def short(host: str) -> None:
    """Thirty connections that last no time, of one program to another."""
    listener = begin(host)
    name("fw-server")
    told, tell = os.pipe()
    step()
    child = fork()
    if child == 0:
        name("fw-client")
        listener.close()
        for _ in range(30):
            client = socket.create_connection((host, int(os.read(told, 16))), source_address=(host, 0))
            client.close()
        time.sleep(2)
        os._exit(0)
    for _ in range(30):
        os.write(tell, str(listener.getsockname()[1]).encode().ljust(16))
        server, _ = listener.accept()
        while server.recv(10):
            pass
        server.close()
    say("done", os.getpid(), child)
    step()


def both(host: str) -> None:
    """One held connection, half closed, of one program to another."""
    listener = begin(host)
    name("fw-server")
    step()
    child = fork()
    if child == 0:
        name("fw-client")
        client = socket.create_connection(listener.getsockname(), source_address=(host, 0))
        listener.close()
        time.sleep(1.0)
        client.shutdown(socket.SHUT_WR)
        while True:
            time.sleep(60)
    server, _ = listener.accept()
    while server.recv(10):
        pass
    say("half", os.getpid(), child)
    step()
    os.kill(child, 9)


def dup(host: str) -> None:
    """The same process, by another descriptor; then another program of it."""
    listener = begin(host)
    name("fw-first")
    step()
    client = socket.create_connection(listener.getsockname(), source_address=(host, 0))
    server, _ = listener.accept()
    say("accepted", os.getpid())
    step()
    other = os.dup(server.fileno())
    server.close()
    name("fw-second")
    say("moved", os.getpid())
    step()
    client.close()
    os.close(other)
    say("closed", os.getpid())
    step()


if __name__ == "__main__":
    {f.__name__: f for f in (fork_and_close, thread, short, both, dup)}[sys.argv[1]](sys.argv[2])

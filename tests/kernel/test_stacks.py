"""``finwait explain … --stacks``: of real programs, the function in which they wait is the one that is marked."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from finwait.kernel import stacks
from finwait.lab.topology import Lab, unmet
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel
ROOT = Path(__file__).parents[2]

PYTHON = """
import socket
def wait_for_the_answer(sock):
    return sock.recv(10)
door = socket.create_server(("127.0.0.1", 0))
near = socket.create_connection(door.getsockname())
far, _ = door.accept()
near.shutdown(socket.SHUT_WR)
print(near.getsockname()[1], flush=True)
wait_for_the_answer(near)
"""
C = """
#include <arpa/inet.h>
#include <stdio.h>
#include <sys/socket.h>
__attribute__((noinline)) long wait_for_the_answer(int fd) { char b[9]; long n = recv(fd, b, 9, 0); return n + b[0]; }
int main(void) {
    int door = socket(AF_INET, SOCK_STREAM, 0), near = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    bind(door, (void *)&a, size); listen(door, 1); getsockname(door, (void *)&a, &size);
    connect(near, (void *)&a, size); int far = accept(door, 0, 0);
    shutdown(near, SHUT_WR); getsockname(near, (void *)&a, &size);
    printf("%d\\n", ntohs(a.sin_port)); fflush(stdout);
    return (int)wait_for_the_answer(near) + far;
}
"""
JAVA = """
import java.net.*;
public class Waits {
    static int waitForTheAnswer(Socket s) throws Exception { return s.getInputStream().read(); }
    public static void main(String[] a) throws Exception {
        ServerSocket door = new ServerSocket(0, 5, InetAddress.getLoopbackAddress());
        Socket near = new Socket(door.getInetAddress(), door.getLocalPort()), far = door.accept();
        near.shutdownOutput();
        System.out.println(near.getLocalPort()); System.out.flush();
        waitForTheAnswer(near);
    }
}
"""


def command(kind: str, folder: Path) -> list[str]:
    for tool in {"c": ("gcc", "gdb"), "java": ("java", "jcmd"), "python": ()}[kind]:
        if shutil.which(tool) is None:
            missing(f"{tool} is not installed")
    if kind == "c":
        (folder / "waits.c").write_text(textwrap.dedent(C))
        subprocess.run(["gcc", "-g", "-O1", "-o", str(folder / "waits"), str(folder / "waits.c")], check=True)
        return [str(folder / "waits")]
    if kind == "java":
        (folder / "Waits.java").write_text(JAVA)
        return ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", str(folder / "Waits.java")]
    return [sys.executable, "-c", PYTHON]


@pytest.fixture
def lab() -> Iterator[Lab]:
    if lacking := unmet(("netns",)):
        missing("; ".join(lacking))
    with Lab() as lab:
        yield lab


@pytest.mark.parametrize(
    ("kind", "tool", "frame"),
    [
        ("python", "py-spy", "wait_for_the_answer"),
        ("c", "gdb", "wait_for_the_answer"),
        ("java", "jcmd", "Waits.waitForTheAnswer"),
    ],
)
def test_the_function_that_waits_is_marked(
    lab: Lab, kind: str, tool: str, frame: str, tmp_path: Path
) -> None:
    netns = lab.netns("program")
    inside = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{netns.fd}"]
    with subprocess.Popen([*inside, *command(kind, tmp_path)], stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            port = program.stdout.readline().strip()
            words = [
                "explain",
                f"sport = :{port} and state fin-wait-2",
                "--netns",
                str(netns.inode),
                "--stacks",
            ]
            text = subprocess.run(
                [sys.executable, "-m", "finwait", *words], capture_output=True, text=True, cwd=ROOT
            ).stdout
            assert f"by `{tool}`" in text, text
            marked = [line.strip() for line in text.splitlines() if line.strip().startswith("→ ")]
            assert any(line.startswith(f"→ {frame}") for line in marked), text
            assert "waits for this connection:" in text
            assert program.poll() is None  # it goes on
        finally:
            program.kill()


def test_a_tool_that_somebody_else_could_have_put_there_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid():
        missing("root")
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "gdb").write_text("#!/bin/sh\nexit 0\n")
    (folder / "gdb").chmod(0o755)
    monkeypatch.setattr(stacks, "_DIRECTORIES", (str(folder),))
    assert stacks._tool("gdb") == str(folder / "gdb")
    folder.chmod(0o777)
    assert stacks._tool("gdb") == ""
    folder.chmod(0o755)
    os.chown(folder, 65534, -1)
    assert stacks._tool("gdb") == ""


def test_a_process_that_is_gone_gives_a_reason() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    found = stacks.read(process.pid)
    assert not found.threads
    assert found.why


def test_of_a_process_that_is_traced_already_the_reason_is_said() -> None:
    if not stacks._tool("gdb"):
        missing("gdb is not installed")
    libc = ctypes.CDLL(None, use_errno=True)
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            if libc.ptrace(_PTRACE_SEIZE, process.pid, 0, 0):
                missing("ptrace(2) is refused")
            found = stacks.read(process.pid)
            assert not found.threads
            assert f"process {process.pid} is already traced by process {os.getpid()}" in found.why
        finally:
            process.kill()


_PTRACE_SEIZE: Final = 0x4206

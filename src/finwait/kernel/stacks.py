"""The user-space stacks of a process, by a well-kept tool of its runtime.

    Python   ``py-spy dump --json``       stops the process while it reads
    Java     ``jcmd PID Thread.print``    the JVM stops its threads at a safepoint
    others   ``gdb`` in batch mode        stops the process while it reads

A tool is taken from the system's directories or beside our interpreter, only where nobody else could have put it: it
runs with our rights. GDB reads no initialisation file and loads nothing that the program's directory offers.

What this cannot see: goroutines that are parked (Go keeps their stacks to itself), and JavaScript frames of Node: there
the native stacks say only where the threads are.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from finwait import files
from finwait.errors import FinwaitError
from finwait.uapi.stacks import Runtime, Stacks, parse_gdb, parse_jcmd, parse_py_spy

__all__ = ["read", "runtime_of"]


_DIRECTORIES: Final = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")
_TIME_S: Final = 30
_MOST_BYTES: Final = 8 << 20
_LINES_SAID: Final = 2
"""Of a tool's complaints the last ones: of GDB that somebody else traces the process, and what ptrace(2) said."""
_INSTALL: Final = {
    "py-spy": "`pip install py-spy`, beside finwait or for the system",
    "jcmd": "it comes with the JDK (Debian: openjdk-*-jdk-headless)",
    "gdb": "Debian: `apt install gdb`",
}


def runtime_of(pid: int) -> Runtime:
    """Return what runs a process, by the name of its executable and, for Go, a section that its linker writes."""
    try:
        name = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return "native"
    if name.startswith(("python", "pypy")):
        return "python"
    if name in ("java", "node"):
        return "java" if name == "java" else "node"
    try:
        with open(f"/proc/{pid}/exe", "rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return "native"
    return "go" if b"\xff Go buildinf:" in head or b"Go build ID:" in head else "native"


def _tool(name: str) -> str:
    """Return the path of a tool that nobody else could have put there; empty where there is none."""
    beside = str(Path(sys.executable).parent)
    for directory in (*_DIRECTORIES, beside):
        path = os.path.join(directory, name)
        try:
            if os.access(path, os.X_OK) and not files.stranger(os.path.dirname(os.path.realpath(path))):
                return path
        except (OSError, FinwaitError):
            continue
    return ""


def read(pid: int) -> Stacks:
    """Return the stacks of a process; it is stopped meanwhile."""
    runtime = runtime_of(pid)
    name = {"python": "py-spy", "java": "jcmd"}.get(runtime, "gdb")
    path = _tool(name)
    if not path:
        return Stacks(pid, runtime, name, why=f"`{name}` is not installed", install=_INSTALL[name])
    try:
        text, why = _run(_command(name, path, pid))
    except OSError as error:
        return Stacks(pid, runtime, name, why=f"`{name}` could not be run: {error.strerror or error}")
    threads = {"py-spy": parse_py_spy, "jcmd": parse_jcmd, "gdb": parse_gdb}[name](text)
    if not threads:
        return Stacks(pid, runtime, name, why=why or f"`{name}` printed no stack")
    return Stacks(pid, runtime, name, threads)


def _command(name: str, path: str, pid: int) -> list[str]:
    if name == "py-spy":
        return [path, "dump", "--json", "--pid", str(pid)]
    if name == "jcmd":
        return [path, str(pid), "Thread.print"]
    quiet = (
        "set auto-load no",
        "set debuginfod enabled off",
        "set print thread-events off",
        "set pagination off",
    )
    early = [word for setting in quiet for word in ("-iex", setting)]
    return [path, "-nx", "-nh", "-batch", *early, "-p", str(pid), "-ex", "thread apply all backtrace 60"]


def _run(command: list[str]) -> tuple[str, str]:
    """Return what a tool printed, and what it complained of (GDB's status is 0 all the same).

    Raises:
        OSError: it cannot be run.
    """
    environment = {"PATH": ":".join(_DIRECTORIES), "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env=environment,
    )
    try:
        out, err = process.communicate(timeout=_TIME_S)
    except subprocess.TimeoutExpired:
        process.kill()  # what it traces goes on
        process.communicate()
        return "", f"`{os.path.basename(command[0])}` took longer than {_TIME_S} s"
    except BaseException:
        process.kill()
        process.communicate()
        raise
    lines = err.decode("utf-8", "replace").strip().splitlines()
    complaints = "; ".join(line.rstrip(". ") for line in lines[-_LINES_SAID:])
    return out[:_MOST_BYTES].decode("utf-8", "replace"), complaints[:200]

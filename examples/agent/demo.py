"""The agent in a private namespace: a leak, its curve, kill -9, a restart, and ages that go on (`make demo-agent`).

Everything is in network, pid and mount namespaces of its own, and ends with them; it does not see other network
namespaces that have a name. Takes about a minute.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

INSIDE = "FINWAIT_DEMO_INSIDE"
"""Folder and port: a Unix socket in the folder leads to the page, and outside who reads the port comes there."""
ADDRESS = "127.0.0.1:9944"
FINWAIT = (sys.executable, "-m", "finwait")


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def leak(a_second: float, ending: threading.Event) -> None:
    """Open connections that are shut down on one side and never closed."""
    server = socket.create_server(("127.0.0.1", 8080), backlog=64)
    kept = []
    while not ending.wait(1 / a_second):
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        client.shutdown(socket.SHUT_WR)  # FIN_WAIT2 here, CLOSE_WAIT there, for ever
        kept.append((client, accepted))


def forward(listener: socket.socket, target: tuple[str, int] | str) -> None:
    """Hand on each connection, in threads, to an address or a Unix socket."""

    def copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        while True:
            reader, _ = listener.accept()
            page = socket.socket(socket.AF_UNIX if isinstance(target, str) else socket.AF_INET)
            try:
                page.connect(target)
            except OSError:  # the agent is not there
                reader.close()
                page.close()
                continue
            for pair in ((reader, page), (page, reader)):
                threading.Thread(target=copy, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def hide_other_namespaces() -> None:
    """Take the mounts away that keep network namespaces of the machine, in this mount namespace only.

    A user who is not root here may not; nor may he look into those.
    """
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("nsfs "):
            where = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), before.split(" ")[4])
            subprocess.run(["umount", "--lazy", where], stderr=subprocess.DEVNULL, check=False)


def totals(text: str) -> dict[str, float]:
    """Return one number of each metric: the sum of its series, of ages the largest."""
    numbers: dict[str, float] = {}
    for name, value in re.findall(r"^(finwait_\w+)(?:{.*})? (\S+)$", text, re.MULTILINE):
        if name.endswith("_oldest_seconds"):
            numbers[name] = max(numbers.get(name, 0.0), float(value))
        else:
            numbers[name] = numbers.get(name, 0.0) + float(value)
    return numbers


def metrics() -> dict[str, float]:
    """Return what the agent counts; empty while nobody serves it."""
    try:
        with urllib.request.urlopen(f"http://{ADDRESS}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    return totals(text)


def agent(folder: Path) -> subprocess.Popen[bytes]:
    """Start the agent."""
    words = ("--interval", "2s", "--share", "20%", "--state-dir", str(folder / "state"))
    more = ("--socket", str(folder / "agent.sock"), "--listen", ADDRESS)
    return subprocess.Popen([*FINWAIT, "agent", *words, *more])


def watch(seconds: float, begun: float) -> None:
    """Show the curve."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        now = metrics()
        if now:
            stuck = int(now.get("finwait_stuck_connections", 0))
            oldest = now.get("finwait_stuck_connections_oldest_seconds", 0)
            at = time.monotonic() - begun
            say(f"  {at:5.1f} s  {stuck:4d} stuck, the oldest for {oldest:5.1f} s  {'█' * (stuck // 2)}")
        time.sleep(3)


def until(holds: Callable[[], bool]) -> None:
    """Wait."""
    end = time.monotonic() + 60
    while not holds() and time.monotonic() < end:
        time.sleep(0.2)


def history(folder: Path) -> list[dict[str, object]]:
    """Return the open episodes of this network namespace."""
    words = (
        "history",
        f"netns = {os.stat('/proc/self/ns/net').st_ino}",
        "--open",
        "--state-dir",
        str(folder / "state"),
        "-o",
        "json",
    )
    done = subprocess.run([*FINWAIT, *words], capture_output=True, text=True, check=False)
    items: list[dict[str, object]] = json.loads(done.stdout)["items"] if done.stdout else []
    return items


def inside() -> int:
    """Run the demo in the namespaces."""
    hide_other_namespaces()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    ending = threading.Event()
    threading.Thread(target=leak, args=(2.0, ending), daemon=True).start()
    begun = time.monotonic()
    name, _, port = os.environ[INSIDE].rpartition(":")
    folder, (host, _, own_port) = Path(name), ADDRESS.partition(":")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(folder / "page.sock"))
        door.listen()
        forward(door, (host, int(own_port)))
        say("A program leaks two connections a second. The agent starts:")
        running = agent(folder)
        say(f"  its page, while this runs: http://127.0.0.1:{port}/")
        until(lambda: metrics().get("finwait_stuck_connections", 0) > 0)
        watch(18, begun)
        before = {item["cookie"]: item for item in history(folder)}
        say(f"\nkill -9 {running.pid}: the agent is gone. What it saw last is served on, and says so:")
        running.kill()
        running.wait()
        time.sleep(1)
        try:
            urllib.request.urlopen(f"http://{ADDRESS}/healthz", timeout=5)
        except OSError as error:
            body = getattr(error, "read", bytes)().decode().strip()
            say(f"  /healthz: {error}: {body}")
        say(f"  the history has {len(before)} open episodes (each connection has two ends)")
        say("\nIt starts again:")
        running = agent(folder)
        until(lambda: len(history(folder)) > len(before))
        watch(10, begun)
        after = {item["cookie"]: item for item in history(folder)}
        same = [c for c in before if c in after and after[c]["first_seen"] == before[c]["first_seen"]]
        say(f"\n  {len(same)} of {len(before)} episodes go on with the age that they had")
        say("\nfinwait agent status:")
        subprocess.run([*FINWAIT, "agent", "status", "--socket", str(folder / "agent.sock")], check=False)
        say("\nfinwait history --open --limit 4:")
        shown = ("history", "--open", "--limit", "4", "--state-dir", str(folder / "state"))
        subprocess.run([*FINWAIT, *shown], check=False)
        if sys.stdin.isatty():
            input("\nThe page is there until you press Enter. ")
        ending.set()
        running.terminate()
        running.wait()
        say(
            "\nEnded. `finwait agent --listen 127.0.0.1:9944` does the same on this machine: docs/how-to/agent.md"
        )
        return 0 if before and len(same) == len(before) else 1


def main() -> int:
    """Make the namespaces, and run in them."""
    if os.environ.get(INSIDE):
        return inside()
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    words = ["unshare", *own, "--net", "--pid", "--mount", "--fork", "--mount-proc", sys.executable, __file__]
    # A socket of this namespace must not get in there: the agent would follow it to where it is from.
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as outside:
        forward(outside, f"{folder}/page.sock")
        env = {**os.environ, INSIDE: f"{folder}:{outside.getsockname()[1]}"}
        return subprocess.run(words, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

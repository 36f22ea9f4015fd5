"""The agent in a private namespace: a leak, its curve, kill -9, a restart, and ages that go on (`make demo-agent`).

Everything is in network, pid and mount namespaces of its own, and ends with them. Takes about a minute.
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


def share_page() -> int:
    """Let the page be read outside of the namespaces, by a socket that was opened there; return its port."""
    outside = socket.socket(fileno=int(os.environ[INSIDE]))

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def forward() -> None:
        host, _, port = ADDRESS.rpartition(":")
        while True:
            reader, _ = outside.accept()
            try:
                page = socket.create_connection((host, int(port)))
            except OSError:  # the agent is not there
                reader.close()
                continue
            for pair in ((reader, page), (page, reader)):
                threading.Thread(target=copy, args=pair, daemon=True).start()

    threading.Thread(target=forward, daemon=True).start()
    return int(outside.getsockname()[1])


def metrics() -> dict[str, float]:
    """Return the sums of the series of each metric; empty while nobody serves them."""
    try:
        with urllib.request.urlopen(f"http://{ADDRESS}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    sums: dict[str, float] = {}
    for name, value in re.findall(r"^(finwait_\w+)(?:{.*})? (\S+)$", text, re.MULTILINE):
        sums[name] = sums.get(name, 0.0) + float(value)
    return sums


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
    """Return the open episodes."""
    words = ("history", "--open", "--state-dir", str(folder / "state"), "-o", "json")
    done = subprocess.run([*FINWAIT, *words], capture_output=True, text=True, check=False)
    items: list[dict[str, object]] = json.loads(done.stdout)["items"] if done.stdout else []
    return items


def inside() -> int:
    """Run the demo in the namespaces."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    ending = threading.Event()
    threading.Thread(target=leak, args=(2.0, ending), daemon=True).start()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chmod(folder, 0o700)
        say("A program leaks two connections a second. The agent starts:")
        running = agent(folder)
        say(f"  its page, while this runs: http://127.0.0.1:{share_page()}/")
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
    with socket.create_server(("127.0.0.1", 0)) as outside:
        env = {**os.environ, INSIDE: str(outside.fileno())}
        return subprocess.run(words, env=env, pass_fds=[outside.fileno()], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

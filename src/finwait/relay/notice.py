"""What the relay tells its operator, on standard error, and systemd, by sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket
import sys

from finwait.table.units import printable

__all__ = ["notify", "say"]


def say(text: str) -> None:
    """Write a line (and a hint below it); names in it may be from a file or from the network, and are escaped."""
    sys.stderr.write("".join(f"{printable(line)}\n" for line in f"finwait relay: {text}".split("\n")))
    sys.stderr.flush()


def notify(state: str) -> None:
    """Tell systemd, if it listens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)

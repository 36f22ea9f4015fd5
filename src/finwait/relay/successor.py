"""The program started anew, with the sockets of the process that runs: an upgrade without a refused connection.

The new process gets the listening sockets and those for questions, says SIGTERM to the old one once it serves, and the
old one drains. One that fails before that is noticed, and the old process goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Final

from finwait.relay import listeners
from finwait.relay.notice import say

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, MutableMapping

    from finwait.relay.listeners import Bound

__all__ = ["Successor", "end_predecessor", "take_predecessor"]

_PREDECESSOR: Final = "FINWAIT_RELAY_PREDECESSOR"
_POLL_S: Final = 0.2


def take_predecessor(environ: MutableMapping[str, str]) -> int:
    """Return the pid of the process whose successor we are, once; 0 when we are none."""
    pid = environ.pop(_PREDECESSOR, "")
    return int(pid) if pid.isdecimal() else 0


def end_predecessor(pid: int) -> None:
    """Tell the process that ran before that it may drain."""
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


class Successor:
    """The process that takes over, if one was started.

    Args:
        argv: how this program was started.
    """

    def __init__(self, argv: list[str]) -> None:
        self._argv = argv
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_there(self) -> bool:
        """Whether one was started that is not known to have failed; it holds the same sockets, by the same paths."""
        return self._process is not None

    def is_running(self) -> bool:
        """Return whether one runs now."""
        return self._process is not None and self._process.poll() is None

    def start(self, bound: Mapping[str, Bound], own: Mapping[str, list[socket.socket]]) -> bool:
        """Start it with listeners, and sockets of our own by name; return whether it could be started."""
        handed, fds = listeners.hand_over(bound, own)
        environ = {**os.environ, **handed, _PREDECESSOR: str(os.getpid())}
        try:
            self._process = subprocess.Popen(self._argv, pass_fds=fds, env=environ)
        except OSError as error:
            problem = (
                f"could not start `{self._argv[0]}` to take over: {error.strerror}; this process keeps "
                "running"
            )
            say(f"{problem}\nhint: the user that `user` names must be able to read the program")
            return False
        say(f"started pid {self._process.pid} to take over")
        return True

    async def watch(self, until: Callable[[], bool]) -> None:
        """Notice when it fails before it takes over."""
        while not until() and self._process is not None:
            if self._process.poll() is not None:
                say(f"the new process ended with status {self._process.returncode}; this one keeps running")
                self._process = None
                return
            await asyncio.sleep(_POLL_S)

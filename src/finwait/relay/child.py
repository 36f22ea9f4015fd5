"""A forked worker process, as its parent has it.

Forked, not started anew: after ``user`` the interpreter may be out of reach, and the pages are shared.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Final, NoReturn

from finwait.relay import process

if TYPE_CHECKING:
    import socket

__all__ = ["Child", "end_of"]

_POLL_S: Final = 0.1


class Child:
    """A forked worker.

    The child never returns into the supervisor's frames, whose objects it must not touch: their descriptors are closed.
    """

    def __init__(self, control: socket.socket) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        gc.collect()
        self.pid = os.fork()
        if self.pid == 0:
            self._be_a_worker(control.fileno())

    @staticmethod
    def _be_a_worker(control: int) -> NoReturn:
        status = 1
        try:
            gc.freeze()
            signal.set_wakeup_fd(-1)
            kept = os.dup2(control, 3) if control != 3 else 3
            os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.close(null)
            status = process.main(kept)
        except BaseException:  # noqa: BLE001  # the outermost frame of a process
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def poll(self) -> int | None:
        """Return the exit status if it has ended."""
        return self._wait(os.WNOHANG)

    def wait(self) -> int:
        """Wait for its end; minus the signal's number when one ended it."""
        status = self._wait(0)
        assert status is not None
        return status

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self) -> None:
        """Send SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)


async def end_of(process: Child) -> None:
    """Wait until a process has ended; its status is still to be fetched."""
    loop = asyncio.get_running_loop()
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        while process.poll() is None:  # before Linux 5.3, and in sandboxes that are older than the call
            await asyncio.sleep(_POLL_S)
        return
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(pidfd, lambda: None if ended.done() else ended.set_result(None))
    try:
        await ended
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)

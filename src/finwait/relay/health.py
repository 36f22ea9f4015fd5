"""Active checks: connect to each backend now and then, and say when one goes down or comes back.

They run in the supervisor, once for all workers. What real connections find is judged by
`finwait.relay.balance`, in each worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

from finwait.relay import proxy_protocol
from finwait.relay.config.check import probe_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from finwait.relay.config.model import Config, Health

__all__ = ["Checker", "check_once"]


async def check_once(family: int, address: Any, health: Health, header: str = "") -> str:  # noqa: ANN401  # a socket address
    """Check a backend; return why it is down, or an empty string.

    ``header`` is the version of the PROXY protocol that the backend expects: a check speaks for itself (LOCAL).
    """
    try:
        async with asyncio.timeout(health.timeout or None):
            if family == socket.AF_UNIX:
                reader, writer = await asyncio.open_unix_connection(address)
            else:
                reader, writer = await asyncio.open_connection(address[0], address[1])
            try:
                if header:
                    writer.write(proxy_protocol.encode(header, None, None))
                if health.send:
                    writer.write(probe_bytes(health.send))
                    await writer.drain()
                answer = b""
                expected = health.expect.encode()
                while expected and expected not in answer:
                    part = await reader.read(4096)
                    if not part or len(answer) > 65536:
                        return f"the answer does not contain `{health.expect}`"
                    answer += part
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError:
        return f"no answer in {health.timeout:g} s"
    except OSError as error:
        return error.strerror or str(error)
    return ""


class Checker:
    """Runs the checks of all services.

    Args:
        marked: called with service, backend, up, and why, when a backend goes down or comes back.
    """

    def __init__(self, marked: Callable[[str, str, bool, str], None]) -> None:
        self.marked = marked
        self._tasks: dict[tuple[str, str], tuple[Any, asyncio.Task[None]]] = {}
        self._down: set[tuple[str, str]] = set()

    def use(self, config: Config, rows_of: dict[str, list[list[Any]]]) -> None:
        """Check these backends, and no others, from now on."""
        checks = {
            (service.name, row[0]): (service.health, row, service.send_proxy)
            for service in config.service
            if service.health.interval
            for row in rows_of.get(service.name, ())
        }
        for key, (check, task) in list(self._tasks.items()):
            if checks.get(key) != check:
                task.cancel()
                del self._tasks[key]
                if key not in checks and key in self._down:
                    # Nobody checks it any more, so nobody could bring it back.
                    self._down.discard(key)
                    self.marked(*key, True, "it is no longer checked")
        for key, check in checks.items():
            if key not in self._tasks:
                self._tasks[key] = (check, asyncio.get_running_loop().create_task(self._check(key, *check)))

    def down(self) -> Iterator[tuple[str, str]]:
        """Yield (service, backend) of all that are down."""
        yield from sorted(self._down)

    def close(self) -> None:
        """Stop checking."""
        for _, task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    async def _check(self, key: tuple[str, str], health: Health, row: list[Any], header: str) -> None:
        streak = 0
        while True:
            why = await check_once(row[1], row[2], health, header)
            up = key not in self._down
            streak = streak + 1 if bool(why) == up else 0
            if up and streak >= health.fall:
                self._down.add(key)
                streak = 0
                self.marked(*key, False, why)
            elif not up and streak >= health.rise:
                self._down.discard(key)
                streak = 0
                self.marked(*key, True, f"{health.rise} checks in a row succeeded")
            await asyncio.sleep(health.interval)

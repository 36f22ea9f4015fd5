"""What ``backend`` stands for right now: addresses as they are, names asked for again, files watched.

A name that cannot be resolved, or a file that cannot be read, leaves what was known before: a resolver that
is down for a minute must not take the service with it. What changed is told to a callback.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
from typing import TYPE_CHECKING, Any, Final

from finwait import files
from finwait.errors import FileRefused
from finwait.relay.config.addresses import check_backend, split_address
from finwait.relay.notice import say
from finwait.table.units import endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from finwait.relay.config.model import BackendConfig, Config, Service

__all__ = ["MOST_BACKENDS", "Resolver", "fixed", "parse_file"]

MOST_BACKENDS: Final = 1024
"""Addresses taken from one name or one file."""
_MOST_BYTES: Final = 1 << 20
_MOST_SAID: Final = 20
"""Lines of a file about which something is said one by one."""

Row = list[Any]
"""(name, family, address, weight, max_connections), as it goes to the workers."""


def parse_file(text: str, weight: int, max_connections: int) -> tuple[list[Row], list[str]]:
    """Return the backends that a file lists, and what is wrong with its other lines.

    A line is an address, optionally followed by a weight; ``#`` begins a comment.
    """
    rows: list[Row] = []
    wrong: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            share = _check_line(words, weight)
        except ValueError as error:
            wrong.append(f"{number}: {error}")
            continue
        rows.append(fixed(words[0], share, max_connections))
    return rows, wrong


def _check_line(words: list[str], weight: int) -> int:
    """Return the weight that a line of a file of backends says; raise ValueError for what is wrong with it."""
    check_backend(words[0])
    if words[0].startswith(("dns:", "file:")):
        raise ValueError(f"`{words[0]}`: a file lists addresses, not names or files")
    share = weight
    if len(words) > 1:
        if not (words[1].isascii() and words[1].isdecimal() and len(words[1]) < 6):
            raise ValueError(f"`{words[1]}` is not a weight")
        share = int(words[1])
    if not 0 <= share <= 256:
        raise ValueError(f"weight {share} is not within 0 to 256")
    return share


def fixed(address: str, weight: int, most: int) -> Row:
    """Return the row of a backend that is an address."""
    if address.startswith("unix:"):
        return [address, int(socket.AF_UNIX), address[5:], weight, most]
    host, port = split_address(address)
    family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    return [address, int(family), [host, int(port)], weight, most]


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)


class Resolver:
    """Keeps ``found``, the backends of each service, up to date.

    Args:
        changed: called with a service's name and its rows after each change.
        wrong: returns why a backend must not be used (its connections would come back); an empty string if it may.
    """

    def __init__(
        self,
        changed: Callable[[str, list[Row]], None],
        wrong: Callable[[str, Row], str] = lambda _service, _row: "",
    ) -> None:
        self.changed = changed
        self.wrong = wrong
        self.left_out: dict[tuple[str, str], str] = {}
        """Why backends are left out, by service and name."""
        self.found: dict[str, list[Row]] = {}
        self._parts: dict[tuple[str, str], list[Row]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stamps: dict[str, tuple[int, int, int]] = {}

    async def use(self, config: Config) -> None:
        """Take a configuration; returns when everything was asked for once."""
        await self.close()
        self._stamps.clear()
        names: list[tuple[Service, BackendConfig]] = []
        files: list[tuple[Service, BackendConfig]] = []
        for service in config.service:
            for backend in service.backend:
                if backend.address.startswith("dns:"):
                    names.append((service, backend))
                elif backend.address.startswith("file:"):
                    files.append((service, backend))
                else:
                    row = fixed(backend.address, backend.weight, backend.max_connections)
                    self._parts[service.name, backend.address] = [row]
        self._services = config.service
        await asyncio.gather(*(self._ask(backend, service) for service, backend in names))
        for service, backend in files:
            self._read(backend, service)
        self.found.clear()  # what served before leads nowhere any more
        for service in config.service:
            self.found[service.name] = self._rows(service)
        if names:
            self._tasks.append(asyncio.create_task(self._ask_again(names, config.resolve_interval or 10.0)))
        if files:
            self._tasks.append(asyncio.create_task(self._watch(files)))

    async def close(self) -> None:
        """Stop watching."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks.clear()

    def _rows(self, service: Service) -> list[Row]:
        rows: dict[str, Row] = {}
        for backend in service.backend:
            for row in self._parts.get((service.name, backend.address), ()):
                if row[0] not in rows and not self._is_wrong(service.name, row):
                    rows[row[0]] = row
        return list(rows.values())

    def _is_wrong(self, service: str, row: Row) -> bool:
        why = self.wrong(service, row)
        if not why:
            self.left_out.pop((service, row[0]), None)
        elif self.left_out.get((service, row[0])) != why:
            self.left_out[service, row[0]] = why
            say(f"{why}; it is skipped")
        return bool(why)

    def _tell(self, service: Service) -> None:
        rows = self._rows(service)
        if rows != self.found.get(service.name):
            self.found[service.name] = rows
            self.changed(service.name, rows)

    async def _ask_again(self, names: list[tuple[Service, BackendConfig]], every: float) -> None:
        while True:
            await asyncio.sleep(every)
            for service, backend in names:
                await self._ask(backend, service)
                self._tell(service)

    async def _ask(self, backend: BackendConfig, service: Service) -> None:
        host, port = split_address(backend.address[4:])
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:  # ValueError: what the codec says about a name that is none
            say(
                f"could not resolve `{host}` for `{service.name}`: {error}; the addresses known before stay "
                "in use"
            )
            return
        rows = []
        if len(answers) > MOST_BACKENDS:
            say(f"`{host}` has {len(answers)} addresses; the first {MOST_BACKENDS} are used")
        for family, _, _, _, address in sorted(answers, key=str)[:MOST_BACKENDS]:
            shown = endpoint(str(address[0]), port)
            rows.append([shown, int(family), list(address), backend.weight, backend.max_connections])
        self._parts[service.name, backend.address] = rows

    async def _watch(self, files: list[tuple[Service, BackendConfig]]) -> None:
        while True:
            await asyncio.sleep(0.5)
            for service, backend in files:
                self._read(backend, service)
                self._tell(service)

    def _read(self, backend: BackendConfig, service: Service) -> None:
        """Read a file of backends if it is not the one that was read last."""
        path = backend.address[5:]
        key = f"{service.name} {path}"
        try:
            status = os.stat(path)
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if self._stamps.get(key) == stamp:
                return
            text = files.read(path, _MOST_BYTES, own_way=True).decode("utf-8")
        except (OSError, ValueError, FileRefused) as error:
            if self._stamps.get(key) != (0, 0, 0):
                say(f"could not read `{path}`: {_reason(error)}; the backends known before stay in use")
                self._stamps[key] = (0, 0, 0)
            return
        self._stamps[key] = stamp
        rows, wrong = parse_file(text, backend.weight, backend.max_connections)
        for problem in wrong[:_MOST_SAID]:
            say(f"{path}:{problem}; the line is skipped")
        if len(wrong) > _MOST_SAID:
            say(f"{path}: {len(wrong) - _MOST_SAID} more lines are skipped")
        if len(rows) > MOST_BACKENDS:
            say(f"{path} has {len(rows)} backends; the first {MOST_BACKENDS} are used")
            del rows[MOST_BACKENDS:]
        self._parts[service.name, backend.address] = rows

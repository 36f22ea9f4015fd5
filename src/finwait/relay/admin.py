"""Questions to a running relay: one JSON line each over the admin socket, and /metrics for Prometheus.

Answers come from the workers, each of which says its own; a worker that does not answer within its time is named by
its pid in ``silent``, for what it knows is missing.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from finwait import files
from finwait.errors import FileRefused, KernelError
from finwait.relay import listeners, metrics
from finwait.relay.config.model import parse_duration
from finwait.relay.privileges import user_entry

if TYPE_CHECKING:
    from collections.abc import Callable

    from finwait.relay.crew import Crew

__all__ = ["Admin", "bind_admin"]


class _Request(msgspec.Struct):
    """What may be asked over the admin socket."""

    do: str
    ids: Annotated[
        list[Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}-[0-9]{1,18}$")]], msgspec.Meta(max_length=9999)
    ] = []  # msgspec copies it
    seconds: float | str | None = None


class Admin:
    """Answers questions and scrapes.

    Args:
        crew: who is asked.
        drain: begins to drain, for so many seconds or as configured; returns in how many what is left is cut, and
            whether that is as asked.
        is_draining: whether it has begun.
    """

    def __init__(
        self, crew: Crew, drain: Callable[[float | None], tuple[float, bool]], is_draining: Callable[[], bool]
    ) -> None:
        self._crew = crew
        self._drain = drain
        self._is_draining = is_draining
        self._servers: list[asyncio.AbstractServer] = []

    async def serve(self, admin: socket.socket | None, scrapes: socket.socket | None) -> None:
        """Answer at these sockets from now on."""
        if admin is not None:
            # From 3.13 on asyncio removes the path at close, also when a successor listens there.
            keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
            self._servers.append(await asyncio.start_unix_server(self._answer, sock=admin, **keep))
        if scrapes is not None:
            self._servers.append(await asyncio.start_server(self._scrape, sock=scrapes))

    def close(self) -> None:
        """Answer no new questions."""
        for server in self._servers:
            server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                try:
                    request = msgspec.json.decode(line, type=_Request)
                    result, silent = await self._tell(request)
                    answer: dict[str, Any] = {"ok": result, "silent": silent} if silent else {"ok": result}
                except (msgspec.DecodeError, ValueError, RecursionError) as error:
                    answer = {"error": f"{type(error).__name__}: {error}"}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):  # ValueError: a line of more than 64 KiB
            pass
        finally:
            writer.close()

    async def _tell(self, request: _Request) -> tuple[Any, list[int]]:
        """Return what was asked for, and the pids of the workers that said nothing to it."""
        do = request.do
        if do == "ls":
            answers, silent = await self._crew.ask({"do": "list"})
            return [conn for conns in answers for conn in conns], silent
        if do in ("show", "close"):
            numbers: dict[int, list[int]] = {}
            for text in request.ids:
                index, _, number = text.partition("-")
                numbers.setdefault(int(index), []).append(int(number))
            answers, silent = await self._crew.ask_by_number("list" if do == "show" else "close", numbers)
            return sum(answers) if do == "close" else [conn for conns in answers for conn in conns], silent
        if do == "drain":
            seconds = request.seconds
            cut_in_s, as_asked = self._drain(None if seconds is None else parse_duration(seconds))
            return {"cut_in_s": cut_in_s, "as_asked": as_asked}, []
        if do == "stats":
            workers, silent = await self._crew.ask({"do": "stats"})
            statistics = {
                "workers": workers,
                "restarts": self._crew.restarts,
                "draining": self._is_draining(),
            }
            return statistics, silent
        if do == "metrics":
            return await self._metrics()
        raise ValueError(f"there is no request {do!r}")

    async def _metrics(self) -> tuple[str, list[int]]:
        workers, silent = await self._crew.ask({"do": "stats"})
        return metrics.render(workers, self._crew.restarts, len(silent)), silent

    async def _scrape(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            method, _, rest = head.partition(b" ")
            path = rest.partition(b" ")[0].partition(b"?")[0]
            if method not in (b"GET", b"HEAD"):
                status, content = b"405 Method Not Allowed\r\nAllow: GET, HEAD", "only GET and HEAD\n"
            elif path != b"/metrics":
                status, content = b"404 Not Found", "see /metrics\n"
            else:
                status, (content, _silent) = b"200 OK", await self._metrics()
            body = content.encode()
            writer.write(
                b"HTTP/1.1 %s\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
                b"Content-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(body))
            )
            if method != b"HEAD":
                writer.write(body)
            await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()


def bind_admin(path: str, passed: list[socket.socket], user: str) -> socket.socket:
    """Return the admin socket, listening: the one at this path that was handed over, or a new one.

    Raises:
        FinwaitError: it cannot be bound, or others could put a socket of their own in its place.
    """
    for sock in passed:
        # After `user` this process could neither remove the old socket nor make a new one in /run.
        if sock.getsockname() == path:
            return sock
    _check_directory(path, user)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listeners.remove_stale(path)
        sock.bind(path)
    except OSError as error:
        sock.close()
        raise KernelError(
            error.errno or 0,
            f"bind the admin socket `{path}`",
            hint="another relay may use it, or the path may be something else",
        ) from None
    finally:
        os.umask(mask)
    sock.listen(16)
    return sock


def _check_directory(path: str, user: str) -> None:
    """Refuse a directory in which others could put a socket of their own in the place of ours."""
    also = [user_entry(user).pw_uid] if user else []
    try:
        with files.folder(os.path.dirname(path), also=also) as folder:
            reason = "" if folder.sticky else folder.alone
            reason = reason or folder.way
    except OSError as error:
        raise KernelError(error.errno or 0, f"bind the admin socket `{path}`") from None
    if reason:
        raise FileRefused(
            path, f"{reason}, who could answer in place of the relay", hint="name another directory"
        )

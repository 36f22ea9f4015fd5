"""The process that faces the network: the page, its API, ``/metrics`` and ``/healthz``, and no right to anything.

It is started by the looker with two descriptors: one end of a socket pair, on which it asks for pictures, and a socket
that listens. Before it takes a connection it gives up everything: the user becomes nobody, every capability is dropped,
also from the bounding set, and no program that it could run would get one back. What talks to strangers can then ask
for what a page shows anyway, and nothing else. If that fails it ends.

When the looker is gone, what it said last is served for ten minutes, and ``/healthz`` says how old that is.

Where `finwait agent serve` started it, it is told a Unix socket in place of the first descriptor. A looker that is gone
is then waited for, and another one found within a second. Anybody could have made the socket: it must be of root or of
our own user.

Requests, deadlines and limits are `finwait.web.http`; documents are `finwait.web.api`. Who may read is handed over on
standard input, for a command line can be read by everybody; of the token only its hash comes here.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import signal
import socket
import sys
import time
from datetime import UTC, datetime
from typing import BinaryIO, Final, Literal, TypeVar

import msgspec

from finwait.agent import metrics, protocol
from finwait.agent.certificates import tls_context
from finwait.agent.client import check_peer
from finwait.agent.confined import NOBODY, confine, own_user
from finwait.report.agent_page import (
    AboutDocument,
    ActsDocument,
    AgentPage,
    CountsDocument,
    EpisodeItem,
    EpisodesDocument,
    GapsDocument,
    GroupDetail,
    PictureDocument,
    SettingsDocument,
)
from finwait.web.api import Access, Api, ApiRefused
from finwait.web.assets import read_assets
from finwait.web.events import EventStream
from finwait.web.http import PLAIN, HttpReply, HttpRequest, HttpServer, own_names
from finwait.web.openapi import openapi

__all__ = ["OPTIONS_MOST", "Face", "FaceOptions", "decoded", "main"]

_ASK_PATIENCE_S: Final = 1.0
"""For the looker, where there is a picture that can be served."""
_PATIENCE_S: Final = 5.0
_ANSWER_PATIENCE_S: Final = 15.0
"""… where only it has the answer: it may be looking."""
_ENDED: Final = "the looker has ended"
_QUESTIONS_MOST: Final = 8
"""Different questions that wait for the looker."""
_KEPT_S: Final = 5.0
_KEPT_MOST: Final = 8
"""Answers that are given again, and for how long: ten readers of one page are one question."""
_FRESH_S: Final = 1.0
_AFTERWARDS_S: Final = 600.0
"""How long it goes on without a looker."""
_STALE_S: Final = 120.0
"""How old the last look may be; four intervals where that is longer."""
_SAID_EVERY_S: Final = 60.0
_AGAIN_S: Final = 1.0
"""Between two attempts to reach a looker at its socket."""
_PACE_S: Final = 5.0
_SLOWEST_S: Final = 10.0
"""Between two questions for the groups while somebody reads; else thrice that."""


class FaceOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the looker hands over on standard input."""

    interval_s: float = 15.0
    token: str = ""
    """SHA-256 of the token, in hexadecimal; empty for none."""
    served: bool = False
    """Whether page and API are served."""
    certificate: str = ""
    """In PEM; empty for no TLS."""
    key: str = ""
    end: bool = False
    """Whether the agent ends, and this process with it: a looker without CAP_KILL cannot send it a signal."""


OPTIONS_MOST: Final = 1 << 20
"""Bytes of a line of them."""


def decoded(line: bytes) -> FaceOptions:
    """Return what a line of the looker's says; nothing is served where it says nothing."""
    return msgspec.json.decode(line or b"{}", type=FaceOptions)


class Face:
    """Serves what the looker says.

    Args:
        channel: connected to the looker; or the path of its Unix socket, at which it may come and go.
        interval_s: seconds between two looks.
        access: who may read page and API.
    """

    def __init__(
        self, channel: socket.socket | str, interval_s: float = 15.0, access: Access | None = None
    ) -> None:
        self._channel = channel
        self._stale_s = max(_STALE_S, 4 * interval_s)
        self._every_s = min(_SLOWEST_S, max(1.0, interval_s / 2))
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._channel_free = asyncio.Lock()
        self._out: dict[bytes, asyncio.Task[protocol.AgentAnswer]] = {}
        """Questions that wait for their answer."""
        self._kept: dict[bytes, tuple[float, protocol.AgentAnswer]] = {}
        self._picture: protocol.RoundPicture | None = None
        self._page: AgentPage | None = None
        self._known = -1
        """The look of this looker of which `_page` tells."""
        self._published: tuple[int, str] | None = None
        self._asked_at = float("-inf")
        self._gone_at: float | None = None if isinstance(channel, socket.socket) else time.monotonic()
        self._absence = (
            _ENDED if isinstance(channel, socket.socket) else f"no looker answers at `{channel}` yet"
        )
        """What is said where no looker is there."""
        self._said_at = float("-inf")
        self._events = EventStream()
        self._access = access or Access()
        self._api = Api(self, self._access, self._events, msgspec.json.encode(openapi()))
        self._assets = read_assets()
        self._server = HttpServer(self._answer, own_names())

    async def serve(self, listener: socket.socket, changes: BinaryIO | None = None) -> None:
        """Serve until the looker has been gone for long.

        Args:
            listener: where.
            changes: a pipe on which `FaceOptions` come, one a line, that hold from then on.
        """
        if isinstance(self._channel, socket.socket):
            self._reader, self._writer = await asyncio.open_connection(
                sock=self._channel, limit=protocol.ANSWER_MOST
            )
        await self._reach()
        following = asyncio.create_task(self._follow())
        changing = asyncio.create_task(self._change(changes))
        try:
            async with await self._server.start(listener):
                while self._gone_at is None or time.monotonic() - self._gone_at < _AFTERWARDS_S:
                    await asyncio.sleep(_PACE_S if self._gone_at is None else _AGAIN_S)
                    await self._reach()
                    await self._ask()
        finally:
            following.cancel()
            changing.cancel()
            if self._writer is not None:
                self._writer.close()

    async def _reach(self) -> None:
        """Find the looker that answers at the path, where none is at hand; one that is gone for long is forgotten."""
        if self._gone_at is None or isinstance(self._channel, socket.socket):
            return
        if time.monotonic() - self._gone_at > _AFTERWARDS_S - 2 * _PACE_S:
            self._gone_at = time.monotonic()
            self._picture = self._page = None
        try:
            reader, writer = await asyncio.open_unix_connection(self._channel, limit=protocol.ANSWER_MOST)
        except OSError as error:
            reason = error.strerror or str(error)
            if isinstance(error, PermissionError):
                reason += f" (this process has user {os.getuid()} and group {os.getgid()})"
            self._absence = f"no looker answers at `{self._channel}`: {reason}"
            self._say_once(f"no looker answers at `{self._channel}`, waiting for it: {reason}")
            return
        try:
            check_peer(writer.get_extra_info("socket"))
        except OSError as error:
            writer.close()
            self._absence = f"what answers at `{self._channel}` is not believed: {error.strerror}"
            self._say_once(self._absence)
            return
        self._reader, self._writer = reader, writer
        self._known, self._published = -1, None  # it counts its looks anew
        self._asked_at = float("-inf")
        self._kept.clear()
        self._gone_at = None

    def _say_once(self, text: str) -> None:
        """Say what is wrong, once a minute."""
        if time.monotonic() - self._said_at >= _SAID_EVERY_S:
            self._said_at = time.monotonic()
            sys.stderr.write(f"finwait agent: {text}\n")
            sys.stderr.flush()

    async def _change(self, changes: BinaryIO | None) -> None:
        """Take up what the looker changes; streams that are open go on."""
        if changes is None:
            return
        lines = asyncio.StreamReader(limit=OPTIONS_MOST)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), changes
        )
        while line := await lines.readline():
            try:
                options = decoded(line)
                if options.end:
                    signal.raise_signal(signal.SIGTERM)
                self.configure(options)
            except (OSError, ValueError) as error:
                sys.stderr.write(f"finwait agent: a change could not be taken up: {ascii(error)[:300]}\n")

    def configure(self, options: FaceOptions) -> None:
        """Let from now on those read who may, with this certificate.

        Raises:
            OSError: the certificate is none.
            ValueError: the key is encrypted.
        """
        self._access = Access(token=options.token, served=options.served)
        self._api.access = self._access
        if options.certificate:
            self._server.context = tls_context(options.certificate.encode(), options.key.encode())

    # ── the looker ───────────────────────────────────────────────────────────────────────────────────────

    async def _ask(self) -> None:
        """Get the last picture, where ours is not fresh.

        A question is waited for where there is no picture yet, or the looker answers at once; while one is out that it
        does not answer, the last picture is served, whose age is told.
        """
        if self._gone_at is not None or time.monotonic() - self._asked_at < _FRESH_S:
            return
        line = protocol.encode(protocol.AskPicture())
        if line in self._out and self._picture is not None:
            return
        out = self._question(line)
        if out is not None:
            await asyncio.wait((out,), timeout=_PATIENCE_S if self._picture is None else _ASK_PATIENCE_S)

    def _question(self, line: bytes) -> asyncio.Task[protocol.AgentAnswer] | None:
        """Return the task that asks, one for each question; None where too many wait."""
        out = self._out.get(line)
        if out is None:
            if len(self._out) >= _QUESTIONS_MOST:
                return None
            out = self._out[line] = asyncio.create_task(self._exchange(line))
            out.add_done_callback(lambda _: self._out.pop(line, None))
        return out

    async def _exchange(self, line: bytes) -> protocol.AgentAnswer:
        """Ask the looker once; however long it takes, a busy looker is none that has ended."""
        async with self._channel_free:
            if self._gone_at is not None:
                return protocol.AgentAnswer(error=self._absence)
            assert self._reader is not None
            assert self._writer is not None
            try:
                self._writer.write(line)
                await self._writer.drain()
                data = await self._reader.readuntil(b"\n")
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                self._gone_at, self._absence = time.monotonic(), _ENDED
                self._writer.close()
                return protocol.AgentAnswer(error=self._absence)
        try:
            answer = protocol.decode_answer(data)
        except ValueError:
            return protocol.AgentAnswer(error="the looker said what nobody understands")
        if answer.picture is not None:
            self._asked_at = time.monotonic()
            self._picture = answer.picture
        return answer

    async def _follow(self) -> None:
        """Have the groups of the last look at hand, and hand them to those who wait for the next one."""
        while True:
            try:
                await self._renew()
            except Exception as error:  # noqa: BLE001 - the next look is another one
                sys.stderr.write(f"finwait agent: a look could not be shown: {ascii(error)[:300]}\n")
                await asyncio.sleep(_SAID_EVERY_S)
            waited_for = self._events.readers or self._page is None
            await asyncio.sleep(self._every_s if waited_for else 3 * self._every_s)

    async def _renew(self) -> None:
        if self._gone_at is None:
            out = self._question(protocol.encode(protocol.AskPage(known=self._known)))
            if out is not None:
                await asyncio.wait((out,), timeout=_ANSWER_PATIENCE_S)
                if out.done() and (page := out.result().page) is not None:
                    self._page = page
                    self._known = page.rounds
                    self._forget_groups()
        if self._page is not None and (self._page.rounds, self.looker) != self._published:
            self._published = self._page.rounds, self.looker
            document = PictureDocument(picture=self._page, looker=self.looker)
            self._events.publish("look", msgspec.json.encode(document))

    def _forget_groups(self) -> None:
        """Let go of what was said of the look before: one page must not show two looks."""
        self._kept = {
            line: known
            for line, known in self._kept.items()
            if not isinstance(protocol.decode_question(line), protocol.AskPage | protocol.AskGroup)
        }

    async def _told(self, question: protocol.Question) -> protocol.AgentAnswer:
        """Return what the looker says; what it has just said is not asked again.

        Raises:
            ApiRefused: it says nothing, or that the FILTER is none.
        """
        line = protocol.encode(question)
        now = time.monotonic()
        at, answer = self._kept.get(line, (float("-inf"), None))
        if answer is None or (now - at > _KEPT_S and self._gone_at is None):
            out = self._question(line)
            if out is None:
                raise ApiRefused(503, "too many questions wait", "ask again in some seconds")
            await asyncio.wait((out,), timeout=_ANSWER_PATIENCE_S)
            if not out.done():
                raise ApiRefused(503, "the looker is looking", "ask again in some seconds")
            answer = out.result()
            if answer.refused is None and answer.error is None:
                self._kept.pop(line, None)
                self._kept[line] = now, answer
                while len(self._kept) > _KEPT_MOST:
                    del self._kept[next(iter(self._kept))]
        if answer.refused is not None:
            raise ApiRefused(400, answer.refused, answer.error or "")
        if answer.error is not None:
            raise ApiRefused(503, answer.error)
        return answer

    # ── what documents are made of ───────────────────────────────────────────────────────────────────────

    @property
    def looker(self) -> Literal["running", "slow", "gone"]:
        """Whether the process that looks runs."""
        if self._gone_at is not None:
            return "gone"
        at_ns = self._page.look_at_ns if self._page is not None else 0
        return "slow" if at_ns and time.time() - at_ns / 1e9 > self._stale_s else "running"

    async def page(self, row_filter: str) -> AgentPage:
        """Return the groups."""
        if not row_filter and self._page is not None:
            return self._page
        answer = await self._told(protocol.AskPage(filter=row_filter))
        return _given(answer.page)

    async def group(self, name: str, row_filter: str) -> GroupDetail | None:
        """Return one group; None where there is none."""
        return (await self._told(protocol.AskGroup(id=name, filter=row_filter))).group

    async def episodes(self, row_filter: str, since_ns: int, limit: int, *, open_: bool) -> EpisodesDocument:
        """Return episodes."""
        since_ns = since_ns // 10_000_000_000 * 10_000_000_000  # readers of one page ask one question
        question = protocol.AskHistory(since_ns=since_ns, open=open_, limit=limit, filter=row_filter)
        answer = await self._told(question)
        items = [msgspec.convert(item, EpisodeItem) for item in _given(answer.episodes)]
        gaps = answer.gaps.items if answer.gaps is not None else []
        return EpisodesDocument(items=items, truncated=answer.truncated, gaps=gaps, looker=self.looker)

    async def counts(self, row_filter: str, since_s: int, by: Literal["rule", "workload"]) -> CountsDocument:
        """Return counts over time."""
        question = protocol.AskCounts(since_s=since_s // 10 * 10, by=by, filter=row_filter)
        return self._marked(_given((await self._told(question)).counts))

    async def settings(self) -> SettingsDocument:
        """Return the settings."""
        return self._marked(_given((await self._told(protocol.AskSettings())).settings))

    async def acts(self, limit: int) -> ActsDocument:
        """Return the journal."""
        return self._marked(_given((await self._told(protocol.AskJournal(limit=limit))).acts))

    async def gaps(self) -> GapsDocument:
        """Return what could not be seen."""
        return self._marked(_given((await self._told(protocol.AskGaps())).gaps))

    async def about(self) -> AboutDocument:
        """Return how the agent is."""
        status = _given((await self._told(protocol.AskStatus())).status)
        return AboutDocument(
            looker=self.looker, version=status.version, pid=status.pid, boot_id=status.boot,
            started=_when(status.started_ns), at=_when(status.at_ns), share=status.share, cpu_s=status.cpu_s,
            rounds=status.rounds, open=status.open, undiagnosed=status.undiagnosed, untracked=status.untracked,
            namespaces=status.namespaces, unseen_s=status.unseen_s, store=status.store,
            store_bytes=status.store_bytes, store_errors=status.store_errors, store_said=status.store_said,
        )  # fmt: skip

    def _marked(self, document: _Marked) -> _Marked:
        return msgspec.structs.replace(document, looker=self.looker)

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────

    async def _answer(self, request: HttpRequest) -> HttpReply:
        """Return the answer to a request."""
        path = request.path
        if path.startswith("/api/"):
            return await self._api.answer(request)
        if path in self._assets:
            if not self._access.served:
                return HttpReply(403, PLAIN, b"the page is not served here without `--token-file`\n")
            kind, body = self._assets[path]
            return HttpReply(200, kind, body)
        if path not in ("/metrics", "/healthz"):
            return HttpReply(404, PLAIN, b"see /, /api/v1/openapi.json, /metrics and /healthz\n")
        await self._ask()
        picture = self._picture
        if picture is None:
            absent = self._gone_at is not None
            text = self._absence if absent else "the first look is not finished"
            return HttpReply(503, PLAIN, f"{text}\n".encode())
        if path == "/metrics":
            body, kind = metrics.render(picture, request.header("accept"))
            return HttpReply(200, kind, body)
        return self._health(picture)

    def _health(self, picture: protocol.RoundPicture) -> HttpReply:
        age = max(0.0, time.time() - picture.at_ns / 1e9)
        look_age = max(0.0, time.time() - picture.look_at_ns / 1e9)
        if self._gone_at is not None:
            status, text = 503, f"{self._absence}; data is {age:.0f} s old"
        elif not picture.look_at_ns:
            status, text = 503, "no look has succeeded yet"
        elif look_age > self._stale_s:
            status, text = 503, f"the last look that succeeded was {look_age:.0f} s ago"
        else:
            status, text = 200, f"ok; data is {age:.0f} s old"
        return HttpReply(status, PLAIN, f"{text}\n".encode())


_Marked = TypeVar("_Marked", bound=msgspec.Struct)
_Told = TypeVar("_Told")


def _given(value: _Told | None) -> _Told:
    """Return what an answer should have.

    Raises:
        ApiRefused: it has not.
    """
    if value is None:
        raise ApiRefused(503, "the looker gave no answer", "ask again in some seconds")
    return value


def _when(ns: int) -> str:
    return datetime.fromtimestamp(ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _load() -> None:
    """Import what is needed later: nobody may not be able to read it then."""
    empty = protocol.RoundPicture(
        version="", boot="", pid=0, rounds=0, at_ns=0, sockets={}, groups=[], opened=[], ended=[], durations=[],
        looks=[], limits=[], cpu_s=0.0, look_at_ns=0, gaps={}, series_dropped=0, untracked=0, namespaces=0,
        unseen_s=0.0, store_errors=0, undiagnosed=0,
    )  # fmt: skip
    for accept in (
        "",
        "application/openmetrics-text; version=1.0.0",
        "application/openmetrics-text; version=x",
    ):
        metrics.render(empty, accept)
    for codec in ("ascii", "idna", "latin-1", "utf-8"):
        "a".encode(codec)
        codecs.lookup(codec)


def _first_line(pipe: BinaryIO) -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) < OPTIONS_MOST and (more := pipe.read(1)):
        data += more
    return data


def main(argv: list[str]) -> int:
    """Serve; the arguments are the numbers of the two descriptors; `FaceOptions` come on standard input, one a line.

    In place of the first descriptor there may be the path of the looker's socket: then one line comes, and no other.
    """
    channel = socket.socket(fileno=int(argv[0])) if argv[0].isdecimal() else argv[0]
    listener = socket.socket(fileno=int(argv[1]))
    changes = os.fdopen(0, "rb", buffering=0)  # what is behind the first line must not be read ahead
    options = decoded(_first_line(changes))
    _load()
    face = Face(channel, options.interval_s)
    face.configure(options)
    try:
        confine(NOBODY if isinstance(channel, str) else own_user(0))
    except OSError as error:
        sys.stderr.write(
            f"finwait agent: the process that serves the page could not give up its rights: {error}\n"
        )
        return 1
    if isinstance(channel, str):
        changes.close()
        signal.signal(
            signal.SIGTERM, signal.default_int_handler
        )  # else the first process of a container stays
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(face.serve(listener, changes if isinstance(channel, socket.socket) else None))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

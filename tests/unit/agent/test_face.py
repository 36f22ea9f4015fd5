"""The face: what it asks the looker, and what it serves while the looker is slow, or gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import msgspec
import pytest

from finwait.agent import face, protocol
from finwait.web.api import Access
from tests.unit.agent.test_metrics import PICTURE
from tests.unit.web.documents import answer_to

GET = b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n"


class Served:
    """A face that serves on loopback, and a looker that answers, or hangs."""

    def __init__(self, interval_s: float = 15.0, access: Access | None = None) -> None:
        ours, self.looker = socket.socketpair()
        self.face = face.Face(ours, interval_s, access)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.picture = PICTURE
        self.answering = asyncio.Event()
        self.answering.set()
        self.asked: list[protocol.Question] = []

    async def __aenter__(self) -> Self:
        self.looking = asyncio.create_task(self._look())
        self.serving = asyncio.create_task(self.face.serve(self.listener))
        return self

    async def _look(self) -> None:
        reader, writer = await asyncio.open_connection(sock=self.looker)
        try:
            while line := await reader.readline():
                question = protocol.decode_question(line)
                self.asked.append(question)
                await self.answering.wait()
                writer.write(protocol.encode(answer_to(question, self.picture)))
        finally:
            writer.close()

    async def __aexit__(self, *_: object) -> None:
        self.serving.cancel()
        self.looking.cancel()
        await asyncio.gather(self.serving, self.looking, return_exceptions=True)

    def tell(self, **more: object) -> None:
        """Let the looker say this from now on."""
        self.picture = msgspec.structs.replace(PICTURE, **more)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.listener.getsockname())

    async def get(self, path: bytes = b"/healthz", more: bytes = b"") -> bytes:
        reader, writer = await self.connect()
        writer.write(GET % (path, more))
        answer = await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return answer


async def until(holds: Callable[[], object], served: Served | Reached | None = None) -> None:
    """Wait until it holds; let somebody read meanwhile."""
    async with asyncio.timeout(30):
        while not holds():
            if served is not None:
                await served.get(b"/api/v1/gaps")
            await asyncio.sleep(0.01)


def test_a_looker_that_is_slow_has_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(face, "_FRESH_S", 0.0)

    async def scene() -> None:
        ours, theirs = socket.socketpair()
        made = face.Face(ours)
        made._reader, made._writer = await asyncio.open_connection(sock=ours)
        await made._ask()
        assert made._picture is None
        assert made._gone_at is None
        assert theirs.recv(100) == protocol.encode(protocol.AskPicture())
        theirs.sendall(protocol.encode(protocol.AgentAnswer(picture=PICTURE)))
        await made._ask()
        assert made._picture == PICTURE
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(100)  # the late answer was taken for the one question
        theirs.close()
        await made._ask()
        assert made._gone_at is not None
        made._writer.close()

    asyncio.run(scene())


def test_an_accept_header_that_is_no_version_gets_the_plain_format() -> None:
    pytest.importorskip("prometheus_client")

    async def scene() -> None:
        async with Served() as served:
            answer = await served.get(b"/metrics", b"Accept: application/openmetrics-text; version=abc\r\n")
            assert answer.startswith(b"HTTP/1.1 200 OK")
            assert b"finwait_stuck_connections" in answer

    asyncio.run(scene())


def test_a_looker_that_hangs_does_not_hold_up_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face, "_FRESH_S", 0.0)
    monkeypatch.setattr(face, "_ASK_PATIENCE_S", 0.01)
    monkeypatch.setattr(face, "_PATIENCE_S", 3600.0)

    async def scene() -> None:
        async with Served() as served:
            served.tell(look_at_ns=time.time_ns())
            assert b"200 OK" in await served.get()
            served.answering.clear()
            for answer in await asyncio.gather(*(served.get() for _ in range(20))):  # no answer comes
                assert b"200 OK" in answer

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("interval_s", "look_ago_s", "status"),
    [
        (15.0, 60, b"200"),
        (15.0, 130, b"503"),
        (600.0, 1800, b"200"),
        (600.0, 2500, b"503"),
        (15.0, None, b"503"),
    ],
)
def test_health_is_judged_by_the_last_look_and_the_interval(
    interval_s: float, look_ago_s: int | None, status: bytes
) -> None:
    async def scene() -> None:
        async with Served(interval_s) as served:
            now = time.time_ns()
            served.tell(at_ns=now, look_at_ns=0 if look_ago_s is None else now - look_ago_s * 10**9)
            assert (await served.get()).split()[1] == status

    asyncio.run(scene())


def document(answer: bytes) -> dict[str, object]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/json" in head
    made: dict[str, object] = json.loads(body)
    return made


def test_what_was_seen_last_is_served_on_and_says_that_the_looker_is_gone() -> None:
    async def scene() -> None:
        async with Served() as served:
            served.tell(look_at_ns=time.time_ns())
            await until(lambda: served.face._page is not None)
            assert document(await served.get(b"/api/v1/picture"))["looker"] == "running"
            served.looking.cancel()
            await until(lambda: served.face._gone_at is not None, served)
            picture = document(await served.get(b"/api/v1/picture"))
            assert picture["looker"] == "gone"
            assert b" 503 " in (await served.get(b"/api/v1/settings")).partition(b"\r\n")[0]

    asyncio.run(scene())


def test_readers_of_one_page_are_one_question() -> None:
    async def scene() -> None:
        async with Served() as served:
            await asyncio.gather(*(served.get(b"/api/v1/settings") for _ in range(20)))
            await served.get(b"/api/v1/settings")
            assert [q for q in served.asked if isinstance(q, protocol.AskSettings)] == [
                protocol.AskSettings()
            ]

    asyncio.run(scene())


def test_questions_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face, "_ANSWER_PATIENCE_S", 0.2)

    async def scene() -> None:
        async with Served() as served:
            served.answering.clear()
            paths = [b"/api/v1/history?since=%dm" % k for k in range(1, 25)]
            answers = await asyncio.gather(*(served.get(path) for path in paths))
            assert {answer.split()[1] for answer in answers} == {b"503"}
            assert len(served.face._out) <= face._QUESTIONS_MOST

    asyncio.run(scene())


class Reached:
    """A face that finds its looker at a path, and lookers that come and go there."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "serve.sock")
        self.face = face.Face(self.path, access=Access(served=True))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.picture = PICTURE
        self.clients: list[asyncio.StreamWriter] = []
        self.server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self.serving = asyncio.create_task(self.face.serve(self.listener))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.end()
        self.serving.cancel()
        await asyncio.gather(self.serving, return_exceptions=True)

    async def look(self, **more: object) -> None:
        """Let a looker answer at the path."""
        self.picture = msgspec.structs.replace(PICTURE, look_at_ns=time.time_ns(), **more)
        self.server = await asyncio.start_unix_server(self._client, self.path)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients.append(writer)
        while line := await reader.readline():
            writer.write(protocol.encode(answer_to(protocol.decode_question(line), self.picture)))
        writer.close()

    def end(self) -> None:
        """Let the looker be gone."""
        if self.server is not None:
            self.server.close()
        for writer in self.clients:
            writer.transport.abort()
        self.clients.clear()
        Path(self.path).unlink(missing_ok=True)

    async def get(self, path: bytes = b"/healthz") -> bytes:
        reader, writer = await asyncio.open_connection(*self.listener.getsockname())
        writer.write(GET % (path, b""))
        answer = await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return answer


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_AGAIN_S", 0.01), ("_PACE_S", 0.01), ("_FRESH_S", 0.0), ("_SLOWEST_S", 0.05)):
        monkeypatch.setattr(face, name, value)


@pytest.mark.usefixtures("quick")
def test_a_looker_at_a_path_may_come_later_and_another_one_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scene() -> None:
        async with Reached(tmp_path) as reached:
            assert b"503" in await reached.get()
            await reached.look()
            await until(lambda: reached.face._page is not None)
            assert b"200 OK" in await reached.get()
            assert reached.face.looker == "running"
            reached.end()
            await until(lambda: reached.face.looker == "gone", reached)
            said = await reached.get()
            assert b"the looker has ended; data is" in said or b"No such file or directory; data is" in said
            known = reached.face._page
            await reached.look()  # it counts its looks from the same number
            await until(lambda: reached.face.looker == "running" and reached.face._page is not known)
            assert b"200 OK" in await reached.get()

    asyncio.run(scene())
    assert capsys.readouterr().err.count("waiting for it") == 1


@pytest.mark.usefixtures("quick")
def test_what_a_looker_said_that_is_gone_for_long_is_forgotten_and_the_looker_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        async with Reached(tmp_path) as reached:
            await reached.look()
            await until(lambda: reached.face._picture is not None, reached)
            monkeypatch.setattr(face, "_AFTERWARDS_S", 0.1)
            reached.end()
            await until(lambda: reached.face._picture is None, reached)
            assert b"503" in await reached.get(b"/metrics")
            await reached.look()
            await until(lambda: reached.face._picture is not None, reached)
            assert not reached.serving.done()

    asyncio.run(scene())


@pytest.mark.usefixtures("quick")
def test_a_socket_of_another_user_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_sock: object) -> None:
        raise PermissionError(1, "user 4711 answers there")

    monkeypatch.setattr(face, "check_peer", refuse)

    async def scene() -> None:
        async with Reached(tmp_path) as reached:
            await reached.look()
            await until(lambda: reached.clients, reached)
            assert b"503" in await reached.get()
            assert reached.face._picture is None

    asyncio.run(scene())
    assert "user 4711 answers there" in capsys.readouterr().err

"""Names that are asked for again: what changes, and what stays when nobody answers."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from finwait.relay.config import BackendConfig, Config, Service
from finwait.relay.resolve import Resolver, parse_file


def config(*addresses: str) -> Config:
    backends = tuple(BackendConfig(address=address) for address in addresses)
    return Config(service=(Service(listen=("*:1",), backend=backends),), resolve_interval=0.01)


def test_a_name_is_asked_for_again_and_a_resolver_that_is_down_changes_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers: list[list[str] | OSError] = [
        ["192.0.2.1"],
        socket.gaierror(-3, "Temporary failure"),
        ["192.0.2.1", "192.0.2.2"],
    ]
    told: list[list[str]] = []

    async def scenario() -> list[str]:
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        async def answer(host: str, port: int, **_: Any) -> Any:
            assert (host, port) == ("app.example", 80)
            now = answers.pop(0) if len(answers) > 1 else answers[0]
            if isinstance(now, OSError):
                raise now
            return [(socket.AF_INET, 1, 6, "", (one, port)) for one in now]

        loop.getaddrinfo = answer  # type: ignore[method-assign,assignment]

        def note(service: str, rows: list[list[Any]]) -> None:
            assert service == "relay"
            told.append([row[0] for row in rows])
            changed.set()

        resolver = Resolver(note)
        await resolver.use(config("dns:app.example:80", "10.0.0.9:80"))
        first = [row[0] for row in resolver.found["relay"]]
        async with asyncio.timeout(10):
            await changed.wait()
        await resolver.close()
        return first

    assert asyncio.run(scenario()) == ["192.0.2.1:80", "10.0.0.9:80"]
    assert told == [["192.0.2.1:80", "192.0.2.2:80", "10.0.0.9:80"]]
    assert "could not resolve `app.example` for `relay`" in capsys.readouterr().err


def test_a_file_that_is_gone_leaves_what_was_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listing = tmp_path / "backends"
    listing.write_text("10.0.0.1:80 3\n# a comment\n[2001:db8::1]:80\n")

    async def scenario() -> None:
        resolver = Resolver(lambda *_: None)
        await resolver.use(config(f"file:{listing}"))
        before = list(resolver.found["relay"])
        listing.unlink()
        await resolver.use(config(f"file:{listing}"))
        assert resolver.found["relay"] == before
        await resolver.close()
        assert [(row[0], row[3]) for row in before] == [("10.0.0.1:80", 3), ("[2001:db8::1]:80", 1)]

    asyncio.run(scenario())
    assert "could not read" in capsys.readouterr().err


def test_lines_that_are_no_backends_are_named() -> None:
    rows, wrong = parse_file("10.0.0.1:80 x\nfile:/etc\n10.0.0.2:80 300\n10.0.0.3:80\n", 1, 0)
    assert [row[0] for row in rows] == ["10.0.0.3:80"]
    assert [line.partition(":")[0] for line in wrong] == ["1", "2", "3"]

"""Names that are asked for again: what changes, and what stays when nobody answers."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest

from finwait.relay.config.model import BackendConfig, Config, Service
from finwait.relay.resolve import MOST_BACKENDS, Resolver, parse_file


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


async def found_by(wanted: Config) -> list[list[Any]]:
    resolver = Resolver(lambda *_: None)
    try:
        await resolver.use(wanted)
        return resolver.found["relay"]
    finally:
        await resolver.close()


@pytest.mark.parametrize("what", ["a FIFO", "a device", "a directory", "larger than"])
def test_a_file_of_backends_that_is_none_never_holds_anybody_up(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "backends"
    if what == "a FIFO":
        os.mkfifo(path)
    elif what == "a device":
        path.symlink_to("/dev/zero")
    elif what == "a directory":
        path.mkdir()
    else:
        path.write_bytes(b"10.0.0.1:80\n" * 100_000)
    assert asyncio.run(found_by(config(f"file:{path}"))) == []
    assert what in capsys.readouterr().err


def test_a_file_of_very_many_backends_is_cut_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "backends"
    path.write_text("".join(f"10.0.{k >> 8}.{k & 255}:80\n" for k in range(5000)))
    assert len(asyncio.run(found_by(config(f"file:{path}")))) == MOST_BACKENDS
    assert f"has 5000 backends; the first {MOST_BACKENDS} are used" in capsys.readouterr().err


def test_lines_of_a_file_cannot_write_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "backends"
    path.write_bytes("\x1b[2J\x1b]0;x\x07:80\n\x9b31m:1\n\u202egnp.x:2\n10.0.0.1:1 9e9\n".encode() * 20)
    asyncio.run(found_by(config(f"file:{path}")))
    err = capsys.readouterr().err
    assert err.isascii()
    assert all(line.isprintable() for line in err.splitlines())
    assert "60 more lines are skipped" in err


def test_a_name_of_very_many_addresses_is_cut_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answers(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, 1, 6, "", (f"10.0.{k >> 8}.{k & 255}", 80)) for k in range(10_000)]

    monkeypatch.setattr(socket, "getaddrinfo", answers)
    assert len(asyncio.run(found_by(config("dns:many.example:80")))) == MOST_BACKENDS
    assert f"10000 addresses; the first {MOST_BACKENDS}" in capsys.readouterr().err


def test_what_a_codec_says_about_a_name_is_no_end_of_the_relay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise UnicodeEncodeError("idna", "a..b", 0, 1, "label empty or too long")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert asyncio.run(found_by(config("dns:a.example:80"))) == []
    assert "could not resolve" in capsys.readouterr().err

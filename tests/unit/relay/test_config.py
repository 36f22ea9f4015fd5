"""What a configuration may say, and how a mistake in it is told."""

from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from finwait.relay.command import RunParser, build_config, option_of
from finwait.relay.config.addresses import parse_listen
from finwait.relay.config.model import ConfigError, parse_duration
from finwait.relay.config.reference import json_schema, options, tables
from finwait.relay.config.toml import load

SERVICE = '[[service]]\nlisten = ["*:1"]\nbackend = [{ address = "10.0.0.5:80" }]\n'


def told(tmp_path: Path, text: str | bytes) -> tuple[str, str]:
    """What is said about a file, without the folder, and the hint."""
    path = tmp_path / "r.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    return str(caught.value).replace(f"{tmp_path}/", ""), caught.value.hint


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("half_close = 5\n" + SERVICE, "r.toml:1: this key does not exist here", "to `[service.timeouts]`"),
        (SERVICE + "half_close = 5\n", "r.toml:4: this key does not exist", "`half_close` belongs to `[service.t"),
        (SERVICE + "[service.timeouts]\nhalf_clsoe = 5\n", "r.toml:5: this key does not", "did you mean `half_close`?"),
        (SERVICE + "workers = 2\n", "r.toml:4: this key does not exist here", "`workers` belongs to the top level"),
        (
            SERVICE + "[service.client]\nhealth = 1\n",
            "r.toml:5: this key does not exist here",
            "`health` belongs to `[[service]]`",
        ),
        (SERVICE + "[service.pool]\nidle_timeot = 1\n", "r.toml:5: this key does not", "did you mean `idle_timeout`?"),
        (SERVICE.replace('["*:1"]', '"*:1"'), "r.toml:2: expected `array`, got `str`", "a list of text, for"),
        (SERVICE + "[service.timeouts]\nidle = 'soon'\n", "r.toml:5: `soon` is not a duration", "--explain"),
        (SERVICE + "[service.timeouts]\ntries = 0\n", "r.toml:5: `0` is less than 1", "number, at least 1"),
        (SERVICE + "name = 'a b'\n", "r.toml:4: `a b` has characters or a length", "it must be letters, digits, `_`"),
        (SERVICE + "[service.timeouts]\nidle = true\n", "r.toml:5: `True` is not a duration", ""),
        (SERVICE + "balance = 'fair'\n", "r.toml:4: invalid enum value 'fair'", '"round_robin", "least_connections"'),
        (SERVICE + "[service.client]\nkeepalive_idle = '1d'\n", "r.toml:5: `1d` is more than 32767", "a duration"),
        (SERVICE + "[service.client]\nkeepalive_idle = '300ms'\n", "r.toml:5: keepalive times are whole seconds", ""),
        ('workers = "2"\n' + SERVICE, "r.toml:1: expected `int`, got `str`", ""),
        ('[[service]]\nlisten = ["*:1"]\n', "r.toml:1: `backend` is missing", "backend = [{ address ="),
        ("workers = 1\n", "r.toml:1: `service` is missing", "begins with [[service]]"),
        ("", "r.toml:1: `service` is missing", ""),
        (SERVICE.replace("10.0.0.5", "app.example"), "r.toml:3: `app.example` is not an IP address", ""),
        (SERVICE.replace("*:1", "*:1-5000"), "r.toml:2: `1-5000` is 5000 ports; a range has at most 1024", ""),
        (SERVICE.replace("*:1", "unix:" + "x" * 108), "r.toml:2: a Unix socket's path has at most 107 bytes", ""),
        (SERVICE + SERVICE, "r.toml:4: two services are called `relay`", ""),
        (SERVICE + 'allow = ["10.0.0.1/8"]\n', "r.toml:4: 10.0.0.1/8 has host bits set; write for", ""),
        (SERVICE + "[service.health]\nsend = '\\x'\n", "r.toml:5: an escape is not one of", ""),
        (
            SERVICE + 'send_proxy = "v2"\n[service.health]\nsend = "PROXY UNKNOWN\\r\\nGET"\n',
            "r.toml:6: send_proxy already puts a header before it",
            "",
        ),
        ("a = \n" + SERVICE, "r.toml:1: Invalid value", "not valid TOML"),
        ("x = " + "[" * 3000, "r.toml:1: nested too deeply", ""),
        ("\nx = " + "9" * 5000, "r.toml:2: Exceeds the limit", ""),
        (b"a = 1\nb = '\xff'\n", "r.toml:2: not UTF-8 at byte 11", ""),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_and_what_would_be_right(
    tmp_path: Path, text: str | bytes, said: str, hint: str
) -> None:
    message, advice = told(tmp_path, text)
    assert message.startswith(said), message
    assert hint in advice, advice


def test_a_file_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"could not read .*: the kernel said {os.strerror(errno.ENOENT)}"):
        load(tmp_path / "none")
    with pytest.raises(ConfigError, match="it is a directory"):
        load(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="it is a FIFO"):
        load(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="it is a device"):
        load(Path("/dev/zero"))
    (tmp_path / "large").write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        load(tmp_path / "large")


def arguments(*words: str) -> argparse.Namespace:
    return RunParser(prog="run").fill().parse_args(words)


def test_a_mistake_on_the_command_line_names_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        arguments("--listen", "*:1", "--to", "10.0.0.5:80", "--half-close", "never")
    assert "argument --half-close: `never` is not a duration" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"`x` has no port.*\(`--to`\)"):
        build_config(arguments("--listen", "*:1", "--to", "x"))
    with pytest.raises(ConfigError, match=r"`x` has no port.*\(`--listen`\)"):
        build_config(arguments("--listen", "x", "--to", "10.0.0.5:80"))
    with pytest.raises(ConfigError, match="neither weight=N nor max=N"):
        build_config(arguments("--listen", "*:1", "--to", "10.0.0.5:80,wait=3"))
    with pytest.raises(ConfigError, match="nothing to relay"):
        build_config(arguments("--listen", "*:1"))


def test_options_go_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(SERVICE + "[service.timeouts]\nidle = '1h'\nhalf_close = 7\n")
    config = build_config(
        arguments("--config", str(path), "--idle", "5m", "--to", "10.0.0.9:1,weight=4,max=9")
    )
    assert config.service[0].timeouts.idle == 300
    assert config.service[0].timeouts.half_close == 7
    assert [(b.address, b.weight, b.max_connections) for b in config.service[0].backend] == [
        ("10.0.0.9:1", 4, 9)
    ]


def test_every_option_has_a_description_a_flag_of_its_own_and_a_place_in_the_schema() -> None:
    every = list(options())
    assert all(text for *_, text in every)
    flags = [option_of(path) for path, *_ in every if not path.startswith("service.backend")]
    assert len(flags) == len(set(flags))
    schema = str(json_schema())
    assert all(f"'{path.rpartition('.')[2]}'" in schema for path, *_ in every)
    assert {path.rpartition(".")[0] for path, *_ in every} == {path for path, _ in tables()}


@pytest.mark.parametrize(
    ("text", "seconds"), [("5", 5), ("300ms", 0.3), ("5 s", 5), ("2min", 120), ("1h", 3600), (7, 7), ("0", 0)]
)
def test_durations(text: str | int, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_addresses_to_listen_on() -> None:
    assert [str(one) for one in parse_listen("127.0.0.1:8000-8002")] == [
        f"127.0.0.1:{p}" for p in (8000, 8001, 8002)
    ]
    assert parse_listen("*:80")[0].kind == "dual"
    assert parse_listen("[::1]:80")[0].kind == "ipv6"
    assert str(parse_listen("fd:web")[0]) == "fd:web"
    for wrong in ("80", "::1:80", "localhost:80", "1.2.3.4:99999", "1.2.3.4:٣", "unix:"):
        with pytest.raises(ValueError, match="`"):
            parse_listen(wrong)


def test_every_option_of_the_command_line_is_understood() -> None:
    examples = {"duration": "7s", int: "3", float: "0.5", str: "name", tuple: "10.0.0.0/8"}
    special = {
        "metrics": "127.0.0.1:1",
        "admin": "/run/x",
        "service.server.bind": "192.0.2.1",
        "service.client.device": "eth0",
    }
    for path, kind, _, _ in options():
        if path.startswith("service.backend") or path == "service.listen":
            continue
        choices = getattr(kind, "__args__", None)
        value = special.get(path) or (choices[-1] if choices else examples.get(kind))
        words = [option_of(path)] if kind is bool else [option_of(path), str(value)]
        config: Any = build_config(arguments("--listen", "*:1", "--to", "10.0.0.5:80", *words))
        for key in path.split("."):
            config = getattr(config[0] if isinstance(config, tuple) else config, key)
        expected = {"duration": 7.0, int: 3, float: 0.5, bool: True, tuple: ("10.0.0.0/8",)}.get(kind, value)
        assert config == expected, path

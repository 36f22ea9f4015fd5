"""Any bytes are a configuration, or a ConfigError that says where they are not."""

from __future__ import annotations

import re
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finwait.errors import DecodeError
from finwait.relay import proxy_protocol
from finwait.relay.config.model import Config, ConfigError, parse_duration
from finwait.relay.config.parsing import parse
from finwait.relay.config.reference import json_schema, options, tables
from finwait.relay.config.toml import load
from finwait.relay.resolve import parse_file

GOOD = """\
workers = 2
[[service]]
name = "web"
listen = ["*:80", "unix:/run/x"]
backend = [{ address = "10.0.0.5:80", weight = 2 }]
[service.timeouts]
half_close = "5m"
idle = 3600
[service.client]
nodelay = true
"""
KEYS = sorted({part for path, *_ in options() for part in path.split(".")} | {"half-close", "timeout", ""})
VALUES = st.one_of(
    st.integers(),
    st.floats(),
    st.booleans(),
    st.text(max_size=12),
    st.sampled_from(
        ["5s", "1e9", "unix:", "[::1]:80", "*:1-9", "dns:a:1", "file:", "fd:", "10.0.0.0/8", "\0", "v2"]
    ),
    st.dates(),
    st.lists(st.text(max_size=9), max_size=3),
    st.lists(
        st.dictionaries(st.sampled_from(KEYS), st.text(max_size=9) | st.integers(), max_size=3), max_size=2
    ),
)


def loaded(data: bytes) -> Config | ConfigError:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "relay.toml"
        path.write_bytes(data)
        try:
            return load(path)
        except ConfigError as error:
            told = error
    place = re.match(rf"{re.escape(str(path))}:([1-9]\d*): ", str(told))
    assert place, str(told)
    assert int(place[1]) <= len(data.decode("utf-8", "replace").splitlines()) + 1
    assert told.hint
    return told


@given(st.binary(max_size=300))
def test_any_bytes_are_told_with_their_line(data: bytes) -> None:
    assert isinstance(loaded(data), ConfigError)


@given(st.text(max_size=300))
def test_any_text_is_told_with_its_line(text: str) -> None:
    assert isinstance(loaded(text.encode("utf-8", "surrogatepass")), ConfigError)


@given(st.data())
def test_a_good_file_with_bytes_changed_is_good_or_told(data: st.DataObject) -> None:
    text = bytearray(GOOD, "ascii")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=4))
    loaded(bytes(text))


@given(
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3),
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4),
    st.sampled_from([path.partition(".")[2] for path, _ in tables() if path.startswith("service.")]),
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4),
)
def test_any_tables_are_a_configuration_or_told(
    top: dict[str, Any], service: dict[str, Any], place: str, inner: dict[str, Any]
) -> None:
    base = {"listen": ["*:80"], "backend": [{"address": "10.0.0.5:80"}], place: inner}
    try:
        config = parse({"service": [base | service], **top})
    except ConfigError:
        return
    # What is accepted fits what the kernel takes.
    for one in config.service:
        for side in (one.client, one.server):
            assert 0 <= side.user_timeout * 1000 < 2**31
            assert side.keepalive_idle <= 32767
            assert side.keepalive_interval <= 32767


@given(st.text(max_size=20) | st.floats() | st.integers())
def test_a_duration_is_finite_or_refused(value: str | float) -> None:
    try:
        seconds = parse_duration(value)
    except ValueError:
        return
    assert 0 <= seconds <= 1e6


def test_the_schema_accepts_what_the_reader_accepts_and_refuses_what_it_refuses() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for good in (GOOD, GOOD.replace('"5m"', "300"), GOOD.replace("3600", "0")):
        assert parse(tomllib.loads(good))
        assert validator.is_valid(tomllib.loads(good))
    for bad in (
        GOOD.replace("workers = 2", "workers = 0"),
        GOOD.replace("nodelay", "delay"),
        GOOD.replace('"web"', "7"),
        GOOD.replace('["*:80", "unix:/run/x"]', '"*:80"'),
        GOOD.replace('"5m"', '"soon"'),
    ):
        assert not validator.is_valid(tomllib.loads(bad))
        with pytest.raises(ConfigError):
            parse(tomllib.loads(bad))


@given(st.text(max_size=200))
def test_a_file_of_backends_yields_backends_and_says_what_is_wrong(text: str) -> None:
    rows, wrong = parse_file(text, 1, 0)
    filled = [line for line in text.splitlines() if line.partition("#")[0].split()]
    assert len(rows) + len(wrong) == len(filled)


@given(st.binary(max_size=300), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", proxy_protocol.SIGNATURE]))
def test_any_bytes_are_a_proxy_header_or_no_header_or_not_yet_one(data: bytes, start: bytes) -> None:
    data = start + data
    try:
        header = proxy_protocol.parse(data)
    except DecodeError:
        return
    if header is None:
        return
    assert 0 < header.size <= len(data)
    assert proxy_protocol.parse(data[: header.size]) == header
    for end in range(0, header.size, 7):
        assert proxy_protocol.parse(data[:end]) is None


@given(
    st.sampled_from(["v1", "v2"]),
    st.ip_addresses(),
    st.ip_addresses(),
    st.integers(0, 65535),
    st.binary(max_size=9),
)
def test_a_header_that_was_written_is_read_back(
    version: str, source: Any, to: Any, port: int, rest: bytes
) -> None:
    data = proxy_protocol.encode(version, (str(source), port), (str(to), 80))
    header = proxy_protocol.parse(data + rest)
    assert header is not None
    assert header.size == len(data)
    assert header.source is not None
    assert header.source[1] == port
    for end in range(len(data)):
        assert proxy_protocol.parse(data[:end]) is None

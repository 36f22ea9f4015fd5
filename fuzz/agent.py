"""What reaches the agent from outside: questions, answers, a policy, the head of a request; by the first byte."""

from __future__ import annotations

import re
from collections.abc import Callable

from finwait.agent import policy_file, protocol
from finwait.errors import UsageError
from finwait.web import http

_POLICY = b"""name = "node"
mode = "dry-run"
except = "comm = sshd"
[budget]
look = 2
[[rule]]
name = "halves"
findings = ["fin-wait2-held"]
where = "dport = :443"
min_age = "1h"
windows = ["mon-fri 02:00-04:00"]
"""
_HEAD = (
    b"GET /api/v1/groups?filter=state+close-wait&n=5 HTTP/1.1\r\nHost: localhost:9944\r\nAccept: */*\r\n\r\n"
)
_OWN = frozenset({"localhost", "node"})


def _question(data: bytes) -> None:
    try:
        question = protocol.decode_question(data)
    except ValueError:
        return
    line = protocol.encode(question)
    assert protocol.encode(protocol.decode_question(line)) == line


def _answer(data: bytes) -> None:
    try:
        answer = protocol.decode_answer(data)
    except ValueError:
        return
    protocol.decode_answer(protocol.encode(answer))


def _policy(data: bytes) -> None:
    try:
        policy = policy_file.parse_policy(data, "policy")
    except UsageError as error:
        found = re.match(r"policy:(\d+): ", str(error))
        assert found
        assert 1 <= int(found[1]) <= data.count(b"\n") + 1
        return
    assert policy.mode in ("observe", "dry-run", "act")
    for rule in policy.rules:
        assert rule.findings


def _request(data: bytes) -> None:
    request = http.parsed(data)
    if request is None:
        return
    assert not any(name in ("content-length", "transfer-encoding") for name, _ in request.headers)
    for word in (request.method, request.path, *(text for header in request.headers for text in header)):
        assert not {"\0", "\r", "\n"} & set(word)
    http.host_allowed(request.header("host"), _OWN)


_KINDS: list[tuple[Callable[[bytes], None], bytes]] = [
    (_question, b'{"ask":"ages","cookies":[1,18446744073709551615]}'),
    (_question, b'{"ask":"history","since_ns":0,"open":true,"limit":5}'),
    (_question, b'{"ask":"page"}'),
    (_answer, b'{"episodes":[{"cookie":"0x1"}],"truncated":false}'),
    (_answer, b'{"error":"no history"}'),
    (_policy, _POLICY),
    (_request, _HEAD),
]


def seeds() -> list[bytes]:
    return [bytes([number]) + content for number, (_, content) in enumerate(_KINDS)]


def one_input(data: bytes) -> None:
    if data:
        _KINDS[data[0] % len(_KINDS)][0](data[1:])

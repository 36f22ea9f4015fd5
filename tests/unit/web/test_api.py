"""The API: every answer is what its description says, hostile parameters are refused, and who may read."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finwait.agent.face import Face
from finwait.agent.protocol import Question, encode
from finwait.web.api import ROUTES, Access
from finwait.web.http import HttpReply, HttpRequest
from finwait.web.openapi import openapi
from tests.unit.agent.test_metrics import PICTURE
from tests.unit.web.documents import answer_to

DESCRIPTION = openapi()
TOKEN = "a-token-of-many-characters"
HASHED = hashlib.sha256(TOKEN.encode()).hexdigest()


def told(face: Face) -> None:
    """Let a face be answered without a looker."""

    async def answered(line: bytes) -> Any:
        from finwait.agent.protocol import decode_question

        return answer_to(decode_question(line), PICTURE)

    face._exchange = answered  # type: ignore[method-assign]
    face._picture = PICTURE


def ask(
    *paths: str, access: Access | None = None, headers: tuple[tuple[str, str], ...] = ()
) -> list[HttpReply]:
    """Return the answers to GET requests."""

    async def scene() -> list[HttpReply]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            face = Face(ours, access=access)
            told(face)
            replies = []
            for path in paths:
                name, _, query = path.partition("?")
                pairs = tuple(
                    (k, v) for k, _, v in (part.partition("=") for part in query.split("&") if part)
                )
                replies.append(await face._answer(HttpRequest("GET", name, pairs, headers)))
            return replies

    return asyncio.run(scene())


def schema_of(path: str, status: str) -> dict[str, Any]:
    answer = DESCRIPTION["paths"][path]["get"]["responses"][status]["content"]["application/json"]["schema"]
    return {**answer, "components": DESCRIPTION["components"]}


PATHS = {
    "/api/v1/picture": "/api/v1/picture",
    "/api/v1/groups?offset=1&limit=1": "/api/v1/groups",
    "/api/v1/group/0000000000000001": "/api/v1/group/{id}",
    "/api/v1/history?since=2h&open=1&limit=5&filter=state close-wait": "/api/v1/history",
    "/api/v1/counts?since=7d&by=workload": "/api/v1/counts",
    "/api/v1/settings": "/api/v1/settings",
    "/api/v1/journal?limit=5": "/api/v1/journal",
    "/api/v1/gaps": "/api/v1/gaps",
    "/api/v1/about": "/api/v1/about",
}


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_is_what_its_description_says(path: str) -> None:
    (reply,) = ask(path)
    assert (reply.status, reply.kind) == (200, "application/json")
    jsonschema.validate(json.loads(reply.body), schema_of(PATHS[path], "200"))


def test_every_path_is_tried_and_described() -> None:
    described = set(DESCRIPTION["paths"])
    assert described == {route.path for route in ROUTES} == {*PATHS.values(), "/api/v1/events"}
    (reply,) = ask("/api/v1/openapi.json")
    assert json.loads(reply.body) == DESCRIPTION


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/group/00000000000000ff", 404),
        ("/api/v1/group/../settings", 404),
        ("/api/v1/group/{id}", 404),
        ("/api/v1/nothing", 404),
        ("/api/v2/picture", 404),
        ("/api/v1/picture?filter=(", 400),
        ("/api/v1/picture?filter=" + "x" * 2001, 400),
        ("/api/v1/picture?filter=" + " " * 2001, 400),
        ("/api/v1/history?since=", 400),
        ("/api/v1/history?limit=", 400),
        ("/api/v1/counts?by=", 400),
        ("/api/v1/picture?more=1", 400),
        ("/api/v1/settings?filter=state close-wait", 400),
        ("/api/v1/history?since=yesterday", 400),
        ("/api/v1/history?since=-1h", 400),
        ("/api/v1/history?limit=0", 400),
        ("/api/v1/history?limit=1001", 400),
        ("/api/v1/history?limit=1&limit=2", 400),
        ("/api/v1/history?limit=١", 400),
        ("/api/v1/counts?by=pid", 400),
        ("/api/v1/journal?limit=1e2", 400),
    ],
)
def test_what_cannot_be_answered_says_why(path: str, status: int) -> None:
    (reply,) = ask(path)
    assert reply.status == status
    error = json.loads(reply.body)
    jsonschema.validate(error, schema_of("/api/v1/picture", "default"))
    assert error["error"]


@given(
    st.sampled_from([route.path.replace("{id}", "0000000000000001") for route in ROUTES if route.document]),
    st.lists(
        st.tuples(st.sampled_from(["filter", "since", "limit", "open", "by", "offset", "x"]), st.text()),
        max_size=4,
    ),
)
@settings(max_examples=200, deadline=None)
def test_any_parameters_are_answered_or_refused(path: str, query: list[tuple[str, str]]) -> None:
    async def scene() -> HttpReply:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            face = Face(ours)
            told(face)
            return await face._answer(HttpRequest("GET", path, tuple(query), ()))

    try:
        reply = asyncio.run(scene())
    except UnicodeEncodeError:
        raise AssertionError("text that is no Unicode") from None
    assert reply.status in (200, 400, 404)
    json.loads(reply.body)


def test_with_a_token_nothing_but_the_page_is_read_without_it() -> None:
    access = Access(token=HASHED)
    for headers in ((), (("authorization", "Bearer wrong"),), (("authorization", TOKEN),)):
        replies = ask(*PATHS, "/api/v1/events", "/api/v1/openapi.json", access=access, headers=headers)
        assert {reply.status for reply in replies} == {401}
        assert not any(reply.stream for reply in replies)
    good = ask(*PATHS, access=access, headers=(("authorization", f"Bearer {TOKEN}"),))
    assert {reply.status for reply in good} == {200}
    pages = ask("/", "/page/page.js", "/metrics", "/healthz", access=access)
    assert [reply.status for reply in pages[:3]] == [200, 200, 200], "they hold nothing that is secret"


def test_where_anybody_could_read_it_the_page_is_not_served() -> None:
    replies = ask(*PATHS, "/", "/page/page.js", "/api/v1/events", access=Access(served=False))
    assert {reply.status for reply in replies} == {403}
    assert ask("/metrics", access=Access(served=False))[0].status == 200


def test_a_token_in_the_address_is_none() -> None:
    (reply,) = ask(f"/api/v1/picture?token={TOKEN}", access=Access(token=HASHED))
    assert reply.status == 401


def test_questions_to_the_looker_are_of_bounded_length() -> None:
    questions: list[Question] = []

    async def scene() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            face = Face(ours)

            async def answered(line: bytes) -> Any:
                from finwait.agent.protocol import decode_question

                questions.append(decode_question(line))
                return answer_to(questions[-1], PICTURE)

            face._exchange = answered  # type: ignore[method-assign]
            await face._answer(HttpRequest("GET", "/api/v1/history", (("filter", "é" * 2000),), ()))

    asyncio.run(scene())
    assert len(encode(questions[0])) < 5000

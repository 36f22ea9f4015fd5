"""``/api/v1``: paths, parameters, documents, and who may ask.

Every document has a type in `finwait.report.agent_page`; `ROUTES` is what serves them, and what ``openapi.json`` is
made of. Only reading: no path acts. Errors are JSON with a sentence and a hint.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal, Protocol

import msgspec
from msgspec import Struct

from finwait.report.agent_page import (
    AboutDocument,
    ActsDocument,
    AgentPage,
    ApiError,
    CountsDocument,
    EpisodesDocument,
    GapsDocument,
    GroupDetail,
    GroupDocument,
    GroupsDocument,
    PictureDocument,
    SettingsDocument,
)
from finwait.web.events import EventStream
from finwait.web.http import HttpReply, HttpRequest

__all__ = ["ROUTES", "Access", "Api", "ApiRefused", "ApiRoute", "ApiSource", "Parameter"]

JSON: Final = "application/json"
_EVENTS: Final = "text/event-stream"
_FILTER_MOST: Final = 2000
_DURATION: Final = re.compile(r"([0-9]{1,6})(s|m|h|d|w)", re.ASCII)
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_ID: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)

Looker = Literal["running", "slow", "gone"]


class ApiRefused(Exception):
    """A question has no answer.

    Attributes:
        status: of HTTP.
        reply: what is said.
    """

    def __init__(self, status: int, error: str, hint: str = "") -> None:
        super().__init__(error)
        self.status = status
        self.reply = ApiError(error=error, hint=hint)


class ApiSource(Protocol):
    """What documents are made of; each method raises `ApiRefused` where it has no answer."""

    @property
    def looker(self) -> Looker:
        """Whether the process that looks runs."""

    async def page(self, row_filter: str) -> AgentPage:
        """Return the groups."""

    async def group(self, name: str, row_filter: str) -> GroupDetail | None:
        """Return one group; None where there is none."""

    async def episodes(self, row_filter: str, since_ns: int, limit: int, *, open_: bool) -> EpisodesDocument:
        """Return episodes."""

    async def counts(self, row_filter: str, since_s: int, by: Literal["rule", "workload"]) -> CountsDocument:
        """Return counts over time."""

    async def settings(self) -> SettingsDocument:
        """Return the settings."""

    async def acts(self, limit: int) -> ActsDocument:
        """Return the journal."""

    async def gaps(self) -> GapsDocument:
        """Return what could not be seen."""

    async def about(self) -> AboutDocument:
        """Return how the agent is."""


class Parameter(Struct, frozen=True):
    """A parameter of a path or query."""

    name: str
    doc: str
    schema: Mapping[str, object]
    place: Literal["query", "path"] = "query"


class ApiRoute(Struct, frozen=True):
    """A path, and what it gives."""

    path: str
    doc: str
    document: type | None
    """None for the stream."""
    parameters: tuple[Parameter, ...] = ()


_BY_FILTER: Final = Parameter(
    "filter", "Only connections that this FILTER selects.", {"type": "string", "maxLength": _FILTER_MOST}
)
_SINCE: Final = Parameter(
    "since",
    "How far back: a number and s, m, h, d or w.",
    {"type": "string", "pattern": "^[0-9]{1,6}[smhdw]$", "default": "24h"},
)


def _number(name: str, doc: str, least: int, most: int, default: int) -> Parameter:
    return Parameter(name, doc, {"type": "integer", "minimum": least, "maximum": most, "default": default})


_OFFSET: Final = _number("offset", "Groups to leave out first.", 0, 1_000_000, 0)
_GROUPS: Final = _number("limit", "Most groups.", 1, 1000, 100)
_EPISODES: Final = _number("limit", "Most episodes.", 1, 1000, 200)
_ACTS: Final = _number("limit", "Most acts.", 1, 500, 100)
_OPEN: Final = _number("open", "1: only what lasts, the oldest first.", 0, 1, 0)
_BY: Final = Parameter(
    "by", "What a series is.", {"type": "string", "enum": ["rule", "workload"], "default": "rule"}
)
_NAME: Final = Parameter("id", "Name of a group.", {"type": "string", "pattern": "^[0-9a-f]{16}$"}, "path")

ROUTES: Final = (
    ApiRoute("/api/v1/picture", "What was stuck at the last look.", PictureDocument, (_BY_FILTER,)),
    ApiRoute(
        "/api/v1/groups", "The groups of it, some at a time.", GroupsDocument, (_BY_FILTER, _OFFSET, _GROUPS)
    ),
    ApiRoute("/api/v1/group/{id}", "One group with its evidence.", GroupDocument, (_NAME, _BY_FILTER)),
    ApiRoute("/api/v1/history", "Episodes.", EpisodesDocument, (_BY_FILTER, _SINCE, _EPISODES, _OPEN)),
    ApiRoute("/api/v1/counts", "How many were stuck over time.", CountsDocument, (_BY_FILTER, _SINCE, _BY)),
    ApiRoute("/api/v1/settings", "Settings with verdicts.", SettingsDocument),
    ApiRoute("/api/v1/journal", "What finwait did here.", ActsDocument, (_ACTS,)),
    ApiRoute("/api/v1/gaps", "What could not be seen.", GapsDocument),
    ApiRoute("/api/v1/about", "How the agent is.", AboutDocument),
    ApiRoute("/api/v1/events", "Server-sent events: `look`, with an AgentPicture, after each look.", None),
)
"""Every path of the API but ``openapi.json``."""


class Access(Struct, frozen=True):
    """Who may ask.

    Attributes:
        token: SHA-256 of the token, in hexadecimal; empty for none.
        served: whether page and API are served at all: not where anybody could reach them and there is no token.
    """

    token: str = ""
    served: bool = True

    def refusal(self, request: HttpRequest) -> HttpReply | None:
        """Return why a request is not answered; None where it is."""
        if not self.served:
            return _error(
                403, "the page is not served here without a token", "start with `--token-file FILE`"
            )
        if not self.token:
            return None
        scheme, _, token = request.header("authorization").partition(" ")
        offered = hashlib.sha256(token.strip().encode("utf-8", "replace")).hexdigest()
        if scheme.lower() == "bearer" and hmac.compare_digest(offered, self.token):
            return None
        reply = _error(401, "a token is needed", "send `Authorization: Bearer TOKEN`")
        return HttpReply(401, JSON, reply.body, (("WWW-Authenticate", 'Bearer realm="finwait"'),))


def _error(status: int, error: str, hint: str = "") -> HttpReply:
    return HttpReply(status, JSON, msgspec.json.encode(ApiError(error=error, hint=hint)) + b"\n")


class Api:
    """Answers requests below ``/api/v1``.

    Args:
        source: what documents are made of.
        access: who may ask.
        events: what streams are read from.
        description: ``openapi.json``.

    Attributes:
        access: who may ask from now on.
    """

    def __init__(self, source: ApiSource, access: Access, events: EventStream, description: bytes) -> None:
        self._source = source
        self.access = access
        self._events = events
        self._description = description
        self._handlers: Mapping[str, Callable[[_Asked], Awaitable[msgspec.Struct]]] = {
            "/api/v1/picture": self._picture,
            "/api/v1/groups": self._groups,
            "/api/v1/group/{id}": self._group,
            "/api/v1/history": self._history,
            "/api/v1/counts": self._counts,
            "/api/v1/settings": self._settings,
            "/api/v1/journal": self._journal,
            "/api/v1/gaps": self._gaps,
            "/api/v1/about": self._about,
        }

    async def answer(self, request: HttpRequest) -> HttpReply:
        """Return the answer to a request."""
        refusal = self.access.refusal(request)
        if refusal is not None:
            return refusal
        if request.path == "/api/v1/openapi.json":
            return HttpReply(200, JSON, self._description)
        if request.path == "/api/v1/events":
            return HttpReply(200, _EVENTS, stream=self._events.read)
        path, _, name = request.path.rpartition("/")
        known = path == "/api/v1/group" and _ID.fullmatch(name)
        route = next((r for r in ROUTES if r.path == ("/api/v1/group/{id}" if known else request.path)), None)
        if route is None or "{" in request.path:
            return _error(404, "there is no such path", "see /api/v1/openapi.json")
        try:
            asked = _Asked(request, route, name)
            made = await self._handlers[route.path](asked)
        except ApiRefused as refused:
            return HttpReply(refused.status, JSON, msgspec.json.encode(refused.reply) + b"\n")
        return HttpReply(200, JSON, msgspec.json.encode(made) + b"\n")

    async def _picture(self, asked: _Asked) -> PictureDocument:
        page = await self._source.page(asked.filter)
        return PictureDocument(picture=page, looker=self._source.looker)

    async def _groups(self, asked: _Asked) -> GroupsDocument:
        page = await self._source.page(asked.filter)
        offset, limit = asked.number(_OFFSET), asked.number(_GROUPS)
        return GroupsDocument(
            at=page.at,
            items=page.groups[offset : offset + limit],
            total=len(page.groups) + page.groups_dropped,
            offset=offset,
            looker=self._source.looker,
        )

    async def _group(self, asked: _Asked) -> GroupDocument:
        detail = await self._source.group(asked.name, asked.filter)
        if detail is None:
            raise ApiRefused(404, "there is no such group now", "what ended is in /api/v1/history")
        page = await self._source.page("")
        return GroupDocument(at=page.at, item=detail, looker=self._source.looker)

    async def _history(self, asked: _Asked) -> EpisodesDocument:
        since_ns = time.time_ns() - asked.since_s * 1_000_000_000
        return await self._source.episodes(
            asked.filter, since_ns, asked.number(_EPISODES), open_=bool(asked.number(_OPEN))
        )

    async def _counts(self, asked: _Asked) -> CountsDocument:
        by = asked.text(_BY.name, "rule")
        if by not in ("rule", "workload"):
            raise ApiRefused(400, "by is rule or workload")
        since_s = int(time.time()) - max(60, asked.since_s)
        return await self._source.counts(asked.filter, since_s, "rule" if by == "rule" else "workload")

    async def _settings(self, _: _Asked) -> SettingsDocument:
        return await self._source.settings()

    async def _journal(self, asked: _Asked) -> ActsDocument:
        return await self._source.acts(asked.number(_ACTS))

    async def _gaps(self, _: _Asked) -> GapsDocument:
        return await self._source.gaps()

    async def _about(self, _: _Asked) -> AboutDocument:
        return await self._source.about()


class _Asked:
    """The parameters of a request.

    Raises:
        ApiRefused: one is unknown, or given twice.
    """

    def __init__(self, request: HttpRequest, route: ApiRoute, name: str) -> None:
        self.name = name
        self._values: dict[str, str] = {}
        names = {parameter.name for parameter in route.parameters if parameter.place == "query"}
        for key, value in request.query:
            if key not in names:
                known = ", ".join(sorted(names)) or "none"
                raise ApiRefused(400, "a parameter is unknown", f"those of this path: {known}")
            if key in self._values:
                raise ApiRefused(400, f"{key} is given twice")
            self._values[key] = value

    def text(self, name: str, default: str = "") -> str:
        """Return a parameter as it is; the default where it is not given, and not where it is empty."""
        return self._values.get(name, default)

    @property
    def filter(self) -> str:
        """The FILTER.

        Raises:
            ApiRefused: it is too long.
        """
        text = self.text("filter")
        if len(text) > _FILTER_MOST:
            raise ApiRefused(400, f"a FILTER is at most {_FILTER_MOST} characters long")
        return text.strip()

    @property
    def since_s(self) -> int:
        """How far back, in seconds.

        Raises:
            ApiRefused: it is no duration.
        """
        match = _DURATION.fullmatch(self.text("since", "24h"))
        if match is None:
            raise ApiRefused(400, "since is no duration", "a number and s, m, h, d or w: 2h")
        return min(int(match[1]) * _UNITS[match[2]], 90 * 86400)

    def number(self, parameter: Parameter) -> int:
        """Return a number.

        Raises:
            ApiRefused: it is none, or out of bounds.
        """
        schema = parameter.schema
        least, most, default = (int(str(schema[key])) for key in ("minimum", "maximum", "default"))
        text = self.text(parameter.name, str(default))
        if not re.fullmatch(r"[0-9]{1,7}", text, re.ASCII) or not least <= int(text) <= most:
            raise ApiRefused(400, f"{parameter.name} is a number from {least} to {most}")
        return int(text)

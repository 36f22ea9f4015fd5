"""Asks a Kubernetes API server for names, and follows what becomes of them.

Theory of operation
    A thread a resource: list, then watch from the list's version on. A list is asked for with ``resourceVersion=0``, so
    that the API server answers from memory; without it, each of a thousand nodes goes to etcd. A watch asks for
    bookmarks, so that its version stays young, and ends after four to six minutes at random, so that the watches of
    nodes that started together drift apart. 410, as a status or within the watch, means that the history since our
    version is compacted: list again, and what is missing was deleted meanwhile. A second 410 in a row lists from etcd.

    Whatever else happens, what is known stays. `Watcher.gaps` says what is not followed, and since when.

Implementation
    ``http.client`` over `finwait.kube.channel`, so that each request ends at a deadline, and at once when the watcher
    does. Heads, lines and lists are bounded. Redirects are answers like any other that is not 200, and no proxy is
    asked, whatever the environment says: the token goes to the configured host only.

    After 401 the pauses get long, but the kubelet may renew the token in the middle of one: that ends it.

    A watch that ends soon after it began counts as a failure, or a server that ends each at once would be asked again
    and again without a pause.

What this cannot see
    What the API server has not seen itself. An API server whose etcd was set back to an older state, until a bookmark
    tells (about a minute).
"""

from __future__ import annotations

import http.client
import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final, Literal, Self
from urllib.parse import quote, urlencode

from msgspec import Struct
from msgspec.structs import fields

from finwait.errors import DecodeError, FileRefused, FinwaitError, Gap
from finwait.kube.access import KubeAccess
from finwait.kube.channel import Channel, NotWanted, requested
from finwait.kube.names import NameKeeper
from finwait.kube.objects import (
    RESOURCES,
    EventLines,
    Resource,
    decode_event,
    decode_list,
    discovery_version,
)
from finwait.uapi.cluster import ClusterNames

__all__ = ["LIST_MOST", "BackOff", "KubePacing", "RequestCounts", "Watcher"]

LIST_MOST: Final = 64 << 20
"""Bytes of a list: about 150,000 endpoints."""
_GROUP_MOST: Final = 1 << 20
_PIECE: Final = 1 << 16
_END_S: Final = 2.0
"""For threads to end."""
_PATHS: Final[dict[Resource, str]] = {
    "pods": "/api/v1/pods",
    "services": "/api/v1/services",
    "namespaces": "/api/v1/namespaces",
}
_GROUP: Final = "/apis/discovery.k8s.io"
_GONE: Final = 410
_REFUSED: Final = (401, 403)
_NO_SUCH: Final = 404
_SUSPECT: Final = 3
"""After so many failures a server is trusted again when it has said something or its watch stayed open, not at once."""
_ANSWERS: Final = "an API server that answers"


class KubePacing(Struct, frozen=True):
    """How long things may take, and how long to wait between them, in seconds."""

    start_s: float = 5.0
    """The first list is asked for after a part of this, at random: agents of a cluster start together."""
    first_s: float = 1.0
    """The first pause after a failure; each next one is twice as long."""
    most_s: float = 30.0
    refused_most_s: float = 300.0
    """The longest pause after 401 and 403, which seldom mend themselves."""
    token_s: float = 5.0
    """After 401, how often to look whether there is another token, which is then tried at once."""
    told_most_s: float = 120.0
    """The longest pause that a server may ask for (``Retry-After``)."""
    healthy_s: float = 20.0
    """A watch that lasted so long was none that failed."""
    head_s: float = 30.0
    """For the head of an answer."""
    list_s: float = 120.0
    """For a list, all of it."""
    watch_s: tuple[int, int] = (240, 360)
    """How long a watch is asked to last, at random between these."""
    silence_s: float = 180.0
    """How long a server is silent that sends bookmarks, which it does about every minute."""
    grace_s: float = 30.0
    """How much longer than that it may last."""
    gather_s: float = 0.2
    """After what came of a watch: events that come one by one cost more than several at once."""


_USUAL: Final = KubePacing()


class BackOff:
    """How long to wait after a failure; pure.

    Args:
        first: the first pause, in seconds.
        most: the longest one.
        chance: gives a number from 0 to 1, which decides on half of each pause.
    """

    def __init__(self, first: float, most: float, chance: Callable[[], float]) -> None:
        self._first = first
        self._most = most
        self._chance = chance
        self.failures = 0

    def healthy(self) -> None:
        """Begin anew with the first pause."""
        self.failures = 0

    def pause(self, *, most: float = 0.0, at_once: bool = False) -> float:
        """Return how long to wait.

        Args:
            most: the longest pause, where it is another than usual.
            at_once: not at all, if nothing has failed before.
        """
        longest = self._first * 2.0 ** min(self.failures, 30)
        self.failures += 1
        if at_once and self.failures == 1:
            return 0.0
        return min(longest, most or self._most) * (0.5 + 0.5 * self._chance())


class RequestCounts(Struct):
    """What was asked of an API server, and what came."""

    lists: int = 0
    watches: int = 0
    """That were answered with 200."""
    events: int = 0
    bookmarks: int = 0
    expired: int = 0
    """410, as a status or in a watch."""
    refused: int = 0
    """401 and 403."""
    failed: int = 0
    """Everything else that was no answer."""
    received_bytes: int = 0


class _Trouble(Struct, frozen=True):
    """Why a resource is not followed."""

    kind: Literal["waiting", "failed", "refused", "unserved"]
    reason: str
    needs: str
    since: float


class _Answered(Exception):
    """An answer with another status than 200.

    Args:
        status: of HTTP, or of a watch's error.
        retry_after: seconds that the server asks to wait.
    """

    def __init__(self, status: int, retry_after: float = 0.0) -> None:
        super().__init__(status)
        self.status = status
        self.retry_after = retry_after


class _WatchEnded(Exception):
    """A watch that ended sooner than it was asked to."""


def _reason(error: Exception) -> str:
    """Return in a few words why something could not be asked."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate was not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return "TLS failed"
    if isinstance(error, http.client.IncompleteRead):
        return "its answer was cut off"
    if isinstance(error, http.client.HTTPException):
        return "what it answers is no HTTP"
    if isinstance(error, OSError) and error.filename:
        return f"`{error.filename}`: {error.strerror}"
    if isinstance(error, OSError):
        return str(error.strerror or error)[:200].lower()
    return str(error)[:200]


def _needs(error: Exception) -> str:
    """Return what would have let us ask."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "a CA file that vouches for it"
    if isinstance(error, FileRefused) or (isinstance(error, OSError) and error.filename):
        return "files with its CA and a token"
    return _ANSWERS


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _set_back(version: str, before: str) -> bool:
    """Whether a version is older than the one before it, as far as versions are numbers."""
    return version.isdecimal() and before.isdecimal() and int(version) < int(before)


def _retry_after(response: http.client.HTTPResponse) -> float:
    text = (response.getheader("Retry-After") or "").strip()
    return float(text) if text.isdecimal() and len(text) < 10 else 0.0


class _Follower:
    """Lists and watches one resource, in a thread of its own."""

    def __init__(self, watcher: Watcher, resource: Resource) -> None:
        self.resource = resource
        self.counts = RequestCounts()
        self._trouble: _Trouble | None = _Trouble("waiting", "", "", watcher.clock())
        self._watcher = watcher
        self._pacing = watcher.pacing
        self._back_off = BackOff(self._pacing.first_s, self._pacing.most_s, watcher.chance.random)
        self._path = _PATHS.get(resource, "")
        self._version = ""
        """From which on to watch; empty where a list is due."""
        self._expired = 0
        """How often in a row the history was compacted."""
        self._open_since = 0.0
        """Since when a watch is open, by a clock that does not go back; 0 while none is."""
        self._shown = ""
        """The token of the last round."""
        self._unaccepted = False
        """Whether the last answer was 401."""

    @property
    def trouble(self) -> _Trouble | None:
        """Why it is not followed; None while it is.

        A watch that is open for so long is one that is served, also where nothing happens and no bookmark comes: an API
        server sends none of a resource that has not changed since it started.
        """
        since = self._open_since
        if since and time.monotonic() - since >= self._pacing.healthy_s:
            return None
        return self._trouble

    @trouble.setter
    def trouble(self, trouble: _Trouble | None) -> None:
        self._trouble = trouble

    def run(self) -> None:
        """Follow it until nobody wants it any more."""
        pause = self._watcher.chance.random() * self._pacing.start_s
        while not self._ended(pause):
            self._shown, self._unaccepted = self._token(), False
            try:
                pause = self._round()
            except NotWanted:
                return
            except Exception as error:  # noqa: BLE001 - a thread that ended would leave names that nobody renews
                self._version = ""  # what was being read is lost
                pause = self._failed(f"{type(error).__name__}: {error}"[:200])

    def _ended(self, pause: float) -> bool:
        """Wait, and return whether nobody wants it any more; another token than one that was refused ends the wait."""
        ending, end = self._watcher.ending, time.monotonic() + pause
        while self._unaccepted and time.monotonic() + self._pacing.token_s < end:
            if ending.wait(self._pacing.token_s):
                return True
            if self._token() not in ("", self._shown):
                return False
        return ending.wait(max(0.0, end - time.monotonic()))

    def _token(self) -> str:
        """Return the token as it is in its file now; empty where there is none."""
        try:
            return self._watcher.access.headers().get("Authorization", "")
        except (OSError, FinwaitError):
            return ""

    def _round(self) -> float:
        """List if that is due, and watch; return how many seconds to pause."""
        try:
            if not self._path:
                self._find_path()
            if not self._version:
                self._list()
            self._watch()
        except _Answered as answer:
            return self._answered(answer)
        except _WatchEnded:
            return self._ended_early("it ends watches at once")
        except DecodeError as error:
            self._version = ""  # an event that cannot be read may have been any
            return self._failed(str(error)[:200])
        except (OSError, http.client.HTTPException, FinwaitError) as error:
            return self._failed(_reason(error), _needs(error))
        return 0.0

    def _find_path(self) -> None:
        """Ask which version of EndpointSlices is served; that of those who may not ask is the newest."""
        try:
            version = discovery_version(self._whole(_GROUP, _GROUP_MOST))
        except _Answered as answer:
            if answer.status not in (*_REFUSED, _NO_SUCH):
                raise
            version = "v1" if answer.status != _NO_SUCH else ""
        if not version:
            raise _Answered(_NO_SUCH)
        self._path = f"{_GROUP}/{version}/{self.resource}"

    def _whole(self, target: str, most: int) -> bytearray:
        """Return all of an answer.

        Raises:
            DecodeError: it is too long.
            _Answered: its status is not 200.
        """
        with self._requested(target, self._pacing.list_s) as (response, _):
            body = bytearray()
            while piece := response.read1(_PIECE):
                body += piece
                self.counts.received_bytes += len(piece)
                if len(body) > most:
                    raise DecodeError("an answer", most, bytes(body[:16]), "it is too long to be read")
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
            return body

    @contextmanager
    def _requested(self, target: str, seconds: float) -> Iterator[tuple[http.client.HTTPResponse, Channel]]:
        """Give an answer of status 200, and what it comes through; others raise `_Answered`."""
        watcher = self._watcher
        with requested(watcher.access, target, watcher.wake, self._pacing.head_s, seconds) as answer:
            response, _ = answer
            if response.status != http.client.OK:
                raise _Answered(response.status, _retry_after(response))
            yield answer

    def _target(self, **query: str) -> str:
        if self.resource == "pods":
            query["fieldSelector"] = f"spec.nodeName={self._watcher.access.node}"
        return f"{self._path}?{urlencode(query, quote_via=quote)}"

    def _list(self) -> None:
        # Without a version it comes from etcd, and not from the memory of a server that lags behind.
        query = {} if self._expired > 1 else {"resourceVersion": "0"}
        begun = self._watcher.clock()
        answer = decode_list(self.resource, self._whole(self._target(**query), LIST_MOST))
        self._version = answer.version
        self.counts.lists += 1
        self._watcher.keep(lambda keeper: keeper.listed(self.resource, answer, begun))
        if self.trouble is not None and self.trouble.kind == "waiting":
            self.trouble = None

    def _watch(self) -> None:
        """Follow events until the server ends the watch.

        Raises:
            DecodeError: an event cannot be read.
            _Answered: its status is not 200, or it ended with an error.
            _WatchEnded: it ended too soon.
        """
        seconds = self._watcher.chance.randint(*self._pacing.watch_s)
        target = self._target(
            watch="1",
            allowWatchBookmarks="true",
            resourceVersion=self._version,
            timeoutSeconds=str(seconds),
        )
        whole_s = self._pacing.head_s + seconds + self._pacing.grace_s
        with self._requested(target, whole_s) as (response, channel):
            self.counts.watches += 1
            if self._back_off.failures < _SUSPECT:
                self.trouble = None
            begun, lines = time.monotonic(), EventLines()
            heard = self.counts.bookmarks + self.counts.events
            try:
                self._open_since = begun
                while piece := self._read(response, channel):
                    self.counts.received_bytes += len(piece)
                    for line in lines.feed(piece):
                        self._event(line)
                    if channel.waited:  # not while there is more: each event is a piece of its own
                        channel.waited = False
                        self._watcher.ending.wait(self._pacing.gather_s)
            finally:
                healthy = time.monotonic() - begun >= min(self._pacing.healthy_s, seconds / 2)
                if healthy:
                    self._back_off.healthy()
                    self.trouble = None
                self._open_since = 0.0
        if not healthy:
            raise _WatchEnded
        if self.counts.bookmarks + self.counts.events == heard:
            self._version = ""  # nothing has said that what is known is right: list again

    def _read(self, response: http.client.HTTPResponse, channel: Channel) -> bytes:
        """Return the next piece of a watch; a server that has sent bookmarks is silent for minutes only if it hangs."""
        if self.counts.bookmarks:
            channel.silence_s = self._pacing.silence_s
        return response.read1(_PIECE)

    def _event(self, line: bytes) -> None:
        event = decode_event(self.resource, line)
        if event.type == "ERROR":
            raise _Answered(event.code)
        if _set_back(event.version, self._version):
            raise _Answered(_GONE)
        self._version = event.version
        self._expired = 0
        self.trouble = None
        if event.type == "BOOKMARK":
            self.counts.bookmarks += 1
        else:
            self.counts.events += 1
        now = self._watcher.clock()
        self._watcher.keep(lambda keeper: keeper.happened(self.resource, event, now))

    def _answered(self, answer: _Answered) -> float:
        """Return how long to pause after an answer that was not what was asked for."""
        status = answer.status
        if status == _GONE:
            self.counts.expired += 1
            self._expired += 1
            self._version = ""
            return self._ended_early("its history does not last until it is watched", at_once=True)
        if status in _REFUSED:
            self.counts.refused += 1
            needs = (
                "a token that it accepts"
                if status == _REFUSED[0]
                else f"the right to list and watch {self.resource} in the cluster"
            )
            self._note("refused", f"status {status}", needs)
            self._unaccepted = status == _REFUSED[0]
            return self._back_off.pause(most=self._pacing.refused_most_s)
        if status == _NO_SUCH and self.resource == "endpointslices":
            self._path = self._version = ""  # another version may be served from now on
            self.counts.failed += 1
            self._note("unserved", f"status {status}", "discovery.k8s.io/v1 or v1beta1 (Kubernetes 1.17)")
            return self._back_off.pause()
        if 400 <= status < 500 and status != 429:
            self._version = ""
        pause = self._failed(f"status {status}")
        return max(pause, min(answer.retry_after, self._pacing.told_most_s))

    def _ended_early(self, reason: str, *, at_once: bool = False) -> float:
        """Return how long to pause after what is right now and then, and wrong if it goes on."""
        if self._back_off.failures >= _SUSPECT:
            self._note("failed", reason, _ANSWERS)
        return self._back_off.pause(at_once=at_once)

    def _failed(self, reason: str, needs: str = _ANSWERS) -> float:
        self.counts.failed += 1
        self._note("failed", reason, needs)
        return self._back_off.pause()

    def _note(self, kind: Literal["failed", "refused", "unserved"], reason: str, needs: str) -> None:
        before = self.trouble
        since = before.since if before is not None else self._watcher.clock()
        self.trouble = _Trouble(kind, reason, needs, since)
        self._watcher.tell()


class Watcher:
    """Knows the names of a cluster while it is entered; after that, those that it knew.

    A ``with`` block starts its threads and ends them. Everything else may be called from any thread.

    Args:
        access: which API server.
        pacing: how long things may take.
        clock: seconds since 1970.
    """

    def __init__(
        self, access: KubeAccess, *, pacing: KubePacing = _USUAL, clock: Callable[[], float] = time.time
    ) -> None:
        self.access = access
        self.pacing = pacing
        self.clock = clock
        self.chance = random.SystemRandom()
        self.ending = threading.Event()
        self.wake = -1
        """Hung up when the watcher ends."""
        self._awake = -1
        self._keeper = NameKeeper(access.node)
        self._news = threading.Condition()
        self._followers = tuple(
            _Follower(self, resource) for resource in RESOURCES if resource != "pods" or access.node
        )
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self.wake, self._awake = os.pipe()
        for follower in self._followers:
            name = f"finwait-kube-{follower.resource}"
            self._threads.append(threading.Thread(target=follower.run, name=name, daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        os.close(self._awake)
        end = time.monotonic() + _END_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        # One that waits for the system's resolver keeps the descriptor that it would look at next.
        if not any(thread.is_alive() for thread in self._threads):
            os.close(self.wake)

    def names(self) -> ClusterNames:
        """Return the names as of now; the same value as before while nothing changed."""
        with self._news:
            return self._keeper.names(self.clock())

    @property
    def changed(self) -> int:
        """How often a name came, went or changed."""
        with self._news:
            return self._keeper.changes

    def wait(self, timeout_s: float, since: int) -> bool:
        """Wait until a name changes.

        Args:
            timeout_s: how long, in seconds.
            since: what `changed` was.

        Returns:
            Whether one has changed.
        """
        with self._news:
            return self._news.wait_for(lambda: self._keeper.changes != since, timeout_s)

    def settled(self, timeout_s: float) -> bool:
        """Wait until everything was listed, or is known not to be listed, and return whether that is so.

        Args:
            timeout_s: how long, in seconds.
        """
        with self._news:
            return self._news.wait_for(
                lambda: (
                    not any(f.trouble is not None and f.trouble.kind == "waiting" for f in self._followers)
                ),
                timeout_s,
            )

    @property
    def requests(self) -> RequestCounts:
        """What was asked so far, of all resources together."""
        counts = [follower.counts for follower in self._followers]
        return RequestCounts(
            **{f.name: sum(getattr(c, f.name) for c in counts) for f in fields(RequestCounts)}
        )

    def gaps(self) -> tuple[Gap, ...]:
        """Return what is not known, or not known to be right any more, and what would help."""
        where = f"Kubernetes API at {self.access.url}"
        with self._news:
            as_of = dict(self._keeper.as_of)
            gaps = list(self._keeper.gaps())
        troubles: dict[tuple[str, str, str, bool], list[_Follower]] = {}
        for follower in self._followers:
            if (trouble := follower.trouble) is not None:
                listed = follower.resource in as_of
                alike = troubles.setdefault((trouble.kind, trouble.reason, trouble.needs, listed), [])
                alike.append(follower)
        for (kind, reason, needs, listed), followers in troubles.items():
            resources = [follower.resource for follower in followers]
            if kind == "waiting":
                gaps.append(Gap(where, f"list {_listing(resources)} yet", needs))
                continue
            since = min((f.trouble.since for f in followers if f.trouble is not None), default=self.clock())
            state = "they were never listed"
            if listed:
                state = f"they are known as of {_stamp(min(as_of[resource] for resource in resources))}"
            doing = f"follow {_listing(resources)} since {_stamp(since)}: {reason}; {state}"
            if "namespaces" in resources and not listed:
                doing += "; `finwait.io/exclude` of a namespace is not seen"
            gaps.append(Gap(where, doing, needs))
        if not self.access.node:
            gaps.append(Gap(where, "list the pods of this node", "the name of the node (NODE_NAME)"))
        return tuple(sorted(gaps))

    def keep(self, change: Callable[[NameKeeper], None]) -> None:
        """Change what is known; of the threads."""
        with self._news:
            change(self._keeper)
            self._news.notify_all()

    def tell(self) -> None:
        """Wake who waits; of the threads."""
        with self._news:
            self._news.notify_all()


def _listing(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))

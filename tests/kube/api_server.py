"""A small Kubernetes API server for tests: stores objects, lists and watches them, and fails on demand.

It answers what finwait asks (core/v1 pods, services, namespaces; discovery.k8s.io) in the form of a real one: versions
that grow with each change, chunked watches with bookmarks, a history that can be compacted. A watch from a version
before the compaction ends with 410, as an event or as a status. Faults are queued by resource and verb, and each is
used up by one request.

Nothing here is finwait's: it is the other side of the conversation.
"""

from __future__ import annotations

import copy
import json
import socket
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

Object = dict[str, Any]
KINDS = {
    "pods": "Pod",
    "services": "Service",
    "namespaces": "Namespace",
    "endpointslices": "EndpointSlice",
}


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    verb: str
    """``list``, ``watch`` or ``group``."""
    resource: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


class Reply:
    """One connection, to be answered in any way."""

    def __init__(self, server: ApiServer, sock: socket.socket) -> None:
        self.server = server
        self.sock = sock

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def whole(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, *, length: int | None = None
    ) -> None:
        lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        lines += [f"Content-Length: {len(body) if length is None else length}", "", ""]
        self.send("\r\n".join(lines).encode() + body)

    def status(self, code: int, headers: Mapping[str, str] | None = None) -> None:
        self.whole(code, json.dumps(status_object(code)).encode(), headers)

    def begin_stream(self) -> None:
        self.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
            b"Connection: close\r\n\r\n"
        )

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def event(self, kind: str, item: Object) -> None:
        self.chunk(json.dumps({"type": kind, "object": item}).encode() + b"\n")

    def end_stream(self) -> None:
        self.send(b"0\r\n\r\n")

    def hold(self) -> None:
        """Say nothing until the server stops or the client leaves."""
        self.sock.settimeout(0.05)
        while not self.server.stopping.is_set():
            try:
                if not self.sock.recv(1 << 16):
                    return
            except TimeoutError:
                continue


Fault = Callable[[Reply], None]


def status_object(code: int) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": "X",
        "message": "x",
    }


def with_status(code: int, **headers: str) -> Fault:
    """Answer with a status."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda reply: reply.status(code, named)


def with_bytes(data: bytes) -> Fault:
    """Answer with bytes, whatever they are, and hang up."""
    return lambda reply: reply.send(data)


def with_stream(*pieces: bytes, end: bool = False) -> Fault:
    """Begin a watch properly, send pieces as they are, and hang up or end it properly."""

    def answer(reply: Reply) -> None:
        reply.begin_stream()
        for piece in pieces:
            reply.chunk(piece)
        if end:
            reply.end_stream()

    return answer


def with_error_event(code: int) -> Fault:
    """Begin a watch properly and end it with an error."""
    return with_stream(
        json.dumps({"type": "ERROR", "object": status_object(code)}).encode() + b"\n", end=True
    )


def with_silence(reply: Reply) -> None:
    """Never answer."""
    reply.hold()


def with_half_a_head(reply: Reply) -> None:
    """Send a part of the head, and never the rest."""
    reply.send(b"HTTP/1.1 200 OK\r\nContent-Ty")
    reply.hold()


def with_half_a_line(reply: Reply) -> None:
    """Begin a watch, send a part of an event, and never the rest."""
    reply.begin_stream()
    reply.chunk(b'{"type":"ADDED","object":{"kind":"Pod","metada')
    reply.hold()


def with_drops(data: bytes, every_s: float = 0.01) -> Fault:
    """Send a byte now and then, for ever: ``data`` first, then spaces."""

    def answer(reply: Reply) -> None:
        rest = data
        while not reply.server.stopping.wait(every_s):
            reply.send(rest[:1] or b" ")
            rest = rest[1:]

    return answer


def with_flood(head: bytes, piece: bytes) -> Fault:
    """Send a head, and then the same piece for ever."""

    def answer(reply: Reply) -> None:
        reply.send(head)
        while not reply.server.stopping.is_set():
            reply.send(piece)

    return answer


@dataclass
class Faults:
    """What goes wrong next, by (resource, verb)."""

    queued: dict[tuple[str, str], list[Fault]] = field(default_factory=lambda: defaultdict(list))

    def take(self, resource: str, verb: str) -> Fault | None:
        queue = self.queued[resource, verb]
        return queue.pop(0) if queue else None


class ApiServer:
    """Serves on a loopback port while entered.

    Args:
        tls: paths of certificate and key.
        discovery: versions of discovery.k8s.io that are served; empty for no such group.
        tokens: those that are accepted; None for anybody.
        bookmark_s: how long a watch is silent before a bookmark.
        host: the address at which it listens.
    """

    def __init__(
        self,
        *,
        tls: tuple[str, str] | None = None,
        discovery: tuple[str, ...] = ("v1",),
        tokens: set[str] | None = None,
        bookmark_s: float = 0.05,
        host: str = "127.0.0.1",
    ) -> None:
        self.host = host
        self.discovery = discovery
        self.tokens = tokens
        self.bookmark_s = bookmark_s
        self.forbidden: set[tuple[str, str]] = set()
        self.refused_status = 403
        self.gone_as_status = False
        self.future_is_gone = True
        """Whether a watch from a version that was never handed out is refused; an API server may also keep silent."""
        self.copies = 1
        """How often each event is sent."""
        self.faults = Faults()
        self.asked: list[Asked] = []
        self.stopping = threading.Event()
        self.version = 100
        self.compacted = 0
        self.objects: dict[str, dict[tuple[str, str], Object]] = {resource: {} for resource in KINDS}
        self._history: list[tuple[int, str, str, Object]] = []
        self._uids = 0
        self._epoch = 0
        """Grows when all watches have to end."""
        self._news = threading.Condition()
        self._context: ssl.SSLContext | None = None
        if tls is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*tls)
        self._listener: socket.socket | None = None
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.port = 0

    @property
    def url(self) -> str:
        place = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._context else 'http'}://{place}:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # What is stored.

    def put(self, resource: str, item: Object) -> Object:
        """Create or replace an object; return it as it is stored."""
        with self._news:
            self.version += 1
            stored = copy.deepcopy(item)
            about = stored["metadata"]
            key = about.get("namespace", ""), about["name"]
            before = self.objects[resource].get(key)
            if before is None:
                self._uids += 1
                about["uid"] = f"00000000-0000-4000-8000-{self._uids:012d}"
            else:
                about["uid"] = before["metadata"]["uid"]
            about["resourceVersion"] = str(self.version)
            self.objects[resource][key] = stored
            kind = "ADDED" if before is None else "MODIFIED"
            self._history.append((self.version, resource, kind, stored))
            self._news.notify_all()
            return stored

    def delete(self, resource: str, namespace: str, name: str) -> None:
        """Delete an object, if it is there."""
        with self._news:
            stored = self.objects[resource].pop((namespace, name), None)
            if stored is None:
                return
            self.version += 1
            last = copy.deepcopy(stored)
            last["metadata"]["resourceVersion"] = str(self.version)
            self._history.append((self.version, resource, "DELETED", last))
            self._news.notify_all()

    def compact(self) -> None:
        """Forget the history; watches that are open go on."""
        with self._news:
            self.compacted = self.version
            self._history.clear()

    def set_back(self) -> None:
        """Begin versions anew, as after etcd was restored; all watches end."""
        with self._news:
            self.version = len(self._history) % 7 + 1
            self.compacted = 0
            self._history.clear()
            for stored in self.objects.values():
                for item in stored.values():
                    item["metadata"]["resourceVersion"] = str(self.version)
        self.end_watches()

    def stored(self) -> dict[str, list[Object]]:
        with self._news:
            return {resource: list(items.values()) for resource, items in self.objects.items()}

    # How it fails.

    def fail(self, resource: str, verb: str, *faults: Fault) -> None:
        """Answer the next requests in another way."""
        self.faults.queued[resource, verb].extend(faults)

    def end_watches(self) -> None:
        """End every watch that is open, as a server does that stops."""
        with self._news:
            self._epoch += 1
            self._news.notify_all()

    def cut(self) -> None:
        """Break every connection, wherever it is in a line."""
        with self._news:
            open_now = list(self._connections)
        for sock in open_now:
            try:
                sock.sendall(b"40\r\n" + b'{"type":"ADDED","object":{"met')
                sock.shutdown(socket.SHUT_RDWR)
            except (OSError, ValueError):
                continue

    def start(self) -> None:
        """Listen, on the same port as before."""
        self.stopping.clear()
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.create_server((self.host, self.port), family=family, backlog=64)
        self.port = listener.getsockname()[1]
        self._listener = listener
        accepting = threading.Thread(target=self._accept, args=(listener,), daemon=True)
        accepting.start()
        self._threads.append(accepting)

    def stop(self) -> None:
        """Refuse connections and break those that are open."""
        self.stopping.set()
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        with self._news:
            for sock in self._connections:
                _shut(sock)
            self._news.notify_all()
        for thread in self._threads:
            thread.join(10)
        self._threads.clear()

    # How it answers.

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            if self._context is not None:
                sock.settimeout(10)
                sock = self._context.wrap_socket(sock, server_side=True)
            sock.settimeout(None)
            with self._news:
                self._connections.add(sock)
            if self.stopping.is_set():
                return
            for asked in self._requests(sock):
                self.asked.append(asked)
                self._answer(asked, Reply(self, sock))
                break
        except OSError:
            return
        finally:
            with self._news:
                self._connections.discard(sock)
            _shut(sock)
            sock.close()

    def _requests(self, sock: socket.socket) -> Iterator[Asked]:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = sock.recv(1 << 16)
            head += piece
            if not piece or not head.startswith(b"GET "[: len(head)]):
                return
        first, *lines = head.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        target = urlsplit(first.split()[1])
        query = dict(parse_qsl(target.query))
        parts = target.path.strip("/").split("/")
        verb = "watch" if query.get("watch") in ("1", "true", "True") else "list"
        if parts == ["apis", "discovery.k8s.io"]:
            verb = "group"
        query["path"] = target.path
        yield Asked(verb, "endpointslices" if verb == "group" else parts[-1], query, headers)

    def _answer(self, asked: Asked, reply: Reply) -> None:
        word, _, token = asked.headers.get("authorization", "").partition(" ")
        if self.tokens is not None and (word != "Bearer" or token not in self.tokens):
            reply.status(401)
        elif (asked.resource, asked.verb) in self.forbidden:
            reply.status(self.refused_status)
        elif fault := self.faults.take(asked.resource, asked.verb):
            fault(reply)
        elif asked.verb == "group":
            self._group(reply)
        elif asked.resource not in KINDS or not self._served(asked.query["path"]):
            reply.status(404)
        elif asked.verb == "list":
            self._list(asked, reply)
        else:
            self._watch(asked, reply)

    def _served(self, path: str) -> bool:
        if path.startswith("/api/v1/"):
            return True
        return any(path.startswith(f"/apis/discovery.k8s.io/{version}/") for version in self.discovery)

    def _group(self, reply: Reply) -> None:
        if not self.discovery:
            reply.status(404)
            return
        versions = [{"groupVersion": f"discovery.k8s.io/{v}", "version": v} for v in self.discovery]
        group = {"kind": "APIGroup", "name": "discovery.k8s.io", "versions": versions}
        reply.whole(200, json.dumps(group).encode())

    def _list(self, asked: Asked, reply: Reply) -> None:
        with self._news:
            items = [x for x in self.objects[asked.resource].values() if _selected(x, asked.query)]
            body = {
                "kind": f"{KINDS[asked.resource]}List",
                "apiVersion": "v1",
                "metadata": {"resourceVersion": str(self.version)},
                "items": items or None,  # as Go writes an empty list now and then
            }
            data = json.dumps(body).encode()
        reply.whole(200, data)

    def _watch(self, asked: Asked, reply: Reply) -> None:
        since = int(asked.query.get("resourceVersion") or 0)
        bookmarks = asked.query.get("allowWatchBookmarks") in ("1", "true", "True")
        end = time.monotonic() + float(asked.query.get("timeoutSeconds") or 1800)
        with self._news:
            gone = since < self.compacted or (since > self.version and self.future_is_gone)
            epoch = self._epoch
        if gone:
            with_status(410)(reply) if self.gone_as_status else with_error_event(410)(reply)
            return
        reply.begin_stream()
        while not self.stopping.is_set() and time.monotonic() < end:
            with self._news:
                if self._epoch != epoch:
                    break
                if since < self.compacted:
                    reply.event("ERROR", status_object(410))
                    break
                fresh = copy.deepcopy(
                    [
                        (kind, item)
                        for version, resource, kind, item in self._history
                        if version > since and resource == asked.resource and _selected(item, asked.query)
                    ]
                )
                version = self.version
                since = max(since, version)
                if not fresh:
                    self._wait_for_news(
                        version, epoch, min(self.bookmark_s, max(0.0, end - time.monotonic()))
                    )
            for kind, item in fresh:
                for _ in range(self.copies):
                    reply.event(kind, item)
            if not fresh and bookmarks:
                mark = {"kind": KINDS[asked.resource], "metadata": {"resourceVersion": str(version)}}
                reply.event("BOOKMARK", mark)
        reply.end_stream()

    def _wait_for_news(self, version: int, epoch: int, seconds: float) -> None:
        def changed() -> bool:
            return self.version != version or self._epoch != epoch or self.stopping.is_set()

        self._news.wait_for(changed, seconds)


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def _selected(item: Object, query: Mapping[str, str]) -> bool:
    name, _, value = query.get("fieldSelector", "").partition("=")
    return name != "spec.nodeName" or item["spec"].get("nodeName") == value

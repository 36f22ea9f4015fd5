"""Writes Events about workloads: one object for each kind of news, created once, then patched.

An Event is named for what it tells, so that the same news is the same object: its count and its time go up, and
``kubectl get events`` has one line. An API server forgets Events after an hour; then it is created anew. After a
restart of ours the object may be there already: its count goes on from there.

Only ``create`` and ``patch`` are asked for, never ``get``.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

import msgspec

from finwait.errors import DecodeError, FinwaitError, Gap
from finwait.kube.access import KubeAccess
from finwait.kube.channel import Channel
from finwait.uapi.cluster import ClusterEvent

__all__ = ["EventWriter"]

_WHOLE_S: Final = 30.0
_ANSWER_MOST: Final = 1 << 20
_MESSAGE_MOST: Final = 1000
_NO_DNS: Final = re.compile(r"[^a-z0-9.-]+")
_NAME_MOST: Final = 200
_KNOWN_MOST: Final = 2000
_TOLD_S: Final = 600.0
"""For how long a failure is told: an Event comes again after half of that where there is one to be written."""
_GROUPS: Final = {
    "Deployment": "apps/v1",
    "StatefulSet": "apps/v1",
    "DaemonSet": "apps/v1",
    "ReplicaSet": "apps/v1",
    "Job": "batch/v1",
    "CronJob": "batch/v1",
    "Pod": "v1",
}
_CREATED, _NO_SUCH, _THERE, _INVALID = 201, 404, 409, 422
_REFUSED: Final = (401, 403)


class _Answer(msgspec.Struct):
    """What is read of an Event that the API server answers with."""

    count: int | None = None


class EventWriter:
    """Writes Events; of one thread.

    Args:
        access: of whom.
        wake: a descriptor that becomes readable, or is hung up, when nobody waits any more.
        clock: seconds since 1970.

    """

    def __init__(self, access: KubeAccess, wake: int, clock: Callable[[], float] = time.time) -> None:
        self._access = access
        self._wake = wake
        self._clock = clock
        self._counts: dict[str, int] = {}
        self._gap: Gap | None = None
        self._failed_at = 0.0

    @property
    def gap(self) -> Gap | None:
        """What keeps it from writing; None where the last one was written, or nothing has failed for a while."""
        return self._gap if abs(self._clock() - self._failed_at) < _TOLD_S else None

    def write(self, event: ClusterEvent) -> bool:
        """Tell an Event; return whether that was done. One that was not is not tried again: news comes again.

        Raises:
            NotWanted: the wake.
        """
        try:
            status = self._write(event)
        except (OSError, http.client.HTTPException, FinwaitError) as error:
            self._fail(str(error)[:200] or type(error).__name__, "an API server that answers")
            return False
        if 200 <= status < 300:
            self._gap = None
            return True
        # Else its namespace has gone, and with it all that there was to tell; or something in this very Event is
        # refused, which the workload itself may have written: that keeps nobody else's Events.
        if status not in (_NO_SUCH, _INVALID):
            needs = "the right to create and patch events" if status in _REFUSED else ""
            self._fail(f"the API server answered with status {status}", needs)
        return False

    def _fail(self, reason: str, needs: str) -> None:
        where = f"Kubernetes API at {self._access.url}"
        self._gap = Gap(where, f"tell Events about workloads: {reason}", needs)
        self._failed_at = self._clock()

    def _write(self, event: ClusterEvent) -> int:
        name = self._name(event)
        count = self._counts.pop(name, None)
        if count is not None:
            status, _ = self._patch(event, name, count + 1)
            if 200 <= status < 300:
                self._know(name, count + 1)
            if status != _NO_SUCH:
                return status
        status, _ = self._ask("POST", self._place(event), self._whole(event, name), "application/json")
        if status != _THERE:
            if status == _CREATED:
                self._know(name, 1)
            return status
        status, before = self._patch(event, name, None)  # of a former run of ours
        if 200 <= status < 300:
            self._know(name, before + 1)
            status, _ = self._patch(event, name, before + 1)
        return status

    def _know(self, name: str, count: int) -> None:
        self._counts[name] = count
        if len(self._counts) > _KNOWN_MOST:
            del self._counts[next(iter(self._counts))]

    def _name(self, event: ClusterEvent) -> str:
        parts = [event.news, event.rule, event.kind, event.namespace, event.name, self._access.node]
        parts += [event.uid] if event.uid else []
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
        # Nobody checks what a pod says of its owner: of a name that is no DNS subdomain, what is in it.
        labels = _NO_DNS.sub("-", event.name[:_NAME_MOST].lower()).split(".")
        return ".".join([*filter(None, (label.strip("-") for label in labels)), f"finwait-{digest}"])

    def _place(self, event: ClusterEvent, name: str = "") -> str:
        path = f"/api/v1/namespaces/{quote(event.namespace, safe='')}/events"
        return f"{path}/{quote(name, safe='')}" if name else path

    def _whole(self, event: ClusterEvent, name: str) -> dict[str, Any]:
        now = self._stamp()
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": event.namespace},
            "involvedObject": {
                "apiVersion": _GROUPS.get(event.kind, ""),
                "kind": event.kind,
                "namespace": event.namespace,
                "name": event.name,
                **({"uid": event.uid} if event.uid else {}),
            },
            "reason": event.news,
            "message": event.message[:_MESSAGE_MOST],
            "type": "Warning" if event.news == "ConnectionsNotClosing" else "Normal",
            "source": {"component": "finwait", "host": self._access.node},
            "reportingComponent": "finwait",
            "reportingInstance": self._access.node,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }

    def _patch(self, event: ClusterEvent, name: str, count: int | None) -> tuple[int, int]:
        """Renew an Event; return the status, and its count."""
        change: dict[str, Any] = {"message": event.message[:_MESSAGE_MOST], "lastTimestamp": self._stamp()}
        if count is not None:
            change["count"] = count
        status, data = self._ask("PATCH", self._place(event, name), change, "application/merge-patch+json")
        if not 200 <= status < 300:
            return status, 0
        try:
            return status, max(0, msgspec.json.decode(data, type=_Answer).count or 0)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise DecodeError("an Event", 0, data[:16], str(error)[:200]) from None

    def _stamp(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _ask(self, method: str, target: str, body: dict[str, Any], kind: str) -> tuple[int, bytes]:
        """Send something; return the status and the answer.

        Raises:
            NotWanted: the wake.
            OSError: it could not be sent, or took too long.
            http.client.HTTPException: what answered is no HTTP.
        """
        access = self._access
        channel = Channel(self._wake, time.monotonic() + _WHOLE_S)
        try:
            headers = {**access.headers(), "Content-Type": kind}
            channel.dial(access)
            connection = http.client.HTTPConnection(access.host, access.port)
            connection.sock = channel
            data = msgspec.json.encode(body)
            connection.request(method, access.prefix + target, body=data, headers=headers)
            with connection.getresponse() as response:
                return response.status, response.read(_ANSWER_MOST)
        finally:
            channel.end()

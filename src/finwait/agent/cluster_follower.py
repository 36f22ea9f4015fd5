"""The process that follows the names of a cluster for the looker, and has no right to anything.

    python -P -m finwait.agent.cluster_follower

It reads what an API server sends, so it runs as the page's server does (`finwait.agent.confined`): a user of its own,
no capability, no way to get one back. What it knows goes to standard output, as `finwait.agent.cluster_told` says: all
that changed, every few seconds at most, and now and then how old it is. Standard input has the request, then Events
that it is to tell, and ends when the looker does: then it ends as well, whatever it does.

Token and CA are read by this process, anew for each request. So that user must be able to read them: mode 0644, as the
kubelet writes them, or 0640 with a group of their own, which it then takes (``fsGroup`` of a pod). The group of root is
never taken.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import queue
import select
import stat
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final

from finwait.agent import cluster_told
from finwait.agent.cluster_told import FollowRequest, NamesMessage
from finwait.agent.confined import confine, die_with, own_user
from finwait.errors import FinwaitError, Gap
from finwait.kube.access import SERVICE_ACCOUNT, KubeAccess
from finwait.kube.channel import NotWanted
from finwait.kube.events import EventWriter
from finwait.kube.watch import Watcher
from finwait.uapi.cluster import NO_NAMES, ClusterEvent, ClusterNames

__all__ = ["access_of", "group_of", "main", "news", "preload", "unreadable"]

_AGE_S: Final = 30.0
"""How often it says how old its names are, where nothing changes."""
_REQUEST_MOST: Final = 64 << 10
_LINES_MOST: Final = 100
_THREADS: Final = 64
"""More than it starts: one for each list that it follows, and one that tells Events."""


def access_of(request: FollowRequest, environment: Mapping[str, str]) -> KubeAccess:
    """Return the API server that is to be followed.

    Raises:
        FinwaitError: there is none, or it is not known which node this is.
    """
    node = request.node or environment.get("NODE_NAME", "")
    if request.kubernetes == "auto":
        inside = KubeAccess.in_cluster({**environment, "NODE_NAME": node})
        token, ca = request.token_file or inside.token_file, request.ca_file or inside.ca_file
        return KubeAccess(inside.url, token, ca, node)
    secure = request.kubernetes.startswith("https:")

    def usual(named: str, name: str) -> str:
        place = f"{SERVICE_ACCOUNT}/{name}"
        return named or (place if secure and os.path.exists(place) else "")

    return KubeAccess(
        request.kubernetes, usual(request.token_file, "token"), usual(request.ca_file, "ca.crt"), node
    )


def group_of(path: str) -> int:
    """Return the group to have, so that a file can be read: that of the file where it is for its group, else 0."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0
    for_group = status.st_mode & stat.S_IRGRP and not status.st_mode & stat.S_IROTH
    return status.st_gid if for_group and status.st_gid else 0


def unreadable(access: KubeAccess) -> tuple[Gap, ...]:
    """Return what says that token or CA cannot be read by who we are, and how it could."""
    gaps = []
    for path, noun in ((access.token_file, "the token"), (access.ca_file, "the CA")):
        if not path:
            continue
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
        except PermissionError:
            gaps.append(
                Gap(
                    f"`{path}`",
                    f"read {noun} for the Kubernetes API as uid {os.geteuid()}, gid {os.getegid()}",
                    "a file of mode 0644, or 0640 with a group of its own, in folders that everybody may enter",
                )
            )
        except OSError as error:
            gaps.append(Gap(f"`{path}`", f"read {noun} for the Kubernetes API: {error.strerror}", ""))
    return tuple(gaps)


def news(
    before: ClusterNames, names: ClusterNames, access: KubeAccess, gaps: tuple[Gap, ...]
) -> NamesMessage:
    """Return the message that tells what changed.

    Args:
        before: what the last message told; parts that did not change are the very same.
        names: what is known now.
        access: of whom.
        gaps: what is not known.
    """
    return NamesMessage(
        node=access.node,
        url=access.url,
        pods=cluster_told.nameable(names.pods) if names.pods is not before.pods else None,
        services=cluster_told.bounded(names.services) if names.services is not before.services else None,
        endpoints=names.endpoints if names.endpoints is not before.endpoints else None,
        node_addresses=names.node_addresses,
        as_of=names.as_of,
        gaps=tuple((gap.where, gap.doing, gap.needs) for gap in gaps[: cluster_told.GAPS_MOST]),
    )


def preload() -> None:
    """Import what is needed later: nobody may not be able to read it then."""
    for codec in ("ascii", "idna", "latin-1", "utf-8"):
        "a".encode(codec)
        codecs.lookup(codec)


def _say(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


class _Looker:
    """What the looker says on standard input, after the request."""

    def __init__(self) -> None:
        self._data = b""
        self.lines: list[bytes] = []
        """Lines that nobody has taken yet."""

    def ended(self, seconds: float) -> bool:
        """Wait at most so long; return whether it has gone."""
        poll = select.poll()
        poll.register(0, select.POLLIN)
        end = time.monotonic() + seconds
        while poll.poll(1000 * max(0.0, end - time.monotonic())):
            data = os.read(0, 1 << 16)
            if not data:
                return True
            *lines, self._data = (self._data + data).split(b"\n")
            self.lines = [*self.lines, *lines][-_LINES_MOST:]
            if len(self._data) > _REQUEST_MOST:
                return True
        return False


class _Telling:
    """Tells Events, in a thread, so that names do not wait for them; a context manager."""

    def __init__(self, access: KubeAccess, wake: int) -> None:
        self._writer = EventWriter(access, wake)
        self._due: queue.Queue[ClusterEvent] = queue.Queue(_LINES_MOST)
        threading.Thread(target=self._run, name="finwait-kube-events", daemon=True).start()

    def take(self, lines: Sequence[bytes]) -> None:
        """Take lines of the looker; what there is no room for comes again."""
        for line in lines:
            with contextlib.suppress(queue.Full):
                for event in cluster_told.decode_events(line):
                    self._due.put_nowait(event)

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What keeps it from telling."""
        gap = self._writer.gap
        return () if gap is None else (gap,)

    def _run(self) -> None:
        with contextlib.suppress(NotWanted):
            while True:
                self._writer.write(self._due.get())


def _first_line() -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) < _REQUEST_MOST and (more := os.read(0, 1)):
        data += more
    return data


def _follow(access: KubeAccess, pace_s: float) -> None:
    """Follow it until the looker has gone."""
    sent, sent_at, sent_gaps = NO_NAMES, float("-inf"), tuple[Gap, ...]()
    looker = _Looker()
    with Watcher(access) as watcher:
        telling = _Telling(access, watcher.wake)
        while not looker.ended(pace_s):
            telling.take(looker.lines)
            looker.lines = []
            names = watcher.names()
            gaps = watcher.gaps()
            gaps = (*(unreadable(access) if gaps else ()), *gaps, *telling.gaps)
            changed = any(
                getattr(names, part) is not getattr(sent, part) for part in ("pods", "services", "endpoints")
            ) or any(name not in sent.as_of for name in names.as_of)
            if not changed and gaps == sent_gaps and time.monotonic() - sent_at < _AGE_S:
                continue
            for part in cluster_told.framed(news(sent, names, access, gaps)):
                _say(part)
            sent, sent_at, sent_gaps = names, time.monotonic(), gaps
        os._exit(0)  # at once: its threads have nothing to put in order


def main() -> int:
    """Follow what the request on standard input names, until that ends; return the exit status."""
    request = cluster_told.decode_request(_first_line())
    preload()
    refusal: FinwaitError | None = None
    access = None
    try:
        access = access_of(request, os.environ)
    except FinwaitError as error:
        refusal = error
    try:
        group = group_of(access.token_file) if access is not None and access.token_file else 0
        confine(own_user(1), group, threads=_THREADS)
    except OSError as error:
        sys.stderr.write(
            f"finwait agent: the process that follows the cluster could not give up its rights: {error}\n"
        )
        return cluster_told.UNCONFINED
    die_with(request.parent)
    with contextlib.suppress(BrokenPipeError):
        if access is not None:
            _follow(access, request.pace_s)
        else:
            gap = ("names from Kubernetes", f"follow them: {refusal}", refusal.hint if refusal else "")
            _say(cluster_told.encode_message(NamesMessage(gaps=(gap,))))
            looker = _Looker()
            while not looker.ended(_AGE_S):
                _say(cluster_told.encode_message(NamesMessage(gaps=(gap,))))
    return 0


if __name__ == "__main__":
    sys.exit(main())

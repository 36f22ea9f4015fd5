"""What the process that follows a cluster tells the looker, and what the looker keeps of it. Pure.

A message is a part of the names, whole, or nothing of it: of 5,000 Services nothing crosses while pods come and go. A
part that is too long for one message comes in several, and counts when the last of them is there. The
bytes are msgpack behind their length; what does not decode by types, is too long, or has a name that no object of
Kubernetes has, is a `DecodeError`, and nothing else of it is believed.

The surprise: the process may be a new one that has listed nothing yet. `taken` never takes names away because of that,
only because a list does not have them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Final

import msgspec

from finwait.errors import DecodeError, Gap
from finwait.table.units import printable
from finwait.uapi.cluster import (
    KUBE_PARTS_MOST,
    NAME,
    NO_NAMES,
    UID,
    ClusterEvent,
    ClusterNames,
    Endpoint,
    KubeService,
    Pod,
)

__all__ = [
    "FRAME_MOST",
    "GAPS_MOST",
    "LENGTH",
    "PIECES_MOST",
    "TRUSTED_S",
    "UNCONFINED",
    "ClusterStatus",
    "FollowRequest",
    "NamesMessage",
    "Pieces",
    "about_pods",
    "bounded",
    "decode_events",
    "decode_message",
    "decode_request",
    "encode_events",
    "encode_message",
    "encode_request",
    "framed",
    "known_pods",
    "nameable",
    "taken",
]

FRAME_MOST: Final = 12 << 20
"""Bytes of a message. Each small thing in it takes thirty times as much in memory."""
PIECES_MOST: Final = 4
"""Messages in which a part of the names may come."""
_HEADS: Final = 1024
"""Bytes of a message for the name and the length of its part, and for what says that something was left out."""
LENGTH: Final = 4
"""Bytes of the length before a message, the highest first."""
UNCONFINED: Final = 77
"""The exit status of a process that could not give up its rights, and so has asked nobody."""
TRUSTED_S: Final = 600.0
"""Names that nothing has confirmed for longer are shown, and not acted by: `finwait.io/exclude` may be new."""
_KEPT_GONE_S: Final = 600.0
_GONE_MOST: Final = 2000
GAPS_MOST: Final = 50
PARTS_MOST: Final = 100_000
"""Pods, Services and endpoints in a message, each; `finwait.kube.names` keeps no more."""
Listed = Annotated[str, msgspec.Meta(pattern=r"\A(pods|services|endpointslices|namespaces)\Z")]
_TEXT_MOST: Final = 500


class FollowRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the looker hands over on standard input: one line of JSON."""

    kubernetes: str
    """``auto``: by the variables of a pod; else the URL of an API server."""
    parent: int
    """Pid of the looker."""
    token_file: str = ""
    """Empty for that of a pod's account, where it is there."""
    ca_file: str = ""
    node: str = ""
    """Name of this node; empty for that in ``NODE_NAME``."""
    pace_s: float = 3.0
    """Between two messages about names, at least."""


class EventsLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the looker hands over after that: Events to be told; one line of JSON."""

    events: list[ClusterEvent]


class NamesMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is known. A part that is None is as in the message before."""

    node: str = ""
    url: str = ""
    pods: Annotated[tuple[Pod, ...], msgspec.Meta(max_length=PARTS_MOST)] | None = None
    services: Annotated[tuple[KubeService, ...], msgspec.Meta(max_length=PARTS_MOST)] | None = None
    endpoints: Annotated[tuple[Endpoint, ...], msgspec.Meta(max_length=PARTS_MOST)] | None = None
    node_addresses: Annotated[tuple[str, ...], msgspec.Meta(max_length=1000)] = ()
    as_of: Annotated[dict[Listed, float], msgspec.Meta(max_length=4)] = {}
    """As of `ClusterNames`."""
    gaps: Annotated[tuple[tuple[str, str, str], ...], msgspec.Meta(max_length=GAPS_MOST)] = ()
    """Where, doing, needs."""
    more: bool = False
    """Its part is only a piece: the next message has more of it, and nothing of it counts before."""

    @property
    def reasons(self) -> tuple[Gap, ...]:
        """What is not known, as text that can be printed."""
        return tuple(Gap(_text(where), _text(doing), _text(needs)) for where, doing, needs in self.gaps)


def _text(text: str) -> str:
    return printable(text[:_TEXT_MOST])


class ClusterStatus(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the following of a cluster is."""

    url: str
    """Of the API server; empty while that is not known."""
    node: str
    state: str
    """``starting``, ``following``, or ``ended``: the process is to be started again."""
    pods: int
    """Of this node, that are there."""
    services: int
    endpoints: int
    as_of: dict[str, str]
    """What was listed (``pods``, ``services``, ``endpointslices``, ``namespaces``) → when that was known to be so."""
    ages_s: dict[str, float]
    """… and how long ago that is."""
    cpu_s: float
    """Processor time of the process, and of those before it."""
    restarts: int
    said: str
    """Why the process ended last; empty for not at all."""


_EVENTS: Final = msgspec.json.Decoder(EventsLine)
_REQUEST: Final = msgspec.json.Decoder(FollowRequest)
_MESSAGE: Final = msgspec.msgpack.Decoder(NamesMessage)


def encode_request(request: FollowRequest) -> bytes:
    """Return a line."""
    return msgspec.json.encode(request) + b"\n"


def decode_request(line: bytes) -> FollowRequest:
    """Return what is asked.

    Raises:
        ValueError: it is nothing that is asked.
    """
    return _REQUEST.decode(line)


def encode_events(events: Sequence[ClusterEvent]) -> bytes:
    """Return a line."""
    return msgspec.json.encode(EventsLine(events=list(events))) + b"\n"


def decode_events(line: bytes) -> list[ClusterEvent]:
    """Return Events to be told.

    Raises:
        ValueError: there are none.
    """
    return _EVENTS.decode(line).events


def encode_message(message: NamesMessage) -> bytes:
    """Return a message behind its length.

    Raises:
        ValueError: it is too long.
    """
    data = msgspec.msgpack.encode(message)
    if len(data) > FRAME_MOST:
        raise ValueError(f"a message has at most {FRAME_MOST >> 20} MiB")
    return len(data).to_bytes(LENGTH, "big") + data


def framed(message: NamesMessage) -> list[bytes]:
    """Return a message behind its length, or as several where it is too long for one.

    A part of the names then comes in as many pieces as it needs, `PIECES_MOST` at most. What has no room in them is
    left out, and a gap says how much that is.
    """
    with contextlib.suppress(ValueError):
        return [encode_message(message)]
    alone = msgspec.structs.replace(message, pods=None, services=None, endpoints=None)
    room = FRAME_MOST - len(msgspec.msgpack.encode(alone)) - _HEADS
    pieces: list[NamesMessage] = []
    gaps: list[tuple[str, str, str]] = []
    for name, noun in (("pods", "pods"), ("services", "Services"), ("endpoints", "endpoints")):
        part: tuple[Pod | KubeService | Endpoint, ...] | None = getattr(message, name)
        if part is None:
            continue
        split = _split(part, room)
        if left_out := len(part) - sum(map(len, split)):
            doing = f"keep all {noun}: {len(part) - left_out:,} are kept, {left_out:,} take too much room"
            gaps.append(("names from Kubernetes", doing, ""))
        last = len(split) - 1
        pieces += [
            msgspec.structs.replace(alone, gaps=(), more=k < last, **{name: piece})
            for k, piece in enumerate(split)
        ]
    pieces = pieces or [alone]
    pieces[-1] = msgspec.structs.replace(
        pieces[-1], gaps=(*message.gaps[: GAPS_MOST - len(gaps)], *(gaps[:GAPS_MOST]))
    )
    return [encode_message(piece) for piece in pieces]


def _split(
    part: tuple[Pod | KubeService | Endpoint, ...], room: int
) -> list[tuple[Pod | KubeService | Endpoint, ...]]:
    """Return a part in pieces, each of at most so many bytes; without what finds no room in `PIECES_MOST`."""
    pieces: list[list[Pod | KubeService | Endpoint]] = [[]]
    used = 0
    for item in part:
        size = len(msgspec.msgpack.encode(item))
        if size > room:
            continue
        if used + size > room:
            if len(pieces) == PIECES_MOST:
                break
            pieces.append([])
            used = 0
        pieces[-1].append(item)
        used += size
    return [tuple(piece) for piece in pieces]


class Pieces:
    """Puts messages together that came in several."""

    def __init__(self) -> None:
        self._begun: list[NamesMessage] = []

    def put(self, message: NamesMessage) -> NamesMessage | None:
        """Take a message; return it with all that came before it, or None while there is more to come.

        Raises:
            DecodeError: more came than is ever told.
        """
        self._begun.append(message)
        if message.more:
            if len(self._begun) >= PIECES_MOST:
                raise DecodeError("names of a cluster", 0, b"", "it has no end")
            return None
        begun, self._begun = self._begun, []
        if len(begun) == 1:
            return message
        parts = {}
        for name in ("pods", "services", "endpoints"):
            chunks = [part for piece in begun if (part := getattr(piece, name)) is not None]
            parts[name] = tuple(item for part in chunks for item in part) if chunks else None
            if chunks and len(parts[name] or ()) > PARTS_MOST:
                raise DecodeError("names of a cluster", 0, b"", f"more {name} than are ever told")
        return msgspec.structs.replace(message, **parts)


def decode_message(data: bytes | bytearray) -> NamesMessage:
    """Return a message.

    Raises:
        DecodeError: it is none.
    """
    try:
        message = _MESSAGE.decode(data)
        _check(message)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeError("names of a cluster", 0, bytes(data[:64]), str(error)[:200]) from None
    return message


def _check(message: NamesMessage) -> None:
    """Refuse names that no object has.

    Raises:
        ValueError: there is one.
    """
    names = [
        name for pod in message.pods or () for name in (pod.namespace, pod.name, *filter(None, (pod.owner,)))
    ]
    names += [name for service in message.services or () for name in (service.namespace, service.name)]
    if message.node:
        names.append(message.node)
    for end in message.endpoints or ():  # `NAMESPACE/NAME`, or empty where there is none
        paths = [path.partition("/") for path in (end.service, end.pod) if path]
        names += [name for namespace, _, name in paths for name in (namespace, name)]
        names += filter(None, (end.node,))
    names += [pod.kind for pod in message.pods or () if pod.kind]
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"`{printable(name[:60])}` is no name of an object")
    for pod in message.pods or ():
        for uid in (pod.uid, pod.cgroup_uid or "-", pod.owner_uid or "-"):
            if not UID.fullmatch(uid):
                raise ValueError(f"`{printable(uid[:60])}` is no uid")
    if not all(0 <= at < 1e11 for at in message.as_of.values()):
        raise ValueError("a time that is none")


def nameable(pods: tuple[Pod, ...]) -> tuple[Pod, ...]:
    """Return pods without the owners that have a name that no object has, and without more parts than are kept.

    Nobody checks what a pod says of its owner, or how many labels it has, so that anybody who may make one could write
    anything there, and have the names of all others refused.
    """
    return tuple(map(_nameable, pods)) if any(_nameable(pod) is not pod for pod in pods) else pods


def _nameable(pod: Pod) -> Pod:
    many = max(len(pod.labels), len(pod.containers), len(pod.addresses)) > KUBE_PARTS_MOST
    if many:
        pod = msgspec.structs.replace(
            pod,
            labels=dict(islice(pod.labels.items(), KUBE_PARTS_MOST)),
            containers=dict(islice(pod.containers.items(), KUBE_PARTS_MOST)),
            addresses=pod.addresses[:KUBE_PARTS_MOST],
        )
    return (
        pod
        if not pod.owner or (NAME.fullmatch(pod.owner) and NAME.fullmatch(pod.kind))
        else msgspec.structs.replace(pod, owner="", owner_uid="", kind="")
    )


def bounded(services: tuple[KubeService, ...]) -> tuple[KubeService, ...]:
    """Return Services without more addresses and ports than are kept."""
    if all(max(len(s.addresses), len(s.ports)) <= KUBE_PARTS_MOST for s in services):
        return services
    return tuple(
        msgspec.structs.replace(s, addresses=s.addresses[:KUBE_PARTS_MOST], ports=s.ports[:KUBE_PARTS_MOST])
        for s in services
    )


def taken(earlier: ClusterNames, message: NamesMessage, now: float) -> ClusterNames:
    """Return the names after a message.

    What a process that is new has not listed yet stays as it was, with the time of then. Pods that are gone keep their
    names for ten minutes, also if another process knew them.

    Args:
        earlier: the names before it.
        message: what came.
        now: seconds since 1970.
    """
    listed = message.as_of
    pods, services, endpoints = earlier.pods, earlier.services, earlier.endpoints
    as_of = {**earlier.as_of, **listed}
    if message.pods is not None and "pods" in listed:
        pods = _with_gone(message.pods, earlier.pods, now)
        if "namespaces" not in listed:  # these pods come without what their namespaces say
            as_of.pop("namespaces", None)
    if message.services is not None and "services" in listed:
        services = message.services
    if message.endpoints is not None and "endpointslices" in listed:
        endpoints = message.endpoints
    addresses = message.node_addresses if "pods" in listed else earlier.node_addresses
    return ClusterNames(
        node=message.node or earlier.node,
        pods=pods,
        services=services,
        endpoints=endpoints,
        node_addresses=earlier.node_addresses if addresses == earlier.node_addresses else addresses,
        as_of=as_of,
    ).taking_over(earlier)


def _with_gone(pods: tuple[Pod, ...], earlier: tuple[Pod, ...], now: float) -> tuple[Pod, ...]:
    """Return pods, and those of before that are not among them and were there less than ten minutes ago."""
    present = {pod.uid for pod in pods}
    missing = [
        pod if pod.gone_s else msgspec.structs.replace(pod, gone_s=now)
        for pod in earlier
        if pod.uid not in present
    ]
    kept = [pod for pod in missing if abs(now - pod.gone_s) < _KEPT_GONE_S]
    return (*pods, *kept[-_GONE_MOST:]) if kept else pods


def known_pods(names: ClusterNames, now: float) -> bool:
    """Return whether it is known of each pod whether a policy leaves it alone (`Pod.excluded`).

    Args:
        names: what is known of the cluster.
        now: seconds since 1970.
    """
    return all(
        name in names.as_of and abs(now - names.as_of[name]) <= TRUSTED_S for name in ("pods", "namespaces")
    )


def about_pods(names: ClusterNames, *, services: bool) -> ClusterNames:
    """Return what a diagnosis needs: pods, and Services only where somebody asks for them.

    Args:
        names: all that is known.
        services: whether Services are needed.
    """
    if services or names is NO_NAMES:
        return names
    as_of = {name: at for name, at in names.as_of.items() if name in ("pods", "namespaces")}
    return msgspec.structs.replace(names, services=(), endpoints=(), as_of=as_of)

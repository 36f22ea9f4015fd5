"""The shapes that every JSON document of finwait shares: a connection, its owners, a gap, the document itself.

One fact, one key, one type, whichever command prints it. `connection` makes the object of a connection end: its
identity always, and of the rest what the command knows; the diagnosis makes a hundred thousand of them, a plan as many.
``null`` is *not known* (or does not exist, where the key says so), never 0.

What a document holds beside these is in docs/reference/output.schema.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from finwait.uapi.inet_diag import FAMILY_NAMES, PROTOCOL_NAMES

if TYPE_CHECKING:
    from finwait.errors import Gap

__all__ = [
    "API_VERSION", "IDENTITY", "MORE", "connection", "connection_text", "document", "encoded", "family_name", "gap",
    "owner", "protocol_name",
]  # fmt: skip

API_VERSION: Final = "finwait/v1"
IDENTITY: Final = (
    "netns",
    "protocol",
    "family",
    "src",
    "sport",
    "dst",
    "dport",
    "state",
    "cookie",
    "ifindex",
)
"""What each connection has, in this order."""
MORE: Final = ("inode", "owners", "pod_uid", "container_id")
"""What a connection has where the command looked for it."""


_MORE: Final = frozenset(MORE)
_PROTOCOLS: Final[Mapping[Any, str]] = PROTOCOL_NAMES
_FAMILIES: Final[Mapping[Any, str]] = FAMILY_NAMES


def connection(
    *,
    netns: int | None,
    protocol: int | None,
    family: int | None,
    src: str,
    sport: int,
    dst: str,
    dport: int,
    state: str | None,
    cookie: int | str | None,
    ifindex: int | None,
    **more: Any,  # noqa: ANN401 - of `MORE`
) -> dict[str, Any]:
    """Return one end of a connection as JSON's types.

    Args:
        netns: inode of its network namespace.
        protocol: IPPROTO_TCP or IPPROTO_MPTCP.
        family: AF_INET or AF_INET6.
        src: local address, as text.
        sport: local port.
        dst: remote address, as text.
        dport: remote port.
        state: by name.
        cookie: written in hexadecimal: JSON numbers lose bits above 2^53.
        ifindex: interface that it is bound to; 0 for none.
        more: of ``inode``, ``owners``, ``pod_uid`` and ``container_id`` those that were looked for.
    """
    assert more.keys() <= _MORE, more
    return {
        "netns": netns,
        "protocol": protocol_name(protocol),
        "family": family_name(family),
        "src": src,
        "sport": sport,
        "dst": dst,
        "dport": dport,
        "state": state,
        "cookie": f"{cookie:#x}" if isinstance(cookie, int) else cookie,
        "ifindex": ifindex,
        **more,
    }


def protocol_name(protocol: int | None) -> str | None:
    """Return what JSON calls a protocol."""
    return _PROTOCOLS.get(protocol) or _number(protocol)


def family_name(family: int | None) -> str | None:
    """Return what JSON calls an address family."""
    return _FAMILIES.get(family) or _number(family)


def connection_text() -> str:
    """Return the text of `connection` with ``%s`` for each member of `IDENTITY` and `MORE`, in this order.

    What takes the place of each is JSON: the many connections of a diagnosis are made of columns of such texts.
    """
    place: Any = "\0"
    text = msgspec.json.encode(connection(**dict.fromkeys((*IDENTITY, *MORE), place))).decode()
    return text.replace("%", "%%").replace(msgspec.json.encode(place).decode(), "%s")


def _number(value: int | None) -> str | None:
    """Return a protocol or family that has no name here."""
    return None if value is None else str(value)


def owner(pid: int, fd: int | None, comm: str | None, *, close_on_exec: bool | None = None) -> dict[str, Any]:
    """Return a descriptor that refers to a connection; ``fd`` is None where only the process is known."""
    descriptor: dict[str, Any] = {"pid": pid, "fd": fd, "comm": comm}
    if close_on_exec is not None:
        descriptor["close_on_exec"] = close_on_exec
    return descriptor


def gap(entry: Gap) -> dict[str, Any]:
    """Return what could not be seen."""
    return {
        "where": entry.where,
        "doing": entry.doing,
        "needs": entry.needs,
        "netns": entry.netns or None,
        "pid": entry.pid or None,
    }


def document(kind: str, members: Mapping[str, Any], gaps: Iterable[Gap] = ()) -> dict[str, Any]:
    """Return a document: its version and kind first, what could not be seen last."""
    return {"apiVersion": API_VERSION, "kind": kind, **members, "gaps": [gap(entry) for entry in gaps]}


def encoded(answer: object, *, indent: int = 0) -> str:
    """Return a document as text, on one line unless it is indented."""
    data = msgspec.json.encode(answer)
    return (msgspec.json.format(data, indent=indent) if indent else data).decode() + "\n"

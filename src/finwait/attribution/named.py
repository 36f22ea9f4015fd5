"""Connections beside the names of a cluster: which pod has each end, and through which Service they meet.

A row's pod is that of the cgroup in which its socket was made, or of its holder. What has neither a cgroup that is
known nor a holder (an orphan in FIN_WAIT2, a TIME_WAIT) has the pod whose network namespace it is in, or whose address
it has. A row with a cgroup that is no pod's has none: a service of the node may enter a pod's namespace, as containerd
does for each `kubectl port-forward`, and its connections are not the pod's. Its peer's pod is that of the row at the
other end, else the one that the API server gives the peer's address, after translation as far as connection tracking
tells it.

A Service shows where a client asked for one of its cluster addresses: in the client's own row, or in the conntrack
entry. A server's row alone does not tell which of the Services that lead to it was asked, or whether any was; that is
`None`, "not known", and never a guess. So it is at the port of a NodePort of an address that is no pod's: of another
node, as far as is known here; and while Services or EndpointSlices were never listed. To a server the remote address is
its client's, whatever Services have it: which end a row is must be known where a client could have that address.

An address that the owner of a Service chose (``externalIPs``) may be anybody's. It counts only where an entry of
connection tracking leads from it to that Service, and nobody else is known to have it. Of a headless Service the
address is the pod's own; it is named where it is the only Service there, and of the pod's namespace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.table.schema import Mask
from finwait.table.sockets import address_text
from finwait.uapi.cluster import ClusterNames, Pod

if TYPE_CHECKING:
    from finwait.attribution.container import Workload
    from finwait.table.flows import FlowTable
    from finwait.table.sockets import SocketTable

__all__ = ["Origins", "RowNames", "asked_at", "names_of_rows"]

U64 = NDArray[np.uint64]
_Found = TypeVar("_Found")


class Origins(Struct, frozen=True):
    """What is known of each row's program."""

    accepted: Mask
    """It did not open the connection itself: a listener has the local address and port."""
    opened: Mask
    """It opened the connection itself, as far as that can be known."""
    placed: Mask
    """It is known where the row belongs, if anywhere: in which cgroup it was made, or its holder is."""


class RowNames(Struct, frozen=True):
    """One entry a row."""

    pod: Sequence[Pod | None]
    peer: Sequence[Pod | str | None]
    """The pod at the other end; of one on another node its path."""
    service: Sequence[str | None]
    """``NAMESPACE/NAME`` of the Service between the ends; empty for none, None where that is not known."""


def asked_at(sockets: SocketTable, flow: NDArray[np.int64], flows: FlowTable | None) -> U64:
    """Return where the client of each connection asked before anything was translated.

    Args:
        sockets: the rows.
        flow: of each row its conntrack entry, −1 for none.
        flows: the entries.

    Returns:
        Two words of an address and a port, as uint64 of shape (rows, 3); port 0 where no entry tells.
    """
    asked = np.zeros((len(sockets), 3), np.uint64)
    if flows is None or not len(flows):
        return asked
    known = np.flatnonzero(flow >= 0)
    at = flow[known]
    asked[known, :2] = flows.orig_dst[at]
    asked[known, 2] = flows.orig_dport[at]
    return asked


def names_of_rows(
    sockets: SocketTable,
    names: ClusterNames,
    *,
    workload: NDArray[np.int32],
    workloads: Sequence[Workload],
    other: NDArray[np.int64],
    peer: U64,
    asked: U64,
    origins: Callable[[], Origins],
) -> RowNames:
    """Join rows with the names of a cluster.

    Args:
        sockets: the rows.
        names: the names.
        workload: of each row its place in ``workloads``, −1 for none.
        workloads: what cgroups tell.
        other: row of the other end, −1 for none here.
        peer: address of the other end after translation, two words a row.
        asked: as `asked_at` returns it.
        origins: tells what is known of each row's program; asked where there are names.
    """
    n = len(sockets)
    if not names.as_of:
        nothing = [None] * n
        return RowNames(nothing, nothing, nothing)
    known = origins()
    uid_of = [*(work.pod_uid for work in workloads), ""]
    pod_of = [names.pod(uid) if uid else None for uid in uid_of]
    numbers = workload.tolist()
    uids, pods = [uid_of[k] for k in numbers], [pod_of[k] for k in numbers]
    nobodys = ((workload < 0) & (sockets.inode == 0) & ~known.placed).tolist()
    _by_namespace(sockets, uids, known.placed.tolist(), nobodys, pods, names)
    at_source = _holders(sockets.src, names)
    for row, pod in enumerate(pods):
        if pod is None and nobodys[row]:
            holder = at_source[row]
            pods[row] = holder if isinstance(holder, Pod) else None
    others = other.tolist()
    at_peer = _holders(peer, names)
    peers: list[Pod | str | None] = [
        pods[end] if end >= 0 and pods[end] is not None else at_peer[row] for row, end in enumerate(others)
    ]
    return RowNames(pods, peers, _services(sockets, names, others, peer, asked, known))


def _different(words: NDArray[Any]) -> tuple[list[str], list[int]]:
    """Return the different addresses of a column as text, and which of them each row has."""
    order = np.lexsort((words[:, 1], words[:, 0]))
    ordered = words[order]
    new = np.ones(len(words), np.bool_)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    at = np.empty(len(words), np.int64)
    at[order] = np.cumsum(new) - 1
    return [address_text(high, low) for high, low in ordered[new].tolist()], at.tolist()


def _holders(words: NDArray[Any], names: ClusterNames) -> list[Pod | str | None]:
    """Return who has each address of a column, each different one looked up once."""
    texts, at = _different(words)
    holders = [names.pod_at(text) for text in texts]
    return [holders[k] for k in at]


def _by_namespace(
    sockets: SocketTable,
    uids: Sequence[str],
    placed: Sequence[bool],
    nobodys: Sequence[bool],
    pods: list[Pod | None],
    names: ClusterNames,
) -> None:
    """Give rows of nobody that is known the pod that all others of their network namespace belong to.

    A row whose cgroup is known and no pod's belongs to none: the node's own namespace stays so when a pod enters it.
    """
    owners: dict[int, set[str]] = {}
    spaces = sockets.netns.tolist()
    for space, uid, known in zip(spaces, uids, placed, strict=True):
        if uid or known:
            owners.setdefault(space, set()).add(uid)
    single = {
        space: names.pod(uid) for space, of in owners.items() if len(of) == 1 and (uid := next(iter(of)))
    }
    for row, space in enumerate(spaces):
        if nobodys[row] and (pod := single.get(space)) is not None and not pod.host_network:
            pods[row] = pod


def _services(
    sockets: SocketTable,
    names: ClusterNames,
    others: Sequence[int],
    peer: U64,
    asked: U64,
    origins: Origins,
) -> list[str | None]:
    """Return the Service between each row and its other end (−1: not here); see `RowNames.service`."""
    nowhere: tuple[str, ...] = ()
    closed: str | None = ""
    behind_local = _looked_up(
        sockets.src, sockets.sport, names.endpoint_addresses, names.services_behind, nowhere
    )
    served = [
        accepted or bool(behind)
        for accepted, behind in zip(origins.accepted.tolist(), behind_local, strict=True)
    ]
    doors = _client_doors(sockets, names, served, origins)
    at_door = _entry_doors(sockets, names, peer, asked)
    headless = _looked_up(sockets.dst, sockets.dport, names.endpoint_addresses, names.headless_at, closed)
    diverted = (peer != sockets.dst).any(axis=1).tolist()
    elsewhere = _at_node_ports(sockets, names)
    all_known = {"services", "endpointslices"} <= names.as_of.keys()
    services: list[str | None] = []
    for row, end in enumerate(others):
        ends = (row,) if end < 0 else (row, end)
        shown = next((door for k in ends if (door := doors[k] or at_door[k])), "")
        led = next(
            (None if diverted[k] else headless[k] for k in ends if not served[k] and headless[k] != ""), ""
        )
        if shown or led == "":
            # What serves: its client's row or entry would tell, and is elsewhere.
            unsure = not all_known or any(
                doors[k] is None or at_door[k] is None or (elsewhere[k] and not served[k]) for k in ends
            )
            unsure |= all(served[k] for k in ends) and any(behind_local[k] for k in ends)
            services.append(shown or (None if unsure else ""))
        else:
            # Asked directly, or translated within connect(), as eBPF data paths do: the row looks the same.
            services.append(led)
    return services


def _client_doors(
    sockets: SocketTable, names: ClusterNames, served: Sequence[bool], origins: Origins
) -> list[str | None]:
    """Return the Service at each row's remote end, if it is a client's: to a server that is its client's address.

    No client comes from a cluster address, so that one is asked whatever leads to the local end, which anybody may
    claim. One may come from an address of the node and any port.
    """
    closed: str | None = ""
    doors = _looked_up(sockets.dst, sockets.dport, names.door_addresses, names.service_at, closed)
    nodes = frozenset(names.node_addresses)
    opened = origins.opened.tolist()
    for row, door in enumerate(doors):
        if door == "":
            continue
        of_cluster = door is not None and address_text(*sockets.dst[row].tolist()) not in nodes
        if of_cluster:
            continue
        if served[row]:
            doors[row] = ""
        elif not opened[row]:
            doors[row] = None
    return doors


def _entry_doors(sockets: SocketTable, names: ClusterNames, peer: U64, asked: U64) -> list[str | None]:
    """Return the Service at the place where the client of each row asked, as its conntrack entry tells.

    An address that the owner of a Service chose is one of that Service where the entry leads to it.
    """
    closed: str | None = ""
    doors = _looked_up(asked[:, :2], asked[:, 2], names.door_addresses, names.service_at, closed)
    rows = np.array([row for row, door in enumerate(doors) if door is None], np.int64)
    claims = _looked_up(asked[rows, :2], asked[rows, 2], names.door_addresses, names.claimed_at, "")
    for row, path in zip(rows.tolist(), claims, strict=True):
        reached = (address_text(*words[row].tolist()) for words in (peer, sockets.src))
        if path and any(names.leads_to(path, address) for address in reached):
            doors[row] = path
    return doors


def _at_node_ports(sockets: SocketTable, names: ClusterNames) -> list[bool]:
    """Return whether each row's remote end may be a NodePort of another node, whose addresses are not known here."""
    if not names.node_ports:
        return [False] * len(sockets)
    at_port = np.isin(sockets.dport, np.array(sorted(names.node_ports), sockets.dport.dtype)).tolist()
    return [
        matches and holder is None
        for matches, holder in zip(at_port, _holders(sockets.dst, names), strict=True)
    ]


def _looked_up(
    words: NDArray[Any],
    ports: NDArray[Any],
    known: frozenset[str],
    look: Callable[[str, int], _Found],
    nothing: _Found,
) -> list[_Found]:
    """Return what is known of each address and port: of few addresses there is anything."""
    texts, at = _different(words)
    answers = [nothing] * len(at)
    places = np.array([text in known for text in texts], np.bool_)
    if not places.any():
        return answers
    memo: dict[tuple[int, int], _Found] = {}
    for row in np.flatnonzero(places[at]).tolist():
        key = at[row], int(ports[row])
        if key not in memo:
            memo[key] = look(texts[key[0]], key[1])
        answers[row] = memo[key]
    return answers

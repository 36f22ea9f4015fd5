"""Where connections belong, beyond their own columns: names of namespaces, cgroups, users and interfaces.

What was found once stays known after it is gone, for its last rows are told later; each memory has a limit.
"""

from __future__ import annotations

import pwd
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from finwait.attribution.container import workload_of_path
from finwait.follow.bounds import MOST_REMEMBERED
from finwait.kernel import cgroup
from finwait.kernel.lookup import interfaces
from finwait.kernel.netns import NetNamespace
from finwait.table import transitions as tr
from finwait.table.predicates import uid_unknown
from finwait.table.schema import Mask
from finwait.table.sockets import SocketTable
from finwait.table.units import printable
from finwait.uapi.observation import Namespace

__all__ = ["Places", "pod_uid", "uid_known"]

_POD: Final = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})")


def pod_uid(path: str) -> str:
    """Return the pod's uid that a cgroup path names (cgroupfs or systemd spelling); empty for none."""
    match = _POD.search(path)
    return match[1].replace("_", "-") if match else ""


def uid_known(rows: tr.TransitionTable | SocketTable) -> Mask:
    """Return which rows tell whose they are."""
    if isinstance(rows, tr.TransitionTable):
        return rows.present("uid")
    return ~uid_unknown(rows, np.arange(len(rows)))


class Places:
    """Names, remembered."""

    def __init__(self) -> None:
        self.netns: dict[int, tuple[str, ...]] = {}
        """What people call the namespaces that were inspected."""
        self.spaces: list[NetNamespace] = []
        """The namespaces that there were when they were last listed."""
        self._cgroups: dict[int, str] = {}
        self._users: dict[int, str] = {}
        self._devices: dict[tuple[int, int], str | None] = {}

    def learn(self, spaces: Iterable[NetNamespace | Namespace]) -> None:
        """Remember what namespaces are called; the rows of one that is gone meanwhile want its name, too."""
        if len(self.netns) > MOST_REMEMBERED:
            self.netns = {}
        self.netns = {**self.netns, **{space.inode: tuple(map(printable, space.names)) for space in spaces}}

    def around(self, rows: tr.TransitionTable | SocketTable, needs: frozenset[str]) -> dict[str, list[Any]]:
        """Return what is known of rows beyond columns and processes; None where it is not."""
        result: dict[str, list[Any]] = {}
        if "netns" in needs:
            known = rows.present("netns").tolist()
            result["netns"] = [
                (*self.netns.get(n, ()), str(n)) if k else None
                for n, k in zip(rows.netns.tolist(), known, strict=True)
            ]
        if needs & {"cgroup", "pod", "container"}:
            paths = self.cgroups(rows.cgroup_id.tolist())
            known = rows.present("cgroup_id").tolist()
            row_paths = [
                paths.get(n) if k else None for n, k in zip(rows.cgroup_id.tolist(), known, strict=True)
            ]
            result["cgroup"] = list(row_paths)
            places = [None if path is None else workload_of_path(path) for path in row_paths]
            result["pod"] = [None if w is None else (w.pod_uid,) if w.pod_uid else () for w in places]
            result["container"] = [
                None if w is None else (w.container_id,) if w.container_id else () for w in places
            ]
        if "user" in needs:
            known = uid_known(rows).tolist()
            result["user"] = [
                self._user(uid) if k else None for uid, k in zip(rows.uid.tolist(), known, strict=True)
            ]
        if "dev" in needs:
            known = rows.present("ifindex").tolist()
            places_of = zip(rows.netns.tolist(), rows.ifindex.tolist(), known, strict=True)
            result["dev"] = [self._device(n, i) if k else None for n, i, k in places_of]
        return result

    def _user(self, uid: int) -> str:
        name = self._users.get(uid)
        if name is None:
            try:
                name = pwd.getpwuid(uid).pw_name
            except (KeyError, OverflowError):
                name = str(uid)
            self._users[uid] = name
        return name

    def unnamed(self, sockets: SocketTable) -> set[int]:
        """Return the namespaces of sockets that are bound to an interface whose name is not known yet."""
        bound = np.flatnonzero(sockets.present("ifindex") & (sockets.ifindex != 0))
        pairs = zip(sockets.netns[bound].tolist(), sockets.ifindex[bound].tolist(), strict=True)
        return {netns for netns, ifindex in pairs if (netns, ifindex) not in self._devices}

    def name(self, devices: Mapping[tuple[int, int], str]) -> None:
        """Remember what interfaces are called, by (netns, ifindex)."""
        self._devices.update(devices)

    def _device(self, inode: int, ifindex: int) -> str | None:
        if not ifindex:
            return ""
        if (inode, ifindex) not in self._devices:
            space = [candidate for candidate in self.spaces if candidate.inode == inode]
            for where, names in interfaces(space).items():
                self._devices |= {(where, index): name for index, name in names.items()}
            self._devices.setdefault((inode, ifindex), None)
        return self._devices[inode, ifindex]

    def cgroups(self, ids: Iterable[int]) -> dict[int, str]:
        """Return the paths of cgroups by id; what was found once stays known after the cgroup is gone."""
        requested = {i for i in ids if i}
        new = requested - self._cgroups.keys()
        if new:
            if len(self._cgroups) > MOST_REMEMBERED:
                self._cgroups = {}
            self._cgroups |= cgroup.paths(new)
        return {i: self._cgroups[i] for i in requested if i in self._cgroups}

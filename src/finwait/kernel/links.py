"""Which network namespaces are connected with which: where the interfaces of each lead to.

A veth, a macvlan and their like name the namespace of their other half by a number that means something only in the
namespace of the interface (IFLA_LINK_NETNSID). Which namespace that is tells RTM_GETNSID, asked there with a
descriptor of each candidate. The host is asked first, and an answer counts for both, so that with a host and its
containers hardly a question more than there are namespaces is asked.

The surprise: the kernel gives such a number out when interfaces are listed for the first time, as it does for
``ip link``. What this cannot see: two interfaces that meet outside of this machine (SR-IOV, a wire). Namespaces that
are connected so are not known to be.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

import numpy as np

from finwait.errors import DecodeError, KernelError
from finwait.kernel.netlink import NETLINK_ROUTE, Arena, dump, netlink_socket, request
from finwait.kernel.netns import NetNamespace, open_path, own_netns
from finwait.uapi import netlink as nl
from finwait.uapi import rtnetlink

__all__ = ["Links"]

_MOST_ASKED: Final = 4096
"""Questions in one namespace; where so many others are, and none is the one, it is not found out."""


class Links:
    """Neighbours of namespaces, gathered while each is visited.

    Args:
        namespaces: all that there are, the host's first.
    """

    def __init__(self, namespaces: Iterable[NetNamespace]) -> None:
        self._all = tuple(namespaces)
        self._near: dict[int, set[int]] = {}

    def read(self, ns: NetNamespace) -> None:
        """Find the neighbours of the namespace that the calling thread is in; what cannot be read is not found."""
        if len(self._all) < 2:
            return
        try:
            with netlink_socket(NETLINK_ROUTE, "list the interfaces") as sock:
                arena = Arena(1 << 28)
                answer = dump(sock, rtnetlink.links_request(), arena, "list the interfaces")
                if (
                    rtnetlink.LEADS_ELSEWHERE not in arena.array().tobytes()
                ):  # nearly always: there is `lo` alone
                    return
                messages = nl.walk(
                    arena.array(), np.array(answer.starts, np.int64), np.array(answer.ends, np.int64)
                )
            numbers = rtnetlink.link_namespaces(arena.array(), messages)
            if len(numbers) > len(self._near.get(ns.inode, ())):
                self._ask(ns, numbers)
        except (KernelError, DecodeError, OSError):
            return

    def _ask(self, ns: NetNamespace, numbers: set[int]) -> None:
        near = self._near.setdefault(ns.inode, set())
        with netlink_socket(NETLINK_ROUTE, "name a namespace") as sock:
            for other in self._all[:_MOST_ASKED]:
                if len(near) >= len(numbers):
                    return
                if other.inode == ns.inode or other.inode in near:
                    continue
                fd = _opened(other)
                if fd is None:
                    continue
                try:
                    nsid = rtnetlink.namespace_number(
                        request(sock, rtnetlink.nsid_request(fd), "name a namespace")
                    )
                except KernelError:
                    continue
                finally:
                    os.close(fd)
                if nsid in numbers:
                    near.add(other.inode)
                    self._near.setdefault(other.inode, set()).add(ns.inode)

    def islands(self) -> dict[int, int]:
        """Return for each namespace the lowest inode of those that it is connected with, over any number of others."""
        island: dict[int, int] = {}
        for begin in sorted({ns.inode for ns in self._all} | self._near.keys()):
            waiting = [begin] if begin not in island else []
            while waiting:
                inode = waiting.pop()
                if inode not in island:
                    island[inode] = begin
                    waiting += self._near.get(inode, ())
        return island


def _opened(ns: NetNamespace) -> int | None:
    """Open a namespace; None where nothing leads there any more."""
    if ns.inode == own_netns():
        return None
    for path in ns.paths:
        try:
            fd = open_path(path)
        except OSError:
            continue
        if os.fstat(fd).st_ino == ns.inode:
            return fd
        os.close(fd)
    return None

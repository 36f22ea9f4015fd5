"""One act at a time on the options of a socket, whoever acts and wherever it keeps its journal.

A lock is an abstract Unix address, ``@finwait/options/COOKIE``, bound in the *socket's own* network namespace: abstract
addresses belong to a namespace, and whoever changes options of a socket looks into that one first. So root and a user,
the host and a container, and two state directories see the same lock. The kernel lets go of it with the process.

The surprise: any program in the namespace may bind the address. Then nothing is done to that socket. What this does not
do: it remembers nothing. What a process left behind that was killed is known to its journal alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Collection, Iterator, Sequence

from finwait.kernel import netns as ns_edge

__all__ = ["address_of", "locked"]

_SPARE = 256
"""Descriptors that are left for other things."""


def address_of(cookie: int) -> str:
    """Return the address that stands for a socket, as ss(8) shows it."""
    return f"@finwait/options/{cookie:#x}"


@contextlib.contextmanager
def locked(
    namespaces: Sequence[ns_edge.NetNamespace], sockets: Collection[tuple[int, int]]
) -> Iterator[dict[tuple[int, int], str]]:
    """Hold the locks of sockets; give those that could not be had, and why.

    Args:
        namespaces: those of the sockets; see `finwait.kernel.netns.discover`.
        sockets: namespace and cookie of each.
    """
    by_ns: dict[int, list[int]] = {}
    for netns, cookie in sockets:
        by_ns.setdefault(netns, []).append(cookie)
    refused = dict.fromkeys(sockets, "its namespace could not be entered")
    _make_room(len(sockets))
    with contextlib.ExitStack() as held:

        def inside(ns: ns_edge.NetNamespace) -> None:
            for cookie in by_ns[ns.inode]:
                try:
                    sock = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
                    sock.bind(address_of(cookie).replace("@", "\0", 1))
                except OSError as error:
                    refused[ns.inode, cookie] = _why(error, cookie)
                else:
                    del refused[ns.inode, cookie]

        ns_edge.visit([ns for ns in namespaces if ns.inode in by_ns], inside)
        yield refused


def _why(error: OSError, cookie: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"another program holds the lock `{address_of(cookie)}`, most likely a finwait with another "
            "journal that changes its options (`ss -xap` in its namespace shows the process)"
        )
    return f"finwait cannot take its lock `{address_of(cookie)}`: {error.strerror}"


def _make_room(n: int) -> None:
    """Let this process have as many more descriptors, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        required = len(os.listdir("/proc/self/fd")) + n + _SPARE
        if soft != resource.RLIM_INFINITY and required > soft:
            most = required if hard == resource.RLIM_INFINITY else min(required, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))

"""Asking for single connections by their addresses and ports, in many namespaces.

A dump walks every socket of a namespace: half a second where there are 200,000. A question about one
connection is one hash lookup and 15 µs, and finds minisockets as well. So a few questions are asked one by
one, and only many are answered by a dump.

The surprise: addresses and ports do not suffice. A socket that is bound to an interface (SO_BINDTODEVICE, a VRF, every
link-local IPv6 address) is found only by a question that carries this interface (``idiag_if``); one that carries none
has the answer "there is no such socket". Who asks about a row of a dump knows its interface. An event does not tell it:
then every interface of the namespace is tried, once the question without any has found nothing.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from finwait.errors import DecodeError, Gap, KernelError, NotSupported
from finwait.kernel import netns, rights
from finwait.kernel.netlink import NETLINK_SOCK_DIAG, Arena, dump, netlink_socket, no_sock_diag
from finwait.table.sockets import SocketTable
from finwait.uapi import inet_diag, tcp
from finwait.uapi import netlink as nl

__all__ = ["Question", "ask", "ask_each", "check", "interfaces", "link_local"]


class Question(NamedTuple):
    """One connection."""

    src: tuple[int, int]
    """Local address: two words, IPv4 mapped."""
    dst: tuple[int, int]
    sport: int
    dport: int
    ifindex: int | None = None
    """Interface that it is bound to, 0 for none; None where that is not known."""


_TRIES: Final = 4000
"""Questions with an interface that are asked in place of one without, at most; what is left has no answer."""


def ask(
    questions: Sequence[Question], namespaces: Sequence[netns.NetNamespace]
) -> tuple[SocketTable, list[Gap]]:
    """Return the sockets and minisockets that the questions name, of every namespace that has one.

    A question that only a listener answers has no answer. Namespaces that cannot be entered are gaps.

    Raises:
        DecodeError: an answer is not what the kernel sends.
    """
    answers = _Answers()
    gaps = answers.ask(questions, namespaces, lambda question, _: (question.ifindex or 0,))
    open_ = [q for k, q in enumerate(questions) if q.ifindex is None and k not in answers.answered]
    if open_:
        known = interfaces(namespaces)
        room = _TRIES // max(sum(map(len, known.values())), 1)
        # Of a link-local address it is certain that it is bound; of the others few are.
        open_.sort(key=lambda q: not link_local(q.src[0]))
        more = answers.ask(open_[:room], namespaces, lambda _, space: tuple(known.get(space.inode, ())))
        gaps += [gap for gap in more if gap not in gaps]
    return _table(answers.parts, answers.spaces), gaps


def ask_each(
    questions: Mapping[int, Sequence[Question]],
    namespaces: Sequence[netns.NetNamespace],
    *,
    extensions: int = 0,
) -> tuple[SocketTable, list[Gap]]:
    """Return the sockets and minisockets that the questions name, each asked in one namespace, with its interface.

    Args:
        questions: by the inode of the namespace to ask in.
        namespaces: where these are; what is not among them, or has vanished, is a gap.
        extensions: what else to ask for, as of `finwait.uapi.inet_diag.extension_mask`.

    Raises:
        DecodeError: an answer is not what the kernel sends.
    """
    answers = _Answers(extensions)
    chosen = [space for space in namespaces if questions.get(space.inode)]
    gaps = answers.ask_own(questions, chosen)
    missing = questions.keys() - {space.inode for space in chosen}
    gaps += [Gap.of_namespace(n, "enter it: it has vanished", "") for n in sorted(missing) if questions[n]]
    return _table(answers.parts, answers.spaces), gaps


def check() -> None:
    """Find out whether this kernel answers questions about TCP sockets; a missing module answers as a missing socket.

    Raises:
        NotSupported: it does not.
    """
    request = inet_diag.dump_request(inet_diag.AF_INET, inet_diag.IPPROTO_TCP, 0, 0)
    try:
        with netlink_socket(NETLINK_SOCK_DIAG, "ask for single sockets") as sock:
            dump(sock, request, Arena(1 << 24), "ask for single sockets")
    except NotSupported as error:
        raise no_sock_diag(error) from None


def link_local(high: int) -> bool:
    """Return whether an address is link-local (fe80::/10), by its high word: then its socket is bound."""
    return high >> 54 == 0xFE80 >> 6


class _Answers:
    """What was answered, in the order of asking."""

    def __init__(self, extensions: int = 0) -> None:
        self._extensions = extensions
        self.parts: list[bytes] = []
        self.spaces: list[int] = []
        self.answered: set[int] = set()
        self._cookies: set[tuple[int, bytes]] = set()

    def ask(
        self,
        questions: Sequence[Question],
        namespaces: Sequence[netns.NetNamespace],
        ways: Callable[[Question, netns.NetNamespace], tuple[int, ...]],
    ) -> list[Gap]:
        """Ask every question in every namespace, once for each interface that ``ways`` names."""

        def ask_in(sock: socket.socket, space: netns.NetNamespace) -> None:
            for k, question in enumerate(questions):
                for ifindex in ways(question, space):
                    self._keep(k, space.inode, _answer(sock, _request(question, ifindex)))

        return self._visit(namespaces, ask_in)

    def ask_own(
        self, questions: Mapping[int, Sequence[Question]], namespaces: Sequence[netns.NetNamespace]
    ) -> list[Gap]:
        """Ask in each namespace its own questions."""

        def ask_in(sock: socket.socket, space: netns.NetNamespace) -> None:
            for question in questions[space.inode]:
                request = _request(question, question.ifindex or 0, self._extensions)
                self._keep(0, space.inode, _answer(sock, request))

        return self._visit(namespaces, ask_in)

    def _visit(
        self,
        namespaces: Sequence[netns.NetNamespace],
        ask_in: Callable[[socket.socket, netns.NetNamespace], None],
    ) -> list[Gap]:
        def look(space: netns.NetNamespace) -> Gap | None:
            try:
                with netlink_socket(NETLINK_SOCK_DIAG, "ask for single sockets") as sock:
                    ask_in(sock, space)
            except KernelError as error:
                needs = rights.missing(getattr(error, "capability", "")) or error.hint or str(error)
                return Gap.of_namespace(space.inode, error.doing, needs)
            return None

        results, gaps = netns.visit(namespaces, look)
        answered = results.keys() | {gap.netns for gap in gaps}
        # In a look at everything that is no gap; here it answers a question about that very namespace.
        gone = [
            Gap.of_namespace(space.inode, "enter it: it has vanished", "")
            for space in namespaces
            if space.inode not in answered
        ]
        return gaps + gone + [gap for gap in results.values() if gap is not None]

    def _keep(self, question: int, space: int, answer: bytes | None) -> None:
        if answer is None:
            return
        self.answered.add(question)
        # A socket that is bound to nothing answers whatever interface is asked for.
        cookie = space, answer[_COOKIE]
        if cookie not in self._cookies:
            self._cookies.add(cookie)
            self.parts.append(answer)
            self.spaces.append(space)


_COOKIE: Final = slice(nl.NLMSG_HEADER + 44, nl.NLMSG_HEADER + 52)
"""``idiag_cookie`` of an answer."""


def interfaces(namespaces: Sequence[netns.NetNamespace]) -> dict[int, dict[int, str]]:
    """Return the interfaces of namespaces, index → name; of those that cannot be entered nothing."""
    return netns.visit(namespaces, lambda _: dict(socket.if_nameindex()))[0]


def _request(question: Question, ifindex: int, extensions: int = 0) -> bytes:
    (src_high, src_low), (dst_high, dst_low), sport, dport, _ = question
    mapped = src_high == 0 and src_low >> 32 == 0xFFFF
    if mapped:
        src, dst = (struct.pack("!I", low & 0xFFFFFFFF) for low in (src_low, dst_low))
    else:
        src, dst = struct.pack("!QQ", src_high, src_low), struct.pack("!QQ", dst_high, dst_low)
    return inet_diag.socket_request(
        inet_diag.SOCK_DIAG_BY_FAMILY,
        inet_diag.AF_INET if mapped else inet_diag.AF_INET6,
        inet_diag.IPPROTO_TCP,
        inet_diag.SocketId(sport, dport, src, dst, ifindex),
        extensions=extensions,
    )


def _answer(sock: socket.socket, request: bytes) -> bytes | None:
    try:
        sock.send(request)
        data = sock.recv(1 << 15)
    except OSError as error:
        raise KernelError(error.errno or 0, "ask for single sockets") from None
    kind = struct.unpack_from("=H", data, 4)[0]
    if kind == nl.NLMSG_ERROR and len(data) >= nl.NLMSG_HEADER + 4:
        code = -struct.unpack_from("=i", data, nl.NLMSG_HEADER)[0]
        if code in (errno.ENOENT, errno.ESTALE):
            return None  # there is no such socket here
        raise KernelError(code, "ask for single sockets")
    if len(data) < nl.NLMSG_HEADER + inet_diag.MESSAGE_SIZE:
        raise DecodeError("answer about a socket", 0, data, f"{len(data)} bytes")
    # Behind the header: family, state. The lookup falls back to a listener of the port.
    if kind != inet_diag.SOCK_DIAG_BY_FAMILY or data[nl.NLMSG_HEADER + 1] == tcp.LISTEN:
        return None
    return data


def _table(parts: list[bytes], spaces: list[int]) -> SocketTable:
    if not parts:
        return SocketTable.empty()
    padded = [part.ljust((len(part) + 7) & ~7, b"\0") for part in parts]
    ends = np.cumsum([len(part) for part in padded])
    starts = ends - np.array([len(part) for part in padded])
    buffer = np.frombuffer(b"".join(padded), np.uint8)
    messages = nl.walk(buffer, starts, starts + np.array([len(part) for part in parts]))
    rows = inet_diag.find_rows(buffer, messages.where(messages.type == inet_diag.SOCK_DIAG_BY_FAMILY))
    if not len(rows):
        return SocketTable.empty()
    owner = np.array(spaces, np.uint32)[rows.chain]
    return SocketTable.from_rows(rows, owner, np.full(len(rows), inet_diag.IPPROTO_TCP, np.uint16))

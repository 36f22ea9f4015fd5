"""Listening where the kernel has no IPv6: on every address means IPv4's, and what cannot be done is said."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from finwait.errors import KernelError
from finwait.relay import listeners
from finwait.relay.circles import is_local
from finwait.relay.config.parsing import parse


@pytest.fixture
def no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    class Without(socket.socket):
        def __init__(self, family: int = -1, *args: Any, **more: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            super().__init__(family, *args, **more)

    monkeypatch.setattr(socket, "socket", Without)


@contextmanager
def bound(listen: str) -> Iterator[list[socket.socket]]:
    service = {"listen": [listen], "backend": [{"address": "127.0.0.1:9"}]}
    made = listeners.bind_all(parse({"workers": 2, "service": [service]}), {}, {})
    try:
        yield [sock for one in made.values() for sock in one.sockets]
    finally:
        for one in made.values():
            one.close()


@pytest.mark.usefixtures("no_ipv6")
def test_every_address_is_those_of_ipv4_where_there_is_no_ipv6() -> None:
    with bound("*:0") as found:
        assert {(sock.family, sock.getsockname()) for sock in found} == {
            (socket.AF_INET, ("0.0.0.0", found[0].getsockname()[1]))
        }


@pytest.mark.usefixtures("no_ipv6")
def test_an_address_of_ipv6_is_refused_with_what_the_kernel_lacks() -> None:
    with pytest.raises(KernelError) as caught, bound("[::1]:0"):
        pass
    assert "listen on [::1]:0" in str(caught.value)
    assert "no IPv6" in caught.value.hint


def test_every_address_is_those_of_both_families_by_one_socket_elsewhere() -> None:
    with bound("*:0") as found:
        assert {sock.family for sock in found} == {socket.AF_INET6}


@pytest.mark.usefixtures("no_ipv6")
def test_no_address_of_ipv6_is_this_machine_s_where_there_is_no_ipv6() -> None:
    assert not is_local("2001:db8::1")


@pytest.mark.usefixtures("no_ipv6")
def test_metrics_on_every_address_are_served_on_those_of_ipv4() -> None:
    with listeners.bind_metrics("*:0", []) as sock:
        assert (sock.family, sock.getsockname()[0]) == (socket.AF_INET, "0.0.0.0")
        sock.listen()
        assert listeners.bind_metrics(f"*:{sock.getsockname()[1]}", [sock]) is sock
    with pytest.raises(KernelError, match=r"listen on \[::1\]:0 for metrics"):
        listeners.bind_metrics("[::1]:0", [])

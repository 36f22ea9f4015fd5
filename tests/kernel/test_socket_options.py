"""Options of another program's sockets, as that program set them."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from finwait.kernel import socket_options
from finwait.report.socket_options import keepalive_text, linger_text, meaning
from finwait.uapi.observation import SocketOptions

pytestmark = pytest.mark.kernel


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    return client, server


def told(sock: socket.socket) -> SocketOptions:
    inode = os.fstat(sock.fileno()).st_ino
    return socket_options.read([(os.getpid(), sock.fileno(), inode)])[inode]


def test_what_a_program_sets_is_read() -> None:
    client, server = pair()
    with client, server:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 600)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 7))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 5)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 3)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", 2, 500_000))
        options = told(client)
        client.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 0, 0)
        )  # else its close() waits
    assert (options.keepalive, options.keepidle_s, options.keepintvl_s, options.keepcnt) == (True, 600, 15, 5)
    assert (options.user_timeout_ms, options.linger_s, options.linger2_s) == (30_000, 7, 5)
    assert (options.nodelay, options.rcvtimeo_ms, options.sndtimeo_ms) == (True, 2500, 0)
    assert options.syncnt == 3
    assert (keepalive_text(options), linger_text(options)) == ("on 600/15/5", "7 s")
    said = dict(meaning(options))
    assert said["receive timeout"] == "2.5 s: a call that reads returns after that"
    assert "found after 675 s" in dict(meaning(SocketOptions(True, 600, 15, 5, 0)))["keepalive"]


def test_a_plain_socket_has_neither_keepalive_nor_linger() -> None:
    client, server = pair()
    with client, server:
        options = told(server)
    assert (keepalive_text(options), linger_text(options), options.user_timeout_ms) == ("off", "off", 0)
    assert options.congestion
    assert "nothing finds out" in dict(meaning(options))["keepalive"]


def test_a_linger_time_of_nothing_is_a_reset() -> None:
    client, server = pair()
    with client, server:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        options = told(client)
    assert linger_text(options) == "reset"
    assert dict(meaning(options))["linger"] == "reset: close() sends a RST at once"


def test_a_number_that_is_another_descriptor_s_by_now_is_not_asked() -> None:
    client, server = pair()
    with client, server:
        assert socket_options.read([(os.getpid(), client.fileno(), 1)]) == {}
        assert socket_options.read([(1 << 22, client.fileno(), 1)]) == {}


def test_no_copy_is_left_open() -> None:
    client, server = pair()
    with client, server:
        before = os.listdir("/proc/self/fd")
        told(client)
        assert os.listdir("/proc/self/fd") == before


def test_what_may_not_be_read_is_said() -> None:
    assert meaning(SocketOptions(errno=1)) == [("options", "could not be read (EPERM)")]

"""Ring-buffer pages and format files, written the way kernel/trace/ring_buffer.c writes them."""

from __future__ import annotations

import struct
from typing import Any

from finwait.uapi.tracepoint import PageLayout

HEADER_PAGE = (
    b"\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
    b"\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;\n"
    b"\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n"
    b"\tfield: char data;\toffset:16;\tsize:4080;\tsigned:0;\n"
)
HEADER_EVENT = (
    b"# compressed entry header\n\ttype_len    :    5 bits\n\ttime_delta  :   27 bits\n"
    b"\tarray       :   32 bits\n\n"
    b"\tpadding     : type == 29\n\ttime_extend : type == 30\n\ttime_stamp : type == 31\n"
    b"\tdata max type_len  == 28\n"
)
COMMON = (
    b"format:\n\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n"
    b"\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;\n"
    b"\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;\n"
    b"\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n"
)
SET_STATE = (
    b"name: inet_sock_set_state\nID: 2287\n"
    + COMMON
    + b"\tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;\n"
    b"\tfield:int oldstate;\toffset:16;\tsize:4;\tsigned:1;\n"
    b"\tfield:int newstate;\toffset:20;\tsize:4;\tsigned:1;\n"
    b"\tfield:__u16 sport;\toffset:24;\tsize:2;\tsigned:0;\n"
    b"\tfield:__u16 dport;\toffset:26;\tsize:2;\tsigned:0;\n"
    b"\tfield:__u16 family;\toffset:28;\tsize:2;\tsigned:0;\n"
    b"\tfield:__u16 protocol;\toffset:30;\tsize:2;\tsigned:0;\n"
    b"\tfield:__u8 saddr[4];\toffset:32;\tsize:4;\tsigned:0;\n"
    b"\tfield:__u8 daddr[4];\toffset:36;\tsize:4;\tsigned:0;\n"
    b"\tfield:__u8 saddr_v6[16];\toffset:40;\tsize:16;\tsigned:0;\n"
    b"\tfield:__u8 daddr_v6[16];\toffset:56;\tsize:16;\tsigned:0;\n"
    b'\nprint fmt: "family=%s", __print_symbolic(REC->family, { 2, "AF_INET" }, { 10, "AF_INET6" })\n'
)
DESTROY = (
    b"name: tcp_destroy_sock\nID: 2278\n"
    + COMMON
    + b"\tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;\n"
    b"\tfield:__u16 sport;\toffset:16;\tsize:2;\tsigned:0;\n"
    b"\tfield:__u16 dport;\toffset:18;\tsize:2;\tsigned:0;\n"
    b"\tfield:__u16 family;\toffset:20;\tsize:2;\tsigned:0;\n"
    b"\tfield:__u8 saddr[4];\toffset:22;\tsize:4;\tsigned:0;\n"
    b"\tfield:__u8 daddr[4];\toffset:26;\tsize:4;\tsigned:0;\n"
    b"\tfield:__u8 saddr_v6[16];\toffset:30;\tsize:16;\tsigned:0;\n"
    b"\tfield:__u8 daddr_v6[16];\toffset:46;\tsize:16;\tsigned:0;\n"
    b"\tfield:__u64 sock_cookie;\toffset:64;\tsize:8;\tsigned:0;\n"
    b'\nprint fmt: "family=%s", __print_symbolic(REC->family, { 2, "AF_INET" }, { 10, "AF_INET6" })\n'
)
RESET = (
    b"name: tcp_send_reset\nID: 2280\n"
    + COMMON
    + b"\tfield:const void * skbaddr;\toffset:8;\tsize:8;\tsigned:0;\n"
    b"\tfield:const void * skaddr;\toffset:16;\tsize:8;\tsigned:0;\n"
    b"\tfield:int state;\toffset:24;\tsize:4;\tsigned:1;\n"
    b"\tfield:enum sk_rst_reason reason;\toffset:28;\tsize:4;\tsigned:0;\n"
    b"\tfield:__u8 saddr[28];\toffset:32;\tsize:28;\tsigned:0;\n"
    b"\tfield:__u8 daddr[28];\toffset:60;\tsize:28;\tsigned:0;\n"
    b'\nprint fmt: "reason=%s", __print_symbolic(REC->reason, { 1, "NO_SOCKET" }, { 14, "TCP_STATE" })\n'
)

# Linux 5.10, as its kernel prints them: no `family`, and a reset that is sent has no reason.
OLD_RETRANSMIT = (
    b"name: tcp_retransmit_skb\nID: 1401\n"
    + COMMON
    + b"\tfield:const void * skbaddr;\toffset:8;\tsize:8;\tsigned:0;\n"
    b"\tfield:const void * skaddr;\toffset:16;\tsize:8;\tsigned:0;\n"
    b"\tfield:int state;\toffset:24;\tsize:4;\tsigned:1;\n"
    b"\tfield:__u16 sport;\toffset:28;\tsize:2;\tsigned:0;\n"
    b"\tfield:__u16 dport;\toffset:30;\tsize:2;\tsigned:0;\n"
    b"\tfield:__u8 saddr[4];\toffset:32;\tsize:4;\tsigned:0;\n"
    b"\tfield:__u8 daddr[4];\toffset:36;\tsize:4;\tsigned:0;\n"
    b"\tfield:__u8 saddr_v6[16];\toffset:40;\tsize:16;\tsigned:0;\n"
    b"\tfield:__u8 daddr_v6[16];\toffset:56;\tsize:16;\tsigned:0;\n"
    b'\nprint fmt: "sport=%hu dport=%hu", REC->sport, REC->dport\n'
)
OLD_SEND_RESET = OLD_RETRANSMIT.replace(b"tcp_retransmit_skb\nID: 1401", b"tcp_send_reset\nID: 1400")
OLD_RECEIVE_RESET = (
    b"name: tcp_receive_reset\nID: 1399\n"
    + COMMON
    + b"\tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;\n"
    b"\tfield:__u16 sport;\toffset:16;\tsize:2;\tsigned:0;\n"
    b"\tfield:__u16 dport;\toffset:18;\tsize:2;\tsigned:0;\n"
    b"\tfield:__u8 saddr[4];\toffset:20;\tsize:4;\tsigned:0;\n"
    b"\tfield:__u8 daddr[4];\toffset:24;\tsize:4;\tsigned:0;\n"
    b"\tfield:__u8 saddr_v6[16];\toffset:28;\tsize:16;\tsigned:0;\n"
    b"\tfield:__u8 daddr_v6[16];\toffset:44;\tsize:16;\tsigned:0;\n"
    b"\tfield:__u64 sock_cookie;\toffset:64;\tsize:8;\tsigned:0;\n"
    b'\nprint fmt: "sport=%hu dport=%hu", REC->sport, REC->dport\n'
)


class PageWriter:
    """One page: records are appended with the time since the one before."""

    def __init__(self, layout: PageLayout, start: int) -> None:
        self.layout = layout
        self.start = start
        self.now = start
        self.body = b""

    @property
    def _order(self) -> str:
        return "<" if self.layout.byteorder == "little" else ">"

    def _head(self, kind: int, delta: int) -> bytes:
        bits = self.layout.type_bits
        word = kind | delta << bits if self.layout.byteorder == "little" else kind << (32 - bits) | delta
        return struct.pack(f"{self._order}I", word)

    def room(self) -> int:
        return self.layout.data_size - len(self.body)

    def data(self, payload: bytes, delta: int) -> None:
        """A record with a payload; a delta that does not fit takes a time extend before it."""
        bits = 32 - self.layout.type_bits
        self.now += delta
        if delta >> bits:
            extend = struct.pack(f"{self._order}I", delta >> bits)
            self.body += self._head(self.layout.time_extend, delta & ((1 << bits) - 1)) + extend
            delta = 0
        payload = payload.ljust((len(payload) + 3) // 4 * 4, b"\0")
        words = len(payload) // 4
        if 1 <= words <= self.layout.data_max:
            self.body += self._head(words, delta) + payload
        else:
            self.body += self._head(0, delta) + struct.pack(f"{self._order}I", len(payload) + 4) + payload

    def stamp(self, now: int) -> None:
        """An absolute time stamp: 59 bits of it (27 in the header of today's layout)."""
        bits = 32 - self.layout.type_bits
        self.now = now
        low = now & ((1 << 59) - 1)
        self.body += self._head(self.layout.time_stamp, low & ((1 << bits) - 1))
        self.body += struct.pack(f"{self._order}I", low >> bits & 0xFFFFFFFF)

    def padding(self, length: int) -> None:
        """A discarded record of ``length`` bytes."""
        self.body += self._head(self.layout.padding, 1) + struct.pack(f"{self._order}I", length - 4)
        self.body += bytes(length - 8)

    def null(self) -> None:
        """The record that says: the rest of this page is empty."""
        self.body += self._head(self.layout.padding, 0)

    def page(self, missed: int | None = 0) -> bytes:
        """The page as `read` returns it; ``missed`` None is "some, and no room to say how many"."""
        layout = self.layout
        commit = len(self.body)
        data = self.body
        if missed != 0:
            commit |= 1 << 31
            if missed is not None:
                commit |= 1 << 30
                data += struct.pack(f"{self._order}{'Q' if layout.commit_size == 8 else 'I'}", missed)
        head = bytearray(layout.data)
        struct.pack_into(f"{self._order}Q", head, layout.timestamp, self.start)
        struct.pack_into(
            f"{self._order}{'Q' if layout.commit_size == 8 else 'I'}", head, layout.commit, commit
        )
        return bytes(head) + data.ljust(layout.data_size, b"\0")


def set_state(
    old: int, new: int, *, sk: int = 0xFFFF888000001000, sport: int = 1000, dport: int = 80,
    src: bytes = bytes([10, 0, 0, 1]), dst: bytes = bytes([10, 0, 0, 2]), family: int = 2, protocol: int = 6,
    pid: int = 1, flags: int = 0, count: int = 0, order: str = "<", **_: Any,
) -> bytes:  # fmt: skip
    """The payload of one ``inet_sock_set_state`` record."""
    v6 = (bytes(10) + b"\xff\xff" + src, bytes(10) + b"\xff\xff" + dst) if family == 2 else (src, dst)
    v4 = (src, dst) if family == 2 else (bytes(4), bytes(4))
    return (
        struct.pack(f"{order}HBBiQii", 2287, flags, count, pid, sk, old, new)
        + struct.pack(f"{order}HHHH", sport, dport, family, protocol)
        + v4[0] + v4[1] + v6[0] + v6[1]
    )  # fmt: skip


def destroyed(
    cookie: int, *, sk: int = 0xFFFF888000001000, sport: int = 1000, dport: int = 80,
    src: bytes = bytes([10, 0, 0, 1]), dst: bytes = bytes([10, 0, 0, 2]), order: str = "<",
) -> bytes:  # fmt: skip
    """The payload of one ``tcp_destroy_sock`` record."""
    head = struct.pack(f"{order}HBBiQHHH", 2278, 0, 0, 1, sk, sport, dport, 2)
    v6 = bytes(10) + b"\xff\xff"
    body = head + src + dst + v6 + src + v6 + dst
    return body.ljust(64, b"\0") + struct.pack(f"{order}Q", cookie)


def old_event(
    number: int, *, src: bytes, dst: bytes, sk: int = 0xFFFF888000001000, sport: int = 1000, dport: int = 80,
    order: str = "<",
) -> bytes:  # fmt: skip
    """The payload of one event of Linux 5.10 other than the change of state; addresses of 4 or 16 bytes."""
    if len(src) == 4:
        v4, v6 = (src, dst), (bytes(10) + b"\xff\xff" + src, bytes(10) + b"\xff\xff" + dst)
    else:  # inet_saddr and inet_daddr of an IPv6 socket
        v4, v6 = (bytes([127, 0, 0, 6]), bytes([127, 0, 0, 6])), (src, dst)
    common = struct.pack(f"{order}HBBi", number, 0x10, 0, 1)
    ports = struct.pack(f"{order}HH", sport, dport)
    if number == 1399:
        body = common + struct.pack(f"{order}Q", sk) + ports + v4[0] + v4[1] + v6[0] + v6[1]
        return body.ljust(64, b"\0") + struct.pack(f"{order}Q", 77)
    return common + struct.pack(f"{order}QQi", 1, sk, 1) + ports + v4[0] + v4[1] + v6[0] + v6[1]

"""What threads and event loops wait for: the first byte says which file or piece of memory, the rest is its content."""

from __future__ import annotations

from collections.abc import Callable

from finwait.errors import DecodeError
from finwait.uapi import eventpoll, poll, syscall
from fuzz.dumps import check

_WORDS = b" 0x7 0x55e0 0x100 0x0 0x0 0x0 0x7ffd5ab1 0x7f9c21"


def _syscall(data: bytes) -> None:
    found = syscall.parse(data)
    if found is not None:
        for machine in (*syscall.ARCHITECTURES, "riscv64"):
            syscall.call(machine, found.number)


def _eventpoll(data: bytes) -> None:
    found = eventpoll.parse(data)
    assert len(found.fd) == len(found.events) == len(found.inode) == len(found)
    for mask in found.events.tolist():
        assert eventpoll.event_names(mask) or not mask


def _poll(data: bytes) -> None:
    found = poll.poll_set(data)
    assert len(found) <= len(data) // 8
    assert all(fd >= 0 for fd in found)


def _select(data: bytes) -> None:
    nfds, third = int.from_bytes(data[:2], "little"), len(data) // 3
    found = poll.select_sets(nfds, (data[:third], data[third : 2 * third], data[2 * third :]))
    assert all(0 <= fd < nfds and events for fd, events in found.items())


def _limits(data: bytes) -> None:
    for limit in (poll.timespec_ms(data), poll.timeval_ms(data)):
        assert limit is None or limit >= 0


_KINDS: list[tuple[Callable[[bytes], object], bytes]] = [
    (_syscall, b"232" + _WORDS + b"\n"),
    (_syscall, b"running\n"),
    (_syscall, b"-1 0x7ffd5ab1 0x7f9c21\n"),
    (
        _eventpoll,
        b"pos:\t0\ntfd: 5 events: 19 data: 5  pos:0 ino:a1 sdev:9\ntfd: 6 events: 80002005 data: 6\n",
    ),
    (_poll, b"\5\0\0\0\1\0\0\0\xff\xff\xff\xff\4\0\0\0"),
    (_select, b"\x40\0" + bytes(range(48))),
    (_limits, (5).to_bytes(8, "little") + (999_999).to_bytes(8, "little")),
]


def seeds() -> list[bytes]:
    return [bytes([number]) + content for number, (_, content) in enumerate(_KINDS)]


def one_input(data: bytes) -> None:
    if not data:
        return
    parse, _ = _KINDS[data[0] % len(_KINDS)]
    try:
        parse(data[1:])
    except DecodeError as error:
        check(error, len(data) - 1)

r"""Files of /proc, as bytes → values.

Mirrors the ``seq_file`` writers of the kernel (net/ipv4/proc.c, net/ipv4/tcp_ipv4.c, fs/proc/array.c,
fs/proc_namespace.c and others), not the manual page: columns are found by their header line where there is
one, lines and fields that a newer kernel adds are kept or skipped, and what is missing or not a number is a
`DecodeError` that says where.

The surprises: the name of a program may contain anything, parentheses and newlines included, so
``/proc/PID/stat`` is cut at the *last* one; and ``/proc/net/tcp`` prints addresses as 32-bit words in the
byte order of the machine.

Text that is shown only (names, command lines) has undecodable bytes written out as ``\xNN``; text that one
may want to open again (paths) keeps them as surrogates (`os.fsdecode`'s way).

This module touches bytes only. Reading the files is `finwait.kernel.procfs`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.errors import DecodeError

__all__ = [
    "CgroupLine",
    "DescriptorInfo",
    "Limit",
    "Mount",
    "ProcessStat",
    "ProcessStatus",
    "ProtocolUse",
    "parse_cgroup",
    "parse_cmdline",
    "parse_conntrack_stat",
    "parse_fdinfo",
    "parse_limits",
    "parse_mountinfo",
    "parse_ns_link",
    "parse_protocols",
    "parse_snmp",
    "parse_socket_link",
    "parse_sockstat",
    "parse_stat",
    "parse_status",
    "parse_tcp",
    "parse_uptime",
]

O_CLOEXEC: Final = 0o2000000
PF_KTHREAD: Final = 0x00200000


def _bad(subject: str, data: bytes, offset: int, reason: str) -> DecodeError:
    return DecodeError(subject, offset, data[offset : offset + 16], reason)


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the offset and the content of each line that is not empty."""
    offset = 0
    for line in data.split(b"\n"):
        if line:
            yield offset, line
        offset += len(line) + 1


_DECIMAL = re.compile(rb"-?[0-9]{1,20}\Z")
_HEX = re.compile(rb"[0-9A-Fa-f]{1,16}\Z")


def _int(subject: str, data: bytes, offset: int, word: bytes) -> int:
    """Read a decimal number; ``int()`` itself also takes ``1_0``, `` +1`` and digits of other scripts."""
    if not _DECIMAL.match(word):
        raise _bad(subject, data, offset, f"{word[:24]!r} is not a number")
    return int(word)


def _shown(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _path(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def parse_sockstat(data: bytes) -> dict[str, int]:
    """Parse ``/proc/net/sockstat`` or ``sockstat6``: ``TCP.inuse``, ``TCP.orphan``, ``sockets.used`` ….

    ``inuse`` and ``tw`` are of the namespace; ``orphan``, ``alloc`` and ``mem`` (pages) of the whole machine.

    Raises:
        DecodeError: a line is not a name and pairs of key and number.
    """
    subject = "/proc/net/sockstat"
    result: dict[str, int] = {}
    for offset, line in _lines(data):
        name, colon, rest = line.partition(b":")
        words = rest.split()
        if not colon or not words or len(words) % 2:
            raise _bad(subject, data, offset, "line is not a name and pairs of key and number")
        for key, value in zip(words[::2], words[1::2], strict=True):
            result[f"{_shown(name)}.{_shown(key)}"] = _int(subject, data, offset, value)
    return result


class ProtocolUse(Struct, frozen=True):
    """One line of ``/proc/net/protocols``."""

    sockets: int
    """Sockets of this protocol in the namespace; −1 when it does not count them."""
    memory_pages: int
    """Of the whole machine; −1 when it does not account memory."""


def parse_protocols(data: bytes) -> dict[str, ProtocolUse]:
    """Parse ``/proc/net/protocols``: protocol (``TCP``, ``TCPv6``, ``MPTCP``) → its sockets and memory.

    Raises:
        DecodeError: no header with these columns, or a line that has fewer.
    """
    subject = "/proc/net/protocols"
    columns: list[bytes] = []
    result: dict[str, ProtocolUse] = {}
    for offset, line in _lines(data):
        words = line.split()
        if not columns:
            columns = words
            if b"sockets" not in columns or b"memory" not in columns or columns[:1] != [b"protocol"]:
                raise _bad(subject, data, offset, "header without protocol, sockets and memory")
            continue
        if len(words) != len(columns):
            raise _bad(subject, data, offset, f"{len(words)} fields where the header has {len(columns)}")
        row = dict(zip(columns, words, strict=True))
        sockets, memory = (_int(subject, data, offset, row[name]) for name in (b"sockets", b"memory"))
        result[_shown(words[0])] = ProtocolUse(sockets, memory)
    return result


def parse_snmp(data: bytes) -> dict[str, int]:
    """Parse ``/proc/net/snmp`` or ``netstat``: ``Tcp.RetransSegs``, ``TcpExt.TCPTimeWaitOverflow`` ….

    Raises:
        DecodeError: lines are not pairs of header and values of one group.
    """
    subject = "/proc/net/snmp"
    result: dict[str, int] = {}
    header: list[bytes] | None = None
    where = 0
    for offset, line in _lines(data):
        words = line.split()
        if not words or not words[0].endswith(b":"):
            raise _bad(subject, data, offset, "line does not start with a group and a colon")
        if header is None:
            header, where = words, offset
            continue
        if words[0] != header[0] or len(words) != len(header):
            raise _bad(subject, data, offset, f"values do not match the header {header[0][:24]!r}")
        group = _shown(words[0][:-1])
        for name, value in zip(header[1:], words[1:], strict=True):
            result[f"{group}.{_shown(name)}"] = _int(subject, data, offset, value)
        header = None
    if header is not None:
        raise _bad(subject, data, where, "header without values")
    return result


def parse_conntrack_stat(data: bytes) -> tuple[dict[str, int], ...]:
    """Parse ``/proc/net/stat/nf_conntrack``: the counters of each CPU, by the names of the header.

    ``entries`` is that of the namespace, the same on every line; see
    `finwait.uapi.conntrack.total_over_cpus`.

    Raises:
        DecodeError: a line has another number of fields than the header, or one that is not hexadecimal.
    """
    subject = "/proc/net/stat/nf_conntrack"
    names: list[str] = []
    cpus: list[dict[str, int]] = []
    for offset, line in _lines(data):
        words = line.split()
        if not names:
            names = [_shown(word) for word in words]
            continue
        if len(words) != len(names) or not all(_HEX.match(word) for word in words):
            raise _bad(subject, data, offset, f"not {len(names)} hexadecimal fields")
        cpus.append({name: int(word, 16) for name, word in zip(names, words, strict=True)})
    return tuple(cpus)


_DIGIT: Final = np.full(256, 255, np.uint8)
for _i, _c in enumerate(b"0123456789abcdef"):
    _DIGIT[_c] = _i
for _i, _c in enumerate(b"ABCDEF"):
    _DIGIT[_c] = 10 + _i

_TCP = "/proc/net/tcp"
_V4_WORD, _V6_WORD = 13, 37  # "0100007F:1F90", and 32 digits of address


class _TextCells:
    """Numbers in the fields of many lines, read one digit of all lines at a time."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.bytes = np.frombuffer(data, np.uint8)

    def fail(self, bad: NDArray[np.bool_], at: NDArray[np.int64], reason: str) -> None:
        if bad.any():
            raise _bad(_TCP, self.data, int(at[bad][0]), reason)

    def number(
        self, start: NDArray[np.int64], end: NDArray[np.int64], base: int, limit: int = 0xFFFFFFFF
    ) -> NDArray[np.uint64]:
        """Read the digits between start and end of each line; none may be over ``limit``."""
        size = end - start
        most = 16 if base == 16 else 19
        self.fail((size < 1) | (size > most), start, f"not a number of 1 to {most} digits")
        value = np.zeros(len(start), np.uint64)
        for k in range(int(size.max(initial=0)) - 1, -1, -1):
            inside = k < size
            digit = _DIGIT[self.bytes[np.where(inside, end - 1 - k, start)]]
            self.fail(inside & (digit >= base), start, f"not a number of base {base}")
            value = np.where(inside, value * np.uint64(base) + digit, value)
        self.fail(value > limit, start, f"number over {limit}")
        return value

    def colon(self, at: NDArray[np.int64]) -> None:
        self.fail(self.bytes[at] != ord(":"), at, "no colon")


def parse_tcp(
    data: bytes, *, byteorder: Literal["little", "big"] = sys.byteorder, user_hz: int = 100
) -> dict[str, NDArray[Any]]:
    """Parse ``/proc/net/tcp`` or ``tcp6`` into columns named as in `finwait.table.sockets`.

    The columns: family, state, timer, retrans, sport, dport, src, dst, expires_ms, rqueue, wqueue, uid,
    inode. ``retrans`` counts what sock_diag's does (retransmissions under timer 1, probes under 2 and 4).
    What this file does not tell: cookie, shutdown, cgroup, and a listener's backlog (wqueue reads 0).

    Args:
        data: the whole file.
        byteorder: of the machine that wrote it.
        user_hz: its ``sysconf(_SC_CLK_TCK)``.

    Raises:
        DecodeError: a line is not what the kernel writes, or the last one is cut short.
    """
    if not data.lstrip().startswith(b"sl "):
        raise _bad(_TCP, data, 0, "no header")
    if not data.endswith(b"\n"):
        raise _bad(_TCP, data, len(data), "the last line is cut short")
    cells = _TextCells(data)
    begin, field = _fields(cells)
    a, b = field(1)
    word = int((b - a)[0]) if len(begin) else _V4_WORD
    if word not in (_V4_WORD, _V6_WORD):
        raise _bad(_TCP, data, int(a[0]), "not an address and port")
    result: dict[str, NDArray[Any]] = {
        "family": np.full(len(begin), 2 if word == _V4_WORD else 10, np.uint8),
    }
    for k, address, port in ((1, "src", "sport"), (2, "dst", "dport")):
        result[port], result[address] = _endpoint(cells, *field(k), word, byteorder)
    a, b = field(3)
    result["state"] = cells.number(a, b, 16, 0xFF).astype(np.uint8)
    a, b = field(4)
    cells.fail(b - a != 17, a, "not tx_queue:rx_queue")
    cells.colon(a + 8)
    result["wqueue"] = cells.number(a, a + 8, 16).astype(np.uint32)
    result["rqueue"] = cells.number(a + 9, b, 16).astype(np.uint32)
    a, b = field(5)
    cells.fail(b - a < 4, a, "not tr:tm->when")
    cells.colon(a + 2)
    timer = cells.number(a, a + 2, 16).astype(np.uint8)
    ms = cells.number(a + 3, b, 16, 1 << 62).astype(np.float64) * (1000 / user_hz)
    result["timer"] = timer
    result["expires_ms"] = np.where(timer == 0, 0, np.minimum(ms, 0xFFFFFFFF)).astype(np.uint32)
    retransmits = cells.number(*field(6), 16)
    result["uid"] = cells.number(*field(7), 10).astype(np.uint32)
    probes = cells.number(*field(8), 10)
    retrans = np.where(timer == 1, retransmits, np.where((timer == 2) | (timer == 4), probes, 0))
    result["retrans"] = np.minimum(retrans, 255).astype(np.uint8)
    result["inode"] = cells.number(*field(9), 10).astype(np.uint32)
    return result


_Field = Callable[[int], tuple[NDArray[np.int64], NDArray[np.int64]]]


def _fields(cells: _TextCells) -> tuple[NDArray[np.int64], _Field]:
    """Return where the lines behind the header begin, and what gives begin and end of their n-th fields."""
    newline = np.flatnonzero(cells.bytes == 10)
    begin = newline[:-1] + 1
    blank = (cells.bytes == 32) | (cells.bytes == 10)
    before = np.concatenate([np.ones(1, np.bool_), blank[:-1]])[: len(blank)]
    starts = np.flatnonzero(~blank & before)
    ends = np.flatnonzero(blank & ~before)
    first = np.searchsorted(starts, begin)
    count = np.diff(np.append(first, len(starts)))
    cells.fail(count < 10, begin, "fewer than 10 fields")
    return begin, lambda k: (starts[first + k], ends[first + k])


def _endpoint(
    cells: _TextCells, a: NDArray[np.int64], b: NDArray[np.int64], word: int, byteorder: str
) -> tuple[NDArray[np.uint16], NDArray[np.uint64]]:
    """Return the ports and addresses (high and low 64 bits) of the fields from a to b, all ``word`` characters long."""
    cells.fail(b - a != word, a, "not an address and port")
    cells.colon(b - 5)
    port = cells.number(b - 4, b, 16).astype(np.uint16)
    parts = [cells.number(a + at, a + at + 8, 16).astype(np.uint32) for at in range(0, word - 5, 8)]
    if byteorder == "little":
        parts = [part.byteswap() for part in parts]
    wide = [part.astype(np.uint64) for part in parts]
    address = np.zeros((len(a), 2), np.uint64)
    if word == _V4_WORD:
        address[:, 1] = np.uint64(0xFFFF << 32) | wide[0]
    else:
        address[:, 0] = wide[0] << np.uint64(32) | wide[1]
        address[:, 1] = wide[2] << np.uint64(32) | wide[3]
    return port, address


class ProcessStat(Struct, frozen=True):
    """What matters here of ``/proc/PID/stat``."""

    pid: int
    comm: str
    state: str
    """One letter: R, S, D, Z, T …"""
    ppid: int
    pgrp: int
    session: int
    kernel_thread: bool
    threads: int
    start_ticks: int
    """Start of the process after boot (CLOCK_BOOTTIME), in ``sysconf(_SC_CLK_TCK)`` ticks."""
    flags: int = 0
    """PF_* of the kernel (include/linux/sched.h)."""
    start_stack: int = 0
    """Where its stack begins, which execve(2) draws anew and fork(2) keeps; 0 where we may not see it."""


def parse_stat(data: bytes) -> ProcessStat:
    """Parse ``/proc/PID/stat``.

    Raises:
        DecodeError: no ``pid (comm) state …``, or fewer than 22 fields.
    """
    subject = "/proc/PID/stat"
    opening, closing = data.find(b" ("), data.rfind(b") ")
    if opening < 0 or closing < opening:
        raise _bad(subject, data, 0, "no name in parentheses")
    pid = _int(subject, data, 0, data[:opening])
    rest = data[closing + 2 :].split()
    if len(rest) < 20 or len(rest[0]) != 1:
        raise _bad(subject, data, closing + 2, "fewer than 22 fields")

    def number(field: int) -> int:  # numbered as in proc(5): state is 3
        return _int(subject, data, closing + 2, rest[field - 3])

    return ProcessStat(
        pid=pid,
        comm=_shown(data[opening + 2 : closing]),
        state=_shown(rest[0]),
        ppid=number(4),
        pgrp=number(5),
        session=number(6),
        kernel_thread=bool(number(9) & PF_KTHREAD),
        flags=number(9),
        threads=number(20),
        start_ticks=number(22),
        start_stack=number(28) if len(rest) > 25 else 0,
    )


class ProcessStatus(Struct, frozen=True):
    """What matters here of ``/proc/PID/status``."""

    name: str
    pid: int
    tgid: int
    ppid: int
    uid: int
    """Real user id."""
    euid: int
    ns_pids: tuple[int, ...]
    """Its pid in each pid namespace, ours first; empty from a kernel without pid namespaces."""
    threads: int
    kernel_thread: bool | None
    """None when this kernel does not say (no ``Kthread`` line)."""
    signals: int | None = None
    """Signals that it handles or blocks, bit *n* − 1 for signal *n*; None when this kernel does not say."""
    spared: int | None = None
    """Signals that it ignores or handles, so that their default action is not taken; None when this is not said."""


_STATUS_ESCAPE = re.compile(r"\\([n\\])")


def parse_status(data: bytes) -> ProcessStatus:
    """Parse ``/proc/PID/status``.

    Raises:
        DecodeError: a line without a colon, or Name, Pid, Uid or the like missing.
    """
    subject = "/proc/PID/status"
    fields: dict[bytes, tuple[int, bytes]] = {}
    for offset, line in _lines(data):
        key, colon, value = line.partition(b":")
        if not colon:
            raise _bad(subject, data, offset, "line without a colon")
        fields[key] = offset, value[1:]

    def numbers(key: bytes, least: int = 1) -> list[int]:
        if key not in fields:
            raise _bad(subject, data, len(data), f"no line {key.decode()}")
        offset, value = fields[key]
        words = value.split()
        if len(words) < least:
            raise _bad(subject, data, offset, f"fewer than {least} numbers")
        return [_int(subject, data, offset, word) for word in words]

    def mask(key: bytes) -> int:
        offset, value = fields[key]
        if not _HEX.match(value.strip()):
            raise _bad(subject, data, offset, f"{value[:24]!r} is not a mask of signals")
        return int(value, 16)

    if b"Name" not in fields:
        raise _bad(subject, data, len(data), "no line Name")
    # Here, unlike in stat, the kernel writes a newline of the name as \n and a backslash as \\.
    name = _STATUS_ESCAPE.sub(lambda m: "\n" if m[1] == "n" else "\\", _shown(fields[b"Name"][1]))
    uids = numbers(b"Uid", 2)
    return ProcessStatus(
        name=name,
        pid=numbers(b"Pid")[0],
        tgid=numbers(b"Tgid")[0],
        ppid=numbers(b"PPid")[0],
        uid=uids[0],
        euid=uids[1],
        ns_pids=tuple(numbers(b"NSpid")) if b"NSpid" in fields else (),
        threads=numbers(b"Threads")[0],
        kernel_thread=bool(numbers(b"Kthread")[0]) if b"Kthread" in fields else None,
        signals=mask(b"SigCgt") | mask(b"SigBlk") if b"SigCgt" in fields and b"SigBlk" in fields else None,
        spared=mask(b"SigCgt") | mask(b"SigIgn") if b"SigCgt" in fields and b"SigIgn" in fields else None,
    )


def parse_cmdline(data: bytes) -> tuple[str, ...]:
    """Parse ``/proc/PID/cmdline``: the arguments; none of a kernel thread.

    A program that wrote a title over its arguments (setproctitle) leaves NULs behind it: those are dropped,
    and with them arguments at the end that are empty.
    """
    stripped = data.rstrip(b"\0")
    return tuple(_shown(word) for word in stripped.split(b"\0")) if stripped else ()


class CgroupLine(Struct, frozen=True):
    """One line of ``/proc/PID/cgroup``: one hierarchy; that of cgroup v2 has number 0 and no controllers."""

    hierarchy: int
    controllers: tuple[str, ...]
    path: str
    deleted: bool
    """The directory was removed while the process was still in it."""


def parse_cgroup(data: bytes) -> tuple[CgroupLine, ...]:
    """Parse ``/proc/PID/cgroup``.

    Raises:
        DecodeError: a line is not ``number:controllers:/path``.
    """
    subject = "/proc/PID/cgroup"
    result: list[CgroupLine] = []
    for offset, line in _lines(data):
        parts = line.split(b":", 2)
        if len(parts) != 3 or not parts[2].startswith(b"/"):
            raise _bad(subject, data, offset, "not number:controllers:/path")
        number = _int(subject, data, offset, parts[0])
        path = parts[2].removesuffix(b" (deleted)")
        controllers = tuple(_shown(controller) for controller in parts[1].split(b",") if controller)
        result.append(CgroupLine(number, controllers, _path(path), path != parts[2]))
    return tuple(result)


class Mount(Struct, frozen=True):
    """One line of ``/proc/PID/mountinfo``."""

    mount_id: int
    parent_id: int
    device: tuple[int, int]
    """Major and minor number."""
    root: str
    """What of the file system is mounted; of a bind-mounted namespace its name, ``net:[4026532281]``."""
    mount_point: str
    options: tuple[str, ...]
    fs_type: str
    source: str
    super_options: tuple[str, ...]

    @property
    def netns(self) -> int | None:
        """Inode of the network namespace that is bind-mounted here; None if something else is."""
        if self.fs_type != "nsfs":
            return None
        match = _NET_LINK.match(self.root)
        return int(match[1]) if match else None


_NET_LINK = re.compile(r"net:\[([0-9]{1,19})\]\Z", re.ASCII)
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")


def _unescape(word: bytes) -> str:
    """Undo the kernel's ``mangle()``: space, tab, newline, backslash and # are written in octal."""
    return _path(_OCTAL.sub(lambda m: bytes([int(m[1], 8)]), word))


def parse_mountinfo(data: bytes) -> tuple[Mount, ...]:
    """Parse ``/proc/PID/mountinfo``.

    Raises:
        DecodeError: a line has no ``-``, too few fields, or ids that are not numbers.
    """
    subject = "/proc/PID/mountinfo"
    result: list[Mount] = []
    for offset, line in _lines(data):
        words = line.split(b" ")
        try:
            dash = words.index(b"-", 6)  # optional fields end there, and there may be none
        except ValueError:
            raise _bad(subject, data, offset, "no ` - ` after the optional fields") from None
        if len(words) < dash + 4:
            raise _bad(subject, data, offset, "fewer than three fields after ` - `")
        major, colon, minor = words[2].partition(b":")
        if not colon:
            raise _bad(subject, data, offset, "no major:minor")
        numbers = [_int(subject, data, offset, word) for word in (words[0], words[1], major, minor)]
        result.append(
            Mount(
                mount_id=numbers[0],
                parent_id=numbers[1],
                device=(numbers[2], numbers[3]),
                root=_unescape(words[3]),
                mount_point=_unescape(words[4]),
                options=tuple(_path(words[5]).split(",")),
                fs_type=_unescape(words[dash + 1]),
                source=_unescape(words[dash + 2]),
                super_options=tuple(_path(words[dash + 3]).split(",")),
            )
        )
    return tuple(result)


class DescriptorInfo(Struct, frozen=True):
    """What matters here of ``/proc/PID/fdinfo/FD``."""

    flags: int
    """The open flags of fcntl(2), and O_CLOEXEC for FD_CLOEXEC of the descriptor."""
    inode: int | None
    """None when this kernel does not say (no ``ino`` line)."""

    @property
    def close_on_exec(self) -> bool:
        """Whether a program that the process executes does *not* inherit the descriptor."""
        return bool(self.flags & O_CLOEXEC)


def parse_fdinfo(data: bytes) -> DescriptorInfo:
    """Parse ``/proc/PID/fdinfo/FD``.

    Raises:
        DecodeError: no ``flags`` in octal.
    """
    subject = "/proc/PID/fdinfo/FD"
    flags: int | None = None
    inode: int | None = None
    for offset, line in _lines(data):
        key, _, value = line.partition(b":")
        word = value.strip()
        if key == b"flags":
            if not re.fullmatch(rb"[0-7]{1,20}", word):
                raise _bad(subject, data, offset, "flags are not octal")
            flags = int(word, 8)
        elif key == b"ino":
            inode = _int(subject, data, offset, word)
    if flags is None:
        raise _bad(subject, data, len(data), "no line flags")
    return DescriptorInfo(flags, inode)


def parse_uptime(data: bytes) -> float:
    """Parse ``/proc/uptime``: seconds since boot, time asleep included (CLOCK_BOOTTIME).

    Raises:
        DecodeError: it does not start with a number.
    """
    match = re.match(rb"[0-9]{1,15}\.[0-9]{1,9}(?=\s)", data)
    if not match:
        raise _bad("/proc/uptime", data, 0, "no seconds")
    return float(match[0])


class Limit(Struct, frozen=True):
    """One line of ``/proc/PID/limits``; None means unlimited."""

    soft: int | None
    hard: int | None
    unit: str


def parse_limits(data: bytes) -> dict[str, Limit]:
    """Parse ``/proc/PID/limits``: ``Max open files`` → its limits.

    Raises:
        DecodeError: a line behind the header is not a name and two limits.
    """
    subject = "/proc/PID/limits"
    result: dict[str, Limit] = {}
    for offset, line in _lines(data):
        if not offset and line.startswith(b"Limit"):
            continue
        # fs/proc/base.c: "%-25s %-20s %-20s %-10s\n"
        name, words = line[:25].rstrip(), line[25:].split()
        if not name or len(words) not in (2, 3):
            raise _bad(subject, data, offset, "not a name and two limits")
        soft, hard = (None if w == b"unlimited" else _int(subject, data, offset, w) for w in words[:2])
        result[_shown(name)] = Limit(soft, hard, _shown(words[2]) if len(words) == 3 else "")
    return result


_LINK = re.compile(rb"([a-z_]+):\[([0-9]{1,19})\]\Z")


def parse_ns_link(link: bytes) -> tuple[str, int]:
    """Parse what ``/proc/PID/ns/net`` links to: ``net:[4026531840]`` → ``("net", 4026531840)``.

    Raises:
        DecodeError: it is not such a link.
    """
    match = _LINK.match(link)
    if not match:
        raise _bad("namespace link", link, 0, "not kind:[inode]")
    return match[1].decode(), int(match[2])


def parse_socket_link(link: bytes) -> int | None:
    """Return the inode of ``socket:[123]``; None when a descriptor links to something else."""
    match = _LINK.match(link)
    return int(match[2]) if match and match[1] == b"socket" else None

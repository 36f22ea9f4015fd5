"""Files of /proc: the first byte says which, the rest is its content."""

from __future__ import annotations

from collections.abc import Callable

from finwait.attribution.container import workload_of_cgroups
from finwait.errors import DecodeError
from finwait.table.sockets import SocketTable
from finwait.uapi import proc
from fuzz.dumps import check, read


def _tcp(data: bytes) -> None:
    read(SocketTable.from_columns(proc.parse_tcp(data)))


def _cgroup(data: bytes) -> None:
    workload_of_cgroups(proc.parse_cgroup(data))


def _mounts(data: bytes) -> None:
    for mount in proc.parse_mountinfo(data):
        _ = mount.netns


_TCP = b"""\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000003 00:00000000 00000000  1000        0 41 1 0 100 0 0 10 0
   1: 0100007F:1F90 0200007F:C351 06 00000000:00000000 03:0000176F 00000000     0        0 0 3 0
"""
_STATUS = (
    b"Name:\tsleep\\n\nTgid:\t1\nPid:\t1\nPPid:\t0\nUid:\t0\t0\t0\t0\nNSpid:\t1\nThreads:\t1\nKthread:\t0\n"
)

_FILES: list[tuple[Callable[[bytes], object], bytes]] = [
    (_tcp, _TCP),
    (proc.parse_sockstat, b"sockets: used 293\nTCP: inuse 5 orphan 1 tw 2 alloc 9 mem 3\n"),
    (proc.parse_protocols, b"protocol size sockets memory press\nTCP 2000 1 -1 no\n"),
    (proc.parse_snmp, b"TcpExt: A B\nTcpExt: 0 12\n"),
    (proc.parse_conntrack_stat, b"entries found\n0000000a 00000001\n"),
    (proc.parse_stat, b"812 (a) b) S 1 2 3 0 -1 4194304 1 0 0 0 5 6 0 0 20 0 17 0 98765 0 0\n"),
    (proc.parse_status, _STATUS),
    (proc.parse_cmdline, b"sh\0-c\0true\0"),
    (_cgroup, b"1:name=systemd:/x\n0::/kubepods.slice/kubepods-pod1_2.slice/crio-ab.scope (deleted)\n"),
    (_mounts, b"400 30 0:4 net:[4026532281] /run/netns/a\\040b rw shared:2 - nsfs nsfs rw\n"),
    (proc.parse_fdinfo, b"pos:\t0\nflags:\t02004002\nino:\t7\n"),
    (proc.parse_uptime, b"4730.12 9000.01\n"),
    (proc.parse_limits, b"Max open files            1024                 unlimited            files     \n"),
    (proc.parse_ns_link, b"net:[4026531840]"),
    (proc.parse_socket_link, b"socket:[123]"),
]


def seeds() -> list[bytes]:
    return [bytes([number]) + content for number, (_, content) in enumerate(_FILES)]


def one_input(data: bytes) -> None:
    if not data:
        return
    parse, _ = _FILES[data[0] % len(_FILES)]
    try:
        parse(data[1:])
    except DecodeError as error:
        check(error, len(data) - 1)

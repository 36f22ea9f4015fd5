from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from finwait.errors import DecodeError
from finwait.table.sockets import SocketTable, address_text
from finwait.uapi import proc

TCP = b"""\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000003 00:00000000 00000000  1000        0 41 1 0 100 0 0 10 0
   1: 0100007F:1F90 0200007F:C350 05 00000001:00000002 02:0000012C 00000000  1000        4 42 2 0 20 4 3 10 -1
   2: 0100007F:1F90 0200007F:C351 06 00000000:00000000 03:0000176F 00000000     0        0 0 3 0
 103: 0100007F:1F90 0200007F:C352 04 00000001:00000000 01:00000014 00000007     0        0 0 1 0 40 0 0 1 7
"""


def test_rows_of_proc_net_tcp_are_columns_of_the_socket_table() -> None:
    columns = proc.parse_tcp(TCP, byteorder="little")
    table = SocketTable.from_columns(columns)
    assert table.family.tolist() == [2, 2, 2, 2]
    assert table.state.tolist() == [10, 5, 6, 4]
    assert [address_text(*map(int, a)) for a in table.dst] == ["0.0.0.0"] + ["127.0.0.2"] * 3
    assert table.sport.tolist() == [8080] * 4
    assert table.dport.tolist() == [0, 50000, 50001, 50002]
    assert table.wqueue.tolist() == [0, 1, 0, 1]
    assert table.rqueue.tolist() == [3, 2, 0, 0]
    assert table.timer.tolist() == [0, 2, 3, 1]
    assert table.expires_ms.tolist() == [0, 3000, 59990, 200]
    assert table.retrans.tolist() == [0, 4, 0, 7], "probes under timer 2, retransmissions under timer 1"
    assert table.uid.tolist() == [1000, 1000, 0, 0]
    assert table.inode.tolist() == [41, 42, 0, 0]
    assert not table.present("shutdown").any()


def test_rows_of_proc_net_tcp6_have_both_words_of_the_address() -> None:
    data = (
        b"  sl  local_address                         remote_address                        st ...\n"
        b"   0: B80D0120000000000000000001000000:01BB 0000000000000000FFFF00000200007F:C350 08 "
        b"00000000:00000001 00:00000000 00000000     0        0 77 1 0 20 4 30 10 -1\n"
    )
    columns = proc.parse_tcp(data, byteorder="little")
    assert columns["family"].tolist() == [10]
    assert address_text(*map(int, columns["src"][0])) == "2001:db8::1"
    assert address_text(*map(int, columns["dst"][0])) == "127.0.0.2"
    assert columns["state"].tolist() == [8]


def test_a_big_endian_machine_prints_addresses_the_other_way() -> None:
    data = TCP.replace(b"0100007F", b"7F000001").replace(b"0200007F", b"7F000002")
    swapped = proc.parse_tcp(data, byteorder="big")
    assert swapped["src"].tolist() == proc.parse_tcp(TCP, byteorder="little")["src"].tolist()


def test_a_file_with_only_a_header_has_no_rows() -> None:
    columns = proc.parse_tcp(TCP.split(b"\n")[0] + b"\n")
    assert {len(column) for column in columns.values()} == {0}
    assert len(SocketTable.from_columns(columns)) == 0


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"1F90 0200007F:C351", b"1F9G 0200007F:C351", "base 16"),
        (b"0200007F:C352 04", b"0200007F-C352 04", "no colon"),
        (b"0200007F:C352 04", b"0200007F:C352 104", "over 255"),
        (b"0200007F:C352 04", b"00200007F:C352 04", "not an address and port"),
        (b"01:00000014", b"01", "not tr:tm->when"),
        (b"00000000  1000        4 42", b"00000000  1x00        4 42", "base 10"),
        (b"4 42 2", b"4 4294967296 2", "over 4294967295"),
        (b" 0 0 3 0\n", b"\n", "fewer than 10 fields"),
        (b" 1 7\n", b" 1 7", "cut short"),
        (b"  sl ", b"     ", "no header"),
        (b"40 0 0 1 7\n", b"40 0 0 1 7\n\n", "fewer than 10 fields"),
    ],
)
def test_a_line_that_the_kernel_does_not_write_is_an_error(old: bytes, new: bytes, reason: str) -> None:
    data = TCP.replace(old, new)
    assert data != TCP
    with pytest.raises(DecodeError, match=reason) as caught:
        proc.parse_tcp(data)
    assert 0 <= caught.value.offset <= len(data)


def test_our_own_sockets_are_in_proc_net_tcp_with_their_inodes() -> None:
    for family, host, name in ((socket.AF_INET, "127.0.0.1", "tcp"), (socket.AF_INET6, "::1", "tcp6")):
        with socket.socket(family) as server:
            server.bind((host, 0))
            server.listen()
            with socket.socket(family) as client:
                client.connect(server.getsockname())
                columns = proc.parse_tcp(Path(f"/proc/self/net/{name}").read_bytes())
                mine = columns["inode"] == os.fstat(client.fileno()).st_ino
                assert mine.sum() == 1
                assert columns["sport"][mine].tolist() == [client.getsockname()[1]]
                assert columns["dport"][mine].tolist() == [server.getsockname()[1]]
                assert columns["state"][mine].tolist() == [1]
                assert address_text(*map(int, columns["dst"][mine][0])) == host


def test_sockstat_is_named_by_protocol_and_key() -> None:
    data = b"sockets: used 293\nTCP: inuse 5 orphan 1 tw 2 alloc 9 mem 3\nFRAG: inuse 0 memory 0\n"
    found = proc.parse_sockstat(data)
    assert found["sockets.used"] == 293
    assert (found["TCP.alloc"], found["TCP.tw"], found["FRAG.memory"]) == (9, 2, 0)
    assert proc.parse_sockstat(b"TCP6: inuse 3\n") == {"TCP6.inuse": 3}


@pytest.mark.parametrize("data", [b"TCP inuse 5\n", b"TCP: inuse\n", b"TCP: inuse five\n", b"TCP:\n"])
def test_nonsense_in_sockstat_is_an_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        proc.parse_sockstat(b"sockets: used 1\n" + data)


def test_protocols_are_found_by_the_header() -> None:
    data = (
        b"protocol  size sockets  memory press maxhdr  slab module     cl co\n"
        b"MPTCPv6   2120      2     338   no       0   yes  kernel      y  n\n"
        b"UNIX      1024    105      -1   NI       0   yes  kernel      y  y\n"
    )
    assert proc.parse_protocols(data) == {
        "MPTCPv6": proc.ProtocolUse(2, 338),
        "UNIX": proc.ProtocolUse(105, -1),
    }
    with pytest.raises(DecodeError, match="9 fields where the header has 10"):
        proc.parse_protocols(data + b"TCP 1 2 3 no 0 yes kernel y\n")
    with pytest.raises(DecodeError, match="header"):
        proc.parse_protocols(data.split(b"\n", 1)[1])


def test_counters_are_named_by_group_and_name() -> None:
    data = b"TcpExt: SyncookiesSent TWRecycled\nTcpExt: 0 12\nIpExt: InNoRoutes\nIpExt: 3\n"
    assert proc.parse_snmp(data) == {
        "TcpExt.SyncookiesSent": 0,
        "TcpExt.TWRecycled": 12,
        "IpExt.InNoRoutes": 3,
    }
    assert proc.parse_snmp(b"Tcp: MaxConn\nTcp: -1\n") == {"Tcp.MaxConn": -1}


@pytest.mark.parametrize(
    "data", [b"Tcp: A B\nTcp: 1\n", b"Tcp: A\nUdp: 1\n", b"Tcp: A\n", b"A B\n1 2\n", b"Tcp: A\nTcp: x\n"]
)
def test_counters_that_do_not_match_their_header_are_an_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        proc.parse_snmp(data)


def test_conntrack_counters_are_hexadecimal_and_one_line_a_cpu() -> None:
    data = b"entries  clashres found invalid\n0000000a  00000000 00000001 000000ff\n0000000A 0 2 1\n"
    assert proc.parse_conntrack_stat(data) == (
        {"entries": 10, "clashres": 0, "found": 1, "invalid": 255},
        {"entries": 10, "clashres": 0, "found": 2, "invalid": 1},
    )
    with pytest.raises(DecodeError, match="4 hexadecimal fields"):
        proc.parse_conntrack_stat(data + b"0 0 0\n")
    with pytest.raises(DecodeError, match="4 hexadecimal fields"):
        proc.parse_conntrack_stat(data + b"0 0 0 0x\n")


def stat(comm: bytes, flags: int = 0x400000) -> bytes:
    head = b"812 (" + comm + b") S 1 812 800 0 -1 %d " % flags
    return head + b"100 0 0 0 5 6 0 0 20 0 17 0 98765 0 0 18446744073709551615 0 0\n"


@pytest.mark.parametrize(
    "comm", [b"nginx", b"a) S 1 (b", b"((sd-pam)", b"two words", b"new\nline", b")", b"", b"0) (0"]
)
def test_a_program_name_may_contain_anything(comm: bytes) -> None:
    found = proc.parse_stat(stat(comm))
    assert found == proc.ProcessStat(812, comm.decode(), "S", 1, 812, 800, False, 17, 98765, 0x400000)


def test_a_name_that_is_not_text_is_written_out() -> None:
    assert proc.parse_stat(stat(b"a\xffb")).comm == "a\\xffb"


def test_a_kernel_thread_is_known_by_its_flag() -> None:
    assert proc.parse_stat(stat(b"kworker/0:1", 0x4208060)).kernel_thread
    assert not proc.parse_stat(stat(b"sh", 0x400000)).kernel_thread


@pytest.mark.parametrize("data", [b"", b"812 (sh S 1 2", b"x (sh) S 1 2 3", b"812 (sh) S 1 2\n"])
def test_nonsense_in_stat_is_an_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        proc.parse_stat(data)


STATUS = b"""\
Name:\tsleep\\n\\\\
Umask:\t0022
State:\tS (sleeping)
Tgid:\t71
Pid:\t72
PPid:\t1
Uid:\t1000\t0\t1000\t1000
NSpid:\t72\t7\t1
Threads:\t3
Kthread:\t0
"""


def test_status_tells_user_pids_and_threads() -> None:
    assert proc.parse_status(STATUS) == proc.ProcessStatus(
        name="sleep\n\\",
        pid=72,
        tgid=71,
        ppid=1,
        uid=1000,
        euid=0,
        ns_pids=(72, 7, 1),
        threads=3,
        kernel_thread=False,
    )


def test_what_an_older_kernel_does_not_say_is_unknown() -> None:
    old = STATUS.replace(b"Kthread:\t0\n", b"").replace(b"NSpid:\t72\t7\t1\n", b"")
    found = proc.parse_status(old)
    assert found.kernel_thread is None
    assert found.ns_pids == ()
    assert proc.parse_status(STATUS.replace(b"Kthread:\t0", b"Kthread:\t1")).kernel_thread is True


@pytest.mark.parametrize("missing", [b"Name", b"Uid", b"Pid", b"Threads"])
def test_a_status_without_the_essential_is_an_error(missing: bytes) -> None:
    data = b"\n".join(line for line in STATUS.split(b"\n") if not line.startswith(missing + b":"))
    with pytest.raises(DecodeError, match=f"no line {missing.decode()}"):
        proc.parse_status(data)


def test_arguments_are_split_and_a_title_is_one() -> None:
    assert proc.parse_cmdline(b"sh\0-c\0\0x y\0") == ("sh", "-c", "", "x y")
    assert proc.parse_cmdline(b"nginx: worker process\0\0\0\0\0") == ("nginx: worker process",)
    assert proc.parse_cmdline(b"no terminator") == ("no terminator",)
    assert proc.parse_cmdline(b"") == ()
    assert proc.parse_cmdline(b"\0\0") == ()


def test_cgroup_lines_of_both_versions() -> None:
    data = b"12:cpu,cpuacct:/a:b\n1:name=systemd:/x\n0::/system.slice/y.service (deleted)\n"
    assert proc.parse_cgroup(data) == (
        proc.CgroupLine(12, ("cpu", "cpuacct"), "/a:b", False),
        proc.CgroupLine(1, ("name=systemd",), "/x", False),
        proc.CgroupLine(0, (), "/system.slice/y.service", True),
    )


@pytest.mark.parametrize("data", [b"0:/x\n", b"x::/\n", b"0::x\n"])
def test_nonsense_in_cgroup_is_an_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        proc.parse_cgroup(b"0::/\n" + data)


MOUNTS = (
    b"24 30 0:22 / /proc rw,nosuid shared:5 master:1 - proc proc rw\n"
    b"400 30 0:4 net:[4026532281] /run/netns/a\\040b\\134c rw shared:200 - nsfs nsfs rw\n"
    b"401 30 0:4 mnt:[4026532282] /run/mnt rw - nsfs nsfs rw\n"
    b"41 30 0:36 /../.. /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
)


def test_mounts_are_read_with_or_without_optional_fields() -> None:
    found = proc.parse_mountinfo(MOUNTS)
    assert [mount.fs_type for mount in found] == ["proc", "nsfs", "nsfs", "cgroup2"]
    assert found[0] == proc.Mount(24, 30, (0, 22), "/", "/proc", ("rw", "nosuid"), "proc", "proc", ("rw",))
    assert found[3].mount_point == "/sys/fs/cgroup"
    assert found[3].super_options == ("rw", "nsdelegate")


def test_a_namespace_that_is_mounted_tells_its_inode_and_where() -> None:
    found = proc.parse_mountinfo(MOUNTS)
    assert [mount.netns for mount in found] == [None, 4026532281, None, None]
    assert found[1].mount_point == "/run/netns/a b\\c"


def test_a_mount_point_that_is_not_text_can_still_be_opened() -> None:
    (mount,) = proc.parse_mountinfo(b"1 2 0:3 / /mnt/\xff rw - ext4 /dev/a rw\n")
    assert os.fsencode(mount.mount_point) == b"/mnt/\xff"


@pytest.mark.parametrize(
    "data",
    [
        b"24 30 0:22 / /proc rw shared:5 proc proc rw\n",
        b"24 30 022 / /proc rw - proc proc rw\n",
        b"24 x 0:22 / /proc rw - proc proc rw\n",
        b"24 30 0:22 / /proc rw - proc\n",
    ],
)
def test_nonsense_in_mountinfo_is_an_error_that_says_where(data: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        proc.parse_mountinfo(MOUNTS + data)
    assert caught.value.offset == len(MOUNTS)


def test_close_on_exec_is_a_bit_of_the_octal_flags() -> None:
    found = proc.parse_fdinfo(b"pos:\t0\nflags:\t02004002\nmnt_id:\t9\nino:\t4711\n")
    assert found == proc.DescriptorInfo(0o2004002, 4711)
    assert found.close_on_exec
    assert not proc.parse_fdinfo(b"pos:\t0\nflags:\t04002\n").close_on_exec
    assert proc.parse_fdinfo(b"flags:\t02\n").inode is None
    for data in (b"pos:\t0\n", b"flags:\t09\n", b"flags:\n"):
        with pytest.raises(DecodeError):
            proc.parse_fdinfo(data)


def test_our_own_descriptor_is_close_on_exec_until_it_is_inheritable() -> None:
    with socket.socket() as sock:
        path = Path(f"/proc/self/fdinfo/{sock.fileno()}")
        assert proc.parse_fdinfo(path.read_bytes()).close_on_exec
        sock.set_inheritable(True)
        assert not proc.parse_fdinfo(path.read_bytes()).close_on_exec


def test_uptime_is_in_seconds() -> None:
    assert proc.parse_uptime(b"4730.12 9000.01\n") == 4730.12
    for data in (b"", b"x\n", b"47\n", b"-1.00 2.00\n"):
        with pytest.raises(DecodeError):
            proc.parse_uptime(data)


def test_limits_are_numbers_or_unlimited() -> None:
    data = (
        b"Limit                     Soft Limit           Hard Limit           Units     \n"
        b"Max cpu time              unlimited            unlimited            seconds   \n"
        b"Max open files            1024                 524288               files     \n"
        b"Max nice priority         0                    0                    \n"
    )
    assert proc.parse_limits(data) == {
        "Max cpu time": proc.Limit(None, None, "seconds"),
        "Max open files": proc.Limit(1024, 524288, "files"),
        "Max nice priority": proc.Limit(0, 0, ""),
    }
    for bad in (b"Max open files 1024 524288 files\n", b"Max open files            many  few  files\n"):
        with pytest.raises(DecodeError):
            proc.parse_limits(data + bad)


def test_links_tell_kind_and_inode() -> None:
    assert proc.parse_ns_link(b"net:[4026531840]") == ("net", 4026531840)
    assert proc.parse_ns_link(b"pid_for_children:[4026531836]") == ("pid_for_children", 4026531836)
    for link in (b"/dev/null", b"net:[x]", b"net:[1", b"net:[1]x", b""):
        with pytest.raises(DecodeError):
            proc.parse_ns_link(link)
    assert proc.parse_socket_link(b"socket:[123]") == 123
    for link in (
        b"pipe:[123]",
        b"/dev/null",
        b"anon_inode:[eventpoll]",
        b"socket:[]",
        b"socket:[1] (deleted)",
    ):
        assert proc.parse_socket_link(link) is None


def test_every_file_of_this_process_is_read() -> None:
    base = Path("/proc/self")
    assert proc.parse_stat((base / "stat").read_bytes()).pid == os.getpid()
    status = proc.parse_status((base / "status").read_bytes())
    assert (status.pid, status.uid, status.ppid) == (os.getpid(), os.getuid(), os.getppid())
    assert proc.parse_cmdline((base / "cmdline").read_bytes())
    assert proc.parse_cgroup((base / "cgroup").read_bytes())
    assert any(m.mount_point == "/proc" for m in proc.parse_mountinfo((base / "mountinfo").read_bytes()))
    assert "Max open files" in proc.parse_limits((base / "limits").read_bytes())
    assert proc.parse_uptime(Path("/proc/uptime").read_bytes()) > 0
    assert proc.parse_ns_link(os.fsencode(os.readlink(base / "ns" / "net")))[0] == "net"
    assert "TCP.alloc" in proc.parse_sockstat((base / "net/sockstat").read_bytes())
    assert "TcpExt.TCPTimeWaitOverflow" in proc.parse_snmp((base / "net/netstat").read_bytes())
    assert "Tcp.RetransSegs" in proc.parse_snmp((base / "net/snmp").read_bytes())
    assert "TCP" in proc.parse_protocols((base / "net/protocols").read_bytes())

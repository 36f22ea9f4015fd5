"""Listing descriptors alone and side by side: the same answer, whoever works on it."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from msgspec.structs import replace

from finwait.kernel import netns, procfs
from tests.kernel.needs import missing, root_and

HOLDER = """
import socket, sys
kept = [socket.socket() for _ in range(int(sys.argv[1]))]
ns = open("/proc/self/ns/net")
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holders() -> Iterator[list[int]]:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in (3, 50, 7)
    ]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        yield [child.pid for child in children]
    finally:
        for child in children:
            child.communicate()


def as_set(listing: procfs.Listing) -> set[tuple[int, int, int]]:
    found, _ = listing
    return set(zip(found.pid.tolist(), found.fd.tolist(), found.inode.tolist(), strict=True))


def test_every_socket_of_a_process_is_listed_with_the_inode_that_the_socket_has() -> None:
    with socket.socket() as one, socket.socket() as two:
        mine = as_set(procfs.descriptors([os.getpid()]))
        for sock in (one, two):
            assert (os.getpid(), sock.fileno(), os.fstat(sock.fileno()).st_ino) in mine


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_several_processes_list_what_one_lists(holders: list[int], processes: int) -> None:
    alone = procfs.descriptors(holders, processes=1)
    together = procfs.descriptors(holders, processes=processes)
    assert len(as_set(alone)) == 60
    assert as_set(together) == as_set(alone)
    assert len(together[0]) == 60
    assert (np.diff(together[0].pid.astype(np.int64)) >= 0).all()
    assert together[1] == sorted(alone[1], key=lambda space: space[1:])
    assert {(inode, pid) for inode, pid, _ in together[1]} == {(netns.own_netns(), pid) for pid in holders}


def test_where_no_child_can_be_made_one_process_lists_all(
    holders: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> int:
        raise OSError(errno.EAGAIN, "no more processes")

    expected = as_set(procfs.descriptors(holders, processes=1))
    monkeypatch.setattr(os, "fork", refused)
    assert as_set(procfs.descriptors(holders, processes=3)) == expected


def test_the_share_of_a_child_that_dies_is_listed_by_its_parent(
    holders: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    me = os.getpid()

    def dies_half_way(fd: int, _: procfs.Listing) -> None:
        assert os.getpid() != me
        os.write(fd, b"half of what")
        os._exit(1)

    expected = as_set(procfs.descriptors(holders, processes=1))
    monkeypatch.setattr(procfs, "_send", dies_half_way)
    assert as_set(procfs.descriptors(holders, processes=3)) == expected


def test_no_child_and_no_descriptor_is_left(holders: list[int]) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    procfs.descriptors(holders, processes=3)
    assert sorted(os.listdir("/proc/self/fd")) == before
    # The fixture's children are running: whoever could be waited for would be one of ours.
    assert os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def test_a_descriptor_that_is_closed_while_links_are_read_costs_no_other() -> None:
    with socket.socket() as one, socket.socket() as two:
        names = ["999999", str(one.fileno()), "999998", "999997", str(two.fileno()), "999996"]
        directory = os.open("/proc/self/fd", os.O_RDONLY)
        try:
            said = procfs.links(names, directory)
        finally:
            os.close(directory)
        first, second = (f"socket:[{os.fstat(sock.fileno()).st_ino}]" for sock in (one, two))
    assert said == ["", first, "", "", second, ""]


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_known_is_not_read_again_and_what_is_new_is(processes: int) -> None:
    me = os.getpid()
    with socket.socket() as old, socket.socket() as closed:
        number = closed.fileno()
        known, _ = procfs.descriptors([me])
        keep = known.inode == os.fstat(old.fileno()).st_ino
        known = replace(known, pid=known.pid[keep], fd=known.fd[keep], inode=known.inode[keep])
        closed.close()
        with socket.socket() as new, socket.socket() as newer:
            again = as_set(procfs.descriptors([me], processes=processes, known=known))
            assert new.fileno() == number
            for sock in (new, newer):
                assert (me, sock.fileno(), os.fstat(sock.fileno()).st_ino) in again
            assert not {fd for _, fd, _ in again} & {old.fileno()}


def test_where_a_known_socket_got_a_second_holder_everything_is_read_again() -> None:
    me = os.getpid()
    with socket.socket() as moved, socket.socket() as other:
        known, _ = procfs.descriptors([me])
        inode, number = os.fstat(moved.fileno()).st_ino, moved.fileno()
        with moved.dup(), socket.socket() as new:
            os.dup2(
                new.fileno(), number, inheritable=False
            )  # a number that is known is another socket's by now
            again = as_set(procfs.descriptors([me], known=known))
            assert (me, number, os.fstat(new.fileno()).st_ino) in again
            assert (me, other.fileno(), os.fstat(other.fileno()).st_ino) in again
            assert inode in {inode for _, _, inode in again}


def test_processes_that_are_gone_are_left_out() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    found, spaces = procfs.descriptors([child.pid, 1 << 22], processes=2)
    assert (len(found), spaces, found.unreadable) == (0, [], ())


SEEN = "from finwait.kernel import procfs; print(procfs.descriptors()[0].unreadable)"


def test_in_a_pid_namespace_of_its_own_a_list_says_that_there_may_be_processes_outside() -> None:
    root_and("unshare")
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", SEEN]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "(0,)\n"


def test_where_other_users_processes_are_hidden_a_list_says_so() -> None:
    root_and("unshare", "setpriv", "mount")
    # The word instead of a number is refused by kernels on which hidepid would not stay within this mount.
    script = (
        "mount -t proc -o hidepid=invisible proc /proc && "
        'exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"'
    )
    command = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", SEEN]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "mount" in done.stderr:
        missing(f"a /proc with hidepid cannot be mounted here: {done.stderr}")
    assert done.stdout.startswith("(0,"), done.stderr

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

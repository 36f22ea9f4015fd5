"""Every predicate of the grammar in `trace`: it is judged as a look at the socket says, or refused by name."""

from __future__ import annotations

import pwd
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from finwait.cli import main
from finwait.follow import Following
from finwait.kernel import cgroup
from finwait.kernel.observe import RunningMachine
from finwait.lab.topology import Lab, unmet
from finwait.table import decode
from finwait.table.filter import PREDICATES, parse
from finwait.table.sockets import SCHEMA, pack_address
from finwait.table.trace_filter import JUDGED, refusal
from finwait.uapi import tcp
from finwait.uapi.observation import LookPlan
from tests.kernel.needs import missing
from tests.kernel.test_trace import tracing_is_possible  # noqa: F401
from tests.kernel.test_trace_owners import scene, strangers  # noqa: F401

pytestmark = pytest.mark.kernel

EVERY = sorted({*PREDICATES, *SCHEMA.names})
EXAMPLES = {
    "state": "state established", "exclude": "exclude established", "src": "src 10.0.0.1", "dst": "dst 10.0.0.1",
    "sport": "sport = :80", "dport": "dport = :80", "dev": "dev = eth0", "fwmark": "fwmark = 1", "mark": "mark = 1",
    "cgroup": "cgroup = /a", "autobound": "autobound", "held": "held", "orphan": "orphan", "age": "age > 1s",
    "waited": "waited = nobody", "ends": "ends = never", "thread": "thread = a",
    "rule": "rule = relay-pair", "severity": "severity = problem", "pod": "pod = a/b", "container": "container = ab",
    "pid": "pid = 1", "comm": "comm = a", "user": "user = root", "netns": "netns = a", "cong": "cong = cubic",
    "ulp": "ulp = tls", "family": "family = inet", "protocol": "protocol = tcp", "timer": "timer = on",
}  # fmt: skip


def example(name: str) -> str:
    return EXAMPLES.get(name, f"{name} = 1")


OF_NO_LOOK = [
    *("ends", "thread", "waited", "also", "autobound", "rule", "severity", "variant"),
    *("namespace", "workload", "service", "label"),
]
"""What a look at sockets does not tell either; names of a cluster `trace` does not ask for."""
REFUSED = [name for name in EVERY if refusal(parse(example(name))) is not None]


def test_what_is_judged_is_what_is_said_to_be():
    assert sorted(JUDGED) == sorted(set(EVERY) - set(REFUSED))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_judged_is_refused_by_name_with_what_can(name, capsys):
    for words in (example(name), f"sport = :80 and not {example(name)}", f"{example(name)} or sport = :80"):
        assert main(["trace", *words.split()]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert f"`{name}`" in said.err
        assert "^" in said.err
        assert "hint: " in said.err
        assert "--stuck" in said.err or name in OF_NO_LOOK


@pytest.mark.parametrize("words", ["inode = 0", "inode != 0", "cookie = 1 and inode = 0"])
def test_whether_it_is_held_is_refused_in_every_spelling(words, capsys):
    assert main(["trace", *words.split()]) == 2
    assert "`inode`" in capsys.readouterr().err


@pytest.mark.parametrize("name", OF_NO_LOOK)
def test_what_only_a_diagnosis_tells_is_refused_with_stuck_too(name, capsys):
    assert main(["trace", "--stuck", "1s", *example(name).split()]) == 2
    assert f"`{name}`" in capsys.readouterr().err


def test_everything_else_can_be_asked_of_what_is_stuck():
    for name in EVERY:
        refused = refusal(parse(example(name)), stuck=True)
        assert (refused is not None) == (name in OF_NO_LOOK), name


def predicates(values: dict[str, object]) -> dict[str, tuple[str, str]]:
    """Name → a FILTER that the connection matches, and one that it does not."""
    v = values
    return {
        "state": ("state connected", "state last-ack"),
        "exclude": ("exclude last-ack", "exclude connected"),
        "src": (f"src {v['host']}", "src 10.9.9.9"),
        "dst": (f"dst {v['peer']}", "dst 10.9.9.9"),
        "sport": (f"sport = :{v['sport']}", f"sport != :{v['sport']}"),
        "dport": (f"dport = :{v['dport']}", f"dport != :{v['dport']}"),
        "family": ("family = inet", "family = inet6"),
        "protocol": ("protocol = tcp", "protocol = mptcp"),
        "age": ("age < 1h", "age > 1h"),
        "netns": (f"netns = {v['netns']}", f"netns != {v['netns']}"),
        "netns by name": ("netns != nosuch", "netns = nosuch"),
        "pid": (f"pid = {v['pid']}", f"pid != {v['pid']}"),
        "comm": ("comm = fw-process", "comm = fw-thread"),
        "comm of others": ("comm != fw-thread", "comm != fw-*"),
        "user": (f"user = {v['user']}", "user = nobody"),
        "user by number": (f"user = {v['uid']}", f"user != {v['uid']}"),
        "uid": (f"uid = {v['uid']}", f"uid != {v['uid']}"),
        "cgroup": (f"cgroup = {v['cgroup']}", "cgroup = /no/such"),
        "cgroup_id": (f"cgroup_id = {v['cgroup_id']}", f"cgroup_id != {v['cgroup_id']}"),
        "pod": ("pod != a/b", "pod = *"),
        "container": ("container != abcdef", "container = *"),
        "dev": ("dev != eth0", "dev = eth0"),
        "ifindex": ("ifindex = 0", "ifindex = 7"),
        "cookie": (f"cookie = {v['cookie']}", f"cookie != {v['cookie']}"),
        "inode": (f"inode = {v['inode']}", f"inode != {v['inode']}"),
    }


def look(netns: int, dport: int) -> dict[str, object]:
    table = decode.sockets(
        RunningMachine().observe(
            LookPlan(only=frozenset({netns}), conntrack=False, files=False, established_limit=None)
        )
    )
    mine = table.select((table.dport == dport) & (table.state == tcp.ESTABLISHED))
    assert len(mine) == 1
    paths = cgroup.paths(set(mine.cgroup_id.tolist()))
    return {
        "netns": netns, "sport": int(mine.sport[0]), "dport": dport, "uid": int(mine.uid[0]),
        "user": pwd.getpwuid(int(mine.uid[0])).pw_name, "cookie": hex(int(mine.cookie[0])),
        "inode": int(mine.inode[0]), "cgroup_id": int(mine.cgroup_id[0]),
        "cgroup": paths.get(int(mine.cgroup_id[0]), ""),
    }  # fmt: skip


def test_every_other_predicate_is_judged_as_a_look_says(strangers):  # noqa: F811 - the fixture
    with scene("thread") as running, ExitStack() as stack:
        _, pid, _ = running.step()
        values = look(running.netns, running.port)
        if not values["cgroup"]:
            missing("no cgroup v2 here")
        values |= {"pid": pid, "host": running.host, "peer": running.host}
        some = f"src {running.host} and dport = :{running.port}"
        high, low = pack_address(running.host)
        following: dict[tuple[str, bool], Following] = {}
        wanted = predicates(values)
        assert {name.partition(" ")[0] for name in wanted} == set(JUDGED)
        for name, pair in wanted.items():
            for matches, words in zip((True, False), pair, strict=True):
                one = Following(parse(f"{some} and ( {words} )"), buffer_kb=256, not_holders=strangers)
                following[name, matches] = stack.enter_context(one)
        running.step()
        counts = dict.fromkeys(following, 0)
        deadline = time.monotonic() + 100
        # The client's ESTABLISHED→FIN_WAIT1 and FIN_WAIT1→FIN_WAIT2.
        while any(counts[key] < 2 for key in following if key[1]):
            for key, one in following.items():
                rows = one.step(0.02).rows
                assert ((rows.src[:, 0] == high) & (rows.src[:, 1] == low)).all()
                counts[key] += len(rows)
            assert time.monotonic() < deadline, [k for k in counts if k[1] and counts[k] < 2]
        for key, one in following.items():
            counts[key] += len(one.finish().rows)
            # For how long it had been ESTABLISHED when the trace began nobody knows.
            assert one.unjudged == int(key == ("age", False)), key
        assert {key: n for key, n in counts.items() if n != 2 * key[1]} == {}


@pytest.mark.parametrize(
    ("words", "matches"),
    [
        ("wqueue = 0", True), ("wqueue > 0", False), ("timer = none", True), ("held", True), ("orphan", False),
        ("age > 1h", False), ("age < 1h", True), ("bytes_received > 9", False), ("shutdown != 0", True),
        ("comm = fw-process", True), ("comm != fw-process", False), ("cong = *", True), ("skmem_rcvbuf > 0", True),
        ("user = nobody", False), ("dev = eth0", False), ("state close-wait", True),
    ],
)  # fmt: skip
def test_what_is_stuck_is_judged_by_a_look(words, matches, strangers):  # noqa: F811 - the fixture
    with scene("thread") as running:
        running.step()
        wanted = parse(f"sport = :{running.port} and ( {words} )")
        with Following(wanted, rows=False, not_holders=strangers) as following:
            running.step()
            deadline = time.monotonic() + 60

            def until(condition: Callable[[], bool]) -> None:
                while not condition():
                    following.step(0.02)
                    following.look_now()
                    assert time.monotonic() < deadline

            def closing() -> bool:
                look = following.last_look
                return look is not None and bool(
                    ((look.sockets.sport == running.port) & (look.sockets.state == tcp.CLOSE_WAIT)).any()
                )

            until(closing)
            until(lambda: len(following.stuck(0.0)) == int(matches))
            assert len(following.stuck(0.0, last=True)) == int(matches)
        assert following.unjudged == 0


@pytest.fixture
def lab() -> Iterator[Lab]:
    if lacking := unmet(("netns",)):
        missing("; ".join(lacking))
    with Lab() as lab:
        yield lab


def test_what_is_stuck_on_an_interface_is_judged_by_its_name(lab: Lab, strangers: frozenset[int]) -> None:  # noqa: F811 - the fixture
    netns = lab.netns("bound")
    lab.actor(netns, "resident")  # a look finds the namespace by a process in it

    def half_closed() -> tuple[socket.socket, ...]:
        listener, near = socket.create_server(("127.0.0.1", 0)), socket.socket()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
        near.connect(listener.getsockname())
        far = listener.accept()[0]
        near.shutdown(socket.SHUT_WR)
        return listener, near, far

    sockets = netns.call(half_closed)
    try:
        for device, count in (("lo", 1), ("eth0", 0)):
            wanted = parse(f"netns = {netns.inode} and state fin-wait-2 and dev = {device}")
            with Following(wanted, rows=False, tracing=False, not_holders=strangers) as following:
                following.look_now()
                deadline = time.monotonic() + 60
                while len(following.stuck(0.0)) != count:
                    following.step(0.02)
                    following.look_now()
                    assert time.monotonic() < deadline
                assert len(following.stuck(0.0, last=True)) == count
            assert following.unjudged == 0
    finally:
        for each in sockets:
            each.close()

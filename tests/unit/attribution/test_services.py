"""Which processes are the workers of one server, and which only look like it."""

from __future__ import annotations

from finwait.attribution.process import ProcessView
from finwait.attribution.services import services


def together(*processes: ProcessView) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for pid, leader in sorted(services({p.pid: p for p in processes}).items()):
        groups.setdefault(leader, []).append(pid)
    return sorted(groups.values())


def process(pid: int, comm: str, cmdline: str = "", **more: object) -> ProcessView:
    return ProcessView(pid, comm, cmdline, **{"exe": f"/bin/{comm}", "ppid": 10, "netns": 1, **more})  # type: ignore[arg-type]


MASTER = process(50, "postgres", "postgres -D /data")
BASH = process(10, "bash", "bash")


def test_children_of_a_server_that_forks_are_its_workers_whatever_they_call_themselves() -> None:
    kids = [process(60 + k, "postgres", f"postgres: user db {k}", ppid=50) for k in range(3)]
    assert together(MASTER, *kids) == [[50, 60, 61, 62]]
    grandchild = process(70, "postgres", "postgres: worker", ppid=61)
    assert together(MASTER, *kids, grandchild) == [[50, 60, 61, 62, 70]]


def test_two_scripts_that_one_shell_started_are_two_services() -> None:
    a, b = process(20, "python3", "python3 a.py"), process(21, "python3", "python3 b.py")
    assert together(BASH, a, b) == [[10], [20], [21]]


def test_replicas_that_one_supervisor_started_are_one_service() -> None:
    a, b = process(20, "python3", "python3 worker.py"), process(21, "python3", "python3 worker.py")
    assert together(a, b) == [[20, 21]]
    assert together(a, process(22, "python3", "python3 worker.py", ppid=11)) == [[20], [22]]


def test_what_has_lost_its_parent_is_told_by_its_unit_or_container() -> None:
    unit = {"ppid": 1, "cgroup": "/system.slice/app.service"}
    a, b = (process(pid, "app", "app --serve", **unit) for pid in (20, 21))
    assert together(a, b) == [[20, 21]]
    alone = process(22, "app", "app --serve", ppid=1)
    other = process(23, "app", "app --serve", ppid=1, cgroup="/system.slice/other.service")
    assert together(a, alone, other) == [[20], [22], [23]]
    session = {"ppid": 1, "cgroup": "/user.slice/user-0.slice/session-3.scope"}
    assert together(*(process(pid, "app", "app --serve", **session) for pid in (30, 31))) == [[30], [31]]


def test_another_program_or_another_namespace_is_another_service() -> None:
    for odd in (
        process(60, "postgres", "x", ppid=50, exe="/opt/postgres"),
        process(60, "psql", "x", ppid=50),
        process(60, "postgres", "x", ppid=50, netns=2),
    ):
        assert together(MASTER, odd) == [[50], [60]]


def test_what_nobody_could_read_belongs_to_nobody() -> None:
    assert together(ProcessView(20), ProcessView(21)) == [[20], [21]]
    init = process(1, "app", "app", ppid=0)
    assert together(init, process(20, "app", "a", ppid=1), process(21, "app", "b", ppid=1)) == [
        [1],
        [20],
        [21],
    ]

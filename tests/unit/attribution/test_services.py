"""Which processes are the workers of one server, and which only look like it."""

from __future__ import annotations

from msgspec.structs import replace

from finwait.attribution.process import ProcessView
from finwait.attribution.services import name_of, services


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


# -- interpreters: their name says nothing ---------------------------------------------------------------


def run(pid: int, *argv: str, ppid: int = 10, exe: str = "", **more: object) -> ProcessView:
    """A process that was started with these arguments, on a stack of its own."""
    program = exe or argv[0]
    given = {"exe": f"/usr/bin/{program}", "argv": argv, "stack": 1000 + pid, "ppid": ppid, **more}
    return process(pid, str(more.pop("comm", program)), " ".join(argv), **given)


def forked(parent: ProcessView, pid: int, *title: str, comm: str = "") -> ProcessView:
    argv = title or parent.argv
    return replace(
        parent, pid=pid, ppid=parent.pid, argv=argv, cmdline=" ".join(argv), comm=comm or parent.comm
    )


def test_programs_of_one_interpreter_are_services_of_their_own_though_their_supervisor_is_one_too() -> None:
    for name in ("python3", "python3.11", "node", "bash", "ruby", "perl", "php", "java"):
        boss = run(20, name, "/srv/boss")
        a, b = run(21, name, "/srv/a", "6001", ppid=20), run(22, name, "/srv/b", "6002", ppid=20)
        assert together(boss, a, b) == [[20], [21], [22]], name
        blind = [replace(p, stack=0) for p in (boss, a, b)]
        assert together(*blind) == [[20], [21], [22]], name
        assert together(*(replace(p, argv=()) for p in blind)) == [[20], [21], [22]], name


def test_one_script_with_other_arguments_is_another_service() -> None:
    boss = run(20, "python3", "sup.py")
    assert together(boss, *(run(p, "python3", "svc.py", str(p), ppid=20) for p in (21, 22))) == [
        [20],
        [21],
        [22],
    ]
    artisan = run(30, "php", "artisan", "schedule:run")
    assert together(artisan, run(31, "php", "artisan", "queue:work", ppid=30)) == [[30], [31]]


def test_what_a_program_has_written_over_its_arguments_tells_nothing_where_the_kernel_knows_that_it_forked() -> (
    None
):
    for title in ("gunicorn: worker [app]", "worker"):
        boss = run(20, "python3", "/usr/bin/gunicorn", "app:app")
        assert together(boss, forked(boss, 21, title), forked(boss, 22, title)) == [[20, 21, 22]]
    nginx = run(30, "nginx", "-g", "daemon off;")
    titled = forked(nginx, 30, "nginx: master process nginx -g daemon off;")
    titled = replace(titled, ppid=10)
    assert together(titled, forked(titled, 31, "nginx: worker process")) == [[30, 31]]


def test_titles_are_taken_for_those_of_forks_where_the_kernel_does_not_tell() -> None:
    boss = replace(run(20, "python3", "/usr/bin/gunicorn", "app:app"), stack=0)
    assert together(boss, forked(boss, 21, "gunicorn: worker [app]")) == [[20, 21]]


def test_a_program_that_was_run_and_calls_itself_something_is_no_fork() -> None:
    boss = run(20, "python3", "sup.py")
    a, b = (run(p, f"gunicorn: master [{p}]", ppid=20, exe="python3") for p in (21, 22))
    assert together(boss, a, b) == [[20], [21], [22]]


def test_a_cluster_runs_its_own_script_again() -> None:
    boss = run(20, "node", "server.js", "--port", "80")
    kids = [run(p, "node", "/app/server.js", "--port", "80", ppid=20) for p in (21, 22)]
    assert together(boss, *kids) == [[20, 21, 22]]
    python = run(30, "python3", "-m", "uvicorn", "app:app", "--workers", "2")
    spawned = ("-c", "from multiprocessing.spawn import spawn_main; spawn_main(5)", "--multiprocessing-fork")
    assert together(python, *(run(p, "python3", *spawned, ppid=30) for p in (31, 32))) == [[30, 31, 32]]


def test_workers_that_name_themselves_are_one_service() -> None:
    boss = run(20, "python3", "pre.py")
    kids = [forked(boss, 21 + k, comm=f"wrk-{k}") for k in range(3)]
    assert together(boss, *kids) == [[20, 21, 22, 23]]
    assert together(*kids) == [[21, 22, 23]]
    assert together(*(replace(p, stack=0) for p in kids)) == [[21, 22, 23]]


def test_workers_that_number_themselves_have_one_name() -> None:
    assert name_of(["wrk-0", "wrk-1", "wrk-12"]) == "wrk-*"
    assert name_of(["python3", "python3"]) == "python3"
    assert name_of(["server", "wrk-0", "wrk-1"]) == "server/wrk-*"
    assert name_of(["c", "b", "a"]) == "a/b/c"
    assert name_of(["a", "b", "c", "d"]) == "a/b/c/…"


def test_what_one_program_forked_before_it_ended_is_one_service() -> None:
    a, b = (process(pid, "app", "app --serve", ppid=1, stack=0x7FFC1000) for pid in (20, 21))
    assert together(a, b) == [[20, 21]]
    again = process(22, "app", "app --serve", ppid=1, stack=0x7FFD2000)
    assert together(a, again) == [[20], [22]], "it was started by itself"
    unknown = [process(pid, "app", "app --serve", ppid=1, stack=0) for pid in (30, 31)]
    assert together(*unknown) == [[30], [31]]
    assert together(a, process(23, "app", "app --other", ppid=1, stack=0x7FFC1000)) == [[20], [23]]
    elsewhere = process(24, "app", "app --serve", ppid=1, stack=0x7FFC1000, cgroup="/user.slice/other.scope")
    assert together(a, elsewhere) == [[20], [24]], "without ASLR all stacks begin at one place"

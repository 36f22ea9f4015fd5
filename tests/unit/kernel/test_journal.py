import errno
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from finwait.cli import main
from finwait.errors import KernelError
from finwait.kernel.journal import SqliteJournal, Taken, state_directory
from finwait.remedy.journal import Act, Journal
from finwait.report.journal import whom

ACT = Act("sysctl", {"netns": 1}, {"sysctl": {"a.b": "1"}}, {"sysctl": {"a.b": "2"}}, "because")


@pytest.fixture
def journal(tmp_path):
    with SqliteJournal(tmp_path / "state" / "journal.sqlite") as found:
        yield found


def test_an_act_is_written_down_with_who_what_and_why(journal):
    as_the_core_sees_it: Journal = journal
    number = as_the_core_sees_it.record(ACT)
    entry = journal.get(number)
    assert (entry.kind, entry.target, entry.before, entry.after, entry.why) == (
        "sysctl", {"netns": 1}, {"sysctl": {"a.b": "1"}}, {"sysctl": {"a.b": "2"}}, "because",
    )  # fmt: skip
    assert (entry.uid, entry.pid, entry.command) == (os.getuid(), os.getpid(), tuple(sys.argv))
    assert entry.finished_ns is None
    assert entry.result is None
    journal.complete(number, {"values": {"a.b": "2"}})
    entry = journal.get(number)
    assert entry.result == {"values": {"a.b": "2"}}
    assert entry.finished_ns >= entry.started_ns


def test_the_journal_is_for_its_owner_only(journal):
    assert journal.path.stat().st_mode & 0o777 == 0o600
    assert journal.path.parent.stat().st_mode & 0o777 == 0o700


def test_another_process_sees_an_act_as_soon_as_it_is_recorded(journal):
    number = journal.record(ACT)
    with SqliteJournal(journal.path, read_only=True) as other:
        assert other.get(number).why == "because"
        with pytest.raises(KernelError, match="EROFS"):
            other.record(ACT)


def test_many_acts_are_written_at_once_and_in_order(journal):
    ids = journal.record_many([Act("destroy", {"cookie": n}) for n in range(1000)])
    assert ids == list(range(1, 1001))
    assert [journal.get(i).target["cookie"] for i in (ids[0], ids[500], ids[-1])] == [0, 500, 999]
    assert journal.record_many([]) == []
    journal.complete_many({i: {"ok": True} for i in ids})
    assert len(journal.entries(kind="destroy", limit=2000)) == 1000
    assert not journal.entries(kind="sysctl")


def test_an_act_cannot_be_completed_twice_nor_one_that_is_not_there(journal):
    number = journal.record(ACT)
    journal.complete(number, {})
    for wrong in (number, 99):
        with pytest.raises(ValueError, match="no open act"):
            journal.complete(wrong, {})
    with pytest.raises(ValueError, match="no act 99"):
        journal.get(99)


def test_of_several_completions_all_count_or_none(journal):
    number = journal.record(ACT)
    with pytest.raises(ValueError, match="not all open"):
        journal.complete_many({number: {}, 99: {}})
    assert journal.get(number).finished_ns is None


def test_an_act_knows_what_took_it_back_but_not_a_failed_try(journal):
    first = journal.record(ACT)
    failed = journal.record(Act("sysctl", {}, undoes=first))
    journal.complete(failed, {"error": "no"})
    assert journal.get(first).undone_by is None
    undo = journal.record(Act("sysctl", {}, undoes=first))
    assert journal.get(first).undone_by is None
    journal.complete(undo, {"values": {}})
    assert journal.get(first).undone_by == undo


def test_an_act_cut_short_by_sigkill_is_told_and_one_still_running_is_not(journal):
    ours = journal.record(ACT)
    code = (
        "import os, pathlib, signal, sys\n"
        "from finwait.kernel.journal import SqliteJournal\n"
        "from finwait.remedy.journal import Act\n"
        "journal = SqliteJournal(pathlib.Path(sys.argv[1]))\n"
        "print(journal.record(Act('destroy', {'cookie': 7})), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, journal.path], capture_output=True, text=True)
    assert done.returncode == -9
    (left,) = journal.incomplete()
    assert (left.id, left.kind, left.target) == (int(done.stdout), "destroy", {"cookie": 7})
    assert left.id != ours


def test_a_process_that_ended_and_was_not_waited_for_is_not_at_it_any_more(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            with SqliteJournal(tmp_path / "j.sqlite") as mine:
                mine.record(on_socket())
        finally:
            os._exit(0)
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
        with SqliteJournal(tmp_path / "j.sqlite") as journal:
            assert [entry.id for entry in journal.incomplete()] == [1]
    finally:
        os.waitpid(pid, 0)


def test_two_processes_write_at_once_without_losing_an_act(journal):
    def write():
        with SqliteJournal(journal.path) as own:
            for _ in range(50):
                own.complete(own.record(ACT), {})

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(journal.entries(limit=1000)) == 150


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_refuses_the_act_and_says_so(tmp_path):
    code = (
        "import pathlib, sys\n"
        "from finwait.errors import KernelError\n"
        "from finwait.kernel.journal import SqliteJournal\n"
        "from finwait.remedy.journal import Act\n"
        "journal = SqliteJournal(pathlib.Path(sys.argv[1]) / 'journal.sqlite')\n"
        "first = journal.record(Act('sysctl', {'netns': 1}))\n"
        "(pathlib.Path(sys.argv[1]) / 'ballast').write_bytes(b'') \n"
        "try:\n"
        "    with open(pathlib.Path(sys.argv[1]) / 'ballast', 'wb') as file:\n"
        "        while file.write(b'x' * 4096): file.flush()\n"
        "except OSError:\n"
        "    pass\n"
        "try:\n"
        "    for n in range(2000): journal.record(Act('sysctl', {'netns': n}, why='y' * 2000))\n"
        "except KernelError as error:\n"
        "    print(error.errno, '|', error, '|', error.hint)\n"
        "(pathlib.Path(sys.argv[1]) / 'ballast').unlink()\n"
        "print(journal.get(first).target, journal.record(Act('sysctl', {'netns': 2})) > first)\n"
    )
    script = f'mount -t tmpfs -o size=256k,mode=700 none "{tmp_path}" && exec "$0" -c "$1" "{tmp_path}"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, sys.executable, code], capture_output=True, text=True
    )
    if "permission denied" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip("this machine does not let us mount a tmpfs")
    assert done.returncode == 0, done.stderr
    refused, after = done.stdout.splitlines()
    assert refused.startswith(f"{errno.ENOSPC} |")
    assert "nothing was done; free space" in refused
    assert after == "{'netns': 1} True"


def test_what_is_no_journal_or_from_the_future_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"not a database, but long enough to be looked at" * 40)
    with pytest.raises(KernelError) as kept:
        SqliteJournal(tmp_path / "a")
    files = [os.readlink(d) for d in Path("/proc/self/fd").iterdir() if d.is_symlink()]
    assert str(tmp_path / "a") not in files, kept  # closed by us, not by whoever lets the error go
    with SqliteJournal(tmp_path / "b"):
        pass
    db = sqlite3.connect(tmp_path / "b")
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(KernelError, match="version 99"):
        SqliteJournal(tmp_path / "b")
    with pytest.raises(KernelError, match="ENOENT") as caught:
        SqliteJournal(tmp_path / "c", read_only=True)
    assert "no act" in caught.value.hint
    with pytest.raises(KernelError):
        SqliteJournal(tmp_path / "a" / "under-a-file" / "journal")


def test_the_state_directory_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FINWAIT_STATE_DIR", str(tmp_path))
    assert state_directory() == tmp_path
    monkeypatch.delenv("FINWAIT_STATE_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert str(state_directory()) == "/var/lib/finwait"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/x")
    assert str(state_directory()) == "/x/finwait"


def test_a_command_line_that_is_not_utf8_is_kept_as_it_can_be_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["finwait", "clear", "--plan", "p\udcff.json"])
    with SqliteJournal(tmp_path / "journal.sqlite") as journal:
        entry = journal.get(journal.record(Act("destroy", {"cookie": "0x1"}, {}, {}, "")))
        assert "p\\udcff.json" in entry.command


def on_socket(cookie: str = "0x1", netns: int = 1, why: str = "probe") -> Act:
    return Act("sockopt", {"netns": netns, "cookie": cookie}, why=why)


def test_a_socket_is_claimed_by_one_act_until_that_has_its_result(tmp_path: Path) -> None:
    with SqliteJournal(tmp_path / "j") as one, SqliteJournal(tmp_path / "j") as two:
        (first,) = one.claim_many([on_socket()])
        assert isinstance(first, int)
        taken, free, elsewhere = two.claim_many([on_socket(), on_socket("0x2"), on_socket(netns=2)])
        assert taken == Taken(first, os.getpid(), "probe", True)
        assert "is under way" in str(taken)
        assert isinstance(free, int)
        assert isinstance(elsewhere, int)
        assert len(two.entries()) == 3  # what was not claimed is not written down
        one.complete_many({first: {"result": "alive"}})
        (again,) = two.claim_many([on_socket()])
        assert isinstance(again, int)


def test_acts_of_other_kinds_and_of_other_boots_claim_nothing(tmp_path: Path) -> None:
    with SqliteJournal(tmp_path / "j") as journal:
        journal.record_many([Act("destroy", {"netns": 1, "cookie": "0x1"})])
        journal.record_many([on_socket()])
        journal._base.execute("UPDATE acts SET boot_id = 'another' WHERE kind = 'sockopt'")
        (mine,) = journal.claim_many([on_socket()])
        assert isinstance(mine, int)


def test_a_claim_of_a_process_that_is_gone_is_told_from_one_that_is_under_way(tmp_path: Path) -> None:
    with SqliteJournal(tmp_path / "j") as journal:
        (cut,) = journal.record_many([on_socket()])
        journal._base.execute("UPDATE acts SET pid_start = pid_start + 1")
        (taken,) = journal.claim_many([on_socket()])
        assert taken == Taken(cut, os.getpid(), "probe", False)
        assert f"`finwait undo {cut}`" in str(taken)
        (mine,) = journal.claim_many([on_socket(why=f"undo {cut}")], besides=cut)
        assert isinstance(mine, int)


def test_claims_of_many_processes_never_overlap(tmp_path: Path) -> None:
    """Eight processes want one socket at the same moment: one of them gets it."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom finwait.kernel.journal import SqliteJournal\n"
        "from finwait.remedy.journal import Act\nsys.stdin.readline()\n"
        "with SqliteJournal(Path(sys.argv[1])) as j:\n"
        "    got = j.claim_many([Act('sockopt', {'netns': 1, 'cookie': '0x1'})])\n"
        "    print(isinstance(got[0], int), flush=True)\n    sys.stdin.readline()\n"
    )
    with SqliteJournal(tmp_path / "j"):
        pass
    command = [sys.executable, "-c", script, str(tmp_path / "j")]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(8)
    ]
    for one in running:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    got = [one.stdout.readline().strip() for one in running if one.stdout is not None]
    for one in running:
        one.communicate("\n", timeout=30)
    assert sorted(got) == ["False"] * 7 + ["True"]


def test_a_journal_that_was_never_finished_being_made_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The very first act was cut short between the making of the file and that of its tables."""
    tmp_path.chmod(0o700)
    (tmp_path / "journal.sqlite").touch(0o600)
    monkeypatch.setenv("FINWAIT_STATE_DIR", str(tmp_path))
    assert main(["journal"]) == 0
    assert "the journal is empty" in capsys.readouterr().err
    assert main(["journal", "-o", "json"]) == 0
    assert '"items":[]' in capsys.readouterr().out


def test_an_act_on_settings_is_shown_with_its_namespace_and_keys(tmp_path: Path) -> None:
    target = {"netns": 7, "cookie": 1, "boot_id": "b", "name": "web"}
    key = "net.ipv4.tcp_fin_timeout"
    acts = [
        Act("sysctl", target, {"sysctl": {key: "60"}}, {"sysctl": {key: "30"}}),
        Act("sysctl", {"netns": 7}, {}, {"sysctl": "x", "drop_in": {"path": "/a.conf"}}),
        Act("sysctl", {}),
    ]
    with SqliteJournal(tmp_path / "j.sqlite") as journal:
        shown = [whom(journal.get(number)) for number in journal.record_many(acts)]
    assert shown == [f"web (netns 7): {key} 60 → 30", "netns 7: /a.conf", "netns ?: no setting"]

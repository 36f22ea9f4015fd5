"""A journal that somebody else could have written is refused, and `undo` does only what finwait could have done."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finwait.cli import main
from finwait.errors import FileRefused, FinwaitError, KernelError, Refused
from finwait.kernel import sysctl
from finwait.kernel.journal import SqliteJournal, state_directory
from finwait.lab import Lab
from finwait.remedy.journal import Act
from tests.kernel import needs

pytestmark = pytest.mark.kernel
ROOT = Path(__file__).parents[2]
FIN = "net.ipv4.tcp_fin_timeout"
MALLORY = 65534


@pytest.fixture(autouse=True)
def _needs() -> None:
    needs.root_and()


@pytest.fixture
def target() -> Iterator[sysctl.SysctlTarget]:
    with Lab() as lab, sysctl.open_target(lab.netns("tuned").fd) as found:
        yield found


@dataclass
class Told:
    """What a command said."""

    returncode: int
    stdout: str
    stderr: str


class Command:
    """Runs commands in this process, with a state directory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch = monkeypatch
        self.capsys = capsys

    def __call__(self, state: Path, *words: str) -> Told:
        self.monkeypatch.setenv("FINWAIT_STATE_DIR", str(state))
        self.capsys.readouterr()
        status = main(words)
        return Told(status, *self.capsys.readouterr())


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


def act(where: sysctl.SysctlTarget, changed: Mapping[str, Any] | None = None) -> Act:
    """An act that `tune apply` could have done, but for what is given."""
    fields: dict[str, Any] = {
        "kind": "sysctl",
        "target": where.identity(),
        "before": {"sysctl": {FIN: "60"}},
        "after": {"sysctl": {FIN: "31"}},
        "why": "tune apply x",
    }
    return Act(**{**fields, **(changed or {})})


def journal_of(folder: Path, *acts: Act) -> Path:
    with SqliteJournal(folder / "journal.sqlite") as journal:
        journal.record_many(acts)
    return folder / "journal.sqlite"


def value(target: sysctl.SysctlTarget) -> str:
    return sysctl.read([FIN], target).values[FIN]


def set_mode(path: Path, mode: int) -> None:
    path.chmod(mode)


def give_away(path: Path) -> None:
    os.chown(path, MALLORY, MALLORY)


def a_file_of_mallory(path: Path) -> None:
    path.touch()
    give_away(path)


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def another_name(path: Path) -> None:
    os.link(path, path.parent.parent / "name")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda db: set_mode(db.parent, 0o1777),
        lambda db: set_mode(db.parent, 0o777),
        lambda db: give_away(db.parent),
        lambda db: set_mode(db.parent.parent, 0o777),
        lambda db: give_away(db.parent.parent),
        lambda db: set_mode(db, 0o666),
        lambda db: set_mode(db, 0o620),
        give_away,
        another_name,
        lambda db: (db.rename(db.parent / "x"), db.symlink_to("x")),
        a_fifo,
        lambda db: db.with_name("journal.sqlite-wal").symlink_to("/etc/hostname"),
        lambda db: os.mkfifo(db.with_name("journal.sqlite-journal")),
        lambda db: a_file_of_mallory(db.with_name("journal.sqlite-shm")),
    ],
)
def test_a_journal_that_is_not_ours_alone_is_refused_and_left_as_it_is(
    target: sysctl.SysctlTarget, tmp_path: Path, spoil: Callable[[Path], Any], command: Command
) -> None:
    state = tmp_path / "above" / "state"
    sysctl.apply({FIN: "31"}, target)
    db = journal_of(state, act(target))
    spoil(db)
    before = {path.name: path.lstat().st_mode for path in state.iterdir()}
    for words in (("undo", "--yes", "1"), ("journal",)):
        told = command(state, *words)
        assert told.returncode == 1, (words, told)
        assert "was left alone" in told.stderr
        assert "hint: " in told.stderr
        assert "Traceback" not in told.stderr
    assert value(target) == "31"
    assert {path.name: path.lstat().st_mode for path in state.iterdir()} == before


def test_what_is_linked_at_the_place_of_the_journal_keeps_its_mode(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("no database")
    victim.chmod(0o644)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "journal.sqlite").symlink_to(victim)
    with pytest.raises(FileRefused, match="a symbolic link"):
        SqliteJournal(tmp_path / "state" / "journal.sqlite")
    assert stat.S_IMODE(victim.stat().st_mode) == 0o644
    assert victim.read_text() == "no database"


def test_what_is_no_journal_keeps_its_mode_and_no_connection_is_left(tmp_path: Path) -> None:
    file = tmp_path / "journal.sqlite"
    file.write_bytes(b"no database " * 100)
    file.chmod(0o644)
    before = os.listdir("/proc/self/fd")
    for read_only in (False, True):
        with pytest.raises(KernelError):
            SqliteJournal(file, read_only=read_only)
    assert os.listdir("/proc/self/fd") == before
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_a_journal_of_another_version_leaves_no_connection(tmp_path: Path) -> None:
    file = journal_of(tmp_path / "state")
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA user_version = 9")
    db.close()
    before = os.listdir("/proc/self/fd")
    for read_only in (False, True):
        with pytest.raises(KernelError, match="version 9"):
            SqliteJournal(file, read_only=read_only)
    assert os.listdir("/proc/self/fd") == before


def test_a_journal_in_a_link_that_is_root_s_is_opened(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "state").symlink_to("real")
    journal_of(tmp_path / "state")
    assert (tmp_path / "real" / "journal.sqlite").exists()


FORGED: dict[str, dict[str, Any]] = {
    "a sysctl that is not ours": {"before": {"sysctl": {"kernel.core_pattern": "1"}}},
    "a sysctl by another name": {"before": {"sysctl": {"net/ipv4/tcp_fin_timeout": "13"}}},
    "a value that is no number": {"before": {"sysctl": {FIN: "13\n14"}}},
    "a value of another type": {"before": {"sysctl": {FIN: 13}}},
    "settings that are no table": {"before": {"sysctl": [FIN]}},
    "no namespace": {"target": {}},
    "a namespace that is text": {"target": {"netns": "x", "cookie": 1, "boot_id": ""}},
    "a file elsewhere": {
        "before": {"drop_in": {"path": "/etc/sysctl.d/../cron.d/x", "text": "x"}},
        "after": {"drop_in": {"path": "/etc/sysctl.d/../cron.d/x", "text": "y"}},
    },
    "a file of another name": {
        "before": {"drop_in": {"path": "/etc/sysctl.d/99-x.conf", "text": None}},
        "after": {"drop_in": {"path": "/etc/sysctl.d/99-x.conf", "text": ""}},
    },
    "a line of another's": {
        "before": {"drop_in": {"path": "/etc/sysctl.d/90-finwait-x.conf", "text": "kernel.core_pattern = |/x"}},
        "after": {"drop_in": {"path": "/etc/sysctl.d/90-finwait-x.conf", "text": ""}},
    },
    "half a file": {
        "before": {"drop_in": {"path": "/etc/sysctl.d/90-finwait-x.conf", "text": None}},
        "after": {},
    },
    "a kind that nobody knows": {"kind": "reboot"},
}  # fmt: skip


@pytest.mark.parametrize("what", FORGED)
def test_undo_does_only_what_finwait_could_have_done(
    target: sysctl.SysctlTarget, tmp_path: Path, what: str, command: Command
) -> None:
    sysctl.apply({FIN: "31"}, target)
    state = tmp_path / "state"
    journal_of(state, act(target, FORGED[what]))
    for words in (("undo", "1"), ("tune", "rollback", "--yes", "1")):
        told = command(state, *words)
        assert told.returncode in (1, 4), (words, told)
        assert "Traceback" not in told.stderr
    told = command(state, "undo", "--yes", "1")
    assert told.returncode == 4
    assert "refused by guard" in told.stderr
    assert value(target) == "31"
    with SqliteJournal(state / "journal.sqlite") as journal:
        assert len(journal.entries()) == 1


def test_undo_shows_what_it_would_do_and_does_it_with_yes(
    target: sysctl.SysctlTarget, tmp_path: Path, command: Command
) -> None:
    sysctl.apply({FIN: "31"}, target)
    state = tmp_path / "state"
    drop = {"path": "/etc/sysctl.d/90-finwait-x.conf"}
    journal_of(
        state,
        act(target),
        act(
            target,
            {
                "before": {
                    "sysctl": {FIN: "31"},
                    "drop_in": {**drop, "text": f"# by hand\x1b[31m\n{FIN} = 31\n"},
                },
                "after": {"sysctl": {FIN: "30"}, "drop_in": {**drop, "text": f"{FIN} = 30\n"}},
            },
        ),
    )
    told = command(state, "undo", "1-2")
    assert told.returncode == 4
    assert "nothing was done; add `--yes`" in told.stderr
    assert f"  {FIN}: 31 -> 60" in told.stdout
    assert "90-finwait-x.conf: restored to" in told.stdout
    assert r"# by hand\x1b[31m" in told.stdout
    assert value(target) == "31"
    told = command(state, "undo", "--yes", "1")
    assert (told.returncode, value(target)) == (0, "60")
    told = command(state, "undo", "--yes", "1")
    assert told.returncode == 4
    assert "already reverted" in told.stderr


def test_kinds_of_a_later_version_are_told_and_listed(
    target: sysctl.SysctlTarget, tmp_path: Path, command: Command
) -> None:
    state = tmp_path / "state"
    journal_of(state, act(target, {"kind": "reboot", "target": {}}))
    with sqlite3.connect(state / "journal.sqlite") as db:
        db.execute("UPDATE acts SET boot_id = 'another'")  # so it was interrupted
    db.close()
    told = command(state, "journal", "-o", "json")
    assert json.loads(told.stdout)["items"][0]["kind"] == "reboot"
    told = command(state, "tune", "apply", "--no-diagnosis", f"{FIN}=30")
    assert "act 1, reboot" in told.stderr
    assert "does not know" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_persisted_file_with_lines_of_others_is_left_alone(
    target: sysctl.SysctlTarget, tmp_path: Path
) -> None:
    from finwait.acting.sysctls import apply_plan
    from finwait.cli.tune import make_plan
    from finwait.remedy.tuning import parse_assignments

    plan = make_plan(parse_assignments([f"{FIN}=31"]), target, {})
    file = tmp_path / "90-finwait-command-line.conf"
    file.write_text("vm.swappiness = 1\n")
    with SqliteJournal(tmp_path / "journal.sqlite") as journal:
        with pytest.raises(Refused, match=r"vm\.swappiness"):
            apply_plan(plan, target, journal, persist=True, folder=tmp_path)
        assert journal.entries() == []
    assert value(target) == "60"
    assert file.read_text() == "vm.swappiness = 1\n"


def test_without_a_home_it_says_where_the_journal_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "FINWAIT_STATE_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)  # in no user database
    with pytest.raises(FinwaitError, match="HOME is not set") as caught:
        state_directory()
    assert "FINWAIT_STATE_DIR" in caught.value.hint
    monkeypatch.setenv("HOME", "here")
    with pytest.raises(FinwaitError, match="HOME is `here`"):
        state_directory()
    monkeypatch.setenv("HOME", "/home/x")
    assert state_directory() == Path("/home/x/.local/state/finwait")
    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr(os, "geteuid", lambda: MALLORY)
    assert state_directory().is_absolute()


@pytest.mark.parametrize("words", [("journal",), ("undo", "--yes", "1"), ("probe", "sport = :1")])
def test_no_command_fails_without_a_home(words: tuple[str, ...]) -> None:
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "VIRTUAL_ENV")}
    told = subprocess.run(
        ["setpriv", "--reuid", "4000000", "--clear-groups", sys.executable, "-c",
         "import sys; from finwait.cli import main; sys.exit(main(sys.argv[1:]))", *words],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd="/",
        env={**environment, "PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert "Traceback" not in told.stderr
    if words[0] != "probe":
        assert told.returncode == 1
        assert "HOME is not set" in told.stderr

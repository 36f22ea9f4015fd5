import os
import subprocess
import sys
import time

import pytest

from finwait.acting.sysctls import apply_plan, roll_back
from finwait.cli.tune import load_profile, make_plan
from finwait.errors import FileRefused, KernelError, Refused
from finwait.kernel import sysctl
from finwait.kernel.journal import SqliteJournal
from finwait.lab import Lab
from finwait.remedy.tuning import parse_assignments, plan
from tests.kernel import needs

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _needs():
    needs.root_and()


FIN, RETRIES, RFC = "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_orphan_retries", "net.ipv4.tcp_rfc1337"
WANTED = [f"{FIN}=30", f"{RETRIES}=3", f"{RFC}=1"]
BEFORE = {FIN: "60", RETRIES: "0", RFC: "0"}
AFTER = {FIN: "30", RETRIES: "3", RFC: "1"}


@pytest.fixture
def target():
    with Lab() as lab, sysctl.open_target(lab.netns("tuned").fd) as found:
        yield found


@pytest.fixture
def journal(tmp_path):
    with SqliteJournal(tmp_path / "journal.sqlite") as found:
        yield found


def now(target):
    return dict(sysctl.read([FIN, RETRIES, RFC], target).values)


def until_gone(inode):
    """Others on this machine may hold any namespace for a moment while they look into it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            sysctl.open_target(f"netns:{inode}").close()
        except KernelError:
            return
        time.sleep(0.05)
    pytest.fail(f"namespace {inode} stays")


def planned(target, words=WANTED):
    return make_plan(parse_assignments(words), target, {})


def test_a_plan_is_applied_recorded_and_taken_back(target, journal, tmp_path):
    outcome = apply_plan(planned(target), target, journal, persist=True, folder=tmp_path)
    assert now(target) == AFTER
    assert f"{FIN}: 60 -> 30" in outcome.lines
    (drop_in,) = tmp_path.glob("*.conf")
    assert drop_in.read_text().splitlines()[-3:] == [f"{FIN} = 30", f"{RETRIES} = 3", f"{RFC} = 1"]
    entry = journal.get(outcome.act_id)
    assert entry.before["sysctl"] == BEFORE
    assert entry.result == {"values": AFTER}
    assert entry.target["cookie"] == target.cookie

    undone = roll_back(outcome.act_id, journal, folder=tmp_path)
    assert now(target) == BEFORE
    assert not drop_in.exists()
    assert journal.get(outcome.act_id).undone_by == undone.act_id
    with pytest.raises(Refused, match="already reverted"):
        roll_back(outcome.act_id, journal, folder=tmp_path)


def test_what_is_persisted_adds_up_and_is_taken_back_step_by_step(target, journal, tmp_path):
    apply_plan(planned(target, WANTED[:1]), target, journal, persist=True, folder=tmp_path)
    (drop_in,) = tmp_path.glob("*.conf")
    first = drop_in.read_text()
    second = apply_plan(
        planned(target, [f"{FIN}=40", WANTED[1]]), target, journal, persist=True, folder=tmp_path
    )
    assert drop_in.read_text().splitlines()[-2:] == [f"{FIN} = 40", f"{RETRIES} = 3"]
    third = apply_plan(planned(target, WANTED[2:]), target, journal, persist=True, folder=tmp_path)
    assert drop_in.read_text().splitlines()[-3:] == [f"{FIN} = 40", f"{RETRIES} = 3", f"{RFC} = 1"]
    assert third.lines[-1] == f"kept in it from before: {FIN} = 40, {RETRIES} = 3"
    roll_back(third.act_id, journal, folder=tmp_path)
    roll_back(second.act_id, journal, folder=tmp_path)
    assert drop_in.read_text() == first


@pytest.mark.parametrize("name", ["a b.conf", "\x1b[31m.conf", "ü.toml"])
def test_a_file_of_any_name_and_title_can_be_persisted(target, journal, tmp_path, name):
    text = f"{FIN} = 30\n"
    if name.endswith(".toml"):
        line = f'[[line]]\nkey = "{FIN}"\nvalue = "30"\nwhy = "x"\nsource = "y"\n'
        text = f'title = "a\\nb"\nabout = ""\nsource = ""\n{line}'
    (tmp_path / name).write_text(text)
    profile = load_profile([str(tmp_path / name)])
    apply_plan(make_plan(profile, target, {}), target, journal, persist=True, folder=tmp_path)
    (drop_in,) = tmp_path.glob("90-finwait-*.conf")
    assert drop_in.read_text().splitlines()[-1] == f"{FIN} = 30"


def test_a_value_that_somebody_set_since_is_left_alone_unless_forced(target, journal, tmp_path):
    outcome = apply_plan(planned(target), target, journal)
    sysctl.apply({FIN: "45"}, target)
    with pytest.raises(Refused, match="tcp_fin_timeout is 45"):
        roll_back(outcome.act_id, journal, folder=tmp_path)
    assert now(target) == AFTER | {FIN: "45"}
    roll_back(outcome.act_id, journal, force=True, folder=tmp_path)
    assert now(target) == BEFORE


def test_a_namespace_that_is_gone_is_not_confused_with_a_later_one(journal, tmp_path):
    with Lab() as lab, sysctl.open_target(lab.netns("tuned").fd) as found:
        outcome = apply_plan(planned(found), found, journal)
        inode = found.inode
    until_gone(inode)
    with pytest.raises(Refused, match="is gone"):
        roll_back(outcome.act_id, journal, folder=tmp_path)
    assert len(journal.entries()) == 1
    with Lab() as lab:  # which the kernel likes to give the same number
        lab.netns("later")
        with pytest.raises(Refused, match="is gone"):
            roll_back(outcome.act_id, journal, folder=tmp_path)


def test_a_failure_in_the_middle_leaves_nothing_changed_and_the_journal_says_so(target, journal, tmp_path):
    good = planned(target)
    sysctl.apply({RETRIES: "5"}, target)
    with pytest.raises(KernelError, match="not 0 as when the plan was made"):
        apply_plan(good, target, journal, folder=tmp_path)
    assert now(target) == BEFORE | {RETRIES: "5"}
    assert "error" in journal.entries()[0].result


def test_a_drop_in_that_cannot_be_written_puts_the_values_back(target, journal, tmp_path):
    (tmp_path / "folder").write_text("in the way")
    with pytest.raises(KernelError):
        apply_plan(planned(target), target, journal, persist=True, folder=tmp_path / "folder")
    assert now(target) == BEFORE


@pytest.mark.parametrize("how", ["edited", "removed", "no UTF-8"])
def test_a_file_that_somebody_changed_since_is_left_alone_with_the_values_unless_forced(
    target, journal, tmp_path, how
):
    apply_plan(planned(target, WANTED[:1]), target, journal, persist=True, folder=tmp_path)
    (drop_in,) = tmp_path.glob("*.conf")
    first = drop_in.read_bytes()
    outcome = apply_plan(planned(target), target, journal, persist=True, folder=tmp_path)
    mine = {"edited": b"# mine\n", "no UTF-8": b"# \xff\n", "removed": b""}[how]
    if how == "removed":
        drop_in.unlink()
    else:
        drop_in.write_bytes(drop_in.read_bytes() + mine)
    doing = "removed" if how == "removed" else "edited"
    with pytest.raises(Refused, match=f"somebody has {doing} `.*` since act {outcome.act_id}") as refused:
        roll_back(outcome.act_id, journal, folder=tmp_path)
    assert "--force" in refused.value.hint
    assert now(target) == AFTER
    assert len(journal.entries()) == 2
    undone = roll_back(outcome.act_id, journal, force=True, folder=tmp_path)
    assert now(target) == BEFORE | {FIN: "30"}
    assert drop_in.read_bytes() == first
    kept = journal.get(undone.act_id).before.get("edited", "")
    assert kept.endswith(mine.decode(errors="backslashreplace"))
    assert (f"act {undone.act_id}, what it held" in undone.lines[-1]) == (how != "removed")
    assert journal.get(outcome.act_id).undone_by == undone.act_id


@pytest.mark.parametrize("force", [False, True])
def test_a_file_that_cannot_be_put_back_leaves_the_values_as_the_act_set_them(
    target, journal, tmp_path, force
):
    folder = tmp_path / "d"
    folder.mkdir()
    outcome = apply_plan(planned(target, WANTED[:1]), target, journal, persist=True, folder=folder)
    outcome = apply_plan(planned(target), target, journal, persist=True, folder=folder)
    folder.chmod(0o777)  # where others can write, no file is put
    with pytest.raises(FileRefused, match="others can write"):
        roll_back(outcome.act_id, journal, force=force, folder=folder)
    assert now(target) == AFTER
    assert "error" in journal.entries()[0].result
    folder.chmod(0o755)
    roll_back(outcome.act_id, journal, force=force, folder=folder)
    assert now(target) == BEFORE | {FIN: "30"}


def test_a_file_that_is_no_text_is_not_taken_into_the_journal(target, journal, tmp_path):
    apply_plan(planned(target, WANTED[:1]), target, journal, persist=True, folder=tmp_path)
    (drop_in,) = tmp_path.glob("*.conf")
    drop_in.write_bytes(b"# \xff\n")
    with pytest.raises(Refused, match="is not UTF-8"):
        apply_plan(planned(target), target, journal, persist=True, folder=tmp_path)
    assert now(target) == BEFORE | {FIN: "30"}


def test_a_journal_that_cannot_be_written_means_that_nothing_is_done(target, tmp_path):
    with SqliteJournal(tmp_path / "j"):
        pass
    with SqliteJournal(tmp_path / "j", read_only=True) as journal, pytest.raises(KernelError, match="EROFS"):
        apply_plan(planned(target), target, journal)
    assert now(target) == BEFORE


CHILD = """
import os, pathlib, signal, sys
from finwait.acting.sysctls import apply_plan
from finwait.cli.tune import make_plan
from finwait.kernel import sysctl
from finwait.kernel.journal import SqliteJournal
from finwait.remedy.tuning import parse_assignments

folder, fd, step, *words = sys.argv[1:]
steps = []

def die(what):
    steps.append(what)
    if len(steps) == int(step):
        print(what, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

with sysctl.open_target(int(fd)) as target, SqliteJournal(pathlib.Path(folder) / "journal.sqlite") as journal:
    plan = make_plan(parse_assignments(words), target, {})
    apply_plan(plan, target, journal, persist=True, folder=pathlib.Path(folder), on_step=die)
print("unharmed", len(steps))
"""


def killed_at(step, target, folder):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, folder, str(target.fd), str(step), *WANTED],
        pass_fds=(target.fd,),
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, -9), done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_sigkill_at_any_step_can_be_taken_back(target, tmp_path):
    steps = []
    for step in range(1, 40):
        folder = tmp_path / str(step)
        folder.mkdir()
        told = killed_at(step, target, folder)
        if told.startswith("unharmed"):
            assert int(told.split()[1]) == step - 1
            assert now(target) == AFTER
            break
        steps.append(told)
        with SqliteJournal(folder / "journal.sqlite") as journal:
            (left,) = journal.incomplete()
            assert left.before["sysctl"] == BEFORE
            roll_back(left.id, journal, folder=folder)
        assert now(target) == BEFORE
        assert not list(folder.glob("*.conf"))
    assert steps[0].startswith("recorded")
    assert [s for s in steps if s.startswith("wrote")] == [
        f"wrote {FIN}", f"wrote {RETRIES}", f"wrote {RFC}", "wrote drop-in",
    ]  # fmt: skip


def test_the_article_list_in_a_pod_like_namespace_names_what_cannot_be_set_there(target):
    from finwait.shipped import profiles

    found = make_plan(profiles()["article-production"], target, {"fin-wait2-held": 2})
    blocked = {line.key.rpartition(".")[2] for line in found.blocked}
    assert blocked == {"nf_conntrack_buckets", "nf_conntrack_max"}
    held = [e for line in found.lines for e in line.here if e.rule == "fin-wait2-held"]
    assert held
    assert {str(e.effect) for e in held} <= {"no-effect", "harmful"}


def test_plans_made_elsewhere_are_checked_again_when_applied(target, journal):
    stale = plan(
        parse_assignments(WANTED), {FIN: "61", RETRIES: "0", RFC: "0"}, initial_netns=False, counts={}
    )
    with pytest.raises(KernelError, match="not 61"):
        apply_plan(stale, target, journal)
    assert now(target) == BEFORE
    assert os.path.exists(journal.path)

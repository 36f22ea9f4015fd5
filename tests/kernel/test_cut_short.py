"""kill -9 at every step of every act: it is told at the next start, and what can be put back is put back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from finwait.acting.apply import apply
from finwait.acting.undo import settle
from finwait.errors import KernelError
from finwait.kernel import pidfd, sysctl
from finwait.kernel.journal import SqliteJournal
from finwait.lab.actor import ProgramSocket
from finwait.lab.scenario import scenarios
from finwait.lab.topology import Lab, unmet
from finwait.remedy import plan as plans
from finwait.remedy.steps import step_of
from finwait.report.plan import plan_json
from tests.kernel.acting_pair import Pair, cookie_of, planned, row_of, settled
from tests.kernel.needs import missing, root_and

pytestmark = pytest.mark.kernel
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns", "tool:nft")):
        missing("; ".join(lacking))


CHILD = """
import os, signal, sys
import msgspec
from pathlib import Path
from finwait.acting.apply import apply
from finwait.acting.options import arm
from finwait.acting.probe import probe
from finwait.kernel.journal import SqliteJournal
from finwait.remedy import plan_file
from finwait.remedy.steps import step_of
from finwait.remedy import plan as plans

folder, what, stage = sys.argv[1:]
plan = plan_file.decode(sys.stdin.buffer.read())

def fault(now):
    if now == stage:
        os.kill(os.getpid(), signal.SIGKILL)

with SqliteJournal(Path(folder) / "journal.sqlite") as journal:
    if what == "apply":
        apply(plan, journal, boot_id="", keepalive=(1, 1, 1), fault=fault)
    elif what == "arm":
        arm(plan.steps, journal, {"keepidle": 60, "keepalive": 1}, fault=fault)
    else:
        probe(plan.steps, journal, keepalive=(1, 1, 1), fault=fault)
"""


def killed(folder: Path, what: str, stage: str, plan: plans.Plan) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), what, stage],
        input=plan_json(plan), capture_output=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


LOOKED = (0, 3, 4)
"""Done, done with gaps (a process that nobody may look into here), nothing but what guards keep."""


def command(folder: Path, *words: str, code: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "finwait", *words],
        capture_output=True, text=True, env={**os.environ, "FINWAIT_STATE_DIR": str(folder)},
        stdin=subprocess.DEVNULL, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode in code, done.stdout + done.stderr
    return done


def options_of(conn: ProgramSocket, cookie: int) -> dict[str, int]:
    with pidfd.borrowed(conn.actor.pid, conn.fd, inode=conn.inode, cookie=cookie) as sock:
        return pidfd.get_options(sock)


def bring_to(pair: Pair, means: str) -> str:
    if means in ("destroy", "reset"):
        pair.near.shutdown(pair.ours, "WR")
        return "FIN_WAIT2"
    if means == "fin":
        pair.far.shutdown(pair.theirs, "WR")
        pair.near.read_to_end(pair.ours)
        return "CLOSE_WAIT"
    if means == "user-timeout":
        pair.link.cut()
        pair.near.send(pair.ours, "into the void")
        pair.look(lambda v: int(v.sockets.timer[row_of(v, pair.ours[0])]) == 1)
    return "ESTABLISHED"


STAGES = ("before reading", "journaled", "acted", "verified")
MEANS = ("destroy", "reset", "fin", "keepalive", "user-timeout")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("means", MEANS)
def test_an_apply_that_is_killed_is_told_and_settled(tmp_path: Path, means: str, stage: str) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        state = bring_to(pair, means)
        diagnosis = settled(pair, pair.ours, state)
        cookie = cookie_of(diagnosis.view, pair.ours[0])
        before = options_of(pair.ours[0], cookie)
        killed(tmp_path, "apply", stage, planned(diagnosis, pair.ours, means))
        ends = means in ("destroy", "reset", "fin")
        done = stage in ("acted", "verified")
        if ends:
            expected = "gone" if done and means != "fin" else "LAST_ACK" if done else state
            assert pair.states(pair.ours)[0] in ({expected, "gone"} if done else {state})
        else:
            assert (options_of(pair.ours[0], cookie) == before) == (not done)
        told = command(tmp_path, "clear", "--dry-run", "--netns", str(pair.a.inode), code=LOOKED)
        if stage == "before reading":
            assert "journal" not in told.stderr
            with SqliteJournal(tmp_path / "journal.sqlite") as journal:
                assert journal.entries() == []
            return
        kind = {"destroy": "destroy", "reset": "destroy", "fin": "shutdown"}.get(means, "sockopt")
        assert f"act 1, {kind} of " in told.stderr
        assert "`finwait undo --incomplete`" in told.stderr
        assert "interrupted: `finwait undo 1`" in command(tmp_path, "journal", "--incomplete").stdout
        said = command(tmp_path, "undo", "--yes", "1").stdout
        if ends:
            assert "cannot be reverted" in said
            assert ("its connection is gone" if done else f"still there, in {state}") in said
        else:
            assert "restored" in said
            assert options_of(pair.ours[0], cookie) == before
        told = command(tmp_path, "clear", "--dry-run", "--netns", str(pair.a.inode), code=LOOKED)
        assert "journal" not in told.stderr
        assert command(tmp_path, "journal", "--incomplete").stdout == ""


@pytest.mark.parametrize("stage", ["journaled", "armed"])
@pytest.mark.parametrize("what", ["arm", "probe"])
def test_options_that_a_killed_command_left_behind_are_put_back_in_one_go(
    tmp_path: Path, what: str, stage: str
) -> None:
    with Lab() as lab:
        pair = Pair(lab, 7)
        view = pair.look().view
        cookies = [cookie_of(view, c) for c in pair.ours]
        pair.near.setsockopt(pair.ours[:3], 6, 4, 77)  # TCP_KEEPIDLE of their own
        before = [options_of(c, k) for c, k in zip(pair.ours, cookies, strict=True)]
        steps = tuple(step_of(view, row_of(view, c), "", "keepalive") for c in pair.ours)
        killed(tmp_path, what, stage, plans.Plan(0, "", steps))
        after = [options_of(c, k) for c, k in zip(pair.ours, cookies, strict=True)]
        assert (after == before) == (stage == "journaled")
        told = command(tmp_path, "probe", "dport = :1", "--netns", str(pair.a.inode), code=(1,)).stderr
        assert "7 acts of the journal were interrupted" in told
        assert "… and 2 more" in told
        pair.near.close(pair.ours[:1])  # one connection ends meanwhile
        said = command(tmp_path, "undo", "--yes", "--incomplete").stdout.splitlines()
        assert len(said) == 7
        assert sum("restored" in line and "nothing" not in line for line in said) == 6
        assert "act 1: nothing to restore" in said[-1]
        rest = zip(pair.ours[1:], cookies[1:], strict=True)
        assert [options_of(c, k) for c, k in rest] == before[1:]
        with SqliteJournal(tmp_path / "journal.sqlite") as journal:
            assert journal.incomplete() == []


DELETE = """
import os, signal, sys
from pathlib import Path
from finwait import session
from finwait.acting.entries import delete_entries
from finwait.kernel.journal import SqliteJournal
from finwait.session import Look
from finwait.uapi.observation import LookPlan

folder, stage, *netns = sys.argv[1:]

def fault(now):
    if now == stage:
        os.kill(os.getpid(), signal.SIGKILL)

everything = LookPlan(only=frozenset(map(int, netns)), established_limit=None)
shot = session.look(session.live_machine(), Look(plan=everything))
flows = shot.flows
with SqliteJournal(Path(folder) / "journal.sqlite") as journal:
    delete_entries(flows, range(len(flows)), journal, [{"original": "x"}] * len(flows), fault)
"""


@pytest.mark.parametrize("stage", ["journaled", "acted"])
def test_a_deletion_of_entries_that_is_killed_is_told(tmp_path: Path, stage: str) -> None:
    scenario = scenarios()["nat-zombie"]
    if lacking := unmet(scenario.needs):
        missing("; ".join(lacking))
    with Lab() as lab:
        situation = scenario.build(lab).settle()
        netns = [str(inode) for inode in situation.namespaces.values()]
        done = subprocess.run([sys.executable, "-c", DELETE, str(tmp_path), stage, *netns], cwd=ROOT)
        assert done.returncode == -signal.SIGKILL
        gateway = lab.namespaces["gateway"]
        assert bool(gateway.run("conntrack", "-L", "-p", "tcp").strip()) == (stage == "journaled")
        told = command(
            tmp_path, "arm", "dport = :1", "--keepalive", "60/15/5", "--netns", netns[0], code=(1,)
        )
        assert "conntrack-delete of x: it may have been deleted" in told.stderr
        assert "is unknown" in command(tmp_path, "undo", "--yes", "--incomplete").stdout
        assert command(tmp_path, "journal", "--incomplete").stdout == ""


TUNE = """
import os, pathlib, signal, sys
from finwait.acting.sysctls import apply_plan
from finwait.cli.tune import make_plan
from finwait.kernel import sysctl
from finwait.kernel.journal import SqliteJournal
from finwait.remedy.tuning import parse_assignments

folder, inode, stage = sys.argv[1:]

def die(what):
    if what.startswith(stage):
        os.kill(os.getpid(), signal.SIGKILL)

with sysctl.open_target(f"netns:{inode}") as target, SqliteJournal(pathlib.Path(folder) / "journal.sqlite") as journal:
    plan = make_plan(parse_assignments(["net.ipv4.tcp_fin_timeout=30", "net.ipv4.tcp_rfc1337=1"]), target, {})
    apply_plan(plan, target, journal, on_step=die)
"""


@pytest.mark.parametrize("stage", ["recorded", "wrote net.ipv4.tcp_fin_timeout", "done"])
def test_settings_that_a_killed_tune_left_behind_are_put_back_by_undo(tmp_path: Path, stage: str) -> None:
    with Lab() as lab:
        where = lab.netns("tuned")
        lab.actor(where, "app")
        done = subprocess.run([sys.executable, "-c", TUNE, str(tmp_path), str(where.inode), stage], cwd=ROOT)
        assert done.returncode == -signal.SIGKILL
        told = command(
            tmp_path, "tune", "apply", "net.ipv4.tcp_fin_timeout=60", "--netns", f"netns:{where.inode}"
        )
        assert "settings may still be changed" in told.stderr
        command(tmp_path, "undo", "--yes", "--incomplete")
        with sysctl.open_target(where.fd) as target:
            keys = ["net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_rfc1337"]
            assert dict(sysctl.read(keys, target).values) == dict(zip(keys, ("60", "0"), strict=True))
        assert command(tmp_path, "journal", "--incomplete").stdout == ""


FULL = """
set -e
mount -t tmpfs -o size=256k,mode=700 tmpfs "$1"
export FINWAIT_STATE_DIR="$1"
shift
python="$1"
shift
"$python" -c 'from finwait.kernel.journal import SqliteJournal; SqliteJournal().close()'
dd if=/dev/zero of="$FINWAIT_STATE_DIR/filler" bs=1k count=1000 2>/dev/null || true
exec "$python" -m finwait "$@"
"""


@pytest.mark.parametrize(
    "words", [("clear", "--yes", "--min-age", "0"), ("arm", "--yes", "--user-timeout", "9s"), ("probe",)]
)
def test_a_full_disk_refuses_the_act_before_anything_is_touched(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    root_and("unshare", "mount", "dd")
    with Lab() as lab:
        pair = Pair(lab)
        pair.near.shutdown(pair.ours, "WR")
        diagnosis = settled(pair, pair.ours, "FIN_WAIT2")
        cookie = cookie_of(diagnosis.view, pair.ours[0])
        before = options_of(pair.ours[0], cookie)
        who = ["--netns", str(pair.a.inode), f"sport = :{pair.ours[0].sport}"]
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", FULL, "sh", str(tmp_path), sys.executable, *words, *who],
            capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 1, done.stdout + done.stderr
        assert "ENOSPC" in done.stderr
        assert "nothing was done; free space under" in done.stderr
        assert pair.states(pair.ours + pair.theirs) == ["FIN_WAIT2", "CLOSE_WAIT"]
        assert options_of(pair.ours[0], cookie) == before


class Full:
    """A journal whose disk fills up after the acts were written down."""

    def __init__(self, journal: SqliteJournal) -> None:
        self._journal = journal
        self.record_many, self.claim_many = journal.record_many, journal.claim_many
        self.get, self.is_running, self.open_undos = journal.get, journal.is_running, journal.open_undos

    def complete_many(self, _: object) -> None:
        raise KernelError(28, "write the journal", hint="the act was done, but its result was not recorded")


def test_a_disk_that_fills_up_in_the_middle_leaves_an_act_that_is_told(tmp_path: Path) -> None:
    with Lab() as lab, SqliteJournal(tmp_path / "journal.sqlite") as journal:
        pair = Pair(lab)
        pair.near.shutdown(pair.ours, "WR")
        plan = planned(settled(pair, pair.ours, "FIN_WAIT2"), pair.ours, "destroy")
        with pytest.raises(KernelError, match="ENOSPC"):
            apply(plan, Full(journal), boot_id="")
        (entry,) = journal.entries()
        assert entry.result is None
        assert settle(entry.id, journal) == "its connection is gone"
        assert (
            msgspec.json.encode(journal.get(entry.id).result)
            == b'{"result":"interrupted; its connection is gone"}'
        )

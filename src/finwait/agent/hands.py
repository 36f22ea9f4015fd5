"""How the policy asks the running machine and acts on it: the file, the kill switch, the journal, plans, acts.

There is one way to act: `finwait.acting.apply`, with a plan of `finwait.planning` and the journal. What is added is who
decided (``policy NAME``), by which rule, and what it costs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from finwait import files, planning
from finwait.acting.apply import apply
from finwait.agent.act_memory import ActMemory
from finwait.agent.episodes import Instant
from finwait.agent.option_texts import KILL_SWITCH
from finwait.agent.policing import PolicyMark
from finwait.agent.policy import PastAct, PastResult
from finwait.agent.policy_file import FILE_MOST
from finwait.agent.selected import left_alone, passing, passing_both
from finwait.diagnosis.view import Options
from finwait.errors import FinwaitError, KernelError, Refused
from finwait.kernel.interruption import Stop, stopped_by
from finwait.kernel.journal import SqliteJournal, state_directory
from finwait.remedy.guards import Limits
from finwait.session import Look
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.agent.policy import Chosen, SocketKey
    from finwait.diagnosis.rule import Means
    from finwait.kernel.journal import JournalEntry, Taken
    from finwait.remedy.journal import Act
    from finwait.remedy.outcome import Outcome
    from finwait.remedy.plan import Plan, Step
    from finwait.session import Diagnosis, Machine
    from finwait.uapi.cluster import ClusterNames

__all__ = ["KILL_SWITCH", "LOCK", "RunningHands", "past_act", "read_policy"]

LOCK: Final = "policy.lock"
"""The file beside the journal that an agent holds locked while its policy acts."""
_PAST_MOST: Final = 20_000
WATCH_MS: Final = 5_000
_GENTLE: Final = frozenset({"keepalive", "user-timeout"})


def read_policy(path: str) -> bytes:
    """Return what a policy file holds, if nobody else can have written it.

    Raises:
        FinwaitError: it cannot be read, or somebody else may have written it.
    """
    try:
        return files.read(path, FILE_MOST, own="a policy must be a file of yours that nobody else can write")
    except OSError as error:
        raise FinwaitError(f"could not read the policy `{path}`: the kernel said {error.strerror}") from None


class RunningHands:
    """The running machine.

    Args:
        path: of the policy file.
        machine: what looks are made with.
        boot: id of this boot.
        kill_switch: path of a file; while it is there nothing is done.
        acting: makes signals wait while something is done, and gives the mark that they set.
        options: of the looks.
        answer_ms: as of `Limits`.
        watch_ms: between the two looks of a plan.
        cluster: gives what is known of the cluster that is followed; None where none is.
    """

    def __init__(
        self,
        path: str,
        machine: Machine,
        boot: str,
        *,
        kill_switch: str = KILL_SWITCH,
        acting: Callable[[], contextlib.AbstractContextManager[Stop]] | None = None,
        options: Options | None = None,
        answer_ms: int = planning.ANSWER_MS,
        watch_ms: int = WATCH_MS,
        cluster: Callable[[], ClusterNames] | None = None,
    ) -> None:
        self._cluster = cluster
        self._path = path
        self._machine = machine
        self._boot = boot
        self._kill_switch = kill_switch
        self._acting = acting or (lambda: contextlib.nullcontext(Stop()))
        self._options = options or Options()
        self._answer_ms = answer_ms
        self._watch_ms = watch_ms
        self._memory = ActMemory(boot)

    def read(self) -> bytes:
        """Return what the policy file holds.

        Raises:
            FinwaitError: it cannot be read, or somebody else may have written it.
        """
        return read_policy(self._path)

    def watch(self, kill_switch: str) -> None:
        """Look for the kill switch at another path from now on."""
        self._kill_switch = kill_switch

    def killed(self) -> bool:
        """Return whether the kill switch is there: also where that cannot be told."""
        try:
            os.lstat(self._kill_switch)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (OSError, ValueError):
            return True
        return True

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other agents from acting meanwhile.

        Raises:
            FinwaitError: another one does.
            OSError: the lock cannot be made.
        """
        with files.folder(str(state_directory()), make=True) as folder:
            fd = folder.open(LOCK, os.O_RDWR | os.O_CREAT)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise KernelError(
                    errno.EAGAIN,
                    "lock the journal for the policy",
                    hint="another agent's policy acts with the same journal",
                ) from None
            yield
        finally:
            os.close(fd)

    def past(self) -> list[PastAct]:
        """Return former acts of policies.

        Raises:
            FinwaitError: the journal cannot be read, one of them is damaged, or some that it had lately are missing.
        """
        acts: list[PastAct] = []
        try:
            with SqliteJournal(read_only=True) as journal:
                acts = [past_act(entry) for entry in journal.of_policies(_PAST_MOST)]
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
        return self._memory.read(acts, self.now())

    def now(self) -> Instant:
        """Return the time."""
        return Instant(time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns())

    def _wrote(self, act: Act, mark: PolicyMark) -> None:
        wall_ns = time.time_ns()
        self._memory.wrote(_past(mark, self._boot, wall_ns, str(act.target["means"]), "open"))

    def plan(
        self, choices: Sequence[Chosen], admit: Callable[[Sequence[Sequence[Step]]], Sequence[Step]]
    ) -> Plan:
        """Return a plan for some of these connections.

        Raises:
            FinwaitError: the look failed.
        """
        allowed = Limits(
            max_connections=sum(1 for _ in choices),
            share=max(choice.rule.share for choice in choices),
            min_age_ms=planning.MIN_AGE_MS,
            answer_ms=self._answer_ms,
            own_pid=os.getpid(),
        )
        # As the diagnosis did: one look cannot tell what moves from what is stuck.
        look = Look(options=self._options, watch_ms=self._watch_ms)
        if (cluster := self._cluster) is not None:
            look = replace(look, names=lambda _: (cluster(), ()))
        followed = cluster is not None
        return planning.plan_chosen(
            self._machine, look, lambda made: _wishes(choices, made, followed=followed), admit, allowed
        ).plan

    def act(
        self,
        plan: Plan,
        marks: Mapping[SocketKey, PolicyMark],
        into: dict[int, Outcome],
        may: Callable[[PolicyMark, Instant], bool],
    ) -> bool:
        """Do what a plan says; return whether it came to its end, or was interrupted.

        Raises:
            Refused: the kill switch is there, or ``may`` forbids an act by now.
            FinwaitError: the journal could not be written, or something cannot be done here.
        """
        with SqliteJournal() as journal, self._acting() as mark:
            try:
                with stopped_by(mark):
                    marked = _MarkedJournal(journal, marks, self._refusal(may), self._wrote, self.now)
                    apply(plan, marked, boot_id=self._boot, into=into)
            except KeyboardInterrupt:
                return False
        return True

    def _refusal(
        self, may: Callable[[PolicyMark, Instant], bool]
    ) -> Callable[[Sequence[PolicyMark], Instant], Refused | None]:
        def refusal(marks: Sequence[PolicyMark], now: Instant) -> Refused | None:
            if self.killed():
                return Refused("kill-switch", "the kill switch is there; nothing was done")
            if not all(may(mark, now) for mark in marks):
                return Refused("window", "the window has closed; nothing was done")
            return None

        return refusal


def _wishes(
    choices: Sequence[Chosen], made: Diagnosis, *, followed: bool = False
) -> dict[int, Sequence[Means]]:
    """Return the rows that are still what was chosen, and the means that are left for each.

    What is excepted at either end is none of them, whichever end a step is done at; nor is what is left alone in a
    cluster that is followed.
    """
    s = made.view.sockets
    chosen = {choice.standing.key: choice for choice in choices}
    rows: dict[int, Chosen] = {}
    for finding in made.findings:
        if not finding.primary or finding.confidence.level != "certain" or finding.severity == "healthy":
            continue
        for row in finding.rows.tolist():
            choice = chosen.get((int(s.netns[row]), int(s.cookie[row])))
            if (
                choice is not None
                and finding.rule == choice.standing.finding
                and int(s.state[row]) == choice.standing.state
                and tcp.CLOSING_STATES >> int(s.state[row]) & 1
            ):
                rows[row] = choice
    if followed and rows:
        spared = left_alone(made, time.time()).values()
        rows = {row: choice for row, choice in rows.items() if not any(alone[row] for alone in spared)}
    for rule in {choice.rule.name: choice.rule for choice in rows.values()}.values():
        passed = passing(rule.where_filters, made) & passing_both(rule.spared, made)
        rows = {row: c for row, c in rows.items() if c.rule.name != rule.name or passed[row]}
    return {row: choice.means for row, choice in rows.items()}


class _MarkedJournal:
    """The journal, with who decided added to each act, and when it is written down.

    It is asked whether an act may be done before it is written down and after: others may write, too, and be waited
    for. What may not be done any more then gets its result at once.
    """

    def __init__(
        self,
        journal: SqliteJournal,
        marks: Mapping[SocketKey, PolicyMark],
        refusal: Callable[[Sequence[PolicyMark], Instant], Refused | None],
        wrote: Callable[[Act, PolicyMark], None],
        clock: Callable[[], Instant],
    ) -> None:
        self._journal = journal
        self._marks = marks
        self._refusal = refusal
        self._wrote = wrote
        self._clock = clock

    def _marked(self, acts: Sequence[Act]) -> tuple[list[PolicyMark], list[Act]]:
        """Return what is written down of acts, now.

        Raises:
            Refused: one may not be done.
        """
        now = self._clock()
        marks = [self._marks[int(act.target["netns"]), int(act.target["cookie"], 16)] for act in acts]
        if (refused := self._refusal(marks, now)) is not None:
            raise refused
        marks = [replace(mark, boot_ns=now.boot_ns) for mark in marks]
        marked = [
            replace(
                act,
                target={**act.target, "policy": msgspec.to_builtins(mark)},
                decided_by=mark.name,
                why=f"{act.why} (rule {mark.rule})",
            )
            for act, mark in zip(acts, marks, strict=True)
        ]
        return marks, marked

    def _ask_again(self, numbers: Sequence[int], marks: Sequence[PolicyMark]) -> None:
        if numbers and (refused := self._refusal(marks, self._clock())) is not None:
            result = {"result": "left before", "refused": True, "detail": refused.reason}
            self._journal.complete_many(dict.fromkeys(numbers, result))
            raise refused

    def record_many(self, acts: Sequence[Act]) -> list[int]:
        """Write acts down before they are done; return their numbers."""
        marks, marked = self._marked(acts)
        numbers = self._journal.record_many(marked)
        for act, mark in zip(acts, marks, strict=True):
            self._wrote(act, mark)
        self._ask_again(numbers, marks)
        return numbers

    def claim_many(self, acts: Sequence[Act], *, besides: int | None = None) -> list[int | Taken]:
        """Write acts on options of sockets down, each only if its socket is free."""
        marks, marked = self._marked(acts)
        claims = self._journal.claim_many(marked, besides=besides)
        for act, mark, claim in zip(acts, marks, claims, strict=True):
            if isinstance(claim, int):
                self._wrote(act, mark)
        self._ask_again([claim for claim in claims if isinstance(claim, int)], marks)
        return claims

    def complete_many(self, results: Mapping[int, Mapping[str, Any]]) -> None:
        """Write down what came of acts."""
        self._journal.complete_many(results)

    def get(self, act_id: int) -> JournalEntry:
        """Return an act; ValueError if there is none."""
        return self._journal.get(act_id)

    def open_undos(self, act_id: int) -> list[JournalEntry]:
        """Return the acts that began to take an act back and have no result."""
        return self._journal.open_undos(act_id)

    def is_running(self, entry: JournalEntry) -> bool:
        """Return whether the process that does it is still there."""
        return self._journal.is_running(entry)


class _Target(msgspec.Struct, frozen=True):
    """What is read of the target of an act."""

    means: str
    policy: PolicyMark


def past_act(entry: JournalEntry) -> PastAct:
    """Return an act of the journal that a policy decided.

    Raises:
        FinwaitError: it says what finwait would not have written.
    """
    try:
        target = msgspec.convert(dict(entry.target), _Target)
        result = _past_result(entry, target.means)
        return _past(target.policy, entry.boot_id, entry.started_ns, target.means, result)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise FinwaitError(f"act {entry.id} of the journal is damaged: {str(error)[:200]}") from None


def _past(mark: PolicyMark, boot: str, wall_ns: int, means: str, result: PastResult) -> PastAct:
    return PastAct(
        rule=mark.rule,
        boot=boot,
        at=Instant(mark.boot_ns, wall_ns),
        netns=mark.subject[0],
        cookie=int(mark.subject[1], 16),
        workload=mark.workload,
        pod=mark.pod,
        processes=mark.processes,
        reached=mark.reached,
        means=means,
        finding=mark.finding,
        result=result,
    )


def _past_result(entry: JournalEntry, means: str) -> PastResult:
    result = entry.result
    if result is None:
        return "open"
    if result.get("refused"):
        return "nothing"
    if means not in _GENTLE and (
        result.get("restored") or result.get("result") in ("left before", "changed meanwhile")
    ):
        return "nothing"
    if result.get("error"):
        return "unexpected"
    return "unexpected" if means not in _GENTLE and result.get("result") == "still there" else "expected"

"""Acts: a reviewed plan → the journal → the act → a look at what came of it.

*Theory of operation.* Everything that a plan rests on is read again, by cookie, immediately before: a
connection that left is no error, one that moved on (another state, more bytes) is left alone. Then every act is
written to the journal, durably, and only then done. Afterwards the connections are read once more, at both ends
where both are here, and the journal learns what came of each. A process that dies in between leaves entries
without a result, which `finwait journal` shows and `finwait undo` can take back where there is something to
take back.

*What cannot be taken back.* A FIN or a RST that was sent. Socket options can.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from finwait.errors import FinwaitError, KernelError, Refused, TargetGone
from finwait.kernel import netns as ns_edge
from finwait.kernel import pidfd, procfs
from finwait.kernel.destroy import GONE, Target, destroy
from finwait.kernel.netlink import NETLINK_NETFILTER, netlink_socket, request
from finwait.kernel.observe import Machine
from finwait.remedy.journal import Act
from finwait.remedy.plan import Plan, Step
from finwait.table import decode
from finwait.table.flows import FlowTable
from finwait.table.sockets import SocketTable, pack_address
from finwait.uapi import conntrack, inet_diag, tcp
from finwait.uapi import observation as obs

__all__ = ["Outcome", "Probe", "apply", "arm", "delete_entries", "probe", "restore"]

Result = Literal["ended", "left before", "changed meanwhile", "set", "still there", "failed"]
_SETTLE_S: Final = 3.0

Say = Callable[[str], None]


class Journal(Protocol):
    """What is asked of the journal; `finwait.kernel.journal.SqliteJournal` has it."""

    def record_many(self, acts: Sequence[Act]) -> list[int]: ...
    def complete_many(self, results: Mapping[int, Mapping[str, Any]]) -> None: ...
    def get(self, act_id: int) -> Any: ...  # noqa: ANN401 - a JournalEntry


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one step."""

    step: Step
    result: Result
    detail: str = ""
    act_id: int = 0


def _quiet(_: str) -> None:
    return


def _reread(netns: Iterable[int]) -> SocketTable:
    """Read the sockets of some namespaces again: all states, no owners, no files."""
    plan = obs.Plan(
        extensions=inet_diag.extension_mask(inet_diag.INFO), only=frozenset(netns), conntrack=False, files=False,
        descriptors=False, established_limit=None,
    )  # fmt: skip
    return decode.sockets(Machine().observe(plan))


def _rows_by_cookie(table: SocketTable) -> dict[tuple[int, int], int]:
    return {
        (n, c): k for k, (n, c) in enumerate(zip(table.netns.tolist(), table.cookie.tolist(), strict=True))
    }


def _namespaces(which: Iterable[int]) -> list[ns_edge.NetNamespace]:
    wanted = set(which)
    return [n for n in ns_edge.discover(procfs.descriptors()[1])[0] if n.inode in wanted]


def _address(step: Step, text: str) -> bytes:
    high, low = pack_address(text)
    if step.family == inet_diag.AF_INET:
        return (low & 0xFFFFFFFF).to_bytes(4, "big")
    return high.to_bytes(8, "big") + low.to_bytes(8, "big")


def _target(step: Step) -> Target:
    identity = inet_diag.SocketId(
        step.sport, step.dport, _address(step, step.src), _address(step, step.dst), 0, int(step.cookie, 16)
    )
    return Target(step.netns, step.family, step.protocol, identity)


def _identity(step: Step) -> dict[str, Any]:
    return {
        "netns": step.netns,
        "cookie": step.cookie,
        "inode": step.inode,
        "connection": f"{step.src}:{step.sport} {step.dst}:{step.dport}",
        "state": step.state,
        "holders": [[pid, fd, comm] for pid, fd, comm in step.holders],
    }


_KIND: Final = {"destroy": "destroy", "fin": "shutdown", "keepalive": "sockopt", "user-timeout": "sockopt"}


def apply(
    plan: Plan,
    journal: Journal,
    *,
    boot_id: str,
    rate: float = 0.0,
    keepalive: tuple[int, int, int] = (1, 1, 3),
    user_timeout_ms: int = 30_000,
    fault: Callable[[str], None] = _quiet,
    say: Say = _quiet,
) -> list[Outcome]:
    """Do what a plan says, connection by connection, and say what came of each.

    Args:
        plan: a plan of `finwait.remedy.plan.make`, perhaps read from a file.
        journal: where acts are written down before they are done.
        boot_id: of this machine now; cookies mean nothing on another boot.
        rate: at most so many connections destroyed a second; 0 for no limit.
        keepalive: idle, interval (seconds) and count for steps of that means.
        user_timeout_ms: for steps of that means.
        fault: called with the name of each stage; a test's way to stop in the middle.
        say: told what is being done.

    Raises:
        Refused: the plan was made on another boot.
        KernelError: the journal could not be written; nothing was done.
        NotSupported: the kernel cannot destroy connections; nothing was done.
        PermissionNeeded: we may not; nothing was done.
    """
    if plan.boot_id and boot_id and plan.boot_id != boot_id:
        raise Refused("boot", "the plan was made before this machine was started: its connections are gone")
    say("reading the connections again")
    fault("before reading")
    now = _reread({s.netns for s in plan.steps})
    rows = _rows_by_cookie(now)
    outcomes: dict[int, Outcome] = {}
    todo: list[int] = []
    for k, step in enumerate(plan.steps):
        row = rows.get((step.netns, int(step.cookie, 16)))
        if row is None:
            outcomes[k] = Outcome(step, "left before", "it was gone when it was looked for again")
        elif (changed := _changed(step, now, row)) is not None:
            outcomes[k] = Outcome(step, "changed meanwhile", changed)
        else:
            todo.append(k)
    if todo:
        _do(plan, todo, journal, outcomes, rate, keepalive, user_timeout_ms, fault, say)
    return [outcomes[k] for k in range(len(plan.steps))]


def _changed(step: Step, now: SocketTable, row: int) -> str | None:
    state = tcp.STATES.get(int(now.state[row]), "?")
    if state == "LISTEN":
        return "it is a listener"
    if state != step.state:
        return f"it is in {state} now, not in {step.state}"
    received, acked = int(now.bytes_received[row]), int(now.bytes_acked[row])
    if now.present("bytes_received")[row] and (received, acked) != (step.bytes_received, step.bytes_acked):
        return "bytes moved since the plan was made"
    return None


def _do(
    plan: Plan,
    todo: Sequence[int],
    journal: Journal,
    outcomes: dict[int, Outcome],
    rate: float,
    keepalive: tuple[int, int, int],
    user_timeout_ms: int,
    fault: Callable[[str], None],
    say: Say,
) -> None:
    steps = {k: plan.steps[k] for k in todo}
    values = {
        "keepalive": {
            "keepidle": keepalive[0],
            "keepintvl": keepalive[1],
            "keepcnt": keepalive[2],
            "keepalive": 1,
        },
        "user-timeout": {"user_timeout_ms": user_timeout_ms},
    }
    before: dict[int, dict[str, int]] = {}
    for k in todo:
        step = steps[k]
        if step.means in values:
            try:
                with _borrow(step) as sock:
                    before[k] = pidfd.get_options(sock)
            except FinwaitError as error:
                outcomes[k] = _failed(step, error)
    todo = [k for k in todo if k not in outcomes]
    acts = [
        Act(
            kind=_KIND[steps[k].means],  # type: ignore[arg-type]
            target=_identity(steps[k]),
            before={"options": {n: before[k][n] for n in values[steps[k].means]}} if k in before else {},
            after={"options": values[steps[k].means]} if k in before else {},
            why=steps[k].rule,
        )
        for k in todo
    ]
    say("writing the journal")
    ids = dict(zip(todo, journal.record_many(acts), strict=True))
    fault("journaled")
    errors: dict[int, FinwaitError | int] = {}
    try:
        for k in todo:
            if steps[k].means != "destroy":
                try:
                    _through_descriptor(steps[k], values)
                except FinwaitError as error:
                    errors[k] = error
        # The gentle means first: a RST on one leg may make its program close the other by itself.
        _destroy([k for k in todo if steps[k].means == "destroy"], steps, rate, errors)
    except FinwaitError as error:
        # Nothing (more) was done: every act that has no result yet failed for this reason.
        journal.complete_many({ids[k]: {"error": str(error)} for k in todo})
        raise
    fault("acted")
    say("looking at what came of it")
    wait = _SETTLE_S
    if any(steps[k].means == "keepalive" for k in todo):
        wait = keepalive[0] + keepalive[1] * keepalive[2] + 2.0
    left = _wait_gone([steps[k] for k in todo if k not in errors and steps[k].means != "user-timeout"], wait)
    for k in todo:
        outcomes[k] = _outcome(steps[k], errors.get(k), left, ids[k])
    _put_back(
        [k for k in todo if steps[k].means == "keepalive" and outcomes[k].result == "still there"],
        steps,
        before,
    )
    fault("verified")
    journal.complete_many({ids[k]: _journaled(outcomes[k]) for k in todo})


def _journaled(o: Outcome) -> dict[str, str]:
    return {"error": o.detail} if o.result == "failed" else {"result": o.result, "detail": o.detail}


def _borrow(step: Step) -> Any:  # noqa: ANN401 - a context manager of a socket
    if not step.holders:
        raise TargetGone(int(step.cookie, 16), "no process holds it")
    pid, fd, _ = step.holders[0]
    return pidfd.borrowed(pid, fd, inode=step.inode, cookie=int(step.cookie, 16))


def _through_descriptor(step: Step, values: Mapping[str, dict[str, int]]) -> None:
    import socket as sockets

    with _borrow(step) as sock:
        if step.means == "fin":
            try:
                sock.shutdown(sockets.SHUT_RDWR)
            except OSError as error:
                raise KernelError(error.errno or 0, "shut the connection down") from None
        else:
            pidfd.set_options(sock, values[step.means])


def _destroy(
    mine: Sequence[int], steps: Mapping[int, Step], rate: float, errors: dict[int, FinwaitError | int]
) -> None:
    if not mine:
        return
    spaces = _namespaces({steps[k].netns for k in mine})
    results, gaps = destroy(spaces, [_target(steps[k]) for k in mine], rate=rate)
    for n, k in enumerate(mine):
        code = results.get(n)
        if code is None:
            where = next((str(g) for g in gaps if str(steps[k].netns) in g.where), "its namespace is gone")
            errors[k] = FinwaitError(where)
        elif code == GONE:
            errors[k] = TargetGone(int(steps[k].cookie, 16))
        elif code:
            errors[k] = KernelError(code, "destroy it", netns=steps[k].netns)


def _wait_gone(steps: Sequence[Step], wait_s: float) -> dict[str, str]:
    """Wait until connections are gone, for a while; return cookie → state of those that are not.

    LAST_ACK and TIME_WAIT are on their way out: the connection is over for both programs.
    """
    if not steps:
        return {}
    end = time.monotonic() + wait_s
    netns = {s.netns for s in steps}
    while True:
        table = _reread(netns)
        rows = _rows_by_cookie(table)
        left = {}
        for step in steps:
            row = rows.get((step.netns, int(step.cookie, 16)))
            state = tcp.STATES.get(int(table.state[row]), "?") if row is not None else ""
            if row is not None and state not in ("TIME_WAIT", "CLOSE"):
                left[step.cookie] = state
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.05)


def _outcome(step: Step, error: FinwaitError | int | None, left: Mapping[str, str], act_id: int) -> Outcome:
    if isinstance(error, TargetGone):
        return Outcome(step, "left before", str(error), act_id)
    if isinstance(error, FinwaitError):
        return Outcome(step, "failed", f"{error}" + (f" ({error.hint})" if error.hint else ""), act_id)
    if step.means == "user-timeout":
        return Outcome(step, "set", "it ends when nothing is acknowledged for the time set", act_id)
    state = left.get(step.cookie)
    if state is None:
        return Outcome(step, "ended", step.stays, act_id)
    if step.means == "fin":
        told = f"the FIN is out; it is in {state} until the peer acknowledges it"
        return Outcome(step, "ended" if state == "LAST_ACK" else "still there", told, act_id)
    if step.means == "keepalive":
        return Outcome(
            step, "still there", "its peer answered every probe: it lives; the options are put back", act_id
        )
    return Outcome(step, "still there", f"it is in {state}", act_id)


def _failed(step: Step, error: FinwaitError) -> Outcome:
    if isinstance(error, TargetGone):
        return Outcome(step, "left before", str(error))
    return Outcome(step, "failed", f"{error}" + (f" ({error.hint})" if error.hint else ""))


def _put_back(mine: Sequence[int], steps: Mapping[int, Step], before: Mapping[int, dict[str, int]]) -> None:
    for k in mine:
        try:
            with _borrow(steps[k]) as sock:
                pidfd.set_options(sock, before[k])
        except FinwaitError:  # it ended after all
            continue


# ── probing ──────────────────────────────────────────────────────────────────────────────────────────────

Verdict = Literal["alive", "reset", "dead", "not judged", "gone"]


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe of one connection found out."""

    step: Step
    verdict: Verdict
    detail: str = ""


def probe(
    steps: Sequence[Step],
    journal: Journal,
    *,
    keepalive: tuple[int, int, int] = (1, 1, 3),
    fault: Callable[[str], None] = _quiet,
    say: Say = _quiet,
) -> list[Probe]:
    """Ask connections whether their peers live, and leave every option as it was.

    A keepalive is armed through a borrowed descriptor, its outcome watched by sock_diag, and the options are
    put back also when this is interrupted; what a SIGKILL leaves behind, `restore` puts back by the journal.

    Raises:
        KernelError: the journal could not be written; nothing was done.
    """
    found: dict[int, Probe] = {}
    before: dict[int, dict[str, int]] = {}
    for k, step in enumerate(steps):
        try:
            with _borrow(step) as sock:
                before[k] = pidfd.get_options(sock)
        except TargetGone as error:
            found[k] = Probe(step, "gone", str(error))
        except FinwaitError as error:
            found[k] = Probe(step, "not judged", f"{error}")
    idle, interval, count = keepalive
    wanted = {"keepidle": idle, "keepintvl": interval, "keepcnt": count, "user_timeout_ms": 0, "keepalive": 1}
    armed = sorted(before)
    ids = dict(
        zip(
            armed,
            journal.record_many(
                [
                    Act("sockopt", _identity(steps[k]), {"options": before[k]}, {"options": wanted}, "probe")
                    for k in armed
                ]
            ),
            strict=True,
        )
    )
    fault("journaled")
    try:
        for k in list(armed):
            try:
                with _borrow(steps[k]) as sock:
                    pidfd.set_options(sock, wanted)
            except FinwaitError as error:
                found[k] = Probe(
                    steps[k], "gone" if isinstance(error, TargetGone) else "not judged", str(error)
                )
        fault("armed")
        say(f"probing {len(armed)} connections for up to {idle + interval * count + 1} s")
        _watch({k: steps[k] for k in armed if k not in found}, found, idle, idle + interval * count + 1.0)
    finally:
        for k in armed:
            try:
                with _borrow(steps[k]) as sock:
                    pidfd.set_options(sock, before[k])
            except FinwaitError:  # it ended: there is nothing to put back
                continue
        journal.complete_many(
            {
                ids[k]: {"result": found[k].verdict if k in found else "interrupted", "restored": True}
                for k in armed
            }
        )
    return [found[k] for k in range(len(steps))]


def _watch(steps: Mapping[int, Step], found: dict[int, Probe], idle_s: float, wait_s: float) -> None:
    """Poll until each connection is judged: an answer, a row that vanished, or data in flight."""
    begun = time.monotonic()
    probes: dict[int, int] = dict.fromkeys(steps, 0)
    netns = {s.netns for s in steps.values()}
    open_ = dict(steps)
    while open_:
        time.sleep(0.05)
        elapsed = time.monotonic() - begun
        table = _reread(netns)
        rows = _rows_by_cookie(table)
        for k, step in list(open_.items()):
            row = rows.get((step.netns, int(step.cookie, 16)))
            if row is None:
                if probes[k] >= 1:
                    found[k] = Probe(
                        step, "dead", f"{probes[k] + 1} probes went unanswered; the kernel ended it"
                    )
                else:
                    found[k] = Probe(
                        step, "reset", "the first probe was answered by a RST: the peer's socket is gone"
                    )
                del open_[k]
                continue
            if int(table.timer[row]) in (1, 4):
                found[k] = Probe(step, "not judged", "data is in flight: keepalive does not run then")
                del open_[k]
                continue
            if int(table.timer[row]) == 2:
                probes[k] = max(probes[k], int(table.retrans[row]))
            heard = int(table.last_ack_recv_ms[row]) / 1000
            # Something acceptable arrived after the probe could have been sent.
            if probes[k] == 0 and elapsed > idle_s and heard < elapsed - idle_s + 0.1:
                found[k] = Probe(step, "alive", "the peer acknowledged the probe")
                del open_[k]
        if elapsed > wait_s and open_:
            for k, step in open_.items():
                found[k] = Probe(step, "not judged", f"{probes[k]} probes sent, no verdict in {wait_s:.0f} s")
            return


def arm(
    steps: Sequence[Step],
    journal: Journal,
    values: Mapping[str, int],
    *,
    say: Say = _quiet,
) -> list[Outcome]:
    """Give live sockets of running programs options that they lack, for good.

    Args:
        steps: the connections, as a plan names them.
        journal: keeps the old values, so that `restore` can put them back.
        values: names of `finwait.kernel.pidfd.KEEPALIVE_OPTIONS`.
        say: told what is being done.

    Raises:
        KernelError: the journal could not be written; nothing was done.
    """
    outcomes: dict[int, Outcome] = {}
    before: dict[int, dict[str, int]] = {}
    for k, step in enumerate(steps):
        try:
            with _borrow(step) as sock:
                before[k] = pidfd.get_options(sock)
        except FinwaitError as error:
            outcomes[k] = _failed(step, error)
    todo = sorted(before)
    acts = [
        Act(
            "sockopt",
            _identity(steps[k]),
            {"options": {n: before[k][n] for n in values}},
            {"options": dict(values)},
            "arm",
        )
        for k in todo
    ]
    ids = dict(zip(todo, journal.record_many(acts), strict=True))
    say(f"setting options of {len(todo)} connections")
    for k in todo:
        try:
            with _borrow(steps[k]) as sock:
                pidfd.set_options(sock, dict(values))
                now = pidfd.get_options(sock)
            wrong = {n: now[n] for n, v in values.items() if now[n] != v}
            detail = ", ".join(f"{n} {before[k][n]} → {v}" for n, v in values.items())
            outcomes[k] = (
                Outcome(steps[k], "failed", f"the kernel took {wrong}", ids[k]) if wrong
                else Outcome(steps[k], "set", detail, ids[k])
            )  # fmt: skip
        except FinwaitError as error:
            one = _failed(steps[k], error)
            outcomes[k] = Outcome(one.step, one.result, one.detail, ids[k])
    journal.complete_many(
        {
            ids[k]: {"error": outcomes[k].detail}
            if outcomes[k].result == "failed"
            else {"result": outcomes[k].result}
            for k in todo
        }
    )
    return [outcomes[k] for k in range(len(steps))]


def restore(act_id: int, journal: Journal) -> str:
    """Put socket options back as an act found them; return what was done, in words.

    Raises:
        ValueError: there is no such act.
        Refused: it cannot be taken back, or was already.
        TargetGone: the connection has ended; there is nothing to put back.
        KernelError: the options could not be set.
    """
    entry = journal.get(act_id)
    if entry.undone_by is not None:
        raise Refused("undone", f"act {act_id} was taken back already, by act {entry.undone_by}")
    if entry.kind != "sockopt":
        sent = {"destroy": "a RST was sent", "shutdown": "a FIN was sent"}.get(
            entry.kind, f"it is a {entry.kind}"
        )
        raise Refused("irreversible", f"act {act_id} cannot be taken back: {sent}")
    options = {name: int(value) for name, value in entry.before["options"].items()}
    target = entry.target
    cookie, inode = int(target["cookie"], 16), int(target["inode"])
    undo = Act(
        "sockopt", dict(target), dict(entry.after), {"options": options}, f"undo {act_id}", undoes=act_id
    )
    (undo_id,) = journal.record_many([undo])
    last: FinwaitError = TargetGone(cookie, "no process holds it")
    for pid, fd, comm in target["holders"]:
        try:
            with pidfd.borrowed(int(pid), int(fd), inode=inode, cookie=cookie) as sock:
                pidfd.set_options(sock, options)
        except TargetGone as error:
            last = error
            continue
        except FinwaitError as error:
            journal.complete_many({undo_id: {"error": str(error)}})
            raise
        journal.complete_many({undo_id: {"result": "restored"}})
        return f"put back {', '.join(f'{n}={v}' for n, v in options.items())} in {comm} (pid {pid}, fd {fd})"
    journal.complete_many({undo_id: {"error": str(last)}})
    raise last


# ── connection tracking ──────────────────────────────────────────────────────────────────────────────────


def delete_entries(
    flows: FlowTable, which: Sequence[int], journal: Journal, described: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Delete tracking entries, each by tuple, zone and id, in its namespace; say of each what came of it.

    The id is checked by the kernel: an entry that took over the tuple is not hit.

    Raises:
        KernelError: the journal could not be written; nothing was done.
    """
    acts = [Act("conntrack-delete", dict(one), dict(one), {}, "conntrack --delete") for one in described]
    ids = journal.record_many(acts)
    results = ["failed: its namespace could not be entered"] * len(which)
    by_ns: dict[int, list[int]] = {}
    for k, row in enumerate(which):
        by_ns.setdefault(int(flows.netns[row]), []).append(k)

    def inside(ns: ns_edge.NetNamespace) -> None:
        with netlink_socket(NETLINK_NETFILTER, "open a conntrack socket") as sock:
            for k in by_ns[ns.inode]:
                results[k] = _delete_entry(sock, flows, which[k])

    ns_edge.visit(_namespaces(by_ns), inside)
    journal.complete_many(
        {
            act: {"result": said} if said in ("deleted", "gone before") else {"error": said}
            for act, said in zip(ids, results, strict=True)
        }
    )
    return results


def _delete_entry(sock: Any, flows: FlowTable, row: int) -> str:  # noqa: ANN401 - socket.socket
    family = int(flows.family[row])
    ends = []
    for name in ("orig_src", "orig_dst"):
        high, low = (int(x) for x in flows[name][row])
        ends.append(
            (low & 0xFFFFFFFF).to_bytes(4, "big")
            if family == inet_diag.AF_INET
            else high.to_bytes(8, "big") + low.to_bytes(8, "big")
        )
    original = conntrack.FlowTuple(
        family,
        int(flows.protocol[row]),
        ends[0],
        ends[1],
        int(flows.orig_sport[row]),
        int(flows.orig_dport[row]),
    )
    zone = int(flows.zone[row]) if flows.present("zone")[row] else None
    message = conntrack.entry_request(conntrack.CT_DELETE, original, zone=zone, identity=int(flows.id[row]))
    try:
        request(sock, message, "delete a conntrack entry")
    except KernelError as error:
        return "gone before" if error.errno == errno.ENOENT else f"failed: {error}"
    return "deleted"

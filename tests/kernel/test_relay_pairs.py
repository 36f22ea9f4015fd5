"""Relay pairs: which leg is the other one, as the kernel's counters tell it; and both are ended, or none."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from finwait import session
from finwait.acting.apply import apply
from finwait.diagnosis.view import View
from finwait.kernel.journal import SqliteJournal
from finwait.lab.actor import ProgramSocket, meet
from finwait.lab.topology import Lab, unmet
from finwait.remedy import making
from finwait.remedy.guards import Limits
from finwait.remedy.plan import Plan
from finwait.session import Look
from finwait.uapi.observation import LookPlan
from tests.kernel.acting_pair import row_of, state_of
from tests.kernel.needs import missing
from tests.kernel.test_clear_command import Command

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns",)):
        missing("; ".join(lacking))


class Relayed:
    """A relay that has passed on the FINs of its clients, and a backend that does not answer."""

    def __init__(
        self,
        lab: Lab,
        sent: list[int],
        *,
        answered: list[int] | None = None,
        backwards: bool = False,
        header: int = 0,
        probes: bool = True,
    ) -> None:
        """Build it.

        Args:
            lab: where.
            sent: bytes of each client.
            answered: … and of the backend to each.
            backwards: pass FINs on in reverse.
            header: bytes that the relay puts before what it passes on.
            probes: switch keepalive on, so that ages are hidden.
        """
        outside, node, inside = lab.netns("client"), lab.netns("node"), lab.netns("backend")
        front, back = lab.link(outside, node), lab.link(node, inside)
        self.spaces = frozenset({node.inode})
        self.client, self.relay = lab.actor(outside, "client"), lab.actor(node, "relay")
        self.backend = lab.actor(inside, "backend")
        n = len(sent)
        door, target = self.relay.listen(front.b4, 80), self.backend.listen(back.b4, 8080)
        self.clients, self.fronts = meet(self.client, front.b4, self.relay, door, n)
        self.backs, self.far = meet(self.relay, back.b4, self.backend, target, n)
        for k in range(n):
            for here, conn, there, end in (
                (self.client, self.clients[k], self.relay, self.fronts[k]),
                (self.relay, self.backs[k], self.backend, self.far[k]),
            ):
                size = sent[k] + (header if here is self.relay else 0)
                here.send([conn], "x" * size)
                there.recv([end], size)
                if answered:
                    there.send([end], "y" * answered[k])
                    here.recv([conn], answered[k])
        # How soon a FIN is passed on depends on how busy the machine is: keepalive hides the ages, and bytes decide.
        if probes:
            self.relay.setsockopt([*self.fronts, *self.backs], socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.client.shutdown(self.clients, "WR")
        self.relay.read_to_end(self.fronts)
        self.relay.shutdown(self.backs[::-1] if backwards else self.backs, "WR")
        self.backend.read_to_end(self.far)

    def look(self, until: Callable[[View], bool] | None = None) -> session.Diagnosis:
        """Look until all legs are in the states of pairs; or until something else."""
        end = time.monotonic() + 20
        while True:
            found = session.diagnose(how=Look(plan=LookPlan(only=self.spaces, established_limit=None)))
            if (until or self.stuck)(found.view) or time.monotonic() > end:
                return found
            time.sleep(0.02)

    def stuck(self, view: View) -> bool:
        return [state_of(view, c) for c in (*self.fronts, *self.backs)] == self.states_stuck

    @property
    def states_stuck(self) -> list[str]:
        return ["CLOSE_WAIT"] * len(self.fronts) + ["FIN_WAIT2"] * len(self.backs)

    def states(self) -> list[str]:
        view = self.look(lambda _: True).view
        return [state_of(view, c) for c in (*self.fronts, *self.backs)]

    def plan(self, legs: list[ProgramSocket]) -> Plan:
        """Plan for some legs."""
        found = self.look()
        rows = np.zeros(len(found.view), np.bool_)
        rows[[row_of(found.view, leg) for leg in legs]] = True
        return making.make(found.view, found.findings, rows, Limits(share=1.0))


def explained(command: Command, *words: str) -> str:
    """What `explain` prints; the gaps at its end are longer than a line."""
    words = (sys.executable, "-m", "finwait", "explain", *words)
    return subprocess.run(words, capture_output=True, text=True, env=command.environment, check=False).stdout


@pytest.mark.parametrize(
    ("sent", "answered"),
    [([10, 400, 90, 7], None), ([5, 5, 5, 5], [30, 20, 900, 3])],
    ids=["by what came in", "by what came back"],
)
def test_bytes_tell_which_leg_is_the_other_one(sent: list[int], answered: list[int] | None) -> None:
    """They half-close at once, and their FINs are passed on in another order."""
    with Lab() as lab:
        relayed = Relayed(lab, sent, answered=answered, backwards=True)
        view = relayed.look().view
        for front, back in zip(relayed.fronts, relayed.backs, strict=True):
            assert view.relay_legs.candidates(row_of(view, front)).tolist() == [row_of(view, back)]
            assert view.relay_legs.candidates(row_of(view, back)).tolist() == [row_of(view, front)]


def test_of_legs_that_nothing_tells_apart_no_partner_is_named(tmp_path: Path) -> None:
    with Lab() as lab:
        relayed, command = Relayed(lab, [1] * 6, backwards=True), Command(lab, tmp_path)
        relayed.look()
        words = (f"dport = :{relayed.clients[0].sport} and state close-wait", *command.where)
        text = " ".join(explained(command, *words).split())
        assert "other leg one of 6" in text
        for back in relayed.backs:
            assert f"fd {back.fd}" in text
        listed = json.loads(command(*words, "-o", "json", command="explain"))
        (leg,) = (one["other_leg"] for one in listed["items"])
        assert leg["known"] is False
        assert len(leg["candidates"]) == 6


def test_of_legs_of_which_some_have_lost_their_partner_nobody_says_whose_move_it_is(tmp_path: Path) -> None:
    """Six pairs; four far ends have closed, so the relay has to close those; two it waits for."""
    with Lab() as lab:
        relayed, command = Relayed(lab, [5] * 6), Command(lab, tmp_path)
        relayed.look()
        relayed.backend.close(relayed.far[:4])

        def lost(view: View) -> bool:
            states = [state_of(view, back) for back in relayed.backs]
            return states[4:] == ["FIN_WAIT2"] * 2 and "FIN_WAIT2" not in states[:4]

        found = relayed.look(lost)
        assert lost(found.view)
        legs = [row_of(found.view, leg) for leg in (*relayed.fronts, *relayed.backs[4:])]
        (told,) = (f for f in found.findings if f.primary and np.isin(legs, f.rows).any())
        assert sorted(told.rows.tolist()) == sorted(legs)
        assert (told.rule, told.turn.whose) == ("relay-pair", "unknown")
        assert "at most 2 pairs among 6 CLOSE_WAIT and 2 FIN_WAIT2 legs" in told.confidence.reason
        for front in relayed.fronts:
            words = (f"dport = :{front.dport} and state close-wait", *command.where)
            listed = json.loads(command(*words, "-o", "json", command="explain"))
            (leg,) = (one["other_leg"] for one in listed["items"])
            assert (leg["known"], leg["perhaps_none"], leg["count"]) == (False, True, 2)
        text = " ".join(explained(command, *words).split())
        assert "whose move unknown: close() by its far end, or by the holder" in text
        assert "other leg one of 2, or none" in text
        assert "CLOSE_WAIT alone at least 4 of 6" in text


def test_bytes_that_do_not_fit_leave_a_pair_possible_at_most() -> None:
    """Two connections of one program may half-close at one time by chance."""
    with Lab() as lab:
        relayed = Relayed(lab, [5], header=9, probes=False)
        found = relayed.look()
        told = [f for f in found.findings if f.rule == "relay-pair"]
        # On a machine so busy that the ages are apart nothing is told of a pair at all.
        assert [f.confidence.level for f in told] == ["possible"] * len(told)
        assert [f.turn.whose for f in told] == ["unknown"] * len(told)
        assert not any(legs.known for legs in found.view.relay_legs.sets)


def test_a_leg_of_a_known_pair_is_ended_with_the_other_one(tmp_path: Path) -> None:
    with Lab() as lab:
        relayed, command = Relayed(lab, [1, 50]), Command(lab, tmp_path)
        relayed.look()
        done = command(
            "--yes", f"dport = :{relayed.clients[0].sport} and state close-wait", "--min-age", "0", code=0
        )
        assert "2 ended" in done
        assert relayed.states() == ["gone", "CLOSE_WAIT", "gone", "FIN_WAIT2"]


def test_a_leg_of_several_that_fit_is_not_ended_without_the_rest(tmp_path: Path) -> None:
    with Lab() as lab:
        relayed, command = Relayed(lab, [1, 1, 1]), Command(lab, tmp_path)
        relayed.look()
        one = f"dport = :{relayed.clients[0].sport} and state close-wait"
        assert "by guard `pair`" in command("--yes", one, "--min-age", "0", code=4)
        assert relayed.states() == relayed.states_stuck
        # What `explain` says to type ends them all.
        typed = explained(command, one, *command.where).replace("\\\n", " ")
        named = re.search(
            r"finwait clear .* (netns = \d+ and cookie = [^`]*?)\s+· set a deadline", " ".join(typed.split())
        )
        assert named is not None
        assert "6 ended" in command("--yes", named[1], "--min-age", "0", "--share", "1", code=0)
        assert relayed.states() == ["gone"] * 6


def test_a_guard_that_keeps_one_leg_keeps_the_other(tmp_path: Path) -> None:
    with Lab() as lab:
        relayed, command = Relayed(lab, [1, 50]), Command(lab, tmp_path)
        relayed.look()
        words = ("rule = relay-pair", "--share", "1", "--for", "1s", "--min-age", "1h")
        text = command("--yes", *words, code=4)
        assert "by guard `min-age`" in text
        assert relayed.states() == relayed.states_stuck


def test_a_pair_of_which_a_leg_moves_before_the_act_is_left_alone_and_the_others_are_ended(
    journal: SqliteJournal,
) -> None:
    with Lab() as lab:
        relayed = Relayed(lab, [1, 50])
        plan = relayed.plan([*relayed.fronts, *relayed.backs])
        assert sorted(step.pair for step in plan.steps) == [1, 1, 2, 2]

        def answered(stage: str) -> None:
            if stage == "journaled":
                relayed.backend.send(relayed.far[:1], "late")
                relayed.relay.recv(relayed.backs[:1], 4)

        outcomes = apply(plan, journal, boot_id="", fault=answered)
        assert relayed.states() == ["CLOSE_WAIT", "gone", "FIN_WAIT2", "gone"]
        told = sorted((o.result, o.detail) for o in outcomes if o.result == "changed meanwhile")
        assert told == [
            ("changed meanwhile", "bytes moved since the plan was made"),
            ("changed meanwhile", "left alone with its other leg: bytes moved since the plan was made"),
        ]
        assert all(entry.result is not None for entry in journal.entries())


def test_the_leg_that_wakes_the_relay_is_ended_first(journal: SqliteJournal) -> None:
    """Interrupted between the two, the relay is left with an error on one leg, which wakes it."""
    with Lab() as lab:
        relayed = Relayed(lab, [1, 50])
        plan = relayed.plan([*relayed.fronts, *relayed.backs])

        def interrupted(stage: str) -> None:
            if stage == "first legs":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            apply(plan, journal, boot_id="", fault=interrupted)
        assert relayed.states() == ["CLOSE_WAIT", "CLOSE_WAIT", "gone", "gone"]
        assert all(entry.result is not None for entry in journal.entries())


def test_the_second_leg_is_left_alone_if_the_first_was_not_ended(journal: SqliteJournal) -> None:
    """It ended by itself before its turn came: its relay goes on with the other one."""
    with Lab() as lab:
        relayed = Relayed(lab, [1, 50])
        plan = relayed.plan([*relayed.fronts, *relayed.backs])

        def left(stage: str) -> None:
            if stage == "journaled":
                relayed.backend.close(relayed.far[:1])
                relayed.look(lambda view: state_of(view, relayed.backs[0]) != "FIN_WAIT2")

        apply(plan, journal, boot_id="", fault=left)
        assert relayed.states()[:2] == ["CLOSE_WAIT", "gone"]

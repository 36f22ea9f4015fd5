"""Any sequence of possible events: FINs are passed on in order, and every end is either two FINs or a reset."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from finwait.relay.machine import (
    ENDED_BY_FIN,
    NEVER,
    STEPS,
    Command,
    Event,
    RelayLimits,
    RelayMachine,
    RelayState,
)

SECONDS = st.floats(0.001, 50)
SOMETIMES_NONE = st.one_of(st.just(0.0), SECONDS)
TIMERS = {event for event in Event if event.name.endswith("_TIMER")} | {Event.CONNECT_TIMEOUT}
MADE_BY_FEED = {Event.TICK, Event.LAST_REFUSED, Event.LAST_TIMEOUT}


class RelayedConnection(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.commands: list[Command] = []
        self.done: list[Event] = []

    @initialize(
        header=st.booleans(),
        limits=st.builds(
            RelayLimits,
            header=SOMETIMES_NONE,
            connect=SOMETIMES_NONE,
            tries=st.integers(1, 4),
            first_byte=SOMETIMES_NONE,
            idle=SOMETIMES_NONE,
            half_close=SOMETIMES_NONE,
            lifetime=SOMETIMES_NONE,
            drain_half_close=SOMETIMES_NONE,
        ),
    )
    def begin(self, header: bool, limits: RelayLimits) -> None:
        self.machine = RelayMachine(limits, self.now, header=header)

    def took(self, event: Event, commands: tuple[Command, ...]) -> None:
        self.commands += commands
        if event in (Event.CLIENT_DONE, Event.SERVER_DONE):
            self.done.append(event)
        for command, needed in (
            (Command.SHUT_SERVER, Event.CLIENT_DONE),
            (Command.SHUT_CLIENT, Event.SERVER_DONE),
        ):
            assert self.commands.count(command) <= 1
            assert command not in self.commands or needed in self.done, "a FIN was made up"
        if Command.CLOSE in commands:
            assert len(self.done) == 2

    @precondition(lambda self: self.machine.state is not RelayState.CLOSED)
    @rule(data=st.data())
    def something_happens(self, data: st.DataObject) -> None:
        possible = [
            e
            for e in Event
            if STEPS[self.machine.state][e] and e not in MADE_BY_FEED | TIMERS | {Event.DRAIN}
        ]
        event = data.draw(st.sampled_from(possible))
        self.took(event, self.machine.feed(event, self.now))

    @rule(seconds=SECONDS, side=st.sampled_from(["last_client", "last_server"]))
    def bytes_move(self, seconds: float, side: str) -> None:
        before = self.machine.next_deadline()
        self.now += seconds
        setattr(self.machine, side, self.now)
        assert self.machine.next_deadline() >= before, "bytes brought a deadline nearer"

    @precondition(lambda self: self.machine.state is not RelayState.CLOSED)
    @rule(patience=SECONDS)
    def the_relay_drains(self, patience: float) -> None:
        before = self.machine.next_deadline()
        assert self.machine.drain(self.now, self.now + patience) == ()
        assert self.machine.next_deadline() <= min(before, self.now + patience)

    @rule(seconds=SECONDS)
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds
        deadline, tries = self.machine.next_deadline(), self.machine.tries
        commands = self.machine.feed(Event.TICK, self.now)
        self.took(Event.TICK, commands)
        assert bool(commands) == (deadline <= self.now), "a tick does something exactly when something is due"
        assert self.machine.state is RelayState.CLOSED or not commands or self.machine.tries == tries + 1

    @precondition(lambda self: self.machine.next_deadline() != NEVER)
    @rule()
    def the_deadline_comes(self) -> None:
        self.time_goes_by(max(0.0, self.machine.next_deadline() - self.now) + 1e-6)

    @invariant()
    def an_end_is_two_fins_or_a_reset(self) -> None:
        machine: Any = getattr(self, "machine", None)
        if machine is None:
            return
        closed = machine.state is RelayState.CLOSED
        assert closed == (machine.reason is not None)
        assert self.commands.count(Command.CLOSE) + self.commands.count(Command.ABORT) == closed
        if closed:
            assert (machine.reason in ENDED_BY_FIN) == (Command.CLOSE in self.commands)
            assert machine.next_deadline() == NEVER
        assert machine.tries <= max(1, machine.limits.tries)


RelayedConnection.TestCase.settings = settings(max_examples=200, stateful_step_count=30)
TestRelayedConnection = RelayedConnection.TestCase

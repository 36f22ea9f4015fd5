"""Transcripts: what happened, and what the machine says must be done."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from finwait.relay.machine import (
    ENDED_BY_FIN,
    NEVER,
    STEPS,
    TRANSITIONS,
    Command,
    Event,
    ImpossibleEvent,
    Reason,
    RelayLimits,
    RelayMachine,
    RelayState,
    render_table,
)

C, E = Command, Event
LIMITS = RelayLimits(idle=100, half_close=30, connect=5, tries=2)


def opened(limits: RelayLimits = LIMITS, at: float = 0.0) -> RelayMachine:
    machine = RelayMachine(limits, at)
    assert machine.feed(E.CONNECTED, at) == (C.PUMP,)
    return machine


def test_a_client_that_half_closes_gets_its_answer() -> None:
    machine = opened()
    assert machine.feed(E.CLIENT_DONE, 1) == (C.SHUT_SERVER,)
    assert machine.state is RelayState.CLIENT_ENDED
    assert machine.feed(E.SERVER_DONE, 9) == (C.CLOSE,)
    assert (machine.state, machine.reason) == (RelayState.CLOSED, Reason.CLIENT_FIN_FIRST)


def test_a_fin_waits_for_the_bytes_before_it() -> None:
    machine = opened()
    assert machine.feed(E.SERVER_EOF, 1) == ()
    states = [machine.state]
    assert machine.feed(E.CLIENT_EOF, 2) == ()
    assert [*states, machine.state] == [RelayState.SERVER_ENDING, RelayState.BOTH_ENDING]
    assert machine.feed(E.SERVER_DONE, 3) == (C.SHUT_CLIENT,)
    assert machine.feed(E.CLIENT_DONE, 4) == (C.CLOSE,)
    assert machine.reason is Reason.SERVER_FIN_FIRST


def test_a_reset_is_passed_on_as_a_reset_after_what_was_said_before_it() -> None:
    machine = opened()
    assert machine.feed(E.SERVER_RESET, 1) == (C.FLUSH_SERVER, C.ABORT)
    assert machine.reason is Reason.SERVER_RESET


def test_a_reset_after_the_fin_frees_the_other_side_at_once() -> None:
    machine = opened()
    machine.feed(E.CLIENT_DONE, 1)
    assert machine.feed(E.CLIENT_RESET, 2) == (C.ABORT,)
    assert machine.reason is Reason.CLIENT_GONE


def test_the_half_close_is_capped_from_the_last_byte_in_the_open_direction() -> None:
    machine = opened()
    machine.feed(E.CLIENT_DONE, 10)
    assert machine.next_deadline() == 40
    machine.last_server = 35
    assert machine.next_deadline() == 65
    assert machine.feed(E.TICK, 64.9) == ()
    assert machine.feed(E.TICK, 65) == (C.ABORT,)
    assert machine.reason is Reason.HALF_CLOSE


def test_a_cap_of_zero_is_no_cap() -> None:
    machine = opened(replace(LIMITS, half_close=0))
    machine.feed(E.CLIENT_DONE, 10)
    assert machine.next_deadline() == NEVER


def test_the_half_close_counts_from_the_first_fin() -> None:
    machine = opened()
    machine.feed(E.CLIENT_EOF, 10)
    machine.feed(E.CLIENT_DONE, 20)
    assert machine.half_closed_since() == 10
    assert machine.next_deadline() == 40


def test_tries_go_over_backends_and_then_end_in_a_reset() -> None:
    machine = RelayMachine(LIMITS, 0)
    assert machine.feed(E.CONNECT_REFUSED, 1) == (C.CONNECT,)
    assert machine.next_deadline() == 6
    assert machine.feed(E.TICK, 6) == (C.ABORT,)
    assert machine.reason is Reason.CONNECT_TIMEOUT
    assert machine.tries == 2


def test_draining_shortens_the_half_close_and_then_cuts() -> None:
    machine = opened()
    machine.feed(E.CLIENT_DONE, 10)
    assert machine.drain(11, deadline=100) == ()
    assert machine.next_deadline() == 15
    other = opened()
    other.drain(11, deadline=41)
    assert other.next_deadline() == 41
    assert other.feed(E.TICK, 41) == (C.ABORT,)
    assert other.reason is Reason.DRAIN


def test_draining_never_lengthens_a_deadline() -> None:
    machine = opened(replace(LIMITS, half_close=1))
    machine.feed(E.CLIENT_DONE, 10)
    machine.drain(10, deadline=500)
    assert machine.next_deadline() == 11


def test_first_byte_counts_until_anyone_speaks() -> None:
    machine = opened(replace(LIMITS, first_byte=3))
    assert machine.next_deadline() == 3
    machine.last_server = 2
    assert machine.next_deadline() == 102


def test_a_header_must_come_in_time() -> None:
    machine = RelayMachine(replace(LIMITS, header=4), 0, header=True)
    assert machine.next_deadline() == 4
    assert machine.feed(E.HEADER_READ, 1) == (C.CONNECT,)
    assert (machine.tries, machine.next_deadline()) == (1, 6)
    late = RelayMachine(replace(LIMITS, header=4), 0, header=True)
    assert late.feed(E.TICK, 4) == (C.ABORT,)
    assert late.reason is Reason.HEADER


def test_what_cannot_happen_is_said_to_be_impossible() -> None:
    machine = opened()
    machine.feed(E.CLIENT_DONE, 1)
    with pytest.raises(ImpossibleEvent, match="CLIENT_DONE cannot happen in CLIENT_ENDED"):
        machine.feed(E.CLIENT_DONE, 2)


# ── the table itself ─────────────────────────────────────────────────────────────────────────────────────


def test_every_live_state_can_be_reset_drained_and_killed() -> None:
    for state in RelayState:
        if state is RelayState.CLOSED:
            assert STEPS[state] == (None,) * len(Event)
            continue
        for event in (E.CLIENT_RESET, E.CLIENT_VANISHED, E.DRAIN, E.DRAIN_TIMER, E.KILL, E.LIFETIME_TIMER):
            assert STEPS[state][event], (state, event)
        if state not in (RelayState.HEADER, RelayState.CONNECTING):
            for event in (E.SERVER_RESET, E.SERVER_VANISHED):
                assert STEPS[state][event], (state, event)


def test_every_state_can_be_reached_and_can_end_by_fin() -> None:
    after = {
        s: {row.next for row in TRANSITIONS if s in row.states and row.next is not None} for s in RelayState
    }
    seen, todo = set(), [RelayState.HEADER]
    while todo:
        state = todo.pop()
        if state not in seen:
            seen.add(state)
            todo += after[state]
    assert seen == set(RelayState)


def test_only_two_fins_end_a_connection_without_reset() -> None:
    for row in TRANSITIONS:
        if row.next is RelayState.CLOSED:
            by_fin = row.reason in ENDED_BY_FIN
            assert row.commands[-1] is (C.CLOSE if by_fin else C.ABORT), row
        else:
            assert row.reason is None
            assert not {C.CLOSE, C.ABORT} & set(row.commands), row


def test_every_reason_and_every_command_is_used() -> None:
    assert {row.reason for row in TRANSITIONS} - {None} == set(Reason)
    assert {command for row in TRANSITIONS for command in row.commands} == set(Command)


def test_the_table_is_rendered_whole() -> None:
    lines = render_table().splitlines()[2:]
    for line, row in zip(lines, TRANSITIONS, strict=True):
        _, _, event, after, commands, reason, why, _ = (cell.strip() for cell in line.split("|"))
        assert event == row.event.name
        assert after == ("(stays)" if row.next is None else row.next.name)
        assert commands == (", ".join(command.name for command in row.commands) if row.commands else "–")
        assert reason == (f"`{row.reason}`" if row.reason else "–")
        assert why == row.why

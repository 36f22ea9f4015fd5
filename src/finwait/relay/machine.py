"""One relayed connection as a state machine: events in, commands out, no sockets, no clock.

Theory of operation
===================

A relay joins two TCP connections, one from the *client* and one to the *server*. Each of the two byte streams
ends in one of two ways, and the relay's whole duty is to pass on which:

* **FIN**: "these were all my bytes". It says nothing about the other direction (RFC 9293, 3.6), so the other
  direction goes on. It may be passed on only when every byte before it has been handed over.
* **RST** (or an error that the kernel found: keepalive or TCP_USER_TIMEOUT gave up): "this connection is
  void". It ends both directions at once, and bytes that were said before it may be incomplete.

From that follow the two rules of this module:

1. *A FIN is only ever passed on, never made up.* Whatever ends a connection other than the two FINs of its
   peers (a reset, a timer, an administrator) ends it by RST on both legs. An answer that was cut off can
   then never look complete.
2. *One owner.* Both directions live in one object. Two copy loops, each waiting for its own EOF, are how
   relays come to leave one leg in CLOSE_WAIT and the other in FIN_WAIT2 for ever.

After the first FIN the connection is *half-closed*, which is a normal state of TCP: a client that has
sent its whole request and now waits for a long answer is in it. A relay cannot see whether the other end
waits, or has closed for good and its program just never says so. Three things tell:

* The peer's kernel. A peer that merely half-closed acknowledges keepalive probes. A peer that closed fully
  is an orphan that its kernel drops after ``tcp_fin_timeout``; then a probe is answered with RST, which is
  `Event.CLIENT_RESET` here. So the edge sets SO_KEEPALIVE on both legs and goes on listening for errors on
  a socket whose EOF it has read. (Relays that stop looking at a socket after its EOF miss this answer.)
* Bytes. While they come in the open direction, someone is alive.
* Last, a cap on silence, `RelayLimits.half_close`, counted from the last byte.

Closing both legs on the first FIN "solves" the leak by cutting off every client that half-closes. Waiting
for both for ever cuts nobody off and leaks. The first mistake was made to repair the second.

Implementation
==============

`TRANSITIONS` is the only place where transitions are written down: the engine, the documentation and the
tests read it. A state says how far each direction has come. A direction *flows*; then its FIN has arrived while
bytes before it still wait for a slow reader (*ending*); then its FIN was passed on (*ended*).

Events are named for the side they come from. ``CLIENT_EOF`` is a FIN with bytes before it still waiting to be
delivered, ``CLIENT_DONE`` an EOF with all bytes delivered (at once, or later).

Time is an argument. `RelayMachine.next_deadline` is derived from the times of the last bytes, which the edge
writes directly into `RelayMachine.last_client` and `RelayMachine.last_server`: moving bytes needs no call into here.
A deadline may therefore move *later* without notice; an edge that wakes up early asks again. It moves
*earlier* only in `RelayMachine.feed`.

What this cannot see
====================

Whether bytes that were handed to the kernel reached the other end: the FIN follows them in order, and a
reset of the far side comes back as an event, but after both FINs the kernel finishes alone. Whether a live
peer that half-closed will ever read the answer: that is what the cap is for.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final

from msgspec import Struct

__all__ = [
    "ENDED_BY_FIN",
    "HALF_CLOSED",
    "TRANSITIONS",
    "Command",
    "Event",
    "ImpossibleEvent",
    "Reason",
    "RelayLimits",
    "RelayMachine",
    "RelayState",
    "TableRow",
    "render_table",
    "rows_of_table",
]

NEVER: Final = float("inf")


class RelayState(IntEnum):
    """How far a connection has come."""

    HEADER = 0
    """Accepted; the PROXY protocol header of the client is not complete yet."""
    CONNECTING = 1
    """No server yet: a try to connect is under way."""
    OPEN = 2
    """Both directions flow."""
    CLIENT_ENDING = 3
    """The client's FIN has arrived; bytes before it still wait for the server."""
    CLIENT_ENDED = 4
    """The client's FIN was passed on; the server's direction flows."""
    SERVER_ENDING = 5
    """The server's FIN has arrived; bytes before it still wait for the client."""
    SERVER_ENDED = 6
    """The server's FIN was passed on; the client's direction flows."""
    BOTH_ENDING = 7
    """Both FINs have arrived; bytes wait in both directions."""
    CLIENT_ENDED_SERVER_ENDING = 8
    """The client's FIN was passed on; the server's last bytes wait for the client."""
    SERVER_ENDED_CLIENT_ENDING = 9
    """The server's FIN was passed on; the client's last bytes wait for the server."""
    CLOSED = 10
    """Nothing is left to do; both descriptors are closed."""


class Event(IntEnum):
    """What happened, in the words of the side it happened on."""

    TICK = 0
    """Time went by. `RelayMachine.feed` turns it into the timer that is due, if any."""
    HEADER_READ = 1
    """The PROXY header is complete."""
    HEADER_BAD = 2
    """What came is no PROXY header."""
    CONNECTED = 3
    """The server accepted."""
    CONNECT_REFUSED = 4
    """This try was refused or failed; others remain."""
    CONNECT_TIMEOUT = 5
    """This try took too long; others remain."""
    LAST_REFUSED = 6
    """The last try was refused. Made by `RelayMachine.feed` from CONNECT_REFUSED."""
    LAST_TIMEOUT = 7
    """The last try took too long. Made by `RelayMachine.feed` from CONNECT_TIMEOUT."""
    NO_BACKEND = 8
    """There is no backend to try."""
    CLIENT_EOF = 9
    """The client's FIN has arrived (EPOLLRDHUP), and bytes before it are not delivered yet."""
    CLIENT_DONE = 10
    """The client's EOF was read, and all its bytes are delivered."""
    SERVER_EOF = 11
    """The server's FIN has arrived, and bytes before it are not delivered yet."""
    SERVER_DONE = 12
    """The server's EOF was read, and all its bytes are delivered."""
    CLIENT_RESET = 13
    """The client's socket failed: RST."""
    SERVER_RESET = 14
    """The server's socket failed: RST."""
    CLIENT_VANISHED = 15
    """The client answers no more: keepalive, TCP_USER_TIMEOUT or the network gave up."""
    SERVER_VANISHED = 16
    """The server answers no more."""
    HEADER_TIMER = 17
    """The PROXY header took too long."""
    FIRST_BYTE_TIMER = 18
    """Neither side has said anything since the connection opened."""
    IDLE_TIMER = 19
    """No byte in either direction for too long."""
    HALF_CLOSE_TIMER = 20
    """Half-closed, and no byte for too long in the direction that is open."""
    LIFETIME_TIMER = 21
    """The connection is as old as it may become."""
    DRAIN_TIMER = 22
    """The relay is shutting down and its patience is over."""
    DRAIN = 23
    """The relay is shutting down: half-closed connections get less time from now on."""
    KILL = 24
    """An administrator ended it."""
    EXHAUSTED = 25
    """The relay has no descriptor, port or memory left to connect with."""
    UNWANTED = 26
    """The PROXY header names a client that has as many connections as it may."""


class Command(IntEnum):
    """What the edge must do, in order."""

    CONNECT = 0
    """Start the next try to connect to a server."""
    PUMP = 1
    """Move bytes in both directions from now on."""
    SHUT_SERVER = 2
    """``shutdown(server, SHUT_WR)``: pass on the client's FIN."""
    SHUT_CLIENT = 3
    """``shutdown(client, SHUT_WR)``: pass on the server's FIN."""
    FLUSH_CLIENT = 4
    """Hand what the client's receive queue still holds to the server, once, without waiting."""
    FLUSH_SERVER = 5
    """Hand what the server's receive queue still holds to the client, once, without waiting."""
    CLOSE = 6
    """``close()`` both; a FIN that was not passed on yet goes out by that."""
    ABORT = 7
    """Close what there is by RST (SO_LINGER with zero seconds)."""


class Reason(StrEnum):
    """Why a connection ended; the label of the metric and of the access log."""

    CLIENT_FIN_FIRST = "client_fin_first"
    SERVER_FIN_FIRST = "server_fin_first"
    CLIENT_RESET = "client_reset"
    SERVER_RESET = "server_reset"
    CLIENT_GONE = "client_gone"
    """Reset after its FIN: it had closed fully, or aborted. The proof that ends a dead half-close."""
    SERVER_GONE = "server_gone"
    CLIENT_VANISHED = "client_vanished"
    SERVER_VANISHED = "server_vanished"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    NO_BACKEND = "no_backend"
    HEADER = "header"
    PER_SOURCE = "per_source"
    FIRST_BYTE = "first_byte"
    IDLE = "idle"
    HALF_CLOSE = "half_close"
    LIFETIME = "lifetime"
    DRAIN = "drain"
    KILLED = "killed"
    EXHAUSTED = "exhausted"
    """The relay itself ran out of descriptors, ports or memory."""


ENDED_BY_FIN: Final = frozenset({Reason.CLIENT_FIN_FIRST, Reason.SERVER_FIN_FIRST})
"""The reasons of a connection that its two peers ended; all others end by RST."""


class TableRow(Struct, frozen=True):
    """One line of the table: in any of ``states``, ``event`` leads to ``next`` by way of ``commands``.

    ``reason`` is None where the connection goes on; for the close after both FINs `RelayMachine` fills in which
    came first. ``why`` is for the reader.
    """

    states: tuple[RelayState, ...]
    event: Event
    next: RelayState | None
    """None: the state stays."""
    commands: tuple[Command, ...]
    reason: Reason | None
    why: str


S, E, C, R = RelayState, Event, Command, Reason

_BEFORE = (S.HEADER, S.CONNECTING)
_CLIENT_FLOWS = (S.OPEN, S.SERVER_ENDING, S.SERVER_ENDED)
_SERVER_FLOWS = (S.OPEN, S.CLIENT_ENDING, S.CLIENT_ENDED)
_CLIENT_OVER = (
    S.CLIENT_ENDING,
    S.CLIENT_ENDED,
    S.BOTH_ENDING,
    S.CLIENT_ENDED_SERVER_ENDING,
    S.SERVER_ENDED_CLIENT_ENDING,
)
_SERVER_OVER = (
    S.SERVER_ENDING,
    S.SERVER_ENDED,
    S.BOTH_ENDING,
    S.CLIENT_ENDED_SERVER_ENDING,
    S.SERVER_ENDED_CLIENT_ENDING,
)
HALF_CLOSED: Final = (S.CLIENT_ENDING, S.CLIENT_ENDED, S.SERVER_ENDING, S.SERVER_ENDED)
"""One EOF was read, the other direction flows."""
_ENDING = (S.BOTH_ENDING, S.CLIENT_ENDED_SERVER_ENDING, S.SERVER_ENDED_CLIENT_ENDING)
_JOINED = (S.OPEN, *HALF_CLOSED, *_ENDING)
_LIVE = (*_BEFORE, *_JOINED)

TRANSITIONS: Final[tuple[TableRow, ...]] = (
    # ── before there is a server ─────────────────────────────────────────────────────────────────────────
    TableRow((S.HEADER,), E.HEADER_READ, S.CONNECTING, (C.CONNECT,), None, "the client is now known"),
    TableRow(
        (S.HEADER,),
        E.HEADER_BAD,
        S.CLOSED,
        (C.ABORT,),
        R.HEADER,
        "without a header it is not from a trusted proxy",
    ),
    TableRow((S.HEADER,), E.UNWANTED, S.CLOSED, (C.ABORT,), R.PER_SOURCE, "one client must not take all"),
    TableRow(
        (S.HEADER,),
        E.HEADER_TIMER,
        S.CLOSED,
        (C.ABORT,),
        R.HEADER,
        "a silent client must not hold a descriptor",
    ),
    TableRow((S.CONNECTING,), E.CONNECTED, S.OPEN, (C.PUMP,), None, "both ends are connected"),
    TableRow((S.CONNECTING,), E.CONNECT_REFUSED, None, (C.CONNECT,), None, "another backend may accept"),
    TableRow((S.CONNECTING,), E.CONNECT_TIMEOUT, None, (C.CONNECT,), None, "another backend may answer"),
    TableRow(
        (S.CONNECTING,),
        E.LAST_REFUSED,
        S.CLOSED,
        (C.ABORT,),
        R.CONNECT_REFUSED,
        "a refusal is passed on as a RST",
    ),
    TableRow(
        (S.CONNECTING,),
        E.LAST_TIMEOUT,
        S.CLOSED,
        (C.ABORT,),
        R.CONNECT_TIMEOUT,
        "the relay never sends a FIN of its own",
    ),
    TableRow(
        (S.CONNECTING,),
        E.NO_BACKEND,
        S.CLOSED,
        (C.ABORT,),
        R.NO_BACKEND,
        "the relay never sends a FIN of its own",
    ),
    TableRow(
        (S.CONNECTING,),
        E.EXHAUSTED,
        S.CLOSED,
        (C.ABORT,),
        R.EXHAUSTED,
        "another try would need the same resources",
    ),
    TableRow(_BEFORE, E.CLIENT_RESET, S.CLOSED, (C.ABORT,), R.CLIENT_RESET, "nobody is waiting any more"),
    TableRow(
        _BEFORE, E.CLIENT_VANISHED, S.CLOSED, (C.ABORT,), R.CLIENT_VANISHED, "nobody is waiting any more"
    ),
    # ── FINs ─────────────────────────────────────────────────────────────────────────────────────────────
    TableRow((S.OPEN,), E.CLIENT_EOF, S.CLIENT_ENDING, (), None, "its bytes first, then its FIN"),
    TableRow(
        (S.OPEN, S.CLIENT_ENDING),
        E.CLIENT_DONE,
        S.CLIENT_ENDED,
        (C.SHUT_SERVER,),
        None,
        "the FIN is passed on; the answer continues",
    ),
    TableRow((S.OPEN,), E.SERVER_EOF, S.SERVER_ENDING, (), None, "its bytes first, then its FIN"),
    TableRow(
        (S.OPEN, S.SERVER_ENDING),
        E.SERVER_DONE,
        S.SERVER_ENDED,
        (C.SHUT_CLIENT,),
        None,
        "the FIN is passed on; the client may keep sending",
    ),
    TableRow((S.CLIENT_ENDING,), E.SERVER_EOF, S.BOTH_ENDING, (), None, "bytes wait in both directions"),
    TableRow(
        (S.CLIENT_ENDING, S.BOTH_ENDING),
        E.SERVER_DONE,
        S.SERVER_ENDED_CLIENT_ENDING,
        (C.SHUT_CLIENT,),
        None,
        "one FIN is out; the client's last bytes still wait",
    ),
    TableRow((S.SERVER_ENDING,), E.CLIENT_EOF, S.BOTH_ENDING, (), None, "bytes wait in both directions"),
    TableRow(
        (S.SERVER_ENDING, S.BOTH_ENDING),
        E.CLIENT_DONE,
        S.CLIENT_ENDED_SERVER_ENDING,
        (C.SHUT_SERVER,),
        None,
        "one FIN is out; the server's last bytes still wait",
    ),
    TableRow((S.CLIENT_ENDED,), E.SERVER_EOF, S.CLIENT_ENDED_SERVER_ENDING, (), None, "the last bytes wait"),
    TableRow((S.SERVER_ENDED,), E.CLIENT_EOF, S.SERVER_ENDED_CLIENT_ENDING, (), None, "the last bytes wait"),
    TableRow(
        (S.CLIENT_ENDED, S.CLIENT_ENDED_SERVER_ENDING),
        E.SERVER_DONE,
        S.CLOSED,
        (C.CLOSE,),
        R.CLIENT_FIN_FIRST,
        "both FINs are out",
    ),
    TableRow(
        (S.SERVER_ENDED, S.SERVER_ENDED_CLIENT_ENDING),
        E.CLIENT_DONE,
        S.CLOSED,
        (C.CLOSE,),
        R.SERVER_FIN_FIRST,
        "both FINs are out",
    ),
    # ── resets, and peers that are gone ──────────────────────────────────────────────────────────────────
    TableRow(
        _CLIENT_FLOWS,
        E.CLIENT_RESET,
        S.CLOSED,
        (C.FLUSH_CLIENT, C.ABORT),
        R.CLIENT_RESET,
        "what it sent before is still readable; then the RST is passed on as a RST",
    ),
    TableRow(
        _CLIENT_OVER,
        E.CLIENT_RESET,
        S.CLOSED,
        (C.ABORT,),
        R.CLIENT_GONE,
        "it had sent only a FIN; now nobody is left to read the answer",
    ),
    TableRow(
        _SERVER_FLOWS,
        E.SERVER_RESET,
        S.CLOSED,
        (C.FLUSH_SERVER, C.ABORT),
        R.SERVER_RESET,
        "a FIN here would make a cut answer look complete",
    ),
    TableRow(
        _SERVER_OVER,
        E.SERVER_RESET,
        S.CLOSED,
        (C.ABORT,),
        R.SERVER_GONE,
        "it had sent only a FIN; now nobody is left to read the request",
    ),
    TableRow(
        _CLIENT_FLOWS,
        E.CLIENT_VANISHED,
        S.CLOSED,
        (C.FLUSH_CLIENT, C.ABORT),
        R.CLIENT_VANISHED,
        "the kernel gave up on it",
    ),
    TableRow(
        _CLIENT_OVER, E.CLIENT_VANISHED, S.CLOSED, (C.ABORT,), R.CLIENT_VANISHED, "the kernel gave up on it"
    ),
    TableRow(
        _SERVER_FLOWS,
        E.SERVER_VANISHED,
        S.CLOSED,
        (C.FLUSH_SERVER, C.ABORT),
        R.SERVER_VANISHED,
        "the kernel gave up on it",
    ),
    TableRow(
        _SERVER_OVER, E.SERVER_VANISHED, S.CLOSED, (C.ABORT,), R.SERVER_VANISHED, "the kernel gave up on it"
    ),
    # ── timers and people ────────────────────────────────────────────────────────────────────────────────
    TableRow((S.OPEN,), E.FIRST_BYTE_TIMER, S.CLOSED, (C.ABORT,), R.FIRST_BYTE, "opened and never used"),
    TableRow(
        (S.OPEN,),
        E.IDLE_TIMER,
        S.CLOSED,
        (C.ABORT,),
        R.IDLE,
        "TCP allows a silent connection, but the relay does not keep it for ever",
    ),
    TableRow(
        (*HALF_CLOSED, *_ENDING),
        E.HALF_CLOSE_TIMER,
        S.CLOSED,
        (C.ABORT,),
        R.HALF_CLOSE,
        "both peers are alive and silent, and neither ends it",
    ),
    TableRow(_LIVE, E.LIFETIME_TIMER, S.CLOSED, (C.ABORT,), R.LIFETIME, "the operator set this limit"),
    TableRow(_LIVE, E.DRAIN, None, (), None, "it may still end by itself"),
    TableRow(_LIVE, E.DRAIN_TIMER, S.CLOSED, (C.ABORT,), R.DRAIN, "both peers see that it was cut"),
    TableRow(_LIVE, E.KILL, S.CLOSED, (C.ABORT,), R.KILLED, "an administrator asked for it"),
)


class ImpossibleEvent(Exception):  # named for what it is
    """The edge reported something that cannot happen in this state: a mistake in the edge, not on the wire."""

    def __init__(self, state: RelayState, event: Event) -> None:
        self.state = state
        self.event = event
        super().__init__(f"{event.name} cannot happen in {state.name}")


class RelayLimits(Struct, frozen=True):
    """How long things may take, in seconds; 0 means no limit."""

    header: float = 5.0
    connect: float = 5.0
    """Of one try."""
    tries: int = 3
    first_byte: float = 0.0
    idle: float = 3600.0
    half_close: float = 300.0
    lifetime: float = 0.0
    drain_half_close: float = 5.0
    """What is left of ``half_close`` once the relay is shutting down."""


_Step = tuple[RelayState, tuple[Command, ...], Reason | None]


def _expand() -> tuple[tuple[_Step | None, ...], ...]:
    """Return the table by state and event, for looking up."""
    steps: list[list[_Step | None]] = [[None] * len(Event) for _ in RelayState]
    for row in TRANSITIONS:
        for state in row.states:
            assert steps[state][row.event] is None, f"two rows for {state.name} and {row.event.name}"
            steps[state][row.event] = (state if row.next is None else row.next, row.commands, row.reason)
    return tuple(tuple(of_state) for of_state in steps)


STEPS: Final = _expand()
"""``STEPS[state][event]``: next state, commands, reason; None where the event is impossible."""

# Names that are looked up once: `RelayMachine.feed` runs three times for each short connection.
_TICK, _REFUSED, _TIMEOUT = Event.TICK, Event.CONNECT_REFUSED, Event.CONNECT_TIMEOUT
_CONNECT = (Command.CONNECT,)
_IS_HALF_CLOSED = tuple(state in HALF_CLOSED or state in _ENDING for state in RelayState)


class RelayMachine:
    """One relayed connection.

    The mistake that this replaces: two loops, ``copy(a, b)`` and ``copy(b, a)``, and a decision what to do
    when the first of them returns.

    Attributes:
        state: how far it has come.
        reason: why it ended; None while it lives.
        born: when it was accepted, seconds of the caller's clock.
        since: when the present phase began (this try to connect, the opening, the first EOF).
        last_client: when the last byte of the client was read, or handed on. The edge writes it.
        last_server: the same for the server's bytes.
        tries: how many tries to connect were started.
    """

    __slots__ = (
        "born",
        "drain_at",
        "last_client",
        "last_server",
        "limits",
        "reason",
        "since",
        "state",
        "tries",
    )

    def __init__(self, limits: RelayLimits, now: float, *, header: bool = False) -> None:
        self.limits = limits
        self.state = RelayState.HEADER if header else RelayState.CONNECTING
        self.reason: Reason | None = None
        self.born = now
        self.since = now
        self.last_client = 0.0
        self.last_server = 0.0
        self.drain_at = NEVER
        self.tries = 0 if header else 1

    def feed(self, event: Event, now: float) -> tuple[Command, ...]:
        """Take one event; return what the edge must do, in order.

        A machine that begins in CONNECTING expects its edge to start the first try by itself.

        Raises:
            ImpossibleEvent: the event cannot happen in this state.
        """
        state = self.state
        step = STEPS[state][event]
        if step is None:
            if event is not _TICK:
                raise ImpossibleEvent(state, event)
            due = self._due(now)
            return () if due is None else self.feed(due, now)
        after, commands, reason = step
        if commands == _CONNECT:
            if (event is _REFUSED or event is _TIMEOUT) and self.tries >= self.limits.tries:
                return self.feed(Event.LAST_REFUSED if event is _REFUSED else Event.LAST_TIMEOUT, now)
            self.since = now
            self.tries += 1
        if after is not state:
            # The half-close counts from the first FIN, not from the moment when it could be passed on.
            if not (_IS_HALF_CLOSED[state] and _IS_HALF_CLOSED[after]):
                self.since = now
            self.state = after
            self.reason = reason
        return commands

    def drain(self, now: float, deadline: float) -> tuple[Command, ...]:
        """Begin to shut down: the connection may end by itself until ``deadline``."""
        self.drain_at = min(self.drain_at, deadline)
        return self.feed(Event.DRAIN, now)

    def next_deadline(self) -> float:
        """Return when a TICK would do something, in seconds of the caller's clock; infinity for never.

        Bytes may move it later without any call; only `feed` and `drain` move it earlier.
        """
        return min(at for at, _ in self._deadlines())

    def half_closed_since(self) -> float | None:
        """Return when the first EOF was read, if one was and the connection still lives."""
        return self.since if _IS_HALF_CLOSED[self.state] else None

    def _due(self, now: float) -> Event | None:
        at, event = min(self._deadlines())
        return event if at <= now else None

    def _deadlines(self) -> list[tuple[float, Event]]:
        """List what may come due in this state; never empty."""
        limits, state = self.limits, self.state
        deadlines: list[tuple[float, Event]] = [(NEVER, Event.TICK)]
        if state == RelayState.CLOSED:
            return deadlines
        if limits.lifetime:
            deadlines.append((self.born + limits.lifetime, Event.LIFETIME_TIMER))
        if self.drain_at != NEVER:
            deadlines.append((self.drain_at, Event.DRAIN_TIMER))
        if state == RelayState.HEADER:
            if limits.header:
                deadlines.append((self.since + limits.header, Event.HEADER_TIMER))
        elif state == RelayState.CONNECTING:
            if limits.connect:
                deadlines.append((self.since + limits.connect, Event.CONNECT_TIMEOUT))
        elif state == RelayState.OPEN:
            last = max(self.since, self.last_client, self.last_server)
            if limits.idle:
                deadlines.append((last + limits.idle, Event.IDLE_TIMER))
            if limits.first_byte and not (self.last_client or self.last_server):
                deadlines.append((self.since + limits.first_byte, Event.FIRST_BYTE_TIMER))
        else:
            cap = limits.half_close
            if self.drain_at != NEVER and limits.drain_half_close:
                cap = min(cap, limits.drain_half_close) if cap else limits.drain_half_close
            if cap:
                last = max(self.since, self.last_client, self.last_server)
                deadlines.append((last + cap, Event.HALF_CLOSE_TIMER))
        return deadlines


def render_table() -> str:
    """Return the transitions as a Markdown table, for the documentation."""
    lines = ["| in | event | becomes | commands | reason | because |", "|---|---|---|---|---|---|"]
    for row in TRANSITIONS:
        states = "any state" if row.states == _LIVE else ", ".join(state.name for state in row.states)
        after = "(stays)" if row.next is None else row.next.name
        commands = ", ".join(command.name for command in row.commands) or "–"
        reason = f"`{row.reason}`" if row.reason else "–"
        lines.append(f"| {states} | {row.event.name} | {after} | {commands} | {reason} | {row.why} |")
    return "\n".join(lines) + "\n"


def rows_of_table() -> list[dict[str, object]]:
    """Return the transitions as JSON's types; no next state where it stays as it is."""
    return [
        {
            "states": [state.name for state in row.states],
            "event": row.event.name,
            "next": None if row.next is None else row.next.name,
            "commands": [command.name for command in row.commands],
            "reason": str(row.reason) if row.reason else None,
            "why": row.why,
        }
        for row in TRANSITIONS
    ]

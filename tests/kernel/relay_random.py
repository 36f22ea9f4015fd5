"""T15: random scripts at both ends of a relayed connection, against a model of what TCP promises.

``python -m tests.kernel.relay_random --sequences 1000000 --seed 1`` runs as many as one likes. Each script is a
list of acts at one end (send, transfer, shut, close, reset, read), and after each the other end must show exactly what
a direct connection would: these bytes, then FIN or RST or nothing. At the end nothing may be left in the relay.

What the model knows of TCP: a close with unread bytes is RST (RFC 2525, 2.17); bytes to an end that has closed fully
come back as RST; after RST what had arrived is still readable; after FIN and then RST a reader sees the FIN.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import fcntl
import random
import select
import socket
import sys
import termios
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.kernel.relay_behaviour import Scene, reset, until

if TYPE_CHECKING:
    from collections.abc import Iterator

PATTERN = random.Random(7).randbytes(1_000_003) * 2
"""Byte n of a stream is PATTERN[n % 1000003]: a lost, doubled or swapped byte shows."""
PERIOD = 1_000_003
SMALL = 20_000
"""Unread bytes that any receive buffer holds."""
BULK = 400_000
DEADLINE = 10.0


class Disagreement(AssertionError):
    """Model and sockets do not agree."""


@dataclass
class End:
    """One end, and what the model says about it."""

    sock: socket.socket
    name: str
    sent: int = 0
    read: int = 0
    unread: int = 0
    shut: bool = False
    closed: bool = False
    fin: bool = False
    """The other end's FIN has come."""
    rst: bool = False
    saw_fin: bool = False
    log: list[str] = field(default_factory=list)


class Script:
    """One connection, acted upon at random."""

    def __init__(self, pair: tuple[socket.socket, socket.socket], dice: random.Random) -> None:
        self.dice = dice
        self.ends = (End(pair[0], "client"), End(pair[1], "server"))
        self.log: list[str] = []
        for end in self.ends:
            end.sock.setblocking(False)

    def other(self, end: End) -> End:
        return self.ends[1] if end is self.ends[0] else self.ends[0]

    def run(self) -> None:
        try:
            for _ in range(self.dice.randint(1, 8)):
                if not self.act():
                    break
            for end in self.ends:
                if not end.closed:
                    self.finish(end)
        finally:
            for end in self.ends:
                end.sock.close()

    def possible(self) -> Iterator[tuple[str, End]]:
        if any(end.rst for end in self.ends) or all(end.shut or end.closed for end in self.ends):
            return
        for end in self.ends:
            if end.closed:
                continue
            if not end.shut:
                yield from (("send", end), ("shut", end))
                if not self.other(end).closed:
                    yield "transfer", end
            if end.unread:
                yield "read", end
            yield from (("close", end), ("reset", end))

    def act(self) -> bool:
        choice = list(self.possible())
        if not choice:
            return False
        name, end = self.dice.choice(choice)
        self.log.append(f"{end.name} {name}")
        getattr(self, f"do_{name}")(end, self.other(end))
        return True

    # ── acts ─────────────────────────────────────────────────────────────────────────────────────────────

    def do_send(self, end: End, other: End) -> None:
        size = self.dice.choice((1, 100, 5000, SMALL - other.unread))
        size = min(size, SMALL - other.unread)
        if size <= 0:
            return
        start = end.sent % PERIOD
        if end.sock.send(PATTERN[start : start + size]) != size:
            raise self.disagree("a small send did not fit")
        end.sent += size
        if other.closed:
            end.rst = True
            self.expect(end)
        else:
            other.unread += size
            self.expect(other)

    def do_transfer(self, end: End, other: End) -> None:
        """Send more than fits, while the other end reads."""
        self.do_read(other, end)
        target = end.sent + self.dice.randint(SMALL, BULK)
        deadline = time.monotonic() + DEADLINE
        while other.read < target:
            if end.sent < target:
                start = end.sent % PERIOD
                with contextlib.suppress(BlockingIOError):
                    end.sent += end.sock.send(PATTERN[start : start + min(65536, target - end.sent)])
            self.take(other)
            if time.monotonic() > deadline:
                raise self.disagree(f"{other.name} got {other.read} of {target}")
            if end.sent == target and other.read < target:
                select.select([other.sock], [], [], 0.2)

    def do_read(self, end: End, other: End) -> None:
        while end.unread:
            size = end.read
            self.take(end)
            end.unread -= end.read - size
            if end.read == size:
                raise self.disagree(f"{end.name} has nothing to read, the model has {end.unread} B")
        del other

    def take(self, end: End) -> None:
        with contextlib.suppress(BlockingIOError):
            data = end.sock.recv(1 << 18)
            start = end.read % PERIOD
            if data != PATTERN[start : start + len(data)]:
                raise self.disagree(f"{end.name} got other bytes at {end.read}")
            end.read += len(data)

    def do_shut(self, end: End, other: End) -> None:
        end.sock.shutdown(socket.SHUT_WR)
        end.shut = True
        if not other.closed:
            other.fin = True
            self.expect(other)

    def do_close(self, end: End, other: End) -> None:
        end.closed = True
        end.sock.close()
        if other.closed:
            return
        if end.unread:
            other.rst = True
        elif not end.shut:
            other.fin = True
        self.expect(other)

    def do_reset(self, end: End, other: End) -> None:
        end.closed = True
        reset(end.sock)
        if not other.closed:
            other.rst = True
            self.expect(other)

    # ── what must be so ──────────────────────────────────────────────────────────────────────────────────

    def expect(self, end: End) -> None:
        """Wait until an end's socket shows what the model says."""
        poll = select.poll()
        poll.register(end.sock, select.POLLRDHUP)
        deadline = time.monotonic() + DEADLINE
        while True:
            mask = sum(mask for _, mask in poll.poll(0))
            shown = (
                self.readable(end),
                bool(mask & (select.POLLRDHUP | select.POLLERR)),
                bool(mask & select.POLLERR),
            )
            wanted = (end.unread, end.fin or end.rst, end.rst)
            if shown == wanted:
                return
            if time.monotonic() > deadline:
                raise self.disagree(
                    f"{end.name} shows (unread, over, reset) {shown}, the model says {wanted}"
                )
            time.sleep(0.0002)

    @staticmethod
    def readable(end: End) -> int:
        size = array.array("i", [0])
        fcntl.ioctl(end.sock, termios.FIONREAD, size)
        return size[0]

    def finish(self, end: End) -> None:
        """Read an end to where it must end."""
        self.expect(end)
        while end.unread:
            self.do_read(end, self.other(end))
        try:
            got = "FIN" if not end.sock.recv(1) else "bytes"
        except BlockingIOError:
            got = "nothing"
        except ConnectionError:
            got = "RST"
        wanted = "FIN" if end.fin else "RST" if end.rst else "nothing"
        if got != wanted:
            raise self.disagree(f"{end.name} ends with {got}, the model says {wanted}")

    def disagree(self, what: str) -> Disagreement:
        return Disagreement(f"{what}\nafter: {', '.join(self.log)}")


def run(scene: Scene, sequences: int, seed: int, *, tell: bool = False) -> None:
    """Run so many scripts; raise `Disagreement` at the first that differs."""
    began = time.monotonic()
    for number in range(sequences):
        script = Script(scene.pair(), random.Random(seed * 1_000_003 + number))
        try:
            script.run()
        except Disagreement as error:
            raise Disagreement(f"sequence {number} of seed {seed}: {error}") from None
        scene.held.clear()
        if tell and number and number % 5000 == 0:
            sys.stderr.write(f"{number} sequences, {number / (time.monotonic() - began):.0f}/s\n")
    if not until(lambda: not scene.legs()):
        raise Disagreement(f"left behind: {scene.legs()}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sequences", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", default="finwait", help="finwait, direct, haproxy, nginx or envoy")
    args = parser.parse_args()
    with Scene(args.kind) as scene:
        before = scene.descriptors() if args.kind == "finwait" else 0
        run(scene, args.sequences, args.seed, tell=True)
        if args.kind == "finwait":
            assert scene.descriptors() <= before + 128, "descriptors were left"
    sys.stdout.write(
        f"{args.sequences} sequences of seed {args.seed}: model and sockets agree, nothing left\n"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What became of the connections that are known: exact questions about each, within what the purse allows.

A question is one lookup and costs some microseconds (`finwait.kernel.lookup`); what a walk has just seen need not be
asked for. Where a connection is gone, it is told how that came about as far as anything proves it.

This knows no clock but that of its machine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, MutableMapping
from typing import TYPE_CHECKING, Final

from finwait.agent.episodes import GRACE_NS, Book, Cause, How, Instant
from finwait.errors import DecodeError, FinwaitError, Gap
from finwait.kernel.lookup import Question

if TYPE_CHECKING:
    from finwait.agent.counting import Counting
    from finwait.agent.edge import AgentMachine
    from finwait.agent.schedule import Turns
    from finwait.agent.tally import Tally

__all__ = ["Asking"]

_AT_LEAST: Final = 200
_MOST: Final = 4000
_RIPEN_MOST: Final = 4
"""Graces until what cannot be asked keeps nobody waiting."""


class Asking:
    """Follows the rows of the book.

    Args:
        machine: what is asked.
        book: the episodes.
        turns: whose turn it is to be walked.
        gaps: takes what cannot be seen, by kind.
        tally: counts what looks cost.
        counting: knows the namespaces.

    Attributes:
        ripened: whether every namespace has been seen, and of what was there each connection has proven its age.
    """

    def __init__(
        self,
        machine: AgentMachine,
        book: Book,
        turns: Turns,
        gaps: MutableMapping[str, tuple[Gap, ...]],
        tally: Tally,
        counting: Counting,
    ) -> None:
        self._machine = machine
        self._book = book
        self._turns = turns
        self._gaps = gaps
        self._tally = tally
        self._counting = counting
        self._cost = 1e-5
        self._all_seen: Instant | None = None
        self.ripened = False

    def follow(self, purse_s: float, fresh_ns: int) -> None:
        """Ask what became of what is known, but for what was seen so short ago.

        Args:
            purse_s: what may be spent.
            fresh_ns: how short.
        """
        machine, spaces = self._machine, self._counting.spaces
        now = machine.now()
        most = int(max(0.0, purse_s) * 0.5 / self._cost)
        rows = self._book.questions(min(_MOST, max(_AT_LEAST, most)), now.boot_ns - fresh_ns)
        if not len(rows):
            return
        cpu = machine.cpu()
        questions: dict[int, list[Question]] = {}
        for row in rows:
            (a, b), (c, d) = row["src"].tolist(), row["dst"].tolist()
            questions.setdefault(int(row["netns"]), []).append(
                Question((a, b), (c, d), int(row["sport"]), int(row["dport"]), int(row["ifindex"]))
            )
        try:
            answers, gaps = machine.ask(questions, [spaces[n] for n in questions if n in spaces])
        except (DecodeError, FinwaitError) as error:
            self._gaps["questions"] = (Gap("open episodes", f"ask for them: {error}", ""),)
            return
        unanswered = {gap.netns for gap in gaps}
        self._gaps["questions"] = tuple(gap for gap in gaps if gap.needs)
        self._book.answered(rows["cookie"], answers, unanswered, now, self._judge())
        cost = machine.cpu() - cpu
        self._cost = max(1e-6, 0.5 * self._cost + 0.5 * cost / len(rows))
        self._tally.looked("questions", cost)
        self._counting.discover_again([gap.netns for gap in gaps if not gap.needs])

    def ripen(self, purse_s: float) -> None:
        """Ask once more, a grace after every namespace has been seen: of some only two sights prove an age."""
        if self.ripened:
            return
        now = self._machine.now()
        if self._all_seen is None:
            if self._turns.unseen:
                return
            self._all_seen = now
        until, waited = self._all_seen.boot_ns, now.boot_ns - self._all_seen.boot_ns
        if waited >= GRACE_NS and self._book.unripe(until):
            self.follow(purse_s, int(0.9e9))
        self.ripened = not self._book.unripe(until) or waited >= _RIPEN_MOST * GRACE_NS

    def rest_s(self) -> float:
        """Return in how many seconds `ripen` has something to do; infinity where it has not."""
        if self._all_seen is None or self.ripened:
            return float("inf")
        grace = (self._all_seen.boot_ns + GRACE_NS - self._machine.now().boot_ns) / 1e9
        return grace if grace > 0 else 1.0

    def _judge(self) -> Callable[[int, int, Cause], How]:
        """Return what says how a connection ended that is gone."""
        cleared: Collection[tuple[int, int]] | None = None

        def judge(cookie: int, netns: int, cause: Cause) -> How:
            nonlocal cleared
            if cleared is None:
                cleared = self._machine.cleared()
            if (netns, cookie) in cleared:
                return "cleared"
            if not cause.pid or cause.others is None:
                return "vanished"
            holders = ((cause.pid, cause.started_ms), *cause.others)
            gone = all(self._machine.alive(pid, started) is False for pid, started in holders)
            return "owner-gone" if gone else "vanished"

        return judge

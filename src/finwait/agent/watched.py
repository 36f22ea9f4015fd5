"""A running agent watched: its picture and its history, asked over its typed protocol, again and again.

A question is cheap for the node: the agent says that nothing is new, or gives the last picture; nobody looks. Each one
is a connection of its own, so an agent that ends and comes back is asked again without more ado. What it said last
stays, with the reason why there is nothing newer.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from finwait.agent import client, protocol
from finwait.errors import FinwaitError, KernelError
from finwait.report.agent_moment import AgentMoment
from finwait.report.agent_page import AgentPage, CountsDocument, GroupDetail

__all__ = ["AgentPictures"]

_WHOLE_S: Final = 30.0
"""Between two questions for the whole picture: another agent may have come, at the same round as the one before."""
_CURVE_S: Final = 20.0
_HOUR_S: Final = 3600


class AgentPictures:
    """Gives what an agent says; `next` is called from a thread, the rest from others.

    Args:
        path: its Unix socket.
        words: a FILTER to begin with; empty for none.
        refresh: seconds between two questions.
    """

    def __init__(self, path: str, words: str = "", *, refresh: float) -> None:
        self._path = path
        self._words = words
        self._refresh = refresh
        self._wake = threading.Event()
        self._ended = False
        self._page: AgentPage | None = None
        self._of = ""
        self._counts: CountsDocument | None = None
        self._whole_due = 0.0
        self._curve_due = 0.0
        self._begun = False

    def choose(self, words: str) -> None:
        """Want other connections from the next picture on."""
        self._words = words
        self.renew()

    def renew(self) -> None:
        """Ask for everything now."""
        self._whole_due = self._curve_due = 0.0
        self._wake.set()

    def end(self) -> None:
        """Let `next` return soon."""
        self._ended = True
        self._wake.set()

    def next(self) -> AgentMoment | None:
        """Return what it says now, after waiting for the time to ask; None at the end."""
        if self._begun:
            self._wake.wait(self._refresh)
        self._begun = True
        self._wake.clear()
        if self._ended:
            return None
        words = self._words
        if words != self._of:
            self._page, self._counts, self._of = None, None, words
        failed = ""
        try:
            failed = self._renew_page(words) or self._renew_curve(words)
        except (FinwaitError, ValueError) as error:
            failed = _sentence(error, self._path)
            self._whole_due = self._curve_due = 0.0
        return AgentMoment(self._page, self._counts, failed, words, time.time_ns())

    def _renew_page(self, words: str) -> str:
        """Ask for the picture; return why there is none."""
        now = time.monotonic()
        whole = self._page is None or now >= self._whole_due
        known = -1 if whole or self._page is None else self._page.rounds
        answer = client.ask(protocol.AskPage(filter=words, known=known), self._path)
        if answer.page is not None:
            self._page = answer.page
            self._whole_due = now + _WHOLE_S
            return ""
        return "" if answer.unchanged else _refusal(answer)

    def _renew_curve(self, words: str) -> str:
        now = time.monotonic()
        if now < self._curve_due:
            return ""
        answer = client.ask(protocol.AskCounts(since_s=int(time.time()) - _HOUR_S, filter=words), self._path)
        if answer.counts is None:
            return _refusal(answer)
        self._counts = answer.counts
        self._curve_due = now + _CURVE_S
        return ""

    def detail(self, name: str) -> GroupDetail | None:
        """Return a group with its evidence; None where there is none now.

        Raises:
            FinwaitError: the agent does not answer.
        """
        try:
            answer = client.ask(protocol.AskGroup(id=name, filter=self._of), self._path)
        except (KernelError, ValueError) as error:
            raise FinwaitError(_sentence(error, self._path)) from None
        if answer.error is not None or answer.refused is not None:
            raise FinwaitError(_refusal(answer))
        return answer.group


def _refusal(answer: protocol.AgentAnswer) -> str:
    reason = " ".join(part for part in (answer.refused, answer.error) if part) or "nothing"
    return f"the agent says: {reason}"


def _sentence(error: Exception, path: str) -> str:
    if not isinstance(error, FinwaitError):
        return f"what answers at `{path}` is no agent"
    reason = error.hint if isinstance(error, KernelError) and error.hint else str(error)
    return f"no answer: {reason}"

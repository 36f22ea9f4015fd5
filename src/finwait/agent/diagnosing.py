"""The looker's side of a diagnosis: it is made in a process of its own, which ends with it.

Theory of operation. A diagnosis needs all of the machine at once: rows of every namespace, every descriptor, the rules
and their sentences. That is 40 MB of program and a multiple of that for a large machine, for some seconds every ten
minutes. In the looker it would stay: a heap that grew once hardly shrinks. So a fresh interpreter makes it
(`finwait.agent.diagnoser`), gets the question and leaves the answer in files of memory (memfd), and ends. It is not
forked: a fork of a process with threads can deadlock, and would carry the looker's heap with it.

Rounds go on meanwhile: the looker asks `Diagnosing.result` now and then. A process that fails, hangs, or is killed for
memory (it offers itself to the kernel first, oom_score_adj) is a `FinwaitError`, and the caller tries again later. What
it used of a processor is counted as the looker's own (`Diagnosing.spent_s`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final, Protocol

from finwait.agent.verdict import ANSWER_MOST, Answered, decode_answer, encode_request
from finwait.errors import FinwaitError

if TYPE_CHECKING:
    from collections.abc import Callable

    from finwait.agent.verdict import DiagnosedLook, DiagnosisRequest

__all__ = ["DEADLINE_S", "Diagnosing", "DiagnosisProcess"]

DEADLINE_S: Final = 600.0
"""What takes longer hangs."""


class Diagnosing(Protocol):
    """A diagnosis that was begun."""

    def result(self) -> DiagnosedLook | None:
        """Return what it says; None while it goes on.

        Raises:
            FinwaitError: it failed.
        """

    def end(self) -> None:
        """End it, if it goes on; nothing of it is left."""


class DiagnosisProcess:
    """One run of the process that diagnoses.

    Args:
        request: what is asked.
        answered: is told the whole answer, before `result` returns.
        spent: is told the processor time that it used, in seconds, when it is over.
        deadline_s: what takes longer is ended.
        program: what the interpreter runs.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self,
        request: DiagnosisRequest,
        *,
        answered: Callable[[Answered], None] = lambda _: None,
        spent: Callable[[float], None] = lambda _: None,
        deadline_s: float = DEADLINE_S,
        program: str = "finwait.agent.diagnoser",
    ) -> None:
        self._answered = answered
        self._spent = spent
        self._ends_at = time.monotonic() + deadline_s
        self._deadline_s = deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        self._answer = os.memfd_create("finwait-diagnosis", os.MFD_CLOEXEC)
        try:
            question = os.memfd_create("finwait-question", os.MFD_CLOEXEC)
            try:
                with os.fdopen(os.dup(question), "wb") as file:
                    file.write(encode_request(request))
                self._process = subprocess.Popen(
                    # -P: else a module that somebody left in the working directory runs with our rights
                    [sys.executable, "-P", "-m", program, str(question), str(self._answer), str(os.getpid())],
                    pass_fds=(question, self._answer),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )
            finally:
                os.close(question)
        except BaseException:
            self.end()
            raise

    def result(self) -> DiagnosedLook | None:
        """Return what it says; None while it goes on.

        Raises:
            FinwaitError: it failed, or takes too long and was ended.
        """
        status = self._status()
        if status is None:
            if time.monotonic() < self._ends_at:
                return None
            self.end()
            raise FinwaitError(f"it did not come to an end in {self._deadline_s:g} s, and was ended")
        try:
            if status < 0:
                raise FinwaitError(f"the process that diagnoses was ended by {_signal(-status)}")
            size = os.fstat(self._answer).st_size
            if size > ANSWER_MOST:
                raise FinwaitError("the process that diagnoses says too much")
            data = os.pread(self._answer, size, 0)
            if not data:
                raise FinwaitError(f"the process that diagnoses ended with status {status}")
            answer = decode_answer(data)
        finally:
            self.end()
        self._answered(answer)
        if answer.look is None:
            raise FinwaitError(answer.error)
        return answer.look

    def _status(self) -> int | None:
        """Return how it ended; None while it runs. What it used of a processor is told once it has ended."""
        process = self._process
        if process is None or process.returncode is not None:
            return None if process is None else process.returncode
        before = _children_s()
        status = process.poll()
        if status is not None:
            self._spent(_children_s() - before)
        return status

    def end(self) -> None:
        """End it, if it goes on; nothing of it is left."""
        process = self._process
        if process is not None and self._status() is None:
            process.kill()
            before = _children_s()
            process.wait()
            self._spent(_children_s() - before)
        if self._answer >= 0:
            os.close(self._answer)
            self._answer = -1


def _children_s() -> float:
    """Return the processor time of children that have ended and were waited for, and of theirs, in seconds."""
    spent = os.times()
    return spent.children_user + spent.children_system


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

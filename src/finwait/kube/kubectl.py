"""Runs the user's own ``kubectl``, bounded in time and length.

Whoever may ask is decided by the API server; finwait keeps no credentials and reads no kubeconfig.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Sequence
from typing import IO, Any, Final

import msgspec
from msgspec import Struct

from finwait.errors import FinwaitError
from finwait.table.units import printable

__all__ = ["Done", "Kubectl"]

_ANSWER_MOST: Final = 256 << 20
_SAID_MOST: Final = 4096
_SAID_LINES: Final = 4
"""An error of ours has three: what, in which FILTER, a hint."""


class Done(Struct, frozen=True):
    """What one call came to."""

    status: int
    out: bytes
    said: str


class _Reader(threading.Thread):
    """Reads what a process writes, and ends one that writes too much.

    The descriptor is its own, and closed by nobody else: what the number stood for next would be somebody else's.
    """

    def __init__(self, process: subprocess.Popen[bytes], stream: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._process, self._stream = process, stream
        self.data = bytearray()
        self.too_much = False
        self.start()

    def run(self) -> None:
        with self._stream:
            while more := os.read(self._stream.fileno(), 1 << 16):
                self.data += more
                if len(self.data) > _ANSWER_MOST:
                    self.too_much = True
                    self._process.kill()
                    return


class Kubectl:
    """The user's kubectl.

    Args:
        options: for each call: ``--context`` and the like.
        timeout_s: for each call.
    """

    def __init__(self, options: Sequence[str] = (), timeout_s: float = 30.0) -> None:
        self._options = tuple(options)
        self.timeout_s = timeout_s
        """For each call, in seconds."""

    def command(self, *words: str) -> list[str]:
        """Return a command line.

        Raises:
            FinwaitError: there is no kubectl.
        """
        program = shutil.which("kubectl")
        if program is None:
            failure = FinwaitError("there is no `kubectl` in the search path")
            failure.hint = "https://kubernetes.io/docs/tasks/tools/ says how to get it"
            raise failure
        return [program, *words[:1], *self._options, *words[1:]]

    def run(self, *words: str) -> Done:
        """Run it; what it writes is bounded."""
        process = subprocess.Popen(
            self.command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stderr is not None
        out, errors = _Reader(process, process.stdout), _Reader(process, process.stderr)
        try:
            status = process.wait(self.timeout_s)
        except subprocess.TimeoutExpired:
            return Done(-1, b"", f"no answer within {self.timeout_s:g} s")
        finally:
            process.kill()  # nothing happens to one that has ended
            process.wait()
        for reader in (out, errors):
            reader.join(self.timeout_s)
        if out.is_alive():  # a child of its own still holds the other end
            return Done(-1, b"", f"its answer has no end within {self.timeout_s:g} s")
        if out.too_much:
            return Done(-1, b"", f"the answer is longer than {_ANSWER_MOST >> 20} MiB")
        text = bytes(errors.data[-_SAID_MOST:]).decode("utf-8", "replace")
        return Done(status, bytes(out.data), printable(_last_lines(text)))

    def decoded(self, kind: type[Any], *words: str) -> Any:  # noqa: ANN401 - of that type
        """Return what it prints as JSON.

        Args:
            kind: as which type.
            words: its arguments, without ``-o json``.

        Raises:
            FinwaitError: it failed, or printed something else.
        """
        done = self.run(*words, "-o", "json")
        if done.status != 0:
            raise FinwaitError(f"`kubectl {' '.join(words)}` failed: {done.said or f'status {done.status}'}")
        try:
            return msgspec.json.decode(done.out, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FinwaitError(
                f"`kubectl {words[0]} {words[1]}` did not print what it should: {error}"
            ) from None

    def namespace(self) -> str:
        """Return the namespace of the user's context; ``default`` where it names none, as kubectl takes it.

        Raises:
            FinwaitError: it cannot be learned.
        """
        done = self.run("config", "view", "--minify", "-o", "jsonpath={..namespace}")
        if done.status != 0:
            failure = FinwaitError(
                f"could not learn the namespace of your context: {done.said or f'status {done.status}'}"
            )
            failure.hint = "name one: `-n NS`, or take all: `-A`"
            raise failure
        return done.out.decode("utf-8", "replace").strip() or "default"


def _last_lines(text: str) -> str:
    """Return the last lines: what is wrong and where, a hint, and what kubectl adds about the exit status."""
    lines = [line.strip() for line in text.splitlines() if any(map(str.isalnum, line))]
    return "; ".join(lines[-_SAID_LINES:])[:500]

"""The metrics as a file, which node_exporter's textfile collector reads.

It is written beside and then put in place, so that nobody reads half of it. Where it cannot be written, the one of
before stays: node_exporter goes on to tell it. How old that is, is a gap of the agent's.
"""

from __future__ import annotations

import os
import time

from finwait import files
from finwait.agent.facing import say
from finwait.agent.protocol import RoundPicture
from finwait.errors import FinwaitError, Gap

__all__ = ["write_textfile"]


def write_textfile(directory: str, picture: RoundPicture, *, quiet: bool) -> Gap | None:
    """Write the metrics; return what says that they could not be written, and of when those are that are there.

    Args:
        directory: where.
        picture: what they tell.
        quiet: whether not to say that it cannot be written, for it was said before.
    """
    from finwait.agent.metrics import render

    path = os.path.join(directory, "finwait.prom")
    try:
        new = files.new_file(path, 0o644)
        try:
            with os.fdopen(os.dup(new.fd), "wb") as file:
                file.write(render(picture)[0])
                file.flush()
                os.fsync(file.fileno())
            new.publish()
        finally:
            os.close(new.fd)
            new.discard()
    except (OSError, FinwaitError) as error:
        # Of an OSError the words alone: its path is relative to a folder.
        reason = error.strerror if isinstance(error, OSError) else str(error)
        if not quiet:
            say(f"`{path}` cannot be written, looking goes on: {reason}")
        return Gap(
            f"`{path}`", f"write the metrics: {reason}; {_written(path)}", "a directory that can be written"
        )
    return None


def _written(path: str) -> str:
    try:
        at_s = os.stat(path).st_mtime
    except OSError:
        return "none are there"
    return f"those that are there were written at {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(at_s))}"

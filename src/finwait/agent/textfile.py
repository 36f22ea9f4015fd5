"""The metrics as a file, which node_exporter's textfile collector reads.

It is written beside and then put in place, so that nobody reads half of it. Where it cannot be written, the one of
before stays: node_exporter goes on to tell it, so that it is old must be told elsewhere.
"""

from __future__ import annotations

import os

from finwait import files
from finwait.agent.facing import say
from finwait.agent.protocol import RoundPicture
from finwait.errors import FinwaitError

__all__ = ["write_textfile"]


def write_textfile(directory: str, picture: RoundPicture, *, quiet: bool) -> bool:
    """Write the metrics; return whether that succeeded.

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
        if not quiet:  # of an OSError the words alone: its path is relative to a folder
            reason = error.strerror if isinstance(error, OSError) else error
            say(f"`{path}` cannot be written, looking goes on: {reason}")
        return False
    return True

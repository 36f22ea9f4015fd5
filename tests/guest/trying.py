"""Trying one thing after the other, in the guest: what came of each is a line of JSON on the host at once."""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path

__all__ = [
    "ONLY",
    "OUT",
    "PATIENCE_S",
    "Differs",
    "NotHere",
    "attempt",
    "command",
    "emit",
    "expected",
    "expected_as_built",
]

OUT = Path(os.environ.get("GUEST_OUT", "/out"))
ONLY = [word for word in os.environ.get("ONLY", "").replace("+", " ").split(",") if word]
PATIENCE_S = 60.0


class NotHere(Exception):
    """This kernel, or this machine, lacks what it takes."""


class Differs(Exception):
    """It can be done, and what came of it is not what is expected."""


def emit(kind: str, name: str, verdict: str, began: float, detail: str = "") -> None:
    """Write one line; it is on the host at once."""
    row = {
        "kind": kind, "name": name, "verdict": verdict, "seconds": round(time.monotonic() - began, 1),
        "detail": detail[-6000:],
    }  # fmt: skip
    with (OUT / "results").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(kind, name, verdict, row["seconds"], flush=True)


def attempt(kind: str, name: str, work: Callable[[], str | None]) -> None:
    """Do it and write what came of it: ``ok``, ``differs``, ``not here`` or ``failed``."""
    if ONLY and name not in ONLY:
        return
    began = time.monotonic()
    try:
        detail = work()
    except NotHere as error:
        emit(kind, name, "not here", began, str(error))
    except Differs as error:
        emit(kind, name, "differs", began, str(error))
    except BaseException as error:  # noqa: BLE001 - the outermost loop: whatever happened, the rest is tried too
        emit(kind, name, "failed", began, f"{error!r}\n{traceback.format_exc()}")
    else:
        emit(kind, name, "ok", began, detail or "")


def command(*words: str) -> tuple[int, str, str]:
    """Run `finwait` in this process; return status, output and errors."""
    from finwait import cli

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(list(words))
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
    return status, out.getvalue(), err.getvalue()


def expected(status: int, wanted: tuple[int, ...], out: str, err: str) -> None:
    """Insist on an exit status."""
    if status not in wanted:
        raise Differs(f"status {status}\n{err[-2500:]}\n{out[-2500:]}")


def expected_as_built(name: str) -> None:
    """Run one scenario; a process that a policy keeps from being looked into holds none of its sockets."""
    from finwait.kernel import procfs

    walled = [
        word for pid in procfs.descriptors()[0].unreadable if pid for word in ("--not-holder", str(pid))
    ]
    status, out, err = command("lab", "run", name, "--all", *walled)
    expected(status, (0, 3), out, err)
    if "does not match everything that was built" in err:
        raise Differs(err + out)

"""Runs many command lines, each in a child of its own, and tells how each ended.

    unshare --net python -W ignore sweep.py < CASES > RESULTS

CASES is a JSON list of lists of words; ``@NETNS@`` and ``@TMP@`` stand for the inode of this network namespace and for
an empty directory. Starting Python and importing numpy for each of a thousand command lines would take minutes; a fork
takes milliseconds. RESULTS is a list of ``[status, stdout, stderr]``, with status "timeout" for what did not end by
itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import finwait.diagnosis.catalogue
import finwait.session
from finwait import cli

PATIENCE_S = 60


def child(words: list[str], out: int, err: int) -> None:
    """Be a process that was started with these words; never returns."""
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, number in ((null, 0), (out, 1), (err, 2)):
        os.dup2(fd, number)
    status: object = 1
    try:
        status = cli.main(words)
    except SystemExit as end:
        status = end.code
    except BaseException:  # noqa: BLE001 - what a person would see as a traceback
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status if isinstance(status, int) else 1)


def run(words: list[str], folder: Path) -> list[object]:
    """Run one command line; return status, stdout and stderr."""
    paths = [folder.parent / name for name in ("stdout", "stderr")]
    fds = [os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600) for path in paths]
    pid = os.fork()
    if not pid:
        child(words, *fds)
    for fd in fds:
        os.close(fd)
    status: object = None
    end = time.monotonic() + PATIENCE_S
    while status is None:
        done, how = os.waitpid(pid, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(how)
        elif time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            status = "timeout"
        else:
            time.sleep(0.002)
    return [status, *(path.read_bytes().decode("utf-8", "replace") for path in paths)]


def main() -> None:
    """Run all cases."""
    cases = json.load(sys.stdin)
    assert callable(finwait.session.look)
    assert finwait.diagnosis.catalogue.rules()
    inode = str(os.stat("/proc/self/ns/net").st_ino)
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer, "work")
        folder.mkdir()
        os.chdir(folder)
        os.environ["FINWAIT_STATE_DIR"] = str(Path(outer, "state"))
        results = [
            run([w.replace("@NETNS@", inode).replace("@TMP@", str(folder)) for w in words], folder)
            for words in cases
        ]
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()

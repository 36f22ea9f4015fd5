"""Processes without rights: whom they run as, and what they may cost who started them."""

from __future__ import annotations

import os
import pwd
import resource
import subprocess
import sys
import threading
import time

import pytest

from finwait.agent import confined


def test_nothing_else_runs_as_the_user_that_is_chosen() -> None:
    first, second = confined.own_user(0), confined.own_user(1)
    assert first != second
    for user in (first, second):
        assert 61184 <= user <= 65519
    used = {os.stat(f"/proc/{name}").st_uid for name in os.listdir("/proc") if name == str(os.getpid())}
    assert first not in used


def test_where_every_number_is_taken_it_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        def __init__(self, number: int) -> None:
            self.pw_uid = number

    monkeypatch.setattr(pwd, "getpwall", lambda: [Entry(number) for number in range(61000, 66000)])
    assert confined.own_user(0) == confined.NOBODY


@pytest.mark.parametrize("line", [b"x" * 4096, b"a line\n" * 500])
def test_what_floods_its_standard_error_costs_next_to_nothing(
    line: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    program = f"import os\nwhile 1: os.write(2, {line!r})"
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, bufsize=0) as flooding:
        assert flooding.stderr is not None
        before = resource.getrusage(resource.RUSAGE_SELF)
        reader = threading.Thread(target=confined._pass_on, args=(flooding,))
        reader.start()
        time.sleep(2)
        after = resource.getrusage(resource.RUSAGE_SELF)
        flooding.kill()
        reader.join(10)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 0.5, "of two seconds"
    assert len(capfd.readouterr().err.splitlines()) <= 61


def test_the_last_words_are_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    program = "import sys; sys.stderr.write('first\\nand \\x1b[31mlast')"
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, bufsize=0) as done:
        assert done.stderr is not None
        confined._pass_on(done)
    said = capfd.readouterr().err
    assert said.startswith("first\nand ")
    assert "\x1b" not in said


def test_it_inherits_nothing_of_our_environment_that_it_does_not_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("LC_TIME", "C")
    inherited = confined.environment()
    assert "SECRET" not in inherited
    assert inherited["LC_TIME"] == "C"

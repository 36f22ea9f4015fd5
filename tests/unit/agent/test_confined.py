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
        reader = threading.Thread(target=confined._pass_on, args=(flooding, "one"))
        reader.start()
        time.sleep(2)
        after = resource.getrusage(resource.RUSAGE_SELF)
        flooding.kill()
        reader.join(10)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 0.5, "of two seconds"
    assert len(capfd.readouterr().err.splitlines()) <= 61


def test_the_last_words_are_passed_on_and_nobody_speaks_as_we_do(capfd: pytest.CaptureFixture[str]) -> None:
    program = "import sys; sys.stderr.write('finwait agent: all is well\\nand \\x1b[31mlast')"
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, bufsize=0) as done:
        assert done.stderr is not None
        confined._pass_on(done, "face (pid 7)")
    first, last = capfd.readouterr().err.splitlines()
    assert first == "face (pid 7) says: finwait agent: all is well"
    assert last.startswith("face (pid 7) says: and ")
    assert "\x1b" not in last


@pytest.mark.parametrize("data", [b"x" * 20_000 + b"\nfinwait agent: so\n", b"\r\nfinwait agent: so\n"])
def test_each_line_has_its_mark(data: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", f"import os; os.write(2, {data!r})"], stderr=subprocess.PIPE, bufsize=0
    ) as done:
        confined._pass_on(done, "face (pid 7)")
    lines = capfd.readouterr().err.splitlines()
    assert all(line.startswith("face (pid 7) says: ") for line in lines)
    assert lines[-1].endswith(" says: finwait agent: so")


def test_it_inherits_nothing_of_our_environment_that_it_does_not_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("LC_TIME", "C")
    inherited = confined.environment()
    assert "SECRET" not in inherited
    assert inherited["LC_TIME"] == "C"

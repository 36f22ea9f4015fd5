"""The pool of pipes: none that holds bytes is lent again, and those that nobody needs are closed."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from typing import Any

import pytest

from finwait.relay.pipes import PIPE_BYTES, PIPE_REST, PIPES, Pipes


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    pool = Pipes(0.0)
    yield pool
    pool.close()
    assert pool.made == 0, "a pipe was lent and not given back"


def is_open(fd: int) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_an_empty_pipe_is_lent_again(pipes: Pipes) -> None:
    pipe = pipes.borrow()
    assert pipe is not None
    pipes.give_back(pipe)
    assert pipes.borrow() == pipe
    assert pipes.made == 1
    pipes.give_back(pipe)


def test_a_pipe_that_holds_bytes_is_never_lent_again(pipes: Pipes) -> None:
    pipe = pipes.borrow()
    assert pipe is not None
    os.write(pipe[1], b"somebody's")
    pipes.discard(pipe)
    assert not is_open(pipe[0])
    assert not is_open(pipe[1])
    other = pipes.borrow()
    assert other is not None
    with pytest.raises(BlockingIOError):
        os.read(other[0], 1)
    pipes.give_back(other)


def test_there_is_an_end_to_how_many_are_made(pipes: Pipes) -> None:
    lent = [pipe for _ in range(PIPES + 1) if (pipe := pipes.borrow()) is not None]
    assert len(lent) == pipes.made == PIPES
    for pipe in lent:
        pipes.give_back(pipe)


def test_a_pipe_of_two_pages_is_not_taken(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.fcntl

    def refuse(fd: int, command: int, *more: int) -> Any:
        if command == fcntl.F_SETPIPE_SZ:
            raise PermissionError(errno.EPERM, "over pipe-user-pages-soft")
        return 8192 if command == fcntl.F_GETPIPE_SZ else real(fd, command, *more)

    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    assert pipes.borrow() is None
    assert set(os.listdir("/proc/self/fd")) == before


def test_smaller_pipes_are_taken_where_large_ones_are_refused(
    pipes: Pipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.fcntl

    def refuse(fd: int, command: int, *more: int) -> Any:
        if command == fcntl.F_SETPIPE_SZ and more[0] == PIPE_BYTES:
            raise PermissionError(errno.EPERM, "over pipe-max-size")
        return real(fd, command, *more)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    pipe = pipes.borrow()
    assert pipe is not None
    assert real(pipe[1], fcntl.F_GETPIPE_SZ) == PIPE_BYTES // 4
    pipes.give_back(pipe)


def test_what_was_not_needed_for_a_while_is_closed_and_what_was_stays(pipes: Pipes) -> None:
    lent = [pipe for _ in range(3) if (pipe := pipes.borrow()) is not None]
    for pipe in lent:
        pipes.give_back(pipe)
    pipes.tend(PIPE_REST)
    assert pipes.made == 3, "all three were lent at once since the last look"
    busy = pipes.borrow()
    assert busy is not None
    pipes.give_back(busy)
    pipes.tend(PIPE_REST * 1.5)
    assert pipes.made == 3, "not yet"
    pipes.tend(PIPE_REST * 2)
    assert pipes.made == 1
    pipes.tend(PIPE_REST * 3)
    assert pipes.made == 0

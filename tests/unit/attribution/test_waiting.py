"""Who waits for a connection: what may be said of it, and what may not."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from finwait.attribution.owners import holders
from finwait.attribution.waiting import WaitedOn, Waits
from finwait.uapi.eventpoll import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLONESHOT, EPOLLOUT, EPOLLRDHUP
from finwait.uapi.observation import UNLISTED, Descriptors, LoopWatch, ProcessWaits, SocketOptions, ThreadWait

ALWAYS = EPOLLERR | EPOLLHUP
ELSEWHERE = ThreadWait(11, "worker", "S", "futex", "other", steady=True)
RUNNING = ThreadWait(12, "busy", "R")


def told(
    *processes: tuple[int, ProcessWaits],
    held: tuple[tuple[int, int], ...] = ((10, 5),),
    unreadable: tuple[int, ...] = (),
) -> WaitedOn:
    """Ask for the socket of inode 77, which is descriptor 5 of process 10 unless something else is said."""
    descriptors = Descriptors(
        np.array([pid for pid, _ in held], np.uint32),
        np.array([fd for _, fd in held], np.uint32),
        np.full(len(held), 77, np.uint64),
        unreadable,
    )
    inodes = np.array([77], np.uint32)
    return Waits(dict(processes), inodes, holders(inodes, descriptors)).of(0)


def sleeping(call: str, kind: str, *fds: int, events: int = 0, steady: bool = True) -> ThreadWait:
    return ThreadWait(13, "reader", "S", call, kind, tuple((fd, events) for fd in fds), steady=steady)


def loop(events: int, *, fd: int = 9, inode: int = 77, number: int = 5, steady: bool = True) -> LoopWatch:
    return LoopWatch(fd, 1, ((number, events | ALWAYS, inode),), steady)


def test_a_thread_that_sleeps_in_a_call_on_it_waits() -> None:
    found = told((10, ProcessWaits((ELSEWHERE, sleeping("recvfrom", "fd", 5)))))
    assert found.kind == "thread"
    assert [(w.pid, w.tid, w.call) for w in found.threads] == [(10, 13, "recvfrom")]
    assert found.names == ("reader",)


def test_a_call_on_another_descriptor_does_not_count() -> None:
    assert told((10, ProcessWaits((sleeping("recvfrom", "fd", 6),)))).kind == "nobody"


def test_the_same_number_in_another_process_is_another_descriptor() -> None:
    both = ((10, 5), (20, 8))
    child = ProcessWaits((sleeping("read", "fd", 5),))
    assert told((10, ProcessWaits((ELSEWHERE,))), (20, child), held=both).kind == "nobody"
    child = ProcessWaits((sleeping("read", "fd", 8),))
    assert told((10, ProcessWaits((ELSEWHERE,))), (20, child), held=both).kind == "thread"


def test_a_thread_that_was_there_at_only_one_reading_is_neither_somebody_nor_nobody() -> None:
    found = told((10, ProcessWaits((sleeping("recvfrom", "fd", 5, steady=False),))))
    assert (found.kind, found.threads) == ("unknown", ())
    assert found.why == "the two readings differ"


def test_where_a_thread_ran_nobody_is_not_said() -> None:
    """A server between two calls of poll() waits for its connections in the next one."""
    found = told((10, ProcessWaits((ELSEWHERE, RUNNING))))
    assert (found.kind, found.unsteady) == ("unknown", 1)
    assert found.why == "1 of its threads ran during the look and may come back to it"
    found = told((10, ProcessWaits((sleeping("poll", "set", 6, steady=False), RUNNING))))
    assert (found.kind, found.why[:16]) == ("unknown", "2 of its threads")


def test_a_loop_that_watches_for_reading_with_its_thread_asleep() -> None:
    found = told((10, ProcessWaits((sleeping("epoll_wait", "epoll", 9),), (loop(EPOLLIN),))))
    assert found.kind == "loop"
    assert found.loops[0].asleep is True
    assert found.names == ("reader",)


def test_a_loop_whose_only_thread_is_elsewhere() -> None:
    found = told((10, ProcessWaits((ELSEWHERE,), (loop(EPOLLIN | EPOLLRDHUP),))))
    assert (found.kind, found.loops[0].asleep) == ("loop", False)
    assert found.loops[0].thread == ELSEWHERE
    assert found.names == ()


def test_of_several_threads_none_is_said_to_be_the_loop_s() -> None:
    found = told((10, ProcessWaits((ELSEWHERE, replace(ELSEWHERE, tid=14)), (loop(EPOLLIN),))))
    assert (found.kind, found.loops[0].thread, found.loops[0].asleep) == ("loop", None, False)


def test_a_loop_that_watches_for_writing_alone_or_for_nothing_is_paused() -> None:
    for events in (EPOLLOUT, 0):
        assert told((10, ProcessWaits((ELSEWHERE,), (loop(events),)))).kind == "paused"


def test_a_one_shot_that_has_fired_is_paused_and_said_to_be_spent() -> None:
    spent = LoopWatch(9, 1, ((5, EPOLLONESHOT, 77),))
    found = told((10, ProcessWaits((ELSEWHERE,), (spent,))))
    assert (found.kind, found.loops[0].spent) == ("paused", True)
    armed = loop(EPOLLIN | EPOLLONESHOT)
    found = told((10, ProcessWaits((ELSEWHERE,), (armed,))))
    assert (found.kind, found.loops[0].spent) == ("loop", False)


EVERYTHING = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET


def test_a_runtime_that_watches_everything_tells_nothing() -> None:
    go = told((10, ProcessWaits((ELSEWHERE, replace(ELSEWHERE, tid=14)), (loop(EVERYTHING),))))
    assert go.kind == "unknown"
    assert "tells nothing" in go.why
    nginx = told((10, ProcessWaits((ELSEWHERE,), (loop(EPOLLIN | EPOLLRDHUP | EPOLLET),))))
    assert (nginx.kind, nginx.loops[0].edge) == ("loop", True)


def test_in_a_process_of_one_thread_no_other_can_be_waiting_whatever_is_registered() -> None:
    """So nginx registers a connection to a server behind it."""
    found = told((10, ProcessWaits((sleeping("epoll_wait", "epoll", 9),), (loop(EVERYTHING),))))
    assert (found.kind, found.loops[0].asleep) == ("loop", True)


def test_a_thread_that_is_stopped_does_not_wait() -> None:
    for state, wchan, why in (
        ("T", "", "SIGSTOP"),
        ("t", "", "debugger"),
        ("S", "do_freezer_trap", "frozen"),
    ):
        reader = replace(sleeping("recvfrom", "fd", 5), state=state, wchan=wchan)
        found = told((10, ProcessWaits((reader,))))
        assert (found.kind, found.threads) == ("unknown", ())
        assert why in found.why
        looper = replace(sleeping("epoll_wait", "epoll", 9), state=state, wchan=wchan)
        found = told((10, ProcessWaits((looper,), (loop(EPOLLIN),))))
        assert (found.kind, found.loops[0].asleep) == ("unknown", None)
        assert why in found.why


def test_a_stopped_program_says_nothing_about_another_that_waits() -> None:
    stopped = ProcessWaits((replace(ELSEWHERE, state="T"),))
    waits = ProcessWaits((sleeping("read", "fd", 5),))
    assert told((10, stopped), (20, waits), held=((10, 5), (20, 5))).kind == "thread"


def test_room_to_send_in_is_limited_by_the_option_for_sending() -> None:
    """A call that moves bytes says by its events which way."""
    for call, events, expected in (
        ("sendto", 0, 7), ("sendfile", EPOLLOUT, 7), ("splice", EPOLLIN, 3), ("read", 0, 3)
    ):  # fmt: skip
        descriptors = Descriptors(
            np.array([10], np.uint32), np.array([5], np.uint32), np.array([77], np.uint64), ()
        )
        inodes = np.array([77], np.uint32)
        options = {77: SocketOptions(rcvtimeo_ms=3, sndtimeo_ms=7)}
        processes = {10: ProcessWaits((sleeping(call, "fd", 5, events=events),))}
        (waiter,) = Waits(processes, inodes, holders(inodes, descriptors), options).of(0).threads
        assert (waiter.call, waiter.timeout_ms) == (call, expected)


def test_a_registration_of_another_socket_under_the_same_number_is_not_ours() -> None:
    assert told((10, ProcessWaits((ELSEWHERE,), (loop(EPOLLIN, inode=78),)))).kind == "nobody"


def test_a_registration_under_a_number_that_was_reused_is_known_by_its_inode() -> None:
    assert told((10, ProcessWaits((ELSEWHERE,), (loop(EPOLLIN, number=6),)))).kind == "loop"


def test_where_the_kernel_tells_no_inode_the_number_counts() -> None:
    assert told((10, ProcessWaits((ELSEWHERE,), (loop(EPOLLIN, inode=-1),)))).kind == "loop"
    assert told((10, ProcessWaits((ELSEWHERE,), (loop(EPOLLIN, inode=-1, number=6),)))).kind == "nobody"


def test_a_loop_within_a_loop_is_slept_in_by_who_sleeps_in_the_outer_one() -> None:
    outer = LoopWatch(20, 1, ((9, EPOLLIN | ALWAYS, 1039),))
    found = told((10, ProcessWaits((sleeping("epoll_wait", "epoll", 20),), (outer, loop(EPOLLIN)))))
    assert (found.kind, found.loops[0].asleep) == ("loop", True)


def test_loops_that_watch_each_other_come_to_an_end() -> None:
    first = LoopWatch(20, 1, ((9, EPOLLIN, 1039),))
    second = LoopWatch(9, 2, ((20, EPOLLIN, 1039), (5, EPOLLIN, 77)))
    assert (
        told((10, ProcessWaits((sleeping("poll", "set", 20, events=1),), (first, second)))).loops[0].asleep
        is True
    )


def test_a_loop_that_changed_between_the_readings_is_not_stated() -> None:
    found = told((10, ProcessWaits((RUNNING,), (loop(EPOLLIN, steady=False),))))
    assert (found.kind, found.loops) == ("unknown", ())


def test_nobody_is_never_said_where_something_could_not_be_read() -> None:
    calm = ProcessWaits((ELSEWHERE,))
    assert told((10, calm)).kind == "nobody"
    for less in (
        replace(calm, unread=("read which system calls its threads are in\tCAP_SYS_PTRACE",)),
        replace(calm, rings=(7,)),
        replace(calm, asynchronous=(5,)),
        replace(calm, unasked_from=5),
        replace(calm, foreign=((77, 30),)),
        *(replace(calm, unlisted=(word,)) for word in UNLISTED),
        replace(calm, unlisted=("a word of a later version",)),
        replace(calm, threads=(ELSEWHERE, sleeping("io_uring_enter", "io_uring", 4))),
        replace(calm, threads=(ELSEWHERE, sleeping("io_getevents", "io_uring"))),
        replace(calm, threads=(ELSEWHERE, sleeping("close", "close", 5))),
        replace(calm, threads=()),
        replace(calm, threads=(ELSEWHERE, ThreadWait(14, "x", "S", "system call 999", "unknown"))),
        replace(
            calm, threads=(ELSEWHERE, ThreadWait(14, "x", "S", "restart_syscall", "restart", steady=True))
        ),
    ):
        found = told((10, less))
        assert found.kind == "unknown", less
        assert found.why


def test_what_is_about_another_socket_of_the_process_does_not_matter() -> None:
    calm = ProcessWaits((ELSEWHERE,))
    for other in (
        replace(calm, asynchronous=(6,)),
        replace(calm, unasked_from=6),
        replace(calm, foreign=((78, 30),)),
        replace(calm, threads=(ELSEWHERE, sleeping("close", "close", 6))),
    ):
        assert told((10, other)).kind == "nobody", other


def test_a_loop_of_another_process_is_a_doubt_unless_that_process_is_a_holder_whose_loops_are_known() -> None:
    both = ((10, 5), (20, 8))
    watched = ProcessWaits((ELSEWHERE,), foreign=((77, 20),))
    assert told((10, watched), (20, ProcessWaits((ELSEWHERE,))), held=both).kind == "nobody"
    watched = replace(watched, foreign=((77, 20), (77, 30)))
    found = told((10, watched), (20, ProcessWaits((ELSEWHERE,))), held=both)
    assert (found.kind, "pid 30" in found.why) == ("unknown", True)


def test_a_thread_with_descriptors_of_its_own_is_known_by_the_socket() -> None:
    waiter = replace(sleeping("recvfrom", "fd"), sockets=((77, 0),))
    found = told((10, ProcessWaits((ELSEWHERE, waiter), unlisted=("tables",))))
    assert (found.kind, [one.tid for one in found.threads]) == ("thread", [13])


def test_a_loop_has_all_of_its_descriptors() -> None:
    copied = replace(loop(EPOLLIN), also=(40,))
    found = told((10, ProcessWaits((sleeping("epoll_wait", "epoll", 40),), (copied,))))
    assert (found.kind, [one.asleep for one in found.loops]) == ("loop", [True])


def test_of_a_loop_that_others_may_sleep_in_it_is_not_said_that_nobody_does() -> None:
    shared = replace(loop(EPOLLIN), apart=False)
    found = told((10, ProcessWaits((ELSEWHERE,), (shared,))))
    assert (found.kind, [one.asleep for one in found.loops]) == ("loop", [None])


def test_a_thread_that_would_have_been_woken_waits_for_something_else() -> None:
    inodes = np.array([77], np.uint32)
    descriptors = Descriptors(np.array([10], np.uint32), np.array([5], np.uint32), np.array([77], np.uint64))
    for call, kind, events, readable, expected in (
        ("recvfrom", "fd", 0, 0, "thread"),
        ("recvfrom", "fd", 0, 1, "unknown"),
        ("recvfrom", "fd", 0, 2, "unknown"),
        ("sendto", "fd", 0, 2, "thread"),
        ("poll", "set", EPOLLIN, 2, "unknown"),
        ("poll", "set", EPOLLRDHUP, 1, "thread"),
        ("splice", "fd", EPOLLIN, 2, "unknown"),
    ):
        processes = {10: ProcessWaits((sleeping(call, kind, 5, events=events),))}
        held = holders(inodes, descriptors)
        found = Waits(processes, inodes, held, {}, np.array([readable], np.int8)).of(0)
        assert found.kind == expected, (call, readable, found)
        assert ("thread 13 (reader) sleeps in" in found.why) is (expected == "unknown")
        assert bool(found.threads) is (expected == "thread")


def test_nobody_is_not_said_where_another_holder_was_not_read() -> None:
    assert told((10, ProcessWaits((ELSEWHERE,))), held=((10, 5), (20, 8))).kind == "unknown"


def test_nobody_is_not_said_of_a_socket_of_which_no_holder_is_known() -> None:
    for unreadable in ((), (99,)):
        found = told(held=(), unreadable=unreadable)
        assert (found.kind, found.others) == ("unknown", bool(unreadable))
        assert found.why


def test_it_is_about_the_holders_that_were_found_and_says_whether_there_may_be_others() -> None:
    found = told((10, ProcessWaits((ELSEWHERE,))), unreadable=(99,))
    assert (found.kind, found.others) == ("nobody", True)
    assert not told((10, ProcessWaits((ELSEWHERE,)))).others


def test_somebody_who_waits_is_said_even_where_others_could_not_be_read() -> None:
    reader = ProcessWaits((sleeping("recvfrom", "fd", 5),), unread=("read its threads\t",))
    assert told((10, reader), held=((10, 5), (20, 8)), unreadable=(99,)).kind == "thread"


def test_rows_of_which_nobody_asked_have_no_kind() -> None:
    inodes = np.array([77, 78, 0], np.uint32)
    descriptors = Descriptors(
        np.array([10, 30], np.uint32), np.array([5, 6], np.uint32), np.array([77, 78], np.uint64)
    )
    waits = Waits({10: ProcessWaits((ELSEWHERE,))}, inodes, holders(inodes, descriptors))
    assert waits.kinds.tolist() == [3, -1, -1]
    assert waits.rows("nobody").tolist() == [True, False, False]
    assert not Waits({}, inodes, holders(inodes, descriptors))


def test_each_row_is_answered_once_however_many_hold_it() -> None:
    """Rows of no holder, of one, and of several; one of which nobody asked is left out."""
    rows = [(10, 5, 77), (20, 5, 78), (30, 5, 78), (40, 5, 79), (41, 5, 79), (42, 5, 79), (99, 5, 80)]
    pid, fd, inode = (np.array([row[k] for row in rows], np.uint32) for k in range(3))
    inodes = np.array([76, 77, 78, 79, 80], np.uint32)
    asked = {n: ProcessWaits((ELSEWHERE,)) for n in (10, 20, 30, 40, 41, 42)}
    waits = Waits(asked, inodes, holders(inodes, Descriptors(pid, fd, inode.astype(np.uint64))))
    pairs = [(row, wait) for wait, rows_of in waits.answers for row in rows_of.tolist()]
    told = dict(pairs)
    assert sorted(row for row, _ in pairs) == [1, 2, 3]
    assert [told[row] for row in (1, 2, 3)] == [waits.of(row) for row in (1, 2, 3)]

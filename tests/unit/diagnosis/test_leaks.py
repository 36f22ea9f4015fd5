"""Connections that are still there are matched with the calls that opened them, or counted; never guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finwait.diagnosis import leaks
from finwait.diagnosis.leaks import (
    CallName,
    Calls,
    CallStack,
    Holding,
    TracedCall,
    Unmatched,
    grouped,
    match,
    own_frames,
)
from finwait.uapi import tcp
from finwait.uapi.perf_event import Sample
from finwait.uapi.stacks import StackFrame


def call(name: CallName, fd: int, inode: int, *, pid: int = 7, at: int = 0) -> TracedCall:
    return TracedCall(name, pid, fd, Sample(pid, pid, at, (), b""), inode)


def holding(inode: int, *holders: tuple[int, int], before: bool = False) -> Holding:
    return Holding(inode, tcp.CLOSE_WAIT, inode, holders, before)


def calls_of(*made: TracedCall, most: int = 100) -> Calls:
    calls = Calls(most)
    for entry in made:
        calls.add(entry)
    return calls


def test_the_last_call_on_the_descriptor_opened_it() -> None:
    calls = calls_of(call("accept", 5, 100), call("connect", 5, 101))
    matching = match([holding(101, (7, 5))], calls)
    assert [still.opening.name for still in matching.still] == ["connect"]
    assert matching.unmatched == {}


@pytest.mark.parametrize(
    ("connection", "reason"),
    [
        (holding(100), Unmatched.NO_HOLDER),
        (holding(100, (7, 6)), Unmatched.NO_CALL),
        (holding(100, (8, 5)), Unmatched.NO_CALL),
        (holding(999, (7, 5)), Unmatched.OTHER_SOCKET),
        (holding(200, (7, 9)), Unmatched.NOT_CHECKED),
        (holding(300, (7, 10)), Unmatched.RECORDS_LOST),
        (holding(400, (7, 11)), Unmatched.NO_CALL),
    ],
    ids=["nobody", "duplicated", "inherited", "used again", "unread", "lost", "half-closed only"],
)
def test_what_cannot_be_matched_is_counted_by_its_reason(connection: Holding, reason: Unmatched) -> None:
    calls = calls_of(call("accept", 5, 100), call("accept", 9, 0), call("shutdown", 11, 400))
    calls.add(call("accept", 10, 300, at=5))
    calls.doubted(7, 10, 5, Unmatched.RECORDS_LOST)
    matching = match([connection], calls)
    assert not matching.still
    assert matching.unmatched == {reason: 1}


def test_what_was_there_before_is_not_missed() -> None:
    matching = match(
        [holding(1, (7, 3), before=True), holding(2, (7, 4), before=True)], calls_of(call("accept", 4, 2))
    )
    assert (len(matching.still), matching.before, matching.unmatched) == (1, 1, {})


def test_any_holder_that_made_the_call_is_enough() -> None:
    matching = match([holding(100, (6, 5), (7, 5), (9, 5))], calls_of(call("accept", 5, 100)))
    assert [still.opening.pid for still in matching.still] == [7]


def test_a_half_close_belongs_to_the_socket_that_it_was_for() -> None:
    calls = calls_of(
        call("accept", 5, 100),
        call("shutdown", 5, 0),
        call("accept", 6, 200, at=2),
        call("shutdown", 6, 0, at=1),
    )
    shut = {
        still.connection.inode: still.half_close
        for still in match([holding(100, (7, 5)), holding(200, (7, 6))], calls).still
    }
    assert shut[100] is not None
    assert shut[200] is None
    calls.add(call("accept", 5, 300, at=3))
    (still,) = match([holding(300, (7, 5))], calls).still
    assert still.half_close is None


def test_the_first_shutdown_half_closes() -> None:
    calls = calls_of(call("accept", 5, 100, at=1), call("shutdown", 5, 0, at=2), call("shutdown", 5, 0, at=3))
    (still,) = match([holding(100, (7, 5))], calls).still
    assert still.half_close is not None
    assert still.half_close.sample.time_ns == 2


def test_of_a_descriptor_that_was_used_again_before_it_was_looked_at_the_last_accept_counts() -> None:
    """A path closes what it accepts; the number is another connection's when it is looked at."""
    calls = calls_of(call("accept", 5, 0, at=1))
    (unchecked,) = calls.unchecked()
    calls.checked(unchecked, 200, 10)
    calls.add(call("accept", 5, 0, at=2))
    (unchecked,) = calls.unchecked()
    calls.checked(unchecked, 200, 20)
    (still,) = match([holding(200, (7, 5))], calls).still
    assert still.opening.sample.time_ns == 2


def test_a_record_that_comes_late_does_not_take_the_place_of_a_later_one() -> None:
    calls = calls_of(call("accept", 5, 200, at=2), call("accept", 5, 100, at=1))
    calls.filled(7, 5, 1)
    (still,) = match([holding(200, (7, 5))], calls).still
    assert still.opening.sample.time_ns == 2


def test_what_fills_a_descriptor_takes_the_place_of_what_was_opened() -> None:
    calls = calls_of(call("connect", 5, 100, at=1), call("connect", 6, 200, at=1))
    calls.filled(7, 5, 2)
    calls.failed(7, 6, 1)
    assert match([holding(100, (7, 5)), holding(200, (7, 6))], calls).unmatched == {Unmatched.NO_CALL: 2}
    assert calls.descriptors() == []


def test_a_descriptor_that_may_have_been_filled_before_it_was_looked_at_is_not_believed() -> None:
    calls = calls_of(call("accept", 5, 0, at=1), call("accept", 9, 0, at=1), call("accept", 3, 0, at=1))
    calls.checked(calls.unchecked()[1], 900, 10)
    calls.filled_from(7, 4, 5)
    calls.checked(calls.unchecked()[0], 300, 10)
    answers = match([holding(500, (7, 5)), holding(900, (7, 9)), holding(300, (7, 3))], calls)
    assert [still.opening.fd for still in answers.still] == [3]
    assert answers.unmatched == {Unmatched.NOT_CHECKED: 2}


@pytest.mark.parametrize("reason", [Unmatched.PAUSED, Unmatched.RECORDS_LOST])
def test_what_is_not_confirmed_when_records_are_missing_is_in_doubt(reason: Unmatched) -> None:
    calls = calls_of(call("accept", 5, 100, at=1), call("accept", 6, 200, at=20))
    calls.confirm(10)
    calls.blind(reason, 30)
    answers = match(
        [holding(100, (7, 5)), holding(200, (7, 6)), holding(300, (7, 7)), holding(9, (7, 5))], calls
    )
    assert [still.opening.fd for still in answers.still] == [5]
    assert answers.unmatched == {reason: 3}
    calls.add(call("accept", 6, 200, at=40))
    assert len(match([holding(200, (7, 6))], calls).still) == 1


def test_a_half_close_may_be_the_second_one_where_records_are_missing_between() -> None:
    calls = calls_of(call("accept", 5, 100, at=1))
    calls.confirm(10)
    calls.blind(Unmatched.PAUSED, 30)
    calls.add(call("shutdown", 5, 0, at=40))
    (still,) = match([holding(100, (7, 5))], calls).still
    assert still.half_close is None


def test_a_process_of_the_same_number_is_another_one() -> None:
    calls = calls_of(call("accept", 5, 100, at=1), call("accept", 6, 200, at=9))
    calls.born(7, 5)
    assert match([holding(100, (7, 5)), holding(200, (7, 6))], calls).unmatched == {Unmatched.NO_CALL: 1}


def test_older_stacks_are_compressed_and_the_same() -> None:
    calls = Calls(100_000)
    for fd in range(2001):
        made = TracedCall("accept", 7, fd, Sample(7, 7, fd, (), b"", None, bytes(4096)), fd + 1)
        calls.add(made)
    first, last = (match([holding(fd + 1, (7, fd))], calls).still[0].opening for fd in (0, 2000))
    assert (first.packed, last.packed) == (True, False)
    assert len(first.sample.stack) < 100
    assert first.stack == last.stack == bytes(4096)


def test_a_program_that_was_replaced_has_no_names_any_more() -> None:
    calls = calls_of(
        call("accept", 5, 100, at=10), call("accept", 6, 200, at=30), call("accept", 5, 300, pid=8, at=10)
    )
    calls.executed(7, 20)
    still = match([holding(100, (7, 5)), holding(200, (7, 6)), holding(300, (8, 5))], calls).still
    assert [entry.opening.replaced for entry in still] == [True, False, False]


def test_the_oldest_descriptor_is_forgotten_and_counted() -> None:
    calls = calls_of(*(call("accept", fd, 100 + fd) for fd in range(5)), call("shutdown", 9, 1), most=3)
    assert (len(calls), calls.forgotten) == (3, 3)
    assert match([holding(100, (7, 0))], calls).unmatched == {Unmatched.FORGOTTEN: 1}


def test_groups_are_made_of_the_same_code_the_largest_first() -> None:
    first, second = CallStack((StackFrame("f"),)), CallStack((StackFrame("g"),))
    made = [call("accept", fd, 100 + fd, at=fd) for fd in range(4)]
    shut = call("shutdown", 3, 103, at=9)
    calls = calls_of(*made, shut)
    still = match([holding(100 + fd, (7, fd)) for fd in (3, 2, 1, 0)], calls).still
    frames = {made[0]: second, made[1]: first, made[2]: first, made[3]: first, shut: second}
    groups = grouped(still, frames, {7: "shop"})
    assert [(len(group.still), group.opened, group.half_closed) for group in groups] == [
        (2, first, None),
        (1, second, None),
        (1, first, second),
    ]
    assert [member.opening.fd for member in groups[0].still] == [1, 2]
    assert groups[0].comm == "shop"
    assert groups[0].states == {tcp.CLOSE_WAIT: 2}
    assert groups[0].pids == (7,)


def test_programs_of_another_name_are_another_group() -> None:
    one, other = call("accept", 5, 100), call("accept", 5, 200, pid=8)
    still = match([holding(100, (7, 5)), holding(200, (8, 5))], calls_of(one, other)).still
    stacks = {one: CallStack(), other: CallStack()}
    assert len(grouped(still, stacks, {7: "a", 8: "b"})) == 2
    (workers,) = grouped(reversed(still), stacks, {7: "a", 8: "a"})
    assert workers.pids == (7, 8)


def test_an_address_alone_tells_nothing_of_another_process() -> None:
    one, other = call("accept", 5, 100), call("accept", 5, 200, pid=8)
    still = match([holding(100, (7, 5)), holding(200, (8, 5))], calls_of(one, other)).still
    frames = (StackFrame("0x1234", own=False),)
    stacks = {one: CallStack(frames, pid=7), other: CallStack(frames, pid=8)}
    assert len(grouped(still, stacks, {7: "a", 8: "a"})) == 2


def test_run_time_code_is_known_by_its_place_and_by_addresses_where_one_process_has_two_such() -> None:
    made = [call("accept", fd, 100 + fd, pid=pid) for fd, pid in ((5, 7), (6, 8), (7, 7))]
    frames = (StackFrame("[run-time code]+0x10", own=False),)
    stacks = {c: CallStack(frames, run_time=(0x1000 * (k + 1),)) for k, c in enumerate(made)}
    still = match([holding(100 + c.fd, (c.pid, c.fd)) for c in made], calls_of(*made)).still
    comms = {7: "a", 8: "a"}
    assert [len(group.still) for group in grouped(still[:2], stacks, comms)] == [2]
    assert [len(group.still) for group in grouped(still, stacks, comms)] == [1, 1, 1]


LIBC = "/usr/lib/x86_64-linux-gnu/libc.so.6"


def named(*frames: tuple[str, str, int]) -> str:
    stack = own_frames(frames)
    return stack.frames[stack.matters].function if stack.matters >= 0 else ""


def test_in_c_the_program_itself_matters() -> None:
    assert named(("accept", LIBC, 1), ("take", "/srv/shop", 2), ("main", "/srv/shop", 3)) == "take"
    assert named(("accept", LIBC, 1), ("", "/srv/shop", 0x20)) == "/srv/shop+0x20"
    assert named(("accept", LIBC, 1), ("", "", 0x20), ("_start", "/srv/shop", 1)) == ""


@pytest.mark.parametrize(
    "wrappers",
    [
        ["connect"],
        ["__libc_connect"],
        ["sccp", "connect"],
        ["__syscall_cp_c", "__syscall_cp", "accept4"],
        ["__syscall_cancel_arch", "__internal_syscall_cancel", "__syscall_cancel", "__libc_accept"],
    ],
)
def test_a_c_library_within_the_program_does_not_matter(wrappers: list[str]) -> None:
    frames = [(name, "/srv/shop", k) for k, name in enumerate([*wrappers, "take", "connect", "main"])]
    assert named(*frames) == "take"


def test_a_static_program_without_names_has_no_frame_that_matters() -> None:
    assert named(("", "/srv/shop", 1), ("", "/srv/shop", 2), ("", "/srv/shop", 3)) == ""


def test_where_a_caller_may_be_missing_nothing_is_marked() -> None:
    frames = [("accept", LIBC, 1), ("take", "/srv/shop", 2), ("main", "/srv/shop", 3)]
    assert own_frames(frames, {1}).matters == -1
    assert own_frames(frames, {2}).matters == 1
    assert own_frames(frames, {2}).unclear == 2
    assert own_frames(frames).unclear == -1


def test_in_python_the_script_matters_and_the_interpreter_is_left_out() -> None:
    library = "/usr/lib/libpython3.12.so.1.0"
    stack = own_frames(
        [
            ("accept4", LIBC, 1),
            ("sock_accept", library, 2),
            ("py::socket.accept:/usr/lib/python3.12/socket.py", "", 3),
            ("py_trampoline_evaluator", library, 4),
            ("py::take:/srv/shop.py", "", 5),
            ("_start", "/usr/bin/python3.12", 6),
        ]
    )
    assert [frame.function for frame in stack.frames] == ["accept4", "socket.accept", "take"]
    assert stack.frames[stack.matters] == StackFrame("take", "/srv/shop.py", own=True)


def test_an_interpreter_without_names_of_functions_has_no_frame_that_matters() -> None:
    module = "/usr/lib/python3.11/lib-dynload/_socket.cpython-311-x86_64-linux-gnu.so"
    assert (
        named(("accept4", LIBC, 1), ("sock_accept", module, 2), ("_PyEval", "/usr/bin/python3.11", 3)) == ""
    )
    assert named(("accept4", LIBC, 1), ("x", "/opt/lib/libpython3.12.so.1.0 (deleted)", 2)) == ""


def test_in_go_the_standard_library_does_not_matter() -> None:
    file = "/srv/shop"
    frames = [
        (name, file, k)
        for k, name in enumerate(
            [
                "internal/runtime/syscall.Syscall6",
                "syscall.accept4",
                "internal/poll.(*FD).Accept",
                "net.(*TCPListener).Accept",
                "net/http.(*Server).Serve",
                "golang.org/x/net/netutil.Accept",
                "example.org/shop.Take",
                "main.main",
                "runtime.goexit.abi0",
            ]
        )
    ]
    assert named(*frames) == "example.org/shop.Take"
    assert (
        named(("net.Accept", file, 1), ("main", file, 2)) == "net.Accept"
    )  # of a program in another language


def test_in_node_the_script_matters() -> None:
    frames = [
        ("connect", LIBC, 1),
        ("uv_tcp_connect", "/usr/bin/node", 2),
        ("JS:*connect node:net:1:2", "", 3),
        ("JS:~open /srv/a.js:3:4", "", 5),
    ]
    assert named(*frames) == "JS:~open /srv/a.js:3:4"


EVENT = st.tuples(
    st.sampled_from(["accept", "connect", "shutdown", "filled", "failed", "blind", "check", "confirm"]),
    st.integers(1, 2),
    st.integers(3, 5),
    st.integers(0, 6),
)


@given(
    st.lists(EVENT, max_size=40),
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 2), st.integers(3, 5)), max_size=6),
)
def test_what_is_matched_is_always_the_last_opening_and_of_that_socket(
    events: list[tuple[str, int, int, int]], ends: list[tuple[int, int, int]]
) -> None:
    """Descriptors refer to sockets as a model says; what is matched is what opened them there."""
    calls = Calls(100)
    last: dict[tuple[int, int], tuple[str, int]] = {}
    for at, (name, pid, fd, inode) in enumerate(events, 1):
        place = pid, fd
        if name in ("accept", "connect"):
            calls.add(call("accept" if name == "accept" else "connect", fd, inode, pid=pid, at=at))
            last[place] = name, at
        elif name == "shutdown":
            calls.add(call("shutdown", fd, 0, pid=pid, at=at))
        elif name == "filled":
            calls.filled(pid, fd, at)
            last.pop(place, None)
        elif name == "failed" and place in last:
            calls.failed(pid, fd, last.pop(place)[1])
        elif name == "blind":
            calls.blind(Unmatched.PAUSED, at)
        elif name == "check":
            for unchecked in calls.unchecked():
                calls.checked(unchecked, inode, at)
        elif name == "confirm":
            calls.confirm(at - 1)
    matching = match([holding(inode, (pid, fd)) for inode, pid, fd in ends], calls)
    assert len(matching.still) + sum(matching.unmatched.values()) == len(ends)
    for still in matching.still:
        (place,) = still.connection.holders
        opening = still.opening
        assert last[place] == (opening.name, opening.sample.time_ns)
        assert opening.inode == still.connection.inode
        assert still.half_close is None or still.half_close.sample.time_ns > opening.sample.time_ns


@pytest.mark.parametrize(
    ("function", "library"),
    [
        ("syscall", True),
        ("__syscall_cp_asm", True),
        ("__syscall_cancel_arch", True),
        ("__internal_syscall_cancel", True),
        ("__GI___connect", True),
        ("__libc_accept4", True),
        ("syscall_direct", False),  # a program that makes the call itself
        ("socketcall_of_mine", False),
        ("connect_all", False),
    ],
)
def test_wrappers_of_c_libraries_are_known_and_functions_like_them_are_not(
    function: str, library: bool
) -> None:
    assert bool(leaks._WRAPPER.match(function)) is library

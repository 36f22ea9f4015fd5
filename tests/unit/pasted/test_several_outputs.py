"""Several outputs in one text: none erases another, and nobody is named for what another machine's process holds."""

from __future__ import annotations

import pytest

from finwait.pasted.observation import PastedText, observations
from finwait.recording import redact
from finwait.table import decode
from finwait.uapi import tcp
from finwait.uapi.observation import Observation

HEAD = "State      Recv-Q Send-Q Local Address:Port Peer Address:Port Process\n"


def rows(*lines: str) -> str:
    return HEAD + "".join(f"{line}\n" for line in lines)


def row(state: str, src: str, dst: str, pid: int = 0, name: str = "java", fd: int = 9) -> str:
    users = f' users:(("{name}",pid={pid},fd={fd}))' if pid else ""
    return f"{state} 1 0 {src} {dst}{users}"


WAITS = row("CLOSE-WAIT", "10.0.0.1:8080", "10.0.0.9:51000", 812)
OPEN = row("ESTAB", "10.0.0.2:443", "10.0.0.9:52000", 812, "nginx")
SAME = row("ESTAB", "10.0.0.1:22", "10.0.0.9:52000", 7, "sshd")


def look(*texts: str) -> Observation:
    return observations([PastedText(str(k), text.split("\n")) for k, text in enumerate(texts)]).looks[-1]


def ends(seen: Observation) -> list[tuple[str, int]]:
    s = decode.sockets(seen)
    return sorted(
        (tcp.ss_name(state), port) for state, port in zip(s.state.tolist(), s.sport.tolist(), strict=True)
    )


def doing(seen: Observation) -> str:
    return "\n".join(gap.doing for gap in seen.gaps)


@pytest.mark.parametrize(
    "between",
    [
        "",
        "web-2 | CHANGED | rc=0 >>\n",
        "web-2 ~ # ss -tanp\n",
        "root@bastion:~# kubectl exec pod-b -- ss -tanp\n",
        "root@bastion:~# ip netns exec green ss -tanp\n",
        "root@bastion:~# ssh web-2 ss -tanp\n",
        "Tue Dec  1 10:00:05 UTC 2026\n",
        "root@web-1:~# ss -tanp\n",
    ],
)
@pytest.mark.parametrize("second", [OPEN, SAME, ""])
def test_a_later_output_leaves_the_rows_of_an_earlier_one(between: str, second: str) -> None:
    first = "Tue Dec  1 10:00:00 UTC 2026\nroot@bastion:~# ss -tanp\n" + rows(WAITS)
    seen = look(first + between + rows(*filter(None, [second])))
    assert ("CLOSE-WAIT", 8080) in ends(seen)
    assert len(ends(seen)) == 1 + bool(second)


def test_two_files_that_share_one_address_alone_are_not_two_looks() -> None:
    bridge = row("LISTEN", "172.17.0.1:53", "0.0.0.0:*")
    seen = look(rows(WAITS, bridge), rows(OPEN, bridge.replace(":53", ":54")))
    assert ("CLOSE-WAIT", 8080) in ends(seen)


def test_what_was_seen_closing_counts_also_where_it_was_open_before() -> None:
    later = WAITS.replace("CLOSE-WAIT", "ESTAB")
    assert ends(look(rows(later) + rows(WAITS))) == [("CLOSE-WAIT", 8080)]
    assert ends(look(rows(WAITS) + rows(WAITS))) == [("CLOSE-WAIT", 8080)], "one connection is one"


def test_a_process_of_each_container_has_number_1() -> None:
    text = "".join(
        f"$ docker exec {name} ss -tanp\n{rows(line)}"
        for name, line in (
            ("app1", row("CLOSE-WAIT", "172.17.0.2:8080", "10.0.0.9:51000", 1)),
            ("app2", row("ESTAB", "172.17.0.3:443", "10.0.0.9:52000", 1, "nginx")),
        )
    )
    assert look(text).processes[1].comm == b"java or nginx"


def test_the_state_of_one_command_is_not_that_of_the_next() -> None:
    bare = "Recv-Q Send-Q Local Address:Port Peer Address:Port\n{} 0 10.0.0.1:80 10.0.0.9:{}\n"
    text = (
        "$ ss -tan state fin-wait-2\n"
        + bare.format(0, 51000)
        + "$ myss ss | ss -tan state close-wait\n"
        + bare.format(1, 51001)
    )
    seen = look(text)
    assert ends(seen) == [("FIN-WAIT-2", 80)]
    assert "tell the state of 1 row" in doing(seen)


@pytest.mark.parametrize("name", ['a",pid=1,fd=3', 'a",pid=1,fd=3))', 'a",1,3'])
def test_a_name_that_reads_like_a_holder_makes_nobody_one(name: str) -> None:
    seen = look(rows(row("CLOSE-WAIT", "10.0.0.1:8080", "10.0.0.9:51000", 812, name)))
    assert 1 not in seen.descriptors.pid
    assert not len(seen.descriptors.pid)
    assert "read who holds a row" in doing(seen)


def test_what_a_terminal_wrapped_within_a_number_gives_no_other_number() -> None:
    text = rows(WAITS)
    at_fd = look(text.replace("fd=9))", "fd=1\n5))"))
    assert not len(at_fd.descriptors.fd)
    at_port = look(rows("CLOSE-WAIT 1 0 10.0.0.1:80\n01 10.0.0.9:51000"), text)
    assert ("CLOSE-WAIT", 80) not in ends(at_port)
    peer = look(rows('CLOSE-WAIT 1 0 10.0.0.1:8080 10.0.0.9:5100\n0 users:(("java",pid=812,fd=9))'), text)
    assert 5100 not in decode.sockets(peer).dport


def test_rows_that_nothing_knows_are_counted() -> None:
    text = rows(OPEN) + f"web-1: {WAITS}\nweb-1: {WAITS}\n"
    assert "read lines that look like rows, of no tool that is known: 2" in doing(look(text))
    german = "tcp        0      0 10.0.0.1:22             10.0.0.7:41000          VERBUNDEN   700/sshd\n"
    assert "read lines that look like rows, of no tool that is known: 1" in doing(look(rows(OPEN) + german))


def test_names_of_processes_are_redacted() -> None:
    (plain,) = redact([look(rows(WAITS))])
    assert b"java" not in (plain.processes[812].comm or b"java")


def test_columns_may_stand_between_tabs() -> None:
    assert ends(look(rows(WAITS).replace(" 1 0 ", "\t1\t0\t"))) == [("CLOSE-WAIT", 8080)]


def test_a_repeated_command_leaves_what_others_showed_where_it_is() -> None:
    typed = f"root@web-1:~# ss -tn | grep ESTAB\n{rows(SAME)}"
    seen = look(f"root@web-1:~# ss -tanp\n{rows(WAITS)}{typed}{typed}")
    assert ends(seen) == [("CLOSE-WAIT", 8080), ("ESTAB", 22)]


def test_listeners_that_every_machine_has_make_no_second_look() -> None:
    doors = [row("LISTEN", f"0.0.0.0:{port}", "0.0.0.0:*") for port in (22, 53, 111)]
    seen = look(rows(WAITS, *doors), rows(*doors))
    assert ("CLOSE-WAIT", 8080) in ends(seen)


@pytest.mark.parametrize(
    "after", ["4", "4\n5", "logout", "EOF", " 10:00:01 up 3 days,  1:02,  1 user,  load average: 0.00"]
)
def test_what_another_command_prints_below_costs_no_row(after: str) -> None:
    assert ends(look(rows(SAME, row("CLOSE-WAIT", "10.0.0.1:8080", "10.0.0.9:51000")) + after + "\n")) == [
        ("CLOSE-WAIT", 8080), ("ESTAB", 22),
    ]  # fmt: skip


@pytest.mark.parametrize("line", ["ssh web-2 'ss -tan state close-wait'", "and of state close-wait:"])
def test_a_line_that_speaks_of_a_state_ends_the_state_of_the_last_command(line: str) -> None:
    bare = "Recv-Q Send-Q Local Address:Port Peer Address:Port\n{} 0 10.0.0.1:80 10.0.0.9:{}\n"
    seen = look(f"$ ss -tan state fin-wait-2\n{bare.format(0, 51000)}{line}\n{bare.format(1, 51001)}")
    assert ends(seen) == [("FIN-WAIT-2", 80)]


@pytest.mark.parametrize("group", ['/user/users:(("sshd",pid=1,fd=3))', '/user/,("sshd",pid=1,fd=3))'])
def test_a_cgroup_that_reads_like_a_holder_is_none(group: str) -> None:
    line = row("CLOSE-WAIT", "10.0.0.1:8080", "10.0.0.9:51000", 812) + f" ino:7 cgroup:{group}"
    assert look(rows(line)).descriptors.pid.tolist() == [812]
    assert look(rows(line.replace('users:(("java",pid=812,fd=9))', ""))).descriptors.pid.tolist() == []

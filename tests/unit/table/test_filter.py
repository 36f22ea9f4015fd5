"""What each predicate means, which states it asks for, and what is said about mistakes."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest

from finwait.errors import FilterError
from finwait.table.filter import PREDICATES, SERVICES, Filter, parse
from finwait.table.predicates import Perhaps
from finwait.table.sockets import SCHEMA, SocketTable, pack_address
from finwait.table.vocabulary import IN_BYTES, named_states
from finwait.uapi import tcp

ROWS = [
    # family, src, sport, dst, dport, state, inode
    (2, "10.0.0.1", 40001, "10.0.0.9", 443, tcp.ESTABLISHED, 11),
    (2, "10.0.0.1", 40002, "10.0.0.9", 443, tcp.FIN_WAIT2, 12),
    (2, "10.0.0.1", 40003, "10.9.0.9", 80, tcp.FIN_WAIT2, 0),
    (10, "::ffff:10.0.0.2", 443, "::ffff:10.0.0.1", 40004, tcp.CLOSE_WAIT, 13),
    (10, "2001:db8::1", 443, "2001:db8::2", 50000, tcp.TIME_WAIT, 0),
    (10, "::", 443, "::", 0, tcp.LISTEN, 14),
]
TABLE = SocketTable.from_columns(
    {
        "family": [r[0] for r in ROWS],
        "src": [pack_address(r[1]) for r in ROWS],
        "sport": [r[2] for r in ROWS],
        "dst": [pack_address(r[3]) for r in ROWS],
        "dport": [r[4] for r in ROWS],
        "state": [r[5] for r in ROWS],
        "inode": [r[6] for r in ROWS],
        "timer": [0, 2, 3, 0, 3, 0],
        "expires_ms": [0, 61_000, 5_000, 0, 30_000, 0],
        "uid": [1000, 0, 0, 33, 0, 0],
        "ifindex": [0, 2, 0, 0, 0, 3],
        "rqueue": [0, 0, 0, 65_537, 0, 2],
        "cookie": [0x1A, 0x1B, 0x1C, 0x1D, 0x1E, 0x1F],
        "netns": [7, 7, 7, 7, 8, 8],
        "protocol": [6, 6, 6, 6, 6, 262],
        "cong": [b"cubic", b"bbr", b"", b"cubic", b"", b"reno"],
        "mark": [0x10, 0x11, 0, 0, 0, 0],
    }
)


def rows(text: str, **context: object) -> list[int]:
    return np.flatnonzero(parse(text).mask(TABLE, context)).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [0, 1, 2, 3, 4, 5]),
        ("state fin-wait-2", [1, 2]),
        ("FIN_WAIT2", [1, 2]),
        ("state established,close-wait", [0, 3]),
        ("state established, close-wait", [0, 3]),
        ("state = established , close-wait", [0, 3]),
        ("state != fin-wait-2", [0, 3, 4, 5]),
        ("state connected exclude fin-wait-2", [0, 3, 4]),
        ("exclude fin-wait-2 exclude listen", [0, 3, 4]),
        ("established fin-wait-2", [0, 1, 2]),
        ("state bucket", [4]),
        ("state big", [0, 1, 2, 3, 5]),
        ("state synchronized", [0, 1, 2, 3, 4]),
        ("not fin-wait-2", [0, 3, 4, 5]),
        ("state = 5", [1, 2]),
        ("!state fin-wait-2", [0, 3, 4, 5]),
        ("not fin-wait-2 and established", [0]),
        ("state fin-wait-2 dport = :80 or dport = :443", [1, 2]),
        ("( state fin-wait-2 and dport = :80 ) or dport = :443", [0, 1, 2]),
        ("state fin-wait-2 and ( dport = :80 or dport = :443 )", [1, 2]),
        ("state fin-wait-2 and dport = :443", [1]),
        ("state fin-wait-2 or sport = :443", [1, 2, 3, 4, 5]),
        ("sport :443", [3, 4, 5]),
        ("sport 443", [3, 4, 5]),
        ("sport = https", [3, 4, 5]),
        ("sport=:443,40001", [0, 3, 4, 5]),
        ("sport != :443,40001", [1, 2]),
        ("dport > :443", [3, 4]),
        ("dport gt 443", [3, 4]),
        ("dport >= :443", [0, 1, 3, 4]),
        ("dport < 443", [2, 5]),
        ("dport le 80", [2, 5]),
        ("sport = *", [0, 1, 2, 3, 4, 5]),
        ("src 10.0.0.1", [0, 1, 2]),
        ("src 10.0.0.0/8", [0, 1, 2, 3]),
        ("src 10/8", [0, 1, 2, 3]),
        ("src 10.0.0.0/255.0.0.0", [0, 1, 2, 3]),
        ("src 10.255.255.255/8", [0, 1, 2, 3]),
        ("src 10.0.0.255", []),
        ("src 10.0.0.255/24", [0, 1, 2, 3]),
        ("src != 255.255.255.255", [0, 1, 2, 3, 4, 5]),
        ("src 0.0.0.0/0", [0, 1, 2, 3]),
        ("src [::]/0", [3, 4, 5]),
        ("src [::ffff:10.0.0.2]", [3]),
        ("src [::ffff:0:0]/96", [3]),
        ("src 2001:db8::/32", [4]),
        ("src [2001:db8::/32]:443", [4]),
        ("src [2001:db8::1]:443", [4]),
        ("src [2001:db8::1]:444", []),
        ("src ::", [5]),
        ("src 2001:db8::/32:443", [4]),
        ("src 10.0.0.0/8:443", [3]),
        ("dst 10.0.0.9:443", [0, 1]),
        ("dst :443", [0, 1]),
        ("dst *:443", [0, 1]),
        ("dst *", [0, 1, 2, 3, 4, 5]),
        ("dst 10.0.0.9/16:https", [0, 1]),
        ("src != 10.0.0.0/8", [4, 5]),
        ("src inet:*", [0, 1, 2]),
        ("src inet:10.0.0.0/8", [0, 1, 2]),
        ("src inet6:*:443", [3, 4, 5]),
        ("dev 2", [1]),
        ("dev != 0", [1, 5]),
        ("fwmark = 0x10/0xf0", [0, 1]),
        ("fwmark 16", [0]),
        ("fwmark != 16", [1, 2, 3, 4, 5]),
        ("mark > 0x10", [1]),
        ("fwmark 0x11/0xf0", []),
        ("held", [0, 1, 3, 5]),
        ("orphan", [2, 4]),
        ("inode = 0", [2, 4]),
        ("inode 12", [1]),
        ("timer = 0", [0, 3, 5]),
        ("timer = timewait", [2, 4]),
        ("timer != none,timewait", [1]),
        ("expires_ms > 1m", [1]),
        ("expires_ms >= 5s", [1, 2, 4]),
        ("expires_ms = 61000", [1]),
        ("expires_ms = 1m1s", [1]),
        ("rqueue > 64k", [3]),
        ("rqueue > 0x10000", [3]),
        ("cookie = 0x1a,sk:1f", [0, 5]),
        ("family = inet", [0, 1, 2]),
        ("family = ipv6", [3, 4, 5]),
        ("family != inet6", [0, 1, 2]),
        ("protocol = mptcp", [5]),
        ("netns = 7", [0, 1, 2, 3]),
        ("netns = net:[8]", [4, 5]),
        ("uid = 0", [1, 5]),
        ("uid != 0", [0, 3]),
        ("uid >= 0", [0, 1, 3, 5]),
        ("user = root", [1, 5]),
        ("user != root", [0, 3]),
        ("user = 0", [1, 5]),
        ("user != 0", [0, 3]),
        ("cong = cubic", [0, 3]),
        ("cong != c*", [1, 2, 4, 5]),
        ("cong ?br", [1]),
        ("cong b?r", [1]),
        ("rtt_us > 0", []),
        ("rtt_us <= 0", []),
        ("not rtt_us > 0", []),
        ("not ( rtt_us > 0 or held )", []),
        ("held or rtt_us > 0", [0, 1, 3, 5]),
        ("sport = :443 and ( dport = :0 or dport = :50000 )", [4, 5]),
        ("sport=:443&&(dport=:0||dport=:50000)", [4, 5]),
        (r"sport = :443 & \( dport = :0 | dport = :50000 \)", [4, 5]),
        ("not(sport=:443)dport=:80", [2]),
        ("! ! held", [0, 1, 3, 5]),
        ("dport = :80 and src 10/8 or sport 443", [2, 3, 4, 5]),
    ],
)
def test_a_filter_selects(text, expected):
    assert rows(text) == expected


UID = "0b5a2f3c-1111-2222-3333-444455556666"
CONTAINER = "3f2a9c" + "0" * 58
KNOWN = {
    "age_at_least_s": [700.0, 10.0, np.nan, 0.0, 60.0, 0.0],
    "age_at_most_s": np.array([800.0, 20.0, np.nan, np.inf, 60.0, 5.0]),
    "autobound": np.array([True, True, False, False, True, False]),
    "cgroup": ["/a", "/a/b", "", None, "/", "/a"],
    "comm": [("nginx",), ("nginx", "my app"), (), None, (), ("nginx-helper",)],
    "container": [("containerd://" + CONTAINER, "web"), None, (), (CONTAINER,), (), ("abc", "web")],
    "dev": ["", "eth0", "", "", None, "eth1"],
    "netns": [("host",), ("host",), ("host",), ("host",), ("blue", "cni-1"), None],
    "pid": [(812,), (812, 900), (), None, (), (1,)],
    "pod": [(UID, "shop/web-0"), (UID.upper().replace("-", "_"),), ("shop/db-0",), None, (), ("blog/web-0",)],
    "rule": [("a-rule",), ("a-rule", "b-rule"), (), None, ("b-rule",), ()],
    "severity": [("problem",), ("notice", "problem"), (), None, ("healthy",), ()],
    "user": ["www-data", "root", None, "www-data", None, "root"],
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("age > 10m", [0]),
        ("age > 700", []),
        ("age >= 700", [0]),
        ("age < 1m", [1, 5]),
        ("age <= 60s", [1, 4, 5]),
        ("age = 1m", [4]),
        ("age != 1m", [0, 1, 5]),
        ("not age > 10m", [1, 4, 5]),
        ("autobound", [0, 1, 4]),
        ("not autobound", [2, 3, 5]),
        ("cgroup = /a", [0, 5]),
        ("cgroup = /sys/fs/cgroup/a/", [0, 5]),
        ("cgroup /sys/fs/cgroup/unified/a/b", [1]),
        ("cgroup a*", [0, 1, 5]),
        ("cgroup != /a", [1, 2, 4]),
        ("comm = nginx", [0, 1]),
        ("comm = nginx*", [0, 1, 5]),
        ("comm != nginx", [2, 4, 5]),
        ("comm = 'my app'", [1]),
        ('comm = "my app",nginx-helper', [1, 5]),
        ("container = 3f2a", [0, 3]),
        ("container = docker://3f2a9c", [0, 3]),
        ("container = web", [0, 5]),
        ("container = we", []),
        ("container = ab", []),
        ("dev eth0", [1]),
        ("dev != eth0", [0, 2, 3, 5]),
        ("dev = eth*", [1, 5]),
        ("netns = host", [0, 1, 2, 3]),
        ("netns = cni-*", [4]),
        ("netns != host", [4]),
        ("pid = 812", [0, 1]),
        ("pid 900,1", [1, 5]),
        ("pid != 812", [2, 4, 5]),
        (f"pod = {UID}", [0, 1]),
        (f"pod = pod{UID.replace('-', '_')}", [0, 1]),
        ("pod = shop/web-0", [0]),
        ("pod = web-0", [0, 5]),
        ("pod = shop/*", [0, 2]),
        ("rule = a-rule", [0, 1]),
        ("rule = a-rule,b-rule", [0, 1, 4]),
        ("rule != a-rule", [2, 4, 5]),
        ("not rule = a-rule,b-rule", [2, 5]),
        ("severity = problem", [0, 1]),
        ("severity = notice,healthy", [1, 4]),
        ("user = www-data", [0, 3]),
        ("user = 'root*'", [1, 5]),
        ("pid = 812 or rule = b-rule", [0, 1, 4]),
    ],
)
def test_a_filter_selects_by_what_the_caller_knows(text, expected):
    parsed = parse(text)
    assert np.flatnonzero(parsed.mask(TABLE, KNOWN)).tolist() == expected
    assert parsed.needs


def test_of_values_that_are_not_all_known_one_may_match_and_none_can_be_excluded():
    known = {"pid": [(1, None), (None,), (), None, (7,), (8, None)]}
    assert rows("pid = 1", **known) == [0]
    assert rows("pid != 1", **known) == [2, 4]
    assert rows("not pid = 1,7", **known) == [2]
    assert rows("comm = None", comm=known["pid"]) == []


def test_what_a_row_may_have_beside_what_is_known_decides_only_where_it_would_match():
    others = Perhaps(frozenset({"1", "9"}))
    known = {"pid": [(812, others), (others,), (), None, (1, others), (7,)]}
    assert rows("pid = 812", **known) == [0]
    assert rows("pid != 812", **known) == [1, 2, 4, 5]
    assert rows("pid = 1", **known) == [4]
    assert rows("pid != 1", **known) == [2, 5]


def test_a_word_that_is_quoted_is_a_name_whatever_else_it_is():
    assert rows("comm = 'held'", comm=[("held",), (), (), (), (), ()]) == [0]


class Asked:
    """A context that notes what it is asked for."""

    def __init__(self, values):
        self.known, self.asked = values, []

    def values(self, name):
        self.asked.append(name)
        return self.known[name]


def test_a_context_is_asked_only_while_a_row_is_undecided_and_once_a_name():
    context = Asked(KNOWN)
    parse("comm = nginx and sport = :1").mask(TABLE, context)
    assert context.asked == []
    parse("comm = nginx,apache and sport = :40001").mask(TABLE, context)
    assert context.asked == ["comm"]


@pytest.mark.parametrize("context", [None, {}, {"rule": [None]}])
def test_a_context_that_does_not_fit_is_refused(context):
    with pytest.raises(ValueError, match="rule"):
        parse("rule = x").mask(TABLE, context)


@pytest.mark.parametrize(
    ("text", "needs", "columns"),
    [
        ("", set(), set()),
        ("sport = :1 or src 10/8", set(), {"sport", "src", "family"}),
        ("age > 1m", {"age_at_least_s"}, set()),
        ("not age > 1m", {"age_at_most_s"}, set()),
        ("age = 1m", {"age_at_least_s", "age_at_most_s"}, set()),
        ("user = 5", set(), {"uid", "state", "timer", "inode"}),
        ("uid = 5", set(), {"uid", "state", "timer", "inode"}),
        ("user = root", set(), {"uid", "state", "timer", "inode"}),
        ("user = bob", {"user"}, set()),
        ("dev lo pid 1", {"dev", "pid"}, set()),
        ("rtt_us > 1ms cong bbr", set(), {"rtt_us", "cong"}),
    ],
)
def test_a_filter_says_what_it_will_look_at(text, needs, columns):
    assert parse(text).needs == needs
    assert parse(text).columns == columns


def bits(*states: int) -> int:
    return sum(1 << s for s in states)


@pytest.mark.parametrize(
    ("text", "states"),
    [
        ("", tcp.ALL_STATES),
        ("sport = :1", tcp.ALL_STATES),
        ("state all", tcp.ALL_STATES),
        ("state fin-wait-2", bits(5)),
        ("state syn-recv", bits(3, 12)),
        ("state fin-wait-2 sport = :1 or sport = :2", bits(5)),
        ("state fin-wait-2 or sport = :2", tcp.ALL_STATES),
        ("( state fin-wait-2 and sport = :1 ) or ( close-wait pid 1 )", bits(5, 8)),
        ("not ( state fin-wait-2 or sport = :1 )", tcp.ALL_STATES & ~bits(5)),
        ("not ( state fin-wait-2 and sport = :1 )", tcp.ALL_STATES),
        ("state fin-wait-2 and state close-wait", 0),
        ("exclude all", 0),
        ("state bound-inactive", bits(13)),
        ("state all,bound-inactive", tcp.ALL_STATES | bits(13)),
        ("not established", tcp.ALL_STATES & ~bits(1)),
        ("state unconnected", bits(7)),
    ],
)
def test_a_filter_asks_for_the_states_that_can_match(text, states):
    parsed = parse(text)
    assert parsed.states == states
    assert parsed.says_states == bool(re.search("state|exclude|established|close-wait", text))


@pytest.mark.parametrize(
    ("text", "column", "message", "hint"),
    [
        ("stat established", 0, "`stat` is not a predicate", "did you mean `state`?"),
        ("dprot = :443", 0, "`dprot` is not a predicate", "did you mean `dport`?"),
        ("sport = :443 expires > 5", 13, "`expires` is not a predicate", "`expires_ms`"),
        ("state fin-wiat-2", 6, "no state is called `fin-wiat-2`", "did you mean `fin-wait-2`?"),
        ("state established,tmie-wait", 18, "no state", "did you mean `time-wait`?"),
        ("fin-wait2x", 0, "`fin-wait2x` is not a predicate", "did you mean `fin-wait-2`?"),
        ("state xyzzy", 6, "no state", "states: established, syn-sent"),
        ("443", 0, "`443` is not a predicate", "sport = :443"),
        ("10.0.0.1", 0, "`10.0.0.1` is not a predicate", "src 10.0.0.1"),
        ("xyzzy", 0, "`xyzzy` is not a predicate", "predicates: state"),
        ("'held'", 0, "cannot be quoted", ""),
        ("sport = :htps", 8, "no service is called `htps`", "did you mean `https`?"),
        ("sport = :xyzzy", 8, "no service", "number"),
        ("sport = 10.0.0.1", 8, "is not a port", "`src`"),
        ("sport = :65536", 8, "65536 is not a port", "65535"),
        ("sport > *", 8, "needs a port", ""),
        ("sport", 5, "`sport` needs a value", "sport = :443"),
        ("sport =", 7, "not the end", ""),
        ("sport = and", 8, "not `and`", 'quote it: "and"'),
        ("sport = (", 8, "not `(`", ""),
        ("sport > 1,2", 10, "takes one value", "lists"),
        ("sport = 1,,2", 10, "nothing between the commas", ""),
        ("src > 10.0.0.1", 4, "compares with `=` and `!=` only", ""),
        ("comm < x", 5, "compares with `=` and `!=` only", ""),
        ("state > established", 6, "compare with `=` and `!=` only", ""),
        ("src 10", 4, "is not a whole address", "10.0.0.0/8"),
        ("src 10.0.0.256", 4, "not an address", "255"),
        ("src 256.0.0.1", 4, "not an address", "255"),
        ("src example.org", 4, "not an address", "not looked up"),
        ("src 10.0.0.0/33", 13, "not the length of a prefix", "32"),
        ("src [::]/129", 9, "not the length of a prefix", "128"),
        ("src 10.0.0.0/255.0.255.0", 13, "not a mask", "/8"),
        ("src [::1", 4, "bracket is not closed", "]:443"),
        ("src [::1]443", 9, "cannot follow a bracket", ""),
        ("src fe80::1:443", 4, "with and without a port", "[fe80::1]:443"),
        ("src fe80::1%eth0", 4, "not an address", ""),
        ("src unix:/run/x", 4, "not TCP", ""),
        ("src inet:::1", 9, "not an address of `inet`", ""),
        ("inode = x", 8, "`x` is not a number", "Inode"),
        ("inode = 4294967296", 8, "out of range", "4294967295"),
        ("inode = 5s", 8, "neither a time", ""),
        ("expires_ms > 1us", 13, "whole milliseconds", ""),
        ("expires_ms > 5x", 13, "not a unit of time", "ms"),
        ("expires_ms > soon", 13, "not a duration", "100ms"),
        ("rqueue > 1.0001k", 9, "whole numbers", ""),
        ("family = ipx", 9, "cannot be `ipx`", "inet6"),
        ("age > ten", 6, "not a duration", "10m"),
        ("age > 0.1us", 6, "whole microseconds", ""),
        ("pid = nginx", 6, "not a process id", "comm = nginx"),
        ("severity = bad", 11, "no severity", "notice"),
        ("rule = fin-wait2-hled", 7, "no rule", "did you mean `fin-wait2-held`?"),
        ("fwmark = 1/", 11, "not a number", ""),
        ("( held", 0, "not closed", ")"),
        ("held )", 5, "closes nothing", ""),
        ("( )", 2, "nothing between", ""),
        ("held and", 8, "the filter ends where a predicate should follow after `and`", ""),
        ("and held", 0, "there is `and` where a predicate should follow at the start", ""),
        ("held or or held", 8, "there is `or`", ""),
        ("held = 1", 5, "`=` has nothing to compare", "NAME"),
        ("comm = 'a", 7, "is not closed", "closing '"),
        ("held \\", 5, "begins with", ""),
        ("held or orphan and sport = :1", 15, "`and` after `or` can be read in two ways", "parentheses"),
        ("held or orphan sport = :1", 15, "side by side after `or`", "parentheses"),
        ("state fin-wait-2 and held or orphan", 17, "can be read in two ways", "( state S and a ) or b"),
        ("not fin-wait-2 established", 15, "two states side by side after `not`", "exclude A,B"),
        ("dport = :", 8, "does not name a port", "`*`"),
        ("sport = ''", 8, "is empty", "is a variable of your script not set?"),
        ("src = ''", 6, "is empty", "variable"),
        ("src = :", 6, "ends without a port", "`*`"),
        ("dst = 10.0.0.1:", 6, "ends without a port", "`*`"),
        ("dst = []:443", 6, "no address in the brackets", "variable"),
        ('cgroup = " "', 9, "is empty", "variable"),
        ("comm = '' held", 7, "is empty", "variable"),
        ("comm = held", 7, "`comm` has no value; `held` is a predicate", 'quote it: "held"'),
        (
            "comm != close-wait",
            8,
            "`comm` has no value; `close-wait` is a predicate",
            'quote it: "close-wait"',
        ),
        ("user != fin-wait-2 held", 8, "`user` has no value", "quote"),
        ("comm = a, connected", 10, "`comm` has no value", "quote"),
        ("netns != exclude time-wait", 9, "`netns` has no value", "quote"),
        ("src = inet:", 6, "ends without an address", "`*` means any; is a variable"),
        ("dst != inet6: held", 7, "ends without an address", "variable"),
        (" ", 0, "this word is empty", "variable"),
        ("cong = a,rtt_us", 9, "`cong` has no value", "quote"),
        ("user = age > 10m", 7, "`user` has no value", "quote"),
        ("dev = state fin-wait-2", 6, "`dev` has no value", "quote"),
        ("(" * 200 + "held", 101, "too deeply nested", "100"),
    ],
)
def test_a_mistake_is_pointed_at(text, column, message, hint):
    with pytest.raises(FilterError) as caught:
        parse(text, rules=["fin-wait2-held"])
    error = caught.value
    assert (error.column, error.text) == (column, text)
    assert message in error.message
    assert hint in error.hint
    assert str(error).splitlines()[-1] == "  " + " " * column + "^"


@pytest.mark.parametrize(
    "words", [[""], [" ", " "], ["", "held"], ["held", "\t"], ["state", "", "close-wait"]]
)
def test_a_blank_word_is_an_error_and_never_everything(words):
    with pytest.raises(FilterError, match="this word is empty") as caught:
        parse(words)
    assert "variable" in caught.value.hint
    assert caught.value.column == len(
        " ".join(words[: next(k for k, w in enumerate(words) if not w.strip())])
    ) + (1 if words[0].strip() else 0)


@pytest.mark.parametrize(
    "text", ["ends = timer", "waited = thread", "waited != thread,unknown", "ends != peer,timer"]
)
def test_a_value_that_is_also_the_name_of_a_predicate_is_taken(text):
    assert str(parse(text)) == text.replace("thread,unknown", "thread and waited != unknown").replace(
        "peer,timer", "peer and ends != timer"
    )


@pytest.mark.parametrize(
    "word", ["held", "state", "excl", "close-wait", "big", "timer", "rtt_us", "and", "ne"]
)
def test_a_name_that_is_a_predicate_is_printed_in_quotes(word):
    one = parse(f'comm = "{word}"')
    assert str(one) == f'comm = "{word}"'
    assert parse(str(one)) == one


def test_the_words_of_a_command_line_are_one_filter():
    assert parse(["state", "fin-wait-2", "dport = :443 or", "sport", ":1"]) == parse(
        "state fin-wait-2 dport = :443 or sport :1"
    )


def test_line_breaks_are_blanks_so_that_the_caret_stays_in_its_line():
    with pytest.raises(FilterError) as caught:
        parse("held\n\tand\nxyzzy")
    assert caught.value.text == "held  and xyzzy"
    assert caught.value.column == 10


def test_services_can_be_given():
    assert parse("dport = :shop", services={"shop": 9000}) == parse("dport = :9000")


def test_only_the_rules_there_are_can_be_asked_for_if_they_are_given():
    assert parse("rule = anything")
    assert parse("rule = a*", rules=["b"])
    with pytest.raises(FilterError):
        parse("rule = anything", rules=["b"])


@pytest.mark.parametrize("name", SCHEMA.names)
def test_every_column_is_a_predicate(name):
    values = {"src": "10.0.0.1", "dst": "[::1]:2"}
    parsed = parse(f"{name} = {values.get(name, '1')}")
    assert name in parsed.columns
    assert parsed.mask(TABLE).shape == (len(ROWS),)


def test_no_word_is_both_a_state_and_a_predicate():
    assert not [w for w in [*PREDICATES, *SCHEMA.names] if named_states(w) is not None]
    assert all(0 < port <= 65535 for port in SERVICES.values())


def test_bytecode_is_empty_when_the_kernel_can_decide_nothing():
    for text in ("", "held", "state fin-wait-2", "held or sport = :1", "fwmark = 1", "dev lo", "cgroup /"):
        assert parse(text).bytecode() == b""


def test_bytecode_is_what_the_kernel_expects():
    assert parse("sport >= :80 held").bytecode() == struct.pack("=BBHBBH", 2, 8, 12, 0, 0, 80)
    assert parse("dev lo").bytecode(ifindex={"lo": 1}.get) == struct.pack("=BBHI", 9, 8, 12, 1)
    assert parse("dev eth9").bytecode(ifindex={"lo": 1}.get) == b""
    assert parse("fwmark = 1/3").bytecode(net_admin=True) == struct.pack("=BBHII", 10, 12, 16, 1, 3)
    assert parse("sport < 0").bytecode() == struct.pack("=BBH", 1, 4, 8), "a jump behind the end: no row"


def test_a_name_is_looked_up_once_so_that_a_vanishing_device_does_no_harm():
    answers = iter([4])
    assert parse("dev eth0").bytecode(ifindex=lambda _: next(answers))


def test_explain_says_what_runs_where():
    said = parse("state fin-wait-2 dport = :443 age > 10m").explain()
    assert said.splitlines() == [
        "states asked for:    FIN_WAIT2",
        "kept by the kernel:  at least dport = :443",
        "then checked:        state fin-wait-2 and dport = :443 and age > 10m",
        "also looked up:      age_at_least_s",
    ]
    assert "kept by the kernel:  nothing" in parse("sport < 0").explain()
    assert "too long" in parse(" or ".join(["sport = :1"] * 9000)).explain()
    assert "states asked for:    none" in parse("exclude all").explain()


def test_filters_are_values():
    assert parse("sport=80") == parse("sport = :http")
    assert len({parse("held"), parse("inode != 0")}) == 1
    assert isinstance(parse(""), Filter)


DOC = Path(__file__).parents[3] / "docs" / "reference" / "filter.md"


def test_every_example_on_the_reference_page_is_a_filter():
    blocks = re.findall(r"```filter\n(.*?)```", DOC.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]
    assert len(lines) > 20
    for line in lines:
        parse(line)


def test_the_reference_page_names_every_predicate_service_and_state():
    page = DOC.read_text()
    states = [str(parse(name)).removeprefix("state ") for name in tcp.STATES.values() if named_states(name)]
    assert len(states) == 12
    missing = [name for name in [*PREDICATES, *SERVICES, *states] if f"`{name}`" not in page]
    assert not missing


def test_the_columns_whose_multiples_are_binary_are_those_whose_description_says_bytes() -> None:
    assert {c.name for c in SCHEMA if re.search(r"\bbytes\b", c.doc, re.IGNORECASE)} == IN_BYTES

"""FILTER → the kernel's trace filter: it may pass too much and never too little."""

from __future__ import annotations

import itertools

import pytest

from finwait.table.filter import parse
from finwait.table.sockets import SocketTable, pack_address
from finwait.table.trace_filter import kernel_filter, only_ports_and_hosts

FILTERS = [
    "sport = :80",
    "sport = :80 or dport = :443",
    "not ( sport = :80 or dport = :443 )",
    "dport >= :1024 and sport < :100",
    "not dport > :443",
    "sport = :80 or pid = 5",
    "state fin-wait-2 dport != :443",
    "not ( dport = :443 and src 10.0.0.1 )",
    "src 10.0.0.1:80",
]


def passes(expression: str, sport: int, dport: int) -> bool:
    """Run a trace filter of the kernel: its operators are C's, and so are Python's but for two."""
    text = expression.replace("&&", " and ").replace("||", " or ")
    return bool(eval(text, {"__builtins__": {}}, {"protocol": 6, "sport": sport, "dport": dport}))


@pytest.mark.parametrize("text", FILTERS)
def test_every_transition_of_a_wanted_connection_passes(text):
    wanted = parse(text)
    expression = kernel_filter(wanted)
    ports = [1, 79, 80, 81, 99, 100, 442, 443, 444, 1023, 1024, 65535]
    pairs = list(itertools.product(ports, ports))
    table = SocketTable.from_columns(
        {
            "family": [2] * len(pairs), "state": [5] * len(pairs), "protocol": [6] * len(pairs),
            "sport": [p for p, _ in pairs], "dport": [q for _, q in pairs],
            "src": [pack_address("10.0.0.1")] * len(pairs), "dst": [pack_address("10.0.0.2")] * len(pairs),
        }
    )  # fmt: skip
    context = {"pid": [(5,)] * len(pairs)} if wanted.needs else None
    for matching, (sport, dport) in zip(wanted.mask(table, context).tolist(), pairs, strict=True):
        if matching:
            assert passes(expression, sport, dport)
            # The first events of a connection, before the kernel has filled the ports in.
            assert passes(expression, 0, dport)
            assert passes(expression, sport, 0)


def test_the_kernel_does_keep_others_away():
    expression = kernel_filter(parse("sport = :80 or dport = :443"))
    assert not passes(expression, 81, 442)
    assert kernel_filter(None) == "protocol == 6"
    assert kernel_filter(parse("pid = 5")) == "protocol == 6"


def test_a_filter_that_is_too_long_is_left_to_us():
    words = " or ".join(f"sport = :{port}" for port in range(1, 200))
    assert kernel_filter(parse(words)) == "protocol == 6"


@pytest.mark.parametrize(
    ("text", "only"),
    [("dport = :1 and src 10.0.0.1", True), ("state close-wait", False), ("not pid = 1", False)],
)
def test_what_a_minisocket_has_as_well(text, only):
    assert only_ports_and_hosts(parse(text).root) is only

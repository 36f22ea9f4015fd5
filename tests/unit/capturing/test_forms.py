"""Every form that translators give a connection, our end first in each."""

from __future__ import annotations

from finwait.capturing import forms
from finwait.table.flows import FlowTable
from finwait.table.sockets import pack_address


def flow(orig: tuple[str, int, str, int], reply: tuple[str, int, str, int]) -> dict[str, object]:
    return {
        f"{way}_{name}": pack_address(value) if isinstance(value, str) else value
        for way, ends in (("orig", orig), ("reply", reply))
        for name, value in zip(("src", "sport", "dst", "dport"), ends, strict=True)
    }


def table(*flows: dict[str, object]) -> FlowTable:
    columns = {name: [f[name] for f in flows] for name in flows[0]}
    return FlowTable.from_columns({**columns, "protocol": [6] * len(flows)})


def ends(a: str, p: int, b: str, q: int):
    return pack_address(a), p, pack_address(b), q


DNAT = flow(("10.0.0.1", 4000, "10.96.0.1", 80), ("10.1.0.5", 8080, "10.0.0.1", 4000))
SNAT = flow(("10.0.0.1", 4000, "10.1.0.5", 8080), ("10.1.0.5", 8080, "192.0.2.1", 61000))
OTHER = flow(("10.0.0.1", 4001, "10.96.0.1", 80), ("10.1.0.6", 8080, "10.0.0.1", 4001))


def test_a_client_is_also_looked_for_behind_the_service_address():
    one = ends("10.0.0.1", 4000, "10.96.0.1", 80)
    assert forms(one, table(DNAT, OTHER)) == (one, ends("10.0.0.1", 4000, "10.1.0.5", 8080))


def test_a_backend_is_also_looked_for_by_the_service_address():
    one = ends("10.1.0.5", 8080, "10.0.0.1", 4000)
    assert set(forms(one, table(OTHER, DNAT))) == {one, ends("10.96.0.1", 80, "10.0.0.1", 4000)}


def test_two_translators_in_a_row_are_followed():
    one = ends("10.0.0.1", 4000, "10.96.0.1", 80)
    found = forms(one, table(SNAT, DNAT))
    assert ends("192.0.2.1", 61000, "10.1.0.5", 8080) in found
    assert len(found) == 3


def test_without_entries_there_is_one_form():
    one = ends("10.0.0.1", 4000, "10.96.0.1", 80)
    assert forms(one, None) == (one,)
    assert forms(one, table(OTHER)) == (one,)

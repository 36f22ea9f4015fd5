import re

import pytest

from finwait.errors import DecodeError
from finwait.remedy.knowledge import parse_knowledge
from finwait.shipped import knowledge

NAMES = (
    b"[sysctl]\ntcp=''\nconntrack=''\n[sysctl.gone]\n[sysctl.pod.safe]\n[kube_proxy]\nflags=''\nold_flags=''\n"
    b"conntrack_fields=''\nipvs_fields=''\nconfig_fields=''\nmodes=''\n"
)
CLAIM = b"[[claim]]\nid='S01'\nclaim='c'\nverdict='true'\nreason='r'\nsource='s'\nevidence='measured'\n"


def test_the_ledger_is_whole_and_in_order():
    found = list(knowledge().claims)
    experts = sum(name.startswith("X") for name in found)
    wanted = [f"S{n:02}" for n in range(1, 42)] + [f"X{n:02}" for n in range(1, experts + 1)]
    assert found == wanted
    assert experts > 50


@pytest.mark.parametrize("claim", knowledge().claims.values(), ids=lambda c: c.id)
def test_a_claim_says_what_was_measured_where_it_claims_measuring(claim):
    assert claim.claim.endswith(".")
    assert claim.reason.endswith(".")
    assert claim.source
    if claim.verdict in ("harmful", "no-effect") or claim.also == "harmful":
        assert claim.instead, "what is harmful or useless needs something to do instead"


def test_claims_that_are_only_read_or_reported_show_no_measurement():
    for claim in knowledge().claims.values():
        if claim.evidence != "measured":
            assert not claim.observed, claim.id


@pytest.mark.parametrize("name", sorted(knowledge().advice))
def test_advice_is_either_recognised_by_a_regex_or_raised_by_a_parser(name):
    import inspect

    from finwait.remedy.audit import finding, flags, kube, proxies

    item = knowledge().advice[name]
    if item.regex:
        assert item.needle
        assert re.compile(item.regex)
    else:
        source = "".join(inspect.getsource(m) for m in (finding, flags, kube, proxies))
        assert f'"{name}"' in source


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.toml": CLAIM}, "names.toml is missing"),
        ({"a.toml": CLAIM, "b.toml": CLAIM, "names.toml": NAMES}, "twice"),
        ({"a.toml": b"[[claim]]\nid=3", "names.toml": NAMES}, "id"),
        ({"a.toml": b"\xff", "names.toml": NAMES}, "UTF-8"),
        ({"advice.toml": b"[[advice]]\nid='a'\ntitle='t'\nverdict='true'\nclaims=['S99']", "names.toml": NAMES}, "S99"),
        ({"advice.toml": b"[[advice]]\nid='a'\ntitle='t'\nverdict='true'\nclaims=[]", "names.toml": NAMES}, "neither"),
        (
            {"advice.toml": b"[[advice]]\nid='a'\ntitle='t'\nverdict='true'\nclaims=[]\nreason='r'\nsource='s'\n"
             b"regex='('", "names.toml": NAMES},
            "missing )",
        ),
    ],
)  # fmt: skip
def test_a_knowledge_base_that_breaks_its_schema_is_refused(files, said):
    with pytest.raises(DecodeError, match=re.escape(said)):
        parse_knowledge(files)

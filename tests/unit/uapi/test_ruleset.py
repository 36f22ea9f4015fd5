"""Rules that bear on tracking are found in what nft and iptables-save print, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finwait.uapi.ruleset import filters_by_state, tracking_rules, translates

NFT = """table inet filter {
\tchain forward {
\t\ttype filter hook forward priority filter; policy accept;
\t\tct state invalid counter packets 3 bytes 120 drop
\t\tct state established,related accept
\t}
\tchain raw {
\t\ttcp dport 80 notrack
\t}
}
"""
IPT = """*raw
-A PREROUTING -p tcp --dport 53 -j CT --notrack
COMMIT
*filter
-A KUBE-FORWARD -m conntrack --ctstate INVALID -m nfacct --nfacct-name x -j DROP
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"""


def test_rules_of_nft_are_found_with_their_chain() -> None:
    found = tracking_rules(NFT)
    assert [(r.kind, r.where) for r in found] == [
        ("drop-invalid", "inet filter forward"),
        ("notrack", "inet filter raw"),
    ]


def test_rules_of_iptables_are_found_with_their_table() -> None:
    found = tracking_rules(IPT)
    assert [(r.kind, r.where) for r in found] == [
        ("notrack", "iptables raw PREROUTING"),
        ("drop-invalid", "iptables filter KUBE-FORWARD"),
    ]


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    for rule in tracking_rules(text):
        assert rule.rule in text


@pytest.mark.parametrize(
    "text",
    [
        "table ip nat {\n\tchain x {\n\t\tip daddr 10.96.0.1 tcp dport 80 dnat to 10.1.0.2:8080\n\t}\n}\n",
        "\t\tmasquerade\n", '\t\toifname "eth0" masquerade random\n', "\t\ttcp dport 80 redirect to :8080\n",
        "\t\tdnat ip to 10.0.0.1\n", "\t\tsnat ip6 to ::1\n", '\t\t# xt_match\n\t\txt target "DNAT"\n',
        "*nat\n-A KUBE-SEP-X -p tcp -m tcp -j DNAT --to-destination 10.1.0.2:8080\n", "-A POSTROUTING -j MASQUERADE\n",
    ],
)  # fmt: skip
def test_a_rule_that_translates_is_found(text: str) -> None:
    assert translates(text)


@pytest.mark.parametrize(
    "text",
    [
        NFT, IPT, "table ip nat {\n\tchain masquerade {\n\t}\n}\n", "\t\tjump snat\n", '\t\tcomment "dnat to x"\n',
        "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -j RETURN\n", "",
    ],
)  # fmt: skip
def test_what_only_reads_like_a_translation_is_none(text: str) -> None:
    assert not translates(text)


def test_a_rule_that_asks_for_the_state_of_a_connection_is_found() -> None:
    assert filters_by_state(NFT)
    assert filters_by_state(IPT)
    assert not filters_by_state("table ip f {\n\tchain input {\n\t\ttcp dport 22 accept\n\t}\n}\n")
    assert not filters_by_state("-A INPUT -p tcp --dport 22 -j ACCEPT\n")

"""Rules that bear on tracking are found in what nft and iptables-save print, and nothing else is."""

from hypothesis import given
from hypothesis import strategies as st

from finwait.uapi.ruleset import tracking_rules

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

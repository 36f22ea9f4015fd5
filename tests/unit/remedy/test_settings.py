import pytest

from finwait.remedy.settings import CATALOGUE, RULES, Effect, Scope, Verdict, by_key, canonical_key
from finwait.shipped import knowledge

ASKED_FOR = """
net.ipv4.tcp_fin_timeout
net.ipv4.tcp_keepalive_time
net.ipv4.tcp_keepalive_intvl
net.ipv4.tcp_keepalive_probes
net.ipv4.tcp_max_orphans
net.ipv4.tcp_orphan_retries
net.ipv4.tcp_rfc1337
net.ipv4.tcp_abort_on_overflow
net.ipv4.tcp_retries2
net.ipv4.tcp_max_tw_buckets
net.ipv4.tcp_tw_reuse
net.ipv4.tcp_tw_reuse_delay
net.ipv4.tcp_rto_max_ms
net.netfilter.nf_conntrack_max
net.netfilter.nf_conntrack_buckets
net.netfilter.nf_conntrack_tcp_be_liberal
net.netfilter.nf_conntrack_tcp_loose
net.netfilter.nf_conntrack_tcp_max_retrans
"""


@pytest.mark.parametrize("key", ASKED_FOR.split())
def test_every_setting_that_bears_on_closing_is_in_the_catalogue(key):
    assert by_key(key) is not None


def test_every_conntrack_timeout_of_tcp_is_in_the_catalogue():
    known = {n for n in knowledge().names.sysctls if "nf_conntrack_tcp_timeout_" in n}
    assert known == {s.key for s in CATALOGUE if "nf_conntrack_tcp_timeout_" in s.key}


@pytest.mark.parametrize("setting", CATALOGUE, ids=lambda s: s.key)
def test_a_setting_says_for_every_rule_what_it_does_and_why(setting):
    for rule in RULES:
        told = setting.effect(rule)
        assert told.rule == rule
        assert told.why
    assert len({e.rule for e in setting.effects}) == len(setting.effects)


@pytest.mark.parametrize("setting", CATALOGUE, ids=lambda s: s.key)
def test_every_value_in_the_range_has_a_verdict_with_a_ledger_id_that_exists(setting):
    claims = knowledge().claims
    edges = (
        {b.low for b in setting.bands} | {b.high for b in setting.bands} | {setting.low, setting.high, 0, 1}
    )
    for value in sorted(e for e in edges if e is not None and setting.low <= e <= setting.high):
        for current in (None, value - 1, value + 1):
            band = setting.band(value, current)
            assert band.ledger, (value, current)
            assert set(band.ledger) <= set(claims)
    assert set(setting.ledger) <= set(claims)


@pytest.mark.parametrize("setting", CATALOGUE, ids=lambda s: s.key)
def test_the_default_is_never_called_harmful_but_for_the_half_closed_timeout(setting):
    if setting.default is None or setting.key.endswith("timeout_close_wait"):
        return
    assert setting.band(setting.default).verdict is not Verdict.HARMFUL


def test_an_unknown_rule_is_a_wrong_argument():
    with pytest.raises(ValueError, match="no rule"):
        CATALOGUE[0].effect("close-sockets")


def test_no_setting_ends_what_a_process_holds_half_closed():
    for rule in ("fin-wait2-held", "fin-wait2-shut-both", "relay-pair", "close-wait-eof-read", "close-wait-eof-unread",
                 "inherited-descriptor", "hidden-leak"):  # fmt: skip
        assert all(s.effect(rule).effect in (Effect.NO_EFFECT, Effect.HARMFUL) for s in CATALOGUE)


@pytest.mark.parametrize(
    ("value", "verdict", "id_"),
    [(30, "no-effect", "S12"), (60, "no-effect", "S12"), (62, "harmful", "X01"), (119, "harmful", "X01"),
     (120, "only-when", "X01"), (-1, "harmful", "S12")],
)  # fmt: skip
def test_fin_timeout_is_judged_by_its_value(value, verdict, id_):
    band = CATALOGUE[0].band(value)
    assert (str(band.verdict), band.ledger[0]) == (verdict, id_)


def test_max_orphans_is_harmful_only_where_it_lowers_the_limit():
    setting = by_key("tcp_max_orphans")
    assert setting is not None
    assert setting.band(65536, 131072).verdict is Verdict.HARMFUL
    assert setting.band(65536, 32768).verdict is Verdict.NO_EFFECT
    assert setting.band(65536).verdict is Verdict.NO_EFFECT
    assert setting.scope is Scope.INIT_ONLY


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("/proc/sys/net/ipv4/tcp_fin_timeout", "net.ipv4.tcp_fin_timeout"),
        ("net/ipv4/tcp_fin_timeout", "net.ipv4.tcp_fin_timeout"),
        (" 'net.ipv4.tcp_fin_timeout' ", "net.ipv4.tcp_fin_timeout"),
        ("tcp_fin_timeout", "net.ipv4.tcp_fin_timeout"),
        ("nf_conntrack_max", "net.netfilter.nf_conntrack_max"),
        ("net.nf_conntrack_max", "net.netfilter.nf_conntrack_max"),
        ("tcp_nonsense", "net.ipv4.tcp_nonsense"),
        ("net.ipv4.conf.eth0/1.rp_filter", "net.ipv4.conf.eth0/1.rp_filter"),
        ("net/ipv4/conf/eth0.1/rp_filter", "net.ipv4.conf.eth0/1.rp_filter"),
    ],
)
def test_a_sysctl_is_known_by_every_spelling_of_its_name(text, key):
    assert canonical_key(text) == key


def test_the_rules_are_those_of_the_diagnosis():
    from finwait.diagnosis import catalogue

    assert set(RULES) == {rule.name for rule in catalogue.rules()}

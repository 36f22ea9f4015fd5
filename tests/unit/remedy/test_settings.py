import pytest

from finwait.diagnosis.catalogue import NAMES
from finwait.remedy.settings.catalogue import CATALOGUE, by_key, by_letters, canonical_key, computed_default
from finwait.remedy.settings.model import Effect, Scope, Verdict
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
    for rule in NAMES:
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
        return  # whether it is depends on what the namespace does
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
    raised = setting.band(65536, 32768)
    assert raised.verdict is Verdict.ONLY_WHEN
    assert "too many orphaned sockets" in raised.why
    assert "X55" in raised.ledger
    assert setting.effect("fin-unanswered-orphan", -1).effect is Effect.HARMFUL
    assert "at the limit" in setting.effect("fin-unanswered-orphan", 1).why
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

    assert set(NAMES) == {rule.name for rule in catalogue.rules()}


@pytest.mark.parametrize(
    ("key", "present", "wanted", "rule", "effect"),
    [
        ("tcp_max_orphans", 131072, 262144, "fin-unanswered-orphan", "no-effect"),
        ("tcp_max_orphans", 131072, 65536, "fin-unanswered-orphan", "harmful"),
        ("nf_conntrack_tcp_timeout_close_wait", 60, 3600, "fin-wait2-held", "no-effect"),
        ("nf_conntrack_tcp_timeout_close_wait", 60, 3600, "nat-entry-gone", "bounds-new"),
        ("nf_conntrack_tcp_timeout_close_wait", 60, 30, "fin-wait2-held", "harmful"),
        ("tcp_orphan_retries", 0, 3, "fin-unanswered-orphan", "ends"),
        ("tcp_orphan_retries", 3, 0, "fin-unanswered-orphan", "harmful"),
        ("tcp_retries2", 15, 8, "data-unanswered", "ends"),
        ("tcp_retries2", 8, 15, "data-unanswered", "harmful"),
        ("tcp_fin_timeout", 60, 30, "fin-wait2-orphan", "bounds-new"),
        ("tcp_fin_timeout", 30, 60, "fin-wait2-orphan", "no-effect"),
        ("tcp_keepalive_time", 300, 7200, "idle-unprobed", "no-effect"),
    ],
)
def test_what_a_change_does_depends_on_its_direction(key, present, wanted, rule, effect):
    setting = by_key(key)
    assert setting is not None
    assert str(setting.effect(rule, setting.step(present, wanted)).effect) == effect


@pytest.mark.parametrize(
    ("key", "entries", "memory", "default"),
    [
        ("net.ipv4.tcp_max_orphans", 262144, 24_684_092, 131072),
        ("net.ipv4.tcp_max_tw_buckets", -16384, 1_000_000, 8192),
        ("net.ipv4.tcp_max_tw_buckets", None, 24_684_092, None),
        ("net.netfilter.nf_conntrack_max", None, 24_684_092, 262144),
        ("net.netfilter.nf_conntrack_max", None, 2_000_000, 65536),
        ("net.netfilter.nf_conntrack_max", None, 500_000, None),
        ("net.netfilter.nf_conntrack_buckets", 262144, 24_684_092, None),
    ],
)
def test_a_default_that_follows_from_memory_is_computed_or_not_known(key, entries, memory, default):
    assert computed_default(key, hash_entries=entries, memory_kb=memory) == default
    setting = by_key(key)
    assert setting is not None
    assert setting.by_memory


@pytest.mark.parametrize("text", ["netIpv4TcpFinTimeout", "net_ipv4_tcp_fin_timeout", "netIpv4TcpfinTimeout"])
def test_a_name_without_its_dots_is_known_by_its_letters(text):
    assert by_letters(text) == "net.ipv4.tcp_fin_timeout"
    assert by_letters("netCoreSomaxconn") is None

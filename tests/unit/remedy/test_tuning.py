import pytest

from finwait.remedy.settings.catalogue import CATALOGUE, by_key
from finwait.remedy.settings.model import Effect, Verdict
from finwait.remedy.tuning import (
    LineState,
    Profile,
    ProfileError,
    TuningFacts,
    drop_in,
    in_force,
    parse_assignments,
    parse_profile,
    parse_sysctl_conf,
    plan,
    verdicts,
)
from finwait.shipped import profiles

DEFAULTS = {s.key: str(s.default) for s in CATALOGUE if s.default is not None} | {
    "net.ipv4.tcp_max_orphans": "131072",
    "net.ipv4.tcp_timestamps": "1",
}
CLOSE_WAIT = "net.netfilter.nf_conntrack_tcp_timeout_close_wait"


def judged(profile: Profile, current=None, **wanted):
    found = plan(
        profile,
        DEFAULTS if current is None else current,
        initial_netns=wanted.pop("initial_netns", True),
        counts=wanted.pop("counts", {}),
        **wanted,
    )
    return found, {line.key.rpartition(".")[2]: line for line in found.lines}


def test_the_articles_node_list_comes_out_with_the_ledgers_verdicts():
    found, line = judged(profiles()["article-kube-proxy-node"])
    assert [x.wanted for x in found.lines] == ["30", "600", "65536", "0", "1"]
    assert {k: (str(x.verdict), x.ledger[0]) for k, x in line.items()} == {
        "tcp_fin_timeout": ("no-effect", "S12"),
        "tcp_keepalive_time": ("only-when", "S18"),
        "tcp_max_orphans": ("harmful", "S20"),
        "tcp_orphan_retries": ("no-effect", "S21"),
        "tcp_rfc1337": ("no-effect", "S22"),
    }
    assert line["tcp_orphan_retries"].state is LineState.SAME


def test_the_articles_production_list_comes_out_with_the_ledgers_verdicts():
    found, line = judged(profiles()["article-production"])
    assert {k: str(x.verdict) for k, x in line.items()} == {
        "tcp_fin_timeout": "no-effect",
        "tcp_keepalive_time": "only-when",
        "tcp_keepalive_intvl": "only-when",
        "tcp_keepalive_probes": "only-when",
        "nf_conntrack_buckets": "harmful",
        "nf_conntrack_max": "no-effect",
        "nf_conntrack_tcp_timeout_close_wait": "harmful",
    }
    assert any("64 per chain" in r.text and r.verdict is Verdict.HARMFUL for r in found.remarks)
    assert any("= 135 s" in r.text for r in found.remarks)


@pytest.mark.parametrize("name", ["kubernetes-node", "proxy-host", "pod"])
def test_our_own_profiles_have_no_harmful_line_and_a_source_for_each(name):
    profile = profiles()[name]
    found, _ = judged(profile)
    assert not found.harmful
    assert all(by_key(line.key) and line.source for line in profile.lines)
    assert not [r for r in found.remarks if r.verdict is Verdict.HARMFUL]


def test_the_pod_profile_names_only_sysctls_that_a_pod_may_set():
    from finwait.shipped import knowledge

    assert {line.key for line in profiles()["pod"].lines} <= knowledge().names.pod_safe.keys()


def test_what_is_stuck_now_is_said_by_rule():
    counts = {"fin-wait2-held": 3, "fin-unanswered-orphan": 2, "fin-wait2-orphan": 0, "made-up-rule": 9}
    by_setting = verdicts(CATALOGUE, counts)
    told = {e.rule: (e.count, e.effect) for e in by_setting["net.ipv4.tcp_orphan_retries"]}
    assert told == {"fin-wait2-held": (3, Effect.NO_EFFECT), "fin-unanswered-orphan": (2, Effect.ENDS)}
    assert all(e.effect is not Effect.ENDS for e in by_setting["net.ipv4.tcp_fin_timeout"])


def test_taking_back_a_harmful_value_helps():
    now = DEFAULTS | {"net.ipv4.tcp_abort_on_overflow": "1"}
    _, line = judged(parse_assignments(["tcp_abort_on_overflow=0"]), now)
    assert line["tcp_abort_on_overflow"].verdict is Verdict.HELPS
    assert "replaces" in line["tcp_abort_on_overflow"].why


def test_a_global_sysctl_cannot_be_set_in_another_namespace_and_the_plan_says_so():
    now = {k: v for k, v in DEFAULTS.items() if not k.endswith("max_orphans")}
    found, line = judged(
        parse_assignments(["tcp_max_orphans=65536", "nf_conntrack_buckets=65536"]),
        now,
        initial_netns=False,
        read_only=frozenset({"net.netfilter.nf_conntrack_buckets"}),
    )
    assert line["tcp_max_orphans"].state is LineState.ABSENT
    assert "the whole machine" in line["tcp_max_orphans"].why
    assert line["nf_conntrack_buckets"].state is LineState.REFUSED
    assert not found.changes
    assert len(found.blocked) == 2


def test_a_value_that_the_kernel_refuses_is_said_before_it_is_tried():
    found, line = judged(parse_assignments(["tcp_orphan_retries=256"]))
    assert line["tcp_orphan_retries"].state is LineState.REFUSED
    assert not found.changes


def test_a_sysctl_that_is_none_of_ours_is_not_set():
    found, line = judged(
        parse_assignments(["net.ipv4.ip_forward=1"]), DEFAULTS | {"net.ipv4.ip_forward": "0"}
    )
    assert line["ip_forward"].state is LineState.UNKNOWN
    assert not found.changes
    assert found.blocked


def test_a_missing_sysctl_marked_with_a_dash_blocks_nothing():
    found, _ = judged(parse_sysctl_conf("x", "-net.ipv4.tcp_rto_max_ms = 60000\n"), {})
    assert not found.blocked


def test_reuse_without_timestamps_is_remarked():
    found, _ = judged(parse_assignments(["tcp_tw_reuse=1"]), DEFAULTS | {"net.ipv4.tcp_timestamps": "0"})
    assert any("timestamps" in r.text for r in found.remarks)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("net.ipv4.tcp_fin_timeout = 30\nnonsense\n", 2, "no `=`"),
        ("net.ipv4.tcp_fin_timeout = thirty\n", 1, "whole number"),
        ("a=1\n", 0, ""),
        ("net..ipv4 = 1", 1, "not the name"),
        ("net.ipv4.tcp_rfc1337=0\n# a\nnet.ipv4.tcp_rfc1337=1", 3, "set twice"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_line(text, line, said):
    if not line:
        parse_sysctl_conf("f.conf", text)
        return
    with pytest.raises(ProfileError) as caught:
        parse_sysctl_conf("f.conf", text)
    assert caught.value.line == line
    assert f"f.conf:{line}: " in str(caught.value)
    assert said in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    "data", [b"title = ", b"\xff\xfe", b"title='x'\n[[line]]\nkey='a.b'\nvalue=3", b"x=1"]
)
def test_a_profile_that_does_not_follow_the_schema_is_refused(data):
    with pytest.raises(ProfileError):
        parse_profile("p.toml", data)


def test_a_drop_in_sets_what_was_planned_and_cannot_be_split_by_a_line_break():
    text = drop_in({"net.ipv4.tcp_rfc1337": "0"}, "why")
    assert text.splitlines()[-1] == "net.ipv4.tcp_rfc1337 = 0"
    again = parse_sysctl_conf("x", text)
    assert [(x.key, x.value) for x in again.lines] == [("net.ipv4.tcp_rfc1337", "0")]
    with pytest.raises(ValueError, match="one line"):
        drop_in({}, "a\nkernel.core_pattern = |/bin/x")
    with pytest.raises(ValueError, match="not a setting"):
        drop_in({"net.ipv4.tcp_rfc1337": "0\nx = 1"}, "why")


@pytest.mark.parametrize(
    ("value", "facts", "verdict"),
    [
        (60, TuningFacts(True, "3 translated entries"), "harmful"),
        (60, TuningFacts(False, "no such rule"), "no-effect"),
        (60, TuningFacts(None, "not listed"), "only-when"),
        (30, TuningFacts(False), "no-effect"),
        (3600, TuningFacts(True), "helps"),
        (3600, TuningFacts(False), "no-effect"),
        (600, TuningFacts(False), "only-when"),
    ],
)
def test_a_short_tracking_timeout_harms_where_something_depends_on_tracking(value, facts, verdict):
    setting = by_key(CLOSE_WAIT)
    assert setting is not None
    band = in_force(setting, value, facts)
    assert str(band.verdict) == verdict
    if verdict != "harmful" and facts.tracked_by:
        assert facts.tracked_by in band.why


def test_a_plan_to_shorten_a_tracking_timeout_is_harmful_even_where_nothing_is_translated_today():
    found, line = judged(parse_assignments([f"{CLOSE_WAIT}=30"]), facts=TuningFacts(False))
    assert found.harmful
    _, line = judged(parse_assignments([f"{CLOSE_WAIT}=3600"]), facts=TuningFacts(False))
    assert line["nf_conntrack_tcp_timeout_close_wait"].verdict is Verdict.NO_EFFECT
    _, line = judged(parse_assignments([f"{CLOSE_WAIT}=3600"]), facts=TuningFacts(True))
    assert line["nf_conntrack_tcp_timeout_close_wait"].verdict is Verdict.HELPS


def test_raising_a_limit_is_not_said_to_make_worse_what_lowering_it_would():
    counts = {"fin-unanswered-orphan": 6, "fin-wait2-held": 2}
    _, line = judged(parse_assignments(["tcp_max_orphans=262144", f"{CLOSE_WAIT}=3600"]), counts=counts)
    assert {e.effect for e in line["tcp_max_orphans"].here} == {Effect.NO_EFFECT}
    assert {e.effect for e in line["nf_conntrack_tcp_timeout_close_wait"].here} == {Effect.NO_EFFECT}
    _, line = judged(parse_assignments(["tcp_max_orphans=65536"]), counts=counts)
    assert Effect.HARMFUL in {e.effect for e in line["tcp_max_orphans"].here}


def test_a_value_is_planned_as_the_kernel_reads_it():
    for text, number in (("0x10", "16"), ("010", "8"), ("7", "7")):
        (line,) = parse_assignments([f"tcp_fin_timeout={text}"]).lines
        assert line.value == number
    with pytest.raises(ProfileError, match="not a whole number"):
        parse_assignments(["tcp_fin_timeout=08"])


@pytest.mark.parametrize(
    ("rto_max", "retries", "remarked"),
    [
        ("1000", "0", True),
        ("4999", "0", True),
        ("5000", "0", False),
        ("1000", "3", False),
        ("1000", None, False),
    ],
)
def test_orphans_that_are_not_retried_are_remarked_where_a_small_rto_max_makes_zero_mean_zero(
    rto_max: str, retries: str | None, remarked: bool
):
    current = {k: v for k, v in DEFAULTS.items() if k != "net.ipv4.tcp_orphan_retries"}
    if retries is not None:
        current["net.ipv4.tcp_orphan_retries"] = retries
    found, _ = judged(parse_assignments([f"tcp_rto_max_ms={rto_max}"]), current)
    assert any("tcp_orphan_retries=0 really means 0" in r.text for r in found.remarks) is remarked


def test_a_mistake_in_a_toml_profile_is_told_with_its_line_and_what_would_be_right():
    text = b'title = "x"\n[[line]]\nkey = "net.ipv4.tcp_rfc1337"\nvalue = "0"\n[[line]]\nkey = "a..b"\nvalue = "1"\n'
    with pytest.raises(ProfileError, match=r"p.toml:6: 'a..b' is not the name"):
        parse_profile("p.toml", text)
    with pytest.raises(
        ProfileError, match=r"p.toml:4: this key does not exist here \(`line\[0\].vlue`\)"
    ) as caught:
        parse_profile("p.toml", text.replace(b"value", b"vlue", 1))
    assert caught.value.hint == "did you mean `value`?"

"""Whatever the text, the audit answers with findings and problems that have a line of that text."""

import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finwait.remedy.audit import KINDS, SEVERITY, audit, detect
from finwait.remedy.audit.flags import duration_s
from finwait.remedy.audit.proxies import haproxy_ms, nginx_s
from finwait.remedy.settings.catalogue import CATALOGUE, canonical_key
from finwait.remedy.tuning import ProfileError, drop_in, parse_profile, parse_sysctl_conf, plan
from finwait.report.audit import audit_json, audit_text
from finwait.shipped import knowledge

PIECES = """sysctl -w net.ipv4.tcp_fin_timeout=30 net/ipv4/tcp_rfc1337 = == 1 -1 99999999999999999999 echo > >> | tee
    /proc/sys/net/ipv4/tcp_fin_timeout /proc/net/tcp grep fin_wait2 ss conntrack -D -K kube-proxy --tcp-keepalive=true
    --x KUBE_PROXY_EXTRA_ARGS= \\ \\\n \n ``` ~~~ ` ```yaml ```go kind: KubeProxyConfiguration apiVersion: v1 sysctls:
    securityContext: name: value: - [ ] { } : , "@type": idle_timeout: 0s 1h &a *a | >- --- ... !!x %YAML {{ }} defaults
    frontend backend listen timeout client client-fin 0 30s mode tcp from stream { http ; proxy_timeout 9h " ' # $ ${ }
    {% %} {# #} kube-proxy-arg: conntrack-tcp-timeout-close-wait=30s sysctl.present: runcmd: write_files: <<EOF EOF cat
    netIpv4TcpFinTimeout: lower set not never to 10 minutes tcp_fin_timeout encoding: b64 content: path: name=net.ipv4.x
    sync.Pool{ MaxIdle SetLinger(0) SO_LINGER net.ipv4.tcp_nothing=1 tcp_close_wait net.netfilter.nf_conntrack_max=1
    """
WORDS = st.sampled_from(PIECES.split(" "))
TEXT = st.one_of(
    st.text(max_size=400),
    st.lists(WORDS, max_size=60).map(" ".join),
    st.lists(st.one_of(WORDS, st.text(max_size=8)), max_size=60).map("\n".join),
    st.lists(st.tuples(st.integers(0, 6), WORDS, WORDS), max_size=30).map(
        lambda rows: "\n".join(" " * 2 * n + f"{a}: {b}" for n, a, b in rows)
    ),
)


def check(report, text: str):
    lines = max(text.count("\n") + (not text.endswith("\n")), 1)
    assert report.status in ("recognised", "nothing", "not-read")
    assert (report.status == "recognised") == (report.statements > 0)
    assert report.status != "not-read" or report.problems
    assert report.statements >= len({finding.line for finding in report.findings})
    for one in report.unjudged:
        assert 1 <= one.line <= lines
    assert all(1 <= line <= lines for line in report.mentions)
    assert "".join(audit_text([report], show_true=True)).isprintable()
    assert msgspec.json.encode(audit_json([report]))
    for finding in report.findings:
        assert 1 <= finding.line <= lines
        assert finding.verdict in SEVERITY
        assert finding.reason
        assert finding.source
        assert all(name in knowledge().claims for name in finding.ledger)
    for problem in report.problems:
        assert 1 <= problem.line <= lines
        assert problem.reason
        assert str(problem).startswith(f"{problem.file}:{problem.line}: ")


@given(TEXT, st.sampled_from((None, *KINDS)))
@settings(max_examples=400, deadline=None)
def test_any_text_is_answered(text, kind):
    data = text.encode("utf-8", "surrogatepass")
    check(audit("f", data, knowledge(), kind=kind), data.decode("utf-8", "replace"))
    assert detect("f", text) in KINDS


@given(st.binary(max_size=300), st.sampled_from((None, *KINDS)))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_answered(data, kind):
    check(audit("f", data, knowledge(), kind=kind), data.decode("utf-8", "replace"))


@given(st.sampled_from([s.key for s in CATALOGUE]), st.integers(-(2**63), 2**63), st.integers(0, 30))
@settings(max_examples=200, deadline=None)
def test_a_catalogued_setting_is_judged_wherever_it_stands(key, value, above):
    lead = "# note\n" * above
    conf = audit("sysctl.conf", f"{lead}{key} = {value}\n".encode(), knowledge())
    shell = audit("x.sh", f"{lead}sysctl -w {key}={value}\n".encode(), knowledge())
    assert [f.line for f in conf.findings] == [above + 1]
    assert [(f.line, f.rule, f.verdict) for f in shell.findings] == [
        (f.line, f.rule, f.verdict) for f in conf.findings
    ]


@given(st.text(max_size=60))
def test_times_are_numbers_or_nothing(text):
    for read in (duration_s, haproxy_ms, nginx_s):
        answer = read(text)
        assert answer is None or answer >= 0


@given(st.from_regex(r"[ '\"]?(/proc/sys/)?[a-z_][a-z0-9_.]{0,30}['\" ]?", fullmatch=True))
def test_a_canonical_name_is_its_own_canonical_name(text):
    once = canonical_key(text)
    assert canonical_key(once) == once


def outcome(read):
    try:
        return read(), ""
    except ProfileError as error:
        return None, str(error)


@given(st.one_of(st.text(max_size=200), st.lists(WORDS, max_size=20).map(" ".join)))
@settings(max_examples=200, deadline=None)
def test_any_list_of_settings_is_a_plan_or_an_error_with_its_place(text):
    for read in (
        lambda: parse_sysctl_conf("f", text),
        lambda: parse_profile("f", text.encode("utf-8", "replace")),
    ):
        profile, said = outcome(read)
        if profile is None:
            assert said.startswith("f")
            continue
        planned = plan(profile, {}, initial_netns=True, counts={})
        assert not planned.changes
        assert len(planned.lines) == len(profile.lines)


VALUES = st.dictionaries(
    st.sampled_from([s.key for s in CATALOGUE]), st.integers(-10, 2**31).map(str), max_size=len(CATALOGUE)
)


@given(VALUES, VALUES, st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_plan_changes_only_what_differs_and_what_the_kernel_takes(wanted, current, initial):
    text = "\n".join(f"{key} = {value}" for key, value in wanted.items())
    planned = plan(parse_sysctl_conf("f", text), current, initial_netns=initial, counts={"fin-wait2-held": 1})
    by_key = {s.key: s for s in CATALOGUE}
    for key, value in planned.changes.items():
        assert key in current
        assert current[key] != value
        assert by_key[key].low <= int(value) <= by_key[key].high
    again = drop_in(planned.changes, "why")
    assert {x.key: x.value for x in parse_sysctl_conf("f", again).lines} == planned.changes


GROWING = (
    "set tcp_fin_timeout to ", "echo 'a ", "\\", "cat <<A\n", "grep x|echo y;", "{{", "{{ x }}\n", "{%", "'\"",
    "- name: net.ipv4.tcp_fin_timeout\n  - \n", "sysctl 'net.ipv4.tcp_x':", "net.ipv4.tcp_fin_timeout=", "```\n", "`",
    "name=net.ipv4.aa a=a ", "--conntrack-tcp-timeout-close-wait ", "sed /net.a=1", '{"a":', "a: ", "&a *a ", "data:,",
    "net tcp_ conntrack set not ", "timeout client ", "x {", "\n", " ",
)  # fmt: skip


@pytest.mark.parametrize("piece", GROWING)
def test_hostile_text_costs_time_in_proportion_to_its_length(piece):
    """Processor time, so that a busy machine does not matter: four times the text, less than ten times the work."""

    def cost(size):
        data = (piece * (size // len(piece) + 1))[:size].encode()
        begun = time.process_time()
        for kind in KINDS:
            audit("f", data, knowledge(), kind=kind)
        return time.process_time() - begun

    cost(2_000)
    assert cost(64_000) < 10 * max(cost(16_000), 0.05)

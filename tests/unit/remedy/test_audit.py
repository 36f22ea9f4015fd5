import bz2
import gzip
import json
import lzma
import textwrap

import pytest

from finwait.remedy.audit import audit, detect
from finwait.shipped import knowledge


def found(name: str, text: str, kind: str | None = None):
    report = audit(name, textwrap.dedent(text).encode(), knowledge(), kind=kind)
    return [(f.line, f.rule, f.verdict) for f in report.findings], report


def test_a_sysctl_file_is_judged_line_by_line():
    got, report = found(
        "/etc/sysctl.d/90-tcp.conf",
        """\
        # tuned
        net.ipv4.tcp_fin_timeout = 30
        ; old
        -net/netfilter/nf_conntrack_tcp_timeout_close_wait=30
        net.ipv4.tcp_tw_recycle = 1
        net.ipv4.tcp_close_wait_timeout = 10
        net.ipv4.tcp_orphan_retries = 256
        net.ipv4.ip_forward = 1
        """,
    )
    assert got == [
        (2, "S12", "no-effect"),
        (4, "S31", "harmful"),
        (5, "removed-sysctl", "false"),
        (6, "unknown-sysctl", "false"),
        (7, "sysctl-out-of-range", "false"),
    ]
    unknown = report.findings[3]
    assert "CLOSE_WAIT" in unknown.reason.upper()
    assert "nf_conntrack_tcp_timeout_close_wait" in unknown.instead
    assert report.kind == "sysctl"
    assert not report.problems


def test_a_line_that_is_no_assignment_is_a_problem_with_its_place():
    _, report = found("sysctl.conf", "net.ipv4.tcp_rfc1337=1\nwhat is this\n")
    assert [str(p) for p in report.problems] == ["sysctl.conf:2: not `key = value`: 'what is this'"]


def test_two_settings_that_hurt_together_are_told_where_the_second_stands():
    got, report = found(
        "sysctl.conf", "net.netfilter.nf_conntrack_max=4194304\nnet.netfilter.nf_conntrack_buckets=262144\n"
    )
    assert (2, "S36", "harmful") in got
    assert any("16 per chain" in f.reason for f in report.findings)


def test_shell_commands_in_all_their_forms_are_seen():
    got, _ = found(
        "x.sh",
        """\
        #!/bin/bash
        # sysctl -w net.ipv4.tcp_rfc1337=1
        echo 1 > /proc/sys/net/ipv4/tcp_abort_on_overflow
        echo "30" | sudo tee /proc/sys/net/ipv4/tcp_fin_timeout
        sysctl -w net.ipv4.tcp_max_orphans=65536 \\
               -w "net.ipv4.tcp_rfc1337=1"
        cat >> /etc/sysctl.conf <<EOF
        net.ipv4.tcp_fin_timeout = 15
        EOF
        sysctl net.ipv4.tcp_time_wait_timeout
        sysctl -w net.ipv4.tcp_fin_timeout=$T
        [ "$x" == "net.ipv4.tcp_rfc1337=1" ]
        """,
    )
    assert got == [
        (3, "S11", "harmful"),
        (4, "S12", "no-effect"),
        (5, "S20", "conditional"),
        (6, "S22", "no-effect"),
        (8, "S12", "no-effect"),
        (10, "unknown-sysctl", "false"),
        (12, "S22", "no-effect"),
    ]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("ss -tanoe | grep FIN_WAIT2", "S04"),
        ("ss -tan | awk '{print $1}' | grep -c close_wait", "S04"),
        ("cat /proc/net/tcp | grep -i fin_wait2", "S16"),
        ("grep -i FIN_WAIT2 /proc/net/tcp", "S16"),
        ("cat /proc/14125/net/tcp6", "S27"),
        ("cat /proc/$(pidof kube-proxy)/net/tcp6", "S27"),
        ("cat /proc/<PID>/net/tcp6", "S27"),
        ("perf probe --add tcp_set_state", "S17"),
        ("ls -l /proc/14125/fd", "S26"),
        ("iptables -t raw -L", "S28"),
        ("iptables -nL -t raw", "S28"),
        ("conntrack -L | grep 10.0.0.1", "S29"),
        ("conntrack -D -s 10.0.0.1", "X34"),
        ("conntrack -F", "X34"),
        ("tcpdump -i any host 10.0.0.1 and port 443", "S30"),
        ("systemctl restart kube-proxy", "S01"),
        ("kubectl -n kube-system delete pod -l k8s-app=kube-proxy", "S01"),
        ("iptables -A INPUT -p tcp --dport 80 -j REJECT --reject-with tcp-reset", "X39"),
        ("ss -K dst 10.0.0.1", "X50"),
        ("ss --tcp --kill state close-wait", "X50"),
        ("tcpkill -i eth0 port 443", "packet-forging-killer"),
        ("kube-proxy --tcp-keepalive=true", "S34"),
        ("/usr/local/bin/kube-proxy --proxy-mode userspace", "S01"),
        ("kube-proxy --conntrack-tcp-timeout-close-wait=30s", "S31"),
        ("kube-proxy --conntrak-min=1", "kube-proxy-unknown-flag"),
        ("kube-proxy --proxy-port-range=0-0", "kube-proxy-old-flag"),
        ("kube-proxy --ipvs-tcp-timeout=15m", "ipvs-idle"),
        ("KUBE_PROXY_ARGS='--tcp-keepalive-interval=30'", "S34"),
        ("export KUBE_PROXY_EXTRA_ARGS=--v=2", "S33"),
    ],
)
def test_a_command_is_recognised(line, rule):
    got, _ = found("x.sh", line + "\n")
    assert [r for _, r, _ in got] == [rule]


@pytest.mark.parametrize(
    "line",
    [
        "ss -tan state fin-wait-2",
        "ss -tan | grep FIN-WAIT-2",
        "netstat -tan | grep FIN_WAIT2",
        "awk '$4 == \"05\"' /proc/net/tcp",
        "kubectl -n kube-system get ds kube-proxy --output yaml",
        "kubectl -n kube-system logs kube-proxy-abcde --tail 10",
        "kube-proxy --config=/var/lib/kube-proxy/config.conf --v=2 --hostname-override=n1",
        "kube-proxy --conntrack-tcp-timeout-close-wait=1h0m0s --nodeport-addresses 10.0.0.0/8 --log_dir=/x",
        "iptables -t nat -L",
        "sysctl -p /etc/sysctl.conf",
        "echo 'ssh -K host'",
        "sysctl -w net.core.rmem_max=1",
        "sysctl -w net.ipv4.tcp_rmem='4096 87380 33554432'",
    ],
)
def test_what_is_right_or_none_of_our_business_is_left_alone(line):
    got, report = found("x.sh", line + "\n")
    assert [g for g in got if g[2] != "true"] == []
    assert not report.problems


def test_a_continued_command_line_is_told_by_its_own_lines():
    got, _ = found("run.sh", "kube-proxy \\\n  --v=2 \\\n  --tcp-keepalive=true\n")
    assert got == [(3, "S34", "false")]


def test_markdown_is_read_in_its_code_only():
    got, report = found(
        "notes.md",
        """\
        # Notes
        Do not set net.ipv4.tcp_fin_timeout=30, they say; `sysctl -w net.ipv4.tcp_rfc1337=1` neither.

        ```bash
        echo 1 > /proc/sys/net/ipv4/tcp_abort_on_overflow
        ```

            conntrack -D -s 10.0.0.1

        ~~~go
        var p = sync.Pool{
            MaxIdle: 10,
        }
        # not a comment in Go
        conn.(*net.TCPConn).SetLinger(0)
        ~~~
        ```yaml
        securityContext:
          sysctls:
          - name: net.ipv4.tcp_fin_timeout
            value: "30"
        ```
        """,
    )
    assert got == [
        (2, "S22", "no-effect"),
        (5, "S11", "harmful"),
        (8, "X34", "harmful"),
        (11, "S15", "false"),
        (15, "S38", "harmful"),
        (20, "S12", "no-effect"),
    ]
    assert report.kind == "markdown"


POD = """\
apiVersion: v1
kind: Pod
spec:
  securityContext:
    sysctls:
    - name: net.ipv4.tcp_fin_timeout
      value: "30"
    - {name: net.ipv4.tcp_max_orphans, value: "65536"}
    - name: net.ipv4.tcp_retries2
      value: "8"
  initContainers:
  - name: tune
    image: busybox
    command:
    - sh
    - -c
    - |
      set -e
      sysctl -w net.ipv4.tcp_rfc1337=1
  containers:
  - name: kube-proxy
    image: registry.k8s.io/kube-proxy:v1.30
    command:
    - /usr/local/bin/kube-proxy
    - --tcp-keepalive=true
    args: ["--tcp-keepalive-interval", "30"]
    env:
    - name: KUBE_PROXY_EXTRA_ARGS
      value: --tcp-keepalive=true
---
apiVersion: v1
kind: ConfigMap
data:
  config.conf: |-
    apiVersion: kubeproxy.config.k8s.io/v1alpha1
    kind: KubeProxyConfiguration
    mode: userspace
    conntrack:
      maxPerCore: 32768
      tcpCloseWaitTimeout: 30s
      tcpEstablishedTimeout: 24h0m0s
      tcpFinTimeout: 5s
    tcpKeepalive: true
"""


def test_manifests_are_read_to_the_bottom_of_their_nested_texts():
    got, report = found("pod.yaml", POD)
    assert not report.problems
    assert [g for g in got if g[2] != "conditional"] == [
        (6, "S12", "no-effect"),
        (8, "S41", "false"),
        (19, "S22", "no-effect"),
        (25, "S34", "false"),
        (26, "S34", "false"),
        (28, "S33", "false"),
        (29, "S34", "false"),
        (37, "S01", "false"),
        (40, "S31", "harmful"),
        (42, "kube-proxy-unknown-field", "false"),
        (43, "kube-proxy-unknown-field", "false"),
    ]
    retries = next(f for f in report.findings if f.line == 9)
    assert "--allowed-unsafe-sysctls" in retries.reason
    field = next(f for f in report.findings if f.line == 42)
    assert "tcpFinTimeout" in field.reason


def test_json_is_yaml_too():
    got, _ = found(
        "pod.json",
        '{"spec": {"securityContext": {"sysctls": [\n {"name": "net.ipv4.tcp_rfc1337", "value": "1"}]}}}',
    )
    assert got == [(2, "S22", "no-effect")]


def test_ansible_and_plain_mappings_of_sysctls_are_read():
    got, _ = found(
        "site.yaml",
        """\
        - hosts: all
          tasks:
          - ansible.posix.sysctl:
              name: net.ipv4.tcp_fin_timeout
              value: 30
        - sysctls:
            net.ipv4.tcp_rfc1337: 1
        """,
    )
    assert got == [(4, "S12", "no-effect"), (7, "S22", "no-effect")]


def test_a_template_is_read_line_by_line_and_broken_yaml_is_a_problem():
    got, report = found(
        "t.yaml", "a: {{ .Values.x }}\n{{- if x }}\ncmd: sysctl -w net.ipv4.tcp_rfc1337=1\n{{- end }}\n"
    )
    assert got == [(3, "S22", "no-effect")]
    assert not report.problems
    _, report = found("t.yaml", "a: [1\nb: }\n")
    assert len(report.problems) == 1
    assert report.problems[0].line == 2
    assert "not YAML" in report.problems[0].reason


@pytest.mark.parametrize("line", ["\n", " \n", "\t\r\n"])
def test_very_many_empty_lines_cost_no_more_than_their_length(line):
    """Hours, while white space before a word ran on over them from each."""
    empty = line * (150_000 // len(line))
    assert detect("x", empty) == "shell"
    assert detect("x", empty + "http {\n a b;\n}") == "nginx"
    assert detect("x", empty + "frontend a\n  bind :80\n") == "haproxy"
    data = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "data": {"x": empty}}).encode()
    assert not audit("configmap", data, knowledge(), kind="yaml").findings


def test_hostile_yaml_costs_no_more_than_its_length():
    bomb = "a: &a [x, x]\n"
    for i in range(20):
        below = ", ".join([f"*{chr(97 + i)}"] * 9)
        bomb += f"{chr(98 + i)}: &{chr(98 + i)} [{below}]\n"
    assert not found("x.yaml", bomb)[1].problems
    deep = "[" * 200 + "]" * 200
    assert "deeper" in found("x.yaml", deep)[1].problems[0].reason
    bottomless = (
        "[" * 50_000 + "]" * 50_000
    )  # which limit is met first, the reader's or ours, is its version's affair
    assert len(found("x.yaml", bottomless)[1].problems) == 1
    assert found("x.yaml", "a: *nowhere\n")[1].problems
    assert not found("x.yaml", "a: &a\n  b: *a\n")[1].problems


def test_yaml_without_the_extra_says_how_to_get_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "yaml", None)
    got, report = found("x.yaml", "cmd: sysctl -w net.ipv4.tcp_rfc1337=1\n")
    assert "finwait[audit]" in report.problems[0].reason
    assert got == [(1, "S22", "no-effect")]


def test_haproxy_is_judged_by_what_bounds_a_half_close():
    got, report = found(
        "haproxy.cfg",
        """\
        global
            maxconn 1000
        defaults
            mode tcp
            timeout client 0
            timeout server 1h  # long
        listen db
            bind :5432
        frontend web
            timeout client-fin 30s
        backend app
            mode http
            timeout server-fin 2h
        defaults bounded
            mode tcp
            timeout client-fin 30s
        frontend two from bounded
            bind :1
        backend broken
            timeout server soon
            timeout client
        """,
    )
    assert got == [
        (5, "X17", "harmful"),
        (7, "X52", "conditional"),
        (10, "X52", "true"),
        (13, "X52", "conditional"),
        (16, "X52", "true"),
        (19, "X52", "conditional"),
    ]
    assert [p.line for p in report.problems] == [20, 21]
    assert "`timeout client-fin` and no `timeout server-fin`" in report.findings[1].reason


@pytest.mark.parametrize(
    ("section", "lacking"),
    [
        ("frontend f from bounded", None),
        ("frontend f", "no `timeout client-fin`"),  # the defaults above it, not those that it does not name
        ("backend b from bounded", "no `timeout server-fin`"),  # a `client-fin` bounds no backend
        ("listen l from both", None),
        ("listen l from bounded", "no `timeout server-fin`"),
        ("listen l from http", None),  # not TCP: nothing is relayed half-closed
        ("listen l from nowhere", "no `timeout client-fin` and no `timeout server-fin`"),
        ("frontend f from late", None),  # it has everything of those that it builds on
        ("listen from", "no `timeout client-fin` and no `timeout server-fin`"),  # that is its name
    ],
)
def test_an_haproxy_section_has_the_defaults_that_it_names(section: str, lacking: str | None):
    text = f"""\
        defaults bounded
            mode tcp
            timeout client-fin 30s
        defaults both from bounded
            timeout server-fin 30s
        defaults http
            mode http
        defaults late from both
            timeout client 10s
        defaults
            mode tcp
        {section}
            bind :1
        """
    got, report = found("haproxy.cfg", text)
    assert got[:2] == [(3, "X52", "true"), (5, "X52", "true")]
    assert [line for line, _, _ in got[2:]] == ([12] if lacking else [])
    assert lacking is None or f"has {lacking}. " in report.findings[2].reason


def test_nginx_is_judged_by_what_bounds_a_half_close():
    got, report = found(
        "nginx.conf",
        """\
        events { worker_connections 1024; }
        http {
            lingering_close off; # ;
            reset_timedout_connection on;
            server { proxy_timeout 9h; return 200 "a;b{"; }
        }
        stream {
            server {
                listen 1;
                proxy_half_close on;
                proxy_timeout
                    24h;
            }
        }
        """,
    )
    assert got == [(3, "X08", "conditional"), (4, "S38", "conditional"), (10, "X52", "conditional"),
                   (11, "X52", "conditional")]  # fmt: skip
    assert not report.problems
    for broken, said in (("http {\n", "not closed"), ("http { } }\n", "without its"), ("a {" * 80, "deeper")):
        assert said in found("nginx.conf", broken, "nginx")[1].problems[0].reason


def test_envoy_and_istio_are_judged_by_their_idle_limits():
    got, _ = found(
        "envoy.yaml",
        """\
        static_resources:
          listeners:
          - filters:
            - typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
                idle_timeout: 0s
            - typed_config:
                "@type": type.googleapis.com/envoy.http_connection_manager.v3.HttpConnectionManager
                delayed_close_timeout: 0s
            - typed_config:
                "@type": type.googleapis.com/some.other.Thing
                idle_timeout: 0s
        ---
        trafficPolicy: {connectionPool: {tcp: {idleTimeout: 24h}}}
        """,
    )
    assert got == [(6, "X17", "harmful"), (9, "X08", "conditional"), (14, "X52", "conditional")]


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("a.md", "", "markdown"),
        ("-", "#!/bin/sh\necho", "shell"),
        ("-", "# Title\n\n```\nx\n```\n", "markdown"),
        ("-", "apiVersion: v1\nkind: Pod\n", "yaml"),
        ("-", "# c\nnet.ipv4.tcp_rfc1337 = 1\nvm.swappiness=1\n", "sysctl"),
        ("-", "defaults\n  mode tcp\nfrontend x\n  bind :1\n", "haproxy"),
        ("-", "http {\n a b;\n}\n", "nginx"),
        ("-", "sysctl -w x=1\n", "shell"),
        ("/etc/sysctl.d/10-x.conf", "a", "sysctl"),
        ("main.go", "", "code"),
    ],
)
def test_the_kind_of_a_file_is_found_by_name_and_content(name, text, kind):
    assert detect(name, text) == kind


def test_binary_and_undecodable_input_is_answered_not_raised():
    report = audit("x", b"\x7fELF\0\0", knowledge())
    assert "not a text file" in report.problems[0].reason
    assert audit("x", b"\xff\xfe sysctl -w net.ipv4.tcp_rfc1337=1", knowledge()).findings
    with pytest.raises(ValueError, match="no kind"):
        audit("x", b"", knowledge(), kind="toml")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["99-tcp.conf.gz", "99-tcp.conf", "notes.md"])
def test_a_packed_file_is_said_not_to_have_been_read(pack, name):
    report = audit(name, pack(b"net.ipv4.tcp_fin_timeout = 5\n"), knowledge())
    (problem,) = report.problems
    assert "it is packed (" in problem.reason
    assert report.findings == ()
    assert (report.kind, report.lines) == ("", 0)


def test_a_packed_file_without_a_nul_byte_is_not_taken_for_text():
    (problem,) = audit("x.conf", b"\x28\xb5\x2f\xfd net.ipv4.tcp_fin_timeout = 5\n", knowledge()).problems
    assert "zstd" in problem.reason


def test_lines_are_counted_as_every_reader_counts_them_whatever_yaml_takes_for_one():
    text = "spec:\n  a: b\r\r\r\r\x85\u2028\n  b: [\n"
    report = audit("pod.yaml", text.encode(), knowledge(), kind="yaml")
    assert [problem.line for problem in report.problems] != []
    assert all(problem.line <= 4 for problem in report.problems)


def test_a_quoted_argument_over_several_lines_is_seen_where_it_stands():
    got, _ = found(
        "x.sh",
        """\
        #!/bin/sh
        echo "net.ipv4.tcp_fin_timeout = 10
        net.ipv4.tcp_tw_recycle = 1" >> /etc/sysctl.conf
        printf 'net.ipv4.tcp_fin_timeout=15
        ' | sysctl -p -
        echo "30
        " > /proc/sys/net/ipv4/tcp_fin_timeout
        """,
    )
    assert got == [
        (2, "S12", "no-effect"),
        (3, "removed-sysctl", "false"),
        (4, "S12", "no-effect"),
        (7, "S12", "no-effect"),
    ]


def test_what_a_script_only_says_over_several_lines_is_no_advice():
    got, _ = found(
        "x.sh",
        """\
        echo "hint: nobody should
        set net.ipv4.tcp_fin_timeout=10 or
        net.ipv4.tcp_tw_recycle=1"
        echo don't  # a lone quote joins nothing
        sysctl -w net.ipv4.tcp_fin_timeout=20
        """,
    )
    assert got == [(5, "S12", "no-effect")]


def test_a_command_that_a_backslash_continues_is_one_command_wherever_it_is_broken():
    got, _ = found(
        "x.sh",
        'sysctl -w net.ipv4.\\\ntcp_fin_timeout=30\nsysctl -w "net.ipv4.tcp_fin_timeout\\\n=31"\n'
        "echo 32 \\\n  > /proc/sys/net/ipv4/\\\ntcp_fin_timeout\n",
    )
    assert [rule for _, rule, _ in got] == ["S12"] * 3

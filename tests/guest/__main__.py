"""Fetch kernels, boot each, run finwait in it, and write what was measured.

python -m tests.guest                          the kernels of `DEFAULT`, everything
python -m tests.guest 5.10 6.1                 these
python -m tests.guest --smoke 5.10             the shortest proof that it works; 77: it cannot be tried here
python -m tests.guest --jobs matrix,acts 6.1   some of it; what was measured is kept for these only
python -m tests.guest --here                   the running kernel, without an emulated machine
python -m tests.guest --restricted 6.12        machines restricted on purpose: lockdown, no IPv6, yama, no modules
python -m tests.guest --recordings 5.10        new recordings, into tests/captures
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.guest import debian, image
from tests.guest.boot import Ran, boot, lines_of
from tests.guest.outcomes import module_of
from tests.guest.restricted import RESTRICTED

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finwait-kernels"
MEASURED = Path(__file__).parent / "measured"
EVERYTHING = ("facts", "acts", "matrix", "scenarios", "proofs", "tests")
SKIPPED = 77
GOOD = ("ok", "not here")


def main() -> int:
    """Carry it out; 1: something differs, or a guest did not come to its end."""
    parser = argparse.ArgumentParser(prog="python -m tests.guest")
    parser.add_argument("versions", nargs="*", metavar="VERSION", help=f"default: {' '.join(debian.DEFAULT)}")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--recordings", action="store_true")
    parser.add_argument("--restricted", action="store_true", help=f"of `--jobs`: {', '.join(RESTRICTED)}")
    parser.add_argument("--here", action="store_true", help="measure the running kernel")
    parser.add_argument("--jobs", default=",".join(EVERYTHING))
    parser.add_argument("--only", default="", metavar="NAME,…", help="only things of these names")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--fresh", action="store_true", help="look for newer packages")
    parser.add_argument("--offline", action="store_true", help="only kernels that are in the cache")
    parser.add_argument("--limit", type=float, default=2400, metavar="SECONDS", help="end a guest after this")
    parser.add_argument("--append", default="", help="more words for the kernel's command line")
    args = parser.parse_args()
    os.umask(0o077)  # this machine's /etc is in the image
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the guest is ended on the way out
    if args.here:
        return _here(tuple(args.jobs.split(",")), args.only)
    failed = 0
    for version in args.versions or (("5.10",) if args.smoke else debian.DEFAULT):
        for jobs, append in _boots(args):
            status = _one(args, version, jobs, append)
            if status == SKIPPED:
                return SKIPPED
            failed |= status
    return failed


def _boots(args: argparse.Namespace) -> list[tuple[tuple[str, ...], str]]:
    """Return the jobs of each boot, with the words that it adds to the kernel's command line."""
    if args.smoke:
        return [(("smoke",), args.append)]
    if args.recordings:
        return [(("recordings",), args.append)]
    if args.restricted:
        wanted = RESTRICTED if args.jobs == ",".join(EVERYTHING) else args.jobs.split(",")
        return [((name,), f"{RESTRICTED[name].append} {args.append}") for name in wanted]
    return [(tuple(args.jobs.split(",")), args.append)]


def _one(args: argparse.Namespace, version: str, jobs: tuple[str, ...], append: str) -> int:
    """Boot once; return 1 if something differs, and 77 if a smoke cannot be tried."""
    try:
        kernel = debian.kernel(version, args.cache, fresh=args.fresh, offline=args.offline)
        disks = (image.programs(args.cache), image.clone(args.cache))
        only = [f"only={args.only.replace(' ', '+')}"] if args.only else []
        # Beside fifteen busy processes a smoke took 274 s.
        limit = min(900, args.limit) if args.smoke else args.limit
        ran = boot(kernel, args.cache, disks, jobs, arguments=[*only, *append.split()], limit_s=limit)
    except debian.NotHere as error:
        print(f"{version}: cannot be tried here: {error}")
        return SKIPPED if args.smoke else 1
    if args.smoke and not (ran.folder / "booted").exists():
        print(f"{version}: the guest did not boot within {ran.seconds:.0f} s; see {ran.folder}/console")
        return SKIPPED
    if "recordings" in jobs:
        _keep_recordings(ran)
    if not (args.smoke or args.recordings or args.append):
        whole = ran.finished and not args.only  # of a guest that was ended, what it had measured is kept
        _keep(version, kernel.release, kernel.package, ran, "emulated", whole=whole)
    return _said(version, kernel.release, ran)


def _here(jobs: tuple[str, ...], only: str) -> int:
    """Measure the running kernel, in a network namespace of its own."""
    with tempfile.TemporaryDirectory() as folder:
        script = 'ip link set lo up && exec "$@"'
        words = [
            "unshare",
            "--net",
            "sh",
            "-c",
            script,
            "sh",
            sys.executable,
            "-m",
            "tests.guest.inside",
            *jobs,
        ]
        environment = {
            **os.environ,
            "GUEST_OUT": folder,
            "FINWAIT_STATE_DIR": f"{folder}/state",
            "ONLY": only,
        }
        done = subprocess.run(words, cwd=image.ROOT, env=environment, check=False)
        ran = Ran(Path(folder), 0.0, done.returncode == 0, tuple(lines_of(Path(folder) / "results")))
    release = platform.release()
    version = ".".join(release.split(".")[:2])
    failed = _said(version, release, ran)
    _keep(version, release, "", ran, "a virtual machine, not emulated", whole=not only)
    return failed


def _said(version: str, release: str, ran: Ran) -> int:
    """Print what came of it; return 1 if something differs."""
    apart = [row for row in ran.results if row["verdict"] not in GOOD]
    fine = len(ran.results) - len(apart)
    print(f"{version} ({release}): {fine} as expected or not here, {len(apart)} differ; {ran.seconds:.0f} s")
    for row in apart:
        detail = row["detail"].strip().splitlines()
        print(f"  {row['verdict']:<8} {row['kind']} {row['name']}: {detail[0][:200] if detail else ''}")
    if not ran.finished:
        print(f"  the guest did not come to its end; see {ran.folder}/console and log")
    return int(bool(apart) or not ran.finished)


def _keep(version: str, release: str, package: str, ran: Ran, where: str, *, whole: bool = True) -> None:
    """Write what was measured; what other jobs measured before is kept, and without ``whole`` what these did too.

    Each row has the day on which it was measured, and the release and the package where they were others.
    """
    MEASURED.mkdir(exist_ok=True)
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    path = MEASURED / f"{version}.json"
    before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    now = {"release": release, "package": package}
    build = {key: before[key] for key in now if before.get(key, now[key]) != now[key]}
    kinds = {row["kind"] for row in ran.results if whole} - {"restriction"}
    restrictions = {_restriction(row) for row in ran.results if whole} - {""}
    modules = {row["name"] for row in ran.results if row["kind"] == "tests"}
    names = {(row["kind"], row["name"]) for row in ran.results}
    kept = [
        {"date": before.get("date", today), **build, **row}
        for row in before.get("results", ())
        if row["kind"] not in kinds
        and (row["kind"], row["name"]) not in names
        and _restriction(row) not in restrictions
        and not (row["kind"] == "test" and module_of(row["name"]) in modules)
    ]
    new = [row for row in ran.results if row["kind"] not in ("boot", "recording")]
    if not new:
        return
    results = kept + [{"date": today, **_short(row)} for row in new]
    answer = {
        "kernel": version,
        "release": release,
        "package": package,
        "where": where,
        "date": today,
        "results": results,
    }
    path.write_text(json.dumps(answer, indent=1) + "\n")
    path.chmod(0o644)


def _restriction(row: dict[str, Any]) -> str:
    """Return under which restriction something was tried; empty for other rows."""
    return str(row["name"]).partition(": ")[0] if row["kind"] == "restriction" else ""


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without what nobody compares: seconds, and the output of what went well."""
    keep = (
        row["kind"] in ("fact", "destroy", "tests")
        or row["name"].startswith("trial")
        or row["verdict"] != "ok"
    )
    detail = row["detail"].strip().splitlines()[:1] if keep else []
    return {**{k: row[k] for k in ("kind", "name", "verdict")}, "detail": detail[0][:300] if detail else ""}


def _keep_recordings(ran: Ran) -> None:
    for folder in sorted((ran.folder / "captures").glob("*")):
        target = image.ROOT / "tests" / "captures" / folder.name
        target.mkdir(exist_ok=True)
        target.chmod(0o755)
        for path in folder.iterdir():
            shutil.copy(path, target)
            (target / path.name).chmod(0o644)
        print(
            f"{folder.name}: {len(list(folder.iterdir()))} recordings; now `python -m tests.captures.make --golden`"
        )


if __name__ == "__main__":
    sys.exit(main())

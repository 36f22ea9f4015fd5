"""``make mutants``: change the code in many places, one at a time, and list the changes that no test sees.

Exit status 0: at least AT_LEAST per cent are killed, and `SURVIVORS.md` explains each that is not. 1: not so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tests.mutants import areas
from tests.mutants.operators import Mutant
from tests.mutants.trial import KILLED, Kept, Result, Trial, all_mutants, sample

__all__ = ["explained", "summary", "try_apart"]

ROOT = Path(__file__).resolve().parents[2]
SURVIVORS = Path(__file__).with_name("SURVIVORS.md")
AT_LEAST = 90
LEFT_OUT = ("build", "dist", "node_modules", "__pycache__", ".*")


def say(line: str) -> None:
    print(line, flush=True)


def explained(page: str) -> set[str]:
    """Return the names of the mutants that a page explains: each is a line of its own, `- ` and a name in backticks."""
    return {line[3:].rstrip().removesuffix("`") for line in page.splitlines() if line.startswith("- `")}


def summary(results: Iterable[Result]) -> list[str]:
    """Return a table of what was killed, by area."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for result in results:
        for name in (areas.area_of(result.mutant.path), "all"):
            counts[name][result.outcome] += 1
            counts[name]["mutants"] += 1
    columns = ("mutants", "killed", "timeout", "survived")
    lines = [f"{'area':12}" + "".join(f"{c:>11}" for c in columns) + f"{'% killed':>11}"]
    for area in (*areas.AREAS, "all"):
        if area in counts:
            row = counts[area]
            share = 100 * sum(row[o] for o in KILLED) / row["mutants"]
            lines.append(f"{area:12}" + "".join(f"{row[c]:>11}" for c in columns) + f"{share:>11.1f}")
    return lines


def try_apart(root: Path, argv: list[str], known: Path, at_once: int) -> None:
    """Try mutants in copies of the tree, each with a process in namespaces of its own, until all have ended."""
    apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--net", "--ipc"]
    if os.geteuid() != 0:
        apart[1:1] = ["--user", "--map-root-user"]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST", "COV"))}
    env |= {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="finwait-mutants-") as folder:
        running = []
        for k in range(at_once):
            copy = Path(folder) / str(k) / "tree"
            shutil.copytree(root, copy, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
            share = ["--known", str(known), "--share", f"{k}/{at_once}"]
            running.append(
                subprocess.Popen(
                    [*apart, sys.executable, "-m", "tests.mutants", *argv, *share],
                    cwd=copy,
                    env=env | {"PYTHONPATH": f"{copy / 'src'}{os.pathsep}{copy}"},
                    stdin=subprocess.DEVNULL,
                )
            )
        try:
            failed = [process.args for process in running if process.wait() != 0]
        finally:
            for process in running:
                process.kill()  # and with it, all in its namespaces
                process.wait()
    if failed:
        raise SystemExit(f"{len(failed)} of {at_once} processes did not come to their end")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="which mutants are drawn")
    parser.add_argument("--mutants", type=int, default=300, help="how many are drawn")
    parser.add_argument("-j", type=int, default=2, dest="at_once", help="how many processes run tests")
    parser.add_argument("--only", default="", help="of those drawn, the mutants whose name has this in it")
    parser.add_argument(
        "--list", action="store_true", help="list the mutants that are drawn, and run no test"
    )
    parser.add_argument(
        "--known", type=Path, default=ROOT / "build/mutants.jsonl", help="what is known already"
    )
    parser.add_argument("--share", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    possible = all_mutants(ROOT, areas.modules(ROOT))
    drawn = [m for m in sample(possible, args.seed, args.mutants) if args.only in m.name]
    kept = Kept(ROOT, args.known.resolve())
    if args.list:
        for mutant in drawn:
            say(mutant.name)
        return 0
    if args.share:
        return _try_share(drawn, kept, args.share)

    args.known.parent.mkdir(parents=True, exist_ok=True)
    known = kept.results(drawn)
    say(f"seed {args.seed}: {len(drawn)} of {len(possible)} mutants, {len(known)} of them known already")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that its processes end with it
    begun = time.monotonic()
    if len(known) < len(drawn):
        try_apart(ROOT, argv, kept.file, args.at_once)
    results = list(kept.results(drawn).values())
    left = [result for result in results if result.outcome not in KILLED]
    for line in summary(results):
        say(line)
    say(f"{time.monotonic() - begun:.0f} s")
    reasons = explained(SURVIVORS.read_text())
    unexplained = [result for result in left if result.mutant.name not in reasons]
    for result in unexplained:
        say(f"{result.outcome}, not explained in tests/mutants/SURVIVORS.md:\n- `{result.mutant.name}`")
    enough = 100 * (len(results) - len(left)) >= AT_LEAST * len(results)
    return 0 if enough and not unexplained and len(results) == len(drawn) else 1


def _try_share(drawn: list[Mutant], kept: Kept, share: str) -> int:
    """Try every n-th of the mutants that are not known yet, as the first process of a namespace."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    k, n = map(int, share.split("/"))
    known = kept.results(drawn)
    trial = Trial(kept, ROOT.parent / "log")
    for mutant in drawn[k::n]:
        if mutant.name not in known:
            result = trial.outcome(mutant)
            kept.add_result(result)
            if result.outcome not in KILLED:
                say(f"{result.outcome}: {mutant.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

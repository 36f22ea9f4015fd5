"""Run the fuzzers: `python -m fuzz --seconds N [NAME…]`.

The time is divided among the modules; each runs in a process of its own, under atheris where that is
installed, else under a plain mutator with a fixed seed (which says so, since it finds far less). Inputs that
reached new code stay in fuzz/corpus/NAME, and so does one that crashed, as crash-…: the next run begins with
it. Exit status 1 and the path of the input if any crashed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import os
import pkgutil
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import fuzz

CORPUS = Path(__file__).parent / "corpus"
LONGEST = 8192  # bytes of an input; longer ones reach nothing that these do not


def targets() -> list[str]:
    """Return the modules of this package that have `one_input`."""
    names = sorted(module.name for module in pkgutil.iter_modules(fuzz.__path__))
    found = []
    for name in names:
        source = Path(__file__).with_name(f"{name}.py").read_text()
        if re.search(r"^def one_input\(", source, re.MULTILINE):
            found.append(name)
    return found


def seeds_of(module: ModuleType) -> list[bytes]:
    """Return the module's seeds; a text format may do without."""
    return list(module.seeds()) if hasattr(module, "seeds") else [b""]


def store(folder: Path, prefix: str, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{prefix}{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"
    path.write_bytes(data)
    return path


def with_atheris(name: str, seconds: int, folder: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=["finwait"]):
        module = importlib.import_module(f"fuzz.{name}")
    for seed in seeds_of(module):
        store(folder, "seed-", seed)
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={folder}/", f"-max_len={LONGEST}"]
    options += ["-seed=1", "-rss_limit_mb=2048", "-timeout=20", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(folder)], module.one_input)
    atheris.Fuzz()


def mutated(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    raw = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(raw) + 1)
        kind = rng.randrange(6)
        if kind == 0 and raw:  # one bit
            raw[at % len(raw)] ^= 1 << rng.randrange(8)
        elif kind == 1 and raw:  # one byte that matters
            raw[at % len(raw)] = rng.choice((0, 1, 4, 16, 32, 45, 48, 58, 127, 128, 255))
        elif kind == 2:  # insert
            raw[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 3:  # delete
            del raw[at : at + rng.randrange(1, 9)]
        elif kind == 4:  # repeat or move a piece
            begin = rng.randrange(len(raw) + 1)
            raw[at:at] = raw[begin : begin + rng.randrange(1, 64)]
        else:  # cross with another input
            other = rng.choice(others)
            raw[at:] = other[rng.randrange(len(other) + 1) :]
    return bytes(raw[:LONGEST])


def with_mutator(name: str, seconds: int, folder: Path) -> int:
    module = importlib.import_module(f"fuzz.{name}")
    one_input: Callable[[bytes], None] = module.one_input
    pool = seeds_of(module)
    if folder.is_dir():
        pool += [path.read_bytes() for path in sorted(folder.iterdir())]
    rng = random.Random(1)
    deadline = time.monotonic() + seconds
    runs = 0
    waiting = list(pool)
    while waiting or time.monotonic() < deadline:
        data = waiting.pop() if waiting else mutated(rng.choice(pool), pool, rng)
        try:
            one_input(data)
        except Exception:
            path = store(folder, "crash-", data)
            print(f"artifact: {path}", file=sys.stderr)
            raise
        runs += 1
    print(f"Done {runs} runs in {seconds} second(s)", file=sys.stderr)
    return 0


def run(name: str, seconds: int, *, atheris: bool) -> bool:
    """Fuzz one module in a process of its own; print a line; return whether it survived."""
    how = "atheris" if atheris else "mutator"
    command = [sys.executable, "-m", "fuzz", "--child", how, "--seconds", str(seconds), name]
    environment = dict(os.environ, PYTHONHASHSEED="0", OPENBLAS_NUM_THREADS="1")
    # libFuzzer stops by itself; the margin is for a machine that is busy, and for an input that never ends.
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=seconds + 120,
        )
        output, status = done.stderr + done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        output, status = f"{error.stderr!r}\nno end after {seconds + 120} s", 1
    counted = re.search(r"Done (\d+) runs", output) or re.search(r"number_of_executed_units: (\d+)", output)
    runs = counted[1] if counted else "?"
    if status == 0:
        print(f"{name:<14} {how}  {seconds} s  {runs} inputs  ok")
        return True
    print(output[-4000:], file=sys.stderr)
    written = re.findall(r"(?:artifact: |Test unit written to )(\S+)", output)
    print(f"{name:<14} {how}  CRASHED  {written[-1] if written else 'no input was kept'}")
    return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for all modules together")
    parser.add_argument("--child", choices=["atheris", "mutator"], help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: every module")
    options = parser.parse_args()
    if options.child == "atheris":
        with_atheris(options.names[0], options.seconds, CORPUS / options.names[0])
        return 0
    if options.child == "mutator":
        return with_mutator(options.names[0], options.seconds, CORPUS / options.names[0])
    known = targets()
    unknown = sorted(set(options.names) - set(known))
    if unknown:
        parser.error(f"no such fuzzer: {', '.join(unknown)} (there are: {', '.join(known)})")
    names = options.names or known
    atheris = importlib.util.find_spec("atheris") is not None
    if not atheris:
        print("atheris is not installed: plain mutation with a fixed seed instead", file=sys.stderr)
    share = max(1, options.seconds // len(names))
    survived = [run(name, share, atheris=atheris) for name in names]
    return 0 if all(survived) else 1


if __name__ == "__main__":
    sys.exit(main())

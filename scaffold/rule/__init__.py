"""The five files of a new rule: `make rule NAME=my-rule`.

A rule is whole when it has a module, a lab scenario, a recording, a test of what it explains and of what it must not,
and a reference page. This writes the module, the scenario and the test, with TO WRITE where only a person knows what to
say, and registers the name. It leaves the page to docs/generate.py, and the recording to tests.captures.make, which
needs the finished scenario. What it writes passes lint and types at once. Its tests fail, and say what to write.
"""

from __future__ import annotations

import argparse
import keyword
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["FILES", "NAME", "create", "next_claim", "ranks", "remove", "to_write"]

TEMPLATES = Path(__file__).parent
ROOT = TEMPLATES.parent.parent
NAME = re.compile(r"(?=.{3,32}$)[a-z][a-z0-9]*(-[a-z0-9]+)*")
FILES: Mapping[str, str] = {
    "module.py.in": "src/finwait/diagnosis/rules/{module}.py",
    "scenario.py.in": "src/finwait/lab/scenarios/{module}.py",
    "test.py.in": "tests/unit/diagnosis/rules/test_{module}.py",
}
"""Template → the file that it becomes."""
CATALOGUE = "src/finwait/diagnosis/catalogue.py"
LEDGER = "src/finwait/remedy/knowledge/expert.toml"
RANK = 70
"""More specific than the general patterns of open connections, less so than everything that names a holder."""
MARK = "TO WRITE"


def _next_cause(rules: Path) -> str:
    """Return the number after the highest cause that a rule claims."""
    claims = (re.findall(r"claims=\(([^)]*)\)", path.read_text()) for path in rules.glob("*.py"))
    numbers = [int(n) for found in claims for text in found for n in re.findall(r'"C(\d+)[a-z]?"', text)]
    return f"C{max(numbers) + 1}"


def _with_name(catalogue: str, name: str) -> str:
    """Return the catalogue's text with a name before `unexplained`, which stays the last."""
    last = '    "unexplained",\n'
    assert catalogue.count(last) == 1
    return catalogue.replace(last, f'    "{name}",\n{last}')


def create(root: Path, name: str) -> list[Path]:
    """Write the files of a new rule in a checkout; return them.

    Raises:
        ValueError: the name cannot be one, or there is such a rule or scenario.
    """
    module = name.replace("-", "_")
    if not NAME.fullmatch(name) or keyword.iskeyword(module):
        raise ValueError(
            f"`{name}` cannot be the name of a rule: write words in lower case, joined by `-`, 32 characters at most"
        )
    catalogue = root / CATALOGUE
    text = catalogue.read_text()
    targets = {root / where.format(module=module): TEMPLATES / template for template, where in FILES.items()}
    there = [path for path in targets if path.exists()]
    if f'"{name}"' in text or there:
        raise ValueError(
            f"`{name}` is taken: {', '.join(str(p.relative_to(root)) for p in there) or CATALOGUE}"
        )
    filled = {
        "NAME": name,
        "MODULE": module,
        "RANK": str(RANK),
        "CAUSE": _next_cause(root / "src/finwait/diagnosis/rules"),
    }
    for path, template in targets.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(re.sub(r"@([A-Z]+)@", lambda m: filled[m[1]], template.read_text()))
    package = root / "tests/unit/diagnosis/rules/__init__.py"
    package.touch()
    catalogue.write_text(_with_name(text, name))
    subprocess.run([sys.executable, "-m", "ruff", "format", "-q", *targets], cwd=root, check=True)
    return [*targets, catalogue]


def to_write(root: Path, name: str) -> list[str]:
    """Return the places in the files of a rule where something is still to be written, as FILE:LINE."""
    module = name.replace("-", "_")
    return [
        f"{where.format(module=module)}:{number}"
        for where in FILES.values()
        if (path := root / where.format(module=module)).is_file()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if MARK in line
    ]


NEXT = """
Next:
  1. Write what says `TO WRITE` in the first three, then `make docs` for the pages. `python docs/generate.py` is its
     quick half. The ranks of the other rules: .venv/bin/python -m scaffold.rule --ranks
     The next fact of the ledger, if you need one, is {claim}.
  2. Until they pass:        .venv/bin/pytest tests/unit/diagnosis tests/docs -k '{name} or {module}'
     Only the recording is then missing. As root, see the rule at work, and record it:
  3. Run the scenario:       .venv/bin/finwait lab run {name}
  4. Row by row:             .venv/bin/pytest tests/kernel/test_rules.py -k {name}
  5. Record it:              .venv/bin/python -m tests.captures.make {name}
     One kernel's recording is enough.
  6. What it takes of others: .venv/bin/pytest tests/captures tests/kernel/test_rules.py
     If your rule takes a row of another scenario, put the row under `others` there, run
     `python -m tests.captures.make --golden`, read the diff. Recordings of older kernels are only re-told, never
     re-made.
  7. Before you commit:      a line under `Unreleased` in CHANGELOG.md, then make check
To take it back:             .venv/bin/python -m scaffold.rule --remove {name}
"""


def next_claim(root: Path) -> str:
    """Return the number after the highest fact of the ledger in expert.toml."""
    text = (root / LEDGER).read_text()
    numbers = re.findall(r'^id = "X([0-9]+)"', text, re.MULTILINE)
    return f"X{max(map(int, numbers)) + 1}"


def ranks() -> list[str]:
    """Return a line for each rule, in the order of ranks."""
    from finwait.diagnosis import catalogue

    in_order = sorted(catalogue.rules(), key=lambda rule: (rule.rank, rule.name))
    return [f"{rule.rank:>5}  {rule.severity:<8} {rule.name}" for rule in in_order]


def remove(root: Path, name: str) -> list[Path]:
    """Take back what `create` wrote and what was made of it; return the files. The pages of it `make docs` removes.

    Raises:
        ValueError: git has a file of it: it is no half-made rule.
    """
    module = name.replace("-", "_")
    if not NAME.fullmatch(name):
        raise ValueError(f"`{name}` cannot be the name of a rule")
    files = [root / where.format(module=module) for where in FILES.values()]
    files += sorted((root / "tests/captures").glob(f"*/{name}.*"))
    there = [path for path in files if path.is_file()]
    tracked = subprocess.run(
        ["git", "ls-files", "--", *map(str, files)], cwd=root, check=True, capture_output=True, text=True
    ).stdout.split()
    if tracked:
        raise ValueError(f"`{name}` is committed ({', '.join(tracked)}): `git revert` takes it back")
    catalogue = root / CATALOGUE
    text = catalogue.read_text()
    if not there and f'    "{name}",\n' not in text:
        raise ValueError(f"there is no rule `{name}`")
    for path in there:
        path.unlink()
    catalogue.write_text(text.replace(f'    "{name}",\n', ""))
    package = root / "tests/unit/diagnosis/rules"
    if sorted(path.name for path in package.glob("*.py")) == ["__init__.py"]:
        shutil.rmtree(package)  # `create` made it
    return [*there, catalogue]


def main(argv: list[str] | None = None) -> int:
    """Write the files, and say what comes next; return the exit status."""
    parser = argparse.ArgumentParser(prog="make rule", description=(__doc__ or "").partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "name",
        nargs="?",
        help="for the pattern that it sees, never for the cure; it never changes its meaning",
    )
    what.add_argument("--ranks", action="store_true", help="print the ranks of all rules, in order")
    what.add_argument("--remove", metavar="NAME", help="take back a rule that is not committed")
    args = parser.parse_args(argv)
    if args.ranks:
        print("\n".join(ranks()))
        return 0
    try:
        changed = remove(ROOT, args.remove) if args.remove is not None else create(ROOT, args.name)
    except ValueError as error:
        print(f"make rule: {error}", file=sys.stderr)
        return 2
    for path in changed:
        done = "changed" if path.name == "catalogue.py" else "removed" if args.remove else "written"
        print(f"{done}: {path.relative_to(ROOT)}")
    if args.remove:
        print("`make docs` removes it from the pages")
    else:
        print(NEXT.format(name=args.name, module=args.name.replace("-", "_"), claim=next_claim(ROOT)), end="")
    return 0

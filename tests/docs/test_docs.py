"""The documentation says all that there is, nothing that is not, and its links lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import get_args

import jsonschema
import pytest
import yaml
from scaffold.rule import to_write

from finwait.agent.policy_file import parse_policy
from finwait.cli import COMMANDS, EXIT_STATUS, _with_command, build_parser
from finwait.diagnosis import catalogue, finding
from finwait.diagnosis.rule import Rule
from finwait.lab.scenario import scenarios
from finwait.relay.command import build_config
from finwait.relay.config.toml import load
from finwait.relay.metrics import METRICS, render
from finwait.report.columns import NAMES
from finwait.table import flows, sockets
from finwait.table.derived import DERIVED
from finwait.uapi import tcp

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs/reference"
SKIPPED = {".venv", "build", ".git", ".pytest_cache", ".hypothesis", "node_modules"}


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


generate = load_generator()
TEXTS: dict[str, str] = generate.pages()
COMMAND_TREE = [c for c in generate.commands() if len(c.words) > 1]


def written(pattern: str) -> list[Path]:
    found = (p for p in ROOT.rglob(pattern) if not SKIPPED & set(p.relative_to(ROOT).parts))
    return sorted(found)


MARKDOWN = written("*.md")
EXAMPLES = written("*_example.txt")
RULES = [pytest.param(r, id=r.name) for r in catalogue.rules()]


# ── rules ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_has_a_page_a_scenario_and_a_recording(rule: Rule) -> None:
    assert (REFERENCE / f"rules/{rule.name}.md").is_file()
    if rule.rest:  # of what no rule explains there is no scenario: it would be explained
        return
    assert rule.name in scenarios()
    recorded = list((ROOT / "tests/captures").glob(f"*/{rule.name}.finwait"))
    assert recorded, f"when its scenario is written: sudo .venv/bin/python -m tests.captures.make {rule.name}"
    for path in recorded:
        for suffix in (".json", ".txt"):
            assert path.with_suffix(suffix).is_file(), (
                f"{path.with_suffix(suffix).name} is missing in {path.parent.name}: "
                ".venv/bin/python -m tests.captures.make --golden"
            )


@pytest.mark.parametrize("rule", RULES)
def test_nothing_of_a_rule_is_left_to_write(rule: Rule) -> None:
    left = to_write(ROOT, rule.name)
    assert not left, "\n".join(["still TO WRITE:", *left])


@pytest.mark.parametrize("rule", RULES)
def test_the_docstring_of_a_rule_has_the_paragraphs_of_a_page(rule: Rule) -> None:
    page = catalogue.page(rule.name)
    assert page.startswith(f"{rule.name}: ")
    title, parts = generate.sections(page)
    assert title.endswith(".")
    labels = [label for label, _ in parts]
    assert labels == ["Seen as", "Why it stays", "Not this", "What ends it", "Won't help", "Reproduce"]
    assert all(text for _, text in parts)
    if not rule.rest:
        assert dict(parts)["Reproduce"] == f"finwait lab run {rule.name}"


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_rests_on_a_cause_of_the_taxonomy_and_facts_of_the_ledger(rule: Rule) -> None:
    causes = generate.causes_of(rule)
    facts = set(rule.claims) - set(causes)
    known = set(re.findall(r"^### (\w+)$", (REFERENCE / "ledger.md").read_text(), re.MULTILINE))
    assert causes
    assert facts <= known


def test_each_cause_has_a_rule_and_what_has_none_is_number_0() -> None:
    numbers = {generate._cause_key(c)[0] for r in catalogue.rules() for c in generate.causes_of(r)}
    assert numbers == set(range(max(numbers) + 1))
    assert max(numbers) >= 20


def test_the_columns_that_rules_name_as_clues_exist() -> None:
    named = {(r.name, clue.column) for r in catalogue.rules() for clue in r.clues}
    assert {(rule, column) for rule, column in named if column not in NAMES} == set()


# ── generated pages ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", TEXTS)
def test_a_generated_page_is_what_the_code_says_now(path: str) -> None:
    assert (ROOT / path).read_text() == TEXTS[path], "`make docs` writes it"


def test_no_page_is_about_a_rule_that_is_no_more() -> None:
    assert generate.stale() == []


def test_check_tells_what_is_not_current(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(generate, "pages", lambda: {"a.md": "new\n", "b.md": "same\n"})
    monkeypatch.setattr(generate, "stale", list)
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    (tmp_path / "a.md").write_text("old\n")
    (tmp_path / "b.md").write_text("same\n")
    assert generate.main(["--check"]) == 1
    assert (tmp_path / "a.md").read_text() == "old\n"
    assert generate.main([]) == 0
    assert (tmp_path / "a.md").read_text() == "new\n"
    assert generate.main(["--check"]) == 0


def test_every_column_is_documented() -> None:
    page = (REFERENCE / "columns.md").read_text()
    names = {*DERIVED, *sockets.SCHEMA.names, *flows.SCHEMA.names}
    assert {n for n in names if f"| `{n}` |" not in page} == set()
    docs = [*(d.doc for d in DERIVED.values()), *(c.doc for s in (sockets.SCHEMA, flows.SCHEMA) for c in s)]
    assert [d for d in docs if not d.strip()] == []


def plain_roff(text: str) -> str:
    return re.sub(r"\\f[BIPR]|\\&", "", text).replace("\\-", "-").replace("\\e", "\\")


@pytest.mark.parametrize("command", [pytest.param(c, id=c.name) for c in COMMAND_TREE])
def test_a_command_and_its_options_are_on_both_reference_pages_and_have_help(command: object) -> None:
    pages = (REFERENCE / "cli.md").read_text(), plain_roff((ROOT / "docs/man/finwait.8").read_text())
    assert f"## {command.name}\n" in pages[0]  # type: ignore[attr-defined]
    assert command.name in pages[1]  # type: ignore[attr-defined]
    assert command.summary  # type: ignore[attr-defined]
    for actions in command.options.values():  # type: ignore[attr-defined]
        for action in actions:
            assert generate.help_of(action), action.option_strings
            for option in action.option_strings:
                assert f"`{option}`" in pages[0]
                assert option in pages[1]
    for action in command.positionals:  # type: ignore[attr-defined]
        assert generate.help_of(action), action.dest


def test_the_man_page_has_the_sections_of_a_command_that_one_may_trust() -> None:
    text = (ROOT / "docs/man/finwait.8").read_text()
    for title in (
        "NAME",
        "SYNOPSIS",
        "REQUIREMENTS",
        "FIELDS",
        "EXIT STATUS",
        "OVERHEAD",
        "CAVEATS",
        "SEE ALSO",
    ):
        assert f"\n.SH {title}\n" in text
    assert "@" not in re.sub(r"\S+@\S+", "", text), "a name that was not filled in"


def statuses_in_code() -> set[int]:
    """The numbers with which a command line ends: what `_status` sets or returns, and what it hands to `_complain`."""
    tree = ast.parse((ROOT / "src/finwait/cli/__init__.py").read_text())
    status = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "_status")
    values = [
        node.value
        for node in ast.walk(status)
        if isinstance(node, ast.Return)
        or (isinstance(node, ast.Assign) and any(ast.unparse(target) == "status" for target in node.targets))
    ]
    found = set()
    for value in values:
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "_complain":
            value = value.args[1]
        if isinstance(value, ast.IfExp):
            value = value.body
        if isinstance(value, ast.Constant) and isinstance(value.value, int):
            found.add(value.value)
    return found


def test_every_exit_status_is_documented() -> None:
    found = statuses_in_code()
    assert {0, 1, 2, 4, 130} <= found
    assert found | {3} == set(EXIT_STATUS)
    page, man = (REFERENCE / "cli.md").read_text(), plain_roff((ROOT / "docs/man/finwait.8").read_text())
    for status, meaning in EXIT_STATUS.items():
        assert f"| `{status}` | {meaning} |" in page
        assert f".TP\n{status}\n{meaning}\n" in man


# ── links and commands in prose ──────────────────────────────────────────────────────────────────────────


def prose(path: Path) -> str:
    return re.sub(r"^(```|~~~).*?^\1", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors of headings as GitHub makes them, and those that are set."""
    text = prose(path)
    heads = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", h) for h in heads)
    made = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in plain}
    return made | set(re.findall(r'<a (?:id|name)="([^"]+)"', text))


@pytest.mark.parametrize("path", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in MARKDOWN])
def test_links_lead_somewhere(path: Path) -> None:
    dead = []
    text = re.sub(r"`[^`\n]*`", "", prose(path))
    for target in re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            dead.append(target)
    assert dead == []


def test_every_page_can_be_reached_from_the_index() -> None:
    seen: set[Path] = set()
    todo = [ROOT / "README.md", ROOT / "docs/index.md"]
    while todo:
        page = todo.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        for target in re.findall(r"\]\(([^)\s#]+)", prose(page)):
            if not re.match(r"[a-z]+:", target):
                todo += [file for file in [(page.parent / target).resolve()] if file.is_file()]
    pages = {p for p in MARKDOWN if p.is_relative_to(ROOT / "docs")}
    assert {str(p.relative_to(ROOT)) for p in pages - seen} == set()


def command_lines(text: str) -> list[list[str]]:
    """What is typed after a prompt to run finwait, up to a pipe or redirection."""
    found = []
    for line in re.findall(r"^\s*[$#] +(?:sudo +)?(?:\S*/)?(finwait\b[^\n]*)", text, re.MULTILINE):
        if "…" in line or line.startswith("finwait:"):
            continue
        words = shlex.split(line.replace("; ", " ; "), comments=True)
        cut = next((k for k, w in enumerate(words) if re.match(r"[|;&]|\d?>", w)), len(words))
        found.append(words[1:cut])
    return found


LINES = [
    pytest.param(words, id=f"{path.relative_to(ROOT)}: {' '.join(words)[:60]}")
    for path in [*MARKDOWN, *EXAMPLES]
    for words in command_lines(path.read_text())
]


@pytest.mark.parametrize("words", LINES)
def test_a_command_line_in_the_documentation_is_one_that_finwait_takes(words: list[str]) -> None:
    if {"--help", "--version", "-h"} & set(words):
        words = [w for w in words if w not in ("--help", "--version", "-h")]
        assert not words or words[0] in COMMANDS
        return
    build_parser().parse_args(_with_command(words))


def test_the_example_commands_of_the_man_page_are_ones_that_finwait_takes() -> None:
    text = (ROOT / "docs/man/finwait.8").read_text().partition(".SH EXAMPLES\n")[2].partition(".SH ")[0]
    lines = re.findall(r"^\.B (?:sudo )?(finwait.*)$", plain_roff(text), re.MULTILINE)
    assert len(lines) > 5
    for line in lines:
        build_parser().parse_args(_with_command(shlex.split(line)[1:]))


def test_the_table_of_commands_in_the_readme_is_complete() -> None:
    rows = re.findall(r"^\| (`finwait[^|]*) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    named = {m for row in rows for m in re.findall(r"`finwait ([a-z]+)", row)}
    assert set(COMMANDS) <= named
    assert {n for n in named if n not in COMMANDS} == set()


def test_the_targets_of_make_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"^\$ make ([\w-]+)", (ROOT / page).read_text(), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_each_command_has_an_example_session() -> None:
    there = {p.name.removesuffix("_example.txt") for p in (ROOT / "examples").glob("*_example.txt")}
    assert set(COMMANDS) - {"rules"} <= there  # which prints a list


@pytest.mark.parametrize("path", sorted((ROOT / "examples/relay").glob("*.toml")), ids=lambda p: p.name)
def test_an_example_configuration_of_the_relay_is_right(path: Path) -> None:
    assert load(path).service


def test_the_example_of_a_policy_is_right_and_does_nothing_yet() -> None:
    policy = parse_policy((ROOT / "examples/agent/policy.toml").read_bytes(), "policy.toml")
    assert policy.rules
    assert policy.mode == "dry-run"


def test_the_relay_s_arguments_in_kubernetes_are_right() -> None:
    text = (ROOT / "examples/relay/kubernetes-sidecar.yaml").read_text()
    args = [c["args"] for c in yaml.safe_load(text)["spec"]["initContainers"]]
    for words in args:
        assert build_config(build_parser().parse_args(words)).service


def test_the_unit_of_the_relay_names_an_option_that_exists() -> None:
    unit = (ROOT / "examples/relay/finwait-relay.service").read_text()
    for line in re.findall(r"^Exec\w+=\S+/finwait (.*)$", unit, re.MULTILINE):
        build_parser().parse_args(shlex.split(line))


def test_every_metric_of_the_relay_is_documented_and_said() -> None:
    page = (REFERENCE / "relay.md").read_text()
    said = render([], 0)
    assert [name for name in METRICS if f"| `{name}` |" not in page or f"# TYPE {name} " not in said] == []


def test_the_idioms_of_other_languages_are_those_of_the_programs_that_were_tried() -> None:
    page = (ROOT / "docs/explanation/half-close-idioms.md").read_text()
    programs = "\n".join(path.read_text() for path in (ROOT / "examples/relay/half-close").iterdir())
    found = re.findall(r"^```(go|rust|java|js|python)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert {language for language, _ in found} == {"go", "rust", "java", "js", "python"}
    assert [text for _, text in found if text not in programs] == []


# ── the schema ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_schema_is_a_valid_json_schema_that_names_what_the_code_names() -> None:
    schema = json.loads((REFERENCE / "diagnosis.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    defs = schema["$defs"]
    found = defs["finding"]["properties"]
    assert set(found["severity"]["enum"]) == set(get_args(finding.Severity))
    assert set(found["confidence"]["properties"]["level"]["enum"]) == set(get_args(finding.Certainty))
    kinds = found["ends_it"]["items"]["properties"]["class"]["enum"]
    assert set(kinds) == set(get_args(finding.RemedyClass))
    assert set(defs["socket"]["properties"]["state"]["anyOf"][0]["enum"]) == set(tcp.STATES.values())
    for name in catalogue.NAMES:
        assert re.search(found["rule"]["pattern"], name)

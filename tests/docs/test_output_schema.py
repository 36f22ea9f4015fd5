"""What commands print with `-o json` is what the published schema says: all that can be tried without a kernel."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from finwait.cli import build_parser, main
from finwait.report.shape import IDENTITY, MORE
from tests.output import DIAGNOSIS, LINES, SCHEMA, kinds, mistakes

ROOT = Path(__file__).parents[2]
RECORDING = str(ROOT / "tests/captures/linux-6.18/relay-pair.finwait")
TRACKED = str(ROOT / "tests/captures/linux-6.18/nat-entry-gone.finwait")
CAPTURE = str(ROOT / "tests/captures/packets/closing.pcapng")
FROM = ("--from", RECORDING)

DOCUMENTS: dict[str, list[list[str]]] = {
    "ConnectionList": [
        ["list", *FROM],
        ["explain", *FROM, "state = fin-wait-2"],
        ["list", *FROM, "sport = :1"],
    ],
    "ColumnsOfConnections": [["list", *FROM, "--columns", "state,family,protocol,cookie,src,owner,rule"]],
    "ColumnList": [["list", "--columns", "help"]],
    "Rule": [["explain", "fin-wait2-held"]],
    "Comparison": [["compare", RECORDING, TRACKED], ["compare", RECORDING, RECORDING, "state = fin-wait-2"]],
    "RuleList": [["rules"]],
    "NetworkNamespaceList": [["netns", *FROM]],
    "Check": [
        ["check", *FROM],
        ["check", *FROM, "-w", "x"],
        ["check", *FROM, "((("],
        ["check", "--from", "/nonexistent"],
    ],
    "ClearPlan": [
        ["clear", *FROM, "--dry-run"],
        [
            "clear",
            *FROM,
            "--dry-run",
            "--min-age",
            "0",
            "--override",
            "holder-unknown",
            "--override",
            "share",
        ],
        ["clear", *FROM, "--dry-run", "--no-owners", "rule = relay-pair"],
    ],
    "ConntrackList": [["conntrack", "--from", TRACKED, "--all"], ["conntrack", *FROM]],
    "JournalEntryList": [["journal"], ["journal", "--incomplete"]],
    "UndoList": [["undo", "--incomplete"]],
    "Settings": [["tune", "show"]],
    "Setting": [["tune", "explain", "tcp_fin_timeout", "--no-diagnosis"]],
    "TunePlan": [["tune", "plan", "tcp_fin_timeout=30", "--no-diagnosis"]],
    "TuneOutcome": [["tune", "apply", "tcp_fin_timeout=30", "--no-diagnosis"]],
    "ProfileList": [["tune", "plan", "list"]],
    "Audit": [["audit", str(ROOT / "README.md"), "/nonexistent"]],
    "ProofList": [["lab", "prove"]],
    "ScenarioList": [["lab", "list"]],
    "RelayTransitionList": [["relay", "transitions"]],
    "PolicyCheck": [["policy", "check", str(ROOT / "examples/agent/policy.toml")]],
}
"""Kind → command lines that print one without touching the machine."""
LIVE = {
    "Capture", "CaptureFile", "Leaks", "OutcomeList", "ProbeList", "ArmPlan", "UndoPlan", "ProofResultList",
    "RecordingMade", "RelayConnectionList", "RelayClosed", "RelayDraining", "RelayStats", "AgentStatus", "EpisodeList",
    "PolicyTrial",
}  # fmt: skip
"""Kinds that tests/kernel/test_output_documents.py, test_leaks.py and test_agent.py print with real sockets, and
tests/unit/agent/test_policy_trial.py of a history."""


@pytest.fixture(autouse=True)
def _own_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINWAIT_STATE_DIR", str(tmp_path / "state"))


def test_the_schema_is_one_and_each_kind_of_it_is_printed_by_a_test() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert set(kinds()) == DOCUMENTS.keys() | LIVE
    assert not DOCUMENTS.keys() & LIVE
    assert set(LINES) <= set(SCHEMA["$defs"])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        pytest.param(kind, words, id=f"{kind}: {' '.join(words)[:40]}")
        for kind, some in DOCUMENTS.items()
        for words in some
    ],
)
def test_a_document_is_valid_and_the_schema_names_all_of_it(
    kind: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        main([*words, "-o", "json"])
    except SystemExit as end:
        assert end.code == 2  # noqa: PT017
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == kind
    assert mistakes(document) == []


def leaves(parser: argparse.ArgumentParser, path: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not below:
        yield path, parser.fill() if hasattr(parser, "fill") else parser
    for action in below:
        for name, choice in action.choices.items():
            yield from leaves(choice, f"{path} {name}".strip())


COMMANDS = dict(leaves(build_parser()))
NO_DOCUMENT = {
    "top": "a screen",
    "relay run": "a service, whose access log is JSON lines",
    "agent serve": "a service, whose API is JSON",
}
DIAGNOSES = ("diagnose", "read", "report", "lab run", "lab demo")
STREAMS = ("trace",)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in NO_DOCUMENT])
def test_every_command_that_prints_can_print_json_and_the_schema_says_what(command: str) -> None:
    (output,) = (a for a in COMMANDS[command]._actions if "--output" in a.option_strings)
    assert "-o" in output.option_strings
    assert "json" in (output.choices or ())
    if command in (*DIAGNOSES, "agent schema", "relay schema", "policy schema"):
        return
    said = " ".join(SCHEMA["$defs"][kind]["description"] for kind in (*kinds(), *LINES))
    assert re.search(rf"`finwait {command}\b", said)


def members(part: Any) -> Iterator[str]:
    """The names of all members that a schema describes."""
    if isinstance(part, dict):
        for name, value in part.items():
            if name == "properties":
                yield from value
            if name not in ("required", "enum"):
                yield from members(value)
    elif isinstance(part, list):
        for one in part:
            yield from members(one)


@pytest.mark.parametrize("schema", [SCHEMA, DIAGNOSIS], ids=["output", "diagnosis"])
def test_names_are_snake_case_but_for_the_version(schema: dict[str, Any]) -> None:
    assert {name for name in members(schema) if not re.fullmatch(r"[a-z][a-z0-9_]*", name)} == {"apiVersion"}


def test_both_schemas_have_one_shape_of_a_connection_and_of_a_gap() -> None:
    shapes = SCHEMA["$defs"]["connection"], DIAGNOSIS["$defs"]["socket"]
    for shape in shapes:
        assert tuple(shape["properties"]) == (*IDENTITY, *MORE, "kubernetes")
        assert tuple(shape["required"]) in (IDENTITY, (*IDENTITY, *MORE))
    assert {n: p["type"] for n, p in SCHEMA["$defs"]["gap"]["properties"].items()} == {
        n: p["type"] for n, p in DIAGNOSIS["$defs"]["gap"]["properties"].items()
    }


def test_every_document_has_gaps_and_names_itself() -> None:
    for kind in kinds():
        part = SCHEMA["$defs"][kind]
        assert {"apiVersion", "kind", "gaps"} <= set(part["required"]), kind
        assert part["properties"]["kind"] == {"const": kind}
        assert part["properties"]["gaps"] == {"type": "array", "items": {"$ref": "#/$defs/gap"}}


def test_a_member_that_the_schema_does_not_name_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list", *FROM, "-o", "json"])
    document = json.loads(capsys.readouterr().out)
    for path in (["items", 0], ["items", 0, "other_end"], ["items", 0, "owners"], ["gaps", 0], []):
        changed = json.loads(json.dumps(document))
        part: Any = changed
        for step in path:
            part = part[step]
        if isinstance(part, list):
            part.append({"pid": 1, "fd": 3, "comm": "x", "camelCase": 1})
        else:
            part["camelCase"] = 1
        assert mistakes(changed), path
    del document["items"][0]["cookie"]
    assert mistakes(document)


REFUSED = [
    ["list", *FROM, "((("],
    ["list", *FROM, "--columns", "nothing"],
    ["explain", *FROM, "no-such-rule"],
    ["diagnose", "--from", "/nonexistent"],
    ["conntrack", *FROM, "--delete"],
    ["clear", *FROM],
    ["undo", "99"],
    ["undo"],
    ["tune", "explain", "no-such-setting"],
    ["tune", "apply", "no-such-profile"],
    ["tune", "rollback", "99"],
    ["lab", "prove", "no-such-claim"],
    ["relay", "ls", "--admin", "/nonexistent/x"],
    ["relay", "drain", "--admin", "/nonexistent/x"],
    ["record", "/nonexistent/x/y"],
    ["report", *FROM, "/nonexistent/x/y.html"],
    ["compare", RECORDING, "/nonexistent"],
]


@pytest.mark.parametrize("words", [pytest.param(words, id=" ".join(words)[:50]) for words in REFUSED])
def test_an_error_leaves_standard_output_empty(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "-o", "json"]) in (1, 2)
    said = capsys.readouterr()
    assert said.out == ""
    assert "error: " in said.err


def test_the_documentation_leads_to_both_schemas() -> None:
    index = (ROOT / "docs/index.md").read_text()
    assert "(reference/diagnosis.schema.json)" in index
    assert "(reference/output.schema.json)" in index

"""What `finwait -o json` prints of real connections is what the published schema promises."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from finwait.lab.scenario import scenarios
from finwait.lab.topology import unmet
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/reference/diagnosis.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SHOWN = (
    "kube-proxy-userspace",  # both ends, a pod, orphans
    "fin-wait2-held",  # IPv6 and IPv4-mapped
    "hidden-leak",  # a finding without rows
    "holder-not-found",  # nobody holds it, or unknown
    "mptcp-half-close",  # rows of another protocol
    "nat-entry-gone",  # found by the client's address
    "never-accepted",
)


def closed(schema: Any) -> Any:
    """Return the schema for which a member that it does not name is a mistake."""
    strict = copy.deepcopy(schema)
    todo = [strict, *strict["$defs"].values()]
    while todo:
        part = todo.pop()
        if isinstance(part, list):
            todo += part
        elif isinstance(part, dict):
            todo += part.values()
            if part.get("properties") and part.get("type") == "object":
                part["unevaluatedProperties"] = False
    strict["$defs"]["socket"].pop("unevaluatedProperties")  # it is extended where it is used
    items = strict["$defs"]["finding"]["properties"]["sockets"]["items"]
    items["unevaluatedProperties"] = False
    items["properties"]["other_end"]["oneOf"][1]["unevaluatedProperties"] = False
    return strict


def diagnosed(name: str, *options: str) -> str:
    if lacking := unmet(scenarios()[name].needs):
        missing("; ".join(lacking))
    ran = subprocess.run(
        [sys.executable, "-m", "finwait", "lab", "run", name, *options], capture_output=True, text=True
    )
    assert ran.returncode in (0, 3), ran.stderr
    return ran.stdout


@pytest.mark.parametrize("name", SHOWN)
def test_a_diagnosis_is_valid_and_the_schema_names_all_of_it(name: str) -> None:
    document = json.loads(diagnosed(name, "-o", "json"))
    assert document["findings"]
    mistakes = [
        f"{'/'.join(map(str, e.absolute_path))}: {e.message[:300]}"
        for e in jsonschema.Draft202012Validator(closed(SCHEMA)).iter_errors(document)
    ]
    assert mistakes == []


def test_json_lines_have_the_same_findings_one_a_line() -> None:
    lines = [json.loads(line) for line in diagnosed("relay-pair", "-o", "jsonl").splitlines()]
    assert lines
    for line in lines:
        kind = line.pop("kind")
        part = {"Finding": "finding", "Gap": "gap"}[kind]
        VALIDATOR.evolve(schema={"$ref": f"#/$defs/{part}", "$defs": SCHEMA["$defs"]}).validate(line)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("findings", 0, "severity"), "grave"),
        (("findings", 0, "sockets", 0, "cookie"), 7),
        (("findings", 0, "sockets", 0, "age_s"), {}),
        (("gaps",), None),
        (("kind",), "ConnectionList"),
    ],
)
def test_a_wrong_document_is_not_valid(path: tuple[str | int, ...], value: object) -> None:
    document = json.loads(diagnosed("fin-wait2-shut-both", "-o", "json"))
    VALIDATOR.validate(document)
    part: Any = document
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    assert not VALIDATOR.is_valid(document)

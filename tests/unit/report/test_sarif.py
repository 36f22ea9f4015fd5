"""SARIF as its 2.1.0 schema requires it: the constraints on what we write; unknown properties are errors."""

from __future__ import annotations

from typing import Any

import jsonschema
from hypothesis import given, settings
from hypothesis import strategies as st

from finwait.remedy.audit import audit
from finwait.report.sarif import sarif
from finwait.shipped import knowledge


def exactly(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "additionalProperties": False, "properties": properties}


TEXT = {"type": "string"}
MESSAGE = exactly(["text"], text={"type": "string", "minLength": 1})
LEVEL = {"enum": ["none", "note", "warning", "error"]}
LOCATION = exactly(
    ["physicalLocation"],
    physicalLocation=exactly(
        ["artifactLocation"],
        artifactLocation=exactly(["uri"], uri={"type": "string", "pattern": r"^[A-Za-z0-9._~/%:-]+$"}),
        region=exactly(["startLine"], startLine={"type": "integer", "minimum": 1}),
    ),
)
RULE = exactly(["id"], id=TEXT, name=TEXT, shortDescription=MESSAGE, fullDescription=MESSAGE)
RESULT = exactly(
    ["message", "ruleId", "level", "locations"],
    ruleId=TEXT,
    ruleIndex={"type": "integer", "minimum": 0},
    level=LEVEL,
    message=MESSAGE,
    locations={"type": "array", "items": LOCATION, "minItems": 1},
    properties={"type": "object"},
)
INVOCATION = exactly(
    ["executionSuccessful"],
    executionSuccessful={"type": "boolean"},
    toolExecutionNotifications={
        "type": "array",
        "items": exactly(
            ["message"], level=LEVEL, message=MESSAGE, locations={"type": "array", "items": LOCATION}
        ),
    },
)
DRIVER = exactly(
    ["name"], name=TEXT, semanticVersion=TEXT, rules={"type": "array", "items": RULE, "uniqueItems": True}
)
ARTIFACT = exactly(["location"], location=exactly(["uri"], uri=TEXT), properties={"type": "object"})
RUN = exactly(
    ["tool"],
    tool=exactly(["driver"], driver=DRIVER),
    invocations={"type": "array", "items": INVOCATION},
    columnKind={"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
    results={"type": "array", "items": RESULT},
    artifacts={"type": "array", "items": ARTIFACT, "uniqueItems": True},
)
LOG = exactly(
    ["version", "runs"],
    **{
        "$schema": {
            "const": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
        }
    },
    version={"const": "2.1.0"},
    runs={"type": "array", "items": RUN, "minItems": 1},
)
CHECK = jsonschema.Draft202012Validator(LOG)
ADVICE = [
    "sysctl -w net.ipv4.tcp_fin_timeout=30", "conntrack -D -s 10.0.0.1", "ss -tanoe | grep FIN_WAIT2",
    "kube-proxy --tcp-keepalive=true", "echo 1 > /proc/sys/net/ipv4/tcp_abort_on_overflow", "kind: [",
    "net.ipv4.tcp_xx = 1", "# text", "", "```", "timeout client-fin 1h",
]  # fmt: skip
FILES = st.tuples(
    st.sampled_from(
        ["a.sh", "b c.md", "sysctl.conf", "p.yaml", "haproxy.cfg", "-", "/x/ü%/nginx.conf", "\udcff.sh"]
    ),
    st.lists(st.sampled_from(ADVICE), max_size=8),
)


@given(st.lists(FILES, max_size=3), st.booleans())
@settings(deadline=None)  # the first reads the knowledge base
def test_what_an_audit_found_is_a_log_of_sarif(files: list[tuple[str, list[str]]], garbage: bool) -> None:
    known = knowledge()
    reports = [
        audit(name, "\n".join(lines).encode() + (b"\xff\x00" if garbage else b""), known)
        for name, lines in files
    ]
    log = sarif(reports, known, "1.2.3")
    CHECK.validate(log)
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(set(rules)) == len(rules)
    assert all(rules[result["ruleIndex"]] == result["ruleId"] for result in run["results"])
    (invocation,) = run["invocations"]
    said = invocation["toolExecutionNotifications"]
    assert invocation["executionSuccessful"] == (not any(one["level"] == "error" for one in said))
    assert [one["properties"]["status"] for one in run["artifacts"]] == list(
        {report.file: report.status for report in reports}.values()
    )
    nothing = sum(report.status == "nothing" for report in reports)
    assert sum(one["message"]["text"].startswith("read, and nothing") for one in said) == nothing


def test_the_check_of_a_log_can_fail() -> None:
    known = knowledge()
    log = sarif([audit("a.sh", b"conntrack -D -s 1.2.3.4\n", known)], known, "1")
    result = log["runs"][0]["results"][0]
    wrongs: tuple[dict[str, Any], ...] = ({"level": "fatal"}, {"locations": []}, {"message": {}}, {"line": 1})
    for wrong in wrongs:
        broken = {**log, "runs": [{**log["runs"][0], "results": [result | wrong]}]}
        assert list(CHECK.iter_errors(broken)), wrong

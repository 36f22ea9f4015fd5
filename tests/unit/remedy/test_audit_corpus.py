"""Small files of every form in which such advice is kept, and what has to be said of each."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from finwait.remedy.audit import AuditReport, audit
from finwait.report.audit import audit_json, audit_text
from finwait.shipped import knowledge

CORPUS = Path(__file__).with_name("audit_corpus")
EXPECTED: dict[str, dict[str, Any]] = tomllib.loads((CORPUS / "expected.toml").read_text())
FILES = sorted(p.name for p in CORPUS.iterdir() if p.name != "expected.toml")


def judged(name: str, data: bytes | None = None) -> AuditReport:
    return audit(name, (CORPUS / name).read_bytes() if data is None else data, knowledge())


def test_every_file_of_the_corpus_has_its_expectation() -> None:
    assert sorted(EXPECTED) == FILES


@pytest.mark.parametrize("name", FILES)
def test_what_is_recognised_in(name: str) -> None:
    report, wanted = judged(name), EXPECTED[name]
    got: dict[str, Any] = {
        "read_as": report.kind,
        "status": report.status,
        "statements": report.statements,
        "lines": report.lines,
        "findings": [f"{f.line} {f.verdict} {f.claim}" for f in report.findings],
        "unjudged": [f"{u.line} {u.claim}" for u in report.unjudged],
        "mentions": list(report.mentions),
        "problems": [p.line for p in report.problems],
    }
    empty: dict[str, Any] = {"findings": [], "unjudged": [], "mentions": [], "problems": []}
    assert got == empty | wanted


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_recognised_or_said_to_be_read_for_nothing_or_not_read(name: str) -> None:
    report = judged(name)
    said = "\n".join(audit_text([report]))
    assert {
        "recognised": f"recognised in: {name} (",
        "nothing": f"nothing recognised in: {name}",
        "not-read": f"NOT READ: {name}",
    }[report.status] in said
    assert ("no advice about closing connections found" in said) is (
        report.status == "recognised" and not report.findings
    )
    assert (", nothing recognised" in said.replace(": nothing", ", nothing")) is (report.status == "nothing")


@pytest.mark.parametrize("name", FILES)
def test_a_line_more_above_moves_every_place_by_one(name: str) -> None:
    """The places are those of the file, through templates, nested texts and here-documents."""
    data = (CORPUS / name).read_bytes()
    if data[:2] in (b"#!", b"#c", b"\xff\xfe") or name.endswith(".json") or b"\0" in data:
        return  # the first line is what these are known by
    blank = b"\n"
    before, after = judged(name, data), judged(name, blank + data)
    assert [(f.line + 1, f.claim) for f in before.findings] == [(f.line, f.claim) for f in after.findings]
    assert [u.line + 1 for u in before.unjudged] == [u.line for u in after.unjudged]
    assert after.lines == before.lines + 1


@pytest.mark.parametrize("ending", ["", "\n"])
def test_lines_are_counted_as_wc_and_editors_count_them(ending: str) -> None:
    assert judged("x.conf", f"net.ipv4.tcp_rfc1337=1\n# b{ending}".encode()).lines == 2


def test_a_file_with_a_name_that_is_no_utf_8_can_be_told_in_json() -> None:
    report = judged("caf\udce9.conf", b"net.ipv4.tcp_fin_timeout=10\nwhat\nnet.ipv4.tcp_rfc1337=$X\n")
    answer = json.loads(json.dumps(audit_json([report])).encode())
    names = {one["file"] for part in ("files", "findings", "unjudged", "problems") for one in answer[part]}
    assert names == {"caf\\xe9.conf"}


@pytest.mark.parametrize(
    "text",
    [
        "grep -q net.ipv4.tcp_fin_timeout=10 /etc/sysctl.conf",
        "if grep 'net.ipv4.tcp_fin_timeout = 10' f; then true; fi",
        "sudo zgrep -E 'net.ipv4.tcp_fin_timeout=10' f | wc -l",
        "echo net.ipv4.tcp_fin_timeout=10",
        "echo 'hint: net.ipv4.tcp_fin_timeout=10' >&2",
        "printf 'net.ipv4.tcp_fin_timeout=10\\n' > /dev/stderr",
        "echo net.ipv4.tcp_fin_timeout=10 | less",
        "bash -c 'grep net.ipv4.tcp_fin_timeout=10 f'",
        "x=$(grep net.ipv4.tcp_fin_timeout=10 f)",
        "\t@echo net.ipv4.tcp_fin_timeout=10",
    ],
)
def test_what_a_command_only_says_or_searches_for_is_no_advice(text: str) -> None:
    report = judged("x.sh", text.encode() + b"\n")
    assert (report.findings, report.unjudged) == ((), ())
    assert report.mentions == (1,)


@pytest.mark.parametrize(
    "text",
    [
        "echo net.ipv4.tcp_fin_timeout=10 >> f",
        "echo net.ipv4.tcp_fin_timeout=10 >>f 2>&1",
        "echo net.ipv4.tcp_fin_timeout=10 | sudo tee -a f >/dev/null",
        "echo net.ipv4.tcp_fin_timeout=10 | sysctl -p -",
        "echo 'a;b'; sysctl -w net.ipv4.tcp_fin_timeout=10",
        "grep -q x f && sysctl -w net.ipv4.tcp_fin_timeout=10",
        "grep -q x f || sysctl net.ipv4.tcp_fin_timeout=10",
        'ssh host "echo net.ipv4.tcp_fin_timeout=10 >> /etc/sysctl.conf"',
        "kubectl exec x -- sh -c 'echo 10 > /proc/sys/net/ipv4/tcp_fin_timeout'",
        "echo don't; sysctl -w net.ipv4.tcp_fin_timeout=10",
    ],
)
def test_what_a_command_sets_is_advice_whatever_stands_around_it(text: str) -> None:
    assert [f.claim for f in judged("x.sh", text.encode() + b"\n").findings] == [
        "net.ipv4.tcp_fin_timeout = 10"
    ]


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("Lower `net.ipv4.tcp_fin_timeout` to 10.", ["net.ipv4.tcp_fin_timeout = 10"]),
        ("If it does not help, set tcp_fin_timeout to 10.", ["net.ipv4.tcp_fin_timeout = 10"]),
        ("Reduce the tcp_fin_timeout from 60 to 10.", ["net.ipv4.tcp_fin_timeout = 10"]),
        ("Setting `tcp_keepalive_time` = 5 minutes helps.", ["net.ipv4.tcp_keepalive_time = 300"]),
        ("Do not lower tcp_fin_timeout to 10.", []),
        ("Never set net.ipv4.tcp_fin_timeout = 10.", []),
        ("tcp_fin_timeout is 60 by default.", []),
        ("It was still there after 8 s with tcp_fin_timeout=3.", []),
        ("- tcp_fin_timeout=10", ["net.ipv4.tcp_fin_timeout = 10"]),
        ("Then add `tcp_fin_timeout = 10` and reload.", ["net.ipv4.tcp_fin_timeout = 10"]),
        ("We run with net.ipv4.tcp_fin_timeout=10.", ["net.ipv4.tcp_fin_timeout = 10"]),
        ("A FIN cannot create an entry, also with tcp_loose=1.", []),
        ("We set the window to 10. tcp_fin_timeout is another matter.", []),
    ],
)
def test_a_sentence_is_advice_when_it_tells_one_to_set_something(text: str, claims: list[str]) -> None:
    assert [f.claim for f in judged("x.md", text.encode() + b"\n").findings] == claims

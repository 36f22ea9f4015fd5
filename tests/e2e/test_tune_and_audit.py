"""The two commands as functions of their arguments: what they print, and with which status they end."""

import argparse
import errno
import io
import json
import os
import subprocess
import sys

import pytest

from finwait.cli import audit, main, tune
from finwait.errors import FinwaitError, Refused
from finwait.lab import Lab
from tests.kernel import needs

HARMFUL = "net.netfilter.nf_conntrack_tcp_timeout_close_wait = 30\n"


def command(*argv):
    parser = argparse.ArgumentParser(prog="finwait")
    commands = parser.add_subparsers(required=True)
    tune.add_parser(commands)
    audit.add_parser(commands)
    args = parser.parse_args([str(a) for a in argv])
    return args.run(args)


@pytest.fixture(autouse=True)
def own_journal(monkeypatch, tmp_path):
    monkeypatch.setenv("FINWAIT_STATE_DIR", str(tmp_path / "state"))


def test_audit_tells_place_verdict_reason_source_and_what_to_do(tmp_path, capsys):
    (tmp_path / "sysctl.conf").write_text("# x\n" + HARMFUL)
    assert command("audit", tmp_path / "sysctl.conf") == 1
    out = capsys.readouterr().out
    assert f"{tmp_path}/sysctl.conf:2: HARMFUL: net.netfilter.nf_conntrack_tcp_timeout_close_wait = 30" in out
    for word in ("why ", "instead  3600", "source ", "[S31, S32, X28]", "1 file, 2 lines: 1 HARMFUL"):
        assert word in out
    assert max(len(line) for line in out.splitlines()[1:]) < 100


@pytest.mark.parametrize(
    ("text", "option", "status"),
    [
        (HARMFUL, "none", 0),
        (HARMFUL, "false", 0),
        (HARMFUL, "false,harmful", 1),
        ("net.ipv4.tcp_fin_timeout=30\n", "harmful,false", 0),
        ("net.ipv4.tcp_fin_timeout=30\n", "no-effect", 1),
        ("net.ipv4.ip_forward=1\n", "harmful,false,no-effect,conditional,misread", 0),
        ("what\n", "harmful", 3),
    ],
)
def test_the_exit_status_of_audit_is_what_fail_on_asks_for(text, option, status, tmp_path, capsys):
    (tmp_path / "sysctl.conf").write_text(text)
    assert command("audit", "--fail-on", option, tmp_path / "sysctl.conf") == status
    capsys.readouterr()


def test_a_fail_on_that_does_not_exist_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as caught:
        command("audit", "--fail-on", "bad", "x")
    assert caught.value.code == 2
    assert "bad" in capsys.readouterr().err


def test_files_that_cannot_be_read_are_named_and_the_rest_is_judged(tmp_path, capsys):
    (tmp_path / "sysctl.conf").write_text("net.ipv4.tcp_rfc1337=0\n")
    assert command("audit", tmp_path, tmp_path / "none", tmp_path / "sysctl.conf") == 3
    got = capsys.readouterr()
    assert got.out.count("NOT READ: ") == 2
    assert "name the files in it" in got.out
    assert "3 files, 1 line: 1 no effect; 2 files not read" in got.out
    assert command("audit", "-o", "json", tmp_path / "none", tmp_path / "sysctl.conf") == 3
    got = capsys.readouterr()
    answer = json.loads(got.out)
    assert [one["status"] for one in answer["files"]] == ["recognised", "not-read"]
    assert [one["file"] for one in answer["problems"]] == [str(tmp_path / "none")]
    assert "not read: " in got.err


def test_audit_reads_standard_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"conntrack -D -s 10.0.0.1\n")))
    assert command("audit", "-o", "json", "-") == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["kind"] == "Audit"
    assert [(f["file"], f["line"], f["ledger"]) for f in answer["findings"]] == [("-", 1, ["X34"])]


def test_sarif_has_a_rule_for_every_result_and_lines_from_one(tmp_path, capsys):
    (tmp_path / "a b.sh").write_text(
        "conntrack -D -s 1.2.3.4\nss -tan | grep FIN_WAIT2\nsysctl -w net.ipv4.tcp_xx=1\n"
    )
    assert command("audit", "-o", "sarif", tmp_path / "a b.sh") == 1
    log = json.loads(capsys.readouterr().out)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert rules == ["X34", "S04", "unknown-sysctl"]
    for number, result in enumerate(run["results"]):
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] == "error"
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"].endswith("/a%20b.sh")
        assert place["region"]["startLine"] == number + 1
        assert result["message"]["text"]
    assert run["invocations"] == [{"executionSuccessful": True, "toolExecutionNotifications": []}]


@pytest.mark.kernel
def test_a_file_that_cannot_be_read_is_no_success(tmp_path, capsys):
    assert command("audit", "-o", "sarif", "--fail-on", "none", tmp_path / "none") == 3
    (said,) = json.loads(capsys.readouterr().out)["runs"][0]["invocations"]
    assert not said["executionSuccessful"]
    (told,) = said["toolExecutionNotifications"]
    assert told["message"]["text"].startswith(f"could not be read: {os.strerror(errno.ENOENT)}")


def test_a_name_cannot_write_to_the_terminal(tmp_path, capsys):
    evil = tmp_path / "e\x1b[31mvil.conf"
    evil.write_text(HARMFUL)
    assert command("audit", evil, tmp_path / "\x1b]0;x") == 1
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "\\x1b[31mvil.conf:1: HARMFUL" in out


def test_a_fifo_is_not_waited_for_and_counts_as_not_read(tmp_path, capsys):
    fifo = tmp_path / "90-pipe.conf"
    os.mkfifo(fifo)
    assert command("audit", fifo) == 3
    assert "it is a FIFO" in capsys.readouterr().out
    assert main(["explain", "--pcap", str(fifo)]) == 1
    assert main(["list", "--from", str(fifo)]) == 1
    assert capsys.readouterr().err.count("it is a FIFO") == 2


def test_tune_plans_applies_and_rolls_back_in_a_namespace(capsys):
    needs.root_and()
    with Lab() as lab:
        where = f"/proc/self/fd/{lab.netns('pod').fd}"
        assert command("tune", "apply", "pod", "--netns", where, "--no-diagnosis") == 0
        assert "nothing was done" in capsys.readouterr().err
        assert command("tune", "apply", "pod", "--netns", where, "--no-diagnosis", "--yes") == 0
        out = capsys.readouterr().out
        assert "undo with: finwait tune rollback 1" in out
        assert command("tune", "show", "tcp_keepalive_time", "--netns", where, "-o", "json") == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["namespaces"][0]["settings"][0]["value"] == "300"
        assert command("tune", "rollback", "1") == 4
        assert "net.ipv4.tcp_keepalive_time: 300 -> 7200" in capsys.readouterr().out
        assert command("tune", "rollback", "1", "--yes") == 0
        assert command("tune", "show", "tcp_keepalive_time", "--netns", where) == 0
        assert "7200" in capsys.readouterr().out


@pytest.mark.kernel
def test_tune_refuses_what_harms_and_what_cannot_be_whole(capsys):
    needs.root_and()
    with Lab() as lab:
        where = f"/proc/self/fd/{lab.netns('pod').fd}"
        with pytest.raises(Refused, match="close_wait=30") as caught:
            command("tune", "apply", "article-production", "--netns", where, "--no-diagnosis", "--yes")
        assert caught.value.hint == "override with --allow-harmful"
        with pytest.raises(Refused, match="nf_conntrack_buckets") as caught:
            command("tune", "apply", "article-production", "--netns", where, "--no-diagnosis", "--yes",
                    "--allow-harmful")  # fmt: skip
        assert caught.value.hint == "override with --skip-blocked"
        with pytest.raises(Refused, match="initial namespace only"):
            command("tune", "apply", "pod", "--netns", where, "--no-diagnosis", "--yes", "--persist")
        capsys.readouterr()
        assert command("tune", "show", "--netns", where) == 0
        assert "*" not in capsys.readouterr().out.replace("\n!", "")


def test_tune_explain_and_plan_say_what_they_know(capsys):
    assert command("tune", "explain", "tcp_fin_timeout", "--no-diagnosis") == 0
    out = capsys.readouterr().out
    assert "61 to 119" in out
    assert "S12 (no-effect)" in out
    assert command("tune", "plan", "list") == 0
    assert "article-production" in capsys.readouterr().out
    with pytest.raises(FinwaitError, match="is not a setting") as caught:
        command("tune", "explain", "tcp_fin_timout", "--no-diagnosis")
    assert "tcp_fin_timeout" in caught.value.hint
    with pytest.raises(FinwaitError, match="no such file") as caught:
        command("tune", "plan", "kubernetes-nodes", "--no-diagnosis")
    assert "kubernetes-node" in caught.value.hint


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("tune", "rollback", "99"), "no act 99"),
        (("tune", "show", "--pod-uid", "../x"), "not the uid"),
        (("tune", "show", "--netns", "no-such-namespace"), "no-such-namespace"),
        (("tune", "plan", "--no-diagnosis", "pod", "tcp_rfc1337=1"), "one profile"),
        (("tune", "plan", "--no-diagnosis", "tcp_rfc1337=x"), "whole number"),
    ],
)
def test_a_mistake_is_an_error_with_a_hint_and_no_traceback(argv, said):
    with pytest.raises(FinwaitError, match=said) as caught:
        command(*argv)
    assert caught.value.hint


def test_help_loads_neither_numpy_nor_yaml():
    code = (
        "import sys, argparse\n"
        "from finwait.cli import audit, tune\n"
        "commands = argparse.ArgumentParser().add_subparsers()\n"
        "tune.add_parser(commands); audit.add_parser(commands)\n"
        "print([m for m in ('numpy', 'yaml', 'msgspec', 'sqlite3') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("output", ["text", "json", "sarif"])
def test_a_file_that_was_not_read_is_told_in_every_form_also_with_a_name_of_any_bytes(
    output, tmp_path, capsys
):
    names = {
        "caf\udce9.conf": b"net.ipv4.tcp_rfc1337=0\0\n",
        "chart.yaml": b"a: {{ b }}\n c: [\n",
        "x.md": b"# nothing\n",
    }
    for name, data in names.items():
        (tmp_path / name).write_bytes(data)
    assert command("audit", "-o", output, "--fail-on", "none", *(tmp_path / name for name in names)) == 3
    out = capsys.readouterr().out
    if output == "text":
        assert out.count("NOT READ: ") == 2
        assert f"nothing recognised in: {tmp_path}/x.md" in " ".join(out.split())
    elif output == "json":
        answer = json.loads(out)
        assert [one["status"] for one in answer["files"]] == ["not-read", "not-read", "nothing"]
        assert [one["file"].rpartition("/")[2] for one in answer["problems"]] == [
            "caf\\xe9.conf",
            "chart.yaml",
        ]
    else:
        (run,) = json.loads(out)["runs"]
        assert not run["invocations"][0]["executionSuccessful"]
        levels = [one["level"] for one in run["invocations"][0]["toolExecutionNotifications"]]
        assert sorted(levels) == ["error", "error", "note"]
        assert "%E9" in run["artifacts"][0]["location"]["uri"]

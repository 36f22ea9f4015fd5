"""What is said of an other end depends on where one looked: of all namespaces, of one, of one without sockets."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from finwait.kernel import sysctl
from finwait.lab.actor import meet
from finwait.lab.topology import Lab, Netns, unmet
from finwait.remedy.settings.catalogue import by_key
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel
CLOSE_WAIT = "net.netfilter.nf_conntrack_tcp_timeout_close_wait"


def need(*what: str) -> None:
    if lacking := unmet(("netns", *what)):
        missing("; ".join(lacking))


def finwait(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "finwait", *words], capture_output=True, text=True, timeout=60
    )


def test_an_address_that_is_up_in_a_namespace_without_sockets_is_one_of_this_machine() -> None:
    need("tool:nft")
    with Lab() as lab:
        near, far = lab.netns("near"), lab.netns("far")
        link = lab.link(near, far)
        client, server = lab.actor(near, "client"), lab.actor(far, "server")
        door = server.listen(link.b4, 8080)
        ours, theirs = meet(client, link.b4, server, door, 1)
        link.cut()
        server.reset(theirs)  # the client does not hear of it
        server.close([door])
        ends = (f"{ours[0].src}:{ours[0].sport}", f"{ours[0].dst}:{ours[0].dport}")
        whole = finwait("explain", *ends).stdout
        assert "not on this machine" not in whole
        assert "but no such connection" in whole or "gone: it should be on this machine" in whole
        part = finwait("explain", *ends, "--netns", str(near.inode)).stdout
        assert "not found: not every namespace was inspected" in part
        assert "not on this machine" not in part


def test_an_end_in_a_namespace_that_was_not_looked_into_is_said_to_be_that() -> None:
    need("tool:nft", "tool:conntrack")
    with Lab() as lab:
        path = lab.translated()
        meet(path.client, path.address, path.backend, path.door, 2)

        def told(*namespaces: Netns) -> tuple[list[dict[str, Any]], str]:
            where = [x for ns in namespaces for x in ("--netns", str(ns.inode))]
            items = json.loads(finwait("conntrack", *where, "--all", "-o", "json").stdout)["items"]
            return items, finwait("conntrack", *where, "--all").stdout

        items, text = told(path.gateway)
        assert [(i["client_seen"], i["server_seen"]) for i in items] == [("not-looked-at",) * 2] * 2
        assert {i["verdict"] for i in items} == {"neither end was inspected"}
        assert "neither end is on this machine" not in text
        assert "unknown: not every namespace was inspected" in text
        items, text = told(path.gateway, path.client.netns)
        assert [(i["client_seen"], i["server_seen"]) for i in items] == [("socket", "not-looked-at")] * 2
        items, _ = told(path.gateway, path.client.netns, path.backend.netns)
        assert [(i["client_seen"], i["server_seen"]) for i in items] == [("socket", "socket")] * 2


def test_an_entry_one_of_whose_ends_was_not_looked_at_is_not_deleted(tmp_path: Any, monkeypatch: Any) -> None:
    need("tool:nft", "tool:conntrack")
    monkeypatch.setenv("FINWAIT_STATE_DIR", str(tmp_path))
    with Lab() as lab:
        path = lab.translated()
        ours, theirs = meet(path.client, path.address, path.backend, path.door, 2)
        for link in lab.links:
            link.cut()
        path.backend.reset(theirs)  # the clients live on, and are not looked at
        where = [x for ns in (path.gateway, path.backend.netns) for x in ("--netns", str(ns.inode))]
        done = finwait("conntrack", *where, "--delete", "--yes")
        assert done.returncode == 4, done.stderr
        assert "left alone ×2 by guard `live-end`" in done.stdout
        assert len(path.gateway.run("conntrack", "-L", "-p", "tcp").splitlines()) >= len(ours)


def judged(space: Netns) -> tuple[str, bool | None, list[str]]:
    """What `tune show` says of the half-closed timeout of a namespace: verdict, whether it matters, and the text."""
    where = f"/proc/self/fd/{space.fd}"
    from finwait.cli import tune

    setting = by_key(CLOSE_WAIT)
    assert setting is not None
    with sysctl.open_target(where) as target:
        from finwait.report.tune import show_json, show_text

        facts = tune.facts_of(target, [setting])
        values = sysctl.read([CLOSE_WAIT], target).values
        (one,) = show_json([setting], values, target.identity(), facts)["settings"]
        return str(one["verdict"]), facts.translates, list(show_text([setting], values, "here", facts))


def test_the_default_of_a_tracking_timeout_is_harmful_only_where_addresses_are_translated() -> None:
    need("tool:nft", "tool:conntrack")
    with Lab() as lab:
        path = lab.translated()
        meet(path.client, path.address, path.backend, path.door, 1)
        verdict, matters, text = judged(path.gateway)
        assert (verdict, matters) == ("harmful", True)
        assert text[1].startswith("! ")
        assert "it matters here: " in " ".join(text)
        verdict, matters, text = judged(path.client.netns)
        assert (verdict, matters) == ("no-effect", False)
        assert text[1].startswith("  net.netfilter")
        assert "nothing here translates addresses" in " ".join(text)


@pytest.mark.parametrize(
    ("rule", "seen"),
    [
        (
            "table ip n {\n chain p { type nat hook postrouting priority 100; masquerade; }\n}",
            "translates addresses",
        ),
        (
            "table ip n {\n chain p { type filter hook input priority 0; ct state invalid drop; }\n}",
            "connection state",
        ),
    ],
)
def test_a_rule_without_any_entry_is_reason_enough(rule: str, seen: str) -> None:
    need("tool:nft")
    with Lab() as lab:
        space = lab.netns("one")
        space.nft(rule)
        verdict, matters, text = judged(space)
        assert (verdict, matters) == ("harmful", True)
        assert seen in " ".join(text)


def test_what_cannot_be_listed_is_not_said_to_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    need()
    with Lab() as lab:
        space = lab.netns("one")
        monkeypatch.setattr("shutil.which", lambda _: None)
        verdict, matters, text = judged(space)
        assert (verdict, matters) == ("only-when", None)
        assert "could not be listed" in " ".join(text)


def test_defaults_that_follow_from_memory_are_those_of_this_kernel() -> None:
    """Nobody set them here: what is computed is what is in force."""
    need()
    from finwait.cli import tune
    from finwait.remedy.tuning import default_of

    keys = ("net.ipv4.tcp_max_tw_buckets",)
    with Lab() as lab:
        with sysctl.open_target(f"/proc/self/fd/{lab.netns('one').fd}") as target:
            settings = [s for key in keys if (s := by_key(key))]
            facts = tune.facts_of(target, settings)
            values = sysctl.read(keys, target).values
        if facts.hash_entries is None:
            missing("this kernel has no tcp_ehash_entries (before 6.1)")
        assert {s.key: str(default_of(s, facts)) for s in settings} == values
        assert facts.orphans is not None

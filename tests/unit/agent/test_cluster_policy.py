"""Policies on a node of a cluster: names that become known refill nothing, and what is not known is left alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from finwait.agent import selected
from finwait.agent.called_pods import CalledPods
from finwait.agent.episode_values import Cause
from finwait.agent.policing import Policing
from finwait.agent.policy import OpenedCount, names_of_pods, sped_up
from finwait.agent.store import Store
from finwait.uapi import tcp
from finwait.uapi.cluster import NO_NAMES, ClusterNames
from tests.agent_world import S, World
from tests.unit.agent.test_policing import RULE, Hands
from tests.unit.agent.test_policy import BOOT, NOW, act, decided, policy, standing, why
from tests.unit.attribution.test_named import CART, DB, NAMES, named, row

TEN = policy("", "[budget]\nlook = 100\nten_minutes = 100\nday = 100\nprocess = 100\nworkload = 10")
OWN = {"workload": "pod/A", "pod": "A"}
CALLED = {"workload": "shop/cart", "pod": "A"}
OTHER_POD = {"workload": "shop/cart", "pod": "B"}
KNOWN = names_of_pods([("A", "shop/cart"), ("B", "shop/cart")])


@pytest.mark.parametrize(
    ("before", "now", "names"),
    [
        (OWN, CALLED, KNOWN),
        (OWN, OTHER_POD, KNOWN),
        ({"workload": "pod/A"}, OTHER_POD, KNOWN),  # the journal of an earlier version
        (CALLED, OWN, KNOWN),
        (CALLED, {"workload": "pod/B", "pod": "B"}, KNOWN),
        (CALLED, OTHER_POD, {}),
        ({"workload": "web", "reached": ("pod/A",)}, OTHER_POD, KNOWN),
        ({"workload": "web", "reached": ("shop/cart", "pod/A")}, OWN, {}),
    ],
)
def test_a_name_that_becomes_known_or_is_forgotten_refills_no_budget(
    before: dict[str, Any], now: dict[str, Any], names: dict[str, frozenset[str]]
) -> None:
    acts = tuple(act(3600.0, 900 + k, **before) for k in range(10))
    decision = decided(TEN, standing(1, **now), acts=acts, names=names)
    assert why(decision) == ["workload"]
    fewer = decided(TEN, standing(1, **now), standing(2, **now), acts=acts[:9], names=names)
    assert (len(fewer.chosen), why(fewer)) == (1, ["workload"])


def test_another_workload_has_a_budget_of_its_own() -> None:
    acts = tuple(act(3600.0, 900 + k, **OWN) for k in range(10))
    assert why(decided(TEN, standing(1, workload="shop/db", pod="C"), acts=acts, names=KNOWN)) == []


def test_two_pods_of_a_workload_share_a_look_whether_or_not_both_are_named() -> None:
    several = [standing(k, **(CALLED if k % 2 else {"workload": "pod/B", "pod": "B"})) for k in range(1, 20)]
    assert len(decided(TEN, *several, names=KNOWN).chosen) == 10


@pytest.mark.parametrize("stop", ["pod/A", "shop/cart"])
@pytest.mark.parametrize("now", [OWN, CALLED])
def test_what_is_stopped_stays_so_by_every_name(stop: str, now: dict[str, Any]) -> None:
    decision = decided(TEN, standing(1, **now), stopped={("leak", stop)}, names=KNOWN)
    assert why(decision) == ["opening"]


def test_a_cure_that_feeds_the_leak_is_seen_across_names() -> None:
    now_s = NOW.boot_ns / S
    openings = [OpenedCount("fin-wait2-held", "pod/A", now_s - 1200 - 60 * k, 1) for k in range(10)]
    openings += [OpenedCount("fin-wait2-held", "shop/cart", now_s - 100 - k, 1) for k in range(60)]
    how: dict[str, Any] = {"since_s": now_s - 4000, "now": NOW, "boot": BOOT}
    acts = (act(600.0, 900, **OWN),)
    assert sped_up(TEN, acts, openings, **how) == set()
    assert sped_up(TEN, acts, openings, names=KNOWN, **how) == {("leak", "pod/A")}


def test_names_of_pods_that_acts_are_about_outlive_pods_and_restarts(tmp_path: Path) -> None:
    acts = [act(3600.0, 900, **OWN)]
    called = CalledPods()
    store = Store(tmp_path / "history.sqlite")
    called.learn([Cause(workload="shop/cart", pod="A"), Cause(workload="shop/db", pod="C"), Cause(pod="D")])
    assert called.of(acts, store, BOOT)["pod/A"] == {"shop/cart"}
    again = CalledPods()
    again.restore(store)
    assert again.of(acts, None, BOOT) == {"pod/A": {"shop/cart"}}
    store.close()


@pytest.mark.parametrize("reason", ["excluded", "unnamed"])
def test_what_is_left_alone_is_counted_by_its_reason(reason: Any) -> None:
    assert why(decided(policy(), standing(1, left_alone=reason))) == [reason]


# ── which rows are left alone ────────────────────────────────────────────────────────────────────────────

TIME = 1_700_000_000.0
SEEN = {"pods": TIME, "namespaces": TIME}


def cluster(*excluded: str, as_of: dict[str, float] | None = None) -> ClusterNames:
    pods = tuple(msgspec.structs.replace(pod, excluded=pod.uid in excluded) for pod in NAMES.pods)
    return msgspec.structs.replace(NAMES, pods=pods, as_of=SEEN if as_of is None else as_of)


def alone(*rows: dict[str, Any], names: ClusterNames) -> list[str]:
    view = named(*rows, names=names)
    made: Any = SimpleNamespace(view=view, gaps=())
    result = selected.left_alone(made, TIME)
    return [next((reason for reason in result if result[reason][k]), "") for k in range(len(rows))]


CLIENT = row(netns=5, src="10.1.0.5", dst="10.1.0.6", sport=40000, dport=5432, cgroup_id=1, cookie=9)
SERVER = row(
    state=tcp.CLOSE_WAIT, inode=60, cookie=10, netns=6, src="10.1.0.6", dst="10.1.0.5", sport=5432, dport=40000,
    cgroup_id=2,
)  # fmt: skip
FAR = row(netns=5, src="10.1.0.5", dst="10.9.9.9", sport=41000, dport=80, cgroup_id=1, cookie=11)
HOST = row(netns=7, src="192.0.2.1", dst="10.9.9.9", sport=42000, dport=80, cgroup_id=4, cookie=12)
STRANGER = row(netns=8, src="10.1.0.99", dst="10.9.9.9", sport=43000, dport=80, cookie=13, inode=0)
UNKNOWN_POD = "/kubepods/burstable/pod99999999-9999-4999-8999-999999999999"


def test_pods_that_are_known_are_free_and_what_is_of_no_pod() -> None:
    assert alone(CLIENT, SERVER, FAR, HOST, names=cluster()) == ["", "", "", ""]


def test_an_annotation_at_either_end_keeps_both() -> None:
    assert alone(CLIENT, SERVER, FAR, HOST, names=cluster(DB)) == ["excluded", "excluded", "", ""]
    assert alone(CLIENT, SERVER, FAR, HOST, names=cluster(CART)) == ["excluded"] * 3 + [""]
    assert alone(CLIENT, names=cluster(DB)) == ["excluded"], (
        "its pod has the address, though its row was not seen"
    )


@pytest.mark.parametrize(
    "names",
    [
        NO_NAMES,
        cluster(as_of={"pods": TIME}),
        cluster(as_of={"pods": TIME - 601, "namespaces": TIME}),
        cluster(as_of={"pods": TIME, "namespaces": TIME - 601}),
    ],
)
def test_while_it_is_not_known_no_pod_is_acted_on(names: ClusterNames) -> None:
    assert alone(FAR, HOST, names=names) == ["unnamed", ""]


def test_what_may_be_a_pod_without_a_name_is_left_alone() -> None:
    assert alone(STRANGER, names=cluster()) == ["unnamed"]
    # An orphan of a pod that is known by its network namespace, or its address, is not.
    assert alone(FAR, {**STRANGER, "netns": 5}, names=cluster()) == ["", ""]
    fresh = msgspec.structs.replace(cluster(), pods=cluster().pods[1:])
    assert alone(CLIENT, SERVER, names=fresh) == ["unnamed", "unnamed"], "its other end may be excluded"


# ── what is said ─────────────────────────────────────────────────────────────────────────────────────────


def test_rules_that_ask_for_names_that_are_not_known_are_told() -> None:
    rule = 'where = "workload = shop/cart"\nexcept = "service = shop/db"\n'
    made = Policing(Hands(World(), RULE + rule), "p.toml", BOOT)
    (gap,) = made.gaps(None)
    assert gap.needs == "`--kubernetes`"
    assert "service, workload" in gap.doing
    (gap,) = made.gaps(cluster())
    assert "select by service:" in gap.doing
    assert (
        made.gaps(msgspec.structs.replace(cluster(), as_of={**SEEN, "services": 1.0, "endpointslices": 1.0}))
        == ()
    )
    plain = Policing(Hands(World(), RULE), "p.toml", BOOT)
    assert plain.gaps(None) == ()

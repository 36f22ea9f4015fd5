"""A policy on a node of a cluster, with real sockets: it acts on pods that are known and not excluded, on no others."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from finwait import planning
from finwait.agent import loop, policing
from finwait.agent.episodes import Book
from finwait.lab.topology import Lab, unmet
from finwait.uapi.cluster import NO_NAMES, ClusterNames, Pod
from tests.kernel.needs import missing
from tests.kernel.test_policy import Scene, young
from tests.unit.agent.test_cluster_loop import Source

pytestmark = pytest.mark.kernel

NEAR, FAR = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
CART = Pod(NEAR, "shop", "cart-1", "n1", "Deployment", "cart", labels={"app": "cart"})
DB = Pod(FAR, "shop", "db-0", "n1", "StatefulSet", "db")


def known(*pods: Pod, namespaces: bool = True) -> ClusterNames:
    now = time.time() + 60  # a slow machine must not make it old
    as_of = {"pods": now, "namespaces": now} if namespaces else {"pods": now}
    return ClusterNames(node="n1", pods=pods, as_of=as_of)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    if lacking := unmet(("netns", "cgroup2")):
        missing("; ".join(lacking))
    monkeypatch.setenv("FINWAIT_STATE_DIR", str(tmp_path / "journal"))
    monkeypatch.setattr(policing, "parse_policy", young)
    monkeypatch.setattr(planning, "MIN_AGE_MS", 100)
    monkeypatch.setattr(loop, "Book", functools.partial(Book, grace_ns=100_000_000, verdict_ns=0))
    with Lab() as lab:
        cgroups = [lab.cgroup(f"kubepods/burstable/pod{uid}") for uid in (NEAR, FAR)]
        yield Scene(lab, tmp_path, 4, cgroups=cgroups, cluster=Source())


def follow(scene: Scene, names: ClusterNames) -> None:
    assert isinstance(scene.cluster, Source)
    scene.cluster.names = names


BUDGET = "[budget]\nlook = 2\nday = 2"


def test_names_select_and_the_journal_has_them(scene: Scene) -> None:
    scene.leak()
    follow(scene, known(CART, DB))
    scene.agent("act", above=BUDGET, rule='except = "workload = shop/other or label = app=none"')
    scene.until("it acts", lambda: scene.status.remaining == 0)
    policies = [act.target["policy"] for act in scene.acts()]
    assert {policy["workload"] for policy in policies} <= {"shop/cart", "shop/db"}
    assert {policy["pod"] for policy in policies} <= {NEAR, FAR}
    assert len(policies) == 2


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (NO_NAMES, "unnamed"),
        (known(CART, DB, namespaces=False), "unnamed"),
        (known(CART), "unnamed"),
        (known(CART, msgspec.structs.replace(DB, excluded=True)), "excluded"),
        (known(msgspec.structs.replace(CART, excluded=True), DB), "excluded"),
    ],
    ids=["no names", "no namespaces", "one unknown", "the other end", "this end"],
)
def test_what_is_excluded_or_not_known_at_either_end_is_never_acted_on(
    scene: Scene, names: ClusterNames, reason: str
) -> None:
    scene.leak()
    follow(scene, names)
    scene.agent("act", above=BUDGET)
    scene.until("it is counted", lambda: scene.status.rules[0].spared.get(reason))
    scene.look(4)
    assert (scene.acts(), scene.stuck) == ([], 4)
    follow(scene, known(CART, DB))
    scene.until("nothing else kept it from acting", lambda: scene.status.remaining == 0)


def test_an_annotation_that_comes_between_diagnosis_and_plan_counts(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.leak()
    follow(scene, known(CART, DB))
    scene.agent("act", above=BUDGET)
    plan = scene.hands.plan
    planned = []

    def late(*words: object) -> object:
        planned.append(1)
        follow(scene, known(msgspec.structs.replace(CART, excluded=True), DB))
        made = plan(*words)  # type: ignore[arg-type]
        follow(scene, known(CART, DB))
        return made

    monkeypatch.setattr(scene.hands, "plan", late)
    scene.until("it was planned", lambda: len(planned) >= 2)
    assert (scene.acts(), scene.stuck) == ([], 4)


def test_rules_by_names_select_nothing_where_names_are_not_known(scene: Scene) -> None:
    scene.leak()
    follow(scene, NO_NAMES)
    scene.agent("act", above=BUDGET, rule='except = "namespace = kube-system"')
    status = scene.look(5)
    assert any("select by namespace: it selects nothing" in gap for gap in status.gaps)
    assert scene.acts() == []

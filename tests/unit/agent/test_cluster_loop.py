"""The looker beside a cluster that is followed: names, their gaps and cost, and what it was called before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from finwait.agent.cluster_told import ClusterStatus
from finwait.agent.loop import Looker
from finwait.agent.metrics import render
from finwait.agent.store import Store
from finwait.agent.telling import picked, status_lines
from finwait.agent.workload_names import placed_in_cluster, split_workload, workload_of
from finwait.attribution.container import Workload
from finwait.errors import Gap
from finwait.selecting import parse_filter
from finwait.uapi import tcp
from finwait.uapi.cluster import NO_NAMES, ClusterEvent, ClusterNames, Pod
from tests.agent_world import S, World

CART = Pod("A", "shop", "cart-1", "n1", "Deployment", "cart")
KNOWN = ClusterNames(node="n1", pods=(CART,), as_of={"pods": 1.0})


class Source:
    """Follows a cluster that answers when it is told to."""

    def __init__(self) -> None:
        self.names = NO_NAMES
        self.gaps: tuple[Gap, ...] = (Gap("names from Kubernetes", "list them yet", ""),)
        self.cpu_s = 0.0
        self.told: list[ClusterEvent] = []
        self.age_s: float | None = None

    def tell(self, events: Sequence[ClusterEvent]) -> None:
        self.told += events

    @property
    def status(self) -> ClusterStatus:
        ages = {"pods": 7.0} if self.names.as_of else {}
        return ClusterStatus(
            url="https://10.0.0.1:443", node="n1", state="following", pods=len(self.names.pods), services=0,
            endpoints=0, as_of=dict.fromkeys(ages, "then"), ages_s=ages, cpu_s=self.cpu_s, restarts=1, said="ended",
        )  # fmt: skip


class Bench:
    def __init__(self, folder: Path) -> None:
        self.world, self.source = World(), Source()
        self.path = folder / "history.sqlite"
        self.looker = Looker(
            self.world, lambda: Store(self.path, clock=self.world.monotonic), share=0.5, cluster=self.source
        )

    def run(self, seconds: float) -> None:
        end = self.world.now_ns + int(seconds * S)
        while self.world.now_ns < end:
            self.world.pass_(min(self.looker.round(), (end - self.world.now_ns) / S + 0.001))
        self.looker.round()

    def groups(self) -> list[tuple[str, str, int]]:
        assert self.looker.picture is not None
        return [(g.namespace, g.workload, g.count) for g in self.looker.picture.groups]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_pod_gets_its_name_once_it_is_known_and_keeps_verdicts_and_the_name_of_then(bench: Bench) -> None:
    over = bench.world.add(tcp.FIN_WAIT2, pid=7, pod="A")
    bench.world.add(tcp.FIN_WAIT2, pid=7, pod="A")
    bench.world.add(tcp.FIN_WAIT2, pid=8)
    bench.run(60)
    assert bench.groups() == [("", "pod/A", 2), ("", "program8", 1)]
    assert bench.world.cluster is NO_NAMES
    del bench.world.socks[over.cookie]
    bench.run(60)
    diagnoses = bench.world.diagnoses
    (verdicts,) = {int(n) for n in bench.looker._book.columns("verdicts")[0]}
    bench.source.names, bench.source.gaps, bench.source.age_s = KNOWN, (), 7.0
    bench.run(20)
    assert bench.world.diagnoses == diagnoses, "nobody had to look for that"
    assert ("shop", "cart", 1) in bench.groups()
    assert {int(n) for n in bench.looker._book.columns("verdicts")[0]} == {verdicts}
    assert ("", "pod/A", 0) in bench.groups(), "a series that ends says so"
    bench.source.names = NO_NAMES
    bench.run(20)
    assert ("shop", "cart", 1) in bench.groups(), "a name that was known is kept"
    bench.looker.end()
    with Store(bench.path, read_only=True) as store:
        words = (
            "SELECT s.workload, e.pod, e.ended_wall IS NULL FROM episodes e JOIN series s ON s.id = e.series"
        )
        every = list(store.select(words, ()))
        episodes = [e for batch in store.batches(0, open_of="", size=500) for e in batch]
    assert sorted(every) == [("pod/A", "A", 0), ("program8", "", 1), ("shop/cart", "A", 1)]
    for text, hits in (
        ("workload = shop/cart", 1), ("namespace = shop", 1), ("pod = A", 2), ("pod = B", 0),
        ("workload != shop/cart", 1), ("namespace != shop", 1),
    ):  # fmt: skip
        row_filter = parse_filter([text])
        assert row_filter is not None
        found, _ = picked(row_filter, [episodes], bench.world.now_ns, "boot-1", seen_ns=-1, names={}, most=10)
        assert len(found) == hits, text


def test_gaps_age_and_cost_are_told(bench: Bench) -> None:
    bench.world.add(tcp.FIN_WAIT2, pid=7)
    bench.run(30)
    assert any(gap.doing == "list them yet" for gap in bench.looker.gaps)
    picture = bench.looker.picture
    assert picture is not None
    assert picture.names_age_s is None
    assert b"\nfinwait_names_age_seconds " not in render(picture)[0]
    before = picture.cpu_s
    bench.source.names, bench.source.gaps, bench.source.age_s, bench.source.cpu_s = KNOWN, (), 7.0, 3.0
    bench.run(30)
    picture, status = bench.looker.picture, bench.looker.status
    assert picture is not None
    assert status is not None
    assert picture.cpu_s >= before + 3.0
    assert b"\nfinwait_names_age_seconds 7.0" in render(picture)[0]
    assert not any(gap.doing == "list them yet" for gap in bench.looker.gaps)
    lines = "".join(status_lines(status))
    assert "cluster    `https://10.0.0.1:443`, followed, node n1" in lines
    assert "never listed: services, endpointslices, namespaces" in lines
    assert "the oldest of it, pods, is 7.0 s old" in lines
    assert "started again 1 time" in lines


def test_what_following_costs_is_paid_by_and_by(bench: Bench) -> None:
    bench.run(30)
    purse = bench.looker._purse
    left = purse.left_s
    bench.source.cpu_s = 100.0
    bench.run(15)
    assert purse.left_s >= left - 1, "the next look does not wait for it"
    assert purse.owed_s > 50


@pytest.mark.parametrize(
    ("workload", "split"),
    [
        ("shop/cart", ("shop", "cart")),
        ("pod/A", ("", "pod/A")),
        ("container/0123456789ab", ("", "container/0123456789ab")),
        ("sshd.service", ("", "sshd.service")),
        ("", ("", "")),
        ("other", ("", "other")),
    ],
)
def test_labels_of_a_workload(workload: str, split: tuple[str, str]) -> None:
    assert split_workload(workload) == split
    assert placed_in_cluster(workload) is (split[0] != "")


def test_what_a_workload_is_called() -> None:
    pod = Workload(pod_uid="A")
    assert workload_of(pod, "x", CART) == "shop/cart"
    assert workload_of(pod, "x") == "pod/A"
    assert workload_of(None, "x", msgspec.structs.replace(CART, owner="")) == "shop/cart-1"
    assert not placed_in_cluster(workload_of(None, "shop/cart")), "a program cannot pass for a workload"

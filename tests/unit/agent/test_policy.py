"""What a policy allows: one reason at a time."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from finwait.agent.episodes import Instant
from finwait.agent.policy import Decision, Ledger, OpenedCount, PastAct, Standing, decide, sped_up
from finwait.agent.policy_file import Policy, parse_policy
from finwait.uapi import tcp

S = 1_000_000_000
NOW = Instant(100_000 * S, 1_764_400_000 * S)
BOOT = "boot-1"
HELD = dict.fromkeys(range(1, 50), 1000)


def policy(rule: str = "", above: str = "") -> Policy:
    text = f'{above}\n[[rule]]\nname = "leak"\nfindings = ["fin-wait2-held"]\n{rule}\n'
    return parse_policy(text.encode(), "p.toml")


def standing(cookie: int = 1, **more: Any) -> Standing:
    made = Standing(
        netns=1, cookie=cookie, state=tcp.FIN_WAIT2, finding="fin-wait2-held", certain=True, age_s=7200.0,
        verdicts=3, workload="relay", processes=((7, 5),), selected=frozenset({"leak"}),
    )  # fmt: skip
    return replace(made, **more)


def act(ago_s: float, cookie: int = 900, **more: Any) -> PastAct:
    at = Instant(NOW.boot_ns - int(ago_s * S), NOW.wall_ns - int(ago_s * S))
    return replace(PastAct("leak", BOOT, at, 1, cookie, "relay", ((7, 5),), "fin", "fin-wait2-held"), **more)


def decided(made: Policy, *standings: Standing, acts: tuple[PastAct, ...] = (), **more: Any) -> Decision:
    values: dict[str, Any] = {"held": HELD, "now": NOW, "boot": BOOT, **more}
    return decide(made, standings, acts, **values)


def why(decision: Decision) -> list[str]:
    return [entry.by for entry in decision.spared]


def test_what_is_old_certain_and_seen_often_is_chosen_the_oldest_first() -> None:
    decision = decided(policy(), standing(1), standing(2, age_s=9000.0))
    assert [choice.standing.cookie for choice in decision.chosen] == [2, 1]
    assert decision.chosen[0].means == ("fin", "keepalive")


@pytest.mark.parametrize(
    ("more", "by"),
    [
        ({"certain": False}, "not-certain"),
        ({"age_s": 3599.9}, "young"),
        ({"age_s": float("nan")}, "young"),
        ({"verdicts": 2}, "looks"),
        ({"holders_known": False}, "holder-unknown"),
        ({"state": tcp.ESTABLISHED}, "state"),
        ({"state": tcp.LISTEN}, "state"),
        ({"state": tcp.TIME_WAIT}, "state"),
        ({"processes": ((99, 1),)}, "share"),
    ],
)
def test_one_reason_is_enough_to_leave_a_connection_alone(more: dict[str, Any], by: str) -> None:
    decision = decided(policy(), standing(1, **more))
    assert (decision.chosen, why(decision)) == ((), [by])


def test_what_no_rule_is_about_is_only_counted() -> None:
    decision = decided(policy(), standing(1, finding="zero-window"), standing(2, selected=frozenset()))
    assert (decision.chosen, decision.spared, decision.unnamed) == ((), (), 2)


def test_the_first_rule_that_is_about_a_connection_has_it() -> None:
    made = policy('[[rule]]\nname = "second"\nfindings = ["fin-wait2-held"]\nmin_age = "10m"')
    both = frozenset({"leak", "second"})
    decision = decided(made, standing(1, age_s=700.0, selected=both))
    assert why(decision) == ["young"]
    decision = decided(made, standing(1, age_s=700.0, selected=frozenset({"second"})))
    assert [choice.rule.name for choice in decision.chosen] == ["second"]


@pytest.mark.parametrize(
    ("rule", "above", "acts", "most", "by"),
    [
        ("", "[budget]\nlook = 2", (), 2, "look"),
        ("[rule.budget]\nlook = 1", "[budget]\nlook = 2", (), 1, "look"),
        ("[rule.budget]\nlook = 9", "[budget]\nlook = 2", (), 2, "look"),
        ('cool_down = "1m"', "[budget]\nten_minutes = 3", (act(599, 901), act(599, 902)), 1, "ten_minutes"),
        ('cool_down = "1m"', "[budget]\nten_minutes = 3", (act(601, 901), act(601, 902)), 3, "ten_minutes"),
        ("", "[budget]\nday = 3", (act(86399, 901),), 2, "day"),
        ("", "[budget]\nday = 3", (act(86401, 901),), 3, "day"),
        ("", "[budget]\nday = 3", (act(3600, 901, rule="gone"), act(3600, 902, rule="gone")), 1, "day"),
        ("[rule.budget]\nday = 3", "", (act(3600, 901, rule="gone"),), 2, "day"),
        ("[rule.budget]\nday = 3", "", (act(3600, 901, rule="gone", finding=""),), 2, "day"),
        ("[rule.budget]\nday = 3", "", (act(3600, 901, rule="gone", finding="zero-window"),), 3, "day"),
        ("", "[budget]\nprocess = 2", (act(3600, 901),), 1, "process"),
        ("", "[budget]\nprocess = 2", (act(3600, 901, processes=((7, 6),)),), 2, "process"),
        ("", "[budget]\nprocess = 2", (act(3600, 901, boot="boot-0"),), 2, "process"),
        ("", "[budget]\nworkload = 2", (act(3600, 901, processes=()),), 1, "workload"),
        ("", "[budget]\nworkload = 2", (act(3600, 901, workload="other"),), 2, "workload"),
        ("", "[budget]\nlook = 0", (), 0, "look"),
    ],
)
def test_the_strictest_budget_wins(
    rule: str, above: str, acts: tuple[PastAct, ...], most: int, by: str
) -> None:
    made = policy(rule, above)
    decision = decided(made, *(standing(n) for n in range(1, 6)), acts=acts)
    assert len(decision.chosen) == most
    assert set(why(decision)) == {by}
    assert len(decision.eligible) == 5


@pytest.mark.parametrize(("held", "most"), [(0, 0), (1, 0), (2, 1), (3, 1), (5, 2), (100, 5)])
def test_at_most_half_of_the_connections_of_a_process_is_chosen(held: int, most: int) -> None:
    decision = decided(policy(), *(standing(n) for n in range(1, 6)), held={7: held})
    assert len(decision.chosen) == most


def test_a_share_is_of_each_process_that_holds_it() -> None:
    shared = standing(1, processes=((7, 5), (8, 5)))
    assert why(decided(policy(), shared, held={7: 100, 8: 1})) == ["share"]


def test_what_a_rule_did_counts_under_its_new_name() -> None:
    gone = act(599, rule="old-name")
    assert why(decided(policy(), standing(), acts=(gone,))) == ["cool-down"]
    assert why(decided(policy(), standing(), acts=(replace(gone, result="open"),))) == ["unexpected"]
    assert decided(policy(), standing(), acts=(replace(gone, finding="zero-window"),)).chosen
    two = policy('[[rule]]\nname = "old-name"\nfindings = ["zero-window"]')
    assert decided(two, standing(), acts=(gone,)).chosen, "it is that of the rule that is called so"
    stopped = {("old-name", "relay")}
    assert why(decided(policy(), standing(), stopped=stopped)) == ["opening"]
    assert decided(policy(), standing(workload="other"), stopped=stopped).chosen
    assert decided(two, standing(), stopped=stopped).chosen


def test_a_rule_waits_after_it_acted_and_longer_ago_it_does_not() -> None:
    assert why(decided(policy(), standing(), acts=(act(599),))) == ["cool-down"]
    assert decided(policy(), standing(), acts=(act(601),)).chosen
    other = (act(10, rule="other"),)
    two = policy('[[rule]]\nname = "other"\nfindings = ["fin-wait2-held"]')
    assert decided(two, standing(), acts=other).chosen, "the cool-down is the rule's own"


@pytest.mark.parametrize("result", ["unexpected", "open"])
def test_an_unexpected_result_and_an_act_that_was_cut_short_stop_the_rule(result: Any) -> None:
    acts = (act(300, 901), act(500, 902, result=result))
    assert why(decided(policy(), standing(), acts=acts)) == ["unexpected"]


def test_the_next_means_is_tried_when_the_one_before_did_not_help() -> None:
    made = policy('with = ["fin", "keepalive", "destroy"]')
    tried = (act(7000, 1, means="fin"),)
    assert decided(made, standing(1), acts=tried).chosen[0].means == ("keepalive", "destroy")
    tried = (act(7000, 1, means="keepalive"),)
    assert decided(made, standing(1), acts=tried).chosen[0].means == ("destroy",)
    tried = (act(7000, 1, means="destroy"),)
    assert why(decided(made, standing(1), acts=tried)) == ["tried"]
    nothing = (act(7000, 1, means="destroy", result="nothing"),)
    assert decided(made, standing(1), acts=nothing).chosen[0].means == ("fin", "keepalive", "destroy")


def test_a_cookie_of_another_boot_is_another_connection() -> None:
    made = policy('with = ["fin"]')
    assert decided(made, standing(1), acts=(act(7000, 1, boot="boot-0"),)).chosen
    assert why(decided(made, standing(1), acts=(act(7000, 1),))) == ["tried"]


def test_what_was_ended_in_a_dry_run_is_not_ended_again() -> None:
    assert why(decided(policy(), standing(1), acts=(act(7000, 1, result="rehearsed"),))) == ["rehearsed"]


def test_outside_its_windows_the_budget_is_nothing() -> None:
    made = policy('windows = ["02:00-05:00"]')
    two = Instant(NOW.boot_ns, NOW.wall_ns // (86400 * S) * 86400 * S + 2 * 3600 * S)
    assert decided(made, standing(), now=two).chosen
    assert why(decided(made, standing(), now=two._replace(wall_ns=two.wall_ns - 1))) == ["window"]


def test_a_stopped_workload_is_left_alone_and_others_are_not() -> None:
    decision = decided(policy(), standing(1), standing(2, workload="web"), stopped={("leak", "relay")})
    assert why(decision) == ["opening"]
    assert [choice.standing.workload for choice in decision.chosen] == ["web"]


@pytest.mark.parametrize("jump_s", [-864_000, -3600, 3600, 864_000])
def test_whoever_sets_the_clock_gets_no_budget_for_it(jump_s: int) -> None:
    made = policy('cool_down = "1m"', "[budget]\nday = 3\nten_minutes = 3")
    acts = (act(300, 901), act(300, 902))
    now = Instant(NOW.boot_ns, NOW.wall_ns + jump_s * S)
    assert len(decided(made, *(standing(n) for n in range(1, 6)), acts=acts, now=now).chosen) == 1


def test_an_act_of_another_boot_that_seems_to_come_was_just_now() -> None:
    early = act(-86_400, 901, boot="boot-0")
    assert early.age_s(NOW, BOOT) == 0
    assert why(decided(policy(), standing(), acts=(early,))) == ["cool-down"]


def test_several_that_belong_together_are_taken_whole_or_not_at_all() -> None:
    made = policy("", "[budget]\nlook = 3")
    ledger = Ledger(made, (), HELD, NOW, BOOT)
    charges = [choice.charge for choice in decided(made, standing(1), standing(2)).chosen]
    assert ledger.take_whole(charges) is None
    assert ledger.take_whole(charges) == "look"
    assert ledger.remaining == 1, "what was entered of it was taken back"
    assert ledger.take_whole(charges[:1]) is None
    assert ledger.remaining == 0


def opened(*counts: tuple[float, int]) -> list[OpenedCount]:
    return [
        OpenedCount("fin-wait2-held", "relay", NOW.boot_ns / 1e9 - ago, n) for ago, n in counts
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("openings", "faster"),
    [
        (opened((1000, 3), (100, 20)), True),
        (opened((1000, 20), (100, 20)), False),  # 20 in 1200 s, then 20 in 600 s: not more than twice as fast
        (opened((1000, 20), (100, 34)), True),  # by more than chance explains
        (opened((1000, 60), (100, 20)), False),
        (opened((100, 4)), False),
        (opened((100, 5)), True),
        ([], False),
    ],
)
def test_a_cure_that_feeds_the_leak_is_seen(openings: list[OpenedCount], faster: bool) -> None:
    since_s = NOW.boot_ns / 1e9 - 1800
    hits = sped_up(policy(), (act(600, 901),), openings, since_s=since_s, now=NOW, boot=BOOT)
    assert hits == ({("leak", "relay")} if faster else set())


def test_without_a_before_or_an_after_nothing_is_concluded() -> None:
    burst = opened((50, 100))
    late = NOW.boot_ns / 1e9 - 700
    assert not sped_up(policy(), (act(600),), burst, since_s=late, now=NOW, boot=BOOT)
    assert not sped_up(policy(), (act(60),), burst, since_s=0.0, now=NOW, boot=BOOT)
    assert not sped_up(policy(), (act(600, boot="boot-0"),), burst, since_s=0.0, now=NOW, boot=BOOT)


def test_an_act_of_another_boot_is_as_old_as_the_wall_clock_says() -> None:
    at = Instant(NOW.boot_ns + 5 * S, NOW.wall_ns - 300 * S)
    assert act(0, 901, boot="boot-0", at=at).age_s(NOW, BOOT) == 300
    at = Instant(-1, NOW.wall_ns - 300 * S)
    assert act(0, 901, at=at).age_s(NOW, BOOT) == 300, "one whose time since boot is not known"
    assert act(0, 901).age_s(NOW, BOOT) == 0


@pytest.mark.parametrize(("ago_s", "most"), [(599.999, 2), (600, 3)])
def test_ten_minutes_end_after_ten_minutes(ago_s: float, most: int) -> None:
    made = policy('cool_down = "1m"', "[budget]\nten_minutes = 3")
    assert len(decided(made, *(standing(n) for n in range(1, 6)), acts=(act(ago_s),)).chosen) == most


@pytest.mark.parametrize(("ago_s", "most"), [(86399.999, 2), (86400, 3)])
def test_a_day_ends_after_a_day(ago_s: float, most: int) -> None:
    made = policy("", "[budget]\nday = 3")
    assert len(decided(made, *(standing(n) for n in range(1, 6)), acts=(act(ago_s),)).chosen) == most


def test_of_several_acts_the_rate_before_the_first_one_counts() -> None:
    """What came between two acts may be their doing, and is no measure of what was before."""
    acts = (act(1500, 901), act(200, 902))
    openings = opened((800, 20), (100, 8))
    hits = sped_up(policy(), acts, openings, since_s=NOW.boot_ns / 1e9 - 3600, now=NOW, boot=BOOT)
    assert hits == {("leak", "relay")}

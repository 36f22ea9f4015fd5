"""Changes of state between two looks: which arrow a connection has passed, and what nobody can say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finwait.table.comparing import Changes, Looked, changes, looked
from finwait.table.sockets import SocketTable
from finwait.uapi import tcp

E, W1, W2, TW, CL = tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.TIME_WAIT, tcp.CLOSE
CW, LA, CG, SR, SS = tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING, tcp.SYN_RECV, tcp.SYN_SENT
MINI = 3


def look(
    rows: Iterable[tuple[int, int]], *, mini: Iterable[tuple[int, int, int]] = (), wanted: bool = True
) -> Looked:
    """Return a look: (cookie, state) of sockets, and (cookie, state, cookie of what it continues) of minisockets."""
    every = [(c, s, 0, c) for c, s in rows] + [(c, s, MINI, of) for c, s, of in mini]
    table = SocketTable.from_columns(
        {
            "cookie": [c for c, *_ in every],
            "state": [s for _, s, *_ in every],
            "timer": [t for _, _, t, _ in every],
            "sport": [of for *_, of in every],
            "netns": [7] * len(every),
        }
    )
    return looked(table, np.full(len(every), wanted))


def test_what_is_in_another_state_has_passed_the_arrows_between() -> None:
    before = look([(1, E), (2, E), (3, W1), (4, SR), (5, CW), (6, SS)])
    now = look([(1, CW), (2, W2), (3, W2), (4, E), (5, LA), (6, CW)])
    assert changes(before, now) == Changes(
        {(E, CW): 2, (E, W1): 1, (W1, W2): 2, (SR, E): 1, (CW, LA): 1, (SS, E): 1}, 0
    )


def test_what_is_new_in_a_closing_state_has_come_through_established() -> None:
    found = changes(look([]), look([(1, CW), (2, W2), (3, E)]))
    assert found == Changes({(E, CW): 1, (E, W1): 1, (W1, W2): 1}, 0), "how an open one came is not known"


def test_what_is_gone_is_placed_only_where_there_is_one_way() -> None:
    found = changes(look([(1, LA), (2, CW), (3, E), (4, W2)]), look([]))
    assert found == Changes({(LA, CL): 1, (W2, CL): 1}, 2)


def test_a_minisocket_continues_its_connection_and_is_none_of_its_own() -> None:
    before = look([(1, W2), (2, W1), (3, W2), (4, E)])
    now = look([], mini=[(11, W2, 1), (12, W2, 2), (13, TW, 3), (14, TW, 4), (15, TW, 99)])
    assert changes(before, now) == Changes({(W1, W2): 1, (W2, CL): 1, (E, W1): 1}, 0)
    assert changes(now, look([])) == Changes({}, 0), "its end is a timer's"


def test_what_is_not_wanted_is_not_counted_and_what_was_wanted_is() -> None:
    assert changes(look([(1, E)], wanted=False), look([(1, CW)], wanted=False)) == Changes({}, 0)
    assert changes(look([(1, E)]), look([(1, CW)], wanted=False)) == Changes({(E, CW): 1}, 0)
    assert changes(look([(1, E)], wanted=False), look([(1, CW)])) == Changes({(E, CW): 1}, 0)


STATES = st.sampled_from([E, W1, W2, CW, LA, CG, SR, SS])


@given(st.dictionaries(st.integers(1, 60), STATES), st.dictionaries(st.integers(1, 60), STATES))
def test_numbers_of_states_and_flows_agree(before: dict[int, int], now: dict[int, int]) -> None:
    """In each closing state: what was there, what came and what left make what is there, but for what is not placed."""
    found = changes(look(before.items()), look(now.items()))
    was, is_ = Counter(before.values()), Counter(now.values())
    possible = {(a, b) for a in before for b in now if a == b}
    for state in (W1, W2, CG, CW, LA):
        came = sum(n for (_, new), n in found.passed.items() if new == state)
        left = sum(n for (old, _), n in found.passed.items() if old == state)
        assert abs(was[state] + came - left - is_[state]) <= found.unplaced, possible
    assert all(n > 0 for n in found.passed.values())
    assert found.unplaced <= len(before)

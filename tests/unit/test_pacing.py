"""The pace of one endpoint: it grows, shrinks, rests, probes and ramps up again; and its rate limit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from postrider.domain.model import DeliveryState, ErrorKind
from postrider.domain.pacing import (
    BREAK_AFTER,
    BREAKER_TRANSITIONS,
    CALM_S,
    MAX_PAUSE_S,
    RESTS_S,
    START_WINDOW,
    Breaker,
    LaneState,
    Pace,
)
from postrider.domain.policy import Outcome


def outcome(kind: ErrorKind | None, *, throttled: bool = False, retry_after: float = 0.0) -> Outcome:
    state = DeliveryState.RETRYING if kind else DeliveryState.SUCCEEDED
    return Outcome(state, None, kind, f"{kind}: reason", None, throttled, retry_after)


OK = outcome(None)
BUSY = outcome(ErrorKind.HTTP, throttled=True)
REFUSED = outcome(ErrorKind.HTTP)
TIMEOUT = outcome(ErrorKind.TIMEOUT)
RESET = outcome(ErrorKind.PROTOCOL)


def rounds(pace: Pace, now: float, count: int, result: Outcome = OK, latency: float = 0.1) -> float:
    """Rounds of as many requests as the limit allows; return the time after them."""
    for _ in range(count):
        under_way = pace.limit
        for _ in range(under_way):
            pace.started(now)
        for _ in range(under_way):
            pace.ended(result, now, now + latency, full=True)
        now += latency
    return now


def test_it_doubles_each_round_up_to_its_ceiling() -> None:
    pace = Pace(64, None, 0.0)
    limits = []
    now = 0.0
    for _ in range(6):
        limits.append(pace.limit)
        now = rounds(pace, now, 1)
    assert limits == [1, START_WINDOW + 1, 10, 20, 40, 64]


def test_it_does_not_grow_while_it_is_not_used_up() -> None:
    pace = Pace(64, None, 0.0)
    for _ in range(100):
        pace.ended(OK, 0.0, 0.1, full=False)
    assert pace.limit == START_WINDOW


@pytest.mark.parametrize("trouble", [BUSY, TIMEOUT])
def test_trouble_halves_it_once_a_round_and_then_it_grows_by_one_a_round(trouble: Outcome) -> None:
    pace = Pace(64, None, 0.0)
    now = rounds(pace, 0.0, 5)
    for _ in range(4):
        pace.ended(trouble, now, now + 0.1, full=True)
    assert (pace.state, pace.limit) == (LaneState.THROTTLED, 32)
    now = rounds(pace, now + 0.2, 3)
    assert pace.limit in (34, 35)
    assert pace.state == "throttled"
    pace.refresh(now + CALM_S)
    assert pace.state == "steady"


def test_a_quick_refusal_changes_nothing() -> None:
    pace = Pace(16, None, 0.0)
    now = rounds(pace, 0.0, 3)
    rounds(pace, now, 10, REFUSED)
    assert (pace.state, pace.limit) == (LaneState.STEADY, 16)


def test_latency_far_above_the_usual_shrinks_it_but_not_to_nothing() -> None:
    pace = Pace(64, None, 0.0)
    now = rounds(pace, 0.0, 10, latency=0.1)
    now = rounds(pace, now, 1, latency=2.0)
    assert pace.state is LaneState.THROTTLED
    assert pace.limit in (32, 33)
    assert "latency rose" in pace.reason
    rounds(pace, now, 2, latency=2.0)
    assert pace.limit >= 16


def test_latency_that_stays_becomes_the_usual() -> None:
    pace = Pace(64, None, 0.0)
    now = rounds(pace, 0.0, 10, latency=0.1)
    now = rounds(pace, now, 60, latency=2.0)
    pace.refresh(now)
    assert pace.limit == 64


def test_retry_after_pauses_all_of_it_within_bounds() -> None:
    pace = Pace(16, None, 0.0)
    pace.ended(outcome(ErrorKind.HTTP, throttled=True, retry_after=7), 0.0, 1.0, full=True)
    assert pace.limit == 0
    pace.refresh(7.9)
    assert pace.limit == 0
    pace.refresh(8.0)
    assert pace.limit == START_WINDOW // 2
    pace.ended(outcome(ErrorKind.HTTP, throttled=True, retry_after=80_000), 8.0, 9.0, full=True)
    pace.refresh(9.0 + MAX_PAUSE_S)
    assert pace.limit == 1


def test_an_endpoint_that_does_not_answer_rests_longer_and_longer_between_single_probes() -> None:
    pace = Pace(16, None, 0.0)
    for _ in range(BREAK_AFTER):
        assert pace.limit > 0
        pace.ended(RESET, 0.0, 1.0, full=True)
    assert (pace.state, pace.breaker, pace.limit) == (LaneState.BROKEN, Breaker.OPEN, 0)
    now = 1.0
    for rest in (*RESTS_S, RESTS_S[-1]):
        pace.ended(TIMEOUT, 0.0, now, full=False)  # one from before: it tells nothing new
        pace.refresh(now + rest - 0.01)
        assert pace.limit == 0
        now += rest
        pace.refresh(now)
        assert (pace.state, pace.breaker, pace.limit) == (LaneState.BROKEN, Breaker.HALF_OPEN, 1)
        pace.ended(TIMEOUT, now, now + 15, full=True)
        now += 15


def test_the_first_answer_lets_it_ramp_up() -> None:
    pace = Pace(16, None, 0.0)
    for _ in range(BREAK_AFTER):
        pace.ended(RESET, 0.0, 1.0, full=True)
    pace.refresh(2.0)
    pace.ended(OK, 2.0, 2.1, full=True)
    assert (pace.state, pace.breaker, pace.limit) == (LaneState.RECOVERING, Breaker.CLOSED, 2)
    now = rounds(pace, 2.1, 2)
    assert (pace.state, pace.limit) == (LaneState.STEADY, 8)
    rounds(pace, now, 1)
    assert pace.limit == 16


def test_a_relapse_breaks_it_at_once() -> None:
    pace = Pace(16, None, 0.0)
    for _ in range(BREAK_AFTER):
        pace.ended(RESET, 0.0, 1.0, full=True)
    pace.refresh(2.0)
    pace.ended(OK, 2.0, 2.1, full=True)
    pace.ended(RESET, 2.1, 3.2, full=True)
    assert (pace.state, pace.limit) == (LaneState.BROKEN, 0)


def test_failures_that_come_at_once_ask_for_no_rest_only_for_one_request_at_a_time() -> None:
    pace = Pace(16, None, 0.0)
    now = rounds(pace, 0.0, 3)
    for _ in range(100):
        assert pace.limit > 0
        pace.ended(RESET, now, now + 0.01, full=True)
        now += 0.01
    assert (pace.state, pace.limit) == (LaneState.STEADY, 1)
    pace.ended(OK, now, now + 0.1, full=True)
    assert pace.limit == 16


@pytest.mark.parametrize("failure", [RESET, TIMEOUT])
def test_where_the_schedule_is_promised_an_endpoint_has_all_its_slots(failure: Outcome) -> None:
    pace = Pace(16, None, 0.0)
    now = 0.0
    for _ in range(20):
        pace.ended(replace(failure, promised=True), now, now + 15, full=True)
        now += 15
        assert (pace.state, pace.limit) == (LaneState.STEADY, 16)


@given(
    st.lists(
        st.tuples(st.sampled_from((OK, BUSY, REFUSED, TIMEOUT, RESET)), st.floats(0.0, 3.0), st.booleans()),
        max_size=60,
    )
)
def test_whatever_comes_its_states_change_only_as_the_tables_say(
    steps: list[tuple[Outcome, float, bool]],
) -> None:
    pace = Pace(4, None, 0.0)
    now = 0.0
    for result, seconds, before in steps:
        breaker = pace.breaker
        started_at = 0.0 if before else now
        now += seconds
        pace.ended(result, started_at, now, full=True)
        assert pace.breaker in {breaker, *BREAKER_TRANSITIONS[breaker]}
        breaker = pace.breaker
        pace.refresh(now)
        assert pace.breaker in {breaker, *BREAKER_TRANSITIONS[breaker]}
        assert (pace.state is LaneState.BROKEN) is (pace.breaker is not Breaker.CLOSED)


def test_answers_between_keep_it_whole() -> None:
    pace = Pace(16, None, 0.0)
    for _ in range(10):
        for _ in range(BREAK_AFTER - 1):
            pace.ended(RESET, 0.0, 1.0, full=False)
        pace.ended(REFUSED, 0.0, 1.0, full=False)
    assert pace.state is LaneState.STEADY


@given(
    rate=st.floats(0.2, 500),
    steps=st.lists(st.floats(0.0, 0.5), min_size=1, max_size=200),
)
def test_a_rate_is_never_exceeded_by_more_than_its_burst(rate: float, steps: list[float]) -> None:
    pace = Pace(10_000, rate, 0.0)
    now, sent = 0.0, 0
    for step in steps:
        now += step
        pace.refresh(now)
        while pace.limit > 0:
            pace.started(now)
            sent += 1
    assert sent <= now * rate + max(1.0, rate * 0.1) + 1e-6


def test_a_rate_is_reached() -> None:
    pace = Pace(100, 20.0, 0.0)
    sent = 0
    for tick in range(200):
        pace.refresh(tick * 0.05)
        while pace.limit > 0:
            pace.started(tick * 0.05)
            sent += 1
    assert 198 <= sent <= 202


def test_a_lower_ceiling_holds_at_once() -> None:
    pace = Pace(64, None, 0.0)
    now = rounds(pace, 0.0, 5)
    pace.configure(3, None, now)
    assert pace.limit == 3


def test_idle_time_earns_no_more_than_the_burst() -> None:
    pace = Pace(64, 10.0, 0.0)
    pace.started(100.0)
    assert pace.limit == 0

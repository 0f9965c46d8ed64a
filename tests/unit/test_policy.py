from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postrider.domain.model import DeliveryState, ErrorKind, Failure, Reply
from postrider.domain.policy import (
    DEFAULT_DELAYS,
    MAX_RETRY_AFTER,
    Outcome,
    RetryPolicy,
    judge,
    should_disable,
)

NOW = datetime(2026, 3, 15, 10, 30, tzinfo=UTC)
POLICY = RetryPolicy(delays=(0.0, 10.0, 60.0), jitter=0.0)
rands = st.floats(0, 1, exclude_max=True)


def reply(status: int, retry_after: str | None = None) -> Reply:
    return Reply(status, headers="", body="", retry_after=retry_after, connect_ms=None, duration_ms=1.0)


def wait(outcome: Outcome) -> float:
    assert outcome.state is DeliveryState.RETRYING
    assert outcome.due is not None
    return (outcome.due - NOW).total_seconds()


def wait_after(retry_after: str, status: int = 503) -> float:
    return wait(judge(reply(status, retry_after), 1, POLICY, NOW, 0.0))


@given(status=st.integers(200, 299), number=st.integers(1, 20))
def test_2xx_succeeds(status: int, number: int) -> None:
    outcome = judge(reply(status), number, POLICY, NOW, 0.0)
    assert outcome == Outcome(DeliveryState.SUCCEEDED, None, None, f"HTTP {status}", None, False)


@given(status=st.integers(300, 599).filter(lambda status: status != 410))
def test_other_answers_are_retried_until_the_last_attempt(status: int) -> None:
    assert wait(judge(reply(status), 1, POLICY, NOW, 0.0)) == 10.0
    assert wait(judge(reply(status), 2, POLICY, NOW, 0.0)) == 60.0
    last = judge(reply(status), 3, POLICY, NOW, 0.0)
    assert (last.state, last.due, last.error_kind) == (DeliveryState.FAILED, None, ErrorKind.HTTP)
    assert last.reason.startswith(f"HTTP {status}")


def test_attempt_beyond_the_schedule_that_fails_is_final() -> None:
    assert judge(reply(500), 4, POLICY, NOW, 0.0).state is DeliveryState.FAILED


def test_410_fails_at_once_and_disables() -> None:
    outcome = judge(reply(410), 1, POLICY, NOW, 0.0)
    assert outcome == Outcome(
        DeliveryState.FAILED, None, ErrorKind.HTTP, "HTTP 410", outcome.disable_reason, False
    )
    assert outcome.disable_reason == "HTTP 410: the receiver wants no more webhooks"


def test_redirect_says_that_it_is_not_followed() -> None:
    assert judge(reply(302), 1, POLICY, NOW, 0.0).reason == "HTTP 302: redirects are not followed"


@given(status=st.integers(100, 599), number=st.integers(1, 5))
def test_only_overload_throttles_and_only_410_disables(status: int, number: int) -> None:
    outcome = judge(reply(status), number, POLICY, NOW, 0.0)
    assert outcome.throttled == (status in (429, 502, 503, 504))
    assert (outcome.disable_reason is not None) == (status == 410)


@pytest.mark.parametrize("kind", [kind for kind in ErrorKind if kind is not ErrorKind.PAYLOAD])
def test_failure_without_answer_is_retried(kind: ErrorKind) -> None:
    outcome = judge(Failure(kind, "no response within 15 s", 15_000.0), 1, POLICY, NOW, 0.0)
    assert wait(outcome) == 10.0
    assert (outcome.error_kind, outcome.reason) == (kind, f"{kind.value}: no response within 15 s")
    assert outcome.disable_reason is None
    assert not outcome.throttled


def test_bad_payload_fails_at_once() -> None:
    outcome = judge(Failure(ErrorKind.PAYLOAD, "data is too large", 0.0), 1, POLICY, NOW, 0.0)
    assert (outcome.state, outcome.due, outcome.error_kind) == (DeliveryState.FAILED, None, ErrorKind.PAYLOAD)


@given(
    delays=st.lists(st.floats(0, 30 * 86_400), min_size=2, max_size=12),
    jitter=st.floats(0, 1),
    rand=rands,
    data=st.data(),
)
def test_next_attempt_is_never_early_and_jitter_is_bounded(
    delays: list[float], jitter: float, rand: float, data: st.DataObject
) -> None:
    number = data.draw(st.integers(1, len(delays) - 1))
    seconds = wait(judge(reply(500), number, RetryPolicy(tuple(delays), jitter), NOW, rand))
    microsecond = 1e-6
    assert delays[number] - microsecond <= seconds <= delays[number] * (1 + jitter) + microsecond


@given(rands, rands)
def test_due_grows_with_rand(one: float, other: float) -> None:
    low, high = sorted((one, other))
    policy = RetryPolicy()
    assert wait(judge(reply(500), 3, policy, NOW, low)) <= wait(judge(reply(500), 3, policy, NOW, high))


def test_default_schedule_makes_ten_attempts_in_three_days() -> None:
    waits = [wait(judge(reply(500), number, RetryPolicy(), NOW, 0.0)) for number in range(1, 10)]
    assert [0.0, *waits] == list(DEFAULT_DELAYS)
    assert timedelta(seconds=sum(waits)) == timedelta(hours=75, minutes=35, seconds=5)
    assert judge(reply(500), 10, RetryPolicy(), NOW, 0.0).state is DeliveryState.FAILED


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("120", 120.0),
        (" 120 ", 120.0),
        ("3", 10.0),
        ("0", 10.0),
        ("86401", MAX_RETRY_AFTER),
        ("9" * 5000, MAX_RETRY_AFTER),
        (format_datetime(NOW + timedelta(minutes=5), usegmt=True), 300.0),
        ("Sunday, 15-Mar-26 10:35:00 GMT", 300.0),
        ("Sun Mar 15 10:35:00 2026", 300.0),
        ("Sun, 15 Mar 2026 10:29:00 GMT", 10.0),
        ("Thu, 01 Jan 1950 00:00:00 GMT", 10.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER),
    ],
)
def test_retry_after_is_respected_within_bounds(status: int, retry_after: str, seconds: float) -> None:
    assert wait_after(retry_after, status) == seconds


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "-120",
        "120.5",
        "1e3",
        "١٢٠",
        "²",
        "soon",
        "nan",
        "inf",
        "Sun, 99 Mar 2026 99:99:99 GMT",
        "\0",
        "120, 60",
    ],
)
def test_garbage_retry_after_leaves_the_schedule(garbage: str) -> None:
    assert wait_after(garbage) == 10.0


@given(
    st.text()
    | st.from_regex(
        r"\A(Sun|Thu), \d{1,3} (Jan|Mar) -?\d{1,12} [\d:]{0,12} (GMT|[+-]\d{1,9}|EST|)\Z", fullmatch=True
    )
    | st.floats().map(str)
    | st.integers().map(str)
)
def test_any_retry_after_stays_within_bounds(retry_after: str) -> None:
    assert 10.0 <= wait_after(retry_after) <= MAX_RETRY_AFTER


def test_retry_after_counts_only_where_the_status_gives_it_meaning() -> None:
    assert wait_after("120", status=500) == 10.0


def test_longer_schedule_wins_over_retry_after() -> None:
    policy = RetryPolicy(delays=(0.0, 2 * MAX_RETRY_AFTER), jitter=0.0)
    assert wait(judge(reply(429, "60"), 1, policy, NOW, 0.0)) == 2 * MAX_RETRY_AFTER


def test_endpoint_is_disabled_after_failing_long_enough() -> None:
    days = 5 * 86_400.0
    assert not should_disable(None, NOW, days)
    assert not should_disable(NOW - timedelta(days=5) + timedelta(seconds=1), NOW, days)
    assert should_disable(NOW - timedelta(days=5), NOW, days)


@given(status=st.sampled_from([410, 429, 503]), retry_after=st.sampled_from([None, "7200", "soon"]))
def test_a_promised_schedule_knows_neither_410_nor_retry_after(status: int, retry_after: str | None) -> None:
    policy = RetryPolicy(delays=(0.0, 10.0), gone_disables=False, heeds_retry_after=False)
    outcome = judge(reply(status, retry_after), 1, policy, NOW, 0.0)
    assert wait(outcome) == 10.0
    assert (outcome.disable_reason, outcome.retry_after) == (None, 0.0)
    last = judge(reply(status, retry_after), 2, policy, NOW, 0.0)
    assert (last.state, last.disable_reason) == (DeliveryState.FAILED, None)


def test_no_patience_means_that_an_endpoint_is_never_disabled() -> None:
    assert not should_disable(NOW - timedelta(days=3650), NOW, None)

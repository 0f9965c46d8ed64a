"""What an attempt's result means: done, try again and when, or give up. Pure decisions."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import msgspec

from postrider.domain.model import AttemptResult, DeliveryState, ErrorKind, Failure, Reply

MAX_RETRY_AFTER = 86_400.0
"""Seconds that a receiver may put the next attempt off by `Retry-After`."""
DEFAULT_DELAYS = (0.0, 5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""The example schedule of Standard Webhooks 1.0: ten attempts within 75 h 35 min 5 s."""

_THROTTLING = frozenset({429, 502, 503, 504})
_SECONDS = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class RetryPolicy:
    """When a delivery is tried. The number of delays is the number of attempts."""

    delays: tuple[float, ...] = DEFAULT_DELAYS
    """Seconds before attempt 1, 2, …; each counts from the end of the attempt before it."""
    jitter: float = 0.0
    """Largest random part added to a delay, as a fraction of it, so that retries do not come in herds."""
    disable_when_exhausted: bool = False
    """Disable the endpoint when the last attempt fails."""
    gone_disables: bool = True
    """A 410 ends the delivery and disables the endpoint; else it is a failure as any other."""
    heeds_retry_after: bool = True
    """A `Retry-After` may put the next attempt off."""
    disable_after: float | None = None
    """Seconds of nothing but failures after which the endpoint is disabled; None lets it be."""
    promised: bool = False
    """The CRM's document gives the delays: an endpoint that does not answer is not left alone for longer."""


DEFAULT_JITTER = 0.1
ONE_ATTEMPT = RetryPolicy(delays=(0.0,))
"""For events that only try an endpoint."""


class Outcome(msgspec.Struct, frozen=True):
    """The verdict on one attempt."""

    state: DeliveryState
    """SUCCEEDED, RETRYING or FAILED."""
    due: datetime | None
    """When the next attempt may run; set when RETRYING, else None."""
    error_kind: ErrorKind | None
    reason: str
    """A short sentence such as `HTTP 500` or `timeout: no response within 15 s`."""
    disable_reason: str | None
    """Why the endpoint is to be disabled; None lets it be."""
    throttled: bool
    """The receiver is overloaded: slow its lane down."""
    retry_after: float = 0.0
    """Seconds that the receiver asked to be left alone for, at most 24 hours."""
    promised: bool = False
    """As the policy says."""


def judge(result: AttemptResult, number: int, policy: RetryPolicy, now: datetime, rand: float) -> Outcome:
    """Decide what becomes of a delivery after its attempt `number`, counted from 1.

    The next attempt is never due before the schedule's delay has passed since `now`; `rand`, from [0, 1),
    chooses the jitter added to it. 2xx succeeds; 410 and a bad payload fail at once; 429 and 503 may ask
    for a later attempt by `Retry-After`, at most 24 hours; all else is retried while attempts are left.
    410 disables the endpoint, and so does the last failure where the policy says so. Where it says that
    neither 410 nor `Retry-After` counts, these change nothing of the schedule.
    """
    retry_after = 0.0
    disable_reason = None
    throttled = False
    match result:
        case Reply(status=status):
            reason = f"HTTP {status}"
            if 200 <= status < 300:
                return Outcome(DeliveryState.SUCCEEDED, None, None, reason, None, throttled=False)
            if 300 <= status < 400:
                reason += ": redirects are not followed"
            kind = ErrorKind.HTTP
            if status == 410 and policy.gone_disables:
                disable_reason = "HTTP 410: the receiver wants no more webhooks"
            throttled = status in _THROTTLING
            if policy.heeds_retry_after and status in (429, 503) and result.retry_after is not None:
                retry_after = _retry_after_seconds(result.retry_after, now)
        case Failure(kind=kind):
            reason = f"{kind}: {result.reason}"
    state, due = DeliveryState.FAILED, None
    if disable_reason is None and kind is not ErrorKind.PAYLOAD:
        if number < len(policy.delays):
            delay = max(policy.delays[number] * (1 + policy.jitter * rand), retry_after)
            state, due = DeliveryState.RETRYING, now + timedelta(seconds=delay)
        elif policy.disable_when_exhausted:
            disable_reason = f"a delivery failed {number} times, the last time with {reason}"
    return Outcome(state, due, kind, reason, disable_reason, throttled, retry_after, policy.promised)


class AttemptNote(msgspec.Struct, frozen=True):
    """What the last attempts for an endpoint say of it."""

    workspace_id: str
    """The endpoint's."""
    succeeded_at: datetime | None
    """When the last one succeeded; None where none did."""
    failing_since: datetime | None
    """When the first one since then failed; None where none did."""


def should_disable(failing_since: datetime | None, now: datetime, disable_after: float | None) -> bool:
    """Whether an endpoint that only fails since `failing_since` has done so for `disable_after` seconds."""
    if failing_since is None or disable_after is None:
        return False
    return (now - failing_since).total_seconds() >= disable_after


def _retry_after_seconds(header: str, now: datetime) -> float:
    """Seconds that a `Retry-After`, itself seconds or an HTTP date (RFC 9110, 10.2.3), asks for; else 0."""
    header = header.strip()[:64]
    if _SECONDS.fullmatch(header):
        return min(float(header), MAX_RETRY_AFTER)
    try:
        date = parsedate_to_datetime(header)
        # An HTTP date is in UTC; the parser leaves the zone off for `-0000`.
        wait = (date if date.tzinfo else date.replace(tzinfo=UTC)) - now
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    return min(max(wait.total_seconds(), 0.0), MAX_RETRY_AFTER)

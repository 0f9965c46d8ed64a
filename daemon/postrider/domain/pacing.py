"""How fast one endpoint is served: concurrency that adapts, a breaker, a rate limit. Pure decisions.

Concurrency follows AIMD, as TCP's congestion window does (RFC 5681): it doubles until the first sign of
trouble, then grows by one per round of answers; a sign of trouble (429, 502, 503, 504, a timeout, latency
far above the usual) halves it, once per round. An endpoint that never answered gets one request at a time.
One that keeps requests waiting, and does not answer, for `BREAK_AFTER` attempts opens its breaker: it
rests, and then (half-open) one delivery at a time probes it until it answers. Failures that come at once,
such as refused connections, cost little: they ask for no rest, only for one request at a time. Where the
schedule of attempts is promised, nothing of this delays them: such an endpoint has all of its slots. A rate
limit is a token bucket.

All times are seconds of one monotonic clock.
"""

from enum import StrEnum

from postrider.domain.model import ErrorKind
from postrider.domain.policy import Outcome

START_WINDOW = 4
BREAK_AFTER = 5
"""Attempts in a row without an answer, each of which took its time."""
AT_ONCE_S = 0.5
"""A failure within this time came at once."""
RESTS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Before each probe of an endpoint that does not answer; the last one repeats."""
MAX_PAUSE_S = 300.0
"""Longest time that a `Retry-After` keeps all deliveries of an endpoint waiting."""
CALM_S = 10.0
"""So long without a sign of trouble, and an endpoint no longer counts as throttled."""
USUAL_LATENCY_S = 0.25
"""Latency below this is never a sign of trouble."""
RISING = 3.0
"""Latency of so many times the usual is one."""
BURST_S = 0.1
"""A rate limit lets so many seconds' worth of requests through at once."""

_NO_ANSWER = frozenset(
    {ErrorKind.DNS, ErrorKind.CONNECT, ErrorKind.TLS, ErrorKind.TIMEOUT, ErrorKind.PROTOCOL}
)


class Breaker(StrEnum):
    """Whether an endpoint that does not answer is let alone."""

    CLOSED = "closed"  # no: it answers, or was not found out yet
    OPEN = "open"  # it rests: no request
    HALF_OPEN = "half-open"  # one delivery at a time probes it


class LaneState(StrEnum):
    """How an endpoint keeps up with its deliveries; what stands first goes before the others.

    The first four come from its pace, and change as `PACE_TRANSITIONS` says; the others are looked up.
    """

    STEADY = "steady"
    BROKEN = "broken"  # it does not answer: its breaker is open, or half-open
    RECOVERING = "recovering"  # it answers again: requests ramp up
    THROTTLED = "throttled"  # it asked for less, or became slow: fewer requests at a time
    SLOW = "slow"  # it takes long to answer
    LIMITED = "limited"  # by its own rate
    BEHIND = "behind"  # older deliveries than those to come wait in the database


TROUBLES = tuple(state for state in LaneState if state is not LaneState.STEADY)

PACE_TRANSITIONS = {
    LaneState.STEADY: {LaneState.THROTTLED, LaneState.BROKEN},
    LaneState.THROTTLED: {LaneState.STEADY, LaneState.BROKEN},
    LaneState.BROKEN: {LaneState.RECOVERING},
    LaneState.RECOVERING: {LaneState.STEADY, LaneState.BROKEN},
}
BREAKER_TRANSITIONS = {
    Breaker.CLOSED: {Breaker.OPEN},
    Breaker.OPEN: {Breaker.HALF_OPEN, Breaker.CLOSED},  # a request that was under way before may be answered
    Breaker.HALF_OPEN: {Breaker.OPEN, Breaker.CLOSED},
}


class Pace:
    """Of one endpoint. `limit` is how many requests it may have under way just now."""

    __slots__ = (
        "_burst", "_failures", "_filled_at", "_growing", "_probes", "_promised", "_rate", "_shrunk_at",
        "_tokens", "_troubled_at", "_usual", "answered", "breaker", "ceiling", "latency", "limit", "reason",
        "resume_at", "state", "window",
    )  # fmt: skip

    def __init__(self, ceiling: int, rate: float | None, now: float) -> None:
        """`ceiling` bounds the requests at a time, `rate` those per second."""
        self.window = float(min(START_WINDOW, ceiling))
        self.answered = False
        """Whether it did, and was not away the last times."""
        self.latency = 0.0
        """Of the latest answers, averaged; 0 while there was none."""
        self.state = LaneState.STEADY
        self.breaker = Breaker.CLOSED
        """Open or half-open while the state is BROKEN."""
        self.resume_at = 0.0
        """No request before."""
        self.reason = ""
        """What led to the state."""
        self._usual = 0.0
        self._growing = True
        self._promised = False
        """Its schedule is, as far as is known."""
        self._failures = 0
        self._probes = 0
        self._shrunk_at = self._troubled_at = float("-inf")
        self._rate: float | None = None
        self._tokens = self._filled_at = self._burst = 0.0
        self.configure(ceiling, rate, now)

    def __repr__(self) -> str:
        return f"<Pace {self.state} limit={self.limit} window={self.window:.1f}/{self.ceiling}>"

    @property
    def rate(self) -> float | None:
        return self._rate

    def resting(self, now: float) -> bool:
        return now < self.resume_at

    def configure(self, ceiling: int, rate: float | None, now: float) -> None:
        self.ceiling = ceiling
        self.window = min(self.window, float(ceiling))
        if rate != self._rate:
            self._rate = rate
            self._burst = self._tokens = max(1.0, (rate or 0.0) * BURST_S)
            self._filled_at = now
        self.refresh(now)

    def started(self, now: float) -> None:
        """A request went out."""
        if self._rate is not None:
            self.refresh(now)  # first, or the time before would count beyond the burst
            self._tokens -= 1.0
            self.refresh(now)

    def ended(self, outcome: Outcome, started_at: float, now: float, *, full: bool) -> None:
        """A request came to an end; `full` tells that the limit was used up."""
        kind = outcome.error_kind
        self._promised = outcome.promised
        if kind is None:
            self._answered(now)
            self._learn_latency(started_at, now)
            if full and self.window < self.ceiling:
                self.window = min(self.ceiling, self.window + (1.0 if self._growing else 1.0 / self.window))
        elif outcome.throttled:
            self._answered(now)
            if outcome.retry_after > 0:
                self.resume_at = max(self.resume_at, now + min(outcome.retry_after, MAX_PAUSE_S))
            self._learn_latency(started_at, now)
            self._shrink(outcome.reason, started_at, now)
        elif kind is ErrorKind.HTTP:
            self._answered(now)
            self._learn_latency(started_at, now)
        elif kind in _NO_ANSWER:
            self._unanswered(outcome, started_at, now)
        self.refresh(now)

    def refresh(self, now: float) -> None:
        """Bring `limit` up to date; to be called from time to time where it is below the window."""
        if self.state is LaneState.THROTTLED and now - self._troubled_at > CALM_S:
            self._become(LaneState.STEADY)
        if self.breaker is Breaker.OPEN and now >= self.resume_at:
            self.breaker = Breaker.HALF_OPEN
        if self._rate is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
            self._filled_at = now
        if now < self.resume_at or (self._rate is not None and self._tokens < 1.0):
            self.limit = 0
        elif self.answered and self.breaker is Breaker.CLOSED:
            self.limit = int(self.window)
        else:
            self.limit = self.ceiling if self._promised else 1

    def _answered(self, now: float) -> None:
        self.answered = True
        self._failures = 0
        if self.breaker is not Breaker.CLOSED:
            self._become(LaneState.RECOVERING)
            self.window, self._growing, self._probes = 1.0, True, 0
            self.resume_at = now
        elif self.state is LaneState.RECOVERING and self.window >= min(START_WINDOW, self.ceiling):
            self._become(LaneState.STEADY)

    def _unanswered(self, outcome: Outcome, started_at: float, now: float) -> None:
        if outcome.promised:
            return
        if outcome.error_kind is not ErrorKind.TIMEOUT and now - started_at <= AT_ONCE_S:
            self._failures += 1
            if self._failures >= BREAK_AFTER:
                self.answered = False
            return
        if self.breaker is not Breaker.CLOSED:
            if started_at >= self.resume_at:  # the probe, not one that was under way before
                self._rest(now)
            return
        self._failures += 1
        if self._failures >= BREAK_AFTER or self.state is LaneState.RECOVERING:
            self._become(LaneState.BROKEN)
            self.reason = outcome.reason
            self.window = 1.0
            self._rest(now)
        elif outcome.error_kind is ErrorKind.TIMEOUT:
            self._shrink(outcome.reason, started_at, now)

    def _become(self, state: LaneState) -> None:
        assert state in PACE_TRANSITIONS[self.state]
        self.state = state
        self.breaker = Breaker.OPEN if state is LaneState.BROKEN else Breaker.CLOSED

    def _rest(self, now: float) -> None:
        self.breaker = Breaker.OPEN
        self.resume_at = now + RESTS_S[min(self._probes, len(RESTS_S) - 1)]
        self._probes += 1

    def _learn_latency(self, started_at: float, now: float) -> None:
        latency = now - started_at
        self.latency += (latency - self.latency) * (0.2 if self.latency else 1.0)
        # Falls at once and rises by and by: a receiver that became slower for good is taken as it is.
        self._usual = latency if latency < self._usual or not self._usual else self._usual * 1.02
        if self.latency > USUAL_LATENCY_S and self.latency > RISING * self._usual:
            reason = f"its latency rose from {self._usual:.2f} s to {self.latency:.2f} s"
            # Fewer requests need not make it faster, so not too few.
            self._shrink(reason, started_at, now, least=max(1.0, self.ceiling / 4))

    def _shrink(self, reason: str, started_at: float, now: float, *, least: float = 1.0) -> None:
        self._troubled_at = now
        self._growing = False
        if self.state is LaneState.STEADY:
            self._become(LaneState.THROTTLED)
        self.reason = reason
        # Requests of the same round tell nothing new.
        if started_at >= self._shrunk_at:
            self.window = min(self.window, max(least, self.window / 2))
            self._shrunk_at = now

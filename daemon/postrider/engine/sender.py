"""One delivery's attempt: render (dialect) → sign → POST → judge; the result goes to the recorder.

A fixed number of workers take jobs from the lanes, so an attempt costs no task of its own.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from postrider.domain.dialects import Dialect, render, request_headers
from postrider.domain.envelope import PayloadError
from postrider.domain.errors import HostExhausted
from postrider.domain.model import (
    Attempt,
    AttemptResult,
    DeliveryState,
    Endpoint,
    ErrorKind,
    Event,
    Failure,
    Reply,
    delivery_public_id,
    emitted_at_s,
    endpoint_public_id,
)
from postrider.domain.policy import ONE_ATTEMPT, Outcome, judge
from postrider.edges.clock import Clock
from postrider.edges.metrics import Metrics
from postrider.edges.network import WebhookClient
from postrider.edges.randomness import random_share
from postrider.engine.dialect_rules import DialectRules
from postrider.engine.lane_keeper import LaneKeeper
from postrider.engine.lanes import Lanes
from postrider.engine.ledger import HeldEvent, Job, Ledger
from postrider.engine.recorder import Recorder

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SenderTuning:
    full_poll_s: float = 0.05
    """Between two looks whether there is memory for more answers."""
    exhausted_pause_s: float = 0.25
    """A slot stays taken for so long after the host had no descriptor or port,"""
    exhausted_delay_s: float = 2.0
    """the delivery is put off by so much,"""
    alarm_s: float = 10.0
    """and it is logged no more often."""


@dataclass(frozen=True, slots=True)
class SendSettings:
    """What a reload of the configuration may exchange."""

    client: WebhookClient
    dialects: Mapping[str, Dialect]
    user_agent: str
    https_only: bool
    """Demand HTTPS of every endpoint; False lifts a dialect's own rule too."""


async def send(
    settings: SendSettings,
    dialect: Dialect,
    endpoint: Endpoint,
    event: Event,
    *,
    body: bytes,
    now: datetime,
) -> AttemptResult:
    """Sign and POST: one request of `event` for `endpoint`, made at `now`."""
    headers = request_headers(
        dialect,
        event,
        endpoint.secrets,
        timestamp=int(now.timestamp()),
        body=body,
        user_agent=settings.user_agent,
        extra=endpoint.headers,
    )
    return await settings.client.post(
        endpoint.url,
        headers,
        body,
        endpoint_id=endpoint.id,
        https_only=settings.https_only,
        timeout=dialect.timeout,
        connect_timeout=dialect.connect_timeout,
    )


class Sender:
    def __init__(
        self,
        tuning: SenderTuning,
        *,
        settings: SendSettings,
        rules: DialectRules,
        lanes: Lanes,
        keeper: LaneKeeper,
        ledger: Ledger,
        recorder: Recorder,
        clock: Clock,
        signing_clock: Clock,
        metrics: Metrics,
    ) -> None:
        """`signing_clock` is this host's own, since receivers compare signatures with theirs."""
        self._tuning = tuning
        self.settings = settings
        self._rules = rules
        self._lanes = lanes
        self._keeper = keeper
        self._ledger = ledger
        self._recorder = recorder
        self._clock = clock
        self._signing_clock = signing_clock
        self._metrics = metrics
        self._alarm_at = 0.0

    def __repr__(self) -> str:
        return f"<Sender {self._lanes.running} under way>"

    async def run(self, workers: int) -> None:
        """Send until the lanes are closed and what is under way is done."""
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._work())

    async def _work(self) -> None:
        while (job := await self._keeper.take()) is not None:
            try:
                await self._send(job)
            except Exception as error:
                # A defect of ours. One worker's trouble may not end the others.
                log.exception("sender.crashed", reason=str(error))
            del job  # a worker that waits keeps nothing of its last one alive

    async def _send(self, job: Job) -> None:
        outcome = None
        try:
            while self._recorder.full:
                await self._clock.sleep(self._tuning.full_poll_s)
            outcome = await self.run_once(job)
        except BaseException:
            # Else it would be held for ever, and never sent. A worker is cut off only after the grace.
            self._keeper.put_back(job)
            raise
        finally:
            self._keeper.done(job, outcome)

    async def run_once(self, job: Job) -> Outcome | None:
        """Make one attempt of a delivery and hand its result on; None if it is no longer ours."""
        if job.lost:
            return None
        endpoint = self._lanes.endpoint(job.endpoint_id)
        if endpoint is None:
            self._recorder.put(job, DeliveryState.CANCELLED, reason="the endpoint was deleted")
            return None
        started_at = self._clock.now()
        try:
            result = await self._attempt(job.held, endpoint, self._signing_clock.now())
        except HostExhausted as error:
            await self._postpone(job, error)
            return None
        except Exception as error:
            # A defect of ours or of a library fails this delivery, not the daemon.
            delivery = delivery_public_id(*job.key)
            log.exception("delivery.crashed", delivery=delivery)
            result = Failure(ErrorKind.PROTOCOL, f"internal error: {type(error).__name__}", duration_ms=0.0)
        number = job.attempts + 1
        now = self._clock.now()
        test = job.held.event.test
        policy = ONE_ATTEMPT if test else self._rules.retry_policy(endpoint.dialect)
        outcome = judge(result, number - job.attempt_base, policy, now, random_share())
        self._measure(job, result, outcome.error_kind, now)
        self._recorder.put(
            job,
            outcome.state,
            due=outcome.due,
            reason=None if outcome.state is DeliveryState.SUCCEEDED else outcome.reason,
            attempt=Attempt(number, started_at, result),
            outcome=outcome,
        )
        return outcome

    async def _postpone(self, job: Job, error: HostExhausted) -> None:
        """Put a delivery off that this host could not send, which is no attempt of it, and raise an alarm."""
        self._metrics.host_exhausted.inc()
        now = self._clock.monotonic()
        if now >= self._alarm_at:
            self._alarm_at = now + self._tuning.alarm_s
            log.error("host.exhausted", reason=error.message, hint=error.hint)
        # The slot stays taken for a moment: there is no hurry to find out again.
        await self._clock.sleep(self._tuning.exhausted_pause_s)
        due = self._clock.now() + timedelta(seconds=self._tuning.exhausted_delay_s)
        self._recorder.put(job, DeliveryState.RETRYING, due=due, reason=error.message)

    async def _attempt(self, held: HeldEvent, endpoint: Endpoint, now: datetime) -> AttemptResult:
        settings = self.settings
        dialect = settings.dialects.get(endpoint.dialect)
        if dialect is None:
            return Failure(
                ErrorKind.PROTOCOL, f"the dialect {endpoint.dialect!r} of the endpoint is not configured", 0.0
            )
        if not endpoint.secrets:
            return Failure(
                ErrorKind.PROTOCOL, f"endpoint {endpoint_public_id(endpoint.id)} has no signing secret", 0.0
            )
        try:
            body = self._body(held, dialect)
        except PayloadError as error:
            return Failure(ErrorKind.PAYLOAD, error.message, 0.0)
        return await send(settings, dialect, endpoint, held.event, body=body, now=now)

    def _body(self, held: HeldEvent, dialect: Dialect) -> bytes:
        body = held.bodies.get(dialect.name)
        if body is None:
            body = render(dialect, held.event)
            self._ledger.keep_body(held, dialect.name, body)
        return body

    def _measure(self, job: Job, result: AttemptResult, kind: ErrorKind | None, now: datetime) -> None:
        self._metrics.attempts.counts[kind.value if kind else "ok"] += 1
        self._metrics.attempt_seconds.observe(result.duration_ms / 1000)
        if job.source is not None and isinstance(result, Reply) and kind is None:
            lag = now.timestamp() - emitted_at_s(job.held.event.id)
            self._metrics.lag_seconds.observe(max(0.0, lag))

"""Which endpoints only fail, and since when; disables those that have failed for too long, said 410, or
exhausted a schedule, each where their dialect disables them for it.

Woken when an endpoint starts failing, recovers or wants no more; it looks at the database once a minute.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from postrider.domain.model import DeliveryState, endpoint_public_id
from postrider.domain.policy import AttemptNote, Outcome, RetryPolicy, should_disable
from postrider.edges.clock import Clock
from postrider.engine.ledger import Job
from postrider.engine.recorded import Recorded
from postrider.store.endpoints import Endpoints, Failing

POLL_S = 60.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class HealthCounts:
    failing: int
    recovered: int
    disabled: int


class Health:
    def __init__(
        self, *, endpoints: Endpoints, policy_of: Callable[[str], RetryPolicy], clock: Clock
    ) -> None:
        """`policy_of` the name of a dialect tells how long an endpoint may fail."""
        self._policy_of = policy_of
        self._endpoints = endpoints
        self._clock = clock
        self._wake = asyncio.Event()
        self._failing: dict[int, Failing] = {}
        """What the database said when it was asked last."""
        self._notes: dict[int, AttemptNote] = {}
        """Attempts since the database was asked before, and those it was not told of."""
        self._gone: dict[int, str] = {}

    def __repr__(self) -> str:
        return f"<Health failing={len(self._failing)}>"

    def put(self, recorded: Recorded) -> None:
        """Take in the outcomes of attempts that were recorded."""
        for entry in recorded.attempts:
            if entry.outcome is not None:
                self.note(entry.job, entry.outcome, recorded.at)

    def note(self, job: Job, outcome: Outcome, now: datetime) -> None:
        """Take in the outcome of an attempt that was recorded by `now`."""
        if job.held.event.test:
            return
        endpoint_id = job.endpoint_id
        note = self._notes.get(endpoint_id)
        if outcome.state is DeliveryState.SUCCEEDED:
            # Kept also of one that is not known to fail: another daemon may have seen it fail before.
            self._notes[endpoint_id] = AttemptNote(succeeded_at=now, failing_since=None)
            changed = endpoint_id in self._failing or (note is not None and note.failing_since is not None)
        else:
            succeeded_at = note.succeeded_at if note is not None else None
            changed = note is None or note.failing_since is None
            if changed:
                self._notes[endpoint_id] = AttemptNote(succeeded_at, failing_since=now)
                changed = succeeded_at is not None or endpoint_id not in self._failing
            if outcome.disable_reason is not None:
                self._gone[endpoint_id] = outcome.disable_reason
                changed = True
        if changed:
            self._wake.set()

    async def run(self) -> None:
        while True:
            self._wake.clear()
            await self.run_once()
            await self._clock.wait(self._wake, POLL_S)

    async def run_once(self) -> HealthCounts:
        """Note what the attempts say, take over what other daemons noted, and disable what is due."""
        notes, gone = dict(self._notes), dict(self._gone)
        failing = await self._endpoints.failing()
        told = {each: note for each, note in notes.items() if _changes(note, failing.get(each))}
        if told:
            await self._endpoints.note_attempts(told)
            failing = await self._endpoints.failing()
        for endpoint_id, note in notes.items():
            if self._notes.get(endpoint_id) is note:
                del self._notes[endpoint_id]
        recovered = sum(each in self._failing and each not in failing for each in told)
        new = sum(each in failing and failing[each] != self._failing.get(each) for each in told)
        self._failing = failing
        now = self._clock.now()
        disabled = 0
        for endpoint_id, reason in gone.items():
            disabled += await self._disable(endpoint_id, reason, now)
            self._gone.pop(endpoint_id, None)
        for endpoint_id, (since, dialect) in failing.items():
            newer = self._notes.get(endpoint_id)
            succeeded = newer is not None and newer.succeeded_at is not None
            patience_s = self._policy_of(dialect).disable_after
            if endpoint_id not in gone and not succeeded and should_disable(since, now, patience_s):
                days = (now - since).total_seconds() / 86_400
                reason = f"every attempt failed for {days:.1f} days"
                disabled += await self._disable(endpoint_id, reason, now, since)
        return HealthCounts(new, recovered, disabled)

    async def _disable(
        self, endpoint_id: int, reason: str, now: datetime, failing_since: datetime | None = None
    ) -> bool:
        if not await self._endpoints.disable(endpoint_id, reason, now, failing_since=failing_since):
            return False
        log.warning("endpoint.disabled", endpoint=endpoint_public_id(endpoint_id), reason=reason)
        return True


def _changes(note: AttemptNote, failing: Failing | None) -> bool:
    """Whether a note says something else than what the database knows."""
    if failing is None:
        return note.failing_since is not None
    return note.succeeded_at is not None and note.succeeded_at >= failing.since

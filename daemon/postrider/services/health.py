"""Which endpoints only fail, and since when; disables those that have failed for too long, said 410, or
exhausted a schedule where their dialect disables them for it.

Woken when an endpoint starts failing, recovers or wants no more; it looks at the database once a minute.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime

import structlog

from postrider.domain.model import DeliveryState, endpoint_public_id
from postrider.domain.policy import Outcome, should_disable
from postrider.edges.clock import Clock
from postrider.services.ledger import Job
from postrider.store.endpoints import Endpoints

POLL_S = 60.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class HealthCounts:
    failing: int
    recovered: int
    disabled: int


class Health:
    def __init__(self, *, endpoints: Endpoints, disable_after: float, clock: Clock) -> None:
        self.disable_after = disable_after
        """Seconds of nothing but failures."""
        self._endpoints = endpoints
        self._clock = clock
        self._wake = asyncio.Event()
        self._failing: dict[int, datetime] = {}
        self._new: dict[int, datetime] = {}
        self._recovered: set[int] = set()
        self._gone: dict[int, str] = {}

    def __repr__(self) -> str:
        return f"<Health failing={len(self._failing)}>"

    def note(self, job: Job, outcome: Outcome) -> None:
        """Take in the outcome of an attempt that was recorded."""
        if job.held.event.test:
            return
        endpoint_id = job.endpoint_id
        if outcome.state is DeliveryState.SUCCEEDED:
            if endpoint_id in self._failing:
                del self._failing[endpoint_id]
                self._new.pop(endpoint_id, None)
                self._recovered.add(endpoint_id)
                self._wake.set()
            return
        if endpoint_id not in self._failing:
            self._failing[endpoint_id] = self._new[endpoint_id] = self._clock.now()
            self._recovered.discard(endpoint_id)
            self._wake.set()
        if outcome.disable_reason is not None:
            self._gone[endpoint_id] = outcome.disable_reason
            self._wake.set()

    async def run(self) -> None:
        while True:
            self._wake.clear()
            await self.run_once()
            await self._clock.wait(self._wake, POLL_S)

    async def run_once(self) -> HealthCounts:
        """Write what changed, take over what other daemons wrote, and disable what is due."""
        recovered, new, gone = set(self._recovered), dict(self._new), dict(self._gone)
        if recovered:
            await self._endpoints.mark_recovered(recovered)
        if new:
            await self._endpoints.mark_failing(new)
        now = self._clock.now()
        known = await self._endpoints.failing()
        for endpoint_id, since in known.items():
            if should_disable(since, now, self.disable_after):
                days = (now - since).total_seconds() / 86_400
                gone.setdefault(endpoint_id, f"every attempt failed for {days:.1f} days")
        disabled = 0
        for endpoint_id, reason in gone.items():
            if await self._endpoints.disable(endpoint_id, reason, now):
                disabled += 1
                log.warning("endpoint.disabled", endpoint=endpoint_public_id(endpoint_id), reason=reason)
            self._gone.pop(endpoint_id, None)
        self._recovered -= recovered
        for endpoint_id in new:
            self._new.pop(endpoint_id, None)
        self._failing = {**known, **self._new}
        for endpoint_id in self._recovered:
            self._failing.pop(endpoint_id, None)
        return HealthCounts(len(new), len(recovered), disabled)

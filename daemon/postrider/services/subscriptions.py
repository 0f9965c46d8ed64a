"""Who wants what, in memory: a snapshot of the endpoints that dispatcher and lanes work with.

Woken by the listener when an endpoint changed; it compares the revision once a second besides.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from postrider.domain.dialects import Dialect
from postrider.domain.matching import Matcher
from postrider.domain.model import DeliveryState, Endpoint
from postrider.domain.policy import DEFAULT_DELAYS, DEFAULT_JITTER, RetryPolicy
from postrider.edges.clock import Clock
from postrider.services.lanes import Lanes
from postrider.services.recorder import Recorder
from postrider.store.endpoints import Endpoints

POLL_S = 1.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class RetrySettings:
    schedule: tuple[float, ...] | None
    """Seconds before each attempt; None takes the dialect's."""
    jitter: float | None
    """Likewise."""


class Subscriptions:
    def __init__(
        self,
        *,
        endpoints: Endpoints,
        lanes: Lanes,
        recorder: Recorder,
        dialects: Mapping[str, Dialect],
        retry: RetrySettings,
        clock: Clock,
    ) -> None:
        self._endpoints = endpoints
        self._lanes = lanes
        self._recorder = recorder
        self._clock = clock
        self._wake = asyncio.Event()
        self._loading = asyncio.Lock()
        self._matcher = Matcher(())
        self._revision = -1
        self._known: set[int] = set()
        self.configure(dialects, retry)

    def __repr__(self) -> str:
        return f"<Subscriptions revision={self._revision}>"

    def configure(self, dialects: Mapping[str, Dialect], retry: RetrySettings) -> None:
        self._policies = {
            name: RetryPolicy(
                retry.schedule or dialect.retry_delays,
                _first_given(retry.jitter, dialect.retry_jitter, DEFAULT_JITTER),
                dialect.disable_when_exhausted,
            )
            for name, dialect in dialects.items()
        }
        self._default_policy = RetryPolicy(
            retry.schedule or DEFAULT_DELAYS, _first_given(retry.jitter, DEFAULT_JITTER)
        )

    def retry_policy(self, endpoint: Endpoint) -> RetryPolicy:
        return self._policies.get(endpoint.dialect, self._default_policy)

    def match(self, workspace_id: str, event_type: str) -> tuple[Endpoint, ...]:
        return self._matcher.match(workspace_id, event_type)

    def wake(self) -> None:
        self._wake.set()

    async def reach(self, revision: int) -> None:
        """Take over what is newer than ours, so that an event finds the endpoints committed before it."""
        if revision > self._revision:
            async with self._loading:
                if revision > self._revision:
                    await self._take_over()

    async def run(self) -> None:
        while True:
            await self._clock.wait(self._wake, POLL_S)
            self._wake.clear()
            await self.run_once()

    async def run_once(self) -> int:
        """Take over a new revision if there is one; return the number of the revision."""
        async with self._loading:
            if await self._endpoints.revision() != self._revision:
                await self._take_over()
        return self._revision

    async def _take_over(self) -> None:
        revision, endpoints = await self._endpoints.snapshot()
        self._matcher = Matcher(endpoints)
        known = {endpoint.id for endpoint in endpoints}
        for job in self._lanes.update(endpoints, self._known - known):
            state = DeliveryState.WAITING if job.endpoint_id in known else DeliveryState.CANCELLED
            self._recorder.put(
                job, state, reason="the endpoint was deleted" if job.endpoint_id not in known else None
            )
        self._known = known
        self._revision = revision
        log.info("subscriptions.loaded", endpoints=len(endpoints), revision=revision)


def _first_given(*values: float | None) -> float:
    return next(value for value in values if value is not None)

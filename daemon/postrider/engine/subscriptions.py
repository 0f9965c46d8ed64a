"""Who wants what, in memory: the endpoints that dispatcher and lanes work with, kept by what changed.

Woken by the listener when an endpoint changed; it compares the version once a second besides, and so does
the dispatcher at each claim. A version stands for what the tables held at one moment, so memory is right
while its version is theirs; a crash or a failover that undoes changes leaves a version that nothing leads
to from ours, and all is read anew.
"""

import asyncio
import gc
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from uuid import UUID

import structlog

from postrider.domain.dialects import Dialect
from postrider.domain.matching import Matcher
from postrider.domain.model import DeliveryState, Endpoint, EndpointState, endpoint_public_id
from postrider.domain.policy import RetryPolicy
from postrider.domain.promises import RetrySettings, retry_policy
from postrider.domain.status import MAX_REPORTED, LaneReport
from postrider.edges.clock import Clock
from postrider.engine.lanes import Lanes
from postrider.engine.recorder import Recorder
from postrider.engine.signals import Signal
from postrider.store.endpoint_changes import PAGE, Endpoints, Version

POLL_S = 1.0

log = structlog.get_logger()


class Subscriptions:
    def __init__(
        self,
        *,
        endpoints: Endpoints,
        lanes: Lanes,
        recorder: Recorder,
        dialects: Mapping[str, Dialect],
        retry: RetrySettings,
        wake: Signal,
        clock: Clock,
    ) -> None:
        self._endpoints = endpoints
        self._lanes = lanes
        self._recorder = recorder
        self._clock = clock
        self._wake = wake
        self._loading = asyncio.Lock()
        self._matcher = Matcher()
        self.unusable: dict[int, str] = {}
        """Endpoints that nothing can be sent to, and why."""
        self._version: Version | None = None
        """What memory holds; None where it holds a part of one."""
        self._stale = True
        """Read all anew, since how endpoints are read has changed."""
        self._unsealed = False
        self.configure(dialects, retry)

    def __repr__(self) -> str:
        return f"<Subscriptions endpoints={len(self._matcher)} version={self._version}>"

    def configure(self, dialects: Mapping[str, Dialect], retry: RetrySettings) -> None:
        """Take over a new configuration, and read all endpoints anew by it."""
        self._dialects = frozenset(dialects)
        self._stale = True
        self._wake.set()
        self._policies = {name: retry_policy(dialect, retry) for name, dialect in dialects.items()}
        self._default_policy = retry_policy(None, retry)

    def retry_policy(self, endpoint: Endpoint) -> RetryPolicy:
        return self._policies.get(endpoint.dialect, self._default_policy)

    def policy_of(self, dialect: str) -> RetryPolicy:
        return self._policies.get(dialect, self._default_policy)

    def match(self, workspace_id: str, event_type: str) -> tuple[Endpoint, ...]:
        return self._matcher.match(workspace_id, event_type)

    def unusable_lanes(self) -> list[LaneReport]:
        """Those endpoints, at most `MAX_REPORTED`, as lanes in trouble."""
        return [
            LaneReport(
                endpoint_id=endpoint_id,
                state="unusable",
                concurrency=0,
                running=0,
                queued=0,
                latency_ms=None,
                waiting=False,
                reason=reason,
            )
            for endpoint_id, reason in islice(self.unusable.items(), MAX_REPORTED)
        ]

    async def reach(self, version: UUID) -> None:
        """Take over what is newer than ours, so that an event finds the endpoints committed before it.

        `version` is that of the endpoints as of the claim of the event. It need not be newer: a crash of the
        database may have undone what we know.
        """
        if self._version is None or version != self._version.id:
            async with self._loading:
                if self._version is None or version != self._version.id:
                    await self._take_over()

    async def run(self) -> None:
        while True:
            await self._wake.wait(self._clock, POLL_S)
            self._wake.clear()
            await self.run_once()
            if self._unsealed:
                await self._seal()

    async def run_once(self) -> int:
        """Take over a new version if there is one; return how many endpoints were read for it."""
        async with self._loading:
            if self._stale or self._version is None or await self._endpoints.version() != self._version.id:
                return await self._take_over()
        return 0

    async def _take_over(self) -> int:
        async with self._endpoints.changes(None if self._stale else self._version) as changes:
            # Until all of it is here: what interrupts this has all of it read anew.
            self._version, self._stale = None, False
            read, missing = 0, set(self._matcher.ids()) if changes.complete else set()
            async for page in changes.pages:
                read += len(page)
                missing.difference_update([endpoint.id for endpoint in page])
                self._apply(page)
                if changes.complete:
                    # What was loaded stays. Looking for garbage among all of it would hold up everything
                    # for up to a tenth of a second.
                    gc.freeze()
            while missing:
                self._apply((), [missing.pop() for _ in range(min(PAGE, len(missing)))])
                await asyncio.sleep(0)
            self._version = changes.version
        self._unsealed = self._unsealed or changes.complete
        log.info(
            "subscriptions.loaded",
            endpoints=len(self._matcher),
            read=read,
            complete=changes.complete,
            revision=changes.version.revision,
        )
        return read

    def _apply(self, page: Iterable[Endpoint], removed: Iterable[int] = ()) -> None:
        """Take over a few endpoints, deleted ones among them, and forget those that are removed."""
        gone = {endpoint.id for endpoint in page if endpoint.state is EndpointState.DELETED}
        changed = [
            endpoint
            for each in page
            if each.id not in gone and (endpoint := self._judged(each)) != self._matcher.get(each.id)
        ]
        gone |= set(removed)
        self._matcher.update(changed, gone)
        for job in self._lanes.update(changed, gone):
            if job.endpoint_id in gone:
                self._recorder.put(job, DeliveryState.CANCELLED, reason="the endpoint was deleted")
            else:
                self._recorder.put(job, DeliveryState.WAITING)
        for endpoint in changed:
            self._tell(endpoint)
        for endpoint_id in gone:
            self.unusable.pop(endpoint_id, None)

    def _judged(self, endpoint: Endpoint) -> Endpoint:
        if endpoint.dialect in self._dialects:
            return endpoint
        reason = f"its dialect {endpoint.dialect!r} is not configured"
        return replace(endpoint, unusable=f"{endpoint.unusable}; {reason}" if endpoint.unusable else reason)

    def _tell(self, endpoint: Endpoint) -> None:
        """Say once of an endpoint why nothing can be sent to it, and once that this is mended."""
        before, reason = self.unusable.get(endpoint.id), endpoint.unusable
        if reason == before:
            return
        if reason is None:
            del self.unusable[endpoint.id]
            log.info("endpoint.usable", endpoint=endpoint_public_id(endpoint.id))
        else:
            self.unusable[endpoint.id] = reason
            log.error("endpoint.unusable", endpoint=endpoint_public_id(endpoint.id), reason=reason)

    async def _seal(self) -> None:
        """Leave no secret in clear text where there is a key."""
        total = 0
        while sealed := await self._endpoints.seal_plain(PAGE):
            total += sealed
        self._unsealed = False
        if total:
            log.info("secrets.sealed", values=total)

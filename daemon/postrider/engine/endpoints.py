"""The endpoints in memory, which dispatcher and lanes work with: a snapshot that is kept by what changed.

Woken by the listener when an endpoint changed; it compares the version once a second besides, and so does
the dispatcher at each claim. A version stands for what the tables held at one moment, so memory is right
while its version is theirs; a crash or a failover that undoes changes leaves a version that nothing leads
to from ours, and all is read anew.
"""

import asyncio
import gc
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from uuid import UUID

import structlog

from postrider.domain.matching import Matcher
from postrider.domain.model import Endpoint, EndpointState, endpoint_public_id
from postrider.domain.sealing import Sealer
from postrider.domain.status import MAX_REPORTED, LaneReport
from postrider.edges.clock import Clock
from postrider.engine.dialect_rules import DialectRules
from postrider.engine.signals import Signal
from postrider.store import endpoint_changes
from postrider.store.database import Database
from postrider.store.endpoint_changes import PAGE, Version

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class EndpointTuning:
    poll_s: float = 1.0
    """Between two looks at the version, where nobody tells of a change."""
    compared: int = 4096
    """Known endpoints that are looked through in one piece, for those that are gone."""


class EndpointSnapshot:
    def __init__(
        self,
        *,
        database: Database,
        sealer: Sealer,
        rules: DialectRules,
        changed: Signal,
        on_change: Callable[[Sequence[Endpoint], Collection[int]], None],
        read_anew: Signal,
        clock: Clock,
        tuning: EndpointTuning | None = None,
    ) -> None:
        """`changed`: endpoints may have changed. `on_change` is given the difference: endpoints that are new
        or changed, and the ids of those that are gone, at most some dozens at a time. `read_anew` is set when
        all endpoints were read."""
        self._database = database
        self._sealer = sealer
        self._rules = rules
        self._changed = changed
        self._on_change = on_change
        self._read_anew = read_anew
        self._clock = clock
        self._tuning = tuning or EndpointTuning()
        self._loading = asyncio.Lock()
        self._matcher = Matcher()
        self.unusable: dict[int, str] = {}
        """Endpoints that nothing can be sent to, and why."""
        self._version: Version | None = None
        """What memory holds; None where it holds a part of one."""
        self._stale = True
        """Read all anew, since how endpoints are read has changed."""

    def __repr__(self) -> str:
        return f"<EndpointSnapshot endpoints={len(self._matcher)} version={self._version}>"

    def configure(self, sealer: Sealer) -> None:
        """Read all endpoints anew, with this key and by the rules as they are now."""
        self._sealer = sealer
        self._stale = True
        self._changed.set()

    def match(self, workspace_id: str, event_type: str) -> tuple[Endpoint, ...]:
        """The endpoints that get events of this type."""
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
        if not self._holds(version):
            async with self._loading:
                if not self._holds(version):
                    await self._take_over()

    async def run(self) -> None:
        while True:
            await self._changed.wait(self._clock, self._tuning.poll_s)
            self._changed.clear()
            await self.run_once()

    async def run_once(self) -> int:
        """Take over a new version if there is one; return how many endpoints were read for it."""
        async with self._loading:
            if self._stale or self._version is None or not self._holds(await self._current()):
                return await self._take_over()
        return 0

    def _holds(self, version: UUID) -> bool:
        return self._version is not None and self._version.id == version

    async def _current(self) -> UUID:
        async with self._database.connection() as connection:
            return await endpoint_changes.version(connection)

    async def _take_over(self) -> int:
        async with self._database.snapshot() as connection:
            since = None if self._stale else self._version
            changes = await endpoint_changes.changes(connection, since, self._sealer)
            # Until all of it is here: what interrupts this has all of it read anew.
            self._version, self._stale = None, False
            read = 0
            there: set[int] = set()
            async for page in changes.pages:
                read += len(page)
                there.update([endpoint.id for endpoint in page])
                self._apply(page)
                if len(page) == PAGE:
                    # There are many, and they stay. Looking for garbage among them would hold up everything
                    # for up to a tenth of a second.
                    gc.freeze()
            if changes.complete:
                await self._remove_all_but(there)
            self._version = changes.version
        if changes.complete:
            self._read_anew.set()
        log.info(
            "subscriptions.loaded",
            endpoints=len(self._matcher),
            read=read,
            complete=changes.complete,
            revision=changes.version.revision,
        )
        return read

    def _apply(self, page: Sequence[Endpoint]) -> None:
        """Take over a few endpoints, deleted ones among them."""
        gone = {endpoint.id for endpoint in page if endpoint.state is EndpointState.DELETED}
        changed = [
            endpoint
            for each in page
            if each.id not in gone and (endpoint := self._rules.judged(each)) != self._matcher.get(each.id)
        ]
        self._matcher.update(changed)
        for endpoint in changed:
            self._tell(endpoint)
        self._remove(gone)
        self._on_change(changed, gone)

    async def _remove_all_but(self, there: Collection[int]) -> None:
        """Forget endpoints whose rows were removed."""
        gone: list[int] = []
        known = iter(self._matcher.ids())
        while some := list(islice(known, self._tuning.compared)):
            gone += [endpoint_id for endpoint_id in some if endpoint_id not in there]
            await asyncio.sleep(0)
        for first in range(0, len(gone), PAGE):
            page = gone[first : first + PAGE]
            self._remove(page)
            self._on_change((), page)
            await asyncio.sleep(0)

    def _remove(self, gone: Collection[int]) -> None:
        self._matcher.update((), gone)
        for endpoint_id in gone:
            self.unusable.pop(endpoint_id, None)

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

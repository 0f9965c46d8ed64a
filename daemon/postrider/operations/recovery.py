"""What an endpoint missed while it was disabled: counted, and sent late because a person asks.

It reads the outbox page by page, in the order of ids, and has what was missed wait as deliveries, in short
transactions; what has a delivery is passed over. So it may be cut off at any moment and begun again, and
holds up nobody; the daemon takes what waits as its lanes have room.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from postrider.domain.audit import Actor, Scope
from postrider.domain.matching import wants
from postrider.domain.model import Endpoint, emitted_at_s, endpoint_public_id
from postrider.operations.endpoint_rules import demand_verified
from postrider.operations.endpoints import get
from postrider.operations.work import Backend
from postrider.store import endpoint_deliveries, missed
from postrider.store.missed import Fates, Period

PAGE = 4000
"""Events that are looked at in one piece."""
SENT_AT_A_TIME = 1000
PAUSE_S = 0.01
"""After each transaction: others write to the same tables."""
SETTLE_S = 1.0
"""A claim that began before the endpoint was resumed is visible by then."""
TRIES = 30

_FIRST, _LAST = UUID(int=0), UUID(int=2**128 - 1)


@dataclass(slots=True)
class Tally:
    """What an endpoint missed."""

    events: int = 0
    first: UUID | None = None
    under_way: int = 0
    """Events that are being fanned out: whether it misses them is not known yet."""

    @property
    def first_at(self) -> datetime | None:
        """When the first of them was emitted."""
        return None if self.first is None else datetime.fromtimestamp(emitted_at_s(self.first), UTC)


@dataclass(frozen=True, slots=True)
class _Page:
    missed: list[UUID]
    first_open: UUID | None
    """The first event that is queued, or being fanned out."""
    claimed: frozenset[UUID]
    """Those that are being fanned out."""


def spans(periods: Iterable[Period]) -> list[tuple[UUID, UUID]]:
    """The ranges of event ids in which something may have been missed: in order, and without overlaps."""
    found: list[tuple[UUID, UUID]] = []
    for first, beyond in sorted((each.first_event, each.last_event or _LAST) for each in periods):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], beyond))
        else:
            found.append((first, beyond))
    return found


async def count_missed(
    backend: Backend,
    actor: Actor,
    scope: Scope,
    endpoint_id: int,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Tally:
    """How many events an endpoint missed that it would get today, as far back as events are kept."""
    async with backend.begin(actor, scope) as work:
        endpoint = demand_verified(await get(work, endpoint_id))
    tally = Tally()
    async for page in _pages(backend, endpoint):
        _add(tally, page.missed)
        tally.under_way += len(page.claimed)
        on_progress(tally.events)
    return tally


async def recover_missed(
    backend: Backend,
    actor: Actor,
    scope: Scope,
    endpoint_id: int,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Tally:
    """Send the events that an endpoint missed, and that it would get today; those that were being fanned out
    when it was resumed as soon as that is decided."""
    async with backend.begin(actor, scope) as work:
        endpoint = demand_verified(await get(work, endpoint_id))
        # At the beginning: it may be cut off.
        await work.note(
            "endpoint.recovery_started",
            endpoint_public_id(endpoint.id),
            workspace_id=endpoint.workspace_id,
        )
    clock = backend.clock
    tally = Tally()

    async def send(events: Sequence[UUID]) -> None:
        for start in range(0, len(events), SENT_AT_A_TIME):
            chosen = events[start : start + SENT_AT_A_TIME]
            async with backend.begin(actor, scope) as work:
                sent = await endpoint_deliveries.send(
                    work.connection, endpoint.workspace_id, endpoint.id, chosen, work.now
                )
            _add(tally, sent)
            on_progress(tally.events)
            await clock.sleep(PAUSE_S)

    claimed: set[UUID] = set()
    begin = _FIRST
    for _ in range(2):  # again, once the claims can be seen that had begun when it was resumed
        first_open = None
        async for page in _pages(backend, endpoint, begin):
            first_open = first_open or page.first_open
            claimed |= page.claimed
            await send(page.missed)
        if first_open is None:
            break
        begin = first_open
        await clock.sleep(SETTLE_S)
    for _ in range(TRIES):
        if not claimed:
            break
        fates = await _fates(backend, endpoint, sorted(claimed))
        await send(sorted(claimed - fates.recorded - fates.queued - fates.claimed))
        claimed = set(fates.claimed - fates.recorded)
        if claimed:
            await clock.sleep(SETTLE_S)
    tally.under_way = len(claimed)
    return tally


async def _pages(backend: Backend, endpoint: Endpoint, begin: UUID = _FIRST) -> AsyncIterator[_Page]:
    """What the endpoint missed, from an event on."""
    workspace_id = endpoint.workspace_id
    async with backend.database.connection() as connection:
        periods = await missed.periods(connection, workspace_id, endpoint.id)
    for first, beyond in spans(periods):
        after = max(first, begin)
        more = True
        while more:
            async with backend.database.connection() as connection:
                events = await missed.events(connection, workspace_id, after, beyond, PAGE)
            if not events:
                break
            more = len(events) == PAGE  # else it is the last one, however fast events come
            types = {each for each in {event_type for _, event_type in events} if wants(endpoint, each)}
            wanted = [event_id for event_id, event_type in events if event_type in types]
            if wanted:
                fates = await _fates(backend, endpoint, wanted)
                open_ = (fates.queued | fates.claimed) - fates.recorded
                gone = fates.recorded | open_
                yield _Page(
                    [each for each in wanted if each not in gone],
                    min(open_, default=None),
                    fates.claimed - fates.recorded,
                )
            after = UUID(int=events[-1][0].int + 1)


async def _fates(backend: Backend, endpoint: Endpoint, event_ids: Sequence[UUID]) -> Fates:
    async with backend.database.connection() as connection:
        return await missed.fates(connection, endpoint.workspace_id, endpoint.id, event_ids)


def _add(tally: Tally, events: Sequence[UUID]) -> None:
    first = min(events, default=None)
    tally.events += len(events)
    if first is not None and (tally.first is None or first < tally.first):
        tally.first = first

"""From the database back to the lanes: retries that are due become waiting, and waiting deliveries go into
their lanes as there is room.

Woken when a retry falls due, when deliveries were left waiting and when a lane with a backlog runs low. It
works in small steps, so that a herd of retries and the refill of one lane don't hold up the others.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog

from postrider.domain.model import DeliveryKey, Event, emitted_at_s, endpoint_public_id
from postrider.edges.clock import Clock
from postrider.engine.cancelling import cancel_left
from postrider.engine.lane import Lane
from postrider.engine.lane_keeper import LaneKeeper
from postrider.engine.lanes import Lanes
from postrider.engine.ledger import MIB, Job, Ledger, Share
from postrider.engine.recorded import LeftWaiting
from postrider.engine.recorder import Recorder
from postrider.engine.signals import Signal
from postrider.store import deliveries, outbox
from postrider.store.database import Database
from postrider.store.deliveries import ClaimedDelivery, WaitingWanted

_FIRST = -1

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SchedulerTuning:
    promote_batch: int = 1000
    """Retries that one step makes wait."""
    promote_again_s: float = 0.1
    """Before another look where others are at them."""
    refill_batch: int = 200
    """Deliveries that one lane gets at a time."""
    refill_lanes: int = 64
    """Lanes that are refilled by one statement."""
    lane_bytes: int = 2 * MIB
    """JSON that one lane gets at a time, its first delivery excepted."""
    short_poll_s: float = 0.05
    """Before another look where memory is short."""
    rescan_s: float = 5.0
    """How often to look for waiting deliveries that nobody announced: another daemon left them."""
    cancel_batch: int = 5000
    """Deliveries of a deleted endpoint that one transaction cancels."""
    rescan_batch: int = 500
    """Endpoints with waiting deliveries that one look finds."""
    reconcile_s: float = 30.0
    """How often to compare the claimed deliveries in the database with those in memory: a crash of the server
    may have undone what we were told was committed."""


@dataclass(frozen=True, slots=True)
class ScheduleCounts:
    promoted: int
    refilled: int
    cancelled: int


class Scheduler:
    def __init__(
        self,
        tuning: SchedulerTuning,
        *,
        database: Database,
        lanes: Lanes,
        keeper: LaneKeeper,
        ledger: Ledger,
        recorder: Recorder,
        clock: Clock,
        left_waiting: LeftWaiting,
        wake: Signal,
        rescan: Signal,
        doubt: Signal,
    ) -> None:
        """`wake`: there may be something to do; `rescan`: look for waiting deliveries now; `doubt`: memory
        and database may differ about our claims, which are compared before the next one."""
        self._tuning = tuning
        self._database = database
        self._lanes = lanes
        self._keeper = keeper
        self._ledger = ledger
        self._recorder = recorder
        self._clock = clock
        self._left_waiting = left_waiting
        self._wake = wake
        self._rescan = rescan
        self._doubt = doubt
        self._rescan_at = 0.0
        self._rescan_after = _FIRST
        self._reconcile_at = clock.monotonic() + tuning.reconcile_s
        self._next_due: datetime | None = None
        self._short = False
        """A lane could not be refilled for want of memory, or because results wait to be recorded."""

    def __repr__(self) -> str:
        return f"<Scheduler next_due={self._next_due}{' short' * self._short} {self._left_waiting}>"

    async def run(self) -> None:
        while True:
            self._wake.clear()
            await self.run_once()
            await self._wake.wait(self._clock, self._seconds_to_next())

    async def run_once(self) -> ScheduleCounts:
        """A step of each kind: find what waits, promote what is due, refill lanes that have a backlog."""
        try:
            if self._doubt or self._clock.monotonic() >= self._reconcile_at:
                await self._reconcile()
            self._read_left_waiting()
            cancelled = await self._find_waiting()
            promoted = await self._promote()
            self._read_left_waiting()
            refilled = await self._refill()
        except BaseException:
            self._doubt.set()
            raise
        return ScheduleCounts(promoted, refilled, cancelled)

    def _read_left_waiting(self) -> None:
        """Let the lanes know of deliveries that were left waiting."""
        for endpoint_id, (first, count) in self._left_waiting.take_waiting().items():
            self._lanes.note_recorded(endpoint_id, first, count)
        due = self._left_waiting.take_due()
        if due is not None and (self._next_due is None or due < self._next_due):
            self._next_due = due

    async def _find_waiting(self) -> int:
        """Note lanes that have deliveries waiting; cancel those of endpoints that are deleted."""
        if self._rescan.take():
            self._rescan_at, self._rescan_after = 0.0, _FIRST
        if self._clock.monotonic() < self._rescan_at:
            return 0
        if self._rescan_after == _FIRST:
            await self._look_for_due()
        async with self._database.connection() as connection:
            found = await deliveries.waiting_endpoints(
                connection, self._rescan_after, self._tuning.rescan_batch
            )
        more = len(found) == self._tuning.rescan_batch
        self._rescan_after = found[-1] if more else _FIRST
        if not more:
            self._rescan_at = self._clock.monotonic() + self._tuning.rescan_s
        cancelled = 0
        for endpoint_id in found:
            if not self._lanes.note_found(endpoint_id):
                count = await cancel_left(self._database, self._clock, endpoint_id, self._tuning.cancel_batch)
                if count:
                    endpoint = endpoint_public_id(endpoint_id)
                    log.info("deliveries.cancelled", endpoint=endpoint, deliveries=count)
                cancelled += count
        return cancelled

    async def _promote(self) -> int:
        now = self._clock.now()
        if self._next_due is None or self._next_due > now:
            return 0
        async with self._database.connection() as connection:
            promoted = await deliveries.promote_due(connection, now, self._tuning.promote_batch)
        for endpoint_id, event_id in promoted.items():
            if not self._lanes.note_waiting(endpoint_id, event_id):
                self._rescan.set()
        await self._look_for_due()
        if not promoted:  # others are at it
            soon = now + timedelta(seconds=self._tuning.promote_again_s)
            self._next_due = max(self._next_due or soon, soon)
        return len(promoted)

    async def _look_for_due(self) -> None:
        async with self._database.connection() as connection:
            self._next_due = await deliveries.next_due(connection)

    async def _refill(self) -> int:
        """Claim waiting deliveries of some lanes, and queue them."""
        lanes, more = self._lanes.refillable(self._tuning.refill_lanes, self._clock.monotonic())
        self._short = self._recorder.congested and bool(lanes)
        if self._short:
            return 0
        refilled = 0
        for share in Share:
            now = self._clock.monotonic()  # asked now: what was refilled before this took its time
            chosen = [lane for lane in lanes if lane.share is share and self._lanes.wants_refill(lane, now)]
            most_bytes = self._ledger.refill_room(share)
            if chosen and most_bytes < 1:
                self._short = True  # asked again soon
            elif chosen:
                refilled += await self._refill_lanes(chosen, most_bytes)
        now = self._clock.monotonic()
        # One that got nothing, since what others got was large, has no request whose end asks for more.
        more = more or any(
            not (lane.queue or lane.running) and self._lanes.wants_refill(lane, now) for lane in lanes
        )
        if more and refilled:
            self._wake.set()
        elif more:
            self._short = True
        return refilled

    async def _refill_lanes(self, lanes: Sequence[Lane], most_bytes: int) -> int:
        now = self._clock.monotonic()
        wanted = [
            WaitingWanted(
                lane.endpoint.id,
                lane.endpoint.workspace_id,
                min(self._lanes.room_of(lane, now), self._tuning.refill_batch),
                lane.floor,
            )
            for lane in lanes
        ]
        backlogs = {lane.endpoint.id: lane.backlog for lane in lanes}
        owner = self._ledger.owner
        jobs: dict[Lane, list[Job]] = {lane: [] for lane in lanes}
        unwanted: dict[DeliveryKey, str] = {}
        self._lanes.begin_refill(lanes)  # before the claim: what is left waiting during it is not missed
        try:
            claimed = await self._claim(wanted, backlogs, most_bytes)
            events = await self._read([each.event_id for each in claimed])
            if self._ledger.owner != owner:
                return 0  # others took us for dead, and take these too
            by_endpoint = {lane.endpoint.id: lane for lane in lanes}
            for each in claimed:
                lane = by_endpoint[each.endpoint_id]
                if lane.open and self._lanes.lane(each.endpoint_id) is lane:
                    event = events.get(each.event_id) or _gone(each)
                    jobs[lane].append(
                        self._ledger.take_delivery(event, each.endpoint_id, each.attempts, each.attempt_base)
                    )
                else:
                    unwanted[each.event_id, each.endpoint_id] = each.workspace_id
        finally:
            self._keeper.end_refill(jobs)
        if unwanted:
            async with self._database.connection() as connection:
                await deliveries.release(connection, owner, unwanted)
        return len(claimed)

    async def _claim(
        self, wanted: Sequence[WaitingWanted], backlogs: Mapping[int, float], most_bytes: int
    ) -> list[ClaimedDelivery]:
        """Claim deliveries of some lanes; note what is left waiting of each."""
        claimed: list[ClaimedDelivery] | None = None
        try:
            async with self._database.connection() as connection:
                claimed = await deliveries.claim_waiting(
                    connection,
                    self._ledger.owner,
                    wanted,
                    self._clock.now(),
                    most_bytes=most_bytes,
                    most_bytes_each=self._tuning.lane_bytes,
                )
        finally:
            of_endpoint: defaultdict[int, list[ClaimedDelivery]] = defaultdict(list)
            for each in claimed or ():
                of_endpoint[each.endpoint_id].append(each)
            all_cut = claimed is None or sum(each.bytes for each in claimed) >= most_bytes
            for want in wanted:
                own = of_endpoint[want.endpoint_id]
                floor = _rest_from(want, own, all_cut=all_cut, most_bytes=self._tuning.lane_bytes)
                if floor is not None:
                    rest = max(1, backlogs[want.endpoint_id] - len(own))
                    self._lanes.note_waiting(want.endpoint_id, floor, rest)
        return claimed

    async def _read(self, event_ids: Sequence[UUID]) -> dict[UUID, Event]:
        """The events, from memory where they are in it."""
        held = {
            event_id: event for event_id in event_ids if (event := self._ledger.event(event_id)) is not None
        }
        events = {event_id: event for event_id, event in held.items() if event.data is not None}
        missing = list(dict.fromkeys(event_id for event_id in event_ids if event_id not in events))
        if missing:
            async with self._database.connection() as connection:
                read = await outbox.read(connection, missing)
            events |= {event.id: event for event in read}
        return events

    async def _reconcile(self) -> None:
        """Give back deliveries that the database thinks we hold, and we don't: a crash, or an answer that was
        cut off, made the difference."""
        owner = self._ledger.owner
        if self._doubt.take():  # first: a doubt that comes meanwhile is not lost
            self._rescan.set()
        async with self._database.connection() as connection:
            owned = await deliveries.owned(connection, owner)
            ours = self._ledger.delivery_keys()
            stray = {key: workspace_id for key, workspace_id in owned.items() if key not in ours}
            if stray:
                await deliveries.release(connection, owner, stray)
        if stray:
            log.info("claims.reconciled", deliveries=len(stray))
            self._rescan.set()
        self._reconcile_at = self._clock.monotonic() + self._tuning.reconcile_s

    def _seconds_to_next(self) -> float:
        now = self._clock.monotonic()
        seconds = min(max(0.0, self._rescan_at - now), max(0.0, self._reconcile_at - now))
        if self._short:
            seconds = min(seconds, self._tuning.short_poll_s)
        if self._next_due is not None:
            seconds = min(seconds, max(0.0, (self._next_due - self._clock.now()).total_seconds()))
        return seconds


def _rest_from(
    wanted: WaitingWanted, own: Sequence[ClaimedDelivery], *, all_cut: bool, most_bytes: int
) -> UUID | None:
    """From which event on deliveries of a lane may still wait after a claim that brought it its `own`; None
    where none does. `all_cut`: the claim ended before all lanes had what there is."""
    cut = all_cut or sum(each.bytes for each in own) >= most_bytes
    if len(own) < wanted.room and not cut:
        return None
    return own[-1].event_id if own else wanted.floor


def _gone(claimed: ClaimedDelivery) -> Event:
    """What stands for an event whose row is no more: it fails its delivery, with the reason."""
    return Event(
        id=claimed.event_id,
        workspace_id=claimed.workspace_id,
        type="",
        data=None,
        data_bytes=0,
        previous_attributes=None,
        object_type=None,
        object_id=None,
        actor=None,
        related=None,
        occurred_at=datetime.fromtimestamp(emitted_at_s(claimed.event_id), UTC),
        problem="the event is gone: retention removed it",
    )

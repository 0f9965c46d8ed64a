"""The scheduler: what it looks for and when, and what it does where things change meanwhile."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest

from postrider.domain.model import DeliveryKey, EndpointState, Event
from postrider.engine.ledger import MIB, Ledger
from postrider.engine.recorded import LeftWaiting, Recorded
from postrider.engine.scheduler import ScheduleCounts, Scheduler, SchedulerTuning
from postrider.store.database import DatabaseUnavailable
from postrider.store.deliveries import ClaimedDelivery, WaitingWanted
from tests.support.clock import FakeClock
from tests.support.endpoints import endpoint
from tests.support.lanes import kept_lanes
from tests.support.made_up import MadeUpDatabase, answer_verbs

NOTHING = ScheduleCounts(promoted=0, refilled=0, cancelled=0)


class Waiting(MadeUpDatabase):
    """Deliveries of endpoint 7 that wait, or will."""

    def __init__(self) -> None:
        self.waiting: list[UUID] = []
        self.due: dict[UUID, datetime] = {}
        self.sending: dict[DeliveryKey, str] = {}
        self.asked: list[str] = []
        self.bytes = 2
        """Of each event, as far as the database knows."""
        self.meanwhile: Callable[[], None] = lambda: None
        """Happens while deliveries are claimed."""

    async def waiting_endpoints(self, _after: int, _limit: int) -> list[int]:
        self.asked.append("waiting_endpoints")
        return [7] if self.waiting else []

    async def next_due(self) -> datetime | None:
        return min(self.due.values(), default=None)

    async def promote_due(self, now: datetime, _limit: int) -> dict[int, UUID]:
        due = [event_id for event_id, at in self.due.items() if at <= now]
        for event_id in due:
            del self.due[event_id]
            self.waiting.append(event_id)
        return {7: min(due)} if due else {}

    async def claim_waiting(
        self, _owner: int, wanted: Sequence[WaitingWanted], _now: datetime, **_bytes: int
    ) -> list[ClaimedDelivery]:
        self.asked.append("claim_waiting")
        self.meanwhile()
        want = next(each for each in wanted if each.endpoint_id == 7)
        taken = sorted(self.waiting)[: want.room]
        for event_id in taken:
            self.waiting.remove(event_id)
            self.sending[event_id, 7] = "default"
        return [ClaimedDelivery(event_id, 7, "default", 1, 0, self.bytes) for event_id in taken]

    async def read(self, event_ids: Sequence[UUID]) -> list[Event]:
        now = datetime.now(UTC)
        return [
            Event(each, "default", "a.b", "{}", 2, None, None, None, None, None, now) for each in event_ids
        ]

    async def owned(self, _owner: int) -> dict[DeliveryKey, str]:
        self.asked.append("owned")
        return dict(self.sending)

    async def release(self, _owner: int, workspaces: Mapping[DeliveryKey, str]) -> None:
        for key in workspaces:
            del self.sending[key]
            self.waiting.append(key[0])


class Desk:
    """A scheduler with all that it needs, and one endpoint."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.database = Waiting()
        self.endpoint = endpoint(7)
        kept = kept_lanes(cast(Any, self.database), self.clock, endpoint_concurrency=4)
        self.lanes, self.keeper, self.signals = kept.lanes, kept.keeper, kept.signals
        self.keeper.update([self.endpoint])
        self.ledger = Ledger(owner=1)
        self.left_waiting = LeftWaiting(self.signals.schedule)
        self.scheduler = Scheduler(
            SchedulerTuning(rescan_s=5.0, reconcile_s=30.0),
            database=cast(Any, self.database),
            lanes=self.lanes,
            keeper=self.keeper,
            ledger=self.ledger,
            recorder=kept.recorder,
            clock=self.clock,
            left_waiting=self.left_waiting,
            wake=self.signals.schedule,
            rescan=self.signals.rescan,
            doubt=self.signals.deliveries_doubt,
        )


@pytest.fixture(autouse=True)
def verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_verbs(monkeypatch)


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 10))


def test_a_retry_waits_for_its_time_and_goes_into_its_lane() -> None:
    async def story() -> None:
        desk = Desk()
        assert await desk.scheduler.run_once() == NOTHING
        at = desk.clock.now()
        desk.database.due[UUID(int=1)] = at + timedelta(seconds=2)
        desk.left_waiting.put(Recorded(at, [], [], at + timedelta(seconds=2)))
        assert desk.signals.schedule
        assert await desk.scheduler.run_once() == NOTHING
        desk.clock.advance(2.1)
        assert await desk.scheduler.run_once() == ScheduleCounts(promoted=1, refilled=1, cancelled=0)
        assert desk.lanes.queued == 1

    run(story)


def test_what_another_daemon_left_is_found_within_seconds_and_at_once_when_told() -> None:
    async def story() -> None:
        desk = Desk()
        await desk.scheduler.run_once()
        desk.database.waiting.append(UUID(int=1))
        assert await desk.scheduler.run_once() == NOTHING
        desk.clock.advance(5.1)
        assert (await desk.scheduler.run_once()).refilled == 1
        desk.database.waiting.append(UUID(int=2))
        desk.signals.rescan.set()
        assert desk.signals.schedule
        assert (await desk.scheduler.run_once()).refilled == 1

    run(story)


def test_what_was_left_waiting_is_fetched_once_all_of_it_is_known() -> None:
    async def story() -> None:
        desk = Desk()
        await desk.scheduler.run_once()
        lane = desk.lanes.lane(7)
        assert lane is not None
        desk.lanes.spill(7)
        desk.database.waiting.append(UUID(int=1))
        desk.left_waiting.put(Recorded(desk.clock.now(), [], [(7, UUID(int=1))], None))
        assert (await desk.scheduler.run_once()).refilled == 1
        assert (lane.spilled, lane.has_backlog, lane.refilling) == (0, False, False)

    run(story)


def test_a_delivery_that_memory_does_not_know_is_given_back() -> None:
    async def story() -> None:
        desk = Desk()
        await desk.scheduler.run_once()
        desk.database.sending[UUID(int=1), 7] = "default"
        assert await desk.scheduler.run_once() == NOTHING
        desk.signals.deliveries_doubt.set()
        assert (await desk.scheduler.run_once()).refilled == 1
        assert desk.ledger.delivery_keys() == {(UUID(int=1), 7)}
        assert not desk.signals.deliveries_doubt
        desk.clock.advance(30.1)
        desk.database.asked.clear()
        await desk.scheduler.run_once()
        assert "owned" in desk.database.asked

    run(story)


def test_what_an_endpoint_that_closed_meanwhile_would_get_goes_back() -> None:
    async def story() -> None:
        desk = Desk()
        desk.database.waiting.append(UUID(int=1))
        paused = replace(desk.endpoint, state=EndpointState.PAUSED)
        desk.database.meanwhile = lambda: desk.keeper.update([paused])
        await desk.scheduler.run_once()
        assert (desk.lanes.queued, desk.database.waiting) == (0, [UUID(int=1)])
        desk.database.meanwhile = lambda: None
        desk.keeper.update([desk.endpoint])
        assert (await desk.scheduler.run_once()).refilled == 1
        assert desk.lanes.queued == 1

    run(story)


def test_what_was_claimed_does_not_overtake_what_its_lane_gave_back_meanwhile() -> None:
    async def story() -> None:
        desk = Desk()
        older, newer = UUID(int=1), UUID(int=2)
        desk.database.waiting.append(older)
        await desk.scheduler.run_once()
        assert desk.lanes.queued == 1
        desk.database.waiting.append(newer)
        desk.signals.rescan.set()

        def pause_for_a_moment() -> None:
            desk.keeper.update([replace(desk.endpoint, state=EndpointState.PAUSED)])
            desk.keeper.update([desk.endpoint])

        desk.database.meanwhile = pause_for_a_moment
        assert (await desk.scheduler.run_once()).refilled == 1
        desk.database.meanwhile = lambda: None
        assert desk.lanes.queued == 0
        desk.database.waiting += [older, newer]  # as the recorder leaves them
        desk.database.sending.clear()
        waiting = [(7, older), (7, newer)]
        desk.left_waiting.put(Recorded(desk.clock.now(), [], waiting, None))
        assert (await desk.scheduler.run_once()).refilled == 2
        first = await desk.keeper.take()
        assert first is not None
        assert first.held.event.id == older

    run(story)


def test_a_lane_that_got_nothing_because_others_took_all_the_memory_comes_next() -> None:
    async def story() -> None:
        desk = Desk()
        desk.keeper.update([endpoint(8)])
        for number in (7, 8):
            desk.lanes.note_waiting(number)
        desk.database.waiting.append(UUID(int=1))
        desk.database.bytes = 4 * MIB
        desk.signals.schedule.clear()
        assert (await desk.scheduler.run_once()).refilled == 1
        assert desk.signals.schedule
        desk.signals.schedule.clear()
        await desk.scheduler.run_once()
        assert not desk.signals.schedule

    run(story)


def test_a_claim_that_fails_leaves_the_lane_to_be_refilled_and_a_doubt() -> None:
    def fail() -> None:
        raise DatabaseUnavailable("away")

    async def story() -> None:
        desk = Desk()
        desk.database.waiting.append(UUID(int=1))
        desk.database.meanwhile = fail
        with pytest.raises(DatabaseUnavailable):
            await desk.scheduler.run_once()
        assert desk.signals.deliveries_doubt
        desk.database.meanwhile = lambda: None
        assert (await desk.scheduler.run_once()).refilled == 1

    run(story)


def test_deliveries_claimed_by_who_was_taken_for_dead_are_left_to_others() -> None:
    async def story() -> None:
        desk = Desk()
        desk.database.waiting.append(UUID(int=1))
        desk.database.meanwhile = lambda: desk.ledger.begin_as(2)
        assert (await desk.scheduler.run_once()).refilled == 0
        assert (desk.lanes.queued, desk.ledger.bytes) == (0, 0)

    run(story)

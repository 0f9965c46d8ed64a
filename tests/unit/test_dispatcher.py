"""The dispatcher: when it claims, when it compares claims, and what it tells writers."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import pytest

from postrider.domain.model import DeliveryState, Endpoint, EndpointState, Event
from postrider.domain.policy import RetryPolicy
from postrider.edges.metrics import Metrics
from postrider.engine.dispatcher import DispatchCounts, Dispatcher, DispatcherTuning
from postrider.engine.failures import Failures
from postrider.engine.fan_outs import FanOuts, FanOutTuning
from postrider.engine.lane_keeper import KeeperTuning, LaneKeeper
from postrider.engine.lane_room import LanesTuning
from postrider.engine.lanes import Lanes
from postrider.engine.ledger import Ledger
from postrider.engine.recorder import Readers, Recorder, RecorderTuning
from postrider.engine.signals import EngineSignals
from postrider.store.outbox import ClaimedEvents
from tests.support.clock import FakeClock
from tests.support.endpoints import endpoint
from tests.support.lanes import Nobody
from tests.support.made_up import MadeUpDatabase, answer_verbs

TUNING = DispatcherTuning()


class Queue(MadeUpDatabase):
    """The queue of events, its claims, and the flag that writers look at."""

    def __init__(self) -> None:
        self.pending = 0
        self.asked: list[str] = []
        self.held: dict[int, int] = {}
        self.told: list[bool] = []
        self.meanwhile: Callable[[], None] = lambda: None
        """Happens while events are claimed."""

    async def claim(
        self, _connection: object, _owner: int, limit: int, _most_bytes: int
    ) -> ClaimedEvents | None:
        self.asked.append("claim")
        self.meanwhile()
        count = min(limit, self.pending)
        if not count:
            return None
        self.pending -= count
        claim_id = len(self.asked)
        self.held[claim_id] = 0
        now = datetime.now(UTC)
        events = [
            Event(UUID(int=claim_id << 64 | number), "a", "a.b", "{}", 2, None, None, None, None, None, now)
            for number in range(count)
        ]
        return ClaimedEvents(claim_id, events, [], 0, UUID(int=1), count == limit)

    def look_at_all(self) -> None:
        self.asked.append("look_at_all")

    async def claims(self, _owner: int) -> dict[int, int]:
        self.asked.append("claims")
        return dict(self.held)

    async def release(self, _owner: int, claim_ids: Iterable[int]) -> int:
        self.asked.append("release")
        for each in list(claim_ids):
            del self.held[each]
            self.pending += 1
        return 1

    async def set_idle(self, _daemon_id: int, *, idle: bool, notify: bool | None) -> bool:
        self.told.append(idle)
        return True


class Subscribed:
    """One endpoint that wants everything."""

    def __init__(self, target: Endpoint) -> None:
        self._target = target

    def match(self, _workspace_id: str, _event_type: str) -> tuple[Endpoint, ...]:
        return (self._target,)

    def retry_policy(self, _endpoint: Endpoint) -> RetryPolicy:
        return RetryPolicy()

    async def reach(self, _version: UUID) -> None:
        """There is nothing new."""


class Desk:
    """A dispatcher with all that it needs, and one endpoint."""

    def __init__(self, *, congested_from: int = 4000) -> None:
        self.clock = FakeClock()
        self.queue = Queue()
        self.signals = signals = EngineSignals()
        self.ledger = ledger = Ledger(owner=1)
        self.endpoint = endpoint(7)
        self.lanes = Lanes(LanesTuning(), concurrency=8, endpoint_concurrency=4, ledger=ledger)
        anything = cast(Any, self.queue)
        self.recorder = Recorder(
            RecorderTuning(congested_from=congested_from),
            database=anything,
            ledger=ledger,
            clock=self.clock,
            metrics=Metrics("test"),
            failures=Failures(self.clock),
            readers=Readers(Nobody(), Nobody(), Nobody(), signals.events_doubt),
        )
        self.keeper = LaneKeeper(
            KeeperTuning(),
            lanes=self.lanes,
            recorder=self.recorder,
            room=signals.dispatch,
            refill=signals.schedule,
            clock=self.clock,
        )
        self.keeper.update([self.endpoint])
        subscriptions = cast(Any, Subscribed(self.endpoint))
        fan_outs = FanOuts(
            FanOutTuning(),
            database=anything,
            rules=subscriptions,
            lanes=self.lanes,
            keeper=self.keeper,
            recorder=self.recorder,
            ledger=ledger,
            clock=self.clock,
            wake=signals.dispatch,
            doubt=signals.events_doubt,
        )
        self.dispatcher = Dispatcher(
            TUNING,
            database=anything,
            pending=anything,
            endpoints=subscriptions,
            lanes=self.lanes,
            fan_outs=fan_outs,
            recorder=self.recorder,
            ledger=ledger,
            clock=self.clock,
            notify=None,
            wake=signals.dispatch,
            doubt=signals.events_doubt,
        )

    async def run_for(self, turns: int, seconds: float) -> None:
        """Let it run, while each turn takes so long."""
        running = asyncio.create_task(self.dispatcher.run())
        for _ in range(turns):
            for _ in range(30):
                await asyncio.sleep(0)
            self.clock.advance(seconds)
        running.cancel()


@pytest.fixture(autouse=True)
def verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_verbs(monkeypatch)


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 10))


def test_what_is_claimed_goes_into_its_lanes() -> None:
    async def story() -> None:
        desk = Desk()
        desk.queue.pending = 3
        assert await desk.dispatcher.run_once() == DispatchCounts(
            claimed=3, offered=3, spilled=0, more=False, held_up=False
        )
        assert desk.lanes.queued == 3

    run(story)


def test_what_a_closed_lane_does_not_take_is_to_be_recorded_as_waiting() -> None:
    async def story() -> None:
        desk = Desk()
        desk.keeper.update([replace(desk.endpoint, state=EndpointState.PAUSED)])
        desk.queue.pending = 3
        assert (await desk.dispatcher.run_once()).spilled == 3
        states = [entry.result.state for entry in desk.recorder._entries]
        assert states == [DeliveryState.WAITING] * 3

    run(story)


def test_claims_are_compared_at_once_in_doubt_and_now_and_then_without() -> None:
    async def story() -> None:
        desk = Desk()
        desk.queue.held[4711] = 0  # as if the answer to a claim had been lost
        await desk.dispatcher.run_once()
        assert desk.queue.asked == ["claim"]
        desk.signals.events_doubt.set()
        assert desk.signals.dispatch
        desk.queue.asked.clear()
        assert (await desk.dispatcher.run_once()).claimed == 1
        assert desk.queue.asked == ["look_at_all", "claims", "release", "look_at_all", "claim"]
        assert not desk.signals.events_doubt
        desk.clock.advance(TUNING.reconcile_s)
        desk.queue.asked.clear()
        await desk.dispatcher.run_once()
        assert desk.queue.asked == ["claims", "claim"]

    run(story)


def test_nothing_is_claimed_while_results_wait_to_be_recorded() -> None:
    async def story() -> None:
        desk = Desk(congested_from=0)
        desk.queue.pending = 3
        waiting = asyncio.create_task(desk.dispatcher.run_once())
        for _ in range(30):
            await asyncio.sleep(0)
        assert not waiting.done()  # it does not spin
        desk.clock.advance(TUNING.busy_poll_s)
        assert (await waiting).held_up
        assert desk.queue.asked == []

    run(story)


def test_a_claim_of_who_was_taken_for_dead_is_left_to_others() -> None:
    async def story() -> None:
        desk = Desk()
        desk.queue.pending = 3
        desk.queue.meanwhile = lambda: desk.ledger.begin_as(2)
        assert (await desk.dispatcher.run_once()).claimed == 0
        assert (desk.lanes.queued, desk.ledger.claims()) == (0, {})

    run(story)


def test_writers_notify_an_idle_daemon_and_not_one_that_is_busy() -> None:
    async def story() -> None:
        desk = Desk()
        await desk.run_for(5, 0.1)
        assert desk.queue.told == [True]
        desk.queue.pending = 100_000
        desk.keeper.update([replace(desk.endpoint, state=EndpointState.PAUSED)])  # recorded, not sent
        desk.signals.dispatch.set()
        await desk.run_for(5, 0.1)
        assert desk.queue.told == [True, False]
        desk.queue.pending = 0
        desk.recorder._entries.clear()
        await desk.run_for(5, 0.1)
        assert desk.queue.told == [True, False, True]

    run(story)

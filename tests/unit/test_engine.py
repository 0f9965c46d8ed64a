"""Dispatcher, lanes, scheduler and recorder together, on a database made up in memory: whatever is claimed is
delivered, once, and nobody spins.
"""

import asyncio
import logging
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import pytest
import structlog

from postrider.domain.model import Attempt, DeliveryState, Endpoint, EndpointState, Event, Reply
from postrider.domain.policy import Outcome, RetryPolicy
from postrider.edges.clock import SystemClock
from postrider.edges.metrics import Metrics
from postrider.engine.decisions import Offer
from postrider.engine.dispatcher import Dispatcher, DispatcherTuning
from postrider.engine.failures import Failures
from postrider.engine.fan_outs import FanOuts, FanOutTuning
from postrider.engine.lane_keeper import KeeperTuning, LaneKeeper
from postrider.engine.lane_room import LanesTuning
from postrider.engine.lanes import Lanes
from postrider.engine.ledger import Job, Ledger
from postrider.engine.recorded import LeftWaiting
from postrider.engine.recorder import Readers, Recorder, RecorderTuning
from postrider.engine.scheduler import Scheduler, SchedulerTuning
from postrider.engine.signals import EngineSignals
from postrider.store.database import DatabaseUnavailable
from postrider.store.deliveries import ClaimedDelivery, WaitingWanted
from postrider.store.delivery_results import ClaimProgress, DeliveryResult
from postrider.store.outbox import ClaimedEvents
from tests.support.endpoints import endpoint
from tests.support.lanes import Nobody
from tests.support.made_up import MadeUpDatabase, answer_verbs

OK = Outcome(DeliveryState.SUCCEEDED, None, None, "HTTP 200", None, throttled=False)
REPLY = Reply(200, "", "", None, None, 1.0)
VERSION = UUID(int=7)
Key = tuple[UUID, int]


class Store(MadeUpDatabase):
    """Stands for the outbox, the deliveries and the daemons; `away()` tells whether it is out of reach."""

    def __init__(self, endpoints: Iterable[Endpoint], away: Callable[[], bool] = lambda: False) -> None:
        self.of: defaultdict[str, list[Endpoint]] = defaultdict(list)
        for each in endpoints:
            self.of[each.workspace_id].append(each)
        self.workspace_of = {each.id: each.workspace_id for each in endpoints}
        self.away = away
        self.events: dict[UUID, Event] = {}
        self.pending: dict[UUID, bool] = {}
        self.held: dict[int, tuple[list[UUID], int]] = {}
        self.states: dict[Key, DeliveryState | str] = {}
        self.calls: Counter[str] = Counter()

    def emit(self, workspace: str, size: int = 2) -> None:
        event_id = UUID(int=(int(time.time() * 1000) << 80) + len(self.events))
        data = "{" + " " * (size - 2) + "}"
        now = datetime.now(UTC)
        self.events[event_id] = Event(
            event_id, workspace, "a.b", data, size, None, None, None, None, None, now
        )
        self.pending[event_id] = False

    async def _ask(self, name: str) -> None:
        self.calls[name] += 1
        await asyncio.sleep(0.0005)
        if self.away():
            raise DatabaseUnavailable("away")

    def match(self, workspace: str, _event_type: str) -> list[Endpoint]:
        return self.of[workspace]

    def retry_policy(self, _dialect: str) -> RetryPolicy:
        return RetryPolicy()

    async def reach(self, _version: UUID) -> None:
        """There is nothing new."""

    async def set_idle(self, _owner: int, *, idle: bool, notify: bool | None) -> bool:
        await self._ask("set_idle")
        return True

    async def claim(self, _owner: int, limit: int, _most_bytes: int) -> ClaimedEvents | None:
        await self._ask("claim")
        taken = list(self.pending)[:limit]
        if not taken:
            return None
        redo = [each for each in taken if self.pending.pop(each)]
        claim_id = self.calls["claim"]
        self.held[claim_id] = (taken, 0)
        events = [self.events[each] for each in taken]
        return ClaimedEvents(claim_id, events, redo, 0, VERSION, len(taken) == limit)

    async def claims(self, _owner: int) -> dict[int, int]:
        await self._ask("claims")
        return {claim_id: recorded for claim_id, (_, recorded) in self.held.items()}

    async def recorded(self, events: Sequence[Event]) -> set[Key]:
        event_ids = {event.id for event in events}
        await self._ask("recorded")
        return {key for key in self.states if key[0] in event_ids}

    async def record(
        self,
        _owner: int,
        *,
        first_results: Sequence[DeliveryResult],
        later_results: Sequence[DeliveryResult],
        claims: Sequence[ClaimProgress],
        now: datetime,
    ) -> tuple[set[Key], set[int]]:
        await self._ask("record")
        counted = {each.claim_id for each in claims if self.held[each.claim_id][1] == each.before}
        for each in claims:
            assert each.claim_id in counted
            events, _ = self.held[each.claim_id]
            self.held[each.claim_id] = events, each.after
            if each.finished:
                del self.held[each.claim_id]
        for result in first_results:
            assert (result.event_id, result.endpoint_id) not in self.states
        for result in later_results:
            assert self.states[result.event_id, result.endpoint_id] == "sending"
        for result in (*first_results, *later_results):
            self.states[result.event_id, result.endpoint_id] = result.state
        return {(each.event_id, each.endpoint_id) for each in (*first_results, *later_results)}, counted

    async def claim_waiting(
        self,
        _owner: int,
        wanted: Sequence[WaitingWanted],
        _now: datetime,
        *,
        most_bytes: int,
        most_bytes_each: int,
    ) -> list[ClaimedDelivery]:
        await self._ask("claim_waiting")
        claimed = []
        for want in wanted:
            keys = [
                key
                for key, state in self.states.items()
                if key[1] == want.endpoint_id and state is DeliveryState.WAITING and key[0] >= want.floor
            ]
            for key in sorted(keys)[: want.room]:
                self.states[key] = "sending"
                size = self.events[key[0]].data_bytes
                claimed.append(ClaimedDelivery(*key, self.workspace_of[key[1]], 0, 0, size))
        return sorted(claimed, key=lambda each: each.event_id)

    async def next_due(self) -> None:
        await self._ask("next_due")

    async def waiting_endpoints(self, after: int, limit: int) -> list[int]:
        await self._ask("waiting_endpoints")
        waiting = {key[1] for key, state in self.states.items() if state is DeliveryState.WAITING}
        return sorted(each for each in waiting if each > after)[:limit]

    async def owned(self, _owner: int) -> dict[Key, str]:
        await self._ask("owned")
        return {key: self.workspace_of[key[1]] for key, state in self.states.items() if state == "sending"}

    async def read(self, event_ids: Sequence[UUID]) -> list[Event]:
        await self._ask("read")
        return [self.events[each] for each in event_ids]

    async def release(self, _owner: int, what: Iterable[Any]) -> int:
        await self._ask("release")
        for each in list(what):
            if isinstance(each, int):
                for event_id in self.held.pop(each)[0]:
                    self.pending[event_id] = True
            else:
                self.states[each] = DeliveryState.WAITING
        return 0


class Pending:
    """Stands for the queue of events."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def look_at_all(self) -> None:
        """It always does."""

    async def claim(
        self, _connection: object, owner: int, limit: int, most_bytes: int
    ) -> ClaimedEvents | None:
        return await self._store.claim(owner, limit, most_bytes)


@pytest.fixture(autouse=True)
def verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_verbs(monkeypatch)


class Engine:
    def __init__(
        self,
        store: Store,
        *,
        capacity: int = 64,
        slots: int = 16,
        workers: int = 8,
        recorder: RecorderTuning | None = None,
    ) -> None:
        self.store = store
        clock = SystemClock()
        self.signals = signals = EngineSignals()
        self.ledger = Ledger(owner=1)
        self.lanes = Lanes(
            LanesTuning(capacity=capacity), concurrency=slots, endpoint_concurrency=4, ledger=self.ledger
        )
        anything = cast(Any, store)
        left_waiting = LeftWaiting(signals.schedule)
        self.recorder = Recorder(
            recorder or RecorderTuning(),
            database=anything,
            ledger=self.ledger,
            clock=clock,
            metrics=Metrics("test"),
            failures=Failures(clock),
            readers=Readers(
                waiting=left_waiting, outcomes=Nobody(), last_deliveries=Nobody(), doubt=signals.events_doubt
            ),
        )
        self.keeper = LaneKeeper(
            KeeperTuning(),
            lanes=self.lanes,
            recorder=self.recorder,
            room=signals.dispatch,
            refill=signals.schedule,
            clock=clock,
        )
        self.keeper.update([each for all_of in store.of.values() for each in all_of])
        self.scheduler = Scheduler(
            SchedulerTuning(),
            database=anything,
            lanes=self.lanes,
            keeper=self.keeper,
            ledger=self.ledger,
            recorder=self.recorder,
            clock=clock,
            left_waiting=left_waiting,
            wake=signals.schedule,
            rescan=signals.rescan,
            doubt=signals.deliveries_doubt,
        )
        fan_outs = FanOuts(
            FanOutTuning(),
            database=anything,
            rules=anything,
            lanes=self.lanes,
            keeper=self.keeper,
            recorder=self.recorder,
            ledger=self.ledger,
            clock=clock,
            wake=signals.dispatch,
            doubt=signals.events_doubt,
        )
        self.dispatcher = Dispatcher(
            DispatcherTuning(),
            database=anything,
            pending=cast(Any, Pending(store)),
            endpoints=anything,
            lanes=self.lanes,
            fan_outs=fan_outs,
            recorder=self.recorder,
            ledger=self.ledger,
            clock=clock,
            notify=None,
            wake=signals.dispatch,
            doubt=signals.events_doubt,
        )
        self.sent: Counter[Key] = Counter()
        self.workers = workers
        self.takes_s: Callable[[Job], float] = lambda _job: 0.0
        self.at_end: Callable[[], None] = lambda: None

    async def _work(self) -> None:
        while (job := await self.keeper.take()) is not None:
            await asyncio.sleep(self.takes_s(job))
            self.sent[job.key] += 1
            attempt = Attempt(1, datetime.now(UTC), REPLY)
            self.recorder.put(job, DeliveryState.SUCCEEDED, attempt=attempt, outcome=OK)
            self.keeper.done(job, OK)

    @staticmethod
    async def _keep_running(run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                return await run()
            except DatabaseUnavailable:
                await asyncio.sleep(0.01)

    async def run_until(self, over: Callable[[], bool], timeout: float) -> None:
        runs = (self.dispatcher.run, self.scheduler.run, self.recorder.run, self.keeper.run)
        tasks = [asyncio.create_task(self._keep_running(each)) for each in runs]
        tasks += [asyncio.create_task(self._work()) for _ in range(self.workers)]
        try:
            async with asyncio.timeout(timeout):
                while not over():
                    for task in tasks:
                        if task.done():
                            task.result()
                    await asyncio.sleep(0.005)
        finally:
            for task in tasks:
                task.cancel()
            self.at_end()
            await asyncio.gather(*tasks, return_exceptions=True)

    def settled(self) -> bool:
        """Whether all that was emitted is delivered."""
        store = self.store
        return (
            not store.pending
            and not store.held
            and all(state is DeliveryState.SUCCEEDED for state in store.states.values())
        )


def expected(store: Store) -> set[Key]:
    return {(event.id, each.id) for event in store.events.values() for each in store.of[event.workspace_id]}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("losing", [False, True])
async def test_whatever_is_emitted_is_delivered_once(seed: int, losing: bool) -> None:
    chance = random.Random(seed)
    endpoints, number = [], 0
    for workspace in "abcdef":
        for _ in range(chance.choice((1, 1, 2, 40))):
            number += 1
            endpoints.append(endpoint(number, chance.choice((1, 2, None)), workspace=workspace))
    store = Store(endpoints, away=lambda: losing and chance.random() < 0.03)
    engine = Engine(store, capacity=chance.choice((8, 64, 1000)), workers=chance.choice((2, 8, 32)))
    slow = {each.id for each in endpoints if chance.random() < 0.05}
    engine.takes_s = lambda job: chance.choice((0.0, 0.0, 0.001)) + 0.05 * (job.endpoint_id in slow)
    for _ in range(60):
        store.emit(chance.choice("abcdef"))

    async def go_on() -> None:
        for _ in range(10):
            await asyncio.sleep(0.02)
            for _ in range(chance.randrange(10)):
                store.emit(chance.choice("abcdef"), chance.choice((2, 2, 100_000)))
            engine.signals.dispatch.set()

    going_on = asyncio.create_task(go_on())
    await engine.run_until(lambda: going_on.done() and engine.settled(), 60)
    await going_on
    assert set(engine.sent) == expected(store) == set(store.states)
    assert set(engine.sent.values()) == {1}
    assert (engine.lanes.queued, engine.lanes.running, engine.ledger.bytes) == (0, 0, 0)
    assert not any(engine.ledger.share_bytes.values())


async def test_a_large_fan_out_whose_lane_is_full_for_a_moment_waits_without_spinning() -> None:
    targets = [endpoint(number, workspace="a") for number in range(1, 51)]
    store = Store(targets)
    engine = Engine(store, workers=0)
    offers = 0

    def offer(job: Job, now: float, *, patient: bool) -> Offer:
        nonlocal offers
        offers += 1
        return Offer.FULL

    engine.lanes.offer = offer  # type: ignore[method-assign]
    store.emit("a")
    ends_at = time.monotonic() + 0.5
    await engine.run_until(lambda: time.monotonic() >= ends_at, 5)
    assert 5 < offers <= 0.5 / DispatcherTuning().busy_poll_s + 5


async def turns_of(engine: Engine, seconds: float) -> int:
    """How often the event loop turns meanwhile."""
    turns = 0
    loop = asyncio.get_running_loop()
    run_once = loop._run_once  # type: ignore[attr-defined]

    def counting() -> None:
        nonlocal turns
        turns += 1
        run_once()

    loop._run_once = counting  # type: ignore[attr-defined]
    ends_at = time.monotonic() + seconds
    await engine.run_until(lambda: time.monotonic() >= ends_at, seconds + 30)
    return turns


MOST_TURNS = 1500
"""In a second: `run_until` looks 200 times, and each wait of 10 ms of the dispatcher's takes several."""


async def test_an_engine_with_nothing_to_do_hardly_turns() -> None:
    assert await turns_of(Engine(Store([endpoint(1, workspace="a")])), 1.0) < MOST_TURNS


async def test_an_engine_whose_lanes_all_rest_hardly_turns() -> None:
    targets = [endpoint(number, workspace=workspace) for number, workspace in enumerate("aaaabcd")]
    engine = Engine(Store(targets))
    for target in targets:
        lane = engine.lanes.lane(target.id)
        assert lane is not None
        lane.pace.resume_at = time.monotonic() + 60
        lane.pace.refresh(time.monotonic())
    for _ in range(50):
        engine.store.emit("a")
    assert await turns_of(engine, 1.0) < MOST_TURNS


async def test_an_engine_with_paused_endpoints_and_a_backlog_hardly_turns() -> None:
    targets = [endpoint(number, workspace="a") for number in range(1, 600)]
    engine = Engine(Store(targets))
    engine.keeper.update([replace(each, state=EndpointState.PAUSED) for each in targets])
    for _ in range(3):
        engine.store.emit("a")
    await engine.run_until(lambda: not engine.store.held and not engine.store.pending, 30)
    assert set(engine.store.states.values()) == {DeliveryState.WAITING}
    assert await turns_of(engine, 1.0) < MOST_TURNS


async def test_an_engine_whose_results_can_not_be_recorded_hardly_turns() -> None:
    targets = [endpoint(number, workspace="a") for number in range(1, 200)]
    engine = Engine(Store(targets), recorder=RecorderTuning(congested_from=100))
    locked = asyncio.Event()

    async def record(*_arguments: object, **_named: object) -> None:
        locked.clear()
        await locked.wait()
        raise DatabaseUnavailable("away")

    engine.at_end = locked.set
    engine.store.record = record  # type: ignore[method-assign,assignment]
    for _ in range(20):
        engine.store.emit("a")
    await engine.run_until(lambda: engine.recorder.congested, 10)
    assert await turns_of(engine, 1.0) < MOST_TURNS

"""The keeper of the lanes: workers get every job, once; what the lanes decide is done."""

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from postrider.domain.model import DeliveryState, Endpoint, EndpointState, ErrorKind, Event
from postrider.domain.policy import Outcome
from postrider.engine.decisions import Offer
from postrider.engine.ledger import HeldEvent, Job
from tests.support.clock import FakeClock
from tests.support.endpoints import endpoint
from tests.support.lanes import KeptLanes, kept_lanes

OK = Outcome(DeliveryState.SUCCEEDED, None, None, "HTTP 200", None, throttled=False)
TIMEOUT = Outcome(DeliveryState.RETRYING, None, ErrorKind.TIMEOUT, "timeout", None, throttled=False)


def job(target: Endpoint) -> Job:
    event = Event(uuid4(), "default", "a.b", "{}", 2, None, None, None, None, None, datetime.now(UTC))
    return Job(HeldEvent(event, 1), target.id)


def kept_for(*endpoints: Endpoint, concurrency: int = 4) -> tuple[KeptLanes, FakeClock]:
    clock = FakeClock()
    kept = kept_lanes(cast(Any, None), clock, capacity=1000, concurrency=8, endpoint_concurrency=concurrency)
    kept.keeper.update(endpoints)
    return kept, clock


def offer(kept: KeptLanes, target: Endpoint) -> Offer:
    offered = kept.lanes.offer(job(target), kept.keeper._clock.monotonic(), patient=False)
    if offered is Offer.TAKEN:
        kept.keeper.send(1)
    return offered


def run(story: Coroutine[Any, Any, object]) -> None:
    asyncio.run(asyncio.wait_for(story, 10))


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_worker_that_waits_gets_what_becomes_possible() -> None:
    async def story() -> None:
        target = endpoint(1, concurrency=1)
        kept, _ = kept_for(target)
        waiting = [asyncio.ensure_future(kept.keeper.take()) for _ in range(2)]
        await settled()
        assert offer(kept, target) is offer(kept, target) is Offer.TAKEN
        await settled()
        assert [each.done() for each in waiting] == [True, False]
        kept.keeper.done(cast(Job, waiting[0].result()), OK)
        assert (await kept.keeper.take()) is not None  # the worker that finished finds the slot that it freed
        kept.keeper.close()
        assert await waiting[1] is None

    run(story())


def test_what_lanes_give_back_is_recorded_and_what_became_of_them_is_logged() -> None:
    async def story() -> None:
        target = endpoint(1)
        kept, clock = kept_for(target)
        kept.lanes.want_room(1)
        for _ in range(20):
            offer(kept, target)
        with capture_logs() as logs:
            for _ in range(5):
                kept.keeper.done(cast(Job, await kept.keeper.take()), TIMEOUT)
        assert [each["event"] for each in logs] == ["lane.throttled", "lane.broken"]
        assert (logs[1]["reason"], logs[1]["pause_s"], logs[1]["log_level"]) == ("timeout", 1.0, "warning")
        states = [entry.result.state for entry in kept.recorder._entries]
        assert states == [DeliveryState.WAITING] * 15
        assert kept.signals.dispatch
        kept.lanes.note_recorded(1, uuid4(), 15)
        assert not kept.signals.schedule
        clock.advance(1.1)
        kept.keeper.run_once()
        assert kept.signals.schedule

    run(story())


def test_what_a_deleted_endpoint_had_in_its_lane_is_recorded_as_cancelled() -> None:
    async def story() -> None:
        paused, deleted = endpoint(1), endpoint(2)
        kept, _ = kept_for(paused, deleted)
        offer(kept, paused)
        offer(kept, deleted)
        kept.keeper.update([replace(paused, state=EndpointState.PAUSED)], gone=[2])
        states = {entry.result.endpoint_id: entry.result.state for entry in kept.recorder._entries}
        assert states == {1: DeliveryState.WAITING, 2: DeliveryState.CANCELLED}

    run(story())


def test_lanes_are_looked_after_as_long_as_one_needs_it() -> None:
    async def story() -> None:
        target = endpoint(1)
        kept, clock = kept_for(target)
        running = asyncio.create_task(kept.keeper.run())
        await settled()
        offer(kept, target)
        taken = cast(Job, await kept.keeper.take())
        await settled()
        clock.advance(1.0)
        await settled()
        lane = kept.lanes.lane(1)
        assert lane is not None
        assert lane.slow
        kept.keeper.done(taken, OK)
        for _ in range(3):
            await settled()
            clock.advance(0.1)
        await settled()
        assert not kept.lanes.watched
        assert "still" in repr(kept.keeper)
        running.cancel()

    run(story())


def test_no_job_is_left_behind_whatever_the_interleaving() -> None:
    async def story(seed: int) -> None:
        chance = random.Random(seed)
        targets = [endpoint(number, concurrency=chance.randrange(1, 4)) for number in range(1, 8)]
        kept, _ = kept_for(*targets)
        concurrency = {target.id: target.concurrency or 0 for target in targets}
        running: Counter[int] = Counter()
        done = 0

        async def work() -> None:
            nonlocal done
            while (each := await kept.keeper.take()) is not None:
                running[each.endpoint_id] += 1
                assert running[each.endpoint_id] <= concurrency[each.endpoint_id]
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
                running[each.endpoint_id] -= 1
                done += 1
                kept.keeper.done(each, OK)

        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(work())
            offered = 0
            for _ in range(300):
                offered += offer(kept, chance.choice(targets)) is Offer.TAKEN
                if chance.random() < 0.3:
                    await asyncio.sleep(0)
            while done < offered:
                await asyncio.sleep(0)
            kept.keeper.close()
        assert (kept.lanes.queued, kept.lanes.running) == (0, 0)

    for seed in range(20):
        run(story(seed))


@pytest.mark.parametrize("seed", range(20))
def test_no_job_is_left_behind_however_few_may_begin_in_a_turn(seed: int) -> None:
    """Nor does the event loop go on turning once nothing can begin."""

    async def story() -> None:
        chance = random.Random(seed)
        targets = [
            endpoint(number, chance.randrange(1, 4), workspace=chance.choice("ab")) for number in range(8)
        ]
        kept, clock = kept_for(*targets)
        done = offered = turns = 0

        async def work() -> None:
            nonlocal done
            while (each := await kept.keeper.take()) is not None:
                clock.advance(chance.choice((0.0, 0.0005, 0.002)))
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
                done += 1
                kept.keeper.done(each, chance.choice((OK, OK, None)))

        workers = [asyncio.create_task(work()) for _ in range(chance.choice((1, 3, 20)))]
        for _ in range(200):
            offered += offer(kept, chance.choice(targets)) is Offer.TAKEN
            if chance.random() < 0.2:
                await asyncio.sleep(0)
            if chance.random() < 0.05:  # one that waits, or has just been woken, goes
                gone = workers.pop(chance.randrange(len(workers)))
                if any(not task.done() for task in workers) and not kept.lanes.running:
                    gone.cancel()
                    workers.append(asyncio.create_task(work()))
                else:
                    workers.append(gone)
        while done < offered:
            turns += 1
            assert turns < 10_000, kept
            await asyncio.sleep(0)
        await settled()
        loop = asyncio.get_running_loop()
        assert not loop._ready  # type: ignore[attr-defined]
        kept.keeper.close()
        await asyncio.gather(*workers)

    run(story())


def test_requests_begin_by_and_by_where_the_event_loop_would_take_long() -> None:
    kept, clock = kept_for(*(endpoint(number) for number in range(400)), concurrency=1)

    async def begin_all(cost_s: float) -> int:
        """How many began in the busiest turn, if each takes the loop so long."""
        turn, begun = 0, Counter[int]()

        async def count() -> None:
            nonlocal turn
            while True:
                turn += 1
                await asyncio.sleep(0)

        async def work() -> None:
            while (job := await kept.keeper.take()) is not None:
                begun[turn] += 1
                clock.advance(cost_s)
                kept.keeper.done(job, OK)

        counter = asyncio.create_task(count())
        for number in range(400):
            offer(kept, endpoint(number))
        workers = [asyncio.create_task(work()) for _ in range(8)]
        while kept.lanes.queued:
            await asyncio.sleep(0)
        for each in (counter, *workers):
            each.cancel()
        assert begun.total() == 400
        return max(list(begun.values())[-10:])

    assert asyncio.run(begin_all(0.001)) <= 3
    assert asyncio.run(begin_all(0.0)) > 16

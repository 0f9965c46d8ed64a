"""Lanes: fair turns, bounded memory, and verdicts on what they can't take."""

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from postrider.domain.model import DeliveryState, Endpoint, EndpointState, ErrorKind, Event
from postrider.domain.policy import Outcome
from postrider.services.lanes import SLOW_AFTER_S, Lanes, Offer
from postrider.services.work import Job, OpenEvent
from tests.support.clock import FakeClock


def endpoint(number: int, concurrency: int | None = None) -> Endpoint:
    return Endpoint(
        id=number,
        workspace_id="default",
        url="https://example.com",
        patterns=("*",),
        exclusions=(),
        dialect="standard",
        secrets=(),
        state=EndpointState.ACTIVE,
        concurrency=concurrency,
        headers={},
        failing_since=None,
    )


def job(target: Endpoint) -> Job:
    event = Event(uuid4(), "default", "a.b", "{}", 2, None, None, None, None, None, datetime.now(UTC))
    return Job(OpenEvent(event, 1), target, attempts=0, attempt_base=0, first=True)


OK = Outcome(DeliveryState.SUCCEEDED, None, None, "HTTP 200", None, throttled=False)
TIMEOUT = Outcome(DeliveryState.RETRYING, None, ErrorKind.TIMEOUT, "timeout", None, throttled=False)


def lanes_for(*endpoints: Endpoint, capacity: int = 1000, concurrency: int = 4) -> tuple[Lanes, FakeClock]:
    clock = FakeClock()
    lanes = Lanes(capacity=capacity, concurrency=8, endpoint_concurrency=concurrency, clock=clock)
    lanes.update(endpoints)
    return lanes, clock


def run(story: Coroutine[Any, Any, object]) -> None:
    asyncio.run(asyncio.wait_for(story, 10))


async def take(lanes: Lanes, count: int) -> list[Job]:
    taken = [await lanes.take() for _ in range(count)]
    return [each for each in taken if each is not None]


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_lanes_take_turns() -> None:
    async def story() -> None:
        busy, quiet = endpoint(1), endpoint(2)
        lanes, _ = lanes_for(busy, quiet)
        for _ in range(4):
            lanes.offer(job(busy))
        lanes.offer(job(quiet))
        taken = [await lanes.take() for _ in range(3)]
        assert [each.endpoint.id for each in taken if each] == [1, 2, 1]

    run(story())


def test_a_lane_never_exceeds_its_concurrency() -> None:
    async def story() -> None:
        target = endpoint(1, concurrency=2)
        lanes, _ = lanes_for(target)
        for _ in range(3):
            lanes.offer(job(target))
        first = await lanes.take()
        await lanes.take()
        third = asyncio.ensure_future(lanes.take())
        await asyncio.sleep(0)
        assert not third.done()
        assert first is not None
        lanes.done(first, OK)
        # The worker that finished takes again, and finds the slot that it freed.
        assert (await lanes.take()) is not None
        third.cancel()

    run(story())


def test_a_full_lane_says_whether_waiting_for_it_pays() -> None:
    target, other = endpoint(1), endpoint(2)
    lanes, clock = lanes_for(target, other, concurrency=2)
    while (offer := lanes.offer(job(target))) is Offer.TAKEN:
        pass
    assert offer is Offer.FULL
    clock.advance(SLOW_AFTER_S + 0.1)
    assert lanes.offer(job(target)) is Offer.FULL  # it has slots to spare: it waits for the daemon alone
    run(take(lanes, 2))
    assert lanes.offer(job(target)) is Offer.TAKEN
    assert lanes.offer(job(target)) is Offer.TAKEN
    assert lanes.offer(job(target)) is Offer.SLOW
    assert lanes.offer(job(other)) is Offer.TAKEN


def test_full_lanes_together_leave_room_for_others() -> None:
    slow = [endpoint(number) for number in range(1, 200)]
    late = endpoint(1000)
    lanes, _ = lanes_for(*slow, late, capacity=1000, concurrency=2)
    for target in slow:
        while lanes.offer(job(target)) is Offer.TAKEN:
            pass
    assert lanes.offer(job(late)) is Offer.TAKEN
    assert lanes.queued <= 1000 + 200 * 2


def test_a_lane_that_is_behind_takes_nothing_new() -> None:
    target = endpoint(1)
    lanes, _ = lanes_for(target)
    lanes.mark_behind(1)
    assert lanes.offer(job(target)) is Offer.BEHIND
    lane = lanes.lane(1)
    assert lane is not None
    lanes.mark_caught_up(lane)
    assert lanes.offer(job(target)) is Offer.TAKEN


def test_a_lane_that_closes_gives_back_its_jobs_and_is_behind_when_it_reopens() -> None:
    target = endpoint(1)
    lanes, _ = lanes_for(target)
    waiting = job(target)
    lanes.offer(waiting)
    asked: list[str] = []
    lanes.on_refill = lambda: asked.append("refill")
    assert lanes.update([replace(target, state=EndpointState.PAUSED)]) == [waiting]
    assert lanes.offer(job(target)) is Offer.CLOSED
    assert lanes.update([target]) == []
    assert [lane.endpoint.id for lane in lanes.behind()] == [1]
    assert asked == ["refill"]
    assert lanes.queued == 0


def test_an_unknown_endpoint_is_closed() -> None:
    lanes, _ = lanes_for()
    assert lanes.offer(job(endpoint(1))) is Offer.CLOSED
    assert not lanes.mark_behind(1)


def test_an_endpoint_that_does_not_answer_gives_its_jobs_back_and_is_probed_by_one() -> None:
    async def story() -> None:
        target = endpoint(1)
        lanes, clock = lanes_for(target)
        returned: list[Job] = []
        lanes.on_return = returned.append
        asked: list[str] = []
        lanes.on_refill = lambda: asked.append("refill")
        for _ in range(20):
            lanes.offer(job(target))
        for _ in range(5):
            for each in await take(lanes, 1):
                lanes.done(each, TIMEOUT)
        assert len(returned) == 15
        assert lanes.offer(job(target)) is Offer.SLOW
        lanes.mark_behind(1)
        lane = lanes.lane(1)
        assert lane is not None
        assert lanes.room_of(lane) <= 0
        clock.advance(1.1)
        lanes.tick()
        assert asked
        assert lanes.room_of(lane) == 1
        lanes.push(lane, job(target))
        assert lanes.room_of(lane) == 0
        (probe,) = await take(lanes, 1)
        assert lanes.room_of(lane) == 0
        lanes.done(probe, OK)
        assert lanes.room_of(lane) > 1

    run(story())


def test_endpoints_that_never_answer_leave_half_of_the_slots_to_the_others() -> None:
    async def story() -> None:
        silent = [endpoint(number) for number in range(1, 6)]
        healthy = endpoint(100)
        lanes, clock = lanes_for(*silent, healthy)  # 8 slots
        lanes.offer(job(healthy))
        (proof,) = await take(lanes, 1)
        clock.advance(0.01)
        lanes.done(proof, OK)
        for target in silent:
            for _ in range(10):
                lanes.offer(job(target))
        stuck = [asyncio.ensure_future(lanes.take()) for _ in range(8)]
        await settled()
        assert sum(each.done() for each in stuck) == 4
        lanes.offer(job(healthy))
        await settled()
        assert sum(each.done() for each in stuck) == 5
        clock.advance(SLOW_AFTER_S + 0.1)
        lanes.tick()
        await settled()
        assert sum(each.done() for each in stuck) == 5
        for taking in stuck:
            taking.cancel()

    run(story())


def test_an_endpoint_that_waits_for_a_share_held_by_the_silent_keeps_nobody_waiting() -> None:
    async def story() -> None:
        silent, late = [endpoint(1), endpoint(2)], endpoint(3)
        lanes, clock = lanes_for(*silent, late)  # 8 slots, of which the silent hold 4
        for target in silent:
            for _ in range(10):
                lanes.offer(job(target))
        await take(lanes, 4)
        while (offer := lanes.offer(job(late))) is Offer.TAKEN:
            pass
        assert offer is Offer.FULL
        clock.advance(SLOW_AFTER_S + 0.1)
        lanes.tick()
        assert lanes.offer(job(late)) is Offer.SLOW

    run(story())


def test_a_lane_that_turns_slow_keeps_in_memory_what_its_slots_need() -> None:
    async def story() -> None:
        target = endpoint(1)
        lanes, clock = lanes_for(target)
        returned: list[Job] = []
        lanes.on_return = returned.append
        for _ in range(32):
            assert lanes.offer(job(target)) is Offer.TAKEN
        await take(lanes, 4)
        clock.advance(SLOW_AFTER_S + 0.1)
        lanes.tick()
        assert (len(returned), lanes.queued) == (24, 4)

    run(story())


def test_a_rate_limit_holds_jobs_until_their_time() -> None:
    async def story() -> None:
        target = replace(endpoint(1), rate=10.0)
        lanes, clock = lanes_for(target)
        for _ in range(8):
            lanes.offer(job(target))
        (first,) = await take(lanes, 1)
        second = asyncio.ensure_future(lanes.take())
        await asyncio.sleep(0)
        assert not second.done()
        lanes.done(first, OK)
        clock.advance(0.11)
        lanes.tick()
        await settled()
        assert second.done()

    run(story())


def test_no_job_is_left_behind_whatever_the_interleaving() -> None:
    async def story(seed: int) -> None:
        chance = random.Random(seed)
        targets = [endpoint(number, concurrency=chance.randrange(1, 4)) for number in range(1, 8)]
        lanes, _ = lanes_for(*targets)
        running: Counter[int] = Counter()
        done = 0

        async def work() -> None:
            nonlocal done
            while (each := await lanes.take()) is not None:
                running[each.endpoint.id] += 1
                assert running[each.endpoint.id] <= (each.endpoint.concurrency or 0)
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
                running[each.endpoint.id] -= 1
                done += 1
                lanes.done(each, OK)

        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(work())
            offered = 0
            for _ in range(300):
                offered += lanes.offer(job(chance.choice(targets))) is Offer.TAKEN
                if chance.random() < 0.3:
                    await asyncio.sleep(0)
            while done < offered:
                await asyncio.sleep(0)
            lanes.close()
        assert (lanes.queued, lanes.running) == (0, 0)

    for seed in range(20):
        run(story(seed))

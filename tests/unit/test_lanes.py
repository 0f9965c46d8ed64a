"""Lanes: fair turns, bounded memory, and verdicts on what they can't take."""

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from postrider.domain.model import Endpoint, EndpointState, Event
from postrider.services.lanes import SLOW_AFTER_S, Lanes, Offer
from postrider.services.work import Job, OpenEvent


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


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def lanes_for(*endpoints: Endpoint, capacity: int = 1000, concurrency: int = 4) -> tuple[Lanes, Time]:
    time = Time()
    lanes = Lanes(capacity=capacity, endpoint_concurrency=concurrency, monotonic=time)
    lanes.update(endpoints)
    return lanes, time


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 10))


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
        lanes.done(first)
        # The worker that finished takes again, and finds the slot that it freed.
        assert (await lanes.take()) is not None
        third.cancel()

    run(story())


def test_a_full_lane_says_whether_waiting_for_it_pays() -> None:
    target, other = endpoint(1), endpoint(2)
    lanes, time = lanes_for(target, other, concurrency=2)
    while (offer := lanes.offer(job(target))) is Offer.TAKEN:
        pass
    assert offer is Offer.FULL
    time.now += SLOW_AFTER_S + 0.1
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
                lanes.done(each)

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

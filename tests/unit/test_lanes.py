"""Lanes: fair turns, bounded memory, and verdicts on what they can't take."""

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postrider.domain.model import DeliveryState, Endpoint, EndpointState, ErrorKind, Event
from postrider.domain.policy import Outcome
from postrider.engine.lanes import CATCH_UP, PATIENCE_S, SLOW_AFTER_S, Lanes, Offer
from postrider.engine.ledger import SLOW_SHARE, UNTRIED_SHARE, HeldEvent, Job, Ledger
from tests.support.clock import FakeClock
from tests.support.endpoints import endpoint


def job(target: Endpoint, cost: int = 1) -> Job:
    event = Event(uuid4(), "default", "a.b", "{}", 2, None, None, None, None, None, datetime.now(UTC))
    return Job(HeldEvent(event, cost), target.id)


OK = Outcome(DeliveryState.SUCCEEDED, None, None, "HTTP 200", None, throttled=False)
TIMEOUT = Outcome(DeliveryState.RETRYING, None, ErrorKind.TIMEOUT, "timeout", None, throttled=False)


def lanes_for(*endpoints: Endpoint, capacity: int = 1000, concurrency: int = 4) -> tuple[Lanes, FakeClock]:
    clock = FakeClock()
    lanes = Lanes(
        capacity=capacity, concurrency=8, endpoint_concurrency=concurrency, ledger=Ledger(), clock=clock
    )
    lanes.update(endpoints)
    return lanes, clock


def run(story: Coroutine[Any, Any, object]) -> None:
    asyncio.run(asyncio.wait_for(story, 10))


async def take(lanes: Lanes, count: int) -> list[Job]:
    taken = [await lanes.take() for _ in range(count)]
    return [each for each in taken if each is not None]


def offer(lanes: Lanes, target: Endpoint, *, patient: bool = False) -> Offer:
    return lanes.offer(job(target), patient=patient)


def taken(lanes: Lanes, target: Endpoint, most: int = 10_000, *, patient: bool = False) -> int:
    """Offer deliveries until one is not taken; return how many were."""
    count = 0
    while count < most and offer(lanes, target, patient=patient) is Offer.TAKEN:
        count += 1
    return count


async def prove(lanes: Lanes, clock: FakeClock, *targets: Endpoint, latency_s: float = 0.01) -> None:
    """Let each of them answer once."""
    for target in targets:
        assert offer(lanes, target) is Offer.TAKEN
        (proof,) = await take(lanes, 1)
        clock.advance(latency_s)
        lanes.done(proof, OK)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_lanes_take_turns() -> None:
    async def story() -> None:
        busy, quiet = endpoint(1), endpoint(2)
        lanes, clock = lanes_for(busy, quiet)
        await prove(lanes, clock, busy, quiet)
        assert taken(lanes, busy, 4) == 4
        offer(lanes, quiet)
        assert [each.endpoint_id for each in await take(lanes, 3)] == [1, 2, 1]

    run(story())


def test_workspaces_take_turns_however_many_endpoints_each_of_them_has() -> None:
    async def story() -> None:
        many = [endpoint(number, workspace="many") for number in range(1, 51)]
        few = endpoint(100, workspace="few")
        lanes, clock = lanes_for(*many, few)
        await prove(lanes, clock, *many, few)
        for target in many:
            offer(lanes, target)
        assert taken(lanes, few, 2) == 2
        assert [each.endpoint_id for each in await take(lanes, 4)] == [1, 100, 2, 100]

    run(story())


def test_a_lane_never_exceeds_its_concurrency() -> None:
    async def story() -> None:
        target = endpoint(1, concurrency=2)
        lanes, clock = lanes_for(target)
        await prove(lanes, clock, target)
        assert taken(lanes, target, 3) == 3
        first, _ = await take(lanes, 2)
        third = asyncio.ensure_future(lanes.take())
        await asyncio.sleep(0)
        assert not third.done()
        lanes.done(first, OK)
        # The worker that finished takes again, and finds the slot that it freed.
        assert (await lanes.take()) is not None
        third.cancel()

    run(story())


def test_an_endpoint_that_never_answered_gets_one_request_at_a_time() -> None:
    async def story() -> None:
        target = endpoint(1)
        lanes, clock = lanes_for(target)
        assert taken(lanes, target, 4) == 4
        (first,) = await take(lanes, 1)
        second = asyncio.ensure_future(lanes.take())
        await settled()
        assert not second.done()
        clock.advance(0.01)
        lanes.done(first, OK)
        assert len(await take(lanes, 1)) == 1
        lanes.tick()
        await settled()
        assert second.done()

    run(story())


def test_a_full_lane_is_worth_waiting_for_where_the_daemon_is_the_bottleneck() -> None:
    target, other = endpoint(1), endpoint(2)
    lanes, clock = lanes_for(target, other, concurrency=2)
    taken(lanes, target, patient=True)
    assert offer(lanes, target, patient=True) is Offer.FULL
    clock.advance(PATIENCE_S + 0.01)
    assert offer(lanes, target, patient=True) is Offer.FULL
    assert offer(lanes, target) is Offer.SPILLED
    assert offer(lanes, target) is Offer.SPILLED
    # Older ones are in the database by now, but so few that it will soon have caught up.
    assert offer(lanes, target, patient=True) is Offer.FULL
    lanes.mark_behind(1, uuid4(), CATCH_UP)
    assert offer(lanes, target, patient=True) is Offer.SPILLED
    assert offer(lanes, other) is Offer.TAKEN


def test_a_full_lane_with_a_free_slot_waits_for_the_daemon_and_is_waited_for() -> None:
    async def story() -> None:
        target = endpoint(1)
        lanes, clock = lanes_for(target, concurrency=2)
        taken(lanes, target, 1)
        (first,) = await take(lanes, 1)
        lanes.done(first, OK)
        taken(lanes, target)
        clock.advance(60)
        assert offer(lanes, target) is Offer.FULL
        await take(lanes, lanes.lane(1).pace.limit)  # type: ignore[union-attr]
        while offer(lanes, target) is Offer.TAKEN:
            pass
        clock.advance(60)
        assert offer(lanes, target) is Offer.SPILLED

    run(story())


def test_a_full_lane_that_is_too_slow_for_what_comes_keeps_nobody_waiting() -> None:
    target = endpoint(1)
    lanes, clock = lanes_for(target, concurrency=1)
    taken(lanes, target)
    assert offer(lanes, target) is Offer.FULL  # it became full just now
    clock.advance(PATIENCE_S + 0.01)
    assert offer(lanes, target) is Offer.SPILLED


def test_full_lanes_together_leave_room_for_others() -> None:
    slow = [endpoint(number) for number in range(1, 200)]
    late = endpoint(1000)
    lanes, _ = lanes_for(*slow, late, capacity=1000, concurrency=2)
    for target in slow:
        taken(lanes, target)
    assert offer(lanes, late) is Offer.TAKEN
    assert lanes.queued <= 1000 + 200 * 2


def test_a_lane_that_answers_fast_holds_what_it_can_send_within_a_moment() -> None:
    async def story() -> None:
        fast, slow = endpoint(1), endpoint(2)
        lanes, clock = lanes_for(fast, slow, capacity=100_000)
        await prove(lanes, clock, fast, latency_s=0.001)
        await prove(lanes, clock, slow, latency_s=0.2)
        assert taken(lanes, fast) > 10 * taken(lanes, slow)

    run(story())


def test_a_lane_that_is_behind_takes_nothing_new() -> None:
    target = endpoint(1)
    lanes, _ = lanes_for(target)
    lanes.mark_behind(1)
    assert offer(lanes, target, patient=True) is Offer.SPILLED
    lane = lanes.lane(1)
    assert lane is not None
    lanes.mark_caught_up(lane)
    assert offer(lanes, target) is Offer.SPILLED  # the one before is not recorded yet
    lanes.recorded_waiting(1, uuid4())
    lanes.recorded_waiting(1, uuid4())
    lanes.mark_caught_up(lane)
    assert offer(lanes, target) is Offer.TAKEN


def test_a_lane_is_refilled_from_the_first_event_that_waits_for_it() -> None:
    target = endpoint(1)
    lanes, _ = lanes_for(target)
    earlier, later = UUID(int=7), UUID(int=9)
    lanes.mark_behind(1, later)
    lanes.mark_behind(1, earlier)
    (lane,), _ = lanes.refillable(10)
    assert lane.floor == earlier
    lanes.mark_caught_up(lane)
    assert lanes.refillable(10) == ([], False)
    lanes.mark_behind(1, later)
    assert lane.floor == later


def test_lanes_that_are_behind_take_turns_to_be_refilled() -> None:
    lanes, _ = lanes_for(*map(endpoint, range(1, 6)))
    for number in range(1, 6):
        lanes.mark_behind(number)
    turns = [lanes.refillable(2) for _ in range(3)]
    assert [[lane.endpoint.id for lane in found] for found, _ in turns] == [[1, 2], [3, 4], [5, 1]]
    assert all(more for _, more in turns)


def test_a_lane_that_closes_gives_back_its_jobs_and_is_behind_when_it_reopens() -> None:
    target = endpoint(1)
    lanes, _ = lanes_for(target)
    waiting = job(target)
    lanes.offer(waiting, patient=False)
    asked: list[str] = []
    lanes.on_refill = lambda: asked.append("refill")
    assert lanes.update([replace(target, state=EndpointState.PAUSED)]) == [waiting]
    assert offer(lanes, target) is Offer.SPILLED
    lanes.recorded_waiting(1, uuid4())
    lanes.recorded_waiting(1, uuid4())
    assert lanes.refillable(10) == ([], False)
    assert lanes.update([target]) == []
    assert [lane.endpoint.id for lane in lanes.refillable(10)[0]] == [1]
    assert asked == ["refill"]
    assert lanes.queued == 0


def test_an_endpoint_that_is_gone_gives_back_its_jobs_and_finishes_what_is_under_way() -> None:
    async def story() -> None:
        target = endpoint(1)
        lanes, _ = lanes_for(target)
        taken(lanes, target, 3)
        (under_way,) = await take(lanes, 1)
        assert len(lanes.update([], gone=[1])) == 2
        assert lanes.endpoint(1) is None
        assert not lanes.mark_behind(1)
        lanes.done(under_way, OK)
        assert (lanes.queued, lanes.running) == (0, 0)

    run(story())


def test_an_endpoint_that_does_not_answer_gives_its_jobs_back_and_is_probed_by_one() -> None:
    async def story() -> None:
        target = endpoint(1)
        lanes, clock = lanes_for(target)
        returned: list[Job] = []
        lanes.on_return = returned.append
        asked: list[str] = []
        lanes.on_refill = lambda: asked.append("refill")
        assert taken(lanes, target, 20) == 20
        for _ in range(5):
            for each in await take(lanes, 1):
                lanes.done(each, TIMEOUT)
        assert len(returned) == 15
        assert offer(lanes, target) is Offer.SPILLED
        for _ in range(16):
            lanes.recorded_waiting(1, uuid4())
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


def test_endpoints_that_are_slow_or_never_answered_leave_half_of_the_slots_to_the_others() -> None:
    async def story() -> None:
        silent = [endpoint(number) for number in range(1, 7)]
        healthy = endpoint(100)
        lanes, clock = lanes_for(*silent, healthy)  # 8 slots
        await prove(lanes, clock, healthy)
        for target in silent:
            taken(lanes, target, 10)
        stuck = [asyncio.ensure_future(lanes.take()) for _ in range(8)]
        await settled()
        assert sum(each.done() for each in stuck) == 4
        offer(lanes, healthy)
        await settled()
        assert sum(each.done() for each in stuck) == 5
        clock.advance(SLOW_AFTER_S + 0.1)
        lanes.tick()
        await settled()
        assert sum(each.done() for each in stuck) == 5
        for taking in stuck:
            taking.cancel()

    run(story())


def test_endpoints_known_to_fail_leave_half_of_that_half_to_those_that_may_answer() -> None:
    """As after a restart, when none has answered yet."""

    async def story() -> None:
        failing = [replace(endpoint(number), failing_since=datetime.now(UTC)) for number in range(1, 7)]
        healthy = [endpoint(number) for number in range(101, 104)]
        lanes, _ = lanes_for(*failing, *healthy)  # 8 slots, 4 of them for those that never answered
        for target in failing:
            taken(lanes, target, 10)
        stuck = [asyncio.ensure_future(lanes.take()) for _ in range(8)]
        await settled()
        assert sum(each.done() for each in stuck) == 2
        for target in healthy:
            offer(lanes, target)
        await settled()
        first = [each.result() for each in stuck if each.done()]
        assert sorted(each.endpoint_id for each in first if each) == [1, 2, 101, 102]
        for taking in stuck:
            taking.cancel()

    run(story())


def test_an_endpoint_that_waits_for_a_share_held_by_the_silent_keeps_nobody_waiting() -> None:
    async def story() -> None:
        silent, late = [endpoint(number) for number in range(1, 5)], endpoint(9)
        lanes, clock = lanes_for(*silent, late)  # 8 slots, of which the silent hold 4
        for target in silent:
            taken(lanes, target, 10)
        await take(lanes, 4)
        taken(lanes, late)
        assert offer(lanes, late, patient=True) is Offer.FULL
        clock.advance(SLOW_AFTER_S + 0.1)
        lanes.tick()
        assert offer(lanes, late, patient=True) is Offer.SPILLED

    run(story())


def test_lanes_that_never_answered_and_slow_ones_leave_memory_to_each_other_and_to_the_rest() -> None:
    async def story() -> None:
        untried, slow, healthy = endpoint(1), [endpoint(2), endpoint(3)], endpoint(100)
        lanes, clock = lanes_for(untried, *slow, healthy, concurrency=64)
        await prove(lanes, clock, healthy)
        await prove(lanes, clock, *slow, latency_s=1.0)

        def held(*targets: Endpoint) -> int:
            count = 0
            while lanes.offer(job(targets[count % len(targets)], 1 << 20), patient=False) is Offer.TAKEN:
                count += 1
            return count

        assert held(untried) == UNTRIED_SHARE >> 20
        assert held(*slow) <= SLOW_SHARE >> 20
        assert lanes.offer(job(healthy, cost=1 << 20), patient=False) is Offer.TAKEN

    run(story())


def test_a_lane_that_is_behind_is_refilled_though_more_is_on_its_way_to_the_database() -> None:
    target = endpoint(1)
    lanes, _ = lanes_for(target)
    lanes.mark_behind(1)
    assert offer(lanes, target) is Offer.SPILLED
    found, _ = lanes.refillable(10)
    assert [lane.endpoint.id for lane in found] == [1]


def test_what_silent_lanes_hold_does_not_crowd_out_the_others() -> None:
    silent, healthy = [endpoint(number) for number in range(1, 300)], endpoint(1000)
    lanes, _ = lanes_for(*silent, healthy, capacity=1000)
    for target in silent:
        taken(lanes, target)
    assert lanes.queued > 1000
    assert not lanes.crowded


def test_an_endpoint_that_moves_to_another_workspace_keeps_its_turn() -> None:
    async def story() -> None:
        target = endpoint(1)
        lanes, _ = lanes_for(target)
        taken(lanes, target, 2)
        lanes.mark_behind(1)
        lanes.update([replace(target, workspace_id="other", url="https://other.example.com")])
        (first,) = await take(lanes, 1)
        lanes.done(first, OK)
        assert len(await take(lanes, 1)) == 1
        (behind,), _ = lanes.refillable(10)
        lanes.mark_caught_up(behind)
        assert lanes.refillable(10) == ([], False)

    run(story())


def test_a_lane_that_turns_slow_keeps_in_memory_what_its_slots_need() -> None:
    async def story() -> None:
        target = endpoint(1)
        lanes, clock = lanes_for(target)
        await prove(lanes, clock, target)
        returned: list[Job] = []
        lanes.on_return = returned.append
        assert taken(lanes, target, 32) == 32
        await take(lanes, 4)
        clock.advance(SLOW_AFTER_S + 0.1)
        lanes.tick()
        assert (len(returned), lanes.queued) == (24, 4)

    run(story())


def test_a_rate_limit_holds_jobs_until_their_time() -> None:
    async def story() -> None:
        target = replace(endpoint(1), rate=10.0)
        lanes, clock = lanes_for(target)
        taken(lanes, target, 4)
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
        concurrency = {target.id: target.concurrency or 0 for target in targets}
        running: Counter[int] = Counter()
        done = 0

        async def work() -> None:
            nonlocal done
            while (each := await lanes.take()) is not None:
                running[each.endpoint_id] += 1
                assert running[each.endpoint_id] <= concurrency[each.endpoint_id]
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
                running[each.endpoint_id] -= 1
                done += 1
                lanes.done(each, OK)

        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(work())
            offered = 0
            for _ in range(300):
                offered += offer(lanes, chance.choice(targets)) is Offer.TAKEN
                if chance.random() < 0.3:
                    await asyncio.sleep(0)
            while done < offered:
                await asyncio.sleep(0)
            lanes.close()
        assert (lanes.queued, lanes.running) == (0, 0)

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
        lanes, clock = lanes_for(*targets)
        done = offered = turns = 0

        async def work() -> None:
            nonlocal done
            while (each := await lanes.take()) is not None:
                clock.advance(chance.choice((0.0, 0.0005, 0.002)))
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
                done += 1
                lanes.done(each, chance.choice((OK, OK, None)))

        workers = [asyncio.create_task(work()) for _ in range(chance.choice((1, 3, 20)))]
        for _ in range(200):
            offered += offer(lanes, chance.choice(targets)) is Offer.TAKEN
            if chance.random() < 0.2:
                await asyncio.sleep(0)
            if chance.random() < 0.05:  # one that waits, or has just been woken, goes
                gone = workers.pop(chance.randrange(len(workers)))
                if any(not task.done() for task in workers) and not lanes.running:
                    gone.cancel()
                    workers.append(asyncio.create_task(work()))
                else:
                    workers.append(gone)
        while done < offered:
            turns += 1
            assert turns < 10_000, lanes
            await asyncio.sleep(0)
        await settled()
        loop = asyncio.get_running_loop()
        assert not loop._ready  # type: ignore[attr-defined]
        lanes.close()
        await asyncio.gather(*workers)

    run(story())


def test_a_workspace_with_one_lane_behind_is_not_kept_waiting_by_one_with_many() -> None:
    many, one = [endpoint(number) for number in range(1, 101)], endpoint(200, workspace="other")
    lanes, _ = lanes_for(*many, one)
    for each in (*many, one):
        lanes.mark_behind(each.id)
    for _ in range(3):
        found, _ = lanes.refillable(4)
        assert len({lane.endpoint.id for lane in found}) == len(found) == 4
        assert one in [lane.endpoint for lane in found]
    assert {lane.endpoint.id for _ in range(40) for lane in lanes.refillable(4)[0]} == {
        each.id for each in (*many, one)
    }


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=30), st.integers(1, 8))
def test_one_look_finds_each_lane_that_can_be_refilled_or_says_that_there_are_more(
    kinds: list[tuple[str, bool]], most: int
) -> None:
    targets = [endpoint(number, workspace=workspace) for number, (workspace, _) in enumerate(kinds)]
    lanes, _ = lanes_for(*targets)
    fit = set()
    for target, (_, full) in zip(targets, kinds, strict=True):
        if full:
            taken(lanes, target)
        else:
            fit.add(target.id)
        lanes.mark_behind(target.id)
    found, more = lanes.refillable(most)
    ids = [lane.endpoint.id for lane in found]
    assert len(set(ids)) == len(ids) == min(most, len(fit))
    assert more or set(ids) == fit
    looks = range(3 * len(kinds))  # a workspace with one lane has as many turns as one with many
    assert fit <= {lane.endpoint.id for _ in looks for lane in lanes.refillable(most)[0]}


def test_requests_begin_by_and_by_where_the_event_loop_would_take_long() -> None:
    lanes, clock = lanes_for(*(endpoint(number) for number in range(400)), concurrency=1)

    async def begin_all(cost_s: float) -> int:
        """How many began in the busiest turn, if each takes the loop so long."""
        turn, begun = 0, Counter[int]()

        async def count() -> None:
            nonlocal turn
            while True:
                turn += 1
                await asyncio.sleep(0)

        async def work() -> None:
            while (job := await lanes.take()) is not None:
                begun[turn] += 1
                clock.advance(cost_s)
                lanes.done(job, OK)

        counter = asyncio.create_task(count())
        for number in range(400):
            lanes.offer(job(endpoint(number)), patient=False)
        workers = [asyncio.create_task(work()) for _ in range(8)]
        while lanes.queued:
            await asyncio.sleep(0)
        for each in (counter, *workers):
            each.cancel()
        assert begun.total() == 400
        return max(list(begun.values())[-10:])

    assert asyncio.run(begin_all(0.001)) <= 3
    assert asyncio.run(begin_all(0.0)) > 16

"""Lanes: fair turns, bounded memory, and verdicts on what they can't take."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from postrider.domain.model import DeliveryState, Endpoint, EndpointState, ErrorKind, Event
from postrider.domain.policy import Outcome
from postrider.engine.decisions import Decisions, LaneEvent, Offer
from postrider.engine.lane import Lane
from postrider.engine.lane_room import LanesTuning
from postrider.engine.lanes import Lanes
from postrider.engine.ledger import HeldEvent, Job, Ledger, LedgerTuning
from tests.support.endpoints import endpoint

TUNING = LanesTuning()


def job(target: Endpoint, cost: int = 1) -> Job:
    event = Event(uuid4(), "default", "a.b", "{}", 2, None, None, None, None, None, datetime.now(UTC))
    return Job(HeldEvent(event, cost), target.id)


OK = Outcome(DeliveryState.SUCCEEDED, None, None, "HTTP 200", None, throttled=False)
TIMEOUT = Outcome(DeliveryState.RETRYING, None, ErrorKind.TIMEOUT, "timeout", None, throttled=False)


class Held:
    """Lanes, at a clock that the test moves."""

    def __init__(self, *endpoints: Endpoint, capacity: int = 1000, concurrency: int = 4) -> None:
        self.now = 1000.0
        self.lanes = Lanes(
            LanesTuning(capacity=capacity), concurrency=8, endpoint_concurrency=concurrency, ledger=Ledger()
        )
        self.update(*endpoints)

    def update(self, *changed: Endpoint, gone: Iterable[int] = ()) -> Decisions:
        return self.lanes.update(changed, gone, self.now) or Decisions()

    def lane(self, number: int) -> Lane:
        lane = self.lanes.lane(number)
        assert lane is not None
        return lane

    def offer(self, target: Endpoint, cost: int = 1, *, patient: bool = False) -> Offer:
        return self.lanes.offer(job(target, cost), self.now, patient=patient)

    def taken(self, target: Endpoint, most: int = 10_000, *, patient: bool = False) -> int:
        """Offer deliveries until one is not taken; return how many were."""
        count = 0
        while count < most and self.offer(target, patient=patient) is Offer.TAKEN:
            count += 1
        return count

    def take(self, most: int = 10_000) -> list[Job]:
        """Begin as many requests as may begin."""
        begun: list[Job] = []
        while len(begun) < most and (each := self.lanes.take(self.now, unproven=True)) is not None:
            begun.append(each)
        return begun

    def done(self, each: Job, outcome: Outcome | None = OK) -> Decisions:
        return self.lanes.done(each, outcome, self.now) or Decisions()

    def tick(self, seconds: float = 0.0) -> Decisions:
        self.now += seconds
        return self.lanes.tick(self.now) or Decisions()

    def prove(self, *targets: Endpoint, latency_s: float = 0.01) -> None:
        """Let each of them answer once."""
        for target in targets:
            assert self.offer(target) is Offer.TAKEN
            (proof,) = self.take(1)
            self.now += latency_s
            self.done(proof)

    def recorded(self, number: int, deliveries: int = 1) -> None:
        """So many that a lane did not keep are in the database."""
        self.lanes.note_recorded(number, uuid4(), deliveries)

    def refillable(self, most: int = 10) -> list[int]:
        return [lane.endpoint.id for lane in self.lanes.refillable(most, self.now)[0]]

    def caught_up(self, number: int) -> None:
        """Look for what waits in the database, and find nothing."""
        self.refill(number)

    def refill(self, number: int, *jobs: Job) -> Decisions:
        self.lanes.begin_refill([self.lane(number)])
        return self.lanes.end_refill({self.lane(number): jobs}, self.now) or Decisions()


def test_lanes_take_turns() -> None:
    busy, quiet = endpoint(1), endpoint(2)
    held = Held(busy, quiet)
    held.prove(busy, quiet)
    assert held.taken(busy, 4) == 4
    held.offer(quiet)
    assert [each.endpoint_id for each in held.take(3)] == [1, 2, 1]


def test_workspaces_take_turns_however_many_endpoints_each_of_them_has() -> None:
    many = [endpoint(number, workspace="many") for number in range(1, 51)]
    few = endpoint(100, workspace="few")
    held = Held(*many, few)
    held.prove(*many, few)
    for target in many:
        held.offer(target)
    assert held.taken(few, 2) == 2
    assert [each.endpoint_id for each in held.take(4)] == [1, 100, 2, 100]


def test_a_lane_never_exceeds_its_concurrency() -> None:
    target = endpoint(1, concurrency=2)
    held = Held(target)
    held.prove(target)
    assert held.taken(target, 3) == 3
    first, _ = held.take(2)
    assert held.take() == []
    held.done(first)
    assert len(held.take()) == 1


def test_an_endpoint_that_never_answered_gets_one_request_at_a_time() -> None:
    target = endpoint(1)
    held = Held(target)
    assert held.taken(target, 4) == 4
    (first,) = held.take()
    held.now += 0.01
    held.done(first)
    assert len(held.take()) > 1


def test_a_full_lane_is_worth_waiting_for_where_the_daemon_is_the_bottleneck() -> None:
    target, other = endpoint(1), endpoint(2)
    held = Held(target, other, concurrency=2)
    held.taken(target, patient=True)
    assert held.offer(target, patient=True) is Offer.FULL
    held.now += TUNING.patience_s + 0.01
    assert held.offer(target, patient=True) is Offer.FULL
    assert held.offer(target) is Offer.SPILLED
    assert held.offer(target) is Offer.SPILLED
    # Older ones are in the database by now, but so few that it will soon have caught up.
    assert held.offer(target, patient=True) is Offer.FULL
    held.lanes.note_waiting(1, uuid4(), TUNING.catch_up)
    assert held.offer(target, patient=True) is Offer.SPILLED
    assert held.offer(other) is Offer.TAKEN


def test_a_full_lane_with_a_free_slot_waits_for_the_daemon_and_is_waited_for() -> None:
    target = endpoint(1)
    held = Held(target, concurrency=2)
    held.taken(target, 1)
    (first,) = held.take(1)
    held.done(first, OK)
    held.taken(target)
    held.now += 60
    assert held.offer(target) is Offer.FULL
    held.take()
    while held.offer(target) is Offer.TAKEN:
        pass
    held.now += 60
    assert held.offer(target) is Offer.SPILLED


def test_a_full_lane_that_is_too_slow_for_what_comes_keeps_nobody_waiting() -> None:
    target = endpoint(1)
    held = Held(target, concurrency=1)
    held.taken(target)
    assert held.offer(target) is Offer.FULL  # it became full just now
    held.now += TUNING.patience_s + 0.01
    assert held.offer(target) is Offer.SPILLED


def test_full_lanes_together_leave_room_for_others() -> None:
    slow = [endpoint(number) for number in range(1, 200)]
    late = endpoint(1000)
    held = Held(*slow, late, capacity=1000, concurrency=2)
    for target in slow:
        held.taken(target)
    assert held.offer(late) is Offer.TAKEN
    assert held.lanes.queued <= 1000 + 200 * 2


def test_a_lane_that_answers_fast_holds_what_it_can_send_within_a_moment() -> None:
    fast, slow = endpoint(1), endpoint(2)
    held = Held(fast, slow, capacity=100_000)
    held.prove(fast, latency_s=0.001)
    held.prove(slow, latency_s=0.2)
    assert held.taken(fast) > 10 * held.taken(slow)


def test_a_lane_that_is_behind_takes_nothing_new() -> None:
    target = endpoint(1)
    held = Held(target)
    held.lanes.note_waiting(1)
    assert held.offer(target, patient=True) is Offer.SPILLED
    held.caught_up(1)
    assert held.offer(target) is Offer.SPILLED  # the one before is not recorded yet
    held.recorded(1)
    held.recorded(1)
    held.caught_up(1)
    assert held.offer(target) is Offer.TAKEN


def test_a_lane_is_refilled_from_the_first_event_that_waits_for_it() -> None:
    target = endpoint(1)
    held = Held(target)
    earlier, later = UUID(int=7), UUID(int=9)
    held.lanes.note_waiting(1, later)
    held.lanes.note_waiting(1, earlier)
    assert held.refillable() == [1]
    assert held.lane(1).floor == earlier
    held.caught_up(1)
    assert held.lanes.refillable(10, held.now) == ([], False)
    held.lanes.note_waiting(1, later)
    assert held.lane(1).floor == later


def test_lanes_that_are_behind_take_turns_to_be_refilled() -> None:
    held = Held(*map(endpoint, range(1, 6)))
    for number in range(1, 6):
        held.lanes.note_waiting(number)
    turns = [held.lanes.refillable(2, held.now) for _ in range(3)]
    assert [[lane.endpoint.id for lane in found] for found, _ in turns] == [[1, 2], [3, 4], [5, 1]]
    assert all(more for _, more in turns)


def test_a_lane_that_closes_gives_back_its_jobs_and_is_behind_when_it_reopens() -> None:
    target = endpoint(1)
    held = Held(target)
    waiting = job(target)
    held.lanes.offer(waiting, held.now, patient=False)
    closed = held.update(replace(target, state=EndpointState.PAUSED))
    assert (closed.given_back, closed.refill) == ([waiting], False)
    assert held.offer(target) is Offer.SPILLED
    held.recorded(1)
    held.recorded(1)
    assert held.lanes.refillable(10, held.now) == ([], False)
    reopened = held.update(target)
    assert (reopened.given_back, reopened.refill) == ([], True)
    assert held.refillable() == [1]
    assert held.lanes.queued == 0


def test_an_endpoint_that_is_gone_gives_back_its_jobs_and_finishes_what_is_under_way() -> None:
    target = endpoint(1)
    held = Held(target)
    held.taken(target, 3)
    (under_way,) = held.take(1)
    gone = held.update(gone=[1])
    assert (len(gone.orphaned), gone.given_back) == (2, [])
    assert held.lanes.endpoint(1) is None
    assert not held.lanes.note_waiting(1)
    held.done(under_way, OK)
    assert (held.lanes.queued, held.lanes.running) == (0, 0)


def test_an_endpoint_that_does_not_answer_gives_its_jobs_back_and_is_probed_by_one() -> None:
    target = endpoint(1)
    held = Held(target)
    assert held.taken(target, 20) == 20
    decided = [held.done(held.take()[0], TIMEOUT) for _ in range(5)]
    assert sum(len(each.given_back) for each in decided) == 15
    assert [change.event for each in decided for change in each.changes] == [
        LaneEvent.THROTTLED,
        LaneEvent.BROKEN,
    ]
    assert held.offer(target) is Offer.SPILLED
    held.recorded(1, 16)
    assert held.refillable() == []
    assert held.tick(1.1).refill
    assert held.refillable() == [1]
    held.refill(1, job(target))
    held.lanes.note_waiting(1)
    assert held.refillable() == []
    (probe,) = held.take()
    assert held.refillable() == []
    answered = held.done(probe)
    assert answered.refill
    assert [change.event for change in answered.changes] == [LaneEvent.RECOVERING]


def test_endpoints_that_are_slow_or_never_answered_leave_half_of_the_slots_to_the_others() -> None:
    silent = [endpoint(number) for number in range(1, 7)]
    healthy = endpoint(100)
    held = Held(*silent, healthy)  # 8 slots
    held.prove(healthy)
    for target in silent:
        held.taken(target, 10)
    assert len(held.take()) == 4
    held.offer(healthy)
    assert len(held.take()) == 1
    held.tick(TUNING.slow_after_s + 0.1)
    assert held.take() == []


def test_endpoints_known_to_fail_leave_half_of_that_half_to_those_that_may_answer() -> None:
    """As after a restart, when none has answered yet."""

    failing = [replace(endpoint(number), failing_since=datetime.now(UTC)) for number in range(1, 7)]
    healthy = [endpoint(number) for number in range(101, 104)]
    held = Held(*failing, *healthy)  # 8 slots, 4 of them for those that never answered
    for target in failing:
        held.taken(target, 10)
    assert [each.endpoint_id for each in held.take()] == [1, 2]
    for target in healthy:
        held.offer(target)
    assert [each.endpoint_id for each in held.take()] == [101, 102]


def test_an_endpoint_that_waits_for_a_share_held_by_the_silent_keeps_nobody_waiting() -> None:
    silent, late = [endpoint(number) for number in range(1, 5)], endpoint(9)
    held = Held(*silent, late)  # 8 slots, of which the silent hold 4
    for target in silent:
        held.taken(target, 10)
    held.take(4)
    held.taken(late)
    assert held.offer(late, patient=True) is Offer.FULL
    held.tick(TUNING.slow_after_s + 0.1)
    assert held.offer(late, patient=True) is Offer.SPILLED


def test_lanes_that_never_answered_and_slow_ones_leave_memory_to_each_other_and_to_the_rest() -> None:
    untried, slow, healthy = endpoint(1), [endpoint(2), endpoint(3)], endpoint(100)
    held = Held(untried, *slow, healthy, concurrency=64)
    held.prove(healthy)
    held.prove(*slow, latency_s=1.0)

    def fill(*targets: Endpoint) -> int:
        count = 0
        while held.offer(targets[count % len(targets)], 1 << 20) is Offer.TAKEN:
            count += 1
        return count

    assert fill(untried) == LedgerTuning().untried >> 20
    assert fill(*slow) <= LedgerTuning().slow >> 20
    assert held.offer(healthy, 1 << 20) is Offer.TAKEN


def test_a_lane_that_is_behind_is_refilled_though_more_is_on_its_way_to_the_database() -> None:
    target = endpoint(1)
    held = Held(target)
    held.lanes.note_waiting(1)
    assert held.offer(target) is Offer.SPILLED
    assert held.refillable() == [1]


def test_what_silent_lanes_hold_does_not_crowd_out_the_others() -> None:
    silent, healthy = [endpoint(number) for number in range(1, 300)], endpoint(1000)
    held = Held(*silent, healthy, capacity=1000)
    for target in silent:
        held.taken(target)
    assert held.lanes.queued > 1000
    assert not held.lanes.crowded


def test_an_endpoint_that_moves_to_another_workspace_keeps_its_turn() -> None:
    target = endpoint(1)
    held = Held(target)
    held.taken(target, 2)
    held.lanes.note_waiting(1)
    held.update(replace(target, workspace_id="other", url="https://other.example.com"))
    (first,) = held.take()
    held.done(first)
    assert len(held.take()) == 1
    assert held.refillable() == [1]
    held.caught_up(1)
    assert held.lanes.refillable(10, held.now) == ([], False)


def test_a_lane_that_turns_slow_keeps_in_memory_what_its_slots_need() -> None:
    target = endpoint(1)
    held = Held(target)
    held.prove(target)
    assert held.taken(target, 32) == 32
    held.take(4)
    slow = held.tick(TUNING.slow_after_s + 0.1)
    assert (len(slow.given_back), held.lanes.queued) == (24, 4)
    assert [change.event for change in slow.changes] == [LaneEvent.SLOW]


def test_a_rate_limit_holds_jobs_until_their_time() -> None:
    target = replace(endpoint(1), rate=10.0)
    held = Held(target)
    held.taken(target, 4)
    (first,) = held.take()
    held.done(first)
    assert held.take() == []
    held.tick(0.11)
    assert len(held.take()) == 1


def test_a_workspace_with_one_lane_behind_is_not_kept_waiting_by_one_with_many() -> None:
    many, one = [endpoint(number) for number in range(1, 101)], endpoint(200, workspace="other")
    held = Held(*many, one)
    for each in (*many, one):
        held.lanes.note_waiting(each.id)
    for _ in range(3):
        found = held.refillable(4)
        assert len(set(found)) == len(found) == 4
        assert one.id in found
    assert {found for _ in range(40) for found in held.refillable(4)} == {each.id for each in (*many, one)}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=30), st.integers(1, 8))
def test_one_look_finds_each_lane_that_can_be_refilled_or_says_that_there_are_more(
    kinds: list[tuple[str, bool]], most: int
) -> None:
    targets = [endpoint(number, workspace=workspace) for number, (workspace, _) in enumerate(kinds)]
    held = Held(*targets)
    fit = set()
    for target, (_, full) in zip(targets, kinds, strict=True):
        if full:
            held.taken(target)
        else:
            fit.add(target.id)
        held.lanes.note_waiting(target.id)
    found, more = held.lanes.refillable(most, held.now)
    ids = [lane.endpoint.id for lane in found]
    assert len(set(ids)) == len(ids) == min(most, len(fit))
    assert more or set(ids) == fit
    looks = range(3 * len(kinds))  # a workspace with one lane has as many turns as one with many
    assert fit <= {each for _ in looks for each in held.refillable(most)}


def test_what_a_lane_gave_back_is_not_overtaken_by_what_waits_in_the_database() -> None:
    target = endpoint(1)
    held = Held(target)
    assert held.taken(target, 20) == 20
    held.lanes.spill(1)
    held.recorded(1)  # newer than what the lane holds
    returned = [each for _ in range(5) for each in held.done(held.take()[0], TIMEOUT).given_back]
    held.tick(1.1)
    assert held.lane(1).spilled == len(returned) == 15
    assert held.refillable() == []
    assert held.offer(target) is Offer.SPILLED  # newer still: it is recorded after them
    held.recorded(1, 14)
    assert held.refillable() == []
    held.recorded(1)
    assert held.refillable() == [1]


def test_nothing_newer_gets_into_a_lane_while_older_deliveries_come_back_from_the_database() -> None:
    target = endpoint(1)
    held = Held(target)
    held.prove(target)
    held.lanes.note_waiting(1, deliveries=1)
    held.lanes.begin_refill([held.lane(1)])
    assert held.offer(target) is Offer.FULL
    held.lanes.want_room(1)
    older, newer = job(target), job(target)
    ended = held.lanes.end_refill({held.lane(1): [older]}, held.now)
    assert ended is not None
    assert ended.room
    assert held.lanes.offer(newer, held.now, patient=False) is Offer.TAKEN
    assert held.take() == [older, newer]


def test_deliveries_that_are_under_way_to_the_database_stay_so_when_others_take_the_daemon_for_dead() -> None:
    target = endpoint(1)
    held = Held(target)
    held.lanes.spill(1)
    held.lanes.clear()
    held.lanes.spill(1)
    held.recorded(1)
    held.caught_up(1)
    assert held.offer(target) is Offer.SPILLED  # the second one is not recorded yet


def test_room_that_was_asked_for_is_told_once() -> None:
    target = endpoint(1)
    held = Held(target, concurrency=1)
    held.taken(target)
    held.lanes.want_room(1)
    told = [held.done(held.take(1)[0]).room for _ in range(held.lanes.queued)]
    assert told.count(True) == 1

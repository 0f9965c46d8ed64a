"""The recorder: one message for each batch that the database took, and what it says."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Self, cast
from uuid import UUID, uuid4

import pytest

from postrider.domain.model import Attempt, DeliveryKey, DeliveryState, ErrorKind, Event, Failure, Reply
from postrider.domain.policy import Outcome
from postrider.edges.metrics import Metrics
from postrider.engine.failures import Failures
from postrider.engine.ledger import Job, Ledger
from postrider.engine.recorded import LeftWaiting, Recorded
from postrider.engine.recorder import Readers, RecordCounts, Recorder, RecorderTuning
from postrider.engine.signals import Signal
from postrider.store.database import DatabaseUnavailable
from postrider.store.delivery_results import ClaimProgress, DeliveryResult
from tests.support.clock import FakeClock
from tests.support.made_up import MadeUpDatabase, answer_verbs

OK = Outcome(DeliveryState.SUCCEEDED, None, None, "HTTP 200", None, throttled=False)
REPLY = Reply(200, "", "ok", None, None, 1.0)


class Taking(MadeUpDatabase):
    """Takes every result but those of events that it does not know any more."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []
        self.undone: set[int] = set()
        self.fenced: set[UUID] = set()
        self.away = False

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Self]:
        if self.away:
            raise DatabaseUnavailable("away")
        yield self

    async def record(
        self,
        _owner: int,
        *,
        first_results: Sequence[DeliveryResult],
        later_results: Sequence[DeliveryResult],
        claims: Sequence[ClaimProgress],
        now: datetime,
    ) -> tuple[set[DeliveryKey], set[int]]:
        self.batches.append((len(first_results), len(later_results)))
        counted = {each.claim_id for each in claims} - self.undone
        written = [each for each in first_results if each.claim_id in counted] + list(later_results)
        return {
            (each.event_id, each.endpoint_id) for each in written if each.event_id not in self.fenced
        }, counted


class Reading:
    def __init__(self) -> None:
        self.messages: list[Recorded] = []

    def put(self, recorded: Recorded) -> None:
        self.messages.append(recorded)


class Desk:
    """A recorder with all that it needs."""

    def __init__(self, **tuning: Any) -> None:
        self.clock = FakeClock()
        self.database = Taking()
        self.ledger = Ledger(owner=1)
        self.waiting, self.outcomes, self.last = Reading(), Reading(), Reading()
        self.doubt = Signal()
        self.recorder = Recorder(
            RecorderTuning(**tuning),
            database=cast(Any, self.database),
            ledger=self.ledger,
            clock=self.clock,
            metrics=Metrics("test"),
            failures=Failures(self.clock),
            readers=Readers(self.waiting, self.outcomes, self.last, self.doubt),
        )

    def jobs(self, count: int, claim_id: int = 1) -> list[Job]:
        """Deliveries of as many events of one claim."""
        events = [
            Event(uuid4(), "default", "a.b", "{}", 2, None, None, None, None, None, datetime.now(UTC))
            for _ in range(count)
        ]
        claim = self.ledger.take_claim(claim_id, [(event, 1) for event in events], missing=0)
        return [Job(claimed.held, 7, source=claimed) for claimed in claim.events]

    def succeed(self, *jobs: Job) -> None:
        for job in jobs:
            attempt = Attempt(1, self.clock.now(), REPLY)
            self.recorder.put(job, DeliveryState.SUCCEEDED, attempt=attempt, outcome=OK)

    def fail(self, job: Job, due: datetime) -> None:
        outcome = Outcome(DeliveryState.RETRYING, due, ErrorKind.CONNECT, "refused", None, throttled=False)
        attempt = Attempt(1, self.clock.now(), Failure(ErrorKind.CONNECT, "refused", 1.0))
        self.recorder.put(
            job, DeliveryState.RETRYING, due=due, reason="refused", attempt=attempt, outcome=outcome
        )


@pytest.fixture(autouse=True)
def verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_verbs(monkeypatch)


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 10))


def test_a_batch_is_one_message_with_what_each_reader_needs() -> None:
    async def story() -> None:
        desk = Desk()
        done, later, sooner, spilled = desk.jobs(4)
        desk.succeed(done)
        due = desk.clock.now() + timedelta(seconds=5)
        desk.fail(later, due + timedelta(seconds=60))
        desk.fail(sooner, due)
        desk.recorder.put(spilled, DeliveryState.WAITING)
        assert await desk.recorder.run_once() == RecordCounts(recorded=4, fenced=0)
        (message,) = desk.waiting.messages
        assert desk.outcomes.messages == desk.last.messages == [message]
        assert message.at == desk.clock.now()
        assert [entry.job for entry in message.attempts] == [done, later, sooner]
        assert message.waiting == [(7, spilled.held.event.id)]
        assert message.earliest_due == due
        assert (desk.ledger.claims(), desk.ledger.bytes) == ({}, 0)
        assert not desk.doubt

    run(story)


def test_nobody_hears_of_what_the_database_did_not_take() -> None:
    async def story() -> None:
        desk = Desk()
        ours, fenced = desk.jobs(2)
        desk.database.fenced.add(fenced.held.event.id)
        desk.succeed(ours, fenced)
        desk.database.away = True
        with pytest.raises(DatabaseUnavailable):
            await desk.recorder.run_once()
        assert (desk.outcomes.messages, desk.ledger.claims()) == ([], {1: 0})
        assert not desk.recorder.empty
        desk.database.away = False
        assert await desk.recorder.run_once() == RecordCounts(recorded=1, fenced=1)
        assert [entry.job for entry in desk.outcomes.messages[0].attempts] == [ours]
        assert desk.recorder.empty

    run(story)


def test_a_claim_that_the_database_does_not_count_raises_a_doubt() -> None:
    async def story() -> None:
        desk = Desk()
        undone, kept = *desk.jobs(1, claim_id=1), *desk.jobs(1, claim_id=2)
        desk.database.undone.add(1)
        desk.succeed(undone, kept)
        assert await desk.recorder.run_once() == RecordCounts(recorded=1, fenced=1)
        assert desk.doubt
        assert undone.lost
        assert desk.ledger.claims() == {}

    run(story)


def test_it_lingers_for_more_unless_there_are_many() -> None:
    async def story() -> None:
        desk = Desk(batch=3, linger_s=0.05)
        running = asyncio.create_task(desk.recorder.run())
        first, *more = desk.jobs(5)
        desk.succeed(first)
        await settled()
        assert desk.database.batches == []
        desk.clock.advance(0.06)
        await settled()
        assert desk.database.batches == [(1, 0)]
        desk.succeed(*more[:3])  # a whole batch: it waits for nothing
        await settled()
        assert desk.database.batches == [(1, 0), (3, 0)]
        running.cancel()

    run(story)


def test_what_was_left_waiting_is_added_up_until_the_scheduler_asks() -> None:
    wake = Signal()
    left = LeftWaiting(wake)
    at = datetime.now(UTC)
    earlier, later = UUID(int=1), UUID(int=2)
    left.put(Recorded(at, [], [(7, later), (8, later)], at + timedelta(seconds=9)))
    left.put(Recorded(at, [], [(7, earlier)], at + timedelta(seconds=5)))
    assert wake
    assert left.take_waiting() == {7: (earlier, 2), 8: (later, 1)}
    assert left.take_due() == at + timedelta(seconds=5)
    assert (left.take_waiting(), left.take_due()) == ({}, None)
    wake.clear()
    left.put(Recorded(at, [], [], None))
    assert not wake


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)

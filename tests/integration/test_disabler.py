"""Since when an endpoint has nothing but failures, whoever saw them, in whatever batches they were noted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from postrider.domain.audit import EVERYWHERE
from postrider.domain.model import DeliveryState, EndpointState, ErrorKind, Event
from postrider.domain.policy import Outcome, RetryPolicy
from postrider.domain.sealing import Sealer
from postrider.engine.disabler import Disabler, OutcomeBook
from postrider.engine.ledger import HeldEvent, Job
from postrider.engine.recorded import Entry, Recorded
from postrider.store import endpoint_health, endpoints
from postrider.store.database import Database
from postrider.store.delivery_results import DeliveryResult
from tests.support.clock import FakeClock
from tests.support.daemon_process import add_endpoint

DAY_S = 86_400.0
SUCCESS = Outcome(DeliveryState.SUCCEEDED, None, None, "HTTP 200", None, throttled=False)
POLICY = RetryPolicy(disable_after=5 * DAY_S)
FAILURE = Outcome(DeliveryState.RETRYING, None, ErrorKind.HTTP, "HTTP 500", None, throttled=False)


class Daemons:
    """Those who disable endpoints in two daemons, on one clock."""

    def __init__(self, database: Database, endpoint_id: int) -> None:
        self.clock = FakeClock()
        self.database = database
        self.endpoint_id = endpoint_id
        self.one, self.other = (Watcher(database, self.clock) for _ in range(2))

    def note(self, watcher: "Watcher", outcome: Outcome, *, after_s: float = 1.0) -> datetime:
        """An attempt ends, so long after what was before."""
        self.clock.advance(after_s)
        watcher.book.put(Recorded(self.clock.now(), [attempt_for(self.endpoint_id, outcome)], [], None))
        return self.clock.now()

    async def failing_since(self) -> datetime | None:
        async with self.database.connection() as connection:
            failing = (await endpoint_health.failing(connection)).get(self.endpoint_id)
        return failing.since if failing is not None else None

    async def state(self) -> EndpointState:
        async with self.database.connection() as connection:
            row = await endpoints.get(connection, Sealer(), EVERYWHERE, self.endpoint_id)
        return row.endpoint.state


class Watcher:
    def __init__(self, database: Database, clock: FakeClock) -> None:
        self.book = OutcomeBook()
        self.disabler = Disabler(
            database=database, book=self.book, policy_of=lambda _dialect: POLICY, clock=clock
        )

    async def run_once(self) -> None:
        await self.disabler.run_once()


def attempt_for(endpoint_id: int, outcome: Outcome) -> Entry:
    now = datetime.now(UTC)
    event = Event(uuid4(), "default", "a.b", "{}", 2, None, None, None, None, None, now)
    result = DeliveryResult(event.id, endpoint_id, "default", outcome.state, attempts=1)
    return Entry(Job(HeldEvent(event, cost=0), endpoint_id), result, outcome, 0)


@asynccontextmanager
async def daemons_on(dsn: str, endpoint_id: int) -> AsyncIterator[Daemons]:
    database = Database(dsn, pool_size=2)
    await database.open()
    try:
        yield Daemons(database, endpoint_id)
    finally:
        await database.close()


@pytest.fixture
def endpoint_id(database_dsn: str) -> int:
    return add_endpoint(database_dsn, "http://127.0.0.1/")


def test_a_success_and_a_failure_in_one_batch_begin_the_failing_anew(
    database_dsn: str, endpoint_id: int
) -> None:
    async def story() -> None:
        async with daemons_on(database_dsn, endpoint_id) as both:
            first = both.note(both.one, FAILURE)
            await both.one.run_once()
            assert await both.failing_since() == first
            both.note(both.one, SUCCESS, after_s=4.9 * DAY_S)
            failed_at = both.note(both.one, FAILURE)
            both.note(both.one, FAILURE)
            await both.one.run_once()
            assert await both.failing_since() == failed_at
            both.clock.advance(4.9 * DAY_S)
            await both.one.run_once()
            assert await both.state() is EndpointState.ACTIVE
            both.clock.advance(0.2 * DAY_S)
            await both.one.run_once()
            assert await both.state() is EndpointState.DISABLED

    asyncio.run(story())


def test_a_failure_and_a_success_in_one_batch_end_the_failing(database_dsn: str, endpoint_id: int) -> None:
    async def story() -> None:
        async with daemons_on(database_dsn, endpoint_id) as both:
            both.note(both.one, FAILURE)
            await both.one.run_once()
            both.note(both.one, FAILURE)
            both.note(both.one, SUCCESS)
            await both.one.run_once()
            assert await both.failing_since() is None

    asyncio.run(story())


def test_a_success_counts_that_came_after_what_another_daemon_noted_unseen(
    database_dsn: str, endpoint_id: int
) -> None:
    async def story() -> None:
        async with daemons_on(database_dsn, endpoint_id) as both:
            both.note(both.other, FAILURE)
            await both.other.run_once()
            both.note(both.one, SUCCESS)  # it has not heard of that failure
            await both.one.run_once()
            assert await both.failing_since() is None
            failed_at = both.note(both.other, FAILURE)  # and the other one not of that success
            await both.other.run_once()
            await both.other.run_once()
            assert await both.failing_since() == failed_at

    asyncio.run(story())


def test_a_failure_stands_that_another_daemon_noted_after_our_success(
    database_dsn: str, endpoint_id: int
) -> None:
    async def story() -> None:
        async with daemons_on(database_dsn, endpoint_id) as both:
            both.note(both.one, FAILURE)
            await both.one.run_once()
            both.note(both.one, SUCCESS)
            both.note(both.other, SUCCESS)
            failed_at = both.note(both.other, FAILURE)
            await both.other.run_once()
            both.note(both.one, FAILURE)
            await both.one.run_once()
            assert await both.failing_since() == failed_at

    asyncio.run(story())


def test_an_endpoint_that_recovers_while_it_is_about_to_be_disabled_stays(
    database_dsn: str, endpoint_id: int
) -> None:
    async def story() -> None:
        async with daemons_on(database_dsn, endpoint_id) as both:
            since = both.note(both.one, FAILURE)
            await both.one.run_once()
            both.note(both.other, SUCCESS, after_s=6 * DAY_S)
            await both.other.run_once()
            async with both.database.connection() as connection:
                now, why = both.clock.now(), "it failed for too long"
                for workspace_id, failing_since in (("default", since), ("another", None)):
                    assert not await endpoint_health.disable(
                        connection, workspace_id, endpoint_id, why, now, failing_since=failing_since
                    )
            assert await both.state() is EndpointState.ACTIVE

    asyncio.run(story())

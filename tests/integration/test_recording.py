"""Results as they stand in the database, however much those of a batch have in common."""

import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import pytest

from postrider.domain.model import Attempt, DeliveryState, ErrorKind, Failure, Reply
from postrider.store import deliveries, delivery_results
from postrider.store.database import Connection, Database
from postrider.store.deliveries import WaitingWanted
from postrider.store.delivery_results import ClaimProgress, DeliveryResult
from postrider.store.outbox import Pending

OWNER = 1
NOW = datetime(2026, 3, 1, 12, 30, 15, 123457, UTC)
LATER = NOW + timedelta(seconds=30, microseconds=1)

_ROWS = """
SELECT event_id, endpoint_id, workspace_id, state, attempts, due, reason, started_at, duration_ms, connect_ms,
       status, response_headers, response_body FROM postrider.delivery ORDER BY event_id, endpoint_id
"""

Make = Callable[[UUID, int], DeliveryResult]
"""The result of an event, the n-th of its batch."""


def waiting(event_id: UUID, _number: int) -> DeliveryResult:
    return DeliveryResult(event_id, 7, "default", DeliveryState.WAITING, attempts=0)


def succeeded(event_id: UUID, number: int) -> DeliveryResult:
    reply = Reply(200, "", "ok", None, None if number else 1.5, 2.5)
    attempt = Attempt(1, NOW + timedelta(microseconds=number), reply)
    return DeliveryResult(event_id, 7, "default", DeliveryState.SUCCEEDED, attempts=1, attempt=attempt)


def retrying(event_id: UUID, number: int) -> DeliveryResult:
    failure = Attempt(number + 1, NOW, Failure(ErrorKind.TIMEOUT, "it took too long", 1000.0))
    return DeliveryResult(
        event_id, 7, "default", DeliveryState.RETRYING, number + 1, LATER, "it took too long", failure
    )


def of_all_kinds(event_id: UUID, number: int) -> DeliveryResult:
    return (succeeded, waiting, retrying)[number % 3](event_id, number)


def row(result: DeliveryResult) -> tuple[object, ...]:
    answer: tuple[object, ...] = (None,) * 6
    attempt = result.attempt
    if attempt is not None and isinstance(reply := attempt.result, Reply):
        sent = (attempt.started_at, reply.duration_ms, reply.connect_ms)
        answer = (*sent, reply.status, reply.headers, reply.body)
    delivery = (result.event_id, result.endpoint_id, result.workspace_id, result.state.value)
    return (*delivery, result.attempts, result.due, result.reason, *answer)


async def claimed(connection: Connection, count: int) -> tuple[int, list[UUID]]:
    """A claim, and its events."""
    await connection.execute(
        """INSERT INTO postrider.daemon (id, hostname, pid, version, started_at, heartbeat_at, pooled)
           OVERRIDING SYSTEM VALUE VALUES ($1, 'here', 1, '0', now(), now(), true)""",
        OWNER,
    )
    await connection.execute(
        "INSERT INTO postrider.outbox (type, data) SELECT 'a.b', '{}' FROM generate_series(1, $1)", count
    )
    pending = Pending(time.monotonic, lambda: secrets.randbits(63))
    claim = await pending.claim(connection, OWNER, 512, 1_000_000)
    assert claim is not None
    return claim.claim_id, [each.id for each in claim.events]


@pytest.mark.parametrize("make", [waiting, succeeded, retrying, of_all_kinds])
@pytest.mark.parametrize("count", [1, 3, 4])
async def test_first_and_later_results_stand_there_as_they_were(
    database_dsn: str, make: Make, count: int
) -> None:
    database = Database(database_dsn, pool_size=2)
    await database.open()
    async with database.transaction() as connection:
        claim_id, events = await claimed(connection, count)
        results = [make(event_id, number) for number, event_id in enumerate(events)]
        first = [msgspec.structs.replace(each, claim_id=claim_id) for each in results]
        written, counted = await delivery_results.record(
            connection,
            OWNER,
            first_results=first,
            later_results=[],
            claims=[ClaimProgress(claim_id, 0, count, finished=True)],
            now=NOW,
        )
        assert (len(written), counted) == (count, {claim_id})
        expected = [row(each) for each in results]
        assert [tuple(each) for each in await connection.fetch(_ROWS)] == expected

        await connection.execute("UPDATE postrider.delivery SET state = 'waiting', due = NULL, reason = 'x'")
        wanted = [WaitingWanted(7, "default", count, UUID(int=0))]
        await deliveries.claim_waiting(
            connection, OWNER, wanted, NOW + timedelta(days=3650), most_bytes=10**8, most_bytes_each=10**8
        )
        written, _ = await delivery_results.record(
            connection, OWNER, first_results=[], later_results=results, claims=[], now=NOW
        )
        assert len(written) == count
        assert [tuple(each) for each in await connection.fetch(_ROWS)] == expected
    await database.close()


async def test_a_claim_whose_events_need_nothing_is_counted_without_a_result(database_dsn: str) -> None:
    database = Database(database_dsn, pool_size=2)
    await database.open()
    async with database.connection() as connection:
        claim_id, _ = await claimed(connection, 3)

        async def count(before: int, after: int, *, finished: bool) -> set[int]:
            progress = ClaimProgress(claim_id, before, after, finished)
            _, counted = await delivery_results.record(
                connection, OWNER, first_results=[], later_results=[], claims=[progress], now=NOW
            )
            return counted

        assert await count(0, 2, finished=False) == {claim_id}
        assert await count(0, 3, finished=True) == set()
        assert await count(2, 3, finished=True) == {claim_id}
        assert await connection.fetchval("SELECT count(*) FROM postrider.claim") == 0
    await database.close()

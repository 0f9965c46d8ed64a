"""Who owns what: claims, fences, rescue, and answers that got lost."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import asyncpg

from postrider.domain.model import Attempt, DeliveryState, Reply, parse_event_id
from postrider.domain.status import Progress
from postrider.domain.timeshare import TimeShare
from postrider.edges.clock import SystemClock
from postrider.engine.rescue import leave, rescue
from postrider.store import deliveries, delivery_results, outbox, situation
from postrider.store.database import Database
from postrider.store.deliveries import WaitingWanted
from postrider.store.delivery_results import ClaimProgress, DeliveryResult
from postrider.store.outbox import ClaimedEvents, Pending
from tests.support.clock import FakeClock
from tests.support.daemon_process import SECRET, add_endpoint, emit, query
from tests.support.daemons import all_daemons, identity
from tests.support.receiver_process import ReceiverProcess
from tests.support.stage import eventually, staged

NOW = datetime.now(UTC)
BYTES = 1_000_000
FAKES = range(1, 6)
"""Ids of daemons that live, as far as anybody can tell."""


class Stores:
    def __init__(self, database: Database) -> None:
        self.database = database
        self.pending = Pending(time.monotonic, lambda: secrets.randbits(63))

    async def claim(self, owner: int, limit: int = 10) -> ClaimedEvents:
        claimed = await self.claim_if_any(owner, limit)
        assert claimed is not None
        return claimed

    async def claim_if_any(
        self, owner: int, limit: int = 10, most_bytes: int = BYTES
    ) -> ClaimedEvents | None:
        async with self.database.connection() as connection:
            return await self.pending.claim(connection, owner, limit, most_bytes)

    async def release(self, owner: int, claim_ids: Iterable[int]) -> int:
        async with self.database.transaction() as connection:
            return await outbox.release(connection, owner, claim_ids)

    async def claims(self, owner: int) -> dict[int, int]:
        async with self.database.connection() as connection:
            return await outbox.claims(connection, owner)

    async def record(
        self, owner: int, event_id: UUID, claim_id: int, *, before: int = 0, finished: bool = True
    ) -> int:
        result = DeliveryResult(event_id, 7, "default", DeliveryState.FAILED, attempts=1, claim_id=claim_id)
        progress = ClaimProgress(claim_id, before, before + 1, finished)
        async with self.database.transaction() as connection:
            written, _ = await delivery_results.record(
                connection, owner, first_results=[result], later_results=[], claims=[progress], now=NOW
            )
        return len(written)

    async def claim_waiting(self, owner: int, room: int = 10, most_bytes: int = BYTES) -> list[UUID]:
        """Events of the deliveries that endpoint 7 gets."""
        wanted = [WaitingWanted(7, "default", room, UUID(int=0))]
        async with self.database.connection() as connection:
            claimed = await deliveries.claim_waiting(
                connection, owner, wanted, NOW, most_bytes=most_bytes, most_bytes_each=BYTES
            )
        return [each.event_id for each in claimed]


@asynccontextmanager
async def open_stores(dsn: str) -> AsyncIterator[Stores]:
    database = Database(dsn, pool_size=8)
    await database.open()
    try:
        async with database.connection() as connection:
            await connection.execute(
                """INSERT INTO postrider.daemon (id, hostname, pid, version, started_at, heartbeat_at, pooled)
                   OVERRIDING SYSTEM VALUE
                   SELECT id, 'here', 1, '0', now(), now(), true FROM generate_series(1, 5) AS id"""
            )
        yield Stores(database)
    finally:
        await database.close()


def run(dsn: str, story: Callable[[Stores], Awaitable[None]]) -> None:
    async def tell() -> None:
        async with open_stores(dsn) as stores:
            await story(stores)

    asyncio.run(tell())


async def tick(clock: FakeClock) -> None:
    """Let its time pass, fast."""
    while True:
        clock.advance(0.2)
        await asyncio.sleep(0.005)


async def eventually_claimed(stores: Stores, owner: int, most_bytes: int = BYTES) -> ClaimedEvents:
    """What was given back lies behind the newest, where not every claim looks."""
    while (claimed := await stores.claim_if_any(owner, 10, most_bytes)) is None:
        await asyncio.sleep(0.01)
    return claimed


def test_no_event_is_claimed_twice(database_dsn: str) -> None:
    ids = {parse_event_id(each) for each in emit(database_dsn, 500)}

    async def story(stores: Stores) -> None:
        async def claim_all(owner: int) -> list[UUID]:
            mine = []
            while claimed := await stores.claim_if_any(owner, 17):
                mine += [each.id for each in claimed.events]
            return mine

        shares = await asyncio.gather(*(claim_all(owner) for owner in range(1, 6)))
        everything = [event_id for share in shares for event_id in share]
        assert len(everything) == 500
        assert set(everything) == ids

    run(database_dsn, story)


def test_a_released_event_can_be_claimed_again_and_is_marked(database_dsn: str) -> None:
    event_id = parse_event_id(emit(database_dsn)[0])

    async def story(stores: Stores) -> None:
        claimed = await stores.claim(1)
        assert ([each.id for each in claimed.events], claimed.redo) == ([event_id], [])
        assert await stores.release(2, [claimed.claim_id]) == 0
        assert await stores.claim_if_any(2) is None
        assert await stores.release(1, [claimed.claim_id]) == 1
        again = await eventually_claimed(stores, 2)
        assert ([each.id for each in again.events], again.redo) == ([event_id], [event_id])

    run(database_dsn, story)


def test_who_lost_an_event_can_not_record_it(database_dsn: str) -> None:
    event_id = parse_event_id(emit(database_dsn)[0])

    async def story(stores: Stores) -> None:
        lost = (await stores.claim(1)).claim_id
        await stores.release(1, [lost])
        held = (await eventually_claimed(stores, 2)).claim_id
        assert await stores.record(1, event_id, lost) == 0
        assert await stores.record(1, event_id, lost, finished=False) == 0
        assert await stores.record(1, event_id, held) == 0
        async with stores.database.connection() as connection:
            assert await situation.progress(connection, event_id, {2}) is Progress.CLAIMED
        assert await stores.record(2, event_id, held) == 1
        async with stores.database.connection() as connection:
            assert await situation.progress(connection, event_id, {2}) is Progress.DONE
        assert await stores.record(2, event_id, held) == 0

    run(database_dsn, story)


def test_who_lost_a_delivery_can_not_record_it(database_dsn: str) -> None:
    event_id = parse_event_id(emit(database_dsn)[0])
    query(
        database_dsn,
        """INSERT INTO postrider.delivery (event_id, endpoint_id, workspace_id, state, attempts, updated_at)
           VALUES ($1, 7, 'default', 'waiting', 1, now())""",
        event_id,
    )

    attempt = Attempt(2, NOW, Reply(200, "", "", None, None, 1.0))

    async def story(stores: Stores) -> None:
        async def record(owner: int, state: DeliveryState) -> int:
            result = DeliveryResult(event_id, 7, "default", state, attempts=2, attempt=attempt)
            async with stores.database.transaction() as connection:
                written, _ = await delivery_results.record(
                    connection, owner, first_results=[], later_results=[result], claims=[], now=NOW
                )
            return len(written)

        assert await stores.claim_waiting(1) == [event_id]
        async with stores.database.connection() as connection:
            await deliveries.release(connection, 1, {(event_id, 7): "default"})
        assert await stores.claim_waiting(2) == [event_id]
        assert await record(1, DeliveryState.SUCCEEDED) == 0
        assert await record(2, DeliveryState.FAILED) == 1
        assert await record(2, DeliveryState.SUCCEEDED) == 0

    run(database_dsn, story)
    assert query(database_dsn, "SELECT state FROM postrider.delivery")[0]["state"] == "failed"


def test_the_dead_are_rescued_and_the_living_left_alone(database_dsn: str) -> None:
    emit(database_dsn, 3)

    async def story(stores: Stores) -> None:
        sessions = [await asyncpg.connect(database_dsn) for _ in range(2)]
        dead, living = [await identity().register(session) for session in sessions]
        await stores.claim(dead, 2)
        await stores.claim(living, 1)
        assert await rescue(stores.database, 0, NOW) == []
        await sessions[0].close()

        async def rescued() -> list[tuple[int, int]]:
            return [(each.daemon_id, each.events) for each in await rescue(stores.database, 0, NOW)]

        await eventually(rescued, [(dead, 2)])
        assert len(await stores.claims(living)) == 1
        assert {row.id for row in await all_daemons(stores.database)} == {living, *FAKES}
        assert not await identity().resume(sessions[1], dead, SystemClock())
        await sessions[1].close()

    run(database_dsn, story)


def test_a_daemon_that_was_struck_out_claims_nothing_and_what_it_held_is_rescued(database_dsn: str) -> None:
    emit(database_dsn, 2)

    async def story(stores: Stores) -> None:
        assert await stores.claim_if_any(4711) is None
        async with stores.database.connection() as connection:
            await connection.execute(
                """WITH gone AS (DELETE FROM postrider.pending RETURNING event_id)
                   INSERT INTO postrider.claim (id, owner, event_ids)
                   SELECT 1, 4711, array_agg(event_id) FROM gone"""
            )
        freed = await rescue(stores.database, 0, NOW)
        assert [(each.daemon_id, each.events) for each in freed] == [(4711, 2)]
        assert len((await eventually_claimed(stores, 1)).events) == 2

    run(database_dsn, story)


def test_who_leaves_gives_back_every_event_of_what_is_not_complete(database_dsn: str) -> None:
    """What the daemon remembers of them does not count: a crash may have undone it."""
    emit(database_dsn, 3)

    async def story(stores: Stores) -> None:
        begun = await stores.claim(1, 2)
        await stores.claim(1, 1)
        assert await stores.record(1, begun.events[0].id, begun.claim_id, finished=False) == 1
        async with stores.database.transaction() as connection:
            left = await leave(connection, 1, NOW)
        assert left.events == 3
        again = await eventually_claimed(stores, 2)
        assert len(again.redo) == 3
        async with stores.database.connection() as connection:
            assert await deliveries.recorded(connection, again.events) == {(begun.events[0].id, 7)}

    run(database_dsn, story)


def test_a_claim_ends_only_by_the_count_in_the_database(database_dsn: str) -> None:
    """As after a crash that undid a record: the daemon goes on from a count that the database lacks."""
    emit(database_dsn, 2)

    async def story(stores: Stores) -> None:
        claimed = await stores.claim(1)
        first, second = [each.id for each in claimed.events]
        assert await stores.record(1, first, claimed.claim_id, finished=False) == 1
        async with stores.database.connection() as connection:
            await connection.execute("DELETE FROM postrider.delivery")
            await connection.execute("UPDATE postrider.claim SET recorded = 0")
        assert await stores.record(1, second, claimed.claim_id, before=1) == 0
        assert await stores.claims(1) == {claimed.claim_id: 0}
        # Nor does a record count twice whose answer got lost.
        assert await stores.record(1, first, claimed.claim_id, finished=False) == 1
        assert await stores.record(1, first, claimed.claim_id, finished=False) == 0
        assert await stores.claims(1) == {claimed.claim_id: 1}

    run(database_dsn, story)


def test_a_claim_reads_no_more_bytes_than_it_may_but_always_one_event(database_dsn: str) -> None:
    query(
        database_dsn,
        """SELECT postrider.emit('a.b', '{}', related => json_build_object('x', repeat('y', 50000)))
           FROM generate_series(1, 6)""",
    )

    async def story(stores: Stores) -> None:
        sizes = []
        while claimed := await stores.claim_if_any(1, 512, 120_000):
            sizes.append(len(claimed.events))
        assert sizes == [3, 3]
        await stores.release(1, await stores.claims(1))
        assert len((await eventually_claimed(stores, 2, most_bytes=1)).events) == 1

    run(database_dsn, story)


def test_a_large_event_is_claimed_without_its_json(database_dsn: str) -> None:
    query(
        database_dsn,
        """INSERT INTO postrider.outbox (type, data, related)
           SELECT 'a.b', '{}', json_build_object('x', repeat('y', n)) FROM unnest(ARRAY[10, 70000]) AS n""",
    )

    async def story(stores: Stores) -> None:
        claimed = await stores.claim(1)
        small, large = sorted(claimed.events, key=lambda each: each.data_bytes)
        assert (small.data, small.data_bytes) == ("{}", 22)
        assert (large.data, large.related) == (None, None)
        assert large.data_bytes > 70_000
        async with stores.database.connection() as connection:
            (whole,) = await outbox.read(connection, [large.id])
        assert (whole.data, whole.data_bytes) == ("{}", large.data_bytes)

    run(database_dsn, story)


def test_a_lane_takes_no_more_bytes_of_what_waits_than_there_is_memory_for(database_dsn: str) -> None:
    for number in range(5):
        query(
            database_dsn,
            """INSERT INTO postrider.delivery
                 (event_id, endpoint_id, workspace_id, state, bytes, updated_at)
               VALUES ($1, 7, 'default', 'waiting', 1000, now())""",
            UUID(int=number + 1),
        )

    async def story(stores: Stores) -> None:
        assert await stores.claim_waiting(1, room=2) == [UUID(int=1), UUID(int=2)]
        assert await stores.claim_waiting(1, most_bytes=1500) == [UUID(int=3), UUID(int=4)]
        assert await stores.claim_waiting(1, most_bytes=1) == [UUID(int=5)]

    run(database_dsn, story)


def test_an_event_from_a_clock_that_runs_ahead_does_not_hide_those_after_it(database_dsn: str) -> None:
    """Later events have smaller ids: claims find them where they look first, not only now and then."""
    query(
        database_dsn,
        """INSERT INTO postrider.outbox (id, type, data)
           SELECT (postrider.first_id_of((now() AT TIME ZONE 'UTC')::date + 1)), 'a.b', '{}'""",
    )

    async def story(stores: Stores) -> None:
        await stores.claim(1)
        stores.pending._full_looks = TimeShare(0.0001, 1e9)
        stores.pending._full_looks.spent(0, 1e9)  # no look at all of the queue comes to help
        missed = 0
        for _ in range(20):
            await asyncio.to_thread(emit, database_dsn)
            missed += await stores.claim_if_any(1) is None
        # The first claims still begin at the event from ahead, until others have ended before it.
        assert missed <= 1

    run(database_dsn, story)


def test_an_event_of_a_year_that_python_does_not_know_is_delivered(database_dsn: str, tmp_path: Path) -> None:
    with ReceiverProcess(SECRET) as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))
        for moment in ("20000-01-01", "0044-03-15 BC"):
            query(database_dsn, f"SELECT postrider.emit('a.b', '{{}}', occurred_at => '{moment}')")

        async def story() -> None:
            async with staged(database_dsn, tmp_path) as stage:
                await stage.wait_for_states("succeeded", "succeeded")

        asyncio.run(story())


def test_an_event_that_is_done_again_spares_the_endpoints_that_have_it(
    database_dsn: str, tmp_path: Path
) -> None:
    with ReceiverProcess(SECRET) as receiver:
        done = add_endpoint(database_dsn, receiver.url("/done"))
        add_endpoint(database_dsn, receiver.url("/open"))
        event_id = parse_event_id(emit(database_dsn)[0])
        query(
            database_dsn,
            """INSERT INTO postrider.delivery
                 (event_id, endpoint_id, workspace_id, state, attempts, updated_at)
               VALUES ($1, $2, 'default', 'succeeded', 1, now())""",
            event_id,
            done,
        )
        query(database_dsn, "UPDATE postrider.pending SET redo = true")

        async def story() -> None:
            async with staged(database_dsn, tmp_path) as stage:
                await eventually(stage.pending, 0)

        asyncio.run(story())
        assert receiver.stats()["received"] == 1
        assert set(receiver.ids("/open")) == {f"evt_{event_id.hex}"}


def test_claims_that_the_daemon_does_not_know_are_given_back_by_and_by(
    database_dsn: str, tmp_path: Path
) -> None:
    """As after a crash that undid the end of a claim, and of a delivery: nothing raises a doubt."""
    with ReceiverProcess(SECRET) as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))
        clock = FakeClock()

        async def story() -> None:
            async with staged(database_dsn, tmp_path, clock) as stage:
                ticking = asyncio.create_task(tick(clock))
                await stage.emit()
                await stage.wait_for_states("succeeded")
                async with stage.connection.transaction():
                    await stage.emit()
                    await stage.connection.execute(
                        """WITH gone AS (DELETE FROM postrider.pending RETURNING event_id)
                           INSERT INTO postrider.claim (id, owner, event_ids)
                           SELECT 4711, $1, array_agg(event_id) FROM gone""",
                        stage.daemon.services.ledger.owner,
                    )
                    await stage.connection.execute(
                        "UPDATE postrider.delivery SET state = 'sending', owner = $1",
                        stage.daemon.services.ledger.owner,
                    )
                await stage.wait_for_states("succeeded", "succeeded")
                ticking.cancel()

        asyncio.run(story())
        assert receiver.stats()["received"] == 3


def test_a_claim_whose_answer_got_lost_is_given_back(database_dsn: str, tmp_path: Path) -> None:
    with ReceiverProcess(SECRET) as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))

        async def story() -> None:
            async with staged(database_dsn, tmp_path) as stage:
                # As if our claim had been made, and the connection cut before we heard of it.
                async with stage.connection.transaction():
                    await stage.emit()
                    await stage.connection.execute(
                        """WITH gone AS (DELETE FROM postrider.pending RETURNING event_id)
                           INSERT INTO postrider.claim (id, owner, event_ids)
                           SELECT 4711, $1, array_agg(event_id) FROM gone""",
                        stage.daemon.services.ledger.owner,
                    )
                stage.daemon.services.signals.events_doubt.set()
                await stage.wait_for_states("succeeded")
                await stage.connection.execute(
                    "UPDATE postrider.delivery SET state = 'sending', owner = $1",
                    stage.daemon.services.ledger.owner,
                )
                stage.daemon.services.signals.deliveries_doubt.set()
                await stage.wait_for_states("succeeded")

        asyncio.run(story())
        assert receiver.stats()["received"] == 2

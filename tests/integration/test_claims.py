"""Who owns what: claims, fences, rescue, and answers that got lost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import asyncpg

from postrider.domain.model import Attempt, DeliveryState, Reply, parse_event_id
from postrider.store.daemons import Daemons
from postrider.store.database import Database
from postrider.store.deliveries import Deliveries, DeliveryResult
from postrider.store.outbox import ClaimedEvents, Outbox
from tests.support.daemon_process import SECRET, add_endpoint, emit, query
from tests.support.receiver_process import ReceiverProcess
from tests.support.stage import eventually, staged

NOW = datetime.now(UTC)


class Stores:
    def __init__(self, database: Database) -> None:
        self.database = database
        self.outbox = Outbox(database)
        self.deliveries = Deliveries(database)
        self.daemons = Daemons(database)

    async def claim(self, owner: int, limit: int = 10) -> ClaimedEvents:
        claimed = await self.outbox.claim(owner, limit)
        assert claimed is not None
        return claimed

    async def record(self, owner: int, event_id: UUID, claim_id: int, *, finished: bool = True) -> int:
        result = DeliveryResult(event_id, 7, "default", DeliveryState.FAILED, attempts=1, claim_id=claim_id)
        written = await self.deliveries.record(
            owner,
            first=[result],
            again=[],
            held=[] if finished else [claim_id],
            finished=[claim_id] if finished else [],
            now=NOW,
        )
        return len(written)


@asynccontextmanager
async def open_stores(dsn: str) -> AsyncIterator[Stores]:
    database = Database(dsn, pool_size=8)
    await database.open()
    try:
        yield Stores(database)
    finally:
        await database.close()


def run(dsn: str, story: Callable[[Stores], Awaitable[None]]) -> None:
    async def tell() -> None:
        async with open_stores(dsn) as stores:
            await story(stores)

    asyncio.run(tell())


async def eventually_claimed(stores: Stores, owner: int) -> ClaimedEvents:
    """What was given back lies behind the newest, where not every claim looks."""
    while (claimed := await stores.outbox.claim(owner, 10)) is None:
        await asyncio.sleep(0.01)
    return claimed


def test_no_event_is_claimed_twice(database_dsn: str) -> None:
    ids = {parse_event_id(each) for each in emit(database_dsn, 500)}

    async def story(stores: Stores) -> None:
        async def claim_all(owner: int) -> list[UUID]:
            mine = []
            while claimed := await stores.outbox.claim(owner, 17):
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
        assert await stores.outbox.release(2, [claimed.claim_id]) == 0
        assert await stores.outbox.claim(2, 10) is None
        assert await stores.outbox.release(1, [claimed.claim_id]) == 1
        again = await eventually_claimed(stores, 2)
        assert ([each.id for each in again.events], again.redo) == ([event_id], [event_id])

    run(database_dsn, story)


def test_who_lost_an_event_can_not_record_it(database_dsn: str) -> None:
    event_id = parse_event_id(emit(database_dsn)[0])

    async def story(stores: Stores) -> None:
        lost = (await stores.claim(1)).claim_id
        await stores.outbox.release(1, [lost])
        held = (await eventually_claimed(stores, 2)).claim_id
        assert await stores.record(1, event_id, lost) == 0
        assert await stores.record(1, event_id, lost, finished=False) == 0
        assert await stores.record(1, event_id, held) == 0
        assert await stores.outbox.is_pending(event_id)
        assert await stores.record(2, event_id, held) == 1
        assert not await stores.outbox.is_pending(event_id)
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
            return len(
                await stores.deliveries.record(owner, first=[], again=[result], held=[], finished=[], now=NOW)
            )

        assert len(await stores.deliveries.claim_waiting(1, 7, 10, NOW)) == 1
        await stores.deliveries.release(1, [(event_id, 7)])
        assert len(await stores.deliveries.claim_waiting(2, 7, 10, NOW)) == 1
        assert await record(1, DeliveryState.SUCCEEDED) == 0
        assert await record(2, DeliveryState.FAILED) == 1
        assert await record(2, DeliveryState.SUCCEEDED) == 0

    run(database_dsn, story)
    assert query(database_dsn, "SELECT state FROM postrider.delivery")[0]["state"] == "failed"


def test_the_dead_are_rescued_and_the_living_left_alone(database_dsn: str) -> None:
    emit(database_dsn, 3)

    async def story(stores: Stores) -> None:
        sessions = [await asyncpg.connect(database_dsn) for _ in range(2)]
        dead, living = [await stores.daemons.register(session, "0", pooled=False) for session in sessions]
        await stores.outbox.claim(dead, 2)
        await stores.outbox.claim(living, 1)
        assert await stores.daemons.rescue(0, NOW) == []
        await sessions[0].close()

        async def rescued() -> list[tuple[int, int]]:
            return [(each.daemon_id, each.events) for each in await stores.daemons.rescue(0, NOW)]

        await eventually(rescued, [(dead, 2)])
        assert len(await stores.outbox.claims(living)) == 1
        assert [row.id for row in await stores.daemons.list_daemons()] == [living]
        assert not await stores.daemons.resume(sessions[1], dead)
        await sessions[1].close()

    run(database_dsn, story)


def test_what_was_claimed_by_a_daemon_unaware_that_it_was_struck_out_is_rescued(database_dsn: str) -> None:
    emit(database_dsn, 2)

    async def story(stores: Stores) -> None:
        await stores.claim(4711)
        assert [(each.daemon_id, each.events) for each in await stores.daemons.rescue(0, NOW)] == [(4711, 2)]
        assert len((await eventually_claimed(stores, 1)).events) == 2

    run(database_dsn, story)


def test_who_leaves_gives_back_what_is_unfinished_and_all_of_what_it_never_heard_of(
    database_dsn: str,
) -> None:
    emit(database_dsn, 3)

    async def story(stores: Stores) -> None:
        heard = await stores.claim(1, 2)
        await stores.claim(1, 1)
        unfinished = heard.events[0].id
        left = await stores.daemons.leave(1, {heard.claim_id}, {unfinished}, NOW)
        assert left.events == 2
        again = await eventually_claimed(stores, 2)
        assert unfinished in {each.id for each in again.events}
        assert heard.events[1].id not in {each.id for each in again.events}

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
                           INSERT INTO postrider.claim (owner, event_ids) SELECT $1, array_agg(event_id)
                           FROM gone""",
                        stage.daemon.work.owner,
                    )
                stage.daemon.dispatcher.doubt()
                await stage.wait_for_states("succeeded")
                await stage.connection.execute(
                    "UPDATE postrider.delivery SET state = 'sending', owner = $1", stage.daemon.work.owner
                )
                stage.daemon.scheduler.doubt()
                await stage.wait_for_states("succeeded")

        asyncio.run(story())
        assert receiver.stats()["received"] == 2

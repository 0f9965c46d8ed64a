"""Daemons that freeze, vanish or lose their session, and neighbours who take their locks: whatever was held
is rescued, and nobody who lives is robbed."""

import asyncio
import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from postrider.edges.clock import DatabaseClock, SystemClock
from postrider.engine.rescue import rescue
from postrider.store import daemons
from postrider.store.daemons import LOCK_CLASS
from postrider.store.database import Database
from tests.support.daemon_process import (
    SECRET,
    DaemonProcess,
    add_endpoint,
    assert_settled,
    emit,
    query,
    write_config,
)
from tests.support.daemons import all_daemons, identity, rescued
from tests.support.logins import login
from tests.support.receiver_process import ReceiverProcess
from tests.support.stage import staged

RESCUE_S = 40
"""30 s is what is promised; the rest is for a slow machine."""


def test_what_a_frozen_daemon_held_is_rescued_and_it_goes_on_under_a_new_id(
    database_dsn: str, tmp_path: Path
) -> None:
    """Its host stops it, as a hypervisor does: its sessions and its lock stay, and whoever rescues it with
    another login may not end them."""
    with (
        ReceiverProcess(SECRET, mode="slow:2") as receiver,
        login(database_dsn, member_of=["postrider_daemon"]) as sleeper_dsn,
        login(database_dsn, member_of=["postrider_daemon"]) as heir_dsn,
    ):
        add_endpoint(database_dsn, receiver.url("/a"))
        with DaemonProcess(write_config(tmp_path, sleeper_dsn, "sleeper")) as sleeper:
            sleeper.wait_for_log("daemon.started")
            ids = emit(database_dsn, 20)
            receiver.wait_for(4, key="received")
            sleeper.signal(signal.SIGSTOP)
            receiver.set_mode("ok")
            with DaemonProcess(write_config(tmp_path, heir_dsn, "heir")) as heir:
                heir.wait_for_log("daemon.rescued", timeout=RESCUE_S)
                receiver.wait_for(20)
                sleeper.signal(signal.SIGCONT)
                replaced = sleeper.wait_for_log("daemon.replaced")
                assert_settled(database_dsn)
                living = {row["id"] for row in query(database_dsn, "SELECT id FROM postrider.daemon")}
                assert len(living) == 2
                assert replaced["daemon"] not in living
                ids += emit(database_dsn, 50)
                receiver.wait_for(70)
                assert_settled(database_dsn)
        assert set(receiver.ids("/a")) == set(ids)


def test_a_frozen_session_is_replaced_and_the_daemon_keeps_its_id(database_dsn: str, tmp_path: Path) -> None:
    """The server's side of the session stops answering; its lock stays taken."""
    with ReceiverProcess(SECRET) as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))
        with DaemonProcess(write_config(tmp_path, database_dsn)) as daemon:
            daemon.wait_for_log("daemon.started")
            holder = query(
                database_dsn,
                "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = $1::bigint::oid",
                LOCK_CLASS,
            )[0]["pid"]
            try:
                os.kill(holder, signal.SIGSTOP)
            except ProcessLookupError:
                pytest.skip("the test server runs elsewhere")
            try:
                daemon.wait_for_log("listener.reconnected")
                assert not daemon.logged("daemon.replaced")
                emit(database_dsn, 10)
                receiver.wait_for(10)
            finally:
                os.kill(holder, signal.SIGCONT)


def test_a_neighbour_who_takes_a_dead_daemons_lock_does_not_keep_its_events(
    database_dsn: str, tmp_path: Path
) -> None:
    with (
        ReceiverProcess(SECRET, mode="slow:2") as receiver,
        login(database_dsn) as neighbour_dsn,
        login(database_dsn, member_of=["postrider_daemon"]) as daemon_dsn,
    ):
        add_endpoint(database_dsn, receiver.url("/a"))
        config = write_config(tmp_path, daemon_dsn)
        with DaemonProcess(config) as doomed:
            doomed.wait_for_log("daemon.started")
            emit(database_dsn, 20)
            receiver.wait_for(4, key="received")
            daemon_id = query(database_dsn, "SELECT id FROM postrider.daemon")[0]["id"]
            doomed.kill()
            receiver.set_mode("ok")

            async def rescued_beside_a_thief() -> None:
                thief = await asyncpg.connect(neighbour_dsn)
                await thief.execute("SELECT pg_advisory_lock($1, $2)", LOCK_CLASS, daemon_id)
                with DaemonProcess(config) as heir:
                    await asyncio.to_thread(heir.wait_for_log, "daemon.rescued", RESCUE_S)
                    await asyncio.to_thread(receiver.wait_for, 20, timeout=30)
                await thief.close()

            asyncio.run(rescued_beside_a_thief())


def test_a_daemon_whose_lock_was_taken_comes_back_and_lives_by_its_heartbeat(database_dsn: str) -> None:
    async def story(neighbour_dsn: str) -> None:
        database = Database(database_dsn, pool_size=2)
        await database.open()
        first = await database.dedicated()
        own = await identity(database).register(first)
        await first.close()
        thief = await asyncpg.connect(neighbour_dsn)
        await thief.execute("SELECT pg_advisory_lock($1, $2)", LOCK_CLASS, own)
        second = await database.dedicated()
        async with asyncio.timeout(10):
            assert await identity(database).resume(second, own, SystemClock())
        assert await rescued(database) == []
        assert [row.alive for row in await all_daemons(database)] == [True]
        await thief.close()
        await second.close()
        await database.close()

    with login(database_dsn) as neighbour_dsn:
        asyncio.run(story(neighbour_dsn))


def test_a_session_that_the_server_still_thinks_alive_is_ended_by_its_own_daemon(database_dsn: str) -> None:
    async def story() -> None:
        database = Database(database_dsn, pool_size=2)
        await database.open()
        first = await database.dedicated()
        own = await identity(database).register(first)
        second = await database.dedicated()
        async with asyncio.timeout(10):
            assert await identity(database).resume(second, own, SystemClock())
        assert not (await all_daemons(database))[0].pooled
        assert await rescued(database) == []
        first.terminate()
        await second.close()
        await database.close()

    asyncio.run(story())


def test_an_id_does_not_come_back_after_a_crash_that_undid_it(database_dsn: str) -> None:
    """The sequence is where it was before, and the row is another daemon's: the first one knows it."""

    async def story() -> None:
        database = Database(database_dsn, pool_size=2)
        await database.open()
        first = await database.dedicated()
        undone = await identity(database).register(first)
        await first.close()
        async with database.connection() as connection:
            await connection.execute("DELETE FROM postrider.daemon")
            await connection.execute("ALTER TABLE postrider.daemon ALTER id RESTART")
        second, third = await database.dedicated(), await database.dedicated()
        assert await identity(database).register(second) != undone
        assert not await identity(database).resume(third, undone, SystemClock())
        await second.close()
        await third.close()
        await database.close()

    asyncio.run(story())


class SkewedClock(SystemClock):
    """A host whose clock is off."""

    def __init__(self, seconds: float) -> None:
        self._skew = timedelta(seconds=seconds)

    def now(self) -> datetime:
        return super().now() + self._skew


@pytest.mark.parametrize("skew_s", [-3600, -31, 31, 3600])
def test_a_wrong_clock_neither_robs_nor_postpones(database_dsn: str, tmp_path: Path, skew_s: float) -> None:
    """Two daemons, one with a wrong clock: each lives on, and a retry is due by the database's clock."""
    with ReceiverProcess(SECRET, mode="500") as receiver:
        add_endpoint(database_dsn, receiver.url("/a"))

        async def story() -> None:
            retry = {"schedule": ["0s", "20s"], "jitter": 0}
            clock = DatabaseClock(SkewedClock(skew_s))
            (tmp_path / "other").mkdir()
            async with (
                staged(database_dsn, tmp_path, clock, retry=retry) as skewed,
                staged(database_dsn, tmp_path / "other", retry=retry) as right,
            ):
                await skewed.emit()
                await skewed.wait_for_states("retrying")
                ahead = await skewed.connection.fetchval(
                    "SELECT extract(epoch FROM due - clock_timestamp())::float FROM postrider.delivery"
                )
                assert 0 < ahead <= 20
                owners = {skewed.daemon.services.ledger.owner, right.daemon.services.ledger.owner}
                for each in (skewed, right):
                    assert await each.daemon.services.janitor.rescue() == 0
                rows = await skewed.connection.fetch("SELECT id FROM postrider.daemon")
                assert {row["id"] for row in rows} == owners

        asyncio.run(story())


def test_a_daemon_behind_a_pooler_lives_by_the_databases_clock(database_dsn: str) -> None:
    async def story() -> None:
        database = Database(database_dsn, pool_size=2)
        await database.open()
        async with database.connection() as connection:
            own = await identity(database, pooled=True).register(connection)
        # Whatever the rescuer's clock says.
        for off in (-3600, 31, 3600):
            assert await rescue(database, 0, datetime.now(UTC) + timedelta(seconds=off)) == []
        query_stale = "UPDATE postrider.daemon SET heartbeat_at = clock_timestamp() - interval '26 s'"
        async with database.connection() as connection:
            await connection.execute(query_stale)
        found = await rescue(database, 0, datetime.now(UTC) - timedelta(hours=1))
        assert [each.daemon_id for each in found] == [own]
        async with database.connection() as connection:
            assert await daemons.beat(connection, own) is None
        await database.close()

    asyncio.run(story())


def test_daemons_of_the_last_release_are_judged_by_their_lock(database_dsn: str) -> None:
    """They beat only behind a pooler."""

    async def story() -> None:
        database = Database(database_dsn, pool_size=2)
        await database.open()
        session = await database.dedicated()
        await session.execute(
            """INSERT INTO postrider.daemon (hostname, pid, version, started_at, heartbeat_at)
               VALUES ('old', 1, '0', now() - interval '1 day', now() - interval '1 day')"""
        )
        old = await session.fetchval("SELECT id FROM postrider.daemon")
        await session.execute("SELECT pg_advisory_lock($1, $2)", LOCK_CLASS, old)
        assert await rescued(database) == []
        await session.close()

        async def is_rescued() -> bool:
            return [each.daemon_id for each in await rescued(database)] == [old]

        async with asyncio.timeout(10):
            while not await is_rescued():
                await asyncio.sleep(0.01)
        await database.close()

    asyncio.run(story())


def test_on_a_copy_of_a_database_the_originals_daemons_keep_their_sessions(
    database_dsn: str, empty_database_dsn: str
) -> None:
    """Its table of daemons has their names, and the server shows the sessions of all its databases."""

    async def story() -> None:
        original = await asyncpg.connect(
            empty_database_dsn, server_settings={"application_name": "postrider 0123456789ab"}
        )
        copy = Database(database_dsn, pool_size=2)
        await copy.open()
        async with copy.connection() as connection:
            await connection.execute(
                """INSERT INTO postrider.daemon
                     (hostname, pid, version, started_at, heartbeat_at, application_name)
                   VALUES ('copied', 1, '0', now(), now() - interval '1 day', 'postrider 0123456789ab')"""
            )
        assert len(await rescued(copy)) == 1
        assert await original.fetchval("SELECT 1") == 1
        await original.close()
        await copy.close()

    asyncio.run(story())

"""The registry of daemons: who lives, who sleeps, and rescuing what a dead one left.

A daemon lives as long as its session holds its advisory lock; when its connection dies, the server frees
the lock at once. Behind a transaction pooler there is no session to hold one, and a heartbeat stands in.
"""

import os
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta

from postrider.domain.status import DaemonReport, read_report, write_report
from postrider.store.database import Connection, Database
from postrider.store.migrations import LOCK_CLASS
from postrider.store.outbox import REQUEUE

HEARTBEAT_TIMEOUT = timedelta(seconds=30)

_STRUCK_OUT = """
SELECT owner FROM (
  SELECT DISTINCT owner FROM postrider.claim
  UNION SELECT DISTINCT owner FROM postrider.delivery WHERE state = 'sending'
) AS owners WHERE owner NOT IN (SELECT id FROM postrider.daemon)
"""


@dataclass(frozen=True, slots=True)
class Rescued:
    daemon_id: int
    events: int
    deliveries: int


@dataclass(frozen=True, slots=True)
class DaemonRow:
    id: int
    hostname: str
    pid: int
    version: str
    started_at: datetime
    heartbeat_at: datetime
    pooled: bool
    alive: bool
    reported_at: datetime | None
    report: DaemonReport | None
    """None before its first report, and where another version wrote one that can't be read."""


class Daemons:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(self, connection: Connection, version: str, now: datetime, *, pooled: bool) -> int:
        """Enter a new daemon; return its id, locked by the session of `connection`."""
        async with connection.transaction():  # others must not see the row before the lock is held
            daemon_id: int = await connection.fetchval(
                """INSERT INTO postrider.daemon (hostname, pid, version, started_at, heartbeat_at, pooled)
                   VALUES ($1, $2, $3, $4, $4, $5) RETURNING id""",
                socket.gethostname(),
                os.getpid(),
                version,
                now,
                pooled,
            )
            if not pooled:
                await connection.execute("SELECT pg_advisory_lock($1, $2)", LOCK_CLASS, daemon_id)
        return daemon_id

    async def resume(self, connection: Connection, daemon_id: int) -> bool:
        """Lock the id again in a new session; False if others rescued its rows meanwhile.

        Waits while the server has not noticed yet that the old session is gone.
        """
        await connection.execute("SELECT pg_advisory_lock($1, $2)", LOCK_CLASS, daemon_id, timeout=60)
        known: bool = await connection.fetchval(
            "SELECT EXISTS (SELECT FROM postrider.daemon WHERE id = $1)", daemon_id
        )
        return known

    async def beat(self, daemon_id: int, now: datetime) -> bool:
        """Note that the daemon lives; False if others took it for dead."""
        async with self._database.connection() as connection:
            done: int | None = await connection.fetchval(
                "UPDATE postrider.daemon SET heartbeat_at = $2 WHERE id = $1 RETURNING id", daemon_id, now
            )
        return done is not None

    async def set_idle(self, daemon_id: int, *, idle: bool) -> None:
        """Tell writers whether this daemon needs to be notified."""
        async with self._database.connection() as connection:
            await connection.execute("UPDATE postrider.daemon SET idle = $2 WHERE id = $1", daemon_id, idle)

    async def report(self, daemon_id: int, report: DaemonReport, now: datetime) -> None:
        """Leave a report for people who ask how the daemon is doing."""
        async with self._database.connection() as connection:
            await connection.execute(
                "UPDATE postrider.daemon SET report = $2::text::json, reported_at = $3 WHERE id = $1",
                daemon_id,
                write_report(report),
                now,
            )

    async def leave(self, daemon_id: int, now: datetime) -> Rescued:
        """Give back everything that a daemon holds, and strike it out.

        Events of a claim that was not completed go back whole: what of them is recorded is known by its rows.
        """
        async with self._database.transaction() as connection:
            return await self._free(connection, daemon_id, now)

    async def rescue(self, own_id: int, now: datetime) -> list[Rescued]:
        """Free the rows of dead daemons; return what each of them left.

        Some rows may be of daemons that were struck out before they claimed them, unaware of it.
        """
        async with self._database.connection() as connection:
            others = await connection.fetch("SELECT id FROM postrider.daemon WHERE id <> $1", own_id)
            dead = [await self._rescue_one(connection, row["id"], now) for row in others]
            for row in await connection.fetch(_STRUCK_OUT):
                async with connection.transaction():
                    dead.append(await self._free(connection, row["owner"], now))
        return [rescued for rescued in dead if rescued is not None]

    async def _rescue_one(self, connection: Connection, daemon_id: int, now: datetime) -> Rescued | None:
        async with connection.transaction():
            dead: bool | None = await connection.fetchval(
                """SELECT heartbeat_at < $3 OR NOT pooled FROM postrider.daemon
                   WHERE id = $2 AND pg_try_advisory_xact_lock($1, $2)""",
                LOCK_CLASS,
                daemon_id,
                now - HEARTBEAT_TIMEOUT,
            )
            if not dead:
                return None
            return await self._free(connection, daemon_id, now)

    @staticmethod
    async def _free(connection: Connection, daemon_id: int, now: datetime) -> Rescued:
        """Free what a daemon holds: its events for a new fan-out, its deliveries as waiting."""
        rows = await connection.fetch(
            "DELETE FROM postrider.claim WHERE owner = $1 RETURNING event_ids", daemon_id
        )
        events = [event_id for row in rows for event_id in row["event_ids"]]
        await connection.execute(REQUEUE, events)
        deliveries = await connection.fetch(
            """UPDATE postrider.delivery SET state = 'waiting', owner = NULL, updated_at = $2
               WHERE owner = $1 AND state = 'sending' RETURNING event_id""",
            daemon_id,
            now,
        )
        await connection.execute("DELETE FROM postrider.daemon WHERE id = $1", daemon_id)
        return Rescued(daemon_id, len(events), len(deliveries))

    async def list_daemons(self, now: datetime) -> list[DaemonRow]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """SELECT id, hostname, pid, version, started_at, heartbeat_at, pooled, reported_at, report,
                     CASE WHEN pooled THEN heartbeat_at >= $2 ELSE EXISTS (
                       SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = $1::bigint::oid
                       AND objid = d.id::bigint::oid AND objsubid = 2 AND granted
                       AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
                     END AS alive
                   FROM postrider.daemon AS d ORDER BY id""",
                LOCK_CLASS,
                now - HEARTBEAT_TIMEOUT,
            )
        return [
            DaemonRow(**{**row, "report": None if row["report"] is None else read_report(row["report"])})
            for row in rows
        ]

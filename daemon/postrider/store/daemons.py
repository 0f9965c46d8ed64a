"""The registry of daemons: who lives, who sleeps, and rescuing what a dead one left.

A daemon lives as long as its session holds its advisory lock, which the server frees at once when the
connection dies, and its heartbeat, by the database's clock, is fresh, which it is not where the host froze or
vanished and the server has not noticed. Behind a transaction pooler there is no session to hold a lock, and
the heartbeat alone counts. Any login may take an advisory lock: one counts only if its holder may do what a
daemon does. An id is random, so that it neither can be locked in advance, nor comes back after a crash that
undid the registration: whoever registers draws it.
"""

import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from postrider.domain.status import DaemonReport, read_report, write_report
from postrider.store.database import Connection

LOCK_CLASS = 1886352244
"""First key of the advisory locks of daemons ('post' as a number); the second is the daemon's id."""
HEARTBEAT_TIMEOUT_S = 25

# Roles are asked for by oid: of other users' sessions, no more is shown to everybody. A daemon of an
# earlier release has no application_name, and no heartbeat where it has a lock.
ALIVE = f"""
(((d.application_name IS NULL AND NOT d.pooled)
  OR d.heartbeat_at >= clock_timestamp() - interval '{HEARTBEAT_TIMEOUT_S} s') AND (d.pooled OR EXISTS (
  SELECT FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
  WHERE l.locktype = 'advisory' AND l.classid = {LOCK_CLASS}::bigint::oid AND l.objid = d.id::bigint::oid
    AND l.objsubid = 2 AND l.granted AND l.mode = 'ExclusiveLock'
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (pg_has_role(a.usesysid, 'postrider_daemon', 'MEMBER') OR pg_has_role(a.usesysid, (
      SELECT relowner FROM pg_class WHERE oid = 'postrider.daemon'::regclass), 'MEMBER'))
)))
"""  # noqa: S608 (constant)

_DEAD = f"""
SELECT d.id, d.application_name FROM postrider.daemon AS d WHERE d.id <> $1 AND NOT {ALIVE}
"""  # noqa: S608 (constant)
_IS_ALIVE = f"SELECT {ALIVE} FROM postrider.daemon AS d WHERE d.id = $1"  # noqa: S608 (constant)

_BEAT = """
UPDATE postrider.daemon SET heartbeat_at = clock_timestamp() WHERE id = $1 RETURNING clock_timestamp() AS at
"""

# One daemon that says no is enough, and whatever was said last holds on when it has gone: a transaction of
# the CRM that can't be prepared costs more than a daemon that polls.
_SET_IDLE = """
WITH changed AS (
  UPDATE postrider.setting SET notify = $3
  WHERE notify <> $3 AND NOT ($3 AND EXISTS (SELECT FROM postrider.daemon WHERE NOT notify AND id <> $1))
  RETURNING notify
), now AS (
  SELECT coalesce((SELECT notify FROM changed), (SELECT notify FROM postrider.setting)) AS notify
)
UPDATE postrider.daemon AS d SET idle = $2 AND now.notify, notify = $3
FROM now WHERE d.id = $1 RETURNING now.notify
"""

# Claims and deliveries of daemons that were struck out before they claimed them, unaware of it.
_STRUCK_OUT = """
SELECT owner FROM (
  SELECT DISTINCT owner FROM postrider.claim
  UNION SELECT DISTINCT owner FROM postrider.delivery WHERE state = 'sending'
) AS owners WHERE owner NOT IN (SELECT id FROM postrider.daemon)
"""


@dataclass(frozen=True, slots=True)
class DeadDaemon:
    id: int
    application_name: str | None
    """Of its sessions; None of an earlier release."""


@dataclass(frozen=True, slots=True)
class DaemonRow:
    id: int
    hostname: str
    pid: int
    version: str
    started_at: datetime
    heartbeat_at: datetime
    pooled: bool
    schema: int | None
    """The last migration that its program knows; None of a release that did not tell."""
    alive: bool
    reported_at: datetime | None
    report: DaemonReport | None
    """None before its first report, and where another version wrote one that can't be read."""


# A daemon's own row.


async def lock(connection: Connection, daemon_id: int) -> bool:
    """Take the lock of an id for the session of `connection`; False where another holds it."""
    locked: bool = await connection.fetchval("SELECT pg_try_advisory_lock($1, $2)", LOCK_CLASS, daemon_id)
    return locked


async def enter(
    connection: Connection, daemon_id: int, *, application_name: str, version: str, schema: int, pooled: bool
) -> bool:
    """Enter a new daemon, whose program knows the schema of that number; False if the id is taken."""
    entered = await connection.fetchval(
        """INSERT INTO postrider.daemon (id, hostname, pid, version, started_at, heartbeat_at, pooled,
                                         application_name, schema)
           OVERRIDING SYSTEM VALUE
           VALUES ($1, $2, $3, $4, clock_timestamp(), clock_timestamp(), $5, $6, $7)
           ON CONFLICT DO NOTHING RETURNING id""",
        daemon_id,
        socket.gethostname(),
        os.getpid(),
        version,
        pooled,
        application_name,
        schema,
    )
    return entered is not None


async def come_back(connection: Connection, daemon_id: int, *, locked: bool) -> bool:
    """Note that the daemon lives on in a new session; False if others took it for dead meanwhile.

    Where the session could not lock the id, the heartbeat alone tells from now on that the daemon lives.
    """
    known: int | None = await connection.fetchval(
        """UPDATE postrider.daemon SET heartbeat_at = clock_timestamp(), pooled = NOT $2
           WHERE id = $1 RETURNING id""",
        daemon_id,
        locked,
    )
    return known is not None


async def beat(connection: Connection, daemon_id: int) -> datetime | None:
    """Note that the daemon lives; return the database's time, or None if others took it for dead."""
    at: datetime | None = await connection.fetchval(_BEAT, daemon_id)
    return at


async def beat_in_session(connection: Connection, daemon_id: int, channels: Iterable[str]) -> datetime | None:
    """The same; None too if the session does not listen to all of `channels`."""
    at: datetime | None = await connection.fetchval(
        f"""WITH beat AS ({_BEAT})
            SELECT at FROM beat
            WHERE ARRAY(SELECT pg_listening_channels()) @> $2::text[]""",  # noqa: S608 (constant)
        daemon_id,
        list(channels),
    )
    return at


async def set_idle(connection: Connection, daemon_id: int, *, idle: bool, notify: bool | None) -> bool:
    """Tell writers whether this daemon needs to be notified; return whether they notify anybody.

    `notify`: what this daemon's configuration says of that; None: nothing.
    """
    notified: bool | None = await connection.fetchval(_SET_IDLE, daemon_id, idle, notify)
    return notified is not False


async def report(connection: Connection, daemon_id: int, report: DaemonReport, now: datetime) -> None:
    """Leave a report for people who ask how the daemon is doing."""
    await connection.execute(
        "UPDATE postrider.daemon SET report = $2::text::json, reported_at = $3 WHERE id = $1",
        daemon_id,
        write_report(report),
        now,
    )


async def strike_out(connection: Connection, daemon_id: int) -> None:
    """Forget a daemon, which holds nothing any more."""
    await connection.execute("DELETE FROM postrider.daemon WHERE id = $1", daemon_id)


# Other daemons.


async def dead(connection: Connection, own_id: int) -> list[DeadDaemon]:
    """Those that live no more, but for our own."""
    return [DeadDaemon(**row) for row in await connection.fetch(_DEAD, own_id)]


async def still_dead(connection: Connection, daemon_id: int) -> bool:
    """Whether it lives no more; if so its row can't change until the end of the transaction. False too where
    another rescues it."""
    locked = await connection.fetchval(
        "SELECT id FROM postrider.daemon WHERE id = $1 FOR UPDATE SKIP LOCKED", daemon_id
    )
    # Asked again now that it can't change any more: it may have come back a moment ago.
    return locked is not None and not await connection.fetchval(_IS_ALIVE, daemon_id)


async def struck_out(connection: Connection) -> list[int]:
    """Ids that are no daemon's, and hold something."""
    return [row["owner"] for row in await connection.fetch(_STRUCK_OUT)]


async def end_sessions(connection: Connection, application_name: str, *, holding: int | None = None) -> None:
    """End the sessions of a daemon, or the one that holds its lock, where the server lets us."""
    rows = await connection.fetch(
        """SELECT a.pid FROM pg_stat_activity AS a
           WHERE a.application_name = $1 AND a.pid <> pg_backend_pid()
             -- A copy of the database on the same server has the same names in its table of daemons.
             AND a.datid = (SELECT oid FROM pg_database WHERE datname = current_database())
             AND ($2::integer IS NULL OR EXISTS (
               SELECT FROM pg_locks AS l WHERE l.pid = a.pid AND l.locktype = 'advisory'
                 AND l.classid = $3::bigint::oid AND l.objid = $2::bigint::oid))""",
        application_name,
        holding,
        LOCK_CLASS,
    )
    for row in rows:
        with suppress(asyncpg.InsufficientPrivilegeError):
            async with connection.transaction():
                await connection.execute("SELECT pg_terminate_backend($1)", row["pid"])


async def alive(connection: Connection) -> set[int]:
    """The daemons that live."""
    rows = await connection.fetch(
        f"SELECT id FROM postrider.daemon AS d WHERE {ALIVE}"  # noqa: S608 (constant)
    )
    return {row["id"] for row in rows}


async def list_all(connection: Connection) -> list[DaemonRow]:
    rows = await connection.fetch(
        f"""SELECT id, hostname, pid, version, started_at, heartbeat_at, pooled, schema, reported_at,
                   report,
                   {ALIVE} AS alive
            FROM postrider.daemon AS d ORDER BY started_at, id"""  # noqa: S608 (constant)
    )
    return [
        DaemonRow(**{**row, "report": None if row["report"] is None else read_report(row["report"])})
        for row in rows
    ]


async def living_daemons(connection: Connection) -> tuple[str, ...]:
    """Process and host of each daemon that lives."""
    rows = await connection.fetch(
        f"SELECT hostname, pid FROM postrider.daemon AS d WHERE {ALIVE} ORDER BY 1, 2"  # noqa: S608 (constant)
    )
    return tuple(f"pid {row['pid']} on {row['hostname']}" for row in rows)

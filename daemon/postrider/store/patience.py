"""Changes of the schema that never make the CRM wait for long: they give up a lock that they do not get in a
moment, let the writers who queued behind it pass, and try again.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import asyncpg

from postrider.store.database import Connection, DatabaseError, pin

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]
"""Waits so many seconds."""

# Whoever has held a lock on a table of Postrider's for as long as somebody waited for it; the longest first.
# What another user's session does may not be shown to this one.
_IN_THE_WAY = """
SELECT a.pid, a.usename, a.application_name, host(a.client_addr) AS host, a.state, a.xact_start,
       string_agg(DISTINCT c.relname, ', ') AS relations
FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid JOIN pg_class AS c ON c.oid = l.relation
WHERE l.granted AND l.locktype = 'relation' AND a.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND c.relkind IN ('r', 'p') AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'postrider')
  AND coalesce(a.xact_start < clock_timestamp() - $1 * interval '1 ms', true)
GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY a.xact_start NULLS LAST LIMIT 5
"""


class Unfinished(Exception):
    """Another session is changing the same thing, was cut off while it did, or has just finished it."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a migration may stand in the way of others, and how often it tries."""

    lock_ms: int = 500
    """So long it waits for a lock, and everybody who comes later waits behind it."""
    tries: int = 20
    pause_s: float = 1.0
    concurrent_lock_ms: int = 20_000
    """What runs concurrently waits for old transactions, with nobody behind it."""


PATIENCE = Patience()


async def begin(connection: Connection, patience: Patience) -> None:
    """The settings of a transaction that changes the schema."""
    await pin(connection)
    await connection.execute(f"SET LOCAL lock_timeout = {patience.lock_ms}; SET LOCAL statement_timeout = 0")


async def patiently(
    connection: Connection, sleep: Sleep, patience: Patience, act: Callable[[], Awaitable[T]]
) -> T:
    """Act again while a lock can't be had, with pauses in which those who waited behind it go on. Raises
    DatabaseError, with the sessions in the way, if none of the tries gets it."""
    for _ in range(patience.tries - 1):
        try:
            return await act()
        except (
            asyncpg.LockNotAvailableError,
            asyncpg.DeadlockDetectedError,
            asyncpg.UniqueViolationError,  # another session made the same schema at this moment
            asyncpg.DuplicateTableError,  # or the same index
            Unfinished,
        ):
            await sleep(patience.pause_s)
    try:
        return await act()
    except (asyncpg.LockNotAvailableError, Unfinished) as error:
        raise await _explain(connection, patience) from error


async def _explain(connection: Connection, patience: Patience) -> DatabaseError:
    async with connection.transaction():
        await pin(connection)
        rows = await connection.fetch(_IN_THE_WAY, patience.lock_ms)
    message = f"migrate could not get a lock in {patience.tries} tries; nothing of this migration was applied"
    if not rows:
        return DatabaseError(message, "Try again when fewer sessions write.")
    pids = " or ".join(f"SELECT pg_terminate_backend({row['pid']})" for row in rows)
    return DatabaseError(
        f"{message}. In the way:\n" + "\n".join(f"  {_session(row)}" for row in rows),
        f"End those transactions, by their application or by {pids}, then run `postrider migrate` again.",
    )


def _session(row: asyncpg.Record) -> str:
    since = f"since {row['xact_start']:%Y-%m-%d %H:%M:%S} UTC" if row["xact_start"] else "of another user"
    place = f" from {row['host']}" if row["host"] else ""
    return (
        f"session {row['pid']}: user {row['usename']}{place}, "
        f"application {row['application_name'] or 'unnamed'!r}, {row['state'] or 'in an unknown state'}, "
        f"in a transaction {since}, with locks on {row['relations']}"
    )

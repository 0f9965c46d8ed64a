"""What the server says of itself, and what it lets this user do."""

from datetime import datetime
from typing import NamedTuple

from postrider.store.capture_values import quoted
from postrider.store.database import Connection

_RIGHTS = """
SELECT string_agg(name || ' (' || need || ')', ', ') FROM (VALUES
  ('outbox', 'SELECT'), ('outbox', 'INSERT'), ('pending', 'INSERT'), ('pending', 'DELETE'),
  ('claim', 'INSERT'), ('claim', 'DELETE'),
  ('delivery', 'INSERT'), ('delivery', 'UPDATE'), ('attempt', 'INSERT'), ('endpoint', 'UPDATE'),
  ('daemon', 'INSERT'), ('idempotency', 'DELETE'), ('last_delivery', 'INSERT')
) AS needed(name, need) WHERE NOT has_table_privilege('postrider.' || name, need)
"""


class ServerVersion(NamedTuple):
    number: int
    """As in 180001."""
    name: str
    """As in PostgreSQL 18.1."""


async def version(connection: Connection) -> ServerVersion:
    told = connection.get_server_version()
    number = int(await connection.fetchval("SHOW server_version_num"))
    return ServerVersion(number, f"PostgreSQL {told.major}.{told.micro}")


async def clock(connection: Connection) -> datetime:
    at: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return at


async def missing_rights(connection: Connection) -> str | None:
    """What a daemon does and this user may not: tables, each with the right; None if there is nothing."""
    missing: str | None = await connection.fetchval(_RIGHTS)
    return missing


async def notify(connection: Connection, channel: str) -> None:
    await connection.execute("SELECT pg_notify($1, '')", channel)


async def create_database(connection: Connection, name: str) -> bool:
    """Outside of a transaction; False if there is one of that name."""
    if await connection.fetchval("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name):
        return False
    await connection.execute(f"CREATE DATABASE {quoted(name)}")
    return True

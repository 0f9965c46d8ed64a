"""Daemons as the registry knows them, without anything behind them."""

from datetime import UTC, datetime

from postrider.engine.identity import Identity
from postrider.engine.rescue import Freed, rescue
from postrider.store import daemons
from postrider.store.daemons import DaemonRow
from postrider.store.database import Database


def identity(database: Database | None = None, *, pooled: bool = False) -> Identity:
    """That of a daemon whose sessions come from this database; else nobody's."""
    name = database.application_name if database is not None else "postrider 0123456789ab"
    return Identity(application_name=name, version="0", schema=0, pooled=pooled)


async def all_daemons(database: Database) -> list[DaemonRow]:
    async with database.connection() as connection:
        return await daemons.list_all(connection)


async def rescued(database: Database) -> list[Freed]:
    """What somebody who is no daemon rescues."""
    return await rescue(database, 0, datetime.now(UTC))

"""What changed of the endpoints since a version: how daemons keep their snapshot of them."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from postrider.domain.model import Endpoint
from postrider.domain.sealing import Sealer
from postrider.store.database import Connection
from postrider.store.endpoint_rows import COLUMNS, read_endpoint

PAGE = 64
"""Endpoints that are read in one piece, while others wait for the event loop."""

_ALL = f"""
SELECT {COLUMNS} FROM postrider.endpoint AS e WHERE state <> 'deleted' ORDER BY e.id
"""  # noqa: S608 (constant)
_CHANGED = f"""
SELECT {COLUMNS} FROM postrider.endpoint AS e WHERE e.revision > $1 ORDER BY e.revision, e.id
"""  # noqa: S608 (constant)


class Version(NamedTuple):
    """What the tables of endpoints hold at a moment."""

    id: UUID
    """Random: never given twice, whatever a crash of the database undoes."""
    revision: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What leads to a version: endpoints that changed, deleted ones among them."""

    version: Version
    complete: bool
    """They are all there are: what is known besides is gone."""
    pages: AsyncIterator[list[Endpoint]]


async def version(connection: Connection) -> UUID:
    """It changes with every change of an endpoint."""
    found: UUID = await connection.fetchval("SELECT version FROM postrider.endpoint_revision")
    return found


async def changes(connection: Connection, since: Version | None, sealer: Sealer) -> Changes:
    """What changed since a version; all endpoints where nothing leads on from it, because it is too old, or
    was undone. The connection is in a transaction that sees one moment, and stays there for the pages."""
    row = await connection.fetchrow("SELECT version, revision, recent FROM postrider.endpoint_revision")
    assert row is not None
    current = Version(row["version"], row["revision"])
    if since is not None and since.id in (current.id, *row["recent"]):
        return Changes(current, False, _pages(connection, sealer, _CHANGED, since.revision))
    return Changes(current, True, _pages(connection, sealer, _ALL))


async def _pages(
    connection: Connection, sealer: Sealer, statement: str, *arguments: object
) -> AsyncIterator[list[Endpoint]]:
    cursor = await connection.cursor(statement, *arguments)
    while rows := await cursor.fetch(PAGE):
        yield [read_endpoint(row, sealer) for row in rows]

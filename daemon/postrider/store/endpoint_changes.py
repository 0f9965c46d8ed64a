"""Endpoints as daemons match against them: what changed since they looked, and open secrets sealed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import asyncpg

from postrider.domain.model import Endpoint
from postrider.domain.sealing import Sealer
from postrider.store.database import Database
from postrider.store.endpoint_rows import COLUMNS, read_endpoint
from postrider.store.endpoint_sealing import seal_plain

if TYPE_CHECKING:
    Cursor = asyncpg.cursor.Cursor[asyncpg.Record]
else:
    Cursor = object  # generic in its stubs only

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


class Endpoints:
    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self.sealer = sealer
        """A reload of the configuration may exchange it."""

    async def version(self) -> UUID:
        """It changes with every change of an endpoint."""
        async with self._database.connection() as connection:
            version: UUID = await connection.fetchval("SELECT version FROM postrider.endpoint_revision")
        return version

    @asynccontextmanager
    async def changes(self, since: Version | None) -> AsyncIterator[Changes]:
        """What changed since a version, as of one moment; all endpoints where nothing leads on from it,
        because it is too old, or was undone."""
        async with self._database.snapshot() as connection:
            row = await connection.fetchrow(
                "SELECT version, revision, recent FROM postrider.endpoint_revision"
            )
            assert row is not None
            version = Version(row["version"], row["revision"])
            if since is not None and since.id in (version.id, *row["recent"]):
                cursor = await connection.cursor(_CHANGED, since.revision)
                yield Changes(version, False, self._pages(cursor))
            else:
                cursor = await connection.cursor(_ALL)
                yield Changes(version, True, self._pages(cursor))

    async def _pages(self, cursor: Cursor) -> AsyncIterator[list[Endpoint]]:
        while rows := await cursor.fetch(PAGE):
            yield [read_endpoint(row, self.sealer) for row in rows]

    async def seal_plain(self, limit: int) -> int:
        """Seal headers and secrets that lie in clear text, where there is a key; return how many were."""
        if not self.sealer.seals:
            return 0
        async with self._database.transaction() as connection:
            return await seal_plain(connection, self.sealer, limit)

"""A connection for one service that asks again and again: to give one back to the pool takes two turns of the
event loop, for which what it asked for would wait."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from postrider.store.database import Connection, Database, Loan


@asynccontextmanager
async def kept_connection(database: Database) -> AsyncIterator["KeptConnection"]:
    """Given back at the end."""
    kept = KeptConnection(database, keeps=database.spares_one)
    try:
        yield kept
    finally:
        await kept.give_back()


class KeptConnection:
    """Lends one connection to one borrower at a time, who need not wait until it is given back."""

    def __init__(self, database: Database, *, keeps: bool) -> None:
        """Without `keeps` each use borrows one of its own."""
        self._database = database
        self._keeps = keeps
        self._loan: Loan | None = None

    def __repr__(self) -> str:
        return f"<KeptConnection {'open' if self._loan is not None else 'closed'}>"

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """As `Database.connection`."""
        if not self._keeps:
            async with self._database.connection() as connection:
                yield connection
            return
        async with self._database.watched():
            try:
                yield await self._current()
            except BaseException:
                await self.give_back()
                raise

    async def _current(self) -> Connection:
        if self._loan is not None and not self._loan.usable:
            await self.give_back()
        if self._loan is None:
            self._loan = await self._database.lend()
        return self._loan.connection

    async def give_back(self) -> None:
        loan, self._loan = self._loan, None
        if loan is not None:
            await loan.give_back()

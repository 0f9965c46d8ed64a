"""The unit of work of an act: one transaction in which the change, its line in the audit log and whatever
else belongs to it commit together, for one actor within one scope."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from postrider.domain.audit import Actor, Scope
from postrider.domain.dialects import Dialect
from postrider.domain.errors import UsageError
from postrider.domain.sealing import Sealer
from postrider.edges.clock import Clock, SystemClock
from postrider.edges.config import Config
from postrider.edges.dialect_files import load_dialects
from postrider.edges.resources import sql_dir
from postrider.edges.settings import read_sealer
from postrider.edges.system_user import become
from postrider.store import audit
from postrider.store.database import Connection, Database
from postrider.store.migrations import check_schema, read_schema


@dataclass(frozen=True, slots=True)
class Setting:
    """What the rules go by: the configuration, and what was made of it."""

    config: Config
    dialects: Mapping[str, Dialect]
    sealer: Sealer


@dataclass(frozen=True, slots=True)
class UnitOfWork:
    connection: Connection
    """In a transaction that ends with the act."""
    setting: Setting
    actor: Actor
    scope: Scope
    now: datetime

    async def note(
        self,
        action: str,
        subject: str,
        *,
        workspace_id: str | None,
        before: Mapping[str, object] | None = None,
        after: Mapping[str, object] | None = None,
    ) -> None:
        """Leave a line in the audit log. Facts without secrets; where both are given, only what differs is
        kept."""
        if before is not None and after is not None:
            differ = [key for key in {**before, **after} if before.get(key) != after.get(key)]
            before = {key: before.get(key) for key in differ}
            after = {key: after.get(key) for key in differ}
        await audit.append(
            self.connection,
            self.actor,
            self.now,
            workspace_id=workspace_id,
            action=action,
            subject=subject,
            before=before,
            after=after,
        )


@dataclass(frozen=True, slots=True)
class Backend:
    """Where operations begin their units of work."""

    database: Database
    setting: Setting
    clock: Clock

    @asynccontextmanager
    async def begin(self, actor: Actor, scope: Scope) -> AsyncIterator[UnitOfWork]:
        """A unit of work: committed at the end, undone by an exception.

        An act that sends something over the network in between has several: no transaction waits for a
        receiver.
        """
        async with self.database.transaction() as connection:
            yield UnitOfWork(connection, self.setting, actor, scope, self.clock.now())


class _Unreadable(Mapping[str, Dialect]):
    """In place of dialects that can't be read: whoever needs one is told. All others go on, since an endpoint
    may have to be paused though somebody damaged a file."""

    def __init__(self, error: UsageError) -> None:
        self._error = error

    def __getitem__(self, name: str) -> Dialect:
        raise self._error

    def __iter__(self) -> Iterator[str]:
        raise self._error

    def __len__(self) -> int:
        raise self._error


def _dialects_of(config: Config) -> Mapping[str, Dialect]:
    try:
        return load_dialects(config.dialect.paths, config.dialect.values)
    except UsageError as error:
        return _Unreadable(error)


@asynccontextmanager
async def open_backend(config: Config, *, as_user: str | None = None) -> AsyncIterator[Backend]:
    """Connect to the database of the configuration, and check its schema. `as_user`: as root, become that
    system user for good, and connect as him."""
    setting = Setting(config, _dialects_of(config), read_sealer(config))
    async with open_database(config, as_user=as_user) as database:
        async with database.connection() as connection:
            await check_schema(connection, read_schema(sql_dir()))
        yield Backend(database, setting, SystemClock())


@asynccontextmanager
async def open_database(config: Config, *, as_user: str | None = None) -> AsyncIterator[Database]:
    """The same without a look at the schema, for those who make, mend or remove it. What the configuration
    names has to have been read before."""
    dsn = config.database.dsn if as_user is None else become(as_user, config.database.dsn)
    database = Database(dsn, pool_size=2, keyed=False)
    await database.open()
    try:
        yield database
    finally:
        await database.close()

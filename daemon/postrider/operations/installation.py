"""What an operator does to Postrider's own schema: make it, upgrade it, take it out of the database.

Each migration is recorded in a table of its own; and with the schema the audit log goes, too. So neither act
leaves a line there.
"""

from collections.abc import Callable

from postrider.domain.dialects import Dialect
from postrider.domain.errors import UsageError
from postrider.domain.installation import Installation, Removal, demand_removable
from postrider.edges.clock import Clock
from postrider.edges.resources import sql_dir
from postrider.operations.wording import printable
from postrider.store import captures, catalogue, migrations, server
from postrider.store import uninstall as store
from postrider.store.database import Database, DatabaseError
from postrider.store.foreign_code import hold
from postrider.store.patience import PATIENCE, Patience
from postrider.store.upgrades import look_ahead


async def migrate(
    database: Database,
    clock: Clock,
    default: Dialect,
    to: int | None = None,
    *,
    though_daemons_stop: bool = False,
    warn: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Apply the migrations that are missing, up to number `to` (None: all), and publish the event types of
    the default dialect; return the names of those applied. `warn` is told of daemons that are left behind.

    Raises UsageError where daemons would stop working, unless `though_daemons_stop`.
    """
    schema = migrations.read_schema(sql_dir())
    connection = await database.dedicated(command_timeout=None)
    try:
        upgrade = await look_ahead(connection, schema.migrations[:to])
        broken = [
            f"{printable(daemon)} would stop working with {migration}"
            for daemon, migration in upgrade.broken()
        ]
        if broken and not though_daemons_stop:
            raise UsageError(
                "nothing was migrated, because of daemons that run:\n"
                + "\n".join(f"  {line}" for line in broken),
                "Stop or upgrade them first; or add --yes, and they end as soon as they notice.",
            )
        for line in broken:
            warn(line)
        for each in upgrade.unstartable():
            warn(f"{printable(each)} goes on, but can't be started again before it is upgraded")
        applied = await migrations.migrate(connection, schema, to, sleep=clock.sleep)
    finally:
        await connection.close(timeout=2)
    if to is None or to == schema.number:
        async with database.transaction() as connection:
            await hold(connection, "catalogue", "event_type", to="write")
            await catalogue.publish(connection, default)
    return [str(each) for each in applied]


async def create_database(server_dsn: str, name: str) -> None:
    """Make a database on that server, unless there is one of that name."""
    database = Database(server_dsn, pool_size=1, keyed=False)
    await database.open()
    try:
        async with database.connection() as connection:
            await server.create_database(connection, name)
    finally:
        await database.close()


async def survey(database: Database) -> Installation | None:
    """What there is to remove; None where there is no schema."""
    async with database.snapshot() as connection:
        return await store.survey(connection)


async def uninstall(database: Database, clock: Clock, *, patience: Patience = PATIENCE) -> Removal:
    """Remove it: the triggers on the CRM's tables first, as by `capture drop`, then the schema and the roles
    in one transaction. Like a migration it gives up a lock that it does not get within a moment, and tries
    again. Raises PostriderError where somebody still uses it, or a lock can't be had."""
    found = await survey(database)
    if found is None:
        return Removal(0, (), {})
    demand_removable(found)
    async with database.transaction() as connection:
        await captures.drop(connection, None)
    for tries_left in reversed(range(patience.tries)):
        try:
            async with database.transaction() as connection:
                dropped, kept = await store.remove(connection, patience.lock_ms)
        except store.Locked:
            if tries_left:
                await clock.sleep(patience.pause_s)
        else:
            return Removal(len(found.triggers), dropped, kept)
    raise DatabaseError(
        f"the schema postrider could not be locked in {patience.tries} tries; it is still there"
        + (", without its triggers on your tables" if found.triggers else ""),
        "End the transactions that use it, prepared ones too (pg_prepared_xacts), and run it again.",
    )

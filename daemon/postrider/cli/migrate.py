"""postrider migrate: creates or upgrades the schema."""

import os
from pathlib import Path

import click

from postrider.cli.common import (
    as_option,
    config_option,
    dsn_as,
    json_option,
    print_json,
    printable,
    run_async,
)
from postrider.domain.errors import UsageError
from postrider.edges.config import load_config
from postrider.edges.dialect_files import default_dialect, load_dialects
from postrider.edges.resources import sql_dir
from postrider.store.catalogue import CatalogueStore
from postrider.store.database import Database
from postrider.store.migrations import migrate as apply_migrations
from postrider.store.migrations import read_schema
from postrider.store.upgrades import Upgrade, look_ahead


@click.command()
@click.option("--to", type=int, metavar="N", help="Stop after migration N.")
@click.option("--yes", is_flag=True, help="Migrate though daemons that run would stop working.")
@as_option
@config_option
@json_option
@run_async
async def migrate(
    to: int | None, yes: bool, as_user: str | None, config_path: Path | None, as_json: bool
) -> None:
    """Create or upgrade the schema `postrider` in the database, and publish the event types of the default
    dialect there.

    Each migration runs in a transaction of its own under a lock: it is safe to run twice, and from two
    hosts at once. It may run beside a CRM that writes: where it has to wait for a lock, it gives up after
    half a second, lets others pass and tries again; after 20 tries it names the sessions in the way.
    The user needs the right to create a schema and roles; the daemon needs neither.

    Daemons of the previous release go on beside the new schema, so that they can be upgraded one by one.
    Where one that runs is too old for that, nothing is migrated without --yes.

    Example: postrider migrate --as postgres
    """
    config = load_config(config_path, os.environ)
    spoken = default_dialect(
        load_dialects(config.dialect.paths, config.dialect.values), config.dialect.default
    )
    schema = read_schema(sql_dir())
    database = Database(dsn_as(config, as_user), pool_size=1)
    await database.open()
    try:
        connection = await database.dedicated(command_timeout=None)
        try:
            _look_out(await look_ahead(connection, schema.migrations[:to]), yes=yes)
            applied = await apply_migrations(connection, schema, to)
        finally:
            await connection.close(timeout=2)
        if to is None or to == schema.number:
            await CatalogueStore(database).publish(spoken)
    finally:
        await database.close()
    if as_json:
        print_json({"applied": [str(each) for each in applied]})
        return
    for each in applied:
        click.echo(f"applied {each}")
    if not applied:
        click.echo("nothing to do: the schema is current")


def _look_out(upgrade: Upgrade, *, yes: bool) -> None:
    """Say which daemons the migrations would break; UsageError where that was not asked for."""
    broken = upgrade.broken()
    lines = [f"{printable(daemon)} would stop working with {migration}" for daemon, migration in broken]
    if broken and not yes:
        raise UsageError(
            "nothing was migrated, because of daemons that run:\n" + "\n".join(f"  {line}" for line in lines),
            "Stop or upgrade them first; or add --yes, and they end as soon as they notice.",
        )
    for line in lines:
        click.echo(line, err=True)
    for each in upgrade.unstartable():
        click.echo(f"{printable(each)} goes on, but can't be started again before it is upgraded", err=True)

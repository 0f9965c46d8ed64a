"""postrider migrate: creates or upgrades the schema."""

import os
from pathlib import Path

import click

from postrider.cli.common import config_option, json_option, print_json, run_async
from postrider.edges.config import load_config
from postrider.edges.dialect_files import default_dialect, load_dialects
from postrider.edges.resources import sql_dir
from postrider.store.catalogue import CatalogueStore
from postrider.store.database import Database
from postrider.store.migrations import migrate as apply_migrations
from postrider.store.migrations import read_migrations


@click.command()
@click.option("--to", type=int, metavar="N", help="Stop after migration N.")
@config_option
@json_option
@run_async
async def migrate(to: int | None, config_path: Path | None, as_json: bool) -> None:
    """Create or upgrade the schema `postrider` in the database, and publish the event types of the default
    dialect there.

    Each migration runs in a transaction of its own under a lock: it is safe to run twice, and from two
    hosts at once. It may run beside a CRM that writes: where it has to wait for a lock, it gives up after
    half a second, lets others pass and tries again; after 20 tries it names the sessions in the way.
    The user needs the right to create a schema and roles; the daemon needs neither.
    """
    config = load_config(config_path, os.environ)
    spoken = default_dialect(
        load_dialects(config.dialect.paths, config.dialect.values), config.dialect.default
    )
    migrations = read_migrations(sql_dir())
    database = Database(config.database.dsn, pool_size=1)
    await database.open()
    try:
        connection = await database.dedicated(command_timeout=None)
        try:
            applied = await apply_migrations(connection, migrations, to)
        finally:
            await connection.close(timeout=2)
        if to is None or to == len(migrations):
            await CatalogueStore(database).publish(spoken)
    finally:
        await database.close()
    if as_json:
        print_json({"applied": [f"{migration.number:04}_{migration.name}" for migration in applied]})
        return
    for migration in applied:
        click.echo(f"applied {migration.number:04}_{migration.name}")
    if not applied:
        click.echo("nothing to do: the schema is current")

"""postrider migrate: creates or upgrades the schema."""

import os
from functools import partial
from pathlib import Path

import click

from postrider.cli.common import as_option, config_option, json_option, print_json, run_async
from postrider.edges.clock import SystemClock
from postrider.edges.config import load_config
from postrider.edges.dialect_files import default_dialect, load_dialects
from postrider.operations import installation
from postrider.operations.work import open_database


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
    default = default_dialect(
        load_dialects(config.dialect.paths, config.dialect.values), config.dialect.default
    )
    async with open_database(config, as_user=as_user) as database:
        applied = await installation.migrate(
            database, SystemClock(), default, to, though_daemons_stop=yes, warn=partial(click.echo, err=True)
        )
    if as_json:
        print_json({"applied": applied})
        return
    for each in applied:
        click.echo(f"applied {each}")
    if not applied:
        click.echo("nothing to do: the schema is current")

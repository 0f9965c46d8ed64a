"""postrider uninstall: takes Postrider out of the database."""

import os
import sys
from dataclasses import asdict
from pathlib import Path

import click

from postrider.cli.common import (
    as_option,
    config_option,
    json_option,
    print_json,
    run_async,
)
from postrider.domain.errors import PostriderError, UsageError
from postrider.domain.installation import COUNTED_UP_TO, Installation, Removal, demand_removable
from postrider.edges.clock import SystemClock
from postrider.edges.config import load_config
from postrider.operations import installation
from postrider.operations.wording import printable
from postrider.operations.work import open_database


@click.command()
@click.option("--yes", is_flag=True, help="Don't ask.")
@as_option
@config_option
@json_option
@run_async
async def uninstall(yes: bool, as_user: str | None, config_path: Path | None, as_json: bool) -> None:
    """Remove Postrider from the database: its schema with all events and endpoints, the triggers of captures,
    and the roles that no other database of the server uses.

    It says what it will remove, and asks. While daemons run it removes nothing.

    Example: postrider uninstall --as postgres
    """
    config = load_config(config_path, os.environ)
    async with open_database(config, as_user=as_user) as database:
        found = await installation.survey(database)
        if found is None:
            click.echo("nothing to do: the database has no schema postrider", err=True)
            if as_json:
                print_json({"found": None})
            return
        if not as_json:
            click.echo("\n".join(_described(found)), err=True)
        demand_removable(found)
        if not yes:
            _confirm(found)
        done = await installation.uninstall(database, SystemClock())
    if as_json:
        print_json({"found": asdict(found), "removed": asdict(done)})
    else:
        click.echo("\n".join(_told(done)))


def _confirm(found: Installation) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"removing Postrider from {found.database} needs a confirmation", "Add --yes.")
    answer = click.prompt("Type the name of the database to remove all that", default="", show_default=False)
    if answer != found.database:
        raise PostriderError("that is not its name; nothing was removed")


def _described(found: Installation) -> list[str]:
    count = {
        name: f"more than {COUNTED_UP_TO:,}" if number > COUNTED_UP_TO else f"{number:,}"
        for name, number in found.counts.items()
    }
    lines = [
        f"Of the database {printable(found.database)} this removes:",
        f"  the schema postrider: {found.tables} tables, {found.size}",
        f"    {count['endpoints']} endpoints with their secrets",
        f"    {count['events']} events, of which {count['events_under_way']} wait for their fan-out",
        f"    {count['deliveries']} deliveries, of which {count['deliveries_under_way']} are under way",
        f"    {count['attempts']} attempts; {count['rows_set_aside']} rows that captures set aside",
    ]
    lines += [f"  the trigger {printable(each)}" for each in found.triggers]
    lines += [
        f"  the role {role}"
        + (f", with {', '.join(map(printable, members))} as its members" if members else "")
        for role, members in found.roles.items()
    ]
    lines.append("Roles stay where another database uses them. Calls of postrider.emit() fail from then on.")
    return lines


def _told(done: Removal) -> list[str]:
    lines = [f"removed the schema postrider, {done.triggers} triggers and {len(done.dropped)} roles"]
    return lines + [f"kept the role {role}: {printable(why)}" for role, why in done.kept.items()]

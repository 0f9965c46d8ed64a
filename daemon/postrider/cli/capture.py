"""postrider capture: triggers on the CRM's tables that write the outbox."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from postrider.cli.common import (
    as_option,
    config_option,
    json_option,
    known_dialect,
    open_stores,
    print_json,
    print_table,
    printable,
    run_async,
    stores_of,
)
from postrider.cli.groups import Commands
from postrider.domain.errors import UsageError
from postrider.edges.config import Config, load_config
from postrider.store.captures import Captures, SetAside, Step

_SIGNS = {"create": ("+", "green"), "change": ("~", "yellow"), "drop": ("-", "red"), "keep": ("=", "")}

RETRY_BATCH = 500


@click.group(cls=Commands)
def capture() -> None:
    """Let the CRM's tables write the outbox: the [[capture]] sections of the configuration."""


@capture.command()
@click.option("--sql", "with_sql", is_flag=True, help="Print the statements too.")
@config_option
@json_option
@run_async
async def plan(with_sql: bool, config_path: Path | None, as_json: bool) -> None:
    """Show what `apply` would create, change and drop. It changes nothing.

    Example: postrider capture plan
    """
    config = load_config(config_path, os.environ)
    check_event_types(config)
    async with stores_of(config) as stores:
        steps = await Captures(stores.database).plan(config.capture)
    _print(steps, as_json=as_json, with_sql=with_sql)
    if not as_json and any(step.action != "keep" for step in steps):
        click.echo("`postrider capture apply` does this, in one transaction", err=True)


@capture.command()
@as_option
@config_option
@json_option
@run_async
async def apply(as_user: str | None, config_path: Path | None, as_json: bool) -> None:
    """Create, change and drop triggers as the configuration says, in one transaction.

    The user has to be a superuser, or to own the tables and have a few rights on the schema postrider: where
    one is missing, the command says which, and changes nothing. The triggers run with the rights of
    postrider_capture, whoever applies them: it may insert events, and read the columns that the sections look
    up. It waits at most 5 s for running writes of a table, and then changes nothing.

    Example: postrider capture apply --as postgres
    """
    config = load_config(config_path, os.environ)
    check_event_types(config)
    async with stores_of(config, as_user) as stores:
        steps = await Captures(stores.database).apply(config.capture, stores.clock.now())
    _print(steps, as_json=as_json, with_sql=False)


@capture.command()
@click.argument("names", metavar="[NAME]…", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Remove all of them.")
@click.option("--with-rejected", is_flag=True, help="Delete the rows that they set aside, too.")
@as_option
@config_option
@json_option
@run_async
async def drop(
    names: Sequence[str],
    every: bool,
    with_rejected: bool,
    as_user: str | None,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """Remove captures, by name, or --all: triggers, functions, and the rights that these needed.

    Events that they emitted stay, and so do rows that they set aside: these become events when a capture of
    that name is applied again. The configuration is not looked at, and not changed.

    Example: postrider capture drop deal --as postgres
    """
    if every == bool(names):
        raise UsageError(
            "say which captures to drop: their names, or --all",
            "`postrider capture plan` shows those that are applied.",
        )
    async with stores_of(load_config(config_path, os.environ), as_user) as stores:
        steps = await Captures(stores.database).drop(
            None if every else names, stores.clock.now(), with_rejected=with_rejected
        )
    _print(steps, as_json=as_json, with_sql=False, empty="no capture is applied: there is nothing to drop")


@capture.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@config_option
@json_option
@run_async
async def rejected(limit: int, config_path: Path | None, as_json: bool) -> None:
    """List the rows of which no event could be made, newest first, with the reason.

    Example: postrider capture rejected
    """
    async with open_stores(config_path) as stores:
        rows = await Captures(stores.database).list_rejections(limit)
    if as_json:
        print_json(rows)
        return
    print_table(
        ["at", "capture", "operation", "object", "reason"],
        [(each.at, each.capture, each.operation, each.object_id, each.reason) for each in rows],
        empty="none: every captured row became an event",
    )


@capture.command()
@click.argument("name", required=False)
@config_option
@json_option
@run_async
async def retry(name: str | None, config_path: Path | None, as_json: bool) -> None:
    """Make events of the rows that were set aside, of one capture or all, oldest first.

    A running daemon does so by itself, less often the more often it failed. Rows of which no event can
    be made stay, with the reason.

    Example: postrider capture retry deal
    """
    rows = events = 0
    last: int | None = 0
    async with open_stores(config_path) as stores:
        captures = Captures(stores.database)
        if name is not None:
            _check_applied(name, await captures.count_set_aside())
        while last is not None:
            batch = await captures.recover(limit=RETRY_BATCH, name=name, after=last)
            rows, events, last = rows + batch.rows, events + batch.events, batch.last
        left = [each for each in (await captures.count_set_aside()).values() if name in (None, each.capture)]
    kept = sum(each.rows for each in left)
    waiting = [each for each in left if each.rows and not each.applied]
    if as_json:
        print_json({"rows": rows, "events": events, "kept": kept, "not_applied": waiting})
        return
    click.echo(f"{rows} rows were made into {events} events; {kept} stay set aside")
    for each in waiting:
        click.echo(f"{each.rows} of them wait until the capture {each.capture} is applied", err=True)
    if kept:
        click.echo("`postrider capture rejected` lists them", err=True)


def _check_applied(name: str, known: Mapping[str, SetAside]) -> None:
    if name not in known:
        applied = ", ".join(each.capture for each in known.values() if each.applied)
        raise UsageError(
            f"there is no capture {name!r} in the database", f"Applied are: {applied or 'none'}."
        )
    if not known[name].applied:
        raise UsageError(
            f"the capture {name} is not applied; its rows stay set aside: {known[name].rows}",
            "`postrider capture apply` with its section makes events of them; "
            "`retention.events` deletes them.",
        )


def check_event_types(config: Config) -> None:
    """Raise UsageError for a capture whose event types the default dialect's closed catalogue lacks."""
    spoken = known_dialect(config.dialect.default, config)
    for each in config.capture:
        for event_type in each.event_types:
            try:
                spoken.catalogue.check_type(event_type)
            except UsageError as error:
                raise UsageError(
                    f"capture {each.name}: {error.message} in the catalogue of {spoken.name}",
                    f"{error.hint} Or leave it out: events = {{ … = false }}.",
                ) from None


def _print(
    steps: Sequence[Step],
    *,
    as_json: bool,
    with_sql: bool,
    empty: str = "no captures: the configuration has no [[capture]] section, and none is applied",
) -> None:
    if as_json:
        print_json(
            [
                {
                    "name": step.name,
                    "table": step.table,
                    "action": step.action,
                    "event_types": step.event_types,
                    "diff": step.diff,
                    "warnings": step.warnings,
                    "statements": step.statements,
                }
                for step in steps
            ]
        )
        return
    if not steps:
        click.echo(empty, err=True)
    for step in steps:
        sign, color = _SIGNS[step.action]
        types = f": {', '.join(step.event_types)}" if step.event_types else ""
        line = f"{sign} {step.action:<6} {step.name} on {step.table}{types}"
        click.echo(click.style(line, fg=color) if color else line)
        for difference in step.diff:
            click.echo(f"    {printable(difference)}")
        for warning in step.warnings:
            click.secho(f"    {printable(warning)}", fg="yellow", err=True)
        if with_sql:
            for statement in step.statements:
                click.echo(f"\n{statement};")

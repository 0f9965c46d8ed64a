"""postrider capture: triggers on the CRM's tables that write the outbox."""

from collections.abc import Sequence
from pathlib import Path

import click

from postrider.cli.common import (
    as_option,
    backend_of,
    config_option,
    json_option,
    operator,
    print_json,
    print_table,
    run_async,
)
from postrider.cli.groups import Commands
from postrider.domain.audit import EVERYWHERE
from postrider.domain.capture_steps import Step
from postrider.domain.errors import UsageError
from postrider.operations import captures
from postrider.operations.views import capture as views
from postrider.operations.wording import printable

_SIGNS = {"create": ("+", "green"), "change": ("~", "yellow"), "drop": ("-", "red"), "keep": ("=", "")}


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
    async with backend_of(config_path) as backend, backend.begin(operator(), EVERYWHERE) as work:
        steps = await captures.plan(work)
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
    actor = operator()
    async with backend_of(config_path, as_user) as backend, backend.begin(actor, EVERYWHERE) as work:
        steps = await captures.apply(work)
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
    actor = operator()
    async with backend_of(config_path, as_user) as backend, backend.begin(actor, EVERYWHERE) as work:
        steps = await captures.drop(work, None if every else names, with_rejected=with_rejected)
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
    async with backend_of(config_path) as backend, backend.begin(operator(), EVERYWHERE) as work:
        rows = await captures.rejections(work, limit)
    if as_json:
        print_json([views.rejection(each) for each in rows])
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
    async with backend_of(config_path) as backend:
        done = await captures.retry(backend, EVERYWHERE, name)
    if as_json:
        print_json(views.retried(done))
        return
    click.echo(f"{done.rows} rows were made into {done.events} events; {done.kept} stay set aside")
    for each in done.not_applied:
        click.echo(f"{each.rows} of them wait until the capture {each.capture} is applied", err=True)
    if done.kept:
        click.echo("`postrider capture rejected` lists them", err=True)


def _print(
    steps: Sequence[Step],
    *,
    as_json: bool,
    with_sql: bool,
    empty: str = "no captures: the configuration has no [[capture]] section, and none is applied",
) -> None:
    if as_json:
        print_json([views.step(each) for each in steps])
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

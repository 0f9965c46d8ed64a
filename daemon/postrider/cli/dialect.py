"""postrider dialect: the wire formats there are, and what their requests look like."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import click
import orjson

from postrider.cli.common import (
    config_option,
    json_option,
    print_json,
    print_table,
    run_async,
)
from postrider.cli.groups import Commands
from postrider.domain.dialects import Dialect
from postrider.domain.errors import UsageError
from postrider.edges.config import Config, DatabaseConfig, load_config
from postrider.edges.dialect_files import load_dialects
from postrider.operations.dialects import known_dialect, sample_request
from postrider.operations.views import dialect as views
from postrider.operations.wording import printable

NOTES_WIDTH = 110
"""Longer lines are hard to read."""


@click.group(cls=Commands)
def dialect() -> None:
    """Show the wire formats that endpoints may have."""


@dialect.command(name="list")
@config_option
@json_option
@run_async
async def list_(config_path: Path | None, as_json: bool) -> None:
    """List dialects: those that ship with Postrider, and those of `dialect.paths`.

    Example: postrider dialect list
    """
    config = _config(config_path)
    dialects = sorted(_dialects(config).values(), key=lambda each: each.name)
    if as_json:
        print_json([views.listed(each, config) for each in dialects])
        return
    print_table(
        ["name", "events", "description"],
        [
            (
                each.name + (" (default)" if each.name == config.dialect.default else ""),
                len(each.events) or None,
                each.description,
            )
            for each in dialects
        ],
        empty="no dialects",
    )


@dialect.command()
@click.argument("name", metavar="D")
@config_option
@json_option
@run_async
async def show(name: str, config_path: Path | None, as_json: bool) -> None:
    """Show one dialect: its habits, its notes and its catalogue of event types.

    Example: postrider dialect show workestra
    """
    config = _config(config_path)
    shown = known_dialect(_dialects(config), name)
    facts = views.facts(shown, config)
    if as_json:
        print_json({**facts, "notes": shown.notes, "events": views.event_types(shown)})
        return
    for key, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        click.echo(f"{key + ':':<19} {printable(text if text != '' else None)}")
    if shown.notes:
        width = min(shutil.get_terminal_size().columns, NOTES_WIDTH)
        click.echo(f"\n{click.wrap_text(shown.notes.strip(), width, preserve_paragraphs=True)}")
    if shown.events:
        click.echo()
    print_table(
        ["event type", "group", "status", "description"],
        [(each.type, each.group, each.status, each.description) for each in shown.events],
        empty="no catalogue: every event type is taken",
    )


@dialect.command()
@click.argument("name", metavar="D")
@click.argument("event_type", metavar="TYPE")
@config_option
@json_option
@run_async
async def sample(name: str, event_type: str, config_path: Path | None, as_json: bool) -> None:
    """Print the request that the sample of an event type makes, or the handshake: headers, then the body.

    Ids, times and signatures are an example's. --json prints the body alone.

    Example: postrider dialect sample heffl deal.created
    """
    config = _config(config_path)
    shown = known_dialect(_dialects(config), name)
    request = sample_request(shown, event_type, user_agent=config.delivery.user_agent)
    if not as_json:
        for header, value in request.headers.items():
            click.echo(f"{header}: {value}")
        click.echo()
    click.echo(orjson.dumps(orjson.loads(request.body), option=orjson.OPT_INDENT_2).decode())


def _config(path: Path | None) -> Config:
    """The configuration, which need not name a database; the defaults where none can be read and none was
    named."""
    try:
        return load_config(path, os.environ, with_database=False)
    except UsageError as error:
        if path is not None:
            raise
        click.echo(f"{error.message}\nso only the dialects that ship with Postrider are known", err=True)
        return Config(database=DatabaseConfig(dsn="postgresql://localhost/"))


def _dialects(config: Config) -> Mapping[str, Dialect]:
    return load_dialects(config.dialect.paths, config.dialect.values)

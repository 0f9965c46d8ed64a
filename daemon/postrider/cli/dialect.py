"""postrider dialect: the wire formats there are, and what their requests look like."""

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import click
import orjson

from postrider.cli.common import (
    config_option,
    json_option,
    known_dialect,
    print_json,
    print_table,
    printable,
    run_async,
)
from postrider.cli.groups import Commands
from postrider.domain.catalogue import Sample
from postrider.domain.dialects import Dialect, render, request_headers
from postrider.domain.errors import UsageError
from postrider.domain.model import DEFAULT_WORKSPACE, Event
from postrider.domain.promises import retry_policy
from postrider.domain.signing import Secret
from postrider.edges.config import Config, DatabaseConfig, load_config
from postrider.edges.dialect_files import load_dialects
from postrider.edges.durations import format_duration
from postrider.edges.settings import retry_settings

NOTES_WIDTH = 110
"""Longer lines are hard to read."""
_SAMPLE_ID = UUID("0195a9b2-8e40-7000-8000-0123456789ab")
_SAMPLE_TIME = datetime(2026, 3, 15, 10, 30, tzinfo=UTC)
_NOTHING = Sample(None, None, "{}", None, None, None)
"""What a handshake tells of."""
_SAMPLE_SECRET = Secret(b"an example key, not a secret", b"an example key, not a secret")


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
    dialects = sorted(
        load_dialects(config.dialect.paths, config.dialect.values).values(), key=lambda each: each.name
    )
    if as_json:
        print_json(
            [
                {
                    "name": each.name,
                    "description": each.description,
                    "default": each.name == config.dialect.default,
                    "events": len(each.events),
                    "closed_catalogue": each.closed_catalogue,
                }
                for each in dialects
            ]
        )
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
    shown = known_dialect(name, config)
    facts = _facts(shown, config)
    if as_json:
        types = [
            {"type": each.type, "group": each.group, "description": each.description, "status": each.status}
            for each in shown.events
        ]
        print_json({**facts, "notes": shown.notes, "events": types})
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
    shown = known_dialect(name, config)
    event = sample_event(shown, event_type)
    body = render(shown, event)
    if not as_json:
        headers = request_headers(
            shown,
            event,
            [_SAMPLE_SECRET],
            timestamp=int(_SAMPLE_TIME.timestamp()),
            body=body,
            user_agent=config.delivery.user_agent,
            extra={},
        )
        for header, value in headers.items():
            click.echo(f"{header}: {value}")
        click.echo()
    click.echo(orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2).decode())


def sample_event(shown: Dialect, event_type: str) -> Event:
    """An event as the catalogue shows it, or the handshake. Raises UsageError for a type that is neither."""
    handshake = shown.handshake is not None and event_type == shown.handshake.type
    found = _NOTHING if handshake else shown.catalogue.sample(event_type)
    return Event(
        id=_SAMPLE_ID,
        workspace_id=DEFAULT_WORKSPACE,
        type=event_type,
        data=found.data,
        data_bytes=len(found.data.encode()),
        previous_attributes=found.previous_attributes,
        object_type=found.object_type,
        object_id=found.object_id,
        actor=found.actor,
        related=found.related,
        occurred_at=_SAMPLE_TIME,
        test=handshake,
    )


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


def _https(shown: Dialect, config: Config) -> str:
    """Whether endpoints need it, and by whose choice."""
    if not config.network.https_only:
        return "not demanded: network.https_only = false"
    return "demanded, as the CRM promises it" if shown.https_only else "demanded by network.https_only"


def _facts(shown: Dialect, config: Config) -> dict[str, object]:
    policy = retry_policy(shown, retry_settings(config))
    return {
        "name": shown.name,
        "description": shown.description,
        "signature": [each.header for each in shown.signatures]
        + (["webhook-signature"] if shown.standard_webhooks else []),
        "user_agent": shown.user_agent or config.delivery.user_agent,
        "https_only": shown.https_only,
        "https": _https(shown, config),
        "timeout": format_duration(shown.timeout or config.delivery.timeout),
        "connect_timeout": format_duration(shown.connect_timeout or config.delivery.connect_timeout),
        "retry_schedule": [format_duration(delay) for delay in policy.delays],
        "promised_schedule": shown.promised_schedule,
        "retry_after": "puts the next attempt off" if policy.heeds_retry_after else "is ignored",
        "on_410": "the endpoint is disabled" if policy.gone_disables else "as any other failure",
        "when_exhausted": "the endpoint is disabled"
        if shown.disable_when_exhausted
        else "the delivery is failed",
        "disable_after": "never"
        if policy.disable_after is None
        else f"{format_duration(policy.disable_after)} of nothing but failures",
        "handshake": shown.handshake.type if shown.handshake else None,
        "sending_addresses": list(shown.sending_addresses),
        "closed_catalogue": shown.closed_catalogue,
        "values": [f"{name} = {value}" for name, value in shown.values.items()],
    }

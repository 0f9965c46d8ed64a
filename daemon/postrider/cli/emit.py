"""postrider emit: announces an event from the command line."""

from pathlib import Path

import click

from postrider.cli.common import (
    backend_of,
    config_option,
    json_option,
    operator,
    print_json,
    read_data,
    run_async,
)
from postrider.domain.audit import EVERYWHERE
from postrider.operations import emit as operation
from postrider.operations.emit import NewEvent


@click.command()
@click.argument("event_type", metavar="TYPE")
@click.option("--data", required=True, help="A JSON object; @FILE, or @- for stdin.")
@click.option("--previous-attributes", help="What changed, as it was: JSON, @FILE or @-.")
@click.option("--workspace", "workspace_id")
@click.option("--object-type")
@click.option("--object-id")
@click.option("--actor", help="Who did it: JSON, @FILE or @-.")
@click.option("--related", help="Related objects: JSON, @FILE or @-.")
@click.option("--idempotency-key", help="The same key gives the first event's id and emits nothing.")
@config_option
@json_option
@run_async
async def emit(
    event_type: str,
    data: str,
    previous_attributes: str | None,
    workspace_id: str | None,
    object_type: str | None,
    object_id: str | None,
    actor: str | None,
    related: str | None,
    idempotency_key: str | None,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """Emit one event, in a transaction of its own, and print its id.

    Example: postrider emit deal.updated --data '{"id":"dl_1","title":"Acme"}'
    """
    new = NewEvent(
        type=event_type,
        data=read_data(data),
        previous_attributes=read_data(previous_attributes) if previous_attributes else None,
        workspace_id=workspace_id,
        object_type=object_type,
        object_id=object_id,
        actor=read_data(actor) if actor else None,
        related=read_data(related) if related else None,
        idempotency_key=idempotency_key,
    )
    async with backend_of(config_path) as backend, backend.begin(operator(), EVERYWHERE) as work:
        event_id = await operation.emit(work, new)
    if as_json:
        print_json({"id": event_id})
    else:
        click.echo(event_id)

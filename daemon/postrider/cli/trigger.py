"""postrider trigger: a real event with the catalogue's sample data, for people who develop receivers."""

from pathlib import Path

import click

from postrider.cli.common import backend_of, config_option, json_option, operator, print_json, run_async
from postrider.domain.audit import EVERYWHERE
from postrider.domain.model import DEFAULT_WORKSPACE
from postrider.operations import trigger as operation


@click.command()
@click.argument("event_type", metavar="TYPE")
@click.option("--workspace", default=DEFAULT_WORKSPACE, show_default=True)
@click.option("--dialect", metavar="D", help="Whose catalogue has the sample [dialect.default].")
@config_option
@json_option
@run_async
async def trigger(
    event_type: str, workspace: str, dialect: str | None, config_path: Path | None, as_json: bool
) -> None:
    """Emit an event with the sample data of the catalogue, and print its id.

    It is an event like the CRM's own: every endpoint of the workspace that is subscribed to it gets it. To
    try a single endpoint, use `postrider endpoint test`.

    Example: postrider trigger deal.won --dialect heffl
    """
    async with backend_of(config_path) as backend, backend.begin(operator(), EVERYWHERE) as work:
        event_id = await operation.trigger(work, event_type, workspace_id=workspace, dialect=dialect)
    if as_json:
        print_json({"id": event_id})
    else:
        click.echo(event_id)
        click.echo(f"what came of it: postrider event show {event_id}", err=True)

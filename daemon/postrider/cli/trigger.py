"""postrider trigger: a real event with the catalogue's sample data, for people who develop receivers."""

from pathlib import Path

import click

from postrider.cli.common import (
    config_option,
    json_option,
    known_dialect,
    open_stores,
    print_json,
    run_async,
)
from postrider.domain.catalogue import Sample
from postrider.domain.dialects import Dialect
from postrider.domain.errors import UsageError
from postrider.domain.model import DEFAULT_WORKSPACE
from postrider.store.emitting import emit


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
    async with open_stores(config_path) as stores:
        spoken = known_dialect(dialect or stores.config.dialect.default, stores.config)
        sample = _sample(spoken, event_type)
        async with stores.database.transaction() as connection:
            event_id = await emit(
                connection,
                event_type,
                sample.data,
                previous_attributes=sample.previous_attributes,
                workspace_id=workspace,
                object_type=sample.object_type,
                object_id=sample.object_id,
                actor=sample.actor,
                related=sample.related,
            )
    if as_json:
        print_json({"id": event_id})
    else:
        click.echo(event_id)
        click.echo(f"what came of it: postrider event show {event_id}", err=True)


def _sample(dialect: Dialect, event_type: str) -> Sample:
    if not dialect.events:
        raise UsageError(
            f"the dialect {dialect.name} has no catalogue, and so no sample of {event_type!r}",
            "Name one that has: --dialect D (`postrider dialect list`). Or bring the data: postrider emit.",
        )
    return dialect.catalogue.sample(event_type)

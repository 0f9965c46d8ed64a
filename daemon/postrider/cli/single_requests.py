"""postrider endpoint test, verify: requests that a person asks for."""

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
from postrider.domain.model import EndpointState, Reply, parse_endpoint_id
from postrider.operations import endpoint_changes, endpoint_test
from postrider.operations.single_requests import Sent
from postrider.operations.views.endpoint import sent_view
from postrider.operations.wording import printable


@click.command()
@click.argument("ep")
@click.option("--type", "event_type", metavar="T", help="Event type [the first that it is subscribed to].")
@click.option("--data", help="Send this instead of the sample: a JSON object; @FILE, or @- for stdin.")
@config_option
@json_option
@run_async
async def test(
    ep: str, event_type: str | None, data: str | None, config_path: Path | None, as_json: bool
) -> None:
    """Send the catalogue's sample of an event type to one endpoint, and print the delivery's outcome.

    It is sent at once, from this host, whatever the endpoint's state; it is recorded as a delivery, tried
    once, and never disables the endpoint. The header postrider-test tells the receiver that it is a test, and
    lists mark its event. Exit code 1 if the endpoint does not answer 2xx.

    Example: postrider endpoint test ep_0123456789abcdef --type deal.updated
    """
    endpoint_id = parse_endpoint_id(ep)
    given = read_data(data) if data is not None else None
    async with backend_of(config_path) as backend:
        sent = await endpoint_test.test(
            backend, operator(), EVERYWHERE, endpoint_id, event_type=event_type, data=given
        )
    result = sent.result
    if as_json:
        print_json(sent_view(sent))
    else:
        answer = f"HTTP {result.status}" if isinstance(result, Reply) else printable(sent.reason)
        click.echo(f"{sent.event.type} (test): {sent.state}, {answer} in {result.duration_ms:.0f} ms")
        if isinstance(result, Reply) and result.body:
            click.echo(printable(result.body))
        show_delivery(sent)
    if not sent.succeeded:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("ep")
@config_option
@run_async
async def verify(ep: str, config_path: Path | None) -> None:
    """Ask an endpoint for the handshake of its dialect; one that answers it takes part from now on.

    Exit code 1 if it does not answer as the dialect demands.

    Example: postrider endpoint verify ep_0123456789abcdef
    """
    endpoint_id = parse_endpoint_id(ep)
    async with backend_of(config_path) as backend:
        verified = await endpoint_changes.verify(backend, operator(), EVERYWHERE, endpoint_id)
    if verified.handshake is not None:
        show_delivery(verified.handshake)
    if verified.problem is not None:
        click.echo(f"{ep} is not verified: {printable(verified.problem)}")
        raise click.exceptions.Exit(1)
    was = verified.before
    click.echo(f"{ep} is verified" + ("" if was is EndpointState.UNVERIFIED else f"; it is {was}"))


def show_delivery(sent: Sent) -> None:
    """Tell where to look at it."""
    click.echo(f"postrider delivery show {sent.delivery_id}", err=True)

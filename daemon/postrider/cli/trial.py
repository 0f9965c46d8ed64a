"""postrider endpoint test, verify: requests that a person asks for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import click

from postrider.cli.common import (
    Stores,
    config_option,
    json_option,
    known_dialect,
    open_stores,
    print_json,
    printable,
    read_data,
    run_async,
)
from postrider.cli.endpoint_facts import living, usable
from postrider.domain.catalogue import check_type
from postrider.domain.dialects import Dialect
from postrider.domain.errors import UsageError
from postrider.domain.matching import matching_patterns
from postrider.domain.model import (
    DeliveryState,
    Endpoint,
    EndpointState,
    Event,
    Reply,
    delivery_public_id,
    parse_endpoint_id,
)
from postrider.edges.dialect_files import load_dialects
from postrider.edges.network import WebhookClient
from postrider.edges.settings import network_options
from postrider.engine.sender import SendSettings
from postrider.engine.trial import check_data, made_up_event, send_test, shake_hands
from postrider.store.deliveries import DeliveryResult

_PLAIN_TYPE = "postrider.test"


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
    async with open_stores(config_path) as stores:
        target = usable(await living(stores, parse_endpoint_id(ep))).endpoint
        dialect = known_dialect(target.dialect, stores.config)
        given = read_data(data) if data is not None else None
        if given is not None:
            check_data(given)
        event = _test_event(target, dialect, event_type, given, stores)
        async with _send_settings(stores) as settings:
            delivery = await send_test(
                settings,
                dialect,
                target,
                event,
                database=stores.database,
                clock=stores.clock,
            )
    assert delivery.attempt is not None
    result = delivery.attempt.result
    succeeded = delivery.state is DeliveryState.SUCCEEDED
    public_id = delivery_public_id(delivery.event_id, delivery.endpoint_id)
    if as_json:
        facts: dict[str, object] = {
            "delivery": public_id,
            "event_type": event.type,
            "test": event.test,
            "state": delivery.state,
            "succeeded": succeeded,
            "duration_ms": round(result.duration_ms, 1),
        }
        if isinstance(result, Reply):
            facts |= {"status": result.status, "response_body": result.body}
        else:
            facts |= {"error_kind": result.kind, "reason": result.reason}
        print_json(facts)
    else:
        answer = f"HTTP {result.status}" if isinstance(result, Reply) else printable(delivery.reason)
        click.echo(f"{event.type} (test): {delivery.state}, {answer} in {result.duration_ms:.0f} ms")
        if isinstance(result, Reply) and result.body:
            click.echo(printable(result.body))
        show_delivery(delivery)
    if not succeeded:
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
    async with open_stores(config_path) as stores:
        target = usable(await living(stores, parse_endpoint_id(ep))).endpoint
        dialect = known_dialect(target.dialect, stores.config)
        if dialect.handshake is None and target.state is not EndpointState.UNVERIFIED:
            raise UsageError(
                f"the dialect {dialect.name} knows no handshake", "Try the endpoint: postrider endpoint test."
            )
        handshake = await verify_endpoint(stores, target)
    if handshake is not None:
        show_delivery(handshake)
    if (problem := problem_of(handshake)) is not None:
        click.echo(f"{ep} is not verified: {printable(problem)}")
        raise click.exceptions.Exit(1)
    click.echo(
        f"{ep} is verified" + ("" if target.state is EndpointState.UNVERIFIED else f"; it is {target.state}")
    )


async def verify_endpoint(stores: Stores, endpoint: Endpoint) -> DeliveryResult | None:
    """Shake hands where that is demanded, and activate an unverified endpoint that did."""
    handshake = await ask_for_handshake(stores, endpoint)
    if problem_of(handshake) is None:
        await stores.endpoints.activate(endpoint.id, stores.clock.now())
    return handshake


async def ask_for_handshake(stores: Stores, endpoint: Endpoint) -> DeliveryResult | None:
    """What came of the handshake that the endpoint's dialect demands; None if it demands none."""
    dialect = known_dialect(endpoint.dialect, stores.config)
    if dialect.handshake is None:
        return None
    async with _send_settings(stores) as settings:
        return await shake_hands(
            settings,
            dialect,
            dialect.handshake,
            endpoint,
            database=stores.database,
            clock=stores.clock,
        )


def problem_of(handshake: DeliveryResult | None) -> str | None:
    """What the endpoint did instead of answering the handshake; None if it did, or none was demanded."""
    return handshake.reason if handshake is not None else None


def show_delivery(delivery: DeliveryResult) -> None:
    """Tell where to look at it."""
    public_id = delivery_public_id(delivery.event_id, delivery.endpoint_id)
    click.echo(f"postrider delivery show {public_id}", err=True)


@asynccontextmanager
async def _send_settings(stores: Stores) -> AsyncIterator[SendSettings]:
    config = stores.config
    async with WebhookClient(network_options(config)) as client:
        yield SendSettings(
            client,
            load_dialects(config.dialect.paths, config.dialect.values),
            config.delivery.user_agent,
            config.network.https_only,
        )


def _test_event(
    endpoint: Endpoint, dialect: Dialect, event_type: str | None, data: str | None, stores: Stores
) -> Event:
    now = stores.clock.now()
    catalogue = dialect.catalogue
    chosen = event_type if event_type is not None else _first_subscribed(endpoint, dialect)
    if dialect.handshake is not None and chosen == dialect.handshake.type:
        return made_up_event(endpoint, chosen, now)
    check_type(chosen)
    if chosen in catalogue.types or catalogue.closed:
        sample = catalogue.sample(chosen)
        return made_up_event(
            endpoint,
            chosen,
            now,
            data=sample.data if data is None else data,
            previous_attributes=sample.previous_attributes,
            object_type=sample.object_type,
            object_id=sample.object_id,
            actor=sample.actor,
            related=sample.related,
        )
    return made_up_event(endpoint, chosen, now, data='{"test":true}' if data is None else data)


def _first_subscribed(endpoint: Endpoint, dialect: Dialect) -> str:
    wanted = set(endpoint.patterns)
    for event_type in dialect.catalogue.types:
        if wanted & matching_patterns(event_type):
            return event_type
    return next((each for each in endpoint.patterns if "*" not in each), _PLAIN_TYPE)

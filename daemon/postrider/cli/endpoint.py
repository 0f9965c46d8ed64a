"""postrider endpoint: who is subscribed to what."""

import difflib
import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from postrider.app import network_options
from postrider.cli.common import (
    Stores,
    config_option,
    json_option,
    open_stores,
    print_json,
    print_table,
    printable,
    run_async,
)
from postrider.domain.dialects import check_header, render, request_headers
from postrider.domain.errors import PostriderError, UsageError
from postrider.domain.matching import parse_pattern
from postrider.domain.model import (
    DEFAULT_WORKSPACE,
    Endpoint,
    EndpointState,
    Event,
    Reply,
    endpoint_public_id,
    parse_endpoint_id,
)
from postrider.domain.signing import new_secret, secret_key
from postrider.edges.addresses import check_url
from postrider.edges.config import Config
from postrider.edges.dialect_files import load_dialects
from postrider.edges.network import WebhookClient
from postrider.store.endpoints import EndpointRow


@click.group()
def endpoint() -> None:
    """Add, list and change the endpoints that webhooks go to."""


_subscription_options = [
    click.option("--exclude", metavar="P,…", help="Patterns of event types to leave out."),
    click.option("--dialect", metavar="D", help="Wire format [dialect.default]."),
    click.option("--concurrency", type=click.IntRange(1, 10_000), help="Requests at a time."),
    click.option(
        "--header", "headers", multiple=True, metavar="K:V", help="A header of its own; repeatable."
    ),
    click.option("--description", metavar="TEXT"),
    config_option,
    json_option,
]


def _with_subscription_options(command: Any) -> Any:
    for option in reversed(_subscription_options):
        command = option(command)
    return command


@endpoint.command()
@click.option("--url", required=True, help="Where to POST to.")
@click.option("--events", required=True, metavar="P,…", help="Patterns: deal.updated, deal.* or *.")
@click.option("--workspace", default=DEFAULT_WORKSPACE, show_default=True)
@click.option("--secret-file", type=click.File(), help="The signing secret; - for stdin [a new one].")
@_with_subscription_options
@run_async
async def add(
    url: str,
    events: str,
    workspace: str,
    secret_file: Any,
    exclude: str | None,
    dialect: str | None,
    concurrency: int | None,
    headers: Sequence[str],
    description: str | None,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """Subscribe a URL to events. A secret that was made for it is printed once.

    Example: postrider endpoint add --url https://example.com/hooks --events 'deal.*,contact.created'
    """
    given = secret_file.read().rstrip("\r\n") if secret_file else None
    secret = new_secret() if given is None else given
    async with open_stores(config_path) as stores:
        new = Endpoint(
            id=secrets.randbits(63) or 1,
            workspace_id=workspace,
            url=_checked_url(url, stores.config),
            patterns=_patterns(events),
            exclusions=_patterns(exclude) if exclude else (),
            dialect=_known_dialect(dialect or stores.config.dialect.default, stores.config),
            secrets=(secret_key(secret),),
            state=EndpointState.ACTIVE,
            concurrency=concurrency,
            headers=_headers(headers),
            failing_since=None,
            description=description or "",
        )
        await stores.endpoints.add(new, [secret], stores.clock.now())
        facts = _facts(await stores.endpoints.get(new.id))
    if as_json:
        print_json(facts if given is not None else {**facts, "secret": secret})
        return
    click.echo(f"added {facts['id']}: {printable(url)}")
    if given is None:
        click.echo(f"secret: {secret}")
        click.echo("Give it to the receiver; `postrider endpoint show --secret` prints it again.", err=True)


@endpoint.command(name="list")
@click.option("--workspace", help="Only this workspace.")
@click.option("--all", "include_deleted", is_flag=True, help="Deleted ones too.")
@config_option
@json_option
@run_async
async def list_(
    workspace: str | None, include_deleted: bool, config_path: Path | None, as_json: bool
) -> None:
    """List endpoints.

    Example: postrider endpoint list --workspace ws_1
    """
    async with open_stores(config_path) as stores:
        rows = await stores.endpoints.list_endpoints(workspace_id=workspace, include_deleted=include_deleted)
    if as_json:
        print_json([_facts(row) for row in rows])
        return
    print_table(
        ["id", "workspace", "state", "events", "url"],
        [
            (
                endpoint_public_id(row.endpoint.id),
                row.endpoint.workspace_id,
                row.endpoint.state,
                _pattern_text(row.endpoint),
                row.endpoint.url,
            )
            for row in rows
        ],
        empty="no endpoints; add one with `postrider endpoint add`",
    )


@endpoint.command()
@click.argument("ep")
@click.option("--secret", "with_secret", is_flag=True, help="Print the signing secret too.")
@config_option
@json_option
@run_async
async def show(ep: str, with_secret: bool, config_path: Path | None, as_json: bool) -> None:
    """Show one endpoint, and how many deliveries wait for it.

    Example: postrider endpoint show ep_0123456789abcdef
    """
    endpoint_id = parse_endpoint_id(ep)
    async with open_stores(config_path) as stores:
        row = await stores.endpoints.get(endpoint_id)
        facts = {**_facts(row), "waiting": await stores.endpoints.waiting(endpoint_id)}
        if with_secret:
            facts["secret"] = await stores.endpoints.secret(endpoint_id)
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        click.echo(f"{name + ':':<17} {printable(text if text != '' else None)}")


@endpoint.command()
@click.argument("ep")
@click.option("--url", help="Where to POST to.")
@click.option("--events", metavar="P,…", help="Patterns: deal.updated, deal.* or *.")
@_with_subscription_options
@run_async
async def update(
    ep: str,
    url: str | None,
    events: str | None,
    exclude: str | None,
    dialect: str | None,
    concurrency: int | None,
    headers: Sequence[str],
    description: str | None,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """Change what is given; the rest stays. --header replaces all headers, --exclude '' clears them.

    Example: postrider endpoint update ep_0123456789abcdef --events '*' --exclude 'activity.*'
    """
    endpoint_id = parse_endpoint_id(ep)
    async with open_stores(config_path) as stores:
        await _living(stores, endpoint_id)
        await stores.endpoints.update(
            endpoint_id,
            stores.clock.now(),
            url=_checked_url(url, stores.config) if url is not None else None,
            description=description,
            patterns=_patterns(events) if events is not None else None,
            exclusions=(_patterns(exclude) if exclude else ()) if exclude is not None else None,
            dialect=_known_dialect(dialect, stores.config) if dialect is not None else None,
            concurrency=concurrency,
            headers=_headers(headers) if headers else None,
        )
        facts = _facts(await stores.endpoints.get(endpoint_id))
    if as_json:
        print_json(facts)
    else:
        click.echo(f"updated {ep}")


@endpoint.command()
@click.argument("ep")
@config_option
@run_async
async def pause(ep: str, config_path: Path | None) -> None:
    """Stop sending; what comes meanwhile waits.

    Example: postrider endpoint pause ep_0123456789abcdef
    """
    endpoint_id = parse_endpoint_id(ep)
    async with open_stores(config_path) as stores:
        await _living(stores, endpoint_id)
        changed = await stores.endpoints.set_state(endpoint_id, EndpointState.PAUSED, stores.clock.now())
    click.echo(f"paused {ep}; its deliveries wait" if changed else f"{ep} was paused already")


@endpoint.command()
@click.argument("ep")
@config_option
@run_async
async def resume(ep: str, config_path: Path | None) -> None:
    """Send again, what waits first. It also enables an endpoint that was disabled.

    Example: postrider endpoint resume ep_0123456789abcdef
    """
    endpoint_id = parse_endpoint_id(ep)
    async with open_stores(config_path) as stores:
        await _living(stores, endpoint_id)
        changed = await stores.endpoints.set_state(endpoint_id, EndpointState.ACTIVE, stores.clock.now())
        waiting = await stores.endpoints.waiting(endpoint_id)
    click.echo(f"resumed {ep}; {waiting} deliveries wait for it" if changed else f"{ep} is active already")


@endpoint.command()
@click.argument("ep")
@click.option("--yes", is_flag=True, help="Don't ask.")
@config_option
@run_async
async def delete(ep: str, yes: bool, config_path: Path | None) -> None:
    """Delete an endpoint and its secret, and cancel what waits for it. Past deliveries stay listed.

    Example: postrider endpoint delete ep_0123456789abcdef
    """
    endpoint_id = parse_endpoint_id(ep)
    async with open_stores(config_path) as stores:
        row = await _living(stores, endpoint_id)
        waiting = await stores.endpoints.waiting(endpoint_id)
        if not yes:
            if not sys.stdin.isatty():
                raise UsageError(f"deleting {ep} needs a confirmation", "Add --yes.")
            click.confirm(
                f"Delete {printable(row.endpoint.url)} and cancel {waiting} deliveries that wait for it?",
                abort=True,
            )
        cancelled = await stores.endpoints.delete(endpoint_id, stores.clock.now())
    click.echo(f"deleted {ep}; {cancelled} deliveries cancelled")


@endpoint.command()
@click.argument("ep")
@click.option("--type", "event_type", default="postrider.test", show_default=True)
@click.option("--data", default='{"test":true}', help="A JSON object; @FILE, or @- for stdin.")
@config_option
@json_option
@run_async
async def test(ep: str, event_type: str, data: str, config_path: Path | None, as_json: bool) -> None:
    """Send one signed request at once, from here and not from the daemon, and print what came back.

    It is not recorded. Exit code 1 if the endpoint does not answer 2xx.

    Example: postrider endpoint test ep_0123456789abcdef
    """
    async with open_stores(config_path) as stores:
        row = await _living(stores, parse_endpoint_id(ep))
        config = stores.config
        target = row.endpoint
        dialect = load_dialects(config.dialect.paths)[_known_dialect(target.dialect, config)]
        text = read_data(data)
        now = datetime.now(UTC)
        event = Event(
            id=UUID(int=(int(now.timestamp() * 1000) << 80) | (7 << 76) | (2 << 62) | secrets.randbits(62)),
            workspace_id=target.workspace_id,
            type=event_type,
            data=text,
            data_bytes=len(text.encode()),
            previous_attributes=None,
            object_type=None,
            object_id=None,
            actor=None,
            related=None,
            occurred_at=now,
        )
        body = render(dialect, event)
        headers = request_headers(
            dialect,
            event,
            target.secrets,
            timestamp=int(now.timestamp()),
            body=body,
            user_agent=config.delivery.user_agent,
            extra=target.headers,
        )
        async with WebhookClient(network_options(config)) as client:
            result = await client.post(target.url, headers, body, https_only=config.network.https_only)
    succeeded = isinstance(result, Reply) and 200 <= result.status < 300
    if as_json:
        facts: dict[str, object] = {"succeeded": succeeded, "duration_ms": round(result.duration_ms, 1)}
        if isinstance(result, Reply):
            facts |= {"status": result.status, "response_body": result.body}
        else:
            facts |= {"error_kind": result.kind, "reason": result.reason}
        print_json(facts)
    elif isinstance(result, Reply):
        click.echo(f"HTTP {result.status} in {result.duration_ms:.0f} ms")
        if result.body:
            click.echo(printable(result.body))
    else:
        click.echo(f"{result.kind}: {printable(result.reason)}")
    if not succeeded:
        raise click.exceptions.Exit(1)


def read_data(text: str) -> str:
    """JSON text of an option: itself, or the content of @FILE or @- (stdin)."""
    if not text.startswith("@"):
        return text
    try:
        return sys.stdin.read() if text == "@-" else Path(text[1:]).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{text[1:]} can't be read: {error}", "Name a UTF-8 file.") from None


async def _living(stores: Stores, endpoint_id: int) -> EndpointRow:
    row = await stores.endpoints.get(endpoint_id)
    if row.endpoint.state is EndpointState.DELETED:
        raise PostriderError(
            f"endpoint {endpoint_public_id(endpoint_id)} is deleted",
            "Add it anew with `postrider endpoint add`.",
        )
    return row


def _checked_url(url: str, config: Config) -> str:
    check_url(url, config.network.https_only)
    return url


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(parse_pattern(part) for part in text.split(",")))


def _known_dialect(name: str, config: Config) -> str:
    known = load_dialects(config.dialect.paths)
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        raise UsageError(
            f"there is no dialect {name!r}",
            f"Did you mean {nearest[0]}?" if nearest else f"Known are: {', '.join(sorted(known))}.",
        )
    return name


def _headers(lines: Sequence[str]) -> dict[str, str]:
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            # The line is not quoted: it may hold a password.
            raise UsageError("--header needs a name and a value", "Write it as 'X-Api-Key: value'.")
        check_header(name.strip(), value.strip())
        headers[name.strip()] = value.strip()
    return headers


def _pattern_text(endpoint: Endpoint) -> str:
    return ",".join(endpoint.patterns) + "".join(f" -{pattern}" for pattern in endpoint.exclusions)


def _facts(row: EndpointRow) -> dict[str, Any]:
    """An endpoint without what may be secret: its keys, and the values of its headers."""
    endpoint = replace(row.endpoint, secrets=())
    return {
        "id": endpoint_public_id(endpoint.id),
        "workspace": endpoint.workspace_id,
        "url": endpoint.url,
        "description": endpoint.description,
        "state": endpoint.state,
        "disabled_reason": row.disabled_reason,
        "failing_since": endpoint.failing_since,
        "events": list(endpoint.patterns),
        "exclude": list(endpoint.exclusions),
        "dialect": endpoint.dialect,
        "concurrency": endpoint.concurrency,
        "headers": sorted(endpoint.headers),
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }

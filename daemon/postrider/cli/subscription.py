"""postrider endpoint add, update: subscribe a URL to events."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from msgspec import UNSET, UnsetType

from postrider.cli.common import (
    backend_of,
    config_option,
    json_option,
    operator,
    print_json,
    read_data,
    run_async,
)
from postrider.cli.single_requests import show_delivery
from postrider.domain.audit import EVERYWHERE
from postrider.domain.endpoint_input import EndpointChange, NewEndpoint
from postrider.domain.errors import UsageError
from postrider.domain.model import DEFAULT_WORKSPACE, parse_endpoint_id
from postrider.edges.durations import parse_rate
from postrider.operations import endpoint_changes
from postrider.operations.endpoint_changes import Changed
from postrider.operations.endpoint_rules import MAX_CONCURRENCY
from postrider.operations.views.endpoint import endpoint_view
from postrider.operations.wording import printable


class _Slots(click.IntRange):
    """A number of requests at a time; 0 for the word `none`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return 0 if value == "none" else super().convert(value, param, ctx)


_subscription_options = [
    click.option("--exclude", metavar="P,…", help="Patterns of event types to leave out."),
    click.option("--dialect", metavar="D", help="Wire format [dialect.default]."),
    click.option(
        "--concurrency",
        type=_Slots(1, MAX_CONCURRENCY),
        metavar="N",
        help="Most requests at a time, or none for delivery.endpoint_concurrency.",
    ),
    click.option(
        "--rate", metavar="N/s", help="Most requests a second, a minute (N/m) or hour (N/h), or none."
    ),
    click.option(
        "--header",
        "headers",
        multiple=True,
        metavar="NAME:@FILE",
        help="A header of its own, repeatable; its value comes from FILE, or from stdin for @-. "
        "'NAME: value' shows the value to everybody who lists processes.",
    ),
    click.option("--description", metavar="TEXT"),
    config_option,
    json_option,
]


def _with_subscription_options(command: Any) -> Any:
    for option in reversed(_subscription_options):
        command = option(command)
    return command


@click.command()
@click.option("--url", required=True, help="Where to POST to.")
@click.option("--events", required=True, metavar="P,…", help="Patterns: deal.updated, deal.* or *.")
@click.option("--workspace", default=DEFAULT_WORKSPACE, show_default=True)
@click.option(
    "--secret-file", type=click.File(), help="The signing secret, 16 bytes or more; - for stdin [a new one]."
)
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
    rate: str | None,
    headers: Sequence[str],
    description: str | None,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """Subscribe a URL to events. A secret that was made for it is printed once.

    Where its dialect demands a handshake, the URL has to answer one before it takes part; exit code 1 if it
    does not, and `postrider endpoint verify` asks again.

    Example: postrider endpoint add --url https://example.com/hooks --events 'deal.*,contact.created'
    """
    new = NewEndpoint(
        url=url,
        patterns=_parts(events),
        exclusions=_parts(exclude) if exclude else (),
        workspace_id=workspace,
        dialect=dialect,
        secret=_read_secret(secret_file) if secret_file else None,
        headers=_headers(headers),
        concurrency=concurrency or None,
        rate=None if rate is None else _rate(rate),
        description=description or "",
    )
    async with backend_of(config_path) as backend:
        added = await endpoint_changes.add(backend, operator(), EVERYWHERE, new)
    facts = endpoint_view(added.row)
    if as_json:
        print_json(facts if added.secret is None else {**facts, "secret": added.secret})
    else:
        click.echo(f"added {facts['id']}: {printable(url)}")
        if added.secret is not None:
            click.echo(f"secret: {added.secret}")
            click.echo(
                "Give it to the receiver; `postrider endpoint show --secret` prints it again.", err=True
            )
    _tell(facts["id"], added)


@click.command()
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
    rate: str | None,
    headers: Sequence[str],
    description: str | None,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """Change what is given; the rest stays. --header replaces all headers, --exclude '' clears them,
    --concurrency none and --rate none lift their bounds.

    A new URL or dialect has to answer the handshake that the dialect demands, else nothing is changed.

    Example: postrider endpoint update ep_0123456789abcdef --events '*' --exclude 'activity.*'
    """
    endpoint_id = parse_endpoint_id(ep)
    change = EndpointChange(
        url=_given(url),
        patterns=UNSET if events is None else _parts(events),
        exclusions=UNSET if exclude is None else _parts(exclude) if exclude else (),
        dialect=_given(dialect),
        headers=_headers(headers) if headers else UNSET,
        concurrency=UNSET if concurrency is None else concurrency or None,
        rate=UNSET if rate is None else _rate(rate),
        description=_given(description),
    )
    async with backend_of(config_path) as backend:
        changed = await endpoint_changes.update(backend, operator(), EVERYWHERE, endpoint_id, change)
    if as_json:
        print_json(endpoint_view(changed.row))
    else:
        click.echo(f"updated {ep}")
    _tell(ep, changed)


def _tell(ep: str, changed: Changed) -> None:
    for notice in changed.notices:
        click.echo(notice, err=True)
    problem = changed.problem
    if changed.handshake is None or problem is None:
        return
    show_delivery(changed.handshake)
    click.echo(
        f"{ep} gets no events yet: it did not answer {changed.handshake.event.type} as "
        f"{changed.row.endpoint.dialect} demands: {printable(problem)}\n"
        f"Mend the receiver, then: postrider endpoint verify {ep}",
        err=True,
    )
    raise click.exceptions.Exit(1)


def _given(text: str | None) -> str | UnsetType:
    return UNSET if text is None else text


def _parts(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _read_secret(file: Any) -> str:
    try:
        text: str = file.read()
    except (OSError, UnicodeDecodeError):
        # Nothing of it is quoted.
        raise UsageError(f"the secret in {file.name} can't be read", "Name a UTF-8 file.") from None
    return text.rstrip("\r\n")


def _rate(text: str) -> float | None:
    """Requests a second; None for the word `none`."""
    return None if text == "none" else parse_rate(text)


def _headers(lines: Sequence[str]) -> dict[str, str]:
    headers = {}
    for line in lines:
        name, colon, text = (part.strip() for part in line.partition(":"))
        if not colon:
            # The line is not quoted: it may hold a password.
            raise UsageError(
                "--header needs a name and a value",
                "Write it as 'X-Api-Key:@FILE', with the value in FILE, or as 'X-Api-Key: value'.",
            )
        value = read_data(text).rstrip("\r\n")
        if text.startswith("@") and not value:
            raise UsageError(f"the value of the header {name} is empty", f"Write it into {text[1:]}.")
        headers[name] = value
    return headers

"""postrider endpoint add, update: subscribe a URL to events."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from postrider.cli.common import (
    config_option,
    json_option,
    known_dialect,
    open_stores,
    print_json,
    printable,
    read_data,
    run_async,
)
from postrider.cli.endpoint_facts import endpoint_facts, living
from postrider.cli.trial import ask_for_handshake, problem_of, show_delivery, verify_endpoint
from postrider.domain.dialects import Dialect, check_headers
from postrider.domain.errors import PostriderError, UsageError
from postrider.domain.matching import parse_pattern
from postrider.domain.model import (
    DEFAULT_WORKSPACE,
    MAX_WORKSPACE_ID_LENGTH,
    Endpoint,
    EndpointState,
    parse_endpoint_id,
)
from postrider.domain.signing import check_new_secret, parse_secret
from postrider.edges.addresses import check_url
from postrider.edges.config import Config
from postrider.edges.durations import parse_rate
from postrider.edges.randomness import new_secret
from postrider.edges.settings import address_policy
from postrider.store.deliveries import DeliveryResult

MAX_PLANNED = 5
"""Names of event types that are told."""


class _Slots(click.IntRange):
    """A number of requests at a time; 0 for the word `none`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return 0 if value == "none" else super().convert(value, param, ctx)


_subscription_options = [
    click.option("--exclude", metavar="P,…", help="Patterns of event types to leave out."),
    click.option("--dialect", metavar="D", help="Wire format [dialect.default]."),
    click.option(
        "--concurrency",
        type=_Slots(1, 10_000),
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
    check_workspace(workspace)
    given = _read_secret(secret_file) if secret_file else None
    secret = new_secret() if given is None else given
    rate_per_s = _rate(rate)
    async with open_stores(config_path) as stores:
        spoken = known_dialect(dialect or stores.config.dialect.default, stores.config)
        check_target(url, spoken, stores.config)
        new = Endpoint(
            id=secrets.randbits(63) or 1,
            workspace_id=workspace,
            url=url,
            patterns=parse_patterns(events, spoken),
            exclusions=parse_patterns(exclude, spoken) if exclude else (),
            dialect=spoken.name,
            secrets=(parse_secret(secret),),
            state=EndpointState.UNVERIFIED if spoken.handshake else EndpointState.ACTIVE,
            concurrency=concurrency or None,
            headers=_headers(headers),
            failing_since=None,
            description=description or "",
            rate=rate_per_s or None,
        )
        await stores.endpoints.add(new, [secret], stores.clock.now())
        handshake = await verify_endpoint(stores, new) if spoken.handshake else None
        facts = endpoint_facts(await stores.endpoints.get(new.id))
    if as_json:
        print_json(facts if given is not None else {**facts, "secret": secret})
    else:
        click.echo(f"added {facts['id']}: {printable(url)}")
        if given is None:
            click.echo(f"secret: {secret}")
            click.echo(
                "Give it to the receiver; `postrider endpoint show --secret` prints it again.", err=True
            )
    _tell_of_planned(facts, spoken)
    _tell_of_handshake(str(facts["id"]), spoken, handshake)


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
    rate_per_s = _rate(rate)
    async with open_stores(config_path) as stores:
        before = (await living(stores, endpoint_id)).endpoint
        spoken = known_dialect(dialect or before.dialect, stores.config)
        if url is not None:
            check_target(url, spoken, stores.config)
        patterns = parse_patterns(events, spoken) if events is not None else None
        if dialect is not None:
            _check_patterns(patterns or before.patterns, spoken)
        after = replace(before, url=url or before.url, dialect=spoken.name)
        if headers and not before.secrets:
            # Most likely the key is another one than the daemon's: nothing may be sealed with it.
            raise PostriderError(f"{ep} can't be used: {before.unusable}", "Mend that first.")
        unverified = before.state is EndpointState.UNVERIFIED
        if not unverified and (after.url, after.dialect) != (before.url, before.dialect):
            if spoken.handshake is not None and not before.secrets:
                raise PostriderError(f"{ep} can't be used: {before.unusable}", "Mend that first.")
            handshake = await ask_for_handshake(stores, after)
            if (problem := problem_of(handshake)) is not None:
                raise PostriderError(
                    f"{ep} was not changed: the handshake of {spoken.name} failed: {problem}",
                    "Mend the receiver, then try again.",
                )
        await stores.endpoints.update(
            endpoint_id,
            stores.clock.now(),
            url=url,
            description=description,
            patterns=patterns,
            exclusions=(parse_patterns(exclude, spoken) if exclude else ()) if exclude is not None else None,
            dialect=spoken.name if dialect is not None else None,
            concurrency=concurrency,
            rate=rate_per_s,
            headers=_headers(headers) if headers else None,
        )
        handshake = await verify_endpoint(stores, after) if unverified else None
        facts = endpoint_facts(await stores.endpoints.get(endpoint_id))
    if as_json:
        print_json(facts)
    else:
        click.echo(f"updated {ep}")
    if events is not None or dialect is not None:
        _tell_of_planned(facts, spoken)
    _tell_of_handshake(ep, spoken, handshake)


def _tell_of_planned(facts: Mapping[str, Any], dialect: Dialect) -> None:
    """Say of which event types the CRM only plans to tell; what it emits of them is delivered nonetheless."""
    planned = dialect.catalogue.planned(facts["events"], facts["exclude"])
    if not planned:
        return
    more = f" and {len(planned) - MAX_PLANNED} more" if len(planned) > MAX_PLANNED else ""
    click.echo(
        f"planned by {dialect.name}, and delivered once they are emitted: "
        f"{', '.join(planned[:MAX_PLANNED])}{more}",
        err=True,
    )


def _tell_of_handshake(ep: str, dialect: Dialect, handshake: DeliveryResult | None) -> None:
    problem = problem_of(handshake)
    if handshake is None or problem is None:
        return
    show_delivery(handshake)
    assert dialect.handshake is not None
    click.echo(
        f"{ep} gets no events yet: it did not answer {dialect.handshake.type} as {dialect.name} demands: "
        f"{printable(problem)}\nMend the receiver, then: postrider endpoint verify {ep}",
        err=True,
    )
    raise click.exceptions.Exit(1)


def _read_secret(file: Any) -> str:
    try:
        text: str = file.read()
    except (OSError, UnicodeDecodeError):
        # Nothing of it is quoted.
        raise UsageError(f"the secret in {file.name} can't be read", "Name a UTF-8 file.") from None
    secret = text.rstrip("\r\n")
    check_new_secret(secret)
    return secret


def check_workspace(workspace: str) -> None:
    if not 1 <= len(workspace) <= MAX_WORKSPACE_ID_LENGTH:
        raise UsageError(
            f"a workspace has 1 to {MAX_WORKSPACE_ID_LENGTH} characters, and this one {len(workspace):,}",
            "No event could ever match: emit has the same limit. Leave it out to use the workspace default.",
        )


def check_target(url: str, dialect: Dialect, config: Config) -> None:
    """Raise UsageError for a URL that is never sent to; warn of one that only a configuration for development
    permits."""
    check_url(url, config.network.https_only, address_policy(config))
    if not config.network.https_only and not url.lower().startswith("https:"):
        lifted = (
            f"the HTTPS that {dialect.name} promises"
            if dialect.https_only
            else "Postrider's default of HTTPS"
        )
        click.echo(f"network.https_only = false lifts {lifted}; that is for development only", err=True)


def parse_patterns(text: str, dialect: Dialect) -> tuple[str, ...]:
    patterns = tuple(dict.fromkeys(parse_pattern(part) for part in text.split(",")))
    _check_patterns(patterns, dialect)
    return patterns


def _check_patterns(patterns: Sequence[str], dialect: Dialect) -> None:
    for pattern in patterns:
        try:
            dialect.catalogue.check_pattern(pattern)
        except UsageError as error:
            raise UsageError(f"dialect {dialect.name}: {error.message}", error.hint) from None


def _rate(text: str | None) -> float | None:
    """Requests a second; 0 for the word `none`."""
    if text is None:
        return None
    return 0.0 if text == "none" else parse_rate(text)


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
    check_headers(headers)
    return headers

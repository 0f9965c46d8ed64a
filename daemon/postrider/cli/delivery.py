"""postrider delivery: what became of an event at an endpoint, and sending it again."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import click

from postrider.cli.choosing import FilterOptions, filter_options, where_it_ended
from postrider.cli.common import (
    Stores,
    ago,
    config_option,
    event_id_of,
    json_option,
    open_stores,
    print_json,
    print_table,
    printable,
    run_async,
    type_text,
)
from postrider.cli.delivery_absent import unlisted, why_absent, why_missed
from postrider.cli.delivery_facts import (
    Request,
    attempt_facts,
    delivery_facts,
    emitted_at,
    host_of,
    request_of,
)
from postrider.cli.groups import Commands
from postrider.domain.errors import PostriderError, UsageError
from postrider.domain.model import (
    Attempt,
    DeliveryState,
    Reply,
    delivery_public_id,
    endpoint_public_id,
    parse_delivery_id,
)
from postrider.store.delivery_search import DeliveryFilter, DeliveryRow

RETRY_BATCH = 1000
_AGAIN = {"failed", "cancelled", "retrying", "succeeded"}
"""States of which deliveries can be sent again."""


@click.group(cls=Commands)
def delivery() -> None:
    """List, show and retry deliveries."""


@delivery.command(name="list")
@click.option("--event", "evt", metavar="EVT", help="Only of this event; its id in any dialect's form.")
@filter_options
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--before", metavar="DLV", help="Deliveries after this one in the list: the next page.")
@config_option
@json_option
@run_async
async def list_(
    evt: str | None,
    options: FilterOptions,
    limit: int,
    before: str | None,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """List deliveries, newest event first.

    A delivery is listed once its event is fanned out and there is something to record: before that it waits
    with its event, and how many events there are of that kind is told below the list.

    Times are those at which the events were emitted. A list looks at no more than 100,000 deliveries, or
    events of the workspace, and says where it ended.

    Example: postrider delivery list --workspace ws_1 --since 2h --http-status 5xx
    """
    async with open_stores(config_path) as stores:
        event_id = await event_id_of(evt, stores) if evt else None
        chosen = options.read(stores.clock.now(), event_id)
        found = await stores.history.search(
            chosen, before=parse_delivery_id(before) if before else None, limit=limit
        )
        notes = [] if before else await unlisted(stores, event_id, options.status, found.rows)
    if as_json:
        print_json([delivery_facts(row) for row in found.rows])
    else:
        print_table(
            ["id", "time", "type", "state", "endpoint", "host", "workspace", "attempts", "next", "reason"],
            [
                (
                    delivery_public_id(row.event_id, row.endpoint_id),
                    emitted_at(row),
                    type_text(row.event_type, test=row.test),
                    row.state,
                    endpoint_public_id(row.endpoint_id),
                    host_of(row.url),
                    row.workspace_id,
                    row.attempts,
                    ago(row.due) if row.due else "-",
                    row.reason,
                )
                for row in found.rows
            ],
            empty="no deliveries",
        )
    if found.looked_to is not None:
        go_on = f"--before {delivery_public_id(*found.looked_to)}"
        click.echo(where_it_ended("deliveries", found.looked_to[0], go_on), err=True)
    elif len(found.rows) == limit:
        last = found.rows[-1]
        click.echo(f"more: --before {delivery_public_id(last.event_id, last.endpoint_id)}", err=True)
    if notes:
        click.echo("; ".join(notes), err=True)


@delivery.command()
@click.argument("dlv")
@config_option
@json_option
@run_async
async def show(dlv: str, config_path: Path | None, as_json: bool) -> None:
    """Show one delivery and every attempt of it.

    Example: postrider delivery show dlv_0198c5b0c7e27a7f8a3c6d1e2f3041520123456789abcdef
    """
    key = parse_delivery_id(dlv)
    async with open_stores(config_path) as stores:
        row = await stores.history.get(key)
        if row is None:
            raise UsageError(f"there is no delivery {dlv}", await why_absent(stores, key))
        attempts = await stores.history.attempts(key)
        request = await request_of(stores, row, attempts)
    facts = delivery_facts(row)
    if as_json:
        shown = {"url": request.url, "headers": request.headers, "body": request.body, "notes": request.notes}
        print_json({**facts, "request": shown, "history": [attempt_facts(attempt) for attempt in attempts]})
        return
    for name, value in facts.items():
        click.echo(f"{name + ':':<12} {printable(value)}")
    _print_request(request)
    for attempt in attempts:
        _print_attempt(attempt)


def _print_request(request: Request) -> None:
    click.echo(f"\nrequest  POST {printable(request.url)}")
    for name, value in request.headers.items():
        click.echo(f"    {printable(name)}: {'(withheld)' if value is None else printable(value)}")
    if request.body is not None:
        click.echo(f"\n    {printable(request.body)}")
    for note in request.notes:
        click.echo(f"  ({printable(note)})")


def _print_attempt(attempt: Attempt) -> None:
    result = attempt.result
    said = f"HTTP {result.status}" if isinstance(result, Reply) else f"{result.kind}: {result.reason}"
    click.echo(
        f"\nattempt {attempt.number}  {printable(attempt.started_at)}  "
        f"{result.duration_ms:.0f} ms  {printable(said)}"
    )
    if isinstance(result, Reply):
        for line in [*result.headers.splitlines(), "", *result.body.splitlines()]:
            click.echo(f"    {printable(line)}".rstrip())


@delivery.command()
@click.argument("dlv", nargs=-1)
@filter_options
@click.option("--yes", is_flag=True, help="Don't ask.")
@config_option
@json_option
@run_async
async def retry(
    dlv: Sequence[str],
    options: FilterOptions,
    yes: bool,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """Send deliveries again, each with a whole new schedule: those that are named, or all with a --status, of
    one endpoint, or of all endpoints in a window of time. Tests and handshakes are left out.

    Example: postrider delivery retry --status failed --since 2h --until 30m --http-status 5xx
    """
    narrowed = options.workspace or options.until or options.event_type or options.http_status
    if bool(dlv) == bool(options.ep or options.since) or (dlv and narrowed):
        raise click.UsageError(
            "Name deliveries; or choose them with --status and --endpoint EP, or with --status and --since T."
        )
    if not dlv and options.status not in _AGAIN:
        raise click.UsageError("--status has to be failed, cancelled, retrying or succeeded.")
    async with open_stores(config_path) as stores:
        now = stores.clock.now()
        if dlv:
            await _retry_named(stores, [parse_delivery_id(each) for each in dlv], as_json=as_json)
            return
        chosen = options.read(now)
        # What comes meanwhile is left alone, so that it ends.
        chosen = replace(chosen, until=chosen.until or now, tests=False)
        await _retry_chosen(stores, chosen, yes=yes, as_json=as_json)


async def _retry_named(stores: Stores, keys: Sequence[tuple[UUID, int]], *, as_json: bool) -> None:
    queued = set(await stores.history.retry(keys, stores.clock.now()))
    reasons = {
        delivery_public_id(*key): _why_not(row)
        if (row := await stores.history.get(key)) is not None
        else await why_missed(stores, key) or "there is no such delivery"
        for key in keys
        if key not in queued
    }
    if as_json:
        names = [delivery_public_id(*key) for key in keys if key in queued]
        print_json({"queued": names, "refused": reasons})
    else:
        click.echo(f"{len(queued)} queued to be sent again")
        for name, reason in reasons.items():
            click.echo(f"{name}: {reason}", err=True)
    if reasons and not queued:
        raise PostriderError("nothing was queued")


async def _retry_chosen(stores: Stores, chosen: DeliveryFilter, *, yes: bool, as_json: bool) -> None:
    if not yes:
        count = 0
        async for keys in stores.history.batches(chosen, RETRY_BATCH):
            count += len(keys)
        if count and not sys.stdin.isatty():
            raise UsageError(f"sending {_number(count)} again needs a confirmation", "Add --yes.")
        if count:
            click.confirm(f"Send {_number(count)} again?", abort=True)
    queued, left = [], 0
    async for keys in stores.history.batches(chosen, RETRY_BATCH):
        done = set(await stores.history.retry(keys, stores.clock.now()))
        queued += [delivery_public_id(*key) for key in keys if key in done]
        left += len(keys) - len(done)
        if sys.stderr.isatty():
            click.echo(f"\r{len(queued):,} queued", err=True, nl=False)
    if sys.stderr.isatty() and queued:
        click.echo(err=True)
    if as_json:
        print_json({"queued": queued, "refused": {}, "left_out": left})
        return
    click.echo(f"{len(queued):,} queued to be sent again")
    if left:
        click.echo(
            f"{left:,} were left out: their endpoint is deleted, their event is past retention, or they are "
            "being sent already",
            err=True,
        )


def _number(count: int) -> str:
    return "1 delivery" if count == 1 else f"{count:,} deliveries"


def _why_not(row: DeliveryRow) -> str:
    if row.state in (DeliveryState.WAITING, DeliveryState.SENDING):
        return f"it is {row.state} already"
    if row.test:
        ep = endpoint_public_id(row.endpoint_id)
        return f"it is a test; for another one: postrider endpoint test {ep}, or verify {ep}"
    return "its endpoint is deleted, or its event is past retention"

"""postrider delivery: what became of an event at an endpoint, sending it again, and giving it up."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from postrider.cli.choosing import FilterOptions, filter_options
from postrider.cli.common import (
    backend_of,
    config_option,
    json_option,
    operator,
    print_json,
    print_table,
    run_async,
    show_progress,
    type_text,
)
from postrider.cli.groups import Commands
from postrider.domain.audit import EVERYWHERE
from postrider.domain.errors import PostriderError, UsageError
from postrider.domain.lists import DeliveryFilter
from postrider.domain.model import (
    Attempt,
    DeliveryKey,
    Reply,
    delivery_public_id,
    endpoint_public_id,
    parse_delivery_id,
)
from postrider.operations import deliveries, events
from postrider.operations.delivery_absent import unlisted
from postrider.operations.delivery_request import Request
from postrider.operations.views.attempt import attempt_text
from postrider.operations.views.delivery import (
    delivery_view,
    retried_all_view,
    retried_view,
    shown_delivery_view,
)
from postrider.operations.views.event import where_it_ended
from postrider.operations.wording import ago, printable
from postrider.operations.work import Backend


@click.group(cls=Commands)
def delivery() -> None:
    """List, show, retry and cancel deliveries."""


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
    async with backend_of(config_path) as backend, backend.begin(operator(), EVERYWHERE) as work:
        event_id = await events.find(work, evt) if evt else None
        chosen = options.read(work.now, event_id)
        found = await deliveries.list_deliveries(
            work, chosen, after=parse_delivery_id(before) if before else None, limit=limit
        )
        notes = [] if before else await unlisted(work, event_id, chosen.state, found.rows)
    if as_json:
        print_json([delivery_view(row) for row in found.rows])
    else:
        print_table(
            ["id", "time", "type", "state", "endpoint", "host", "workspace", "attempts", "next", "reason"],
            [
                (
                    delivery_public_id(*row.key),
                    row.emitted_at,
                    type_text(row.event_type, test=row.test),
                    row.state,
                    endpoint_public_id(row.endpoint_id),
                    row.host,
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
        click.echo(f"more: --before {delivery_public_id(*found.rows[-1].key)}", err=True)
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
    async with backend_of(config_path) as backend, backend.begin(operator(), EVERYWHERE) as work:
        shown = await deliveries.show(work, key)
    if as_json:
        print_json(shown_delivery_view(shown))
        return
    for name, value in delivery_view(shown.row).items():
        click.echo(f"{name + ':':<12} {printable(value)}")
    _print_request(shown.request)
    for attempt in shown.attempts:
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
    click.echo(
        f"\nattempt {attempt.number}  {printable(attempt.started_at)}  "
        f"{result.duration_ms:.0f} ms  {printable(attempt_text(attempt))}"
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
    if not dlv:
        deliveries.check_retriable(options.wanted_state)
    async with backend_of(config_path) as backend:
        if dlv:
            await _retry_named(backend, [parse_delivery_id(each) for each in dlv], as_json=as_json)
            return
        now = backend.clock.now()
        chosen = options.read(now)
        # The same are counted and sent.
        chosen = replace(chosen, until=chosen.until or now)
        await _retry_chosen(backend, chosen, yes=yes, as_json=as_json)


async def _retry_named(backend: Backend, keys: Sequence[DeliveryKey], *, as_json: bool) -> None:
    async with backend.begin(operator(), EVERYWHERE) as work:
        retried = await deliveries.retry(work, keys)
    if as_json:
        print_json(retried_view(retried))
    else:
        click.echo(f"{len(retried.queued)} queued to be sent again")
        for key, reason in retried.refused.items():
            click.echo(f"{delivery_public_id(*key)}: {reason}", err=True)
    if retried.refused and not retried.queued:
        raise PostriderError("nothing was queued")


async def _retry_chosen(backend: Backend, chosen: DeliveryFilter, *, yes: bool, as_json: bool) -> None:
    if not yes:
        count = await deliveries.count(backend, operator(), EVERYWHERE, chosen)
        if count and not sys.stdin.isatty():
            raise UsageError(f"sending {_number(count)} again needs a confirmation", "Add --yes.")
        if count:
            click.confirm(f"Send {_number(count)} again?", abort=True)
    done = await deliveries.retry_all(
        backend, operator(), EVERYWHERE, chosen, lambda queued: show_progress(f"{queued:,} queued")
    )
    if sys.stderr.isatty() and done.queued:
        click.echo(err=True)
    if as_json:
        print_json(retried_all_view(done))
        return
    click.echo(f"{len(done.queued):,} queued to be sent again")
    if done.left_out:
        click.echo(
            f"{done.left_out:,} were left out: their endpoint is deleted, their event is past retention, or "
            "they are being sent already",
            err=True,
        )


def _number(count: int) -> str:
    return "1 delivery" if count == 1 else f"{count:,} deliveries"


@delivery.command()
@click.argument("dlv")
@config_option
@json_option
@run_async
async def cancel(dlv: str, config_path: Path | None, as_json: bool) -> None:
    """Give up a delivery that waits, or is to be retried. `delivery retry` brings it back.

    One that a daemon is sending at this moment is not stopped.

    Example: postrider delivery cancel dlv_0198c5b0c7e27a7f8a3c6d1e2f3041520123456789abcdef
    """
    key = parse_delivery_id(dlv)
    async with backend_of(config_path) as backend, backend.begin(operator(), EVERYWHERE) as work:
        row = await deliveries.cancel(work, key)
    if as_json:
        print_json(delivery_view(row))
    else:
        click.echo(f"cancelled {delivery_public_id(*key)}")

"""postrider delivery: what became of an event at an endpoint, and sending it again."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import click

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
)
from postrider.cli.endpoint_facts import missed_text
from postrider.domain.errors import PostriderError, UsageError
from postrider.domain.model import (
    UNSETTLED,
    Attempt,
    DeliveryState,
    Reply,
    delivery_public_id,
    endpoint_public_id,
    event_public_id,
    parse_delivery_id,
    parse_endpoint_id,
)
from postrider.domain.status import NO_DAEMON, Progress, explain_progress
from postrider.store.daemons import Daemons
from postrider.store.deliveries import DeliveryKey
from postrider.store.history import DeliveryRow
from postrider.store.status import Status

_state_option = click.option("--status", type=click.Choice([state.value for state in DeliveryState]))


@click.group()
def delivery() -> None:
    """List, show and retry deliveries."""


@delivery.command(name="list")
@click.option("--endpoint", "ep", metavar="EP", help="Only of this endpoint.")
@click.option("--event", "evt", metavar="EVT", help="Only of this event; its id in any dialect's form.")
@_state_option
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--before", metavar="DLV", help="Deliveries after this one in the list: the next page.")
@config_option
@json_option
@run_async
async def list_(
    ep: str | None,
    evt: str | None,
    status: str | None,
    limit: int,
    before: str | None,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """List deliveries, newest event first.

    A delivery is listed once its event is fanned out and there is something to record: before that it waits
    with its event, and how many events there are of that kind is told below the list.

    Example: postrider delivery list --endpoint ep_0123456789abcdef --status failed
    """
    async with open_stores(config_path) as stores:
        event_id = await event_id_of(evt, stores) if evt else None
        rows = await stores.history.list_deliveries(
            endpoint_id=parse_endpoint_id(ep) if ep else None,
            event_id=event_id,
            state=DeliveryState(status) if status else None,
            before=parse_delivery_id(before) if before else None,
            limit=limit,
        )
        notes = [] if before else await _unlisted(stores, event_id, status, rows)
    if as_json:
        print_json([_facts(row) for row in rows])
        _print_notes(notes)
        return
    print_table(
        ["id", "type", "state", "attempts", "next", "reason"],
        [
            (
                delivery_public_id(row.event_id, row.endpoint_id),
                row.event_type,
                row.state,
                row.attempts,
                ago(row.due) if row.due else "-",
                row.reason,
            )
            for row in rows
        ],
        empty="no deliveries",
    )
    _print_notes(notes)


async def _unlisted(
    stores: Stores, event_id: UUID | None, status: str | None, rows: Sequence[DeliveryRow]
) -> list[str]:
    """What a list of deliveries can't show: those that have no row yet, and that nobody is at it."""
    if status is not None and status not in UNSETTLED:
        return []
    alive = await Daemons(stores.database).alive()
    notes = []
    if status in (None, DeliveryState.WAITING, DeliveryState.SENDING):
        if event_id is not None:
            progress = await Status(stores.database).progress(event_id, alive)
            if progress is not Progress.DONE:
                return [f"not listed yet: {explain_progress(progress, len(alive))}"]
        else:
            queue = await Status(stores.database).queue(alive)
            if not queue.empty:
                notes.append(f"deliveries of these are not listed yet: {queue.sentence}")
    if not alive and (notes or any(row.state in UNSETTLED for row in rows)):
        notes.append(NO_DAEMON)
    return notes


def _print_notes(notes: Sequence[str]) -> None:
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
            alive = await Daemons(stores.database).alive()
            progress = await Status(stores.database).progress(key[0], alive)
            raise UsageError(
                f"there is no delivery {dlv}",
                await _missed(stores, key)
                or (
                    "Retention may have removed it, or the endpoint was not subscribed."
                    if progress is Progress.DONE
                    else f"It may come: {explain_progress(progress, len(alive))}."
                ),
            )
        attempts = await stores.history.attempts(key)
    facts = {**_facts(row), "history": [_attempt_facts(attempt) for attempt in attempts]}
    if as_json:
        print_json(facts)
        return
    for name in (
        "id",
        "event",
        "event_type",
        "endpoint",
        "workspace",
        "state",
        "reason",
        "due",
        "updated_at",
    ):
        click.echo(f"{name + ':':<12} {printable(facts[name])}")
    for attempt in attempts:
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
@click.option("--endpoint", "ep", metavar="EP", help="All of this endpoint with --status.")
@_state_option
@click.option("--yes", is_flag=True, help="Don't ask.")
@config_option
@json_option
@run_async
async def retry(
    dlv: Sequence[str], ep: str | None, status: str | None, yes: bool, config_path: Path | None, as_json: bool
) -> None:
    """Send deliveries again, each with a whole new schedule.

    Example: postrider delivery retry --endpoint ep_0123456789abcdef --status failed
    """
    if bool(dlv) == bool(ep):
        raise click.UsageError("Name deliveries, or an endpoint with --endpoint EP.")
    if ep and status not in {"failed", "cancelled", "retrying", "succeeded"}:
        raise click.UsageError("--endpoint needs --status failed, cancelled, retrying or succeeded.")
    async with open_stores(config_path) as stores:
        if ep:
            assert status is not None
            keys = await stores.history.keys(parse_endpoint_id(ep), DeliveryState(status))
            if keys and not yes:
                if not sys.stdin.isatty():
                    raise UsageError(
                        f"sending {len(keys)} deliveries again needs a confirmation", "Add --yes."
                    )
                click.confirm(f"Send {len(keys)} deliveries again?", abort=True)
        else:
            keys = [parse_delivery_id(each) for each in dlv]
        queued = set(await stores.history.retry(keys, stores.clock.now()))
        reasons = {
            delivery_public_id(*key): _why_not(row)
            if (row := await stores.history.get(key)) is not None
            else await _missed(stores, key) or "there is no such delivery"
            for key in keys
            if key not in queued
        }
    if as_json:
        print_json(
            {"queued": [delivery_public_id(*key) for key in keys if key in queued], "refused": reasons}
        )
    else:
        click.echo(f"{len(queued)} queued to be sent again")
        for name, reason in reasons.items():
            click.echo(f"{name}: {reason}", err=True)
    if reasons and not queued:
        raise PostriderError("nothing was queued")


async def _missed(stores: Stores, key: DeliveryKey) -> str | None:
    """That an endpoint has no delivery of an event because it was disabled, and what to do."""
    event_id, endpoint_id = key
    for event in await stores.outbox.read([event_id]):
        for missed in await stores.missed.of_event(event):
            if missed.endpoint_id == endpoint_id:
                evt, ep = event_public_id(event_id), endpoint_public_id(endpoint_id)
                return f"{missed_text(missed)}; send it: postrider event resend {evt} --endpoint {ep}"
    return None


def _why_not(row: DeliveryRow) -> str:
    if row.state in (DeliveryState.WAITING, DeliveryState.SENDING):
        return f"it is {row.state} already"
    return "its endpoint is deleted, or its event is past retention"


def _facts(row: DeliveryRow) -> dict[str, Any]:
    return {
        "id": delivery_public_id(row.event_id, row.endpoint_id),
        "event": event_public_id(row.event_id),
        "event_type": row.event_type,
        "endpoint": endpoint_public_id(row.endpoint_id),
        "workspace": row.workspace_id,
        "state": row.state,
        "attempts": row.attempts,
        "due": row.due,
        "reason": row.reason,
        "updated_at": row.updated_at,
    }


def _attempt_facts(attempt: Attempt) -> dict[str, Any]:
    result = attempt.result
    facts: dict[str, Any] = {
        "number": attempt.number,
        "started_at": attempt.started_at,
        "duration_ms": round(result.duration_ms, 1),
        "connect_ms": round(result.connect_ms, 1) if result.connect_ms is not None else None,
    }
    if isinstance(result, Reply):
        return facts | {
            "status": result.status,
            "response_headers": result.headers,
            "response_body": result.body,
        }
    return facts | {"error_kind": result.kind, "reason": result.reason}

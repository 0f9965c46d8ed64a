"""postrider delivery: what became of an event at an endpoint, and sending it again."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from postrider.cli.common import (
    ago,
    config_option,
    json_option,
    open_stores,
    print_json,
    print_table,
    printable,
    run_async,
)
from postrider.cli.groups import Commands
from postrider.domain.errors import PostriderError, UsageError
from postrider.domain.model import (
    Attempt,
    DeliveryState,
    Reply,
    delivery_public_id,
    endpoint_public_id,
    event_public_id,
    parse_delivery_id,
    parse_endpoint_id,
    parse_event_id,
)
from postrider.store.history import DeliveryRow

_state_option = click.option("--status", type=click.Choice([state.value for state in DeliveryState]))


@click.group(cls=Commands)
def delivery() -> None:
    """List, show and retry deliveries."""


@delivery.command(name="list")
@click.option("--endpoint", "ep", metavar="EP", help="Only of this endpoint.")
@click.option("--event", "evt", metavar="EVT", help="Only of this event.")
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
    """List deliveries, newest event first. First attempts under way are not listed yet.

    Example: postrider delivery list --endpoint ep_0123456789abcdef --status failed
    """
    async with open_stores(config_path) as stores:
        rows = await stores.history.list_deliveries(
            endpoint_id=parse_endpoint_id(ep) if ep else None,
            event_id=parse_event_id(evt) if evt else None,
            state=DeliveryState(status) if status else None,
            before=parse_delivery_id(before) if before else None,
            limit=limit,
        )
    if as_json:
        print_json([_facts(row) for row in rows])
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
            raise UsageError(
                f"there is no delivery {dlv}", "Its first attempt may be under way, or retention removed it."
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
        refused = [
            (delivery_public_id(*key), await stores.history.get(key)) for key in keys if key not in queued
        ]
    reasons = {name: _why_not(row) for name, row in refused}
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


def _why_not(row: DeliveryRow | None) -> str:
    if row is None:
        return "there is no such delivery"
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

"""postrider event: what the CRM announced."""

import asyncio
import signal
from collections import OrderedDict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import click
import orjson

from postrider.cli.choosing import since_option, type_option, where_it_ended, workspace_option
from postrider.cli.common import (
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
from postrider.cli.endpoint_facts import missed_facts, missed_text, state_text
from postrider.cli.groups import Commands
from postrider.domain.cursors import event_cursor, parse_event_cursor
from postrider.domain.errors import UsageError
from postrider.domain.model import (
    UNSETTLED,
    Event,
    delivery_public_id,
    event_public_id,
    parse_endpoint_id,
)
from postrider.domain.status import NO_DAEMON, Progress, explain_progress
from postrider.edges.durations import parse_moment
from postrider.engine.resending import resend as send_again
from postrider.store import daemons, outbox
from postrider.store.delivery_search import LOOK_AT_MOST
from postrider.store.status import Status

TAIL_POLL_S = 0.3
TAIL_OVERLAP_S = 30.0
"""How far back `tail` looks each time: rows become visible as they commit, not in the order of ids."""
_JSON_FACTS = ("data", "previous_attributes", "actor", "related")
_SORTS = ("-created_at", "created_at", "-updated_at", "updated_at")


@click.group(cls=Commands)
def event() -> None:
    """List, show, follow and send events again."""


@event.command(name="list")
@type_option
@workspace_option
@click.option("--object-id", metavar="ID", help="Only of this object.")
@since_option
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option(
    "--sort",
    type=click.Choice(_SORTS),
    default="-created_at",
    show_default=True,
    help="-created_at is newest first; an event never changes, so updated_at is the same.",
)
@click.option("--cursor", help="Go on after the event that had this `cursor`.")
@config_option
@json_option
@run_async
async def list_(
    event_type: str | None,
    workspace: str | None,
    object_id: str | None,
    since: str | None,
    limit: int,
    sort: str,
    cursor: str | None,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """List events. Each event's `cursor` in --json is where the next page begins.

    Oldest first, an event whose transaction took long may come to stand before a cursor: who polls for all
    events lists newest first, down to what he has seen, as `event tail` does. A list looks at no more than
    100,000 events (of the workspace), and says where it ended.

    Example: postrider event list --type 'deal.*' --object-id dl_1 --since 2h
    """
    newest_first = sort.startswith("-")
    last = parse_event_cursor(cursor, newest_first=newest_first) if cursor else None
    ended = None
    async with open_stores(config_path) as stores:
        first = parse_moment(since, stores.clock.now()) if since else None
        events = await stores.outbox.list_events(
            workspace_id=workspace,
            type_pattern=event_type,
            object_id=object_id,
            since=first,
            after=last,
            newest_first=newest_first,
            limit=limit,
            look_at_most=LOOK_AT_MOST,
        )
        if len(events) < limit:
            ended = await stores.outbox.looked_to(
                workspace_id=workspace,
                since=first,
                after=last,
                newest_first=newest_first,
                look_at_most=LOOK_AT_MOST,
            )
    cursors = [event_cursor(each.id, newest_first=newest_first) for each in events]
    if ended is not None:
        go_on = f"--cursor {event_cursor(ended, newest_first=newest_first)}"
        click.echo(where_it_ended("events", ended, go_on), err=True)
    if as_json:
        print_json([{**_facts(each), "cursor": cursor} for each, cursor in zip(events, cursors, strict=True)])
        return
    print_table(
        ["id", "occurred", "workspace", "type", "object"],
        [
            (
                event_public_id(each.id),
                each.occurred_at,
                each.workspace_id,
                type_text(each.type, test=each.test),
                each.object_id,
            )
            for each in events
        ],
        empty="no events",
    )
    if len(events) == limit:
        click.echo(f"more: --cursor {cursors[-1]}", err=True)


@event.command()
@click.argument("evt")
@config_option
@json_option
@run_async
async def show(evt: str, config_path: Path | None, as_json: bool) -> None:
    """Show one event, its data, and its deliveries.

    EVT is its id as any dialect writes it into a body or a header: evt_…, msg_…, …-events.

    Example: postrider event show evt_0198c5b0c7e27a7f8a3c6d1e2f304152
    """
    async with open_stores(config_path) as stores:
        event_id = await event_id_of(evt, stores)
        async with stores.database.connection() as connection:
            found = await outbox.read(connection, [event_id])
        if not found:
            raise UsageError(f"there is no event {evt}", "Retention may have removed it.")
        # In this order: what is recorded meanwhile is listed, and not told as missed.
        missed = await stores.missed.of_event(found[0])
        async with stores.database.connection() as connection:
            alive = await daemons.alive(connection)
        progress = await Status(stores.database).progress(event_id, alive)
        deliveries = await stores.history.list_deliveries(event_id=event_id, limit=1000)
    facts = _facts(found[0])
    pending = progress is not Progress.DONE
    facts["pending"] = pending
    facts["progress"] = progress
    facts["deliveries"] = [
        {
            "id": delivery_public_id(each.event_id, each.endpoint_id),
            "state": each.state,
            "attempts": each.attempts,
            "reason": each.reason,
        }
        for each in deliveries
    ]
    facts["missed"] = [missed_facts(each) for each in missed]
    if as_json:
        print_json(facts)
        return
    for name in ("id", "type", "workspace", "occurred_at", "object_type", "object_id"):
        value = type_text(found[0].type, test=found[0].test) if name == "type" else facts[name]
        click.echo(f"{name + ':':<13} {printable(value)}")
    for name in _JSON_FACTS:
        if facts[name] is not None:
            click.echo(f"{name}: {_pretty(facts[name])}")
    if pending:
        click.echo(f"deliveries: {explain_progress(progress, len(alive))}", err=True)
    elif not alive and any(each.state in UNSETTLED for each in deliveries):
        click.echo(f"deliveries: {NO_DAEMON}", err=True)
    print_table(
        ["delivery", "state", "attempts", "reason"],
        [tuple(each.values()) for each in facts["deliveries"]],
        empty="no deliveries" if pending or missed else "no deliveries: nobody was subscribed to it",
    )
    for each in missed:
        click.echo(missed_text(each))
    if missed:
        click.echo(f"send it: postrider event resend {evt} --endpoint EP", err=True)


@event.command()
@click.argument("evt")
@click.option("--endpoint", "ep", metavar="EP", required=True, help="Where to.")
@config_option
@json_option
@run_async
async def resend(evt: str, ep: str, config_path: Path | None, as_json: bool) -> None:
    """Send an event to one endpoint that is subscribed to its type, whether or not it was sent there before.

    It gets a whole new schedule, and has the id that it always had. EVT is its id in any dialect's form.

    Example: postrider event resend evt_0198c5b0c7e27a7f8a3c6d1e2f304152 --endpoint ep_0123456789abcdef
    """
    endpoint_id = parse_endpoint_id(ep)
    async with open_stores(config_path) as stores:
        event_id = await event_id_of(evt, stores)
        async with stores.database.connection() as connection:
            found = await outbox.read(connection, [event_id])
        if not found:
            raise UsageError(f"there is no event {evt}", "Retention may have removed it.")
        target = (await stores.endpoints.get(endpoint_id)).endpoint
        key = await send_again(stores.missed, stores.history, found[0], target, stores.clock.now())
    delivery_id = delivery_public_id(*key)
    if as_json:
        print_json({"delivery": delivery_id, "endpoint_state": target.state})
        return
    click.echo(f"{delivery_id} is queued to be sent")
    if not target.open:
        click.echo(f"it waits: {ep} is {state_text(target)}", err=True)


@event.command()
@type_option
@workspace_option
@click.option("--data", "with_data", is_flag=True, help="Print what the event says, too.")
@config_option
@json_option
@run_async
async def tail(
    event_type: str | None, workspace: str | None, with_data: bool, config_path: Path | None, as_json: bool
) -> None:
    """Print events as they are committed, until Ctrl-C. --json has their data in any case.

    Example: postrider event tail --type 'deal.*' --data
    """
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_stores(config_path) as stores:
        seen: OrderedDict[UUID, None] = OrderedDict()
        started = datetime.now(UTC).timestamp()
        while not stop.is_set():
            since = max(started, datetime.now(UTC).timestamp() - TAIL_OVERLAP_S)
            after = UUID(int=int(since * 1000) << 80)
            while events := await stores.outbox.list_events(
                workspace_id=workspace, type_pattern=event_type, after=after, newest_first=False, limit=500
            ):
                for each in events:
                    if each.id not in seen:
                        seen[each.id] = None
                        _print_line(each, with_data=with_data, as_json=as_json)
                after = events[-1].id
            oldest = UUID(int=int((since - 1) * 1000) << 80)
            for event_id in [each for each in seen if each < oldest]:
                del seen[event_id]
            await stores.clock.wait(stop, TAIL_POLL_S)


def _print_line(each: Event, *, with_data: bool, as_json: bool) -> None:
    facts = _facts(each)
    if as_json:
        click.echo(orjson.dumps(facts, option=orjson.OPT_UTC_Z).decode())
        return
    occurred = each.occurred_at.astimezone().timetz().isoformat("milliseconds")
    event_type = printable(type_text(each.type, test=each.test))
    click.echo(f"{occurred}  {event_public_id(each.id)}  {event_type}  {printable(each.object_id)}")
    for name in _JSON_FACTS if with_data else ():
        if facts[name] is not None:
            click.echo(f"    {name}: {_pretty(facts[name])}".replace("\n", "\n    "))


def _pretty(value: Any) -> str:
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    return "\n".join(printable(line) for line in text.splitlines())


def _facts(each: Event) -> dict[str, Any]:
    return {
        "id": event_public_id(each.id),
        "type": each.type,
        "workspace": each.workspace_id,
        "occurred_at": each.occurred_at,
        "object_type": each.object_type,
        "object_id": each.object_id,
        "data": _parsed(each.data) if each.data is not None else f"({each.data_bytes} bytes: too large)",
        "previous_attributes": _parsed(each.previous_attributes),
        "actor": _parsed(each.actor),
        "related": _parsed(each.related),
        "test": each.test,
    }


def _parsed(text: str | None) -> Any:
    """JSON for display; text that a parser gives up on, such as one nested too deep, stays text."""
    if text is None:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text[:1000]
